"""Winograd's tiles inside kernels: all of some units of a block's images, and where each of them lies.

Where channels are last, images are read from where they lie, padded or not: most tiles lie inside an image, and of the
others tables tell where each row and column comes from. Gathering the rows of a block first took longer; milliseconds
on two cores of an Emerald Rapids, N=8: 3x3 64@56 2.31 and 2.11, 64@224 38.8 and 34.0, 3x3x3 32@32 20.9 and 18.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import placed
from xpconv.cpu.compiled.blocks import Block, Blocks, Sources
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import OUTSIDE
from xpconv.cpu.compiled.transforms import Form, forward_kernel, placed_forward_kernel
from xpconv.cpu.compiled.values import Value
from xpconv.cpu.compiled.winograd_tables import in_tile, plane_bytes, tile_counts, tiles_of, unit_of
from xpconv.spec import Array, ConvSpec, Sizes

_AXES = ("item", "plane", "row", "column")
_FAR = 1 << 40  # more rows than there are


def fields_of(name: str) -> tuple[str, ...]:
    """What a kernel is told of an array of that name: `steps_of` it."""
    return tuple(f"{name}_{axis}" for axis in _AXES)


FIELDS = (
    "tiles", "unit", "unit_rows", "band", "height", "width", "down", "across",  # of `numbers_and_tables`
    *fields_of("in"), "channels", "tile_row", "tile_pixel", "spectra_plane",  # of `input_of`
    "placed", "plane_places", "plane_step", "row_places", "column_places", "outside", "nowhere", "before",
    "first_row", "last_row_inside", "first_column", "last_column_inside",
)  # fmt: skip


def numbers_and_tables(spec: ConvSpec, whole: ConvSpec, form: Form) -> tuple[dict[str, int], dict[str, Array]]:
    """Where the tiles of a unit begin, and how far units, results and, by the dilation, rows and columns go."""
    unit, tiles = unit_of(whole, form), tiles_of(whole, form)
    (height, width), (down, across) = spec.out_size[-2:], spec.dilation[-2:]
    numbers = {
        "unit": unit, "unit_rows": unit if spec.axes == 2 else 0, "band": len(tiles), "height": height, "width": width,
        "down": down, "across": across,
    }  # fmt: skip
    return numbers, {"tiles": tiles}


def steps_of(strides: Sizes, name: str) -> dict[str, int]:
    """Bytes between the items, planes, rows and columns of an array (N, [planes,] rows, columns, maps)."""
    item, *planes, row, column, _ = strides
    return dict(zip(fields_of(name), (item, planes[0] if planes else 0, row, column), strict=True))


def input_of(
    spec: ConvSpec, whole: ConvSpec, form: Form, cut: Blocks, dtype: str, sources: Sources, fill: float
) -> tuple[dict[str, int], dict[str, Array]]:
    """How a block's input lies, gathered or not, and the planes of its transformed tiles.

    Tables tell where each plane, row and column of the padded image lies. A tile is inside the image from its first row
    and column on, up to the last that leave room for a tile; of what was gathered all tiles are inside.
    """
    size, spread, first = np.dtype(dtype).itemsize, form.matrices.spread, form.matrices.first
    read, (tiles, _) = cut.strides(size), tile_counts(whole, form, cut.rows, cut.images)
    if not cut.placed:  # zeros were gathered too
        read = (*read[:-3], *(step * spread for step in read[-3:-1]), read[-1])
    tile_row, tile_pixel = in_tile(form, spec, read[-3:-1])
    numbers = steps_of(read, "in") | {
        "channels": spec.channels, "tile_row": tile_row, "tile_pixel": tile_pixel,
        "spectra_plane": plane_bytes(tiles, spec.channels, size), "placed": int(cut.placed),
        "plane_step": 8 if spec.axes == 3 else 0,
    }  # fmt: skip
    if not cut.placed:
        planes = np.arange(whole.padded_size[0] if spec.axes == 3 else 1, dtype=np.int64) * numbers["in_plane"]
        numbers |= {"last_row_inside": _FAR, "last_column_inside": _FAR}
        numbers["before"] = -first * (numbers["in_row"] + numbers["in_column"]) // spread
        return numbers, {"plane_places": planes}
    *lead, rows, columns = placed.places_of(sources(whole), read[1:-1])
    top, left = (before - first for before, _ in whole.padding[-2:])
    down, across = ((n - 1) * spread * d for n, d in zip(form.matrices.reads, whole.dilation[-2:], strict=True))
    numbers |= {
        "first_row": top, "last_row_inside": top + spec.spread_size[-2] - 1 - down, "first_column": left,
        "last_column_inside": left + spec.spread_size[-1] - 1 - across,
        "before": (top * numbers["in_row"] + left * numbers["in_column"]) // spread,
    }  # fmt: skip
    rows, columns = rows[first:], columns[first:]
    return numbers, {
        "plane_places": lead[0] if lead else np.zeros(1, np.int64), "row_places": rows, "column_places": columns,
        "outside": placed.outside_of(spec.channels, fill, dtype), "nowhere": np.array([OUTSIDE]),
    }  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """One of them, inside a kernel."""

    number: Value  # of those that are taken
    image: Value
    unit: Value
    row: Value  # that it begins in, of the image, or of its plane, as its column
    column: Value

    def place(self, given: SimpleNamespace, name: str) -> Value:
        """Bytes from the beginning of the array of that name to the tile."""
        item, plane, row, column = (getattr(given, field) for field in fields_of(name))
        return self.image * item + self.unit * plane + self.row * row + self.column * column

    def left(self, given: SimpleNamespace) -> tuple[Value, Value]:
        """Rows and columns of results from its first on, a dilation apart; it has no more than its own of them."""
        rows, columns = given.height - self.row, given.width - self.column
        return (rows + given.down - 1) // given.down, (columns + given.across - 1) // given.across


@contextmanager
def each(
    kernel: Kernel, given: SimpleNamespace, images: Value, units: Value, first: Value
) -> Iterator[Tile]:  # fmt: skip
    """Every tile of so many images and units, from the first unit on."""
    with kernel.loop(images) as image, kernel.loop(units) as unit, kernel.loop(given.band) as place:
        entry, now = given.tiles + place * 16, unit + first  # two integers
        row, column = kernel.load(entry) + now * given.unit_rows, kernel.load(entry, offset=8)
        yield Tile((image * units + unit) * given.band + place, image, now, row, column)


class Forward:
    """The transforms of a block's input: of tiles inside an image, or in what was gathered, and of all others."""

    def __init__(self, module: ir.Module, dtype: str, form: Form) -> None:
        self._size, self._inside = np.dtype(dtype).itemsize, forward_kernel(module, dtype, form)
        self._spread = form.matrices.spread
        self._placed = placed_forward_kernel(module, dtype, form) if form.matrices.axes == 2 else None

    def __call__(
        self, kernel: Kernel, given: SimpleNamespace, block: Block, source: Value, units: Value, spectra: Value
    ) -> None:
        """All tiles of so many units, to the planes of their points."""
        with each(kernel, given, block.images, units, given.placed * (block.row // given.unit)) as tile:
            target = spectra + tile.number * (given.channels * self._size), given.spectra_plane, given.channels
            plane = kernel.load(given.plane_places + tile.unit * given.plane_step)
            image = source + tile.image * given.in_item + plane
            row, column = tile.row * given.stride, tile.column * given.stride  # of the input, with what is around it
            inner = row // self._spread * given.in_row + column // self._spread * given.in_column
            place = image + inner - given.before
            whole = place, given.tile_row, given.tile_pixel, *target
            if self._placed is None:
                kernel.call(self._inside, *whole)
            else:
                is_there = plane > OUTSIDE // 2
                with kernel.either(is_there & _is_inside(given, row, column)) as (inside, other):
                    with inside:
                        kernel.call(self._inside, *whole)
                    with other:
                        first = is_there.where(given.row_places + row * 8, given.nowhere)
                        down = is_there.where(given.down * (8 * self._spread), kernel.constant(0))
                        columns = given.column_places + column * 8, given.across * (8 * self._spread)
                        kernel.call(self._placed, image, first, down, *columns, given.outside, *target)


def _is_inside(given: SimpleNamespace, row: Value, column: Value) -> Value:
    """Whether all elements of the tile that begins there are of an image."""
    rows = (row >= given.first_row) & (row <= given.last_row_inside)
    return rows & (column >= given.first_column) & (column <= given.last_column_inside)
