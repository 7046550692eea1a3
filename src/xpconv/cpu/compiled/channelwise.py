"""What every channel does by itself, lanes along the channels: depthwise convolution, max and sum pooling.

Tables say where windows and taps begin, as in `direct`, or, of two axes, where each row and each column lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import ahead, blocks, placed, threads, turned_blocks
from xpconv.cpu.compiled.blocks import Arguments, Sources, blocks_of
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.call import Call, in_lines, storing, storing_now
from xpconv.cpu.compiled.channelwise_tiles import Taps, go_alone, heights, shapes, taps_of, tiles
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.job import Job, as_one
from xpconv.cpu.compiled.moves import gather_kernel, lanes_of, transpose_kernel
from xpconv.cpu.compiled.processor import asks_ahead
from xpconv.cpu.compiled.tile import each_tile, finishing
from xpconv.cpu.compiled.turned_blocks import turn_back
from xpconv.cpu.compiled.values import Operand, Value
from xpconv.cpu.compiled.weights import PackedBias, Packing, taps_order
from xpconv.cpu.plan import READ_SINGLE
from xpconv.cpu.stripes import Stripe, narrowed, vector_units
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

_ARRAYS = ("x", "y", "w", "bias")
_OWN = (
    "pixels", "results", "taps", "tap_count", "step", "segment", "channels", "w_step", "finish", "divisor", "streams",
    "alone",
)  # fmt: skip
FIELDS = (*_ARRAYS, *blocks.FIELDS, *turned_blocks.FIELDS, *_OWN, *placed.FIELDS, *ahead.FIELDS)


class Depthwise:
    """A convolution with one channel in each group and one filter, prepared."""

    def __init__(self, call: Call) -> None:
        spec, lanes = call.spec, lanes_of(call.dtype)
        width = -(-spec.channels // lanes) * lanes
        order = taps_order(spec, call.w_strides)
        self._pack = Packing(call.dtype, 1, spec.channels, width, order, call.w_strides[-1])
        self._bias = PackedBias(call.dtype, 1, spec.channels, width)
        activated, strides = call.activation is not None, (call.x_strides, call.y_strides)
        finish = {"finish": finishing(call.activation, call.dtype, call.leak)} if activated else {}
        stripes = _stripes(call.dtype, spec, call.limit)
        jobs = [
            _job(
                "multiplied", stripe.spec, strides, call.dtype, call.threads, call.sources_of(stripe), call.fill,
                call.limit, finish, spec,
            )
            for stripe in stripes
        ]  # fmt: skip
        begins = [(x, y, 0, 0) for x, y in (stripe.begins(*strides) for stripe in stripes)]
        self._job = as_one(jobs, begins)

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`, where no value reaches further than its windows."""
        self._job(x, y, self._pack(w), self._bias(bias))
        return True


def pooling(
    operation: str, spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, threads_free: int, sources: Sources,
    divisor: float, limit: int,
) -> Job:  # fmt: skip
    """Of every window of x (N, *size, C) the "largest" element, a NaN where there is one, or all "added" and divided.

    Padding never wins and adds nothing. The job takes x and y, which lie as the strides say, in whatever shape.
    """
    outside, divide = -math.inf if operation == "largest" else 0.0, {"divisor": np.array([divisor], dtype)}
    return _job(operation, spec, strides, dtype, threads_free, sources, outside, limit, divide, spec)


def takes(dtype: str, spec: ConvSpec | PoolSpec, limit: int) -> bool:
    """Whether the kernels read such windows here, within a limit of scratch memory."""
    empty = 0 in (spec.batch, spec.channels, *spec.out_size)
    if empty or 2 * spec.channels < lanes_of(dtype):
        return False
    widest = _stripes(dtype, spec, limit)[0].spec if isinstance(spec, ConvSpec) else spec
    return workspace(dtype, widest) <= limit


def workspace(dtype: str, spec: ConvSpec | PoolSpec) -> int:
    """The least bytes that all threads together take: the rows of one window, and a row of results, twice."""
    rows = spec.reach[0] * math.prod(spec.padded_size[1:]) + math.prod(spec.out_size[1:])
    return 2 * threads.thread_count() * rows * spec.channels * np.dtype(dtype).itemsize


def _stripes(dtype: str, spec: ConvSpec, limit: int) -> list[Stripe]:
    """The stripes of volumes whose planes the caches do not hold; of images no rows are gathered.

    32 channels@8x512x512 on two cores of an Emerald Rapids, which did not keep to the limit: 398 ms by NumPy, 65 since.
    """
    held = spec.reach[0] * math.prod(spec.stride[1:]) * spec.channels * np.dtype(dtype).itemsize
    most = _PLANES_BYTES // held if spec.axes == 3 else math.prod(spec.out_size[1:])
    return narrowed(spec, most, vector_units(spec, lanes_of(dtype)), partial(workspace, dtype), limit)


_PLANES_BYTES = 1 << 19  # of input, that the windows of a row read


def _job(
    operation: str, spec: ConvSpec | PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, threads_free: int,
    sources: Sources, fill: float, limit: int, ending: dict[str, Array], whole: ConvSpec | PoolSpec,
) -> Job:  # fmt: skip
    """What computes the spec, or a stripe of the whole."""
    (x_strides, y_strides), size, lanes = strides, np.dtype(dtype).itemsize, lanes_of(dtype)
    read = whole.batch * math.prod(whole.out_size) * math.prod(whole.window) * whole.channels
    team = threads_free if read > READ_SINGLE else 1
    taps = taps_of(spec, operation)
    cut = blocks_of(spec, x_strides, dtype, team, sources, fill, limit // (2 * team), placed=taps.placed)
    turned = y_strides[-1] != size
    places = cut.places(
        (*spec.window[:-1], spec.window[-1] // taps.run), (*spec.dilation[:-1], spec.dilation[-1] * taps.run)
    )
    far = asks_ahead() and _bytes(whole, size) >= _ASKED[operation]
    numbers = turned_blocks.numbers_of(spec, y_strides, size) | {
        "tap_count": len(places), "step": cut.steps[spec.axes - 1], "channels": spec.channels,
        "segment": spec.out_size[-1] if spec.axes > 1 else 0, "w_step": -(-spec.channels // lanes) * lanes * size,
        "streams": storing(streams=_is_streamed(whole, y_strides, size), far=far),
        "alone": int(go_alone(spec, operation, dtype)),
    }  # fmt: skip
    tables = {
        "pixels": cut.starts(spec),
        "taps": places,
        "results": cut.results(spec, y_strides, spec.channels * size, turned),
        **ending,
    }
    more = [ahead.tables_of(spec, cut, x_strides, far=far)]
    if taps.placed:
        more.append(placed.tables_of(spec, cut, x_strides, dtype, sources, fill, taps.run))
    for more_numbers, more_tables in more:
        numbers, tables = numbers | more_numbers, tables | more_tables
    arrays = len(_ARRAYS) if operation == "multiplied" else 2  # no weight, no bias
    scratch = cut.images * cut.strip + int(turned) * cut.pixels * spec.channels * size
    compiled = _library(dtype, operation, taps)
    assert compiled is not None
    return Job(compiled.address(operation), Arguments(FIELDS, arrays, numbers, tables, cut), cut.count, scratch, team)


def _is_streamed(spec: ConvSpec | PoolSpec, y_strides: Sizes, size: int) -> bool:
    """Whether the result may be stored past the caches: with the input it is more than they hold.

    Depthwise 3x3 144@56, N=8, of 29 MB together: 0.63 ms before, 0.49 after; N=4, of 14 MB: 0.24 before, 0.25 after.
    """
    return _bytes(spec, size) >= _STREAMED and in_lines(y_strides, spec.channels * size, size)


def _bytes(spec: ConvSpec | PoolSpec, size: int) -> int:
    """Bytes of input and result together."""
    return spec.batch * spec.channels * (math.prod(spec.size) + math.prod(spec.out_size)) * size


_STREAMED = 3 << 23
# Bytes of both from which rows, and memory for results, are asked for early. Zen 3: depthwise 3x3 144@56, N=4 (14 MB)
# 2.2 -> 1.6 ms in one run and 1.9 -> 1.0 in another; poolings of as much gain nothing.
_ASKED = {"multiplied": 3 << 22, "added": _STREAMED, "largest": _STREAMED}


# --- The kernels ------------------------------------------------------------------------------------------------------


def is_ready(dtype: str, spec: ConvSpec | PoolSpec, *, operation: str = "multiplied") -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, operation, taps_of(spec, operation)) is not None


def _library(dtype: str, operation: str, taps: Taps) -> Library | None:
    name = f"channelwise-{dtype}-{operation}-{taps.run}-{taps.stride}-{taps.long:d}-{taps.placed:d}-{taps.tall:d}"
    return library(name, partial(_make, dtype=dtype, operation=operation, taps=taps))


def _make(module: ir.Module, *, dtype: str, operation: str, taps: Taps) -> tuple[str, ...]:
    """The task: one block of results."""
    made = partial(tiles, module, dtype, operation, taps)
    by_height = {height: made((1, height), vectors) for height, vectors in shapes(operation, taps.run).items()}
    tall = made((2, max(by_height)), (1,)) if taps.tall else None
    transpose = transpose_kernel(module, dtype)
    gather = gather_kernel(module, dtype, transpose)
    kernel = Kernel(module, operation, ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    block = blocks.opened(kernel, given, item, scratch)
    source = blocks.read(kernel, given, block, scratch, gather)
    y = given.turned.equals(1).where(block.free, given.y + block.first * given.y_item + block.row * given.y_row)
    stream = storing_now(kernel, given)

    def all_results(*, far: bool) -> None:
        chosen = {height: by_height[height] for height in heights(operation, taps.run, far=far)}
        if taps.placed:
            _each_row(kernel, given, block, source, (y, stream), chosen, tall, taps)
        else:
            _each_segment(kernel, given, block, source, (y, stream), chosen)

    if heights(operation, taps.run, far=True) == heights(operation, taps.run, far=False):
        all_results(far=False)
    else:
        with kernel.either(stream.equals(0)) as (held, beyond):
            with held:
                all_results(far=False)
            with beyond:
                all_results(far=True)
    with kernel.when(given.turned > 0):
        size = np.dtype(dtype).itemsize
        turn_back(kernel, given, block, transpose, y, given.channels * size, kernel.constant(0), given.channels, size)
    with kernel.when(stream > 0):
        kernel.fence()
    kernel.finish()
    return (operation,)


def _each_segment(
    kernel: Kernel, given: SimpleNamespace, block: blocks.Block, source: Value, to: tuple[Value, Value],
    by_height: dict[int, Kernel],
) -> None:  # fmt: skip
    """Windows whose elements lie a step apart, as far as they follow each other."""
    segment = given.segment.equals(0).where(block.pixels, given.segment)
    with kernel.loop(block.count, step=segment) as first:

        def arguments(pixel: Value) -> tuple[Operand, ...]:
            pixels = given.pixels + (first + pixel) * 8
            soon = source + kernel.load(pixels) + given.ahead
            return source, pixels, given.taps, given.step, *_others(given, first + pixel, to, soon)

        _each_result(kernel, given, by_height, segment, arguments)


def _each_row(
    kernel: Kernel, given: SimpleNamespace, block: blocks.Block, source: Value, to: tuple[Value, Value],
    by_height: dict[int, Kernel], tall: Kernel | None, taps: Taps,
) -> None:  # fmt: skip
    """Windows whose elements are found by tables: two rows together as far as that goes."""
    top = given.gathered.equals(1).where(kernel.constant(0), block.row)
    with kernel.loop(block.images) as image:

        def arguments(row: Value, pixel: Value) -> tuple[Operand, ...]:
            rows = given.row_places + (top + row) * given.row_step
            columns = given.column_places + pixel * (8 * taps.stride)
            result = (image * block.rows + row) * given.line + pixel
            x = source + image * given.image_step
            soon = x + given.ahead + (block.row + row) * given.ahead_row + pixel * given.ahead_column
            return x, rows, columns, given.grid, given.line * 8, *_others(given, result, to, soon)

        tall_rows, tall_columns = kernel.constant(0), kernel.constant(0)
        if tall is not None:
            most = max(by_height)
            tall_rows, tall_columns = block.rows - block.rows % 2, given.line - given.line % most
            with kernel.loop(tall_rows, step=2) as row, kernel.loop(tall_columns, step=most) as pixel:
                kernel.call(tall, *arguments(row, pixel))
        with kernel.loop(block.rows) as row:
            begin = (row < tall_rows).where(tall_columns, kernel.constant(0))
            _each_result(kernel, given, by_height, given.line, partial(arguments, row), begin)


def _each_result(
    kernel: Kernel, given: SimpleNamespace, by_height: dict[int, Kernel], count: Value,
    arguments: Callable[[Value], tuple[Operand, ...]], start: Operand = 0,
) -> None:  # fmt: skip
    """All results of a row, from one on, each alone or as many together as there are tiles for."""
    with kernel.either(given.alone > 0) as (alone, together):
        with alone:
            each_tile(kernel, {1: by_height[1]}, count, arguments, start)
        with together:
            each_tile(kernel, by_height, count, arguments, start)


def _others(given: SimpleNamespace, result: Value, to: tuple[Value, Value], soon: Value) -> tuple[Operand, ...]:
    """The arguments that all tiles have."""
    y, stream = to
    return (
        given.tap_count, given.w, given.w_step, y, given.results + result * 8, given.channels, given.finish, given.bias,
        given.divisor, stream, soon, given.asking,
    )  # fmt: skip
