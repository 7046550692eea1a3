"""Small convolutions in NumPy, repeated: all that can be known of the arrays is known before the call.

Padding takes two array operations and a product of patches four, each about a microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate

import numpy as np
from scipy import fft
from scipy.fft import next_fast_len

from xpconv.cpu import banded, blas, team
from xpconv.cpu.memory import borrowed
from xpconv.cpu.planes import finite
from xpconv.cpu.results import maker
from xpconv.spec import Array, ConvSpec

MOST = 1_000_000  # products of those that are small: a larger one's take longer than all else
COPIED = 10_000  # elements of a signal that are copied in less time than its taps are looked at
_MOST_SUMS = 1 << 20  # of a plane that is small
_MOST_SIGNAL = 1 << 17  # elements of a signal whose rows are multiplied at once
_MOST_TRANSFORMED = {1: 1 << 16, 2: 1 << 19}  # elements whose spectrum is taken at once, by axes
_SHARED_TRANSFORM = 1 << 17  # elements whose transform takes longer than waking a thread
_SHARED_BY_BLAS = 1 << 18  # multiplications of a product that OpenBLAS shares among threads, and waits for busy ones


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
    new = maker((results, spec.filters), dtype)

    def multiplied(x: Array, w: Array) -> Array:
        x = x if x.flags.c_contiguous else np.ascontiguousarray(x)
        patches = np.ndarray(windows, dtype, x, 0, strides).reshape(results, length)
        w = w[turns] if spec.flip else w
        return np.matmul(patches, w.reshape(length, spec.filters), out=new()).reshape(y_shape)

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


def sums(spec: ConvSpec) -> int:
    """Elements of the rows of sums that the columns of a plane's kernel make."""
    return spec.out_size[0] * spec.window[-1] * spec.padded_size[-1]


def is_plane(spec: ConvSpec) -> bool:
    """Whether one plane is filtered that is so small that the calls take longer than what they do."""
    one = (spec.axes, spec.batch, spec.channels, spec.filters) == (2, 1, 1, 1)
    return one and 0 not in (*spec.out_size, *spec.window) and sums(spec) <= _MOST_SUMS


def plane(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array, Array], Array]:
    """A function of x (1, *size, 1) and w (*window, 1, 1): what `signals` computes, all at once, (1, *out, 1)."""
    (rows, results), (height, across), item = spec.out_size, spec.window, dtype.itemsize
    width, shape = spec.padded_size[1], spec.padded_size
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True))
    under = (rows, height, width), (spec.stride[0] * width * item, spec.dilation[0] * width * item, item)
    apart = across * width * item, (width + spec.dilation[1]) * item, spec.stride[1] * item
    shifted, turns = ((rows, across, results), apart), (slice(None, None, -1),) * 2

    def filtered(x: Array, w: Array) -> Array:
        whole = np.zeros(shape, dtype) if fill == 0 else np.full(shape, fill, dtype)
        whole[inner] = x[0, ..., 0]
        w = w[..., 0, 0]
        columns = (w[turns] if spec.flip else w).T.copy()
        with borrowed("planes") as memory, np.errstate(over="ignore", invalid="ignore"):
            added = memory.take("sums", (rows, across, width), dtype)
            np.matmul(columns, np.ndarray(under[0], dtype, whole, 0, under[1]), out=added)
            y = np.add.reduce(np.ndarray(shifted[0], dtype, added, 0, shifted[1]), axis=1)
        return y[None, ..., None]

    return filtered


def is_signal(spec: ConvSpec) -> bool:
    """Whether one signal is filtered that is so short that its rows are multiplied at once."""
    one = (spec.axes, spec.batch, spec.channels, spec.filters) == (1, 1, 1, 1)
    return one and 0 not in (*spec.out_size, *spec.window) and _signal_rows(spec)[2] <= _MOST_SIGNAL


def _signal_rows(spec: ConvSpec) -> tuple[int, int, int]:
    """Of results that fill up whole rows: pieces of a row, rows, and the elements that they read."""
    step, reach = spec.stride[0], spec.reach[0]
    span = (banded.RESULTS - 1) * step + reach
    pieces = -(-span // (banded.RESULTS * step))  # of a row, so long that BLAS takes what one product reads as rows
    rows = -(-spec.out_size[0] // (banded.RESULTS * pieces))
    return pieces, rows, max((rows * pieces * banded.RESULTS - 1) * step + reach, spec.padded_size[0])


def signal(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array, Array], Array | None]:
    """A function of x (1, n, 1) and w (m, 1, 1): what `signals` computes by blocks, all at once, (1, out, 1).

    None where a result is not finite. The last rows of results are filled up, and so is what they read.
    """
    (pieces, rows, length), (step, apart), item = _signal_rows(spec), (*spec.stride, *spec.dilation), dtype.itemsize
    results, count, inner = (
        banded.RESULTS,
        spec.out_size[0],
        slice(spec.padding[0][0], spec.padding[0][0] + spec.size[0]),
    )
    span = (results - 1) * step + spec.reach[0]
    taps = (spec.window[0], results), (apart * results * item, (step * results + 1) * item)
    read = (pieces, rows, span), (results * step * item, pieces * results * step * item, item)
    written = (pieces, rows, results), (results * item, pieces * results * item, item)
    by_one = blas.products_by_one if rows * span * results > _SHARED_BY_BLAS else nullcontext

    def filtered(x: Array, w: Array) -> Array | None:
        whole, band = np.full(length, fill, dtype), np.zeros((span, results), dtype)
        whole[inner] = x[0, :, 0]
        w = w[::-1, 0, 0] if spec.flip else w[:, 0, 0]
        np.ndarray(taps[0], dtype, band, 0, taps[1])[...] = w[:, None]
        y = np.empty(rows * pieces * results, dtype)
        with np.errstate(over="ignore", invalid="ignore"), by_one():
            into = np.ndarray(written[0], dtype, y, 0, written[1])
            np.matmul(np.ndarray(read[0], dtype, whole, 0, read[1]), band, out=into)
        y = y[None, :count, None]
        return y if finite(y) else None

    return filtered


def is_spectrum(spec: ConvSpec) -> bool:
    """Whether one signal or plane is filtered whose spectrum is taken at once."""
    one = spec.filters_planes and (spec.batch, spec.channels) == (1, 1) and set(spec.dilation) == {1}
    return (
        one
        and 0 not in (*spec.out_size, *spec.window)
        and math.prod(spec.padded_size) <= _MOST_TRANSFORMED.get(spec.axes, 0)
    )


def spectrum(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array, Array], Array | None]:
    """A function of x (1, *size, 1) and w (*window, 1, 1): what `overlap` computes of one tile, (1, *out, 1).

    None where a result is not finite.
    """
    lengths = tuple(next_fast_len(n, real=True) for n in spec.padded_size)
    shape, axes, last = spec.padded_size, tuple(range(spec.axes)), tuple(m - 1 for m in spec.window)
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True))
    geometry = zip(last, spec.out_size, spec.stride, strict=True)
    kept, turns = tuple(slice(m, m + (n - 1) * s + 1, s) for m, n, s in geometry), (slice(None, None, -1),) * spec.axes

    large = math.prod(shape) > _SHARED_TRANSFORM

    def filtered(x: Array, w: Array) -> Array | None:
        w = w[..., 0, 0] if spec.flip else w[..., 0, 0][turns]
        threads = team.thread_count() if large else 1
        with np.errstate(over="ignore", invalid="ignore"):
            mean = x.mean(dtype=np.float64)  # of which the kernel makes its sum: nothing is lost where it cancels
            mean = mean if np.isfinite(mean) else 0.0
            whole = np.full(shape, fill - mean, dtype)
            np.subtract(x[0, ..., 0], dtype.type(mean), out=whole[inner])
            product = fft.rfftn(whole, lengths, axes, workers=threads)
            product *= fft.rfftn(w, lengths, axes, workers=threads)
            y = fft.irfftn(product, lengths, axes, overwrite_x=True, workers=threads)[kept]
            y = y + dtype.type(mean * w.sum(dtype=np.float64))
        return y[None, ..., None] if finite(y) else None

    return filtered
