"""Convolution, correlation, their transposes and gradients: what a call means, handed to the array's engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

from xpconv.activations import checked_activation
from xpconv.dispatch import arrays_of, cast_fill, check_out, promoted
from xpconv.request import Request
from xpconv.spec import (
    Array,
    Form,
    Layout,
    Padding,
    PerAxis,
    axes_of,
    check_bias,
    checked_layout,
    checked_padding_mode,
    conv_grad_input_spec,
    conv_grad_weight_spec,
    conv_spec,
    conv_transpose_spec,
    one_of,
    padding_per_axis,
    per_axis,
    whole_number,
)
from xpconv.variants import Variant, public

Activation = str | Callable[[Array], Array] | None
PRECISIONS = ("highest", "tf32")


# --- Forward ----------------------------------------------------------------------------------------------------------


def _conv(
    variant: Variant,
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "valid",
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    fill_value: complex = 0,
    activation: Activation = None,
    layout: Layout = "channels_last",
    dtype: Any = None,
    precision: str = "highest",
    method: str = "auto",
    out: Array | None = None,
) -> Request:
    """$summary
    $flip

    ``y[i] = sum over k of x_padded[i * stride + $read * dilation] * w[k]``, over the window and the channels of a
    group, for every filter; then ``phi(y + bias)``. Complex values are never conjugated.

    Parameters
    ----------
    x : array of shape (N, *size, C), or (*size, C) for a single item
        channels_first: (N, C, *size). $plain
    w : array of shape (*window, C / groups, F)
        channels_first: (F, C / groups, *window). $one_map
    bias : array of shape (F,), optional
        Added to every position of its filter's map.
    stride, dilation : int or one int per spatial axis
        Elements between two windows, and between two taps of a window.
    padding : str, int, one int per spatial axis, or one (before, after) per spatial axis
        "valid" pads nothing, "full" (m - 1) * dilation on both sides. "same" puts the kernel's centre tap,
        w[(m - 1) // 2], on every stride-th element of `x`: ceil(size / stride) results. "same_upper" and "same_lower"
        make as many, with the odd element of the padding after or before: TensorFlow's and ONNX's SAME.
    groups : int
        Filters f and channels c are cut into this many groups, and each filter reads only its own; groups=C is
        depthwise.
    padding_mode : {"zeros", "constant", "edge", "reflect", "symmetric", "wrap"}
        What surrounds `x`, in the words of `numpy.pad`; "replicate" is "edge", "circular" is "wrap".
    fill_value : number
        For padding_mode="constant", cast to x's dtype.
    activation : {"relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"} or callable, optional
        phi, a callable taking the array.
    layout : {"channels_last", "channels_first"}
    dtype : optional
        A dtype wider than ``result_type(x, w)`` for the sums and the result.
    precision : {"highest", "tf32"}
        Of float32 on a GPU: as exact as float32 arithmetic, or rounded to 10 bits of fraction for speed.
    method : str
        "auto", or what the array's engine has. NumPy and CuPy: "direct", "gemm" and "fft"; NumPy also "winograd", at
        stride 1 for windows of 3 by 3, 4 by 4 and 5 by 5 on the last two axes, and of 3 or more on a single axis, and
        at stride 2 for such windows of images; torch and JAX: "auto" alone; other libraries: "direct" and "fft".
        "fft" rounds integers back, exact below 2^53; "winograd" errs by up to 3e-5 of the largest result in float32.
    out : array, optional
        Where the result is written; right shape and dtype, its own memory.

    Returns
    -------
    array of shape (N, *out, F), in the layout, the library and on the device of `x`
        out = floor((size + before + after - ((m - 1) * dilation + 1)) / stride) + 1; without the axes that `x` or `w`
        did not have.

    Raises
    ------
    ValueError
        For shapes and values; a window that does not fit the padded input is one.
    TypeError
        For arrays of two libraries or devices, and for bool or object arrays.

    Examples
    --------
    $example
    """
    name = variant.name
    user_out = out
    x, w, bias, out = arrays_of(name, x=x, w=w, bias=bias, out=out)
    fill = cast_fill(fill_value, padding_mode := checked_padding_mode(padding_mode), x)
    geometry = _geometry(variant, w, stride, padding, dilation, groups, layout)
    spec, form = conv_spec(tuple(x.shape), tuple(w.shape), padding_mode=padding_mode, **geometry)
    one_of("precision", precision, PRECISIONS)
    check_out(user_out, x=x, w=w, bias=bias)
    x, w, bias = promoted(name, dtype, x, w, bias)
    named, called = _activation(name, activation, x)
    options = {"fill_value": fill, "activation": named, "precision": precision, "method": method}
    return Request(
        "conv", (x, w, _bias(bias, spec.filters, form)), spec, options,
        lift=(form.x, form.w), drop=form.y, then=called, out=user_out,
    )  # fmt: skip


def _conv_transpose(
    variant: Variant,
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "valid",
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    activation: Activation = None,
    layout: Layout = "channels_last",
) -> Request:
    """$summary
    $flip

    Every element of `x` lays down the kernel, scaled, `stride` apart, and what overlaps adds up. It is the adjoint of
    `$forward` in its input, and takes the very weight that `$forward` takes from F to C channels.

    Parameters
    ----------
    x : array of shape (N, *size, C), or (*size, C) for a single item
        channels_first: (N, C, *size). $plain
    w : array of shape (*window, F / groups, C)
        channels_first: (C, F / groups, *window). $one_map
    bias : array of shape (F,), optional
    stride, padding, dilation, groups, layout
        Of the `$forward` whose adjoint this is.
    output_padding : int or one int per spatial axis
        Elements more at the end, smaller than the stride or the dilation: the sizes that `$forward` rounds down.
    activation : str or callable, optional
        As in `$forward`.

    Returns
    -------
    array of shape (N, *out, F)
        out = (size - 1) * stride - before - after + (m - 1) * dilation + 1 + output_padding; with "same_upper" and
        "same_lower", size * stride + output_padding.

    Raises
    ------
    ValueError, TypeError
        As `$forward`.

    Examples
    --------
    $example
    """
    name = variant.name
    x, w, bias = arrays_of(name, x=x, w=w, bias=bias)
    geometry = _geometry(variant, w, stride, padding, dilation, groups, layout)
    extra = per_axis("output_padding", output_padding, len(geometry["stride"]), least=0)
    spec, form = conv_transpose_spec(tuple(x.shape), tuple(w.shape), output_padding=extra, **geometry)
    x, w, bias = promoted(name, None, x, w, bias)
    named, called = _activation(name, activation, x)
    arrays, lift = (x, w, _bias(bias, spec.channels, form)), (form.x, form.w)
    return Request("conv_grad_input", arrays, spec, {"activation": named}, lift=lift, drop=form.y, then=called)


# --- Gradients --------------------------------------------------------------------------------------------------------


def _conv_grad_input(
    variant: Variant,
    gy: Array,
    w: Array,
    *,
    size: PerAxis,
    stride: PerAxis = 1,
    padding: Padding = "valid",
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: Layout = "channels_last",
) -> Request:
    """Take the gradient of `$forward` back to its input.
    $flip

    The exact adjoint, padding modes included: ``sum($forward(x, w) * gy) = sum(x * $name(gy, w))``. Complex values
    are not conjugated.

    Parameters
    ----------
    gy : array of the shape of the result, (N, *out, F) or (*out, F)
    w : array of shape (*window, C / groups, F)
    size : int or one int per spatial axis
        Spatial sizes of `x`; with a stride several of them give one result size.
    stride, padding, dilation, groups, padding_mode, layout
        Of the forward call.

    Returns
    -------
    array of the shape of x, (N, *size, C) or (*size, C)

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.ones((1, 3, 1)), np.array([1., 2.]).reshape(2, 1, 1), size=4).ravel().tolist()
    $result
    """
    gy, w = arrays_of(variant.name, gy=gy, w=w)
    axes = max(w.ndim - 2, 1)
    spec, form = conv_grad_input_spec(
        tuple(gy.shape),
        tuple(w.shape),
        name=variant.name,
        flip=variant.flip,
        size=per_axis("size", size, axes, least=0),
        padding_mode=checked_padding_mode(padding_mode),
        **_steps(axes, stride, padding, dilation, groups, layout),
    )
    gy, w = promoted(variant.name, None, gy, w)[:2]
    return Request("conv_grad_input", (gy, w, None), spec, lift=(form.x,), drop=form.y)


def _conv_grad_weight(
    variant: Variant,
    x: Array,
    gy: Array,
    *,
    window: PerAxis,
    stride: PerAxis = 1,
    padding: Padding = "valid",
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: Layout = "channels_last",
) -> Request:
    """Take the gradient of `$forward` back to its weight.
    $flip

    The exact adjoint: ``sum($forward(x, w) * gy) = sum(w * $name(x, gy))``. Complex values are not conjugated.

    Parameters
    ----------
    x : array of shape (N, *size, C) or (*size, C)
    gy : array of the shape of the result, (N, *out, F) or (*out, F)
    window : int or one int per spatial axis
        Spatial sizes of `w`. A single int means as many spatial axes as `x` has with a batch axis.
    stride, padding, dilation, groups, padding_mode, layout
        Of the forward call.

    Returns
    -------
    array of the shape of w, (*window, C / groups, F)

    Examples
    --------
    >>> import numpy as np
    >>> $name(np.arange(4.).reshape(1, 4, 1), np.ones((1, 3, 1)), window=2).ravel().tolist()
    $result
    """
    x, gy = arrays_of(variant.name, x=x, gy=gy)
    axes = axes_of(window, x.ndim)
    spec, form = conv_grad_weight_spec(
        tuple(x.shape),
        tuple(gy.shape),
        name=variant.name,
        flip=variant.flip,
        window=per_axis("window", window, axes),
        padding_mode=checked_padding_mode(padding_mode),
        **_steps(axes, stride, padding, dilation, groups, layout),
    )
    x, gy = promoted(variant.name, None, x, gy)[:2]
    return Request("conv_grad_weight", (x, gy), spec, lift=(form.x, form.x))


# --- Shared by the bodies ---------------------------------------------------------------------------------------------


def _geometry(
    variant: Variant,
    w: Array,
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
    groups: int,
    layout: Layout,
) -> dict[str, Any]:
    """What the user wrote as integers, one per spatial axis of `w`."""
    axes = variant.axes or max(w.ndim - 2, 1)
    steps = _steps(axes, stride, padding, dilation, groups, layout)
    return {"name": variant.name, "axes": variant.axes, "flip": variant.flip, **steps}


def _steps(
    axes: int, stride: PerAxis, padding: Padding, dilation: PerAxis, groups: int, layout: Layout
) -> dict[str, Any]:
    return {
        "stride": per_axis("stride", stride, axes),
        "padding": padding_per_axis(padding, axes),
        "dilation": per_axis("dilation", dilation, axes),
        "groups": whole_number("groups", groups),
        "layout": checked_layout(layout),
    }


def _activation(name: str, activation: Activation, x: Array) -> tuple[str | None, Callable[[Array], Array] | None]:
    """The activation's name, for the engine to fuse, or the callable, for the finished array."""
    checked_activation(name, activation, array_namespace(x), x.dtype)
    if callable(activation):
        return None, activation
    return activation, None


def _bias(bias: Array | None, filters: int, form: Form) -> Array | None:
    if bias is None:
        return None
    check_bias(tuple(bias.shape), filters, form)
    return bias if bias.ndim else bias[None]


# --- Public names -----------------------------------------------------------------------------------------------------

_OVER = {
    None: "the spatial axes that `w` has",
    1: "one spatial axis: signals",
    2: "two spatial axes: images",
    3: "three spatial axes: volumes",
}


def _words(family: str, axes: int | None = None) -> dict[str, str]:
    """What the docstrings of one family say: which way the kernel is read, and which shorter forms are taken."""
    flipped = family.startswith("conv")
    twin = family.replace("conv", "corr") if flipped else family.replace("corr", "conv")
    reading = "The kernel is flipped (mathematics, NumPy, SciPy)" if flipped else (
        "The kernel is not flipped (what deep learning calls \"conv\")"
    )  # fmt: skip
    number = f"{axes}d" if axes else ""
    words = {
        "flip": f"{reading}; `{twin}{number}` is the same but for the flip.",
        "forward": family[:4] + number,
        "read": "(m - 1 - k)" if flipped else "k",
        "plain": f"The numbered forms also take a plain array, see `{family}2d`.",
        "one_map": "",
    }
    if axes:
        words["plain"] = f"With `w` of {axes} axes a plain array of {axes} axes, without batch and channels."
        words["one_map"] = f"With {axes + 1} axes one map, which has no F, nor has the result."
    return words


def _forward_words(family: str, axes: int | None = None) -> dict[str, str]:
    n, verb = axes or 2, "Convolve" if family == "conv" else "Cross-correlate"
    name = f"{family}{axes}d" if axes else family
    lines = [
        ">>> import numpy as np",
        f">>> {name}(np.ones({(8, *(28,) * n, 3)}), np.ones({(*(5,) * n, 3, 16)}), stride=2).shape",
        str((8, *(12,) * n, 16)),
    ]
    if axes == 1:
        lines += [f">>> {name}([1, 2, 3, 4], [1, 0, -1]).tolist()", "[2, 2]" if family == "conv" else "[-2, -2]"]
    summary = f"{verb} `x` with `w` over {_OVER[axes]}."
    return _words(family, axes) | {"summary": summary, "example": "\n".join(lines)}


def _transpose_words(family: str, axes: int | None = None) -> dict[str, str]:
    n = axes or 2
    name = f"{family}{axes}d" if axes else family
    lines = [
        ">>> import numpy as np",
        f">>> {name}(np.ones({(8, *(7,) * n, 16)}), np.ones({(*(3,) * n, 4, 16)}), stride=2).shape",
        str((8, *(15,) * n, 4)),
    ]
    summary = f"Transposed {family[:4]} of `x` with `w` over {_OVER[axes]}."
    return _words(family, axes) | {"summary": summary, "example": "\n".join(lines)}


conv = public(_conv, Variant("conv", flip=True), **_forward_words("conv"))
conv1d = public(_conv, Variant("conv1d", 1, flip=True), **_forward_words("conv", 1))
conv2d = public(_conv, Variant("conv2d", 2, flip=True), **_forward_words("conv", 2))
conv3d = public(_conv, Variant("conv3d", 3, flip=True), **_forward_words("conv", 3))
corr = public(_conv, Variant("corr"), **_forward_words("corr"))
corr1d = public(_conv, Variant("corr1d", 1), **_forward_words("corr", 1))
corr2d = public(_conv, Variant("corr2d", 2), **_forward_words("corr", 2))
corr3d = public(_conv, Variant("corr3d", 3), **_forward_words("corr", 3))

conv_transpose = public(_conv_transpose, Variant("conv_transpose", flip=True), **_transpose_words("conv_transpose"))
conv_transpose1d = public(
    _conv_transpose, Variant("conv_transpose1d", 1, flip=True), **_transpose_words("conv_transpose", 1)
)
conv_transpose2d = public(
    _conv_transpose, Variant("conv_transpose2d", 2, flip=True), **_transpose_words("conv_transpose", 2)
)
conv_transpose3d = public(
    _conv_transpose, Variant("conv_transpose3d", 3, flip=True), **_transpose_words("conv_transpose", 3)
)
corr_transpose = public(_conv_transpose, Variant("corr_transpose"), **_transpose_words("corr_transpose"))
corr_transpose1d = public(_conv_transpose, Variant("corr_transpose1d", 1), **_transpose_words("corr_transpose", 1))
corr_transpose2d = public(_conv_transpose, Variant("corr_transpose2d", 2), **_transpose_words("corr_transpose", 2))
corr_transpose3d = public(_conv_transpose, Variant("corr_transpose3d", 3), **_transpose_words("corr_transpose", 3))

conv_grad_input = public(
    _conv_grad_input, Variant("conv_grad_input", flip=True), **_words("conv_grad_input"), result="[2.0, 3.0, 3.0, 1.0]"
)
corr_grad_input = public(
    _conv_grad_input, Variant("corr_grad_input"), **_words("corr_grad_input"), result="[1.0, 3.0, 3.0, 2.0]"
)
conv_grad_weight = public(
    _conv_grad_weight, Variant("conv_grad_weight", flip=True), **_words("conv_grad_weight"), result="[6.0, 3.0]"
)
corr_grad_weight = public(
    _conv_grad_weight, Variant("corr_grad_weight"), **_words("corr_grad_weight"), result="[3.0, 6.0]"
)
