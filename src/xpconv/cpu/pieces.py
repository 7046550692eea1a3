"""Pieces of an operation with windows, each an operation of its own: what a limit of memory cuts it into.

A piece is some of the images, or one and some rows of its results, or one and some places of one row, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from typing import NamedTuple, TypeVar

from xpconv.cpu import cuts
from xpconv.cpu.margins import Span, read_by
from xpconv.spec import ConvSpec, PoolSpec, Sizes, Windows
from xpconv.spec.windows import Pairs
from xpconv.workspace import current_limit, workspace_limit

_ALONG = 32  # results along the last axis that pieces have a multiple of: some methods join as many

W = TypeVar("W", bound=Windows)


def share(limit: int) -> int:
    """What a piece may hold of a limit; the rest is for what computes it."""
    return limit // 2


def rest() -> AbstractContextManager[None]:
    """Within, the limit is what is left of it beside what a piece may hold."""
    limit = current_limit()
    return workspace_limit(max(limit - share(limit), 1))


def at_once(images: int, held: int) -> list[slice]:
    """As many images at a time as the limit has room for; `held` bytes for each."""
    return cuts.evenly(images, max(1, share(current_limit()) // max(held, 1)))


class Piece(NamedTuple):
    """Images, and places of results along every axis."""

    images: slice
    places: tuple[slice, ...]


def cut(spec: W, held: Callable[[W], int], limit: int) -> list[Piece] | None:
    """The largest pieces of which each, as an operation of what is padded, holds no more bytes than the limit.

    None where the smallest hold more, or nothing has to be cut.
    """
    counts = (spec.batch, *spec.out_size)
    for axis, count in enumerate(counts):

        def fits(some: int, axis: int = axis) -> bool:
            within = max(limit, cuts.SHORT_BYTES) if axis else limit
            return held(padded_part(spec, (*(1,) * axis, some, *counts[axis + 1 :]))) <= within

        if count and fits(1):
            most = _largest(count, fits)
            whole = [[slice(0, n)] for n in counts[axis + 1 :]]
            parts = _in_line(count, most) if axis == spec.axes else cuts.evenly(count, most)
            every = product(*(cuts.evenly(n, 1) for n in counts[:axis]), parts, *whole)
            found = [Piece(images, tuple(places)) for images, *places in every]
            return found if len(found) > 1 else None
    return None


def _in_line(count: int, most: int) -> list[slice]:
    """Places along the last axis, so many but for the last of them."""
    each = most - most % _ALONG if _ALONG < most < count else most
    return [slice(first, min(first + each, count)) for first in range(0, count, each)]


def _largest(count: int, fits: Callable[[int], bool]) -> int:
    """The most of `count`, at least one, that fit."""
    low, high = 1, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def padded_part(spec: W, counts: Sizes) -> W:
    """The operation of which so many images have so many results along each axis, of an input that is padded."""
    batch, *results = counts
    axes = zip(results, spec.stride, spec.reach, strict=True)
    size = tuple((n - 1) * step + reach for n, step, reach in axes)
    return _of_part(spec, batch, size, ((0, 0),) * spec.axes)


def read(spec: W, piece: Piece) -> tuple[list[Span], W] | None:
    """Of zeros around the input: where the elements lie that a piece reads, and the operation that makes it of them.

    None where it reads nothing but zeros along some axis.
    """
    spans = _spans(spec, piece)
    inside = [(max(lo, 0), min(hi, n)) for (lo, hi), n in zip(spans, spec.size, strict=True)]
    if any(lo >= hi for lo, hi in inside):
        return None
    padding = tuple((begin - lo, hi - end) for (lo, hi), (begin, end) in zip(spans, inside, strict=True))
    return inside, _of_part(spec, _count(piece.images), tuple(hi - lo for lo, hi in inside), padding)


def padded_read(spec: W, piece: Piece) -> tuple[list[Span], W]:
    """The same of the padded input: where the elements lie, from the first of the input's own on."""
    return _spans(spec, piece), part_of_piece(spec, piece)


def part_of_piece(spec: W, piece: Piece) -> W:
    """The operation that makes a piece of padded input."""
    return padded_part(spec, (_count(piece.images), *map(_count, piece.places)))


def _spans(spec: Windows, piece: Piece) -> list[Span]:
    return read_by(spec, *((places.start, places.stop) for places in piece.places))


def _count(places: slice) -> int:
    return int(places.stop - places.start)


def _of_part(spec: W, batch: int, size: Sizes, padding: Pairs) -> W:
    part = replace(spec, batch=batch, size=size, padding=padding)
    if isinstance(part, ConvSpec):
        return replace(part, padding_mode="zeros")
    return replace(part, ceil_mode=False) if isinstance(part, PoolSpec) else part


def in_words(pieces: list[Piece], spec: Windows) -> str:
    """The largest, in words."""
    images, places = pieces[0]
    some = (images, *places)
    whole = max((at for at, n in enumerate((spec.batch, *spec.out_size)) if _count(some[at]) != n), default=0)
    return cuts.in_words(some[: max(whole + 1, 2)], spec.batch, spec.out_size)
