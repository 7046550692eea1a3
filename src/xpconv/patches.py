"""Patches of an array and back: `unfold` (im2col) and its adjoint `fold`."""

from __future__ import annotations

from typing import Any

from xpconv.dispatch import arrays_of
from xpconv.request import Request
from xpconv.spec import (
    Array,
    Layout,
    Padding,
    PerAxis,
    axes_of,
    checked_layout,
    fold_spec,
    padding_per_axis,
    per_axis,
    pool_spec,
)
from xpconv.variants import Variant, public


def _unfold(
    variant: Variant,
    x: Array,
    window: PerAxis,
    *,
    stride: PerAxis = 1,
    padding: Padding = "valid",
    dilation: PerAxis = 1,
    layout: Layout = "channels_last",
) -> Request:
    """Copy out the patch that each window of `x` covers (im2col).

    ``patches[n, i, k, c] = x_padded[n, i * stride + k * dilation, c]``, so that `corr` is the product of the patches
    with the weight.

    Parameters
    ----------
    x : array of shape (N, *size, C) or (*size, C)
    window : int or one int per spatial axis
        A single int means as many spatial axes as `x` has with a batch axis.
    stride, padding, dilation
        As in `corr`; padding is zeros.
    layout : {"channels_last", "channels_first"}

    Returns
    -------
    array of shape (N, *out, *window, C); channels_first: (N, C, *window, *out)

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.arange(4).reshape(1, 4, 1), 3)[0, :, :, 0].tolist()
    [[0, 1, 2], [1, 2, 3]]
    """
    (x,) = arrays_of(variant.name, x=x)
    axes = axes_of(window, x.ndim)
    spec, form = pool_spec(
        tuple(x.shape), name=variant.name, ceil_mode=False, plain=False,
        **_geometry(axes, window, stride, padding, dilation, layout),
    )  # fmt: skip
    return Request("unfold", (x,), spec, lift=(form.x,), drop=form.y)


def _fold(
    variant: Variant,
    patches: Array,
    *,
    size: PerAxis,
    window: PerAxis,
    stride: PerAxis = 1,
    padding: Padding = "valid",
    dilation: PerAxis = 1,
    layout: Layout = "channels_last",
) -> Request:
    """Add patches up where they came from: the adjoint of `unfold` (col2im).

    ``x_padded[n, i * stride + k * dilation, c] += patches[n, i, k, c]``, and the padding is dropped.

    Parameters
    ----------
    patches : array of shape (N, *out, *window, C) or without N; channels_first: (N, C, *window, *out)
    size : int or one int per spatial axis
        Spatial sizes of the result.
    window, stride, padding, dilation, layout
        Of the `unfold` that makes such patches.

    Returns
    -------
    array of shape (N, *size, C)

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.ones((1, 2, 3, 1)), size=4, window=3).ravel().tolist()
    [1.0, 2.0, 2.0, 1.0]
    """
    (patches,) = arrays_of(variant.name, patches=patches)
    axes = max((patches.ndim - 1) // 2, 1)
    spec, form = fold_spec(
        tuple(patches.shape), size=per_axis("size", size, axes, least=0),
        **_geometry(axes, window, stride, padding, dilation, layout),
    )  # fmt: skip
    return Request("fold", (patches,), spec, lift=(form.x,), drop=form.y)


def _geometry(
    axes: int, window: PerAxis, stride: PerAxis, padding: Padding, dilation: PerAxis, layout: Layout
) -> dict[str, Any]:
    return {
        "window": per_axis("window", window, axes),
        "stride": per_axis("stride", stride, axes),
        "padding": padding_per_axis(padding, axes),
        "dilation": per_axis("dilation", dilation, axes),
        "layout": checked_layout(layout),
    }


unfold = public(_unfold, Variant("unfold"))
fold = public(_fold, Variant("fold"))
