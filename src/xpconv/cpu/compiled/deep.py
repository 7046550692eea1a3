"""A large weight that few blocks of results share: packed in chunks, as it is read, for all pixels of a block at once.

A chunk is some hundred rows of the weight, of the filters of several tiles: what is read of a row is then long enough
for memory to be fast, and what is packed stays in the thread's own cache. Chunk after chunk is added to the results.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import blocks
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.cpu.compiled.tile import SUMMED, Shape, evenly, tile_kernels
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.cpu.lines import LINE

ROWS, PANELS = SUMMED, 4  # of a chunk: rows of the weight, and tiles side by side
_PIXELS = 48  # of a block that are multiplied by all tiles of a chunk before the next: their input stays in the cache
_AHEAD = 6  # rows asked for before they are read: those 8 KB apart share a few sets of the level 1 cache
MOST_INPUT = 1 << 20  # bytes that each thread reads for all of its filters


def is_for(shape: Shape) -> bool:
    """Whether there is such a kernel: not where a panel is packed at no cost while the first pixels are multiplied.

    A Zen with AVX-512 does that. An Emerald Rapids does not, milliseconds by panels and by chunks: N=1, 3x3 512@7 1.63
    and 1.35, 1024@7 8.0 and 6.0, 512@14 of stride 2 1.67 and 1.42, 1x1 512->2048@7 0.71 and 0.61, N=8 4.3 and 3.5.
    """
    here = machine()
    return here is not None and (here.registers < 32 or not here.loses_track) and shape.vectors == 2


def make(module: ir.Module, dtype: str, shape: Shape, fields: tuple[str, ...], gather: Kernel) -> None:
    """The task ``deep``: a block of results, all filters or a part of them; of whole tiles and one group."""
    tiles = tile_kernels(module, dtype, shape, shape.every_height, adds=True)
    pack, size = _pack_kernel(module, dtype), np.dtype(dtype).itemsize
    kernel = Kernel(module, "deep", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, fields)
    block = blocks.opened(kernel, given, item // given.parts, scratch)
    y = given.y + block.first * given.y_item + block.row * given.y_row
    x, own = blocks.read(kernel, given, block, scratch, gather), scratch + given.own
    part, wide = item % given.parts, (given.panels + (PANELS - 1)) // PANELS
    with kernel.loop((wide * (part + 1)) // given.parts, start=(wide * part) // given.parts) as panels:
        begin = panels * (PANELS * shape.filters)
        row = kernel.minimum(given.maps - begin, PANELS * shape.filters) * size
        with kernel.loop(given.chunks) as chunk:
            tap = chunk * given.chunk
            taps = kernel.minimum(given.tap_count - tap, given.chunk)
            w = given.w + given.w_start + tap * given.run * given.w_step + begin * size
            kernel.call(pack, w, given.w_step, taps * given.run, row, own)
            finish = chunk.equals(given.chunks - 1).where(given.finish, kernel.constant(0))
            bias, there = chunk.equals(0).where(given.bias, y), kernel.minimum(chunk, 1) * -1
            with kernel.loop(block.count, step=_PIXELS) as some, kernel.loop(row, step=shape.filters * size) as at:

                def arguments_of(pixel: Value, some: Value = some, at: Value = at) -> tuple[Operand, ...]:
                    place = (some + pixel) * 8
                    return (
                        x, given.pixels + place, given.taps + tap * 8, taps, given.run, own + at, row,
                        y + begin * size + at, given.results + place, shape.filters, finish,
                        bias + begin * size + at, 0, there,
                    )  # fmt: skip

                evenly(kernel, tiles, kernel.minimum(block.count - some, _PIXELS), arguments_of)
    kernel.finish()


def _pack_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``pack_rows(source, step, rows, nbytes, to)``: so many bytes of rows a step apart, side by side."""
    kernel = Kernel(module, "pack_rows", ("source", "step", "rows", "nbytes", "to"))
    source, step, rows, nbytes, to = kernel.arguments
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    kind = vector(FLOATS[dtype], lanes)
    with kernel.loop(rows) as row:
        here, there = source + row * step, to + row * nbytes
        with kernel.loop(nbytes, step=LINE) as at:
            kernel.prefetch(here + step * _AHEAD + at)
            for place in range(0, LINE, lanes * size):
                kernel.store(kernel.load(here + at, kind, place), there + at, place)
    kernel.finish()
    return kernel
