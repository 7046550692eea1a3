"""Poolings, patches and their adjoints of chunked arrays, as lazy arrays."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import Any

from dask.array.utils import meta_from_array

from xpconv.chunks import work
from xpconv.chunks.graph import Axis, chunked
from xpconv.chunks.places import Places, by_layout, whole
from xpconv.chunks.runs import edges_of, part_of, sizes_of
from xpconv.chunks.windows import input_edges, reaches, readings, result_edges, span_edges
from xpconv.dtypes import widened
from xpconv.spec import AdaptiveSpec, Array, PoolSpec, Sizes, in_layout


def pool(operation: str, x: Array, spec: PoolSpec, options: dict[str, Any], dtype: Any) -> Any:
    """A pooling of each chunk, whose windows read what they need of its neighbours."""
    batch, space, channels = by_layout(spec.layout, x.chunks)
    edges = [edges_of(sizes) for sizes in space]
    results = [result_edges(spec, axis, edges[axis]) for axis in range(spec.axes)]
    read = tuple(readings(spec, axis, edges[axis], results[axis]) for axis in range(spec.axes))
    places = Places(spec.layout, spec.axes)
    sources = [(x, places.maps(batch, read, whole(places.channels, channels)))]
    facts = in_layout(spec.layout, batch, read, channels)  # type: ignore[arg-type]
    chunks: Any = in_layout(spec.layout, batch, tuple(map(sizes_of, results)), channels)  # type: ignore[arg-type]
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
    axes, chunks = spec.axes, patches.chunks
    last = spec.layout == "channels_last"
    results, window = (chunks[1 : axes + 1], chunks[axes + 1 : -1]) if last else (chunks[axes + 2 :], chunks[2 : axes + 2])
    along_window = tuple(whole(None, sizes) for sizes in window)
    return _put_back("fold", patches, spec, chunks[0], results, chunks[-1 if last else 1], along_window, {})


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
    facts = in_layout(spec.layout, batch, read, channels)  # type: ignore[arg-type]
    shares = chunked("avg-pool-shares", job, facts, sources, gy.chunks, dtype)
    one = {"count_include_pad": False, "divisor": 1}
    return _put_back("avg_pool_grad", shares, spec, batch, results, channels, (), one, gy.dtype)


def _put_back(
    operation: str, given: Array, spec: PoolSpec, batch: Sizes, results: tuple[Sizes, ...], channels: Sizes,
    window: tuple[Axis, ...], options: dict[str, Any], dtype: Any = None,
) -> Array:  # fmt: skip
    made = [edges_of(sizes) for sizes in results]
    cuts = [input_edges(spec, axis, made[axis]) for axis in range(spec.axes)]
    reached = tuple(reaches(spec, axis, cuts[axis], made[axis]) for axis in range(spec.axes))
    places = Places(spec.layout, spec.axes)
    maps = places.maps(batch, reached, whole(places.channels, channels))
    inner = maps[: spec.axes + 1] if spec.layout == "channels_last" else maps[:2]
    axes = (*inner, *window, *maps[len(inner) :])
    dtype = given.dtype if dtype is None else dtype
    facts = in_layout(spec.layout, batch, reached, channels)  # type: ignore[arg-type]
    chunks: Any = in_layout(spec.layout, batch, tuple(map(sizes_of, cuts)), channels)  # type: ignore[arg-type]
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
        tuple(spec.spans(axis)[first:stop] for first, stop in zip(cut, cut[1:], strict=False))
        for axis, cut in enumerate(cuts)
    ]
    along = tuple(
        Axis(place, tuple(part_of(spans[0][0], spans[-1][1], edges[axis]) for spans in chosen[axis]))
        for axis, place in enumerate(places.space)
    )
    axes: Any = in_layout(spec.layout, whole(places.batch, batch), along, whole(places.channels, channels))  # type: ignore[arg-type]
    facts = in_layout(spec.layout, batch, tuple(tuple(map(_from_start, spans)) for spans in chosen), channels)  # type: ignore[arg-type]
    chunks: Any = in_layout(spec.layout, batch, tuple(map(sizes_of, cuts)), channels)  # type: ignore[arg-type]
    job = partial(work.adaptive, operation=operation, spec=spec, options=options)
    return _parted(chunked(operation, job, facts, [(x, axes)], chunks, x.dtype), options)


def _from_start(spans: tuple[tuple[int, int], ...]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Where the windows begin, and the windows counted from there."""
    start = spans[0][0]
    return start, tuple((first - start, stop - start) for first, stop in spans)
