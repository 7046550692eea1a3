"""Winograd's filtering in NumPy, block by block of tiles, which stay in a processor's cache through all its steps.

A block is cut into tiles, element by element: (elements, tiles, slices, C). One product with the Kronecker square of a
transform's matrix turns all of them at once, which takes less time than forty passes, and than a product for each tile.
The spectrum is (points, tiles, slices, C): what is added up for a result, along a volume's depth or along a signal, are
neighbours, and one matrix product with rows of `terms * C` elements adds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from xpconv.cpu import blas, team
from xpconv.cpu.entries import MOST_BYTES
from xpconv.cpu.kept import Kept
from xpconv.cpu.lines import LINE
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.planes import finite
from xpconv.cpu.results import new
from xpconv.cpu.winograd import Transform, taps_of
from xpconv.cpu.winograd_plan import Plan, apart, plan_of
from xpconv.cpu.winograd_steps import Part, steps_of
from xpconv.spec import Array, ConvSpec


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of `x` (N, *size, C), around which there are zeros, and `w` (*window, C, F)."""
    return _conv(x, w, spec, limit)


def conv_if_finite(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array | None:
    """The same; None where a value of a tile is not finite, which is looked at while the tile is close."""
    seen: list[bool] = []
    y = _conv(x, w, spec, limit, seen)
    return y if all(seen) else None


def _conv(x: Array, w: Array, spec: ConvSpec, limit: int, seen: list[bool] | None = None) -> Array:
    y = new((spec.batch, *spec.out_size, spec.filters), x.dtype)
    if 0 in (*y.shape, spec.channels):
        y[...] = 0
        return y
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    plan = plan_of(spec, limit, x.dtype.itemsize, team.thread_count())
    images = x[:, :, np.newaxis] if spec.axes == 1 else x
    with blas.products_by_one(), borrowed("weight") as held:  # a woken thread of BLAS would keep one of ours waiting
        layer = _Layer(images, _weight(w, plan.transform, held), plan, y, seen)
        (_by_stages if plan.together > 1 else _by_groups)(layer)
    return y


@dataclass(frozen=True)
class _Layer:
    """What is computed."""

    x: Array
    weight: Array
    plan: Plan
    y: Array
    seen: list[bool] | None  # whether values are finite, of every block, where that is asked


def _by_groups(layer: _Layer) -> None:
    """Every thread takes whole groups through all their stages."""

    def work(groups: Iterator[range]) -> None:
        with borrowed("blocks") as memory:
            for group in groups:
                stages = _Stages(layer, group, memory)
                stages.read(stages.steps.parts, memory)
                stages.multiply([slice(None)])
                stages.write(stages.steps.parts)

    team.share(work, layer.plan.groups, layer.plan.threads)


def _by_stages(layer: _Layer) -> None:
    """Threads share every stage of a group, its products by points: each reads a part of the weight, once."""
    plan, points = layer.plan, layer.plan.transform.points
    each = -(-points // (_TURNS * plan.threads))
    turns = [slice(point, point + each) for point in range(0, points, each)]
    with borrowed("group") as memory:
        for group in plan.groups:
            stages = _Stages(layer, group, memory)

            def read(parts: Iterator[Part], stages: _Stages = stages) -> None:
                with borrowed("blocks") as own:
                    stages.read(parts, own)

            team.share(read, stages.steps.parts, plan.threads)
            team.share(stages.multiply, turns, plan.threads)
            team.share(stages.write, stages.steps.parts, plan.threads)


def is_within(spec: ConvSpec, itemsize: int, limit: int) -> bool:
    """Whether a block of one row of tiles is."""
    return plan_of(spec, limit, itemsize, 1).block_bytes <= limit


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
_TURNS = 3  # of a thread, of points: one that begins late takes fewer
_PART = 4096  # elements of a weight that are transformed in one product
_SHARED = 50_000  # elements of a weight that take longer than waking a thread


# --- One group of blocks ----------------------------------------------------------------------------------------------


class _Stages:
    """From the images to the results, in the memory that a group of blocks shares."""

    def __init__(self, layer: _Layer, group: range, memory: Memory) -> None:
        self.layer, self.steps, dtype = layer, steps_of(layer.plan, group), layer.x.dtype
        _, self.forward, self.back = _matrices(layer.plan.transform, dtype)
        self.one = memory.take("one", (self.steps.one_size,), dtype)
        self.other = memory.take("other", (self.steps.other_size,), dtype)
        for spare in self.steps.spare:
            spare.of(self.other)[...] = 0

    def read(self, parts: Iterable[Part], memory: Memory) -> None:
        """The tiles, and their points."""
        whole = memory.take("whole", (self.steps.whole_size,), self.one.dtype)
        for part in parts:
            for reading in part.readings:
                for margin in reading.margins:
                    margin.of(whole)[...] = 0
                for index, there in reading.sources:
                    there.of(whole)[...] = self.layer.x[index]
                reading.cut.of(self.one)[...] = reading.tiles.of(whole)
            np.matmul(self.forward, part.cut.of(self.one), out=part.spectrum.of(self.other))

    def multiply(self, turns: Iterable[slice]) -> None:
        """The products of some points."""
        windows, sums = self.steps.windows.of(self.other), self.steps.sums.of(self.one)
        for points in turns:
            np.matmul(windows[points], self.layer.weight[points], out=sums[points])

    def write(self, parts: Iterable[Part]) -> None:
        """The results, put where they belong."""
        for part in parts:
            made = part.parts.of(self.other)
            np.matmul(self.back, part.total.of(self.one), out=made)
            if self.layer.seen is not None:
                self.layer.seen.append(finite(made))
            for some, place in part.results:
                place.of(self.layer.y)[...] = some.of(self.other)
