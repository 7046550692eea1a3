"""A layer of a Dask graph that stays symbolic: tables along each axis, from which a task is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import dask.array as da
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.task_spec import Task, TaskRef

from xpconv.chunks.gather import Cut, gathered
from xpconv.chunks.runs import Part, Run
from xpconv.spec import Array, Sizes


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


class ChunkLayer(Layer):
    """One task per chunk of a result: ``work(arrays, facts)``, the arrays gathered, the facts one per axis."""

    def __init__(
        self, name: str, work: Callable[..., Any], facts: tuple[tuple[Any, ...], ...], sources: tuple[Source, ...]
    ) -> None:
        super().__init__()
        self.name, self.work, self.facts, self.sources = name, work, facts, sources

    @property
    def has_legacy_tasks(self) -> bool:  # type: ignore[override]  # asked for without making the tasks
        return False

    def is_materialized(self) -> bool:
        """Whether there is a task in memory: never."""
        return False

    @cached_property
    def _shape(self) -> Sizes:
        return tuple(map(len, self.facts))

    def get_output_keys(self) -> Any:
        """The keys of all chunks."""
        return set(self)

    def __iter__(self) -> Iterator[Any]:
        return ((self.name, *place) for place in product(*map(range, self._shape)))

    def __len__(self) -> int:
        count = 1
        for chunks in self._shape:
            count *= chunks
        return count

    def __contains__(self, key: Any) -> bool:
        return (
            isinstance(key, tuple)
            and len(key) == len(self._shape) + 1
            and key[0] == self.name
            and all(isinstance(i, int) and 0 <= i < n for i, n in zip(key[1:], self._shape, strict=True))
        )

    def __getitem__(self, key: Any) -> Task:
        if key not in self:
            raise KeyError(key)
        place = key[1:]
        cuts, blocks = [], []
        for source in self.sources:
            parts = [axis.parts[0 if axis.place is None else place[axis.place]] for axis in source.axes]
            needed = [_blocks_of(part) for part in parts]
            cuts.append(tuple(_cut(part) for part in parts))
            blocks += [TaskRef((source.name, *block)) for block in product(*needed)]
        facts = tuple(table[i] for table, i in zip(self.facts, place, strict=True))
        return Task(key, gathered, self.work, facts, tuple(cuts), *blocks)

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:  # noqa: ARG002
        """The tasks of the keys that are wanted."""
        tasks = {key: self[key] for key in keys if key in self}
        return MaterializedLayer(tasks), {key: set(task.dependencies) for key, task in tasks.items()}


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
    sources = tuple(Source(array.name, axes) for array, axes in arrays)
    name = f"{operation}-{tokenize(work, facts, sources)}"
    layer = ChunkLayer(name, work, facts, sources)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[array for array, _ in arrays])
    return da.Array(graph, name, chunks, meta=meta_from_array(arrays[0][0]._meta, len(chunks), dtype=dtype))
