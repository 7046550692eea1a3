"""Parts of arrays that reach beyond what is there, with zeros around them."""

from __future__ import annotations

from collections.abc import Callable

from xpconv.cpu.memory import Memory
from xpconv.spec import Array, Windows

Span = tuple[int, int]  # along an axis, from the first element up to the last


def read_by(spec: Windows, *results: Span) -> list[Span]:
    """Along every axis the elements that results read, from one up to another along the first axes; all of the rest."""
    axes = zip(results, spec.padding, spec.stride, spec.reach, strict=False)
    some = [(lo * step - before, (hi - 1) * step + reach - before) for (lo, hi), (before, _), step, reach in axes]
    rest = zip(spec.size, spec.padding, strict=True)
    return some + [(-before, n + after) for n, (before, after) in rest][len(some) :]


def surrounded(x: Array, spans: list[Span], first: int, memory: Memory, is_usable: Callable[[Array], bool]) -> Array:
    """Elements along the axes of `x` from the `first` on, with zeros beyond; a view where none are, if it is usable."""
    before = (slice(None),) * first
    inside = [(max(lo, 0), max(min(hi, n), max(lo, 0))) for (lo, hi), n in zip(spans, x.shape[first:], strict=False)]
    there = x[(*before, *(slice(lo, hi) for lo, hi in inside))]
    if inside == spans and is_usable(there):
        return there
    shape = (*x.shape[:first], *(hi - lo for lo, hi in spans), *x.shape[first + len(spans) :])
    whole = memory.take("whole", shape, x.dtype)
    for axis, ((lo, hi), (begin, end)) in enumerate(zip(spans, inside, strict=True), start=first):
        for outside in (slice(0, begin - lo), slice(end - lo, hi - lo)):
            whole[(slice(None),) * axis + (outside,)] = 0
    places = (slice(begin - lo, end - lo) for (lo, _), (begin, end) in zip(spans, inside, strict=True))
    whole[(*before, *places)] = there
    return whole
