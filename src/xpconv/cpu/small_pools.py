"""Poolings of small maps: every tap of all windows side by side, merged in one operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xpconv.cpu.small_patches import as_copied, by_taps, of_patches
from xpconv.cpu.spares import KEPT_BYTES
from xpconv.spec import Array, PoolSpec
from xpconv.workspace import current_limit

_MOST_BYTES = 1 << 17  # of patches; of more, windows are merged axis by axis in less time


def fits(spec: PoolSpec, dtype: np.dtype) -> bool:
    """Whether the maps are so small that calls take longer than what they do."""
    patches = math.prod(spec.patches_shape)
    most = max(patches, spec.batch * spec.channels * math.prod(spec.reading.padded_size)) * dtype.itemsize
    return patches > 0 and most <= min(_MOST_BYTES, current_limit()) and math.prod(spec.window) > 1


def merged(spec: PoolSpec, dtype: np.dtype, merge: np.ufunc, fill: float) -> Callable[[Array], Array]:
    """A function of x in the spec's layout, which may lack axes of one element, that merges the elements of windows."""
    taps, patches = math.prod(spec.window), math.prod(spec.patches_shape) * dtype.itemsize
    if merge is np.add and patches <= KEPT_BYTES:  # of which BLAS gives no thread a share
        return _of_taps(spec, dtype, fill, np.ones(taps, dtype).dot)
    if taps != 4:
        return _of_taps(spec, dtype, fill, merge.reduce)

    def in_halves(halves: _Halves) -> Array:  # two calls, in two thirds of the time that the reduction takes to begin
        merge(halves.first, halves.second, out=halves.merged)
        return merge(*halves.rows)

    return _of_taps(spec, dtype, fill, in_halves, _halves)


class _Halves(NamedTuple):
    """What four taps read, two and two, and memory for what is merged of them, (2, n), and its rows."""

    first: Array
    second: Array
    merged: Array
    rows: tuple[Array, Array]


def _halves(taps: Array) -> _Halves:
    both = np.empty_like(taps[:2])
    return _Halves(taps[:2], taps[2:], both, (both[0], both[1]))


def _of_taps(
    spec: PoolSpec, dtype: np.dtype, fill: float, then: Callable[[Any], Array], seen: Callable[[Array], Any] = as_copied
) -> Callable[[Array], Array]:
    patches = by_taps(spec.reading, dtype, spec.y_shape, (math.prod(spec.y_shape),))
    return of_patches(spec.reading, fill, patches, then, seen)
