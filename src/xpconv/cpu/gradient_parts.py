"""Parts of large arrays, whose gradients of a weight are added up: their rows are close, and their sums are short.

A sum of very many products loses digits, unless parts of it are summed by themselves. Of volumes a part is a tap of the
first axis: planes of the input, and the planes of the result that this tap makes of them, are images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

from xpconv.cpu.cuts import evenly
from xpconv.cpu.stripes import places_of, stripe_of
from xpconv.spec import ConvSpec

Index: TypeAlias = tuple[Any, ...]

_FEW = 1 << 11  # results of a volume whose parts would be too small: 14^3 takes 0.6 of the time in parts, 12^3 as long
_MOST = 1 << 16  # results of a part
_ROW, _UNIT = 512, 4  # results of a part's row at most, and of which its length is a multiple


@dataclass(frozen=True)
class Part:
    """A convolution, the parts of channels-last arrays that it is of, and the taps whose gradients it gives."""

    spec: ConvSpec
    x: Index = ()
    gy: Index = ()
    taps: Index = ()


@lru_cache(maxsize=256)
def parts_of(spec: ConvSpec, nbytes: int, itemsize: int) -> list[Part]:
    """Parts of whose results so many bytes may be copied; one for what is not large, or where padding repeats elements.

    Milliseconds on two cores of an Emerald Rapids, of the whole and since, as many filters as channels: 64@64x4096 123
    and 45, volumes 32@32x32x32 8.9 and 4.4, 32@16x128x128 139 and 31, 32@8x256x256 466 and 70. And errors relative to
    the largest gradient, 32@1200x1200: 6e-5 and 1e-5.
    """
    results, most = math.prod(spec.out_size), min(_MOST, nbytes // (spec.filters * itemsize))
    plain = spec.padding_mode in ("zeros", "constant") and not spec.input_dilation
    if spec.axes == 3 and plain and results > _FEW:
        return [part for images in _planes(spec) for part in _boxes(images, most)]
    if plain and spec.batch * results > _MOST:
        whole = slice(0, spec.batch, 1)
        return list(_boxes(Part(spec, (whole,), (whole,)), most))
    return [Part(spec)]


def _planes(spec: ConvSpec) -> Iterator[Part]:
    """The taps of a volume's first axis, each with the images of an item of the batch that it reads and makes."""
    axes = ("size", "window", "stride", "dilation", "padding")
    (n, m, s, d, (before, _)), results = (getattr(spec, name)[0] for name in axes), spec.out_size[0]
    further = {name: getattr(spec, name)[1:] for name in axes}
    for tap in range(m):
        first = tap * d - before  # the plane that it reads for the first result
        begin, stop = max(-(first // s), 0), min((n - 1 - first) // s + 1, results)
        if begin < stop:  # else it reads zeros alone
            read, made = slice(first + begin * s, first + (stop - 1) * s + 1, s), slice(begin, stop, 1)
            images = replace(spec, batch=stop - begin, **further)
            for item in range(spec.batch):
                yield Part(images, (item, read), (item, made), (tap,))


def _boxes(part: Part, most: int) -> Iterator[Part]:
    """Some images, rows and columns of a part, of so many results at most, or of a short row."""
    spec, size = part.spec, part.spec.out_size
    stripes = places_of(size, _ROW, [_UNIT * d for d in spec.dilation[1:]])
    line = math.prod(place.stop - place.start for place in stripes[0][1:])
    rows = evenly(size[0], max(most // line, 1))
    images = evenly(spec.batch, max(most // (line * rows[0].stop), 1))
    for some, row, (_, *along) in product(images, rows, stripes):
        box = stripe_of(replace(spec, batch=some.stop - some.start), (row, *along))
        read = (slice(start, start + n) for start, n in zip(box.starts, box.spec.size, strict=True))
        yield Part(box.spec, (*_only(part.x, some), *read), (*_only(part.gy, some), *box.places), part.taps)


def _only(index: Index, images: slice) -> Index:
    """The same, of some of the images that its last entry takes."""
    *lead, of = index
    return *lead, slice(of.start + images.start * of.step, of.start + (images.stop - 1) * of.step + 1, of.step)
