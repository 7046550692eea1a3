"""Values added at their indices in planes of zeros: what max pooling's gradient does.

An item is some channels of one image, which nobody else writes. Zeros are written just ahead of where values are
added, so that these find them in the caches, and indices are checked on the way. The lanes of a vector are different
channels, which never add to one place; where places are side by side instead, elements go one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.address import Told
from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import fill_kernel, in_vectors, lanes_of, name_of
from xpconv.cpu.compiled.values import FLOATS, I64, Operand, Value, vector
from xpconv.cpu.lines import LINE
from xpconv.spec import Array, ScatterSpec

_NAMES = (
    "values", "indices", "plane", "zero", "wrong", "count", "places", "channels", "groups", "width", "together",
    "ahead", "value_item", "value_step", "value_channel", "index_item", "index_step", "index_channel", "item", "step",
    "channel",
)  # fmt: skip
_SINGLE = 50_000  # elements that one thread adds sooner than it hands them over
# Bytes of a plane that are made zero at a time. 64 channels of 112 by 112 took 0.85 ms; by 64 KB 1.1, all first 1.5.
_AHEAD = 4 << 10
_SOON = 4  # positions before values and indices are wanted, they are asked for
_INDEX = np.dtype(np.int64).itemsize


def scattered(values: Array, indices: Array, planes: Array) -> bool:
    """Write to `planes` (N, places, C) the `values` (N, count, C) added up at their `indices`, -1 for none.

    Arrays may lie in memory in any way; of `planes`, all channels or all places lie side by side. False tells of
    indices outside the plane, whose values went nowhere.
    """
    dtype, (batch, count, channels), size = name_of(values.dtype), values.shape, values.itemsize
    compiled = _library(dtype)
    assert compiled is not None
    team = threads.thread_count() if values.size + planes.size > _SINGLE else 1
    line = LINE // size  # channels of different items share none
    shares = -(-2 * team // batch) if batch % team else 1  # of one image's channels; fewer at a time took three times
    width = -(-channels // (shares * line)) * line
    groups, task = -(-channels // width), _task_for(values, indices, planes)
    together, zero, wrong = 1 if task == "planes" else width, np.zeros(1, values.dtype), np.zeros(1, np.int64)
    numbers = (
        count, planes.shape[1], channels, groups, width, together, max(_AHEAD // (together * size), 1),
        *values.strides, *indices.strides, *planes.strides,
    )  # fmt: skip
    arguments = Told(5, numbers).of(values, indices, planes, zero, wrong)
    threads.run(compiled.address(task), arguments, batch * groups, 0, team)
    return not wrong[0]


def _task_for(values: Array, indices: Array, planes: Array) -> str:
    """The kernel for arrays that lie so, by name."""
    if planes.shape[-1] == 1 or planes.strides[-1] != planes.itemsize:
        return "planes"
    dense = all(a.strides[-1] == a.itemsize for a in (values, indices))
    return "vectors" if dense else "elements"


def is_ready(dtype: str, _: ScatterSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return _library(dtype) is not None


def _library(dtype: str) -> Library | None:
    return library(f"scatter-{dtype}", partial(_make, dtype=dtype))


# --- The kernels ------------------------------------------------------------------------------------------------------


def _make(module: ir.Module, *, dtype: str) -> tuple[str, ...]:
    """The tasks: one channel at a time, and channels side by side, one by one or by vectors of them."""
    fill = fill_kernel(module, dtype)
    tasks: dict[str, _Add] = {"planes": _add_element, "elements": _add_elements, "vectors": _add_lanes}
    for name, add in tasks.items():
        _task(module, name, dtype, add, fill)
    return tuple(tasks)


def _task(module: ir.Module, name: str, dtype: str, add: _Add, fill: Kernel) -> None:
    """Some channels of one image, so many together, in the order of the values' positions."""
    kernel = Kernel(module, name, ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, _NAMES)
    image, first = item // given.groups, (item % given.groups) * given.width
    stop = kernel.minimum(given.channels, first + given.width)
    with kernel.loop(stop, start=first, step=given.together) as channel:
        address = given.plane + image * given.item + channel * given.channel
        plane = _Plane(kernel, dtype, given, address, kernel.minimum(stop - channel, given.together), fill)
        values = given.values + image * given.value_item + channel * given.value_channel
        indices = given.indices + image * given.index_item + channel * given.index_channel
        with kernel.loop(given.count) as position:
            add(plane, values + position * given.value_step, indices + position * given.index_step)
        plane.clear_to(given.places)
    kernel.finish()


class _Plane:
    """Some channels of an image, `width` of them, whose first places are made zero, as far as they are needed."""

    def __init__(
        self, kernel: Kernel, dtype: str, given: SimpleNamespace, address: Value, width: Value, fill: Kernel
    ) -> None:
        self.kernel, self.dtype, self.size = kernel, dtype, np.dtype(dtype).itemsize
        self.given, self.address, self.width, self._fill = given, address, width, fill
        self._cleared = kernel.variable(0)  # places

    def takes(self, index: Value) -> Value:
        """Whether a value may be added at the index now, or in which lanes of it."""
        cleared = self._cleared.get()
        return index.within(cleared if index.type == I64 else self.kernel.splat(cleared, index.type.count))

    def reach(self, index: Value) -> None:
        """Clear the places up to an index; one that is outside is told of."""
        kernel, given = self.kernel, self.given
        with kernel.either(index.within(given.places)) as (inside, outside):
            with inside, kernel.when(index >= self._cleared.get()):
                ahead = kernel.at_least(index + 1, self._cleared.get() + given.ahead)
                self.clear_to(kernel.minimum(ahead, given.places))
            with outside, kernel.when(index.equals(-1) ^ True):
                kernel.store(kernel.constant(1), given.wrong)

    def clear_to(self, stop: Value) -> None:
        """Clear the places before `stop`."""
        kernel, given, cleared = self.kernel, self.given, self._cleared.get()
        with kernel.either(given.step.equals(self.width * self.size)) as (whole, parts):
            with whole:
                here, count = self.address + cleared * given.step, (stop - cleared) * self.width
                kernel.call(self._fill, given.zero, here, count)
            with parts, kernel.loop(stop, start=cleared) as place:
                kernel.call(self._fill, given.zero, self.address + place * given.step, self.width)
        self._cleared.set(stop)


_Add = Callable[[_Plane, Value, Value], None]
"""Adds the values of one position, whose first ones and whose indices begin at two addresses."""


def _add_element(plane: _Plane, value: Value, index_at: Value, beside: Operand = 0) -> None:
    """One value, to a channel that lies so many bytes beside the first."""
    kernel, index, kind = plane.kernel, plane.kernel.load(index_at), FLOATS[plane.dtype]
    with kernel.when(plane.takes(index) ^ True):
        plane.reach(index)
    with kernel.when(plane.takes(index)):
        place = plane.address + index * plane.given.step + beside
        kernel.store(kernel.load(place, kind) + kernel.load(value, kind), place)


def _add_elements(plane: _Plane, values: Value, indices: Value) -> None:
    given = plane.given
    with plane.kernel.loop(plane.width) as channel:
        value, index_at = values + channel * given.value_channel, indices + channel * given.index_channel
        _add_element(plane, value, index_at, channel * plane.size)


def _add_lanes(plane: _Plane, values: Value, indices: Value) -> None:
    """As many at once as a vector of indices, which is compared as one, and whose values are added one by one."""
    kernel, lanes, size = plane.kernel, lanes_of(plane.dtype), plane.size
    kind, each = FLOATS[plane.dtype], _INDEX // size

    def add(at: Value, mask: Value | None) -> None:
        count = kernel.constant(lanes) if mask is None else plane.width % lanes

        def one_by_one() -> None:
            with kernel.loop(count) as lane:
                here = at + lane * size
                _add_element(plane, values + here, indices + here * each, here)

        if mask is not None:
            return one_by_one()
        given = plane.given
        kernel.prefetch(values + at + given.value_step * _SOON)
        for line in range(0, lanes * _INDEX, LINE):
            kernel.prefetch(indices + at * each + given.index_step * _SOON + line)
        index = kernel.load(indices + at * each, vector(I64, lanes))
        with kernel.either(kernel.any_lane(plane.takes(index) ^ True)) as (some_wait, all_go):
            with some_wait:
                one_by_one()
            with all_go:
                for lane in range(lanes):
                    here = at + lane * size
                    place = plane.address + kernel.load(indices + here * each) * plane.given.step + here
                    kernel.store(kernel.load(place, kind) + kernel.load(values + here, kind), place)
        return None

    in_vectors(kernel, plane.dtype, plane.width, add)
