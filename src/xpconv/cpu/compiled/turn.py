"""Matrices transposed by all threads: maps with their channels last, as maps with their channels first, and back."""

from __future__ import annotations

import math
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
_ARGUMENTS = ("x", "y", "rows", "columns", "row_tiles", "column_tiles", "lines", "image_step", "line_step", "row_step")


def turned(x: Array) -> Array:
    """Contiguous matrices (count, rows, columns) as (count, columns, rows)."""
    y = new((len(x), *x.shape[:0:-1]), x.dtype)
    _turn(x[:, np.newaxis], y)
    return y


def channels_last(maps: Array) -> Array:
    """Maps (N, *size, C) in one piece of memory: by all threads where the positions of a row lie side by side."""
    if maps.ndim > 4 or maps.strides[-2] != maps.itemsize:
        return np.ascontiguousarray(maps)
    batch, *lines, columns, channels = maps.shape
    y = np.empty(maps.shape, maps.dtype)
    _turn(maps.reshape(batch, math.prod(lines), columns, channels).swapaxes(2, 3), y)
    return y


def _turn(x: Array, y: Array) -> None:
    """Matrices (images, lines, rows, columns), whose columns lie side by side, to contiguous ones."""
    images, lines, rows, columns = x.shape
    compiled = _library(name_of(x.dtype))
    assert compiled is not None
    tiles = -(-rows // _SIDE), -(-columns // _SIDE)
    arguments = Told(2, (rows, columns, *tiles, lines, *x.strides[:3])).of(x, y)
    team = threads.thread_count() if x.size > _SINGLE else 1
    threads.run(compiled.address("turn"), arguments, images * lines * tiles[0] * tiles[1], 0, team)


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
    matrix_at = given.x + (matrix // given.lines) * given.image_step + (matrix % given.lines) * given.line_step
    kernel.call(
        transpose, matrix_at + row * given.row_step + column * size, given.row_step,
        given.y + ((matrix * given.columns + column) * given.rows + row) * size, given.rows * size,
        kernel.minimum(given.rows - row, _SIDE), kernel.minimum(given.columns - column, _SIDE),
    )  # fmt: skip
    kernel.finish()
    return ("turn",)
