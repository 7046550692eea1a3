"""Winograd's transforms in registers: of images, for 3 x 3 to 5 x 5 taps, also at stride 2 and transposed, and of
signals, F(3, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TypeAlias

from llvmlite import ir

from xpconv.cpu import winograd
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import OUTSIDE, in_vectors, lanes_of, put, take
from xpconv.cpu.compiled.processor import asks_ahead
from xpconv.cpu.compiled.tile import Finish
from xpconv.cpu.compiled.values import FLOATS, I64, Operand, Value, size_of, vector

Along: TypeAlias = Callable[[Kernel, Sequence[Value]], list[Value]]  # one axis of a tile


@dataclass(frozen=True)
class Form:
    """How tiles are transformed."""

    name: str
    matrices: winograd.Transform
    forward: Along
    back: Along

    @property
    def points(self) -> int:
        """Products of a tile and channel."""
        return self.matrices.points


def forward_kernel(module: ir.Module, dtype: str, form: Form) -> Kernel:
    """``forward(x, row, pixel, to, plane, channels)``: a tile ``B^T d B``, a point a plane of bytes from the next."""
    kernel = Kernel(module, "forward", ("x", "row", "pixel", "to", "plane", "channels"))
    x, row, pixel, *target = kernel.arguments
    rows, _ = form.matrices.reads
    _forward(kernel, dtype, form, x, pixel, lambda place, at: [place + row * i + at for i in range(rows)], *target)
    return kernel


def placed_forward_kernel(module: ir.Module, dtype: str, form: Form) -> Kernel:
    """``placed_forward(x, rows, down, columns, across, outside, to, plane, channels)``: the same of elements anywhere.

    Tables tell where the rows lie, their entries `down` bytes apart, and the columns. What lies in a row or a column of
    the padding that repeats no other is `outside`.
    """
    names = ("x", "rows", "down", "columns", "across", "outside", "to", "plane", "channels")
    kernel = Kernel(module, "placed_forward", names)
    x, rows, down, columns, across, outside, *target = kernel.arguments
    tall, wide = form.matrices.reads
    places = kernel.memory(I64, tall * wide)
    row_places = [kernel.load(rows + down * i) for i in range(tall)]
    for j in range(wide):
        column = kernel.load(columns + across * j)
        for i, row in enumerate(row_places):
            place = row + column
            kernel.store((place < OUTSIDE // 2).where(outside, x + place), places, 8 * (tall * j + i))

    def column_of(entry: Value, at: Value) -> list[Value]:
        return [kernel.load(entry, offset=8 * i) + at for i in range(tall)]

    _forward(kernel, dtype, form, places, 8 * tall, column_of, *target)
    return kernel


def _forward(
    kernel: Kernel, dtype: str, form: Form, first: Value, step: Operand,
    column_of: Callable[[Value, Value], list[Value]], to: Value, plane: Value, channels: Value,
) -> None:  # fmt: skip
    """All channels of a tile, a vector at a time: `column_of(column, offset)` is where the elements of a column lie."""
    kind, columns, points = vector(FLOATS[dtype], lanes_of(dtype)), form.matrices.reads[1], form.matrices.values[1]

    def body(at: Value, mask: Value | None) -> None:
        def column(place: Value) -> list[Value]:
            return [take(kernel, address, kind, mask) for address in column_of(place, at)]

        done = _column_by_column(kernel, form.forward, column, first, step, columns)
        for i, values in enumerate(_rows(kernel, form.forward, done)):
            for j, value in enumerate(values):
                put(kernel, value, to + at + plane * (points * i + j), mask)

    in_vectors(kernel, dtype, channels, body)
    kernel.finish()


def back_kernel(module: ir.Module, dtype: str, form: Form) -> Kernel:
    """``back``: ``phi(A^T m A + bias)`` of a tile, of which so many rows and columns are stored; of a signal, results.

    Zero times the sum of every row is added to what was `found`, which stays zero as long as all are finite.
    """
    names = ("m", "plane", "y", "row", "pixel", "filters", "rows", "columns", "finish", "bias", "found", "stream")
    kernel = Kernel(module, "back", names)
    given = SimpleNamespace(**dict(zip(names, kernel.arguments, strict=True)))
    kind, (tall, wide) = vector(FLOATS[dtype], lanes_of(dtype)), form.matrices.values
    zeros, seen = kernel.constant(0, kind), kernel.variable(kernel.load(given.found, kind))
    fold = form.matrices.fold

    def body(at: Value, mask: Value | None) -> None:
        def column(place: Value) -> list[Value]:
            return [take(kernel, place + given.plane * (wide * i), kind, mask) for i in range(tall)]

        columns = _column_by_column(kernel, form.back, column, given.m + at, given.plane, wide)
        added = kernel.load(given.bias + at, kind)
        for i, values in enumerate(_rows(kernel, form.back, columns)):
            seen.set(kernel.fma(_sum(values), zeros, seen.get()))
            left = given.rows - i * fold if fold else given.columns
            with kernel.when(given.rows > i * (fold or 1)):
                _row_stored(kernel, given, values, added, left, given.y + at + given.row * i, mask)

    in_vectors(kernel, dtype, given.filters, body)
    kernel.store(seen.get(), given.found)
    kernel.finish()
    return kernel


def _row_stored(
    kernel: Kernel, given: SimpleNamespace, values: Sequence[Value], added: Value, left: Value, place: Value,
    mask: Value | None,
) -> None:  # fmt: skip
    """The results of a row, of which so many are left, finished."""

    def stored(results: Sequence[Value]) -> None:
        with kernel.either(left >= len(results)) as (all_, some):
            with all_:
                _stored(kernel, results, place, given, mask)
            with some:
                for j, result in enumerate(results[:-1]):
                    with kernel.when(left > j):
                        _stored(kernel, [result], place + given.pixel * j, given, mask)

    with kernel.either(given.finish.equals(0)) as (plain, other):
        with plain:
            stored([value + added for value in values])
        with other:
            finished = Finish(kernel, given.finish, added.type.element, added.type.count)
            stored([finished(value, added) for value in values])


def _sum(values: Sequence[Value]) -> Value:
    """Of neighbours first, which can be added at once."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=False)] + list(values[len(values) & ~1 :])
    return values[0]


def _stored(
    kernel: Kernel, results: Sequence[Value], place: Value, given: SimpleNamespace, mask: Value | None
) -> None:
    """Vectors a pixel apart to memory, past the caches where that is asked for, or the lanes of a mask.

    Where they go by way of the caches, memory for the next tile's is asked for: what waits to be stored would otherwise
    fill up while that is waited for. On a Zen 3, N=8: 64@56 6.0 -> 5.3 ms, 128@28 4.74 -> 4.58.
    """
    places = [place + given.pixel * j for j in range(len(results))]
    if mask is not None:
        for result, there in zip(results, places, strict=True):
            put(kernel, result, there, mask)
        return
    with kernel.either(given.stream > 0) as (streamed, kept):
        with streamed:
            for result, there in zip(results, places, strict=True):
                kernel.stream(result, there)
        with kept:
            for result, there in zip(results, places, strict=True):
                kernel.store(result, there)
                if asks_ahead() and len(results) > 1:  # of a tile at the edge there may be no next one
                    kernel.prefetch(there + given.pixel * len(results), written=True)


def backward_kernel(module: ir.Module, dtype: str, filters: int) -> Kernel:
    """``backward(gy, row, pixel, to, plane)``: a tile ``A gy A^T`` of so many filters, a point a plane on."""
    kernel = Kernel(module, "backward", ("gy", "row", "pixel", "to", "plane"))
    gy, row, pixel, to, plane = kernel.arguments
    kind, (tall, wide) = vector(FLOATS[dtype], min(lanes_of(dtype), filters)), winograd.F4.tile
    for at in range(0, filters * size_of(kind), kind.count * size_of(kind)):
        tile = [[kernel.load(gy + pixel * j + row * i, kind, at) for i in range(tall)] for j in range(wide)]
        for i, values in enumerate(_transformed(kernel, _gradients_forward, tile)):
            for j, value in enumerate(values):
                kernel.store(value, to + plane * (winograd.F4.edges[1] * i + j), at)
    kernel.finish()
    return kernel


def weight_back(kernel: Kernel, sums: Sequence[Value]) -> list[Value]:
    """``G^T s G``: nine taps of 36 sums, row by row."""
    edge = winograd.F4.edges[0]
    columns = [[sums[edge * i + j] for i in range(edge)] for j in range(edge)]
    return [tap for row in _transformed(kernel, _weight_back, columns) for tap in row]


def _gradients_forward(kernel: Kernel, g: Sequence[Value]) -> list[Value]:
    """``A g`` for four values."""
    even, odd = g[0] + g[2], g[1] + g[3]
    far, far_odd = _times(kernel, g[2], 4, g[0]), _times(kernel, g[3], 4, g[1])
    return [g[0], even + odd, even - odd, _times(kernel, far_odd, 2, far), _times(kernel, far_odd, -2, far), g[3]]


def _weight_back(kernel: Kernel, s: Sequence[Value]) -> list[Value]:
    """``G^T s`` for six values."""
    near, near_odd, far, far_odd = s[1] + s[2], s[2] - s[1], s[3] + s[4], s[3] - s[4]
    first = _times(kernel, near, -1 / 6, far * (1 / 24))
    return [
        _times(kernel, s[0], 1 / 4, first), _times(kernel, far_odd, 1 / 12, near_odd * (1 / 6)),
        _times(kernel, far - near, 1 / 6, s[5]),
    ]  # fmt: skip


def _column_by_column(
    kernel: Kernel, along: Along, column: Callable[[Value], list[Value]], place: Value, step: Operand, count: int
) -> list[list[Value]]:
    """Columns a step apart, each transformed before the next is read: all would not fit in registers."""
    columns = []
    for _ in range(count):
        columns.append(along(kernel, column(place)))
        place = kernel.after(place + step, columns[-1])
    return columns


def _rows(kernel: Kernel, along: Along, columns: Sequence[Sequence[Value]]) -> Iterator[Sequence[Value]]:
    """Row by row, of columns that are transformed already; a single column is not transformed along its rows."""
    for row in list(zip(*columns, strict=True)):
        yield row if len(columns) == 1 else along(kernel, row)


def _transformed(kernel: Kernel, along: Along, columns: list[list[Value]]) -> Iterator[Sequence[Value]]:
    """Both transforms of columns that are there."""
    return _rows(kernel, along, [along(kernel, column) for column in columns])


def _images_forward(kernel: Kernel, d: Sequence[Value]) -> list[Value]:
    """``B^T d`` for six values."""
    even, odd = _times(kernel, d[2], -4, d[4]), _times(kernel, d[1], -4, d[3])
    outer, inner = d[4] - d[2], d[3] - d[1]
    return [
        _times(kernel, d[0] - d[2], 4, outer), even + odd, even - odd, _times(kernel, inner, 2, outer),
        _times(kernel, inner, -2, outer), _times(kernel, inner, -4, d[5] - d[3]),
    ]  # fmt: skip


def _images_back(kernel: Kernel, m: Sequence[Value], *, results: int) -> list[Value]:
    """``A^T m`` for six values, of which the last is a part of the last result alone."""
    near, near_odd, far, far_odd = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    *others, last = [
        m[0] + near + far, _times(kernel, far_odd, 2, near_odd), _times(kernel, far, 4, near),
        _times(kernel, far_odd, 8, near_odd),
    ][:results]  # fmt: skip
    return [*others, last + m[5]]


def _small_forward(_: Kernel, d: Sequence[Value]) -> list[Value]:
    """``B^T d`` of F(2, 3), for four values."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _small_back(_: Kernel, m: Sequence[Value]) -> list[Value]:
    """``A^T m`` for four values."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _pairs_forward(_: Kernel, d: Sequence[Value]) -> list[Value]:
    """``B^T d`` of F(2, 2), for three values."""
    return [d[0] - d[1], d[1], d[2] - d[1]]


def _pairs_back(_: Kernel, m: Sequence[Value]) -> list[Value]:
    """``A^T m`` for three values."""
    return [m[0] + m[1], m[1] + m[2]]


def _as_they_are(_: Kernel, values: Sequence[Value]) -> list[Value]:
    """Of F(2, 1), both ways."""
    return list(values)


_TO_TWO: dict[int, tuple[Along, Along]] = {  # F(2, r) by its taps
    1: (_as_they_are, _as_they_are), 2: (_pairs_forward, _pairs_back), 3: (_small_forward, _small_back),
}  # fmt: skip


def _by_halves(name: str, taps: int, matrices: winograd.Transform) -> Form:
    """What makes two results of the even taps and two of the odd ones: these are added, or, where elements are spread,
    lie between each other.
    """
    (even, even_back), (odd, odd_back) = (_TO_TWO[half] for half in winograd.halves(taps))
    points, others = (half + 1 for half in winograd.halves(taps))  # of each half, made of as many values
    shift, spread = 1 - matrices.first, matrices.spread > 1

    def forward(kernel: Kernel, d: Sequence[Value]) -> list[Value]:
        halves = (d[:points], d[shift : shift + others]) if spread else (d[::2], d[1::2])
        return even(kernel, halves[0]) + odd(kernel, halves[1])

    def back(kernel: Kernel, m: Sequence[Value]) -> list[Value]:
        ours, theirs = even_back(kernel, m[:points]), odd_back(kernel, m[points:])
        if not spread:
            return [a + b for a, b in zip(ours, theirs, strict=True)]
        pairs = zip(theirs, ours, strict=True) if matrices.first else zip(ours, theirs, strict=True)
        return [value for pair in pairs for value in pair]

    return Form(name, matrices, forward, back)


def _signals_forward(kernel: Kernel, d: Sequence[Value]) -> list[Value]:
    """``B^T d`` for five values."""
    odd = d[3] - d[1]
    return [
        _times(kernel, d[0] - d[2], 2, odd), odd - (d[1] + d[2]), _times(kernel, d[1] - d[2], 3, odd), odd,
        _times(kernel, odd, -2, d[4] - d[2]),
    ]  # fmt: skip


def _signals_back(kernel: Kernel, m: Sequence[Value]) -> list[Value]:
    """``A^T m`` for five values."""
    near = m[1] + m[2]
    return [m[0] + near + m[3], _times(kernel, m[3], 2, m[1] - m[2]), _times(kernel, m[3], 4, near) + m[4]]


def _times(kernel: Kernel, a: Value, factor: float, b: Value) -> Value:
    """``factor a + b``."""
    return kernel.fma(a, kernel.constant(factor, a.type), b)


_IMAGES = [
    Form(f"images-{taps}", matrices, _images_forward, partial(_images_back, results=matrices.results))
    for taps, matrices in winograd.IMAGES.items()
]
SMALL_IMAGES = Form("small-images", winograd.F2, _small_forward, _small_back)
SIGNALS = Form("signals", winograd.F3, _signals_forward, _signals_back)
LONG_SIGNALS = Form("long-signals", winograd.F9, _signals_forward, _signals_back)
_STRIDED = [_by_halves(f"strided-images-{taps}", taps, matrices) for taps, matrices in winograd.STRIDED.items()]
_SPREAD = [
    _by_halves(f"spread-images-{taps}-{first}", taps, matrices) for (taps, first), matrices in winograd.SPREAD.items()
]
FORMS = {form.matrices: form for form in (*_IMAGES, SMALL_IMAGES, SIGNALS, LONG_SIGNALS, *_STRIDED, *_SPREAD)}
IMAGES = FORMS[winograd.F4]
