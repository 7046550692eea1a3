"""Filters of one small signal or plane as one product of spectra, prepared before the call."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import fft

from xpconv.cpu.planes import finite
from xpconv.spec import Array, ConvSpec, Sizes

_MOST = {1: 1 << 14, 2: 1 << 17}  # elements, by axes: of more, tiles are transformed side by side, and by all threads
_SAMPLES = 16  # along an axis


def only_tile(spec: ConvSpec) -> Sizes:
    """Elements on every axis whose circular convolution holds all results.

    What lies beyond the end is the beginning again, so the zeros before the first element are those after the last.
    """
    is_zeros = spec.padding_mode == "zeros" and not spec.input_dilation
    axes = zip(spec.size, spec.padding, spec.reach, spec.padded_size, strict=True)
    return tuple(
        max(n + max(pads), reach) if is_zeros and 0 <= min(pads) < reach else padded for n, pads, reach, padded in axes
    )


def sampled(lengths: Sizes) -> tuple[slice, ...]:
    """Places of elements that tell about what their mean is: taken off first, nothing is lost where it cancels."""
    return tuple(slice(None, None, -(-n // _SAMPLES)) for n in lengths)


def of_kernel(taps: Array, lengths: Sizes, threads: int = 1) -> Array:
    """The spectrum of taps (..., *window), of real ones half of it; what is zero is not transformed on the way."""
    forward = fft.fft if taps.dtype.kind == "c" else fft.rfft
    spectrum = forward(taps, lengths[-1], workers=threads)
    for axis in range(2, len(lengths) + 1):
        spectrum = fft.fft(spectrum, lengths[-axis], axis=-axis, overwrite_x=True, workers=threads)
    return spectrum


def is_at_once(spec: ConvSpec) -> bool:
    """Whether one signal or plane is filtered whose spectrum is taken at once."""
    one = spec.filters_planes and (spec.batch, spec.channels) == (1, 1) and set(spec.dilation) == {1}
    return one and 0 not in (*spec.out_size, *spec.window) and math.prod(only_tile(spec)) <= _MOST.get(spec.axes, 0)


def at_once(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Callable[[Array, Array], Array | None]:
    """A function of x (*size) and w (*window), whatever axes of one element they have besides: the results (*out).

    None where a result is not finite.
    """
    lengths, axes = tuple(fft.next_fast_len(n, real=True) for n in only_tile(spec)), tuple(range(spec.axes))
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True))
    kept = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(spec.out_size, spec.stride, strict=True))
    turns, samples = (slice(None, None, -1),) * spec.axes, sampled(spec.size)

    def filtered(x: Array, w: Array) -> Array | None:
        x, w = x.reshape(spec.size), w.reshape(spec.window)
        w = w[turns] if spec.flip else w
        with np.errstate(over="ignore", invalid="ignore"):
            some = x[samples]
            mean = float(np.add.reduce(some, None, np.float64)) / some.size  # of which the kernel makes its sum
            whole = np.full(lengths, fill - mean, dtype)
            np.subtract(x, dtype.type(mean), out=whole[inner])
            product = of_kernel(w, lengths)
            np.conj(product, out=product)  # a correlation is what windows are
            product *= fft.rfftn(whole, lengths, axes)
            y = fft.irfftn(product, lengths, axes, overwrite_x=True)[kept]
            y = y + dtype.type(mean * w.sum(dtype=np.float64))
        return y if finite(y) else None

    return filtered
