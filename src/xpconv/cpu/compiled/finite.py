"""Whether all values of an array are finite, read once by all threads."""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.address import Told
from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import in_vectors, lanes_of, name_of, take
from xpconv.cpu.compiled.values import FLOATS, Value, vector
from xpconv.spec import Array

_CHUNK = 1 << 16  # elements of an item
_ARGUMENTS = ("x", "found", "count")


def finite(x: Array) -> bool:
    """Of a contiguous array, in whatever order of axes, of a dtype that there are kernels for."""
    dtype = name_of(x.dtype)
    compiled = _library(dtype)
    assert compiled is not None
    items = -(-x.size // _CHUNK)
    found = np.zeros((items, lanes_of(dtype)), dtype)
    arguments = Told(2, (x.size,)).of(x, found)
    threads.run(compiled.address("finite"), arguments, items, 0, threads.thread_count() if items > 2 else 1)
    return bool((found == 0).all())


def is_ready(dtype: str) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"finite-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: the sum of zero times every value of a chunk, which is zero or NaN."""
    kernel = Kernel(module, "finite", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, _ARGUMENTS)
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    kind = vector(FLOATS[dtype], lanes)
    total = kernel.variable(kernel.constant(0, kind))
    start = given.x + item * (_CHUNK * size)

    def add(at: Value, mask: Value | None) -> None:
        total.set(kernel.fma(take(kernel, start + at, kind, mask), kernel.constant(0, kind), total.get()))

    in_vectors(kernel, dtype, kernel.minimum(given.count - item * _CHUNK, _CHUNK), add)
    kernel.store(total.get(), given.found + item * (lanes * size))
    kernel.finish()
    return ("finite",)
