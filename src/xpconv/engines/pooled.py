"""Pooling of NumPy arrays by the compiled kernels: what they take, what they do, and the calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from xpconv.cpu import pieces
from xpconv.cpu.plan import READ_SINGLE, pool_is_compiled
from xpconv.cpu.results import new
from xpconv.engines import compiled
from xpconv.engines.agnostic import channels_last
from xpconv.indices import check_inside
from xpconv.plan import Plan, operations
from xpconv.spec import Array, ConvSpec, Phase, PoolSpec, ScatterSpec, Sizes, in_layout
from xpconv.workspace import current_limit

REDUCTIONS = {
    **dict.fromkeys(("max_pool", "global_max_pool"), "largest"),
    **dict.fromkeys(("sum_pool", "avg_pool", "global_avg_pool"), "added"),
}
"""What kernels make of every window."""

_FEW = 1000  # values that NumPy adds at their indices sooner than kernels are called


def by(operation: str, x: Array, spec: Any, *, indices: bool = False) -> str:
    """The kernels that compute it now, by name; "" where NumPy does."""
    kernel, needed = _needed(operation, x, spec, indices)
    return kernel if all(compiled.is_ready(name, x.dtype, windows) for name, windows in needed) else ""


def is_awaited(operation: str, x: Array, spec: Any, *, indices: bool = False) -> bool:
    """Whether NumPy computes what kernels will, once they are there."""
    return _needed(operation, x, spec, indices)[0] != by(operation, x, spec, indices=indices)


def plan(operation: str, x: Array, spec: Any, *, indices: bool = False) -> Plan | None:
    """What kernels do with it now; None where they do nothing."""
    kernel = by(operation, x, spec, indices=indices)
    if not kernel:
        return None
    if kernel == "scatter":
        return Plan("direct", "every gradient added at its index", _TILES[kernel], threads=compiled.thread_count())
    if operation == "avg_pool_grad":
        reason = "sums over windows of gy, for each phase of the stride"
    else:
        whole = "every map at once" if operation.startswith("global") else "every window by itself"
        reason = "every window with its indices" if indices else whole
    many = (operations(_windows(x, spec)) or 0) > READ_SINGLE
    return Plan("direct", reason, _TILES[kernel], threads=compiled.thread_count() if many else 1)


_TILES = {
    "scatter": "compiled: channels of an image, zeros just ahead of what is added",
    "spread": "compiled: vectors of columns or of channels in registers, the rows of windows first",
    "indexed": "compiled: results by a vector of channels in registers",
    "channelwise": "compiled: results by a vector of channels in registers",
    "plane": "compiled: vectors of columns in registers, the rows of windows first",
}


def _needed(operation: str, x: Array, spec: Any, indices: bool) -> tuple[str, list[tuple[str, Any]]]:
    """The kernels that are to compute it, and what of them for which windows; "" and nothing where NumPy does."""
    present = compiled.kernels()
    nothing: tuple[str, list[tuple[str, Any]]] = "", []
    if present is None:
        return nothing
    if operation == "max_pool_grad":
        return ("scatter", [("scatter", spec)]) if x.size >= _FEW and present.scatters(x.dtype) else nothing
    if operation not in (*REDUCTIONS, "avg_pool_grad"):
        return nothing
    windows = _windows(x, spec)
    if not pool_is_compiled(windows):
        return nothing
    if indices:
        taken = present.pools_indexed(x.dtype, windows, current_limit())
        return ("indexed", [("indexed", windows.reading)]) if taken else nothing
    if operation == "avg_pool_grad":
        if present.spreads(channels_last(x, spec.layout), spec, current_limit()):
            return "spread", [("spread", spec)]
        parts = [phase.spec for phase in _phases(windows) if phase.is_reached]
        taken = all(present.pools_by_channels(x.dtype, part, current_limit()) for part in parts)
        return ("channelwise", [("channelwise added", part) for part in parts]) if taken else nothing
    kernel = present.pools(channels_last(x, windows.layout), windows.reading, current_limit())
    return (kernel, [(f"{kernel} {REDUCTIONS[operation]}", windows.reading)]) if kernel else nothing


def _windows(x: Array, spec: PoolSpec | Sizes) -> PoolSpec:
    """Those of the operation; one of each map for the axes of what pools globally."""
    return spec if isinstance(spec, PoolSpec) else whole_maps(tuple(x.shape), spec)


@lru_cache(maxsize=128)
def whole_maps(shape: Sizes, axes: Sizes) -> PoolSpec:
    """The pooling of maps over all of their axes."""
    layout = "channels_last" if axes[0] == 1 else "channels_first"
    size, channels = tuple(shape[axis] for axis in axes), shape[-1 if axes[0] == 1 else 1]
    ones, none = (1,) * len(axes), ((0, 0),) * len(axes)
    return PoolSpec(layout, shape[0], channels, size, window=size, stride=ones, dilation=ones, padding=none)


def divisor_of_maps(operation: str, spec: PoolSpec) -> float:
    """What a reduction of whole maps is divided by: a mean by their elements, a maximum by nothing."""
    return math.prod(spec.size) if operation == "global_avg_pool" else 1.0


def shared_divisor(spec: PoolSpec, count_include_pad: bool, divisor: float | None) -> float | None:
    """What the sums of all windows are divided by; None where some count fewer elements than others."""
    if divisor:
        return divisor
    counts = (spec.counts(axis, count_include_pad) for axis in range(spec.axes))
    whole = all(set(count) == {m} for count, m in zip(counts, spec.window, strict=True))
    return math.prod(spec.window) if whole else None


# --- The calls --------------------------------------------------------------------------------------------------------


def reduced(kernel: str, reduction: str, x: Array, spec: PoolSpec, divisor: float = 1.0) -> Array:
    """The "largest" element of every window, or all "added" and divided, of `x` read where it lies."""
    y = new(spec.y_shape, x.dtype)
    prepared(kernel, reduction, x, y, spec, divisor)(x, y)
    return y


def prepared(
    kernel: str, reduction: str, x: Array, y: Array, spec: PoolSpec, divisor: float
) -> Callable[..., None]:  # fmt: skip
    """The kernels' call for arrays that lie as these do."""
    x, y = (channels_last(a, spec.layout) for a in (x, y))
    return _prepared(kernel, reduction, x, y, spec.reading, divisor)


def _prepared(
    kernel: str, reduction: str, x: Array, y: Array, windows: PoolSpec | ConvSpec, divisor: float
) -> Callable[..., None]:
    call: Callable[..., None] = compiled.found().prepared_pooling(
        kernel, reduction, x, y, windows, compiled.sources, divisor, current_limit()
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
    each phase of the stride by themselves, or row by row at once.
    """
    last, present = channels_last(gy, spec.layout), compiled.found()
    if present.spreads(last, spec, current_limit()):
        gx = new(spec.x_shape, gy.dtype)
        present.prepared_spread(last, spec, divisor)(gy, gx)
        return gx
    layout = "channels_last" if _is_turned(spec) else spec.layout
    gx, gy = new(in_layout(layout, spec.batch, spec.size, spec.channels), gy.dtype), last
    for phase in _phases(spec):
        here = channels_last(gx, layout)[(slice(None), *phase.places)]
        if phase.is_reached:
            _prepared("channelwise", "added", gy, here, phase.spec, divisor)(gy, here)
        else:
            here[...] = 0
    return compiled.laid_out(gx, spec.layout) if _is_turned(spec) else gx


def turned_bytes(gy: Array, spec: PoolSpec) -> int:
    """Bytes that `shared_out` holds beside an image of its result: the image with its channels last."""
    if not _is_turned(spec) or compiled.found().spreads(channels_last(gy, spec.layout), spec, current_limit()):
        return 0
    return math.prod(spec.size) * spec.channels * gy.itemsize


def _is_turned(spec: PoolSpec) -> bool:
    """Whether the phases of a stride are stored between each other, and then turned."""
    return spec.layout == "channels_first" and set(spec.stride) != {1}


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
    """Values added at their flat indices in planes of zeros; an index outside raises."""
    planes = new(in_layout(spec.layout, spec.batch, spec.size, spec.channels), values.dtype)
    copied = sum(a[:1].nbytes for a in (values, indices) if not a.flags.c_contiguous)
    for images in pieces.at_once(spec.batch, copied):
        count = images.stop - images.start
        shapes = ((count, math.prod(size), spec.channels) for size in (spec.out_size, spec.out_size, spec.size))
        given = (channels_last(a[images], spec.layout) for a in (values, indices, planes))
        if not compiled.found().scattered(*(a.reshape(shape) for a, shape in zip(given, shapes, strict=True))):
            check_inside(indices, math.prod(spec.size), least=-1)
    return planes
