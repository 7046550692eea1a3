"""Convolutions of one tap, channels first: the weight times the planes as they lie, nothing turned.

The register tile with its sides exchanged: its vectors are positions of the planes, which lie side by side, and what is
repeated over their lanes is the weight. Some panels of positions are copied to the thread's own memory, where all
filters are multiplied with them; how many follows from the first cache, so that results are written in long runs.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import Arguments
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.call import STREAMED, Call, is_dense, storing, storing_now
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of, put, take
from xpconv.cpu.compiled.tile import SUMMED, Shape, even_run, finishing, heights_evenly, tile_kernels
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.cpu.compiled.weights import PackedBias
from xpconv.cpu.lines import LINE
from xpconv.cpu.strips import is_product
from xpconv.spec import Array, ConvSpec

_FIELDS = (
    "x", "w", "y", "bias", "x_item", "x_channel", "y_item", "y_filter", "channels", "filters", "positions", "groups",
    "held", "panel_bytes", "parts", "taps", "tap_count", "run", "rows", "results", "row_bytes", "finish", "streams",
)  # fmt: skip
_NEAR = 1 << 15  # bytes of panels that stay in a level 1 cache
_HELD = 1 << 19  # and beside all else in a level 2 cache
_RUN = 4  # panels, of a channel, that memory is read by at once: 1x1 256->64@56, N=8 4.16 ms one by one, 3.99 so
_FILLED = 0.9  # of the panels' positions that there are, at least
_ITEMS = 4  # for each thread, so that none waits long for another
_FEWEST = 24  # filters of an item, which are multiplied with what it copies
_AHEAD = 8  # channels asked for before they are copied


def fits(dtype: str, spec: ConvSpec) -> bool:
    """Whether there is a product for every plane, whose positions fill their panels."""
    if spec.layout != "channels_first" or not is_product(spec):
        return False
    positions, width = math.prod(spec.size), _shape(dtype).filters
    return positions >= _FILLED * width * -(-positions // width)


def takes(call: Call) -> bool:
    """Whether it does so with arrays that lie like these: planes and the weight dense, and memory for a panel."""
    spec, size = call.spec, call.itemsize
    dense = all(is_dense(spec.size, strides, size) for strides in (call.x_strides, call.y_strides))
    dense = dense and call.w_strides[-2:] == (size, spec.channels * size)
    held = spec.channels * _shape(call.dtype).filters * size
    return dense and fits(call.dtype, spec) and held * call.team <= call.limit


class Pointwise:
    """A convolution that is taken so, prepared."""

    def __init__(self, call: Call) -> None:
        spec, size, self._call, width = call.spec, call.itemsize, call, _shape(call.dtype).filters
        positions, panel_bytes = math.prod(spec.size), spec.channels * width * call.itemsize
        panels, held = -(-positions // width), _held(panel_bytes, call.limit // call.team)
        groups = -(-panels // held)
        parts = max(min(-(-_ITEMS * call.team // (groups * spec.batch)), spec.filters // _FEWEST), 1)
        run = even_run(spec.channels, 2 * SUMMED)
        rows = np.arange(max(_shape(call.dtype).every_height), dtype=np.int64)
        y_filter = call.y_strides[-1]
        is_streamed = call.y_bytes >= STREAMED and not (call.y_strides[0] % LINE or y_filter % LINE)
        numbers = {
            "x_item": call.x_strides[0], "x_channel": call.x_strides[-1], "y_item": call.y_strides[0],
            "y_filter": y_filter, "channels": spec.channels, "filters": spec.filters, "positions": positions,
            "groups": groups, "held": held, "panel_bytes": panel_bytes, "parts": parts,
            "tap_count": spec.channels // run, "run": run, "row_bytes": spec.channels * size,
            "streams": storing(streams=is_streamed, far=call.is_far),
        }  # fmt: skip
        tables = {
            "taps": np.arange(0, spec.channels, run) * size,
            "rows": rows * numbers["row_bytes"],
            "results": rows * y_filter,
        }
        if call.activation is not None:
            tables["finish"] = finishing(call.activation, call.dtype, call.leak)
        self._arguments = Arguments(_FIELDS, 4, numbers, tables)
        self._bias = PackedBias(call.dtype, 1, spec.filters, 1)
        self._items, self._scratch = spec.batch * groups * parts, held * panel_bytes
        compiled = _library(call.dtype)
        assert compiled is not None
        self._address = compiled.address("pointwise")

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`, where no value reaches further than its windows."""
        biases = self._bias(bias)
        arguments = self._arguments.of(x, w, y, biases)
        threads.run(self._address, arguments, self._items, self._scratch, self._call.team)
        return True


def _held(panel_bytes: int, most: int) -> int:
    """Panels that are copied at once."""
    return max(min(max(_NEAR // panel_bytes, min(_HELD // panel_bytes, _RUN)), most // panel_bytes), 1)


def is_ready(dtype: str) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _shape(dtype: str) -> Shape:
    """Of the tile, whose "filters" are positions here."""
    return Shape(lanes_of(dtype), 2)


def _library(dtype: str) -> Library | None:
    return library(f"pointwise-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: some panels of positions of an image, times all filters or a part of them."""
    shape, size = _shape(dtype), np.dtype(dtype).itemsize
    tiles = tile_kernels(module, dtype, shape, shape.every_height, by_rows=True)
    kernel = Kernel(module, "pointwise", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, _FIELDS)
    part, group = item % given.parts, (item // given.parts) % given.groups
    image, first = item // given.parts // given.groups, group * given.held * shape.filters
    left = kernel.minimum(given.positions - first, given.held * shape.filters)
    _copy_panels(kernel, given, dtype, given.x + image * given.x_item + first * size, left, scratch)
    start, stop = (given.filters * part) // given.parts, (given.filters * (part + 1)) // given.parts
    y, stream = given.y + image * given.y_item + first * size, storing_now(kernel, given)
    for height, number in heights_evenly(kernel, tuple(tiles), stop - start):
        row = start + number
        with kernel.loop(left, step=shape.filters) as at:
            place: tuple[Operand, ...] = (
                given.w + row * given.row_bytes, given.rows, given.taps, given.tap_count, given.run,
                scratch + at // shape.filters * given.panel_bytes, shape.filters * size,
                y + row * given.y_filter + at * size, given.results, left - at, given.finish, given.bias + row * size,
                stream,
            )  # fmt: skip
            kernel.call(tiles[height], *place)
    with kernel.when(stream > 0):
        kernel.fence()
    kernel.finish()
    return ("pointwise",)


def _copy_panels(
    kernel: Kernel, given: SimpleNamespace, dtype: str, x: Value, positions: Value, to: Value
) -> None:
    """So many positions of all channels, panel after panel; zeros beyond the last."""
    shape, size = _shape(dtype), np.dtype(dtype).itemsize
    kind, places = vector(FLOATS[dtype], shape.lanes), [shape.lanes * q for q in range(shape.vectors)]
    with kernel.loop(given.channels) as channel, kernel.loop(positions, step=shape.filters) as at:
        here = x + channel * given.x_channel + at * size
        there = to + at // shape.filters * given.panel_bytes + channel * (shape.filters * size)
        for line in range(0, shape.filters * size, LINE):
            kernel.prefetch(here + given.x_channel * _AHEAD + line)
        with kernel.either(at + shape.filters <= positions) as (whole, last):
            with whole:
                for place in places:
                    put(kernel, take(kernel, here + place * size, kind, None), there + place * size, None)
            with last:
                for place in places:
                    mask = kernel.lanes_below(positions - at - place, shape.lanes)
                    put(kernel, take(kernel, here + place * size, kind, mask), there + place * size, None)
