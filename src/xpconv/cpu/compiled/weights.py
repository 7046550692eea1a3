"""Weights in panels: for as many filters as a tile has, all that they are multiplied with, side by side."""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import FLOATS, Kernel, vector
from xpconv.cpu.compiled.moves import name_of
from xpconv.cpu.compiled.tile import Shape
from xpconv.spec import Array

_ARGUMENTS = ("w", "rows", "row_count", "panels", "maps", "step", "packed")
_SINGLE = 1 << 16  # elements that one thread packs sooner than it hands them over


def packed(w: Array, groups: int, shape: Shape, order: Array, team: int) -> Array:
    """Weight (rows, F), in any memory, as (groups * panels, rows, filters of a tile), zeros beyond the last filter.

    ``order`` holds where each row begins, in bytes; the filters' step is the last of w's strides.
    """
    maps = w.shape[-1] // groups
    panels = -(-maps // shape.filters)
    result = np.empty((groups * panels, len(order), shape.filters), w.dtype)
    compiled = _library(name_of(w.dtype), shape)
    assert compiled is not None
    arguments = np.array(
        [w.ctypes.data, order.ctypes.data, len(order), panels, maps, w.strides[-1], result.ctypes.data], np.int64
    )
    threads.run(compiled.address("pack"), arguments, groups * panels, 0, team if result.size > _SINGLE else 1)
    return result


def panelled(values: Array | None, filters: int, groups: int, shape: Shape, dtype: str) -> Array:
    """A bias (F,) as (groups * panels, filters of a tile), zeros where there is none."""
    maps = filters // groups
    panels = -(-maps // shape.filters)
    result = np.zeros((groups, panels * shape.filters), dtype)
    if values is not None:
        result[:, :maps] = np.reshape(values, (groups, maps))
    return result


def _library(dtype: str, shape: Shape) -> Library | None:
    return library(f"weights-{dtype}-{shape.filters}", partial(_make, dtype=dtype, filters=shape.filters))


def _make(module: ir.Module, *, dtype: str, filters: int) -> tuple[str, ...]:
    kernel = Kernel(module, "pack", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, _ARGUMENTS)
    size, element = np.dtype(dtype).itemsize, FLOATS[dtype]
    group, panel = item // given.panels, item % given.panels
    source = given.w + (group * given.maps + panel * filters) * given.step
    width = kernel.minimum(given.maps - panel * filters, filters)
    to, row_bytes = given.packed + item * given.row_count * (filters * size), filters * size
    zeros = kernel.constant(0, vector(element, filters))
    mask = kernel.lanes_below(width, filters)
    with kernel.loop(given.row_count) as row:
        here, there = source + kernel.load(given.rows, offset=row * 8), to + row * row_bytes
        with kernel.either(given.step.equals(size)) as (dense, spread):
            with dense:
                kernel.store(kernel.load_lanes(here, zeros.type, mask), there)
            with spread:
                kernel.store(zeros, there)
                with kernel.loop(width) as f:
                    kernel.store(kernel.load(here + f * given.step, element), there + f * size)
    kernel.finish()
    return ("pack",)
