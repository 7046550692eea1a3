"""Filters of single planes with large windows: products of spectra, tile by tile (overlap-save), two tiles at once.

A tile of the input is as long as its transform, and as many results are kept as have their whole window in it
(Oppenheim and Schafer, Discrete-Time Signal Processing, 8.7.3). Its mean is taken off first, as the error is a share of
its largest elements; what the kernel makes of that is its sum.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu import tiled_spectra
from xpconv.cpu.compiled import spectra_again, threads
from xpconv.cpu.compiled.blocks import Arguments
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.call import Call
from xpconv.cpu.compiled.fourier import Length
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.cpu.compiled.rows import gathered_rows_kernel, padded_rows
from xpconv.cpu.compiled.spectra_tiles import (
    across_kernel,
    down_kernel,
    factors_kernel,
    read_kernel,
    stored_kernel,
    up_kernel,
)
from xpconv.cpu.compiled.tile import finishing
from xpconv.cpu.compiled.values import FLOATS, Value
from xpconv.cpu.compiled.weights import PackedBias, Packing, taps_order
from xpconv.cpu.lines import LINE, lined
from xpconv.spec import Array, ConvSpec

_ARRAYS = ("x", "factors", "y", "bias", "totals", "found")
FIELDS = (
    *_ARRAYS, "x_item", "x_plane", "x_step", "y_item", "y_plane", "y_row", "channels", "pairs", "tiles", "row_blocks",
    "rows", "out_rows", "column_blocks", "columns", "out_columns", "reach", "reach_across", "pitch", "run_count",
    "row_sources", "runs", "outside", "finish", "roots_down", "roots_across",
)  # fmt: skip
_OF_FILTERS = ("taps", "factors", "places", "tap_count", "pitch", "roots_down", "roots_across")


class Spectra:
    """A convolution that `takes` tells of, prepared."""

    def __init__(self, call: Call) -> None:
        spec, dtype, size = call.spec, call.dtype, call.itemsize
        lengths, (down, across) = tiled_spectra.lengths(spec), _lengths(spec, dtype)
        counts = tiled_spectra.tile_counts(spec, lengths)
        rows, columns = (-(-out // count) for out, count in zip(spec.out_size, counts, strict=True))
        tiles, pitch = spec.batch * math.prod(counts), _pitch(across, size)
        x_item, _, x_step, x_plane = call.x_strides
        y_item, y_row, _, y_plane = call.y_strides
        tables = padded_rows(spec, call.x_strides, dtype, call.sources, call.fill)
        roots = {"roots_down": down.roots(dtype), "roots_across": across.roots(dtype)}
        numbers = {
            "x_item": x_item, "x_plane": x_plane, "x_step": x_step, "y_item": y_item, "y_plane": y_plane,
            "y_row": y_row, "channels": spec.channels, "pairs": -(-tiles // 2), "tiles": tiles,
            "row_blocks": counts[0], "rows": rows, "out_rows": spec.out_size[0], "column_blocks": counts[1],
            "columns": columns, "out_columns": spec.out_size[1], "reach": spec.reach[0],
            "reach_across": spec.reach[1], "pitch": pitch, "run_count": len(tables["runs"]),
        }  # fmt: skip
        tables |= roots | {"finish": finishing(call.activation, dtype, call.leak)}
        self._call, self._items = call, spec.channels * numbers["pairs"]
        self._counts, self._each = counts, (rows, columns)
        self._arguments = Arguments(FIELDS, len(_ARRAYS), numbers, tables)
        self._scratch = _scratch(down, across, size)
        self._pack = Packing(dtype, spec.channels, 1, 1, taps_order(spec, call.w_strides), call.w_strides[-1])
        self._bias = PackedBias(dtype, 1, spec.channels, spec.channels)
        self._factors = spec.channels, down.total * across.total * 2
        filters = roots | {"places": _places(spec, pitch, size)}
        self._transforms = Arguments(_OF_FILTERS, 2, {"tap_count": math.prod(spec.window), "pitch": pitch}, filters)
        compiled = _library(dtype, down, across)
        assert compiled is not None
        self._filter, self._transform = compiled.address("filter"), compiled.address("transform")

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`; False where too many values that are not finite have spread over their tiles."""
        call = self._call
        taps, biases, factors = self._pack(w), self._bias(bias), lined(self._factors, np.dtype(call.dtype))
        threads.run(self._transform, self._transforms.of(taps, factors), call.spec.channels, self._scratch, call.team)
        totals = taps.reshape(call.spec.channels, -1).sum(axis=1, dtype=np.float64).astype(call.dtype)
        found = np.zeros((self._items, lanes_of(call.dtype)), call.dtype)
        arguments = self._arguments.of(x, factors, y, biases, totals, found)
        threads.run(self._filter, arguments, self._items, self._scratch, call.team)
        spoiled = [at for item in np.flatnonzero(found.any(axis=1)) for at in self._places(int(item))]
        if spoiled and spectra_again.can(call, spoiled):
            spectra_again.compute(call, spoiled, x, w, bias, y)
            return True
        return not spoiled

    def _places(self, item: int) -> list[spectra_again.Place]:
        """The one or two tiles of an item."""
        spec, (down, across), (rows, columns) = self._call.spec, self._counts, self._each
        channel, pair = divmod(item, self._items // spec.channels)
        places = []
        for tile in range(2 * pair, min(2 * pair + 2, spec.batch * down * across)):
            image, row, column = tile // (down * across), tile // across % down * rows, tile % across * columns
            below, right = min(row + rows, spec.out_size[0]), min(column + columns, spec.out_size[1])
            places.append(spectra_again.Place(image, channel, slice(row, below), slice(column, right)))
        return places


def takes(dtype: str, spec: ConvSpec, limit: int) -> bool:
    """Whether the kernels compute this convolution here, within a limit of scratch memory."""
    planes = spec.layout == "channels_first" or spec.channels == 1
    return planes and tiled_spectra.fits(spec) and workspace(dtype, spec) <= limit


def workspace(dtype: str, spec: ConvSpec) -> int:
    """Bytes that all threads together take, and the filters' spectra."""
    (down, across), size = _lengths(spec, dtype), np.dtype(dtype).itemsize
    return threads.thread_count() * _scratch(down, across, size) + spec.channels * _spectrum(down, across, size)


def _lengths(spec: ConvSpec, dtype: str) -> tuple[Length, Length]:
    """Of a tile's columns and of its rows."""
    down, across = tiled_spectra.lengths(spec)
    return _length(down, lanes_of(dtype)), _length(across, 1)


def _length(total: int, lanes: int) -> Length:
    """Two passes that are as near to each other as can be, the second over whole vectors of frequencies."""
    seconds = (n for n in (4, 8, 16) if n % lanes == 0)
    return min((Length(total // n, n) for n in seconds), key=lambda length: max(length.first, length.second))


def _pitch(across: Length, size: int) -> int:
    """Bytes from one row of a tile to the next, so that rows do not meet in the same sets of a cache."""
    return across.total * size + LINE


def _spectrum(down: Length, across: Length, size: int) -> int:
    """Bytes of one."""
    return 2 * down.total * across.total * size


def _work(down: Length) -> int:
    """Bytes of the columns that are transformed at once: vectors of at most 64 bytes."""
    return down.total * 2 * LINE


def _scratch(down: Length, across: Length, size: int) -> int:
    """Two tiles, their spectrum, and columns on the way; and two means."""
    return 2 * down.total * _pitch(across, size) + _spectrum(down, across, size) + _work(down) + LINE


def _places(spec: ConvSpec, pitch: int, size: int) -> Array:
    """Where in a tile the taps lie, in bytes."""
    down, across = (np.arange(m, dtype=np.int64) * d for m, d in zip(spec.window, spec.dilation, strict=True))
    return (down[:, None] * pitch + across * size).reshape(-1)


# --- The kernels ------------------------------------------------------------------------------------------------------


def _library(dtype: str, down: Length, across: Length) -> Library | None:
    name = f"spectra-{dtype}-{down.first}x{down.second}-{across.first}x{across.second}"
    return library(name, partial(_make, dtype=dtype, down=down, across=across))


def is_ready(dtype: str, spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype, *_lengths(spec, dtype)) is not None


def _make(module: ir.Module, *, dtype: str, down: Length, across: Length) -> tuple[str, ...]:
    """The tasks: the spectrum of one filter, and two tiles."""
    to_spectrum = down_kernel(module, dtype, down, across)
    _transform_task(module, dtype, down, across, to_spectrum)
    _filter_task(module, dtype, down, across, to_spectrum)
    return "transform", "filter"


def _transform_task(module: ir.Module, dtype: str, down: Length, across: Length, to_spectrum: Kernel) -> None:
    kernel = Kernel(module, "transform", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given, size, element = kernel.given(arguments, _OF_FILTERS), np.dtype(dtype).itemsize, FLOATS[dtype]
    finish = factors_kernel(module, dtype, down, across)
    nothing, nbytes = scratch + down.total * given.pitch, down.total * given.pitch
    work, zero = scratch + 2 * nbytes, kernel.constant(0, element)
    means = work + _work(down)
    with kernel.loop(2 * nbytes, step=size) as at:
        kernel.store(zero, scratch + at)
    for part in range(2):
        kernel.store(zero, means, part * size)
    taps = given.taps + item * (given.tap_count * size)
    with kernel.loop(given.tap_count) as tap:
        place = kernel.load(given.places, offset=tap * 8)
        kernel.store(kernel.load(taps + tap * size, element), scratch + place)
    spectrum = given.factors + item * _spectrum(down, across, size)
    kernel.call(to_spectrum, scratch, nothing, given.pitch, means, given.roots_down, work, spectrum)
    kernel.call(finish, spectrum, given.roots_across)
    kernel.finish()


def _filter_task(module: ir.Module, dtype: str, down: Length, across: Length, to_spectrum: Kernel) -> None:
    read = read_kernel(module, dtype, gathered_rows_kernel(module, dtype, short=0), down, across)
    multiply, back = across_kernel(module, dtype, down, across), up_kernel(module, dtype, down, across)
    stored = stored_kernel(module, dtype)
    kernel = Kernel(module, "filter", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given, size = kernel.given(arguments, FIELDS), np.dtype(dtype).itemsize
    nbytes, channel, first = down.total * given.pitch, item // given.pairs, item % given.pairs * 2
    spectrum = scratch + 2 * nbytes
    work = spectrum + _spectrum(down, across, size)
    means = work + _work(down)
    tiles = [_place(kernel, given, kernel.minimum(first + part, given.tiles - 1)) for part in range(2)]
    for part, at in enumerate(tiles):
        kernel.call(
            read, given.x + at.image * given.x_item + channel * given.x_plane, given.row_sources + at.row * 8,
            at.rows + (given.reach - 1), given.runs, given.run_count, given.x_step, at.column,
            at.columns + (given.reach_across - 1), given.outside, scratch + part * nbytes, given.pitch,
            means + part * size,
        )  # fmt: skip
    kernel.call(to_spectrum, scratch, scratch + nbytes, given.pitch, means, given.roots_down, work, spectrum)
    factors = given.factors + channel * _spectrum(down, across, size)
    kernel.call(multiply, spectrum, given.roots_across, factors)
    widest = kernel.at_least(tiles[0].columns, tiles[1].columns)
    kernel.call(back, spectrum, given.roots_down, work, widest, scratch, scratch + nbytes, given.pitch)
    for part, at in enumerate(tiles):
        y = given.y + at.image * given.y_item + channel * given.y_plane + at.row * given.y_row + at.column * size
        kernel.call(
            stored, scratch + part * nbytes, given.pitch, at.rows, at.columns, means + part * size,
            given.totals + channel * size, given.bias + channel * size, given.finish, y, given.y_row,
            given.found + item * (lanes_of(dtype) * size),
        )  # fmt: skip
    kernel.finish()


def _place(kernel: Kernel, given: SimpleNamespace, tile: Value) -> SimpleNamespace:
    """Where a tile's results begin, and how many they are."""
    rest, column = tile // given.column_blocks, (tile % given.column_blocks) * given.columns
    row, image = (rest % given.row_blocks) * given.rows, rest // given.row_blocks
    return SimpleNamespace(
        image=image, row=row, column=column, rows=kernel.minimum(given.out_rows - row, given.rows),
        columns=kernel.minimum(given.out_columns - column, given.columns),
    )  # fmt: skip
