"""Winograd's tiles inside kernels: all of some units of a block's images, and where each of them lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

from xpconv.cpu.compiled.blocks import Blocks
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.transforms import Form
from xpconv.cpu.compiled.values import Value
from xpconv.cpu.compiled.winograd_tables import in_tile, plane_bytes, tile_counts, tiles_of, unit_of
from xpconv.spec import Array, ConvSpec, Sizes

_AXES = ("item", "plane", "row", "column")


def fields_of(name: str) -> tuple[str, ...]:
    """What a kernel is told of an array of that name: `steps_of` it."""
    return tuple(f"{name}_{axis}" for axis in _AXES)


FIELDS = (
    "tiles", "unit", "unit_rows", "band", "height", "width", "down", "across",  # of `numbers_and_tables`
    *fields_of("in"), "channels", "tile_row", "tile_pixel", "spectra_plane",  # of `input_numbers`
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


def input_numbers(spec: ConvSpec, whole: ConvSpec, form: Form, cut: Blocks, size: int) -> dict[str, int]:
    """How a block's input lies, and the planes of its transformed tiles."""
    read, (tiles, _) = cut.strides(size), tile_counts(whole, form, cut.rows, cut.images)
    tile_row, tile_pixel = in_tile(form, spec, read[-3:-1])
    return steps_of(read, "in") | {
        "channels": spec.channels, "tile_row": tile_row, "tile_pixel": tile_pixel,
        "spectra_plane": plane_bytes(tiles, spec.channels, size),
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
    kernel: Kernel, given: SimpleNamespace, images: Value, units: Value, first: Value | int = 0
) -> Iterator[Tile]:  # fmt: skip
    """Every tile of so many images and units, from the first unit on."""
    with kernel.loop(images) as image, kernel.loop(units) as unit, kernel.loop(given.band) as place:
        entry, now = given.tiles + place * 16, unit + first  # two integers
        row, column = kernel.load(entry) + now * given.unit_rows, kernel.load(entry, offset=8)
        yield Tile((image * units + unit) * given.band + place, image, now, row, column)


def transform(
    kernel: Kernel, given: SimpleNamespace, forward: Kernel, source: Value, images: Value, units: Value, spectra: Value,
    size: int,
) -> None:  # fmt: skip
    """All tiles of a block's input, to the planes of their points."""
    with each(kernel, given, images, units) as tile:
        kernel.call(
            forward, source + tile.place(given, "in"), given.tile_row, given.tile_pixel,
            spectra + tile.number * given.channels * size, given.spectra_plane, given.channels,
        )  # fmt: skip
