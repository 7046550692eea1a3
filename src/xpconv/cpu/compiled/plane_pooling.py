"""Max and sum pooling of single planes, lanes along the row: windows, and whole maps.

The rows of a window are joined as they are read, the columns afterwards: a window of m by n takes m + n steps. Of
whole maps as many as a vector has lanes are read at a time, whose lanes are then joined all at once.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import Arguments, Sources
from xpconv.cpu.compiled.build import Library, library, machine
from xpconv.cpu.compiled.call import is_dense, streamed_planes
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import OUTSIDE, lanes_of, put, take
from xpconv.cpu.compiled.rows import (
    STRIDES,
    aligning,
    divided,
    joined,
    phase_bytes,
    rows_kernel,
    stream_kernel,
    tap_offsets,
)
from xpconv.cpu.compiled.tile import SUMMED
from xpconv.cpu.compiled.values import FLOATS, Value, Variable, vector
from xpconv.cpu.lines import LINE
from xpconv.cpu.plan import READ_SINGLE
from xpconv.spec import Array, PoolSpec, Sizes

_WINDOWS: tuple[str, ...] = (
    "x", "y", "x_item", "x_plane", "x_row", "y_item", "y_plane", "y_row", "channels", "blocks", "share", "rows",
    "row_blocks", "out_rows", "columns", "column_blocks", "out_columns", "row_stride", "stride", "down", "dilation",
    "taps", "reach", "row_sources", "left", "width", "outside", "pitch", "half", "shift", "offsets", "divisor",
    "aside", "streams",
)  # fmt: skip
_MAPS: tuple[str, ...] = (
    "x", "y", "x_item", "x_plane", "y_item", "channels", "groups", "count", "share", "elements", "divisor",
)  # fmt: skip
_ROWS = 12 << 10  # bytes of rows that are joined before their columns are: a quarter of a level 1 cache
_COLUMNS = 1024  # results of a row at most, where it is cut at all
_SHARE = 16  # blocks of an item at most: what is asked for ahead is then mostly the same thread's next block
_NOTHING = {"largest": -math.inf, "added": 0.0}


class Pooling:
    """A pooling of planes whose columns lie side by side, prepared: as `channelwise.pooling` is."""

    def __init__(
        self, operation: str, spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, threads_free: int,
        sources: Sources, divisor: float, limit: int,
    ) -> None:  # fmt: skip
        read = spec.batch * spec.channels * math.prod(spec.out_size) * math.prod(spec.window)
        self._team = threads_free if read > READ_SINGLE else 1
        tables: dict[str, Array] = {"divisor": np.array([divisor], dtype)}
        task, names = "pairs" if _pairs(spec) else "windows", _WINDOWS
        if _reads_maps(spec, strides[0], dtype):
            task, names = "maps", _MAPS
            numbers = _map_numbers(spec, strides, dtype, self._team)
            self._items, self._scratch = -(-numbers["count"] // numbers["share"]), 0
        else:
            numbers = _window_numbers(spec, strides, dtype, self._team, limit // self._team)
            tables |= _window_tables(spec, strides[0], dtype, sources, _NOTHING[operation], numbers["half"])
            self._items = -(-numbers["blocks"] // numbers["share"])
            self._scratch = numbers["aside"] + numbers["streams"] * numbers["rows"] * numbers["y_row"]
        self._arguments = Arguments(names, 2, numbers, tables)
        compiled = _library(dtype, operation, spec.stride[-1])
        assert compiled is not None
        self._address = compiled.address(f"{task}{divisor != 1:d}")

    def __call__(self, x: Array, y: Array) -> None:
        """Write the result to `y`."""
        threads.run(self._address, self._arguments.of(x, y), self._items, self._scratch, self._team)


def takes(dtype: str, spec: PoolSpec, x_strides: Sizes, limit: int) -> bool:
    """Whether the kernels read planes that lie so, within a limit of scratch memory."""
    if 0 in (spec.batch, spec.channels, *spec.out_size):
        return False
    if _reads_maps(spec, x_strides, dtype):
        return math.prod(spec.size) <= _AT_ONCE * lanes_of(dtype) * SUMMED  # of more, sums would lose digits
    planes = spec.axes <= 2 and (spec.layout == "channels_first" or spec.channels == 1)
    dense = planes and x_strides[-2] == np.dtype(dtype).itemsize
    if not dense or spec.stride[-1] not in STRIDES or max(spec.window) > SUMMED:
        return False
    return workspace(dtype, spec) <= limit


def is_slow(dtype: str, spec: PoolSpec) -> bool:
    """Whether rows are so narrow that most lanes are empty: turned, maps of 7 by 7 took three quarters of the time."""
    return spec.window != spec.size and 4 * spec.size[-1] < 3 * lanes_of(dtype)


def workspace(dtype: str, spec: PoolSpec) -> int:
    """The least bytes that all threads together take: a row that is read, and a row of results put aside."""
    columns = min(spec.out_size[-1], _COLUMNS)
    read = 2 * spec.stride[-1] * _half(spec, columns, dtype) + LINE
    return threads.thread_count() * (read + columns * np.dtype(dtype).itemsize)


def _reads_maps(spec: PoolSpec, x_strides: Sizes, dtype: str) -> bool:
    """Whether each window is a whole plane, whose elements all lie side by side."""
    if spec.window != spec.size or spec.padded_size != spec.size or set(spec.dilation) != {1}:
        return False
    return is_dense(spec.size, x_strides, np.dtype(dtype).itemsize)


def _pairs(spec: PoolSpec) -> bool:
    """Whether the windows of a row are pairs of columns, which all begin on the plane."""
    columns = spec.window[-1], spec.stride[-1], spec.dilation[-1], spec.padding[-1][0]
    return columns == (2, 2, 1, 0) and 2 * (spec.out_size[-1] - 1) < spec.size[-1]


def _half(spec: PoolSpec, columns: int, dtype: str) -> int:
    """What one phase of the input of so many results of a row takes, in bytes."""
    return phase_bytes((columns - 1) * spec.stride[-1] + spec.reach[-1], spec.stride[-1], dtype)


def _window_numbers(
    spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, team: int, limit: int
) -> dict[str, int]:
    """What the kernels are told of windows, but for addresses; a signal is one row."""
    (x_strides, y_strides), size, planes = strides, np.dtype(dtype).itemsize, spec.batch * spec.channels
    two, stride, out_columns = spec.axes == 2, spec.stride[-1], spec.out_size[-1]
    out_rows = spec.out_size[0] if two else 1
    parts = min(-(-2 * team // planes), out_rows if two else out_columns) if team > 1 else 1
    columns = min(out_columns, _COLUMNS if two else min(_COLUMNS, -(-out_columns // parts)))
    half = _half(spec, columns, dtype)
    held = max(min(_ROWS, limit // 2) // (stride * half) - 1, 1)
    rows = -(-out_rows // max(-(-out_rows // held), parts if two else 1))
    row_blocks, column_blocks = -(-out_rows // rows), -(-out_columns // columns)
    blocks = planes * row_blocks * column_blocks
    return {
        "x_item": x_strides[0], "x_plane": x_strides[-1], "x_row": x_strides[1] if two else 0,
        "y_item": y_strides[0], "y_plane": y_strides[-1], "y_row": out_columns * size, "channels": spec.channels,
        "blocks": blocks, "share": max(min(_SHARE, blocks // (4 * team)), 1), "rows": rows,
        "row_blocks": row_blocks, "out_rows": out_rows,
        "columns": columns, "column_blocks": column_blocks, "out_columns": out_columns,
        "row_stride": spec.stride[0] if two else 1, "stride": stride, "down": spec.window[0] if two else 1,
        "dilation": spec.dilation[0] if two else 1, "taps": spec.window[-1], "reach": spec.reach[-1],
        "left": spec.padding[-1][0], "width": spec.size[-1], "pitch": stride * half, "half": half,
        "shift": aligning(spec.padding[-1][0], stride, dtype), "aside": (rows + 1) * stride * half + LINE,
        "streams": int(column_blocks == 1 and streamed_planes(spec, y_strides, size)),
    }  # fmt: skip


def _window_tables(
    spec: PoolSpec, x_strides: Sizes, dtype: str, sources: Sources, nothing: float, half: int
) -> dict[str, Array]:
    """Where the rows of the padded plane come from, and where taps lie, in bytes; a row that is padding."""
    *down, _ = sources(spec)
    rows, step = (down[0], x_strides[1]) if down else (np.zeros(1, np.int64), 0)
    return {
        "row_sources": np.where(rows < 0, OUTSIDE, rows * step),
        "outside": np.full(spec.size[-1] + 1, nothing, dtype),
        "offsets": tap_offsets(spec.window[-1], spec.dilation[-1], spec.stride[-1], half, dtype),
    }


def _map_numbers(spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, team: int) -> dict[str, int]:
    """What the kernels are told of whole maps: groups of as many as a vector has lanes, few items of them."""
    ((x_item, *_, x_plane), (y_item, *_)), groups = strides, -(-spec.channels // lanes_of(dtype))
    count = groups * spec.batch
    return {
        "x_item": x_item, "x_plane": x_plane, "y_item": y_item, "channels": spec.channels, "groups": groups,
        "count": count, "share": -(-count // (4 * team)), "elements": math.prod(spec.size),
    }  # fmt: skip


# --- The kernels ------------------------------------------------------------------------------------------------------


def is_ready(dtype: str, spec: PoolSpec, *, operation: str) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, operation, spec.stride[-1]) is not None


def _library(dtype: str, operation: str, stride: int) -> Library | None:
    stride = stride if stride in STRIDES else 1  # of a whole map it does not matter
    name = f"plane-pooling-{dtype}-{operation}-{stride}"
    return library(name, partial(_make, dtype=dtype, operation=operation, stride=stride))


def _make(module: ir.Module, *, dtype: str, operation: str, stride: int) -> tuple[str, ...]:
    """The tasks: windows, pairs of columns, whole maps, each with results as they are (0) and divided (1)."""
    read, stream, names = rows_kernel(module, dtype, operation, stride), stream_kernel(module, dtype), []
    for divides in (False, True):
        block = _block_kernel(module, dtype, operation, divides=divides)
        names.append(_windows_task(module, f"windows{divides:d}", dtype, (read, block, stream)))
        names.append(_maps_task(module, f"maps{divides:d}", dtype, operation, divides=divides))
        if stride == 2:
            folded = rows_kernel(module, dtype, operation, stride, folded=True, divides=divides)
            names.append(_windows_task(module, f"pairs{divides:d}", dtype, (folded, None, stream)))
    return tuple(names)


def _windows_task(module: ir.Module, name: str, dtype: str, kernels: tuple[Kernel, Kernel | None, Kernel]) -> str:
    """Blocks of rows and columns of the results of planes.

    Without a block kernel the rows that are read are results already.
    """
    (read, block, stream), size = kernels, np.dtype(dtype).itemsize
    kernel = Kernel(module, name, ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given, one, none = kernel.given(arguments, _WINDOWS), kernel.constant(1), kernel.constant(0)
    first, filled = item * given.share, kernel.variable(0)  # rows whose padding is there
    with kernel.loop(kernel.minimum(first + given.share, given.blocks), start=first) as number:
        column, rest = (number % given.column_blocks) * given.columns, number // given.column_blocks
        row, plane = (rest % given.row_blocks) * given.rows, rest // given.row_blocks
        rows = kernel.minimum(given.out_rows - row, given.rows)
        columns = kernel.minimum(given.out_columns - column, given.columns)
        image, channel = plane // given.channels, plane % given.channels
        x = given.x + image * given.x_item + channel * given.x_plane
        y = given.y + image * given.y_item + channel * given.y_plane + row * given.y_row + column * size
        into = given.streams.equals(1).where(scratch + given.aside, y)
        held = (into, given.y_row) if block is None else (scratch + given.shift, given.pitch)
        is_filled = ((rows <= filled.get()) & given.column_blocks.equals(1)).where(one, none)
        filled.set(kernel.at_least(filled.get(), rows))
        kernel.call(
            read, x, given.row_sources + row * given.row_stride * 8, rows, given.row_stride, given.down, given.dilation,
            column * given.stride, (columns - 1) * given.stride + given.reach, given.left, given.width, given.outside,
            *held, given.half, x + (row + rows) * given.row_stride * given.x_row, given.row_stride, given.x_row,
            given.divisor, is_filled,
        )  # fmt: skip
        if block is not None:
            kernel.call(block, *held, given.offsets, given.taps, rows, columns, into, given.y_row, given.divisor)
        with kernel.when(given.streams > 0):
            kernel.call(stream, into, y, rows * columns * size)
    with kernel.when(given.streams > 0):
        kernel.fence()
    kernel.finish()
    return name


_ARGUMENTS = ("x", "pitch", "offsets", "taps", "y", "y_row", "width", "divisor", "count")
_WIDEST = 4  # vectors of columns in a tile


def _block_kernel(module: ir.Module, dtype: str, operation: str, *, divides: bool) -> Kernel:
    """``block(...)``: the columns of all windows of a block joined, of rows that lie a pitch apart."""
    lanes, size, here = lanes_of(dtype), np.dtype(dtype).itemsize, machine()
    assert here is not None
    tile = partial(_tile, module, dtype, operation, divides=divides)
    heights = (4, 1) if here.registers == 32 else (2, 1)
    whole = {height: tile((height, _WIDEST), masked=False) for height in heights}
    last = {height: [tile((height, q + 1), masked=True) for q in range(_WIDEST)] for height in heights}
    names = ("x", "pitch", "offsets", "taps", "rows", "columns", "y", "y_row", "divisor")
    kernel = Kernel(module, f"block{divides:d}", names)
    x, pitch, offsets, taps, rows, columns, y, y_row, divisor = kernel.arguments

    def all_columns(row: Value, height: int, count: Value) -> None:
        """So many tiles below each other, of every column."""
        now = kernel.variable(0)

        def call(tile: Kernel) -> None:
            at = now.get() * size
            kernel.call(
                tile, x + row * pitch + at, pitch, offsets, taps, y + row * y_row + at, y_row, columns - now.get(),
                divisor, count,
            )  # fmt: skip

        with kernel.while_(lambda: now.get() + _WIDEST * lanes <= columns):
            call(whole[height])
            now.set(now.get() + _WIDEST * lanes)
        rest = columns - now.get()
        for q, tile in enumerate(last[height]):
            with kernel.when((rest > q * lanes) & (rest <= (q + 1) * lanes)):
                call(tile)

    first = kernel.variable(0)
    for height in heights:
        count = (rows - first.get()) // height
        with kernel.when(count > 0):
            all_columns(first.get(), height, count)
            first.set(first.get() + count * height)
    kernel.finish()
    return kernel


def _tile(
    module: ir.Module, dtype: str, operation: str, shape: tuple[int, int], *, divides: bool, masked: bool
) -> Kernel:
    """Rows by vectors of results, so many tiles, one below the other; of the last vector, where it is `masked`, only
    the columns before `width`.
    """
    (height, vectors), lanes, size = shape, lanes_of(dtype), np.dtype(dtype).itemsize
    kernel = Kernel(module, f"tile{height}x{vectors}{'masked' if masked else ''}{divides:d}", _ARGUMENTS)
    given = SimpleNamespace(**dict(zip(_ARGUMENTS, kernel.arguments, strict=True)))
    kind, last = vector(FLOATS[dtype], lanes), vectors - 1
    places = [(row, q) for row in range(height) for q in range(vectors)]

    mask = kernel.lanes_below(given.width - lanes * last, lanes) if masked else None
    with kernel.loop(given.count) as number:
        x, y = (start + number * (row * height) for start, row in ((given.x, given.pitch), (given.y, given.y_row)))

        def loaded(tap: Value, x: Value = x) -> list[Value]:
            start = x + kernel.load(given.offsets, offset=tap * 8)
            return [kernel.load(start + row * given.pitch + q * lanes * size, kind) for row, q in places]

        totals = [kernel.variable(value) for value in loaded(kernel.constant(0))]
        with kernel.loop(given.taps, start=1) as tap:
            for total, value in zip(totals, loaded(tap), strict=True):
                total.set(joined(kernel, operation, total.get(), value))
        for (row, q), total in zip(places, totals, strict=True):
            value = divided(kernel, total.get(), given.divisor) if divides else total.get()
            put(kernel, value, y + row * given.y_row + q * lanes * size, mask if q == last else None)
    kernel.finish()
    return kernel


def _maps_task(module: ir.Module, name: str, dtype: str, operation: str, *, divides: bool) -> str:
    """As many whole maps of an image as a vector has lanes, each in a vector of its own until all are joined."""
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    kernel = Kernel(module, name, ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given, kind = kernel.given(arguments, _MAPS), vector(FLOATS[dtype], lanes)
    many, whole = (given.elements - given.elements % step for step in (_AT_ONCE * lanes, lanes))
    part, nothing = kernel.lanes_below(given.elements - whole, lanes), kernel.constant(_NOTHING[operation], kind)

    def total(plane: Value) -> Value:
        found = kernel.variable(nothing)

        def add(to: Variable, more: Value) -> None:
            to.set(joined(kernel, operation, to.get(), more))

        with kernel.when(many > 0):
            others = [kernel.variable(nothing) for _ in range(_AT_ONCE - 1)]
            with kernel.loop(many, step=_AT_ONCE * lanes) as at:
                for i, one in enumerate([found, *others]):
                    add(one, kernel.load(plane + (at + i * lanes) * size, kind))
            for one in others:
                add(found, one.get())
        with kernel.loop(whole, start=many, step=lanes) as at:
            add(found, kernel.load(plane + at * size, kind))
        rest = take(kernel, plane + whole * size, kind, part)
        return joined(kernel, operation, found.get(), part.where(rest, nothing))

    first_group = item * given.share
    with kernel.loop(kernel.minimum(first_group + given.share, given.count), start=first_group) as group:
        image, first = group // given.groups, (group % given.groups) * lanes
        x = given.x + image * given.x_item
        totals = [total(x + kernel.minimum(first + i, given.channels - 1) * given.x_plane) for i in range(lanes)]
        while len(totals) > 1:  # a pair becomes one vector, whose lanes take turns as the pair's would
            half = len(totals) // 2
            pairs = [kernel.interleaved(totals[i], totals[i + half]) for i in range(half)]
            totals = [joined(kernel, operation, *pair) for pair in pairs]
        result = divided(kernel, totals[0], given.divisor) if divides else totals[0]
        y = given.y + image * given.y_item + first * size
        kernel.store_lanes(result, y, kernel.lanes_below(given.channels - first, lanes))
    kernel.finish()
    return name


_AT_ONCE = 4  # vectors of a map that do not wait for each other
