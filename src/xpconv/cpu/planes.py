"""Filters of single signals, planes and volumes, block by block of rows, which the threads of a team share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from xpconv.cpu import blas, team
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.results import new
from xpconv.spec import Array, ConvSpec

_BLOCK_BYTES = 1 << 21  # of a block, its copies and its results: with a quarter a half more time
_PARTS = 4  # blocks of a plane are a multiple of, for threads to share evenly
_SHARED = 200_000  # results, or a tenth of the products, that take longer than waking a thread

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
    planes, results = np.moveaxis(x, -1, 1), np.moveaxis(y, -1, 1)
    blocks, threads = _blocks(spec, rows, limit)

    def work(blocks: Iterator[Block]) -> None:
        with borrowed("planes") as memory, np.errstate(over="ignore", invalid="ignore"):
            for images, channels, some in blocks:
                source = _surrounded(planes[images, channels], spec, some, memory)
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
    return y if spec.layout == "channels_last" else np.moveaxis(y, 1, -1)


def offsets_first(w: Array, spec: ConvSpec) -> Array:
    """The weight (*window, 1, C) as (C, *window), by the offsets of the window."""
    w = np.moveaxis(w[..., 0, :], -1, 0)
    return np.flip(w, axis=tuple(range(1, w.ndim))) if spec.flip else w


def _blocks(spec: ConvSpec, take: Rows, limit: int) -> tuple[list[Block], int]:
    """Blocks that stay close, at least a row each, and how many threads memory and work are enough for."""
    stride, reach, height = spec.stride[0], spec.reach[0], spec.out_size[0]

    def rows_within(nbytes: int) -> int:
        return (nbytes - take.read * (reach - stride)) // (take.read * stride + take.written)

    results = spec.batch * math.prod(spec.out_size) * spec.channels
    is_shared = results * max(10, math.prod(spec.window)) > 10 * _SHARED
    close = min(limit, _BLOCK_BYTES)
    rows = max(1, rows_within(close), min(rows_within(limit), take.fewest))
    parts = -(-height // max(rows, 1))
    if is_shared and parts > 1:
        parts += -parts % _PARTS
    rows = max(1, -(-height // parts))
    plane = take.read * ((rows - 1) * stride + reach) + take.written * rows
    channels = max(1, min(spec.channels, close // plane))
    images = max(1, min(spec.batch, close // (plane * channels)))
    blocks = [
        (slice(n, n + images), slice(c, min(c + channels, spec.channels)), slice(row, min(row + rows, height)))
        for n, c, row in product(
            range(0, spec.batch, images), range(0, spec.channels, channels), range(0, height, rows)
        )
    ]
    return blocks, limit // (plane * channels * images) if is_shared else 1


def _surrounded(planes: Array, spec: ConvSpec, rows: slice, memory: Memory) -> Array:
    """What rows of results read of planes (N, C, *size), with zeros beyond: rows one after another, for BLAS."""
    first = rows.start * spec.stride[0] - spec.padding[0][0]
    last = (rows.stop - 1) * spec.stride[0] + spec.reach[0] - spec.padding[0][0]
    spans = [(first, last), *((-lo, n + hi) for n, (lo, hi) in zip(spec.size[1:], spec.padding[1:], strict=True))]
    inside = [(max(lo, 0), max(min(hi, n), max(lo, 0))) for (lo, hi), n in zip(spans, spec.size, strict=True)]
    there = planes[:, :, *(slice(lo, hi) for lo, hi in inside)]
    if inside == spans and _is_for_blas(there):
        return there
    whole = memory.take("whole", (*planes.shape[:2], *(hi - lo for lo, hi in spans)), planes.dtype)
    for axis, ((lo, hi), (begin, end)) in enumerate(zip(spans, inside, strict=True), start=2):
        for outside in (slice(0, begin - lo), slice(end - lo, hi - lo)):
            whole[(slice(None),) * axis + (outside,)] = 0
    whole[:, :, *(slice(begin - lo, end - lo) for (lo, _), (begin, end) in zip(spans, inside, strict=True))] = there
    return whole


def _is_for_blas(planes: Array) -> bool:
    """Whether what lies in a row (N, C, rows, ...) lies in one piece, and rows one after another."""
    steps = [planes.itemsize]
    for n in planes.shape[:2:-1]:
        steps.append(steps[-1] * n)
    dense = planes.strides[:2:-1] == tuple(steps[:-1]) if planes.ndim > 3 else planes.strides[-1] == planes.itemsize
    return dense and (planes.ndim == 3 or planes.shape[2] == 1 or planes.strides[2] >= steps[-1])


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
