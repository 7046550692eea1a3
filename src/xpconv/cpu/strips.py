"""Sums of products in NumPy, strip by strip of rows, or of a part of one, which the threads of a team share.

What lies around the image is put around a strip, in memory that stays in a processor's cache. Its patches are copied
side by side, unless they lie so, and one product makes all results of a strip, or one of each group. Of depthwise
filters rows of columns are multiplied and added at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from xpconv.cpu import cuts, joined, margins, team
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.patches import Patches, of_input
from xpconv.cpu.planes import finite
from xpconv.cpu.results import new
from xpconv.plan import conv_operations
from xpconv.spec import Array, ConvSpec, Sizes

_STRIP_BYTES = 1 << 21  # of a strip, its copies and its results: with a quarter, a fifth longer
_TILED_BYTES = 1 << 19  # of a depthwise weight, repeated for the columns of a row
_PIECE_BYTES = 1 << 20  # of a large result
_FEW_CHANNELS = 96  # in which a product takes less time than its result
_SHARED_ELEMENTS = 3 << 19  # read, copied and written; BLAS shares the one product of fewer in 0.75 to 0.95 of the time
_SHARED = 4_000_000  # multiplications of groups that take longer than waking a thread
_SHARED_PASSES = 1_000_000  # of depthwise filters


class Strip(NamedTuple):
    """Images, and places of results along the first axes: some along the last of these, one along each before it.

    Along the other axes there are all, so that the results (images, *places, ...) lie in one piece.
    """

    images: slice
    places: tuple[slice, ...]
    reading: margins.Reading  # of the input (N, *size, C), or of the channels of each group


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of `x` (N, *size, C), around which there are zeros, and `w` (*window, C / groups, F)."""
    y = new((spec.batch, *spec.out_size, spec.filters), x.dtype)
    if 0 in (*y.shape, *w.shape):
        y[...] = 0
        return y
    if joined.results(spec, limit) > 1:
        wide = joined.wide(spec, limit)
        with np.errstate(over="ignore", invalid="ignore"):
            _by_strips(x, joined.wide_weight(spec, limit)(w), wide, limit, y.reshape(wide.batch, *wide.out_size, -1))
        if finite(y):
            return y
    if is_product(spec) and x.flags.c_contiguous:  # all of it lies as one matrix
        _in_pieces(x.reshape(-1, spec.channels), w.reshape(w.shape[-2:]), y.reshape(-1, spec.filters))
        return y
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    _by_strips(x, w, spec, limit, y)
    return y


def _in_pieces(x: Array, w: Array, y: Array) -> None:
    """A product, of which OpenBLAS makes a large result of few channels sooner piece by piece, each by all its threads.

    1x1 64->256@56, N=8, on a Zen 3: 14.3 ms whole, 9.4 in pieces of 0.8 MB, 64->64@56 3.3 and 2.8; 128->512@28 ties,
    256->1024@14 takes a fifth longer.
    """
    channels, filters = w.shape
    rows = len(y)
    if channels <= min(filters, _FEW_CHANNELS) and y.nbytes >= 4 * _PIECE_BYTES:
        rows = max(_PIECE_BYTES // (filters * y.itemsize), 1)
    for first in range(0, len(y), rows):
        np.matmul(x[first : first + rows], w, out=y[first : first + rows])


def _by_strips(x: Array, w: Array, spec: ConvSpec, limit: int, y: Array) -> None:
    """A correlation with the weight, into the result."""
    filtered = _depthwise(w, spec, limit) if spec.filters_planes else _multiplied(w, spec)
    strips, threads = _of_conv(spec, x.dtype.itemsize, limit)
    if spec.groups > 1 and not spec.filters_planes:  # each channels of its own: (groups, N, *size, C / groups)
        x = np.moveaxis(x.reshape(*x.shape[:-1], spec.groups, spec.channels // spec.groups), -2, 0)

    def work(strips: Iterator[Strip]) -> None:
        with borrowed("blocks") as memory:
            for strip in strips:
                source = margins.surrounded(x, strip.reading, memory, _lies_in_one_piece)
                filtered(source, y[strip.images, *strip.places], memory)
                del source  # a larger one may be next

    team.share(work, strips, threads)


def products_of_planes(w: Array, x: Array, spec: ConvSpec) -> Array:
    """A matrix (F, C) times every plane of `x` (N, C, positions): (N, F, positions)."""
    y = new((spec.batch, spec.filters, x.shape[-1]), x.dtype)
    threads = team.thread_count() if is_shared(spec) else 1
    cuts = 1 if spec.batch % threads == 0 else threads
    edges = [x.shape[-1] * k // cuts for k in range(cuts + 1)]
    parts = list(product(range(spec.batch), map(slice, edges, edges[1:])))  # images, or some of their positions

    def work(parts: Iterator[tuple[int, slice]]) -> None:
        for image, places in parts:
            np.matmul(w, x[image, :, places], out=y[image, :, places])

    team.share(work, parts, threads)
    return y


def weight_gradient(x: Array, gy: Array, spec: ConvSpec, limit: int) -> Array:
    """The gradient (*window, C, F) of `x` (N, *size, C) and `gy` (N, *out, F): patches, transposed, times `gy`.

    Every thread adds up strips of its own, and their sums are added in order: the bits are the same at every call.
    """
    length, filters = math.prod(spec.window) * spec.channels, spec.filters
    if 0 in (*gy.shape, spec.channels):
        return np.zeros((*spec.window, spec.channels, filters), x.dtype)
    strips, threads = _of_gradient(spec, x.dtype.itemsize, limit)
    side_by_side, sums = _side_by_side(spec, x.dtype), np.zeros((threads, length, filters), x.dtype)

    def work(turns: Iterator[int]) -> None:
        with borrowed("blocks") as memory:
            product = memory.take("product", (length, filters), x.dtype)
            for turn in turns:
                for strip in strips[turn::threads]:
                    there = gy[strip.images, *strip.places]
                    source = margins.surrounded(x, strip.reading, memory, _lies_in_one_piece)
                    patches = side_by_side(source, there.shape[1:-1], memory)
                    np.matmul(patches.T, there.reshape(-1, filters), out=product)
                    sums[turn] += product
                    del source, patches  # larger ones may be next

    team.share(work, range(threads), threads)
    gw = sums[0] if threads == 1 else np.add.reduce(sums)
    return gw.reshape(*spec.window, spec.channels, filters)


def workspace(spec: ConvSpec, itemsize: int, limit: int) -> int:
    """Bytes of a strip for each thread, and of a weight that is turned or joined."""
    wide = joined.wide(spec, limit)
    strips, threads = _of_conv(wide, itemsize, limit)
    return min(threads, len(strips)) * _largest(strips, wide, itemsize) + math.prod(wide.w_shape) * itemsize


def told(spec: ConvSpec, itemsize: int, limit: int) -> str:
    """The largest strip, in words."""
    wide = joined.wide(spec, limit)
    return _in_words(_of_conv(wide, itemsize, limit)[0], wide)


def gradient_told(spec: ConvSpec, itemsize: int, limit: int) -> tuple[str, int, int]:
    """Of a weight gradient the largest strip, in words, the bytes of all that is held at a time, and threads."""
    strips, threads = _of_gradient(spec, itemsize, limit)
    held = _largest(strips, _by_patches(spec), itemsize) + 2 * math.prod(spec.w_shape) * itemsize
    return _in_words(strips, spec), threads * held, threads


def _of_conv(spec: ConvSpec, itemsize: int, limit: int) -> tuple[list[Strip], int]:
    """Strips beside a copy of the weight, which is turned or joined, and threads."""
    weight = math.prod(spec.w_shape) * itemsize
    return _strips(spec, itemsize, max(limit - weight, limit // 2), team.thread_count())


def _of_gradient(spec: ConvSpec, itemsize: int, limit: int) -> tuple[list[Strip], int]:
    """Strips, and threads: as many as the limit leaves room for, each with a sum and a product."""
    own, threads = 2 * math.prod(spec.w_shape) * itemsize, team.thread_count()
    threads = threads if 2 * threads * own <= limit else 1
    return _strips(_by_patches(spec), itemsize, max(limit - threads * own, limit // 2), threads)


def _by_patches(spec: ConvSpec) -> ConvSpec:
    """Of one channel and one filter as of two filters: patches are copied, where the convolution takes passes."""
    return replace(spec, filters=2) if spec.filters_planes else spec


def _largest(strips: list[Strip], spec: ConvSpec, itemsize: int) -> int:
    """Bytes of the largest strip."""
    if not strips:
        return 0
    images, places, _ = strips[0]
    row, more = _row_bytes(spec, itemsize, len(places) - 1)
    return _count(images) * (_count(places[-1]) * row + more)


def _count(places: slice) -> int:
    return int(places.stop - places.start)


def _in_words(strips: list[Strip], spec: ConvSpec) -> str:
    if not strips:
        return f"0 of {spec.batch} images"
    images, places, _ = strips[0]
    return cuts.in_words((images, *places), spec.batch, spec.out_size)


def is_shared(spec: ConvSpec) -> bool:
    """Whether threads of the team share the strips, because there is enough to do, and not BLAS the one product.

    BLAS's own threads begin sooner, but one alone copies the patches, and of groups each product is too small for them.
    """
    multiplied = conv_operations(spec) // 2
    if spec.filters_planes:
        return multiplied > _SHARED_PASSES
    if spec.groups > 1:
        return multiplied > _SHARED
    return spec.batch * spec.out_size[0] * _row_bytes(spec, 1)[0] > _SHARED_ELEMENTS


def is_product(spec: ConvSpec) -> bool:
    """Whether the whole input is one matrix: windows of one that read every position."""
    plain = spec.groups == 1 and not spec.input_dilation and not any(map(any, spec.padding))  # -1 and 1 are a shift
    return plain and math.prod(spec.window) == 1 and spec.out_size == spec.size


def _row_bytes(spec: ConvSpec, itemsize: int, axis: int = 0) -> tuple[int, int]:
    """Of a row of results, one along an axis and those before it, with its copies; and of what the last reads more."""
    columns = math.prod(spec.out_size[axis + 1 :])
    read = math.prod(spec.reach[:axis]) * math.prod(spec.padded_size[axis + 1 :]) * spec.channels
    stride, reach = spec.stride[axis], spec.reach[axis]
    step = min(stride, reach) if spec.padded_size == spec.size else stride  # what is padded is copied, skipped or not
    copied = 0 if spec.filters_planes or is_product(spec) else columns * math.prod(spec.window) * spec.channels
    row = read * step + copied + columns * spec.filters
    return row * itemsize, read * (reach - step) * itemsize


@lru_cache(maxsize=256)
def _strips(spec: ConvSpec, itemsize: int, limit: int, threads: int) -> tuple[list[Strip], int]:
    """Strips that stay close, as many for each thread, and how many threads the limit and the work are enough for.

    They are cut along the first axis of which the limit is enough for a row, or that has short rows.
    """
    of_axes = [_row_bytes(spec, itemsize, axis) for axis in range(spec.axes)]
    axis, within = cuts.along([sum(nbytes) for nbytes in of_axes], limit)
    (row, more), height, others = of_axes[axis], spec.out_size[axis], spec.out_size[:axis]
    threads = max(1, min(threads, within // max(row + more, 1))) if is_shared(spec) else 1
    weight = math.prod(spec.w_shape)  # which is read for each strip
    least = _STRIP_BYTES if is_shared(spec) else _SHARED_ELEMENTS * itemsize
    close = min(within // threads, max(least, weight * itemsize))
    rows, total = max(1, (close - more) // max(row, 1)), spec.batch * math.prod(others) * height
    rows = max(1, min(rows, -(-total // (threads * -(-total // (rows * threads)))))) if total else 1
    if rows >= height and axis == 0:
        each = max(1, min(rows // max(height, 1), close // max(row * height + more, 1)))
        some = (slice(n, min(n + each, spec.batch)) for n in range(0, spec.batch, each))
        return [_strip(spec, images, (slice(0, height),)) for images in some], threads
    every = product(*(cuts.evenly(size, 1) for size in (spec.batch, *others)), cuts.evenly(height, rows))
    return [_strip(spec, image, tuple(places)) for image, *places in every], threads


def _strip(spec: ConvSpec, images: slice, places: tuple[slice, ...]) -> Strip:
    channels = spec.channels if spec.filters_planes else spec.channels // spec.groups
    spans = margins.read_by(spec, *((place.start, place.stop) for place in places))
    spans = [(images.start, images.stop), *spans, (0, channels)]
    return Strip(images, places, margins.reading_of(spans, (spec.batch, *spec.size, channels)))


def _lies_in_one_piece(a: Array) -> bool:
    return a.flags.c_contiguous


# --- One strip --------------------------------------------------------------------------------------------------------

Filtered = Callable[[Array, Array, Memory], None]  # of a strip, into its results


def _multiplied(w: Array, spec: ConvSpec) -> Filtered:
    """The patches times the weight: those of every group times its own."""
    length, filters, groups = math.prod(spec.w_shape) // spec.filters, spec.filters // spec.groups, spec.groups
    side_by_side, weights = _side_by_side(spec, w.dtype), w.reshape(length, groups, filters).swapaxes(0, 1)

    def filtered(source: Array, out: Array, memory: Memory) -> None:
        patches = side_by_side(source, out.shape[1:-1], memory)
        np.matmul(patches, weights, out=out.reshape(-1, groups, filters).swapaxes(0, 1))

    return filtered


def _side_by_side(spec: ConvSpec, dtype: np.dtype) -> Callable[[Array, Sizes, Memory], Array]:
    """A function of a strip, and of how many results read it: the patches as they lie, or copied so that they do."""

    @lru_cache(maxsize=8)
    def patches_of(shape: Sizes, counts: Sizes) -> Patches:
        return of_input(spec, shape, dtype, counts)

    def side_by_side(source: Array, counts: Sizes, memory: Memory) -> Array:
        patches = patches_of(source.shape, counts)
        if patches.are_the_input:
            return source.reshape(patches.flat)
        copy = memory.take("patches", patches.flat, dtype)
        patches.within(copy)[...] = patches.of(source)
        return copy

    return side_by_side


def _depthwise(w: Array, spec: ConvSpec, limit: int) -> Filtered:
    """One pass for every tap, which multiplies and adds: of many columns at once where those lie in one piece."""
    axes, weight = spec.axes, w[..., 0, :]
    rows = spec.stride[-1] == 1 and axes > 1
    if rows:
        weight = np.tile(weight, min(spec.out_size[-1], max(min(_TILED_BYTES, limit // 8) // weight.nbytes, 1)))
    places, taps = list(range(axes + 1 - rows)), list(range(axes + 1, 2 * axes + 1))
    last, wide = 2 * axes + 1, weight.shape[-1]

    def filtered(source: Array, out: Array, _: Memory) -> None:
        patches = of_input(spec, source.shape, source.dtype, out.shape[1:-1])
        shape, steps = patches.shape, patches.strides
        if rows:
            out = out.reshape(*out.shape[:axes], -1)
            shape, steps = (*shape[:axes], *spec.window, out.shape[-1]), (*steps[:axes], *steps[axes + 1 :])
        read = np.ndarray(shape, source.dtype, source, 0, steps)
        for begin in range(0, out.shape[-1], wide):
            part = out[..., begin : begin + wide]
            several = read[..., begin : begin + wide], [*places, *taps, last], weight[..., : part.shape[-1]]
            np.einsum(*several, [*taps, last], [*places, last], out=part)

    return filtered
