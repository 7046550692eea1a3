"""Small convolutions as one product of patches: their places in memory, the padding and all views are known before.

Of channels first, and of a single channel, patches lie side by side as columns, one for each position: their copies are
runs of positions, and the product is in the order of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xpconv.cpu.spares import Spares
from xpconv.spec import Array, ConvSpec, Sizes, Windows, in_layout

Sums = Callable[[Array, Array], Array]


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


@dataclass(frozen=True)
class _Patches:
    """A view of all patches, and the shape of its copy: a matrix, or one for each image."""

    shape: Sizes
    strides: Sizes
    offset: int
    flat: Sizes

    def of(self, x: Array) -> Array:
        """The view of a padded input, in one piece of memory."""
        return np.ndarray(self.shape, x.dtype, x, self.offset, self.strides)


def product(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x and w as the layout has them, without groups: all patches times the weight.

    It gives (N * out, F), or with channels first (F, out), of several images (N, F, out). Axes of one element may be
    missing.
    """
    patches, columns = _patches(spec, dtype), are_columns(spec)
    weight, multiply = _weight(spec, turned=spec.flip and not columns), _multiply(spec)
    flat, x_shape = patches.flat, spec.x_shape
    if spec.padded_size == spec.size == spec.out_size and math.prod(spec.window) == 1:
        return lambda x, w: multiply(x.reshape(flat), weight(w))
    if not any(map(any, spec.padding)):
        return lambda x, w: multiply(patches.of(np.ascontiguousarray(x)).reshape(flat), weight(w))
    spares, axes = rooms(spec, dtype, fill, patches.of), len(x_shape)

    def multiplied(x: Array, w: Array) -> Array:
        room = spares.take()
        room.inner[...] = x if x.ndim == axes else x.reshape(x_shape)
        y = multiply(room.read.reshape(flat), weight(w))
        spares.give(room)
        return y

    return multiplied


def are_columns(spec: ConvSpec) -> bool:
    """Whether patches lie side by side, and not one below the other."""
    return spec.layout == "channels_first" or spec.channels == 1


def _patches(spec: ConvSpec, dtype: np.dtype) -> _Patches:
    """Those of a padded input in the spec's layout; columns begin with the tap that the weight begins with."""
    steps = np.empty(in_layout(spec.layout, spec.batch, spec.padded_size, spec.channels), dtype).strides
    batch, *along, channel = steps if spec.layout == "channels_last" else (steps[0], *steps[2:], steps[1])
    moves = [step * s for step, s in zip(along, spec.stride, strict=True)]
    taps = [step * d for step, d in zip(along, spec.dilation, strict=True)]
    length, results = math.prod(spec.window) * spec.channels, math.prod(spec.out_size)
    if not are_columns(spec):
        shape, strides = (spec.batch, *spec.out_size, *spec.window, spec.channels), (batch, *moves, *taps, channel)
        return _Patches(shape, strides, 0, (spec.batch * results, length))
    offset = 0
    if spec.flip:
        offset, taps = sum((m - 1) * tap for m, tap in zip(spec.window, taps, strict=True)), [-tap for tap in taps]
    if spec.layout == "channels_last":
        shape, strides = (*spec.window, spec.batch, *spec.out_size), (*taps, batch, *moves)
        return _Patches(shape, strides, offset, (length, spec.batch * results))
    shape, strides = (spec.batch, spec.channels, *spec.window, *spec.out_size), (batch, channel, *taps, *moves)
    return _Patches(shape, strides, offset, (length, results) if spec.batch == 1 else (spec.batch, length, results))


def _weight(spec: ConvSpec, *, turned: bool) -> Callable[[Array], Array]:
    """A function of w that makes it a matrix: by the taps of patches (L, F), with channels first (F, L)."""
    length, turns = math.prod(spec.window) * spec.channels, (slice(None, None, -1),) * spec.axes
    shape = (length, spec.filters) if spec.layout == "channels_last" else (spec.filters, length)
    return (lambda w: w[turns].reshape(shape)) if turned else (lambda w: w.reshape(shape))


def _multiply(spec: ConvSpec) -> Callable[[Array, Array], Array]:
    """A function of patches and the weight; `dot` takes half as long as `matmul` to be called."""
    if spec.layout == "channels_last":
        return (lambda columns, w: columns.T.dot(w)) if are_columns(spec) else (lambda rows, w: rows.dot(w))
    return (lambda columns, w: w.dot(columns)) if spec.batch == 1 else (lambda columns, w: np.matmul(w, columns))
