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

import numpy as np

from xpconv.cpu import blas, team
from xpconv.cpu.kept import MOST_BYTES, Kept
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.results import new
from xpconv.cpu.winograd import Transform, taps_of
from xpconv.cpu.winograd_plan import LINE, Block, apart, plan_of
from xpconv.cpu.winograd_steps import Steps, steps_of
from xpconv.spec import Array, ConvSpec


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
    images = x[:, :, np.newaxis] if spec.axes == 1 else x

    def work(blocks: Iterator[Block]) -> None:
        with borrowed("blocks") as memory:
            for block in blocks:
                _filter(images, weight, steps_of(plan, block), y, memory, matrices)

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


_kept = Kept()
_PART = 4096  # elements of a weight that are transformed in one product
_SHARED = 50_000  # elements of a weight that take longer than waking a thread


# --- One block --------------------------------------------------------------------------------------------------------


def _filter(x: Array, weight: Array, steps: Steps, y: Array, memory: Memory, matrices: list[Array]) -> None:
    """A block's results, from the images to where they belong."""
    forward, back = matrices
    one, other = (memory.take(*of, x.dtype) for of in (("one", (steps.one_size,)), ("other", (steps.other_size,))))
    whole = memory.take("whole", (steps.whole_size,), x.dtype)
    for reading in steps.readings:
        for margin in reading.margins:
            margin.of(whole)[...] = 0
        for index, there in reading.sources:
            there.of(whole)[...] = x[index]
        reading.cut.of(one)[...] = reading.tiles.of(whole)
    for spare in steps.spare:
        spare.of(other)[...] = 0
    np.matmul(forward, steps.cut.of(one), out=steps.spectrum.of(other))
    np.matmul(steps.windows.of(other), weight, out=steps.sums.of(one))
    np.matmul(back, steps.total.of(one), out=steps.parts.of(other))
    for part, place in steps.results:
        place.of(y)[...] = part.of(other)
