"""What an engine says it will do: the vocabulary that the engines share with `explain`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from xpconv.spec import Array, ConvSpec, PoolSpec

Arrays: TypeAlias = tuple[Array | None, ...]  # of one call, the first never None


@dataclass(frozen=True)
class Plan:
    """How one operation is computed, and why."""

    method: str
    reason: str
    tile: str = "the whole result"  # what is computed at a time
    workspace: int | None = None  # bytes beyond inputs and result; None where the library does not tell
    expected: float | None = None  # seconds of the machine that the planner's model was fitted to; only ratios matter
    rejected: tuple[tuple[str, str], ...] = ()  # methods that were weighed, and why they were not taken
    threads: int | None = None  # that compute it, if they are free; None where the library decides


def operations(spec: Any) -> int | None:
    """Multiplications and additions that the definition takes; for pooling, the elements that windows read.

    None for what has neither windows nor products, such as global pooling.
    """
    if isinstance(spec, ConvSpec):
        return conv_operations(spec)
    if isinstance(spec, PoolSpec):
        return math.prod(spec.window) * spec.batch * math.prod(spec.out_size) * spec.channels
    return None


def conv_operations(spec: ConvSpec) -> int:
    """Multiplications and additions of a convolution; its two gradients take as many."""
    per_output = 2 * math.prod(spec.window) * (spec.channels // spec.groups)
    return per_output * spec.batch * math.prod(spec.out_size) * spec.filters
