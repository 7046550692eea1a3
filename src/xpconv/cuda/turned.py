"""Channels-first convolutions by the kernels that read channels last: turned, computed, and turned back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cupy

from xpconv.cuda import layout
from xpconv.cuda.plans.turning import Turn
from xpconv.spec import Array, ConvSpec, Sizes
from xpconv.workspace import current_limit, workspace_limit

Convolution = Callable[[Array, Array, Array | None, ConvSpec], Array]
Gradient = Callable[[Array, Array, ConvSpec], Array]


def maps(compute: Convolution, x: Array, w: Array, bias: Array | None, spec: ConvSpec, turn: Turn, to: Sizes) -> Array:
    """Feature maps of shape `to` of `compute`, which takes and gives channels last, some items at a time."""
    spec, w = replace(spec, layout="channels_last"), layout.weight_as(w, "channels_first", "filters_last")
    y = cupy.empty(to, dtype=x.dtype)
    with workspace_limit(max(current_limit() - turn.workspace, 1)):
        for first in range(0, spec.batch, turn.items):
            part = x[first : first + turn.items]
            last = compute(layout.as_channels_last(part), w, bias, replace(spec, batch=part.shape[0]))
            if last is NotImplemented:
                return last
            layout.fill(y[first : first + turn.items], cupy.moveaxis(last, -1, 1))
    return y


def weight_gradient(compute: Gradient, x: Array, gy: Array, spec: ConvSpec, turn: Turn) -> Array:
    """The gradient (F, C / G, *window) of `compute`, which takes and gives channels last."""
    last = replace(spec, layout="channels_last")
    with workspace_limit(max(current_limit() - turn.workspace, 1)):
        gw = compute(layout.as_channels_last(x), layout.as_channels_last(gy), last)
    return gw if gw is NotImplemented else layout.weight_as(gw, "filters_last", "channels_first")
