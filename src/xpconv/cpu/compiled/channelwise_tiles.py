"""The tiles of what every channel does by itself: some results times some vectors of channels.

The elements that a window reads side by side are one tap, as long as there are kernels for so many, and an element
that several windows of a tile read is then loaded once.
"""

from __future__ import annotations

import math
import os
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import placed
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Operand, Value, Variable, vector
from xpconv.cpu.compiled.moves import lanes_of, take
from xpconv.cpu.compiled.tile import SUMMED, Finish


@dataclass(frozen=True)
class Taps:
    """Elements of a tap along the last axis, and the stride there of windows that follow each other."""

    run: int
    stride: int
    long: bool  # so many elements that sums are put aside on the way
    placed: bool  # whether a table tells where each element lies, and not one step from each to the next
    tall: bool  # whether there are tiles of two rows

    def span(self, windows: int) -> int:
        """Elements of a tap that so many windows read together: each its own, where taps are single elements."""
        return windows if self.run == 1 else (windows - 1) * self.stride + self.run

    def read(self, element: int, windows: int) -> Iterator[tuple[int, int]]:
        """Which of so many windows read an element, counted from the first one's first, and as which of the tap's."""
        for s in range(self.run):
            window, between = divmod(element - s, self.stride or 1)
            if not between and 0 <= window < windows:
                yield window, s


def shapes(operation: str, run: int) -> dict[int, tuple[int, ...]]:
    """Results of a tile, and how many vectors of channels: many for a single one, whose sums would wait for another.

    Weights take registers too: by two vectors, taps of 5 took half as long again as by one. Seven results divide the
    rows of many a network evenly.
    """
    here = machine()
    assert here is not None
    many = here.registers == 32
    if operation != "multiplied":
        return {4: (4, 2, 1), 1: (8, 4, 1)} if many else {4: (2, 1), 1: (8, 2, 1)}
    if not many:
        return {7: (1,), 3: (1,), 1: (2, 1)}
    return {7: (3, 2, 1), 3: (2, 1), 1: (4, 1)} if run <= 3 else eval(os.environ.get("SHAPES", "{7: (2, 1), 3: (2, 1), 1: (2, 1)}"))


_STEPPING, _PLACED = ("x", "pixels", "taps", "step"), ("x", "rows", "columns", "grid", "below")
_ARGUMENTS = (
    "tap_count", "w", "w_step", "y", "results", "channels", "finish", "bias", "divisor", "stream",
)  # fmt: skip


def tiles(
    module: ir.Module, dtype: str, operation: str, taps: Taps, height: int, shapes: tuple[int, ...], rows: int = 1
) -> Kernel:
    """All channels of `height` results of so many rows, by as many vectors at once as there are shapes for."""
    names = (*(_PLACED if taps.placed else _STEPPING), *_ARGUMENTS)
    kernel = Kernel(module, f"tiles{rows}x{height}", names)
    given = SimpleNamespace(**dict(zip(names, kernel.arguments, strict=True)))
    if taps.placed:
        given.ahead = kernel.load(given.grid, offset=32)
        given.across = kernel.load(given.grid, offset=16)
        given.places = placed.found(kernel, given, taps.span(height), taps.run, rows - 1)
    lanes, channel = lanes_of(dtype), kernel.variable(0)
    for vectors in shapes:
        with kernel.while_(lambda width=vectors * lanes: channel.get() + width <= given.channels):
            _tile(kernel, given, dtype, operation, taps, (rows, height, vectors), channel.get(), None)
            channel.set(channel.get() + vectors * lanes)
    with kernel.when(channel.get() < given.channels):
        mask = kernel.lanes_below(given.channels - channel.get(), lanes)
        _tile(kernel, given, dtype, operation, taps, (rows, height, 1), channel.get(), mask)
    kernel.finish()
    return kernel


def _tile(
    kernel: Kernel, given: SimpleNamespace, dtype: str, operation: str, taps: Taps, shape: tuple[int, int, int],
    channel: Value, mask: Value | None,
) -> None:  # fmt: skip
    """Results times vectors of channels, from a channel on."""
    size, kind = np.dtype(dtype).itemsize, vector(FLOATS[dtype], lanes_of(dtype))
    at, (rows, height, vectors), join = channel * size, shape, kernel.maximum if operation == "largest" else operator.add
    places = [lanes_of(dtype) * size * q for q in range(vectors)]
    read = (_placed if taps.placed else _stepping)(kernel, given, taps, height, at)
    nothing = kernel.constant(-math.inf if operation == "largest" else 0, kind)

    def add(totals: list[list[Variable]], t: Value, which: Sequence[int]) -> None:
        """A tap of the first row's windows, which is one down of the second's above it."""
        weights = [given.w + at + (t - r * given.across) * taps.run * given.w_step for r in which]
        factors = [
            [[kernel.load(w + given.w_step * s, kind, place) for place in places] for s in range(taps.run)]
            for w in (weights if operation == "multiplied" else [])
        ]
        tap, element = read(t)
        for j in range(taps.span(height)):
            values = [take(kernel, element(tap, j) + place, kind, mask) for place in places]
            joins = list(product(enumerate(which), taps.read(j, height)))
            for ((i, r), (p, s)), (q, value) in product(joins, enumerate(values)):
                total = totals[r * height + p][q]
                total.set(kernel.fma(value, factors[i][s][q], total.get()) if factors else join(total.get(), value))
            if factors:
                summed = [total.get() for (_, r), (p, _) in joins for total in totals[r * height + p]]
                tap = kernel.after(tap, summed)

    def joined(first: Operand, stop: Operand) -> list[list[Variable]]:
        totals = [[kernel.variable(nothing) for _ in places] for _ in range(rows * height)]
        if rows == 1:
            with kernel.loop(stop, start=first) as t:
                add(totals, t, [0])
            return totals
        with kernel.loop(given.across) as t:
            add(totals, t, [0])
        with kernel.loop(given.tap_count, start=given.across) as t:
            add(totals, t, [0, 1])
        with kernel.loop(given.tap_count + given.across, start=given.tap_count) as t:
            add(totals, t, [1])
        return totals

    if taps.long:
        totals = [[kernel.variable(nothing) for _ in places] for _ in range(rows * height)]
        with kernel.loop(given.tap_count, step=SUMMED // taps.run) as first:
            part = joined(first, kernel.minimum(first + SUMMED // taps.run, given.tap_count))
            for total, more in zip(chain(*totals), chain(*part), strict=True):
                total.set(join(total.get(), more.get()))
    else:
        if taps.placed and os.environ.get("PF"):
            last = given.places + (given.tap_count - 1 + (rows - 1) * given.across) * (8 * placed.line(taps.span(height)))
            first = taps.span(height) - height * taps.stride
            for j in range(max(first, 0), taps.span(height)):
                line = kernel.load(last, offset=8 * j) + at + given.ahead
                for place in places:
                    kernel.prefetch(line + place)
        totals = joined(0, given.tap_count)
    below = [0] if rows == 1 else [0, given.below]
    targets = [given.y + at + kernel.load(given.results + r, offset=8 * p) for r in below for p in range(height)]

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

    for q, place in enumerate(places):
        _stored(kernel, given, operation, kind, at + place, partial(store, q))


def _stepping(
    kernel: Kernel, given: SimpleNamespace, taps: Taps, height: int, at: Value
) -> Callable[[Value], tuple[Value, Callable[[Value, int], Value]]]:
    """"""
    if taps.run == 1:
        starts = [given.x + at + kernel.load(given.pixels, offset=8 * p) for p in range(height)]
    else:
        first = given.x + at + kernel.load(given.pixels)
        starts = [first + given.step * j for j in range(taps.span(height))]
    return lambda t: (kernel.load(given.taps, offset=t * 8), lambda tap, j: starts[j] + tap)


def _placed(
    kernel: Kernel, given: SimpleNamespace, taps: Taps, height: int, at: Value
) -> Callable[[Value], tuple[Value, Callable[[Value, int], Value]]]:
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
