"""NumPy arrays: strided windows and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from xpconv.cpu import image_spectra, pieces, scattering, spreading, strips
from xpconv.cpu.copies import copy
from xpconv.cpu.patches import windows
from xpconv.cpu.results import new
from xpconv.dtypes import widened
from xpconv.engines import agnostic, averages, compiled, gradient_pieces, numpy_pools, piecewise, pooled, small
from xpconv.engines.agnostic import (
    as_layout,
    as_weight,
    channels_last,
    epilogue,
    exchanged,
    pad,
    surrounded,
    unpad,
    weight_as,
    weight_last,
)
from xpconv.engines.finishing import finished
from xpconv.engines.methods import (
    gemm,
    is_product_of_planes,
    itemsize,
    planned,
    products_of_planes,
    spectral_gradient,
    spread_gradient,
    summed,
    summed_if_finite,
)
from xpconv.engines.plans import is_direct_adjoint
from xpconv.engines.plans import plan as plan
from xpconv.engines.replays import replay as replay
from xpconv.engines.replays import replay_into as replay_into
from xpconv.indices import check_inside
from xpconv.request import Request
from xpconv.spec import AdaptiveSpec, Array, ConvSpec, PoolSpec, ScatterSpec, Sizes, in_layout
from xpconv.workspace import current_limit

METHODS = ("auto", "direct", "gemm", "winograd", "fft")


# --- Convolution ------------------------------------------------------------------------------------------------------


def conv(
    x: Array,
    w: Array,
    bias: Array | None,
    spec: ConvSpec,
    *,
    fill_value: complex,
    activation: str | None,
    precision: str,  # noqa: ARG001  a CPU has one
    method: str,
) -> Array:
    """Patches times weights in tiles, products tap by tap, Winograd's tiles, or spectra, as the plan expects."""
    if is_product_of_planes(x, spec) and planned(x, spec, method).method == "gemm":
        y = channels_last(products_of_planes(x, w, spec), spec.layout)
        return finished(y, bias, activation, spec.layout, x.dtype)
    return _convolved(
        channels_last(x, spec.layout), weight_last(widened(w), spec.layout), bias, spec,
        fill_value=fill_value, activation=activation, method=method,
    )  # fmt: skip


def into(request: Request) -> bool:
    """Write a convolution's result where the user wants it, if it is one that can be written there at once.

    New memory is not only filled but cleared by the system first: of 100 MB in 7 ms, where Winograd took 53.
    """
    spec, options = request.spec, request.options
    if request.operation != "conv" or request.then is not None:
        return False
    arrays: Any = request.arrays
    (x, w, bias), chosen = arrays, {name: options[name] for name in ("fill_value", "activation", "method")}
    out = compiled.in_full(request.out, request.drop, spec, x.dtype)
    if out is None:
        return False
    x, w = channels_last(x, spec.layout), weight_last(widened(w), spec.layout)
    _convolved(x, w, bias, spec, out=channels_last(out, spec.layout), **chosen)
    return True


def _convolved(
    x: Array, w: Array, bias: Array | None, spec: ConvSpec, *, fill_value: complex = 0,
    activation: str | None = None, method: str = "auto", out: Array | None = None,
) -> Array:  # fmt: skip
    """The result, in the spec's layout, of channels-last `x` and `w`, which is in the dtype that sums are kept in.

    It is written to `out`, channels last and of any strides, where that is given.
    """
    if spec.padding_mode == "constant" and fill_value == 0:
        spec = replace(spec, padding_mode="zeros")
    chosen, careful, dtype = planned(x, spec, method).method, method == "auto", x.dtype
    kernel = "" if out is None else compiled.kernel_of(dtype, spec, chosen)
    is_apart = out is not None and not (kernel and compiled.is_written_by(kernel, out))
    computed = piecewise.computation(x, spec, chosen, is_apart=is_apart)
    if found := computed.pieces():
        whole = out if out is not None else channels_last(new(spec.y_shape, dtype), spec.layout)
        for piece in found:
            with computed.rest_of(piece):
                source, part = piecewise.read(x, spec, piece, fill_value)
                place = whole[piece.images, *piece.places]
                _convolved(source, w, bias, part, activation=activation, method=method, out=place)
        return whole if out is not None else as_layout(whole, spec.layout)
    x = widened(x)
    place = out if out is not None and out.dtype == x.dtype else None  # sums of half precision are kept in single
    with computed.rest():
        y = _summed(chosen, x, w, bias, spec, fill_value, activation, place, careful=careful)
        if y is None:
            exact = "direct" if compiled.kernel_of(x.dtype, spec, "direct") else "gemm"
            y = _summed(exact, x, w, bias, spec, fill_value, activation, place)
    if out is not None:
        if y is not out:
            out[...] = channels_last(y, spec.layout)
        return out
    return np.ascontiguousarray(y.astype(dtype, copy=False))


def _summed(
    method: str, x: Array, w: Array, bias: Array | None, spec: ConvSpec, fill: complex,
    activation: str | None, out: Array | None, *, careful: bool = False,
) -> Any:  # fmt: skip
    """By the method's kernels, which pad and finish as they go, in `out` if there is one, or by NumPy.

    A `careful` answer is None where a value that is not finite would have spread over a tile or a spectrum.
    """
    if kernel := compiled.kernel_of(x.dtype, spec, method):
        if kernel == "plane" and (y := compiled.by_axes(x, w, bias, spec, fill, activation, out)) is not None:
            return y
        careful = careful or kernel == "spectra"  # whose values that are not finite spread no further by NumPy either
        return compiled.by_kernels(kernel, x, w, bias, spec, fill, activation, out, careful=careful)
    # as a repeated call computes it, to the bit
    computed = small.conv(x.dtype, method, spec, fill, activation, spec.y_shape)
    if computed is not None:
        y = computed(as_layout(x, spec.layout), weight_as(w, spec.layout), bias)
        if y is not NotImplemented:
            return y
    y = (summed_if_finite if careful else summed)(method, x, w, spec, fill)
    return None if y is None else finished(y, bias, activation, spec.layout, x.dtype)


def _spectral_if_finite(x: Array, w: Array, spec: ConvSpec) -> Array:
    """By spectra, unless the result shows that one of them spread what is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        turned = math.prod(spec.y_shape) * x.itemsize if spec.layout == "channels_first" else 0
        y = image_spectra.conv(x, w, spec, max(current_limit() - turned, current_limit() // 2))
    return y if compiled.finite(y) else gemm(surrounded(x, spec), w, replace(spec.valid, input_dilation=()))


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """The adjoint as a convolution: a single one at stride 1, by spectra, or by kernels that read no zeros between
    elements; else one for each phase of the stride.
    """
    dtype = gy.dtype
    gy, w = channels_last(gy, spec.layout), exchanged(weight_last(widened(w), spec.layout), spec.groups)
    if spec.padding_mode == "constant":
        spec = replace(spec, padding_mode="zeros")
    if spec.padding_mode != "zeros":
        return finished(_folded_adjoint(widened(gy), w, spec), bias, activation, spec.layout, dtype)
    is_empty = 0 in gy.shape
    if is_empty or is_direct_adjoint(spec) or not spectral_gradient(gy, spec, "input"):
        return _adjoint(gy, w, bias, spec, activation)
    gx = _spectral_if_finite(widened(gy), w, spec.input_adjoint)
    return finished(gx, bias, activation, spec.layout, dtype)


def _folded_adjoint(gy: Array, w: Array, spec: ConvSpec) -> Array:
    """Channels last: what fell on the padding is brought back to where that was copied from."""
    if not gradient_pieces.is_folded(gy, spec):
        return unpad(_adjoint(gy, w, None, replace(spec.valid, layout="channels_last"), None), spec)
    gx = channels_last(_adjoint(gy, w, None, replace(spec, padding_mode="zeros"), None), spec.layout)
    last = replace(spec, layout="channels_last")
    gradient_pieces.fold(gx, lambda images, box: _adjoint(gy[images], w, None, box, None), last)
    return gx


def _adjoint(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, activation: str | None) -> Array:
    """The input gradient in the spec's layout, of channels-last `gy` and exchanged `w`."""
    if is_direct_adjoint(spec):
        return _convolved(gy, w, bias, spec.input_adjoint, activation=activation)
    if spread_gradient(gy, spec):
        at_once: Array | None = compiled.by_kernels(
            "winograd", gy, w, bias, spec.input_adjoint, 0, activation, careful=True
        )
        if at_once is not None:
            return at_once
    parts = gradient_pieces.of_input(spec, gy.itemsize)
    if not parts:
        return _by_phases(gy, w, bias, spec, activation)
    gx = new(spec.x_shape, gy.dtype)
    with pieces.rest():
        for images, rows, part in parts:
            gx[images, :, rows] = _by_phases(gy[images], w, bias, part, activation)
    return gx


def _by_phases(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, activation: str | None) -> Array:
    """The same of a stride: a convolution for the positions that it treats alike."""
    gx = new((spec.batch, *spec.size, spec.channels), gy.dtype)
    for phase in replace(spec, layout="channels_last").input_phases:
        here = gx[(slice(None), *phase.places)]
        if phase.is_reached:
            _convolved(gy, w[phase.taps], bias, phase.spec, activation=activation, out=here)
        else:
            here[...] = epilogue(np.zeros((1,) * gx.ndim, gx.dtype), bias, activation, "channels_last", gx.dtype)
    return compiled.laid_out(gx, spec.layout)


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """By spectra where the window is large, by the compiled kernels, or patches, transposed, times `gy`, in strips."""
    dtype = x.dtype
    if spectral_gradient(x, spec, "weight"):
        x, gy = channels_last(widened(x), spec.layout), channels_last(widened(gy), spec.layout)
        x, gy = agnostic.to_weight_adjoint(x, gy, spec)
        gw = _spectral_if_finite(x, gy, spec.weight_adjoint)
        return np.ascontiguousarray(agnostic.from_weight_adjoint(gw, spec).astype(dtype, copy=False))
    taken = compiled.takes_gradient(dtype, spec)
    if not taken and (computed := small.conv_grad_weight(dtype, spec)):
        return computed(x, gy)
    x, gy = channels_last(x, spec.layout), channels_last(gy, spec.layout)
    by = partial(_weight_gradient, by_kernels=taken)
    gw = gradient_pieces.summed(x, gy, spec, by, by_kernels=taken)
    gw = by(x, gy, spec) if gw is None else gw
    return np.ascontiguousarray(as_weight(gw, spec).astype(dtype, copy=False))


def _weight_gradient(x: Array, gy: Array, spec: ConvSpec, *, by_kernels: bool) -> Array:
    """By offset of the window (*window, C / groups, F), of channels-last arrays, in the dtype that sums are kept in."""
    x, gy = widened(x), widened(gy)
    if by_kernels:
        return compiled.grad_weight(x, gy, spec)
    if spec.groups > 1:  # batched products serve groups as well
        return agnostic.conv_grad_weight(x, gy, replace(spec, layout="channels_last", flip=False))
    if spec.padding_mode != "zeros":
        x, spec = pad(x, spec), spec.valid
    return strips.weight_gradient(x, gy, spec, current_limit())


# --- Patches and pooling ----------------------------------------------------------------------------------------------


def unfold(x: Array, spec: PoolSpec) -> Array:
    """The strided windows, copied out: those of the padded input, or, where that takes too much, tap by tap."""
    axes, x = spec.axes, channels_last(x, spec.layout)
    padded = 2 * spec.batch * math.prod(spec.padded_size) * spec.channels * x.itemsize  # axis after axis
    is_close = spec.padded_size == spec.size or padded <= pieces.share(current_limit())
    patches: Array = np.empty(spec.patches_shape, x.dtype) if is_close else np.zeros(spec.patches_shape, x.dtype)
    last = patches
    if spec.layout == "channels_first":
        last = patches.transpose(0, *range(axes + 2, 2 * axes + 2), *range(2, axes + 2), 1)
    if is_close:
        copy(windows(pad(x, spec), spec), last)
        return patches
    for offset in spec.taps:  # of the windows that have this one on the map
        inside = [_inside(spec, axis, at) for axis, at in enumerate(offset)]
        copy(x[:, *(read for _, read in inside)], last[:, *(results for results, _ in inside), *offset])
    return patches


def _inside(spec: PoolSpec, axis: int, offset: int) -> tuple[slice, slice]:
    """The windows along an axis of which a tap lies on the map, and where."""
    stride, first = spec.stride[axis], offset * spec.dilation[axis] - spec.padding[axis][0]
    begin = max(-(first // stride), 0)
    stop = max(min((spec.size[axis] - 1 - first) // stride + 1, spec.out_size[axis]), begin)
    return slice(begin, stop), slice(first + begin * stride, max(first + stop * stride, 0), stride)


def fold(patches: Array, spec: PoolSpec) -> Array:
    """Patches added up where they overlap."""
    x, axes, summed = new(spec.x_shape, patches.dtype), spec.axes, widened(patches[:0]).dtype
    if spec.layout == "channels_first":
        patches = patches.transpose(0, *range(axes + 2, 2 * axes + 2), *range(2, axes + 2), 1)
    for images in pieces.at_once(spec.batch, math.prod(spec.padded_size) * spec.channels * summed.itemsize):
        padded: Array = np.zeros((images.stop - images.start, *spec.padded_size, spec.channels), summed)
        for offset in spec.taps:
            reached = agnostic.tap(padded, spec, offset)
            reached += patches[images, *(slice(None),) * axes, *offset]
        x[images] = as_layout(unpad(padded, spec), spec.layout)
    return x


def lp_pool(x: Array, spec: PoolSpec, *, p: float) -> Array:
    """The roots of sums of powers, some results at a time."""
    dtype = np.abs(x[:0]).dtype

    def held(part: PoolSpec) -> int:
        return 3 * (math.prod(part.x_shape) + math.prod(part.y_shape)) * itemsize(x)

    def roots(x: Array, spec: PoolSpec) -> Array:
        y = sum_pool(np.abs(widened(x)) ** p, spec)
        return y ** (1.0 / p)

    found = numpy_pools.pieces_within(spec, held, pieces.share(current_limit()))
    y = numpy_pools.by_pieces(x, spec, dtype, found, roots, 0) if found else roots(x, spec)
    return y.astype(dtype, copy=False)


def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Any:
    """By the compiled kernels, or NumPy."""
    if kernel := pooled.by("max_pool", x, spec, indices=return_indices):
        return pooled.indexed(x, spec) if return_indices else pooled.reduced(kernel, "largest", x, spec)
    if return_indices:
        return numpy_pools.indexed(x, spec)
    return numpy_pools.pool("max_pool", x.dtype, spec, {})(x)


def sum_pool(x: Array, spec: PoolSpec) -> Array:
    """By the compiled kernels, or NumPy."""
    if kernel := pooled.by("sum_pool", x, spec):
        return pooled.reduced(kernel, "added", x, spec)
    return numpy_pools.pool("sum_pool", x.dtype, spec, {})(x)


def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The sums, divided; by the compiled kernels as they are stored."""
    if kernel := pooled.by("avg_pool", x, spec):
        shared = pooled.shared_divisor(spec, count_include_pad, divisor)
        if shared is not None:
            return pooled.reduced(kernel, "added", x, spec, shared)
        y = new(spec.y_shape, x.dtype)
        averages.prepared(kernel, x, y, spec, count_include_pad=count_include_pad)(x, y)
        return y
    options = {"count_include_pad": count_include_pad, "divisor": divisor}
    return numpy_pools.pool("avg_pool", x.dtype, spec, options)(x)


def global_max_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Any:
    """By the compiled kernels."""
    return _pooled_whole("global_max_pool", x, axes, keepdims)


def global_avg_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Any:
    """By the compiled kernels."""
    return _pooled_whole("global_avg_pool", x, axes, keepdims)


def _pooled_whole(operation: str, x: Array, axes: Sizes, keepdims: bool) -> Any:
    spec = pooled.whole_maps(tuple(x.shape), axes)
    kernel, reduction = pooled.by(operation, x, spec), pooled.REDUCTIONS[operation]
    if not kernel and x.dtype == np.float16 and reduction == "added":
        return np.mean(x, axis=axes, dtype=np.float32, keepdims=keepdims).astype(x.dtype)  # summed without a copy
    if not kernel:
        return NotImplemented  # the agnostic engine's reduction is what NumPy would do
    y = pooled.reduced(kernel, reduction, x, spec, pooled.divisor_of_maps(operation, spec))
    return y if keepdims else y.reshape(spec.batch, spec.channels)


def adaptive_avg_pool(x: Array, spec: AdaptiveSpec) -> Array:
    """As the reference does, some images at a time."""
    y = new(in_layout(spec.layout, spec.batch, spec.out_size, spec.channels), x.dtype)
    means = spec.out_size[0] * math.prod(spec.size[1:]) * spec.channels
    whole = 0 if itemsize(x) == x.itemsize else math.prod(spec.size) * spec.channels
    held = (whole + 3 * means) * itemsize(x)
    return _by_images(y, spec, held, lambda images, part: agnostic.adaptive_avg_pool(x[images], part))


def _by_images(y: Array, spec: Any, held: int, computed: Callable[[slice, Any], Array]) -> Array:
    """`y`, which is computed some images at a time, of a spec of their own; `held` bytes for each."""
    for images in pieces.at_once(spec.batch, held):
        y[images] = computed(images, replace(spec, batch=images.stop - images.start))
    return y


def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The gradients' shares, added to what their windows had: by the compiled kernels, or axis by axis.

    What kernels hold beside the result is an image's at least: where that is more than a share of the limit, NumPy does
    it row by row.
    """
    shared, room = pooled.shared_divisor(spec, count_include_pad, divisor), pieces.share(current_limit())
    by_kernels = pooled.by("avg_pool_grad", gy, spec)
    held = (0 if shared else gy[:1].nbytes) + (pooled.turned_bytes(gy, spec) if by_kernels else 0)  # of an image
    image = math.prod(spec.x_shape[1:]) * gy.itemsize
    if not by_kernels or (held and held + image > room):
        summed = widened(gy[:0]).dtype
        by = numpy_pools.divisors(spec, summed, count_include_pad=count_include_pad, divisor=divisor)
        return spreading.spread(gy, spec, by, current_limit())

    def shared_out(gy: Array, spec: PoolSpec) -> Array:
        if shared:
            return pooled.shared_out(gy, spec, shared)
        return pooled.shared_out(agnostic.divided(gy, spec, count_include_pad, divisor, gy.dtype), spec, 1.0)

    if spec.batch * held <= room:
        return shared_out(gy, spec)
    gx = new(spec.x_shape, gy.dtype)
    return _by_images(gx, spec, held + image, lambda images, part: shared_out(gy[images], part))


def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every value put at its index; NumPy lets the last of several count."""
    if spec.layout == "channels_last":
        return _unpooled(y, indices, spec)
    x = new(in_layout(spec.layout, spec.batch, spec.size, spec.channels), y.dtype)

    def unpooled(images: slice, part: ScatterSpec) -> Array:
        there = channels_last(y[images], spec.layout), channels_last(indices[images], spec.layout)
        return as_layout(_unpooled(*there, part), spec.layout)

    return _by_images(x, spec, y[:1].nbytes + indices[:1].nbytes + 2 * x[:1].nbytes, unpooled)


def _unpooled(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Channels last."""
    flat = (spec.batch, math.prod(spec.out_size), spec.channels)
    plane = np.zeros((spec.batch, math.prod(spec.size), spec.channels), dtype=y.dtype)
    np.put_along_axis(plane, indices.reshape(flat), y.reshape(flat), axis=1)
    return plane.reshape(spec.batch, *spec.size, spec.channels)


def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every gradient added at its index; nobody has looked yet whether that is in the plane."""
    if pooled.by("max_pool_grad", gy, spec):
        return pooled.scattered(gy, indices, spec)
    check_inside(indices, math.prod(spec.size), least=-1)
    summed = widened(gy[:0]).dtype
    if summed == gy.dtype:
        return scattering.scattered(gy, indices, spec, current_limit())
    gx = new(in_layout(spec.layout, spec.batch, spec.size, spec.channels), gy.dtype)
    for images in pieces.at_once(spec.batch, (gx[:1].size + gy[:1].size) * summed.itemsize):
        part = replace(spec, batch=images.stop - images.start)
        gx[images] = scattering.scattered(widened(gy[images]), indices[images], part, pieces.share(current_limit()))
    return gx
