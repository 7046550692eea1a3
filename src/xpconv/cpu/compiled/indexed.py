"""Max pooling that tells where the largest elements lie, lanes along the channels.

A window's index begins as that of its first element inside the plane, -1 where it has none, and its maximum as -inf:
padding, which reads as -inf, is never larger. An index is the sum of what its row and its place in the row tell, so
that tables are as long as a row of results, and not as a plane of them.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import blocks, threads
from xpconv.cpu.compiled.blocks import Arguments, Sources, blocks_of, grid
from xpconv.cpu.compiled.build import Library, library, machine
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.job import Job
from xpconv.cpu.compiled.moves import gather_kernel, lanes_of, put, take, transpose_kernel
from xpconv.cpu.compiled.values import FLOATS, Value, vector
from xpconv.cpu.plan import READ_SINGLE
from xpconv.spec import Array, PoolSpec, Sizes

_ARRAYS = ("x", "y", "indices")
_OWN = (
    "y_item", "y_row", "i_item", "i_row", "plane", "i_plane", "turned", "pixels", "results", "places", "taps",
    "offsets", "tap_count", "row_begins", "row_firsts", "begins", "firsts", "channels",
)  # fmt: skip
FIELDS = (*_ARRAYS, *blocks.FIELDS, *_OWN)
_INDEX = np.dtype(np.int64).itemsize
_NONE = -(1 << 40)  # added to any index it stays negative
_MOST_PLACES = 1 << 31  # of a plane, whose indices are counted in lanes as wide as the elements


def pooling(
    spec: PoolSpec, strides: tuple[Sizes, Sizes, Sizes], dtype: str, threads_free: int, sources: Sources, limit: int
) -> Job:  # fmt: skip
    """The largest element of every window of x (N, *size, C) and its flat index in the plane.

    A NaN counts as the largest, the first of equal ones is told. The job takes x, y and indices, which lie as the
    strides say, in the same order of axes.
    """
    (x_strides, y_strides, i_strides), size = strides, np.dtype(dtype).itemsize
    read = spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels
    team = threads_free if read > READ_SINGLE else 1
    cut = blocks_of(spec, x_strides, dtype, team, sources, -math.inf, limit // (2 * team))
    turned = y_strides[-1] != size
    numbers = {
        "y_item": y_strides[0], "y_row": y_strides[1], "i_item": i_strides[0], "i_row": i_strides[1],
        "plane": y_strides[-1], "i_plane": i_strides[-1], "turned": int(turned),
        "tap_count": math.prod(spec.window), "channels": spec.channels,
    }  # fmt: skip
    tables = {
        "pixels": cut.starts(spec),
        "taps": cut.places(spec.window, spec.dilation),
        "results": cut.results(spec, y_strides, spec.channels * size, turned),
        "places": cut.results(spec, i_strides, spec.channels * _INDEX, turned),
        **_index_tables(spec),
    }
    scratch = cut.images * cut.strip + int(turned) * cut.pixels * spec.channels * (size + _INDEX)
    compiled = _library(dtype)
    assert compiled is not None
    arguments = Arguments(FIELDS, len(_ARRAYS), numbers, tables, cut)
    return Job(compiled.address("indexed"), arguments, cut.count, scratch, team)


def takes(dtype: str, spec: PoolSpec, limit: int) -> bool:
    """Whether the kernel reads such windows here, within a limit of scratch memory."""
    if 0 in (spec.batch, spec.channels, *spec.out_size) or math.prod(spec.padded_size) >= _MOST_PLACES:
        return False
    size = np.dtype(dtype).itemsize
    read = spec.reach[0] * math.prod(spec.padded_size[1:]) * size
    written = math.prod(spec.out_size[1:]) * (size + _INDEX)
    return 2 * threads.thread_count() * (read + written) * spec.channels <= limit


def _index_tables(spec: PoolSpec) -> dict[str, Array]:
    """For each row of results, and each place in it, what it adds to the index of a window's first tap, which may lie
    outside, and to that of its first one inside; and what each tap adds to the former.
    """
    steps = [math.prod(spec.size[axis + 1 :]) for axis in range(spec.axes)]
    begins, firsts = [], []
    for axis, step in enumerate(steps):
        positions = np.array([spec.positions(axis, tap) for tap in range(spec.window[axis])], np.int64)
        inside = (positions >= 0) & (positions < spec.size[axis])
        first = np.take_along_axis(positions, inside.argmax(axis=0)[None], axis=0)[0]
        begins.append(positions[0] * step)
        firsts.append(np.where(inside.any(axis=0), first * step, _NONE))
    return {
        "row_begins": begins[0], "row_firsts": firsts[0], "begins": _sums(begins[1:]), "firsts": _sums(firsts[1:]),
        "offsets": grid(spec.window, [d * step for d, step in zip(spec.dilation, steps, strict=True)]),
    }  # fmt: skip


def _sums(axes: list[Array]) -> Array:
    """Every sum of one element of each."""
    sums = np.zeros(1, np.int64)
    for values in axes:
        sums = (sums[:, None] + values).reshape(-1)
    return sums


# --- The kernel -------------------------------------------------------------------------------------------------------


def is_ready(dtype: str, _: PoolSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"indexed-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: one block of results."""
    window = _window_kernel(module, dtype)
    transpose = transpose_kernel(module, dtype)
    transpose_indices = transpose if np.dtype(dtype).itemsize == _INDEX else transpose_kernel(module, "float64")
    gather = gather_kernel(module, dtype, transpose)
    kernel = Kernel(module, "indexed", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    given = kernel.given(arguments, FIELDS)
    block = blocks.opened(kernel, given, item, scratch)
    source = blocks.read(kernel, given, block, scratch, gather)
    width, size = given.channels * block.images * block.pixels, np.dtype(dtype).itemsize
    turned = given.turned.equals(1)
    y = turned.where(block.free, given.y + block.first * given.y_item + block.row * given.y_row)
    free = block.free + width * size
    indices = turned.where(free, given.indices + block.first * given.i_item + block.row * given.i_row)
    with kernel.loop(block.images) as image, kernel.loop(block.rows) as row, kernel.loop(given.line) as place:
        pixel = ((image * block.rows + row) * given.line + place) * 8
        here = (block.row + row) * 8
        first = kernel.load(given.row_firsts + here) + kernel.load(given.firsts + place * 8)
        kernel.call(
            window, source + kernel.load(given.pixels + pixel), given.taps, given.offsets, given.tap_count,
            kernel.load(given.row_begins + here) + kernel.load(given.begins + place * 8),
            (first < 0).where(kernel.constant(-1), first), given.channels,
            y + kernel.load(given.results + pixel), indices + kernel.load(given.places + pixel),
        )  # fmt: skip
    ends = (
        (transpose, y, size, given.y + block.row * given.y_row, given.y_item, given.plane),
        (transpose_indices, indices, _INDEX, given.indices + block.row * given.i_row, given.i_item, given.i_plane),
    )
    with kernel.when(given.turned > 0), kernel.loop(block.images) as image:
        for turn, start, each, to, item_step, plane in ends:
            step = given.channels * each
            kernel.call(
                turn, start + image * block.pixels * step, step, to + (block.first + image) * item_step, plane,
                block.pixels, given.channels,
            )  # fmt: skip
    kernel.finish()
    return ("indexed",)


_WINDOW = ("x", "taps", "offsets", "tap_count", "begin", "first", "channels", "y", "indices")


def _window_kernel(module: ir.Module, dtype: str) -> Kernel:
    """All channels of one window, by as many vectors at once as registers hold."""
    kernel = Kernel(module, "window", _WINDOW)
    given = SimpleNamespace(**dict(zip(_WINDOW, kernel.arguments, strict=True)))
    here, lanes, channel = machine(), lanes_of(dtype), kernel.variable(0)
    assert here is not None
    for vectors in (4, 2, 1) if here.registers == 32 else (2, 1):
        with kernel.while_(lambda width=vectors * lanes: channel.get() + width <= given.channels):
            _channels(kernel, given, dtype, channel.get(), vectors, None)
            channel.set(channel.get() + vectors * lanes)
    with kernel.when(channel.get() < given.channels):
        mask = kernel.lanes_below(given.channels - channel.get(), lanes)
        _channels(kernel, given, dtype, channel.get(), 1, mask)
    kernel.finish()
    return kernel


def _channels(
    kernel: Kernel, given: SimpleNamespace, dtype: str, channel: Value, vectors: int, mask: Value | None
) -> None:
    """So many vectors of channels, from a channel on."""
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    kind, first = vector(FLOATS[dtype], lanes), kernel.narrowed(given.first, 8 * size)
    largest = [kernel.variable(kernel.constant(-math.inf, kind)) for _ in range(vectors)]
    where = [kernel.variable(kernel.splat(first, lanes)) for _ in range(vectors)]
    with kernel.loop(given.tap_count) as t:
        tap = given.x + kernel.load(given.taps + t * 8) + channel * size
        index = kernel.splat(kernel.narrowed(given.begin + kernel.load(given.offsets + t * 8), 8 * size), lanes)
        for q, (best, place) in enumerate(zip(largest, where, strict=True)):
            value, now = take(kernel, tap + q * lanes * size, kind, mask), best.get()
            better = (value > now) | (value.is_nan() & now.equals(now))
            best.set(better.where(value, now))
            place.set(better.where(index, place.get()))
    for q, (best, place) in enumerate(zip(largest, where, strict=True)):
        at = channel + q * lanes
        put(kernel, best.get(), given.y + at * size, mask)
        put(kernel, kernel.widened(place.get()), given.indices + at * _INDEX, mask)
