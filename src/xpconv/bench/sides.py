"""Who computes a case: what a candidate is, and xpconv itself on a device.

The arrays of each lie ready in its own layout, on the device, before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

import xpconv
from xpconv.bench.cases import Case
from xpconv.bench.data import Data
from xpconv.layers import PLAIN

OURS = "xpconv"
Call: TypeAlias = Callable[[], Any]
_WEIGHTED = ("conv", "input gradient")  # what has a weight that a call may have seen before


class Unsuited(Exception):
    """Why a rival has no such operation, on this device."""


@dataclass(frozen=True)
class Place:
    """Where candidates compute."""

    device: str = "cpu"
    threads: int = 1

    @property
    def is_cpu(self) -> bool:
        """Whether it is no GPU."""
        return self.device == "cpu"


@dataclass
class Side:
    """One candidate: its call, its result as NumPy's channels last, and calls with copies of the weight."""

    name: str
    call: Call
    result: Callable[[Any], np.ndarray]
    fresh: Callable[[], Call] | None = None
    plan: xpconv.Explanation | None = None  # of ours

    @property
    def method(self) -> str:
        """What xpconv takes; nothing for others."""
        return self.plan.method if self.plan else ""


def ours(case: Case, data: Data, device: str = "cpu") -> Side:
    """xpconv in the case's layout, on NumPy's arrays, or on a CUDA device's."""
    first = case.layout == "channels_first"
    if case.operation == "max pool gradient":
        data = data | {"indices": xpconv.max_pool(data["x"], **_windows(case), return_indices=True)[1]}
    data = data | {"w": np.flip(data["w"], tuple(range(case.axes))).copy()} if case.flip else data
    data = all_to_first(data) if first else data
    function, names, options = _call(case)
    args = [data[name] if device == "cpu" else xpconv.to_device(data[name], device) for name in names]

    def fresh() -> Call:
        return partial(function, args[0], args[1].copy(), **options)

    def result(y: Any) -> np.ndarray:
        y = xpconv.to_device(y, "cpu")
        return to_last(case, y) if first else y

    return Side(
        OURS,
        partial(function, *args, **options),
        result,
        fresh if case.operation in _WEIGHTED else None,
        xpconv.explain(function, *args, **options),
    )


def _call(case: Case) -> tuple[Callable[..., Any], tuple[str, ...], dict[str, Any]]:
    """The function, its arrays by name, and its options."""
    layout = {"layout": case.layout}
    variant = "conv" if case.flip else "corr"
    if case.operation == "global average":
        return xpconv.global_avg_pool, ("x",), {"keepdims": True, **layout}
    if case.operation == "max pool gradient":
        return xpconv.max_pool_grad, ("gy", "indices"), {"size": case.size, **layout}
    if case.operation == "average pool gradient":
        counts = {"count_include_pad": True, "size": case.size, **layout}
        return xpconv.avg_pool_grad, ("gy",), _windows(case) | counts
    if case.operation.endswith("pool"):
        pool = _windows(case) | layout
        if case.operation == "max pool":
            return getattr(xpconv, f"max_pool{case.axes}d"), ("x",), pool
        return getattr(xpconv, f"avg_pool{case.axes}d"), ("x",), pool | {"count_include_pad": True}
    if case.operation in PLAIN:
        return getattr(xpconv, f"{variant}{case.axes}d"), ("x", "w"), {"padding": "same"}
    options = {name: getattr(case, name) for name in ("stride", "padding", "dilation", "groups", "layout")}
    if case.operation == "input gradient":
        return getattr(xpconv, f"{variant}_grad_input"), ("gy", "w"), options | {"size": case.size}
    if case.operation == "weight gradient":
        return getattr(xpconv, f"{variant}_grad_weight"), ("x", "gy"), options | {"window": case.window}
    return getattr(xpconv, f"{variant}{case.axes}d"), ("x", "w"), options


def _windows(case: Case) -> dict[str, Any]:
    return {"window": case.window, "stride": case.stride, "padding": case.padding}


# --- Layouts ----------------------------------------------------------------------------------------------------------


def all_to_first(data: Data) -> Data:
    """(N, C, *size) of (N, *size, C), and (F, C, *window) of (*window, C, F), copied."""
    return {name: _weight_to_first(a) if name == "w" else _to_first(a) for name, a in data.items()}


def _to_first(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(a, -1, 1))


def _weight_to_first(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(w, (-1, -2), (0, 1)))


def to_last(case: Case, y: np.ndarray) -> np.ndarray:
    """A result with channels first as channels last, a view."""
    return np.moveaxis(y, (0, 1), (-1, -2)) if case.operation == "weight gradient" else np.moveaxis(y, 1, -1)
