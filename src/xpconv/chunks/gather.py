"""What a task does first: it puts the runs that it needs of its blocks side by side."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, product
from math import prod
from typing import Any, TypeAlias

from array_api_compat import array_namespace, device

from xpconv.chunks.rims import Rim, strip_for
from xpconv.chunks.runs import Run
from xpconv.request import WHOLE, Index
from xpconv.spec import Array
from xpconv.workspace import workspace_limit

Cut: TypeAlias = tuple[int, tuple[Run, ...]]  # of one axis: how many blocks are given, and what to take of them


def gathered(
    work: Callable[[list[Array], tuple[Any, ...]], Any], facts: tuple[Any, ...],
    cuts: tuple[tuple[Index, tuple[Cut, ...]], ...], drop: Index, limit: int,
    *blocks: Array,
) -> Any:  # fmt: skip
    """The work done on the arrays that the cuts make of the blocks, each lifted first; ``drop`` indexes its result.

    The limit of scratch memory is the one that was in force when the graph was made.
    """
    arrays, first = [], 0
    for lift, axes in cuts:
        count = prod(given for given, _ in axes)
        arrays.append(_joined(axes, tuple(_lifted(block, lift) for block in blocks[first : first + count])))
        first += count
    with workspace_limit(limit):
        result = work(arrays, facts)
    return result if drop == WHOLE else result[drop]


def _lifted(block: Array | Rim, lift: Index) -> Array | Rim:
    return block if isinstance(block, tuple) else block[lift]


def _joined(axes: tuple[Cut, ...], blocks: tuple[Array | Rim, ...]) -> Array:
    """The runs of all axes, of blocks that lie in the order of memory: a view of a single run, else copied once."""
    given, runs = zip(*axes, strict=True) if axes else ((), ())
    if all(len(of_axis) == 1 for of_axis in runs):
        return _cell(blocks[0], tuple(of_axis[0] for of_axis in runs))
    shape = tuple(sum(run.length for run in of_axis) for of_axis in runs)
    like = blocks[0][0][2] if isinstance(blocks[0], tuple) else blocks[0]
    joined = array_namespace(like).empty(shape, dtype=like.dtype, device=device(like))
    starts = (accumulate((run.length for run in of_axis), initial=0) for of_axis in runs)
    for cell in product(*(zip(of_axis, first, strict=False) for of_axis, first in zip(runs, starts, strict=True))):
        number = 0
        for (run, _), many in zip(cell, given, strict=True):
            number = number * many + run.block
        target = tuple(slice(first, first + run.length) for run, first in cell)
        joined[target] = _cell(blocks[number], tuple(run for run, _ in cell))
    return joined


def _cell(block: Array | Rim, runs: tuple[Run, ...]) -> Array:
    """One run of every axis of a block, or of its rim."""
    if isinstance(block, tuple):
        block, runs = strip_for(block, runs)
    block = block[tuple(_slice(run) for run in runs)]
    for axis, run in enumerate(runs):
        if run.step == 0:
            xp = array_namespace(block)
            block = xp.repeat(block, run.length, axis=axis)
    return block


def _slice(run: Run) -> slice:
    if run.step == -1:
        stop = run.start - run.length
        return slice(run.start, None if stop < 0 else stop, -1)
    return slice(run.start, run.start + (run.length if run.step else 1))
