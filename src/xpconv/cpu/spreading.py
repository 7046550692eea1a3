"""Every element added to all that its window had, axis by axis: the adjoint of sums over windows.

Of windows of 3 by 3 six passes add, where nine would tap by tap, and none of them makes a padded array. The threads of
a team share the maps: the gradient of means of 3x3 at stride 2 of 64 channels of 112x112, N = 8, took 9.3 ms when every
pass went over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xpconv.cpu import team
from xpconv.cpu.memory import borrowed
from xpconv.cpu.pool_strips import as_maps, taps_of
from xpconv.cpu.results import new
from xpconv.spec import Array, PoolSpec

_PART_BYTES = 1 << 20  # of maps that are made at a time
_SHARED_BYTES = 1 << 20  # that take longer than waking a thread


def spread(gy: Array, spec: PoolSpec, divisors: Array) -> Array:
    """Of `gy`, divided by `divisors` (*out, 1), what the elements of x had a share in, in the spec's layout."""
    gx = new(spec.x_shape, gy.dtype)
    maps, made = as_maps(gy, gx, spec)
    images = len(maps)
    threads = team.thread_count() if gx.nbytes > _SHARED_BYTES else 1
    each = max(1, min(_PART_BYTES * images // max(gx.nbytes, 1), -(-images // threads)))
    parts = [slice(n, n + each) for n in range(0, images, each)]

    def work(parts: Iterator[slice]) -> None:
        with borrowed("pools") as memory:
            for some in parts:
                part = np.divide(maps[some], divisors, out=memory.take("shares", maps[some].shape, gy.dtype))
                for axis in reversed(range(1, spec.axes)):  # the last first, while there are few rows
                    shape = *part.shape[: axis + 1], spec.size[axis], *part.shape[axis + 2 :]
                    part = _along(part, spec, axis, memory.take(f"axis {axis}", shape, gy.dtype))
                _along(part, spec, 0, made[some])

    team.share(work, parts, threads)
    return gx


def _along(gy: Array, spec: PoolSpec, axis: int, gx: Array) -> Array:
    """The windows of one axis, one tap after the other; what falls on the padding is left out."""
    taps = taps_of(spec, axis, 0, spec.out_size[axis])
    gx[...] = 0
    for read in taps.whole:
        gx[read] += gy
    for place, read in taps.partial:
        gx[read] += gy[place]
    return gx
