"""Layers of a Dask graph that stay symbolic: tables along each axis, from which a task is made when it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import Any

import dask.array as da
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.task_spec import Task, TaskRef

from xpconv.chunks.gather import Cut, gathered
from xpconv.chunks.rims import home_of, rim, strips_of
from xpconv.chunks.runs import Interval, Part, Run
from xpconv.request import WHOLE, Index
from xpconv.spec import Array, Sizes
from xpconv.workspace import current_limit

# From this size on, in bytes, a block's rim is cut by a task of its own. Given whole blocks, one task per chunk is all
# that there is, but a worker fetches every block that borders on its own, and more rows of blocks stay in memory. Of 14
# by 14 chunks of 8 MB under a window of 5 by 5, on two workers, 42 to 190 MB travelled as rims and 1440 to 1600 MB as
# blocks, with 1.0 GB and 1.3 GB in a worker at most. A task costs about 0.1 ms, which small blocks do not earn back.
WORTH_A_RIM = 1 << 20


class SymbolicLayer(Layer):
    """A grid of tasks, which are made when they are asked for."""

    def __init__(self, name: str, shape: Sizes) -> None:
        super().__init__()
        self.name, self.shape = name, shape

    @abstractmethod
    def task(self, key: Any) -> Task:
        """The task of a key of the grid."""

    @property
    def has_legacy_tasks(self) -> bool:  # answered without making the tasks
        """Whether tasks are tuples: never."""
        return False

    def is_materialized(self) -> bool:
        """Whether there is a task in memory: never."""
        return False

    def get_output_keys(self) -> Any:
        """The keys of all tasks."""
        return set(self)

    def __iter__(self) -> Iterator[Any]:
        return ((self.name, *place) for place in product(*map(range, self.shape)))

    def __len__(self) -> int:
        return prod(self.shape)

    def __contains__(self, key: Any) -> bool:
        if not isinstance(key, tuple) or len(key) != len(self.shape) + 1 or key[0] != self.name:
            return False
        return all(isinstance(i, int) and 0 <= i < n for i, n in zip(key[1:], self.shape, strict=True))

    def __getitem__(self, key: Any) -> Task:
        if key not in self:
            raise KeyError(key)
        return self.task(key)

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:  # noqa: ARG002
        """The tasks of the keys that are wanted."""
        tasks = {key: self.task(key) for key in keys if key in self}
        return MaterializedLayer(tasks), {key: set(task.dependencies) for key, task in tasks.items()}


@dataclass(frozen=True)
class Axis:
    """What the tasks gather along one axis of an array: one part per place on an axis of the result, or one for all."""

    place: int | None  # the result's axis
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Source:
    """An array that tasks gather from, by its name in the graph."""

    name: str
    axes: tuple[Axis, ...]
    lift: Index  # applied to its blocks first, which lack some of the axes
    rims: str = ""  # the name of the rims of its blocks, where whole blocks do not travel
    strips: tuple[tuple[tuple[Interval, ...], ...], ...] = ()  # of every axis and block, what the rims hold

    @cached_property
    def own(self) -> tuple[bool, ...]:
        """Which of the axes its blocks have."""
        return own_axes(self.lift, len(self.axes))


    def blocks(self, parts: list[Part]) -> list[TaskRef]:
        """What a task that gathers these parts is given: the block at home, and of its neighbours the rims."""
        homes = [home_of(part) for part in parts]
        return [self._block(block, homes) for block in product(*map(_blocks_of, parts))]

    def _block(self, block: Sizes, homes: list[int]) -> TaskRef:
        away = (strips[i] for strips, i, home in zip(self.strips, block, homes, strict=False) if i != home)
        name = self.rims if any(away) else self.name
        return TaskRef((name, *(i for i, own in zip(block, self.own, strict=True) if own)))


class ChunkLayer(SymbolicLayer):
    """One task per chunk of a result: ``work(arrays, facts)[drop]``, arrays that are gathered and one fact per axis."""

    def __init__(
        self, name: str, work: Callable[..., Any], facts: tuple[tuple[Any, ...], ...], sources: tuple[Source, ...],
        drop: Index = WHOLE,
    ) -> None:  # fmt: skip
        dropped = dropped_axes(drop, len(facts))
        super().__init__(name, tuple(len(table) for axis, table in enumerate(facts) if axis not in dropped))
        self.work, self.facts, self.sources, self.drop, self.limit = work, facts, sources, drop, current_limit()
        self._kept = tuple(axis not in dropped for axis in range(len(facts)))

    def task(self, key: Any) -> Task:
        """What makes one chunk."""
        given = iter(key[1:])
        place = [next(given) if kept else 0 for kept in self._kept]
        cuts, blocks = [], []
        for source in self.sources:
            parts = [axis.parts[0 if axis.place is None else place[axis.place]] for axis in source.axes]
            cuts.append((source.lift, tuple(map(_cut, parts))))
            blocks += source.blocks(parts)
        facts = tuple(table[i] for table, i in zip(self.facts, place, strict=True))
        return Task(key, gathered, self.work, facts, tuple(cuts), self.drop, self.limit, *blocks)


class RimLayer(SymbolicLayer):
    """The rims of an array's blocks."""

    def __init__(self, name: str, base: Array, source: Source) -> None:
        super().__init__(name, base.numblocks)
        self.source = source

    def task(self, key: Any) -> Task:
        """What cuts the strips of one block."""
        given = iter(key[1:])
        place = [next(given) if own else 0 for own in self.source.own]
        strips = tuple(of_axis[i] for of_axis, i in zip(self.source.strips, place, strict=True))
        return Task(key, rim, self.source.lift, strips, TaskRef((self.source.name, *key[1:])))


@lru_cache(maxsize=4096)
def _blocks_of(part: Part) -> Sizes:
    return tuple(sorted({run.block for run in part}))


@lru_cache(maxsize=4096)
def _cut(part: Part) -> Cut:
    """The part, with its blocks counted among those that are needed."""
    rank = {block: i for i, block in enumerate(_blocks_of(part))}
    return len(rank), tuple(Run(rank[run.block], *run[1:]) for run in part)


def chunked(
    operation: str,
    work: Callable[..., Any],
    facts: tuple[tuple[Any, ...], ...],
    arrays: Sequence[tuple[Array, tuple[Axis, ...]]],
    chunks: tuple[Sizes, ...],
    dtype: Any,
) -> Array:
    """The lazy array whose chunks the work makes."""
    lifted = [array if isinstance(array, Lifted) else Lifted(array, WHOLE) for array, _ in arrays]
    read = [_source(x, axes) for x, (_, axes) in zip(lifted, arrays, strict=True)]
    sources = tuple(source for source, _ in read)
    name = f"{operation}-{tokenize(work, facts, sources, current_limit())}"
    layer = ChunkLayer(name, work, facts, sources)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[a for _, given in read for a in given])
    meta = arrays[0][0]._meta
    meta = meta.real if meta.dtype.kind == "c" and dtype.kind != "c" else meta
    return da.Array(graph, name, chunks, meta=meta_from_array(meta, len(chunks), dtype=dtype))


def _source(x: Lifted, axes: tuple[Axis, ...]) -> tuple[Source, list[Array]]:
    """How tasks gather from an array, and the lazy arrays that they depend on."""
    source = Source(x.base.name, axes, x.lift)
    if prod(x.base.chunksize) * x.base.dtype.itemsize < WORTH_A_RIM:
        return source, [x.base]
    strips = tuple(
        ((),) * len(sizes) if axis.place is None else strips_of(set(axis.parts), sizes)
        for axis, sizes in zip(axes, x.chunks, strict=True)
    )
    if not any(map(any, strips)):
        return source, [x.base]
    source = replace(source, rims=f"rim-{tokenize(x.base.name, x.lift, strips)}", strips=strips)
    graph = HighLevelGraph.from_collections(source.rims, RimLayer(source.rims, x.base, source), dependencies=[x.base])
    return source, [x.base, da.Array(graph, source.rims, x.base.chunks, meta=x.base._meta)]


# --- Axes that the user's arrays do not have --------------------------------------------------------------------------


@dataclass(frozen=True)
class Lifted:
    """A lazy array with the axes that it lacks; tasks read its blocks as they are, and add them."""

    base: Array
    lift: Index

    @property
    def dtype(self) -> Any:
        """The array's dtype."""
        return self.base.dtype

    @cached_property
    def chunks(self) -> tuple[Sizes, ...]:
        """The array's chunks, one of size 1 along each of the added axes."""
        given, own = iter(self.base.chunks), own_axes(self.lift, self.base.ndim + self.lift.count(None))
        return tuple(next(given) if is_own else (1,) for is_own in own)

    @cached_property
    def _meta(self) -> Array:
        return self.base._meta[self.lift]


def own_axes(lift: Index, axes: int) -> tuple[bool, ...]:
    """Which of the axes after lifting an array has itself."""
    position = lift.index(Ellipsis)
    rest = (True,) * (axes - len(lift) + 1)
    before, after = ([entry is not None for entry in part] for part in (lift[:position], lift[position + 1 :]))
    return (*before, *rest, *after)


def without_axes(y: Array, drop: Index) -> Array:
    """``y[drop]``; of a result that was just described, with the axes dropped inside its tasks."""
    layer = y.dask.layers[y.name] if isinstance(y.dask, HighLevelGraph) else None
    if type(layer) is not ChunkLayer or layer.drop != WHOLE:
        return y[drop]
    name = f"{y.name.rpartition('-')[0]}-{tokenize(y.name, drop)}"
    layers, dependencies = dict(y.dask.layers), dict(y.dask.dependencies)
    del layers[y.name]
    layers[name] = ChunkLayer(name, layer.work, layer.facts, layer.sources, drop)
    dependencies[name] = dependencies.pop(y.name)
    dropped = dropped_axes(drop, y.ndim)
    chunks = tuple(sizes for axis, sizes in enumerate(y.chunks) if axis not in dropped)
    return da.Array(HighLevelGraph(layers, dependencies), name, chunks, meta=meta_from_array(y._meta, len(chunks)))


def dropped_axes(drop: Index, axes: int) -> tuple[int, ...]:
    """The axes, of an array that has so many, that an index of whole axes and zeros takes away."""
    position = drop.index(Ellipsis)
    behind = axes - len(drop)
    return tuple(i if i < position else i + behind for i, entry in enumerate(drop) if isinstance(entry, int))
