"""The reference engine: calls of the Python array API only, no writes in place, any rank.

Everything is made from two moves and their adjoints. `pad` surrounds the input, `tap` takes one offset of every
window as a strided slice; `untap` and `unpad` bring values back, so that a gradient is the forward operation read
backwards. Arrays are channels-last inside: x (N, *size, C), w (*window, C / groups, F), y (N, *out, F).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from functools import lru_cache, reduce
from itertools import product
from typing import Any

from array_api_compat import array_namespace, device
from array_api_compat import numpy as host

from xpconv.activations import ACTIVATIONS
from xpconv.dtypes import index_dtype, kind, widened
from xpconv.engines import fft
from xpconv.engines.spacing import spread
from xpconv.plan import Arrays, Plan
from xpconv.spec import (
    AdaptiveSpec,
    Array,
    ConvSpec,
    PoolSpec,
    ScatterSpec,
    Sizes,
    Windows,
)

METHODS = ("auto", "direct", "fft")


def plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan:  # noqa: ARG001  as every engine's
    """What this engine does with these arguments: always the same."""
    if options.get("method") == "fft":
        return Plan("fft", "asked for")
    return Plan("direct", "calls of the array API, one group of them per tap", "the whole result, tap by tap")


# --- Convolution ------------------------------------------------------------------------------------------------------


def conv(
    x: Array,
    w: Array,
    bias: Array | None,
    spec: ConvSpec,
    *,
    fill_value: complex = 0,
    activation: str | None = None,
    precision: str = "highest",  # noqa: ARG001  everything here is as exact as the dtype
    method: str = "auto",
) -> Array:
    """``y[i] = sum over o of x_padded[i s + o d] w[k]``, k = m - 1 - o for a convolution, o for a correlation."""
    dtype = x.dtype
    x, w = channels_last(widened(x), spec.layout), weight_last(widened(w), spec.layout)
    x = surrounded(x, spec, fill_value)
    if method == "fft":
        y = fft.conv(x, w, spec)
    else:
        y = total(product_of_groups(tap(x, spec, o), weight_at(w, spec, o), spec.groups) for o in spec.taps)
    return epilogue(y, bias, activation, spec.layout, dtype)


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """``gx_padded[i s + o d] += gy[i] w[k]``: the taps of `conv` brought back. With a bias: transposed convolution."""
    dtype = gy.dtype
    gy, w = channels_last(widened(gy), spec.layout), weight_last(widened(w), spec.layout)
    w = exchanged(w, spec.groups)
    parts = (product_of_groups(gy, weight_at(w, spec, o), spec.groups) for o in spec.taps)
    gx = total(untap(part, spec, o) for part, o in zip(parts, spec.taps, strict=True))
    return epilogue(unpad(gx, spec), bias, activation, spec.layout, dtype)


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """``gw[k] = sum over n, i of x_padded[n, i s + o d] gy[n, i]``."""
    xp, dtype, groups = array_namespace(x), x.dtype, spec.groups
    x = pad(channels_last(widened(x), spec.layout), spec)
    gy = by_group(channels_last(widened(gy), spec.layout), groups)  # (G, N P, F / G)

    def gradient(offset: Sizes) -> Array:
        columns = by_group(tap(x, spec, offset), groups)  # (G, N P, C / G)
        gw = xp.permute_dims(columns, (0, 2, 1)) @ gy
        return xp.reshape(xp.permute_dims(gw, (1, 0, 2)), (spec.channels // groups, spec.filters))

    gw = xp.stack([gradient(o) for o in spec.taps])
    gw = xp.reshape(gw, (*spec.window, spec.channels // groups, spec.filters))
    return xp.astype(as_weight(gw, spec), dtype, copy=False)


def as_weight(gw: Array, spec: ConvSpec) -> Array:
    """A gradient (*window, C / G, F) by offset of the window, as the user's weight lies: flipped if that is."""
    gw = array_namespace(gw).flip(gw, axis=tuple(range(spec.axes))) if spec.flip else gw
    return weight_as(gw, spec.layout)


def to_weight_adjoint(x: Array, gy: Array, spec: ConvSpec) -> tuple[Array, Array]:
    """x and gy, channels last, as input and weight of the spec's `weight_adjoint`."""
    xp, per_group = array_namespace(x), spec.channels // spec.groups
    x = xp.reshape(x, (*x.shape[:-1], spec.groups, per_group))  # (N, *size, G, C / G)
    *space, groups, channels = range(1, x.ndim)
    x = xp.permute_dims(x, (channels, *space, groups, 0))
    return xp.reshape(x, (*x.shape[:-2], spec.groups * spec.batch)), xp.moveaxis(gy, 0, -2)


def from_weight_adjoint(gw: Array, spec: ConvSpec) -> Array:
    """The weight's gradient in the user's layout, from what the `weight_adjoint` gives: (C / G, *window, F)."""
    return as_weight(array_namespace(gw).moveaxis(gw, 0, -2), spec)


def weight_at(w: Array, spec: ConvSpec, offset: Sizes) -> Array:
    """The weight (C / G, F) that a window's offset meets: a convolution reads it from the far end."""
    if spec.flip:
        offset = tuple(m - 1 - o for m, o in zip(spec.window, offset, strict=True))
    return w[(*offset, ...)]


def exchanged(w: Array, groups: int) -> Array:
    """Weight (*window, C / G, F) with the roles of channels and filters exchanged: (*window, F / G, C)."""
    xp = array_namespace(w)
    *window, per_group, filters = w.shape
    w = xp.reshape(w, (*window, per_group, groups, filters // groups))
    axes = len(window)
    w = xp.permute_dims(w, (*range(axes), axes + 2, axes + 1, axes))
    return xp.reshape(w, (*window, filters // groups, groups * per_group))


def product_of_groups(x: Array, w: Array, groups: int) -> Array:
    """``x (N, *out, C)`` times ``w (C / G, F)``, each group with its own channels."""
    xp = array_namespace(x)
    if groups == 1:
        return x @ w
    per_group, filters = w.shape
    w = xp.permute_dims(xp.reshape(w, (per_group, groups, filters // groups)), (1, 0, 2))
    y = xp.permute_dims(by_group(x, groups) @ w, (1, 0, 2))  # (N P, G, F / G)
    return xp.reshape(y, (*x.shape[:-1], filters))


def by_group(x: Array, groups: int) -> Array:
    """(N, *out, C) as (G, N P, C / G)."""
    xp = array_namespace(x)
    *positions, channels = x.shape
    x = xp.reshape(x, (math.prod(positions), groups, channels // groups))
    return xp.permute_dims(x, (1, 0, 2))


def epilogue(y: Array, bias: Array | None, activation: str | None, layout: str, dtype: Any) -> Array:
    """``phi(y + bias)`` in the accumulator's dtype, then the result's layout and dtype."""
    xp = array_namespace(y)
    if bias is not None:
        y = y + xp.astype(bias, y.dtype, copy=False)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return xp.astype(as_layout(y, layout), dtype, copy=False)


# --- Patches ----------------------------------------------------------------------------------------------------------


def unfold(x: Array, spec: PoolSpec) -> Array:
    """``patches[n, i, o, c] = x_padded[n, i s + o d, c]``."""
    xp, axes = array_namespace(x), spec.axes
    x = pad(channels_last(x, spec.layout), spec)
    patches = xp.stack([tap(x, spec, o) for o in spec.taps], axis=axes + 1)
    patches = xp.reshape(patches, (spec.batch, *spec.out_size, *spec.window, spec.channels))
    if spec.layout == "channels_last":
        return patches
    return xp.permute_dims(patches, (0, 2 * axes + 1, *range(axes + 1, 2 * axes + 1), *range(1, axes + 1)))


def fold(patches: Array, spec: PoolSpec) -> Array:
    """The adjoint of `unfold`: patches are added up where they overlap."""
    xp, axes, dtype = array_namespace(patches), spec.axes, patches.dtype
    patches = widened(patches)
    if spec.layout == "channels_first":
        patches = xp.permute_dims(patches, (0, *range(axes + 2, 2 * axes + 2), *range(2, axes + 2), 1))
    every = (slice(None),) * (axes + 1)
    x = unpad(total(untap(patches[(*every, *o, ...)], spec, o) for o in spec.taps), spec)
    return xp.astype(as_layout(x, spec.layout), dtype, copy=False)


# --- Pooling ----------------------------------------------------------------------------------------------------------


def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Any:
    """``y[i] = max over o of x[i s + o d - before]``; padding never wins, the first NaN does."""
    xp, reading = array_namespace(x), spec.reading
    padded = pad(channels_last(x, spec.layout), reading, lowest(xp, x.dtype))
    if not return_indices:
        taps = (tap(padded, reading, o) for o in spec.taps)
        y = reduce(lambda best, value: xp.where((value > best) | is_nan(value), value, best), taps)
        return as_layout(y, spec.layout)
    shape = (spec.batch, *spec.out_size, spec.channels)
    y = xp.full(shape, lowest(xp, x.dtype), dtype=x.dtype, device=device(x))
    indices = xp.full(shape, -1, dtype=index_dtype(xp), device=device(x))
    for offset in spec.taps:
        value, (where, inside) = tap(padded, reading, offset), tap_positions(xp, spec, offset, device(x))
        better = inside & ((indices < 0) | (value > y) | (is_nan(value) & ~is_nan(y)))
        y, indices = xp.where(better, value, y), xp.where(better, where, indices)
    return as_layout(y, spec.layout), as_layout(indices, spec.layout)


def tap_positions(xp: Any, spec: PoolSpec, offset: Sizes, where: Any) -> tuple[Array, Array]:
    """Flat position in the plane of one tap of every window, and whether it lies inside: each (*out, 1)."""
    flat, inside = xp.zeros((1,) * (spec.axes + 1), dtype=index_dtype(xp), device=where), True
    for axis, n in enumerate(spec.size):
        position = xp.asarray(spec.positions(axis, offset[axis]), dtype=index_dtype(xp), device=where)
        position = xp.reshape(position, (-1, *(1,) * (spec.axes - axis)))
        flat = flat * n + position
        inside = (position >= 0) & (position < n) & inside
    return flat, inside


def sum_pool(x: Array, spec: PoolSpec) -> Array:
    """``y[i] = sum over o of x[i s + o d - before]``."""
    xp, reading, dtype = array_namespace(x), spec.reading, x.dtype
    padded = pad(channels_last(widened(x), spec.layout), reading)
    y = total(tap(padded, reading, o) for o in spec.taps)
    return xp.astype(as_layout(y, spec.layout), dtype, copy=False)


def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The sum over each window divided by the taps that count, or by `divisor`."""
    dtype = x.dtype
    y = sum_pool(widened(x), spec)
    return divided(y, spec, count_include_pad, divisor, dtype)


def divided(y: Array, spec: PoolSpec, count_include_pad: bool, divisor: float | None, dtype: Any) -> Array:
    """Sums `y` divided by the taps that count; a window of nothing but padding has the mean NaN."""
    xp = array_namespace(y)
    return xp.astype(y / (divisor or divisors_of(y, spec, count_include_pad)), dtype, copy=False)


def divisors_of(y: Array, spec: PoolSpec, count_include_pad: bool) -> Array:
    """The taps that count for each of the results `y`, shaped to broadcast against it; NaN for none."""
    return reduce(operator.mul, (_tap_counts(y, spec, axis, count_include_pad) for axis in range(spec.axes)))


def _tap_counts(y: Array, spec: PoolSpec, axis: int, include_padding: bool) -> Array:
    """Taps that count along one axis of the result `y`, shaped to broadcast against it; NaN for none."""
    xp = array_namespace(y)
    counts = [count or math.nan for count in spec.counts(axis, include_padding)]
    counts = xp.asarray(counts, dtype=y.dtype, device=device(y))
    trailing = spec.axes - axis - (spec.layout == "channels_first")
    return xp.reshape(counts, (spec.out_size[axis], *(1,) * trailing))


def lp_pool(x: Array, spec: PoolSpec, *, p: float) -> Array:
    """``(sum over each window of |x|^p)^(1/p)``."""
    xp, dtype = array_namespace(x), x.dtype
    powers = xp.abs(widened(x)) ** p
    y = sum_pool(powers, spec) ** (1.0 / p)
    return y if kind(xp, dtype) == "complex floating" else xp.astype(y, dtype, copy=False)


def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The adjoint of `avg_pool`: each gradient shared out over the taps of its window."""
    xp, dtype, reading = array_namespace(gy), gy.dtype, spec.reading
    gy = widened(gy)
    shares = channels_last(divided(gy, spec, count_include_pad, divisor, gy.dtype), spec.layout)
    gx = unpad(total(untap(shares, reading, o) for o in spec.taps), reading)
    return xp.astype(as_layout(gx, spec.layout), dtype, copy=False)


def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Array:
    """The adjoint of `max_pool`: every gradient goes to the element that won, index -1 to none."""
    xp = array_namespace(gy)
    return xp.astype(scattered(widened(gy), indices, spec, operator.add), gy.dtype, copy=False)


def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every value at its index, zero elsewhere; of values that share an index the last counts."""
    return scattered(y, indices, spec, lambda _, value: value)


def scattered(values: Array, indices: Array, spec: ScatterSpec, merge: Callable[[Array, Array], Array]) -> Array:
    """Values at flat positions of a plane of zeros, one output position after the other."""
    xp, outputs, places = array_namespace(values), math.prod(spec.out_size), math.prod(spec.size)
    flat = (spec.batch, outputs, spec.channels)
    values, indices = (xp.reshape(channels_last(a, spec.layout), flat) for a in (values, indices))
    place = xp.reshape(xp.arange(places, dtype=indices.dtype, device=device(indices)), (1, places, 1))
    plane = xp.zeros((spec.batch, places, spec.channels), dtype=values.dtype, device=device(values))
    for p in range(outputs):
        plane = xp.where(place == indices[:, p : p + 1, :], merge(plane, values[:, p : p + 1, :]), plane)
    return as_layout(xp.reshape(plane, (spec.batch, *spec.size, spec.channels)), spec.layout)


def global_max_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Array:
    """The maximum of every map."""
    return array_namespace(x).max(x, axis=axes, keepdims=keepdims)


def global_avg_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Array:
    """The mean of every map."""
    xp = array_namespace(x)
    return xp.astype(xp.mean(widened(x), axis=axes, keepdims=keepdims), x.dtype, copy=False)


def adaptive_avg_pool(x: Array, spec: AdaptiveSpec) -> Array:
    """The mean of every window of an adaptive pooling; one axis after the other, since a mean of means is exact."""
    xp, dtype = array_namespace(x), x.dtype
    x = channels_last(widened(x), spec.layout)
    for axis in range(len(spec.size)):
        before = (slice(None),) * (axis + 1)
        spans = [x[(*before, slice(start, stop), ...)] for start, stop in spec.spans(axis)]
        x = xp.stack([xp.mean(span, axis=axis + 1) for span in spans], axis=axis + 1)
    return xp.astype(as_layout(x, spec.layout), dtype, copy=False)


def adaptive_max_pool(x: Array, spec: AdaptiveSpec, *, return_indices: bool) -> Any:
    """The maximum of every window of an adaptive pooling, each window a pooling of one output."""
    axes = range(len(spec.size))
    boxes = product(*(spec.spans(axis) for axis in axes))
    results = [_box_max(channels_last(x, spec.layout), spec, box, return_indices) for box in boxes]
    parts = zip(*results, strict=True) if return_indices else (results,)
    pooled = tuple(as_layout(_joined(part, spec.out_size), spec.layout) for part in parts)
    return pooled if return_indices else pooled[0]


def _box_max(x: Array, spec: AdaptiveSpec, box: Any, return_indices: bool) -> Any:
    """Maximum (N, C) of one box of the plane, and its flat position there."""
    xp = array_namespace(x)
    inner = x[(slice(None), *(slice(start, stop) for start, stop in box), ...)]
    extent = inner.shape[1:-1]
    cells = xp.reshape(inner, (spec.batch, math.prod(extent), spec.channels))
    y = xp.max(cells, axis=1)
    if not return_indices:
        return y
    first_nan = xp.argmax(xp.astype(is_nan(cells), xp.uint8), axis=1)
    local = xp.astype(xp.where(is_nan(y), first_nan, xp.argmax(cells, axis=1)), index_dtype(xp))
    flat, step = xp.zeros_like(local), 1
    for (start, _), length, n in zip(reversed(box), reversed(extent), reversed(spec.size), strict=True):
        flat, local, step = flat + (local % length + start) * step, local // length, step * n
    return y, flat


def _joined(cells: Iterable[Array], out: Sizes) -> Array:
    """Cells (N, C) of a plane, in order, as (N, *out, C)."""
    cells = list(cells)
    joined = array_namespace(cells[0]).stack(cells, axis=1)
    return array_namespace(joined).reshape(joined, (joined.shape[0], *out, joined.shape[-1]))


# --- The two moves and their adjoints ---------------------------------------------------------------------------------


def tap(x: Array, spec: Windows, offset: Sizes) -> Array:
    """One offset of every window: (N, *padded, ...) to (N, *out, ...)."""
    axes = zip(offset, spec.dilation, spec.stride, spec.out_size, strict=True)
    return x[(slice(None), *(slice(o * d, max(o * d + (n - 1) * s + 1, 0), s) for o, d, s, n in axes), ...)]


def untap(v: Array, spec: Windows, offset: Sizes) -> Array:
    """The adjoint of `tap`: (N, *out, ...) to (N, *padded, ...), zero where no window has this offset."""
    v = spread(v, spec.stride, first_axis=1)
    axes = zip(offset, spec.dilation, spec.padded_size, v.shape[1:], strict=False)
    pads = ((o * d, whole - o * d - n) if n else (whole, 0) for o, d, whole, n in axes)  # a window need not fit in none
    return padded_with(v, tuple(pads), 0)


def surrounded(x: Array, spec: ConvSpec, fill: complex = 0) -> Array:
    """What the windows of a convolution slide over: x with the zeros of its input dilation, and padded."""
    return pad(spread(x, spec.input_dilation, first_axis=1), spec, fill)


def pad(x: Array, spec: ConvSpec | PoolSpec, fill: complex = 0) -> Array:
    """x (N, *size, ...) with the spec's padding around its spatial axes."""
    mode = spec.padding_mode
    if mode in ("zeros", "constant"):
        return padded_with(x, spec.padding, fill)
    xp = array_namespace(x)
    for axis, (n, pads) in enumerate(zip(spec.size, spec.padding, strict=True), start=1):
        if any(pads):
            x = xp.take(x, padding_source(xp, n, *pads, mode, device(x)), axis=axis)
    return x


def padding_source(xp: Any, n: int, before: int, after: int, mode: str, where: Any = None) -> Array:
    """Where each element of a padded axis comes from, as `numpy.pad` has it, also beyond the axis' own length."""
    p = xp.arange(-before, n + after, dtype=index_dtype(xp), device=where)
    if mode == "edge":
        return xp.clip(p, 0, n - 1)
    period = {"wrap": n, "symmetric": 2 * n, "reflect": max(2 * (n - 1), 1)}[mode]
    p = xp.remainder(p, period)
    return xp.where(p < n, p, (period - (mode == "symmetric")) - p)


def unpad(gx: Array, spec: ConvSpec | PoolSpec) -> Array:
    """The adjoint of `pad`: what fell on padding is dropped, or added to the element it was copied from."""
    mode = spec.padding_mode
    if mode in ("zeros", "constant"):
        return padded_with(gx, tuple((-before, -after) for before, after in spec.padding), 0)
    xp = array_namespace(gx)
    for axis, (n, pads) in enumerate(zip(spec.size, spec.padding, strict=True), start=1):
        if any(pads):
            pads_one = ((0, 0),) * (axis - 1) + ((0, 1),)
            with_zero = padded_with(gx, pads_one, 0)  # the last entry stands for "no further copy"
            gx = total(xp.take(with_zero, _table(xp, rows, gx), axis=axis) for rows in copies_of(n, *pads, mode))
    return gx


@lru_cache(maxsize=16)  # few: a table is as long as the axis
def copies_of(n: int, before: int, after: int, mode: str) -> tuple[Sizes, ...]:
    """For each element of an axis the padded positions it was copied to, one tuple per copy, ended by the length."""
    places: list[list[int]] = [[] for _ in range(n)]
    for position, source in enumerate(padding_source(host, n, before, after, mode).tolist()):
        places[source].append(position)
    most, none = max(map(len, places)), n + before + after
    return tuple(tuple(p[copy] if copy < len(p) else none for p in places) for copy in range(most))


def padded_with(x: Array, pads: Iterable[tuple[int, int]], fill: complex) -> Array:
    """x with constant padding around its axes from the second on; negative padding crops."""
    xp = array_namespace(x)
    for axis, (before, after) in enumerate(pads, start=1):
        n = x.shape[axis]
        if before < 0 or after < 0:
            keep = slice(max(-before, 0), n - max(-after, 0))
            x = x[(slice(None),) * axis + (keep, ...)]
        blocks = [_block(xp, x, axis, length, fill) if length > 0 else None for length in (before, after)]
        present = [block for block in (blocks[0], x, blocks[1]) if block is not None]
        x = xp.concat(present, axis=axis) if len(present) > 1 else x
    return x


def _block(xp: Any, x: Array, axis: int, length: int, fill: complex) -> Array:
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    return xp.full(shape, fill, dtype=x.dtype, device=device(x))


def _table(xp: Any, rows: Sizes, like: Array) -> Array:
    return xp.asarray(rows, dtype=index_dtype(xp), device=device(like))


# --- Layouts and dtypes -----------------------------------------------------------------------------------------------


def channels_last(x: Array, layout: str) -> Array:
    """Feature maps of either layout as (N, *size, C)."""
    return x if layout == "channels_last" else array_namespace(x).permute_dims(x, (0, *range(2, x.ndim), 1))


def as_layout(y: Array, layout: str) -> Array:
    """Feature maps (N, *size, C) in the user's layout."""
    if layout == "channels_last":
        return y
    return array_namespace(y).permute_dims(y, (0, y.ndim - 1, *range(1, y.ndim - 1)))


def weight_last(w: Array, layout: str) -> Array:
    """A weight of either layout as (*window, C / groups, F)."""
    return w if layout == "channels_last" else array_namespace(w).permute_dims(w, (*range(2, w.ndim), 1, 0))


def weight_as(w: Array, layout: str) -> Array:
    """A weight (*window, C / groups, F) in the user's layout."""
    if layout == "channels_last":
        return w
    return array_namespace(w).permute_dims(w, (w.ndim - 1, w.ndim - 2, *range(w.ndim - 2)))


def lowest(xp: Any, dtype: Any) -> Any:
    """The value that never wins a maximum."""
    return xp.iinfo(dtype).min if kind(xp, dtype) == "integral" else -math.inf


def is_nan(x: Array) -> Array:
    """Where x is NaN, the one value that differs from itself."""
    return x != x


def total(terms: Iterable[Array]) -> Array:
    """Sum of arrays, in their own dtype."""
    return reduce(operator.add, terms)
