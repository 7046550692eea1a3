"""What a layer in words is expected to take on a device of this machine, and how near that is to its limit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import xpconv
from xpconv.bench import limits
from xpconv.bench.cases import DTYPES
from xpconv.bench.clock import Clock
from xpconv.bench.data import numpys_dtype
from xpconv.bench.sides import Place
from xpconv.layers import Described
from xpconv.spec import ConvSpec

_REFERENCE = (1, 28, 28, 64), (3, 3, 64, 64)  # a layer that every method of the planner's model was fitted to
_CALLS = 20


@dataclass(frozen=True)
class Expectation:
    """A plan, the limit that holds for it, and the seconds at the limit and those expected; None where unknown."""

    plan: xpconv.Explanation
    limit: str
    at_limit: float
    speed: str  # of the limit
    expected: float | None


def expectation(text: str, said: Described, place: Place, clock: Clock) -> Expectation:
    """Explain the call that a layer in words describes, on arrays that hold nothing, and measure the machine for it."""
    dtype = said.dtype or "float32"
    precision = {"precision": said.precision} if said.precision else {}
    plan = _explained(text.split()[0], said.spec, dtype, place, **precision)
    floats = [dtype] if dtype in DTYPES else []
    found = limits.measured(place, floats, clock)
    limit, seconds = limits.bound(plan.operations, plan.bytes_moved, dtype, found)
    speed = f"{found['copy_gbs']:.3g} GB/s" if limit == "copy" else f"{found['matrix_gflops'][dtype]:.4g} GFLOP/s"
    expected = None if plan.expected is None else plan.expected * _pace(clock)
    return Expectation(plan, limit, seconds, speed, expected)


def _explained(function: str, spec: ConvSpec, dtype: str, place: Place, **precision: str) -> xpconv.Explanation:
    options: dict[str, Any] = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "padding_mode": spec.padding_mode, "layout": spec.layout, **precision,
    }  # fmt: skip
    arrays = (_unfilled(shape, dtype, place) for shape in (spec.x_shape, spec.w_shape))
    return xpconv.explain(getattr(xpconv, function), *arrays, **options)


def _unfilled(shape: tuple[int, ...], dtype: str, place: Place) -> Any:
    """An array of that shape; on the CPU one element, for a plan looks at nothing else."""
    if place.is_cpu:
        return np.broadcast_to(np.zeros((), numpys_dtype(dtype)), shape)
    xp, device = xpconv.backend(place.device)
    return xp.empty(shape, dtype=numpys_dtype(dtype), device=device)


def _pace(clock: Clock) -> float:
    """Seconds of this machine for each that the planner expects, by one layer."""
    x, w = (np.ones(shape, np.float32) for shape in _REFERENCE)
    expected = xpconv.explain(xpconv.corr2d, x, w, padding=1).expected
    assert expected is not None
    call = partial(xpconv.corr2d, x, w, padding=1)
    clock([call])
    return min(clock([call]) for _ in range(_CALLS)) / expected
