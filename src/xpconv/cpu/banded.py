"""Filters of single planes as matrix products: a band of the taps, times the elements that neighbours share.

Result i of a filter is the sum over k of x[i s + k d] h[k]. A few neighbours are one product of the elements that
they span with a banded matrix that holds h in every column, s further down each time: most of what BLAS multiplies is
zero, and still it takes a fraction of the time of a pass per tap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from xpconv.cpu.results import new
from xpconv.spec import Array, ConvSpec

_BLOCK_BYTES = 1 << 21  # of a block of rows: with an eighth, products of few rows take twice as long
_ROWS = 8  # results of a column that one product makes: with 16 as much time, with 32 twice
_FEWEST_ROWS = 32  # of a block, where the limit of memory lets it
_VECTOR_BYTES = 64  # results of a row that one product makes: with twice as many a fifth more time
_PRODUCTS = 1 << 18  # of one call of BLAS: OpenBLAS shares more among threads, and waits for those that are busy

Filtered = Callable[[Array, slice, Array], None]  # a block of the padded planes, its channels, where results go


def by_blocks(x: Array, w: Array, spec: ConvSpec, limit: int, row_bytes: tuple[int, int], filtered: Filtered) -> Array:
    """The result (N, *out, C) of padded `x` (N, *padded, C), `filtered` block by block of rows of planes.

    `row_bytes` is what a row of the input and a row of the result take beside them. Zeros of a band spread what is not
    finite, so a block whose results are not all finite is computed again from `w` (*window, 1, C) tap by tap.
    """
    y, kernel = empty(spec, x.dtype), offsets_first(w, spec)
    planes, results = np.moveaxis(x, -1, 1), np.moveaxis(y, -1, 1)
    for images, channels, rows in _blocks(spec, row_bytes, limit):
        first, last = rows.start * spec.stride[0], (rows.stop - 1) * spec.stride[0] + spec.reach[0]
        source = _for_blas(planes[images, channels, first:last])
        here = results[images, channels, rows]
        out = here if here.strides[-1] == here.itemsize else np.empty(here.shape, here.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            filtered(source, channels, out)
        if not finite(out):
            _tap_by_tap(source, kernel[channels], spec, out)
        if out is not here:
            here[...] = out
    return y


def empty(spec: ConvSpec, dtype: np.dtype) -> Array:
    """A result (N, *out, C) that lies in memory as the spec's layout wants it."""
    y = new(spec.y_shape, dtype)
    return y if spec.layout == "channels_last" else np.moveaxis(y, 1, -1)


def offsets_first(w: Array, spec: ConvSpec) -> Array:
    """The weight (*window, 1, C) as (C, *window), by the offsets of the window."""
    w = np.moveaxis(w[..., 0, :], -1, 0)
    return np.flip(w, axis=tuple(range(1, w.ndim))) if spec.flip else w


def _blocks(spec: ConvSpec, row_bytes: tuple[int, int], limit: int) -> Iterator[tuple[slice, slice, slice]]:
    """Images, channels and rows of the result: as many as what they take stays close, at least one row."""
    (read, written), (stride, reach), height = row_bytes, (spec.stride[0], spec.reach[0]), spec.out_size[0]

    def rows_within(nbytes: int) -> int:
        return (nbytes - read * (reach - stride)) // (read * stride + written)

    close = min(limit, _BLOCK_BYTES)
    rows = max(1, rows_within(close), min(rows_within(limit), _FEWEST_ROWS))
    rows = min(rows - rows % _ROWS or rows, height)
    plane = read * ((rows - 1) * stride + reach) + written * rows
    channels = max(1, min(spec.channels, close // plane))
    images = max(1, min(spec.batch, close // (plane * channels)))
    for n in range(0, spec.batch, images):
        for c in range(0, spec.channels, channels):
            for row in range(0, height, rows):
                yield (
                    slice(n, n + images),
                    slice(c, min(c + channels, spec.channels)),
                    slice(row, min(row + rows, height)),
                )


def _for_blas(x: Array) -> Array:
    """`x` itself where rows lie one after another, element by element, else a copy that does."""
    apart = x.shape[-2] == 1 or x.strides[-2] >= x.shape[-1] * x.itemsize
    return x if apart and x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def finite(y: Array) -> bool:
    """Whether all values are, by their sum, which is read faster but may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(y.sum()) or np.isfinite(y).all())


def _tap_by_tap(x: Array, w: Array, spec: ConvSpec, out: Array) -> None:
    """The definition: one pass over the results for each tap."""
    out[...] = 0
    for tap in spec.taps:
        axes = zip(tap, spec.dilation, spec.stride, out.shape[2:], strict=True)
        places = (slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, s, n in axes)
        out += x[(..., *places)] * w[(slice(None), *tap)].reshape(-1, *(1,) * spec.axes)


def matrix(taps: Array, results: int, stride: int, dilation: int) -> Array:
    """Taps (..., m) as bands (..., span, results), span = (results - 1) stride + (m - 1) dilation + 1."""
    m = taps.shape[-1]
    columns, offsets = np.arange(results), np.arange(m)[:, np.newaxis] * dilation
    band = np.zeros((*taps.shape[:-1], (results - 1) * stride + (m - 1) * dilation + 1, results), taps.dtype)
    band[..., offsets + columns * stride, columns] = taps[..., np.newaxis]
    return band


def row_band(taps: Array, results: int, stride: int, dilation: int) -> Array:
    """Taps (C, m) for `across`, for rows of that many results."""
    return matrix(taps, min(_VECTOR_BYTES // taps.itemsize, results), stride, dilation)


def column_band(taps: Array, results: int, stride: int, dilation: int) -> Array:
    """Taps (C, *others, m) for `down`, (C, results, span * others): others are rows that lie side by side."""
    band = np.moveaxis(matrix(taps, min(_ROWS, results), stride, dilation), (-1, -2), (1, 2))
    return band.reshape(*band.shape[:2], math.prod(band.shape[2:]))


def across(x: Array, band: Array, step: int, out: Array) -> None:
    """Rows of `x` (N, C, rows, n) times a band (C, span, results) every `step` results, `out` (N, C, rows, all)."""
    span, results = band.shape[-2:]
    tiles, rest = divmod(out.shape[-1], results)
    end = tiles * results
    _product(_tiled(x, -1, tiles, results * step, span), band[:, np.newaxis], _tiled(out, -1, tiles, results))
    if rest:
        band = band[:, : span - (results - rest) * step, :rest]
        _product(x[..., end * step : end * step + band.shape[-2]], band, out[..., end:])


def down(x: Array, band: Array, step: int, out: Array) -> None:
    """A band (C, results, span) every `step` times columns of `x` (N, C, P, n, width), `out` (N, C, P, all, width)."""
    band = band[:, np.newaxis]
    results, span = band.shape[-2:]
    tiles, rest = divmod(out.shape[-2], results)
    end = tiles * results
    _product(band[:, np.newaxis], _tiled(x, -2, tiles, results * step, span), _tiled(out, -2, tiles, results))
    if rest:
        band = band[..., :rest, : span - (results - rest) * step]
        _product(band, x[..., end * step : end * step + band.shape[-1], :], out[..., end:, :])


def _product(a: Array, b: Array, out: Array) -> None:
    """Matrices `a` (..., m, k) times `b` (..., k, n), some rows or columns at a time."""
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    if rows > columns:
        some = max(1, _PRODUCTS // (inner * columns))
        for k in range(0, rows, some):
            np.matmul(a[..., k : k + some, :], b, out=out[..., k : k + some, :])
    else:
        some = max(1, _PRODUCTS // (rows * inner))
        for k in range(0, columns, some):
            np.matmul(a, b[..., k : k + some], out=out[..., k : k + some])


def _tiled(x: Array, axis: int, tiles: int, step: int, length: int | None = None) -> Array:
    """A view (..., tiles, rows, columns): tiles of `length` along the axis, -1 or -2, that begin `step` apart."""
    shape, strides = list(x.shape), list(x.strides)
    shape[axis] = length or step
    shape.insert(-2, tiles)
    strides.insert(-2, step * strides[axis])
    return np.lib.stride_tricks.as_strided(x, shape, strides)
