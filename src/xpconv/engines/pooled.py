"""Pooling of NumPy arrays by the compiled kernels: what they take, what they do, and the calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from xpconv.cpu.plan import READ_SINGLE, pool_is_compiled
from xpconv.cpu.results import new
from xpconv.engines import compiled
from xpconv.engines.agnostic import channels_last
from xpconv.plan import Plan, operations
from xpconv.spec import Array, ConvSpec, Phase, PoolSpec, ScatterSpec, Sizes, in_layout
from xpconv.workspace import current_limit

REDUCTIONS = {
    **dict.fromkeys(("max_pool", "global_max_pool"), "largest"),
    **dict.fromkeys(("sum_pool", "avg_pool", "global_avg_pool"), "added"),
}
"""What kernels make of every window."""

_LONG_PLANE = 1024  # elements, side by side, that NumPy reduces faster than kernels turn them
_FEW = 1000  # values that NumPy adds at their indices sooner than kernels are called


def takes(operation: str, x: Array, spec: Any, *, indices: bool = False) -> bool:
    """Whether kernels compute it now."""
    needed = _needed(operation, x, spec, indices)
    return bool(needed) and all(compiled.is_ready(kernel, x.dtype, windows) for kernel, windows in needed)


def is_awaited(operation: str, x: Array, spec: Any, *, indices: bool = False) -> bool:
    """Whether NumPy computes what kernels will, once they are there."""
    return bool(_needed(operation, x, spec, indices)) and not takes(operation, x, spec, indices=indices)


def plan(operation: str, x: Array, spec: Any, *, indices: bool = False) -> Plan | None:
    """What kernels do with it now; None where they do nothing."""
    if not takes(operation, x, spec, indices=indices):
        return None
    if operation == "max_pool_grad":
        reason, tile = "every gradient added at its index", "compiled: channels of an image, one by one"
        return Plan("direct", reason, tile, threads=compiled.thread_count())
    windows, tile = _windows(x, spec), "compiled: results by a vector of channels in registers"
    if operation == "avg_pool_grad":
        reason = "sums over windows of gy, for each phase of the stride"
    else:
        whole = "every map at once" if operation.startswith("global") else "every window by itself"
        reason = "every window with its indices" if indices else whole
    many = (operations(windows) or 0) > READ_SINGLE
    return Plan("direct", reason, tile, threads=compiled.thread_count() if many else 1)


def _needed(operation: str, x: Array, spec: Any, indices: bool) -> list[tuple[str, Any]]:
    """The kernels, by name and by the windows that they read, that compute it; none where NumPy does."""
    present = compiled.kernels()
    if present is None:
        return []
    if operation == "max_pool_grad":
        return [("scatter", spec)] if x.size >= _FEW and present.scatters(x.dtype) else []
    if operation not in (*REDUCTIONS, "avg_pool_grad"):
        return []
    windows = _windows(x, spec)
    if not pool_is_compiled(windows):
        return []
    if indices:
        return [("indexed", windows)] if present.pools_indexed(x.dtype, windows, current_limit()) else []
    if operation == "avg_pool_grad":
        parts = [phase.spec for phase in _phases(windows) if phase.is_reached]
        return _each("added", parts) if all(present.pools(x.dtype, part, current_limit()) for part in parts) else []
    is_long = windows.layout == "channels_first" and windows.window == windows.size
    if is_long and math.prod(windows.size) > _LONG_PLANE:
        return []
    return _each(REDUCTIONS[operation], [windows] if present.pools(x.dtype, windows, current_limit()) else [])


def _windows(x: Array, spec: PoolSpec | Sizes) -> PoolSpec:
    """Those of the operation; one of each map for the axes of what pools globally."""
    return spec if isinstance(spec, PoolSpec) else whole_maps(tuple(x.shape), spec)


def _each(kernel: str, windows: list[Any]) -> list[tuple[str, Any]]:
    return [(kernel, spec) for spec in windows]


@lru_cache(maxsize=128)
def whole_maps(shape: Sizes, axes: Sizes) -> PoolSpec:
    """The pooling of maps over all of their axes."""
    layout = "channels_last" if axes[0] == 1 else "channels_first"
    size, channels = tuple(shape[axis] for axis in axes), shape[-1 if axes[0] == 1 else 1]
    ones, none = (1,) * len(axes), ((0, 0),) * len(axes)
    return PoolSpec(layout, shape[0], channels, size, window=size, stride=ones, dilation=ones, padding=none)


def shared_divisor(spec: PoolSpec, count_include_pad: bool, divisor: float | None) -> float | None:
    """What the sums of all windows are divided by; None where some count fewer elements than others."""
    if divisor:
        return divisor
    counts = (spec.counts(axis, count_include_pad) for axis in range(spec.axes))
    whole = all(set(count) == {m} for count, m in zip(counts, spec.window, strict=True))
    return math.prod(spec.window) if whole else None


# --- The calls --------------------------------------------------------------------------------------------------------


def reduced(reduction: str, x: Array, spec: PoolSpec, divisor: float = 1.0) -> Array:
    """The "largest" element of every window, or all "added" and divided, of `x` read where it lies."""
    y = new(spec.y_shape, x.dtype)
    prepared(reduction, x, y, spec, divisor)(x, y)
    return y


def prepared(reduction: str, x: Array, y: Array, spec: PoolSpec, divisor: float) -> Callable[..., None]:
    """The kernels' call for arrays that lie as these do."""
    x, y = (channels_last(a, spec.layout) for a in (x, y))
    return _prepared(reduction, x, y, spec.reading, divisor)


def _prepared(
    reduction: str, x: Array, y: Array, windows: PoolSpec | ConvSpec, divisor: float
) -> Callable[..., None]:
    call: Callable[..., None] = compiled.found().prepared_pooling(
        reduction, x, y, windows, compiled.sources, divisor, current_limit()
    )
    return call


def indexed(x: Array, spec: PoolSpec) -> tuple[Array, Array]:
    """The largest elements and their flat indices in the plane."""
    y, indices = new(spec.y_shape, x.dtype), new(spec.y_shape, np.dtype(np.int64))
    last = (channels_last(a, spec.layout) for a in (x, y, indices))
    compiled.found().indexed_pooling(*last, spec.reading, compiled.sources, current_limit())(x, y, indices)
    return y, indices


def shared_out(gy: Array, spec: PoolSpec, divisor: float) -> Array:
    """Every element of `gy`, divided, added to all elements that its window had: sums over windows of `gy`, those of
    each phase of the stride by themselves.
    """
    strided = set(spec.stride) != {1}
    layout = "channels_last" if strided else spec.layout  # phases are stored between each other, then turned
    gx, gy = new(in_layout(layout, spec.batch, spec.size, spec.channels), gy.dtype), channels_last(gy, spec.layout)
    for phase in _phases(spec):
        here = channels_last(gx, layout)[(slice(None), *phase.places)]
        if phase.is_reached:
            _prepared("added", gy, here, phase.spec, divisor)(gy, here)
        else:
            here[...] = 0
    return compiled.laid_out(gx, spec.layout) if strided else gx


@lru_cache(maxsize=128)
def _phases(spec: PoolSpec) -> tuple[Phase, ...]:
    """Those of a convolution of each channel with ones that has the same windows, and ends with the last of them."""
    axes = zip(spec.size, spec.padding, spec.out_size, spec.stride, spec.reach, strict=True)
    ones = ConvSpec(
        layout="channels_last", batch=spec.batch, channels=spec.channels, size=spec.size, window=spec.window,
        stride=spec.stride, padding=tuple((lo, (out - 1) * s + m - n - lo) for n, (lo, _), out, s, m in axes),
        dilation=spec.dilation, filters=spec.channels, groups=spec.channels, flip=False,
    )  # fmt: skip
    return tuple(ones.input_phases)


def scattered(values: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Values added at their flat indices in planes of zeros."""
    planes = new(in_layout(spec.layout, spec.batch, spec.size, spec.channels), values.dtype)
    shapes = ((spec.batch, math.prod(size), spec.channels) for size in (spec.out_size, spec.out_size, spec.size))
    given = (channels_last(a, spec.layout) for a in (values, indices, planes))
    compiled.found().scattered(*(a.reshape(shape) for a, shape in zip(given, shapes, strict=True)))
    return planes
