"""Where NumPy's Winograd filtering of a block copies from and to, and what it multiplies: found once for a plan.

A thread that computes indices holds the interpreter lock, and another that comes back from NumPy meanwhile falls asleep
until it is woken, which takes longer than the indices. With all known two threads took 0.78 to 0.93 of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from xpconv.cpu.copies import dense_strides, runs_of
from xpconv.cpu.winograd import SPACE
from xpconv.cpu.winograd_plan import Block, Phase, Piece, Place, Plan, apart
from xpconv.spec import Array, Sizes


class View(NamedTuple):
    """Where elements lie in memory: bytes to the first, and to the next along every axis."""

    shape: Sizes
    offset: int
    strides: Sizes
    item: np.dtype | None = None  # of several elements

    def of(self, memory: Array) -> Array:
        """The view; NumPy's `as_strided` takes longer."""
        dtype = memory.dtype if self.item is None else self.item
        return np.ndarray(self.shape, dtype, memory, self.offset, self.strides)


@dataclass(frozen=True)
class Reading:
    """A piece with zeros around it, cut into tiles."""

    size: int  # elements of its memory
    margins: list[View]  # of that, with zeros
    sources: list[tuple[Any, View]]  # an index of the images, and where what is there goes to
    tiles: View  # which overlap
    cut: View  # where they are copied to


@dataclass(frozen=True)
class Part:
    """What is a block's own, of the arrays of a group: columns of its matrices."""

    readings: list[Reading]
    cut: View  # of one: elements of tiles
    spectrum: View  # of the other: their points
    total: View  # of one: sums of products, a row for each point
    parts: View  # of the other: results of tiles
    results: list[tuple[View, View]]  # of the other, and where in the result they belong


@dataclass(frozen=True)
class Steps:
    """What the arrays of a group of blocks are, within two memories that all steps take in turn."""

    one_size: int
    other_size: int
    whole_size: int  # of what a block reads
    parts: list[Part]
    spare: list[View]  # of the other: where the last windows end, of slices that make no results
    windows: View  # of the other: what the weights are multiplied with
    sums: View  # of one: their products


@lru_cache(maxsize=4096)
def steps_of(plan: Plan, group: range) -> Steps:
    """Of the blocks with these numbers, which all have as many slices."""
    spec, transform, terms, item = plan.spec, plan.transform, plan.terms, plan.itemsize
    blocks = plan.blocks[group.start : group.stop]
    (sources, made), channels, filters = plan.slices(blocks[0]), spec.channels, spec.filters
    points, elements, results = transform.points, math.prod(transform.edges), math.prod(transform.tile)
    *ends, count = accumulate(sum(math.prod(piece.shape) for piece in block.pieces) for block in blocks)
    before, after = count * sources * channels, count * made * filters  # elements of a point
    spare = (terms - 1) * channels
    step, step_after = apart(before + spare, item), apart(after, item)
    one = _blank((max(elements * step, points * step_after),), item)
    other = _blank((max(points * step, results * step_after),), item)
    cut, spectrum = _rows(one, elements, step), _rows(other, points, step)
    total, made_tiles = _rows(one, points, step_after), _rows(other, results, step_after)

    def part(block: Block, begin: int, end: int) -> Part:
        columns, columns_after = (slice(begin * n, end * n) for n in (sources * channels, made * filters))
        tiles = cut[:, columns].reshape(elements, end - begin, sources, channels)
        back = made_tiles[:, columns_after].reshape(results, end - begin, made, filters)
        *inner, last = accumulate(math.prod(piece.shape) for piece in block.pieces)
        pieces = [(piece, slice(*span)) for piece, *span in zip(block.pieces, (0, *inner), (*inner, last), strict=True)]
        return Part(
            [_reading(plan, piece, block, tiles[:, span], one) for piece, span in pieces],
            _view(cut[:, columns], one), _view(spectrum[:, columns], other),
            _view(total[:, columns_after], one), _view(made_tiles[:, columns_after], other),
            [pair for piece, span in pieces for pair in _results(back[:, span], other, plan, piece, block)],
        )  # fmt: skip

    parts = [part(*each) for each in zip(blocks, (0, *ends), (*ends, count), strict=True)]
    return Steps(
        one.size, other.size, max(reading.size for part in parts for reading in part.readings), parts,
        [_view(spectrum[:, before : before + spare], other)] if spare else [],
        _windows(points, step * item, channels * item, count * sources, terms, made, item),
        _view(total[:, :after].reshape(points, -1, min(made, terms), filters).swapaxes(1, 2), one),
    )  # fmt: skip


def _blank(shape: Sizes, itemsize: int) -> Array:
    """An array without memory: its views tell where elements lie."""
    return np.lib.stride_tricks.as_strided(np.empty(1, f"V{itemsize}"), shape, dense_strides(shape, itemsize))


def _view(view: Array, whole: Array) -> View:
    offset = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return View(view.shape, offset, view.strides)


def _in_items(itemsize: int, source: View, target: View) -> tuple[View, View]:
    """Views of the same shape, one of which is copied to the other, with what lies side by side as one item."""
    runs = runs_of(source.shape, itemsize, source.strides, target.strides)
    if runs is None:
        return source, target

    def seen(view: View) -> View:
        return View(view.shape[: runs.axes], view.offset, view.strides[: runs.axes], runs.item)

    return seen(source), seen(target)


def _rows(memory: Array, count: int, step: int) -> Array:
    return memory[: count * step].reshape(count, step)


# --- From the images --------------------------------------------------------------------------------------------------


def _reading(plan: Plan, piece: Piece, block: Block, cut: Array, one: Array) -> Reading:
    """What the piece reads, in memory (images, rows, columns, slices, C), with zeros beyond the images."""
    spec, (tall, wide) = plan.spec, plan.transform.edges
    images, down, across = piece.shape
    sources, _ = plan.slices(block)
    further = (sources - 1) * plan.transform.results if plan.run else 0  # of signals, whose slices are tiles
    step, step_across = plan.steps
    counts = (down - 1) * step + further + tall, (across - 1) * step_across + wide
    starts = piece.rows.start * step, piece.columns.start * step_across
    (to_rows, from_rows), (to_columns, from_columns) = (
        _inside(*axis)
        for axis in zip(piece.phases, starts, counts, spec.size[-SPACE:], spec.dilation[-SPACE:], strict=True)
    )
    whole = _blank((images, *counts, 1 if plan.run else sources, spec.channels), plan.itemsize)
    inner, there = whole[:, to_rows], whole[:, to_rows, to_columns]
    margins = [
        whole[:, : to_rows.start], whole[:, to_rows.stop :], inner[:, :, : to_columns.start],
        inner[:, :, to_columns.stop :], there[:, :, :, len(block.sources) :],
    ]  # fmt: skip
    read = []
    for slices, at in _runs(block.sources, spec.padding, spec.size):
        if at is None:
            margins.append(there[:, :, :, slices])
        elif at:
            index = (piece.images, *at, from_rows, from_columns)
            read.append((index, _view(np.moveaxis(there[:, :, :, slices], 3, 1), whole)))
        else:
            read.append(((piece.images, from_rows, from_columns), _view(there[:, :, :, 0], whole)))
    shape = *plan.transform.edges, *piece.shape, sources, spec.channels
    empty = there.size == 0
    return Reading(
        whole.size,
        [_view(margin, whole) for margin in margins if margin.size],
        [] if empty else read,
        *_in_items(plan.itemsize, _tiles(whole, plan, shape), _view(cut.reshape(shape), one)),
    )


def _runs(sources: list[Place], padding: Any, size: Sizes) -> Iterator[tuple[slice, Place | None]]:
    """Sources after each other along the last of the leading axes, and where they lie; None where nothing does."""
    begin = 0
    places = [tuple(p - before for p, (before, _) in zip(place, padding, strict=False)) for place in sources]
    there = [all(0 <= p < n for p, n in zip(at, size, strict=False)) for at in places]
    for end in range(1, len(places) + 1):
        if end < len(places) and there[end] == there[begin]:
            last, at = places[end - 1], places[end]
            if not there[end] or (at[:-1], at[-1]) == (last[:-1], last[-1] + 1):
                continue
        first, last = places[begin], places[end - 1]
        at = (*first[:-1], slice(first[-1], last[-1] + 1)) if first else ()
        yield slice(begin, end), at if there[begin] else None
        begin = end


def _inside(phase: Phase, start: int, count: int, size: int, dilation: int) -> tuple[slice, slice]:
    """Of `count` elements of a padded phase from `start` on: which lie in the image, and where they do there."""
    there = max(0, -(-(size - phase.first) // dilation))  # elements of the phase in the image
    low = min(max(phase.before - start, 0), count)
    high = max(min(phase.before + there - start, count), low)
    first = phase.first + (start + low - phase.before) * dilation
    return slice(low, high), slice(first, first + (high - low) * dilation, dilation)


def _tiles(whole: Array, plan: Plan, shape: Sizes) -> View:
    """Overlapping tiles (*edges, images, rows, columns, slices, C)."""
    image, vertical, horizontal, slice_, channel = whole.strides
    further = vertical * plan.transform.results if plan.run else slice_
    down, across = plan.steps
    return View(shape, 0, (vertical, horizontal, image, vertical * down, horizontal * across, further, channel))


def _windows(points: int, step: int, slice_: int, slices: int, terms: int, made: int, item: int) -> View:
    """Points and slices of all tiles so far apart: (points, first slices, windows, terms C).

    Those whose first slices are a multiple of `terms` apart are rows of one matrix, those of different tiles too; of
    the last of a tile, which reach into the next, nothing is used. Where a tile has few results, each has its matrix.
    """
    firsts, further = (made, made + terms - 1) if made <= terms else (terms, terms)
    shape = (points, firsts, slices // further, terms * slice_ // item)
    return View(shape, 0, (step, slice_, further * slice_, item))


# --- To the results ---------------------------------------------------------------------------------------------------


def _results(parts: Array, memory: Array, plan: Plan, piece: Piece, block: Block) -> Iterator[tuple[View, View]]:
    """Results (of a tile, tiles, slices, F), and where they belong; what lies beyond the end is dropped."""
    spec, (tall, wide), run = plan.spec, plan.transform.tile, max(plan.run, 1)
    whole = _blank((spec.batch, *spec.out_size, spec.filters), plan.itemsize)
    space = (slice(place, None, d) for place, d in zip(piece.places, spec.dilation[-SPACE:], strict=True))
    first, last = block.results[0], block.results[-1]
    lead = (*first[:-1], slice(first[-1], last[-1] + 1)) if first else (np.newaxis,)
    steps = zip((piece.rows, piece.columns), (plan.step, wide), strict=True)
    y = whole[(piece.images, *lead, *space)][:, :, *(slice(of.start * step, of.stop * step) for of, step in steps)]
    parts = parts.reshape(tall, wide, *piece.shape, *parts.shape[2:])[..., np.newaxis, :]
    slices, following = (6, 5) if plan.run else (5, 6)  # a signal's slices are tiles that follow each other
    parts = parts.transpose(2, slices, 3, following, 0, 4, 1, 7)[:, : y.shape[1]]
    image, slice_, row, column, map_ = y.strides
    strides = (image, slice_, row * tall * run, row * tall, row, column * wide, column, map_)
    for top, rows in _sections(y.shape[2], run, tall):
        for left, (columns, _, within) in _sections(y.shape[3], 1, wide):
            part = parts[(slice(None), slice(None), *rows, columns, within)]
            place = _view(y[:, :, top:, left:], whole)._replace(shape=part.shape, strides=strides)
            yield _in_items(plan.itemsize, _view(part, memory), place)


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
