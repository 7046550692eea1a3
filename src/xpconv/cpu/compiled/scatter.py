"""Values added at their indices in planes of zeros: what max pooling's gradient does.

An item is some channels of one image, which nobody else writes. Elements go one by one: no vector instruction adds
to places that may be the same.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.address import address_of, words
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Value
from xpconv.cpu.compiled.moves import fill_kernel, name_of
from xpconv.spec import Array, ScatterSpec

_NAMES = (
    "values", "indices", "plane", "zero", "count", "places", "channels", "groups", "width", "value_item", "value_step",
    "value_channel", "index_item", "index_step", "index_channel", "item", "step", "channel",
)  # fmt: skip
_LINE = 64  # bytes of the caches: channels of different items share none
_SINGLE = 50_000  # elements that one thread adds sooner than it hands them over


def scattered(values: Array, indices: Array, planes: Array) -> None:
    """Write to `planes` (N, places, C) the `values` (N, count, C) added up at their `indices`, -1 for none.

    Arrays may lie in memory in any way; of `planes`, all channels or all places lie side by side.
    """
    dtype, (batch, count, channels) = name_of(values.dtype), values.shape
    compiled = _library(dtype)
    assert compiled is not None
    team = threads.thread_count() if values.size + planes.size > _SINGLE else 1
    line = _LINE // values.itemsize
    shares = -(-2 * team // batch) if batch % team else 1  # of one image's channels; fewer at a time took three times
    width = -(-channels // (shares * line)) * line
    groups, zero = -(-channels // width), np.zeros(1, values.dtype)
    arguments = words(
        *map(address_of, (values, indices, planes, zero)), count, planes.shape[1], channels, groups, width,
        *values.strides, *indices.strides, *planes.strides,
    )  # fmt: skip
    threads.run(compiled.address("scatter"), arguments, batch * groups, 0, team)


def is_ready(dtype: str, _: ScatterSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"scatter-{dtype}", partial(_make, dtype=dtype))


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The task: some channels of one image, those inside or outside of the values' positions that lie closer."""
    fill, size = fill_kernel(module, dtype), np.dtype(dtype).itemsize
    kernel = Kernel(module, "scatter", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, _NAMES)
    image, first = item // given.groups, (item % given.groups) * given.width
    width = kernel.minimum(given.channels - first, given.width)
    plane = given.plane + image * given.item + first * given.channel
    with kernel.either(given.channel.equals(size)) as (last, other):
        with last, kernel.loop(given.places) as place:
            kernel.call(fill, given.zero, plane + place * given.step, width)
        with other, kernel.loop(width) as channel:
            kernel.call(fill, given.zero, plane + channel * given.channel, given.places)
    values = given.values + image * given.value_item + first * given.value_channel
    indices = given.indices + image * given.index_item + first * given.index_channel

    def add(position: Value, channel: Value) -> None:
        index = kernel.load(indices + position * given.index_step + channel * given.index_channel)
        value = values + position * given.value_step + channel * given.value_channel
        with kernel.when(index >= 0):
            _add(kernel, plane + index * given.step + channel * given.channel, value, dtype)

    with kernel.either(given.value_channel.equals(size)) as (last, other):
        with last, kernel.loop(given.count) as position, kernel.loop(width) as channel:
            add(position, channel)
        with other, kernel.loop(width) as channel, kernel.loop(given.count) as position:
            add(position, channel)
    kernel.finish()
    return ("scatter",)


def _add(kernel: Kernel, place: Value, value: Value, dtype: str) -> None:
    kind = FLOATS[dtype]
    kernel.store(kernel.load(place, kind) + kernel.load(value, kind), place)
