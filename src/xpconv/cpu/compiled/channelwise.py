"""What every channel does by itself, lanes along the channels: depthwise convolution, max and sum pooling.

A tile is some results times one vector of channels; each tap of their windows is read once, and multiplied and added,
compared, or added. Tables say where windows and taps begin, as in `direct`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import blocks, threads
from xpconv.cpu.compiled.blocks import Arguments, Sources, blocks_of, strides_of
from xpconv.cpu.compiled.build import Library, library, machine
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Operand, Value, vector
from xpconv.cpu.compiled.moves import gather_kernel, lanes_of, name_of, put, take, transpose_kernel
from xpconv.cpu.compiled.tile import Finish, each_tile, finishing
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

_OWN = (
    "w", "y", "pixels", "results", "taps", "tap_count", "channels", "w_step", "finish", "bias", "divisor", "y_item",
    "y_row", "turned", "plane",
)  # fmt: skip
FIELDS = (*blocks.FIELDS, *_OWN)
_SINGLE = 200_000  # elements read below which handing over costs more than it brings


@dataclass(frozen=True, eq=False)
class _Job:
    """All that does not depend on the arrays' addresses."""

    arguments: Arguments
    items: int
    scratch: int
    team: int


def depthwise(
    x: Array, w: Array, bias: Array | None, spec: ConvSpec, y: Array, sources: Sources, fill: float,
    activation: str | None, leak: float, limit: int,
) -> None:  # fmt: skip
    """As `direct.conv`, with one channel in each group and one filter."""
    dtype, lanes = name_of(x.dtype), lanes_of(name_of(x.dtype))
    width = -(-spec.channels // lanes) * lanes
    weight, biases = np.zeros((math.prod(spec.window), width), dtype), np.zeros(width, dtype)
    taps = np.flip(w, axis=tuple(range(spec.axes))) if spec.flip else w
    weight[:, : spec.channels] = taps.reshape(-1, spec.channels)
    if bias is not None:
        biases[: spec.channels] = bias
    _run(
        "multiplied", x, y, spec, sources, fill, limit, w=weight, bias=biases, finish=finishing(activation, dtype, leak)
    )


def max_pool(x: Array, y: Array, spec: PoolSpec, sources: Sources, limit: int) -> None:
    """The largest element of every window of `x` (N, *size, C), a NaN where there is one; padding never wins."""
    _run("largest", x, y, spec, sources, -math.inf, limit)


def sum_pool(x: Array, y: Array, spec: PoolSpec, sources: Sources, divisor: float, limit: int) -> None:
    """The sum of every window of `x` (N, *size, C), divided."""
    _run("added", x, y, spec, sources, 0.0, limit, divisor=np.array([divisor], x.dtype))


def takes(dtype: str, spec: ConvSpec | PoolSpec, limit: int) -> bool:
    """Whether the kernels read such windows here, within a limit of scratch memory."""
    empty = 0 in (spec.batch, spec.channels, *spec.out_size)
    return not empty and 2 * spec.channels >= lanes_of(dtype) and workspace(dtype, spec) <= limit


def workspace(dtype: str, spec: ConvSpec | PoolSpec) -> int:
    """The least bytes that all threads together take: the rows of one window, and a row of results, twice."""
    rows = spec.reach[0] * math.prod(spec.padded_size[1:]) + math.prod(spec.out_size[1:])
    return 2 * threads.thread_count() * rows * spec.channels * np.dtype(dtype).itemsize


def _run(
    operation: str, x: Array, y: Array, spec: ConvSpec | PoolSpec, sources: Sources, fill: float, limit: int,
    **arrays: Array,
) -> None:  # fmt: skip
    dtype = name_of(x.dtype)
    job = _job(spec, strides_of(x), strides_of(y), dtype, threads.thread_count(), sources, fill, limit)
    compiled = _library(dtype, operation)
    assert compiled is not None
    threads.run(compiled.address(operation), job.arguments.of(x=x, y=y, **arrays), job.items, job.scratch, job.team)


@lru_cache(maxsize=128)
def _job(
    spec: ConvSpec | PoolSpec, x_strides: Sizes, y_strides: Sizes, dtype: str, threads_free: int, sources: Sources,
    fill: float, limit: int,
) -> _Job:  # fmt: skip
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    width = size * lanes
    read = spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels
    team = threads_free if read > _SINGLE else 1
    cut = blocks_of(spec, x_strides, dtype, team, sources, fill, limit // (2 * team))
    turned = y_strides[-1] != size
    numbers = {
        "tap_count": math.prod(spec.window), "channels": spec.channels, "w_step": -(-spec.channels // lanes) * width,
        "y_item": y_strides[0], "y_row": y_strides[1], "turned": int(turned), "plane": y_strides[-1],
    }  # fmt: skip
    tables = {
        "pixels": cut.starts(spec),
        "taps": cut.places(spec.window, spec.dilation),
        "results": cut.results(spec, y_strides, spec.channels * size, turned),
    }
    scratch = cut.images * cut.strip + int(turned) * cut.pixels * spec.channels * size
    return _Job(Arguments(FIELDS, cut, numbers, tables), cut.count, scratch, team)


# --- The kernels ------------------------------------------------------------------------------------------------------


def _heights() -> tuple[int, ...]:
    here = machine()
    assert here is not None
    return (12, 4, 1) if here.registers == 32 else (8, 4, 1)


def _library(dtype: str, operation: str) -> Library | None:
    return library(f"channelwise-{dtype}-{operation}", partial(_make, dtype=dtype, operation=operation))


def _make(module: ir.Module, *, dtype: str, operation: str) -> tuple[str, ...]:
    """The task: one block of results, a vector of channels at a time."""
    whole, part = (
        {height: _tile(module, dtype, operation, height, masked) for height in _heights()} for masked in (False, True)
    )
    transpose = transpose_kernel(module, dtype)
    gather = gather_kernel(module, dtype, transpose)
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    kernel = Kernel(module, operation, ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    block = blocks.opened(kernel, given, item, scratch, gather)
    y = given.turned.equals(1).where(block.free, given.y + block.first * given.y_item + block.row * given.y_row)

    def all_pixels(tiles: dict[int, Kernel], channel: Value) -> None:
        at = channel * size

        def arguments_of(pixel: Value) -> tuple[Operand, ...]:
            return (
                block.source + at, given.pixels + pixel * 8, given.taps, given.tap_count, given.w + at, given.w_step,
                y + at, given.results + pixel * 8, given.channels - channel, given.finish, given.bias + at,
                given.divisor,
            )  # fmt: skip

        each_tile(kernel, tiles, block.count, arguments_of)

    vectors = given.channels - given.channels % lanes
    with kernel.loop(vectors, step=lanes) as channel:
        all_pixels(whole, channel)
    with kernel.when(vectors < given.channels):
        all_pixels(part, vectors)
    with kernel.when(given.turned > 0), kernel.loop(block.images) as image:
        step = given.channels * size
        kernel.call(
            transpose, y + image * block.pixels * step, step,
            given.y + (block.first + image) * given.y_item + block.row * given.y_row, given.plane, block.pixels,
            given.channels,
        )  # fmt: skip
    kernel.finish()
    return (operation,)


_ARGUMENTS = (
    "x", "pixels", "taps", "tap_count", "w", "w_step", "y", "results", "width", "finish", "bias", "divisor",
)  # fmt: skip


def _tile(module: ir.Module, dtype: str, operation: str, height: int, masked: bool) -> Kernel:
    """Results of `height` windows and one vector of channels; of `masked` ones the first `width` channels."""
    kernel = Kernel(module, f"tile{height}{'masked' if masked else ''}", _ARGUMENTS)
    x, pixels, taps, tap_count, w, w_step, y, results, width, finish, bias, divisor = kernel.arguments
    element, lanes = FLOATS[dtype], lanes_of(dtype)
    kind, mask = vector(element, lanes), kernel.lanes_below(width, lanes) if masked else None
    first = -math.inf if operation == "largest" else 0
    totals = [kernel.variable(kernel.constant(first, kind)) for _ in range(height)]
    starts = [x + kernel.load(pixels, offset=8 * p) for p in range(height)]
    weight = kernel.variable(w)
    with kernel.loop(tap_count) as t:
        tap = kernel.load(taps, offset=t * 8)
        factor = kernel.load(weight.get(), kind) if operation == "multiplied" else None
        for start, total in zip(starts, totals, strict=True):
            total.set(_merged(kernel, operation, total.get(), take(kernel, start + tap, kind, mask), factor))
        weight.set(weight.get() + w_step)
    done = _done(kernel, operation, element, lanes, finish, bias, divisor)
    for p, total in enumerate(totals):
        put(kernel, done(total.get()), y + kernel.load(results, offset=8 * p), mask)
    kernel.finish()
    return kernel


def _merged(kernel: Kernel, operation: str, total: Value, value: Value, factor: Value | None) -> Value:
    """A total with one more element of its windows."""
    if factor is not None:
        return kernel.fma(value, factor, total)
    return total + value if operation == "added" else kernel.maximum(total, value)


def _done(
    kernel: Kernel, operation: str, element: ir.Type, lanes: int, finish: Value, bias: Value, divisor: Value
) -> Callable[[Value], Value]:
    """What makes a result of a total."""
    if operation == "multiplied":
        finished, added = Finish(kernel, finish, element, lanes), kernel.load(bias, vector(element, lanes))
        return lambda total: finished(total, added)
    if operation == "added":
        shared = kernel.splat(kernel.load(divisor, element), lanes)
        return lambda total: total // shared
    return lambda total: total
