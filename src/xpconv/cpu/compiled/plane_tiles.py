"""The tiles that filter planes: some rows of the result times some vectors of its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from types import SimpleNamespace
from typing import TypeAlias

from llvmlite import ir

from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of, put, take
from xpconv.cpu.compiled.tile import SUMMED, Finish
from xpconv.cpu.compiled.values import FLOATS, Value, Variable, size_of, vector

_ARGUMENTS = (
    "rows", "at", "taps_down", "taps_across", "tap_down", "offsets", "chunk", "w", "y", "y_step", "width", "begin",
    "limit", "finish", "bias", "count", "rows_step", "y_tile",
)  # fmt: skip


@dataclass(frozen=True)
class Taps:
    """What kernels are made for of a filter."""

    down: int  # taps, where there are kernels for so many; else 0
    long: bool  # so many taps that sums are put aside on the way


def taps_of(down: int, across: int) -> Taps:
    """What a filter of so many taps is computed by."""
    here = machine()
    assert here is not None
    return Taps(down if down in _DOWN[here.registers] else 0, down * across > SUMMED)


_DOWN = {32: (3, 5), 16: (3, 5, 7, 9)}  # by registers


def shapes(taps: Taps) -> dict[int, int]:
    """Rows of a tile, and the vectors of columns that then fill the registers with sums.

    Eight rows by two, for narrow rows, took a sixth longer than four: LLVM reads all rows before it adds.
    """
    here = machine()
    assert here is not None
    if here.registers == 32:
        return {4: 4, 2: 6, 1: WIDEST}
    return {3: 4, 2: 3, 1: WIDEST} if taps.down > 5 else {4: 2, 2: 3, 1: WIDEST}


WIDEST = 8


def is_shared(given: SimpleNamespace, taps: Taps, height: int) -> Value:
    """Whether so many rows read the same rows of the input, of which the first is read for one of them alone."""
    least = 0 if height == 1 else 1 if taps.down else max(height - 1, 2)
    return given.shared * given.taps_down >= least


def tiles(
    module: ir.Module, dtype: str, taps: Taps, height: int, most: int, *, guarded: bool
) -> tuple[Kernel, dict[int, Kernel]]:
    """A tile for whole vectors, and those for what is left over by the vectors that this takes.

    Where rows are `guarded` the latter read nothing beyond the ends of rows.
    """
    counts = sorted({q for q in (1, 2, 3, 4, most) if q <= most})
    whole = _tile(module, dtype, taps, (height, most), masked=0, guarded=False)
    tile = partial(_tile, module, dtype, taps, guarded=guarded)
    return whole, {q: tile((height, q), masked=q - less) for less, q in pairwise([0, *counts])}


def _tile(
    module: ir.Module, dtype: str, taps: Taps, shape: tuple[int, int], *, masked: int, guarded: bool
) -> Kernel:
    """Rows of the result that read the same rows of the input, shifted by one tap each; so many tiles, one below the
    other: a call takes as long as a tile of one tap.

    Of the last `masked` vectors only the columns before `width` are stored; of rows that are `guarded` only those from
    0 to before `limit` are read. Every sum is over the taps of a column, column after column, whatever the tile.
    """
    (height, vectors), element, lanes = shape, FLOATS[dtype], lanes_of(dtype)
    kernel = Kernel(module, f"tile{height}x{vectors}{'masked' if masked else ''}", _ARGUMENTS)
    given = SimpleNamespace(**dict(zip(_ARGUMENTS, kernel.arguments, strict=True)))
    first_masked = vectors - masked
    stored: list[Value | None] = [None] * first_masked
    stored += [kernel.lanes_below(given.width - lanes * q, lanes) for q in range(first_masked, vectors)]
    tile = _Tile(kernel, given, taps, height, vectors, kernel.constant(0, vector(element, lanes)), guarded)
    bias = kernel.splat(kernel.load(given.bias, element), lanes)
    with kernel.loop(given.count) as number:
        totals, target = tile.added(given.rows + number * given.rows_step), given.y + number * given.y_tile
        store = partial(_store, kernel, given, totals, stored, target)
        with kernel.either(given.finish.equals(0)) as (plain, other):
            with plain:
                store(lambda total: total + bias)
            with other:  # takes as long as a column of three taps
                finished = Finish(kernel, given.finish, element, lanes)
                store(lambda total: finished(total, bias))
    kernel.finish()
    return kernel


_Sums: TypeAlias = list[list[Variable]]  # vectors of each row of a tile


@dataclass(frozen=True)
class _Tile:
    """The sums of a tile, inside its kernel."""

    kernel: Kernel
    given: SimpleNamespace
    taps: Taps
    height: int
    vectors: int
    zeros: Value
    guarded: bool

    def added(self, rows: Value) -> _Sums:
        """The sums over all columns, of rows that a table tells."""
        kernel, given, totals = self.kernel, self.given, self._zero()
        if not self.taps.long:
            with kernel.loop(given.taps_across) as across:
                self._add_column(rows, across, totals)
            return totals
        with kernel.loop(given.taps_across, step=given.chunk) as first:
            sums = self._zero()
            with kernel.loop(kernel.minimum(first + given.chunk, given.taps_across), start=first) as across:
                self._add_column(rows, across, sums)
            for total, part in zip(chain(*totals), chain(*sums), strict=True):
                total.set(total.get() + part.get())
        return totals

    def _zero(self) -> _Sums:
        return [[self.kernel.variable(self.zeros) for _ in range(self.vectors)] for _ in range(self.height)]

    def _add_column(self, rows: Value, across: Value, sums: _Sums) -> None:
        """All taps of a column."""
        kernel, given, taps, height = self.kernel, self.given, self.taps, self.height
        add = partial(self._add_row, *self._places(rows, across), sums)
        if taps.down:
            for i in range(height + taps.down - 1):
                add(range(max(i - taps.down + 1, 0), min(i + 1, height)))
            return
        for i in range(1, height):
            add(range(i))
        with kernel.loop(given.taps_down - (height - 1)):
            add(range(height))
        for i in range(1, height):
            add(range(i, height))

    def _places(self, rows: Value, across: Value) -> tuple[Value, list[Value | None], Variable, Variable]:
        """How far into its row a column of taps begins, which columns may be read, its first row, and its first tap."""
        kernel, given, size, lanes = self.kernel, self.given, size_of(self.zeros.type), self.zeros.type.count
        offset, row = kernel.load(given.offsets, offset=across * 8), kernel.variable(rows)
        place = given.begin + offset // size
        inside: list[Value | None] = [None] * self.vectors
        if self.guarded:
            inside = [kernel.lanes_within(place + lanes * q, given.limit, lanes) for q in range(self.vectors)]
        return offset, inside, row, kernel.variable(given.w + across * given.taps_down * size)

    def _add_row(
        self, offset: Value, inside: list[Value | None], row: Variable, weight: Variable, sums: _Sums,
        which: Sequence[int],
    ) -> None:  # fmt: skip
        """A row of the input to the sums of the results that it is read for; then the next is up."""
        kernel, given, kind = self.kernel, self.given, self.zeros.type
        size = size_of(kind)
        line = kernel.load(row.get()) + given.at + offset
        values = [take(kernel, line + q * kind.count * size, kind, mask) for q, mask in enumerate(inside)]
        for y in which:
            factor = kernel.splat(kernel.load(weight.get() - y * size, kind.element), kind.count)
            for total, value in zip(sums[y], values, strict=True):
                total.set(kernel.fma(value, factor, total.get()))
        row.set(row.get() + given.tap_down)
        weight.set(weight.get() + size)


def _store(
    kernel: Kernel, given: SimpleNamespace, totals: _Sums, masks: Sequence[Value | None], target: Value,
    done: Callable[[Value], Value],
) -> None:  # fmt: skip
    """What is made of the sums, row by row."""
    for y, row_totals in enumerate(totals):
        for q, (total, mask) in enumerate(zip(row_totals, masks, strict=True)):
            result = done(total.get())
            width = result.type.count * size_of(result.type)
            put(kernel, result, target + y * given.y_step + q * width, mask)
