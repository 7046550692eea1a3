"""The register tile: some pixels times one, two or four vectors of filters, summed over taps and channels.

``y[p, f] = phi(bias[f] + sum over t, c of  x[pixel[p] + tap[t] + c] w[t, c, f])``, with the byte offsets of pixels,
taps and results in tables, so that any number of axes, stride and dilation, forward or backward, share one kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.cpu.compiled.processor import asks_ahead
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, Variable, size_of, vector
from xpconv.cpu.lines import LINE

_ARGUMENTS = (
    "x", "pixels", "taps", "tap_count", "run", "w", "w_step", "y", "results", "width", "finish", "bias", "stream",
)  # fmt: skip

_MORE = {"packing": ("packed",), "adding": ("there",), "foreseeing": ("soon", "soon_step")}


@dataclass(frozen=True)
class Shape:
    """Filters of a tile: so many vectors of so many lanes, which several groups may share evenly.

    Groups that share a vector take turns in its lanes, as their channels do in memory: a tuple of one channel of each
    is then repeated over all lanes as it is loaded.
    """

    lanes: int
    vectors: int
    groups: int = 1

    @property
    def filters(self) -> int:
        """In a tile."""
        return self.lanes * self.vectors

    def places(self, size: int) -> list[int]:
        """Bytes from a row of filters, of elements of so many, to each of its vectors."""
        return [self.lanes * size * q for q in range(self.vectors)]

    @property
    def taking_turns(self) -> list[int]:
        """Lanes of one group after the other, in the order in which the groups take turns."""
        each = self.lanes // self.groups
        return [(lane % self.groups) * each + lane // self.groups for lane in range(self.lanes)]

    @property
    def one_by_one(self) -> list[int]:
        """Lanes in which groups take turns, in the order of one group after the other."""
        return replace(self, groups=self.lanes // self.groups).taking_turns

    @property
    def every_height(self) -> tuple[int, ...]:
        """Pixels of tiles that share any number of pixels evenly.

        Of two vectors a tile of 12 multiplies 258 GFLOP/s on a Zen 5, of 6 to 11 no less than 250, of 14 only 237, as
        its addresses do not fit in registers, and of 2, which 16 pixels leave over when 14 are taken, 135.
        """
        here = machine()
        assert here is not None
        return tuple(range(6 if self.vectors == 4 or (here.registers < 32 and self.vectors == 2) else 12, 0, -1))

    @property
    def heights(self) -> tuple[int, ...]:
        """Pixels of the tiles that there are kernels for: the largest fills the registers with sums."""
        here = machine()
        assert here is not None
        if self.vectors == 4:
            return (6, 3, 2, 1)
        if self.vectors == 1:
            return (24, 12, 6, 2, 1) if here.registers == 32 else (12, 6, 2, 1)
        return (14, 7, 4, 2, 1) if here.registers == 32 else (6, 4, 2, 1)


def shapes(dtype: str) -> tuple[Shape, ...]:
    """Those that there are, the fastest for each multiplication first."""
    lanes, here = lanes_of(dtype), machine()
    assert here is not None
    four = ((lanes, 4),) if here.takes_four else ()
    return tuple(Shape(*s) for s in (*four, (lanes, 2), (lanes, 1), (lanes // 2, 1)) if s[0] > 1)


_AHEAD = 8  # rows of a weight that is packed
SUMMED = 512  # products after which sums are put aside: thousands added one by one would lose digits
# Of a lane, by the vectors of a tile: narrower tiles load more for what they multiply. 1x1 64->144@28, N=4, in tiles of
# two vectors and of one: 0.35 and 0.48 ms with AVX-512, 64->72 0.33 and 0.38 with AVX2; 64->48 and 64->24 tie. Of four
# and of two, on an Emerald Rapids, Winograd's 3x3 256@56, N=1 on one core 6.94 and 7.29, 64@56 0.548 and 0.561.
_COST = {4: 0.96, 2: 1.0, 1: 1.3, 0.5: 1.6}


def shape_for(filters: int, dtype: str, most: int = 4) -> Shape:
    """The shape, of so many vectors at most, that so many filters of a group waste the least in."""

    def cost(shape: Shape) -> float:
        return -(-filters // shape.filters) * shape.filters * _COST[shape.filters / lanes_of(dtype)]

    return min((shape for shape in shapes(dtype) if shape.vectors <= most), key=cost)


def even_run(elements: int, most: int) -> int:
    """The longest run, of so many elements at most, that all of them are cut into evenly."""
    return next(n for n in range(min(elements, most), 0, -1) if elements % n == 0)


def tile_kernels(
    module: ir.Module, dtype: str, shape: Shape, heights: tuple[int, ...] | None = None, *, foresees: bool = False,
    adds: bool = False, by_rows: bool = False,
) -> dict[int, Kernel]:  # fmt: skip
    """A kernel for each height; the first `width` filters of a tile are stored.

    One that `adds` has one more argument, -1 where the results at ``bias`` are taken for the bias, of all filters of a
    tile, and 0 where there is a bias. `by_rows` there is a bias for each pixel, and not for each filter.

    One that `foresees` has two more arguments: an address that is to be read soon, and how many bytes more of what
    lies there are asked for with each channel, those of a row of the weight at most, or an element for each pixel.
    """
    heights = heights or shape.heights
    how = {"foresees": foresees, "adds": adds, "by_rows": by_rows}
    return {height: _tile(module, dtype, shape, height, **how) for height in heights}


def packing_tile(module: ir.Module, dtype: str, shape: Shape) -> Kernel:
    """The kernel of the largest height, which on its way packs the weight that it reads to where ``packed`` says.

    Products hide what reading a large weight takes: N=1, 3x3 512@7 0.66 -> 0.57 ms, 1x1 512->2048@7 0.29 -> 0.25. Rows
    that lie kilobytes apart are asked for ahead of time: 1.47 -> 1.30 and 0.52 -> 0.50 on a Zen 4.
    """
    return _tile(module, dtype, shape, shape.heights[0], packs=True)


def _tile(
    module: ir.Module, dtype: str, shape: Shape, height: int, *, foresees: bool = False, packs: bool = False,
    adds: bool = False, by_rows: bool = False,
) -> Kernel:  # fmt: skip
    kind_of = "packing" if packs else "adding" if adds else "foreseeing" if foresees else "tile"
    names = (*_ARGUMENTS, *_MORE.get(kind_of, ()))
    kernel = Kernel(module, f"{kind_of}{height}", names)
    given = SimpleNamespace(**dict(zip(names, kernel.arguments, strict=True)))
    element, size = FLOATS[dtype], np.dtype(dtype).itemsize
    kind, places = vector(element, shape.lanes), shape.places(size)
    sums = [[kernel.variable(kernel.constant(0, kind)) for _ in places] for _ in range(height)]
    _sum(kernel, given, shape, kind, sums, foresees=foresees, packs=packs)
    if shape.groups > 1:
        for total in itertools.chain(*sums):
            total.set(kernel.shuffled(total.get(), shape.one_by_one))
    targets = _targets(kernel, given, height)
    if by_rows:
        row_biases = [kernel.load(given.bias, element, size * p) for p in range(height)]
        biases = [[kernel.splat(bias, shape.lanes)] * shape.vectors for bias in row_biases]
    else:
        apart = [kernel.load(given.results, offset=8 * p) & given.there if adds else 0 for p in range(height)]
        biases = [[kernel.load(given.bias + bytes_, kind, place) for place in places] for bytes_ in apart]

    def store(done: Callable[[Value, Value], Value]) -> None:
        results = [[done(a.get(), b) for a, b in zip(*rows, strict=True)] for rows in zip(sums, biases, strict=True)]
        _store(kernel, given, shape, targets, results)

    with kernel.either(given.finish.equals(0)) as (plain, other):
        with plain:
            store(lambda total, bias: total + bias)
        with other:
            store(Finish(kernel, given.finish, element, shape.lanes))
    kernel.finish()
    return kernel


_Sums: TypeAlias = list[list[Variable]]  # vectors of filters of each pixel


def _sum(
    kernel: Kernel, given: SimpleNamespace, shape: Shape, kind: ir.Type, sums: _Sums, *, foresees: bool, packs: bool
) -> None:
    """Add the products of all taps to the sums, run after run."""
    height, size = len(sums), size_of(kind)
    aside = _Aside(kernel, sums, kind)
    starts = [given.x + kernel.load(given.pixels, offset=8 * p) for p in range(height)]
    weight, added = kernel.variable(given.w), kernel.variable(0)
    soon = kernel.variable(given.soon) if foresees else None
    if asks_ahead():
        _ask(kernel, given, _targets(kernel, given, height), shape.filters * size)
    packed = kernel.variable(given.packed) if packs else None
    with kernel.loop(given.tap_count) as t:
        tap = kernel.load(given.taps, offset=t * 8)
        with kernel.loop(given.run) as c:
            here, offset = weight.get(), tap + c * (size * shape.groups)
            factors = _factors(kernel, given, shape, here, kind, packed)
            _add(kernel, shape, starts, offset, factors, sums)
            weight.set(here + given.w_step)
            if soon is not None:
                for line in range(0, max(shape.filters, height) * size, LINE):
                    kernel.prefetch(soon.get() + line)
                soon.set(soon.get() + given.soon_step)
        added.set(added.get() + given.run)
        with kernel.when((added.get() >= SUMMED) & (t + 1 < given.tap_count)):
            aside.put()
            added.set(kernel.constant(0))
    aside.take()


def _factors(
    kernel: Kernel, given: SimpleNamespace, shape: Shape, here: Value, kind: ir.Type, packed: Variable | None
) -> list[Value]:
    """A row of the weight, copied on the way to where it is packed."""
    size, places = size_of(kind), shape.places(size_of(kind))
    vectors = [kernel.load(here, kind, place) for place in places]
    if packed is not None:
        for factors, place in zip(vectors, places, strict=True):
            kernel.store(factors, packed.get(), place)
        packed.set(packed.get() + shape.filters * size)
        for line in range(0, shape.filters * size, LINE):
            kernel.prefetch(here + given.w_step * _AHEAD + line)
    if shape.groups > 1:
        vectors = [kernel.shuffled(factors, shape.taking_turns) for factors in vectors]
    return vectors


def _add(
    kernel: Kernel, shape: Shape, starts: list[Value], offset: Value, factors: list[Value], sums: _Sums
) -> None:
    """An element of each pixel times a row of the weight."""
    element = factors[0].type.element
    for start, row_sums in zip(starts, sums, strict=True):
        value = _repeated(kernel, start + offset, element, shape)
        for total, factor in zip(row_sums, factors, strict=True):
            total.set(kernel.fma(value, factor, total.get()))
        # Free to choose, LLVM counts up an address for each pixel, most of them in memory, or reads all pixels before
        # it multiplies: one offset from fixed starts, row after row, took 0.86 of the time.
        offset = kernel.after(offset, [total.get() for total in row_sums])


def _targets(kernel: Kernel, given: SimpleNamespace, height: int) -> list[Value]:
    """Where the results of each pixel go."""
    return [given.y + kernel.load(given.results, offset=8 * p) for p in range(height)]


def _ask(kernel: Kernel, given: SimpleNamespace, targets: list[Value], nbytes: int) -> None:
    """Ask, where `stream` says so, for the lines that are written in the end, while there is all of a tile to multiply.

    Stores that wait for memory would hold up the next tile. Zen 3, N=8: 1x1 64->64@56 2.7 -> 2.1 ms, 256->64@56 6.7 ->
    6.1, 3x3 128@56 of stride 2 14.5 -> 14.0; 32 groups of 256@14, whose results the caches hold, 0.89 -> 0.92.
    """
    with kernel.when(given.stream < 0):
        for target in targets:
            for line in range(0, nbytes, LINE):
                kernel.prefetch(target + line, written=True)


def _repeated(kernel: Kernel, address: Value, element: ir.Type, shape: Shape) -> Value:
    """An element in every lane, or one of each group in turn."""
    if shape.groups == 1:
        return kernel.splat(kernel.load(address, element), shape.lanes)
    values = kernel.load(address, vector(element, shape.groups))
    return kernel.shuffled(values, [lane % shape.groups for lane in range(shape.lanes)])


class _Aside:
    """Where sums are put so that thousands are not added one by one: memory, since registers are full of sums."""

    def __init__(self, kernel: Kernel, sums: _Sums, kind: ir.Type) -> None:
        self._kernel, self._kind, self._sums = kernel, kind, [total for row in sums for total in row]
        self._place, self._bytes = kernel.memory(kind, len(self._sums)), kind.count * size_of(kind)
        self._used = kernel.variable(0)

    def put(self) -> None:
        """Add the sums to what is there, and begin them anew."""
        kernel = self._kernel
        with kernel.either(self._used.get().equals(0)) as (first, later):
            with first:
                for i, total in enumerate(self._sums):
                    kernel.store(total.get(), self._place, i * self._bytes)
            with later:
                for i, total in enumerate(self._sums):
                    there = kernel.load(self._place, self._kind, i * self._bytes)
                    kernel.store(there + total.get(), self._place, i * self._bytes)
        for total in self._sums:
            total.set(kernel.constant(0, self._kind))
        self._used.set(kernel.constant(1))

    def take(self) -> None:
        """Add what is there to the sums."""
        kernel = self._kernel
        with kernel.when(self._used.get() > 0):
            for i, total in enumerate(self._sums):
                total.set(kernel.load(self._place, self._kind, i * self._bytes) + total.get())


def _store(
    kernel: Kernel, given: SimpleNamespace, shape: Shape, targets: list[Value], results: list[list[Value]]
) -> None:
    """The results, of which the first `width` filters count."""
    lane_bytes = shape.lanes * size_of(results[0][0].type)
    with kernel.either(given.width >= shape.filters) as (whole, part):
        with whole, kernel.either(given.stream > 0) as (streamed, kept):
            for where, store in ((streamed, kernel.stream), (kept, kernel.store)):
                with where:
                    for target, row in zip(targets, results, strict=True):
                        for q, result in enumerate(row):
                            store(result, target, q * lane_bytes)
        with part:
            masks = [kernel.lanes_below(given.width - shape.lanes * q, shape.lanes) for q in range(shape.vectors)]
            for target, row in zip(targets, results, strict=True):
                for q, (result, mask) in enumerate(zip(row, masks, strict=True)):
                    kernel.store_lanes(result, target, mask, q * lane_bytes)


class Finish:
    """Bias and activation, on a vector of sums: below zero ``max(slope a, floor)``, else ``a``."""

    def __init__(self, kernel: Kernel, address: Value, element: ir.Type, lanes: int) -> None:
        size = size_of(element)
        self._slope = kernel.splat(kernel.load(address, element), lanes)
        self._floor = kernel.splat(kernel.load(address, element, size), lanes)

    def __call__(self, total: Value, bias: Value) -> Value:
        a = total + bias
        scaled = a * self._slope
        return (a < 0).where((scaled > self._floor).where(scaled, self._floor), a)


@cache
def finishing(activation: str | None, dtype: str, leak: float) -> np.ndarray:
    """The slope and the floor of an activation: of "relu", "leaky_relu" or none, which tiles know by no address too."""
    slope, floor = {None: (1, -np.inf), "relu": (1, 0), "leaky_relu": (leak, -np.inf)}[activation]
    return np.array([slope, floor], dtype)


def each_tile(
    kernel: Kernel, tiles: dict[int, Kernel], count: Value, arguments: Callable[[Value], tuple[Operand, ...]],
    start: Operand = 0,
) -> None:  # fmt: skip
    """All pixels from `start` to `count` by the largest tiles that fit; `arguments(pixel)` are a tile's."""
    pixel = kernel.variable(start)
    for height, tile in tiles.items():
        with kernel.while_(lambda height=height: pixel.get() + height <= count):
            now = pixel.get()
            kernel.call(tile, *arguments(now))
            pixel.set(now + height)


def evenly(
    kernel: Kernel, tiles: dict[int, Kernel], count: Value, arguments: Callable[[Value], tuple[Operand, ...]]
) -> None:
    """All pixels from 0 to `count`, at least one, by the fewest tiles, which differ by one pixel; of every height."""
    for height, pixel in heights_evenly(kernel, tuple(tiles), count):
        kernel.call(tiles[height], *arguments(pixel))


def heights_evenly(kernel: Kernel, heights: Sequence[int], count: Value) -> Iterator[tuple[int, Value]]:
    """Every height, inside a loop over the first pixels of its tiles, of those that `evenly` takes."""
    most = max(heights)
    pieces = (count + (most - 1)) // most
    low, larger = count // pieces, count % pieces
    pixel = kernel.variable(kernel.constant(0))
    for height in heights:
        one_more = low.equals(height - 1).where(larger, kernel.constant(0))
        with kernel.loop(low.equals(height).where(pieces - larger, one_more)):
            now = pixel.get()
            yield height, now
            pixel.set(now + height)
