"""CuPy arrays: the kernels of `kernels/`, launched as the plans of `cuda.plans` say.

A case that no kernel takes, and a kernel that cannot be compiled here, is left to the agnostic engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import cupy
import numpy as np

from xpconv.cuda import launch, turned
from xpconv.cuda.geometry import AXES, dense
from xpconv.cuda.jobs import Job, Result, operation, planned, repeated, setting
from xpconv.cuda.patches import fold, unfold
from xpconv.cuda.plans import conv as conv_plans
from xpconv.cuda.plans.spectra import Slab, slab_spec, spectra
from xpconv.cuda.plans.turning import Turn, turn
from xpconv.cuda.pooling import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    avg_pool_grad,
    global_avg_pool,
    global_max_pool,
    lp_pool,
    max_pool,
    max_pool_grad,
    max_unpool,
    sum_pool,
)
from xpconv.cuda.setting import Operand
from xpconv.cuda.steps import Unfit, Work
from xpconv.dtypes import short_name, widened
from xpconv.engines import agnostic, fft
from xpconv.plan import Arrays, Plan
from xpconv.request import Request
from xpconv.spec import Array, ConvSpec
from xpconv.workspace import current_limit

__all__ = [
    "METHODS",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "avg_pool_grad",
    "conv",
    "conv_grad_input",
    "conv_grad_weight",
    "fold",
    "global_avg_pool",
    "global_max_pool",
    "lp_pool",
    "max_pool",
    "max_pool_grad",
    "max_unpool",
    "plan",
    "replay",
    "sum_pool",
    "unfold",
]
METHODS = ("auto", "direct", "gemm", "fft")


def plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan | None:
    """What this engine does with these arguments; None for what it leaves to the agnostic engine."""
    x: Any = arrays[0]
    if operation not in _JOBS:
        return None
    if detour := _detour(operation, x, spec, options):
        return detour[0]
    return planned(_JOBS[operation](*arrays, spec, **options), x.data.device_id)


def _detour(operation: str, x: Array, spec: Any, options: dict[str, Any]) -> tuple[Plan | None] | None:
    """The plan of a call that is more than one job: spectra, turned arrays, or copied padding to take back.

    None for a call that is one job; a plan of None where the agnostic engine takes the detour.
    """
    if operation not in _CONVOLUTIONS:
        return None
    if operation == "conv" and options["method"] == "auto" and (spectral := _spectra(x, spec)):
        return (spectral[1],)
    chosen = setting(x, options.get("precision", "highest"))
    if operation == "conv_grad_input" and spec.padding_mode != "zeros":
        wide = "float32" if chosen.dtype in ("float16", "bfloat16") else chosen.dtype  # what padding is added up in
        work = conv_plans.of_dense(operation, spec.valid, None, replace(chosen, dtype=wide))
        return (_told(work, "the gradients of copied padding added up after", 0),)
    if turning := _turn(operation, x, spec, options):
        last = replace(spec, layout="channels_last", batch=turning.items)
        chosen = replace(chosen, limit=max(chosen.limit - turning.workspace, 1))
        work = conv_plans.of_dense(operation, last, options.get("activation"), chosen)
        return (_told(work, turning.reason, turning.workspace),)
    return None


def _told(work: Work | Unfit, reason: str, workspace: int) -> Plan | None:
    """The plan of a work that more is done around."""
    if isinstance(work, Unfit):
        return None
    plan = work.plan
    return replace(plan, reason=f"{plan.reason}; {reason}", workspace=(plan.workspace or 0) + workspace)


def replay(request: Request) -> Callable[..., Any] | None:
    """A function of the request's arrays that computes it again with nothing left to decide; None where it cannot be.

    Arrays that lack axes stand for themselves: the axes add nothing to where their elements lie.
    """
    x: Any = request.given[0]
    call = request.operation, x, request.spec, request.options
    dense_bias = all(a is None or a.flags.c_contiguous for a in request.given[2:])
    if request.operation not in _JOBS or not dense_bias or _detour(*call):
        return None
    job = _JOBS[request.operation](*request.arrays, request.spec, **request.options)
    return repeated(job, x.data.device_id, request.drop)


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
    method: str,
) -> Array:
    """One kernel that gathers, multiplies, adds the bias and applies the activation; spectra for large windows."""
    options: dict[str, Any] = {"fill_value": fill_value, "activation": activation}
    options |= {"precision": precision, "method": method}
    if method == "auto" and (spectral := _spectra(x, spec)):
        return _by_spectra(x, w, bias, spec, fill_value, activation, spectral[0])
    if turning := _turn("conv", x, spec, options):
        return turned.maps(partial(conv, **options), x, w, bias, spec, turning, spec.y_shape)
    return _conv_in_one(x, w, _like(bias, x), spec, **options)


@operation
def _conv_in_one(
    x: Array,
    w: Array,
    bias: Array | None,  # noqa: ARG001  the same kernels with and without
    spec: ConvSpec,
    *,
    fill_value: complex,
    activation: str | None,
    precision: str,
    method: str,
) -> Job:
    fill = np.asarray(fill_value, x.dtype).tobytes() if spec.padding_mode == "constant" else b""
    plan = partial(
        conv_plans.conv, spec, Operand.of(x), Operand.of(w), dense(spec.y_shape), fill, _activation(x, activation),
        setting(x, precision, method),
    )  # fmt: skip
    return Job(("x", "w", "bias"), (Result("y", spec.y_shape, x.dtype),), plan)


def _turn(operation: str, x: Array, spec: ConvSpec, options: dict[str, Any]) -> Turn | None:
    """How a channels-first convolution is turned for the tensor cores, where that pays."""
    if options.get("method", "auto") not in ("auto", "gemm") or spec.axes > AXES:
        return None
    hardware, precision = launch.hardware(x.data.device_id), options.get("precision", "highest")
    turning = turn(spec, short_name(x.dtype), hardware, current_limit(), precision)
    if operation == "conv_grad_weight" and turning and turning.items < spec.batch:
        return None  # its sum goes over all items
    return turning


@cache
def _has_cufft() -> bool:
    """Whether CuPy finds cuFFT, which the lean install leaves out."""
    try:
        import_module("cupy.cuda.cufft")
    except ImportError:
        return False
    return True


def _spectra(x: Array, spec: ConvSpec) -> tuple[Slab, Plan] | None:
    if not _has_cufft():
        return None
    return spectra(spec, short_name(x.dtype), launch.hardware(x.data.device_id), current_limit())


def _by_spectra(
    x: Array, w: Array, bias: Array | None, spec: ConvSpec, fill: complex, activation: str | None, slab: Slab
) -> Array:
    """Overlap-save: slabs of rows, each transformed with the rows that its windows reach beyond it."""
    dtype = x.dtype
    x = agnostic.surrounded(agnostic.channels_last(widened(x), spec.layout), spec, fill)
    w = agnostic.weight_last(widened(w), spec.layout)
    slabs = []
    for row in range(0, spec.out_size[0], slab.rows):
        part = slab_spec(spec, min(slab.rows, spec.out_size[0] - row))
        first = row * spec.stride[0]
        slabs.append(fft.conv(x[:, first : first + part.size[0]], w, part))
    y = slabs[0] if len(slabs) == 1 else cupy.concatenate(slabs, axis=1)
    return cupy.ascontiguousarray(agnostic.epilogue(y, bias, activation, spec.layout, dtype))


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """The same kernels, one launch for each residue of the stride; padding other than zeros is taken back after."""
    if spec.padding_mode != "zeros":
        return _grad_of_padded(gy, w, spec)
    if turning := _turn("conv_grad_input", gy, spec, {}):
        return turned.maps(partial(conv_grad_input, activation=activation), gy, w, bias, spec, turning, spec.x_shape)
    return _grad_input_in_one(gy, w, _like(bias, gy), spec, activation=activation)


@operation
def _grad_input_in_one(
    gy: Array,
    w: Array,
    bias: Array | None,  # noqa: ARG001
    spec: ConvSpec,
    *,
    activation: str | None = None,
) -> Job:
    if spec.padding_mode != "zeros":
        raise AssertionError("the gradient of copied padding is made of that of the padded input")
    plan = partial(
        conv_plans.grad_input, spec, Operand.of(gy), Operand.of(w), dense(spec.x_shape), _activation(gy, activation),
        setting(gy),
    )  # fmt: skip
    return Job(("x", "w", "bias"), (Result("y", spec.x_shape, gy.dtype),), plan)


def _grad_of_padded(gy: Array, w: Array, spec: ConvSpec) -> Array:
    """The gradient of the padded input, then of the padding: elements that were copied gather their copies' parts."""
    padded = conv_grad_input(widened(gy), widened(w), None, spec.valid)
    if padded is NotImplemented:
        return padded
    gx = agnostic.unpad(agnostic.channels_last(padded, spec.layout), spec)
    return cupy.ascontiguousarray(agnostic.as_layout(gx, spec.layout).astype(gy.dtype, copy=False))


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """The convolution of `x` with `gy`."""
    if turning := _turn("conv_grad_weight", x, spec, {}):
        return turned.weight_gradient(conv_grad_weight, x, gy, spec, turning)
    return _grad_weight_in_one(x, gy, spec)


@operation
def _grad_weight_in_one(x: Array, gy: Array, spec: ConvSpec) -> Job:
    plan = partial(conv_plans.grad_weight, spec, Operand.of(x), Operand.of(gy), dense(spec.w_shape), setting(x))
    return Job(("x", "w"), (Result("y", spec.w_shape, x.dtype),), plan)


def _activation(x: Array, activation: str | None) -> str | None:
    """The activation as the kernels know it: relu leaves an unsigned integer as it is."""
    return None if x.dtype.kind == "u" else activation


def _like(bias: Array | None, x: Array) -> Array | None:
    """The bias as the kernels read it, dense and in the dtype of `x`."""
    return None if bias is None else cupy.ascontiguousarray(bias, dtype=x.dtype)


_CONVOLUTIONS = {
    "conv": _conv_in_one,
    "conv_grad_input": _grad_input_in_one,
    "conv_grad_weight": _grad_weight_in_one,
}
_OTHERS = (adaptive_avg_pool, adaptive_max_pool, avg_pool, avg_pool_grad, fold, global_avg_pool, global_max_pool,
           lp_pool, max_pool, max_pool_grad, max_unpool, sum_pool, unfold)  # fmt: skip
_JOBS: dict[str, Callable[..., Job]] = {
    **{name: function.job for name, function in _CONVOLUTIONS.items()},
    **{function.__name__: function.job for function in _OTHERS},
}
