"""Winograd's filtering in NumPy, block by block of tiles, which stay in a processor's cache through all its steps.

A block is cut into tiles (tiles, slices, points, C), whose rows of points lie in one piece in the image, so that copies
are long. One product with the Kronecker square of a transform's matrix turns a tile of them, which takes less time than
forty passes. The spectrum is (tiles, points, slices, C): what is added up for a result, along a volume's depth or
along a signal, are neighbours, and one matrix product of rows of `terms * C` elements adds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from xpconv.cpu import team
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.results import new
from xpconv.cpu.winograd import SPACE, Transform, as_images, taps_of, transform_for
from xpconv.spec import Array, ConvSpec, Sizes

_BLOCK_BYTES = 9 << 19  # of a thread: with 3 MB, 3x3 64->64 on 56x56 took a fifth longer, and with 1.5 MB twice as long
_RUN = 16  # results side by side whose sums share the transformed tiles
_ALIASED = 2048  # bytes: rows a multiple of these apart take the same places of the cache
_APART = 16  # elements

Place = tuple[int, ...]


@dataclass(frozen=True)
class _Phase:
    """Of one axis of a dilated convolution every `dilation`-th element: a plain convolution of `results`."""

    first: int  # element of the input, of those that are read
    before: int  # elements of padding before it
    results: int


@dataclass(frozen=True)
class _Block:
    """Images and tile rows of one phase, and which slices of the input are added up to which slices of results."""

    phases: tuple[_Phase, _Phase]
    places: tuple[int, int]  # of the phases along their axes
    images: slice
    rows: range
    sources: list[Place]  # places along the leading axes of the padded input
    results: list[Place]


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of `x` (N, *size, C), around which there are zeros, and `w` (*window, C, F)."""
    y = new((spec.batch, *spec.out_size, spec.filters), x.dtype)
    if 0 in (*y.shape, spec.channels):
        y[...] = 0
        return y
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    plan = _plan(spec, limit, x.dtype.itemsize, team.thread_count())
    matrices = [plan.transform.flattened(matrix, x.dtype) for matrix in (plan.transform.input, plan.transform.output)]
    images, results = (x[:, :, np.newaxis], y[:, :, np.newaxis]) if spec.axes == 1 else (x, y)

    def work(blocks: Iterator[_Block]) -> None:
        with borrowed("blocks") as memory:
            for block in blocks:
                _filter(images, weight, plan, block, results, memory, matrices)

    with borrowed("weight") as held:
        weight = _weight(w, plan.transform, plan.terms, held)
        team.share(work, plan.blocks, plan.threads)
    return y


def workspace(spec: ConvSpec, itemsize: int, limit: int) -> int:
    """Bytes of the weight transformed, and of a block for each thread."""
    plan = _plan(spec, limit, itemsize, team.thread_count())
    weight = plan.transform.points * plan.transform.terms(spec.window) * spec.channels * spec.filters * itemsize
    return 2 * weight + plan.block_bytes * plan.threads


def _weight(w: Array, transform: Transform, terms: int, held: Memory) -> Array:
    """The weight transformed, (points, 1, terms C, F): the same for all slices."""
    taps, matrix = taps_of(w, transform), transform.flattened(transform.filter, w.dtype)
    *_, channels, filters = taps.shape
    made = held.take("weight", (transform.points, 1, terms * channels, filters), w.dtype)
    some = max(1, _PART // filters)  # channels of a part
    parts = [(term, slice(c, min(c + some, channels))) for term in range(terms) for c in range(0, channels, some)]

    def work(parts: Iterator[tuple[int, slice]]) -> None:
        for term, part in parts:
            into = made[:, 0, term * channels : (term + 1) * channels][:, part].reshape(len(made), -1)
            np.matmul(matrix, taps[term][:, part].reshape(taps.shape[1], -1), out=into)

    team.share(work, parts, team.thread_count() if w.size > _SHARED else 1)
    return made


_PART = 16_384  # elements of a weight that are transformed in one product
_SHARED = 50_000  # elements of a weight that take longer than waking a thread


# --- Which blocks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How a convolution is cut into blocks."""

    spec: ConvSpec  # signals as images
    transform: Transform
    terms: int  # slices that are added up to one of results
    run: int  # tiles one after another that share their sums' parts, of signals; 0 for images and volumes
    step: int  # elements from one row of tiles to the next: a signal's row is a run
    blocks: list[_Block]
    block_bytes: int
    threads: int  # that the limit lets have a block each


@lru_cache(maxsize=256)
def _plan(spec: ConvSpec, limit: int, itemsize: int, threads: int) -> _Plan:
    transform, terms = transform_for(spec), transform_for(spec).terms(spec.window)
    is_signal, spec = spec.axes == 1, as_images(spec)
    phases = [_phases(spec, axis) for axis in (spec.axes - 2, spec.axes - 1)]
    run = min(_RUN, -(-phases[0][0].results // transform.results)) if is_signal else 0
    leads = [([], [])] if spec.axes == SPACE else list(_leading(spec))
    made = run or max(1, *(len(results) for _, results in leads))
    sources = made + terms - 1
    step, tile = transform.results * max(run, 1), transform.points * itemsize
    across = -(-max(phase.results for phase in phases[1]) // transform.tile[1])
    tiles = tile * (2 * sources * spec.channels + made * 2 * spec.filters)
    cut = transform.edges[0] * transform.tile[1] * sources * spec.channels * itemsize
    row = across * (tiles + cut) + _APART * itemsize
    threads = max(1, min(threads, limit // row))
    rows = max(1, min(limit // threads, _BLOCK_BYTES) // row)
    pairs = list(product(enumerate(phases[0]), enumerate(phases[1])))
    per_image = -(-max(phase.results for phase in phases[0]) // step)
    total = spec.batch * per_image * len(pairs) * len(leads)
    rows = min(rows, -(-total // (threads * -(-total // (rows * threads)))))  # as many blocks for each thread
    blocks = [
        _Block((down, across), (at, by), images, part, *lead)
        for (at, down), (by, across) in pairs if down.results and across.results
        for images, part in _rows(spec.batch, -(-down.results // step), rows)
        for lead in leads
    ]  # fmt: skip
    return _Plan(spec, transform, terms, run, step, blocks, rows * row, min(threads, len(blocks)))


def _phases(spec: ConvSpec, axis: int) -> list[_Phase]:
    dilation, (before, _), results = spec.dilation[axis], spec.padding[axis], spec.out_size[axis]
    phases = []
    for place in range(dilation):
        padding = max(0, -(-(before - place) // dilation))
        phases.append(_Phase(place + padding * dilation - before, padding, -(-(results - place) // dilation)))
    return phases


def _leading(spec: ConvSpec) -> Iterator[tuple[list[Place], list[Place]]]:
    """Slices to read and slices that they make: runs along the last of the leading axes, or one by one."""
    sizes, window, dilation = (of[:-SPACE] for of in (spec.out_size, spec.window, spec.dilation))
    if len(sizes) == 1 and dilation == (1,):
        runs = -(-sizes[0] // _RUN)
        step = -(-sizes[0] // runs)
        for first in range(0, sizes[0], step):
            last = min(first + step, sizes[0])
            yield [(k,) for k in range(first, last + window[0] - 1)], [(k,) for k in range(first, last)]
        return
    for place in np.ndindex(*sizes):
        taps = (tuple(p + k * d for p, k, d in zip(place, tap, dilation, strict=True)) for tap in np.ndindex(*window))
        yield list(taps), [place]


def _rows(batch: int, per_image: int, rows: int) -> Iterator[tuple[slice, range]]:
    """Images and rows of tiles: several whole images, or some rows of each."""
    if rows >= per_image:
        images = rows // per_image
        for n in range(0, batch, images):
            yield slice(n, min(n + images, batch)), range(per_image)
        return
    for n in range(batch):
        for row in range(0, per_image, rows):
            yield slice(n, n + 1), range(row, min(row + rows, per_image))


# --- One block --------------------------------------------------------------------------------------------------------


def _filter(
    x: Array, weight: Array, plan: _Plan, block: _Block, y: Array, memory: Memory,
    matrices: list[Array],
) -> None:  # fmt: skip
    """A block's results, from the images to where they belong."""
    forward, back = matrices
    tiles = _tiles(_surrounded(x, plan, block, memory), plan, block)
    *lead, sources, _, _, channels = tiles.shape
    count, points, filters = math.prod(lead), plan.transform.points, y.shape[-1]
    cut = memory.take("cut", (count, sources, points, channels), x.dtype)
    cut.reshape(tiles.shape)[...] = tiles
    spectrum = _apart(memory, "spectrum", count, (points, sources, channels), x.dtype)
    np.matmul(forward, cut, out=spectrum.swapaxes(1, 2))
    made = sources - plan.terms + 1
    total = _apart(memory, "total", count, (points, made, filters), x.dtype)
    np.matmul(_windows(spectrum, plan.terms), weight, out=total.transpose(1, 2, 0, 3))
    parts = memory.take("cut", (count, made, len(back), filters), x.dtype)  # whose tiles are not needed any more
    np.matmul(back, total.swapaxes(1, 2), out=parts)
    _untile(parts.reshape(*lead, made, *plan.transform.tile, filters), plan, block, y)


def _surrounded(x: Array, plan: _Plan, block: _Block, memory: Memory) -> Array:
    """What the block reads, with zeros where that is beyond the images: (images, slices, rows, columns, C)."""
    spec, edges = plan.spec, plan.transform.edges
    dilation = spec.dilation[-SPACE:]
    tile_columns = -(-block.phases[1].results // plan.transform.tile[1])
    further = plan.terms - 1 if plan.run else 0  # of signals: tiles that are added up
    counts = [(len(block.rows) * plan.step - plan.transform.results) + edges[0] + further * plan.transform.results,
              (tile_columns - 1) * plan.transform.tile[1] + edges[1]]  # fmt: skip
    places = [
        _inside(phase, start, count, size, d)
        for phase, start, count, size, d in zip(
            block.phases, (block.rows.start * plan.step, 0), counts, spec.size[-SPACE:], dilation, strict=True
        )
    ]
    images = x[block.images]
    sources = [tuple(p - lo for p, (lo, _) in zip(place, spec.padding, strict=False)) for place in block.sources]
    if not sources:
        images, sources = images[:, np.newaxis], [(0,)]
    whole = memory.take("whole", (len(images), len(sources), *counts, x.shape[-1]), x.dtype)
    (to_rows, from_rows), (to_columns, from_columns) = places
    if any(to != slice(0, count) for to, count in zip((to_rows, to_columns), counts, strict=True)):
        whole[...] = 0
    sizes = images.shape[1 : 1 + len(sources[0])]
    for k, place in enumerate(sources):
        if all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
            whole[:, k, to_rows, to_columns] = images[(slice(None), *place, from_rows, from_columns)]
        else:
            whole[:, k] = 0
    return whole


def _inside(phase: _Phase, start: int, count: int, size: int, dilation: int) -> tuple[slice, slice]:
    """Of `count` elements of a padded phase from `start` on: which lie in the image, and where they do there."""
    there = max(0, -(-(size - phase.first) // dilation))  # elements of the phase in the image
    low = min(max(phase.before - start, 0), count)
    high = max(min(phase.before + there - start, count), low)
    first = phase.first + (start + low - phase.before) * dilation
    return slice(low, high), slice(first, first + (high - low) * dilation, dilation)


def _tiles(whole: Array, plan: _Plan, block: _Block) -> Array:
    """A view of overlapping tiles (images, rows, columns, slices, *edges, C)."""
    transform = plan.transform
    (tall, wide), edges = transform.edges, transform.tile
    image, piece, vertical, horizontal, channel = whole.strides
    across = -(-block.phases[1].results // edges[1])
    sources = whole.shape[1]
    if plan.run:
        piece, sources = vertical * transform.results, plan.run + plan.terms - 1
    return np.lib.stride_tricks.as_strided(
        whole,
        (len(whole), len(block.rows), across, sources, tall, wide, whole.shape[-1]),
        (image, vertical * plan.step, horizontal * edges[1], piece, vertical, horizontal, channel),
        writeable=False,
    )


def _apart(memory: Memory, name: str, count: int, shape: Sizes, dtype: np.dtype) -> Array:
    """An array (count, *shape) whose rows do not all take the same places of the cache."""
    size = math.prod(shape)
    aliased = size * dtype.itemsize % _ALIASED == 0
    return memory.take(name, (count, size + _APART * aliased), dtype)[:, :size].reshape(count, *shape)


def _windows(spectrum: Array, terms: int) -> Array:
    """A view of (tiles, points, slices, C) as (points, slices of results, tiles, terms C)."""
    count, points, sources, channels = spectrum.shape
    tile, point, piece, channel = spectrum.strides
    return np.lib.stride_tricks.as_strided(
        spectrum, (points, sources - terms + 1, count, terms * channels), (point, piece, tile, channel)
    )


def _untile(parts: Array, plan: _Plan, block: _Block, y: Array) -> None:
    """Results (images, rows, columns, slices, *tile, F) put where they belong; what lies beyond the end is dropped."""
    space = (slice(place, None, d) for place, d in zip(block.places, plan.spec.dilation[-SPACE:], strict=True))
    begin, end = block.rows.start * plan.step, block.rows.stop * plan.step
    images, down, across, made, tall, wide, filters = parts.shape
    if block.results:
        first, last = block.results[0], block.results[-1]
        lead = (*first[:-1], slice(first[-1], last[-1] + 1))
    else:
        lead, y = (slice(None),), y[:, np.newaxis]
    y = y[(block.images, *lead, *space)][:, :, begin:end]
    if plan.run:
        parts = parts.reshape(images, 1, down * made * tall, 1, filters)
    else:
        parts = parts.transpose(0, 3, 1, 4, 2, 5, 6)
    rows, columns = y.shape[2:4]
    if parts.ndim > y.ndim and (rows, columns) == (down * tall, across * wide):
        picture, piece, vertical, horizontal, channel = y.strides
        strides = (picture, piece, vertical * tall, vertical, horizontal * wide, horizontal, channel)
        np.lib.stride_tricks.as_strided(y, parts.shape, strides)[...] = parts
        return
    y[...] = parts.reshape(images, y.shape[1], -1, across * wide, filters)[:, :, :rows, :columns]
