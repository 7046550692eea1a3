"""Small convolutions in NumPy, repeated: all that can be known of the arrays is known before the call.

Padding takes two array operations and a product of patches four, each about a microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import numpy as np

from xpconv.spec import Array, ConvSpec

MOST = 1_000_000  # products of those that are small: a larger one's take longer than all else


def padding(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array], Array]:
    """A function of x (N, *size, C) that surrounds it with a constant."""
    shape = (spec.batch, *spec.padded_size, spec.channels)
    inner = (slice(None), *(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True)))

    def padded(x: Array) -> Array:
        whole = np.zeros(shape, dtype) if fill == 0 else np.full(shape, fill, dtype)
        whole[inner] = x
        return whole

    return padded if spec.padded_size != spec.size else lambda x: x


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
    """Of one padded signal x (1, n, 1) and w (m, 1, 1), by NumPy's own loop."""
    taps = w[::-1, 0, 0] if spec.flip else w[:, 0, 0]
    return np.correlate(x[0, :, 0], taps if taps.dtype.kind != "c" else taps.conj(), "valid")[None, :, None]
