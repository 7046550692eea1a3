"""Specs of poolings and of patches."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from xpconv.spec.forms import Form, batch_form, check_fit, check_gradient, check_sizes, lifted, pool_form, split
from xpconv.spec.padding import resolved_padding
from xpconv.spec.windows import AdaptiveSpec, Pairs, PoolSpec, ScatterSpec, Sizes, in_layout


@lru_cache(maxsize=4096)
def pool_spec(
    x_shape: Sizes,
    *,
    name: str,
    window: Sizes,
    stride: Sizes,
    padding: str | Pairs,
    dilation: Sizes,
    ceil_mode: bool,
    layout: str,
    plain: bool,
) -> tuple[PoolSpec, Form]:
    """Geometry of a pooling or of patches; `plain` admits an image with neither batch nor channels."""
    axes = len(window)
    form = pool_form(name, "x", x_shape, axes, layout, plain)
    batch, size, channels = split(layout, lifted(x_shape, form.x))
    check_sizes("x", x_shape)
    resolved = resolved_padding(padding, size, window, stride, dilation, flip=False)
    spec = PoolSpec(layout, batch, channels, size, window, stride, dilation, resolved, bool(ceil_mode))
    check_fit(spec)
    return spec, form


@lru_cache(maxsize=4096)
def avg_pool_grad_spec(
    gy_shape: Sizes, *, name: str, size: Sizes, layout: str, **geometry: Any
) -> tuple[PoolSpec, Form]:
    """Geometry of the average pooling that made the result whose gradient `gy` is."""
    form = pool_form(name, "gy", gy_shape, len(size), layout, plain=True)
    batch, _, channels = split(layout, lifted(gy_shape, form.x))
    x_shape = in_layout(layout, batch, size, channels)
    spec, _ = pool_spec(x_shape, name=name, layout=layout, plain=False, **geometry)
    check_gradient(gy_shape, spec.y_shape, form, "the forward avg_pool")
    return spec, form


def fold_spec(
    patches_shape: Sizes, *, size: Sizes, window: Sizes, layout: str, **geometry: Any
) -> tuple[PoolSpec, Form]:
    """Geometry of the `unfold` whose adjoint takes the patches back to an array of spatial `size`."""
    axes = len(window)
    expected = 2 * axes + 2
    if len(patches_shape) not in (expected, expected - 1):
        raise ValueError(
            f"fold takes patches of {expected - 1} or {expected} axes for {axes} spatial ones, got {patches_shape}"
        )
    batched = len(patches_shape) == expected
    batch = patches_shape[0] if batched else 1
    channels = patches_shape[-1] if layout == "channels_last" else patches_shape[1 if batched else 0]
    spec, _ = pool_spec(
        in_layout(layout, batch, size, channels), name="fold", window=window, ceil_mode=False, layout=layout,
        plain=False, **geometry,
    )  # fmt: skip
    form = batch_form(batched)
    if lifted(patches_shape, form.x) != spec.patches_shape:
        wanted = spec.patches_shape if batched else spec.patches_shape[1:]
        raise ValueError(f"patches have shape {patches_shape} but size {size} and window {window} make {wanted}")
    return spec, form


@lru_cache(maxsize=4096)
def adaptive_spec(x_shape: Sizes, *, name: str, size: Sizes, layout: str) -> tuple[AdaptiveSpec, Form]:
    """Geometry of a pooling to a wanted spatial size."""
    axes = len(size)
    form = pool_form(name, "x", x_shape, axes, layout, plain=False)
    batch, given, channels = split(layout, lifted(x_shape, form.x))
    check_sizes("x", x_shape)
    if min(given) < 1:
        raise ValueError(f"{name} needs a spatial size of at least 1, got x {x_shape}")
    return AdaptiveSpec(layout, batch, channels, given, size), form


@lru_cache(maxsize=4096)
def scatter_spec(
    shape: Sizes, indices_shape: Sizes, *, name: str, argument: str, size: Sizes, layout: str
) -> tuple[ScatterSpec, Form]:
    """Geometry of values with an index each, sent to a plane of spatial `size`."""
    if shape != indices_shape:
        raise ValueError(f"{name} takes one index per value: {argument} has shape {shape}, indices {indices_shape}")
    form = pool_form(name, argument, shape, len(size), layout, plain=True)
    batch, out_size, channels = split(layout, lifted(shape, form.x))
    check_sizes(argument, shape)
    return ScatterSpec(layout, batch, channels, out_size, size), form


@lru_cache(maxsize=4096)
def global_axes(x_shape: Sizes, *, name: str, layout: str) -> Sizes:
    """The spatial axes of a batch of feature maps."""
    if len(x_shape) < 3:
        raise ValueError(f"{name} takes x of at least 3 axes, batch, channels and space; got x {x_shape}")
    axes = range(1, len(x_shape) - 1) if layout == "channels_last" else range(2, len(x_shape))
    if any(x_shape[axis] == 0 for axis in axes):
        raise ValueError(f"{name} needs a spatial size of at least 1, got x {x_shape}")
    return tuple(axes)
