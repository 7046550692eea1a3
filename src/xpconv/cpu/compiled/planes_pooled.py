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
from xpconv.cpu.compiled.call import LINE, streamed_planes
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Value, vector
from xpconv.cpu.compiled.moves import OUTSIDE, lanes_of, put, take
from xpconv.cpu.compiled.rows import STRIDES, aligning, joined, phase_bytes, rows_kernel, stream_kernel, tap_offsets
from xpconv.cpu.compiled.tile import SUMMED
from xpconv.spec import Array, PoolSpec, Sizes

_WINDOWS = (
    "x", "x_item", "x_plane", "y", "y_item", "y_plane", "y_row", "channels", "planes", "share", "rows", "row_blocks",
    "out_rows", "columns", "column_blocks", "out_columns", "row_stride", "stride", "down", "dilation", "taps", "reach",
    "row_sources", "left", "width", "outside", "pitch", "half", "offsets", "divisor", "streams", "shift", "row_bytes",
)  # fmt: skip
_MAPS = ("x", "x_item", "x_plane", "y", "y_item", "channels", "groups", "elements", "divisor")
_ROWS = 12 << 10  # bytes of rows that are joined before their columns are: a quarter of a level 1 cache
_COLUMNS = 1024  # results of a row at most, where it is cut at all
_ITEM = 100_000  # elements of windows of an item, about
_SINGLE = 200_000  # elements read below which handing over costs more than it brings


class Pooling:
    """A pooling of planes whose columns lie side by side, prepared: as `channelwise.Pooling` is."""

    def __init__(
        self, operation: str, spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, threads_free: int,
        sources: Sources, divisor: float, limit: int,
    ) -> None:  # fmt: skip
        read = spec.batch * spec.channels * math.prod(spec.out_size) * math.prod(spec.window)
        self._team = threads_free if read > _SINGLE else 1
        tables, divides = {"divisor": np.array([divisor], dtype)}, int(divisor != 1)
        if reads_maps(spec, strides[0], dtype):
            task, names = f"maps{divides}", _MAPS
            numbers, self._items, self._scratch = _map_numbers(spec, strides, dtype)
        else:
            task, names = f"{'pairs' if _folds(spec) else 'windows'}{divides}", _WINDOWS
            numbers, self._items, self._scratch = _window_numbers(spec, strides, dtype, self._team, limit // self._team)
            tables |= _window_tables(spec, strides[0], dtype, sources, operation, numbers["half"])
        self._arguments = Arguments(names, numbers, tables)
        compiled = _library(dtype, operation, spec.stride[-1])
        assert compiled is not None
        self._address = compiled.address(task)

    def __call__(self, x: Array, y: Array) -> None:
        """Write the result to `y`."""
        threads.run(self._address, self._arguments.of(x=x, y=y), self._items, self._scratch, self._team)


def takes(spec: PoolSpec, x_strides: Sizes, dtype: str) -> bool:
    """Whether the kernels read planes that lie so."""
    if 0 in (spec.batch, spec.channels, *spec.out_size):
        return False
    if reads_maps(spec, x_strides, dtype):
        return True
    dense = spec.axes <= 2 and x_strides[-2] == np.dtype(dtype).itemsize
    return dense and spec.stride[-1] in STRIDES and max(spec.window) <= SUMMED


def reads_maps(spec: PoolSpec, x_strides: Sizes, dtype: str) -> bool:
    """Whether each window is a whole plane, whose elements all lie side by side."""
    if spec.window != spec.size or math.prod(spec.out_size) > 1 or set(spec.dilation) != {1}:
        return False
    steps = [np.dtype(dtype).itemsize * math.prod(spec.size[axis + 1 :]) for axis in range(spec.axes)]
    return list(x_strides[1:-1]) == steps and not any(any(pads) for pads in spec.padding)


def _folds(spec: PoolSpec) -> bool:
    """Whether the windows of a row are pairs of columns, which all begin on the plane."""
    columns = spec.window[-1], spec.stride[-1], spec.dilation[-1], spec.padding[-1][0]
    return columns == (2, 2, 1, 0) and 2 * (spec.out_size[-1] - 1) < spec.size[-1]


def _down(spec: PoolSpec) -> tuple[int, int, int, int]:
    """Rows of the result, taps, stride and dilation of the first of two axes; a signal is one row."""
    return (1, 1, 1, 1) if spec.axes == 1 else (spec.out_size[0], spec.window[0], spec.stride[0], spec.dilation[0])


def _window_numbers(
    spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, team: int, limit: int
) -> tuple[dict[str, int], int, int]:
    (x_strides, y_strides), size, planes = strides, np.dtype(dtype).itemsize, spec.batch * spec.channels
    (out_rows, down, row_stride, row_dilation), out_columns, stride = _down(spec), spec.out_size[-1], spec.stride[-1]
    parts = -(-2 * team // planes) if team > 1 else 1
    columns = min(out_columns, _COLUMNS)
    if out_rows == 1:
        columns = min(columns, -(-out_columns // parts))
    half = phase_bytes((columns - 1) * stride + spec.reach[-1], stride, dtype)
    held = max(min(_ROWS, limit) // (stride * half), 1)
    rows = -(-out_rows // max(-(-out_rows // held), min(parts, out_rows)))
    row_blocks, column_blocks = -(-out_rows // rows), -(-out_columns // columns)
    share = 1
    if row_blocks * column_blocks == 1:
        each = math.prod(spec.out_size) * math.prod(spec.window)
        import os
        share = max(min(int(os.environ.get('SH','16')), planes // (4 * team)), 1)
    streams = streamed_planes(spec, y_strides, size) and column_blocks == 1
    numbers = {
        "x_item": x_strides[0], "x_plane": x_strides[-1], "y_item": y_strides[0], "y_plane": y_strides[-1],
        "y_row": y_strides[1] if spec.axes == 2 else 0, "channels": spec.channels, "planes": planes, "share": share,
        "rows": rows, "row_blocks": row_blocks, "out_rows": out_rows, "columns": columns,
        "column_blocks": column_blocks, "out_columns": out_columns, "row_stride": row_stride, "stride": stride,
        "row_bytes": x_strides[1] if spec.axes == 2 else 0,
        "down": down, "dilation": row_dilation, "taps": spec.window[-1], "reach": spec.reach[-1],
        "left": spec.padding[-1][0], "width": spec.size[-1], "pitch": stride * half, "half": half, "shift": aligning(spec.padding[-1][0], stride, dtype),
        "streams": int(streams),
    }  # fmt: skip
    scratch = (rows + 1) * stride * half + int(streams) * (rows * out_columns * size + LINE)
    return numbers, -(-planes // share) * row_blocks * column_blocks, scratch


def _window_tables(spec: PoolSpec, x_strides: Sizes, dtype: str, sources: Sources, operation: str, half: int):
    *down, _ = sources(spec)
    lines, step = (down[0], x_strides[1]) if down else (np.zeros(1, np.int64), 0)
    return {
        "row_sources": np.where(lines < 0, OUTSIDE, lines * step),
        "outside": np.full(spec.size[-1] + 1, -math.inf if operation == "largest" else 0.0, dtype),
        "offsets": tap_offsets(spec.window[-1], spec.dilation[-1], spec.stride[-1], half, dtype),
    }


def _map_numbers(spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str) -> tuple[dict[str, int], int, int]:
    groups = -(-spec.channels // lanes_of(dtype))
    numbers = {
        "x_item": strides[0][0], "x_plane": strides[0][-1], "y_item": strides[1][0], "channels": spec.channels,
        "groups": groups, "elements": math.prod(spec.size),
    }  # fmt: skip
    return numbers, groups * spec.batch, 0


# --- The kernels ------------------------------------------------------------------------------------------------------


def _library(dtype: str, operation: str, stride: int) -> Library | None:
    stride = stride if stride in STRIDES else 1
    return library(f"pooled-{dtype}-{operation}-{stride}", partial(_make, dtype=dtype, operation=operation, stride=stride))


def _make(module: ir.Module, *, dtype: str, operation: str, stride: int) -> tuple[str, ...]:
    """The tasks: a block of rows and columns of the result of a plane, or several small planes; several whole maps."""
    read, stream = rows_kernel(module, dtype, operation, stride), stream_kernel(module, dtype)
    names = []
    for divides in (False, True):
        block = _block(module, dtype, operation, divides)
        names += [_windows(module, f"windows{divides:d}", dtype, read, stream, block), _maps(module, dtype, operation, divides)]
        if stride == 2:
            fold = rows_kernel(module, dtype, operation, stride, folded=True, divides=divides)
            names.append(_windows(module, f"pairs{divides:d}", dtype, fold, stream, None))
    return tuple(names)


def _windows(module, name, dtype, read, stream, block) -> str:
    size = np.dtype(dtype).itemsize
    kernel = Kernel(module, name, ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, _WINDOWS)
    column, rest = (item % given.column_blocks) * given.columns, item // given.column_blocks
    row, first = (rest % given.row_blocks) * given.rows, (rest // given.row_blocks) * given.share
    rows = kernel.minimum(given.out_rows - row, given.rows)
    columns = kernel.minimum(given.out_columns - column, given.columns)
    aside = scratch + (given.rows + 1) * given.pitch
    with kernel.loop(kernel.minimum(first + given.share, given.planes), start=first) as plane:
        image, channel = plane // given.channels, plane % given.channels
        x = given.x + image * given.x_item + channel * given.x_plane
        y = given.y + image * given.y_item + channel * given.y_plane + row * given.y_row + column * size
        into = given.streams.equals(1).where(aside, y)
        held = (scratch + given.shift, given.pitch) if block else (into, given.y_row)
        kernel.call(
            read, x, given.row_sources + row * given.row_stride * 8, rows, given.row_stride, given.down, given.dilation,
            column * given.stride, (columns - 1) * given.stride + given.reach, given.left, given.width, given.outside,
            *held, given.half, x + (row + rows) * given.row_stride * given.row_bytes, given.row_stride, given.row_bytes,
            given.divisor,
        )  # fmt: skip
        if block:
            kernel.call(block, *held, given.offsets, given.taps, rows, columns, into, given.y_row, given.divisor)
        with kernel.when(given.streams > 0):
            kernel.call(stream, aside, y, rows * columns * size)
    with kernel.when(given.streams > 0):
        kernel.fence()
    kernel.finish()
    return name


_TILE = ("x", "pitch", "offsets", "taps", "y", "y_row", "width", "divisor")
_WIDEST = 4  # vectors of columns in a tile


def _block(module, dtype, operation, divides) -> Kernel:
    """``block(x, pitch, offsets, taps, rows, columns, y, y_row, divisor)``: columns of joined rows, joined."""
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    here = machine()
    heights = (4, 1) if here.registers == 32 else (2, 1)
    kernel = Kernel(module, f"block{divides:d}", ("x", "pitch", "offsets", "taps", "rows", "columns", "y", "y_row", "divisor"))
    x, pitch, offsets, taps, rows, columns, y, y_row, divisor = kernel.arguments
    row = kernel.variable(0)
    for height in heights:
        whole = _tile(module, dtype, operation, height, _WIDEST, divides=divides, masked=False)
        parts = [_tile(module, dtype, operation, height, q, divides=divides, masked=True) for q in range(1, _WIDEST + 1)]
        with kernel.while_(lambda height=height: row.get() + height <= rows):
            now = kernel.variable(0)

            def call(tile: Kernel) -> None:
                at = now.get() * size
                kernel.call(
                    tile, x + row.get() * pitch + at, pitch, offsets, taps, y + row.get() * y_row + at, y_row,
                    columns - now.get(), divisor,
                )

            with kernel.while_(lambda: now.get() + _WIDEST * lanes <= columns):
                call(whole)
                now.set(now.get() + _WIDEST * lanes)
            rest = columns - now.get()
            for q, tile in enumerate(parts):
                with kernel.when((rest > q * lanes) & (rest <= (q + 1) * lanes)):
                    call(tile)
            row.set(row.get() + height)
    kernel.finish()
    return kernel


def _tile(module, dtype, operation, height, vectors, *, divides, masked) -> Kernel:
    kernel = Kernel(module, f"tile{height}x{vectors}{'m' * masked}{divides:d}", _TILE)
    given = SimpleNamespace(**dict(zip(_TILE, kernel.arguments, strict=True)))
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    kind = vector(FLOATS[dtype], lanes)
    places = [(row, lanes * size * q) for row in range(height) for q in range(vectors)]

    def loaded(tap) -> list[Value]:
        start = given.x + kernel.load(given.offsets, offset=tap * 8)
        return [kernel.load(start + row * given.pitch + place, kind) for row, place in places]

    totals = [kernel.variable(value) for value in loaded(kernel.constant(0))]
    with kernel.loop(given.taps, start=1) as tap:
        for total, value in zip(totals, loaded(tap), strict=True):
            total.set(joined(kernel, operation, total.get(), value))
    mask = kernel.lanes_below(given.width - lanes * (vectors - 1), lanes) if masked else None
    shared = kernel.splat(kernel.load(given.divisor, kind.element), lanes) if divides else None
    for (row, place), total in zip(places, totals, strict=True):
        value = total.get() // shared if divides else total.get()
        put(kernel, value, given.y + row * given.y_row + place, mask if place == lanes * size * (vectors - 1) else None)
    kernel.finish()
    return kernel


def _maps(module, dtype, operation, divides) -> str:
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    kind = vector(FLOATS[dtype], lanes)
    kernel = Kernel(module, f"maps{divides:d}", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, _MAPS)
    image, first = item // given.groups, (item % given.groups) * lanes
    x, last = given.x + image * given.x_item, given.channels - 1
    nothing = kernel.constant(-math.inf if operation == "largest" else 0, kind)
    whole = given.elements - given.elements % lanes
    left = kernel.lanes_below(given.elements - whole, lanes)
    totals = []
    for i in range(lanes):
        start = x + kernel.minimum(first + i, last) * given.x_plane
        total = kernel.variable(nothing)
        with kernel.loop(whole, step=lanes) as at:
            total.set(joined(kernel, operation, total.get(), kernel.load(start + at * size, kind)))
        more = take(kernel, start + whole * size, kind, left)
        if operation == "largest":
            more = left.where(more, nothing)
        totals.append(joined(kernel, operation, total.get(), more))
    while len(totals) > 1:
        half = len(totals) // 2
        totals = [joined(kernel, operation, *kernel.interleaved(totals[i], totals[i + half])) for i in range(half)]
    (total,) = totals
    if divides:
        total = total // kernel.splat(kernel.load(given.divisor, kind.element), lanes)
    mask = kernel.lanes_below(given.channels - first, lanes)
    kernel.store_lanes(total, given.y + image * given.y_item + first * size, mask)
    kernel.finish()
    return f"maps{divides:d}"
