"""JAX arrays: XLA's operators, so that `jit`, `grad`, `vmap` and `jvp` see through every call.

A gradient of a convolution is a convolution of the spec's adjoint. `DECLINED` says what is left to the agnostic
engine, on JAX's arrays all the same.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from xpconv.dtypes import widened
from xpconv.engines import agnostic
from xpconv.engines.agnostic import channels_last
from xpconv.plan import Arrays, Plan
from xpconv.spec import Array, ConvSpec, PoolSpec, ScatterSpec, in_layout

METHODS = ("auto",)

DECLINED = {
    "conv, conv_grad_input, conv_grad_weight": "integers, 5 to 30 times slower in XLA's convolution than as products",
    "max_pool": "indices; dilation, with which JAX cannot take the gradient of its maximum over windows",
    "lp_pool, unfold, fold, adaptive_max_pool, adaptive_avg_pool, global_max_pool, global_avg_pool": (
        "everything: XLA fuses what they are made of"
    ),
}

_PRECISION = {"highest": lax.Precision.HIGHEST, "tf32": lax.Precision.DEFAULT}


def plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan | None:
    """What this engine does with these arguments; None for what it leaves to the agnostic engine."""
    x = arrays[0]
    declined = {
        "conv": not _convolves(x),
        "conv_grad_input": not _convolves(x),
        "conv_grad_weight": not _convolves(x),
        "max_pool": operation == "max_pool" and not _slides(spec, options["return_indices"]),
    }
    return None if declined.get(operation) else Plan("native", "XLA's operator")


# --- Convolution ------------------------------------------------------------------------------------------------------


def conv(
    x: Array,
    w: Array,
    bias: Array | None,
    spec: ConvSpec,
    *,
    fill_value: complex,
    activation: str | None,
    precision: str,
    method: str,  # noqa: ARG001  there is one
) -> Array:
    """`lax.conv_general_dilated`, which is a correlation, of the weight or the flipped weight."""
    if not _convolves(x):
        return NotImplemented
    dtype = x.dtype
    if spec.padding_mode != "zeros":
        x = agnostic.as_layout(agnostic.pad(channels_last(x, spec.layout), spec, fill_value), spec.layout)
        spec = spec.valid
    y = _convolved(x, w, spec, precision)
    return agnostic.epilogue(channels_last(y, spec.layout), bias, activation, spec.layout, dtype)


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """The convolution with the spec's `input_adjoint`; padding other than zeros is taken back afterwards."""
    if not _convolves(gy):
        return NotImplemented
    zeros = spec.padding_mode == "zeros"
    w = agnostic.exchanged(agnostic.weight_last(w, spec.layout), spec.groups)
    adjoint = (spec if zeros else spec.valid).input_adjoint
    gx = channels_last(_convolved(gy, agnostic.weight_as(w, spec.layout), adjoint), spec.layout)
    gx = gx if zeros else agnostic.unpad(gx, spec)
    return agnostic.epilogue(gx, bias, activation, spec.layout, gy.dtype)


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """The correlation with the spec's `weight_adjoint`."""
    if not _convolves(x):
        return NotImplemented
    x, gy, dtype = channels_last(x, spec.layout), channels_last(gy, spec.layout), x.dtype
    if spec.padding_mode != "zeros":
        x, spec = agnostic.pad(x, spec), spec.valid
    adjoint = replace(spec.weight_adjoint, layout="channels_last")
    gw = _convolved(*agnostic.to_weight_adjoint(x, gy, spec), adjoint)
    return agnostic.from_weight_adjoint(gw, spec).astype(dtype)


def _convolves(x: Array) -> bool:
    return not jnp.issubdtype(x.dtype, jnp.integer)


def _convolved(x: Array, w: Array, spec: ConvSpec, precision: str = "highest") -> Array:
    """XLA's correlation, in the dtype that the sums are kept in."""
    maps, weight = _dimensions(spec)
    spatial = weight[2:]
    return lax.conv_general_dilated(
        x,
        lax.rev(w, spatial) if spec.flip else w,
        window_strides=spec.stride,
        padding=spec.padding,
        lhs_dilation=spec.input_dilation or None,
        rhs_dilation=spec.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(maps, weight, maps),
        feature_group_count=spec.groups,
        precision=_PRECISION[precision],
        preferred_element_type=jnp.float32 if x.dtype in (jnp.float16, jnp.bfloat16) else None,
    )


def _dimensions(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where feature maps have (N, C, *size), and where a weight has (F, C / groups, *window)."""
    axes = spec.axes
    if spec.layout == "channels_first":
        return tuple(range(axes + 2)), tuple(range(axes + 2))
    return (0, axes + 1, *range(1, axes + 1)), (axes + 1, axes, *range(axes))


# --- Pooling ----------------------------------------------------------------------------------------------------------


def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Any:
    """`lax.reduce_window` with `lax.max`; its gradient goes to the first maximum."""
    if not _slides(spec, return_indices):
        return NotImplemented
    return _reduced(x, spec, agnostic.lowest(jnp, x.dtype), lax.max)


def sum_pool(x: Array, spec: PoolSpec) -> Array:
    """`lax.reduce_window` with `lax.add`."""
    return _reduced(widened(x), spec, 0, lax.add).astype(x.dtype)


def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The sums, divided."""
    return agnostic.divided(sum_pool(widened(x), spec), spec, count_include_pad, divisor, x.dtype)


def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The transpose of the sums, of the divided gradient."""
    wide = widened(gy)
    shares = agnostic.divided(wide, spec, count_include_pad, divisor, wide.dtype)
    x = jax.ShapeDtypeStruct(spec.x_shape, wide.dtype)
    (gx,) = jax.linear_transpose(partial(sum_pool, spec=spec), x)(shares)
    return gx.astype(gy.dtype)


def _slides(spec: PoolSpec, return_indices: bool) -> bool:
    return not return_indices and max(spec.dilation) == 1


def _reduced(x: Array, spec: PoolSpec, start: Any, merge: Any) -> Array:
    """Every window of x, merged."""
    window, stride, dilation = (in_layout(spec.layout, 1, n, 1) for n in (spec.window, spec.stride, spec.dilation))
    none = (0, 0)
    pads = spec.reading.padding
    padding = (none, *pads, none) if spec.layout == "channels_last" else (none, none, *pads)
    start = np.asarray(start, dtype=x.dtype)
    y = lax.reduce_window(x, start, merge, window, stride, padding, window_dilation=dilation)
    return y[tuple(map(slice, spec.y_shape))]  # without the windows that `ceil_mode` drops


# --- Back to the plane ------------------------------------------------------------------------------------------------


def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every gradient added at its index; index -1 means a place behind the plane, which is dropped."""
    values, indices = _flat(widened(gy), spec), _flat(indices, spec).astype(int)
    return _plane(values, indices, spec).astype(gy.dtype)


def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """The sum of `max_pool_grad`, after all but the last of the values that share an index are made zero."""
    values, indices = _flat(y, spec), _flat(indices, spec).astype(int)
    order = jnp.arange(values.shape[1])[:, None]
    n, c = _batch_and_channels(spec)
    places = jnp.zeros((spec.batch, math.prod(spec.size), spec.channels), dtype=order.dtype)
    last = places.at[n, indices, c].max(order)[n, indices, c]
    return _plane(jnp.where(last == order, values, 0), indices, spec)


def _flat(a: Array, spec: ScatterSpec) -> Array:
    """(N, outputs, C)"""
    return jnp.reshape(channels_last(a, spec.layout), (spec.batch, math.prod(spec.out_size), spec.channels))


def _plane(values: Array, indices: Array, spec: ScatterSpec) -> Array:
    places, (n, c) = math.prod(spec.size), _batch_and_channels(spec)
    indices = jnp.where(indices < 0, places, indices)  # JAX would count a negative index from the end
    plane = jnp.zeros((spec.batch, places, spec.channels), dtype=values.dtype)
    plane = plane.at[n, indices, c].add(values, mode="drop")
    return agnostic.as_layout(jnp.reshape(plane, (spec.batch, *spec.size, spec.channels)), spec.layout)


def _batch_and_channels(spec: ScatterSpec) -> tuple[Array, Array]:
    """The indices beside the place, to be broadcast."""
    return jnp.arange(spec.batch)[:, None, None], jnp.arange(spec.channels)
