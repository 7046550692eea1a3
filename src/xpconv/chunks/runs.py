"""Parts of one axis that is cut into blocks, in plain integers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeAlias

from xpconv.spec import Sizes

Interval: TypeAlias = tuple[int, int]  # first element, and the one after the last


class Run(NamedTuple):
    """Elements of one block in a row: `step` is 1, -1 for a run that goes backwards, 0 for one that stands still."""

    block: int
    start: int  # counted from the block's first element
    step: int
    length: int


Part: TypeAlias = tuple[Run, ...]  # what one task gathers along one axis, in order


def edges_of(sizes: Iterable[int]) -> Sizes:
    """Where the blocks of these sizes begin, and where the last one ends."""
    return tuple(accumulate(sizes, initial=0))


def sizes_of(edges: Sizes) -> Sizes:
    """The sizes of the blocks between the edges."""
    return tuple(stop - start for start, stop in pairwise(edges))


def intervals_of(edges: Sizes) -> tuple[Interval, ...]:
    """First element of every block, and the one after its last."""
    return tuple(pairwise(edges))


def block_at(position: int, edges: Sizes) -> int:
    """The block that holds a position; blocks of size zero hold none."""
    return bisect_right(edges, position) - 1


def part_of(first: int, stop: int, edges: Sizes) -> Part:
    """The elements from `first` up to, not including, `stop`; of none an empty run, so that there is a block to ask."""
    if first >= stop:
        return (Run(0, 0, 1, 0),)
    runs, block = [], block_at(first, edges)
    while first < stop:
        end = min(stop, edges[block + 1])
        if end > first:
            runs.append(Run(block, first - edges[block], 1, end - first))
        first, block = end, block + 1
    return tuple(runs)


def part_at(positions: Sequence[int], edges: Sizes) -> Part:
    """The elements at these positions, in their order, in as few runs as neighbours allow."""
    runs: list[Run] = []
    for position in positions:
        block = block_at(position, edges)
        start = position - edges[block]
        if runs and runs[-1].block == block:
            run = runs[-1]
            step = start - run.start if run.length == 1 else run.step
            if step in (-1, 0, 1) and start == run.start + step * run.length:
                runs[-1] = Run(block, run.start, step, run.length + 1)
                continue
        runs.append(Run(block, start, 1, 1))
    return tuple(runs)


def length_of(part: Part) -> int:
    """Elements of a part."""
    return sum(run.length for run in part)
