"""Parts of arrays that reach beyond what is there, with zeros around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from xpconv.cpu.memory import Memory
from xpconv.spec import Array, Sizes, Windows

Span = tuple[int, int]  # along an axis, from the first element up to the last
Index = tuple[slice, ...]


class Reading(NamedTuple):
    """A part of arrays along their last axes: what is there of it, and in memory of its shape where that goes."""

    there: Index
    shape: Sizes
    margins: list[Index]  # of the memory, with zeros
    inner: Index


def read_by(spec: Windows, *results: Span) -> list[Span]:
    """Along every axis the elements that results read, from one up to another along the first axes; all of the rest."""
    axes = zip(results, spec.padding, spec.stride, spec.reach, strict=False)
    some = [(lo * step - before, (hi - 1) * step + reach - before) for (lo, hi), (before, _), step, reach in axes]
    rest = zip(spec.size, spec.padding, strict=True)
    return some + [(-before, n + after) for n, (before, after) in rest][len(some) :]


def reading_of(spans: Sequence[Span], size: Sizes) -> Reading:
    """The part between the spans of what has a size."""
    inside = [(max(lo, 0), max(min(hi, n), max(lo, 0))) for (lo, hi), n in zip(spans, size, strict=True)]
    places = [slice(begin - lo, end - lo) for (lo, _), (begin, end) in zip(spans, inside, strict=True)]
    margins = []
    for axis, (lo, hi) in enumerate(spans):
        for outside in (slice(0, places[axis].start), slice(places[axis].stop, hi - lo)):
            if outside.start < outside.stop:
                margins.append((*places[:axis], outside, *(slice(None),) * (len(spans) - axis - 1)))
    return Reading(
        tuple(slice(begin, end) for begin, end in inside), tuple(hi - lo for lo, hi in spans), margins, tuple(places)
    )


def surrounded(x: Array, reading: Reading, memory: Memory, is_usable: Callable[[Array], bool]) -> Array:
    """The part of `x` that is read, with zeros beyond what is there; a view where none are, if it is usable."""
    there = x[..., *reading.there]
    if not reading.margins and is_usable(there):
        return there
    whole = memory.take("whole", (*x.shape[: -len(reading.shape)], *reading.shape), x.dtype)
    for margin in reading.margins:
        whole[..., *margin] = 0
    whole[..., *reading.inner] = there
    return whole
