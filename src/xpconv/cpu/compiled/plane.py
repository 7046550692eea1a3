"""Filters of single planes, lanes along the last axis: one channel, or every channel of channels-first maps by itself.

A tile is some rows of the result times some vectors of columns. The vectors of an input row are loaded once for all
rows of the tile that read it. Of an input's blocks, those that padding does not reach are read where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import BLOCK_BYTES, Arguments, Sources, runs_of
from xpconv.cpu.compiled.build import Library, library, machine
from xpconv.cpu.compiled.call import Call
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Value, Variable, vector
from xpconv.cpu.compiled.moves import OUTSIDE, copy_kernel, fill_kernel, lanes_of, put, take
from xpconv.cpu.compiled.tile import SUMMED, Finish, finishing
from xpconv.cpu.compiled.weights import PackedBias, Packing, taps_order
from xpconv.spec import Array, ConvSpec, Sizes

_ARRAYS = ("x", "w", "y", "bias")
FIELDS = (
    *_ARRAYS, "x_item", "x_plane", "x_row", "x_step", "y_item", "y_plane", "y_row", "taps_down", "taps_across",
    "tap_step", "chunk", "finish", "channels", "planes", "share", "rows", "row_blocks", "out_rows", "columns",
    "column_blocks", "out_columns", "stride", "dilation", "reach", "overlap", "apart", "shared", "pitch", "in_place",
    "above", "height", "left", "width", "row_sources", "runs", "run_count", "outside",
)  # fmt: skip
_ITEM = 50_000  # products of an item of several planes: taking one takes as long as a small plane
_WAYS, _SETS = 8, 1024  # rows so many bytes apart meet in few sets of a level 1 cache, each of so many lines


@dataclass(frozen=True)
class _Cut:
    """Rows and columns of a block of the result, and the memory that the input of one takes."""

    rows: int
    columns: int
    pitch: int  # bytes from one gathered row to the next
    nbytes: int


class Plane:
    """A convolution with one channel in each group and one filter, the columns of its result side by side, prepared."""

    def __init__(self, call: Call) -> None:
        spec, dtype = call.spec, call.dtype
        cut = _cut(spec, dtype, _parts(call), call.limit // (2 * call.team))
        numbers = _numbers(call, cut)
        planes, blocks = numbers["planes"], numbers["row_blocks"] * numbers["column_blocks"]
        share = max(min(_ITEM * planes // call.products, planes // (4 * call.team)), 1) if blocks == 1 else 1
        self._items, self._scratch, self._call = -(-planes // share) * blocks, cut.nbytes, call
        tables = _tables(spec, call.x_strides, dtype, call.sources, call.fill)
        tables["finish"] = finishing(call.activation, dtype, call.leak)
        numbers |= {"share": share, "run_count": len(tables["runs"])}
        self._arguments = Arguments(FIELDS, len(_ARRAYS), numbers, tables)
        down, across, *_ = _two_axes(spec)
        by_columns = taps_order(spec, call.w_strides).reshape(down, across).T.reshape(-1)  # as taps are added up
        self._pack = Packing(dtype, spec.channels, 1, 1, by_columns, call.w_strides[-1])
        self._bias = PackedBias(dtype, 1, spec.channels, spec.channels)
        compiled = _library(dtype)
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
    return spec.stride[-1] == 1 and workspace(dtype, spec) <= limit


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
    return {
        "x_item": x_item, "x_plane": x_plane, "x_row": x_row, "x_step": x_steps[-1],
        "in_place": int(x_steps[-1] == size and not meet), "y_item": call.y_strides[0], "y_plane": call.y_strides[-1],
        "y_row": call.y_strides[1] if spec.axes == 2 else 0, "taps_down": down, "taps_across": across,
        "tap_step": spec.dilation[-1] * size, "chunk": max(SUMMED // down, 1), "channels": spec.channels,
        "planes": spec.batch * spec.channels, "rows": cut.rows, "row_blocks": -(-out[0] // cut.rows),
        "out_rows": out[0], "columns": cut.columns, "column_blocks": -(-out[1] // cut.columns),
        "out_columns": out[1], "stride": stride, "dilation": dilation, "reach": (down - 1) * dilation + 1,
        "overlap": spec.reach[-1] - 1, "apart": apart, "shared": shared, "pitch": cut.pitch,
        "above": above[0][0] if above else 0, "height": spec.size[0] if above else 1, "left": left,
        "width": spec.size[-1],
    }  # fmt: skip


def _two_axes(spec: ConvSpec) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """Taps down and across, the size of the result, and the rows' stride and dilation; a signal is one row."""
    if spec.axes == 1:
        return 1, spec.window[0], (1, spec.out_size[0]), (1, 1)
    down, across = spec.window
    return down, across, (spec.out_size[0], spec.out_size[1]), (spec.stride[0], spec.dilation[0])


def _cut(spec: ConvSpec, dtype: str, parts: int, nbytes: int) -> _Cut:
    """Blocks whose input fits the cache and `nbytes`, where at all it can, at least so many for each plane."""
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    down, _, out, (stride, dilation) = _two_axes(spec)
    reach, overlap, widest = (down - 1) * dilation + 1, spec.reach[-1] - 1, lanes * _WIDEST
    most = max(BLOCK_BYTES // (2 * reach * size), 2 * overlap, 4 * widest)  # columns; more rows than are read twice
    columns = _even(out[1], -(-out[1] // most) if out[0] > 1 else max(-(-out[1] // most), parts), widest)
    lines = -(-(columns + overlap) * size // 64)
    pitch = (lines + 1 - lines % 2) * 64  # of odd lines, so that rows do not meet in the same sets of a cache
    held = (min(nbytes, BLOCK_BYTES) // pitch - reach) // stride + 1
    held = max(held, min(-(-reach // stride), (nbytes // pitch - reach) // stride + 1), 1)
    rows = _even(out[0], max(-(-out[0] // held), parts if out[0] > 1 else 1), 1)
    return _Cut(rows, columns, pitch, ((rows - 1) * stride + reach) * pitch)


def _even(count: int, parts: int, multiple: int) -> int:
    """The size of about so many equal parts of a count, whole multiples of a number."""
    return min(-(-count // (parts * multiple)) * multiple, count)


def _tables(spec: ConvSpec, x_strides: Sizes, dtype: str, sources: Sources, fill: float) -> dict[str, Array]:
    """Where rows of the padded plane come from, and the runs of each, all in bytes; what lies outside."""
    *down, across = sources(spec)
    rows = down[0] if down else np.zeros(1, np.int64)
    line = np.where(across < 0, OUTSIDE, across * x_strides[-2])
    return {
        "row_sources": np.where(rows < 0, OUTSIDE, rows * (x_strides[-3] if down else 0)),
        "runs": runs_of(line, x_strides[-2]),
        "outside": np.array([fill], dtype),
    }


# --- The kernels ------------------------------------------------------------------------------------------------------


def _shapes() -> dict[int, int]:
    """Rows of a tile, and the vectors of columns that then fill the registers with sums."""
    here = machine()
    assert here is not None
    return {4: 4, 2: 6, 1: _WIDEST} if here.registers == 32 else {4: 2, 2: 3, 1: _WIDEST}


_WIDEST = 8


def is_ready(dtype: str, _spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"plane-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: one block of rows and columns of the result of a plane, or several small planes."""
    gather, block = _gather_kernel(module, dtype), _block_kernel(module, dtype)
    kernel = Kernel(module, "planes", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given, size = kernel.given(arguments, FIELDS), np.dtype(dtype).itemsize
    column, rest = (item % given.column_blocks) * given.columns, item // given.column_blocks
    row, first = (rest % given.row_blocks) * given.rows, (rest // given.row_blocks) * given.share
    rows = kernel.minimum(given.out_rows - row, given.rows)
    columns = kernel.minimum(given.out_columns - column, given.columns)
    with kernel.loop(kernel.minimum(first + given.share, given.planes), start=first) as plane:
        image, channel = plane // given.channels, plane % given.channels
        x = given.x + image * given.x_item + channel * given.x_plane
        source, step = _opened(kernel, given, x, (row, rows), (column, columns), scratch, gather, size)
        y = given.y + image * given.y_item + channel * given.y_plane + row * given.y_row + column * size
        kernel.call(block, arguments, channel, source, step, y, rows, columns)
    kernel.finish()
    return ("planes",)


def _block_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``block(...)``: all tiles of a block, whose input rows lie a step apart."""
    shapes, size, lanes = _shapes(), np.dtype(dtype).itemsize, lanes_of(dtype)
    wide = {height: _tile(module, dtype, height, vectors, masked=False) for height, vectors in shapes.items()}
    last = {
        height: {q: _tile(module, dtype, height, q, masked=True) for q in sorted({1, 2, vectors})}
        for height, vectors in shapes.items()
    }
    kernel = Kernel(module, "block", ("arguments", "channel", "source", "step", "y", "rows", "columns"))
    arguments, channel, source, step, y, rows, columns = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    w, bias = given.w + channel * (given.taps_down * given.taps_across * size), given.bias + channel * size

    def all_columns(line: Value, height: int) -> None:
        now, width = kernel.variable(0), shapes[height] * lanes
        x, target = source + line * given.stride * step, y + line * given.y_row

        def call(tile: Kernel) -> None:
            at = now.get() * size
            kernel.call(
                tile, x + at, given.taps_down, given.taps_across, given.dilation * step, given.tap_step, given.chunk, w,
                target + at, given.apart * given.y_row, columns - now.get(), given.finish, bias,
            )  # fmt: skip

        with kernel.while_(lambda: now.get() + width <= columns):
            call(wide[height])
            now.set(now.get() + width)
        for vectors, tile in last[height].items():
            with kernel.when((now.get() < columns) & (columns <= now.get() + vectors * lanes)):
                call(tile)
                now.set(columns)

    with kernel.loop(given.apart) as phase:  # rows that are so far apart read the same rows of the input
        first, count = kernel.variable(0), (rows - phase + given.apart - 1) // given.apart
        for height in shapes:
            shares = given.shared * given.taps_down >= (max(height - 1, 2) if height > 1 else 0)
            with kernel.while_(lambda height=height, shares=shares: shares & (first.get() + height <= count)):
                all_columns(phase + first.get() * given.apart, height)
                first.set(first.get() + height)
    kernel.finish()
    return kernel


def _opened(
    kernel: Kernel, given: SimpleNamespace, x: Value, down: tuple[Value, Value], across: tuple[Value, Value],
    scratch: Value, gather: Kernel, size: int,
) -> tuple[Value, Value]:  # fmt: skip
    """Where the input of a block lies, gathered where it has to be, and the bytes between its rows."""
    (row, rows), (first, columns) = down, across
    top, height, width = row * given.stride, (rows - 1) * given.stride + given.reach, columns + given.overlap
    below = (top >= given.above) & (top + height <= given.above + given.height)
    within = (first >= given.left) & (first + width <= given.left + given.width)
    source = kernel.variable(x + (top - given.above) * given.x_row + (first - given.left) * size)
    step = kernel.variable(given.x_row)
    with kernel.either(given.in_place.equals(1) & below & within) as (inside, other):
        with inside:
            pass
        with other:
            kernel.call(
                gather, x, given.row_sources + top * 8, height, given.runs, given.run_count, given.x_step, first, width,
                given.outside, scratch, given.pitch,
            )  # fmt: skip
            source.set(scratch)
            step.set(given.pitch)
    return source.get(), step.get()


def _gather_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``gather(...)``: a part of padded rows, side by side, rows a pitch apart."""
    fill, copy, size, element = fill_kernel(module, dtype), copy_kernel(module, dtype), _size(dtype), FLOATS[dtype]
    names = ("x", "rows", "count", "runs", "run_count", "step", "first", "columns", "outside", "to", "pitch")
    kernel = Kernel(module, "gather", names)
    x, rows, count, runs, run_count, step, first, columns, outside, to, pitch = kernel.arguments
    stop, at_once = first + columns, columns < _SHORT // size
    with kernel.when(at_once):
        kernel.call(fill, outside, to, count * pitch // size)
    with kernel.loop(count) as row:
        line, target, position = kernel.load(rows, offset=row * 8), to + row * pitch, kernel.variable(0)
        with kernel.loop(run_count) as run:
            begin, length = kernel.load(runs, offset=run * 16), kernel.load(runs, offset=run * 16 + 8)
            start, end = position.get(), position.get() + length
            low, part = (start < first).where(first, start), kernel.variable(0)
            part.set(kernel.minimum(end, stop) - low)
            into, source = target + (low - first) * size, x + line + begin + (low - start) * step
            padding = line + begin < OUTSIDE // 2
            with kernel.when((part.get() > 0) & (padding & at_once).equals(0)), kernel.either(padding) as (yes, no):
                with yes:
                    kernel.call(fill, outside, into, part.get())
                with no, kernel.either(step.equals(size)) as (dense, spread):
                    with dense:
                        kernel.call(copy, source, into, part.get())
                    with spread, kernel.loop(part.get()) as i:
                        kernel.store(kernel.load(source + i * step, element), into + i * size)
            position.set(end)
    kernel.finish()
    return kernel


_SHORT = 1024  # bytes of a row below which all are filled at once before they are copied


def _size(dtype: str) -> int:
    return np.dtype(dtype).itemsize


_ARGUMENTS = (
    "x", "taps_down", "taps_across", "tap_down", "tap_across", "chunk", "w", "y", "y_step", "width", "finish", "bias",
)  # fmt: skip


def _tile(module: ir.Module, dtype: str, height: int, vectors: int, *, masked: bool) -> Kernel:
    """Rows of the result that read the same rows of the input, shifted by one tap each; of `masked` columns `width`.

    Every sum is over the taps of a column, column after column, whatever the tile.
    """
    kernel = Kernel(module, f"tile{height}x{vectors}{'masked' if masked else ''}", _ARGUMENTS)
    given = SimpleNamespace(**dict(zip(_ARGUMENTS, kernel.arguments, strict=True)))
    element, size, lanes = FLOATS[dtype], _size(dtype), lanes_of(dtype)
    masks = [kernel.lanes_below(given.width - lanes * q, lanes) if masked else None for q in range(vectors)]
    zeros = kernel.constant(0, vector(element, lanes))
    totals = [[kernel.variable(zeros) for _ in range(vectors)] for _ in range(height)]
    with kernel.loop(given.taps_across, step=given.chunk) as first:
        sums = [[kernel.variable(zeros) for _ in range(vectors)] for _ in range(height)]
        with kernel.loop(kernel.minimum(first + given.chunk, given.taps_across), start=first) as across:
            row = kernel.variable(given.x + across * given.tap_across)
            weight = kernel.variable(given.w + across * given.taps_down * size)

            def add(which: Sequence[int]) -> None:
                values = [take(kernel, row.get() + q * lanes * size, zeros.type, mask) for q, mask in enumerate(masks)]
                for y in which:
                    factor = kernel.splat(kernel.load(weight.get() - y * size, element), lanes)
                    for total, value in zip(sums[y], values, strict=True):
                        total.set(kernel.fma(value, factor, total.get()))
                row.set(row.get() + given.tap_down)
                weight.set(weight.get() + size)

            for i in range(1, height):
                add(range(i))
            with kernel.loop(given.taps_down - (height - 1)):
                add(range(height))
            for i in range(1, height):
                add(range(i, height))
        _each(totals, sums, lambda total, part: total.set(total.get() + part.get()))
    finished = Finish(kernel, given.finish, element, lanes)
    bias = kernel.splat(kernel.load(given.bias, element), lanes)
    for y, row_totals in enumerate(totals):
        for q, (total, mask) in enumerate(zip(row_totals, masks, strict=True)):
            put(kernel, finished(total.get(), bias), given.y + y * given.y_step + q * lanes * size, mask)
    kernel.finish()
    return kernel


def _each(
    first: list[list[Variable]], second: list[list[Variable]], what: Callable[[Variable, Variable], None]
) -> None:
    for row, other in zip(first, second, strict=True):
        for one, two in zip(row, other, strict=True):
            what(one, two)
