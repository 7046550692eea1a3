"""Convolutions and their gradients of chunked arrays, as lazy arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xpconv.chunks import work
from xpconv.chunks.advice import advise
from xpconv.chunks.borders import folded
from xpconv.chunks.channels import Maps, meetings, whole_groups
from xpconv.chunks.graph import Axis, chunked
from xpconv.chunks.places import Places, Sources, bias_axis, by_layout, by_weight, in_maps, parts, weight, whole
from xpconv.chunks.runs import edges_of, intervals_of, sizes_of
from xpconv.chunks.windows import input_edges, reaches, readings, result_edges
from xpconv.dtypes import widened
from xpconv.spec import Array, ConvSpec, Sizes


@dataclass(frozen=True)
class _Channels:
    """How the channels and filters of the chunks of a result are gathered from those of its two arrays."""

    maps: tuple[Maps, ...]  # one per chunk of the result's channels; without what is summed over
    of_array: Axis
    of_weight: tuple[Axis, Axis]  # channels, filters
    summed: Sizes = ()  # chunks whose results are added up, along a leading axis


def conv(x: Array, w: Array, bias: Array | None, spec: ConvSpec, options: dict[str, Any]) -> Array:
    """A convolution for each chunk; where the channels are chunked, a sum of one for each chunk of them."""
    batch, space, channels = by_layout(spec.layout, x.chunks)
    window, per_group, filters = by_weight(spec.layout, w.chunks)
    edges = [edges_of(sizes) for sizes in space]
    results = [result_edges(spec, axis, edges[axis]) for axis in range(spec.axes)]
    read = tuple(readings(spec, axis, edges[axis], results[axis]) for axis in range(spec.axes))
    advise("conv", spec, space, read)
    met = _read_channels(spec, channels, per_group, filters)
    places = Places(spec.layout, spec.axes, int(bool(met.summed)))
    sources = [
        (x, places.maps(batch, read, met.of_array)),
        (w, weight(spec.layout, tuple(whole(None, sizes) for sizes in window), *met.of_weight)),
    ]
    facts = in_maps(spec.layout, batch, read, met.maps)
    chunks = in_maps(spec.layout, batch, tuple(map(sizes_of, results)), tuple(m.filters for m in met.maps))
    if met.summed:
        job = partial(work.convolution_of_channels, spec=spec, options=options | {"activation": None})
        y = _sum_of_chunks("conv-part", job, met.summed, facts, sources, chunks, x)
        return _finished(y, bias, met.maps, spec, options["activation"], x.dtype)
    if bias is not None:
        sources.append((bias, (bias_axis(places.channels, met.maps, bias),)))
    return chunked("conv", partial(work.convolution, spec=spec, options=options), facts, sources, chunks, x.dtype)


def _read_channels(spec: ConvSpec, channels: Sizes, per_group: Sizes, filters: Sizes) -> _Channels:
    x_edges, c_edges, f_edges = map(edges_of, (channels, per_group, filters))
    if spec.groups == 1 and len(channels) > 1:
        place = Places(spec.layout, spec.axes, leading=1).channels
        of_weight = parts(0, intervals_of(x_edges), c_edges), whole(place, filters)
        return _Channels(tuple(Maps(0, f, 1) for f in filters), whole(0, channels), of_weight, channels)
    place, met = Places(spec.layout, spec.axes).channels, meetings(x_edges, f_edges, spec.groups)
    of_weight = whole(None, per_group), parts(place, [meeting.filters for meeting in met], f_edges)
    of_array = parts(place, [meeting.channels for meeting in met], x_edges)
    return _Channels(tuple(meeting.maps for meeting in met), of_array, of_weight)


# --- Gradients --------------------------------------------------------------------------------------------------------


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, activation: str | None) -> Array:
    """For each chunk of the input the adjoint of the windows that reach it."""
    if spec.padding_mode in ("zeros", "constant"):
        return _adjoint(gy, w, bias, replace(spec, padding_mode="zeros"), activation, gy.dtype)
    gx = _adjoint(gy, w, None, spec.valid, None, widened(gy._meta).dtype)
    return _unpadded(gx, by_layout(spec.layout, gy.chunks)[1], spec, gy.dtype)


def _adjoint(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, activation: str | None, dtype: Any) -> Array:
    batch, results, filters = by_layout(spec.layout, gy.chunks)
    window, per_group, w_filters = by_weight(spec.layout, w.chunks)
    made = [edges_of(sizes) for sizes in results]
    cuts = [input_edges(spec, axis, made[axis]) for axis in range(spec.axes)]
    reached = tuple(reaches(spec, axis, cuts[axis], made[axis]) for axis in range(spec.axes))
    met = _spread_filters(spec, filters, per_group, w_filters)
    places = Places(spec.layout, spec.axes, int(bool(met.summed)))
    sources = [
        (gy, places.maps(batch, reached, met.of_array)),
        (w, weight(spec.layout, tuple(whole(None, sizes) for sizes in window), *met.of_weight)),
    ]
    facts = in_maps(spec.layout, batch, reached, met.maps)
    chunks = in_maps(spec.layout, batch, tuple(map(sizes_of, cuts)), tuple(m.channels for m in met.maps))
    outputs = tuple(m._replace(filters=m.channels) for m in met.maps)  # whose filters the bias belongs to
    if met.summed:
        job = partial(work.input_gradient_of_filters, spec=spec)
        gx = _sum_of_chunks("conv-grad-part", job, met.summed, facts, sources, chunks, gy)
        return _finished(gx, bias, outputs, spec, activation, dtype)
    if bias is not None:
        sources.append((bias, (bias_axis(places.channels, outputs, bias),)))
    job = partial(work.input_gradient, spec=spec, activation=activation, dtype=dtype)
    return chunked("conv-grad-input", job, facts, sources, chunks, dtype)


def _spread_filters(spec: ConvSpec, filters: Sizes, per_group: Sizes, w_filters: Sizes) -> _Channels:
    f_edges, w_edges = edges_of(filters), edges_of(w_filters)
    if spec.groups == 1:
        summed = filters if len(filters) > 1 else ()
        place = 0 if summed else None
        of_channels = whole(Places(spec.layout, spec.axes, int(bool(summed))).channels, per_group)
        of_filters = parts(place, intervals_of(f_edges), w_edges)
        maps = tuple(Maps(c, spec.filters, 1) for c in per_group)
        return _Channels(maps, whole(place, filters), (of_channels, of_filters), summed)
    place, met = Places(spec.layout, spec.axes).channels, whole_groups(spec.channels, f_edges, spec.groups)
    intervals = [meeting.filters for meeting in met]
    of_weight = whole(None, per_group), parts(place, intervals, w_edges)
    return _Channels(tuple(meeting.maps for meeting in met), parts(place, intervals, f_edges), of_weight)


def _unpadded(gx: Array, results: tuple[Sizes, ...], spec: ConvSpec, dtype: Any) -> Array:
    """The adjoint of padding that repeats the axis, of the gradient of the padded input."""
    batch, space, channels = by_layout(spec.layout, gx.chunks)
    cuts = [input_edges(spec, axis, edges_of(sizes)) for axis, sizes in enumerate(results)]
    folds = tuple(
        folded(cuts[axis], spec.padding[axis], spec.padding_mode, edges_of(sizes)) for axis, sizes in enumerate(space)
    )
    places = Places(spec.layout, spec.axes)
    sources = [(gx, places.maps(batch, folds, whole(places.channels, channels)))]
    facts = in_maps(spec.layout, batch, folds, channels)
    chunks = in_maps(spec.layout, batch, tuple(map(sizes_of, cuts)), channels)
    return chunked(
        "conv-grad-input", partial(work.unpadded, layout=spec.layout, dtype=dtype), facts, sources, chunks, dtype
    )


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """The sum of what every block of `gy` gives with what its windows read of `x`."""
    x_batch, space, channels = by_layout(spec.layout, x.chunks)
    batch, results, filters = by_layout(spec.layout, gy.chunks)
    read = tuple(readings(spec, axis, edges_of(space[axis]), edges_of(results[axis])) for axis in range(spec.axes))
    x_edges, f_edges, summed = edges_of(channels), edges_of(filters), spec.axes + 1
    order = weight(spec.layout, ("window",) * spec.axes, "channels", "filters")
    c_place, f_place = summed + order.index("channels"), summed + order.index("filters")
    if spec.groups == 1:
        per_group, maps = channels, tuple(Maps(0, f, 1) for f in filters)
        of_x, of_gy = whole(c_place, channels), whole(f_place, filters)
    else:
        met = meetings(x_edges, f_edges, spec.groups)
        per_group, maps = (spec.channels // spec.groups,), tuple(meeting.maps for meeting in met)
        of_x = parts(f_place, [meeting.channels for meeting in met], x_edges)
        of_gy = parts(f_place, [meeting.filters for meeting in met], f_edges)
    places = Places("channels_last", spec.axes)  # of batch and space among the axes that are summed over
    batch_axes = parts(0, intervals_of(edges_of(batch)), edges_of(x_batch)), whole(0, batch)
    space_axes = (
        tuple(Axis(place, tuple(r.part for r in along)) for place, along in zip(places.space, read, strict=True)),
        tuple(whole(place, sizes) for place, sizes in zip(places.space, results, strict=True)),
    )
    sources = [
        (x, in_maps(spec.layout, batch_axes[0], space_axes[0], of_x)),
        (gy, in_maps(spec.layout, batch_axes[1], space_axes[1], of_gy)),
    ]
    whole_window = tuple((m,) for m in spec.window)
    facts = (batch, *read, *weight(spec.layout, whole_window, per_group, maps))
    chunks = weight(spec.layout, whole_window, per_group, tuple(m.filters for m in maps))
    dtype, ones = widened(x._meta).dtype, tuple((1,) * len(axis) for axis in (batch, *read))
    job = partial(work.weight_gradient, spec=spec)
    blocks = chunked("conv-grad-part", job, facts, sources, (*ones, *chunks), dtype)
    gw = blocks.sum(axis=tuple(range(summed)), dtype=dtype)
    return gw if dtype == x.dtype else gw.astype(x.dtype)


def _sum_of_chunks(
    name: str, job: Any, summed: Sizes, facts: tuple[Any, ...], sources: Sources, chunks: tuple[Any, ...], like: Array
) -> Array:
    """The sum over a leading axis of what its chunks give, in the dtype that sums are kept in."""
    dtype = widened(like._meta).dtype
    partial_sums = chunked(name, job, (summed, *facts), sources, ((1,) * len(summed), *chunks), dtype)
    return partial_sums.sum(axis=0, dtype=dtype)


def _finished(
    y: Array, bias: Array | None, maps: tuple[Maps, ...], spec: ConvSpec, activation: str | None, dtype: Any
) -> Array:
    """``phi(y + bias)`` of sums that are complete."""
    sources = [(y, tuple(whole(place, sizes) for place, sizes in enumerate(y.chunks)))]
    if bias is not None:
        sources.append((bias, (bias_axis(Places(spec.layout, spec.axes).channels, maps, bias),)))
    job = partial(work.finished, layout=spec.layout, activation=activation, dtype=dtype)
    return chunked("conv", job, y.chunks, sources, y.chunks, dtype)
