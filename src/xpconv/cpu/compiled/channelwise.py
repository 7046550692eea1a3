"""What every channel does by itself, lanes along the channels: depthwise convolution, max and sum pooling.

A tile is some results times some vectors of channels. Tables say where windows and taps begin, as in `direct`; the
elements that a window reads side by side are one tap, as long as there are kernels for so many, and an element that
several windows of a tile read is then loaded once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import blocks, threads
from xpconv.cpu.compiled.blocks import Arguments, Sources, blocks_of
from xpconv.cpu.compiled.build import Library, library, machine
from xpconv.cpu.compiled.call import Call, in_lines, streamed_now
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Operand, Value, Variable, vector
from xpconv.cpu.compiled.moves import gather_kernel, lanes_of, take, transpose_kernel
from xpconv.cpu.compiled.tile import SUMMED, Finish, each_tile, finishing
from xpconv.cpu.compiled.weights import PackedBias, Packing, taps_order
from xpconv.cpu.plan import READ_SINGLE
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

_ARRAYS = ("x", "y", "w", "bias")
_OWN = (
    "pixels", "results", "taps", "tap_count", "step", "segment", "channels", "w_step", "finish", "divisor", "y_item",
    "y_row", "turned", "plane", "streams",
)  # fmt: skip
FIELDS = (*_ARRAYS, *blocks.FIELDS, *_OWN)
_RUNS, _STEPS = (7, 5, 3, 2), (1, 2)  # elements of a tap, and strides, that there are kernels for


@dataclass(frozen=True)
class _Taps:
    """Elements of a tap along the last axis, and the stride there of windows that follow each other."""

    run: int
    stride: int
    long: bool  # so many elements that sums are put aside on the way

    def read(self, element: int, windows: int) -> Iterator[tuple[int, int]]:
        """Which of so many windows read an element, counted from the first one's first, and as which of the tap's."""
        for s in range(self.run):
            window, between = divmod(element - s, self.stride or 1)
            if not between and 0 <= window < windows:
                yield window, s


@dataclass(frozen=True, eq=False)
class _Job:
    """All that does not depend on the arrays' addresses."""

    address: int
    arguments: Arguments
    items: int
    scratch: int
    team: int

    def __call__(self, *arrays: Array) -> None:
        threads.run(self.address, self.arguments.of(*arrays), self.items, self.scratch, self.team)


class Depthwise:
    """A convolution with one channel in each group and one filter, prepared."""

    def __init__(self, call: Call) -> None:
        spec, lanes = call.spec, lanes_of(call.dtype)
        width = -(-spec.channels // lanes) * lanes
        order = taps_order(spec, call.w_strides)
        self._pack = Packing(call.dtype, 1, spec.channels, width, order, call.w_strides[-1])
        self._bias = PackedBias(call.dtype, 1, spec.channels, width)
        activated = call.activation is not None
        finish = {"finish": finishing(call.activation, call.dtype, call.leak)} if activated else {}
        self._job = _job(
            "multiplied", spec, (call.x_strides, call.y_strides), call.dtype, call.threads, call.sources, call.fill,
            call.limit, finish,
        )  # fmt: skip

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`, where no value reaches further than its windows."""
        self._job(x, y, self._pack(w), self._bias(bias))
        return True


class Pooling:
    """Of every window of x (N, *size, C) the "largest" element, a NaN where there is one, or all "added" and divided.

    Padding never wins and adds nothing. It is called with arrays that lie as the strides say, in whatever shape.
    """

    def __init__(
        self, operation: str, spec: PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, threads_free: int,
        sources: Sources, divisor: float, limit: int,
    ) -> None:  # fmt: skip
        outside = -math.inf if operation == "largest" else 0.0
        divide = {"divisor": np.array([divisor], dtype)}
        self._job = _job(operation, spec, strides, dtype, threads_free, sources, outside, limit, divide)

    def __call__(self, x: Array, y: Array) -> None:
        """Write the result to `y`."""
        self._job(x, y)


def takes(dtype: str, spec: ConvSpec | PoolSpec, limit: int) -> bool:
    """Whether the kernels read such windows here, within a limit of scratch memory."""
    empty = 0 in (spec.batch, spec.channels, *spec.out_size)
    return not empty and 2 * spec.channels >= lanes_of(dtype) and workspace(dtype, spec) <= limit


def workspace(dtype: str, spec: ConvSpec | PoolSpec) -> int:
    """The least bytes that all threads together take: the rows of one window, and a row of results, twice."""
    rows = spec.reach[0] * math.prod(spec.padded_size[1:]) + math.prod(spec.out_size[1:])
    return 2 * threads.thread_count() * rows * spec.channels * np.dtype(dtype).itemsize


def _job(
    operation: str, spec: ConvSpec | PoolSpec, strides: tuple[Sizes, Sizes], dtype: str, threads_free: int,
    sources: Sources, fill: float, limit: int, ending: dict[str, Array],
) -> _Job:  # fmt: skip
    (x_strides, y_strides), size, lanes = strides, np.dtype(dtype).itemsize, lanes_of(dtype)
    read = spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels
    team = threads_free if read > READ_SINGLE else 1
    cut = blocks_of(spec, x_strides, dtype, team, sources, fill, limit // (2 * team))
    turned, taps = y_strides[-1] != size, _taps(spec)
    places = cut.places(
        (*spec.window[:-1], spec.window[-1] // taps.run), (*spec.dilation[:-1], spec.dilation[-1] * taps.run)
    )
    numbers = {
        "tap_count": len(places), "step": cut.steps[spec.axes - 1], "channels": spec.channels,
        "segment": spec.out_size[-1] if spec.axes > 1 else 0, "w_step": -(-spec.channels // lanes) * lanes * size,
        "y_item": y_strides[0], "y_row": y_strides[1], "turned": int(turned), "plane": y_strides[-1],
        "streams": int(_is_streamed(spec, y_strides, size)),
    }  # fmt: skip
    tables = {
        "pixels": cut.starts(spec),
        "taps": places,
        "results": cut.results(spec, y_strides, spec.channels * size, turned),
        **ending,
    }
    arrays = len(_ARRAYS) if operation == "multiplied" else 2  # no weight, no bias
    scratch = cut.images * cut.strip + int(turned) * cut.pixels * spec.channels * size
    compiled = _library(dtype, operation, taps)
    assert compiled is not None
    return _Job(compiled.address(operation), Arguments(FIELDS, arrays, numbers, tables, cut), cut.count, scratch, team)


def _is_streamed(spec: ConvSpec | PoolSpec, y_strides: Sizes, size: int) -> bool:
    """Whether the result may be stored past the caches: with the input it is more than they hold.

    Depthwise 3x3 144@56, N=8, of 29 MB together: 0.63 ms before, 0.49 after; N=4, of 14 MB: 0.24 before, 0.25 after.
    """
    together = spec.batch * spec.channels * (math.prod(spec.size) + math.prod(spec.out_size)) * size
    return together >= _STREAMED and in_lines(y_strides, spec.channels * size, size)


_STREAMED = 3 << 23  # bytes


def _taps(spec: ConvSpec | PoolSpec) -> _Taps:
    long = math.prod(spec.window) > SUMMED
    if spec.dilation[-1] > 1 or spec.stride[-1] not in _STEPS:
        return _Taps(1, 0, long)
    run = next((n for n in _RUNS if spec.window[-1] % n == 0), 1)
    return _Taps(run, spec.stride[-1] if run > 1 else 0, long)


# --- The kernels ------------------------------------------------------------------------------------------------------


def _shapes(operation: str, run: int) -> dict[int, tuple[int, ...]]:
    """Results of a tile, and how many vectors of channels: many for a single one, whose sums would wait for another.

    Weights take registers too: by two vectors, taps of 5 took half as long again as by one. Seven results divide the
    rows of many a network evenly.
    """
    here = machine()
    assert here is not None
    many = here.registers == 32
    if operation != "multiplied":
        return {4: (4, 2, 1), 1: (8, 4, 1)} if many else {4: (2, 1), 1: (8, 2, 1)}
    return {7: (3, 2, 1), 3: (2, 1), 1: (4, 1)} if many and run <= 3 else {7: (1,), 3: (1,), 1: (2, 1)}


def is_ready(dtype: str, spec: ConvSpec | PoolSpec, *, operation: str = "multiplied") -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, operation, _taps(spec)) is not None


def _library(dtype: str, operation: str, taps: _Taps) -> Library | None:
    name = f"channelwise-{dtype}-{operation}-{taps.run}-{taps.stride}-{taps.long:d}"
    return library(name, partial(_make, dtype=dtype, operation=operation, taps=taps))


def _make(module: ir.Module, *, dtype: str, operation: str, taps: _Taps) -> tuple[str, ...]:
    """The task: one block of results."""
    shapes = _shapes(operation, taps.run)
    tiles = {height: _tiles(module, dtype, operation, taps, height, vectors) for height, vectors in shapes.items()}
    transpose = transpose_kernel(module, dtype)
    gather = gather_kernel(module, dtype, transpose)
    kernel = Kernel(module, operation, ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    block = blocks.opened(kernel, given, item, scratch)
    source = blocks.read(kernel, given, block, scratch, gather)
    y = given.turned.equals(1).where(block.free, given.y + block.first * given.y_item + block.row * given.y_row)
    stream = streamed_now(kernel, given)
    segment = given.segment.equals(0).where(block.pixels, given.segment)  # windows that follow each other
    with kernel.loop(block.count, step=segment) as first:

        def arguments_of(pixel: Value) -> tuple[Operand, ...]:
            return (
                source, given.pixels + (first + pixel) * 8, given.taps, given.tap_count, given.step, given.w,
                given.w_step, y, given.results + (first + pixel) * 8, given.channels, given.finish, given.bias,
                given.divisor, stream,
            )  # fmt: skip

        each_tile(kernel, tiles, segment, arguments_of)
    with kernel.when(given.turned > 0), kernel.loop(block.images) as image:
        step = given.channels * np.dtype(dtype).itemsize
        kernel.call(
            transpose, y + image * block.pixels * step, step,
            given.y + (block.first + image) * given.y_item + block.row * given.y_row, given.plane, block.pixels,
            given.channels,
        )  # fmt: skip
    with kernel.when(stream > 0):
        kernel.fence()
    kernel.finish()
    return (operation,)


_ARGUMENTS = (
    "x", "pixels", "taps", "tap_count", "step", "w", "w_step", "y", "results", "channels", "finish", "bias", "divisor",
    "stream",
)  # fmt: skip


def _tiles(module: ir.Module, dtype: str, operation: str, taps: _Taps, height: int, shapes: tuple[int, ...]) -> Kernel:
    """All channels of `height` results, by as many vectors at once as there are shapes for."""
    kernel = Kernel(module, f"tiles{height}", _ARGUMENTS)
    given = SimpleNamespace(**dict(zip(_ARGUMENTS, kernel.arguments, strict=True)))
    lanes, channel = lanes_of(dtype), kernel.variable(0)
    for vectors in shapes:
        with kernel.while_(lambda width=vectors * lanes: channel.get() + width <= given.channels):
            _tile(kernel, given, dtype, operation, taps, (height, vectors), channel.get(), None)
            channel.set(channel.get() + vectors * lanes)
    with kernel.when(channel.get() < given.channels):
        mask = kernel.lanes_below(given.channels - channel.get(), lanes)
        _tile(kernel, given, dtype, operation, taps, (height, 1), channel.get(), mask)
    kernel.finish()
    return kernel


def _tile(
    kernel: Kernel, given: SimpleNamespace, dtype: str, operation: str, taps: _Taps, shape: tuple[int, int],
    channel: Value, mask: Value | None,
) -> None:  # fmt: skip
    """Results times vectors of channels, from a channel on."""
    size, kind = np.dtype(dtype).itemsize, vector(FLOATS[dtype], lanes_of(dtype))
    at, (height, vectors), join = channel * size, shape, kernel.maximum if operation == "largest" else operator.add
    places = [lanes_of(dtype) * size * q for q in range(vectors)]
    nothing = kernel.constant(-math.inf if operation == "largest" else 0, kind)
    starts = _starts(kernel, given, taps, height, at)

    def joined(first: Operand, stop: Operand) -> list[list[Variable]]:
        totals = [[kernel.variable(nothing) for _ in places] for _ in range(height)]
        with kernel.loop(stop, start=first) as t:
            tap, weight = kernel.load(given.taps, offset=t * 8), given.w + at + t * taps.run * given.w_step
            weights = [weight + given.w_step * s for s in range(taps.run)] if operation == "multiplied" else []
            factors = [[kernel.load(w, kind, place) for place in places] for w in weights]
            for j, start in enumerate(starts):
                values = [take(kernel, start + tap + place, kind, mask) for place in places]
                for (p, s), (q, value) in product(taps.read(j, height), enumerate(values)):
                    total = totals[p][q]
                    total.set(kernel.fma(value, factors[s][q], total.get()) if factors else join(total.get(), value))
        return totals

    if taps.long:
        totals = [[kernel.variable(nothing) for _ in places] for _ in range(height)]
        with kernel.loop(given.tap_count, step=SUMMED // taps.run) as first:
            part = joined(first, kernel.minimum(first + SUMMED // taps.run, given.tap_count))
            for total, more in zip(chain(*totals), chain(*part), strict=True):
                total.set(join(total.get(), more.get()))
    else:
        totals = joined(0, given.tap_count)
    targets = [given.y + at + kernel.load(given.results, offset=8 * p) for p in range(height)]

    def store(q: int, done: Callable[[Value], Value]) -> None:
        found = [(done(row[q].get()), target + places[q]) for target, row in zip(targets, totals, strict=True)]
        if mask is not None:  # a part of a vector is no line
            for result, place in found:
                kernel.store_lanes(result, place, mask)
            return
        with kernel.either(given.stream > 0) as (streamed, kept):
            for where, write in ((streamed, kernel.stream), (kept, kernel.store)):
                with where:
                    for result, place in found:
                        write(result, place)

    for q, place in enumerate(places):
        _stored(kernel, given, operation, kind, at + place, partial(store, q))


def _starts(kernel: Kernel, given: SimpleNamespace, taps: _Taps, height: int, at: Value) -> list[Value]:
    """Where the elements of the windows' first taps lie: each window's own, or all that follow the first one's."""
    if taps.run == 1:
        return [given.x + at + kernel.load(given.pixels, offset=8 * p) for p in range(height)]
    first = given.x + at + kernel.load(given.pixels)
    return [first + given.step * j for j in range((height - 1) * taps.stride + taps.run)]


def _stored(
    kernel: Kernel, given: SimpleNamespace, operation: str, kind: ir.Type, at: Value,
    store: Callable[[Callable[[Value], Value]], None],
) -> None:  # fmt: skip
    """Totals as results, of the channels so many bytes from the first."""
    if operation == "largest":
        store(lambda total: total)
    elif operation == "added":
        shared = kernel.splat(kernel.load(given.divisor, kind.element), kind.count)
        store(lambda total: total // shared)
    else:
        bias = kernel.load(given.bias + at, kind)
        with kernel.either(given.finish.equals(0)) as (plain, other):
            with plain:
                store(lambda total: total + bias)
            with other:  # takes half as long as 3 by 3 products
                finished = Finish(kernel, given.finish, kind.element, kind.count)
                store(lambda total: finished(total, bias))
