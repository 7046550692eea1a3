"""Filters of single planes, lanes along the last axis: one channel, or every channel of channels-first maps by itself.

A tile is some rows of the result times some vectors of columns. The vectors of an input row are loaded once for all
rows of the tile that read it. Rows are read where they lie, the columns of zeros beside them by masks; those of a
stride of two, of another border or of other strides are gathered first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import BLOCK_BYTES, Arguments, Sources
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.call import Call, streamed_planes
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import OUTSIDE, lanes_of
from xpconv.cpu.compiled.plane_tiles import WIDEST, Taps, is_shared, shapes, taps_of, tiles
from xpconv.cpu.compiled.processor import asks_ahead
from xpconv.cpu.compiled.rows import (
    STRIDES,
    aligning,
    gathered_rows_kernel,
    padded_rows,
    phase_bytes,
    rows_kernel,
    stream_kernel,
    tap_offsets,
)
from xpconv.cpu.compiled.tile import SUMMED, finishing
from xpconv.cpu.compiled.values import I64, Operand, Value
from xpconv.cpu.compiled.weights import PackedBias, Packing, taps_order
from xpconv.cpu.lines import LINE
from xpconv.spec import Array, ConvSpec, Sizes

_ARRAYS = ("x", "w", "y", "bias")
FIELDS = (
    *_ARRAYS, "x_item", "x_plane", "x_row", "x_step", "y_item", "y_plane", "y_row", "taps_down", "taps_across",
    "offsets", "chunk", "finish", "channels", "planes", "share", "rows", "row_blocks", "out_rows", "columns",
    "column_blocks", "out_columns", "stride", "dilation", "reach", "step_across", "reach_across", "apart", "shared",
    "pitch", "half", "shift", "in_place", "plain", "above", "height", "left", "width", "row_sources", "runs",
    "run_count", "outside", "gathered", "held", "streams", "aside", "table", "below",
)  # fmt: skip
_SHARE = 16  # small planes of an item at most: what is asked for ahead is the same thread's next plane
_BELOW_BYTES = 1 << 12  # of rows of results whose tiles of some columns are computed in one go
_WAYS, _SETS = 8, 1024  # rows so many bytes apart meet in few sets of a level 1 cache, each of so many lines


@dataclass(frozen=True)
class _Cut:
    """Rows and columns of a block of the result, and the memory that the input of one takes."""

    rows: int
    columns: int
    pitch: int  # bytes from one row of the input to the next, where it is gathered
    half: int  # and from the first of the columns that a stride treats alike to those of the next
    nbytes: int
    table: int  # of them, the last: where the rows begin


class Plane:
    """A convolution with one channel in each group and one filter, the columns of its result side by side, prepared."""

    def __init__(self, call: Call) -> None:
        spec, dtype = call.spec, call.dtype
        cut = _cut(spec, dtype, _parts(call), call.limit // (2 * call.team))
        streams = _is_streamed(call, cut)
        numbers = _numbers(call, cut) | {"streams": int(streams)}
        planes, blocks = numbers["planes"], numbers["row_blocks"] * numbers["column_blocks"]
        share = max(min(_SHARE, planes // (4 * call.team)), 1) if blocks == 1 else 1
        self._items, self._call = -(-planes // share) * blocks, call
        self._scratch = (2 if streams or numbers["held"] else 1) * cut.nbytes
        tables = _tables(spec, call.x_strides, dtype, call.sources, call.fill, cut)
        if call.activation is not None:
            tables["finish"] = finishing(call.activation, dtype, call.leak)
        numbers |= {"share": share, "run_count": len(tables["runs"])}
        self._arguments = Arguments(FIELDS, len(_ARRAYS), numbers, tables)
        down, across, *_ = _two_axes(spec)
        by_columns = taps_order(spec, call.w_strides).reshape(down, across).T.reshape(-1)  # as taps are added up
        self._pack = Packing(dtype, spec.channels, 1, 1, by_columns, call.w_strides[-1])
        self._bias = PackedBias(dtype, 1, spec.channels, spec.channels)
        compiled = _library(dtype, spec.stride[-1], _taps(spec))
        assert compiled is not None
        self._address = compiled.address("planes")

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`, where no value reaches further than its windows."""
        weight, biases = self._pack(w), self._bias(bias)
        arguments = self._arguments.of(x, weight, y, biases)
        threads.run(self._address, arguments, self._items, self._scratch, self._call.team)
        return True


def takes(dtype: str, spec: ConvSpec, limit: int) -> bool:
    """Whether the kernels take such a convolution here; the columns of its result then lie side by side."""
    if spec.axes > 2 or not spec.filters_planes or spec.input_dilation:
        return False
    if 0 in (spec.batch, spec.channels, *spec.out_size) or not (spec.layout == "channels_first" or spec.channels == 1):
        return False
    stride = spec.stride[-1]
    if spec.channels > 1 and 4 * spec.out_size[-1] < (3 if stride == 1 else 8) * lanes_of(dtype):
        return False  # most lanes are empty: turned, 5x5s2 96@28 took half the time, 3x3 960@7 two thirds
    return stride in STRIDES and workspace(dtype, spec) <= limit


def workspace(dtype: str, spec: ConvSpec) -> int:
    """The least bytes that all threads together take: the input of a row of a block, twice."""
    return 2 * threads.thread_count() * _cut(spec, dtype, 1, 0).nbytes


def _parts(call: Call) -> int:
    """Blocks that a plane should have at least, so that there is something for everybody."""
    return -(-2 * call.team // (call.spec.batch * call.spec.channels)) if call.team > 1 else 1


def _numbers(call: Call, cut: _Cut) -> dict[str, int]:
    """What the kernels are told, but for addresses."""
    spec, size, (x_item, *x_steps, x_plane) = call.spec, call.itemsize, call.x_strides
    down, across, out, (stride, dilation) = _two_axes(spec)
    apart, shared = (dilation // stride, 1) if dilation % stride == 0 else (1, 0)
    *above, (left, _) = spec.padding
    x_row = x_steps[0] if spec.axes == 2 else 0
    meet = down > _WAYS and x_row % _SETS == 0  # reading so many such rows at once took a quarter longer
    dense, step, plain = x_steps[-1] == size, spec.stride[-1], spec.padding_mode in ("zeros", "constant")
    return {
        "x_item": x_item, "x_plane": x_plane, "x_row": x_row, "x_step": x_steps[-1],
        "in_place": int(dense and plain and call.fill == 0 and step == 1 and not meet),
        "y_item": call.y_strides[0], "y_plane": call.y_strides[-1],
        "y_row": call.y_strides[1] if spec.axes == 2 else 0, "taps_down": down, "taps_across": across,
        "chunk": max(SUMMED // down, 1), "channels": spec.channels,
        "planes": spec.batch * spec.channels, "rows": cut.rows, "row_blocks": -(-out[0] // cut.rows),
        "out_rows": out[0], "columns": cut.columns, "column_blocks": -(-out[1] // cut.columns),
        "out_columns": out[1], "stride": stride, "dilation": dilation, "reach": (down - 1) * dilation + 1,
        "step_across": step, "reach_across": spec.reach[-1], "apart": apart, "shared": shared, "pitch": cut.pitch,
        "half": cut.half, "shift": aligning(left, step, call.dtype), "plain": int(dense and plain),
        "held": 0 if step == 1 or (dense and plain) else cut.nbytes, "aside": cut.nbytes,
        "table": cut.nbytes - cut.table, "below": max(_BELOW_BYTES // (cut.columns * size), 1),
        "above": above[0][0] if above else 0, "height": spec.size[0] if above else 1, "left": left,
        "width": spec.size[-1],
    }  # fmt: skip


def _two_axes(spec: ConvSpec) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """Taps down and across, the size of the result, and the rows' stride and dilation; a signal is one row."""
    if spec.axes == 1:
        return 1, spec.window[0], (1, spec.out_size[0]), (1, 1)
    down, across = spec.window
    return down, across, (spec.out_size[0], spec.out_size[1]), (spec.stride[0], spec.dilation[0])


def _taps(spec: ConvSpec) -> Taps:
    """What there are kernels for of the filter."""
    down, across, *_ = _two_axes(spec)
    return taps_of(down, across)


def _cut(spec: ConvSpec, dtype: str, parts: int, nbytes: int) -> _Cut:
    """Blocks whose input fits the cache and `nbytes`, where at all it can, at least so many for each plane."""
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    down, _, out, (stride, dilation) = _two_axes(spec)
    reach, across, step, widest = (down - 1) * dilation + 1, spec.reach[-1], spec.stride[-1], lanes * WIDEST
    most = max(BLOCK_BYTES // (2 * reach * step * size), 2 * across, 4 * widest)  # columns; more than are read twice
    columns = _even(out[1], -(-out[1] // most) if out[0] > 1 else max(-(-out[1] // most), parts), widest)
    half = phase_bytes((columns - 1) * step + across, step, dtype)
    pitch = (step * half // LINE | 1) * LINE  # of odd lines, so that rows do not meet in the same sets of a cache
    held = (min(nbytes, BLOCK_BYTES) // pitch - reach) // stride + 1
    held = max(held, min(-(-reach // stride), (nbytes // pitch - reach) // stride + 1), 1)
    rows = _even(out[0], max(-(-out[0] // held), parts if out[0] > 1 else 1), 1)
    height = (rows - 1) * stride + reach
    return _Cut(rows, columns, pitch, half, height * (pitch + 8) + LINE, height * 8)


def _is_streamed(call: Call, cut: _Cut) -> bool:
    """Whether results are put aside and stored past the caches block by block: with the input they do not fit there."""
    spec, whole_rows = call.spec, cut.columns == call.spec.out_size[-1]
    held = cut.rows * cut.columns * call.itemsize <= cut.nbytes
    return whole_rows and held and streamed_planes(spec, call.y_strides, call.itemsize)


def _even(count: int, parts: int, multiple: int) -> int:
    """The size of about so many equal parts of a count, whole multiples of a number."""
    return min(-(-count // (parts * multiple)) * multiple, count)


def _tables(
    spec: ConvSpec, x_strides: Sizes, dtype: str, sources: Sources, fill: float, cut: _Cut
) -> dict[str, Array]:
    """Where rows of the padded plane come from, or are gathered, and where taps lie, all in bytes."""
    rows = padded_rows(spec, x_strides, dtype, sources, fill)
    return rows | {
        "offsets": tap_offsets(spec.window[-1], spec.dilation[-1], spec.stride[-1], cut.half, dtype),
        "gathered": np.arange(len(rows["row_sources"]), dtype=np.int64) * cut.pitch,
    }


# --- The kernels ------------------------------------------------------------------------------------------------------


def _library(dtype: str, stride: int, taps: Taps) -> Library | None:
    name = f"plane-{dtype}-{stride}-{taps.down}-{taps.long:d}"
    return library(name, partial(_make, dtype=dtype, stride=stride, taps=taps))


def is_ready(dtype: str, spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, spec.stride[-1], _taps(spec)) is not None


def _make(module: ir.Module, *, dtype: str, stride: int, taps: Taps) -> tuple[str, ...]:
    """The task: one block of rows and columns of the result of a plane, or several small planes."""
    gather, block = gathered_rows_kernel(module, dtype), _block_kernel(module, dtype, taps, guarded=stride == 1)
    read, stream = rows_kernel(module, dtype, "added", stride), stream_kernel(module, dtype)
    kernel = Kernel(module, "planes", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    place = _Place(*(kernel.memory(I64, 1) for _ in range(4)))
    given, size = kernel.given(arguments, FIELDS), np.dtype(dtype).itemsize
    column, rest = (item % given.column_blocks) * given.columns, item // given.column_blocks
    row, first = (rest % given.row_blocks) * given.rows, (rest // given.row_blocks) * given.share
    rows = kernel.minimum(given.out_rows - row, given.rows)
    columns = kernel.minimum(given.out_columns - column, given.columns)
    with kernel.loop(kernel.minimum(first + given.share, given.planes), start=first) as plane:
        image, channel = plane // given.channels, plane % given.channels
        x = given.x + image * given.x_item + channel * given.x_plane
        readers, later = (gather, read), (plane > first).where(kernel.constant(1), kernel.constant(0))
        _open(kernel, given, x, (row, rows), (column, columns), (scratch, place), readers, size, later)
        y = given.y + image * given.y_item + channel * given.y_plane + row * given.y_row + column * size
        aside = scratch + given.aside
        kernel.call(
            block, arguments, channel, scratch + given.table, *place.values(kernel),
            given.streams.equals(1).where(aside, y), rows, columns,
        )  # fmt: skip
        with kernel.when(given.streams > 0):
            kernel.call(stream, aside, y, rows * columns * size)
    with kernel.when(given.streams > 0):
        kernel.fence()
    kernel.finish()
    return ("planes",)


def _block_kernel(module: ir.Module, dtype: str, taps: Taps, *, guarded: bool) -> Kernel:
    """``block(...)``: all tiles of a block, whose input rows lie a step apart, and may have to be `guarded`."""
    widths, size, lanes = shapes(taps), np.dtype(dtype).itemsize, lanes_of(dtype)
    made = {height: tiles(module, dtype, taps, height, most, guarded=guarded) for height, most in widths.items()}
    names = ("arguments", "channel", "table", "begin", "limit", "ahead", "fresh", "y", "rows", "columns")
    kernel = Kernel(module, "block", names)
    arguments, channel, table, begin, limit, ahead, fresh, y, rows, columns = kernel.arguments
    given, asks = kernel.given(arguments, FIELDS), asks_ahead()
    w, bias = given.w + channel * (given.taps_down * given.taps_across * size), given.bias + channel * size

    def all_columns(line: Value, height: int, count: Value) -> None:
        """So many tiles below each other, of every column."""
        now, sources, target = kernel.variable(0), table + line * given.stride * 8, y + line * given.y_row
        most, (whole, last) = widths[height], made[height]
        with kernel.loop(fresh * height * count if asks else 0, step=LINE) as near:
            kernel.prefetch(ahead + line * fresh + near)

        def call(tile: Kernel) -> None:
            at = now.get() * size
            kernel.call(
                tile, sources, at, given.taps_down, given.taps_across, given.dilation * 8, given.offsets, given.chunk,
                w, target + at, given.apart * given.y_row, columns - now.get(), begin + now.get(), limit, given.finish,
                bias, count, given.apart * given.stride * (height * 8), given.apart * given.y_row * height,
            )  # fmt: skip

        with kernel.while_(lambda: now.get() + most * lanes <= columns):
            first, stop = begin + now.get(), begin + now.get() + (most * lanes - 1 + given.reach_across)
            with kernel.either((first >= 0) & (stop <= limit)) as (inside, edge):
                with inside:
                    call(whole)
                with edge:
                    call(last[most])
            now.set(now.get() + most * lanes)
        fewer, rest = 0, columns - now.get()
        for vectors, tile in last.items():
            with kernel.when((rest > fewer * lanes) & (rest <= vectors * lanes)):
                call(tile)
            fewer = vectors

    with kernel.loop(given.apart) as phase:  # rows that are so far apart read the same rows of the input
        first, count = kernel.variable(0), (rows - phase + given.apart - 1) // given.apart
        for height in widths:
            shares = is_shared(given, taps, height)
            with kernel.while_(lambda height=height, shares=shares: shares & (first.get() + height <= count)):
                some = kernel.minimum((count - first.get()) // height, kernel.at_least(given.below // height, 1))
                all_columns(phase + first.get() * given.apart, height, some)
                first.set(first.get() + some * height)
    kernel.finish()
    return kernel


@dataclass(frozen=True)
class _Place:
    """Where, in the plane's rows, a block's begin, and before which column they end; what is read next."""

    begin: Value
    limit: Value
    ahead: Value
    fresh: Value

    def put(self, kernel: Kernel, *values: Operand) -> None:
        for place, value in zip((self.begin, self.limit, self.ahead, self.fresh), values, strict=True):
            kernel.store(value if isinstance(value, Value) else kernel.constant(value), place)

    def values(self, kernel: Kernel) -> list[Value]:
        return [kernel.load(place) for place in (self.begin, self.limit, self.ahead, self.fresh)]


def _open(
    kernel: Kernel, given: SimpleNamespace, x: Value, down: tuple[Value, Value], across: tuple[Value, Value],
    memory: tuple[Value, _Place], readers: tuple[Kernel, Kernel], size: int, is_filled: Value,
) -> None:  # fmt: skip
    """A table of where the rows of a block begin, gathered where they have to be."""
    (row, rows), (column, columns), (gather, read), (scratch, place) = down, across, readers, memory
    top, height, table = row * given.stride, (rows - 1) * given.stride + given.reach, scratch + given.table
    first, width = column * given.step_across, (columns - 1) * given.step_across + given.reach_across
    begin, next_row = first - given.left, x + (top - given.above + rows * given.stride) * given.x_row
    rows_at, into = given.row_sources + top * 8, scratch + given.shift
    with kernel.either(given.in_place.equals(1)) as (inside, other):
        with inside:
            with kernel.loop(height) as i:
                source = kernel.load(rows_at, offset=i * 8)
                line = source.equals(OUTSIDE).where(given.outside, x + source)
                kernel.store(line + begin * size, table, i * 8)
            place.put(kernel, begin, given.width, next_row, given.stride * given.x_row)
        with other:
            with kernel.either(given.plain > 0) as (plain, any_way):
                with plain:
                    kernel.call(
                        read, x, rows_at, height, 1, 1, 1, first, width, given.left, given.width, given.outside, into,
                        given.pitch, given.half, next_row, 1, given.x_row, 0, is_filled,
                    )  # fmt: skip
                with any_way:
                    kernel.call(
                        gather, x, rows_at, height, given.runs, given.run_count, given.x_step, first, width,
                        given.outside, into + given.held, given.pitch,
                    )  # fmt: skip
                    with kernel.when(given.held > 0):
                        kernel.call(
                            read, into + given.held, given.gathered, height, 1, 1, 1, 0, width, 0, width,
                            given.outside, into, given.pitch, given.half, 0, 0, 0, 0, 0,
                        )  # fmt: skip
            with kernel.loop(height) as i:
                kernel.store(into + i * given.pitch, table, i * 8)
            place.put(kernel, 0, _ANYWHERE, 0, 0)


_ANYWHERE = 1 << 30  # columns: of rows that are gathered all may be read
