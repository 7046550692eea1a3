"""What a call would do, and why, without doing it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from xpconv.dispatch import agnostic_engine, arrays_for, engine_of
from xpconv.dtypes import kind_of
from xpconv.plan import operations
from xpconv.request import Request
from xpconv.spec import Array, ConvSpec, PoolSpec


@dataclass(frozen=True)
class Explanation:
    """One call, taken apart; printing it gives one line per entry.

    Examples
    --------
    >>> import xpconv
    >>> print(xpconv.explain(xpconv.conv1d, [1.0, 2.0, 3.0], [1.0, -1.0], method="direct"))
    conv on the numpy engine
      method      direct: asked for
      tile        NumPy's own loop
      threads     not told
      operations  8
      bytes moved 56
      workspace   0 bytes
    """

    operation: str
    engine: str
    method: str
    reason: str
    tile: str  # what is computed at a time
    threads: int | None  # that compute it, if they are free; None where the library decides
    operations: int | None  # multiplications and additions of the definition
    bytes_moved: int  # inputs read once, result written once
    workspace: int | None  # bytes beyond inputs and result; None where the library does not tell
    expected: float | None = None  # seconds of the machine that the planner's model was fitted to, where there is one
    rejected: tuple[tuple[str, str], ...] = ()  # methods that were weighed against this one, and why not they

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.operation} on the {self.engine} engine",
                f"  method      {self.method}: {self.reason}",
                f"  tile        {self.tile}",
                f"  threads     {_told(self.threads)}",
                f"  operations  {_told(self.operations)}",
                f"  bytes moved {self.bytes_moved:,}",
                f"  workspace   {_told(self.workspace, ' bytes')}",
                *(f"  not {name}: {why}" for name, why in self.rejected),
            )
        )


def _told(number: int | None, unit: str = "") -> str:
    return "not told" if number is None else f"{number:,}{unit}"


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say how ``function(*args, **kwargs)`` would be computed, without computing it.

    Parameters
    ----------
    function : one of xpconv's operations
    *args, **kwargs
        Its arguments.

    Returns
    -------
    Explanation
        method and reason, tile, threads, operations, bytes moved, workspace, and the methods that were not taken;
        printable.

    Raises
    ------
    TypeError
        For a function that is not one of xpconv's operations.
    ValueError, TypeError
        What the call itself would raise.

    Examples
    --------
    >>> import numpy as np, xpconv
    >>> plan = xpconv.explain(xpconv.conv2d, np.ones((8, 56, 56, 64)), np.ones((3, 3, 64, 64)), padding=1)
    >>> plan.engine, plan.operations
    ('numpy', 1849688064)
    """
    request = getattr(function, "request", None)
    if request is None:
        raise TypeError(f"explain takes one of xpconv's operations, got {function!r}")
    return explained(request(*args, **kwargs))


def explained(request: Request) -> Explanation:
    """The explanation of a call that is already described."""
    engine, plan = engine_of(request), None
    arguments = request.operation, arrays_for(engine, request), request.spec, request.options
    if hasattr(engine, request.operation):
        plan = engine.plan(*arguments)
    if plan is None:
        engine = agnostic_engine()
        plan = engine.plan(*arguments)
    return Explanation(
        operation=request.operation,
        engine=engine.__name__.rpartition(".")[2],
        method=plan.method,
        reason=plan.reason,
        tile=plan.tile,
        threads=plan.threads,
        operations=operations(request.spec),
        bytes_moved=_bytes_moved(request),
        workspace=plan.workspace,
        expected=plan.expected,
        rejected=plan.rejected,
    )


def _bytes_moved(request: Request) -> int:
    """Inputs read once, result written once."""
    sizes = [math.prod(array.shape) for array in request.given if array is not None]
    if isinstance(request.spec, ConvSpec):
        shapes = (request.spec.x_shape, request.spec.w_shape, request.spec.y_shape)
        sizes = [*map(math.prod, shapes), *sizes[2:]]  # forward and gradients move the same three
    elif isinstance(request.spec, PoolSpec):
        sizes = [math.prod(request.spec.x_shape), math.prod(request.spec.y_shape)]
    return sum(sizes) * _itemsize(request.given[0])


def _itemsize(x: Array) -> int:
    own = getattr(x.dtype, "itemsize", None)
    if own is not None:
        return own
    xp, kind = array_namespace(x), kind_of(x)
    info = xp.iinfo if kind == "integral" else xp.finfo
    return info(x.dtype).bits // 8 * (2 if kind == "complex floating" else 1)
