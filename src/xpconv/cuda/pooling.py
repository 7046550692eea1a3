"""Poolings of CuPy arrays by the kernels of `kernels/`, as the jobs that they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import cupy

from xpconv.cuda.geometry import dense
from xpconv.cuda.jobs import Job, Result, operation, setting
from xpconv.cuda.plans import pooling, pooling_boxes, pooling_scatter
from xpconv.cuda.setting import Operand
from xpconv.cuda.steps import Unfit, Work
from xpconv.spec import AdaptiveSpec, Array, PoolSpec, ScatterSpec, Sizes, in_layout

# --- Windows ----------------------------------------------------------------------------------------------------------


@operation
def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Job:
    """The largest element of every window, and where it lies."""
    plan = partial(_windows(pooling.max_pool, x, spec), return_indices=bool(return_indices))
    return Job(("x",), _maxima(spec.y_shape, x, return_indices), plan)


@operation
def sum_pool(x: Array, spec: PoolSpec) -> Job:
    """The sum over every window."""
    return Job(("x",), (Result("y", spec.y_shape, x.dtype),), _windows(pooling.sum_pool, x, spec))


@operation
def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Job:
    """The mean of every window."""
    plan = partial(_windows(pooling.avg_pool, x, spec), count_include_pad=count_include_pad, divisor=divisor)
    return Job(("x",), (Result("y", spec.y_shape, x.dtype),), plan)


@operation
def lp_pool(x: Array, spec: PoolSpec, *, p: float) -> Job:
    """The p-norm of every window; real for complex x."""
    real = x.real.dtype if x.dtype.kind == "c" else x.dtype
    return Job(("x",), (Result("y", spec.y_shape, real),), partial(_windows(pooling.lp_pool, x, spec), p=p))


@operation
def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Job:
    """The adjoint of `avg_pool`."""
    plan = partial(
        pooling.avg_pool_grad, spec, Operand.of(gy), dense(spec.x_shape), setting(gy),
        count_include_pad=count_include_pad, divisor=divisor,
    )  # fmt: skip
    return Job(("x",), (Result("y", spec.x_shape, gy.dtype),), plan)


def _windows(plan: Any, x: Array, spec: PoolSpec) -> Any:
    return partial(plan, spec, Operand.of(x), dense(spec.y_shape), setting(x))


def _maxima(shape: Sizes, x: Array, return_indices: bool) -> tuple[Result, ...]:
    y, indices = Result("y", shape, x.dtype), Result("indices", shape, cupy.int64)
    return (y, indices) if return_indices else (y,)


# --- Boxes ------------------------------------------------------------------------------------------------------------


@operation
def adaptive_max_pool(x: Array, spec: AdaptiveSpec, *, return_indices: bool) -> Job:
    """The maximum of windows that divide the plane, and where it lies."""
    shape = _adaptive_shape(spec)
    plan = partial(
        pooling_boxes.adaptive_pool, spec, Operand.of(x), dense(shape), setting(x),
        mean=False, return_indices=bool(return_indices),
    )  # fmt: skip
    return Job(("x",), _maxima(shape, x, return_indices), plan)


@operation
def adaptive_avg_pool(x: Array, spec: AdaptiveSpec) -> Job:
    """The mean of windows that divide the plane."""
    shape = _adaptive_shape(spec)
    plan = partial(pooling_boxes.adaptive_pool, spec, Operand.of(x), dense(shape), setting(x), mean=True)
    return Job(("x",), (Result("y", shape, x.dtype),), plan)


@operation
def global_max_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Job:
    """The maximum of every map."""
    return _global_job(x, axes, keepdims, mean=False)


@operation
def global_avg_pool(x: Array, axes: Sizes, *, keepdims: bool) -> Job:
    """The mean of every map."""
    return _global_job(x, axes, keepdims, mean=True)


def _global_job(x: Array, axes: Sizes, keepdims: bool, *, mean: bool) -> Job:
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes)
    plan = partial(pooling_boxes.global_pool, tuple(x.shape), axes, Operand.of(x), setting(x), mean=mean)
    return Job(("x",), (Result("y", shape, x.dtype),), plan)


def _adaptive_shape(spec: AdaptiveSpec) -> Sizes:
    return in_layout(spec.layout, spec.batch, spec.out_size, spec.channels)


# --- Back to the plane ------------------------------------------------------------------------------------------------


@operation
def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Job:
    """Every gradient added at its index, in the order of the outputs."""
    return _scatter_job(gy, indices, spec, add=True)


@operation
def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Job:
    """Every value at its index; of several the last."""
    return _scatter_job(y, indices, spec, add=False)


def _scatter_job(values: Array, indices: Array, spec: ScatterSpec, *, add: bool) -> Job:
    def plan() -> Work | Unfit:
        if indices.dtype != cupy.int64:
            return Unfit(f"indices of {indices.dtype}")
        return pooling_scatter.scatter(spec, Operand.of(values), Operand.of(indices), setting(values), add=add)

    shape = in_layout(spec.layout, spec.batch, spec.size, spec.channels)
    return Job(("x", "indices"), (Result("y", shape, values.dtype),), plan, zeros=values.size == 0)
