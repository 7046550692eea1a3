"""Sliding windows over an axis in blocks: which elements the windows of each chunk read, and which windows reach it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import ceil, prod
from typing import NamedTuple

from xpconv.chunks.borders import padded_part
from xpconv.chunks.runs import Interval, Part, intervals_of, length_of, part_of
from xpconv.spec import ConvSpec, PoolSpec, Sizes


class Reading(NamedTuple):
    """What the windows of one chunk of the result read of one axis."""

    part: Part
    size: int  # elements gathered
    padding: tuple[int, int]  # constant padding that is left for them
    start: int  # position of the first element that is gathered


class Reach(NamedTuple):
    """The results whose windows reach one chunk of one axis: the geometry of an adjoint."""

    part: Part  # of the results; empty where no window reaches
    results: Interval
    size: int  # of the chunk
    padding: tuple[int, int]  # around the chunk, for these windows alone: negative padding crops


def result_edges(spec: ConvSpec | PoolSpec, axis: int, edges: Sizes) -> Sizes:
    """Where to cut the results, so that each belongs to the block that holds the middle of its window."""
    out, step = spec.out_size[axis], spec.stride[axis]
    middle = (spec.reach[axis] - 1) // 2 - spec.padding[axis][0]
    inner = {-(-(edge - middle) // step) for edge in edges[1:-1]}
    return (0, *sorted(cut for cut in inner if 0 < cut < out), out)


def readings(spec: ConvSpec | PoolSpec, axis: int, edges: Sizes, results: Sizes) -> tuple[Reading, ...]:
    """What the results between the edges `results` read of an axis in blocks."""
    return tuple(_reading(spec, axis, edges, *interval) for interval in intervals_of(results))


def _reading(spec: ConvSpec | PoolSpec, axis: int, edges: Sizes, first_result: int, stop_result: int) -> Reading:
    n, step, (before, after) = spec.size[axis], spec.stride[axis], spec.padding[axis]
    first = first_result * step - before
    stop = (stop_result - 1) * step + spec.reach[axis] - before
    if spec.padding_mode not in ("zeros", "constant"):
        part = padded_part(first, stop, edges, spec.padding_mode)
        return Reading(part, length_of(part), (0, 0), first)
    start, end = min(max(first, 0), n), max(min(stop, n), 0)
    left = min(stop, 0) - first if first < 0 else 0
    right = min(stop, n + after) - max(first, n)  # what `ceil_mode` reads beyond the padding is none
    return Reading(part_of(start, end, edges), max(end - start, 0), (left, max(right, 0)), start)


def input_edges(spec: ConvSpec | PoolSpec, axis: int, results: Sizes) -> Sizes:
    """Where to cut an input, so that each chunk ends where the first window of the next block of results begins."""
    n, step, before = spec.size[axis], spec.stride[axis], spec.padding[axis][0]
    inner = {edge * step - before for edge in results[1:-1]}
    return (0, *sorted(cut for cut in inner if 0 < cut < n), n)


def reaches(spec: ConvSpec | PoolSpec, axis: int, edges: Sizes, results: Sizes) -> tuple[Reach, ...]:
    """For every chunk of the input between the edges the results, in blocks, whose windows reach it."""
    return tuple(_reached(spec, axis, first, stop, results) for first, stop in intervals_of(edges))


def _reached(spec: ConvSpec | PoolSpec, axis: int, first: int, stop: int, results: Sizes) -> Reach:
    step, reach, before = spec.stride[axis], spec.reach[axis], spec.padding[axis][0]
    start, end = first + before, stop + before  # on the padded axis
    first_result = max(-(-(start - reach + 1) // step), 0)
    stop_result = min((end - 1) // step + 1, results[-1])
    if first_result >= stop_result:
        return Reach(part_of(0, 0, results), (0, 0), stop - first, (0, 0))
    if first_result * step > start:  # one more, so that no padding before is negative
        first_result -= 1
    left = start - first_result * step
    span = (stop_result - first_result - 1) * step + reach
    part = part_of(first_result, stop_result, results)
    return Reach(part, (first_result, stop_result), stop - first, (left, span - left - (stop - first)))


def span_edges(spans: tuple[Interval, ...], edges: Sizes) -> Sizes:
    """Where to cut the windows of an adaptive pooling, so that each belongs to the block that holds its start."""
    starts = [start for start, _ in spans]
    inner = {bisect_left(starts, edge) for edge in edges[1:-1]}
    return (0, *sorted(cut for cut in inner if 0 < cut < len(spans)), len(spans))


def halo_factor(reads: Iterable[tuple[Reading, ...]], size: Sizes) -> float:
    """Elements that all chunks of the result read, over those that there are."""
    axes = (sum(reading.size for reading in along) / max(n, 1) for along, n in zip(reads, size, strict=True))
    return prod(axes)


def advised_chunks(spec: ConvSpec | PoolSpec, most: float) -> Sizes:
    """Sizes of chunks of which windows read no more than `most` times as many elements as there are."""
    overlaps = [max(reach - step, 0) for reach, step in zip(spec.reach, spec.stride, strict=True)]
    share = most ** (1 / max(sum(overlap > 0 for overlap in overlaps), 1)) - 1
    return tuple(min(max(ceil(overlap / share), 1), n) for overlap, n in zip(overlaps, spec.size, strict=True))
