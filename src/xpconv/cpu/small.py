"""Small convolutions in NumPy, repeated: all that can be known of the arrays is known before the call.

Padding takes two array operations and a product of patches four, each about a microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import numpy as np

from xpconv.cpu.banded import finite
from xpconv.spec import Array, ConvSpec

MOST = 1_000_000  # products of those that are small: a larger one's take longer than all else
COPIED = 10_000  # elements of a signal that are copied in less time than its taps are looked at
_MOST_COPIED = 1 << 18  # elements of the copies of a plane that is small
_ROWS = 8  # results of a plane's column that one product makes


def padding(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array], Array]:
    """A function of x (N, *size, C) that surrounds it with a constant, or crops it where that is negative."""
    shape = (spec.batch, *spec.padded_size, spec.channels)
    axes = [(n, *pads) for n, pads in zip(spec.size, spec.padding, strict=True)]
    kept = (slice(None), *(slice(max(-lo, 0), n + min(hi, 0)) for n, lo, hi in axes))
    inner = (slice(None), *(slice(max(lo, 0), n + lo + min(hi, 0)) for n, lo, hi in axes))

    def padded(x: Array) -> Array:
        whole = np.zeros(shape, dtype) if fill == 0 else np.full(shape, fill, dtype)
        whole[inner] = x[kept]
        return whole

    return padded if any(pads != (0, 0) for pads in spec.padding) else lambda x: x


def product(spec: ConvSpec, dtype: np.dtype) -> Callable[[Array, Array], Array]:
    """A function of padded x and w (*window, C, F), without groups: all patches, times the weight, (N, *out, F)."""
    shape = (spec.batch, *spec.padded_size, spec.channels)
    steps = list(accumulate(reversed(shape), lambda step, n: step * n, initial=dtype.itemsize))[-2::-1]
    moves = [step * s for step, s in zip(steps[1:], spec.stride, strict=False)]
    taps = [step * d for step, d in zip(steps[1:], spec.dilation, strict=False)]
    length, results = math.prod(spec.window) * spec.channels, spec.batch * math.prod(spec.out_size)
    windows, strides = (spec.batch, *spec.out_size, *spec.window, spec.channels), (steps[0], *moves, *taps, steps[-1])
    y_shape, turns = (spec.batch, *spec.out_size, spec.filters), (slice(None, None, -1),) * spec.axes

    def multiplied(x: Array, w: Array) -> Array:
        x = x if x.flags.c_contiguous else np.ascontiguousarray(x)
        patches = np.ndarray(windows, dtype, x, 0, strides).reshape(results, length)
        w = w[turns] if spec.flip else w
        return (patches @ w.reshape(length, spec.filters)).reshape(y_shape)

    return multiplied


def correlation(x: Array, w: Array, spec: ConvSpec) -> Array:
    """Of one signal x (1, n, 1), around which there are zeros, and w (m, 1, 1), by NumPy's own loop.

    What lies on the edge is summed over what is there, and no longer copy of the signal is made, unless a tap is not
    finite: it makes NaN of a zero.
    """
    taps = w[::-1, 0, 0] if spec.flip else w[:, 0, 0]
    taps, (before, after), m = (taps if taps.dtype.kind != "c" else taps.conj()), spec.padding[0], len(taps)
    if 0 < max(before, after) < m <= spec.size[0] and np.isfinite(taps).all():
        y = np.correlate(x[0, :, 0], taps, "full")[m - 1 - before :][: spec.out_size[0]]
    else:
        whole = x if (before, after) == (0, 0) else padding(spec, x.dtype, 0)(x)
        y = np.correlate(whole[0, :, 0], taps, "valid")
    return y[None, :, None]


def copied(spec: ConvSpec) -> int:
    """Elements of a plane that are copied side by side for its products."""
    return spec.padded_size[0] * spec.window[-1] * spec.out_size[-1]


def is_plane(spec: ConvSpec) -> bool:
    """Whether one plane is filtered that is so small that the calls take longer than what they do."""
    one = (spec.axes, spec.batch, spec.channels, spec.filters) == (2, 1, 1, 1)
    return one and 0 not in (*spec.out_size, *spec.window) and copied(spec) <= _MOST_COPIED


def plane(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array, Array], Array | None]:
    """A function of x (1, *size, 1) and w (*window, 1, 1): a band of the taps times rows copied side by side.

    It is what `signals` computes by blocks, all at once: (1, *out, 1); None where a result is not finite. The last
    rows of results are filled up, and those that are filled up read rows of the filling below the image.
    """
    (height, columns), (_, across), (step, _) = spec.out_size, spec.window, spec.stride
    tiles, span, item = -(-height // _ROWS), (_ROWS - 1) * step + spec.reach[0], dtype.itemsize
    rows, width = (tiles * _ROWS - 1) * step + spec.reach[0], spec.padded_size[1]
    shape = max(rows, spec.padded_size[0]), width
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True))
    copies, apart = (rows, across, columns), (width * item, spec.dilation[1] * item, spec.stride[1] * item)
    taps, below = (_ROWS, *spec.window), ((span + step) * across * item, spec.dilation[0] * across * item, item)
    parts, lower = (tiles, span * across, columns), (_ROWS * step * across * columns * item, columns * item, item)
    turns = (slice(None, None, -1),) * 2

    def filtered(x: Array, w: Array) -> Array | None:
        whole, band = np.full(shape, fill, dtype), np.zeros((_ROWS, span * across), dtype)
        whole[inner] = x[0, ..., 0]
        w = w[..., 0, 0]
        np.ndarray(taps, dtype, band, 0, below)[...] = w[turns] if spec.flip else w
        side, y = np.empty(copies, dtype), np.empty((tiles, _ROWS, columns), dtype)
        side[...] = np.ndarray(copies, dtype, whole, 0, apart)
        read = np.ndarray(parts, dtype, side, 0, lower)
        with np.errstate(over="ignore", invalid="ignore"):
            np.matmul(band, read, out=y)
        y = y.reshape(1, -1, columns, 1)[:, :height]
        return y if finite(y) else None

    return filtered
