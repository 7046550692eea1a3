"""Convolution straight from the input: tiles of pixels by filters in registers, no patches copied.

The taps of the last axis and the channels of each are one run where the dilation leaves them side by side. Blocks of
rows are shared among threads, and the filters of a block where there are too few of them. Where all is one block, a
panel of the weight is packed where it is used, in the thread's own cache, or in chunks of several panels (`deep`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu import processors
from xpconv.cpu.compiled import blocks, deep, threads, turned_blocks
from xpconv.cpu.compiled.blocks import BLOCK_BYTES, Arguments, Blocks, blocks_of, in_place
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.call import Call, storing, storing_now
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.job import Job, as_one
from xpconv.cpu.compiled.moves import gather_kernel, lanes_of, transpose_kernel
from xpconv.cpu.compiled.tile import (
    SUMMED,
    Shape,
    each_tile,
    even_run,
    finishing,
    packing_tile,
    shape_for,
    tile_kernels,
)
from xpconv.cpu.compiled.turned_blocks import turn_back
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.cpu.compiled.weights import PackedBias, Packing, pack_kernel, taps_order
from xpconv.cpu.lines import LINE
from xpconv.cpu.stripes import Stripe, narrowed, stripe_of, vector_units
from xpconv.spec import Array, ConvSpec, Sizes

_ARRAYS = ("x", "w", "y", "bias")
_OWN = (
    "pixels", "results", "taps", "tap_count", "run", "groups", "maps", "panels", "parts", "finish", "x_group",
    "filters", "packing", "packs", "panel_bytes", "own", "streams", "w_start", "w_step", "chunks", "chunk", "near",
)  # fmt: skip
FIELDS = (*_ARRAYS, *blocks.FIELDS, *turned_blocks.FIELDS, *_OWN)


class Direct:
    """Any convolution, prepared."""

    def __init__(self, call: Call) -> None:
        spec, size, shape, self._call = call.spec, call.itemsize, _shape(call.spec, call.dtype), call
        group, groups = _group(spec, shape), spec.groups // shape.groups
        maps, self._shape, self._backwards = group.filters, shape, _is_backwards(spec)
        panels, turned = -(-maps // shape.filters), call.y_strides[-1] != size
        order = taps_order(replace(spec, flip=spec.flip and not self._backwards), call.w_strides)
        self._pack = Packing(call.dtype, groups, maps, shape.filters, order, call.w_strides[-1])
        self._bias = PackedBias(call.dtype, groups, maps, shape.filters)
        self._panels = order[0], _step(order, maps, shape, call), len(order) * shape.filters * size
        may_be_deep = self._panels[1] > 0 and not turned and spec.groups == 1 and deep.is_for(shape)
        self._is_deep = may_be_deep and _is_for_all(call, panels, min(len(processors.allowed()), _MANY), chunked=True)
        together = self._is_deep or _is_for_all(call, groups * panels, call.team)
        one = [stripe_of(spec, tuple(slice(0, n) for n in spec.out_size))]
        stripes = one if together else _stripes(call.dtype, spec, call.limit, call.x_strides, call.y_strides)
        cuts = [self._cut(stripe, together=together) for stripe in stripes]
        count = sum(cut.count for cut in cuts)
        self._packs = count <= call.team
        parts = 1 if count >= 4 * call.team or count % call.team == 0 else min(groups * panels, call.team)
        jobs = [self._job_of(stripe.spec, cut, parts) for stripe, cut in zip(stripes, cuts, strict=True)]
        begins = [stripe.begins(call.x_strides, call.y_strides) for stripe in stripes]
        self._job = as_one(jobs, [(x, 0, y, 0) for x, y in begins])

    def _cut(self, stripe: Stripe, *, together: bool) -> Blocks:
        """A stripe in blocks, of which all of a team may read all that there is."""
        call, group, size = self._call, _group(stripe.spec, self._shape), self._call.itemsize
        most, gap = call.limit // (2 * call.team), _gap(group, size)
        if call.y_strides[-1] != size:  # then all groups' results are held too
            most = min(most, BLOCK_BYTES) // (stripe.spec.groups // self._shape.groups)
        whole = (stripe.spec.out_size[0], stripe.spec.batch) if together else None
        sources = call.sources_of(stripe)
        return blocks_of(group, call.x_strides, call.dtype, call.team, sources, call.fill, most, whole, gap)

    def _job_of(self, spec: ConvSpec, cut: Blocks, parts: int) -> Job:
        """What computes a stripe, the filters of a block in so many parts."""
        call, shape, size, group = self._call, self._shape, self._call.itemsize, _group(spec, self._shape)
        groups, maps, turned = spec.groups // shape.groups, group.filters, call.y_strides[-1] != size
        first, step, panel_bytes = self._panels
        windows, run_elements = _taps(group, apart=_gap(group, size) > 0 or self._backwards)
        places = cut.places(windows, spec.dilation)[:: -1 if self._backwards else 1]
        whole_run = run_elements // shape.groups
        run = even_run(whole_run, deep.ROWS if self._is_deep else 2 * SUMMED)
        runs, tap_count = np.arange(0, whole_run, run), math.prod(windows) * (whole_run // run)
        chunk = max(deep.ROWS // run, 1)
        own = cut.images * cut.strip + int(turned) * cut.pixels * spec.filters * size
        own_bytes = chunk * run * deep.PANELS * shape.filters * size if self._is_deep else panel_bytes
        numbers = turned_blocks.numbers_of(spec, call.y_strides, size) | {
            "tap_count": tap_count, "run": run, "groups": groups, "maps": maps, "panels": -(-maps // shape.filters),
            "parts": parts, "x_group": group.channels * call.x_strides[-1], "filters": spec.filters,
            "panel_bytes": panel_bytes, "packs": int(self._packs), "own": own,
            "streams": storing(streams=call.is_streamed, far=call.is_far), "w_start": first, "w_step": step,
            "chunk": chunk, "chunks": -(-tap_count // chunk),
            "near": 0 if self._packs or cut.strip else _near(spec, size, panel_bytes, shape),
        }  # fmt: skip
        tables = {
            "pixels": cut.starts(group),
            "taps": (places[:, None] + runs * (shape.groups * size)).reshape(-1),
            "results": cut.results(spec, call.y_strides, spec.filters * size, turned),
            "packing": self._pack.arguments,
        }
        if call.activation is not None:
            tables["finish"] = finishing(call.activation, call.dtype, call.leak)
        compiled = _library(call.dtype, shape)
        assert compiled is not None
        address, arguments = compiled.address("deep" if self._is_deep else "conv"), (numbers, tables, cut)
        scratch = own + int(self._packs) * own_bytes
        return Job(address, Arguments(FIELDS, len(_ARRAYS), *arguments), cut.count * parts, scratch, call.team)

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`, where no value reaches further than its windows."""
        weight = w if self._packs else self._pack(w, self._call.team)
        self._job(x, weight, y, self._bias(bias))
        return True


def _group(spec: ConvSpec, shape: Shape) -> ConvSpec:
    """One of the groups that fill up vectors."""
    groups = spec.groups // shape.groups
    return replace(spec, channels=spec.channels // groups, filters=spec.filters // groups, groups=1)


def _near(spec: ConvSpec, size: int, panel_bytes: int, shape: Shape) -> int:
    """Results of which all filters are computed before the next: what they read stays in the level 1 cache; 0 for all.

    So results are also written where others just were, and the next ones' input is asked for meanwhile. 1x1 on two
    cores of an Emerald Rapids, N=8: 64->256@56 3.54 -> 3.36 ms, 256->64@56 4.30 -> 3.55, 64->64@56 1.03 -> 0.89.
    """
    whole = panel_bytes * -(-spec.filters // shape.filters)
    if math.prod(spec.window) > 1 or spec.groups > 1 or 2 * whole > processors.level_2_bytes():
        return 0
    height = shape.heights[0]
    return max(_NEAR // (math.prod(spec.stride) * spec.channels * size * height), 1) * height


_NEAR = 1 << 13  # bytes of input, about


def _step(order: Array, maps: int, shape: Shape, call: Call) -> int:
    """Bytes from one row of a weight to the next where panels are whole and filters lie side by side, else 0."""
    steps = np.unique(np.diff(order))
    return int(steps[0]) if len(steps) == 1 and maps % shape.filters == 0 and call.w_strides[-1] == call.itemsize else 0


_MANY = 8  # threads, each of which should have a panel of a weight that is packed in chunks


def _is_for_all(call: Call, panels: int, team: int, *, chunked: bool = False) -> bool:
    """Whether all of a team read all of a small input, each for some panels of a large weight, which is then read once.

    3x3 512@7, N=1 took as long on two threads as on one when each read the whole weight for half of the rows. An input
    is small that a level 2 cache holds. Milliseconds with one of 2 MB, when all above 512 KB were cut and since: 1x1
    512->2048@7, N=8 (0.8 MB) 4.90 and 3.92; 3x3 512@14 of stride 2, N=4 (1.6 MB) 5.32 and 4.47.

    What is `chunked` (`deep`) is added up in another order: that must not follow from how many threads are free.
    """
    spec = call.spec
    x_bytes = spec.batch * math.prod(spec.padded_size) * spec.channels * call.itemsize
    w_bytes = math.prod(spec.window) * spec.channels // spec.groups * spec.filters * call.itemsize
    small = processors.level_2_bytes()
    most = max(small, min(deep.MOST_INPUT, w_bytes // 2)) if chunked else small
    shared = (team > 1 or chunked) and panels >= team
    return shared and x_bytes <= min(most, call.limit // (2 * team)) and w_bytes > x_bytes


def _shape(spec: ConvSpec, dtype: str) -> Shape:
    """The tile: several groups in a vector where each has as many channels as filters, and together they fill it.

    Tiles of four vectors are lower, and read a panel of the weight more often, which has to be near. 1x1 on two cores
    of an Emerald Rapids, of two vectors and of four: N=1 512->2048@7 (panels of 128 KB) 0.49 and 0.42 ms, N=8 2.75 and
    2.64, 256->64@56 2.68 and 2.60, 1024->256@14 (256 KB) 2.76 and 2.79, 2048->512@7 (512 KB) 3.35 and 3.64.
    """
    channels, maps, lanes = spec.channels // spec.groups, spec.filters // spec.groups, lanes_of(dtype)
    together = lanes // maps
    shared = channels == maps and 1 < together < min(lanes, spec.groups) and together * maps == lanes
    if shared and spec.groups % together == 0:
        return Shape(lanes, 1, together)
    panel_bytes = math.prod(spec.window) * channels * 4 * lanes * np.dtype(dtype).itemsize
    return shape_for(maps, dtype, 4 if panel_bytes <= processors.level_2_bytes() // 8 else 2)


def _gap(spec: ConvSpec, size: int) -> int:
    """Bytes to gather positions apart by, where a tile's pixels would all share a set of the level 1 cache.

    1x1 1024->256@14, N=8: 1.93 -> 1.86 ms; filters that are too few would not pay for it.
    """
    alike = spec.stride[-1] * spec.channels * size % _SETS == 0
    return LINE if alike and spec.filters >= 128 else 0


_SETS = 1 << 12  # bytes after which a level 1 cache begins again with its first set


def _is_backwards(spec: ConvSpec) -> bool:
    """Whether a flipped weight is read as it lies, and the input's taps from the last one on.

    The rows of its panels then follow each other, and are packed while they are multiplied: Zen 3, N=1, 3x3 512@7
    4.7 ms turned and 3.2 so, 512@14 of stride 2 3.7 and 3.0. Runs are a tap's own: of few channels they would be short.
    """
    return spec.flip and spec.channels // spec.groups >= _LONG and math.prod(spec.window) > 1


_LONG = 128  # channels


def _taps(spec: ConvSpec, *, apart: bool) -> tuple[Sizes, int]:
    """The window that taps are counted in, and the elements of each tap's run, which may have to be apart."""
    if spec.dilation[-1] == 1 and not apart:
        return spec.window[:-1], spec.window[-1] * spec.channels
    return spec.window, spec.channels


def computed(dtype: str, spec: ConvSpec, limit: int) -> int:
    """Filters that the kernels compute, those that fill up their tiles included; 0 where they take no such call.

    Half a vector takes as long as a whole one: 64->3@512x512 29 ms on two cores of an Emerald Rapids, 64->16 as long.
    """
    if 0 in (spec.batch, spec.channels, spec.filters, *spec.out_size):
        return 0
    shape = _shape(spec, dtype)
    if workspace(dtype, _stripes(dtype, spec, limit)[0].spec) > limit:
        return 0
    groups = spec.groups // shape.groups
    return groups * -(-spec.filters // groups // shape.filters) * max(shape.filters, lanes_of(dtype))


def workspace(dtype: str, spec: ConvSpec) -> int:
    """The least bytes that all threads together take: the rows of one window, and a row of results, twice."""
    rows = spec.reach[0] * math.prod(spec.padded_size[1:]) * spec.channels
    return 2 * threads.thread_count() * (rows + math.prod(spec.out_size[1:]) * spec.filters) * np.dtype(dtype).itemsize


def _stripes(dtype: str, spec: ConvSpec, limit: int, x_strides: Sizes = (), y_strides: Sizes = ()) -> list[Stripe]:
    """The stripes of rows that are so long that caches would not hold what is gathered of them, or memory fall short.

    Without strides of arrays all may have to be gathered, and turned. Milliseconds on two cores of an Emerald Rapids,
    uncut and since: 3x3x3 1->16@64x512x512 260 and 103, 8->8@16x512x512 296 and 140, 64->64@8x256x256 608 and 494
    (which did not keep to the limit, and were NumPy's), 32->32@16x128x128 with channels first 71 and 55.
    """
    size, row = np.dtype(dtype).itemsize, math.prod(spec.out_size[1:])
    gathered = not x_strides or not in_place(_group(spec, _shape(spec, dtype)), x_strides, size)
    channels = spec.channels // spec.groups * math.prod(spec.stride[1:]) * spec.reach[0] if gathered else 0
    filters = spec.filters if not y_strides or y_strides[-1] != size else 0
    held = (_WINDOWS * channels + filters) * size
    most, units = _ROWS_BYTES // held if held else row, vector_units(spec, lanes_of(dtype))
    return narrowed(spec, most, units, partial(workspace, dtype), limit)


_WINDOWS, _ROWS_BYTES = 3, 1 << 19  # so many rows of windows, of so many bytes


def is_ready(dtype: str, spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, _shape(spec, dtype)) is not None


def _library(dtype: str, shape: Shape) -> Library | None:
    name = f"direct-{dtype}-{shape.lanes}x{shape.vectors}-{shape.groups}"
    return library(name, partial(_make, dtype=dtype, shape=shape))


def _make(module: ir.Module, *, dtype: str, shape: Shape) -> tuple[str, ...]:
    """The task: one block of results, all filters or a part of them, a panel of the weight at a time."""
    tiles, transpose = tile_kernels(module, dtype, shape), transpose_kernel(module, dtype)
    gather, pack = gather_kernel(module, dtype, transpose), pack_kernel(module, dtype)
    packing, highest = packing_tile(module, dtype, shape), shape.heights[:1]
    made = _Made(tiles, tile_kernels(module, dtype, shape, highest, foresees=True), packing, pack)
    kernel = Kernel(module, "conv", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    size = np.dtype(dtype).itemsize
    block = blocks.opened(kernel, given, item // given.parts, scratch)
    y = given.turned.equals(1).where(block.free, given.y + block.first * given.y_item + block.row * given.y_row)
    part, count = item % given.parts, given.groups * given.panels
    start, stop = (count * part) // given.parts, (count * (part + 1)) // given.parts
    own, stream = scratch + given.own, storing_now(kernel, given)
    source = kernel.variable(given.x)
    near = given.near.equals(0).where(block.count, given.near)
    with kernel.loop(block.count, step=near) as some, kernel.loop(stop, start=start) as panel:
        group, first = panel // given.panels, (panel % given.panels) * shape.filters
        with kernel.when((first.equals(0) | panel.equals(start)) & some.equals(0)):
            source.set(blocks.read(kernel, given, block, scratch, gather, group * given.x_group))
            if shape.groups > 1:
                _take_turns(kernel, source.get(), block.images * given.strip, dtype, shape)
        x, target = source.get(), y + (group * given.maps + first) * size
        now = _Panel(panel, group, first, x, target, own, stream, size)
        _multiply(kernel, given, made, shape, now, start, block.count, (some, near))
    with kernel.when(given.turned > 0):
        first, last = ((p // given.panels) * given.maps + (p % given.panels) * shape.filters for p in (start, stop))
        turn_back(kernel, given, block, transpose, y, given.filters * size, first, last - first, size)
    with kernel.when(stream > 0):
        kernel.fence()
    kernel.finish()
    if deep.is_for(shape):
        deep.make(module, dtype, shape, FIELDS, gather)
        return ("conv", "deep")
    return ("conv",)


@dataclass(frozen=True)
class _Made:
    """The kernels that a block is computed by."""

    tiles: dict[int, Kernel]
    ahead: dict[int, Kernel]  # that ask for what is read next
    packing: Kernel
    pack: Kernel


@dataclass(frozen=True)
class _Panel:
    """Filters of a tile, inside the kernel: their number, group and place in it, and where all of it lies."""

    number: Value
    group: Value
    first: Value
    x: Value
    y: Value
    own: Value  # memory for the packed weight
    stream: Value
    size: int  # of an element


def _multiply(
    kernel: Kernel, given: SimpleNamespace, made: _Made, shape: Shape, panel: _Panel, start: Value, count: Value,
    span: tuple[Value, Value],
) -> None:  # fmt: skip
    """Some of a block's results, so many from one on, by a panel; the first one asks for what the next results read."""
    (some, near), size = span, panel.size
    w = given.packs.equals(1).where(panel.own, given.w + panel.number * given.panel_bytes)
    bias = given.bias + panel.number * (shape.filters * size)

    def arguments_of(pixel: Value, w: Value = w, step: Operand = shape.filters * size) -> tuple[Operand, ...]:
        return (
            panel.x, given.pixels + pixel * 8, given.taps, given.tap_count, given.run, w, step,
            panel.y, given.results + pixel * 8, given.maps - panel.first, given.finish, bias, panel.stream,
        )  # fmt: skip

    def foreseeing(pixel: Value) -> tuple[Operand, ...]:
        later = kernel.load(given.pixels + kernel.minimum(pixel + near, count - 1) * 8)
        return (*arguments_of(pixel), panel.x + later, max(made.ahead) * size)

    done, end = kernel.variable(some), kernel.minimum(some + near, count)
    with kernel.when(given.packs > 0):
        alongside = (count >= shape.heights[0]) & (given.w_step > 0)
        with kernel.either(alongside) as (meanwhile, before):
            with meanwhile:
                rows = given.w + given.w_start + (panel.group * given.maps + panel.first) * size
                kernel.call(made.packing, *arguments_of(kernel.constant(0), rows, given.w_step), panel.own)
                done.set(kernel.constant(shape.heights[0]))
            with before:
                kernel.call(made.pack, given.packing, given.w, panel.number, panel.own)
    with kernel.either(panel.number.equals(start) & (end < count)) as (more, last):
        with more:
            each_tile(kernel, made.ahead, end, foreseeing, some)
        with last:
            each_tile(kernel, made.tiles, end, arguments_of, done.get())


def _take_turns(kernel: Kernel, source: Value, count: Value, dtype: str, shape: Shape) -> None:
    """Let the groups that share a vector take turns in so many bytes of gathered input, in place."""
    kind, width = vector(FLOATS[dtype], shape.lanes), shape.lanes * np.dtype(dtype).itemsize
    with kernel.loop(count, step=width) as at:
        kernel.store(kernel.shuffled(kernel.load(source + at, kind), shape.taking_turns), source + at)
