"""CuPy arrays: the kernels of `kernels/`, launched as the plans of `cuda.plans` say.

A case that no kernel takes, and a kernel that cannot be compiled here, is left to the agnostic engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cupy
import numpy as np

from xpconv.cuda import launch, patches, pooling, tuning, turned
from xpconv.cuda.geometry import AXES, dense
from xpconv.cuda.patches import fold, unfold
from xpconv.cuda.plans import conv as conv_plans
from xpconv.cuda.plans.conv import Operand, Setting
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
from xpconv.cuda.steps import Unfit, Work
from xpconv.dtypes import short_name, widened
from xpconv.engines import agnostic, fft
from xpconv.plan import Arrays, Plan
from xpconv.request import Request
from xpconv.spec import Array, ConvSpec, Sizes
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
    for topic in (pooling, patches):
        if operation in topic.OPERATIONS:
            return topic.plan_of(operation, arrays, spec, options)
    if operation == "conv" and options["method"] == "auto" and (spectral := _spectra(x, spec)):
        return spectral[1]
    if operation == "conv_grad_input" and spec.padding_mode != "zeros":
        spec = spec.valid  # what the kernel makes; the padding is taken back after
    if operation not in _JOBS:
        return None
    if turning := _turn(x, spec, options):
        return _turned_plan(operation, x, spec, options, turning)
    job = _JOBS[operation](*arrays, spec, **options)
    if isinstance(job, Unfit) or launch.failed(job.work, x.device.id):
        return None
    return job.work.plan


def _turned_plan(operation: str, x: Array, spec: ConvSpec, options: dict[str, Any], turning: Turn) -> Plan | None:
    """The plan of the convolution in channels-last order, of arrays as they will lie then."""
    setting = _setting(x, options.get("precision", "highest"))
    last = replace(spec, layout="channels_last", batch=turning.items)
    work = conv_plans.of_dense(operation, last, options.get("activation"), setting)
    return None if isinstance(work, Unfit) else replace(work.plan, reason=f"{work.plan.reason}; {turning.reason}")


def replay(request: Request) -> Callable[..., Array] | None:
    """A function of the request's arrays that computes it again with nothing left to decide; None where it cannot be.

    Arrays that lack axes stand for themselves: the axes add nothing to where their elements lie.
    """
    operation, options = request.operation, request.options
    x: Any = request.given[0]
    if operation not in _JOBS or _turn(x, request.spec, options):
        return None
    if options.get("method") == "auto" and _spectra(x, request.spec):
        return None
    job = _JOBS[operation](*request.arrays, request.spec, **options)
    bias = request.given[2] if len(request.given) > 2 else None
    if isinstance(job, Unfit) or 0 in job.shape or (bias is not None and not bias.flags.c_contiguous):
        return None
    shape, dtype = np.broadcast_to(0, job.shape)[request.drop].shape, x.dtype
    try:
        launch_all = launch.prepared(job.work, (*job.names, "y"), x.data.device_id)
    except launch.KernelUnavailable:
        return None
    device = cupy.cuda.Device(x.data.device_id)

    def again(*arrays: Array | None) -> Array:
        with device:
            y = cupy.empty(shape, dtype)
            launch_all(*arrays, y)
        return y

    return again


@dataclass(frozen=True)
class Job:
    """One result, the work that makes it, and the names that the work knows the operation's arrays by."""

    work: Work
    shape: Sizes
    names: tuple[str, ...]


# --- Convolution ------------------------------------------------------------------------------------------------------


@launch.on_its_device
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
    if method == "auto" and (spectral := _spectra(x, spec)):
        return _by_spectra(x, w, bias, spec, fill_value, activation, spectral[0])
    options: dict[str, Any] = {
        "fill_value": fill_value,
        "activation": activation,
        "precision": precision,
        "method": method,
    }
    if turning := _turn(x, spec, options):
        return turned.maps(partial(conv, **options), x, w, bias, spec, turning.items)
    return _computed(_conv_job(x, w, bias, spec, **options), x, w, _like(bias, x))


def _conv_job(
    x: Array,
    w: Array,
    bias: Array | None,  # noqa: ARG001  the same kernels with and without
    spec: ConvSpec,
    *,
    fill_value: complex,
    activation: str | None,
    precision: str,
    method: str,
) -> Job | Unfit:
    fill = np.asarray(fill_value, x.dtype).tobytes() if spec.padding_mode == "constant" else b""
    work = conv_plans.conv(
        spec, Operand.of(x), Operand.of(w), dense(spec.y_shape), fill, _activation(x, activation),
        _setting(x, precision, method),
    )  # fmt: skip
    return _job(work, spec.y_shape, ("x", "w", "bias"))


def _turn(x: Array, spec: ConvSpec, options: dict[str, Any]) -> Turn | None:
    """How a channels-first convolution is turned for the tensor cores, where that pays."""
    if options.get("method", "auto") not in ("auto", "gemm") or spec.axes > AXES:
        return None
    hardware, precision = launch.hardware(x.device.id), options.get("precision", "highest")
    return turn(spec, short_name(x.dtype), hardware, current_limit(), precision)


def _spectra(x: Array, spec: ConvSpec) -> tuple[Slab, Plan] | None:
    return spectra(spec, short_name(x.dtype), launch.hardware(x.device.id), current_limit())


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


@launch.on_its_device
def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """The same kernels, one launch for each residue of the stride; padding other than zeros is taken back after."""
    if spec.padding_mode != "zeros":
        return _grad_of_padded(gy, w, spec)
    if turning := _turn(gy, spec, {}):
        return turned.maps(partial(conv_grad_input, activation=activation), gy, w, bias, spec, turning.items)
    return _computed(_grad_input_job(gy, w, bias, spec, activation=activation), gy, w, _like(bias, gy))


def _grad_input_job(
    gy: Array,
    w: Array,
    bias: Array | None,  # noqa: ARG001
    spec: ConvSpec,
    *,
    activation: str | None = None,
) -> Job | Unfit:
    if spec.padding_mode != "zeros":
        return Unfit("the gradient of copied padding is taken back after the kernel")
    work = conv_plans.grad_input(
        spec, Operand.of(gy), Operand.of(w), dense(spec.x_shape), _activation(gy, activation), _setting(gy)
    )
    return _job(work, spec.x_shape, ("x", "w", "bias"))


def _grad_of_padded(gy: Array, w: Array, spec: ConvSpec) -> Array:
    """The gradient of the padded input, then of the padding: elements that were copied gather their copies' parts."""
    padded = conv_grad_input(widened(gy), widened(w), None, spec.valid)
    if padded is NotImplemented:
        return padded
    gx = agnostic.unpad(agnostic.channels_last(padded, spec.layout), spec)
    return cupy.ascontiguousarray(agnostic.as_layout(gx, spec.layout).astype(gy.dtype, copy=False))


@launch.on_its_device
def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """The convolution of `x` with `gy`."""
    turning = _turn(x, spec, {})
    if turning and turning.items == spec.batch:
        return turned.weight_gradient(conv_grad_weight, x, gy, spec)
    return _computed(_grad_weight_job(x, gy, spec), x, gy)


def _grad_weight_job(x: Array, gy: Array, spec: ConvSpec) -> Job | Unfit:
    work = conv_plans.grad_weight(spec, Operand.of(x), Operand.of(gy), dense(spec.w_shape), _setting(x))
    return _job(work, spec.w_shape, ("x", "w"))


_JOBS: dict[str, Callable[..., Job | Unfit]] = {
    "conv": _conv_job,
    "conv_grad_input": _grad_input_job,
    "conv_grad_weight": _grad_weight_job,
}


# --- What plans are made of -------------------------------------------------------------------------------------------


def _job(work: Work | Unfit, shape: Sizes, names: tuple[str, ...]) -> Job | Unfit:
    return work if isinstance(work, Unfit) else Job(work, shape, names)


def _computed(job: Job | Unfit, *arrays: Array | None) -> Array:
    """The result of the job, or NotImplemented where there is none or its kernels cannot be had."""
    if isinstance(job, Unfit):
        return NotImplemented
    x: Any = arrays[0]
    y = cupy.empty(job.shape, dtype=x.dtype)
    if y.size == 0:
        return y
    try:
        launch.run(job.work, dict(zip((*job.names, "y"), (*arrays, y), strict=True)))
    except launch.KernelUnavailable:
        return NotImplemented
    return y


def _setting(x: Array, precision: str = "highest", method: str = "auto") -> Setting:
    hardware, measured = launch.hardware(x.device.id), tuning.measured()
    return Setting(short_name(x.dtype), hardware, current_limit(), precision, method, measured)


def _activation(x: Array, activation: str | None) -> str | None:
    """The activation as the kernels know it: relu leaves an unsigned integer as it is."""
    return None if x.dtype.kind == "u" else activation


def _like(bias: Array | None, x: Array) -> Array | None:
    """The bias as the kernels read it, dense and in the dtype of `x`."""
    return None if bias is None else cupy.ascontiguousarray(bias, dtype=x.dtype)
