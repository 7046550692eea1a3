"""Rows that the caches do not hold, in stripes: some columns of an image, some rows of a volume, or columns of these.

A row is all of a result at one place of its first axis. Each stripe, or any other box of a result, is a convolution of
its own, of the part of the input that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np

from xpconv.cpu.cuts import evenly
from xpconv.spec import Array, ConvSpec, Sizes

Places: TypeAlias = tuple[slice, ...]
"""Of a result, along every axis."""


@dataclass(frozen=True)
class Stripe:
    """A convolution that makes some places of another one's result."""

    spec: ConvSpec
    places: Places
    read: tuple[slice, ...]  # of the padded input, along every axis
    starts: Sizes  # where its own input begins in the other one's

    def begins(self, x_strides: Sizes, y_strides: Sizes) -> tuple[int, int]:
        """Bytes from the beginning of channels-last arrays, the input and the result, to the stripe's."""
        x = sum(start * step for start, step in zip(self.starts, x_strides[1:-1], strict=True))
        return x, sum(place.start * step for place, step in zip(self.places, y_strides[1:-1], strict=True))

    def of(self, sources: tuple[Array, ...]) -> tuple[Array, ...]:
        """Where its padded input comes from, by where the whole one does; -1 for the padding's own."""
        axes = zip(sources, self.read, self.starts, strict=True)
        return tuple(np.where(source[some] < 0, -1, source[some] - start) for source, some, start in axes)


def narrowed(
    spec: ConvSpec, most: int, units: Sequence[int], needs: Callable[[ConvSpec], int], limit: int
) -> list[Stripe]:  # fmt: skip
    """Stripes of at most so many results in a row, or fewer, where one needs more bytes of memory than a limit.

    The first is the widest. Those of one unit along each axis are not narrowed further.
    """
    row = math.prod(spec.out_size[1:])
    most = min(most, row)
    while True:
        cut = places_of(spec.out_size, most, units)
        if most <= math.prod(units) or needs(stripe_of(spec, cut[0]).spec) <= limit:
            return [stripe_of(spec, places) for places in cut]
        most //= 2


def vector_units(spec: ConvSpec, lanes: int) -> list[int]:
    """Units of single places, and along the last axis of so many as a vector has lanes."""
    return [lanes if axis == spec.axes - 1 else 1 for axis in range(1, spec.axes)]


def places_of(out_size: Sizes, most: int, units: Sequence[int]) -> list[Places]:
    """Stripes of at most so many results in a row, or of one unit along each axis after the first."""
    axes = [[slice(0, out_size[0])]]
    for axis, (n, unit) in enumerate(zip(out_size[1:], units, strict=True), start=1):
        rest = math.prod(out_size[axis + 1 :])
        each = n if n * rest <= most else max(most // (unit * rest), 1) * unit
        parts = evenly(-(-n // unit), -(-each // unit))
        axes.append([slice(part.start * unit, min(part.stop * unit, n)) for part in parts])
        most //= min(each, n)
    return list(product(*axes))


def stripe_of(spec: ConvSpec, places: Places) -> Stripe:
    """The convolution that makes these places, of no more of the input than it reads, but for what padding repeats."""
    if all(place == slice(0, n) for place, n in zip(places, spec.out_size, strict=True)):
        return Stripe(spec, places, tuple(slice(0, n) for n in spec.padded_size), (0,) * spec.axes)
    size, padding, reads, starts = [], [], [], []
    for place, s, m, n, (before, after), padded in zip(
        places, spec.stride, spec.reach, spec.size, spec.padding, spec.padded_size, strict=True
    ):
        read = slice(place.start * s, (place.stop - 1) * s + m)
        before, after = before - read.start, after + read.stop - padded
        start, end = max(-before, 0), max(-after, 0)
        repeats = spec.padding_mode not in ("zeros", "constant") and max(before, after) > 0
        if repeats or spec.input_dilation or start + end >= n:  # then it is padded by less than nothing
            start = end = 0
        size.append(n - start - end)
        padding.append((before + start, after + end))
        reads.append(read)
        starts.append(start)
    return Stripe(replace(spec, size=tuple(size), padding=tuple(padding)), places, tuple(reads), tuple(starts))
