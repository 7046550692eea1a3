"""The rims of blocks: the strips along their edges that tasks of other chunks read, so that no whole block travels."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import TypeAlias

from array_api_compat import array_namespace

from xpconv.chunks.runs import Interval, Part, Run
from xpconv.request import Index
from xpconv.spec import Array, Sizes

Rim: TypeAlias = tuple[tuple[int, int, Array], ...]  # strips: their axis, their first position on it, their elements


@lru_cache(maxsize=4096)
def home_of(part: Part) -> int:
    """The block that most of a part comes from: its task is the one that reads that block whole."""
    counts: dict[int, int] = {}
    for run in part:
        counts[run.block] = counts.get(run.block, 0) + run.length
    return max(counts, key=counts.__getitem__)


def strips_of(parts: Collection[Part], sizes: Sizes) -> tuple[tuple[Interval, ...], ...]:
    """For every block of an axis the strips that hold what parts of other homes read of it.

    None where they would make up more than half of the block.
    """
    low, high = [0] * len(sizes), list(sizes)
    for part in parts:
        home = home_of(part)
        for run in part:
            if run.block != home:
                first, stop = span_of(run)
                if first < sizes[run.block] - stop:
                    low[run.block] = max(low[run.block], stop)
                else:
                    high[run.block] = min(high[run.block], first)
    return tuple(
        tuple(strip for strip in ((0, first), (last, n)) if strip[0] < strip[1]) if 2 * (first + n - last) <= n else ()
        for first, last, n in zip(low, high, sizes, strict=True)
    )


def span_of(run: Run) -> Interval:
    """The positions of a block that a run reads."""
    if run.step == -1:
        return run.start - run.length + 1, run.start + 1
    return run.start, run.start + (run.length if run.step else 1)


def rim(lift: Index, strips: tuple[tuple[Interval, ...], ...], block: Array) -> Rim:
    """The strips of one block, in memory of their own."""
    block, xp = block[lift], array_namespace(block)
    return tuple(
        (axis, first, xp.asarray(block[(slice(None),) * axis + (slice(first, stop),)], copy=True))
        for axis, of_axis in enumerate(strips)
        for first, stop in of_axis
    )


def strip_for(given: Rim, runs: tuple[Run, ...]) -> tuple[Array, tuple[Run, ...]]:
    """The strip that holds one run of every axis, and the runs as they lie on it."""
    for axis, first, strip in given:
        start, stop = span_of(runs[axis])
        if first <= start and stop <= first + strip.shape[axis]:
            run = runs[axis]._replace(start=runs[axis].start - first)
            return strip, (*runs[:axis], run, *runs[axis + 1 :])
    raise AssertionError("a rim holds what other chunks read")
