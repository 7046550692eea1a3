"""Winograd's filtering of images, as F(4x4, 3x3), and F(3, 3) of signals or its square, with transforms in registers.

A block's tiles of 6 x 6 inputs are transformed to 36 matrices (tiles, C), each of which the register tile multiplies
with its part of the transformed weight; 36 products of a tile make its 4 x 4 results. Where few tiles share a large
weight, tiles of 4 x 4 inputs and 2 x 2 results read half as much of it; at stride 2 tiles of 5 x 5 inputs make 2 x 2
results of 25 products, where windows of 3 x 3 have 36, and in gradients of such inputs 3 x 3 elements make 4 x 4.

Tables say where tiles begin, so that dilation (tiles of interleaved images) and volumes (2-d tiles, the taps of the
first axis inside the product) are the same kernels. A signal is an image one element wide: of tiles of 5 inputs, 5
products make 3 results of 3 taps. Where there are more taps, it is folded to rows that begin three elements after each
other: 25 products of a tile make 9 results of 9 taps, and the sums of longer windows go on over the tiles that follow,
which are transformed once for all of them. The transformed weight is kept as long as the weight stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu import winograd
from xpconv.cpu.compiled import blocks, turned_blocks, winograd_tiles
from xpconv.cpu.compiled.blocks import Arguments, blocks_of
from xpconv.cpu.compiled.build import Library, library, machine
from xpconv.cpu.compiled.call import Call, storing_now
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.job import Job, as_one
from xpconv.cpu.compiled.kept import Kept
from xpconv.cpu.compiled.moves import gather_kernel, lanes_of, transpose_kernel
from xpconv.cpu.compiled.tile import Shape, evenly, finishing, shape_for, tile_kernels
from xpconv.cpu.compiled.transforms import FORMS, Form, back_kernel
from xpconv.cpu.compiled.turned_blocks import turn_back
from xpconv.cpu.compiled.values import Operand, Value
from xpconv.cpu.compiled.weights import PackedBias, Packing
from xpconv.cpu.compiled.winograd_tables import (
    band_of,
    block_strides,
    in_tile,
    plane_bytes,
    products_of,
    sources_of,
    terms_of,
    tile_counts,
    unit_of,
    whole_of,
)  # fmt: skip
from xpconv.cpu.lines import LINE, lined
from xpconv.cpu.stripes import Stripe, narrowed
from xpconv.spec import Array, ConvSpec

_ARRAYS = ("x", "w", "y", "bias", "found")
_OWN = (
    "pixels", "rows_out", "taps", "tap_count", "extra", "filters", "panels", "parts", "finish", "zeros", "results_row",
    "results_pixel", "products_plane", "out_line", "last_row", "streams",
)  # fmt: skip
FIELDS = (
    *_ARRAYS, *blocks.FIELDS, *turned_blocks.FIELDS, *winograd_tiles.FIELDS, *winograd_tiles.fields_of("out"), *_OWN,
)  # fmt: skip
_TILE_BYTES = 1 << 20  # of transformed inputs and products that a block takes, about: they should stay in the cache
_STREAMED = 1 << 21  # elements of a transformed weight that no core's cache holds
_MOST = 112  # tiles of a block: more fall out of the cache
_PLANES = 4  # of a volume in a block, about

_FOUND_BYTES = 64  # of each item, for itself

_weights = Kept()


def members(dtype: str, spec: ConvSpec, limit: int, team: int) -> int:
    """The threads of a team that have room for what they transform within a limit, or 0.

    3x3 512->512@7, N=8, takes 4 MB for each: of 18 threads 17 have room in the default limit.
    """
    empty = 0 in (spec.batch, spec.channels, spec.filters, *spec.out_size)
    if empty or spec.axes > 3 or not (winograd.fits(spec) or winograd.is_spread(spec)):
        return 0
    return _members(dtype, winograd.as_images(spec), _form_of(spec), limit, team)


def _members(dtype: str, spec: ConvSpec, form: Form, limit: int, team: int) -> int:
    """The same of images or volumes."""
    some = team
    while some:
        needed = workspace(dtype, _stripes(dtype, spec, form, limit, some)[0].spec, form, some)
        if needed <= limit:
            break
        some = min(some * limit // needed, some - 1)
    return some


def workspace(dtype: str, spec: ConvSpec, form: Form, team: int) -> int:
    """Bytes that the scratch memory of all threads takes, of images or volumes, whose rows may have to be gathered."""
    whole = whole_of(spec, form)
    rows, images = _shape(whole, form, team)
    tiles_in, tiles_out = tile_counts(whole, form, rows, images)
    strip = ((rows - 1) * whole.stride[0] + whole.reach[0]) * math.prod(whole.padded_size[1:]) * spec.channels * images
    results = rows * math.prod(spec.out_size[1:]) * spec.filters * images
    size = np.dtype(dtype).itemsize
    planes = plane_bytes(tiles_in, spec.channels, size) + plane_bytes(tiles_out, spec.filters, size)
    return team * (form.points * planes + (strip + results) * size)


def _form_of(spec: ConvSpec) -> Form:
    return FORMS[winograd.compiled_for(spec)]


class Winograd:
    """A convolution that `winograd.fits`, or `is_spread`, prepared."""

    def __init__(self, call: Call) -> None:
        self._form, self._call = _form_of(call.spec), _of_images(call)
        call, spec, dtype = self._call, self._call.spec, self._call.dtype
        self._shape = shape_for(spec.filters, dtype)
        self._members = max(_members(dtype, spec, self._form, call.limit, call.team), 1)
        stripes = _stripes(dtype, spec, self._form, call.limit, self._members)
        jobs = [self._job_of(stripe, len(stripes)) for stripe in stripes]
        begins, first = [], 0
        for stripe, job in zip(stripes, jobs, strict=True):
            x, y = stripe.begins(call.x_strides, call.y_strides)
            begins.append((x, 0, y, 0, first * _FOUND_BYTES))
            first += job.items
        self._job = as_one(jobs, begins)
        width = -(-spec.filters // lanes_of(dtype)) * lanes_of(dtype)
        self._bias = PackedBias(dtype, 1, spec.filters, width)

    def _job_of(self, stripe: Stripe, stripes: int) -> Job:
        """What computes one of so many stripes."""
        call, form, spec = self._call, self._form, stripe.spec
        dtype, size, whole, team = call.dtype, call.itemsize, whole_of(spec, form), self._members
        sources = partial(sources_of, spec=spec, sources=call.sources_of(stripe))
        cut = blocks_of(
            whole, call.x_strides, dtype, team, sources, call.fill, call.limit, _shape(whole, form, team),
            placed=form.matrices.axes == 2, unit=unit_of(whole, form) if stripes == 1 else 0,
        )  # fmt: skip
        panels, count = -(-spec.filters // self._shape.filters), cut.count * stripes
        parts = 1 if count >= 4 * team or count % team == 0 else min(panels, team)
        turned = call.y_strides[-1] != size
        _, tiles_out = tile_counts(whole, form, cut.rows, cut.images)
        block = block_strides(spec, call.y_strides, size, turned)
        line, terms = math.prod(spec.out_size[1:]), terms_of(whole, form)
        results_row, results_pixel = in_tile(form, spec, block[-3:-1])
        numbers, tables = winograd_tiles.numbers_and_tables(spec, whole, form)
        of_input, places = winograd_tiles.input_of(spec, whole, form, cut, dtype, sources, call.fill)
        tables |= places
        numbers |= of_input | winograd_tiles.steps_of(block, "out")
        numbers |= turned_blocks.numbers_of(spec, call.y_strides, size) | {
            "tap_count": len(terms), "extra": int(terms[-1]), "filters": spec.filters, "panels": panels, "parts": parts,
            "results_row": results_row, "results_pixel": results_pixel,
            "products_plane": plane_bytes(tiles_out, spec.filters, size), "out_line": line,
            "last_row": spec.out_size[0], "streams": int(call.is_streamed and _stores_lines(dtype)),
        }  # fmt: skip
        tables |= products_of(spec, cut, whole, form, size)
        tables["zeros"] = np.zeros(self._shape.filters, dtype)
        if call.activation is not None:
            tables["finish"] = finishing(call.activation, dtype, call.leak)
        results = cut.images * cut.rows * line * spec.filters * size if turned else 0
        tiles = form.points * (numbers["spectra_plane"] + numbers["products_plane"])
        scratch = cut.images * cut.strip + tiles + results
        compiled = _library(dtype, self._shape, form)
        assert compiled is not None
        arguments = Arguments(FIELDS, len(_ARRAYS), numbers, tables, cut)
        return Job(compiled.address("conv"), arguments, cut.count * parts, scratch, call.team, team)

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`; whether all of it is finite: what is not has spread over its tiles."""
        spec = self._call.spec
        weight = _weights.of(w, (spec.flip, spec.axes, self._form.name), self._transformed)
        found = np.zeros((self._job.items, _FOUND_BYTES // self._call.itemsize), self._call.dtype)
        self._job(x, weight, y, self._bias(bias), found)
        return not found.any()

    def _transformed(self, w: Array) -> Array:
        """The weight as (panels, points, taps C, filters of a tile): some panels at a time, of which the limit has room
        for two copies.
        """
        spec, width, matrices = self._call.spec, self._shape.filters, self._form.matrices
        if spec.flip:
            w = np.flip(w, axis=tuple(range(w.ndim - 2)))
        rows = matrices.points * matrices.terms(spec.window) * spec.channels
        packed = lined((-(-spec.filters // width), rows, width), w.dtype)
        each = max(self._call.limit // (4 * rows * width * w.itemsize), 1)
        for first in range(0, len(packed), each):
            some = packed[first : first + each]
            part = w[..., first * width : (first + each) * width]
            u = winograd.transformed_weight(part, matrices).reshape(rows, -1)
            order = np.arange(rows, dtype=np.int64) * u.strides[0]
            Packing(self._call.dtype, 1, u.shape[-1], width, order, u.strides[-1])(u, self._call.team, out=some)
        return packed


def _stores_lines(dtype: str) -> bool:
    """Whether a vector is a whole line of the caches: past them, two halves that are stored apart take longer.

    Zen 3, N=8: 64@224 102 ms past the caches and 88 by way of them, 64@112 26.8 and 23.0.
    """
    return lanes_of(dtype) * np.dtype(dtype).itemsize == LINE


# --- What a block is -------------------------------------------------------------------------------------------------


def _of_images(call: Call) -> Call:
    """Signals as images that are one element wide, a step of any length from the next."""
    if call.spec.axes > 1:
        return call
    x_strides, y_strides = ((item, step, step, map_) for item, step, map_ in (call.x_strides, call.y_strides))
    return replace(call, spec=winograd.as_images(call.spec), x_strides=x_strides, y_strides=y_strides)


def _fewest() -> int:
    """Tiles of a block at least: fewer wait for the weight, the longer the wider vectors are.

    Zen 3, N=8: 3x3 256@14 8.5 ms with 28 and 7.5 with 16, dilated 256@28 31.1 and 27.4.
    """
    here = machine()
    assert here is not None
    return 28 if here.registers == 32 else 16


def _most_shared(team: int) -> int:
    """Tiles of a block whose filters threads share, each of which transforms all of them.

    With narrow vectors no more than would leave threads too few of their own. Zen 3: 3x3 256@28 of dilation 2, 64
    tiles, 4.9 ms shared and 3.8 with 16 for each block, 256@14, N=4, 64 tiles, 4.5 and 3.5, 512@7, N=8, 32 tiles, 8.6
    and 8.0; N=4, 16 tiles, 4.8 and 5.4.
    """
    here = machine()
    assert here is not None
    return _MOST if here.registers == 32 else min(team * _fewest() - 1, _MOST)


def _tiles(spec: ConvSpec, form: Form) -> int:
    """Tiles of a block, about."""
    return min(max(_TILE_BYTES // (form.points * (spec.channels + spec.filters) * 4), _fewest()), _MOST)


def _stripes(dtype: str, spec: ConvSpec, form: Form, limit: int, team: int) -> list[Stripe]:
    """The stripes that images or volumes are cut in, so narrow that they keep to a limit of scratch memory.

    The tiles of an image's row are those of a block at most. Those of a volume's plane are fewer: planes that blocks
    share are transformed for each of them, so that blocks should be of several.

    Milliseconds on two cores of an Emerald Rapids, uncut and since, as many filters as channels: 64@64x4096 45 and 36,
    32@2048x2048 215 and 156, volumes 32@64x64x64 26 and 17, 32@16x128x128 32 and 17. What did not keep to the limit was
    NumPy's: 64@64x8192 368 and 49, 128@256x4096 1620 and 400, 64@8x256x256 376 and 122.
    """
    lead, area = spec.axes - 2, math.prod(form.matrices.tile)
    units = [n * d for n, d in zip(form.matrices.tile, spec.dilation[lead:], strict=True)][1 - lead :]
    tiles = max(_tiles(spec, form) // (_PLANES if lead else 1), 1)
    return narrowed(
        spec, tiles * area // unit_of(spec, form), units, lambda stripe: workspace(dtype, stripe, form, team), limit
    )  # fmt: skip


def _shape(whole: ConvSpec, form: Form, team: int) -> tuple[int, int]:
    """Rows and images of a block."""
    tiles = _tiles(whole, form)
    unit, band = unit_of(whole, form), band_of(whole, form)
    units = whole.out_size[0] // unit
    image_tiles, weight = units * band, form.points * len(terms_of(whole, form)) * whole.channels * whole.filters
    if whole.batch * image_tiles <= _most_shared(team) and weight > _STREAMED:
        return units * unit, whole.batch  # threads share the filters: the weight is read from memory once
    if image_tiles <= tiles:
        groups = max(-(-whole.batch * image_tiles // tiles), 1)
        groups = min(-(-groups // team) * team, whole.batch)
        return units * unit, -(-whole.batch // groups)
    return -(-units // min(max(round(image_tiles / tiles), 1), units)) * unit, 1


# --- The kernels ------------------------------------------------------------------------------------------------------


def is_ready(dtype: str, spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, shape_for(spec.filters, dtype), _form_of(spec)) is not None


def _library(dtype: str, shape: Shape, form: Form) -> Library | None:
    name = f"winograd-{form.name}-{dtype}-{shape.lanes}x{shape.vectors}"
    return library(name, partial(_make, dtype=dtype, shape=shape, form=form))


def _make(module: ir.Module, *, dtype: str, shape: Shape, form: Form) -> tuple[str, ...]:
    """The task: a block's input, read or gathered, transformed, its products, its results, of all filters or a part."""
    tiles = tile_kernels(module, dtype, shape, shape.every_height, foresees=True)
    transpose = transpose_kernel(module, dtype)
    gather = gather_kernel(module, dtype, transpose)
    forward, back = winograd_tiles.Forward(module, dtype, form), back_kernel(module, dtype, form)
    size = np.dtype(dtype).itemsize
    kernel = Kernel(module, "conv", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    block = blocks.opened(kernel, given, item // given.parts, scratch)
    source = blocks.read(kernel, given, block, scratch, gather)
    units = block.rows // given.unit
    spectra, products = block.free, block.free + given.spectra_plane * form.points
    results = products + given.products_plane * form.points
    forward(kernel, given, block, source, units + given.extra, spectra)
    part = item % given.parts
    start, stop = (given.panels * part) // given.parts, (given.panels * (part + 1)) // given.parts
    count = block.images * units * given.band
    _multiply(kernel, given, tiles, shape, form.points, size, (start, stop), count, spectra, products)
    first = start * shape.filters
    width = kernel.minimum(given.filters, stop * shape.filters) - first
    own = results - block.row * given.out_line * given.filters * size
    y = given.turned.equals(1).where(own, given.y + block.first * given.y_item)
    stream = storing_now(kernel, given)
    with winograd_tiles.each(kernel, given, block.images, units, block.row // given.unit) as tile:
        kernel.call(
            back, products + (tile.number * given.filters + first) * size, given.products_plane,
            y + tile.place(given, "out") + first * size, given.results_row, given.results_pixel, width,
            *tile.left(given), given.finish, given.bias + first * size, given.found + item * _FOUND_BYTES,
            stream,
        )  # fmt: skip
    with kernel.when(given.turned > 0):
        rows = kernel.minimum(given.last_row - block.row, block.rows)
        filled = replace(block, rows=rows, pixels=rows * given.out_line)
        turn_back(kernel, given, filled, transpose, results, given.filters * size, first, width, size)
    with kernel.when(stream > 0):
        kernel.fence()
    kernel.finish()
    return ("conv",)


def _multiply(
    kernel: Kernel, given: SimpleNamespace, tiles: dict[int, Kernel], shape: Shape, points: int, size: int,
    panels: tuple[Value, Value], count: Value, spectra: Value, products: Value,
) -> None:  # fmt: skip
    """For every point the transformed tiles times its part of the weight, a panel of filters at a time."""
    panel_bytes = given.tap_count * given.channels * (shape.filters * size)
    start, stop = panels
    with kernel.loop(points) as point, kernel.loop(stop, start=start) as panel:
        x, w = spectra + point * given.spectra_plane, given.w + (panel * points + point) * panel_bytes
        y = products + point * given.products_plane + panel * (shape.filters * size)
        width = given.filters - panel * shape.filters
        jump = (panel + 1 < stop).where(panel_bytes * points, (start - panel) * (panel_bytes * points) + panel_bytes)
        step = kernel.minimum(kernel.constant(shape.filters * size * max(tiles)) // count, shape.filters * size)

        def arguments_of(tile: Value) -> tuple[Operand, ...]:
            return (
                x, given.pixels + tile * 8, given.taps, given.tap_count, given.channels, w, shape.filters * size, y,
                given.rows_out + tile * 8, width, 0, given.zeros, -1,
                w + jump + (tile * panel_bytes) // count, step,
            )  # fmt: skip

        evenly(kernel, tiles, count, arguments_of)
