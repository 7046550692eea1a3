"""Rows of padded planes, read into memory of the thread's own, lanes along the row, and results stored from there.

A row that is read is one of the plane, or the largest or the sum of several. Padding is written beside it, and the
columns that a stride of two treats alike lie side by side: first the even ones of the padded row, then the odd ones,
so that whatever reads a tap of many windows reads elements that follow each other.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import product
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled.blocks import Sources, runs_of
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import OUTSIDE, copy_kernel, fill_kernel, lanes_of, put, take
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.cpu.lines import LINE
from xpconv.spec import Array, ConvSpec, Sizes

STRIDES = (1, 2)  # along the row, that there are kernels for
_UNITS = 4  # vectors of a row at once, or pairs of them where the stride is two
_ARGUMENTS = (
    "x", "rows", "count", "row_step", "down", "dilation", "first", "columns", "left", "width", "nothing", "to", "pitch",
    "half", "ahead", "fresh", "row_bytes", "divisor", "is_filled",
)  # fmt: skip
_SHORT = 1024  # bytes of a row below which all are filled at once before they are copied


def phase_bytes(columns: int, stride: int, dtype: str) -> int:
    """What the columns of a row that a stride treats alike take, so that a vector may begin at the last of them."""
    size = np.dtype(dtype).itemsize
    return -(-(-(-columns // stride) + lanes_of(dtype)) * size // LINE) * LINE


def tap_offsets(taps: int, dilation: int, stride: int, half: int, dtype: str) -> Array:
    """Where in a row that was read the taps of its first window lie, in bytes."""
    places = np.arange(taps, dtype=np.int64) * dilation
    return places % stride * half + places // stride * np.dtype(dtype).itemsize


def aligning(left: int, stride: int, dtype: str) -> int:
    """Bytes to skip so that the first column that is not padding begins a line, as most others that are read do."""
    return -(left // stride) * np.dtype(dtype).itemsize % LINE


def padded_rows(spec: ConvSpec, x_strides: Sizes, dtype: str, sources: Sources, fill: float) -> dict[str, Array]:
    """Where rows of the padded plane come from, and the runs of each, in bytes; and what is outside."""
    *down, across = sources(spec)
    rows = down[0] if down else np.zeros(1, np.int64)
    line = np.where(across < 0, OUTSIDE, across * x_strides[-2])
    return {
        "row_sources": np.where(rows < 0, OUTSIDE, rows * (x_strides[-3] if down else 0)),
        "runs": runs_of(line, x_strides[-2]),
        "outside": np.full(spec.size[-1] + 1, fill, dtype),
    }


def joined(kernel: Kernel, operation: str, first: Value, second: Value) -> Value:
    """The "largest" of two vectors in every lane, a NaN where there is one, or the two "added"."""
    return kernel.maximum(first, second) if operation == "largest" else operator.add(first, second)


def divided(kernel: Kernel, value: Value, divisor: Value) -> Value:
    """A vector by the number at an address."""
    return value // kernel.splat(kernel.load(divisor, value.type.element), value.type.count)


def rows_kernel(
    module: ir.Module, dtype: str, operation: str, stride: int, *, folded: bool = False, divides: bool = False
) -> Kernel:
    """``rows(...)``: `count` rows, a pitch apart, each of `down` rows of the plane joined, of some padded columns.

    ``rows`` tells the address from the plane's of every padded row, `row_step` of them from one that is read to the
    next, and `dilation` of them between those that are joined; OUTSIDE stands for `nothing`, a row of padding. The
    plane's own columns are `width` from the padded column `left` on. Of two phases the second begins `half` the pitch
    after the first. Where rows are `folded`, the columns of each pair are joined too, and divided, and none is padding.
    Memory `is_filled` where the same columns of as many rows were read to it before, and its padding is still there.

    Of as many rows again, `fresh` for each that is read, the same columns are asked for `ahead`: without that, max
    3x3s2 64@112, N=8, took 1.85 ms instead of 0.87.
    """
    kernel = Kernel(module, f"rows{folded:d}{divides:d}", _ARGUMENTS)
    given = SimpleNamespace(**dict(zip(_ARGUMENTS, kernel.arguments, strict=True)))
    columns, unit = given.columns, lanes_of(dtype) * stride
    rows = _Rows(kernel, given, dtype, operation, stride, folded, divides)
    if not folded:
        with kernel.when(given.is_filled.equals(0) & (rows.place > 0)):
            rows.fill(0, kernel.minimum(rows.place, columns))
    column = kernel.variable(rows.begin)
    with kernel.while_(lambda: column.get() + _UNITS * unit <= rows.end):
        rows.read(column.get(), _UNITS, None)
        column.set(column.get() + _UNITS * unit)
    rest = rows.end - column.get()
    for units in range(1, _UNITS + 1):
        with kernel.when((rest > (units - 1) * unit) & (rest <= units * unit)):
            rows.read(column.get(), units, rest - (units - 1) * unit)
    if not folded:  # what is beyond the last vector's elements is zeros now
        keeps = (given.is_filled > 0) & kernel.load(given.nothing, FLOATS[dtype]).equals(0)
        stop = rows.place + (rows.end - rows.begin)
        with kernel.when(keeps.equals(0) & (stop < columns)):
            rows.fill(stop, columns)
    kernel.finish()
    return kernel


class _Rows:
    """What `rows_kernel` does to all rows, inside it.

    The plane's own columns are those from `begin` to before `end`; the first goes to `place` among those asked for.
    """

    def __init__(
        self, kernel: Kernel, given: SimpleNamespace, dtype: str, operation: str, stride: int, folded: bool,
        divides: bool,
    ) -> None:  # fmt: skip
        self._kernel, self._given, self._dtype, self._operation, self._stride = kernel, given, dtype, operation, stride
        self._folded, self._divides = folded, divides
        self._size, self._lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
        self._outside = kernel.splat(kernel.load(given.nothing, FLOATS[dtype]), self._lanes)
        self.begin = kernel.at_least(given.first - given.left, 0)
        last = kernel.minimum(given.first + given.columns - given.left, given.width)
        self.end = kernel.at_least(last, self.begin)
        self.place = self.begin + given.left - given.first
        self._targets = [
            (self.place + s) % stride * given.half + (self.place + s) // stride * self._size for s in range(stride)
        ]

    def fill(self, start: Operand, stop: Operand) -> None:
        """Padding, to some columns."""
        kernel, given, stride = self._kernel, self._given, self._stride
        with kernel.loop(given.count) as row, kernel.loop(stride) as phase:
            later, target = stride - 1 - phase, given.to + row * given.pitch + phase * given.half
            with kernel.loop((stop + later) // stride, start=(start + later) // stride, step=self._lanes) as i:
                kernel.store(self._outside, target + i * self._size)

    def read(self, at: Value, units: int, last: Value | None) -> None:
        """So many units of columns of all rows, the last of which may be a part of one."""
        kernel, given, stride, lanes, size = self._kernel, self._given, self._stride, self._lanes, self._size
        masks = [] if last is None else [kernel.lanes_below(last - lanes * i, lanes) for i in range(stride)]
        wanted: list[Value | None] = [*[None] * (units * stride - len(masks)), *masks]
        left_over = None if last is None else kernel.lanes_below((last + stride - 1) // stride, lanes)
        moved = given.to + (at - self.begin) // stride * size
        with kernel.loop(given.count) as row:
            with kernel.loop(given.fresh) as ahead:
                line = given.ahead + (row * given.fresh + ahead) * given.row_bytes + at * size
                for near in range(0, units * stride * lanes * size, LINE):
                    kernel.prefetch(line + near, level=2)
            sources, starts = given.rows + row * given.row_step * 8, (given.x + at * size, given.nothing + at * size)
            values = _values(kernel, given, starts, sources, wanted, self._dtype, self._operation)
            if self._folded and self._operation == "largest":  # what is masked is zeros
                values = [v if m is None else m.where(v, self._outside) for v, m in zip(values, wanted, strict=True)]
            if self._folded:
                self._write_folded(values, moved + row * given.pitch, left_over)
            else:
                self._write_phases(values, moved + row * given.pitch)

    def _write_phases(self, values: list[Value], to: Value) -> None:
        kernel, stride = self._kernel, self._stride
        phases = [(v,) for v in values] if stride == 1 else [kernel.deinterleaved(*pair) for pair in _pairs(values)]
        for (u, unit_phases), s in product(enumerate(phases), range(stride)):
            kernel.store(unit_phases[s], to + self._targets[s] + u * self._lanes * self._size)

    def _write_folded(self, values: list[Value], to: Value, left_over: Value | None) -> None:
        kernel, operation = self._kernel, self._operation
        results = [joined(kernel, operation, *kernel.deinterleaved(*pair)) for pair in _pairs(values)]
        for u, result in enumerate(results):
            mask = left_over if u + 1 == len(results) else None
            mean = divided(kernel, result, self._given.divisor) if self._divides else result
            put(kernel, mean, to + u * self._lanes * self._size, mask)


def _values(
    kernel: Kernel, given: SimpleNamespace, starts: tuple[Value, Value], sources: Value,
    masks: Sequence[Value | None], dtype: str, operation: str,
) -> list[Value]:  # fmt: skip
    """Vectors of columns of the rows that a table names, joined; `starts` are where they begin in x and in no row."""
    lanes, size = lanes_of(dtype), np.dtype(dtype).itemsize
    inside, outside, kind = *starts, vector(FLOATS[dtype], lanes)

    def loaded(tap: Operand) -> list[Value]:
        place = kernel.load(sources, offset=tap * 8)
        line = place.equals(OUTSIDE).where(outside, inside + place)
        return [take(kernel, line + lanes * size * q, kind, mask) for q, mask in enumerate(masks)]

    values = [kernel.variable(value) for value in loaded(0)]
    with kernel.loop(given.down * given.dilation, start=given.dilation, step=given.dilation) as tap:
        for value, more in zip(values, loaded(tap), strict=True):
            value.set(joined(kernel, operation, value.get(), more))
    return [value.get() for value in values]


def _pairs(values: list[Value]) -> list[tuple[Value, Value]]:
    return list(zip(values[::2], values[1::2], strict=True))


def gathered_rows_kernel(module: ir.Module, dtype: str, *, short: int = _SHORT) -> Kernel:
    """``gather(...)``: a part of padded rows, side by side, rows a pitch apart, filled first where they are `short`."""
    fill, copy = fill_kernel(module, dtype), copy_kernel(module, dtype)
    size, element = np.dtype(dtype).itemsize, FLOATS[dtype]
    names = ("x", "rows", "count", "runs", "run_count", "step", "first", "columns", "outside", "to", "pitch")
    kernel = Kernel(module, "gather", names)
    x, rows, count, runs, run_count, step, first, columns, outside, to, pitch = kernel.arguments
    stop, at_once = first + columns, columns < short // size
    with kernel.when(at_once):
        kernel.call(fill, outside, to, count * pitch // size)
    with kernel.loop(count) as row:
        line, target, position = kernel.load(rows, offset=row * 8), to + row * pitch, kernel.variable(0)
        with kernel.loop(run_count) as run:
            begin, length = kernel.load(runs, offset=run * 16), kernel.load(runs, offset=run * 16 + 8)
            start, end = position.get(), position.get() + length
            low, part = (start < first).where(first, start), kernel.variable(0)
            part.set(kernel.minimum(end, stop) - low)
            into, source = target + (low - first) * size, x + line + begin + (low - start) * step
            padding = line + begin < OUTSIDE // 2
            with kernel.when((part.get() > 0) & (padding & at_once).equals(0)), kernel.either(padding) as (yes, no):
                with yes:
                    kernel.call(fill, outside, into, part.get())
                with no, kernel.either(step.equals(size)) as (dense, spread):
                    with dense:
                        kernel.call(copy, source, into, part.get())
                    with spread, kernel.loop(part.get()) as i:
                        kernel.store(kernel.load(source + i * step, element), into + i * size)
            position.set(end)
    kernel.finish()
    return kernel


def stream_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``stream(source, to, nbytes)``: elements that lie side by side, whole lines of them past the caches."""
    kernel = Kernel(module, "stream", ("source", "to", "nbytes"))
    source, to, nbytes = kernel.arguments
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    kind, width = vector(FLOATS[dtype], lanes), lanes * size
    head = kernel.minimum((LINE - to % LINE) % LINE, nbytes)
    whole = head + (nbytes - head) // LINE * LINE

    def some(first: Operand, stop: Value) -> None:
        with kernel.loop(stop, start=first, step=width) as at:
            mask = kernel.lanes_below((stop - at) // size, lanes)
            put(kernel, take(kernel, source + at, kind, mask), to + at, mask)

    some(0, head)
    with kernel.loop(whole, start=head, step=width) as at:
        kernel.stream(kernel.load(source + at, kind), to + at)
    some(whole, nbytes)
    kernel.finish()
    return kernel
