"""What a task does with the arrays that it gathered: an ordinary call, on a spec of its own.

Every function takes the arrays and the facts of its chunk, one per axis of the result; what is the same for all
chunks is bound to it beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device

from xpconv.chunks.borders import Folded
from xpconv.chunks.channels import Maps
from xpconv.chunks.places import by_layout, by_weight
from xpconv.chunks.windows import Reach, Reading
from xpconv.dispatch import agnostic_engine, device_of, run
from xpconv.dtypes import widened
from xpconv.request import Request
from xpconv.spec import AdaptiveSpec, Array, ConvSpec, PoolSpec, Sizes, in_layout

Facts = tuple[Any, ...]


def computed(operation: str, arrays: tuple[Array | None, ...], spec: Any, options: dict[str, Any]) -> Any:
    """The result of the engine of the chunks; that it has the method was checked when the graph was built."""
    with device_of(arrays):
        return run(Request(operation, arrays, spec, options, reference_methods=True))


# --- Convolution ------------------------------------------------------------------------------------------------------


def convolution(arrays: list[Array], facts: Facts, *, spec: ConvSpec, options: dict[str, Any]) -> Array:
    """One chunk of a convolution."""
    x, w, *bias = arrays
    batch, space, maps = by_layout(spec.layout, facts)
    return computed("conv", (x, w, *(bias or [None])), conv_spec_of(spec, batch, space, maps), options)


def convolution_of_channels(arrays: list[Array], facts: Facts, *, spec: ConvSpec, options: dict[str, Any]) -> Array:
    """What some of the channels add to one chunk of a convolution, in the dtype that sums are kept in."""
    channels, *axes = facts
    batch, space, maps = by_layout(spec.layout, tuple(axes))
    x, w = map(widened, arrays)
    spec = conv_spec_of(spec, batch, space, maps._replace(channels=channels))
    return computed("conv", (x, w, None), spec, options)[None]


def conv_spec_of(spec: ConvSpec, batch: int, space: tuple[Reading, ...], maps: Maps) -> ConvSpec:
    """The spec of one chunk's call; padding that repeats the axis was gathered."""
    return replace(
        spec, batch=batch, size=tuple(reading.size for reading in space),
        padding=tuple(reading.padding for reading in space),
        padding_mode="constant" if spec.padding_mode == "constant" else "zeros", **maps._asdict(),
    )  # fmt: skip


def finished(arrays: list[Array], facts: Facts, *, layout: str, activation: str | None, dtype: Any) -> Array:  # noqa: ARG001
    """``phi(y + bias)`` of sums that are complete."""
    y, *bias = arrays
    agnostic = agnostic_engine()
    return agnostic.epilogue(
        agnostic.channels_last(y, layout), bias[0] if bias else None, activation, layout, dtype
    )


# --- Gradients of convolution -----------------------------------------------------------------------------------------


def input_gradient(
    arrays: list[Array], facts: Facts, *, spec: ConvSpec, activation: str | None, dtype: Any
) -> Array:
    """One chunk of the input's gradient, or of a transposed convolution."""
    gy, w, *bias = arrays
    batch, space, maps = by_layout(spec.layout, facts)
    spec = replace(
        spec, batch=batch, size=tuple(reach.size for reach in space), padding=tuple(reach.padding for reach in space),
        **maps._asdict(),
    )  # fmt: skip
    if dtype != gy.dtype:
        gy, w = widened(gy), widened(w)
    if _is_reached(space):
        return computed("conv_grad_input", (gy, w, *(bias or [None])), spec, {"activation": activation})
    nothing = zeros(spec.x_shape, gy)
    return finished([nothing, *bias], (), layout=spec.layout, activation=activation, dtype=dtype)


def input_gradient_of_filters(arrays: list[Array], facts: Facts, *, spec: ConvSpec) -> Array:
    """What some of the filters add to one chunk of the input's gradient, in the dtype that sums are kept in."""
    filters, *axes = facts
    batch, space, maps = by_layout(spec.layout, tuple(axes))
    axes = in_layout(spec.layout, batch, space, maps._replace(filters=filters))
    gy, w = map(widened, arrays)
    return input_gradient([gy, w], axes, spec=spec, activation=None, dtype=gy.dtype)[None]


def _is_reached(space: tuple[Reach, ...]) -> bool:
    """Whether the chunk has elements, and windows that reach them."""
    return all(reach.size and reach.results[0] < reach.results[1] for reach in space)


def zeros(shape: Sizes, like: Array) -> Array:
    """Zeros where no window reaches."""
    return array_namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def weight_gradient(arrays: list[Array], facts: Facts, *, spec: ConvSpec) -> Array:
    """What one block of results adds to the weight's gradient, in the dtype that sums are kept in."""
    x, gy = map(widened, arrays)
    batch, *space = facts[: spec.axes + 1]
    _, per_group, maps = by_weight(spec.layout, facts[spec.axes + 1 :])
    spec = conv_spec_of(spec, batch, tuple(space), maps._replace(channels=per_group * maps.groups))
    return computed("conv_grad_weight", (x, gy), spec, {})[(None,) * (spec.axes + 1)]


def unpadded(arrays: list[Array], facts: Facts, *, layout: str, dtype: Any) -> Array:
    """The adjoint of padding that repeats the axis: what fell on the padding is added to where it came from."""
    (gx,) = arrays
    _, space, _ = by_layout(layout, facts)
    first_axis = 1 if layout == "channels_last" else 2
    for axis, fold in enumerate(space, start=first_axis):
        gx = _added(gx, fold, axis)
    return array_namespace(gx).astype(gx, dtype, copy=False)


def _added(gx: Array, fold: Folded, axis: int) -> Array:
    """What was gathered of one axis, with its copies added to the chunk's own elements, one copy of each at a time."""
    xp, before = array_namespace(gx), (slice(None),) * axis
    own, copies = gx[(*before, slice(fold.size))], gx[(*before, slice(fold.size, None))]
    rounds: list[dict[int, int]] = []
    for copy, target in enumerate(fold.targets):
        free = next((round_ for round_ in rounds if target not in round_), None)
        if free is None:
            rounds.append(free := {})
        free[target] = copy
    for round_ in rounds:
        targets, sources = (xp.asarray(tuple(part), device=device(gx)) for part in (round_.keys(), round_.values()))
        own = xp.asarray(own, copy=True)
        own[(*before, targets)] += xp.take(copies, sources, axis=axis)
    return own


# --- Windows ----------------------------------------------------------------------------------------------------------


def pooling(arrays: list[Array], facts: Facts, *, operation: str, spec: PoolSpec, options: dict[str, Any]) -> Any:
    """One chunk of a pooling, or of patches."""
    (x,) = arrays
    batch, space, channels = by_layout(spec.layout, facts)
    local = pool_spec_of(spec, batch, space, channels)
    result = computed(operation, (x,), local, options)
    if not options.get("return_indices"):
        return result
    y, indices = result
    return y, in_whole(indices, local.size, tuple(reading.start for reading in space), spec.size)


def patches(arrays: list[Array], facts: Facts, *, spec: PoolSpec) -> Array:
    """One chunk of `unfold`, whose facts have the axes of the window too."""
    (x,) = arrays
    batch, space, channels = patch_axes(spec, facts)
    return computed("unfold", (x,), pool_spec_of(spec, batch, space, channels), {})


def patch_axes(spec: PoolSpec, facts: Facts) -> tuple[Any, Facts, Any]:
    """What belongs to the batch, to the spatial axes and to the channels, of patches."""
    axes = spec.axes
    if spec.layout == "channels_last":
        return facts[0], facts[1 : axes + 1], facts[-1]
    return facts[0], facts[2 + axes :], facts[1]


def pool_spec_of(spec: PoolSpec, batch: int, space: tuple[Reading, ...], channels: int) -> PoolSpec:
    """The spec of one chunk's call."""
    return replace(
        spec, batch=batch, channels=channels, size=tuple(reading.size for reading in space),
        padding=tuple(reading.padding for reading in space),
    )  # fmt: skip


def in_whole(indices: Array, size: Sizes, starts: Sizes, whole: Sizes) -> Array:
    """Flat positions in a part of a plane as positions in the whole plane; -1 stays."""
    xp = array_namespace(indices)
    flat, rest, step = xp.zeros_like(indices), indices, 1
    for n, start, full in zip(reversed(size), reversed(starts), reversed(whole), strict=True):
        flat, rest, step = flat + (rest % max(n, 1) + start) * step, rest // max(n, 1), step * full
    return xp.where(indices < 0, indices, flat)


@dataclass(frozen=True)
class Spans(AdaptiveSpec):
    """Some windows of an adaptive pooling, as they lie on the part that was gathered."""

    windows: tuple[tuple[tuple[int, int], ...], ...]

    def spans(self, axis: int) -> tuple[tuple[int, int], ...]:
        """Start and stop of every window."""
        return self.windows[axis]


def adaptive(arrays: list[Array], facts: Facts, *, operation: str, spec: AdaptiveSpec, options: dict[str, Any]) -> Any:
    """One chunk of a pooling to a wanted size; the fact of a spatial axis is its windows, counted from its start."""
    (x,) = arrays
    batch, space, channels = by_layout(spec.layout, facts)
    windows = tuple(spans for _, spans in space)
    size = by_layout(spec.layout, tuple(x.shape))[1]
    result = computed(operation, (x,), Spans(spec.layout, batch, channels, size, tuple(map(len, windows)), windows), options)
    if not options.get("return_indices"):
        return result
    return result[0], in_whole(result[1], size, tuple(start for start, _ in space), spec.size)


# --- Adjoints of windows ----------------------------------------------------------------------------------------------


def shared(arrays: list[Array], facts: Facts, *, spec: PoolSpec, options: dict[str, Any], dtype: Any) -> Array:
    """One chunk of the gradients of an average, each divided by what its window counted; the facts are readings."""
    (gy,) = arrays
    local = pool_spec_of(spec, *by_layout(spec.layout, facts))
    return agnostic_engine().divided(widened(gy), local, options["count_include_pad"], options["divisor"], dtype)


def put_back(arrays: list[Array], facts: Facts, *, operation: str, spec: PoolSpec, options: dict[str, Any], dtype: Any) -> Array:
    """One chunk of what patches or shared gradients add up to."""
    (parts,) = arrays
    batch, space, channels = by_layout(spec.layout, facts)
    local = replace(
        spec, batch=batch, channels=channels, size=tuple(reach.size for reach in space),
        padding=tuple(reach.padding for reach in space), ceil_mode=False,
    )  # fmt: skip
    if _is_reached(space):
        x = computed(operation, (widened(parts),), local, options)
    else:
        x = zeros(in_layout(spec.layout, batch, local.size, channels), parts)
    return array_namespace(x).astype(x, dtype, copy=False)
