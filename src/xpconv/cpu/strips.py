"""Sums of products in NumPy, strip by strip of rows, which the threads of a team share.

What lies around the image is put around a strip, in memory that stays in a processor's cache. Of a dense convolution
the elements under a row of the window lie in one piece, and those of windows below each other as far apart as rows: a
product for every row of the window reads them where they are, and no patch is copied unless it is short. Groups are
joined until a product is worth its call, with zeros where channels of one meet filters of another. Of depthwise filters
a row of all columns is multiplied and added at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from xpconv.cpu import team
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.results import new
from xpconv.plan import conv_operations
from xpconv.spec import Array, ConvSpec, Windows

_STRIP_BYTES = 1 << 21  # of a strip, its copies and its results: with a quarter, twice as long
_SHARED_BYTES = 1 << 23  # where BLAS shares the product of a strip: with a quarter, a fifth to a third longer
_LONGEST = 640  # elements of a product's rows: longer ones leave it too few rows, or too few filters
_SHORTEST = 48  # elements of rows that are read where they lie: shorter ones are copied side by side
_JOINED = 32  # channels of groups that are joined
_SIGNAL = 16  # results of a signal, one after another, that make a row
_SHARED = 4_000_000  # multiplications that take longer than waking a thread, and for every piece as long again
_SHARED_PASSES = 2_000_000  # of depthwise filters, which no product makes


@dataclass(frozen=True)
class Strip:
    """Images and rows of results."""

    images: slice
    rows: range


@dataclass(frozen=True)
class _Piece:
    """Taps whose elements lie in one piece: the offset of the first in the padded input, and its place in a window."""

    offset: tuple[int, ...]
    taps: tuple[slice, ...]


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of `x` (N, *size, C), around which there are zeros, and `w` (*window, C / groups, F)."""
    y = new((spec.batch, *spec.out_size, spec.filters), x.dtype)
    if 0 in (*y.shape, *w.shape):
        y[...] = 0
        return y
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    depthwise = spec.groups == spec.channels == spec.filters
    filtered = _depthwise(w, spec) if depthwise else _patches(w, spec) if copies(spec) else _dense(w, spec)
    strips, threads = _strips(spec, x.dtype.itemsize, limit, team.thread_count())

    def work(strips: Iterator[Strip]) -> None:
        with borrowed("blocks") as memory:
            for strip in strips:
                source = surrounded(x, spec, strip, memory)
                filtered(source, y[strip.images, strip.rows.start : strip.rows.stop], memory)

    team.share(work, strips, threads)
    return y


def workspace(spec: ConvSpec, itemsize: int, limit: int) -> int:
    """Bytes of a strip for each thread, and of a weight in panels."""
    strips, threads = _strips(spec, itemsize, limit, team.thread_count())
    largest = len(strips[0].rows) * (strips[0].images.stop - strips[0].images.start) if strips else 0
    weight = math.prod(spec.window) * spec.channels // spec.groups * spec.filters * itemsize
    return min(threads, len(strips)) * largest * _row_bytes(spec, itemsize) + weight * min(_JOINED, spec.groups)


def told(spec: ConvSpec, itemsize: int, limit: int) -> str:
    """The largest strip, in words."""
    strips, _ = _strips(spec, itemsize, limit, team.thread_count())
    images, rows = (strips[0].images.stop - strips[0].images.start, len(strips[0].rows)) if strips else (0, 0)
    return f"{images} of {spec.batch} images, {rows} of {spec.out_size[0]} rows"


def copies(spec: ConvSpec) -> bool:
    """Whether patches are copied, because too little of them lies in one piece, or BLAS multiplies them at once."""
    length = spec.channels * _joined_taps(spec)
    short = spec.groups == 1 and length < min(_SHORTEST, spec.channels * math.prod(spec.window))
    return short or by_blas(spec)


def by_blas(spec: ConvSpec) -> bool:
    """Whether BLAS shares products among its threads: long ones, or those of no more than one element of an image.

    Small products of 1152 elements reached 170 GFLOP/s a core where BLAS reached 224, of 4608 elements 48 of 152.
    """
    taps = math.prod(spec.window)
    return spec.groups == 1 and (taps == 1 or taps * spec.channels > _LONGEST)


def is_shared(spec: ConvSpec) -> bool:
    """Whether there is enough to do for several threads of the team, between calls that only one can make at a time.

    3x3 in 32 groups of 8, 14x14, took 0.49 ms in one thread and 0.89 in two; 3x3 64->64 on 28x28 the same in both.
    """
    multiplied = conv_operations(spec) // 2
    if spec.groups == spec.channels == spec.filters:
        return multiplied > _SHARED_PASSES
    parts = 1 if copies(spec) else pieces(spec)
    return multiplied * _joined(spec) > _SHARED * (2 + parts) and not by_blas(spec)


def pieces(spec: ConvSpec) -> int:
    """How many products are added up to a result."""
    return len(_pieces(spec))


def blocks(spec: ConvSpec) -> int:
    """How many blocks of groups there are, each of which products take as one."""
    return spec.groups // _joined(spec)


def _is_product(spec: ConvSpec) -> bool:
    """Whether the whole input is one matrix."""
    return spec.groups == 1 and math.prod(spec.window) == 1 and spec.out_size == spec.size == spec.padded_size


def _row_bytes(spec: ConvSpec, itemsize: int) -> int:
    """Of a row of results, and of what is copied for it."""
    read = math.prod(spec.padded_size[1:]) * spec.channels * min(spec.stride[0], spec.reach[0])
    copied = math.prod(spec.out_size[1:]) * math.prod(spec.window) * spec.channels if copies(spec) else 0
    if _is_product(spec):
        return 1
    return (read + copied + 2 * math.prod(spec.out_size[1:]) * spec.filters) * itemsize


@lru_cache(maxsize=1024)
def _strips(spec: ConvSpec, itemsize: int, limit: int, threads: int) -> tuple[list[Strip], int]:
    """Strips that stay close, as many for each thread, and how many threads the limit and the work are enough for."""
    row, height = _row_bytes(spec, itemsize), spec.out_size[0]
    threads = max(1, min(threads, limit // max(row, 1))) if is_shared(spec) else 1
    weight = math.prod(spec.window) * spec.channels * spec.filters * itemsize  # which BLAS reads each time
    close = max(_SHARED_BYTES, weight) if by_blas(spec) else _STRIP_BYTES
    rows = max(1, min(limit // threads, close) // max(row, 1))
    total = spec.batch * height
    rows = max(1, min(rows, -(-total // (threads * -(-total // (rows * threads)))))) if total else 1
    if spec.axes == 1 and rows < height:
        rows += -rows % _SIGNAL
    strips = []
    if rows >= height:
        images = max(1, rows // max(height, 1))
        strips = [Strip(slice(n, min(n + images, spec.batch)), range(height)) for n in range(0, spec.batch, images)]
    else:
        rows = -(-height // -(-height // rows)) if spec.axes > 1 else rows
        for n, row in product(range(spec.batch), range(0, height, rows)):
            strips.append(Strip(slice(n, n + 1), range(row, min(row + rows, height))))
    return strips, threads


def surrounded(x: Array, spec: ConvSpec, strip: Strip, memory: Memory) -> Array:
    """What the strip reads, with zeros where that is beyond the images: (images, rows, *padded size, C)."""
    images = x[strip.images]
    first = strip.rows.start * spec.stride[0] - spec.padding[0][0]
    last = (strip.rows.stop - 1) * spec.stride[0] + spec.reach[0] - spec.padding[0][0]
    spans = [(first, last), *((-lo, n + hi) for n, (lo, hi) in zip(spec.size[1:], spec.padding[1:], strict=True))]
    inside = [(max(lo, 0), max(min(hi, n), max(lo, 0))) for (lo, hi), n in zip(spans, spec.size, strict=True)]
    there = images[:, *(slice(lo, hi) for lo, hi in inside)]
    if inside == spans and _in_order(there):
        return there
    whole = memory.take("whole", (len(images), *(hi - lo for lo, hi in spans), x.shape[-1]), x.dtype)
    for axis, ((lo, hi), (begin, end)) in enumerate(zip(spans, inside, strict=True), start=1):
        for outside in (slice(0, begin - lo), slice(end - lo, hi - lo)):
            whole[(slice(None),) * axis + (outside,)] = 0
    whole[:, *(slice(begin - lo, end - lo) for (lo, _), (begin, end) in zip(spans, inside, strict=True))] = there
    return whole


def _in_order(a: Array) -> bool:
    """Whether the elements lie in memory as their indices tell, those of a row side by side, and nothing lies twice."""
    steps = (a.itemsize, *(step * n for step, n in zip(a.strides[:0:-1], a.shape[:0:-1], strict=True)))
    dense = a.strides[-2:] == steps[1::-1]
    return dense and all(s >= least for s, least in zip(a.strides[::-1], steps, strict=True))


# --- One strip --------------------------------------------------------------------------------------------------------

Filtered = Callable[[Array, Array, Memory], None]  # of a strip, into its results


def _dense(w: Array, spec: ConvSpec) -> Filtered:
    """A product for every piece of the window, added up."""
    parts = _pieces(spec)
    count, weights = _joined_groups(w, spec)
    panels = [weights[:, *piece.taps].reshape(count, -1, weights.shape[-1]) for piece in parts]

    def filtered(source: Array, out: Array, memory: Memory) -> None:
        more = memory.take("more", out.shape, out.dtype) if len(parts) > 1 else out
        for number, (piece, panel) in enumerate(zip(parts, panels, strict=True)):
            into = more if number else out
            for a, b in _operands(source, into, piece, spec, count):
                np.matmul(a, panel, out=b)
            if number:
                np.add(out, more, out=out)

    return filtered


def _operands(source: Array, out: Array, piece: _Piece, spec: ConvSpec, blocks: int) -> Iterator[tuple[Array, Array]]:
    """Views (images, *columns, blocks, rows, elements) of a strip, and (images, *columns, blocks, rows, filters).

    A signal's rows are runs of results; those that are left over make a row each.
    """
    length = math.prod(s.stop - s.start for s in piece.taps[-1:]) * spec.channels // blocks
    steps = [step * s for step, s in zip(source.strides[1:-1], spec.stride, strict=True)]
    source = source[:, *(slice(offset, None) for offset in piece.offset)]
    if spec.axes > 1:
        yield _stacked(source, (out.shape[2:-1], out.shape[1]), (steps[1:], steps[0]), blocks, length), _stacked(
            out, (out.shape[2:-1], out.shape[1]), (out.strides[2:-1], out.strides[1]), blocks, out.shape[-1] // blocks
        )
        return
    results = out.shape[1]
    whole = results // _SIGNAL
    for begin, run, rows in ((0, _SIGNAL, whole), (whole * _SIGNAL, results - whole * _SIGNAL, 1)):
        if run and rows:
            a, b = source[:, begin * spec.stride[0] :], out[:, begin:]
            yield (
                _stacked(a, ((run,), rows), (steps, run * steps[0]), blocks, length),
                _stacked(b, ((run,), rows), (out.strides[1:2], run * out.strides[1]), blocks, out.shape[-1] // blocks),
            )


def _stacked(a: Array, shape: tuple, strides: tuple, blocks: int, length: int) -> Array:
    """A view (images, *columns, blocks, rows, length) where columns and rows are so many, so far apart."""
    (columns, rows), (across, down) = shape, strides
    apart = a.shape[-1] // blocks * a.itemsize
    return np.lib.stride_tricks.as_strided(
        a, (len(a), *columns, blocks, rows, length), (a.strides[0], *across, apart, down, a.itemsize)
    )


def _pieces(spec: ConvSpec) -> list[_Piece]:
    """Runs of taps along the last axis, for every tap of the others."""
    run, found = _joined_taps(spec), []
    for lead in np.ndindex(*spec.window[:-1]):
        for first in range(0, spec.window[-1], run):
            last = min(first + run, spec.window[-1])
            offset = tuple(k * d for k, d in zip((*lead, first), spec.dilation, strict=True))
            found.append(_Piece(offset, (*(slice(k, k + 1) for k in lead), slice(first, last))))
    return found


def _joined_taps(spec: ConvSpec) -> int:
    """Taps of the last axis that one product reads."""
    if spec.groups > 1 or spec.dilation[-1] > 1:
        return 1
    runs = max(1, -(-spec.window[-1] * spec.channels // _LONGEST))
    taps = -(-spec.window[-1] // runs)
    return taps if spec.axes > 1 else min(taps, _SIGNAL * spec.stride[0])  # rows of a product may not overlap


def _joined(spec: ConvSpec) -> int:
    """Groups of a block."""
    each = max(spec.channels, spec.filters) // spec.groups
    fits = (n for n in range(1, spec.groups + 1) if spec.groups % n == 0 and n * each <= _JOINED)
    return max(fits, default=1)


def _joined_groups(w: Array, spec: ConvSpec) -> tuple[int, Array]:
    """How many blocks of groups there are, and the weight (blocks, *window, channels, filters) of each."""
    per_group, filters, joined = spec.channels // spec.groups, spec.filters // spec.groups, _joined(spec)
    blocks = spec.groups // joined
    made = np.zeros((blocks, *spec.window, joined, per_group, joined, filters), w.dtype)
    given = np.moveaxis(w.reshape(*spec.window, per_group, blocks, joined, filters), -3, 0)
    for k in range(joined):
        made[..., k, :, k, :] = given[..., k, :]
    return blocks, made.reshape(blocks, *spec.window, joined * per_group, joined * filters)


def _patches(w: Array, spec: ConvSpec) -> Filtered:
    """The patches, copied side by side, times the weight."""
    length = math.prod(spec.window) * spec.channels
    weight = w.reshape(length, spec.filters)

    def filtered(source: Array, out: Array, memory: Memory) -> None:
        read = windows(source, spec, out.shape[1])
        if read.flags.c_contiguous:
            patches = read
        else:
            patches = memory.take("patches", read.shape, source.dtype)
            patches[...] = read
        patches, out = patches.reshape(-1, length), out.reshape(-1, spec.filters)
        np.matmul(patches, weight, out=out)

    return filtered


def windows(x: Array, spec: Windows, rows: int | None = None) -> Array:
    """A view of padded `x`, or of a strip that so many rows of results read, as (N, *out, *window, C)."""
    steps = x.strides[1:-1]
    strides = (
        x.strides[0],
        *(step * s for step, s in zip(steps, spec.stride, strict=True)),
        *(step * d for step, d in zip(steps, spec.dilation, strict=True)),
        x.strides[-1],
    )
    out_rows = spec.out_size[0] if rows is None else rows
    shape = (len(x), out_rows, *spec.out_size[1:], *spec.window, x.shape[-1])
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)


def _depthwise(w: Array, spec: ConvSpec) -> Filtered:
    """One pass for every tap, which multiplies and adds: of whole rows where those lie in one piece."""
    weight, joined = w[..., 0, :].reshape(-1, spec.filters), spec.stride[-1] == 1 and spec.axes > 1
    if joined:
        weight = np.tile(weight, spec.out_size[-1])

    def filtered(source: Array, out: Array, _: Memory) -> None:
        read = windows(source, spec, out.shape[1])
        n, axes = len(source), spec.axes
        order = (*range(axes + 1, 2 * axes + 1), *range(axes + 1), 2 * axes + 1)
        read = read.transpose(order)  # (*window, images, rows, *columns, C)
        for image in range(n):
            _summed(read[(slice(None),) * axes + (image,)], weight, out[image], joined)

    return filtered


def _summed(windows: Array, weight: Array, out: Array, joined: bool) -> None:
    """Windows (*window, rows, *columns, C) times weights (taps, C), added up."""
    axes = out.ndim - 1
    if joined:
        shape = (*windows.shape[:-2], windows.shape[-2] * windows.shape[-1])
        windows = np.lib.stride_tricks.as_strided(windows, shape, (*windows.strides[:-2], windows.strides[-1]))
        out = out.reshape(*out.shape[:-2], -1)
    weight = weight.reshape(*windows.shape[:axes], weight.shape[-1])
    taps, places = list(range(axes)), list(range(axes, windows.ndim))
    np.einsum(windows, [*taps, *places], weight, [*taps, places[-1]], places, out=out)
