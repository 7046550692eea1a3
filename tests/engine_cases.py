"""Calls that an engine must answer as the reference does: every parameter, in channels-last NumPy shapes.

The values are small integers, so that sums of products are exact in any order.
"""

from unittest import mock

import numpy as np

import xpconv
from xpconv import dispatch
from xpconv.engines import agnostic

FIRST = "channels_first"

# name: shape of x, shape of w, options
CONVOLUTIONS = {
    "signal": ((2, 9, 3), (3, 3, 4), {}),
    "image": ((2, 7, 8, 3), (3, 2, 3, 4), {}),
    "volume": ((2, 5, 6, 4, 2), (2, 3, 2, 2, 3), {}),
    "four spatial axes": ((1, 4, 3, 4, 3, 2), (2, 2, 1, 2, 2, 3), {"padding": 1, "stride": (1, 2, 1, 1)}),
    "single image": ((7, 8, 3), (3, 3, 3, 2), {}),
    "empty batch": ((0, 7, 8, 3), (3, 3, 3, 2), {"padding": 1}),
    "empty axis with padding": ((2, 0, 5, 3), (2, 3, 3, 2), {"padding": 2}),
    "no channels": ((2, 5, 5, 0), (3, 3, 0, 2), {}),
    "stride": ((2, 8, 9, 2), (3, 2, 2, 3), {"stride": (2, 3)}),
    "stride wider than the window": ((1, 11, 2), (2, 2, 3), {"stride": 4}),
    "dilation": ((2, 9, 8, 2), (3, 2, 2, 3), {"dilation": (2, 3)}),
    "stride, dilation, remainder": ((2, 13, 12, 2), (3, 2, 2, 3), {"stride": (3, 4), "dilation": (2, 3), "padding": 1}),
    "groups": ((2, 6, 7, 4), (3, 3, 2, 6), {"groups": 2, "stride": 2, "padding": 1}),
    "groups of a signal": ((2, 9, 6), (3, 2, 9), {"groups": 3}),
    "depthwise": ((2, 6, 7, 4), (3, 3, 1, 4), {"groups": 4}),
    "depthwise, two maps each": ((2, 6, 7, 3), (3, 3, 1, 6), {"groups": 3}),
    "padding": ((2, 5, 6, 2), (3, 3, 2, 3), {"padding": (1, 2)}),
    "padding wider than the window": ((1, 4, 5, 2), (2, 3, 2, 3), {"padding": 5, "stride": 2}),
    "asymmetric padding": ((2, 5, 6, 2), (3, 3, 2, 3), {"padding": ((1, 2), (0, 3)), "stride": (2, 1)}),
    "asymmetric padding of a signal": ((2, 5, 2), (3, 2, 3), {"padding": ((0, 2),)}),
    "full": ((2, 5, 6, 2), (3, 2, 2, 3), {"padding": "full", "dilation": (1, 2)}),
    "same": ((2, 5, 6, 2), (3, 4, 2, 3), {"padding": "same", "stride": 2}),
    "same_upper": ((2, 5, 6, 2), (3, 4, 2, 3), {"padding": "same_upper", "stride": 2}),
    "same_lower": ((2, 5, 6, 2), (3, 4, 2, 3), {"padding": "same_lower", "stride": 2}),
    "edge": ((2, 5, 6, 2), (3, 3, 2, 3), {"padding": ((1, 2), (0, 3)), "padding_mode": "edge"}),
    "reflect": ((2, 5, 6, 2), (3, 3, 2, 3), {"padding": ((1, 2), (0, 3)), "padding_mode": "reflect", "stride": 2}),
    "symmetric": ((2, 5, 6, 2), (3, 3, 2, 3), {"padding": "same", "padding_mode": "symmetric"}),
    "wrap": ((2, 5, 6, 4), (3, 3, 2, 4), {"padding": 1, "padding_mode": "wrap", "groups": 2}),
    "wrap beyond the axis": ((2, 3, 2), (3, 2, 3), {"padding": 8, "padding_mode": "circular"}),
    "reflect beyond the axis": ((1, 3, 2, 2), (2, 2, 2, 3), {"padding": 5, "padding_mode": "reflect"}),
    "edge of a volume": ((1, 3, 3, 2, 2), (2, 2, 2, 2, 1), {"padding": 1, "padding_mode": "replicate"}),
}

# name: shape of x, window, options
POOLINGS = {
    "signal": ((2, 9, 3), 2, {}),
    "image": ((2, 8, 9, 5), (2, 3), {}),
    "volume": ((2, 4, 5, 6, 4), 2, {}),
    "four spatial axes": ((1, 4, 3, 4, 3, 2), 2, {"stride": 1}),
    "single image": ((8, 9, 3), (2, 3), {}),
    "plain image": ((8, 9), (2, 3), {}),
    "empty batch": ((0, 8, 9, 3), (2, 2), {}),
    "no channels": ((2, 8, 9, 0), (2, 2), {}),
    "stride": ((2, 8, 9, 3), (3, 2), {"stride": (1, 3)}),
    "padding": ((2, 7, 8, 4), 3, {"padding": 1, "stride": 2}),
    "padding of a signal": ((2, 7, 4), 4, {"padding": 2, "stride": 3}),
    "padding of a volume": ((1, 4, 4, 4, 2), 3, {"padding": 1, "stride": 2}),
    "padding wider than half the window": ((2, 5, 6, 3), (2, 2), {"padding": 2, "stride": 1}),
    "asymmetric padding": ((2, 5, 6, 3), (3, 3), {"padding": ((0, 1), (1, 0)), "stride": 2}),
    "same_upper": ((2, 5, 6, 3), (2, 3), {"padding": "same_upper", "stride": 2}),
    "dilation": ((2, 8, 9, 3), (2, 3), {"dilation": (2, 3), "stride": 1}),
    "dilation with padding": ((2, 3, 4, 3), (2, 2), {"dilation": 3, "stride": 1, "padding": 2}),
    "windows of padding alone": ((2, 2, 4, 3), (2, 2), {"dilation": 3, "stride": 1, "padding": 1}),
    "ceil": ((2, 7, 8, 3), (2, 3), {"ceil_mode": True}),
    "ceil with a stride": ((2, 5, 9, 3), (2, 3), {"ceil_mode": True, "stride": (4, 3)}),
    "ceil with padding": ((2, 6, 7, 3), (3, 3), {"ceil_mode": True, "stride": 2, "padding": 1}),
    "ceil with asymmetric padding": ((2, 6, 7, 3), (3, 3), {"ceil_mode": True, "stride": 2, "padding": ((0, 1),) * 2}),
    "ceil with dilation": ((2, 9, 8, 3), (2, 2), {"ceil_mode": True, "stride": 3, "dilation": 2}),
}

PADDED = ["image", "padding", "asymmetric padding", "dilation with padding", "ceil with padding"]

AVERAGES = {
    "elements": {},
    "elements and padding": {"count_include_pad": True},
    "divisor": {"divisor": 2.5},
    "divisor and padding": {"count_include_pad": True, "divisor": -3},
}

TRANSPOSED = {
    "signal": ((2, 5, 3), (3, 4, 3), {"stride": 2}),
    "image": ((2, 4, 5, 3), (3, 2, 4, 3), {"stride": (2, 1), "padding": 1}),
    "output padding": ((2, 4, 5, 3), (3, 3, 4, 3), {"stride": 3, "padding": 1, "output_padding": (2, 1)}),
    "output padding beyond the padding": ((2, 4, 2), (3, 4, 2), {"stride": 3, "output_padding": 2}),
    "output padding by dilation": ((2, 4, 2), (2, 4, 2), {"dilation": 3, "padding": 1, "output_padding": 2}),
    "asymmetric": ((2, 4, 5, 3), (3, 4, 4, 3), {"stride": 2, "padding": ((0, 1), (2, 1))}),
    "padding wider than the window": ((1, 9, 2), (2, 3, 2), {"padding": 3}),
    "same_upper": ((2, 4, 5, 3), (3, 2, 4, 3), {"stride": 2, "padding": "same_upper"}),
    "groups": ((2, 4, 5, 6), (3, 3, 2, 6), {"stride": 2, "groups": 2}),
    "volume": ((1, 3, 2, 3, 2), (2, 2, 2, 3, 2), {"stride": 2}),
    "four spatial axes": ((1, 2, 2, 3, 2, 2), (2, 2, 2, 2, 3, 2), {"stride": 2}),
    "single": ((4, 5, 3), (3, 2, 4, 3), {}),
}


def integers(*shape, seed=0, dtype="float64"):
    """Small integers in any dtype, with an imaginary part where the dtype is complex."""
    rng = np.random.default_rng(seed)
    low = 0 if np.dtype(dtype).kind == "u" else -4
    values = rng.integers(low, 5, shape)
    return (values + 1j * rng.integers(-4, 5, shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


def reference(function, *arrays, **options):
    """What the agnostic engine makes of NumPy arrays."""
    with mock.patch.object(dispatch, "engine_for", return_value=agnostic):
        return function(*arrays, **options)


def maps_first(x, axes):
    """Feature maps (N, *size, C) or (*size, C) as (N, C, *size) or (C, *size); a plain image as it is."""
    return x if x.ndim == axes else np.moveaxis(x, -1, -1 - axes)


def weight_first(w):
    """A weight (*window, C / groups, F) as (F, C / groups, *window)."""
    return w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2))


def spatial_size(x, window, layout):
    """The sizes of x that the window slides along; a plain image has no others."""
    axes = len(window)
    return x.shape[-axes:] if layout == FIRST or x.ndim == axes else x.shape[-axes - 1 : -1]


def conv_arrays(case, layout, dtype="float64"):
    """x and w of a row of `CONVOLUTIONS` or `TRANSPOSED`, and its options with the layout."""
    x_shape, w_shape, options = case
    x, w = integers(*x_shape, dtype=dtype), integers(*w_shape, seed=1, dtype=dtype)
    if layout == FIRST:
        x, w = maps_first(x, w.ndim - 2), weight_first(w)
    return x, w, {**options, "layout": layout}


def gradients_of_conv(case, layout, family, dtype="float64"):
    """x, w, a gradient of the result's shape, the spatial sizes of x and w, and the options of the gradients."""
    x, w, options = conv_arrays(case, layout, dtype)
    gy = integers(*reference(getattr(xpconv, family), x, w, **options).shape, seed=2, dtype=dtype)
    window = w.shape[2:] if layout == FIRST else w.shape[:-2]
    return x, w, gy, spatial_size(x, window, layout), window, options


def pool_arrays(case, layout, dtype="float64"):
    """x and the window of a row of `POOLINGS`, and its options with the layout; no two values of x are equal."""
    shape, window, options = case
    axes = len(window) if isinstance(window, tuple) else len(shape) - 2
    x = np.random.default_rng(3).permutation(int(np.prod(shape))).reshape(shape).astype(dtype)
    x = maps_first(x, axes) if layout == FIRST else x
    return x, window if isinstance(window, tuple) else (window,) * axes, {**options, "layout": layout}
