"""The tiles of what every channel does by itself: some results times some vectors of channels.

The elements that a window reads side by side are one tap, as long as there are kernels for so many, and an element
that several windows of a tile read is then loaded once. Tiles of two rows load it for both: of 5x5 windows, a sixth
less time than by one row, and as the input of a window's rows is more than the first cache holds, of 3x3 a tenth.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import ahead, placed
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of, take
from xpconv.cpu.compiled.tile import SUMMED, Finish
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, Variable, vector
from xpconv.spec import ConvSpec, PoolSpec


@dataclass(frozen=True)
class Taps:
    """Elements of a tap along the last axis, and the stride there of windows that follow each other."""

    run: int
    stride: int
    long: bool  # so many elements that sums are put aside on the way
    placed: bool = False  # whether a table tells where each element lies, and not one step from each to the next
    tall: bool = False  # whether windows of two rows read the same rows but one

    def span(self, windows: int) -> int:
        """Elements of a tap that so many windows read together: each its own, where taps are single elements."""
        return windows if self.run == 1 else (windows - 1) * self.stride + self.run

    def read(self, element: int, windows: int) -> Iterator[tuple[int, int]]:
        """Which of so many windows read an element, counted from the first one's first, and as which of the tap's."""
        for s in range(self.run):
            window, between = divmod(element - s, self.stride or 1)
            if not between and 0 <= window < windows:
                yield window, s


_RUNS, _STEPS = (7, 5, 3, 2), (1, 2)  # elements of a tap, and strides, that there are kernels for


def taps_of(spec: ConvSpec | PoolSpec, operation: str) -> Taps:
    """What windows are read by: those of two axes find few elements by tables, where that takes no longer.

    Tables spare padded input its copy; filters, which take longer than finding places does, then share rows too.
    """
    long = math.prod(spec.window) > SUMMED
    run = next((n for n in _RUNS if spec.window[-1] % n == 0), 1)
    if spec.dilation[-1] > 1 or spec.stride[-1] not in _STEPS or run == 1:
        return Taps(1, 0, long)
    taps, most = Taps(run, spec.stride[-1], long), max(shapes(operation, run))
    entries = (spec.window[0] + 1) * (spec.window[-1] // run) * placed.line(taps.span(most))
    multiplied = operation == "multiplied"
    if spec.axes != 2 or entries > placed.MOST or not (multiplied or any(pads != (0, 0) for pads in spec.padding)):
        return taps
    return replace(taps, placed=True, tall=multiplied and spec.stride[0] == spec.dilation[0] and _many())


def shapes(operation: str, run: int) -> dict[int, tuple[int, ...]]:
    """Results of a tile, and how many vectors of channels: many for a single one, whose sums would wait for another.

    Weights take registers too. Seven results divide the rows of many a network evenly.
    """
    many = _many()
    if operation != "multiplied":
        return {4: (4, 2, 1), 1: (_WIDE, 4, 1)} if many else {4: (2, 1), 1: (_WIDE, 4, 2, 1)}
    if not many:
        return {7: (1,), 4: (2, 1), 3: (1,), 1: (2, 1)}
    return {7: (3, 2, 1), 3: (2, 1), 1: (4, 1)} if run <= 3 else {7: (2, 1), 3: (2, 1), 1: (2, 1)}


def heights(operation: str, run: int, *, far: bool) -> tuple[int, ...]:
    """Results of the tiles that are taken, most first; of maps `far` beyond the caches those that store whole lines.

    Two narrow vectors are a line. Zen 3: depthwise 3x3 144@56, N=8, 6.6 ms by sevens of one vector and 4.1 by fours of
    two; 240@28, N=8, which the last cache holds, 3.9 and 4.5.
    """
    if operation != "multiplied" or _many():
        return tuple(shapes(operation, run))
    return (4, 1) if far else (7, 3, 1)


def go_alone(spec: ConvSpec | PoolSpec, operation: str, dtype: str) -> bool:
    """Whether windows are read one by one, all channels of an element side by side, where they fill the registers.

    Windows that share few elements are: with two vectors of each of four, what is read next changes with every line.
    Of 64 channels, max 2x2s2 @112, N=8, took 2.2 ms by fours and 1.2 one by one; of 32 as long, of 16 half as long
    again. Windows of stride one took 0.45 ms by fours, average 3x3 64@56, and 0.77 one by one.
    """
    fills = spec.channels >= _WIDE * lanes_of(dtype)
    return operation != "multiplied" and not _many() and spec.stride[-1] > 1 and fills


_WIDE = 8  # vectors of a single window
_AHEAD = 256  # bytes of channels before they are stored, memory for them is asked for


def _many() -> bool:
    """Whether there are registers for the sums of two rows."""
    here = machine()
    assert here is not None
    return here.registers == 32


_STEPPING, _PLACED = ("x", "pixels", "taps", "step"), ("x", "rows", "columns", "grid", "below")
_ARGUMENTS = (
    "tap_count", "w", "w_step", "y", "results", "channels", "finish", "bias", "divisor", "stream", "soon", "asking",
)  # fmt: skip


def tiles(
    module: ir.Module, dtype: str, operation: str, taps: Taps, shape: tuple[int, int], vectors: tuple[int, ...]
) -> Kernel:
    """All channels of some rows by some results of each, in tiles of so many vectors as far as there are so many."""
    names = (*(_PLACED if taps.placed else _STEPPING), *_ARGUMENTS)
    kernel = Kernel(module, f"tiles{shape[0]}x{shape[1]}", names)
    given = SimpleNamespace(**dict(zip(names, kernel.arguments, strict=True)))
    if taps.placed:
        given.across = placed.across(kernel, given)
        given.places = placed.found(kernel, given, taps.span(shape[1]), taps.run, more=shape[0] - 1)
    if taps.run > 1:
        ahead.ask(kernel, given.soon, given.asking, shape[0], shape[1] * taps.stride)
    lanes, channel = lanes_of(dtype), kernel.variable(0)
    for count in vectors:
        with kernel.while_(lambda width=count * lanes: channel.get() + width <= given.channels):
            _tile(kernel, given, dtype, operation, taps, (*shape, count), channel.get(), None)
            channel.set(channel.get() + count * lanes)
    with kernel.when(channel.get() < given.channels):
        mask = kernel.lanes_below(given.channels - channel.get(), lanes)
        _tile(kernel, given, dtype, operation, taps, (*shape, 1), channel.get(), mask)
    kernel.finish()
    return kernel


def _tile(
    kernel: Kernel, given: SimpleNamespace, dtype: str, operation: str, taps: Taps, shape: tuple[int, int, int],
    channel: Value, mask: Value | None,
) -> None:  # fmt: skip
    """Rows times results times vectors of channels, from a channel on."""
    size, kind, (rows, height, vectors) = np.dtype(dtype).itemsize, vector(FLOATS[dtype], lanes_of(dtype)), shape
    at, places = channel * size, [lanes_of(dtype) * size * q for q in range(vectors)]
    add = _adding(kernel, given, operation, taps, (height, kind, places), at, mask)

    def joined(first: Operand, stop: Operand) -> list[list[Variable]]:
        totals = _nothing(kernel, operation, kind, (rows * height, vectors))
        if rows == 1:
            with kernel.loop(stop, start=first) as t:
                add(totals, t, [0])
            return totals
        count, across = given.tap_count, given.across
        for begin, end, which in ((0, across, [0]), (across, count, [0, 1]), (count, count + across, [1])):
            with kernel.loop(end, start=begin) as t:
                add(totals, t, which)
        return totals

    if taps.long:
        totals = _nothing(kernel, operation, kind, (rows * height, vectors))
        with kernel.loop(given.tap_count, step=SUMMED // taps.run) as first:
            part = joined(first, kernel.minimum(first + SUMMED // taps.run, given.tap_count))
            for total, more in zip(chain(*totals), chain(*part), strict=True):
                total.set(_join(kernel, operation)(total.get(), more.get()))
    else:
        totals = joined(0, given.tap_count)
    lines = [given.results] if rows == 1 else [given.results, given.results + given.below]
    targets = [given.y + at + kernel.load(line, offset=8 * p) for line in lines for p in range(height)]

    def store(q: int, done: Callable[[Value], Value]) -> None:
        found = [(done(row[q].get()), target + places[q]) for target, row in zip(targets, totals, strict=True)]
        if mask is not None:  # a part of a vector is no line
            for result, place in found:
                kernel.store_lanes(result, place, mask)
            return
        with kernel.either(given.stream > 0) as (streamed, kept):
            for where, write in ((streamed, kernel.stream), (kept, kernel.store)):
                with where:
                    for result, place in found:
                        write(result, place)
        with kernel.when(given.stream < 0):
            for _, place in found:
                kernel.prefetch(place + _AHEAD, written=True)

    for q, place in enumerate(places):
        _stored(kernel, given, operation, kind, at + place, partial(store, q))


def _nothing(kernel: Kernel, operation: str, kind: ir.Type, shape: tuple[int, int]) -> list[list[Variable]]:
    """Totals of no element."""
    start = kernel.constant(-math.inf if operation == "largest" else 0, kind)
    return [[kernel.variable(start) for _ in range(shape[1])] for _ in range(shape[0])]


def _join(kernel: Kernel, operation: str) -> Callable[[Value, Value], Value]:
    return kernel.maximum if operation == "largest" else operator.add


def _adding(
    kernel: Kernel, given: SimpleNamespace, operation: str, taps: Taps, vectors: tuple[int, ir.Type, list[int]],
    at: Value, mask: Value | None,
) -> Callable[[list[list[Variable]], Value, Sequence[int]], None]:  # fmt: skip
    """What adds a tap, counted from the first row's first, to the totals of the first row, of the second, or of both.

    The windows of the second row lie one tap down.
    """
    height, kind, places = vectors
    read, join = (_placed if taps.placed else _stepping)(kernel, given, taps, height, at), _join(kernel, operation)

    def factors_of(t: Value) -> list[list[Value]]:
        weight = given.w + at + t * taps.run * given.w_step
        return [[kernel.load(weight + given.w_step * s, kind, place) for place in places] for s in range(taps.run)]

    def add(totals: list[list[Variable]], t: Value, which: Sequence[int]) -> None:
        multiplied = operation == "multiplied"
        factors = {r: factors_of(t - r * given.across if r else t) for r in which} if multiplied else {}
        tap, element = read(t)
        for j in range(taps.span(height)):
            values, changed = [take(kernel, element(tap, j) + place, kind, mask) for place in places], []
            for r, (p, s), (q, value) in product(which, taps.read(j, height), enumerate(values)):
                total = totals[r * height + p][q]
                total.set(kernel.fma(value, factors[r][s][q], total.get()) if factors else join(total.get(), value))
                changed.append(total.get())
            if factors:  # free to choose, LLVM loads more elements at once than there are registers for
                tap = kernel.after(tap, changed)

    return add


_Reader: TypeAlias = Callable[[Value], tuple[Value, Callable[[Value, int], Value]]]
"""Of a tap's number: an integer of the tap, and where, by that integer, each of its elements lies."""


def _stepping(kernel: Kernel, given: SimpleNamespace, taps: Taps, height: int, at: Value) -> _Reader:
    """From where the elements of the windows' first taps lie: each window's own, or all that follow the first one's."""
    if taps.run == 1:
        starts = [given.x + at + kernel.load(given.pixels, offset=8 * p) for p in range(height)]
    else:
        first = given.x + at + kernel.load(given.pixels)
        starts = [first + given.step * j for j in range(taps.span(height))]
    return lambda t: (kernel.load(given.taps, offset=t * 8), lambda tap, j: starts[j] + tap)


def _placed(kernel: Kernel, given: SimpleNamespace, taps: Taps, height: int, at: Value) -> _Reader:
    """By the places that were found for the tile."""
    line = 8 * placed.line(taps.span(height))
    return lambda t: (given.places + t * line, lambda tap, j: kernel.load(tap, offset=8 * j) + at)


def _stored(
    kernel: Kernel, given: SimpleNamespace, operation: str, kind: ir.Type, at: Value,
    store: Callable[[Callable[[Value], Value]], None],
) -> None:  # fmt: skip
    """Totals as results, of the channels so many bytes from the first."""
    if operation == "largest":
        store(lambda total: total)
    elif operation == "added":
        shared = kernel.splat(kernel.load(given.divisor, kind.element), kind.count)
        store(lambda total: total // shared)
    else:
        bias = kernel.load(given.bias + at, kind)
        with kernel.either(given.finish.equals(0)) as (plain, other):
            with plain:
                store(lambda total: total + bias)
            with other:  # takes half as long as 3 by 3 products
                finished = Finish(kernel, given.finish, kind.element, kind.count)
                store(lambda total: finished(total, bias))
