"""Poolings of small maps: every tap of all windows side by side, merged in one operation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from xpconv.cpu.small_patches import by_taps, copied
from xpconv.spec import Array, PoolSpec
from xpconv.workspace import current_limit

_MOST_BYTES = 1 << 18  # of patches; of more, windows are merged axis by axis


def fits(spec: PoolSpec, dtype: np.dtype) -> bool:
    """Whether the maps are so small that calls take longer than what they do."""
    patches = math.prod(spec.patches_shape) * dtype.itemsize
    return 0 < patches <= min(_MOST_BYTES, current_limit()) and math.prod(spec.window) > 1


def merged(spec: PoolSpec, dtype: np.dtype, merge: np.ufunc, fill: float) -> Callable[[Array], Array]:
    """A function of x in the spec's layout, which may lack axes of one element, that merges the elements of windows."""
    patches = by_taps(spec.reading, dtype, spec.y_shape, (math.prod(spec.y_shape),))
    read, reduce = copied(spec.reading, dtype, fill, patches), merge.reduce
    return lambda x: reduce(read(x))
