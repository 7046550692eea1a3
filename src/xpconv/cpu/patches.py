"""Patches, what windows read of an input that is padded: where they lie, and where their copies do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xpconv.cpu import copies
from xpconv.spec import Array, Sizes, Windows


@dataclass(frozen=True)
class Patches:
    """A view of all patches, and the shape of its copy: a matrix, or one for each image or group."""

    shape: Sizes
    strides: Sizes
    offset: int
    flat: Sizes
    dtype: np.dtype

    @cached_property
    def _items(self) -> tuple[Sizes, np.dtype, Sizes]:
        """The view with what lies side by side, in the copy as well, as one item: shape, dtype, strides."""
        axes, item = copies.runs_of(self.shape, self.dtype.itemsize, self.strides) or (len(self.shape), self.dtype)
        return self.shape[:axes], item, self.strides[:axes]

    @cached_property
    def are_the_input(self) -> bool:
        """Whether all of a padded input are the patches, in their order."""
        dense = copies.dense_strides(self.shape, self.dtype.itemsize)
        steps = zip(self.shape, self.strides, dense, strict=True)
        return self.offset == 0 and all(n == 1 or step == right for n, step, right in steps)

    def of(self, x: Array) -> Array:
        """The view of a padded input, in one piece of memory."""
        shape, item, strides = self._items
        return np.ndarray(shape, item, x, self.offset, strides)

    def within(self, copy: Array) -> Array:
        """The view of memory of the copy's shape, where patches are copied to."""
        shape, item, _ = self._items
        return np.ndarray(shape, item, copy)


def of_input(spec: Windows, shape: Sizes, dtype: np.dtype, counts: Sizes | None = None) -> Patches:
    """Those of an input (..., N, *size, C) in one piece of memory, or of what so many results read of it.

    The copy is (..., N * out, window * C).
    """
    shape, strides = _windows(spec, shape, copies.dense_strides(shape, dtype.itemsize), counts)
    axes = spec.axes
    lead = shape[: -2 * axes - 2]
    flat = (*lead, math.prod(shape[len(lead) : -axes - 1]), math.prod(shape[-axes - 1 :]))
    return Patches(shape, strides, 0, flat, dtype)


def windows(x: Array, spec: Windows) -> Array:
    """A view (..., *out, *window, C) of padded `x` (..., *size, C)."""
    return np.lib.stride_tricks.as_strided(x, *_windows(spec, x.shape, x.strides), writeable=False)


def _windows(
    spec: Windows, shape: Sizes, strides: Sizes, counts: Sizes | None = None
) -> tuple[Sizes, Sizes]:
    """Shape and strides of the view, or of that of so many results."""
    lead, steps = strides[: -spec.axes - 1], strides[-spec.axes - 1 : -1]
    moves = (step * s for step, s in zip(steps, spec.stride, strict=True))
    taps = (step * d for step, d in zip(steps, spec.dilation, strict=True))
    shape = (*shape[: len(lead)], *(counts or spec.out_size), *spec.window, shape[-1])
    return shape, (*lead, *moves, *taps, strides[-1])
