"""The gradient of sums and means over windows of maps, lanes along the channels.

For a row of the result the rows of gy whose windows cover it are joined, in memory that stays in the first cache; each
of its columns then takes the windows that cover it. Every result is written once, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import chain

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import Arguments
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.call import TOGETHER, in_lines, storing_now
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.job import Job
from xpconv.cpu.compiled.moves import lanes_of, put, take
from xpconv.cpu.compiled.rows import divided
from xpconv.cpu.compiled.spread import windows_over
from xpconv.cpu.compiled.tile import SUMMED
from xpconv.cpu.compiled.values import FLOATS, Value, vector
from xpconv.cpu.plan import READ_SINGLE
from xpconv.spec import Array, PoolSpec, Sizes

_NAMES: tuple[str, ...] = (
    "x", "y", "x_item", "x_column", "pixel", "rows", "columns", "x_columns", "channels", "share", "row_blocks",
    "row_starts", "x_rows", "column_starts", "x_places", "divisor", "streams",
)  # fmt: skip
_ITEMS = 8  # for each of a team, which then hardly wait for the last


def spread(spec: PoolSpec, strides: Sizes, dtype: str, threads_free: int, divisor: float) -> Job:
    """The gradient for gy (N, *out, C) that lies as its strides say.

    The job takes gy and gx, which is contiguous.
    """
    size, read = np.dtype(dtype).itemsize, spec.batch * spec.channels * math.prod(spec.out_size)
    team = threads_free if read * math.prod(spec.window) > READ_SINGLE else 1
    share = -(-spec.size[0] // -(-_ITEMS * team // spec.batch))
    row_blocks, pixel = -(-spec.size[0] // share), spec.channels * size
    rows, columns = ([windows_over(spec, axis, i) for i in range(spec.size[axis])] for axis in (0, 1))
    together = spec.batch * pixel * (math.prod(spec.size) + math.prod(spec.out_size))
    numbers = {
        "x_item": strides[0], "x_column": strides[2], "pixel": pixel, "rows": spec.size[0],
        "columns": spec.size[1], "x_columns": spec.out_size[1], "channels": spec.channels, "share": share,
        "row_blocks": row_blocks, "streams": int(together >= TOGETHER and in_lines((pixel, size), pixel, size)),
    }  # fmt: skip
    tables = {
        "row_starts": _starts(rows), "x_rows": _joined(rows) * strides[1], "column_starts": _starts(columns),
        "x_places": _joined(columns) * pixel, "divisor": np.array([divisor], dtype),
    }  # fmt: skip
    compiled = _library(dtype)
    assert compiled is not None
    arguments, items = Arguments(_NAMES, 2, numbers, tables), spec.batch * row_blocks
    return Job(compiled.address("spread"), arguments, items, spec.out_size[1] * pixel, team)


def _starts(lists: list[list[int]]) -> Array:
    """Where in all numbers together each list begins and the last one ends."""
    return np.cumsum([0, *map(len, lists)])


def _joined(lists: list[list[int]]) -> Array:
    return np.array([*chain.from_iterable(lists)], np.int64)


def takes(dtype: str, spec: PoolSpec, strides: Sizes, limit: int) -> bool:
    """Whether the gradient is taken of gy that lies so, within a limit of scratch memory."""
    if 0 in (spec.batch, spec.channels, *spec.size, *spec.out_size) or max(spec.window) > SUMMED:
        return False
    size = np.dtype(dtype).itemsize
    if spec.axes != 2 or spec.layout != "channels_last" or set(spec.stride) == {1} or strides[-1] != size:
        return False
    row = spec.out_size[1] * spec.channels * size
    return 2 * spec.channels >= lanes_of(dtype) and threads.thread_count() * row <= limit


# --- The kernel -------------------------------------------------------------------------------------------------------


def is_ready(dtype: str, _: PoolSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"spread-channels-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: some rows of one image's gradient, one after the other."""
    kernel = Kernel(module, "spread", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, _NAMES)
    image, first = item // given.row_blocks, item % given.row_blocks * given.share
    x, y = given.x + image * given.x_item, given.y + image * (given.rows * given.columns * given.pixel)
    stream = storing_now(kernel, given)

    def sums(source: Value, places: Value, starts: Value, store: _Store) -> None:
        """The channels of one pixel: of all that the table names from one start to the next."""
        begin, end = (kernel.load(starts, offset=offset) for offset in (0, 8))

        def summed(at: Value, masks: list[Value | None]) -> None:
            _sums(kernel, dtype, source + at, (places, begin, end), masks, partial(store, at))

        _in_groups(kernel, dtype, given.channels, summed)

    with kernel.loop(kernel.minimum(first + given.share, given.rows), start=first) as row:
        with kernel.loop(given.x_columns) as column:
            to = scratch + column * given.pixel

            def keep(at: Value, q: int, total: Value, mask: Value | None, to: Value = to) -> None:
                put(kernel, total, to + at + q * _width(dtype), mask)

            sums(x + column * given.x_column, given.x_rows, given.row_starts + row * 8, keep)
        with kernel.loop(given.columns) as column:
            to = y + (row * given.columns + column) * given.pixel

            def finish(at: Value, q: int, total: Value, mask: Value | None, to: Value = to) -> None:
                result, place = divided(kernel, total, given.divisor), to + at + q * _width(dtype)
                if mask is not None:  # a part of a vector is no line
                    kernel.store_lanes(result, place, mask)
                    return
                with kernel.either(stream > 0) as (streamed, kept):
                    with streamed:
                        kernel.stream(result, place)
                    with kept:
                        kernel.store(result, place)

            sums(scratch, given.x_places, given.column_starts + column * 8, finish)
    with kernel.when(stream > 0):
        kernel.fence()
    kernel.finish()
    return ("spread",)


_Store = Callable[[Value, int, Value, Value | None], None]
"""Of a byte offset, the number of a vector from there on, its total, and the mask of one that is a part."""


def _width(dtype: str) -> int:
    """Bytes of a vector."""
    return lanes_of(dtype) * np.dtype(dtype).itemsize


def _in_groups(
    kernel: Kernel, dtype: str, channels: Value, body: Callable[[Value, list[Value | None]], None]
) -> None:  # fmt: skip
    """`body(byte offset, masks)` for as many vectors at once as masks, the last of which may be a part of one."""
    lanes, size, channel = lanes_of(dtype), np.dtype(dtype).itemsize, kernel.variable(0)
    for vectors in (4, 1):
        with kernel.while_(lambda width=vectors * lanes: channel.get() + width <= channels):
            body(channel.get() * size, [None] * vectors)
            channel.set(channel.get() + vectors * lanes)
    with kernel.when(channel.get() < channels):
        body(channel.get() * size, [kernel.lanes_below(channels - channel.get(), lanes)])


def _sums(
    kernel: Kernel, dtype: str, source: Value, table: tuple[Value, Value, Value], masks: list[Value | None],
    store: Callable[[int, Value, Value | None], None],
) -> None:  # fmt: skip
    """Vectors added from all places that a table names from a number to before another."""
    (places, begin, end), kind = table, vector(FLOATS[dtype], lanes_of(dtype))
    totals = [kernel.variable(kernel.constant(0, kind)) for _ in masks]
    with kernel.loop(end, start=begin) as number:
        here = source + kernel.load(places + number * 8)
        for q, (total, mask) in enumerate(zip(totals, masks, strict=True)):
            total.set(total.get() + take(kernel, here + q * _width(dtype), kind, mask))
    for q, (total, mask) in enumerate(zip(totals, masks, strict=True)):
        store(q, total.get(), mask)
