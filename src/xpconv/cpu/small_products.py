"""Small convolutions as one product of patches.

Of channels first, and of a single channel, patches are columns, one for each position: their copies are runs of
positions, and the product is in the order of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter

import numpy as np

from xpconv.cpu.blas import products_by_one
from xpconv.cpu.patches import Patches
from xpconv.cpu.small_patches import as_copied, by_taps, of_patches, steps_of
from xpconv.cpu.strips import is_product
from xpconv.plan import conv_operations
from xpconv.spec import Array, ConvSpec

Sums = Callable[[Array, Array], Array]

_ALWAYS_SHARED = 1_000_000  # multiplications of a product that OpenBLAS shares, on any processor


def product(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x and w as the layout has them, without groups: all patches times the weight.

    It gives (N * out, F), or with channels first (F, out), of several images (N, F, out). Axes of one element may be
    missing.
    """
    patches, multiply, seen = _patches(spec, dtype), _multiply(spec), _seen(spec)
    if is_product(spec):
        flat = patches.flat
        return lambda x, w: multiply(seen(x.reshape(flat)), w)
    return of_patches(spec, fill, patches, _by_one(spec, multiply), seen)


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
    patches = Patches(shape, strides, 0, (spec.batch * results, math.prod(read)), dtype)
    turns = ((slice(None),) * 2 if first else ()) + (slice(None, None, -1 if spec.flip else 1),) * spec.axes

    def summed(read: Array, gy: Array) -> Array:
        if first:
            gw = gy.reshape(-1, filters, results).swapaxes(0, 1).reshape(filters, -1).dot(read)
        else:
            gw = read.T.dot(gy.reshape(-1, filters))
        return np.ascontiguousarray(gw.reshape(w_shape)[turns])

    return of_patches(spec, 0, patches, _by_one(spec, summed))


def channelwise(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x and w as the layout has them, of one filter for each channel: every tap times what it reads.

    It gives (N * out, C), or with channels first (N, C, out).
    """
    results, taps, turns = math.prod(spec.out_size), math.prod(spec.window), (slice(None, None, -1),) * spec.axes
    last, window = spec.layout == "channels_last", spec.window
    flat = (spec.batch * results, spec.channels) if last else (spec.batch, spec.channels, results)
    turns = turns if spec.flip else (slice(None),) * spec.axes

    def summed(read: Array, w: Array) -> Array:
        if last:
            w = w.reshape(*window, -1)[turns].reshape(taps, 1, -1)
        else:
            w = w.reshape(-1, *window)[(slice(None), *turns)].reshape(-1, taps).T[:, None, :, None]
        return np.add.reduce(read * w)

    return of_patches(spec, fill, by_taps(spec, dtype, spec.y_shape, flat), summed)


def are_columns(spec: ConvSpec) -> bool:
    """Whether patches lie side by side, and not one below the other."""
    return spec.layout == "channels_first" or spec.channels == 1


def _patches(spec: ConvSpec, dtype: np.dtype) -> Patches:
    """Those of a padded input in the spec's layout; columns begin with the tap that the weight begins with."""
    batch, moves, taps, channel = steps_of(spec, dtype)
    length, results = math.prod(spec.window) * spec.channels, math.prod(spec.out_size)
    if not are_columns(spec):
        shape, strides = (spec.batch, *spec.out_size, *spec.window, spec.channels), (batch, *moves, *taps, channel)
        return Patches(shape, strides, 0, (spec.batch * results, length), dtype)
    offset = 0
    if spec.flip:
        offset = sum((m - 1) * tap for m, tap in zip(spec.window, taps, strict=True))
        taps = tuple(-tap for tap in taps)
    if spec.layout == "channels_last":
        shape, strides = (*spec.window, spec.batch, *spec.out_size), (*taps, batch, *moves)
        return Patches(shape, strides, offset, (length, spec.batch * results), dtype)
    shape, strides = (spec.batch, spec.channels, *spec.window, *spec.out_size), (batch, channel, *taps, *moves)
    flat = (length, results) if spec.batch == 1 else (spec.batch, length, results)
    return Patches(shape, strides, offset, flat, dtype)


def _seen(spec: ConvSpec) -> Callable[[Array], Array]:
    """A function of patches: as they are multiplied."""
    return attrgetter("T") if spec.layout == "channels_last" and are_columns(spec) else as_copied


def _by_one(spec: ConvSpec, multiply: Sums) -> Sums:
    """The product left to this thread, which has just copied the patches, where BLAS would share it.

    Another one would read them from its cache: two took 57 or 116 us, as the system places them, where one takes 68.
    """
    if conv_operations(spec) // 2 <= _ALWAYS_SHARED:
        return multiply

    def multiplied(patches: Array, other: Array) -> Array:
        with products_by_one():
            return multiply(patches, other)

    return multiplied


def _multiply(spec: ConvSpec) -> Callable[[Array, Array], Array]:
    """A function of what `_seen` gives and of w; `dot` takes half as long as `matmul` to be called."""
    length, turns = math.prod(spec.window) * spec.channels, (slice(None, None, -1),) * spec.axes
    if spec.layout == "channels_first":
        shape = (spec.filters, length)
        if spec.batch > 1:
            return lambda columns, w: np.matmul(w.reshape(shape), columns)
        return lambda columns, w: w.reshape(shape).dot(columns)
    shape = (length, spec.filters)
    if spec.flip and math.prod(spec.window) > 1 and not are_columns(spec):
        return lambda patches, w: patches.dot(w[turns].reshape(shape))
    return lambda patches, w: patches.dot(w.reshape(shape))
