"""Rows that the caches do not hold, in stripes: some columns of an image, some rows of a volume, or columns of these.

A row is all of a result at one place of its first axis. Each stripe is a convolution of its own, of the part of the
input that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np

from xpconv.cpu.compiled.blocks import Sources
from xpconv.cpu.cuts import evenly
from xpconv.spec import Array, ConvSpec, Sizes

Places: TypeAlias = tuple[slice, ...]
"""Of a result, along the axes after the first."""
WHOLE: list[Places] = [()]  # what is not cut


@dataclass(frozen=True, eq=False)
class Stripe:
    """A convolution that makes some places of another one's result, and where it begins."""

    spec: ConvSpec
    sources: Sources
    starts: Sizes  # of what it reads, in the input, along every axis
    places: Places

    def begins(self, x_strides: Sizes, y_strides: Sizes) -> tuple[int, int]:
        """Bytes from the beginning of channels-last arrays, the input and the result, to the stripe's."""
        x = sum(start * step for start, step in zip(self.starts, x_strides[1:-1], strict=True))
        return x, sum(place.start * step for place, step in zip(self.places, y_strides[2:], strict=False))


def narrowed(
    spec: ConvSpec, most: int, units: Sequence[int], needs: Callable[[ConvSpec], int], limit: int
) -> list[Places]:  # fmt: skip
    """Stripes of at most so many results in a row, or fewer, where one needs more bytes of memory than a limit.

    Those of one unit along each axis are not narrowed further.
    """
    row = math.prod(spec.out_size[1:])
    most = min(most, row)
    while True:
        places = WHOLE if most == row else places_of(spec.out_size, most, units)
        if most <= math.prod(units) or needs(widest(spec, places)) <= limit:
            return places
        most //= 2


def places_of(out_size: Sizes, most: int, units: Sequence[int]) -> list[Places]:
    """Stripes of at most so many results in a row, or of one unit along each axis after the first."""
    axes = []
    for axis, (n, unit) in enumerate(zip(out_size[1:], units, strict=True), start=1):
        each = max(most // (unit * math.prod(out_size[axis + 1 :])), 1)
        parts = evenly(-(-n // unit), each)
        axes.append([slice(part.start * unit, min(part.stop * unit, n)) for part in parts])
        most //= min(each * unit, n)
    return list(product(*axes))


def stripes_of(spec: ConvSpec, sources: Sources, places: Sequence[Places]) -> Iterator[Stripe]:
    """The stripes of a convolution; it itself, where there is one."""
    if len(places) == 1:
        yield Stripe(spec, sources, (0,) * spec.axes, places[0])
        return
    found = sources(spec)
    for place in places:
        only, starts = _only(spec, place)
        some = (source[read] for source, read in zip(found, _read(spec, place), strict=True))
        yield Stripe(only, _known(tuple(map(_from, some, starts))), starts, place)


def widest(spec: ConvSpec, places: Sequence[Places]) -> ConvSpec:
    """The convolution of the first stripe, than which none is wider."""
    return spec if len(places) == 1 else _only(spec, places[0])[0]


def _read(spec: ConvSpec, places: Places) -> tuple[slice, ...]:
    """What is read of the padded input, along every axis."""
    axes = zip(places, spec.stride[1:], spec.reach[1:], strict=True)
    return slice(0, spec.padded_size[0]), *(slice(p.start * s, (p.stop - 1) * s + m) for p, s, m in axes)


def _only(spec: ConvSpec, places: Places) -> tuple[ConvSpec, Sizes]:
    """The convolution that computes these places, and where, along every axis, the input of it begins."""
    size, padding, starts = [], [], []
    for n, (before, after), padded, read in zip(
        spec.size, spec.padding, spec.padded_size, _read(spec, places), strict=True
    ):
        before, after = before - read.start, after + read.stop - padded
        start, end = max(-before, 0), max(-after, 0)
        repeats = spec.padding_mode not in ("zeros", "constant") and max(before, after) > 0
        if repeats or spec.input_dilation or start + end >= n:  # then it is padded by less than nothing
            start = end = 0
        size.append(n - start - end)
        padding.append((before + start, after + end))
        starts.append(start)
    return replace(spec, size=tuple(size), padding=tuple(padding)), tuple(starts)


def _from(sources: Array, start: int) -> Array:
    """The same elements, counted from one on."""
    return np.where(sources < 0, sources, sources - start)


def _known(sources: tuple[Array, ...]) -> Sources:
    """The sources of one convolution."""
    return lambda _: sources
