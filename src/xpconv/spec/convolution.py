"""Specs of convolutions, of their transposes and of their gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from xpconv.spec.forms import (
    Form,
    batch_form,
    check_fit,
    check_gradient,
    check_groups,
    check_padding_source,
    check_rank,
    check_sizes,
    conv_form,
    lifted,
    split,
    split_weight,
    transpose_form,
)
from xpconv.spec.padding import named_padding, resolved_padding
from xpconv.spec.windows import ConvSpec, Pairs, Sizes, in_layout


@lru_cache(maxsize=4096)
def conv_spec(
    x_shape: Sizes,
    w_shape: Sizes,
    *,
    name: str,
    axes: int | None,
    flip: bool,
    stride: Sizes,
    padding: str | Pairs,
    dilation: Sizes,
    groups: int,
    padding_mode: str,
    layout: str,
) -> tuple[ConvSpec, Form]:
    """Geometry of a forward convolution; `axes` is None where the weight tells, and plain forms are then excluded."""
    shapes = f"shapes: x {x_shape}, w {w_shape}"
    form = conv_form(name, len(x_shape), len(w_shape), axes, layout, shapes)
    batch, size, channels = split(layout, lifted(x_shape, form.x))
    window, per_group, filters = split_weight(layout, lifted(w_shape, form.w))
    check_sizes("x", x_shape)
    check_sizes("w", w_shape)
    check_groups("x", channels, "w", per_group, filters, groups, shapes)
    resolved = resolved_padding(padding, size, window, stride, dilation, flip)
    spec = ConvSpec(
        layout, batch, channels, size, window, stride, dilation, resolved, filters, groups, flip, padding_mode
    )
    check_fit(spec)
    check_padding_source(spec)
    return spec, form


@lru_cache(maxsize=4096)
def conv_transpose_spec(
    x_shape: Sizes,
    w_shape: Sizes,
    *,
    name: str,
    axes: int | None,
    flip: bool,
    stride: Sizes,
    padding: str | Pairs,
    output_padding: Sizes,
    dilation: Sizes,
    groups: int,
    layout: str,
) -> tuple[ConvSpec, Form]:
    """Geometry of the forward convolution whose input gradient is the transposed convolution of `x`."""
    shapes = f"shapes: x {x_shape}, w {w_shape}"
    form = transpose_form(conv_form(name, len(x_shape), len(w_shape), axes, layout, shapes))
    batch, given, filters = split(layout, lifted(x_shape, form.x))
    window, per_group, w_filters = split_weight(layout, lifted(w_shape, form.w))
    check_sizes("x", x_shape)
    check_sizes("w", w_shape)
    if filters != w_filters:
        raise ValueError(f"x has {filters} channels but w, the weight of the forward conv, makes {w_filters}; {shapes}")
    check_groups("w", per_group * groups, "w", per_group, filters, groups, shapes)
    for extra, s, d in zip(output_padding, stride, dilation, strict=True):
        if extra >= max(s, d):
            raise ValueError(
                f"output_padding={extra} must be smaller than the stride or the dilation ({s}, {d}); "
                "pad the result instead"
            )
    wanted, resolved = _transposed_geometry(given, window, stride, padding, output_padding, dilation, flip)
    spec = ConvSpec(
        layout, batch, per_group * groups, wanted, window, stride, dilation, resolved, filters, groups, flip
    )
    if min(wanted) < 1:
        raise ValueError(f"the padding leaves nothing: the result's spatial size would be {wanted}; {shapes}")
    return spec, form


def _transposed_geometry(
    given: Sizes, window: Sizes, stride: Sizes, padding: str | Pairs, extra: Sizes, dilation: Sizes, flip: bool
) -> tuple[Sizes, Pairs]:
    """Size of the transposed result, and the padding with which the forward convolution makes exactly `given` of it."""
    axes = list(zip(given, window, stride, dilation, strict=True))
    if padding in ("same_upper", "same_lower"):  # TensorFlow's and ONNX's: the result is stride times as long
        pairs: Pairs = tuple(named_padding(str(padding), n * s, m, s, d, flip) for n, m, s, d in axes)
        spans = [max((n - 1) * s + (m - 1) * d + 1, n * s) for n, m, s, d in axes]
    else:
        pairs = resolved_padding(padding, given, window, stride, dilation, flip)
        spans = [(n - 1) * s + (m - 1) * d + 1 for n, m, s, d in axes]
    sizes = tuple(span - before - after + more for span, (before, after), more in zip(spans, pairs, extra, strict=True))
    reached = [(n - 1) * s + (m - 1) * d + 1 for n, m, s, d in axes]
    forward = zip(pairs, reached, sizes, strict=True)
    return sizes, tuple((before, span - before - n) for (before, _), span, n in forward)


def forward_of(name: str) -> str:
    """The operation that a gradient belongs to: conv for conv_grad_input."""
    return name.partition("_")[0]


@lru_cache(maxsize=4096)
def conv_grad_input_spec(
    gy_shape: Sizes, w_shape: Sizes, *, name: str, size: Sizes, padding: str | Pairs, layout: str, **geometry: Any
) -> tuple[ConvSpec, Form]:
    """Geometry of the forward convolution that made `gy`; the form's x is gy's."""
    axes = len(w_shape) - 2
    if axes < 1:
        raise ValueError(f"{name} takes w of at least 3 axes, (*window, C / groups, F) in some order; got w {w_shape}")
    check_rank(name, "gy", gy_shape, axes, f"shapes: gy {gy_shape}, w {w_shape}")
    _, per_group, _ = split_weight(layout, w_shape)
    batch = gy_shape[0] if len(gy_shape) == axes + 2 else 1
    x_shape = in_layout(layout, batch, size, per_group * geometry["groups"])
    spec, _ = conv_spec(
        x_shape, w_shape, name=name, axes=None, padding=padding, layout=layout, stride=geometry["stride"],
        dilation=geometry["dilation"], groups=geometry["groups"], padding_mode=geometry["padding_mode"],
        flip=geometry["flip"],
    )  # fmt: skip
    form = batch_form(len(gy_shape) == axes + 2)
    check_gradient(gy_shape, spec.y_shape, form, f"a forward {forward_of(name)} from size {size} with w {w_shape}")
    return spec, form


@lru_cache(maxsize=4096)
def conv_grad_weight_spec(
    x_shape: Sizes, gy_shape: Sizes, *, name: str, window: Sizes, padding: str | Pairs, layout: str, **geometry: Any
) -> tuple[ConvSpec, Form]:
    """Geometry of the forward convolution that made `gy` from `x`."""
    axes, groups = len(window), geometry["groups"]
    shapes = f"shapes: x {x_shape}, gy {gy_shape}"
    check_rank(name, "x", x_shape, axes, shapes)
    check_rank(name, "gy", gy_shape, axes, shapes)
    if len(x_shape) != len(gy_shape):
        raise ValueError(f"x and gy must both have the batch axis or both lack it; {shapes}")
    form = batch_form(len(x_shape) == axes + 2)
    full_x, full_gy = lifted(x_shape, form.x), lifted(gy_shape, form.x)
    _, _, channels = split(layout, full_x)
    _, _, filters = split(layout, full_gy)
    if channels % groups or filters % groups:
        raise ValueError(f"groups={groups} must divide x's {channels} channels and gy's {filters}; {shapes}")
    per_group = channels // groups
    w_shape = (*window, per_group, filters) if layout == "channels_last" else (filters, per_group, *window)
    spec, _ = conv_spec(
        full_x, w_shape, name=name, axes=None, padding=padding, layout=layout, stride=geometry["stride"],
        dilation=geometry["dilation"], groups=groups, padding_mode=geometry["padding_mode"], flip=geometry["flip"],
    )  # fmt: skip
    check_gradient(gy_shape, spec.y_shape, form, f"a forward {forward_of(name)} of x {x_shape} with window {window}")
    return spec, form
