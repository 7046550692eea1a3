"""Poolings, patches and their adjoints of chunked arrays, as lazy arrays."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any

from dask.array.utils import meta_from_array

from xpconv.chunks import work
from xpconv.chunks.advice import advise
from xpconv.chunks.graph import Axis, chunked
from xpconv.chunks.places import Places, by_layout, in_maps, whole
from xpconv.chunks.runs import edges_of, part_of, sizes_of
from xpconv.chunks.windows import input_edges, reaches, readings, result_edges, span_edges
from xpconv.dtypes import widened
from xpconv.spec import AdaptiveSpec, Array, PoolSpec, Sizes


def pool(operation: str, x: Array, spec: PoolSpec, options: dict[str, Any], dtype: Any) -> Any:
    """A pooling of each chunk, whose windows read what they need of its neighbours."""
    batch, space, channels = by_layout(spec.layout, x.chunks)
    edges = [edges_of(sizes) for sizes in space]
    results = [result_edges(spec, axis, edges[axis]) for axis in range(spec.axes)]
    read = tuple(readings(spec, axis, edges[axis], results[axis]) for axis in range(spec.axes))
    advise(operation, spec, space, read)
    places = Places(spec.layout, spec.axes)
    sources = [(x, places.maps(batch, read, whole(places.channels, channels)))]
    facts = in_maps(spec.layout, batch, read, channels)
    chunks = in_maps(spec.layout, batch, tuple(map(sizes_of, results)), channels)
    job = partial(work.pooling, operation=operation, spec=spec, options=options)
    return _parted(chunked(operation, job, facts, sources, chunks, dtype), options)


def _parted(result: Array, options: dict[str, Any]) -> Any:
    """The values, or with indices both, of chunks that are pairs then."""
    if not options.get("return_indices"):
        return result
    dtypes: tuple[Any, Any] = result.dtype, "int64"
    metas = [meta_from_array(result._meta, result.ndim, dtype=dtype) for dtype in dtypes]
    return tuple(
        result.map_blocks(itemgetter(part), dtype=dtype, meta=meta)
        for part, (dtype, meta) in enumerate(zip(dtypes, metas, strict=True))
    )


def unfold(x: Array, spec: PoolSpec) -> Array:
    """The patches of each chunk."""
    batch, space, channels = by_layout(spec.layout, x.chunks)
    edges = [edges_of(sizes) for sizes in space]
    results = [result_edges(spec, axis, edges[axis]) for axis in range(spec.axes)]
    read = tuple(readings(spec, axis, edges[axis], results[axis]) for axis in range(spec.axes))
    advise("unfold", spec, space, read)
    places = _PatchPlaces(spec)
    window = tuple((m,) for m in spec.window)
    sources = [(x, places.maps(batch, read, whole(places.channels, channels)))]
    facts = places.order(batch, read, window, channels)
    chunks = places.order(batch, tuple(map(sizes_of, results)), window, channels)
    return chunked("unfold", partial(work.patches, spec=spec), facts, sources, chunks, x.dtype)


class _PatchPlaces(Places):
    """The places of patches, which have the axes of the window too."""

    def __init__(self, spec: PoolSpec) -> None:
        super().__init__(spec.layout, spec.axes)
        if spec.layout == "channels_last":
            self.channels = 2 * spec.axes + 1
        else:
            self.space = tuple(place + spec.axes for place in self.space)

    def order(self, batch: Any, space: Any, window: Any, channels: Any) -> tuple[Any, ...]:
        """Entries in the order of the axes of patches."""
        if self.layout == "channels_last":
            return (batch, *space, *window, channels)
        return (batch, channels, *window, *space)


# --- Adjoints ---------------------------------------------------------------------------------------------------------


def fold(patches: Array, spec: PoolSpec) -> Array:
    """For each chunk of the result the patches that reach it, added up."""
    axes, (batch, *inner, end) = spec.axes, patches.chunks
    if spec.layout == "channels_last":
        results, window, channels = inner[:axes], inner[axes:], end
    else:
        results, window, channels = [*inner[axes + 1 :], end], inner[1 : axes + 1], inner[0]
    along_window = tuple(whole(None, sizes) for sizes in window)
    return _put_back("fold", patches, spec, batch, tuple(results), channels, along_window, {}, patches.dtype)


def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """For each chunk of the input the shares of the windows that reach it, added up."""
    batch, results, channels = by_layout(spec.layout, gy.chunks)
    whole_axis = [(0, n) for n in spec.size]
    read = tuple(
        readings(spec, axis, whole_axis[axis], edges_of(results[axis])) for axis in range(spec.axes)
    )
    options = {"count_include_pad": count_include_pad, "divisor": divisor}
    dtype = widened(gy._meta).dtype
    job = partial(work.shared, spec=spec, options=options, dtype=dtype)
    sources = [(gy, tuple(whole(place, sizes) for place, sizes in enumerate(gy.chunks)))]
    facts = in_maps(spec.layout, batch, read, channels)
    shares = chunked("avg-pool-shares", job, facts, sources, gy.chunks, dtype)
    one = {"count_include_pad": False, "divisor": 1}
    return _put_back("avg_pool_grad", shares, spec, batch, results, channels, (), one, gy.dtype)


def _put_back(
    operation: str, given: Array, spec: PoolSpec, batch: Sizes, results: tuple[Sizes, ...], channels: Sizes,
    window: tuple[Axis, ...], options: dict[str, Any], dtype: Any,
) -> Array:  # fmt: skip
    made = [edges_of(sizes) for sizes in results]
    cuts = [input_edges(spec, axis, made[axis]) for axis in range(spec.axes)]
    reached = tuple(reaches(spec, axis, cuts[axis], made[axis]) for axis in range(spec.axes))
    places = Places(spec.layout, spec.axes)
    maps = places.maps(batch, reached, whole(places.channels, channels))
    before = spec.axes + 1 if spec.layout == "channels_last" else 2  # axes, of those of the window
    axes = (*maps[:before], *window, *maps[before:])
    facts = in_maps(spec.layout, batch, reached, channels)
    chunks = in_maps(spec.layout, batch, tuple(map(sizes_of, cuts)), channels)
    job = partial(work.put_back, operation=operation, spec=spec, options=options, dtype=dtype)
    return chunked(operation, job, facts, [(given, axes)], chunks, dtype)


# --- Wanted sizes -----------------------------------------------------------------------------------------------------


def adaptive(operation: str, x: Array, spec: AdaptiveSpec, options: dict[str, Any]) -> Any:
    """Some windows of an adaptive pooling for each chunk, cut where its blocks begin."""
    batch, space, channels = by_layout(spec.layout, x.chunks)
    edges = [edges_of(sizes) for sizes in space]
    cuts = [span_edges(spec.spans(axis), edges[axis]) for axis in range(len(space))]
    places = Places(spec.layout, len(space))
    chosen: list[tuple[Any, ...]] = [
        tuple(spec.spans(axis)[first:stop] for first, stop in pairwise(cut))
        for axis, cut in enumerate(cuts)
    ]
    along = tuple(
        Axis(place, tuple(part_of(spans[0][0], spans[-1][1], edges[axis]) for spans in chosen[axis]))
        for axis, place in enumerate(places.space)
    )
    axes = in_maps(spec.layout, whole(places.batch, batch), along, whole(places.channels, channels))
    facts = in_maps(spec.layout, batch, tuple(tuple(map(_from_start, spans)) for spans in chosen), channels)
    chunks = in_maps(spec.layout, batch, tuple(map(sizes_of, cuts)), channels)
    job = partial(work.adaptive, operation=operation, spec=spec, options=options)
    return _parted(chunked(operation, job, facts, [(x, axes)], chunks, x.dtype), options)


def _from_start(spans: tuple[tuple[int, int], ...]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Where the windows begin, and the windows counted from there."""
    start = spans[0][0]
    return start, tuple((first - start, stop - start) for first, stop in spans)
