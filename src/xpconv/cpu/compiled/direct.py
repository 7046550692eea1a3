"""Convolution straight from the padded input: tiles of pixels by filters in registers, no patches copied.

``y[p, f] = sum over t, c of  x[pixel[p] + tap[t] + c] w[t, c, f]``, with the byte offsets of pixels and taps in tables,
so that any number of axes, stride and dilation share one kernel. The taps of the last axis and the channels of each
are one run where the dilation leaves them side by side. A tile holds some pixels times two vectors of sums; what the
largest tiles leave over the smaller ones compute.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.build import Library, library, machine
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Value, vector
from xpconv.spec import Array, ConvSpec

_WIDE = 2  # vectors of filters in a tile
_ARGUMENTS = ("x", "w", "y", "pixels", "taps", "tap_count", "run", "count", "filters", "block", "blocks", "x_item")
_SINGLE = 2_000_000  # products below which handing over costs more than it brings
_MOST_PIXELS = 1 << 18  # of one item: the table of where their windows begin is no longer than 2 MiB
_BLOCK_BYTES = 1 << 18  # of input that the pixels of one item read, about: half a level 2 cache


def panel(dtype: str, spec: ConvSpec) -> int:
    """Filters in a tile; 0 where the kernels do not compute this convolution here."""
    return _WIDE * _lanes(dtype) if _takes(dtype, spec) else 0


def _takes(dtype: str, spec: ConvSpec) -> bool:
    return (
        dtype in FLOATS
        and spec.groups == 1
        and spec.channels > 0
        and spec.batch > 0
        and spec.filters > 0
        and 0 < math.prod(spec.out_size) <= _MOST_PIXELS
        and machine() is not None
        and threads.available()
        and _library(dtype) is not None
    )


def conv(x: Array, w: Array, spec: ConvSpec) -> Array:
    """The result (N, *out, F) of padded `x` (N, *padded, C) and `w` (*window, C, F)."""
    compiled = _library(x.dtype.name)
    assert compiled is not None
    x = np.ascontiguousarray(x)
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    pixels, taps, run = _tables(spec.valid, x.dtype.itemsize)
    weight = _packed(w.reshape(-1, spec.filters), _lanes(x.dtype.name))
    y = np.empty((spec.batch, *spec.out_size, spec.filters), x.dtype)
    products = y.size * math.prod(spec.window) * spec.channels
    team = threads.thread_count() if products > _SINGLE else 1
    block = _block(len(pixels), spec.channels * x.dtype.itemsize, -(-team // spec.batch))
    blocks = -(-len(pixels) // block)
    arguments = np.array(
        [
            x.ctypes.data, weight.ctypes.data, y.ctypes.data, pixels.ctypes.data, taps.ctypes.data, len(taps), run,
            len(pixels), spec.filters, block, blocks, x[0].nbytes,
        ],
        np.int64,
    )  # fmt: skip
    threads.run(compiled.address("conv"), arguments, spec.batch * blocks, 0, team)
    return y


def _block(pixels: int, pixel_bytes: int, least: int) -> int:
    """Pixels that are computed at a time: equal blocks of whole tiles, at least so many of them, that read little."""
    blocks = max(least, -(-pixels * pixel_bytes // _BLOCK_BYTES))
    tile = _heights()[0]
    return -(-pixels // (blocks * tile)) * tile


@lru_cache(maxsize=16)  # of 2 MiB at most each
def _tables(spec: ConvSpec, itemsize: int) -> tuple[Array, Array, int]:
    """Where the windows of one item begin, where their taps lie, in bytes, and the elements of each tap's run."""
    steps = [spec.channels * itemsize]
    for n in reversed(spec.size[1:]):
        steps.insert(0, steps[0] * n)
    pixels = _places(spec.out_size, [step * s for step, s in zip(steps, spec.stride, strict=True)])
    each = [step * d for step, d in zip(steps, spec.dilation, strict=True)]
    if spec.dilation[-1] == 1:
        return pixels, _places(spec.window[:-1], each[:-1]), spec.window[-1] * spec.channels
    return pixels, _places(spec.window, each), spec.channels


def _places(counts: tuple[int, ...], steps: list[int]) -> Array:
    """Every place of a grid, in order, in bytes."""
    places = np.zeros(1, np.int64)
    for count, step in zip(counts, steps, strict=True):
        places = (places[:, None] + np.arange(count, dtype=np.int64) * step).reshape(-1)
    return places


def _packed(w: Array, lanes: int) -> Array:
    """The weight (taps C, F) in panels of as many filters as a tile has, zeros beyond the last."""
    length, filters = w.shape
    panels = -(-filters // (lanes * _WIDE))
    packed = np.zeros((panels, length, lanes * _WIDE), w.dtype)
    for panel in range(panels):
        part = w[:, panel * lanes * _WIDE : (panel + 1) * lanes * _WIDE]
        packed[panel, :, : part.shape[1]] = part
    return packed


# --- The kernels ------------------------------------------------------------------------------------------------------


def _lanes(dtype: str) -> int:
    here = machine()
    assert here is not None
    return here.vector_bytes // np.dtype(dtype).itemsize


def _heights() -> tuple[int, ...]:
    """Pixels of the tiles that there are kernels for: the largest fills the registers with sums."""
    here = machine()
    assert here is not None
    return (14, 8, 4, 2, 1) if here.registers == 32 else (6, 4, 2, 1)


def _library(dtype: str) -> Library | None:
    return library(f"direct-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    tiles = {height: _tile(module, dtype, height) for height in _heights()}
    _conv(module, dtype, tiles)
    return ("conv",)


def _tile(module: ir.Module, dtype: str, height: int) -> Kernel:
    """Sums of `height` pixels and two vectors of filters, of which the first `width` are stored."""
    names = ("x", "pixels", "taps", "tap_count", "run", "w", "y", "y_step", "width")
    kernel = Kernel(module, f"tile{height}", names)
    x, pixels, taps, tap_count, run, w, y, y_step, width = kernel.arguments
    element, lanes, size = FLOATS[dtype], _lanes(dtype), np.dtype(dtype).itemsize
    kind = vector(element, lanes)
    sums = [[kernel.variable(kernel.constant(0, kind)) for _ in range(_WIDE)] for _ in range(height)]
    starts, weight = [x + kernel.load(pixels, offset=8 * p) for p in range(height)], kernel.variable(w)
    with kernel.loop(tap_count) as t:
        tap = kernel.load(taps, offset=t * 8)
        rows = [start + tap for start in starts]
        with kernel.loop(run) as c:
            here = weight.get()
            vectors = [kernel.load(here, kind, lanes * size * q) for q in range(_WIDE)]
            for row, row_sums in zip(rows, sums, strict=True):
                value = kernel.splat(kernel.load(row + c * size, element), lanes)
                for total, factor in zip(row_sums, vectors, strict=True):
                    total.set(kernel.fma(value, factor, total.get()))
            weight.set(here + lanes * size * _WIDE)
    with kernel.either(width >= lanes * _WIDE) as (whole, partial_):
        with whole:
            _store(kernel, sums, y, y_step, lanes * size)
        with partial_:
            masks = [kernel.lanes_below(width - lanes * q, lanes) for q in range(_WIDE)]
            _store(kernel, sums, y, y_step, lanes * size, masks)
    kernel.finish()
    return kernel


def _store(kernel: Kernel, sums: list, y: Value, y_step: Value, width: int, masks: list | None = None) -> None:
    for row_sums in sums:
        for q, total in enumerate(row_sums):
            if masks is None:
                kernel.store(total.get(), y, width * q)
            else:
                kernel.store_lanes(total.get(), y, masks[q], width * q)
        y = y + y_step


def _conv(module: ir.Module, dtype: str, tiles: dict[int, Kernel]) -> None:
    """The task: one block of pixels of one item of the batch, all filters, a panel of the weight at a time."""
    kernel = Kernel(module, "conv", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = {name: kernel.load(arguments, offset=8 * i) for i, name in enumerate(_ARGUMENTS)}
    size, panel = np.dtype(dtype).itemsize, _lanes(dtype) * _WIDE
    n, start = item // given["blocks"], (item % given["blocks"]) * given["block"]
    stop = kernel.minimum(start + given["block"], given["count"])
    y_step, x = given["filters"] * size, given["x"] + n * given["x_item"]
    w_step = given["tap_count"] * given["run"] * (panel * size)
    with kernel.loop(given["filters"], step=panel) as f:
        w, width = given["w"] + (f // panel) * w_step, given["filters"] - f
        y = given["y"] + (n * given["count"]) * y_step + f * size
        pixel = kernel.variable(start)
        for height, tile in tiles.items():
            with kernel.while_(lambda height=height: pixel.get() + height <= stop):
                p = pixel.get()
                kernel.call(
                    tile, x, given["pixels"] + p * 8, given["taps"], given["tap_count"], given["run"], w,
                    y + p * y_step, y_step, width,
                )  # fmt: skip
                pixel.set(p + height)
    kernel.finish()
