"""Which axes the user's arrays have, and the checks that all specs share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xpconv.spec.windows import ConvSpec, Sizes, Windows


@dataclass(frozen=True)
class Form:
    """How the user's arrays stand to the full ones: index tuples that add missing axes, and drop them from y."""

    x: tuple[Any, ...]
    w: tuple[Any, ...]
    y: tuple[Any, ...]


def conv_form(name: str, x_rank: int, w_rank: int, axes: int | None, layout: str, shapes: str) -> Form:
    """The axes that the arrays may lack, as index tuples."""
    if axes is None:
        if w_rank < 3:
            raise ValueError(
                f"{name} reads the spatial axes off w, which needs at least 3 axes; {shapes}; "
                f"for plain signals and images take {name}1d, {name}2d or {name}3d"
            )
        axes, w_ranks = w_rank - 2, range(w_rank, w_rank + 1)
    else:
        w_ranks = range(axes, axes + 3)
    if w_rank not in w_ranks:
        raise ValueError(f"{name} takes w of {axes} to {axes + 2} axes, got {w_rank}; {shapes}")
    if w_rank == axes:
        if x_rank != axes:
            raise ValueError(f"{name} with a plain w of {axes} axes takes x of {axes} axes, got {x_rank}; {shapes}")
        return Form(_plain(layout), _missing(2, layout), _dropped(True, True, layout))
    if x_rank not in (axes + 1, axes + 2):
        raise ValueError(f"{name} with this w takes x of {axes + 1} or {axes + 2} axes, got {x_rank}; {shapes}")
    one_map = w_rank == axes + 1
    single = x_rank == axes + 1
    w_lift = _missing(1, layout) if one_map else (...,)
    return Form((None, ...) if single else (...,), w_lift, _dropped(single, one_map, layout))


def transpose_form(form: Form) -> Form:
    """In the transposed weight (*window, F, C), a missing axis is F, not C."""
    if form.w == (..., None):
        return replace(form, w=(..., None, slice(None)))
    if form.w == (None, ...):
        return replace(form, w=(slice(None), None, ...))
    return form


def _missing(count: int, layout: str) -> tuple[Any, ...]:
    """Index that adds the last `count` axes of a weight in channels-last order, the first ones otherwise."""
    return (..., *(None,) * count) if layout == "channels_last" else (*(None,) * count, ...)


def _plain(layout: str) -> tuple[Any, ...]:
    return (None, ..., None) if layout == "channels_last" else (None, None, ...)


def _dropped(batch: bool, channels: bool, layout: str) -> tuple[Any, ...]:
    """Index that takes the axes out of y again which the user's arrays did not have."""
    if layout == "channels_last":
        return ((0,) if batch else ()) + ((..., 0) if channels else (...,))
    return (0 if batch else slice(None), 0 if channels else slice(None), ...)


def batch_form(batched: bool) -> Form:
    lift = (...,) if batched else (None, ...)
    return Form(lift, (...,), (...,) if batched else (0, ...))


def pool_form(name: str, argument: str, shape: Sizes, axes: int, layout: str, plain: bool) -> Form:
    rank = len(shape)
    if plain and rank == axes:
        return Form(_plain(layout), (...,), _dropped(True, True, layout))
    check_rank(name, argument, shape, axes, f"shape: {argument} {shape}")
    return batch_form(rank == axes + 2)


def check_rank(name: str, argument: str, shape: Sizes, axes: int, shapes: str) -> None:
    if len(shape) not in (axes + 1, axes + 2):
        raise ValueError(f"{name} takes {argument} of {axes + 1} or {axes + 2} axes, got {len(shape)}; {shapes}")


def lifted(shape: Sizes, lift: tuple[Any, ...]) -> Sizes:
    """Shape after indexing with `lift`, whose None adds an axis and whose other entries keep theirs."""
    kept = iter(shape)
    result: list[int] = []
    for position, entry in enumerate(lift):
        if entry is None:
            result.append(1)
        elif entry is Ellipsis:
            later = sum(later is not None for later in lift[position + 1 :])
            rest = list(kept)
            result.extend(rest[: len(rest) - later])
            kept = iter(rest[len(rest) - later :])
        else:
            result.append(next(kept))
    return (*result, *kept)


def split(layout: str, shape: Sizes) -> tuple[int, Sizes, int]:
    """Batch, spatial size, channels of a full shape."""
    if layout == "channels_last":
        return shape[0], shape[1:-1], shape[-1]
    return shape[0], shape[2:], shape[1]


def split_weight(layout: str, shape: Sizes) -> tuple[Sizes, int, int]:
    """Window, channels per group, filters of a full weight."""
    if layout == "channels_last":
        return shape[:-2], shape[-2], shape[-1]
    return shape[2:], shape[1], shape[0]


def check_sizes(argument: str, shape: Sizes) -> None:
    if not all(isinstance(n, int) for n in shape):
        raise ValueError(f"{argument} has an axis of unknown length, shape {shape}; compute its sizes first")


def check_groups(x: str, channels: int, w: str, per_group: int, filters: int, groups: int, shapes: str) -> None:
    if channels != groups * per_group:
        read = f"{groups} groups x {per_group} = {groups * per_group}" if groups > 1 else f"{per_group}"
        raise ValueError(f"{x} has {channels} channels but {w} reads {read}; {shapes}")
    if filters % groups:
        raise ValueError(f"groups={groups} does not divide the {filters} filters of {w}; {shapes}")


def check_fit(spec: Windows) -> None:
    axes = zip(spec.size, spec.window, spec.padding, spec.padded_size, spec.reach, strict=True)
    for axis, (n, m, pads, padded, reach) in enumerate(axes):
        if m < 1:
            raise ValueError(f"the window is empty: it is {m} long on spatial axis {axis}")
        if padded < reach:
            raise ValueError(
                f"the window does not fit: spatial axis {axis} is {n} long + {sum(pads)} padding, "
                f"the dilated window spans {reach}; pad more or shrink the window"
            )


def check_padding_source(spec: ConvSpec) -> None:
    if spec.padding_mode in ("zeros", "constant"):
        return
    for axis, (n, pads) in enumerate(zip(spec.size, spec.padding, strict=True)):
        if n == 0 and any(pads):
            raise ValueError(f"padding_mode={spec.padding_mode!r} has nothing to repeat: spatial axis {axis} is empty")


def check_gradient(gy_shape: Sizes, y_shape: Sizes, form: Form, forward: str) -> None:
    """Check that `gy` has the shape of the result it is the gradient of."""
    if lifted(gy_shape, form.x) != y_shape:
        wanted = y_shape if form.x == (...,) else y_shape[1:]
        raise ValueError(f"gy has shape {gy_shape} but {forward} makes {wanted}")


def check_bias(bias_shape: Sizes, filters: int, form: Form) -> None:
    """Check one number per filter; a single map may have a single number."""
    single = form.w != (...,) and bias_shape == ()
    if bias_shape != (filters,) and not single:
        raise ValueError(f"bias has shape {bias_shape} but there are {filters} filters: pass shape ({filters},)")
