"""Poolings of CuPy arrays by the kernels of `kernels/`, with the signatures that every engine has.

Each function plans, allocates its result, launches, and answers NotImplemented where no kernel takes the case or none
can be compiled here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy

from xpconv.cuda import launch
from xpconv.cuda.geometry import dense
from xpconv.cuda.plans import pooling, pooling_boxes, pooling_scatter
from xpconv.cuda.plans.conv import Operand
from xpconv.cuda.plans.pooling import Setting
from xpconv.cuda.steps import Unfit, Work
from xpconv.dtypes import short_name
from xpconv.plan import Arrays, Plan
from xpconv.spec import AdaptiveSpec, Array, PoolSpec, ScatterSpec, Sizes, in_layout
from xpconv.workspace import current_limit


def plan_of(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan | None:
    """What is done with these arguments; None for what is left to the agnostic engine."""
    x = arrays[0]
    if x is None or x.size == 0:
        return None
    work = _WORKS[operation](*arrays, spec, **options)
    return work.plan if isinstance(work, Work) else None


# --- Windows ----------------------------------------------------------------------------------------------------------


@launch.on_its_device
def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Any:
    """The largest element of every window, and where it lies."""
    y = cupy.empty(spec.y_shape, dtype=x.dtype)
    indices = cupy.empty(spec.y_shape, dtype=cupy.int64) if return_indices else None
    return _done(_max_pool_work, x, spec, y, indices, return_indices=return_indices)


@launch.on_its_device
def sum_pool(x: Array, spec: PoolSpec) -> Array:
    """The sum over every window."""
    return _done(_sum_pool_work, x, spec, cupy.empty(spec.y_shape, dtype=x.dtype))


@launch.on_its_device
def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The mean of every window."""
    y = cupy.empty(spec.y_shape, dtype=x.dtype)
    return _done(_avg_pool_work, x, spec, y, count_include_pad=count_include_pad, divisor=divisor)


@launch.on_its_device
def lp_pool(x: Array, spec: PoolSpec, *, p: float) -> Array:
    """The p-norm of every window; real for complex x."""
    real = x.real.dtype if x.dtype.kind == "c" else x.dtype
    return _done(_lp_pool_work, x, spec, cupy.empty(spec.y_shape, dtype=real), p=p)


@launch.on_its_device
def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The adjoint of `avg_pool`."""
    gx = cupy.empty(spec.x_shape, dtype=gy.dtype)
    return _done(_avg_pool_grad_work, gy, spec, gx, count_include_pad=count_include_pad, divisor=divisor)


def _max_pool_work(x: Array, spec: PoolSpec, *, return_indices: bool) -> Work | Unfit:
    return pooling.max_pool(spec, Operand.of(x), dense(spec.y_shape), _setting(x), return_indices=bool(return_indices))


def _sum_pool_work(x: Array, spec: PoolSpec) -> Work | Unfit:
    return pooling.sum_pool(spec, Operand.of(x), dense(spec.y_shape), _setting(x))


def _avg_pool_work(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Work | Unfit:
    return pooling.avg_pool(
        spec, Operand.of(x), dense(spec.y_shape), _setting(x), count_include_pad=count_include_pad, divisor=divisor
    )


def _lp_pool_work(x: Array, spec: PoolSpec, *, p: float) -> Work | Unfit:
    return pooling.lp_pool(spec, Operand.of(x), dense(spec.y_shape), _setting(x), p=p)


def _avg_pool_grad_work(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Work | Unfit:
    return pooling.avg_pool_grad(
        spec, Operand.of(gy), dense(spec.x_shape), _setting(gy), count_include_pad=count_include_pad, divisor=divisor
    )


# --- Boxes ------------------------------------------------------------------------------------------------------------


@launch.on_its_device
def adaptive_max_pool(x: Array, spec: AdaptiveSpec, *, return_indices: bool) -> Any:
    """The maximum of windows that divide the plane, and where it lies."""
    y = cupy.empty(_adaptive_shape(spec), dtype=x.dtype)
    indices = cupy.empty(y.shape, dtype=cupy.int64) if return_indices else None
    return _done(_adaptive_max_work, x, spec, y, indices, return_indices=return_indices)


@launch.on_its_device
def adaptive_avg_pool(x: Array, spec: AdaptiveSpec) -> Array:
    """The mean of windows that divide the plane."""
    return _done(_adaptive_avg_work, x, spec, cupy.empty(_adaptive_shape(spec), dtype=x.dtype))


@launch.on_its_device
def global_max_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Array:
    """The maximum of every map."""
    return _done(
        _global_max_work, x, axes, cupy.empty(_global_shape(x, axes, keepdims), dtype=x.dtype), keepdims=keepdims
    )


@launch.on_its_device
def global_avg_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Array:
    """The mean of every map."""
    return _done(
        _global_avg_work, x, axes, cupy.empty(_global_shape(x, axes, keepdims), dtype=x.dtype), keepdims=keepdims
    )


def _adaptive_max_work(x: Array, spec: AdaptiveSpec, *, return_indices: bool) -> Work | Unfit:
    y = dense(_adaptive_shape(spec))
    return pooling_boxes.adaptive_pool(
        spec, Operand.of(x), y, _setting(x), mean=False, return_indices=bool(return_indices)
    )


def _adaptive_avg_work(x: Array, spec: AdaptiveSpec) -> Work | Unfit:
    return pooling_boxes.adaptive_pool(spec, Operand.of(x), dense(_adaptive_shape(spec)), _setting(x), mean=True)


def _global_max_work(x: Array, axes: Sizes, *, keepdims: bool) -> Work | Unfit:  # noqa: ARG001  memory is the same
    return pooling_boxes.global_pool(tuple(x.shape), axes, Operand.of(x), _setting(x), mean=False)


def _global_avg_work(x: Array, axes: Sizes, *, keepdims: bool) -> Work | Unfit:  # noqa: ARG001
    return pooling_boxes.global_pool(tuple(x.shape), axes, Operand.of(x), _setting(x), mean=True)


def _adaptive_shape(spec: AdaptiveSpec) -> Sizes:
    return in_layout(spec.layout, spec.batch, spec.out_size, spec.channels)


def _global_shape(x: Array, axes: Sizes, keepdims: bool) -> Sizes:
    shape = ((1 if keepdims else 0) if a in axes else n for a, n in enumerate(x.shape))
    return tuple(n for a, n in enumerate(shape) if keepdims or a not in axes)


# --- Back to the plane ------------------------------------------------------------------------------------------------


@launch.on_its_device
def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every gradient added at its index, in the order of the outputs."""
    return _scattered(gy, indices, spec, add=True)


@launch.on_its_device
def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every value at its index; of several the last."""
    return _scattered(y, indices, spec, add=False)


def _scattered(values: Array, indices: Array, spec: ScatterSpec, *, add: bool) -> Array:
    shape = in_layout(spec.layout, spec.batch, spec.size, spec.channels)
    if values.size == 0 or math.prod(shape) == 0:
        return cupy.zeros(shape, dtype=values.dtype)
    work = _scatter_work(values, indices, spec, add=add)
    return _launched(work, x=values, indices=indices, y=cupy.empty(shape, dtype=values.dtype))


def _scatter_work(values: Array, indices: Array, spec: ScatterSpec, *, add: bool) -> Work | Unfit:
    if indices.dtype != cupy.int64:
        return Unfit(f"indices of {indices.dtype}")
    return pooling_scatter.scatter(spec, Operand.of(values), Operand.of(indices), _setting(values), add=add)


_WORKS: dict[str, Callable[..., Work | Unfit]] = {
    "max_pool": _max_pool_work,
    "sum_pool": _sum_pool_work,
    "avg_pool": _avg_pool_work,
    "lp_pool": _lp_pool_work,
    "avg_pool_grad": _avg_pool_grad_work,
    "adaptive_max_pool": _adaptive_max_work,
    "adaptive_avg_pool": _adaptive_avg_work,
    "global_max_pool": _global_max_work,
    "global_avg_pool": _global_avg_work,
    "max_pool_grad": lambda *arguments: _scatter_work(*arguments, add=True),
    "max_unpool": lambda *arguments: _scatter_work(*arguments, add=False),
}


OPERATIONS = frozenset(_WORKS)


# --- Shared -----------------------------------------------------------------------------------------------------------


def _done(work_of: Any, x: Array, spec: Any, y: Array, indices: Array | None = None, **options: Any) -> Any:
    """The result `y`, with the indices where there are any, filled as the work says."""
    if y.size:
        y = _launched(work_of(x, spec, **options), x=x, y=y, indices=indices)
    if y is NotImplemented or indices is None:
        return y
    return y, indices


def _launched(work: Work | Unfit, *, y: Array, **arrays: Array | None) -> Array:
    """`y`, made; NotImplemented where there is no work or its kernels cannot be had."""
    if isinstance(work, Unfit):
        return NotImplemented
    try:
        launch.run(work, {"y": y, **arrays})
    except launch.KernelUnavailable:
        return NotImplemented
    return y


def _setting(x: Array) -> Setting:
    return Setting(short_name(x.dtype), launch.hardware(x.device.id), current_limit())
