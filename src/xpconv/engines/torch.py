"""torch tensors: torch's own operators, so that autograd and `torch.func` see through every call.

Inside, tensors are channels-first views, of memory in torch's channels_last format where the user's layout is that,
and one spatial axis is two, the first of them 1 long: torch does the same, but loses the memory format on the way.

`DECLINED` says what is left to the agnostic engine, on torch's tensors all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from xpconv.dtypes import widened
from xpconv.engines import agnostic
from xpconv.plan import Arrays, Plan
from xpconv.spec import AdaptiveSpec, Array, ConvSpec, PoolSpec, ScatterSpec, Sizes

METHODS = ("auto",)

DECLINED = {
    "conv, conv_grad_input, conv_grad_weight": (
        "integers, which torch has for some geometries only; more than three spatial axes; arrays of no elements"
    ),
    "conv_grad_weight": "complex numbers",
    "max_pool": "integers on a GPU, and unsigned ones of more than 8 bits",
    "sum_pool, avg_pool, avg_pool_grad": "integers, complex numbers, dilation",
    "max_pool, sum_pool, avg_pool, avg_pool_grad": (
        "padding that is asymmetric, wider than half the window, or around a dilated window; more than three spatial "
        "axes; arrays of no elements"
    ),
    "adaptive_max_pool, adaptive_avg_pool": "integers, complex numbers, more than three spatial axes, no elements",
    "max_pool_grad, max_unpool": "unsigned integers of more than 8 bits",
    "lp_pool, unfold, fold, global_max_pool, global_avg_pool": "everything: torch differentiates what they are made of",
}

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_INEXACT_ON_CPU = (torch.float16, torch.bfloat16)  # sums rounded term by term, to 30 eps where oneDNN is not used
# float16 is 45 times slower than float32; bfloat16 is twice as fast where oneDNN has it, which is with AVX-512 only.
_SLOW_ON_CPU = (torch.float16,) if torch.backends.cpu.get_cpu_capability() == "AVX512" else _INEXACT_ON_CPU

_CONV = {2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
_CONV_WEIGHT = {2: torch.nn.grad.conv2d_weight, 3: torch.nn.grad.conv3d_weight}
_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_AVG_POOL_GRAD = {2: torch.ops.aten.avg_pool2d_backward, 3: torch.ops.aten.avg_pool3d_backward}
_ADAPTIVE_MAX = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
_ADAPTIVE_AVG = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_MEMORY = {2: torch.channels_last, 3: torch.channels_last_3d}


def plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan | None:  # noqa: ARG001
    """What this engine does with these arguments; None for what it leaves to the agnostic engine."""
    return Plan("native", "torch's own operator") if _TAKES[operation](arrays[0], spec) else None


# --- Convolution ------------------------------------------------------------------------------------------------------


def conv(
    x: Array,
    w: Array,
    bias: Array | None,
    spec: ConvSpec,
    *,
    fill_value: complex,
    activation: str | None,
    precision: str,
    method: str,  # noqa: ARG001  there is one
) -> Array:
    """`F.conv{n}d`, which is a correlation, of the weight or the flipped weight.

    `precision` governs this call; gradients that autograd takes later follow torch's setting of that time.
    """
    if not _convolves(x, spec):
        return NotImplemented
    dtype, plane = x.dtype, planar(spec)
    x, w, bias = (in_float32(a, _SLOW_ON_CPU) for a in (x, w, bias))
    x, plane = _padded(feature_maps(x, spec), plane, fill_value)
    with _multiplying(x, precision):
        y = _CONV[plane.axes](x, _weight(w, spec), bias, plane.stride, _before(plane), plane.dilation, plane.groups)
    return _finished(y, None, activation, spec, dtype)


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """`F.conv_transpose{n}d`; where it cannot undo the padding, back to the padded input, and on from there."""
    if not _convolves(gy, spec):
        return NotImplemented
    dtype, plane = gy.dtype, planar(spec)
    gy, w, bias = (in_float32(a, _INEXACT_ON_CPU) for a in (gy, w, bias))
    extra = _output_padding(plane)
    arrays = feature_maps(gy, spec), _weight(w, spec)
    conv_transpose, steps = _CONV_TRANSPOSE[plane.axes], (plane.groups, plane.dilation)
    with _multiplying(gy, "highest"):
        if extra is not None:
            gx = conv_transpose(*arrays, bias, plane.stride, _before(plane), extra, *steps)
            return _finished(gx, None, activation, spec, dtype)
        padded = conv_transpose(*arrays, None, plane.stride, 0, plane.remainder, *steps)
    gx = agnostic.unpad(padded.movedim(1, -1), plane).movedim(-1, 1)
    return _finished(gx, bias, activation, spec, dtype)


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """`torch.nn.grad.conv{n}d_weight`."""
    if not _takes_weight_gradient(x, spec):
        return NotImplemented
    dtype, plane = x.dtype, planar(spec)
    x, gy = (feature_maps(in_float32(a, _SLOW_ON_CPU), spec) for a in (x, gy))
    x, plane = _padded(x, plane)
    shape = (plane.filters, plane.channels // plane.groups, *plane.window)
    with _multiplying(x, "highest"):
        gw = _CONV_WEIGHT[plane.axes](x, shape, gy, plane.stride, _before(plane), plane.dilation, plane.groups)
    gw = gw.flip(tuple(range(2, gw.ndim))) if spec.flip else gw
    gw = gw.squeeze(2) if spec.axes == 1 else gw
    return (gw if spec.layout == "channels_first" else gw.permute(*range(2, gw.ndim), 1, 0)).to(dtype)


def _convolves(x: Array, spec: ConvSpec) -> bool:
    """Whether torch has a convolution of such arrays."""
    elements = 0 not in (spec.batch, *spec.size, spec.channels, spec.filters)
    return x.dtype in _FLOATS + _COMPLEX and spec.axes <= 3 and elements


def _takes_weight_gradient(x: Array, spec: ConvSpec) -> bool:
    return _convolves(x, spec) and x.dtype not in _COMPLEX


def _padded(x: Array, plane: ConvSpec, fill: complex = 0) -> tuple[Array, ConvSpec]:
    """x with the padding that torch's convolutions do not have, and the spec that remains."""
    if plane.padding_mode != "zeros":
        return agnostic.pad(x.movedim(1, -1), plane, fill).movedim(-1, 1), plane.valid
    if all(before == after for before, after in plane.padding):
        return x, plane
    return F.pad(x, [n for pair in reversed(plane.padding) for n in pair]), plane.valid


def _output_padding(plane: ConvSpec) -> Sizes | None:
    """torch's `output_padding` that gives the result its size, or None where torch has no such result."""
    axes = zip(plane.size, plane.padding, plane.out_size, plane.stride, plane.reach, strict=True)
    extra = tuple(n + 2 * before - (out - 1) * s - reach for n, (before, _), out, s, reach in axes)
    fits = all(0 <= e < max(s, d) for e, s, d in zip(extra, plane.stride, plane.dilation, strict=True))
    return extra if fits and plane.padding_mode == "zeros" else None


def _weight(w: Array, spec: ConvSpec) -> Array:
    """The weight as torch's correlation reads it: (F, C / groups, *window)."""
    if spec.layout == "channels_last":
        w = w.permute(-1, -2, *range(spec.axes))
    w = w.unsqueeze(2) if spec.axes == 1 else w
    return w.flip(tuple(range(2, w.ndim))) if spec.flip else w


def _finished(y: Array, bias: Array | None, activation: str | None, spec: ConvSpec, dtype: Any) -> Array:
    """``phi(y + bias)`` in the user's form."""
    y = y if activation is None else widened(y)
    y = y.squeeze(2) if spec.axes == 1 else y
    return agnostic.epilogue(y.movedim(1, -1), bias, activation, spec.layout, dtype)


def _multiplying(x: Array, precision: str) -> AbstractContextManager[None]:
    """The context in which a GPU multiplies x with that precision."""
    if not x.is_cuda or x.dtype not in (torch.float32, torch.complex64):
        return nullcontext()
    return _tf32(precision == "tf32")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Convolutions inside round float32 to TF32, or do not; all other settings stay as the user has them."""
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
        with cudnn.flags(**kept, allow_tf32=allowed):
            yield
        return
    before, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


# --- Pooling ----------------------------------------------------------------------------------------------------------


def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Any:
    """`F.max_pool{n}d`, with the first NaN's index, where torch gives the last one's."""
    if not _takes_maxima(x, spec):
        return NotImplemented
    plane = planar(spec)
    maps, pool = _channels_last_memory(feature_maps(x, spec)), _MAX_POOL[plane.axes]
    geometry = (plane.window, plane.stride, _before(plane), plane.dilation, plane.ceil_mode)
    if not return_indices:
        return _pooled(pool(maps, *geometry), spec)
    y, indices = _first_nan(maps, lambda a: pool(a, *geometry, return_indices=True))
    return _pooled(y, spec), _pooled(indices, spec)


def sum_pool(x: Array, spec: PoolSpec) -> Array:
    """`F.avg_pool{n}d`, divided by 1."""
    return _average(x, spec, count_include_pad=True, divisor_override=1)


def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """`F.avg_pool{n}d`; it counts as we do, except that it takes whole divisors only."""
    if divisor is None:
        return _average(x, spec, count_include_pad=count_include_pad, divisor_override=None)
    y = _average(widened(x), spec, count_include_pad=True, divisor_override=1)
    return NotImplemented if y is NotImplemented else (y / divisor).to(x.dtype)


def _average(x: Array, spec: PoolSpec, **counting: Any) -> Array:
    if not _averages(x, spec):
        return NotImplemented
    plane, maps = planar(spec), feature_maps(in_float32(x, _INEXACT_ON_CPU), spec)
    y = _AVG_POOL[plane.axes](maps, plane.window, plane.stride, _before(plane), plane.ceil_mode, **counting)
    return _pooled(y, spec).to(x.dtype)


def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The backward operator of `F.avg_pool{n}d`."""
    if not _averages(gy, spec):
        return NotImplemented
    plane, wide = planar(spec), widened(gy)
    maps = feature_maps(wide if divisor is None else wide / divisor, spec)
    shape_only = maps.new_empty(1).expand(plane.batch, plane.channels, *plane.size)
    gx = _AVG_POOL_GRAD[plane.axes](
        maps, shape_only, plane.window, plane.stride, _before(plane), plane.ceil_mode, count_include_pad,
        None if divisor is None else 1,
    )  # fmt: skip
    return _pooled(gx, spec).to(gy.dtype)


def adaptive_avg_pool(x: Array, spec: AdaptiveSpec) -> Array:
    """`F.adaptive_avg_pool{n}d`."""
    if not _adapts(x, spec):
        return NotImplemented
    plane, maps = planar(spec), feature_maps(in_float32(x, _INEXACT_ON_CPU), spec)
    return _pooled(_ADAPTIVE_AVG[len(plane.size)](maps, plane.out_size), spec).to(x.dtype)


def adaptive_max_pool(x: Array, spec: AdaptiveSpec, *, return_indices: bool) -> Any:
    """`F.adaptive_max_pool{n}d`, with the first NaN's index, where torch gives the last one's."""
    if not _adapts(x, spec):
        return NotImplemented
    plane = planar(spec)
    maps = _channels_last_memory(feature_maps(in_float32(x, _INEXACT_ON_CPU), spec))
    pool = _ADAPTIVE_MAX[len(plane.size)]
    if not return_indices:
        return _pooled(pool(maps, plane.out_size), spec).to(x.dtype)
    y, indices = _first_nan(maps, lambda a: pool(a, plane.out_size, return_indices=True))
    return _pooled(y, spec).to(x.dtype), _pooled(indices, spec)


def _first_nan(maps: Array, pool: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
    """Maxima and indices; where NaN won, the index is that of the first maximum of "is NaN"."""
    y, indices = pool(maps)
    if not maps.dtype.is_floating_point:
        return y, indices
    nan = y.isnan()
    if not _may_hold(nan):
        return y, indices
    _, first = pool(maps.isnan().to(maps.dtype))
    return y, torch.where(nan, first, indices)


def _may_hold(flags: Array) -> bool:
    """False if no flag is set; True as well where looking would wait for a GPU, or `vmap` hides the values."""
    try:
        return flags.device.type != "cpu" or bool(flags.any())
    except RuntimeError:
        return True


def _takes_maxima(x: Array, spec: PoolSpec) -> bool:
    """Whether torch has a maximum over such windows of x."""
    return (x.dtype in _FLOATS or (x.dtype in _INTEGERS and x.device.type == "cpu")) and _slides(x, spec)


def _slides(x: Array, spec: PoolSpec) -> bool:
    """Whether torch's windows can be ours; they have little padding, so that each holds an element."""
    axes = zip(spec.padding, spec.window, spec.dilation, strict=True)
    fits = all(lo == hi and (lo == 0 or (lo <= m // 2 and d == 1)) for (lo, hi), m, d in axes)
    return fits and spec.axes <= 3 and 0 not in x.shape


def _averages(x: Array, spec: PoolSpec) -> bool:
    reaches = all(n >= m for n, m in zip(spec.size, spec.window, strict=True))  # else torch refuses volumes
    return x.dtype in _FLOATS and _slides(x, spec) and set(spec.dilation) == {1} and reaches


def _adapts(x: Array, spec: AdaptiveSpec) -> bool:
    return x.dtype in _FLOATS and len(spec.size) <= 3 and 0 not in x.shape


def _channels_last_memory(maps: Array) -> Array:
    """Maps in the memory order that a CPU pools 10 times faster, 2 to 8 times with the copy; not with few channels."""
    if maps.device.type != "cpu" or maps.shape[1] < 4:
        return maps
    try:
        return maps.contiguous(memory_format=_MEMORY[maps.ndim - 2])
    except RuntimeError:  # inside `torch.vmap`, which hides the memory
        return maps


# --- Back to the plane ------------------------------------------------------------------------------------------------


def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every gradient added at its index; index -1 means a place behind the plane, cut off afterwards."""
    if not _scatters(gy, spec):
        return NotImplemented
    values, indices = _flat(widened(gy), spec), _flat(indices, spec).to(torch.int64)
    return _plane(values, indices, spec).to(gy.dtype)


def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """The sum of `max_pool_grad`, after all but the last of the values that share an index are made zero."""
    if not _scatters(y, spec):
        return NotImplemented
    values, indices = _flat(y, spec), _flat(indices, spec).to(torch.int64)
    order = torch.arange(values.shape[1], device=values.device).reshape(1, -1, 1).expand(values.shape)
    places = (spec.batch, math.prod(spec.size), spec.channels)
    last = order.new_zeros(places).scatter_reduce(1, indices, order, "amax").gather(1, indices)
    return _plane(torch.where(last == order, values, 0), indices, spec)


def _scatters(values: Array, _: ScatterSpec) -> bool:
    return values.dtype in _FLOATS + _COMPLEX + _INTEGERS


def _flat(a: Array, spec: ScatterSpec) -> Array:
    """(N, outputs, C)"""
    return agnostic.channels_last(a, spec.layout).reshape(spec.batch, math.prod(spec.out_size), spec.channels)


def _plane(values: Array, indices: Array, spec: ScatterSpec) -> Array:
    places = math.prod(spec.size)
    indices = torch.where(indices < 0, places, indices)
    zeros = values.new_zeros((spec.batch, places + 1, spec.channels))
    if values.device.type == "cpu":  # of the two, scatter_add keeps its order on a CPU, index_put on a GPU
        plane = zeros.scatter_add(1, indices, values)
    else:
        n, c = (torch.arange(length, device=values.device) for length in (spec.batch, spec.channels))
        plane = zeros.index_put((n.reshape(-1, 1, 1), indices, c), values, accumulate=True)
    return agnostic.as_layout(plane[:, :places].reshape(spec.batch, *spec.size, spec.channels), spec.layout)


# --- Forms ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def planar(spec: Any) -> Any:
    """The spec, with one spatial axis written as two, the first 1 long."""
    if len(spec.size) > 1:
        return spec
    if isinstance(spec, AdaptiveSpec):
        return replace(spec, size=(1, *spec.size), out_size=(1, *spec.out_size))
    along_axes = {name: (1, *getattr(spec, name)) for name in ("size", "window", "stride", "dilation")}
    return replace(spec, **along_axes, padding=((0, 0), *spec.padding))


def feature_maps(x: Array, spec: Any) -> Array:
    """A view (N, C, *size) with at least two spatial axes."""
    x = x.movedim(-1, 1) if spec.layout == "channels_last" else x
    return x.unsqueeze(2) if x.ndim == 3 else x


def _pooled(y: Array, spec: Any) -> Array:
    """`feature_maps` undone; contiguous, whatever memory order the operator left."""
    y = y.squeeze(2) if len(spec.size) == 1 else y
    return (y.movedim(1, -1) if spec.layout == "channels_last" else y).contiguous()


def _before(plane: ConvSpec | PoolSpec) -> list[int]:
    """Symmetric padding, as torch takes it."""
    return [before for before, _ in plane.padding]


def in_float32(x: Array, dtypes: tuple[Any, ...]) -> Array:
    """x in float32, if it lies on a CPU in one of `dtypes`."""
    return x.to(torch.float32) if x is not None and x.dtype in dtypes and x.device.type == "cpu" else x


# --- What is taken: the check that each operation makes first ---------------------------------------------------------

_TAKES: dict[str, Callable[[Array, Any], bool]] = {
    "conv": _convolves,
    "conv_grad_input": _convolves,
    "conv_grad_weight": _takes_weight_gradient,
    "max_pool": _takes_maxima,
    "sum_pool": _averages,
    "avg_pool": _averages,
    "avg_pool_grad": _averages,
    "adaptive_avg_pool": _adapts,
    "adaptive_max_pool": _adapts,
    "max_pool_grad": _scatters,
    "max_unpool": _scatters,
}
