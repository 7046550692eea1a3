"""The gradient of a convolution's weight.

It is a product with the pixels summed over: a tile holds so many rows, channels of a tap that lie side by side, times
so many filters in registers, while the pixels of a block go by. Chunks of blocks have sums of their own, so that
threads share no sums; how many there are follows from the call alone, as the result then does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.address import Told
from xpconv.cpu.compiled import blocks, threads, turn
from xpconv.cpu.compiled.blocks import Arguments, Block, Blocks, Sources, blocks_of, strides_of
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.call import is_dense
from xpconv.cpu.compiled.gradient_tiles import heights, pack_kernel, sums_tile
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import gather_kernel, lanes_of, name_of, transpose_kernel
from xpconv.cpu.compiled.tile import Shape, each_tile, shape_for
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.cpu.plan import SINGLE
from xpconv.spec import Array, ConvSpec, Sizes

_ARRAYS = ("x", "gy", "sums", "partial")
_OWN = (
    "pixels", "results", "taps", "targets", "tap_count", "run", "groups", "maps", "panels", "parts", "chunks", "blocks",
    "x_group", "gy_item", "gy_row", "planes", "gy_filter", "row_step", "sums_bytes",
)  # fmt: skip
FIELDS = (*_ARRAYS, *blocks.FIELDS, *_OWN)
_FEWEST_PIXELS = 192  # of a block: a tile's sums are read and stored once for all of them
_BLOCK_BYTES = 1 << 20  # of input, that a block takes at most to have so many
_PANEL_BYTES = 1 << 17  # of `gy`, that the tiles of a block read again and again
_CHUNK_PIXELS = 1 << 10  # that a chunk has at least, since its sums are added up afterwards
_MOST_CHUNKS, _PARTIAL_BYTES = 16, 1 << 25
_FEW_CHANNELS = 24  # tiles for less would be low, so that the taps of the last axis stay together
_SPAN = 1 << 13  # elements of the gradient, about, that one item adds up
# Of a tile at most: those of four are too low for short runs. N=8, one core of an Emerald Rapids, with two and with
# four: 3x3 3->64@56 1.0 and 1.15 ms, stem 3.6 and 3.9, 1x1 256->64@56 6.6 and 6.9, 1024->256@14 7.8 and 7.1.
_VECTORS = 2


@dataclass(frozen=True, eq=False)
class _Job:
    """All that does not depend on the arrays' addresses."""

    shape: Shape
    arguments: Arguments
    order: _Order
    chunks: int
    items: int
    scratch: int
    team: int


@dataclass(frozen=True)
class _Order:
    """How the gradient lies in memory: as the user's weight does, where the tiles can store it so."""

    joined: bool  # the taps of the last axis and their channels make one run
    turned: bool  # filters first
    flipped: bool

    @classmethod
    def of(cls, spec: ConvSpec) -> _Order:
        """Tiles of a single tap can go anywhere; they are high enough where there are channels enough."""
        moved = spec.flip or spec.layout == "channels_first"
        low = not moved or spec.channels < _FEW_CHANNELS
        joined = spec.groups == 1 and spec.dilation[-1] == 1 and low
        return cls(joined, spec.layout == "channels_first" and not joined, spec.flip and not joined)

    def targets(self, windows: Sizes, run: int) -> Array:
        """The row of the sums where each tap begins."""
        taps = np.arange(math.prod(windows), dtype=np.int64)
        return (taps[::-1] if self.flipped else taps) * (1 if self.turned else run)

    def viewed(self, gw: Array, spec: ConvSpec) -> Array:
        """The memory as (*window, C / groups, F), by offset of the window."""
        if self.turned:
            gw = np.moveaxis(gw.reshape(spec.filters, -1, *spec.window), (1, 0), (-2, -1))
        gw = gw.reshape(*spec.window, -1, spec.filters)
        return np.flip(gw, tuple(range(spec.axes))) if self.flipped else gw


def grad_weight(x: Array, gy: Array, spec: ConvSpec, sources: Sources, limit: int) -> Array:
    """The weight's gradient (*window, C / groups, F) by offset of the window, of `x` (N, *size, C), `gy` (N, *out, F).

    Both may lie in memory in any order, and the padding may be of any mode; a constant one counts as zeros.
    """
    dtype = name_of(x.dtype)
    if strides_of(gy)[-1] != gy.itemsize and not is_dense(gy.shape[1:-1], gy.strides, gy.itemsize):
        gy = turn.channels_last(gy)
    job = _job(spec, strides_of(x), strides_of(gy), dtype, threads.thread_count(), sources, limit)
    compiled = _library(dtype, job.shape)
    assert compiled is not None
    rows = math.prod(spec.window) * (spec.channels // spec.groups)
    gw = np.empty(rows * spec.filters, x.dtype)
    partials = np.empty((job.chunks - (not job.order.turned), gw.size), x.dtype)
    sums, others = (partials[0], partials[1:]) if job.order.turned else (gw, partials)
    arguments = job.arguments.of(x, gy, sums, others)
    threads.run(compiled.address("products"), arguments, job.items, job.scratch, job.team)
    if len(partials):
        span = -(-_SPAN // (16 * spec.filters)) * 16
        ends = Told(3, (len(others), rows, spec.filters, span, int(job.order.turned))).of(gw, sums, others)
        threads.run(compiled.address("total"), ends, -(-rows // span), 0, job.team)
    return job.order.viewed(gw, spec)


@lru_cache(maxsize=128)
def _job(
    spec: ConvSpec, x_strides: Sizes, gy_strides: Sizes, dtype: str, threads_free: int, sources: Sources, limit: int
) -> _Job:
    size, maps, per_group = np.dtype(dtype).itemsize, spec.filters // spec.groups, spec.channels // spec.groups
    rows, pixels = math.prod(spec.window) * per_group, spec.batch * math.prod(spec.out_size)
    shape, order = shape_for(maps, dtype, _VECTORS), _Order.of(spec)
    cut = blocks_of(
        spec, x_strides, dtype, 1, sources, 0.0, limit, _shape(spec, size, shape.filters * size, limit // 4)
    )
    scratch = cut.images * cut.strip + cut.pixels * shape.filters * size
    team = min(threads_free, max(limit // 2 // scratch, 1)) if pixels * rows * spec.filters > SINGLE else 1
    panels, sums_bytes = -(-maps // shape.filters), rows * spec.filters * size
    chunks = _chunks(cut, pixels, sums_bytes, limit // 4)
    parts = 1 if chunks >= 4 * team or chunks % team == 0 else min(spec.groups * panels, -(-4 * team // chunks))
    windows = spec.window[:-1] if order.joined else spec.window
    run = rows // math.prod(windows)
    planes = gy_strides[-1] != size
    numbers = {
        "tap_count": math.prod(windows), "run": run, "groups": spec.groups, "maps": maps, "panels": panels,
        "parts": parts, "chunks": chunks, "blocks": cut.count, "x_group": per_group * size, "gy_item": gy_strides[0],
        "gy_row": gy_strides[1], "planes": int(planes), "gy_filter": gy_strides[-1],
        "row_step": spec.filters * size * (math.prod(windows) if order.turned else 1), "sums_bytes": sums_bytes,
    }  # fmt: skip
    tables = {
        "pixels": cut.starts(spec), "taps": cut.places(windows, spec.dilation),
        "targets": order.targets(windows, run) * (spec.filters * size),
        "results": cut.results(spec, gy_strides, size, planes),
    }  # fmt: skip
    arguments = Arguments(FIELDS, len(_ARRAYS), numbers, tables, cut)
    return _Job(shape, arguments, order, chunks, chunks * parts, scratch, team)


def _shape(spec: ConvSpec, size: int, panel: int, limit: int) -> tuple[int, int]:
    """Rows and images of a block: what the caches hold, and pixels enough; the same for any number of threads.

    `panel` is what a pixel of `gy` takes when it is packed, in bytes.
    """
    first, stride, reach = spec.out_size[0], spec.stride[0], spec.reach[0]
    line, row_bytes = math.prod(spec.out_size[1:]), math.prod(spec.padded_size[1:]) * spec.channels * size

    def held(nbytes: int) -> int:
        return (min(nbytes, limit) // row_bytes - reach) // stride + 1

    rows = max(held(blocks.BLOCK_BYTES), min(-(-_FEWEST_PIXELS // line), held(_BLOCK_BYTES)))
    rows = max(min(rows, _PANEL_BYTES // (line * panel)), 1)
    if rows < first:
        return -(-first // -(-first // rows)), 1
    strip, pixels = spec.padded_size[0] * row_bytes, first * line
    images = max(blocks.BLOCK_BYTES // strip, min(-(-_FEWEST_PIXELS // pixels), _BLOCK_BYTES // strip))
    images = max(min(images, _PANEL_BYTES // (pixels * panel), limit // strip), 1)
    return first, -(-spec.batch // -(-spec.batch // images))


def _chunks(cut: Blocks, pixels: int, nbytes: int, limit: int) -> int:
    """Sums of their own: so few that adding them up costs little, whatever the threads."""
    held = min(_PARTIAL_BYTES, limit) // nbytes
    return max(min(pixels // _CHUNK_PIXELS, cut.count, held, _MOST_CHUNKS), 1)


def is_ready(dtype: str, spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, shape_for(spec.filters // spec.groups, dtype, _VECTORS)) is not None


def _library(dtype: str, shape: Shape) -> Library | None:
    return library(f"gradients-{dtype}-{shape.lanes}x{shape.vectors}", partial(_make, dtype=dtype, shape=shape))


def _make(module: ir.Module, *, dtype: str, shape: Shape) -> tuple[str, ...]:
    transpose = transpose_kernel(module, dtype)
    _total_kernel(module, dtype, transpose)
    _products_kernel(module, dtype, shape, transpose)
    return "total", "products"


def _products_kernel(module: ir.Module, dtype: str, shape: Shape, transpose: Kernel) -> None:
    """The task: the sums over one chunk of blocks, for all filters or a part of them, a panel at a time."""
    tiles = {height: sums_tile(module, dtype, shape, height) for height in heights(shape)}
    gather, pack = gather_kernel(module, dtype, transpose), pack_kernel(module, dtype, shape)
    kernel = Kernel(module, "products", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    size, chunk, part = np.dtype(dtype).itemsize, item // given.parts, item % given.parts
    sums = chunk.equals(0).where(given.sums, given.partial + (chunk - 1) * given.sums_bytes)
    begin, end = (given.blocks * chunk) // given.chunks, (given.blocks * (chunk + 1)) // given.chunks
    count = given.groups * given.panels
    first, last = (count * part) // given.parts, (count * (part + 1)) // given.parts
    with kernel.loop(end, start=begin) as number:
        block = blocks.opened(kernel, given, number, scratch)
        source = blocks.read(kernel, given, block, scratch, gather)
        with kernel.loop(last, start=first) as panel:
            group, map_ = panel // given.panels, (panel % given.panels) * shape.filters
            width = kernel.minimum(given.maps - map_, shape.filters)
            column = group * given.maps + map_
            _packed(kernel, given, block, column, width, shape.filters * size, size, pack, transpose)
            with kernel.loop(given.tap_count) as t:
                x = source + group * given.x_group + kernel.load(given.taps, offset=t * 8)
                target = sums + kernel.load(given.targets, offset=t * 8) + column * size

                def arguments_of(row: Value, x: Value = x, target: Value = target) -> tuple[Operand, ...]:
                    return (
                        x + row * size, given.pixels, block.count, block.free, target + row * given.row_step,
                        given.row_step, width, number - begin,
                    )  # fmt: skip

                each_tile(kernel, tiles, given.run, arguments_of)
    kernel.finish()


def _packed(
    kernel: Kernel, given: SimpleNamespace, block: Block, column: Value, width: Value, step: int, size: int,
    pack: Kernel, transpose: Kernel,
) -> None:  # fmt: skip
    """Some filters of a block's `gy`, the pixels one after the other, to where the block's memory is free."""
    with kernel.either(given.planes.equals(0)) as (last, first):
        with last:
            gy = given.gy + block.first * given.gy_item + block.row * given.gy_row + column * size
            kernel.call(pack, gy, given.results, block.count, width, block.free)
        with first, kernel.loop(block.images) as image:
            plane = given.gy + (block.first + image) * given.gy_item + block.row * given.gy_row
            kernel.call(
                transpose, plane + column * given.gy_filter, given.gy_filter,
                block.free + image * block.pixels * step, step, width, block.pixels,
            )  # fmt: skip


def _total_kernel(module: ir.Module, dtype: str, transpose: Kernel) -> None:
    """The task: some rows of the gradient with the other chunks' sums added, and then turned."""
    kernel = Kernel(module, "total", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, ("gw", "sums", "partial", "count", "rows", "filters", "span", "turned"))
    lanes, size, first = lanes_of(dtype), np.dtype(dtype).itemsize, item * given.span
    kind, rows = vector(FLOATS[dtype], lanes), kernel.minimum(given.rows - first, given.span)
    begin, end = first * given.filters, (first + rows) * given.filters
    nbytes = given.rows * given.filters * size
    with kernel.when(given.count > 0), kernel.loop(end, start=begin, step=lanes) as i:
        mask = kernel.lanes_below(end - i, lanes)
        total = kernel.variable(kernel.load_lanes(given.sums + i * size, kind, mask))
        with kernel.loop(given.count) as chunk:
            part = kernel.load_lanes(given.partial + chunk * nbytes + i * size, kind, mask)
            total.set(total.get() + part)
        kernel.store_lanes(total.get(), given.sums + i * size, mask)
    with kernel.when(given.turned > 0):
        kernel.call(
            transpose, given.sums + begin * size, given.filters * size, given.gw + first * size, given.rows * size,
            rows, given.filters,
        )  # fmt: skip
    kernel.finish()
