"""Values that go to flat positions of a chunked plane, wherever these point: a shuffle, then one call per chunk.

Nothing says which chunk of values points into which chunk of the plane. Were every chunk of the plane to look at all
of the values, the graph would grow with the square of the chunks. The values travel in rounds instead: the chunks are
numbered in base `BASE`, and each round brings the values to a chunk whose number has one more right digit. A round is
one task per chunk, which reads at most `BASE` others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import dask.array as da
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import Task, TaskRef

from xpconv.chunks import shuffle
from xpconv.chunks.graph import Lifted
from xpconv.chunks.places import by_layout, in_maps
from xpconv.chunks.runs import edges_of, sizes_of
from xpconv.spec import Array, ScatterSpec, Sizes

BASE = 32


def scatter(operation: str, values: Array, indices: Array, spec: ScatterSpec, least: int) -> Array:
    """Values at their indices, which are at least `least`, in a plane of zeros that is cut in proportion to them."""
    values, indices = (a.base[a.lift] if isinstance(a, Lifted) else a for a in (values, indices))
    indices = indices.rechunk(values.chunks)
    batch, out, channels = by_layout(spec.layout, values.chunks)
    cuts = tuple(_in_proportion(edges_of(sizes), n) for sizes, n in zip(out, spec.size, strict=True))
    name = f"{operation}-{tokenize(operation, values.name, indices.name, spec)}"
    tasks = {
        task.key: task
        for b, c in product(range(len(batch)), range(len(channels)))
        for task in (
            *_splits(name, values, indices, spec, cuts, (b, c), least),
            *_rounds(name, out, cuts, (b, c)),
            *_puts(name, operation, spec, out, cuts, (b, batch[b]), (c, channels[c])),
        )
    }
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[values, indices])
    chunks = in_maps(spec.layout, batch, tuple(map(sizes_of, cuts)), channels)
    return da.Array(graph, name, chunks, meta=meta_from_array(values._meta, len(chunks), dtype=values.dtype))


def _in_proportion(edges: Sizes, n: int) -> Sizes:
    inner = {edge * n // edges[-1] for edge in edges[1:-1]} if edges[-1] else set()
    return (0, *sorted(cut for cut in inner if 0 < cut < n), n)


def _bucket(name: str, stage: int, plane: tuple[int, int], number: int) -> tuple[Any, ...]:
    """The key of the bucket of one chunk after so many rounds."""
    return (f"{name}-bucket", stage, *plane, number)


def _splits(
    name: str, values: Array, indices: Array, spec: ScatterSpec, cuts: tuple[Sizes, ...], plane: tuple[int, int],
    least: int,
) -> Iterator[Task]:  # fmt: skip
    edges = [edges_of(sizes) for sizes in by_layout(spec.layout, values.chunks)[1]]
    for number, place in enumerate(product(*(range(len(along) - 1) for along in edges))):
        block = in_maps(spec.layout, plane[0], place, plane[1])
        starts = tuple(along[i] for along, i in zip(edges, place, strict=True))
        split = partial(shuffle.split, spec=spec, cuts=cuts, starts=starts, least=least)
        given = (TaskRef((array.name, *block)) for array in (values, indices))
        yield Task(_bucket(name, 0, plane, number), split, *given)


def _rounds(name: str, out: tuple[Sizes, ...], cuts: tuple[Sizes, ...], plane: tuple[int, int]) -> Iterator[Task]:
    """Every round's buckets, of those that can hold values."""
    held, wanted = set(range(_count(out))), _count([cut[1:] for cut in cuts])
    rounds = rounds_of(len(held), wanted)
    for done in range(rounds):
        width, filled = BASE**done, set()
        for number in range(BASE**rounds if done < rounds - 1 else wanted):
            digit = number // width % BASE
            given = [n for d in range(BASE) if (n := number + (d - digit) * width) in held]
            if given:
                filled.add(number)
                sources = [TaskRef(_bucket(name, done, plane, n)) for n in given]
                exchange = partial(shuffle.exchange, width=width, base=BASE, digit=digit)
                yield Task(_bucket(name, done + 1, plane, number), exchange, *sources)
        held = filled


def _count(axes: Any) -> int:
    count = 1
    for along in axes:
        count *= len(along)
    return count


def rounds_of(given: int, wanted: int) -> int:
    """Digits of the largest number of a chunk."""
    rounds = 1
    while BASE**rounds < max(given, wanted):
        rounds += 1
    return rounds


def _puts(
    name: str, operation: str, spec: ScatterSpec, out: tuple[Sizes, ...], cuts: tuple[Sizes, ...],
    batch: tuple[int, int], channels: tuple[int, int],
) -> Iterator[Task]:  # fmt: skip
    rounds = rounds_of(_count(out), _count([cut[1:] for cut in cuts]))
    for number, place in enumerate(product(*(range(len(cut) - 1) for cut in cuts))):
        box = tuple((cut[i], cut[i + 1]) for cut, i in zip(cuts, place, strict=True))
        put = partial(shuffle.put, operation=operation, spec=spec, box=box, batch=batch[1], channels=channels[1])
        key = (name, *in_maps(spec.layout, batch[0], place, channels[0]))
        yield Task(key, put, TaskRef(_bucket(name, rounds, (batch[0], channels[0]), number)))
