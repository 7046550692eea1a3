"""Which tiles the compiled kernels filter planes by, of those whose spectra they take, and what these come to."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

from xpconv.spec import ConvSpec, Sizes

LENGTHS = (32, 48, 64, 96, 128, 192, 256)  # of a tile's transforms along each axis
_MOVED = 14  # times an element's transforms by one factor of two that all takes that is done to it but these

_FILTER = 0.5  # pairs of tiles that take as long as the spectrum of a filter
_WAITING = 1  # that a thread waits for at the end


def fits(spec: ConvSpec) -> bool:
    """Whether single planes are filtered by windows that some tile holds, one column after the other."""
    plain = spec.axes == 2 and spec.filters_planes and not spec.input_dilation and set(spec.stride) == {1}
    return plain and 0 not in (spec.batch, spec.channels, *spec.out_size) and max(spec.reach) <= LENGTHS[-1]


@lru_cache(maxsize=4096)
def lengths(spec: ConvSpec) -> Sizes:
    """The lengths of the tiles that take the least."""
    candidates = product(*([n for n in LENGTHS if n >= reach] for reach in spec.reach))
    return min(candidates, key=lambda lengths: _operations(spec, lengths))


def tile_counts(spec: ConvSpec, lengths: Sizes) -> Sizes:
    """Tiles that cover the result, along each axis."""
    axes = zip(spec.out_size, lengths, spec.reach, strict=True)
    return tuple(-(-out // (length - reach + 1)) for out, length, reach in axes)


def operations(spec: ConvSpec) -> float:
    """What the tiles of a spec that `fits` and its filters take, in elements times factors of two of transforms."""
    return _operations(spec, lengths(spec))


def _operations(spec: ConvSpec, lengths: Sizes) -> float:
    elements, tiles = math.prod(lengths), spec.batch * math.prod(tile_counts(spec, lengths))
    pairs = spec.channels * (-(-tiles // 2) + _FILTER) + _WAITING
    return pairs * elements * (math.log2(elements) + _MOVED)
