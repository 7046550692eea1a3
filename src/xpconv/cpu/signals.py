"""Filters of single signals and planes, each as one product with a banded matrix of the whole kernel.

A signal is cut in rows: every row of results is the elements at its place, which are no copy, times the band. Of a
plane the rows are copied side by side once for every place that the window has in them, and a band down the columns
multiplies them all: for a window of m by m that is m copies, where its patches are m squared.
"""

from __future__ import annotations

import math

import numpy as np

from xpconv.cpu import banded
from xpconv.spec import Array, ConvSpec

_COLUMNS = 256  # of a plane that are copied at a time


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, C) of padded `x` (N, *padded, C) and `w` (*window, 1, C): each channel by itself."""
    kernel = banded.offsets_first(w, spec)
    filtered = _filtered_signals(kernel, spec) if spec.axes == 1 else _filtered_planes(kernel, spec)
    return banded.by_blocks(x, w, spec, limit, row_bytes(spec, x.dtype.itemsize), filtered)


def row_bytes(spec: ConvSpec, itemsize: int) -> tuple[int, int]:
    """Of a block a row of the input and of its copies, and a row of results and of a tap's products."""
    copies = math.prod(spec.window[1:]) * math.prod(_copied(spec)) if spec.axes > 1 else 0
    return (math.prod(spec.padded_size[1:]) + copies) * itemsize, 2 * math.prod(spec.out_size[1:]) * itemsize


def _copied(spec: ConvSpec) -> tuple[int, ...]:
    """Results of a row that are computed at a time: of planes some columns."""
    return spec.out_size[1:] if spec.axes > 2 else (min(spec.out_size[1], _COLUMNS),)


def _filtered_signals(kernel: Array, spec: ConvSpec) -> banded.Filtered:
    """Signals in rows of results one after another; where those are few, all signals as the rows."""
    (step,), band = spec.stride, banded.row_band(kernel, spec.out_size[0], spec.stride[0], spec.dilation[0])
    span, results = band.shape[-2:]
    length = results * -(-span // (results * step))  # of a row, so long that BLAS takes what one product reads as rows

    def filtered(source: Array, channels: slice, out: Array) -> None:
        rows = out.shape[-1] // length
        done = rows * length if rows > len(out) else 0
        if done:
            banded.across(_rows(source, rows, length * step), band[channels], step, _rows(out, rows, length))
        if done < out.shape[-1]:
            source, out = (a.swapaxes(0, 1)[np.newaxis] for a in (source[..., done * step :], out[..., done:]))
            banded.across(source, band[channels], step, out)

    return filtered


def _rows(x: Array, rows: int, length: int) -> Array:
    """A view of signals (..., n) as (..., rows, length), one after another."""
    strides = (*x.strides[:-1], length * x.itemsize, x.itemsize)
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:-1], rows, length), strides)


def _filtered_planes(kernel: Array, spec: ConvSpec) -> banded.Filtered:
    """Rows copied side by side, times a band down the columns."""
    step, offsets = spec.stride[0], math.prod(spec.window[1:])
    band = banded.column_band(np.moveaxis(kernel, 1, -1), spec.out_size[0], step, spec.dilation[0])
    width = _copied(spec)[-1]

    def filtered(source: Array, channels: slice, out: Array) -> None:
        for begin in range(0, out.shape[-1], width):
            part = out[..., begin : begin + width]
            results = (part if spec.axes == 2 else part.reshape(*out.shape[:3], -1))[:, :, np.newaxis]
            copies = _side_by_side(source[..., begin * spec.stride[-1] :], part.shape[3:], spec)
            banded.down(copies, band[channels], step * offsets, results)
            del copies  # before the next are made

    return filtered


def _side_by_side(x: Array, results: tuple[int, ...], spec: ConvSpec) -> Array:
    """Rows of `x` (N, C, rows, ...) once for every offset along the later axes: (N, C, 1, rows * offsets, results)."""
    images, channels, rows = x.shape[:3]
    strides = (
        *x.strides[:3],
        *(step * d for step, d in zip(x.strides[3:], spec.dilation[1:], strict=True)),
        *(step * s for step, s in zip(x.strides[3:], spec.stride[1:], strict=True)),
    )
    view = np.lib.stride_tricks.as_strided(x, (images, channels, rows, *spec.window[1:], *results), strides)
    return view.reshape(images, channels, 1, rows * math.prod(spec.window[1:]), math.prod(results))
