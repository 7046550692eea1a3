"""Results of few filters beside each other, joined until a product of them is worth its call.

They are one product of the elements that they span with all their weights, of which those that a result does not read
are zero: a product of few filters is slow, and so is a copy of short runs. A zero makes NaN of what is not finite, so
whoever joins results looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from xpconv.spec import Array, ConvSpec
from xpconv.workspace import DEFAULT_LIMIT

_FILTERS = 32  # of all results that are joined: of 64->16 on 56x56, two took 0.84 of the time of one, four 0.94
_OF_LIMIT = 32  # bytes of the workspace limit for each element of a weight, which is made for each call
_FEW = 8  # filters fewer than which are joined where a call is small: of 3->8 on 28x28 all takes 28 us joined, and 18
_MANY = 1 << 10  # their results, for which a weight that is made, and a look at the results, take 15 us
_COPIES = 8  # elements of patches for each of the weight, at least: 6->16 on 14x14, N = 1, took twice as long joined


@lru_cache(maxsize=1024)
def results(spec: ConvSpec, limit: int = DEFAULT_LIMIT) -> int:
    """How many one product makes: a divisor of those of a row, and no more than half of what it multiplies is zero."""
    if spec.groups > 1 or spec.filters_planes or spec.dilation[-1] > 1 or spec.window[-1] == 1:
        return 1
    most = min(_FILTERS // max(spec.filters, 1), 1 + spec.window[-1] // spec.stride[-1], spec.out_size[-1])

    def row(count: int) -> int:
        """Of the weight, of every channel."""
        return ((count - 1) * spec.stride[-1] + spec.window[-1]) * count * spec.filters

    rows = math.prod(spec.window[:-1]) * spec.channels
    counts = (n for n in range(most, 1, -1) if spec.out_size[-1] % n == 0 and row(n) * rows <= limit // _OF_LIMIT)
    count = next(counts, 1)
    return count if spec.batch * math.prod(spec.out_size) * spec.window[-1] > _COPIES * row(count) else 1


def pays_at_once(spec: ConvSpec) -> bool:
    """Whether results of a small call are better joined."""
    is_large = spec.filters < _FEW and spec.batch * math.prod(spec.out_size) >= _MANY
    return is_large and results(spec) > 1


@lru_cache(maxsize=1024)
def wide(spec: ConvSpec, limit: int = DEFAULT_LIMIT) -> ConvSpec:
    """The correlation whose results are those that are joined, of a `wide_weight`: (N, *out, results * F)."""
    count = results(spec, limit)
    if count == 1:
        return spec
    span = (count - 1) * spec.stride[-1] + spec.window[-1]
    return replace(
        spec, window=(*spec.window[:-1], span), stride=(*spec.stride[:-1], count * spec.stride[-1]),
        filters=count * spec.filters, flip=False,
    )  # fmt: skip


def wide_weight(spec: ConvSpec, limit: int = DEFAULT_LIMIT) -> Callable[[Array], Array]:
    """A function of w (*window, C, F): every result's, one below and beside the other, (*window, C, results * F)."""
    count, turns = results(spec, limit), (slice(None, None, -1),) * spec.axes
    window, filters = wide(spec, limit).window, wide(spec, limit).filters
    shape = (*window, spec.channels, count, spec.filters)
    places = (count, *spec.window, spec.channels, spec.filters)
    further = spec.stride[-1] * spec.channels * filters + spec.filters  # elements from one result's weights to the next

    def widened(w: Array) -> Array:
        made = np.zeros(shape, w.dtype)
        strides = (further * w.itemsize, *made.strides[:-2], made.strides[-1])
        np.ndarray(places, w.dtype, made, 0, strides)[...] = w[turns] if spec.flip else w
        return made.reshape(*window, spec.channels, filters)

    return widened
