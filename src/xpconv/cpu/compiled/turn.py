"""Matrices transposed by all threads: maps with their channels last, as maps with their channels first, and back."""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.address import Told
from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import name_of, transpose_kernel
from xpconv.cpu.results import new
from xpconv.spec import Array

_SIDE = 256  # rows and columns of a tile that is one item, about
_SINGLE = 1 << 16  # elements that one thread turns sooner than it hands them over
_ARGUMENTS = ("x", "y", "rows", "columns", "row_tiles", "column_tiles")


def turned(x: Array) -> Array:
    """Contiguous matrices (count, rows, columns) as (count, columns, rows)."""
    count, rows, columns = x.shape
    compiled = _library(name_of(x.dtype))
    assert compiled is not None
    y, tiles = new((count, columns, rows), x.dtype), (-(-rows // _SIDE), -(-columns // _SIDE))
    arguments = Told(2, (rows, columns, *tiles)).of(x, y)
    team = threads.thread_count() if x.size > _SINGLE else 1
    threads.run(compiled.address("turn"), arguments, count * tiles[0] * tiles[1], 0, team)
    return y


def is_ready(dtype: str) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"turn-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: a tile of a matrix."""
    transpose, size = transpose_kernel(module, dtype), np.dtype(dtype).itemsize
    kernel = Kernel(module, "turn", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, _ARGUMENTS)
    column, rest = (item % given.column_tiles) * _SIDE, item // given.column_tiles
    row, matrix = (rest % given.row_tiles) * _SIDE, rest // given.row_tiles
    begin = matrix * given.rows * given.columns
    kernel.call(
        transpose, given.x + (begin + row * given.columns + column) * size, given.columns * size,
        given.y + (begin + column * given.rows + row) * size, given.rows * size,
        kernel.minimum(given.rows - row, _SIDE), kernel.minimum(given.columns - column, _SIDE),
    )  # fmt: skip
    kernel.finish()
    return ("turn",)
