"""The gradient of sums and means over windows of single planes, lanes along the row, for windows two columns apart.

A row of the result adds up the rows of gy whose windows cover it, put down between zeros; from there each of its
columns takes the windows that cover it. Even columns take others than odd ones: both come in vectors, which are
interleaved as they are stored.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import chain

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import Arguments
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.job import Job
from xpconv.cpu.compiled.moves import fill_kernel, in_vectors, lanes_of, put, take
from xpconv.cpu.compiled.tile import SUMMED
from xpconv.cpu.compiled.values import FLOATS, Value, vector
from xpconv.cpu.plan import READ_SINGLE
from xpconv.spec import PoolSpec, Sizes

_NAMES: tuple[str, ...] = (
    "x", "y", "x_item", "x_plane", "channels", "planes", "share", "rows", "columns", "x_columns", "left", "held",
    "zero", "divisor", "starts", "x_rows", "even", "even_count", "odd", "odd_count",
)  # fmt: skip


def spread(spec: PoolSpec, strides: Sizes, dtype: str, threads_free: int, divisor: float) -> Job:
    """The gradient for gy (N, *out, C) that lies as its strides say.

    The job takes gy and gx, whose planes are contiguous and follow each other.
    """
    planes, read = spec.batch * spec.channels, spec.batch * spec.channels * math.prod(spec.out_size)
    team = threads_free if read * math.prod(spec.window) > READ_SINGLE else 1
    share, lanes, size = -(-planes // (4 * team)), lanes_of(dtype), np.dtype(dtype).itemsize
    even, odd, (left, held) = _taps(spec, 0), _taps(spec, 1), _held(spec, lanes)
    rows = [[i * strides[1] for i in windows_over(spec, 0, row)] for row in range(spec.size[0])]
    numbers = {
        "x_item": strides[0], "x_plane": strides[-1], "channels": spec.channels, "planes": planes, "share": share,
        "rows": spec.size[0], "columns": spec.size[1], "x_columns": spec.out_size[1], "left": left * size,
        "held": held, "even_count": len(even), "odd_count": len(odd),
    }  # fmt: skip
    tables = {
        "zero": np.zeros(1, dtype), "divisor": np.array([divisor], dtype),
        "starts": np.cumsum([0, *map(len, rows)]), "x_rows": np.array([*chain.from_iterable(rows)], np.int64),
        "even": np.array(even, np.int64) * size, "odd": np.array(odd, np.int64) * size,
    }  # fmt: skip
    compiled = _library(dtype)
    assert compiled is not None
    arguments = Arguments(_NAMES, 2, numbers, tables)
    return Job(compiled.address("spread"), arguments, -(-planes // share), held * size, team)


def _taps(spec: PoolSpec, phase: int) -> list[int]:
    """By how many windows those that cover column 2 q + phase lie behind window q."""
    places = (phase + spec.padding[1][0] - tap * spec.dilation[1] for tap in range(spec.window[1]))
    return [place // 2 for place in places if place % 2 == 0]


def windows_over(spec: PoolSpec, axis: int, place: int) -> list[int]:
    """The windows that cover a place, along an axis."""
    stride, (before, _) = spec.stride[axis], spec.padding[axis]
    begins = (place + before - tap * spec.dilation[axis] for tap in range(spec.window[axis]))
    windows = (begin // stride for begin in begins if begin % stride == 0)
    return [i for i in windows if 0 <= i < spec.out_size[axis]]


def _held(spec: PoolSpec, lanes: int) -> tuple[int, int]:
    """Zeros before a row of windows, and elements that it takes together with them and with the zeros after it."""
    taps = _taps(spec, 0) + _taps(spec, 1)
    left = max(0, -min(taps))
    return left, left + max(spec.out_size[1], -(-spec.size[1] // 2) + max(0, *taps)) + lanes


def takes(dtype: str, spec: PoolSpec, strides: Sizes, limit: int) -> bool:
    """Whether the gradient is taken of gy that lies so, within a limit of scratch memory.

    Of rows so narrow that most lanes are empty it is not: 512 channels of 14 by 14 took 0.36 ms, turned 0.29.
    """
    if 0 in (spec.batch, spec.channels, *spec.size, *spec.out_size) or max(spec.window) > SUMMED:
        return False
    planes, lanes, size = spec.axes == 2 and spec.layout == "channels_first", lanes_of(dtype), np.dtype(dtype).itemsize
    if not planes or spec.stride[1] != 2 or strides[2] != size or 2 * spec.size[1] < 3 * lanes:
        return False
    return threads.thread_count() * _held(spec, lanes)[1] * size <= limit


# --- The kernel -------------------------------------------------------------------------------------------------------


def is_ready(dtype: str, _: PoolSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"spread-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: some planes, row by row."""
    fill, row_kernel, size = fill_kernel(module, dtype), _row_kernel(module, dtype), np.dtype(dtype).itemsize
    kernel = Kernel(module, "spread", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, _NAMES)
    kind, first = vector(FLOATS[dtype], lanes_of(dtype)), item * given.share
    kernel.call(fill, given.zero, scratch, given.held)
    row_at = scratch + given.left
    stop = kernel.minimum(first + given.share, given.planes)
    with kernel.loop(stop, start=first) as plane, kernel.loop(given.rows) as row:
        x = given.x + (plane // given.channels) * given.x_item + (plane % given.channels) * given.x_plane
        begin, end = (kernel.load(given.starts + row * 8, offset=offset) for offset in (0, 8))

        def join(at: Value, mask: Value | None) -> None:
            total = kernel.variable(kernel.constant(0, kind))
            with kernel.loop(end, start=begin) as number:
                total.set(total.get() + take(kernel, x + kernel.load(given.x_rows + number * 8) + at, kind, mask))
            kernel.store(total.get(), row_at + at)

        in_vectors(kernel, dtype, given.x_columns, join)
        y = given.y + (plane * given.rows + row) * given.columns * size
        kernel.call(
            row_kernel, row_at, y, given.columns, given.divisor, given.even, given.even_count, given.odd,
            given.odd_count,
        )  # fmt: skip
    kernel.finish()
    return ("spread",)


def _row_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``row(...)``: a row of the result, of the row of windows that was joined for it."""
    names = ("x", "y", "columns", "divisor", "even", "even_count", "odd", "odd_count")
    kernel = Kernel(module, "row", names)
    x, y, columns, divisor, even, even_count, odd, odd_count = kernel.arguments
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    kind, by = vector(FLOATS[dtype], lanes), kernel.splat(kernel.load(divisor, FLOATS[dtype]), lanes)

    def phase(taps: Value, count: Value, at: Value) -> Value:
        total = kernel.variable(kernel.constant(0, kind))
        with kernel.loop(count) as tap:
            total.set(total.get() + kernel.load(x + at + kernel.load(taps + tap * 8), kind))
        return total.get() // by

    def pairs(column: Value, masks: tuple[Value | None, Value | None]) -> None:
        at = (column >> 1) * size
        both = kernel.interleaved(phase(even, even_count, at), phase(odd, odd_count, at))
        for half, (values, mask) in enumerate(zip(both, masks, strict=True)):
            put(kernel, values, y + column * size + half * lanes * size, mask)

    whole = columns - columns % (2 * lanes)
    with kernel.loop(whole, step=2 * lanes) as column:
        pairs(column, (None, None))
    with kernel.when(whole < columns):
        left = columns - whole
        pairs(whole, (kernel.lanes_below(left, lanes), kernel.lanes_below(left - lanes, lanes)))
    kernel.finish()
    return kernel
