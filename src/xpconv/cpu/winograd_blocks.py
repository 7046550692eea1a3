"""Winograd's filtering in NumPy, block by block of tiles, which stay in a processor's cache through all its steps.

A block is cut into tiles, element by element: (elements, tiles, slices, C). One product with the Kronecker square of a
transform's matrix turns all of them at once, which takes less time than forty passes, and than a product for each tile.
The spectrum is (points, tiles, slices, C): what is added up for a result, along a volume's depth or along a signal, are
neighbours, and one matrix product with rows of `terms * C` elements adds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import accumulate

import numpy as np

from xpconv.cpu import blas, team
from xpconv.cpu.kept import MOST_BYTES, Kept
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.results import new
from xpconv.cpu.winograd import SPACE, Transform, taps_of
from xpconv.cpu.winograd_plan import LINE, Block, Phase, Piece, Plan, apart, plan_of
from xpconv.spec import Array, ConvSpec, Sizes


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of `x` (N, *size, C), around which there are zeros, and `w` (*window, C, F)."""
    y = new((spec.batch, *spec.out_size, spec.filters), x.dtype)
    if 0 in (*y.shape, spec.channels):
        y[...] = 0
        return y
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    plan = plan_of(spec, limit, x.dtype.itemsize, team.thread_count())
    _, *matrices = _matrices(plan.transform, x.dtype)
    images, results = (x[:, :, np.newaxis], y[:, :, np.newaxis]) if spec.axes == 1 else (x, y)

    def work(blocks: Iterator[Block]) -> None:
        with borrowed("blocks") as memory:
            for block in blocks:
                _filter(images, weight, plan, block, results, memory, matrices)

    with blas.products_by_one(), borrowed("weight") as held:  # a woken thread of BLAS would keep one of ours waiting
        weight = _weight(w, plan.transform, held)
        team.share(work, plan.blocks, plan.threads)
    return y


def workspace(spec: ConvSpec, itemsize: int, limit: int) -> int:
    """Bytes of the weight transformed, and of a block for each thread."""
    plan = plan_of(spec, limit, itemsize, team.thread_count())
    weight = plan.transform.points * plan.transform.terms(spec.window) * spec.channels * spec.filters * itemsize
    return 2 * weight + 2 * LINE * plan.transform.points + plan.block_bytes * plan.threads


@cache
def _matrices(transform: Transform, dtype: np.dtype) -> tuple[Array, Array, Array]:
    """What turns the taps of a window, the elements of a tile, and the points of a result."""
    return (
        transform.flattened(transform.filter, dtype),
        transform.of_elements(dtype),
        transform.flattened(transform.output, dtype),
    )


def _weight(w: Array, transform: Transform, held: Memory) -> Array:
    """The weight transformed, (points, 1, terms C, F): the same for all slices."""
    size = transform.terms(w.shape[:-2]) * math.prod(w.shape[-2:])
    shape = transform.points, apart(size, w.itemsize)

    def made_of(values: Array) -> Array:
        made = np.empty(shape, w.dtype)
        _transform(values, transform, made)
        return made

    made = _kept.of(w, transform, made_of) if w.itemsize * (math.prod(shape) + w.size) <= MOST_BYTES else None
    if made is None:
        made = held.take("weight", shape, w.dtype)
        _transform(w, transform, made)
    return made[:, :size].reshape(transform.points, 1, -1, w.shape[-1])


def _transform(w: Array, transform: Transform, into: Array) -> None:
    taps, matrix = taps_of(w, transform), _matrices(transform, w.dtype)[0]
    terms, _, channels, filters = taps.shape
    some = max(1, _PART // filters)  # channels of a part
    parts = [(term, c, min(c + some, channels)) for term in range(terms) for c in range(0, channels, some)]

    def work(parts: Iterator[tuple[int, int, int]]) -> None:
        for term, begin, end in parts:
            part = into[:, (term * channels + begin) * filters : (term * channels + end) * filters]
            np.matmul(matrix, taps[term, :, begin:end].reshape(taps.shape[1], -1), out=part)

    team.share(work, parts, team.thread_count() if w.size > _SHARED else 1)


def _rows_of(memory: Array, count: int, step: int) -> Array:
    return memory[: count * step].reshape(count, step)


_kept = Kept()
_PART = 4096  # elements of a weight that are transformed in one product
_SHARED = 50_000  # elements of a weight that take longer than waking a thread


# --- One block --------------------------------------------------------------------------------------------------------


def _filter(
    x: Array, weight: Array, plan: Plan, block: Block, y: Array, memory: Memory,
    matrices: list[Array],
) -> None:  # fmt: skip
    """A block's results, from the images to where they belong."""
    forward, back = matrices
    (sources, made), terms, channels, filters = plan.slices(block), plan.terms, x.shape[-1], y.shape[-1]
    (points, elements), results = forward.shape, len(back)
    *ends, count = accumulate(math.prod(piece.shape) for piece in block.pieces)
    before, after = count * sources * channels, count * made * filters  # elements of a point
    spare = (terms - 1) * channels  # where the last windows end, of slices that make no results
    step, step_after = apart(before + spare, x.itemsize), apart(after, x.itemsize)
    one = memory.take("one", (max(elements * step, points * step_after),), x.dtype)
    other = memory.take("other", (max(points * step, results * step_after),), x.dtype)

    cut = _rows_of(one, elements, step)[:, :before]
    tiles = cut.reshape(elements, count, sources, channels)
    for piece, begin, end in zip(block.pieces, (0, *ends), (*ends, count), strict=True):
        whole = _surrounded(x, plan, piece, block, memory)
        shape = *plan.transform.edges, *piece.shape, sources, channels
        tiles[:, begin:end].reshape(shape)[...] = _tiles(whole, plan, shape)
    spectrum = _rows_of(other, points, step)
    if spare:
        spectrum[:, before : before + spare] = 0
    np.matmul(forward, cut, out=spectrum[:, :before])
    total = _rows_of(one, points, step_after)[:, :after]
    windows = _windows(other, points, step, count * sources, channels, terms, made)
    np.matmul(windows, weight, out=total.reshape(points, -1, min(made, terms), filters).swapaxes(1, 2))
    parts = _rows_of(other, results, step_after)[:, :after]
    np.matmul(back, total, out=parts)
    tiles = parts.reshape(results, count, made, filters)
    for piece, begin, end in zip(block.pieces, (0, *ends), (*ends, count), strict=True):
        _put(tiles[:, begin:end], plan, piece, block, y)


def _surrounded(x: Array, plan: Plan, piece: Piece, block: Block, memory: Memory) -> Array:
    """What the piece reads, with zeros where that is beyond the images: (images, rows, columns, slices, C)."""
    spec, (tall, wide) = plan.spec, plan.transform.edges
    images, down, across = piece.shape
    sources, _ = plan.slices(block)
    further = (sources - 1) * plan.transform.results if plan.run else 0  # of signals, whose slices are tiles
    counts = (down - 1) * plan.step + further + tall, (across - 1) * plan.transform.tile[1] + wide
    starts = piece.rows.start * plan.step, 0
    (to_rows, from_rows), (to_columns, from_columns) = (
        _inside(*axis)
        for axis in zip(piece.phases, starts, counts, spec.size[-SPACE:], spec.dilation[-SPACE:], strict=True)
    )
    whole = memory.take("whole", (images, *counts, 1 if plan.run else sources, x.shape[-1]), x.dtype)
    inner, there = whole[:, to_rows], whole[:, to_rows, to_columns]
    for margin in (
        whole[:, : to_rows.start], whole[:, to_rows.stop :], inner[:, :, : to_columns.start],
        inner[:, :, to_columns.stop :], there[:, :, :, len(block.sources) :],
    ):  # fmt: skip
        if margin.size:
            margin[...] = 0
    for k, place in enumerate(block.sources):
        at = tuple(p - before for p, (before, _) in zip(place, spec.padding, strict=False))
        if all(0 <= p < n for p, n in zip(at, spec.size, strict=False)):
            there[:, :, :, k] = x[(piece.images, *at, from_rows, from_columns)]
        else:
            there[:, :, :, k] = 0
    return whole


def _inside(phase: Phase, start: int, count: int, size: int, dilation: int) -> tuple[slice, slice]:
    """Of `count` elements of a padded phase from `start` on: which lie in the image, and where they do there."""
    there = max(0, -(-(size - phase.first) // dilation))  # elements of the phase in the image
    low = min(max(phase.before - start, 0), count)
    high = max(min(phase.before + there - start, count), low)
    first = phase.first + (start + low - phase.before) * dilation
    return slice(low, high), slice(first, first + (high - low) * dilation, dilation)


def _tiles(whole: Array, plan: Plan, shape: Sizes) -> Array:
    """A view of overlapping tiles (*edges, images, rows, columns, slices, C)."""
    image, vertical, horizontal, slice_, channel = whole.strides
    further = vertical * plan.transform.results if plan.run else slice_
    across = horizontal * plan.transform.tile[1]
    return _view(whole, shape, (vertical, horizontal, image, vertical * plan.step, across, further, channel))


def _windows(
    spectrum: Array, points: int, step: int, slices: int, channels: int, terms: int, made: int
) -> Array:  # fmt: skip
    """A view of points a step apart, (slices of all tiles, C) each: (points, first slices, windows, terms C).

    Those whose first slices are a multiple of `terms` apart are rows of one matrix, those of different tiles too; of
    the last of a tile, which reach into the next, nothing is used. Where a tile has few results, each has its matrix.
    """
    size = spectrum.itemsize
    firsts, further = (made, made + terms - 1) if made <= terms else (terms, terms)
    strides = (step * size, channels * size, further * channels * size, size)
    return _view(spectrum, (points, firsts, slices // further, terms * channels), strides)


def _view(whole: Array, shape: Sizes, strides: Sizes) -> Array:
    """Of an array in one piece; NumPy's `as_strided` takes longer, and keeps the other threads waiting."""
    return np.ndarray(shape, whole.dtype, whole, strides=strides)


def _put(parts: Array, plan: Plan, piece: Piece, block: Block, y: Array) -> None:
    """Results (of a tile, tiles, slices, F) put where they belong; what lies beyond the end is dropped."""
    (tall, wide), run = plan.transform.tile, max(plan.run, 1)
    space = (slice(place, None, d) for place, d in zip(piece.places, plan.spec.dilation[-SPACE:], strict=True))
    first, last = block.results[0], block.results[-1]
    lead = (*first[:-1], slice(first[-1], last[-1] + 1)) if first else (np.newaxis,)
    y = y[(piece.images, *lead, *space)][:, :, piece.rows.start * plan.step : piece.rows.stop * plan.step]
    parts = parts.reshape(tall, wide, *piece.shape, *parts.shape[2:])[..., np.newaxis, :]
    slices, following = (6, 5) if plan.run else (5, 6)  # a signal's slices are tiles that follow each other
    parts = parts.transpose(2, slices, 3, following, 0, 4, 1, 7)[:, : y.shape[1]]
    image, slice_, row, column, map_ = y.strides
    strides = (image, slice_, row * tall * run, row * tall, row, column * wide, column, map_)
    for top, rows in _sections(y.shape[2], run, tall):
        for left, (columns, _, within) in _sections(y.shape[3], 1, wide):
            part = parts[(slice(None), slice(None), *rows, columns, within)]
            np.lib.stride_tricks.as_strided(y[:, :, top:, left:], part.shape, strides)[...] = part


def _sections(count: int, run: int, each: int) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """Of `count` results, where those of whole runs of tiles begin, of whole tiles, and of a part, and which they are.

    They are told as runs, tiles of a run, and results of a tile.
    """
    runs, further = divmod(count, run * each)
    tiles, left = divmod(further, each)
    if runs:
        yield 0, (slice(runs), slice(run), slice(each))
    if tiles:
        yield count - further, (slice(runs, runs + 1), slice(tiles), slice(each))
    if left:
        yield count - left, (slice(runs, runs + 1), slice(tiles, tiles + 1), slice(left))
