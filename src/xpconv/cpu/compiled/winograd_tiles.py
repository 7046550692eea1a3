"""Winograd's tiles inside kernels: all of some units of a block's images, and where each of them lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.transforms import Form
from xpconv.cpu.compiled.values import Value
from xpconv.cpu.compiled.winograd_tables import tables_of, unit_of
from xpconv.spec import Array, ConvSpec, Sizes

FIELDS = ("tiles", "rows_left", "columns_left", "unit", "unit_rows", "band")


def told(spec: ConvSpec, whole: ConvSpec, form: Form) -> tuple[dict[str, int], dict[str, Array]]:
    """Numbers and tables of all tiles."""
    unit, tables = unit_of(whole, form), tables_of(spec, whole, form)
    return {"unit": unit, "unit_rows": unit if spec.axes == 2 else 0, "band": len(tables["tiles"])}, tables


def steps_of(strides: Sizes, name: str) -> dict[str, int]:
    """Bytes between the items, planes, rows and columns of an array (N, [planes,] rows, columns, maps), by name."""
    item, *planes, row, column, _ = strides
    steps = {"item": item, "plane": planes[0] if planes else 0, "row": row, "column": column}
    return {f"{name}_{axis}": step for axis, step in steps.items()}


def fields_of(name: str) -> tuple[str, ...]:
    """The names of `steps_of`."""
    return tuple(steps_of((0, 0, 0, 0, 0), name))


@dataclass(frozen=True)
class Tile:
    """One of them, inside a kernel."""

    number: Value  # of those that are taken
    image: Value
    unit: Value
    row: Value  # that it begins in, of the whole image, as its column
    column: Value

    def place(self, given: SimpleNamespace, name: str) -> Value:
        """Bytes from the beginning of an array of `steps_of` that name to the tile."""
        item, plane, row, column = (getattr(given, field) for field in fields_of(name))
        return self.image * item + self.unit * plane + self.row * row + self.column * column

    def left(self, kernel: Kernel, given: SimpleNamespace) -> tuple[Value, Value]:
        """Rows and columns of its results."""
        return kernel.load(given.rows_left + self.row * 8), kernel.load(given.columns_left + self.column * 8)


@contextmanager
def each(
    kernel: Kernel, given: SimpleNamespace, images: Value, units: Value, first: Value | int = 0
) -> Iterator[Tile]:  # fmt: skip
    """Every tile of so many images and units, from the first unit on."""
    with kernel.loop(images) as image, kernel.loop(units) as unit, kernel.loop(given.band) as place:
        entry, now = given.tiles + place * 16, unit + first
        row, column = kernel.load(entry) + now * given.unit_rows, kernel.load(entry, offset=8)
        yield Tile((image * units + unit) * given.band + place, image, now, row, column)
