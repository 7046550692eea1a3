"""Small convolutions as one product of patches.

Of channels first, and of a single channel, patches are columns, one for each position: their copies are runs of
positions, and the product is in the order of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import methodcaller

import numpy as np

from xpconv.cpu.small_patches import Patches, by_taps, copied, steps_of
from xpconv.cpu.strips import is_product
from xpconv.spec import Array, ConvSpec

Sums = Callable[[Array, Array], Array]


def product(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x and w as the layout has them, without groups: all patches times the weight.

    It gives (N * out, F), or with channels first (F, out), of several images (N, F, out). Axes of one element may be
    missing.
    """
    patches, weight = _patches(spec, dtype), _weight(spec, turned=spec.flip and not are_columns(spec))
    read = methodcaller("reshape", patches.flat) if is_product(spec) else copied(spec, dtype, fill, patches)
    multiply = _multiply(spec)
    return lambda x, w: multiply(read(x), weight(w))


def weight_gradient(spec: ConvSpec, dtype: np.dtype) -> Sums:
    """A function of x and gy as the layout has them, without groups: all patches, transposed, times gy, as the weight.

    Patches lie one below the other, their elements as in a weight of the layout.
    """
    batch, moves, taps, channel = steps_of(spec, dtype)
    first, filters, w_shape = spec.layout == "channels_first", spec.filters, spec.w_shape
    results = math.prod(spec.out_size)
    read, steps = (spec.channels, *spec.window), (channel, *taps)
    if not first:
        read, steps = (*read[1:], *read[:1]), (*steps[1:], *steps[:1])
    shape, strides = (spec.batch, *spec.out_size, *read), (batch, *moves, *steps)
    patches = Patches(shape, strides, 0, (spec.batch * results, math.prod(read)))
    turns = ((slice(None),) * 2 if first else ()) + (slice(None, None, -1 if spec.flip else 1),) * spec.axes

    read_of = copied(spec, dtype, 0, patches)

    def summed(x: Array, gy: Array) -> Array:
        if first:
            gw = gy.reshape(-1, filters, results).swapaxes(0, 1).reshape(filters, -1).dot(read_of(x))
        else:
            gw = read_of(x).T.dot(gy.reshape(-1, filters))
        return np.ascontiguousarray(gw.reshape(w_shape)[turns])

    return summed


def channelwise(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x and w as the layout has them, of one filter for each channel: every tap times what it reads.

    It gives (N * out, C), or with channels first (N, C, out).
    """
    results, taps, turns = math.prod(spec.out_size), math.prod(spec.window), (slice(None, None, -1),) * spec.axes
    last, window = spec.layout == "channels_last", spec.window
    flat = (spec.batch * results, spec.channels) if last else (spec.batch, spec.channels, results)
    turns = turns if spec.flip else (slice(None),) * spec.axes

    read = copied(spec, dtype, fill, by_taps(spec, dtype, spec.y_shape, flat))

    def summed(x: Array, w: Array) -> Array:
        if last:
            w = w.reshape(*window, -1)[turns].reshape(taps, 1, -1)
        else:
            w = w.reshape(-1, *window)[(slice(None), *turns)].reshape(-1, taps).T[:, None, :, None]
        return np.add.reduce(read(x) * w)

    return summed


def are_columns(spec: ConvSpec) -> bool:
    """Whether patches lie side by side, and not one below the other."""
    return spec.layout == "channels_first" or spec.channels == 1


def _patches(spec: ConvSpec, dtype: np.dtype) -> Patches:
    """Those of a padded input in the spec's layout; columns begin with the tap that the weight begins with."""
    batch, moves, taps, channel = steps_of(spec, dtype)
    length, results = math.prod(spec.window) * spec.channels, math.prod(spec.out_size)
    if not are_columns(spec):
        shape, strides = (spec.batch, *spec.out_size, *spec.window, spec.channels), (batch, *moves, *taps, channel)
        return Patches(shape, strides, 0, (spec.batch * results, length))
    offset = 0
    if spec.flip:
        offset = sum((m - 1) * tap for m, tap in zip(spec.window, taps, strict=True))
        taps = tuple(-tap for tap in taps)
    if spec.layout == "channels_last":
        shape, strides = (*spec.window, spec.batch, *spec.out_size), (*taps, batch, *moves)
        return Patches(shape, strides, offset, (length, spec.batch * results))
    shape, strides = (spec.batch, spec.channels, *spec.window, *spec.out_size), (batch, channel, *taps, *moves)
    return Patches(shape, strides, offset, (length, results) if spec.batch == 1 else (spec.batch, length, results))


def _weight(spec: ConvSpec, *, turned: bool) -> Callable[[Array], Array]:
    """A function of w that makes it a matrix: by the taps of patches (L, F), with channels first (F, L)."""
    length, turns = math.prod(spec.window) * spec.channels, (slice(None, None, -1),) * spec.axes
    shape = (length, spec.filters) if spec.layout == "channels_last" else (spec.filters, length)
    return (lambda w: w[turns].reshape(shape)) if turned else methodcaller("reshape", shape)


def _multiply(spec: ConvSpec) -> Callable[[Array, Array], Array]:
    """A function of patches and the weight; `dot` takes half as long as `matmul` to be called."""
    if spec.layout == "channels_last":
        return (lambda columns, w: columns.T.dot(w)) if are_columns(spec) else np.ndarray.dot
    return (lambda columns, w: w.dot(columns)) if spec.batch == 1 else (lambda columns, w: np.matmul(w, columns))
