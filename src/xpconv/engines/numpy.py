"""NumPy arrays: strided windows and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from xpconv.activations import ACTIVATIONS, LEAK
from xpconv.cpu import overlap, running, separable, signals, small, winograd
from xpconv.cpu.plan import (
    ROUNDING,
    Compiled,
    Tile,
    conv_plan,
    direct_by,
    is_cut,
    kernel_for,
    may_separate,
    pool_is_compiled,
    row_bytes,
    spectra_plan,
    tiles,
    tiling,
)
from xpconv.dtypes import kind_of, widened
from xpconv.engines import agnostic, fft
from xpconv.engines.agnostic import (
    as_weight,
    channels_last,
    epilogue,
    exchanged,
    pad,
    padding_source,
    surrounded,
    tap,
    unpad,
    weight_last,
)
from xpconv.plan import Arrays, Plan, conv_operations
from xpconv.request import WHOLE, Request
from xpconv.spec import Array, ConvSpec, PoolSpec, ScatterSpec, Sizes, Windows
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
    if spec.layout == "channels_first" and _is_product(spec) and _conv_plan(x, spec, method).method == "gemm":
        y = _products_of_planes(widened(x), widened(w), spec)
        return np.ascontiguousarray(epilogue(y, bias, activation, spec.layout, x.dtype))
    return _convolved(
        channels_last(widened(x), spec.layout), weight_last(widened(w), spec.layout), bias, spec, x.dtype,
        fill_value=fill_value, activation=activation, method=method,
    )  # fmt: skip


def into(request: Request) -> bool:
    """Write a convolution's result where the user wants it, if it is one that can be written there at once.

    New memory is not only filled but cleared by the system first: of 100 MB in 7 ms, where Winograd took 53.
    """
    out, spec, options = request.out, request.spec, request.options
    if request.operation != "conv" or request.then is not None or request.drop != WHOLE:
        return False
    arrays: Any = request.arrays
    (x, w, bias), chosen = arrays, {name: options[name] for name in ("fill_value", "activation", "method")}
    if type(out) is not np.ndarray or (out.shape, out.dtype) != (spec.y_shape, x.dtype):
        return False
    x, w = channels_last(widened(x), spec.layout), weight_last(widened(w), spec.layout)
    _convolved(x, w, bias, spec, out.dtype, out=channels_last(out, spec.layout), **chosen)
    return True


def _convolved(
    x: Array, w: Array, bias: Array | None, spec: ConvSpec, dtype: Any, *, fill_value: complex = 0,
    activation: str | None = None, method: str = "auto", out: Array | None = None,
) -> Array:  # fmt: skip
    """The result, in the spec's layout, of channels-last `x` and `w` in the dtype that sums are kept in.

    It is written to `out`, channels last and of any strides, where that is given.
    """
    chosen, compiled, careful = _conv_plan(x, spec, method).method, _takes(x.dtype, spec), method == "auto"
    y = _summed(chosen, compiled, x, w, bias, spec, fill_value, activation, out, careful=careful)
    if y is None:
        exact = "direct" if kernel_for(spec, "direct", compiled) else "gemm"
        y = _summed(exact, compiled, x, w, bias, spec, fill_value, activation, out)
    if out is not None:
        if y is not out:
            out[...] = channels_last(y, spec.layout)
        return out
    return np.ascontiguousarray(y.astype(dtype, copy=False))


def _summed(
    method: str, compiled: Compiled, x: Array, w: Array, bias: Array | None, spec: ConvSpec, fill: complex,
    activation: str | None, out: Array | None, *, careful: bool = False,
) -> Any:  # fmt: skip
    """By the method's kernels, which pad and finish as they go, in `out` if there is one, or by NumPy.

    A `careful` answer is None where a value that is not finite would have spread over a tile or a spectrum.
    """
    if kernel := kernel_for(spec, method, compiled):
        return _by_kernels(kernel, x, w, bias, spec, fill, activation, out, careful=careful)
    careful = careful and method in ROUNDING and not (method == "fft" and _in_tiles(x, spec))
    with np.errstate(over="ignore", invalid="ignore") if careful else nullcontext():
        y = _ALGORITHMS[method](surrounded(x, spec, fill), w, spec)
    if careful and not _finite(y):
        return None
    return epilogue(y, bias, activation, spec.layout, x.dtype)


def plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan | None:
    """What this engine does with these arguments; None for what it leaves to the agnostic engine."""
    x = arrays[0]
    if operation == "conv":
        return _conv_plan(x, spec, options["method"])
    if operation == "conv_grad_input" and spec.padding_mode == "zeros" and _is_direct_adjoint(spec):
        return _conv_plan(x, spec.input_adjoint, "auto")
    side = operation.removeprefix("conv_grad_")
    if side != operation and _spectral(x) and (spectra := spectra_plan(spec, side)):
        return spectra
    if operation == "conv_grad_weight" and x is not None and _gradient_by_kernels(x.dtype, spec):
        return Plan("direct", "by tiles of channels and filters", "compiled: blocks of pixels, added in registers")
    if operation in ("global_max_pool", "global_avg_pool"):
        by_kernels = x is not None and _pooled_by_kernels(x.dtype, _whole_maps(tuple(x.shape), spec))
        return Plan("direct", "every map at once", _POOLING_TILE) if by_kernels else None
    if options.get("return_indices") or (operation == "conv_grad_weight" and spec.groups > 1):
        return None
    if operation == "conv_grad_weight":
        tile, workspace = tiling(spec, _itemsize(x), current_limit())
        return Plan("gemm", "patches, transposed, times gy", tile, workspace)
    if operation in ("max_pool", "sum_pool", "avg_pool") and x is not None and _pooled_by_kernels(x.dtype, spec):
        return Plan("direct", _DIRECT[operation], _POOLING_TILE)
    return Plan("direct", _DIRECT[operation])


_POOLING_TILE = "compiled: results by a vector of channels in registers"


_DIRECT = {  # what is done to the whole result at once
    "conv_grad_input": "one convolution for each phase of the stride",
    "unfold": "the strided windows, copied out",
    "max_pool": "running maxima, axis by axis",
    "sum_pool": "running sums, axis by axis",
    "avg_pool": "running sums, axis by axis, divided",
    "max_unpool": "every value put at its index",
    "max_pool_grad": "every gradient added at its index",
}


# --- Repeated calls ---------------------------------------------------------------------------------------------------


def replay(request: Request) -> Callable[..., Any] | None:
    """A function of the request's arrays that computes it again with nothing left to decide; None where NumPy does.

    It answers NotImplemented where something has to be decided after all: fewer threads are free, or a result is not
    finite. Arrays that lack axes stand for themselves: the axes add nothing to where their elements lie.
    """
    pools = ("max_pool", "sum_pool", "avg_pool", "global_max_pool", "global_avg_pool")
    prepare = {"conv": _replay_conv, **dict.fromkeys(pools, _replay_pool)}
    x: Any = request.arrays[0]
    if request.operation not in prepare or x.dtype.char not in "fd":
        return None
    return prepare[request.operation](x, request)


def _replay_conv(x: Array, request: Request) -> Callable[..., Any] | None:
    w, spec, options = request.arrays[1], request.spec, request.options
    method, activation = _conv_plan(x, spec, options["method"]).method, options["activation"]
    kernel = kernel_for(spec, method, _takes(x.dtype, spec))
    if not kernel:
        return _replay_by_numpy(x, method, request)
    careful = options["method"] == "auto"
    stored = activation if activation in _STORED else None
    finish = None if activation == stored else ACTIVATIONS[activation]
    x, w_index = channels_last(x, spec.layout), request.lift[1]
    y, w_last = np.empty(spec.y_shape, x.dtype), weight_last(w, spec.layout)
    call = _prepared(kernel, x, w_last, channels_last(y, spec.layout), spec, options["fill_value"], stored)
    shape, dtype, kernels = y[request.drop].shape, x.dtype, _kernels()
    threads = kernels.thread_count()

    def again(x: Array, w: Array, bias: Array | None) -> Any:
        if kernels.thread_count() != threads:
            return NotImplemented
        y = np.empty(shape, dtype)
        usable = call(x, weight_last(w[w_index], spec.layout), bias, y)
        if careful and not usable:
            return NotImplemented
        return y if finish is None else finish(y)

    return again


def _replay_by_numpy(x: Array, method: str, request: Request) -> Callable[..., Any] | None:
    """A small one, whose sums NumPy makes in one go."""
    spec, options = request.spec, request.options
    loop = method == "direct" and direct_by(spec) == "loop"
    patches = spec.batch * spec.out_size[0] * row_bytes(spec, x.dtype.itemsize)
    at_once = loop or (method == "gemm" and spec.groups == 1 and patches <= current_limit())
    is_small = conv_operations(spec) < 2 * small.MOST and spec.padding_mode in ("zeros", "constant")
    if not (is_small and at_once):
        return None
    pad, multiply = small.padding(spec, x.dtype, options["fill_value"]), small.product(spec, x.dtype)
    (x_index, w_index), drop = request.lift, request.drop
    plain = options["activation"] is None and spec.layout == "channels_last"

    def again(x: Array, w: Array, bias: Array | None) -> Array:
        x, w = pad(channels_last(x[x_index], spec.layout)), weight_last(w[w_index], spec.layout)
        y = small.correlation(x, w, spec) if loop else multiply(x, w)
        if not plain or bias is not None:
            y = np.ascontiguousarray(epilogue(y, bias, options["activation"], spec.layout, y.dtype))
        return y[drop]

    return again


def _replay_pool(x: Array, request: Request) -> Callable[..., Any] | None:
    spec, divisor, shape = _pooling(x, request)
    if request.options.get("return_indices") or divisor is None or not _pooled_by_kernels(x.dtype, spec):
        return None
    operation = "largest" if "max_pool" in request.operation else "added"
    call = _prepared_pooling(operation, x, np.empty(spec.y_shape, x.dtype), spec, divisor)
    dtype, kernels = x.dtype, _kernels()
    threads = kernels.thread_count()

    def again(x: Array) -> Any:
        if kernels.thread_count() != threads:
            return NotImplemented
        y = np.empty(shape, dtype)
        call(x, y)
        return y

    return again


def _pooling(x: Array, request: Request) -> tuple[PoolSpec, float | None, Sizes]:
    """The windows, what all their sums are divided by, and the shape of the result."""
    spec, options = request.spec, request.options
    if request.operation in ("global_max_pool", "global_avg_pool"):
        spec = _whole_maps(tuple(x.shape), spec)
        return spec, math.prod(spec.size), spec.y_shape if options["keepdims"] else (spec.batch, spec.channels)
    divisor = _shared_divisor(spec, **options) if request.operation == "avg_pool" else 1.0
    return spec, divisor, np.empty(spec.y_shape, x.dtype)[request.drop].shape


# --- Plans ------------------------------------------------------------------------------------------------------------


def _conv_plan(x: Array, spec: ConvSpec, method: str) -> Plan:
    limit = current_limit()
    return conv_plan(spec, _itemsize(x), _spectral(x), method, limit, _takes(x.dtype, spec))


def _takes(dtype: Any, spec: ConvSpec) -> Compiled:
    """What the compiled kernels take of the convolution."""
    compiled = _compiled()
    if compiled is None:
        return Compiled()
    return compiled.takes(_summed_in(dtype), spec, current_limit())


@cache  # NumPy makes a dtype's name anew each time
def _summed_in(dtype: Any) -> str:
    """The name of the dtype that sums are kept in."""
    return "float32" if dtype.name in ("float16", "bfloat16") else dtype.name


@cache
def _compiled() -> ModuleType | None:
    """The compiled kernels; None without the extra "fast"."""
    try:
        from xpconv.cpu.compiled import kernels
    except ImportError:
        return None
    return kernels


def _kernels() -> ModuleType:
    """The compiled kernels, where a plan has found them."""
    compiled = _compiled()
    assert compiled is not None
    return compiled


def _spectral(x: Array) -> bool:
    """Whether spectra, which are computed in double precision, keep what the dtype promises."""
    return kind_of(x) != "integral" and x.dtype.char not in "gG"


def _itemsize(x: Array) -> int:
    """Bytes of an element in the dtype that sums are kept in."""
    return max(x.dtype.itemsize, 4) if kind_of(x) == "real floating" else x.dtype.itemsize


def _direct(x: Array, w: Array, spec: ConvSpec) -> Array:
    """Sums of products: of single planes by their axes or by bands, else one pass over the result per tap."""
    if direct_by(spec) == "loop":
        return small.correlation(x, w, spec)
    if x.dtype.char in _IN_BLAS and direct_by(spec) == "bands":
        if may_separate(spec) and (factors := separable.factors(w, spec)):
            return separable.conv(x, w, factors, spec, current_limit())
        return signals.conv(x, w, spec, current_limit())
    if spec.groups != spec.channels:
        return agnostic.total(
            agnostic.product_of_groups(tap(x, spec, o), agnostic.weight_at(w, spec, o), spec.groups) for o in spec.taps
        )
    multiplier = spec.filters // spec.channels
    y = np.zeros((spec.batch, *spec.out_size, spec.channels, multiplier), dtype=x.dtype)
    for o in spec.taps:
        y += tap(x, spec, o)[..., None] * agnostic.weight_at(w, spec, o).reshape(spec.channels, multiplier)
    return y.reshape(spec.batch, *spec.out_size, spec.filters)


_IN_BLAS = "fdFD"  # dtypes that it multiplies


def _fft(x: Array, w: Array, spec: ConvSpec) -> Array:
    return overlap.conv(x, w, spec, current_limit()) if _in_tiles(x, spec) else fft.conv(x, w, spec)


def _in_tiles(x: Array, spec: ConvSpec) -> bool:
    """Whether spectra are those of tiles, which are computed again one by one where they are not finite."""
    return x.dtype.char in _IN_BLAS and is_cut(spec)


def _by_kernels(
    kernel: str, x: Array, w: Array, bias: Array | None, spec: ConvSpec, fill: complex, activation: str | None,
    out: Array | None = None, *, careful: bool = False,
) -> Any:  # fmt: skip
    """By compiled kernels, which read `x` where it lies, pad on the way, and store the finished result."""
    if out is not None and not _is_written_by(kernel, out):
        out = None
    y = np.empty(spec.y_shape, x.dtype) if out is None else out
    stored = activation if activation in _STORED else None
    y_last = channels_last(y, spec.layout) if out is None else out
    usable = _prepared(kernel, x, w, y_last, spec, fill, stored)(x, w, bias, y)
    if careful and not usable:
        return None
    return y if stored == activation or activation is None else ACTIVATIONS[activation](y)


def _is_written_by(kernel: str, y: Array) -> bool:
    """Whether kernels write a channels-last result that lies so: channels side by side, or all planes dense."""
    planes = np.moveaxis(y, -1, 1).flags.c_contiguous
    return planes or (y.strides[-2] if kernel == "plane" else y.strides[-1]) == y.itemsize


def _prepared(
    kernel: str, x: Array, w: Array, y: Array, spec: ConvSpec, fill: complex, activation: str | None
) -> Callable[..., bool]:
    """The kernels' call for channels-last arrays that lie as these do."""
    call: Callable[..., bool] = _kernels().prepared(
        kernel, x, w, y, spec, _sources, float(fill.real), activation, LEAK, current_limit()
    )
    return call


_STORED = ("relu", "leaky_relu")  # activations that the kernels apply as they store


@lru_cache(maxsize=128)
def _sources(spec: ConvSpec | PoolSpec) -> tuple[Array, ...]:
    """For each spatial axis where the elements of the padded input come from, -1 for the padding's own."""
    if spec.padding_mode not in ("zeros", "constant"):
        pairs = zip(spec.size, spec.padding, strict=True)
        return tuple(padding_source(np, n, *pads, spec.padding_mode) for n, pads in pairs)
    steps = getattr(spec, "input_dilation", ()) or (1,) * spec.axes
    sources = []
    for n, step, (before, after) in zip(spec.size, steps, spec.padding, strict=True):
        end = (n - 1) * step + 1
        places = np.arange(-before, max(end, 0) + after)
        sources.append(np.where((places >= 0) & (places < end) & (places % step == 0), places // step, -1))
    return tuple(sources)


def _gemm(x: Array, w: Array, spec: ConvSpec) -> Array:
    """im2col, never whole: the patches of one tile are copied side by side and multiplied at once."""
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    per_group, maps = spec.channels // spec.groups, spec.filters // spec.groups
    length = math.prod(spec.window) * per_group
    y = np.empty((spec.batch, *spec.out_size, spec.filters), dtype=x.dtype)
    for group in range(spec.groups):
        columns = windows(x[..., group * per_group : (group + 1) * per_group], spec)
        weight = w[..., group * maps : (group + 1) * maps].reshape(length, maps)
        for tile in tiles(spec, row_bytes(spec, x.dtype.itemsize), current_limit()):
            patches = _patches(columns, tile, spec, length)
            result = y[tile.images, tile.rows]
            if spec.groups == 1:
                np.matmul(patches, weight, out=result.reshape(len(patches), maps))  # a view: whole rows lie together
            else:
                result[..., group * maps : (group + 1) * maps] = (patches @ weight).reshape(*result.shape[:-1], maps)
            del patches  # before the next tile's are made
    return y


def _patches(columns: Array, tile: Tile, spec: ConvSpec, length: int) -> Array:
    """The patches of one tile, copied side by side: (positions, length)."""
    block = columns[tile.images, tile.rows]
    return block.reshape(math.prod(block.shape[: spec.axes + 1]), length)


def _winograd(x: Array, w: Array, spec: ConvSpec) -> Array:
    return winograd.conv(x, w, spec, current_limit())


def _finite(y: Array) -> bool:
    """Whether all values are: by all threads, or by their sum, which is read faster but may overflow."""
    compiled = _compiled()
    if compiled is not None and y.dtype.char in "fd" and compiled.available() and _is_contiguous(y):
        return compiled.all_finite(y)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(y.sum()) or np.isfinite(y).all())


def _spectral_if_finite(x: Array, w: Array, spec: ConvSpec) -> Array:
    """By spectra, unless the result shows that one of them spread what is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = fft.conv(x, w, spec)
    return y if _finite(y) else _gemm(x, w, spec)


def _is_contiguous(y: Array) -> bool:
    """Whether nothing lies between the elements of `y`, channels last or first."""
    return y.flags.c_contiguous or np.moveaxis(y, -1, 1).flags.c_contiguous


def _is_product(spec: ConvSpec) -> bool:
    """Whether the convolution is one matrix product: windows of one that read every position."""
    plain = not spec.input_dilation and spec.groups == 1 and spec.padded_size == spec.size
    return plain and math.prod(spec.window) == 1 and spec.out_size == spec.size


def _products_of_planes(x: Array, w: Array, spec: ConvSpec) -> Array:
    """A product of channels-first planes as they lie, without a transpose: (F, C) times (N, C, positions)."""
    planes = x.reshape(spec.batch, spec.channels, math.prod(spec.size))
    y = w.reshape(spec.filters, spec.channels) @ planes
    return channels_last(y.reshape(spec.batch, spec.filters, *spec.size), spec.layout)


def windows(x: Array, spec: Windows) -> Array:
    """A view of padded `x` as (N, *out, *window, C), without a copy."""
    steps = x.strides[1:-1]
    strides = (
        x.strides[0],
        *(step * s for step, s in zip(steps, spec.stride, strict=True)),
        *(step * d for step, d in zip(steps, spec.dilation, strict=True)),
        x.strides[-1],
    )
    shape = (x.shape[0], *spec.out_size, *spec.window, x.shape[-1])
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)


_ALGORITHMS = {"direct": _direct, "gemm": _gemm, "winograd": _winograd, "fft": _fft}


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """The adjoint as a convolution: one where the stride is 1, or by spectra; else one for each phase of the stride."""
    dtype = gy.dtype
    gy, w = channels_last(widened(gy), spec.layout), exchanged(weight_last(widened(w), spec.layout), spec.groups)
    if spec.padding_mode != "zeros":  # to the padded input, and what fell on the padding back to where it came from
        gx = unpad(_adjoint(gy, w, None, replace(spec.valid, layout="channels_last"), None), spec)
        return np.ascontiguousarray(epilogue(gx, bias, activation, spec.layout, dtype))
    if _is_direct_adjoint(spec) or not (_spectral(gy) and spectra_plan(spec, "input")):
        return _adjoint(gy, w, bias, spec, activation).astype(dtype, copy=False)
    gx = _spectral_if_finite(surrounded(gy, spec.input_adjoint), w, spec.input_adjoint)
    return np.ascontiguousarray(epilogue(gx, bias, activation, spec.layout, dtype))


def _is_direct_adjoint(spec: ConvSpec) -> bool:
    """Whether the input gradient is one convolution, whose plan then says how."""
    return set(spec.stride) == {1}


def _adjoint(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, activation: str | None) -> Array:
    """The input gradient in the spec's layout, of channels-last `gy` and exchanged `w`."""
    if _is_direct_adjoint(spec):
        return _convolved(gy, w, bias, spec.input_adjoint, gy.dtype, activation=activation)
    gx = np.empty((spec.batch, *spec.size, spec.channels), gy.dtype)
    for phase in replace(spec, layout="channels_last").input_phases:
        here = gx[(slice(None), *phase.places)]
        if 0 in phase.spec.window:
            here[...] = epilogue(np.zeros((1,) * gx.ndim, gx.dtype), bias, activation, "channels_last", gx.dtype)
        else:
            _convolved(gy, w[phase.taps], bias, phase.spec, gy.dtype, activation=activation, out=here)
    return np.ascontiguousarray(agnostic.as_layout(gx, spec.layout))


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """By spectra where the window is large, by the compiled kernels, or patches, transposed, times `gy`, in tiles."""
    dtype = x.dtype
    if _spectral(x) and spectra_plan(spec, "weight"):
        x, gy = channels_last(widened(x), spec.layout), channels_last(widened(gy), spec.layout)
        x, gy = agnostic.to_weight_adjoint(x, gy, spec)
        gw = _spectral_if_finite(surrounded(x, spec.weight_adjoint), gy, spec.weight_adjoint)
        return np.ascontiguousarray(agnostic.from_weight_adjoint(gw, spec).astype(dtype, copy=False))
    if spec.groups > 1 and not _gradient_by_kernels(dtype, spec):
        return NotImplemented  # the agnostic engine's batched products serve groups as well
    x, gy = channels_last(widened(x), spec.layout), channels_last(widened(gy), spec.layout)
    if _gradient_by_kernels(dtype, spec):
        gw = _kernels().grad_weight(x, gy, spec, _sources, current_limit())
        return np.ascontiguousarray(as_weight(gw, spec).astype(dtype, copy=False))
    x = pad(x, spec)
    columns, length = windows(x, spec), math.prod(spec.window) * spec.channels
    gw = np.zeros((length, spec.filters), dtype=x.dtype)
    for tile in tiles(spec, row_bytes(spec, x.dtype.itemsize), current_limit()):
        patches = _patches(columns, tile, spec, length)
        gw += patches.T @ gy[tile.images, tile.rows].reshape(len(patches), spec.filters)
        del patches  # before the next tile's are made
    gw = gw.reshape(*spec.window, spec.channels, spec.filters)
    return np.ascontiguousarray(as_weight(gw, spec).astype(dtype, copy=False))


def _gradient_by_kernels(dtype: Any, spec: ConvSpec) -> bool:
    compiled, large = _compiled(), conv_operations(spec) > _LARGE_GRADIENT
    return large and compiled is not None and compiled.takes_weight_gradient(_summed_in(dtype), spec, current_limit())


_LARGE_GRADIENT = 200_000  # operations that BLAS does while the kernels are being called


# --- Patches and pooling ----------------------------------------------------------------------------------------------


def unfold(x: Array, spec: PoolSpec) -> Array:
    """The strided windows, copied out."""
    patches = windows(pad(channels_last(x, spec.layout), spec), spec)
    if spec.layout == "channels_first":
        axes = spec.axes
        patches = patches.transpose(0, 2 * axes + 1, *range(axes + 1, 2 * axes + 1), *range(1, axes + 1))
    return patches.copy()


def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Any:
    """By the compiled kernels, or running maxima, axis by axis."""
    if return_indices:
        return NotImplemented  # the agnostic engine's comparisons are what NumPy would do
    if _pooled_by_kernels(x.dtype, spec):
        return _pooled("largest", x, spec)
    x = pad(channels_last(x, spec.layout), spec.reading, agnostic.lowest(np, x.dtype))
    return np.ascontiguousarray(agnostic.as_layout(_merged(x, spec, np.maximum), spec.layout))


def sum_pool(x: Array, spec: PoolSpec) -> Array:
    """By the compiled kernels, or running sums, axis by axis."""
    if _pooled_by_kernels(x.dtype, spec):
        return _pooled("added", x, spec)
    dtype = x.dtype
    y = _merged(pad(channels_last(widened(x), spec.layout), spec.reading), spec, np.add)
    return np.ascontiguousarray(agnostic.as_layout(y, spec.layout).astype(dtype, copy=False))


def _pooled_by_kernels(dtype: Any, spec: PoolSpec) -> bool:
    compiled = _compiled()
    if spec.layout == "channels_first" and spec.window == spec.size and math.prod(spec.size) > _LONG_PLANE:
        return False
    return compiled is not None and pool_is_compiled(spec) and compiled.pools(dtype, spec, current_limit())


_LONG_PLANE = 1024  # elements, side by side, that NumPy reduces faster than kernels turn them


def _pooled(operation: str, x: Array, spec: PoolSpec, divisor: float = 1.0) -> Array:
    """By a pooling of the compiled kernels, which read `x` where it lies and pad on the way."""
    y = np.empty(spec.y_shape, x.dtype)
    _prepared_pooling(operation, x, y, spec, divisor)(x, y)
    return y


def _prepared_pooling(operation: str, x: Array, y: Array, spec: PoolSpec, divisor: float) -> Callable[..., None]:
    x, y = (channels_last(a, spec.layout) for a in (x, y))
    call: Callable[..., None] = _kernels().prepared_pooling(
        operation, x, y, spec.reading, _sources, divisor, current_limit()
    )
    return call


def _merged(x: Array, spec: PoolSpec, merge: np.ufunc) -> Array:
    """Padded `x` with the elements of every window merged: those of one axis after those of the other."""
    geometry = zip(spec.window, spec.dilation, spec.stride, spec.out_size, strict=True)
    for axis, (size, step, stride, results) in enumerate(geometry, start=1):
        x = running.merged_windows(x, size, step, stride, axis, merge, current_limit())
        x = x[(*(slice(None),) * axis, slice(results))]  # windows that begin beyond the end are none
    return x


def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The sums, divided: where all windows are divided by the same, as they are stored."""
    shared = _shared_divisor(spec, count_include_pad, divisor)
    if shared is not None and _pooled_by_kernels(x.dtype, spec):
        return _pooled("added", x, spec, shared)
    return agnostic.divided(sum_pool(widened(x), spec), spec, count_include_pad, divisor, x.dtype)


def _shared_divisor(spec: PoolSpec, count_include_pad: bool, divisor: float | None) -> float | None:
    """What the sums of all windows are divided by; None where some count fewer elements than others."""
    if divisor:
        return divisor
    counts = (spec.counts(axis, count_include_pad) for axis in range(spec.axes))
    whole = all(set(count) == {m} for count, m in zip(counts, spec.window, strict=True))
    return math.prod(spec.window) if whole else None


def global_max_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Any:
    """Of maps whose channels are last by the compiled kernels."""
    return _pooled_whole("largest", x, axes, keepdims)


def global_avg_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Any:
    """Of maps whose channels are last by the compiled kernels."""
    return _pooled_whole("added", x, axes, keepdims)


def _pooled_whole(operation: str, x: Array, axes: Sizes, keepdims: bool) -> Any:
    spec = _whole_maps(tuple(x.shape), axes)
    if not _pooled_by_kernels(x.dtype, spec):
        return NotImplemented  # the agnostic engine's reduction is what NumPy would do
    y = _pooled(operation, x, spec, math.prod(spec.size) if operation == "added" else 1.0)
    return y if keepdims else y.reshape(spec.batch, spec.channels)


@lru_cache(maxsize=128)
def _whole_maps(shape: Sizes, axes: Sizes) -> PoolSpec:
    """The pooling of maps over all of their axes."""
    layout = "channels_last" if axes[0] == 1 else "channels_first"
    size, channels = tuple(shape[axis] for axis in axes), shape[-1 if axes[0] == 1 else 1]
    ones, none = (1,) * len(axes), ((0, 0),) * len(axes)
    return PoolSpec(layout, shape[0], channels, size, window=size, stride=ones, dilation=ones, padding=none)


def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every value put at its index; NumPy lets the last of several count."""
    flat = (spec.batch, math.prod(spec.out_size), spec.channels)
    values, indices = (channels_last(a, spec.layout).reshape(flat) for a in (y, indices))
    plane = np.zeros((spec.batch, math.prod(spec.size), spec.channels), dtype=y.dtype)
    np.put_along_axis(plane, indices, values, axis=1)
    plane = plane.reshape(spec.batch, *spec.size, spec.channels)
    return np.ascontiguousarray(agnostic.as_layout(plane, spec.layout))


def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every gradient added at its index."""
    dtype, places = gy.dtype, math.prod(spec.size)
    flat = (spec.batch, math.prod(spec.out_size), spec.channels)
    gy, indices = (channels_last(a, spec.layout).reshape(flat) for a in (widened(gy), indices))
    n, _, c = np.ogrid[: flat[0], : flat[1], : flat[2]]
    kept = indices >= 0
    gx = np.zeros(spec.batch * places * spec.channels, dtype=gy.dtype)
    np.add.at(gx, ((n * places + indices) * spec.channels + c)[kept], gy[kept])
    gx = agnostic.as_layout(gx.reshape(spec.batch, *spec.size, spec.channels), spec.layout)
    return np.ascontiguousarray(gx.astype(dtype, copy=False))
