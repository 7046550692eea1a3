"""What sums up gradients of weights in registers: so many rows times so many filters, while the pixels go by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import put, take
from xpconv.cpu.compiled.tile import Shape
from xpconv.cpu.compiled.values import FLOATS, Value, vector

_TILE = ("x", "pixels", "count", "gy", "sums", "step", "width", "earlier")


def heights(shape: Shape) -> list[int]:
    """Rows of the tiles, also such as fill short runs: 9 are three taps of three channels, 14 and 7 seven taps."""
    short = (3,) if shape.heights[0] < 9 else (9, 7) if shape.vectors > 1 else (9, 4)
    return sorted({*shape.heights, *short}, reverse=True)


def sums_tile(module: ir.Module, dtype: str, shape: Shape, height: int) -> Kernel:
    """``sums[r, f] = sum over p of  x[pixel[p] + r] gy[p, f]``, added to what is there if there were blocks before."""
    kernel = Kernel(module, f"tile{height}", _TILE)
    given = SimpleNamespace(**dict(zip(_TILE, kernel.arguments, strict=True)))
    element, size = FLOATS[dtype], np.dtype(dtype).itemsize
    kind, places = vector(element, shape.lanes), shape.places(size)
    sums = [[kernel.variable(kernel.constant(0, kind)) for _ in places] for _ in range(height)]
    rows = [given.sums + given.step * r for r in range(height)]
    masks = _masks(kernel, given.width, shape)

    def read(masks: list[Value | None]) -> None:
        for row, row_sums in zip(rows, sums, strict=True):
            for total, place, mask in zip(row_sums, places, masks, strict=True):
                total.set(take(kernel, row + place, kind, mask))

    def stored(masks: list[Value | None]) -> None:
        for row, row_sums in zip(rows, sums, strict=True):
            for total, place, mask in zip(row_sums, places, masks, strict=True):
                put(kernel, total.get(), row + place, mask)

    def whole_or_part(body: Any) -> None:
        with kernel.either(given.width >= shape.filters) as (whole, part):
            with whole:
                body([None] * shape.vectors)
            with part:
                body(list(masks))

    with kernel.when(given.earlier > 0):
        whole_or_part(read)
    gy = kernel.variable(given.gy)
    with kernel.loop(given.count) as p:
        x, here = given.x + kernel.load(given.pixels, offset=p * 8), gy.get()
        vectors = [kernel.load(here, kind, place) for place in places]
        for r, row_sums in enumerate(sums):
            value = kernel.splat(kernel.load(x, element, r * size), shape.lanes)
            for total, factor in zip(row_sums, vectors, strict=True):
                total.set(kernel.fma(value, factor, total.get()))
        gy.set(here + shape.filters * size)
    whole_or_part(stored)
    kernel.finish()
    return kernel


def pack_kernel(module: ir.Module, dtype: str, shape: Shape) -> Kernel:
    """``pack(gy, results, count, width, to)``: the first filters of each pixel; what follows them is any number."""
    kernel = Kernel(module, "pack", ("gy", "results", "count", "width", "to"))
    gy, results, count, width, to = kernel.arguments
    size, kind = np.dtype(dtype).itemsize, vector(FLOATS[dtype], shape.lanes)

    def copied(masks: list[Value | None]) -> None:
        with kernel.loop(count) as pixel:
            here, there = gy + kernel.load(results, offset=pixel * 8), to + pixel * (shape.filters * size)
            for q, mask in enumerate(masks):
                place = q * shape.lanes * size
                put(kernel, take(kernel, here + place, kind, mask), there + place, None)

    with kernel.either(width >= shape.filters) as (whole, some):
        with whole:
            copied([None] * shape.vectors)
        with some:
            copied(list(_masks(kernel, width, shape)))
    kernel.finish()
    return kernel


def _masks(kernel: Kernel, width: Value, shape: Shape) -> list[Value]:
    return [kernel.lanes_below(width - shape.lanes * q, shape.lanes) for q in range(shape.vectors)]
