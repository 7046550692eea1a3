"""What a task does with the arrays that it gathered: an ordinary call, on a spec of its own.

Every function takes the arrays and the facts of its chunk, one per axis of the result; what is the same for all
chunks is bound to it beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device

from xpconv.chunks.borders import Folded
from xpconv.chunks.channels import Maps
from xpconv.chunks.places import by_layout, by_weight, in_maps
from xpconv.chunks.windows import Reach, Reading
from xpconv.dispatch import agnostic_engine, device_of, run
from xpconv.dtypes import widened
from xpconv.request import Request
from xpconv.spec import AdaptiveSpec, Array, ConvSpec, PoolSpec, Sizes

Facts = tuple[Any, ...]


def computed(operation: str, arrays: tuple[Array | None, ...], spec: Any, options: dict[str, Any]) -> Any:
    """The result of the engine of the chunks; that it has the method was checked when the graph was built."""
    with device_of(arrays):
        return run(Request(operation, arrays, spec, options, reference_methods=True))


# --- Convolution ------------------------------------------------------------------------------------------------------


def convolution(arrays: list[Array], facts: Facts, *, spec: ConvSpec, options: dict[str, Any]) -> Array:
    """One chunk of a convolution."""
    x, w, *bias = arrays
    return computed("conv", (x, w, *(bias or [None])), conv_spec(spec, facts), options)


def convolution_of_channels(arrays: list[Array], facts: Facts, *, spec: ConvSpec, options: dict[str, Any]) -> Array:
    """What some of the channels add to one chunk of a convolution, in the dtype that sums are kept in."""
    x, w = map(widened, arrays)
    return computed("conv", (x, w, None), conv_spec_of_channels(spec, facts), options)[None]


def conv_spec(spec: ConvSpec, facts: Facts) -> ConvSpec:
    """The spec of one chunk's call; padding that repeats the axis was gathered."""
    batch, space, maps = by_layout(spec.layout, facts)
    return _reading(spec, batch, space, maps)


def conv_spec_of_channels(spec: ConvSpec, facts: Facts) -> ConvSpec:
    """The spec of the call for some of the channels, which the first fact counts."""
    batch, space, maps = by_layout(spec.layout, facts[1:])
    return _reading(spec, batch, space, maps._replace(channels=facts[0]))


def _reading(spec: ConvSpec, batch: int, space: tuple[Reading, ...], maps: Maps) -> ConvSpec:
    return replace(
        spec, batch=batch, size=tuple(reading.size for reading in space),
        padding=tuple(reading.padding for reading in space),
        padding_mode="constant" if spec.padding_mode == "constant" else "zeros", **maps._asdict(),
    )  # fmt: skip


def finished(arrays: list[Array], facts: Facts, *, layout: str, activation: str | None, dtype: Any) -> Array:  # noqa: ARG001
    """``phi(y + bias)`` of sums that are complete."""
    y, *bias = arrays
    agnostic = agnostic_engine()
    return agnostic.epilogue(agnostic.channels_last(y, layout), bias[0] if bias else None, activation, layout, dtype)


# --- Gradients of convolution -----------------------------------------------------------------------------------------


def input_gradient(
    arrays: list[Array], facts: Facts, *, spec: ConvSpec, activation: str | None, dtype: Any
) -> Array:
    """One chunk of the input's gradient, or of a transposed convolution."""
    gy, w, *bias = arrays
    if dtype != gy.dtype:
        gy, w = widened(gy), widened(w)
    local = input_gradient_spec(spec, facts)
    if _is_reached(by_layout(spec.layout, facts)[1]):
        return computed("conv_grad_input", (gy, w, *(bias or [None])), local, {"activation": activation})
    nothing = zeros(local.x_shape, gy)
    return finished([nothing, *bias], (), layout=spec.layout, activation=activation, dtype=dtype)


def input_gradient_of_filters(arrays: list[Array], facts: Facts, *, spec: ConvSpec) -> Array:
    """What some of the filters add to one chunk of the input's gradient, in the dtype that sums are kept in."""
    gy, w = map(widened, arrays)
    facts = _of_filters(spec, facts)
    return input_gradient([gy, w], facts, spec=spec, activation=None, dtype=gy.dtype)[None]


def _of_filters(spec: ConvSpec, facts: Facts) -> Facts:
    """The facts of a chunk whose filters the first fact counts."""
    batch, space, maps = by_layout(spec.layout, facts[1:])
    return in_maps(spec.layout, batch, space, maps._replace(filters=facts[0]))


def input_gradient_spec(spec: ConvSpec, facts: Facts) -> ConvSpec:
    """The spec of the convolution from one chunk to the results that reach it."""
    batch, space, maps = by_layout(spec.layout, facts)
    return replace(
        spec, batch=batch, size=tuple(reach.size for reach in space), padding=tuple(reach.padding for reach in space),
        **maps._asdict(),
    )  # fmt: skip


def _is_reached(space: tuple[Reach, ...]) -> bool:
    """Whether the chunk has elements, and windows that reach them."""
    return all(reach.size and reach.results[0] < reach.results[1] for reach in space)


def zeros(shape: Sizes, like: Array) -> Array:
    """Zeros where no window reaches."""
    return array_namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def weight_gradient(arrays: list[Array], facts: Facts, *, spec: ConvSpec) -> Array:
    """What one block of results adds to the weight's gradient, in the dtype that sums are kept in."""
    x, gy = map(widened, arrays)
    return computed("conv_grad_weight", (x, gy), weight_gradient_spec(spec, facts), {})[(None,) * (spec.axes + 1)]


def weight_gradient_spec(spec: ConvSpec, facts: Facts) -> ConvSpec:
    """The spec of the convolution that makes one block of results."""
    batch, *space = facts[: spec.axes + 1]
    _, per_group, maps = by_weight(spec.layout, facts[spec.axes + 1 :])
    return _reading(spec, batch, tuple(space), maps._replace(channels=per_group * maps.groups))


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
    if fold.targets:
        own = xp.asarray(own, copy=True)
    for round_ in _rounds(fold.targets):
        targets, sources = (xp.asarray(tuple(part), device=device(gx)) for part in (round_.keys(), round_.values()))
        own[(*before, targets)] += xp.take(copies, sources, axis=axis)
    return own


def _rounds(targets: Sizes) -> list[dict[int, int]]:
    """Which copy goes to which target, no target twice in a round."""
    rounds: list[dict[int, int]] = []
    times: dict[int, int] = {}
    for copy, target in enumerate(targets):
        times[target] = times.get(target, -1) + 1
        if times[target] == len(rounds):
            rounds.append({})
        rounds[times[target]][target] = copy
    return rounds


# --- Windows ----------------------------------------------------------------------------------------------------------


def pooling(arrays: list[Array], facts: Facts, *, operation: str, spec: PoolSpec, options: dict[str, Any]) -> Any:
    """One chunk of a pooling."""
    (x,) = arrays
    local = pool_spec(spec, facts)
    result = computed(operation, (x,), local, options)
    if not options.get("return_indices"):
        return result
    starts = tuple(reading.start for reading in by_layout(spec.layout, facts)[1])
    return result[0], in_whole(result[1], local.size, starts, spec.size)


def pool_spec(spec: PoolSpec, facts: Facts) -> PoolSpec:
    """The spec of one chunk's call."""
    return _pooled(spec, *by_layout(spec.layout, facts))


def _pooled(spec: PoolSpec, batch: int, space: tuple[Reading, ...], channels: int) -> PoolSpec:
    return replace(
        spec, batch=batch, channels=channels, size=tuple(reading.size for reading in space),
        padding=tuple(reading.padding for reading in space),
    )  # fmt: skip


def patches(arrays: list[Array], facts: Facts, *, spec: PoolSpec) -> Array:
    """One chunk of `unfold`."""
    (x,) = arrays
    return computed("unfold", (x,), patches_spec(spec, facts), {})


def patches_spec(spec: PoolSpec, facts: Facts) -> PoolSpec:
    """The spec of one chunk's call, whose facts have the axes of the window too."""
    axes = spec.axes
    if spec.layout == "channels_last":
        return _pooled(spec, facts[0], facts[1 : axes + 1], facts[-1])
    return _pooled(spec, facts[0], facts[2 + axes :], facts[1])


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
    local = Spans(spec.layout, batch, channels, size, tuple(map(len, windows)), windows)
    result = computed(operation, (x,), local, options)
    if not options.get("return_indices"):
        return result
    return result[0], in_whole(result[1], size, tuple(start for start, _ in space), spec.size)


# --- Adjoints of windows ----------------------------------------------------------------------------------------------


def shared(arrays: list[Array], facts: Facts, *, spec: PoolSpec, options: dict[str, Any], dtype: Any) -> Array:
    """One chunk of the gradients of an average, each divided by what its window counted; the facts are readings."""
    (gy,) = arrays
    local = pool_spec(spec, facts)
    return agnostic_engine().divided(widened(gy), local, options["count_include_pad"], options["divisor"], dtype)


def put_back(
    arrays: list[Array], facts: Facts, *, operation: str, spec: PoolSpec, options: dict[str, Any], dtype: Any
) -> Array:
    """One chunk of what patches or shared gradients add up to."""
    (parts,) = arrays
    local = put_back_spec(spec, facts)
    if _is_reached(by_layout(spec.layout, facts)[1]):
        x = computed(operation, (widened(parts),), local, options)
    else:
        x = zeros(local.x_shape, parts)
    return array_namespace(x).astype(x, dtype, copy=False)


def put_back_spec(spec: PoolSpec, facts: Facts) -> PoolSpec:
    """The spec of the windows that reach one chunk."""
    batch, space, channels = by_layout(spec.layout, facts)
    return replace(
        spec, batch=batch, channels=channels, size=tuple(reach.size for reach in space),
        padding=tuple(reach.padding for reach in space), ceil_mode=False,
    )  # fmt: skip


# --- Telling what a task would do -------------------------------------------------------------------------------------

_SPECS: dict[Any, Callable[[Any, Facts], Any]] = {
    convolution: conv_spec,
    convolution_of_channels: conv_spec_of_channels,
    input_gradient: input_gradient_spec,
    input_gradient_of_filters: lambda spec, facts: input_gradient_spec(spec, _of_filters(spec, facts)),
    weight_gradient: weight_gradient_spec,
    pooling: pool_spec,
    patches: patches_spec,
    put_back: put_back_spec,
}


def spec_of(job: Any, facts: Facts) -> Any:
    """The spec of the call that a job makes for a chunk; None where it makes none of windows."""
    local = _SPECS.get(job.func)
    return None if local is None else local(job.keywords["spec"], facts)
