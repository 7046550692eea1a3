"""`unfold` and `fold` of CuPy arrays by `patches.cu`, as the jobs that they are."""

from __future__ import annotations

from functools import partial

from xpconv.cuda.jobs import Job, Result, operation
from xpconv.cuda.plans import patches as plans
from xpconv.cuda.setting import Operand
from xpconv.dtypes import short_name
from xpconv.spec import Array, PoolSpec


@operation
def unfold(x: Array, spec: PoolSpec) -> Job:
    """``patches[n, i, o, c] = x_padded[n, i s + o d, c]``."""
    plan = partial(plans.unfold, spec, Operand.of(x), x.dtype.itemsize)
    return Job(("x",), (Result("y", spec.patches_shape, x.dtype),), plan, zeros=x.size == 0)


@operation
def fold(patches: Array, spec: PoolSpec) -> Job:
    """The adjoint of `unfold`: every element adds its patches up, in the order of the window."""
    plan = partial(plans.fold, spec, Operand.of(patches), short_name(patches.dtype))
    return Job(("x",), (Result("y", spec.x_shape, patches.dtype),), plan, zeros=patches.size == 0)
