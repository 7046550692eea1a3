"""Small convolutions by NumPy, in one go: what is prepared is repeated, and computes a first call as well.

It is a function of arrays as the layout has them, whatever axes of one element they lack, and gives the result in the
layout's order, in other axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from xpconv.cpu import joined, small, small_products, spectra
from xpconv.cpu.costs import direct_by
from xpconv.cpu.plan import padded_bytes, row_bytes
from xpconv.cpu.planes import finite
from xpconv.engines.finishing import in_place
from xpconv.plan import conv_operations
from xpconv.spec import Array, ConvSpec, Sizes
from xpconv.workspace import current_limit

Sums = Callable[[Array, Array], Any]


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
    finish = None if activation is None else in_place(activation, dtype)
    one = (spec.batch, spec.channels, spec.filters) == (1, 1, 1)
    is_shaped = one and method != "gemm" and shape == spec.out_size  # filters of a signal or a plane give it so

    def computed(x: Array, w: Array, bias: Array | None) -> Any:
        y = sums(x, w)
        if y is None:
            return NotImplemented
        if bias is not None:
            np.add(y, bias[:, None] if turned else bias, y)
        if finish is not None:
            finish(y)
        return y if is_shaped else y.reshape(shape)

    return computed


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
    if method != "gemm" or not few or spec.groups > 1 or _copied(spec, dtype) > limit:
        return None
    if joined.pays_at_once(spec) and not small_products.are_columns(spec):
        return _joined(spec, small_products.product(joined.wide(spec), dtype, fill))
    return small_products.product(spec, dtype, fill)


def conv_grad_weight(dtype: Any, spec: ConvSpec) -> Sums | None:
    """A function of x and gy; None for what is not small."""
    return _conv_grad_weight(dtype, spec, current_limit())


@lru_cache(maxsize=256)
def _conv_grad_weight(dtype: Any, spec: ConvSpec, limit: int) -> Sums | None:
    surrounds = spec.padding_mode == "zeros" and min(min(pads) for pads in spec.padding) >= 0
    few = 0 < conv_operations(spec) < 2 * small.MOST and _copied(spec, dtype) <= limit
    if not few or not surrounds or spec.input_dilation or spec.groups > 1 or dtype.char not in "fd":
        return None
    return small_products.weight_gradient(spec, dtype)


def _copied(spec: ConvSpec, dtype: Any) -> int:
    """Bytes of all patches, and of the input with what is put around it."""
    patches = spec.batch * spec.out_size[0] * row_bytes(spec, dtype.itemsize)
    return patches + padded_bytes(spec, dtype.itemsize)


def _joined(spec: ConvSpec, multiply: Sums) -> Sums:
    """A product of results beside each other, or None if one is not finite."""
    weight, filters, w_shape = joined.wide_weight(spec), spec.filters, spec.w_shape

    def summed(x: Array, w: Array) -> Array | None:
        with np.errstate(over="ignore", invalid="ignore"):  # zeros times what is not finite
            y = multiply(x, weight(w.reshape(w_shape)))
        return y.reshape(-1, filters) if finite(y) else None

    return summed
