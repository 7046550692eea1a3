"""Kernels that move elements: fills, copies and transposes, of any strides."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.processor import asks_ahead
from xpconv.cpu.compiled.values import FLOATS, Value, vector

OUTSIDE = -(1 << 62)  # where nothing lies: an offset that no array has
_AHEAD = 512  # bytes of a row that is turned before they are read, they are asked for


@cache  # NumPy makes it anew each time
def name_of(dtype: np.dtype) -> str:
    """A dtype's name."""
    return dtype.name


def lanes_of(dtype: str) -> int:
    """Elements in a register."""
    here = machine()
    assert here is not None
    return here.vector_bytes // np.dtype(dtype).itemsize


def fill_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``fill(value, to, count)``: so many copies of the element at an address."""
    kernel = Kernel(module, "fill", ("value", "to", "count"))
    value, to, count = kernel.arguments
    every = kernel.splat(kernel.load(value, FLOATS[dtype]), lanes_of(dtype))
    in_vectors(kernel, dtype, count, lambda at, mask: put(kernel, every, to + at, mask))
    kernel.finish()
    return kernel


def copy_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``copy(source, to, count)``: elements that lie side by side."""
    kernel = Kernel(module, "copy", ("source", "to", "count"))
    source, to, count = kernel.arguments
    kind = vector(FLOATS[dtype], lanes_of(dtype))
    in_vectors(kernel, dtype, count, lambda at, mask: put(kernel, take(kernel, source + at, kind, mask), to + at, mask))
    kernel.finish()
    return kernel


def take(kernel: Kernel, address: Value, kind: ir.Type, mask: Value | None) -> Value:
    """A vector, or the lanes of a mask."""
    return kernel.load(address, kind) if mask is None else kernel.load_lanes(address, kind, mask)


def put(kernel: Kernel, value: Value, address: Value, mask: Value | None) -> None:
    """A vector to memory, or the lanes of a mask."""
    if mask is None:
        kernel.store(value, address)
    else:
        kernel.store_lanes(value, address, mask)


def in_vectors(kernel: Kernel, dtype: str, count: Value, body: Callable[[Value, Value | None], None]) -> None:
    """`body(byte offset, None)` for every whole vector, and `body(byte offset, mask)` for what is left over."""
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    whole = count - count % lanes
    with kernel.loop(whole, step=lanes) as i:
        body(i * size, None)
    with kernel.when(whole < count):
        body(whole * size, kernel.lanes_below(count - whole, lanes))


def transpose_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``transpose(source, source_step, to, to_step, rows, columns)``: ``to[column][row] = source[row][column]``.

    Elements of a row lie side by side, rows a step of bytes apart. Squares as wide as a register are turned in
    registers. The last ones share elements with those before; where there are fewer rows or columns than a square has,
    some of its lanes are read and stored. One by one, what was left over took longer than the squares: 32 groups of
    256@14, N=8, channels first 0.60 -> 0.42 ms, the layers of LeNet from 1.3 to 1.14 times those with channels last.

    Each row is asked for some lines ahead: planes of channels are more rows than a processor keeps track of. With
    channels first, a Zen 4 took 0.88 of the time for 3x3 64@224, N=8, 0.84 for 32 groups of 256@14, 0.89 for the weight
    gradient of 64@56; by the first cache instead of the second 0.97, 0.93 and 1.07. Of a source that the caches hold it
    makes no difference.
    """
    kernel = Kernel(module, f"transpose-{dtype}", ("source", "source_step", "to", "to_step", "rows", "columns"))
    source, source_step, to, to_step, rows, columns = kernel.arguments
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    kind = vector(FLOATS[dtype], lanes)

    def whole(row: Value, column: Value) -> None:
        here, there = source + row * source_step + column * size, to + column * to_step + row * size
        for i in range(lanes if asks_ahead() else 0):
            kernel.prefetch(here + source_step * i + _AHEAD, level=2)
        square = [kernel.load(here + source_step * i, kind) for i in range(lanes)]
        for i, column_values in enumerate(turned(kernel, square)):
            kernel.store(column_values, there + to_step * i)

    def part(row: Value, column: Value) -> None:
        here, there = source + row * source_step + column * size, to + column * to_step + row * size
        tall, wide = rows - row, columns - column
        read, stored = kernel.lanes_below(wide, lanes), kernel.lanes_below(tall, lanes)
        steps = [kernel.minimum(tall - 1, i) * source_step for i in range(lanes)]
        square = [kernel.load_lanes(here + step, kind, read) for step in steps]
        for i, column_values in enumerate(turned(kernel, square)):
            with kernel.when(wide > i):
                kernel.store_lanes(column_values, there + to_step * i, stored)

    with kernel.either((rows >= lanes) & (columns >= lanes)) as (large, small):
        with large, kernel.loop(columns, step=lanes) as column, kernel.loop(rows, step=lanes) as row:
            whole(kernel.minimum(rows - lanes, row), kernel.minimum(columns - lanes, column))
        with small, kernel.loop(columns, step=lanes) as column, kernel.loop(rows, step=lanes) as row:
            part(row, column)
    kernel.finish()
    return kernel


def turned(kernel: Kernel, square: list[Value]) -> list[Value]:
    """A square transposed: rows of the two halves are interleaved as often as halving the square ends at one row."""
    half = len(square) // 2
    for _ in range(half.bit_length()):
        pairs = [kernel.interleaved(square[i], square[i + half]) for i in range(half)]
        square = [row for pair in pairs for row in pair]
    return square


def gather_kernel(module: ir.Module, dtype: str, transpose: Kernel) -> Kernel:
    """``gather(x, rows, count, runs, run_count, geometry, to)``: rows of a padded input, channels last.

    ``rows`` tells where each row begins in `x`, in bytes, OUTSIDE for one that lies in the padding; ``runs`` holds
    pairs: where in a row so many positions begin, or OUTSIDE, and how many they are. ``geometry`` holds the bytes
    between positions and between channels, the channels, the positions of a row, the bytes between rows that may be
    read as one run (0 for none), the address of what lies outside, and the bytes between positions to write.
    """
    fill, copy = fill_kernel(module, dtype), copy_kernel(module, dtype)
    run_kernel = _run_kernel(module, dtype, copy, transpose)
    kernel = Kernel(module, "gather", ("x", "rows", "count", "runs", "run_count", "geometry", "to"))
    x, rows, count, runs, run_count, geometry, to = kernel.arguments
    step, channel_step, channels, line, merged, outside, position = (
        kernel.load(geometry, offset=8 * i) for i in range(7)
    )
    size = np.dtype(dtype).itemsize
    row, target = kernel.variable(0), kernel.variable(to)

    def source_of(row: Value) -> Value:
        return kernel.load(rows, offset=row * 8)

    with kernel.while_(lambda: row.get() < count):
        source, length = source_of(row.get()), kernel.variable(1)
        with kernel.either(source < OUTSIDE // 2) as (none, some):
            with none:
                kernel.call(fill, outside, target.get(), line * position // size)
            with some, kernel.either(merged.equals(0)) as (apart, together):
                with apart:
                    into = kernel.variable(target.get())
                    with kernel.loop(run_count) as r:
                        begin, positions = kernel.load(runs, offset=r * 16), kernel.load(runs, offset=r * 16 + 8)
                        with kernel.either(begin < OUTSIDE // 2) as (empty, full):
                            with empty:
                                kernel.call(fill, outside, into.get(), positions * position // size)
                            with full:
                                kernel.call(
                                    run_kernel, x + source + begin, step, channel_step, channels, positions,
                                    into.get(), position,
                                )  # fmt: skip
                        into.set(into.get() + positions * position)
                with together:
                    last = row.get() + 1

                    def follows() -> Value:
                        inside = last + (length.get() - 1) < count
                        safe = inside.where(last + (length.get() - 1), row.get())
                        return inside & source_of(safe).equals(source + length.get() * merged)

                    with kernel.while_(follows):
                        length.set(length.get() + 1)
                    kernel.call(
                        run_kernel, x + source, step, channel_step, channels, length.get() * line, target.get(),
                        position,
                    )  # fmt: skip
        target.set(target.get() + length.get() * line * position)
        row.set(row.get() + length.get())
    kernel.finish()
    return kernel


def _run_kernel(module: ir.Module, dtype: str, copy: Kernel, transpose: Kernel) -> Kernel:
    """``run(source, step, channel_step, channels, positions, to, width)``: positions a step apart, now a width."""
    kernel = Kernel(module, "run", ("source", "step", "channel_step", "channels", "positions", "to", "width"))
    source, step, channel_step, channels, positions, to, width = kernel.arguments
    size, element = np.dtype(dtype).itemsize, FLOATS[dtype]

    def any_strides() -> None:
        with kernel.loop(positions) as p, kernel.loop(channels) as c:
            kernel.store(kernel.load(source + p * step + c * channel_step, element), to + p * width + c * size)

    with kernel.either(channel_step.equals(size)) as (last, other):
        with last, kernel.either(step.equals(width) & width.equals(channels * size)) as (dense, sparse):
            with dense:
                kernel.call(copy, source, to, positions * channels)
            with sparse, kernel.loop(positions) as p:
                kernel.call(copy, source + p * step, to + p * width, channels)
        with other, kernel.either(step.equals(size)) as (first, neither):
            with first:
                kernel.call(transpose, source, channel_step, to, width, channels, positions)
            with neither:
                any_strides()
    kernel.finish()
    return kernel
