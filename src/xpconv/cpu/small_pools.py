"""Poolings of small maps: running maxima and sums, tap by tap, in memory whose views are made before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from xpconv.cpu.small_products import rooms
from xpconv.cpu.spares import KEPT_BYTES
from xpconv.spec import Array, PoolSpec
from xpconv.workspace import current_limit

_MOST_TAPS = 8  # of an axis: of more, windows are doubled


class _Pass(NamedTuple):
    """One axis: the taps of all windows, and where they are merged; None for new memory."""

    first: Array
    second: Array
    others: list[Array]
    into: Array | None


def fits(spec: PoolSpec, dtype: np.dtype) -> bool:
    """Whether the maps are so small that calls take longer than what they do."""
    held = spec.batch * math.prod(spec.reading.padded_size) * spec.channels * dtype.itemsize
    return 0 < held <= min(KEPT_BYTES, current_limit() // 2) and 1 < max(spec.window) <= _MOST_TAPS


def merged(spec: PoolSpec, dtype: np.dtype, merge: np.ufunc, fill: float) -> Callable[[Array], Array]:
    """A function of x in the spec's layout, which may lack axes of one element, that merges the elements of windows."""
    spares, x_shape, axes = rooms(spec.reading, dtype, fill, partial(_passes, spec)), spec.x_shape, spec.axes + 2

    def pooled(x: Array) -> Array:
        room = spares.take()
        room.inner[...] = x if x.ndim == axes else x.reshape(x_shape)
        for first, second, others, into in room.read:
            y = merge(first, second, out=into)
            for taps in others:
                merge(y, taps, out=y)
        spares.give(room)
        return y

    return pooled


def _passes(spec: PoolSpec, x: Array) -> list[_Pass]:
    """Those over padded maps, axis by axis; an axis of windows of one takes none."""
    first, passes = 1 if spec.layout == "channels_last" else 2, []
    for axis in sorted(range(spec.axes), key=lambda axis: spec.window[axis] > 1):
        taps = [x[(slice(None),) * (first + axis) + (places,)] for places in _places(spec, axis)]
        x = taps[0]
        if len(taps) > 1:
            x = np.empty(x.shape, x.dtype)
            passes.append(_Pass(taps[0], taps[1], taps[2:], x))
    return [*passes[:-1], passes[-1]._replace(into=None)]


def _places(spec: PoolSpec, axis: int) -> Iterator[slice]:
    """Where each tap of the windows lies on an axis."""
    span = (spec.out_size[axis] - 1) * spec.stride[axis] + 1
    for tap in range(spec.window[axis]):
        begin = tap * spec.dilation[axis]
        yield slice(begin, begin + span, spec.stride[axis])
