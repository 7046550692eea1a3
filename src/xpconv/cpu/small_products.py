"""Small convolutions as one product of patches.

Of channels first, and of a single channel, patches are columns, one for each position: their copies are runs of
positions, and the product is in the order of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from xpconv.cpu.small_patches import Patches, of_patches, steps_of
from xpconv.spec import Array, ConvSpec

Sums = Callable[[Array, Array], Array]


def product(spec: ConvSpec, dtype: np.dtype, fill: complex) -> Sums:
    """A function of x and w as the layout has them, without groups: all patches times the weight.

    It gives (N * out, F), or with channels first (F, out), of several images (N, F, out). Axes of one element may be
    missing.
    """
    patches, weight = _patches(spec, dtype), _weight(spec, turned=spec.flip and not are_columns(spec))
    flat, multiply = patches.flat, _multiply(spec)
    if spec.padded_size == spec.size == spec.out_size and math.prod(spec.window) == 1:
        return lambda x, w: multiply(x.reshape(flat), weight(w))
    return of_patches(spec, dtype, fill, patches, lambda read, w: multiply(read, weight(w)))


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
    return (lambda w: w[turns].reshape(shape)) if turned else (lambda w: w.reshape(shape))


def _multiply(spec: ConvSpec) -> Callable[[Array, Array], Array]:
    """A function of patches and the weight; `dot` takes half as long as `matmul` to be called."""
    if spec.layout == "channels_last":
        return (lambda columns, w: columns.T.dot(w)) if are_columns(spec) else (lambda rows, w: rows.dot(w))
    return (lambda columns, w: w.dot(columns)) if spec.batch == 1 else (lambda columns, w: np.matmul(w, columns))
