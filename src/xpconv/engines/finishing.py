"""What NumPy does to sums of products that are its own: bias and activation, in place and part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xpconv.activations import ACTIVATIONS, LEAK
from xpconv.cpu import team
from xpconv.engines.agnostic import as_layout
from xpconv.spec import Array

_PART_BYTES = 1 << 18  # that stay in a core's cache through the steps of an activation
_SHARED_BYTES = 1 << 20  # whose activation takes longer than waking a thread


def finished(y: Array, bias: Array | None, activation: str | None, layout: str, dtype: Any) -> Array:
    """``phi(y + bias)`` of sums (N, *out, F), which are lost, in the result's layout and dtype and in one piece."""
    if bias is not None:
        y += bias.astype(y.dtype, copy=False)
    if activation is not None:
        activate(y, activation)
    return np.ascontiguousarray(as_layout(y, layout).astype(dtype, copy=False))


def activate(y: Array, activation: str) -> Array:
    """``phi(y)`` in the place of `y`."""
    applied = in_place(activation, y.dtype)

    def work(parts: Iterator[Array]) -> None:
        for part in parts:
            applied(part)

    team.share(work, _parts(y), team.thread_count() if y.nbytes > _SHARED_BYTES else 1)
    return y


def in_place(activation: str, dtype: Any) -> Callable[[Array], Any]:
    """The activation of a few elements in their place; an array of no axes is read in half the time of a number."""
    zero, leak = np.zeros((), dtype), np.array(LEAK, dtype)

    def by_name(y: Array) -> None:
        y[...] = ACTIVATIONS[activation](y)

    return {
        "relu": lambda y: np.maximum(y, zero, out=y),
        "leaky_relu": lambda y: np.maximum(y, leak * y, out=y),
        "tanh": lambda y: np.tanh(y, out=y),
    }.get(activation, by_name)


def _parts(y: Array) -> list[Array]:
    """Views of all elements, some at a time as they lie in memory."""
    lying = y.transpose(sorted(range(y.ndim), key=lambda axis: y.strides[axis], reverse=True))
    rows = lying.reshape(-1) if lying.flags.c_contiguous else lying
    most = max(1, _PART_BYTES * len(rows) // max(y.nbytes, 1))
    return [rows[first : first + most] for first in range(0, len(rows), most)]
