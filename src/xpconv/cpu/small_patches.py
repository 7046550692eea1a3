"""Patches of small inputs, copied side by side: their places, the padding and all views are known before the call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xpconv.cpu.copies import dense_strides
from xpconv.cpu.memory import borrowed
from xpconv.cpu.patches import Patches
from xpconv.cpu.spares import Spares
from xpconv.spec import Array, Sizes, Windows, in_layout

_MAPPED = 1 << 17  # bytes from which malloc asks the system: each of the pages costs 2 us


class Room(NamedTuple):
    """Padded memory: where the input goes, and views of what is read of it."""

    inner: Array
    read: Any


def rooms(spec: Windows, dtype: np.dtype, fill: complex, read: Callable[[Array], Any]) -> Spares[Room]:
    """Memory for a padded input in the spec's layout, what is read of it, and around it the fill value."""
    shape = in_layout(spec.layout, spec.batch, spec.padded_size, spec.channels)
    spatial = (slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True))
    every = (slice(None),) * (1 if spec.layout == "channels_last" else 2)
    inside = (*every, *spatial)

    def made() -> Room:
        whole = np.zeros(shape, dtype) if fill == 0 else np.full(shape, fill, dtype)
        return Room(whole[inside], read(whole))

    return Spares(made, math.prod(shape) * dtype.itemsize)


class Steps(NamedTuple):
    """Bytes from one image, window, tap or channel of a padded input to the next, those of windows and taps by axes."""

    batch: int
    windows: Sizes
    taps: Sizes
    channel: int


def steps_of(spec: Windows, dtype: np.dtype) -> Steps:
    """Those of a padded input in the spec's layout, in one piece of memory."""
    shape = in_layout(spec.layout, spec.batch, spec.padded_size, spec.channels)
    steps = dense_strides(shape, dtype.itemsize)
    batch, *along, channel = steps if spec.layout == "channels_last" else (steps[0], *steps[2:], steps[1])
    windows = tuple(step * s for step, s in zip(along, spec.stride, strict=True))
    return Steps(batch, windows, tuple(step * d for step, d in zip(along, spec.dilation, strict=True)), channel)


def by_taps(spec: Windows, dtype: np.dtype, shape: Sizes, flat: Sizes) -> Patches:
    """For every tap what it reads for all results, which are of the shape."""
    batch, moves, taps, channel = steps_of(spec, dtype)
    strides = (*taps, *in_layout(spec.layout, batch, moves, channel))
    return Patches((*spec.window, *shape), strides, 0, (math.prod(spec.window), *flat), dtype)


def as_copied(patches: Array) -> Array:
    """The copy itself, for what reads it as it is."""
    return patches


def of_patches(
    spec: Windows,
    fill: complex,
    patches: Patches,
    then: Callable[..., Array],
    seen: Callable[[Array], Any] = as_copied,
) -> Callable[..., Array]:
    """A function of x, and of another array if there is one: `then` of a copy of x's patches, which lie side by side.

    `then` is given what `seen` makes of the copy, such as views of it, and the other array, and returns memory of its
    own.
    """
    flat, dtype, x_shape, axes = patches.flat, patches.dtype, spec.x_shape, spec.axes + 2
    padded, of_copy = rooms(spec, dtype, fill, patches.of), _of_copy(patches, then, seen)

    def made() -> tuple[Array, Any, Array, Any]:
        (inner, read), copy = padded.make(), np.empty(flat, dtype)
        return inner, read, patches.within(copy), seen(copy)

    both = Spares(made, padded.nbytes + math.prod(flat) * dtype.itemsize)
    take, give = both.take, both.give

    def with_all_kept(x: Array, other: Array | None = None) -> Array:
        inner, read, copy, views = memory = take()
        inner[...] = x if x.ndim == axes else x.reshape(x_shape)
        copy[...] = read
        y = then(views) if other is None else then(views, other)
        give(memory)
        return y

    def with_padding_kept(x: Array, other: Array | None = None) -> Array:
        room = padded.take()
        room.inner[...] = x if x.ndim == axes else x.reshape(x_shape)
        y = of_copy(room.read, other)
        padded.give(room)
        return y

    def where_it_lies(x: Array, other: Array | None = None) -> Array:
        return of_copy(patches.of(np.ascontiguousarray(x)), other)

    if both.are_kept:
        return with_all_kept
    return where_it_lies if spec.padded_size == spec.size and not padded.are_kept else with_padding_kept


def _of_copy(
    patches: Patches, then: Callable[..., Array], seen: Callable[[Array], Any]
) -> Callable[[Array, Array | None], Array]:
    """A function of patches and the other array: `then` of their copy, in memory that is not a kind's own."""
    flat, dtype, nbytes = patches.flat, patches.dtype, math.prod(patches.flat) * patches.dtype.itemsize

    def of_copy(copy: Array, read: Array, other: Array | None) -> Array:
        patches.within(copy)[...] = read
        views = seen(copy)
        return then(views) if other is None else then(views, other)

    def in_new(read: Array, other: Array | None) -> Array:
        return of_copy(np.empty(flat, dtype), read, other)

    def in_borrowed(read: Array, other: Array | None) -> Array:
        with borrowed("patches") as memory:
            return of_copy(memory.take("patches", flat, dtype), read, other)

    return in_new if nbytes < _MAPPED else in_borrowed
