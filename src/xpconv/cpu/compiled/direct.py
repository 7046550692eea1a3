"""Convolution straight from the input: tiles of pixels by filters in registers, no patches copied.

The taps of the last axis and the channels of each are one run where the dilation leaves them side by side. Blocks of
rows are shared among threads, and the filters of a block where there are too few of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import blocks, threads, weights
from xpconv.cpu.compiled.blocks import Arguments, Sources, blocks_of, grid, strides_of
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import Kernel, Operand, Value
from xpconv.cpu.compiled.moves import gather_kernel, name_of, transpose_kernel
from xpconv.cpu.compiled.tile import SUMMED, Shape, each_tile, finishing, shape_for, tile_kernels
from xpconv.spec import Array, ConvSpec, Sizes

_OWN = (
    "w", "y", "pixels", "results", "taps", "tap_count", "run", "groups", "maps", "panels", "parts", "finish", "bias",
    "x_group", "y_item", "y_row", "turned", "filters", "plane",
)  # fmt: skip
FIELDS = (*blocks.FIELDS, *_OWN)
SINGLE = 1_000_000  # products below which handing over costs more than it brings


@dataclass(frozen=True, eq=False)
class _Job:
    """All that does not depend on the arrays' addresses."""

    shape: Shape
    order: Array  # where each row of the weight lies in its array, in bytes
    arguments: Arguments
    no_bias: Array
    items: int
    scratch: int
    team: int


def conv(
    x: Array, w: Array, bias: Array | None, spec: ConvSpec, y: Array, sources: Sources, fill: float,
    activation: str | None, leak: float, limit: int,
) -> None:  # fmt: skip
    """The result of unpadded `x` (N, *size, C) and `w` (*window, C / groups, F), written to `y` (N, *out, F).

    The arrays may lie in memory in any order, `y` in either layout; the kernels read and write them where they are.
    """
    dtype = name_of(x.dtype)
    job = _job(spec, strides_of(x), w.strides, strides_of(y), dtype, threads.thread_count(), sources, fill, limit)
    compiled = _library(dtype, job.shape)
    assert compiled is not None
    weight = weights.packed(w, spec.groups, job.shape, job.order, job.team)
    biases = job.no_bias if bias is None else weights.panelled(bias, spec.filters, spec.groups, job.shape, dtype)
    finish = finishing(activation, dtype, leak)
    arguments = job.arguments.of(x=x, w=weight, y=y, bias=biases, finish=finish)
    threads.run(compiled.address("conv"), arguments, job.items, job.scratch, job.team)


@lru_cache(maxsize=128)
def _job(
    spec: ConvSpec, x_strides: Sizes, w_strides: Sizes, y_strides: Sizes, dtype: str, threads_free: int,
    sources: Sources, fill: float, limit: int,
) -> _Job:  # fmt: skip
    size, maps = np.dtype(dtype).itemsize, spec.filters // spec.groups
    products = spec.batch * math.prod(spec.out_size) * spec.filters * math.prod(spec.window) * spec.channels
    team = threads_free if products // spec.groups > SINGLE else 1
    cut = blocks_of(spec, x_strides, dtype, team, sources, fill, limit // (2 * team))
    shape = shape_for(maps, dtype)
    panels = spec.groups * -(-maps // shape.filters)
    parts = 1 if cut.count >= 4 * team or cut.count % team == 0 else min(panels, team)
    turned = y_strides[-1] != size
    windows, whole_run, order = _taps(spec, w_strides)
    run = next(n for n in range(min(whole_run, 2 * SUMMED), 0, -1) if whole_run % n == 0)
    results = cut.results(spec, y_strides, spec.filters * size, turned)
    numbers = {
        "tap_count": math.prod(windows) * (whole_run // run), "run": run, "groups": spec.groups, "maps": maps,
        "panels": panels // spec.groups, "parts": parts, "x_group": spec.channels // spec.groups * size,
        "y_item": y_strides[0], "y_row": y_strides[1], "turned": int(turned), "filters": spec.filters,
        "plane": y_strides[-1],
    }  # fmt: skip
    taps = (cut.places(windows, spec.dilation)[:, None] + np.arange(0, whole_run, run) * size).reshape(-1)
    tables = {"pixels": cut.starts(spec), "taps": taps, "results": results}
    scratch = cut.images * cut.strip + int(turned) * cut.pixels * spec.filters * size
    no_bias = weights.panelled(None, spec.filters, spec.groups, shape, dtype)
    arguments = Arguments(FIELDS, cut, numbers, tables)
    return _Job(shape, order, arguments, no_bias, cut.count * parts, scratch, team)


def _taps(spec: ConvSpec, w_strides: Sizes) -> tuple[Sizes, int, Array]:
    """The window that taps are counted in, the elements of each tap's run, and the order of the weight's rows."""
    counts, steps, turns = [*spec.window, spec.channels // spec.groups], [], [spec.flip] * spec.axes + [False]
    start = 0
    for count, step, turn in zip(counts, w_strides[:-1], turns, strict=True):
        start += (count - 1) * step if turn else 0
        steps.append(-step if turn else step)
    order = start + grid(tuple(counts), steps)
    if spec.groups == 1 and spec.dilation[-1] == 1:
        return spec.window[:-1], spec.window[-1] * spec.channels, order
    return spec.window, spec.channels // spec.groups, order


def computed(dtype: str, spec: ConvSpec, limit: int) -> int:
    """Filters that the kernels compute, those that fill up their tiles included; 0 where they take no such call."""
    if 0 in (spec.batch, spec.channels, spec.filters, *spec.out_size):
        return 0
    shape = shape_for(spec.filters // spec.groups, dtype)
    if _library(dtype, shape) is None or workspace(dtype, spec) > limit:
        return 0
    return spec.groups * -(-spec.filters // spec.groups // shape.filters) * shape.filters


def workspace(dtype: str, spec: ConvSpec) -> int:
    """The least bytes that all threads together take: the rows of one window, and a row of results, twice."""
    rows = spec.reach[0] * math.prod(spec.padded_size[1:]) * spec.channels
    return 2 * threads.thread_count() * (rows + math.prod(spec.out_size[1:]) * spec.filters) * np.dtype(dtype).itemsize


def _library(dtype: str, shape: Shape) -> Library | None:
    return library(f"direct-{dtype}-{shape.lanes}x{shape.vectors}", partial(_make, dtype=dtype, shape=shape))


def _make(module: ir.Module, *, dtype: str, shape: Shape) -> tuple[str, ...]:
    """The task: one block of results, all filters or a part of them, a panel of the weight at a time."""
    tiles, transpose = tile_kernels(module, dtype, shape), transpose_kernel(module, dtype)
    gather = gather_kernel(module, dtype, transpose)
    kernel = Kernel(module, "conv", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    size = np.dtype(dtype).itemsize
    block = blocks.opened(kernel, given, item // given.parts, scratch, gather)
    y = given.turned.equals(1).where(block.free, given.y + block.first * given.y_item + block.row * given.y_row)
    part, count = item % given.parts, given.groups * given.panels
    panel_bytes = given.tap_count * given.run * (shape.filters * size)
    start, stop = (count * part) // given.parts, (count * (part + 1)) // given.parts
    with kernel.loop(stop, start=start) as panel:
        group, first = panel // given.panels, (panel % given.panels) * shape.filters
        x, target = block.source + group * given.x_group, y + (group * given.maps + first) * size
        w, bias = given.w + panel * panel_bytes, given.bias + panel * (shape.filters * size)

        def arguments_of(pixel: Value) -> tuple[Operand, ...]:
            return (
                x, given.pixels + pixel * 8, given.taps, given.tap_count, given.run, w, shape.filters * size,
                target, given.results + pixel * 8, given.maps - first, given.finish, bias,
            )  # fmt: skip

        each_tile(kernel, tiles, block.count, arguments_of)
    first, last = (
        (panel // given.panels) * given.maps + (panel % given.panels) * shape.filters for panel in (start, stop)
    )
    with kernel.when(given.turned > 0), kernel.loop(block.images) as image:
        item_y = given.y + (block.first + image) * given.y_item + block.row * given.y_row
        step = given.filters * size
        kernel.call(
            transpose, y + image * block.pixels * step + first * size, step, item_y + first * given.plane, given.plane,
            block.pixels, last - first,
        )  # fmt: skip
    kernel.finish()
    return ("conv",)
