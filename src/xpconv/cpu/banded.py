"""Filters along one axis as matrix products: a band of the taps, times the elements that neighbours share.

Result i of a filter is the sum over k of x[i s + k d] h[k]. A few neighbours are one product of the elements that
they span with a banded matrix that holds h in every column, s further down each time: most of what BLAS multiplies is
zero, and still it takes a fraction of the time of a pass per tap.
"""

from __future__ import annotations

import math

import numpy as np

from xpconv.cpu.lines import LINE
from xpconv.spec import Array

_ROWS = 8  # results of a column that one product makes: with 16 as much time, with 32 twice
_LONG = 64  # taps beyond which twice as many take a tenth more, and without AVX-512 a third less


def matrix(taps: Array, results: int, stride: int, dilation: int) -> Array:
    """Taps (..., m) as bands (..., span, results), span = (results - 1) stride + (m - 1) dilation + 1."""
    m = taps.shape[-1]
    columns, offsets = np.arange(results), np.arange(m)[:, np.newaxis] * dilation
    band = np.zeros((*taps.shape[:-1], (results - 1) * stride + (m - 1) * dilation + 1, results), taps.dtype)
    band[..., offsets + columns * stride, columns] = taps[..., np.newaxis]
    return band


def line(itemsize: int) -> int:
    """Results of a row that one product makes: with AVX-512 a line of the caches takes half the time of two."""
    return max(LINE // itemsize, 1)


def row_band(taps: Array, results: int, stride: int, dilation: int) -> Array:
    """Taps (C, m) for `across`, for rows of that many results."""
    some = line(taps.itemsize) * (2 if taps.shape[-1] > _LONG else 1)
    return matrix(taps, min(some, results), stride, dilation)


def column_band(taps: Array, results: int, stride: int, dilation: int) -> Array:
    """Taps (C, *others, m) for `down`, (C, results, span * others): others are rows that lie side by side."""
    band = np.moveaxis(matrix(taps, min(_ROWS, results), stride, dilation), (-1, -2), (1, 2))
    return band.reshape(*band.shape[:2], math.prod(band.shape[2:]))


def across(x: Array, band: Array, step: int, out: Array) -> None:
    """Rows of `x` (N, C, ..., rows, n) times a band (C, span, results) every `step` results, `out` (..., rows, all)."""
    span, results = band.shape[-2:]
    tiles, rest = divmod(out.shape[-1], results)
    end = tiles * results
    band = band.reshape(len(band), *(1,) * (x.ndim - 4), span, results)
    factors = tiled(x, -1, tiles, results * step, span), band[:, np.newaxis]
    np.matmul(*factors, out=tiled(out, -1, tiles, results))
    if rest:
        band = band[..., : span - (results - rest) * step, :rest]
        np.matmul(x[..., end * step : end * step + band.shape[-2]], band, out=out[..., end:])


def down(x: Array, band: Array, step: int, out: Array) -> None:
    """A band (C, results, span) every `step` times columns of `x` (N, C, P, n, width), `out` (N, C, P, all, width)."""
    band = band[:, np.newaxis]
    results, span = band.shape[-2:]
    tiles, rest = divmod(out.shape[-2], results)
    end = tiles * results
    factors = band[:, np.newaxis], tiled(x, -2, tiles, results * step, span)
    np.matmul(*factors, out=tiled(out, -2, tiles, results))
    if rest:
        band = band[..., :rest, : span - (results - rest) * step]
        np.matmul(band, x[..., end * step : end * step + band.shape[-1], :], out=out[..., end:, :])


def tiled(x: Array, axis: int, tiles: int, step: int, length: int | None = None) -> Array:
    """A view (..., tiles, rows, columns): tiles of `length` along the axis, -1 or -2, that begin `step` apart."""
    shape, strides = list(x.shape), list(x.strides)
    shape[axis] = length or step
    shape.insert(-2, tiles)
    strides.insert(-2, step * strides[axis])
    return np.lib.stride_tricks.as_strided(x, shape, strides)
