"""Small convolutions and poolings by NumPy, in one go: what is prepared is repeated, and computes a first call as well.

It is a function of arrays as the layout has them, whatever axes of one element they lack, and gives the result in the
layout's order, in other axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from xpconv.activations import ACTIVATIONS, LEAK
from xpconv.cpu import joined, small, small_pools, small_products, spectra
from xpconv.cpu.costs import direct_by
from xpconv.cpu.plan import row_bytes
from xpconv.cpu.planes import finite
from xpconv.engines import pooled
from xpconv.engines.agnostic import divisors_of
from xpconv.plan import conv_operations
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes
from xpconv.workspace import current_limit

Sums = Callable[[Array, Array], Any]


# --- Convolution ------------------------------------------------------------------------------------------------------


def conv(
    dtype: Any, method: str, spec: ConvSpec, fill: complex, activation: str | None, shape: Sizes
) -> Callable[[Array, Array, Array | None], Any] | None:
    """A function of x, w and bias, whose result has the shape; None for what is not small.

    It gives NotImplemented where the result cannot be used.
    """
    sums = _sums(dtype, method, spec, fill, current_limit())
    if sums is None:
        return None
    turned = spec.layout == "channels_first" and spec.filters > 1
    finish = None if activation is None else _finish(activation, dtype)

    def computed(x: Array, w: Array, bias: Array | None) -> Any:
        y = sums(x, w)
        if y is None:
            return NotImplemented
        if bias is not None:
            np.add(y, bias[:, None] if turned else bias, y)
        if finish is not None:
            finish(y)
        return y.reshape(shape)

    return computed


def _finish(activation: str, dtype: Any) -> Callable[[Array], Any]:
    """The activation in place; an array of no axes is read in half the time of a number."""
    zero, leak = np.zeros((), dtype), np.array(LEAK, dtype)

    def by_name(y: Array) -> None:
        y[...] = ACTIVATIONS[activation](y)

    return {
        "relu": lambda y: np.maximum(y, zero, out=y),
        "leaky_relu": lambda y: np.maximum(y, leak * y, out=y),
        "tanh": lambda y: np.tanh(y, out=y),
    }.get(activation, by_name)


@lru_cache(maxsize=256)  # for calls that are planned each time, such as those of an input gradient
def _sums(dtype: Any, method: str, spec: ConvSpec, fill: complex, limit: int) -> Sums | None:
    """The sums of products."""
    surrounds = spec.padding_mode in ("zeros", "constant") and min(min(pads) for pads in spec.padding) >= 0
    if not surrounds or spec.input_dilation or dtype.char not in "fd" or 0 in (*spec.x_shape, *spec.w_shape):
        return None
    if method == "direct" and direct_by(spec) == "bands" and small.is_plane(spec):
        return small.plane(spec, dtype, fill) if small.sums(spec) * dtype.itemsize <= limit else None
    if method == "direct" and direct_by(spec) == "bands" and small.is_signal(spec):
        return small.signal(spec, dtype, fill) if 4 * spec.padded_size[0] * dtype.itemsize <= limit else None
    if method == "direct" and direct_by(spec) == "patches":
        held = conv_operations(spec) * dtype.itemsize  # the patches, and the products
        return small_products.channelwise(spec, dtype, fill) if held <= limit else None
    if method == "fft" and spectra.is_at_once(spec):
        held = 8 * math.prod(spec.padded_size) * dtype.itemsize
        return spectra.at_once(spec, dtype, fill) if held <= limit else None
    few = conv_operations(spec) < 2 * small.MOST
    if method == "direct" and direct_by(spec) == "loop" and (few or small.is_uncopied(spec, fill)):
        return small.loop(spec, dtype, fill)
    patches = spec.batch * spec.out_size[0] * row_bytes(spec, dtype.itemsize)
    if method != "gemm" or not few or spec.groups > 1 or patches > limit:
        return None
    if small_products.are_columns(spec) or joined.results(spec) == 1:
        return small_products.product(spec, dtype, fill)
    return _joined(spec, small_products.product(joined.wide(spec), dtype, fill))


def conv_grad_weight(dtype: Any, spec: ConvSpec) -> Sums | None:
    """A function of x and gy; None for what is not small."""
    return _conv_grad_weight(dtype, spec, current_limit())


@lru_cache(maxsize=256)
def _conv_grad_weight(dtype: Any, spec: ConvSpec, limit: int) -> Sums | None:
    surrounds = spec.padding_mode == "zeros" and min(min(pads) for pads in spec.padding) >= 0
    patches = spec.batch * spec.out_size[0] * row_bytes(spec, dtype.itemsize)
    few = 0 < conv_operations(spec) < 2 * small.MOST and patches <= limit
    if not few or not surrounds or spec.input_dilation or spec.groups > 1 or dtype.char not in "fd":
        return None
    return small_products.weight_gradient(spec, dtype)


def _joined(spec: ConvSpec, multiply: Sums) -> Sums:
    """A product of results beside each other, or None if one is not finite."""
    weight, filters, w_shape = joined.wide_weight(spec), spec.filters, spec.w_shape

    def summed(x: Array, w: Array) -> Array | None:
        with np.errstate(over="ignore", invalid="ignore"):  # zeros times what is not finite
            y = multiply(x, weight(w.reshape(w_shape)))
        return y.reshape(-1, filters) if finite(y) else None

    return summed


# --- Pooling ----------------------------------------------------------------------------------------------------------


def pool(
    operation: str, dtype: Any, spec: PoolSpec, options: dict[str, Any], shape: Sizes | None = None
) -> Callable[[Array], Array] | None:
    """A function of x, for maxima, sums and means of small maps, whose result has the shape; None for anything else."""
    merge, shape = _MERGED.get(operation), spec.y_shape if shape is None else shape
    if merge is None or options.get("return_indices") or dtype.char not in "fd" or not small_pools.fits(spec, dtype):
        return None
    divisor = pooled.shared_divisor(spec, **options) if operation == "avg_pool" else 1.0
    if operation == "avg_pool" and divisor is not None and small_pools.is_product(spec, dtype, divisor):
        mean = small_pools.mean(spec, dtype, divisor)
        return lambda x: mean(x).reshape(shape)
    merged = small_pools.merged(spec, dtype, merge, -math.inf if merge is np.maximum else 0)
    if operation != "avg_pool":
        return lambda x: merged(x).reshape(shape)
    if divisor is None:
        divisors = divisors_of(np.empty(spec.y_shape, dtype), spec, options["count_include_pad"])
        by = np.broadcast_to(divisors, spec.y_shape).reshape(-1)
    else:
        by = np.array(divisor, dtype)

    def averaged(x: Array) -> Array:
        y = merged(x)
        return np.divide(y, by, y).reshape(shape)

    return averaged


_MERGED = {"max_pool": np.maximum, "sum_pool": np.add, "avg_pool": np.add}
