"""Small filters of a signal or a plane in NumPy, repeated: what can be known of the arrays is known before the call.

What is prepared is a function of x and w, whatever axes of one element they have besides, and gives the results alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from xpconv.cpu import banded, blas
from xpconv.cpu.memory import borrowed
from xpconv.cpu.planes import finite
from xpconv.cpu.small_patches import rooms
from xpconv.cpu.small_products import Sums
from xpconv.cpu.spares import Spares
from xpconv.spec import Array, ConvSpec

MOST = 5_000_000  # products of those that are small: from here on those of two threads take less time than one's
MOST_CHANNELWISE = 1 << 16  # products of single channels that are all made before they are added
_COPIED = 4_000  # elements of a signal that are copied in less time than its taps are looked at
_MOST_SUMS = 1 << 20  # of a plane that is small
_MOST_SIGNAL = 1 << 17  # elements of a signal whose rows are multiplied at once
_correlate = inspect.unwrap(np.correlate)  # without its look at whose arrays they are: in 0.9 us for 1.2
_SHARED_BY_BLAS = 1 << 18  # multiplications of a product that OpenBLAS shares among threads, and waits for busy ones


def correlation(x: Array, w: Array, spec: ConvSpec) -> Array:
    """Of one signal x (1, n, 1), around which there are zeros, and w (m, 1, 1), by NumPy's own loop.

    What lies on the edge is summed over what is there, and no longer copy of the signal is made, unless a tap is not
    finite: it makes NaN of a zero.
    """
    taps = w[::-1, 0, 0] if spec.flip else w[:, 0, 0]
    taps, (before, after), m = (taps if taps.dtype.kind != "c" else taps.conj()), spec.padding[0], len(taps)
    if _pads_itself(spec) and np.isfinite(taps).all():
        y = np.correlate(x[0, :, 0], taps, "full")[m - 1 - before :][: spec.out_size[0]]
    else:
        x = x[0, max(-before, 0) : spec.size[0] + min(after, 0), 0]
        y = np.correlate(np.pad(x, (max(before, 0), max(after, 0))), taps, "valid")
    return y[None, :, None]


def _pads_itself(spec: ConvSpec) -> bool:
    """Whether NumPy's own loop puts the zeros around a signal as it goes: it does no more than one less than taps."""
    return 0 < max(spec.padding[0]) < spec.window[0] <= spec.size[0]


def is_uncopied(spec: ConvSpec, fill: complex) -> bool:
    """Whether a signal is read where it lies: nothing is around it, or it is long and zeros are."""
    return spec.padding == ((0, 0),) or (_pads_itself(spec) and fill == 0 and spec.size[0] > _COPIED)


def loop(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x (n) and w (m): by NumPy's own loop, as `correlation` computes it, of any fill."""
    spec = replace(spec, layout="channels_first")  # (1, 1, n)
    (size,), (window,), flip = spec.size, spec.window, spec.flip
    if is_uncopied(spec, fill) and any(spec.padding[0]):
        return _uncopied(spec)
    spares = None if spec.padding == ((0, 0),) else rooms(spec, dtype, fill, lambda whole: whole.reshape(-1))

    def filtered(x: Array, w: Array) -> Array:
        x = x if x.ndim == 1 else x.reshape(size)
        taps = w if w.ndim == 1 else w.reshape(window)
        taps = taps[::-1] if flip else taps
        if spares is None:
            return _correlate(x, taps)
        room = spares.take()
        room.inner[...] = x
        y = _correlate(room.read, taps)
        spares.give(room)
        return y

    return filtered


def _uncopied(spec: ConvSpec) -> Sums:
    """A function of a long x (n) and w (m): the zeros around x are summed over as little as may be."""
    (size,), (window,), (before, after) = spec.size, spec.window, spec.padding[0]
    turn, first = slice(None, None, -1 if spec.flip else 1), window - 1 - before
    results, is_same = slice(first, first + spec.out_size[0]), (before, window - 1 - after) == (window // 2,) * 2

    def filtered(x: Array, w: Array) -> Array:
        x, taps = x.reshape(size), w.reshape(window)
        if not math.isfinite(taps.dot(taps)):  # a fourth of the time that `np.isfinite` takes of few
            return correlation(x[None, :, None], taps[:, None, None], spec)[0, :, 0]
        return np.correlate(x, taps[turn], "same") if is_same else np.correlate(x, taps[turn], "full")[results]

    return filtered


def sums(spec: ConvSpec) -> int:
    """Elements of the rows of sums that the columns of a plane's kernel make."""
    return spec.out_size[0] * spec.window[-1] * spec.padded_size[-1]


def is_plane(spec: ConvSpec) -> bool:
    """Whether one plane is filtered that is so small that the calls take longer than what they do."""
    one = (spec.axes, spec.batch, spec.channels, spec.filters) == (2, 1, 1, 1)
    return one and 0 not in (*spec.out_size, *spec.window) and sums(spec) <= _MOST_SUMS


def plane(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x (*size) and w (*window): what `signals` computes, all at once."""
    (rows, results), (height, across), item = spec.out_size, spec.window, dtype.itemsize
    width, shape = spec.padded_size[1], spec.padded_size
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True))
    under = (rows, height, width), (spec.stride[0] * width * item, spec.dilation[0] * width * item, item)
    apart = across * width * item, (width + spec.dilation[1]) * item, spec.stride[1] * item
    shifted, turns = ((rows, across, results), apart), (slice(None, None, -1),) * 2

    def filtered(x: Array, w: Array) -> Array:
        whole = np.zeros(shape, dtype) if fill == 0 else np.full(shape, fill, dtype)
        whole[inner] = x.reshape(spec.size)
        w = w.reshape(spec.window)
        columns = (w[turns] if spec.flip else w).T.copy()
        with borrowed("planes") as memory, np.errstate(over="ignore", invalid="ignore"):
            added = memory.take("sums", (rows, across, width), dtype)
            np.matmul(columns, np.ndarray(under[0], dtype, whole, 0, under[1]), out=added)
            return np.add.reduce(np.ndarray(shifted[0], dtype, added, 0, shifted[1]), axis=1)

    return filtered


def is_signal(spec: ConvSpec) -> bool:
    """Whether one signal is filtered that is so short that its rows are multiplied at once."""
    one = (spec.axes, spec.batch, spec.channels, spec.filters) == (1, 1, 1, 1)
    return one and 0 not in (*spec.out_size, *spec.window) and spec.padded_size[0] <= _MOST_SIGNAL


def signal(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array, Array], Array | None]:
    """A function of x (n) and w (m): what `signals` computes by blocks, all at once.

    None where a result is not finite. The last rows of results are filled up, and so is what they read.
    """
    (step, apart), item, count = (*spec.stride, *spec.dilation), dtype.itemsize, spec.out_size[0]
    results = banded.line(item)
    span = (results - 1) * step + spec.reach[0]
    pieces = -(-span // (results * step))  # of a row, so long that BLAS takes what one product reads as rows
    rows = -(-count // (results * pieces))
    length = max((rows * pieces * results - 1) * step + spec.reach[0], spec.padded_size[0])
    inner = slice(spec.padding[0][0], spec.padding[0][0] + spec.size[0])
    taps = (spec.window[0], results), (apart * results * item, (step * results + 1) * item)
    read = (pieces, rows, span), (results * step * item, pieces * results * step * item, item)
    written = (pieces, rows, results), (results * item, pieces * results * item, item)
    by_one = blas.products_by_one if rows * span * results > _SHARED_BY_BLAS else nullcontext

    def made() -> _Rows:
        whole, band = np.full(length, fill, dtype), np.zeros((span, results), dtype)
        view = np.ndarray(read[0], dtype, whole, 0, read[1])
        return _Rows(whole[inner], view, np.ndarray(taps[0], dtype, band, 0, taps[1]), band)

    spares = Spares(made, (length + span * results) * item)

    def filtered(x: Array, w: Array) -> Array | None:
        memory, w = spares.take(), w.reshape(spec.window)
        memory.inner[...] = x.reshape(spec.size)
        memory.taps[...] = (w[::-1] if spec.flip else w)[:, None]
        y = np.empty(rows * pieces * results, dtype)
        with np.errstate(over="ignore", invalid="ignore"), by_one():
            np.matmul(memory.read, memory.band, out=np.ndarray(written[0], dtype, y, 0, written[1]))
        spares.give(memory)
        return y[:count] if finite(y[:count]) else None

    return filtered


class _Rows(NamedTuple):
    """A padded signal and a band of taps: where both go, and what is multiplied."""

    inner: Array
    read: Array
    taps: Array
    band: Array
