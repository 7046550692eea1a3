"""Filters of single signals, planes and volumes, block by block of rows, which the threads of a team share."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from xpconv.cpu import blas, margins, team
from xpconv.cpu.copies import dense_strides
from xpconv.cpu.margins import Span, read_by
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.results import new
from xpconv.spec import Array, ConvSpec

_BLOCK_BYTES = 1 << 22  # of a block, its copies and its results: with half a fifth more time, with twice as much none
_PARTS = 4  # blocks of a plane are a multiple of, for threads to share evenly
_SHARED = 20_000_000  # products of signals, those with zeros included, that are worth waking a thread; of planes twice
_BESIDE = 5  # products that a result takes as long as beside its own

Block = tuple[slice, slice, slice]  # images, channels, rows of results
Filtered = Callable[[Array, slice, Array, Memory], None]  # a block of the padded planes, its channels, where results go


@dataclass(frozen=True)
class Rows:
    """What a block takes: bytes of a row that is read and of a row of results, and rows that are worth a product."""

    read: int
    written: int
    fewest: int = 1


def by_blocks(x: Array, w: Array, spec: ConvSpec, limit: int, rows: Rows, filtered: Filtered) -> Array:
    """The result (N, *out, C) of `x` (N, *size, C), around which there are zeros, `filtered` block by block.

    Zeros of a band spread what is not finite, so a block whose results are not all finite is computed again from `w`
    (*window, 1, C) tap by tap.
    """
    y, kernel = empty(spec, x.dtype), offsets_first(w, spec)
    planes, results = channels_second(x), channels_second(y)
    blocks, threads = _blocks(spec, rows, limit, is_read_in_place=spec.axes == 1 and _is_for_blas(planes))

    def work(blocks: Iterator[Block]) -> None:
        with borrowed("planes") as memory, np.errstate(over="ignore", invalid="ignore"):
            for images, channels, some in blocks:
                source = surrounded(planes[images, channels], read_by(spec, (some.start, some.stop)), memory)
                here = results[images, channels, some]
                out = here if here.strides[-1] == here.itemsize else memory.take("out", here.shape, here.dtype)
                filtered(source, channels, out, memory)
                if not finite(out):
                    _tap_by_tap(source, kernel[channels], spec, out)
                if out is not here:
                    here[...] = out

    with blas.products_by_one():  # a thread of BLAS that was woken looks for work, and takes a processor from others
        team.share(work, blocks, threads)
    return y


def empty(spec: ConvSpec, dtype: np.dtype) -> Array:
    """A result (N, *out, C) that lies in memory as the spec's layout wants it."""
    y = new(spec.y_shape, dtype)
    return y if spec.layout == "channels_last" else y.transpose(0, *range(2, y.ndim), 1)


def channels_second(x: Array) -> Array:
    """A view of x (N, *size, C) as (N, C, *size); `numpy.moveaxis` takes ten times as long."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def offsets_first(w: Array, spec: ConvSpec) -> Array:
    """The weight (*window, 1, C) as (C, *window), by the offsets of the window."""
    w = w[(*(slice(None, None, -1),) * spec.axes, 0)] if spec.flip else w[..., 0, :]
    return w.transpose(spec.axes, *range(spec.axes))


def is_shared(spec: ConvSpec) -> bool:
    """Whether the filters take so long that a second thread is worth waking."""
    results = spec.batch * math.prod(spec.out_size) * spec.channels
    products = results * (_BESIDE + math.prod(spec.window[:-1]) * (spec.reach[-1] + 15))
    return products > (_SHARED if spec.axes == 1 else 2 * _SHARED)


def _blocks(spec: ConvSpec, take: Rows, limit: int, *, is_read_in_place: bool) -> tuple[list[Block], int]:
    """Blocks that stay close, at least a row each, and how many threads memory and work are enough for."""
    stride, reach, height = spec.stride[0], spec.reach[0], spec.out_size[0]

    def rows_within(nbytes: int) -> int:
        return (nbytes - take.read * (reach - stride)) // (take.read * stride + take.written)

    shared, close = is_shared(spec), min(limit, _BLOCK_BYTES)
    rows = max(1, rows_within(close), min(rows_within(limit), take.fewest))
    parts = -(-height // max(rows, 1))
    if shared and parts > 1:
        parts += -parts % _PARTS
    rows = max(1, -(-height // parts))
    ends = [(0, height)]
    if is_read_in_place and shared:
        ends, shares = _between_the_ends(spec), team.thread_count()
        rows = max(rows, min(-(-height // shares), rows_within(limit // shares)))
    spans = [slice(row, min(row + rows, end)) for begin, end in ends for row in range(begin, end, rows)]
    plane = take.read * ((rows - 1) * stride + reach) + take.written * rows
    channels = max(1, min(spec.channels, close // plane))
    images = max(1, min(spec.batch, close // (plane * channels)))
    blocks = [
        (slice(n, n + images), slice(c, min(c + channels, spec.channels)), some)
        for n, c, some in product(range(0, spec.batch, images), range(0, spec.channels, channels), spans)
    ]
    return blocks, limit // (plane * channels * images) if shared else 1


def _between_the_ends(spec: ConvSpec) -> list[tuple[int, int]]:
    """A signal's results: those at its ends, which read zeros, so copies, and all others, which do not."""
    (stride,), (reach,), (count,), ((before, _),) = spec.stride, spec.reach, spec.out_size, spec.padding
    begin, end = max(-(-before // stride), 0), (spec.size[0] + before - reach) // stride + 1
    return [(0, begin), (begin, end), (end, count)] if begin < end <= count else [(0, count)]


def surrounded(planes: Array, spans: list[Span], memory: Memory) -> Array:
    """Elements of planes (N, C, *size) along every axis, with zeros beyond: rows one after another, for BLAS."""
    return margins.surrounded(planes, margins.reading_of(spans, planes.shape[2:]), memory, _is_for_blas)


def _is_for_blas(planes: Array) -> bool:
    """Whether what lies in a row (N, C, rows, ...) lies in one piece, and rows one after another."""
    if planes.ndim == 3:
        return planes.strides[-1] == planes.itemsize
    row, *steps = dense_strides(planes.shape[2:], planes.itemsize)
    return planes.strides[3:] == tuple(steps) and (planes.shape[2] == 1 or planes.strides[2] >= row)


def finite(y: Array) -> bool:
    """Whether all values are, by their sum, which is read faster but may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return cmath.isfinite(y.sum()) or bool(np.isfinite(y).all())


def _tap_by_tap(x: Array, w: Array, spec: ConvSpec, out: Array) -> None:
    """The definition: one pass over the results for each tap."""
    out[...] = 0
    for tap in spec.taps:
        axes = zip(tap, spec.dilation, spec.stride, out.shape[2:], strict=True)
        places = (slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, s, n in axes)
        out += x[(..., *places)] * w[(slice(None), *tap)].reshape(-1, *(1,) * spec.axes)
