"""Channels-first convolutions by the kernels that read channels last: turned, computed, and turned back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cupy

from xpconv.cuda import layout
from xpconv.spec import Array, ConvSpec

Convolution = Callable[[Array, Array, Array | None, ConvSpec], Array]


def maps(compute: Convolution, x: Array, w: Array, bias: Array | None, spec: ConvSpec, items: int) -> Array:
    """Feature maps (N, F, *out) of `compute`, which takes and gives channels last, so many items at a time."""
    spec, w = replace(spec, layout="channels_last"), layout.weight_as(w, "channels_first", "filters_last")
    parts = []
    for first in range(0, spec.batch, items):
        part = x[first : first + items]
        y = compute(layout.as_channels_last(part), w, bias, replace(spec, batch=part.shape[0]))
        if y is NotImplemented:
            return y
        parts.append(layout.as_channels_first(y))
    return parts[0] if len(parts) == 1 else cupy.concatenate(parts)


def weight_gradient(compute: Callable[[Array, Array, ConvSpec], Array], x: Array, gy: Array, spec: ConvSpec) -> Array:
    """The gradient (F, C / G, *window) of `compute`, which takes and gives channels last."""
    last = replace(spec, layout="channels_last")
    gw = compute(layout.as_channels_last(x), layout.as_channels_last(gy), last)
    return gw if gw is NotImplemented else layout.weight_as(gw, "filters_last", "channels_first")
