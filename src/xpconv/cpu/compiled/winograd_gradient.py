"""The gradient of the weight in Winograd's domain: F(4x4, 3x3) read backwards, for windows of 3 by 3 of images.

Where ``y = A^T [(G w G^T) (B^T d B)] A`` sums over a tile's products, ``gw = G^T [sum of (B^T d B) (A gy A^T)] G`` sums
over tiles: for each of 36 points one product of the transformed input tiles (tiles, C) with the transformed tiles of
`gy` (tiles, F), a quarter of the multiplications of the definition. Chunks of blocks have sums of their own, so that
threads share no sums; how many there are follows from the call alone, as the result then does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu import winograd as transforms
from xpconv.cpu.address import Told
from xpconv.cpu.compiled import blocks, threads, turn, winograd_tiles
from xpconv.cpu.compiled.blocks import Arguments, Sources, blocks_of, strides_of
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.gradient_tiles import heights, sums_tile
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import (
    gather_kernel,
    in_vectors,
    lanes_of,
    name_of,
    put,
    take,
    transpose_kernel,
)
from xpconv.cpu.compiled.tile import Shape, each_tile, shape_for
from xpconv.cpu.compiled.transforms import IMAGES, backward_kernel, weight_back
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.cpu.compiled.winograd_tables import (
    band_of,
    in_tile,
    plane_bytes,
    sources_of,
    tile_counts,
    unit_of,
    whole_of,
)  # fmt: skip
from xpconv.spec import Array, ConvSpec, Sizes

_ARRAYS = ("x", "gy", "sums")
_OWN = (
    "pixels", "filters", "panels", "chunks", "blocks", "parts", "results_row", "results_pixel", "gradients_plane",
    "sums_bytes",
)  # fmt: skip
FIELDS = (*_ARRAYS, *blocks.FIELDS, *winograd_tiles.FIELDS, *winograd_tiles.fields_of("gy"), *_OWN)
_TILES = 112  # of a block, about: with fewer the sums are read and stored too often
_MOST_CHUNKS = 4  # whose sums are added up in the end
_POINTS, _TAPS = transforms.F4.points, 9
_SPAN = 1 << 12  # elements of the gradient that one item transforms back


@dataclass(frozen=True, eq=False)
class _Job:
    """All that does not depend on the arrays' addresses."""

    shape: Shape
    arguments: Arguments
    chunks: int
    items: int
    scratch: int
    team: int
    members: int


def members(dtype: str, spec: ConvSpec, limit: int, team: int) -> int:
    """The threads of a team that compute the gradient here, by two sums at least; 0 for half of them or fewer."""
    plain = transforms.fits(spec) and (spec.window, set(spec.stride)) == ((3, 3), {1})
    if not plain or 0 in (spec.batch, spec.channels, spec.filters, *spec.out_size):
        return 0
    if _chunks(spec, np.dtype(dtype).itemsize, limit) < 2 or min(spec.channels, spec.filters) < lanes_of(dtype):
        return 0
    some = _members(dtype, spec, limit, team)
    return some if 2 * some > team else 0


def grad_weight(x: Array, gy: Array, spec: ConvSpec, sources: Sources, limit: int) -> Array:
    """As `gradients.grad_weight`; not to be used where it is not finite: what is not spreads over its tiles."""
    dtype = name_of(x.dtype)
    gy = gy if strides_of(gy)[-1] == gy.itemsize else turn.channels_last(gy)
    job = _job(spec, strides_of(x), strides_of(gy), dtype, threads.thread_count(), sources, limit)
    compiled = _library(dtype, job.shape)
    assert compiled is not None
    sums = np.empty((job.chunks, _POINTS, spec.channels * spec.filters), dtype)
    arguments = job.arguments.of(x, gy, sums)
    threads.run(compiled.address("products"), arguments, job.items, job.scratch, job.team, job.members)
    gw = np.empty((_TAPS, spec.channels * spec.filters), dtype)
    size = spec.channels * spec.filters
    ends = Told(2, (job.chunks, size)).of(sums, gw)
    threads.run(compiled.address("total"), ends, -(-size // _SPAN), 0, job.team)
    return gw.reshape(*spec.window, spec.channels, spec.filters)


# --- How it is cut ----------------------------------------------------------------------------------------------------


def _rows_and_images(whole: ConvSpec) -> tuple[int, int]:
    """Of a block."""
    unit, band = unit_of(whole, IMAGES), band_of(whole, IMAGES)
    units = whole.out_size[0] // unit
    if units * band <= _TILES:
        groups = -(-whole.batch // max(_TILES // (units * band), 1))
        return units * unit, -(-whole.batch // groups)
    return -(-units // min(round(units * band / _TILES), units)) * unit, 1


def _chunks(spec: ConvSpec, size: int, limit: int) -> int:
    """Sums of their own: as many as a half of the memory holds, and as there are blocks."""
    whole = whole_of(spec, IMAGES)
    rows, images = _rows_and_images(whole)
    count = -(-whole.out_size[0] // rows) * -(-spec.batch // images)
    held = limit // 2 // (_POINTS * spec.channels * spec.filters * size)
    return min(_MOST_CHUNKS, count, held)


def _scratch(spec: ConvSpec, dtype: str) -> int:
    """Bytes of a thread: rows that are gathered, transformed tiles of both, and a tile that is not whole."""
    whole, width = whole_of(spec, IMAGES), shape_for(spec.filters, dtype).filters
    rows, images = _rows_and_images(whole)
    tiles, _ = tile_counts(whole, IMAGES, rows, images)
    strip = (rows - 1 + whole.reach[0]) * whole.padded_size[1] * spec.channels * images
    filters = -(-spec.filters // width) * width
    size = np.dtype(dtype).itemsize
    planes = plane_bytes(tiles, spec.channels, size) + plane_bytes(tiles, filters, size)
    return _POINTS * planes + (strip + math.prod(transforms.F4.tile) * width) * size


def _members(dtype: str, spec: ConvSpec, limit: int, team: int) -> int:
    """The threads of a team that a half of the memory has room for."""
    return min(team, limit // 2 // _scratch(spec, dtype))


@lru_cache(maxsize=64)
def _job(
    spec: ConvSpec, x_strides: Sizes, gy_strides: Sizes, dtype: str, team: int, sources: Sources, limit: int
) -> _Job:
    size, shape, whole = np.dtype(dtype).itemsize, shape_for(spec.filters, dtype), whole_of(spec, IMAGES)
    found = partial(sources_of, spec=spec, sources=sources)
    cut = blocks_of(whole, x_strides, dtype, 1, found, 0.0, limit, _rows_and_images(whole), placed=True)
    tiles, _ = tile_counts(whole, IMAGES, cut.rows, cut.images)
    chunks, panels = _chunks(spec, size, limit), -(-spec.filters // shape.filters)
    some = _members(dtype, spec, limit, team)
    parts = 1 if chunks % some == 0 else min(-(-2 * some // chunks), panels)
    results_row, results_pixel = in_tile(IMAGES, spec, gy_strides[-3:-1])
    numbers, tables = winograd_tiles.numbers_and_tables(spec, whole, IMAGES)
    of_input, places = winograd_tiles.input_of(spec, whole, IMAGES, cut, dtype, found, 0.0)
    tables |= places
    numbers |= of_input | winograd_tiles.steps_of(gy_strides, "gy") | {
        "filters": spec.filters, "panels": panels, "chunks": chunks, "blocks": cut.count, "parts": parts,
        "results_row": results_row, "results_pixel": results_pixel,
        "gradients_plane": plane_bytes(tiles, panels * shape.filters, size),
        "sums_bytes": _POINTS * spec.channels * spec.filters * size,
    }  # fmt: skip
    tables["pixels"] = np.arange(tiles, dtype=np.int64) * (spec.channels * size)
    arguments, scratch = Arguments(FIELDS, len(_ARRAYS), numbers, tables, cut), _scratch(spec, dtype)
    return _Job(shape, arguments, chunks, chunks * parts, scratch, team, some)


# --- The kernels ------------------------------------------------------------------------------------------------------


def is_ready(dtype: str, spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, shape_for(spec.filters, dtype)) is not None


def _library(dtype: str, shape: Shape) -> Library | None:
    name = f"winograd-gradient-{dtype}-{shape.lanes}x{shape.vectors}"
    return library(name, partial(_make, dtype=dtype, shape=shape))


def _make(module: ir.Module, *, dtype: str, shape: Shape) -> tuple[str, ...]:
    _total_kernel(module, dtype)
    _products_kernel(module, dtype, shape)
    return "products", "total"


def _products_kernel(module: ir.Module, dtype: str, shape: Shape) -> None:
    """The task: the sums over one chunk of blocks, for all panels of filters or a part of them."""
    tiles = {height: sums_tile(module, dtype, shape, height) for height in heights(shape)}
    gather = gather_kernel(module, dtype, transpose_kernel(module, dtype))
    forward, backward = winograd_tiles.Forward(module, dtype, IMAGES), _tile_of_gradients(module, dtype, shape)
    kernel = Kernel(module, "products", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given, size = kernel.given(arguments, FIELDS), np.dtype(dtype).itemsize
    chunk, part, panel_bytes = item // given.parts, item % given.parts, shape.filters * size
    begin, end = (given.blocks * chunk) // given.chunks, (given.blocks * (chunk + 1)) // given.chunks
    first, last = (given.panels * part) // given.parts, (given.panels * (part + 1)) // given.parts
    sums = given.sums + chunk * given.sums_bytes
    with kernel.loop(end, start=begin) as number:
        block = blocks.opened(kernel, given, number, scratch)
        source = blocks.read(kernel, given, block, scratch, gather)
        units = block.rows // given.unit
        count = block.images * units * given.band
        spectra, gradients = block.free, block.free + given.spectra_plane * _POINTS
        whole = gradients + given.gradients_plane * _POINTS
        forward(kernel, given, block, source, units, spectra)
        gy = given.gy + block.first * given.gy_item
        with winograd_tiles.each(kernel, given, block.images, units, block.row // given.unit) as tile:
            place, (rows, columns) = tile.place(given, "gy"), tile.left(given)
            with kernel.loop(last, start=first) as panel:
                kernel.call(
                    backward, gy + place + panel * panel_bytes, given.results_row, given.results_pixel, rows, columns,
                    given.filters - panel * shape.filters, whole,
                    gradients + (panel * count + tile.number) * panel_bytes, given.gradients_plane,
                )  # fmt: skip
        _sum_up(kernel, given, tiles, shape, size, (first, last), count, (spectra, gradients, sums), number - begin)
    kernel.finish()


def _sum_up(
    kernel: Kernel, given: SimpleNamespace, tiles: dict[int, Kernel], shape: Shape, size: int,
    panels: tuple[Value, Value], count: Value, places: tuple[Value, Value, Value], earlier: Value,
) -> None:  # fmt: skip
    """For every point the products of the block's tiles, added to those of earlier blocks."""
    (first, last), (spectra, gradients, sums) = panels, places
    with kernel.loop(_POINTS) as point, kernel.loop(last, start=first) as panel:
        x, gy = spectra + point * given.spectra_plane, gradients + point * given.gradients_plane
        gy = gy + panel * count * (shape.filters * size)
        target = sums + (point * given.channels * given.filters + panel * shape.filters) * size
        width, step = given.filters - panel * shape.filters, given.filters * size

        def arguments_of(row: Value, x: Value = x, gy: Value = gy, target: Value = target) -> tuple[Operand, ...]:
            return x + row * size, given.pixels, count, gy, target + row * step, step, width, earlier

        each_tile(kernel, tiles, given.channels, arguments_of)


def _tile_of_gradients(module: ir.Module, dtype: str, shape: Shape) -> Kernel:
    """``gradients(...)``: a tile of `gy` of some filters ``A gy A^T``, what lies beyond the result counted as zeros."""
    transformed, results = backward_kernel(module, dtype, shape.filters), transforms.F4.results
    kind, step = vector(FLOATS[dtype], lanes_of(dtype)), shape.filters * np.dtype(dtype).itemsize
    names = ("gy", "row", "pixel", "rows", "columns", "width", "whole", "to", "plane")
    kernel = Kernel(module, "gradients", names)
    gy, row, pixel, rows, columns, width, whole, to, plane = kernel.arguments
    inside = (rows >= results) & (columns >= results) & (width >= shape.filters)

    def copied(gy: Value, to: Value) -> None:
        in_vectors(
            kernel, dtype, kernel.minimum(width, shape.filters),
            lambda at, mask: put(kernel, take(kernel, gy + at, kind, mask), to + at, mask),
        )  # fmt: skip

    with kernel.either(inside) as (all_of_it, some):
        with all_of_it:
            kernel.call(transformed, gy, row, pixel, to, plane)
        with some:
            with kernel.loop(results * results) as place, kernel.loop(shape.filters) as f:
                size = np.dtype(dtype).itemsize
                kernel.store(kernel.constant(0, FLOATS[dtype]), whole + place * step + f * size)
            with kernel.loop(kernel.minimum(rows, results)) as i, kernel.loop(kernel.minimum(columns, results)) as j:
                copied(gy + i * row + j * pixel, whole + (i * results + j) * step)
            kernel.call(transformed, whole, results * step, step, to, plane)
    kernel.finish()
    return kernel


def _total_kernel(module: ir.Module, dtype: str) -> None:
    """The task: ``G^T s G`` of some channels and filters, of the chunks' sums added up."""
    kernel = Kernel(module, "total", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, ("sums", "gw", "chunks", "size"))
    size, kind, first = np.dtype(dtype).itemsize, vector(FLOATS[dtype], lanes_of(dtype)), item * _SPAN
    plane = given.size * size

    def total(at: Value, point: int, mask: Value | None) -> Value:
        here = given.sums + (first * size + at) + plane * point
        some = kernel.variable(take(kernel, here, kind, mask))
        with kernel.loop(given.chunks, start=1) as chunk:
            some.set(some.get() + take(kernel, here + plane * _POINTS * chunk, kind, mask))
        return some.get()

    def body(at: Value, mask: Value | None) -> None:
        points = [total(at, point, mask) for point in range(_POINTS)]
        for tap, value in enumerate(weight_back(kernel, points)):
            put(kernel, value, given.gw + (first * size + at) + plane * tap, mask)

    in_vectors(kernel, dtype, kernel.minimum(given.size - first, _SPAN), body)
    kernel.finish()
