"""Every element added to all that its window had, axis by axis: the adjoint of sums over windows.

Of windows of 3 by 3 six passes add, where nine would tap by tap, and none of them makes a padded array. The threads of
a team share the maps: the gradient of means of 3x3 at stride 2 of 64 channels of 112x112, N = 8, took 9.3 ms when every
pass went over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from xpconv.cpu import cuts, running, team
from xpconv.cpu.memory import borrowed
from xpconv.cpu.pool_strips import as_maps, taps_of
from xpconv.cpu.results import new
from xpconv.spec import Array, PoolSpec

_PART_BYTES = 1 << 20  # of maps that are made at a time
_SHARED_BYTES = 1 << 20  # that take longer than waking a thread


class _Part(NamedTuple):
    """Maps, rows that are made of them, the results whose windows reach these, and the taps by which they do."""

    maps: slice
    rows: slice
    results: slice
    taps: running.Taps


def spread(gy: Array, spec: PoolSpec, divisors: Array, limit: int) -> Array:
    """Of `gy`, divided by `divisors` (*out, 1), what the elements of x had a share in, in the spec's layout.

    Shares are added up in the divisors' dtype.
    """
    gx, summed = new(spec.x_shape, gy.dtype), divisors.dtype
    maps, made = as_maps(gy, gx, spec)
    parts, threads = _parts(spec, len(maps), maps.shape[-1] * summed.itemsize, limit, team.thread_count())
    along = [taps_of(spec, axis, 0, n) for axis, n in enumerate(spec.out_size)]

    def work(parts: Iterator[_Part]) -> None:
        with borrowed("pools") as memory:
            for some, rows, results, taps in parts:
                there, by = maps[some, results], divisors if divisors.ndim == 0 else divisors[results]
                part = np.divide(there, by, out=memory.take("shares", there.shape, summed))
                for axis in reversed(range(1, spec.axes)):  # the last first, while there are few rows
                    shape = *part.shape[: axis + 1], spec.size[axis], *part.shape[axis + 2 :]
                    part = _added(part, along[axis], memory.take(f"axis {axis}", shape, summed))
                here = made[some, rows]
                if summed == gy.dtype:
                    _added(part, taps, here)
                else:
                    here[...] = _added(part, taps, memory.take("axis 0", here.shape, summed))

    team.share(work, parts, threads)
    return gx


@lru_cache(maxsize=64)
def _parts(spec: PoolSpec, maps: int, pixel: int, limit: int, threads: int) -> tuple[list[_Part], int]:
    """Maps, or rows of one, that stay close, and how many threads the limit and the work are enough for."""
    height, stride, overlap = spec.size[0], spec.stride[0], -(-spec.reach[0] // spec.stride[0])
    across = sum(math.prod(spec.out_size[1:axis] + spec.size[axis:]) for axis in range(1, spec.axes + 1))
    held, row = max(across * pixel, 1), max(math.prod(spec.size[1:]) * pixel, 1)  # of one of results, and one made
    threads = max(1, min(threads, limit // (held * overlap))) if maps * height * row > _SHARED_BYTES else 1
    most, image = limit // threads, max(height * row, 1)
    whole = max(held * spec.out_size[0], 1)
    if whole <= most and image <= _PART_BYTES:
        each, rows = max(1, min(_PART_BYTES // image, most // whole, -(-maps // threads))), height
    else:
        each, rows = 1, max(1, min(_PART_BYTES // row, (most // held - overlap) * stride))
    parts = product(cuts.evenly(maps, each), cuts.evenly(height, rows))
    return [_Part(some, made, *_reaching(spec, made)) for some, made in parts], threads


def _reaching(spec: PoolSpec, rows: slice) -> tuple[slice, running.Taps]:
    """The results along the first axis whose windows reach some rows, and their taps there."""
    (before, _), stride, reach = spec.padding[0], spec.stride[0], spec.reach[0]
    begin = min(max(-(-(rows.start + before - reach + 1) // stride), 0), spec.out_size[0])
    stop = max(min((rows.stop - 1 + before) // stride + 1, spec.out_size[0]), begin)
    geometry = spec.window[0], spec.dilation[0], stride, 1
    first = begin * stride - before - rows.start
    return slice(begin, stop), running.taps_of(rows.stop - rows.start, stop - begin, *geometry, first)


def _added(gy: Array, taps: running.Taps, gx: Array) -> Array:
    """The windows of one axis, one tap after the other; what falls on the padding is left out."""
    gx[...] = 0
    for read in taps.whole:
        gx[read] += gy
    for place, read in taps.partial:
        gx[read] += gy[place]
    return gx
