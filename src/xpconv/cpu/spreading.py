"""Every element added to all that its window had, axis by axis: the adjoint of sums over windows.

Of windows of 3 by 3 six passes add, where nine would tap by tap, and none of them makes a padded array.
"""

from __future__ import annotations

import numpy as np

from xpconv.spec import Array, PoolSpec


def spread(gy: Array, spec: PoolSpec) -> Array:
    """`gy` (N, *out, C) as (N, *size, C); the last axis first, while there are few rows."""
    for axis in reversed(range(spec.axes)):
        gy = _along(gy, spec, axis)
    return gy


def _along(gy: Array, spec: PoolSpec, axis: int) -> Array:
    """The windows of one axis, one tap after the other; what falls on the padding is left out."""
    n, stride, (before, _), count = spec.size[axis], spec.stride[axis], spec.padding[axis], gy.shape[axis + 1]
    gx = np.zeros((*gy.shape[: axis + 1], n, *gy.shape[axis + 2 :]), gy.dtype)
    across = (slice(None),) * (axis + 1)
    for tap in range(spec.window[axis]):
        place = tap * spec.dilation[axis] - before  # of the first window's
        first = max(-(place // stride), 0)
        stop = min((n - 1 - place) // stride + 1, count)
        if first < stop:
            gx[(*across, slice(place + first * stride, place + (stop - 1) * stride + 1, stride))] += gy[
                (*across, slice(first, stop))
            ]
    return gx
