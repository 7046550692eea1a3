"""What a plan for CUDA is made of: kernels, launches, and the work that one operation is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xpconv.plan import Plan


@dataclass(frozen=True)
class Kernel:
    """One instance of one kernel: a file of `kernels/` and the C++ expression that names the instance."""

    file: str
    expression: str
    options: tuple[str, ...] = ()  # of the compiler, beyond what every kernel gets


@dataclass(frozen=True, eq=False)
class Step:
    """One launch. An argument that is a string names an array of the call or a scratch buffer; others go by value."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: int
    shared: int  # bytes of dynamic shared memory
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)  # compared by identity: plans are remembered, and what is launched hangs on them
class Work:
    """One operation: launches in order, the scratch buffers they share, and how `explain` tells it."""

    steps: tuple[Step, ...]
    plan: Plan
    scratch: Mapping[str, int] = field(default_factory=dict)  # bytes by name


@dataclass(frozen=True)
class Unfit:
    """Why a kernel does not take a case."""

    reason: str
