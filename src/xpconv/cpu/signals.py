"""Filters of single signals, planes and volumes, each as products that read the input where it lies.

A signal is cut in rows: every row of results is the elements at its place, which are no copy, times a band that holds
the whole kernel. Of a plane the rows under a window are one factor and the columns of the kernel the other: their
product is a row of sums for every column, and a result adds one of each. A few rows of results make one product.
"""

from __future__ import annotations

import math

import numpy as np

from xpconv.cpu import banded, planes
from xpconv.cpu.memory import Memory
from xpconv.spec import Array, ConvSpec

_UNPACKED = 1_000_000  # multiplications of a product for which OpenBLAS makes no copies with AVX-512: half the time
_ROWS = 2  # of results that one product makes: with 1 or 4 up to a tenth more time, with AVX-512 or without


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, C) of `x` (N, *size, C), around which there are zeros, and `w` (*window, 1, C)."""
    kernel = planes.offsets_first(w, spec)
    filtered = _filtered_signals(kernel, spec) if spec.axes == 1 else _filtered_planes(kernel, spec)
    return planes.by_blocks(x, w, spec, limit, rows_of(spec, x.itemsize), filtered)


def rows_of(spec: ConvSpec, itemsize: int) -> planes.Rows:
    """Of a block a row of the input, and a row of results and of what is added to them or of a tap's products."""
    read, results = math.prod(spec.padded_size[1:]), math.prod(spec.out_size[1:])
    sums = math.prod(spec.window[1:]) * read if spec.axes > 1 else results
    return planes.Rows(read * itemsize, (results + sums) * itemsize)


def _filtered_signals(kernel: Array, spec: ConvSpec) -> planes.Filtered:
    """Signals in rows of results one after another; where those are few, all signals as the rows."""
    (step,), band = spec.stride, banded.row_band(kernel, spec.out_size[0], spec.stride[0], spec.dilation[0])
    span, results = band.shape[-2:]
    length = results * -(-span // (results * step))  # of a row, so long that BLAS takes what one product reads as rows

    def filtered(source: Array, channels: slice, out: Array, _: Memory) -> None:
        rows = out.shape[-1] // length
        done = rows * length if rows > len(out) else 0
        if done:
            for first, count, height in _products(rows, max(1, _UNPACKED // (span * results))):
                read = _rows(source[..., first * length * step :], count, height, length * step)
                banded.across(read, band[channels], step, _rows(out[..., first * length :], count, height, length))
        if done < out.shape[-1]:
            source, out = (a.swapaxes(0, 1)[np.newaxis] for a in (source[..., done * step :], out[..., done:]))
            banded.across(source, band[channels], step, out)

    return filtered


def _products(rows: int, most: int) -> list[tuple[int, int, int]]:
    """Rows as products (first row, how many products, rows of each): as many of the most rows as there are, a rest."""
    count, rest = divmod(rows, most)
    return [(first, n, height) for first, n, height in ((0, count, most), (count * most, 1, rest)) if n * height]


def _rows(x: Array, count: int, height: int, length: int) -> Array:
    """A view of signals (..., n) as (..., count, height, length), one row after another."""
    row = length * x.itemsize
    shape, strides = (*x.shape[:-1], count, height, length), (*x.strides[:-1], height * row, row, x.itemsize)
    return np.lib.stride_tricks.as_strided(x, shape, strides)


def _filtered_planes(kernel: Array, spec: ConvSpec) -> planes.Filtered:
    """The columns of the kernel, for some rows of results, times the rows under their windows; then added up."""
    channels, _, *others = kernel.shape
    last, geometry = kernel.transpose(0, *range(2, kernel.ndim), 1), (spec.stride[0], spec.dilation[0])
    band = banded.matrix(last, min(_ROWS, spec.out_size[0]), *geometry)
    some, columns = band.shape[-1], math.prod(others)
    band = band.transpose(0, band.ndim - 1, *range(1, band.ndim - 1))
    band = band.reshape(channels, 1, some * columns, band.shape[-1])

    def filtered(source: Array, channels: slice, out: Array, memory: Memory) -> None:
        sums = memory.take("sums", (*out.shape[:3], columns, *source.shape[3:]), out.dtype)
        flat, rows = sums.reshape(*out.shape[:3], columns, -1), out.shape[2]
        whole = rows - rows % some
        for begin, end, size in ((0, whole, some), (whole, rows, rows - whole)):
            if begin < end:
                span = (size - 1) * spec.stride[0] + spec.reach[0]
                under = _rows_under(source[:, :, begin * spec.stride[0] :], (end - begin) // size, size, span, spec)
                made = flat[:, :, begin:end].reshape(*under.shape[:3], size * columns, under.shape[-1])
                np.matmul(band[channels, :, : size * columns, :span], under, out=made)
        np.add.reduce(_shifted(sums, spec, out.shape[3:]), axis=tuple(range(3, 3 + len(others))), out=out)

    return filtered


def _rows_under(x: Array, count: int, size: int, span: int, spec: ConvSpec) -> Array:
    """A view of `x` (N, C, rows, ...) as what every `size` rows of results read: (N, C, count, span, elements)."""
    shape = (*x.shape[:2], count, span, math.prod(x.shape[3:]))
    strides = (*x.strides[:2], size * spec.stride[0] * x.strides[2], x.strides[2], x.itemsize)
    return np.lib.stride_tricks.as_strided(x, shape, strides)


def _shifted(sums: Array, spec: ConvSpec, results: tuple[int, ...]) -> Array:
    """A view of sums (N, C, rows, columns of the kernel, ...) as what results add: (N, C, rows, *columns, *results)."""
    others, along = spec.window[1:], sums.strides[4:]
    columns = (
        sums.strides[3] * math.prod(others[k + 1 :]) + spec.dilation[1 + k] * along[k] for k in range(len(others))
    )
    moved = (s * step for s, step in zip(spec.stride[1:], along, strict=True))
    return np.lib.stride_tricks.as_strided(
        sums, (*sums.shape[:3], *others, *results), (*sums.strides[:3], *columns, *moved)
    )
