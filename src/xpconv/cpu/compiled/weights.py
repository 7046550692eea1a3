"""Weights in panels: for as many filters as a tile has, all that they are multiplied with, side by side."""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.address import Told
from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import grid
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of, put, take, turned
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.cpu.lines import lined
from xpconv.spec import Array, ConvSpec, Sizes

_ARGUMENTS = (
    "w", "packed", "sources", "places", "squares", "row_count", "panels", "maps", "width", "step", "panel_bytes",
)  # fmt: skip
_AHEAD = 16  # rows asked for before they are read: with rows 2 KB apart it took half the time
_SINGLE = 1 << 16  # elements that one thread packs sooner than it hands them over


def taps_order(spec: ConvSpec, w_strides: Sizes) -> Array:
    """Where the rows of weight (*window, C / groups, F) begin, in bytes, in the order that inputs are read in."""
    counts, turns = (*spec.window, spec.channels // spec.groups), [spec.flip] * spec.axes + [False]
    steps = list(zip(counts, w_strides[:-1], turns, strict=True))
    start = sum((count - 1) * step for count, step, turn in steps if turn)
    return start + grid(counts, [-step if turn else step for _, step, turn in steps])


class Packing:
    """How weights that lie in memory alike are packed: (groups * panels, rows, width), zeros beyond the last filter.

    ``order`` tells where each row begins, in bytes; the filters of a row lie a step apart, those of a group after
    those of the last.
    """

    def __init__(self, dtype: str, groups: int, maps: int, width: int, order: Array, step: int) -> None:
        size, panels = np.dtype(dtype).itemsize, -(-maps // width)
        self._shape, self._dtype, self._items = (groups * panels, len(order), width), np.dtype(dtype), groups * panels
        places = np.argsort(order, kind="stable")  # read as the memory lies
        tables = {"sources": order[places], "places": places * (width * size)}
        tables["squares"] = _squares(tables["sources"], size, lanes_of(dtype))
        values = {
            "row_count": len(order), "panels": panels, "maps": maps, "width": width, "step": step,
            "panel_bytes": len(order) * width * size, **{name: table.ctypes.data for name, table in tables.items()},
        }  # fmt: skip
        self._kept = tables  # kernels know addresses
        self.arguments = np.array([values.get(name, 0) for name in _ARGUMENTS], np.int64)
        self._told = Told(2, self.arguments[2:].tobytes())
        compiled = _library(dtype)
        assert compiled is not None
        self._address = compiled.address("pack")

    def __call__(self, w: Array, team: int = 1, out: Array | None = None) -> Array:
        """The weight at the address of `w`, packed by as many threads as are worth it, to `out` where that is given."""
        packed = lined(self._shape, self._dtype) if out is None else out
        threads.run(self._address, self._told.of(w, packed), self._items, 0, team if packed.size > _SINGLE else 1)
        return packed


class PackedBias:
    """Biases (F,) of any dtype and strides in panels, as weights of one row are; zeros where there is none."""

    def __init__(self, dtype: str, groups: int, maps: int, width: int) -> None:
        self._groups, self._maps = groups, maps
        self._none = np.zeros((groups, -(-maps // width) * width), dtype)

    def __call__(self, bias: Array | None) -> Array:
        """The bias, packed: by NumPy, which takes a fourth of the time that a task takes to be called."""
        if bias is None:
            return self._none
        packed = self._none.copy()
        packed[:, : self._maps] = bias.reshape(self._groups, self._maps)
        return packed


def _squares(sources: Array, size: int, lanes: int) -> Array:
    """Whether as many rows as a vector has lanes lie side by side, from each row on."""
    follows = np.append(np.diff(sources) == size, np.zeros(lanes, bool))
    return np.lib.stride_tricks.sliding_window_view(follows, lanes - 1)[: len(sources)].all(axis=1).astype(np.int64)


def is_ready(dtype: str) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"weights-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: one panel."""
    pack = pack_kernel(module, dtype)
    kernel = Kernel(module, "pack", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, _ARGUMENTS)
    kernel.call(pack, arguments, given.w, item, given.packed + item * given.panel_bytes)
    kernel.finish()
    return ("pack",)


def pack_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``pack_panel(packing, w, panel, to)``: one panel of a weight by the arguments of its packing.

    Where filters lie side by side, a row is copied; where rows do, squares of rows and filters are turned in registers.
    """
    kernel = Kernel(module, "pack_panel", ("packing", "w", "panel", "to"))
    packing, w, panel, to = kernel.arguments
    given, size, lanes = kernel.given(packing, _ARGUMENTS), np.dtype(dtype).itemsize, lanes_of(dtype)
    kind, first = vector(FLOATS[dtype], lanes), (panel % given.panels) * given.width
    source = w + ((panel // given.panels) * given.maps + first) * given.step
    filters = kernel.minimum(given.maps - first, given.width)

    def row(i: Value) -> tuple[Value, Value]:
        return source + kernel.load(given.sources, offset=i * 8), to + kernel.load(given.places, offset=i * 8)

    def in_lanes(*, whole: bool) -> None:
        """Every row's filters, a vector at a time; where the panel is not whole, those beyond the last as zeros."""
        with kernel.loop(given.row_count) as i:
            here, there = row(i)
            ahead, _ = row(kernel.minimum(i + _AHEAD, given.row_count - 1))
            with kernel.loop(given.width, step=lanes) as f:
                kernel.prefetch(ahead + f * size)
                read = None if whole else kernel.lanes_below(filters - f, lanes)
                stored = None if whole else kernel.lanes_below(given.width - f, lanes)
                put(kernel, take(kernel, here + f * size, kind, read), there + f * size, stored)

    def one_by_one(i: Value, begin: Operand) -> None:
        """The filters of a row from one on."""
        here, there = row(i)
        with kernel.loop(given.width, start=begin) as f, kernel.either(f < filters) as (some, none):
            with some:
                kernel.store(kernel.load(here + f * given.step, FLOATS[dtype]), there + f * size)
            with none:
                kernel.store(kernel.constant(0, FLOATS[dtype]), there + f * size)

    def squares(i: Value) -> None:
        """As many rows as a vector has lanes, that lie side by side."""
        whole = filters - filters % lanes
        with kernel.loop(whole, step=lanes) as f:
            here = source + f * given.step + kernel.load(given.sources, offset=i * 8)
            square = turned(kernel, [take(kernel, here + given.step * j, kind, None) for j in range(lanes)])
            for j, values in enumerate(square):
                kernel.store(values, to + kernel.load(given.places, offset=(i + j) * 8) + f * size)
        with kernel.loop(lanes) as more:
            one_by_one(i + more, whole)

    with kernel.either(given.step.equals(size)) as (dense, spread):
        with dense, kernel.either((filters % lanes).equals(0) & filters.equals(given.width)) as (whole, part):
            with whole:
                in_lanes(whole=True)
            with part:
                in_lanes(whole=False)
        with spread:
            position = kernel.variable(0)
            with kernel.while_(lambda: position.get() < given.row_count):
                i = position.get()
                with kernel.either(kernel.load(given.squares, offset=i * 8).equals(1)) as (together, apart):
                    with together:
                        squares(i)
                        position.set(i + lanes)
                    with apart:
                        one_by_one(i, 0)
                        position.set(i + 1)
    kernel.finish()
    return kernel
