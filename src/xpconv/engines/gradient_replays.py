"""Gradients of a convolution that NumPy repeats: those of the input, which convolutions make, and of the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from xpconv.cpu.results import maker
from xpconv.engines import compiled, small
from xpconv.engines.agnostic import channels_last, exchanged, weight_as
from xpconv.engines.gradient_pieces import of_input
from xpconv.engines.methods import planned, spectral_gradient, spread_gradient
from xpconv.engines.plans import is_direct_adjoint
from xpconv.plan import conv_operations
from xpconv.request import WHOLE, Request
from xpconv.spec import Array, ConvSpec, Sizes, in_layout


def input_gradient(gy: Array, request: Request) -> Callable[..., Any] | None:
    """An input gradient as one convolution, or as one for each phase of the stride, all by kernels or all by NumPy."""
    spec, activation, strided = request.spec, request.options.get("activation"), not is_direct_adjoint(request.spec)
    if spec.padding_mode != "zeros" or (strided and spectral_gradient(gy, spec, "input")):
        return None
    spread = strided and spread_gradient(gy, spec) is not None
    in_phases = strided and not spread
    if in_phases and of_input(spec, gy.itemsize):
        return None
    layout = "channels_last" if in_phases else spec.layout  # phases are stored between each other, then turned
    parts = _phases(spec) if in_phases else [(spec.input_adjoint, WHOLE, WHOLE)]
    if not spread and not any(_kernel_of(gy, part) for part, *_ in parts):
        return _input_gradient_by_numpy(gy, layout, parts, request)
    stored, finish = compiled.stored_and_left(activation)
    shape = in_layout(layout, spec.batch, spec.size, spec.channels)
    gy, gx = channels_last(gy, spec.layout), channels_last(np.empty(shape, gy.dtype), layout)
    exchange = partial(_exchanged, lift=(*request.lift, WHOLE)[1], order=weight_order(spec), groups=spec.groups)
    w, calls = exchange(request.given[1]), []
    for part, place, taps in parts:
        kernel = "winograd" if spread else _kernel_of(gy, part)
        call = _prepared_part(kernel, gy, w[taps], gx[place], part, stored)
        if call is None:
            return None
        calls.append((call, place, taps))
    new, drop = maker(shape, gx.dtype), request.drop

    def again(gy: Array, w: Array, bias: Array | None) -> Any:
        gx, w = new(), exchange(w)
        last = channels_last(gx, layout)
        if not all(call(gy, w[taps], bias, last[place]) for call, place, taps in calls):
            return NotImplemented
        gx = compiled.laid_out(gx, spec.layout) if in_phases else gx
        return (gx if finish is None else finish(gx))[drop]

    return compiled.while_as_many_threads(again, conv_operations(spec) // 2)


_Parts: TypeAlias = list[tuple[ConvSpec, Any, Any]]
"""Convolutions, the places of the input that they make, and the taps of the weight that they read."""


def _phases(spec: ConvSpec) -> _Parts:
    phases = replace(spec, layout="channels_last").input_phases
    return [(phase.spec, (slice(None), *phase.places), phase.taps) for phase in phases]


def _input_gradient_by_numpy(gy: Array, layout: str, parts: _Parts, request: Request) -> Callable[..., Any] | None:
    """Of small convolutions; its parts are stored in the layout."""
    spec, activation, calls = request.spec, request.options.get("activation"), []
    for part, place, taps in parts:
        method = "" if 0 in part.window else planned(gy, part, "auto").method  # no tap reaches some places
        computed = small.conv(gy.dtype, method, part, 0, activation, part.y_shape)
        if computed is None:
            return None
        calls.append((computed, place, taps))
    (lift, w_lift), drop, turned = (*request.lift, WHOLE, WHOLE)[:2], request.drop, layout != spec.layout
    exchange = partial(_exchanged, lift=w_lift, order=weight_order(spec), groups=spec.groups)
    shape = in_layout(layout, spec.batch, spec.size, spec.channels)

    def again(gy: Array, w: Array, bias: Array | None) -> Any:
        gy, w, gx = channels_last(gy[lift], spec.layout) if turned else gy, exchange(w), np.empty(shape, gy.dtype)
        for computed, place, taps in calls:
            y = computed(gy, weight_as(w[taps], layout), bias)
            if y is NotImplemented:
                return NotImplemented
            gx[place] = y
        return (compiled.laid_out(gx, spec.layout) if turned else gx)[drop]

    return again


def _kernel_of(gy: Array, part: ConvSpec) -> str:
    """The kernels that compute a part, by name; "" where NumPy does, or no tap reaches its places."""
    return "" if 0 in part.window else compiled.kernel_of(gy.dtype, part, planned(gy, part, "auto").method)


def _prepared_part(
    kernel: str, gy: Array, w: Array, gx: Array, part: ConvSpec, activation: str | None
) -> Callable[..., bool] | None:
    """The kernels' call of a part; None for what they do not compute, or do not write where it belongs."""
    if not kernel or kernel == "plane" or not compiled.is_written_by(kernel, gx):
        return None
    return compiled.prepared(kernel, gy, w, gx, part, 0, activation)


def _exchanged(w: Array, *, lift: Any, order: Sizes, groups: int) -> Array:
    """The weight as the input gradient reads it, channels last."""
    w = w[lift].transpose(order)
    return w.swapaxes(-1, -2) if groups == 1 else exchanged(w, groups)


def weight_order(spec: ConvSpec) -> Sizes:
    """The axes of a weight of the spec's layout as (*window, C / groups, F)."""
    return tuple(range(spec.axes + 2)) if spec.layout == "channels_last" else (*range(2, spec.axes + 2), 1, 0)


def weight_gradient(x: Array, request: Request) -> Callable[..., Any] | None:
    """A small gradient of a weight, by NumPy."""
    spec, drop = request.spec, request.drop
    if compiled.takes_gradient(x.dtype, spec) or spectral_gradient(x, spec, "weight"):
        return None
    computed = small.conv_grad_weight(x.dtype, spec)
    return None if computed is None else lambda x, gy: computed(x, gy)[drop]
