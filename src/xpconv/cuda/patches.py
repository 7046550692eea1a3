"""`unfold` and `fold` of CuPy arrays by `patches.cu`, with the signatures that every engine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

from xpconv.cuda import launch
from xpconv.cuda.plans import patches as plans
from xpconv.cuda.plans.conv import Operand
from xpconv.cuda.steps import Unfit, Work
from xpconv.dtypes import short_name
from xpconv.plan import Arrays, Plan
from xpconv.spec import Array, PoolSpec, Sizes


def plan_of(operation: str, arrays: Arrays, spec: PoolSpec, options: dict[str, Any]) -> Plan | None:
    """What is done with these arguments; None for what is left to the agnostic engine."""
    x = arrays[0]
    if x is None or x.size == 0:
        return None
    work = _WORKS[operation](x, spec, **options)
    return work.plan if isinstance(work, Work) else None


@launch.on_its_device
def unfold(x: Array, spec: PoolSpec) -> Array:
    """``patches[n, i, o, c] = x_padded[n, i s + o d, c]``."""
    return _made(_unfold_work, x, spec, spec.patches_shape)


@launch.on_its_device
def fold(patches: Array, spec: PoolSpec) -> Array:
    """The adjoint of `unfold`: every element adds its patches up, in the order of the window."""
    return _made(_fold_work, patches, spec, spec.x_shape)


def _unfold_work(x: Array, spec: PoolSpec) -> Work | Unfit:
    return plans.unfold(spec, Operand.of(x), x.dtype.itemsize)


def _fold_work(patches: Array, spec: PoolSpec) -> Work | Unfit:
    return plans.fold(spec, Operand.of(patches), short_name(patches.dtype))


_WORKS = {"unfold": _unfold_work, "fold": _fold_work}


OPERATIONS = frozenset(_WORKS)


def _made(work_of: Callable[[Array, PoolSpec], Work | Unfit], x: Array, spec: PoolSpec, shape: Sizes) -> Array:
    """A new array of that shape; NotImplemented where no kernel takes the case or none can be had."""
    y = cupy.empty(shape, dtype=x.dtype)
    if y.size == 0:
        return y
    if x.size == 0:
        return cupy.zeros(shape, dtype=x.dtype)
    work = work_of(x, spec)
    if isinstance(work, Unfit):
        return NotImplemented
    try:
        launch.run(work, {"x": x, "y": y})
    except launch.KernelUnavailable:
        return NotImplemented
    return y
