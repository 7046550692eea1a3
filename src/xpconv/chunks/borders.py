"""Padding that repeats the axis: where each element comes from, and which elements go back to one."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from xpconv.chunks.runs import Part, part_at, part_of
from xpconv.spec import Sizes


def source(position: int, n: int, mode: str) -> int:
    """The element of an axis of n that stands at a position of the padded axis, as `numpy.pad` has it."""
    if mode == "edge":
        return min(max(position, 0), n - 1)
    period = {"wrap": n, "symmetric": 2 * n, "reflect": max(2 * (n - 1), 1)}[mode]
    position %= period
    return position if position < n else period - (mode == "symmetric") - position


def padded_part(first: int, stop: int, edges: Sizes, mode: str) -> Part:
    """The elements that stand from `first` up to `stop` on the padded axis."""
    n = edges[-1]
    before, after = range(first, min(stop, 0)), range(max(first, n), stop)
    runs = part_at([source(p, n, mode) for p in before], edges)
    if max(first, 0) < min(stop, n):
        runs += part_of(max(first, 0), min(stop, n), edges)
    return runs + part_at([source(p, n, mode) for p in after], edges)


class Folded(NamedTuple):
    """One chunk of an axis, made from chunks of its padded form: what to gather, and what to add where.

    The first `size` gathered elements are the chunk itself, each later one is added to one of them.
    """

    part: Part
    size: int
    targets: Sizes


def folded(edges: Sizes, padding: tuple[int, int], mode: str, padded_edges: Sizes) -> tuple[Folded, ...]:
    """For every chunk between the edges the elements of the padded axis that go back to it."""
    n, (before, after) = edges[-1], padding
    copies: list[list[tuple[int, int]]] = [[] for _ in edges[1:]]
    for position in (*range(-before, 0), *range(n, n + after)):
        element = source(position, n, mode)
        copies[bisect_right(edges, element) - 1].append((position + before, element))
    parts = []
    for first, stop, here in zip(edges, edges[1:], copies, strict=False):
        part = part_of(first + before, stop + before, padded_edges)
        part += part_at([position for position, _ in here], padded_edges)
        parts.append(Folded(part, stop - first, tuple(element - first for _, element in here)))
    return tuple(parts)
