"""Arrays of the CuPy engine laid out anew, by `layout.cu`: one pass over memory each."""

from __future__ import annotations

import cupy

from xpconv.cuda import launch
from xpconv.cuda.geometry import element_strides
from xpconv.cuda.plans import layout
from xpconv.cuda.setting import ALIGNMENT
from xpconv.cuda.steps import Work
from xpconv.spec import Array, Sizes


def packed(x: Array) -> Array:
    """The elements of any view in a new dense array, row by row."""
    return _filled(x, tuple(x.shape))


def as_channels_last(x: Array, channels: int | None = None) -> Array:
    """Feature maps (N, C, *size) as a new dense (N, *size, C); `channels` more than C are filled with zeros."""
    turned = cupy.moveaxis(x, 1, -1)
    return _filled(turned, (*turned.shape[:-1], channels or turned.shape[-1]))


def as_channels_first(x: Array) -> Array:
    """Feature maps (N, *size, C) as a new dense (N, C, *size)."""
    return packed(cupy.moveaxis(x, -1, 1))


WEIGHT_ORDERS = ("filters_last", "channels_last", "channels_first")


def weight_as(w: Array, given: str, wanted: str, channels: int | None = None, filters: int | None = None) -> Array:
    """A weight as a new dense array in another order, filled up with zeros to so many channels and filters.

    The orders are "filters_last" (*window, C / G, F), "channels_last" (F, *window, C / G) and "channels_first"
    (F, C / G, *window).
    """
    axes = tuple(range(w.ndim))
    first, second, last, before = axes[:1], axes[1:2], axes[-1:], axes[-2:-1]
    window, c, f = {
        "filters_last": (axes[:-2], before, last),
        "channels_last": (axes[1:-1], last, first),
        "channels_first": (axes[2:], second, first),
    }[given]
    order = {"filters_last": (*window, *c, *f), "channels_last": (*f, *window, *c), "channels_first": (*f, *c, *window)}
    counts = {c[0]: channels, f[0]: filters}
    shape = tuple(counts.get(axis) or w.shape[axis] for axis in order[wanted])
    return _filled(cupy.transpose(w, order[wanted]), shape)


def _filled(x: Array, shape: Sizes) -> Array:
    """A new dense array of `shape` that holds x at its beginning, and zeros beyond it."""
    y = cupy.empty(shape, dtype=x.dtype)
    fill(y, x)
    return y


def fill(y: Array, x: Array) -> None:
    """Write x to the beginning of dense `y`, and zeros beyond it."""
    if y.size == 0:
        return
    aligned = x.data.ptr % ALIGNMENT == 0 and y.data.ptr % ALIGNMENT == 0
    work = layout.copy(tuple(y.shape), tuple(x.shape), element_strides(x), x.dtype.itemsize, aligned)
    if isinstance(work, Work):
        try:
            launch.run(work, {"x": x, "y": y})
            return
        except launch.KernelUnavailable:
            pass
    y[...] = 0
    y[tuple(slice(n) for n in x.shape)] = x
