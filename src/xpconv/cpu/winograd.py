"""Winograd's minimal filtering of 3 x 3 to 5 x 5 taps, at stride 1 and 2, and of signals: few large matrix products.

``y = A^T [(G w G^T) * (B^T d B)] A`` on tiles d of the input (Lavin and Gray, 2016, arXiv:1509.09308): 36 products make
16 results of a channel, where the definition takes 144. As many make 9 results of 4 x 4 taps, which it takes 144 for as
well, and 4 of 5 x 5, for which it takes 100. The transforms are one matrix product each over all tiles of
a block, with the Kronecker square of their matrix: one redundant product takes less time than forty passes.

Signals are images one element wide, whose tiles have one axis: 5 products make 3 results of 3 taps, or 25 products 9
results of 9 taps. Longer windows are sums of windows of nine, which read one tile further each.

At stride 2 the even taps of a window read every other element, and the odd taps those between: two windows of half as
many taps at stride 1, of which F(2, r) makes two results by r + 1 products. So 5 products make 2 results of 3 taps, 6
of 4 taps and 7 of 5; 25, 36 and 49 make 2 x 2, where the definition takes 36, 64 and 100.

The gradient of such an input is a convolution at stride 1 with zeros between the elements. The even taps reach every
other result, and the odd taps those between, so that as many products make 4 x 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from xpconv.spec import Array, ConvSpec, Sizes

SPACE = 2  # axes of an image: the last two
TAPS = 3  # of F2, F3 and F4, and the fewest of signals


Rows: TypeAlias = Sequence[Sequence[float]] | Array  # of a matrix


class Transform:
    """The matrices of F(m, r) for tiles of one axis, or squared to serve two axes at once.

    A signal, `folded`, is an image to squared matrices: its rows begin three elements after each other, so that three
    rows of three taps are nine taps in a row, and three rows of three results nine results.
    """

    def __init__(
        self, axes: int, filter_: Rows, input_: Rows, output: Rows, *, folded: bool = False, stride: int = 1,
        spread: int = 1, first: int = 0,
    ) -> None:  # fmt: skip
        self.filter, self.input, self.output = (np.array(matrix) for matrix in (filter_, input_, output))
        results = len(output)  # m
        self.axes, self.squared = axes, folded or axes == SPACE
        self.stride = stride  # of the windows, along the axes of a tile
        self.spread, self.first = spread, first  # how far apart elements are, zeros between them, and a tile's first
        self.fold = results if folded else 0  # elements from one row of a folded signal to the next
        self.reads, self.values = (  # rows and columns of elements, and of what they are transformed to
            (count, count if self.squared else 1) for count in (self.input.shape[1], len(input_))
        )
        self.points = math.prod(self.values)
        taps = self.filter.shape[1]
        self.results, self.taps = (results**2, taps**2) if folded else (results, taps)  # of a tile, along an axis
        still = (1,) * (SPACE - axes)  # tiles of signals are one element wide
        self.tile = (self.results,) * axes + still  # rows and columns of results
        self.apart = tuple(stride * n for n in self.tile)  # rows and columns of the input from one tile to the next
        self.edges = ((self.results - 1) * stride + self.taps,) * axes + still  # and that a tile spans, zeros included

    def flattened(self, matrix: Array, dtype: np.dtype) -> Array:
        """For tiles whose axes are one."""
        return (np.kron(matrix, matrix) if self.squared else matrix).astype(dtype)

    def of_elements(self, dtype: np.dtype) -> Array:
        """The input's matrix, for a tile's elements in order, each of which a folded signal's rows share."""
        matrix = self.flattened(self.input, np.dtype(np.float64))
        if self.fold:
            rows, columns = self.values
            places = np.add.outer(self.fold * np.arange(rows), np.arange(columns)).reshape(-1)
            matrix = matrix @ np.eye(self.edges[0])[places]
        return matrix.astype(dtype)

    def terms(self, window: Sizes) -> int:
        """Windows of as many taps as a tile's that a window is the sum of."""
        return -(-math.prod(window) // self.taps**self.axes)


_SIX_INPUTS = [
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]  # fmt: skip


def _of_six(taps: int) -> Transform:
    """F(m x m, r x r) of tiles of 6 x 6, at 0, 1, -1, 2, -2 and infinity."""
    results, places = 7 - taps, ((0, 4), (1, -6), (-1, -6), (2, 24), (-2, 24))
    filter_ = [[at**k / by for k in range(taps)] for at, by in places] + [[0.0] * (taps - 1) + [1.0]]
    output = [[at**i for at, _ in places] + [int(i == results - 1)] for i in range(results)]
    return Transform(2, filter_, _SIX_INPUTS, output)


IMAGES = {taps: _of_six(taps) for taps in (3, 4, 5)}  # by the taps along an axis
F4 = IMAGES[3]
_TO_TWO: dict[int, tuple[Rows, Rows, Rows]] = {  # F(2, r) by its taps
    1: ([[1], [1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]]),
    2: ([[1, 0], [1, 1], [0, 1]], [[1, -1, 0], [0, 1, 0], [0, -1, 1]], [[1, 1, 0], [0, 1, 1]]),
    3: (
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
}
F2 = Transform(2, *_TO_TWO[3])


def halves(taps: int) -> tuple[int, int]:
    """Even and odd taps of so many."""
    return -(-taps // 2), taps // 2


def _by_halves(taps: int) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
    """The matrices of the even and of the odd taps, and the filters' of both."""
    even, odd = (tuple(map(np.array, _TO_TWO[half])) for half in halves(taps))
    filter_ = np.zeros((len(even[0]) + len(odd[0]), taps))
    filter_[: len(even[0]), ::2], filter_[len(even[0]) :, 1::2] = even[0], odd[0]
    return even, odd, filter_


def _strided(taps: int) -> Transform:
    """F(2 x 2) of windows two elements apart."""
    even, odd, filter_ = _by_halves(taps)
    points, input_ = len(even[0]), np.zeros((len(filter_), taps + 2))
    input_[:points, ::2], input_[points:, 1::2] = even[1], odd[1]
    return Transform(2, filter_, input_, np.hstack([even[2], odd[2]]), stride=2)


def _spread(taps: int, first: int) -> Transform:
    """F(4 x 4) of elements with zeros between them; a tile begins with an element, or with `first` = 1 zero."""
    even, odd, filter_ = _by_halves(taps)
    (points, reads), shift = even[1].shape, 1 - first  # elements that the odd taps read later
    input_ = np.zeros((len(filter_), max(reads, odd[1].shape[1] + shift)))
    input_[:points, :reads], input_[points:, shift : shift + odd[1].shape[1]] = even[1], odd[1]
    output = np.zeros((4, len(filter_)))
    output[first::2, :points], output[1 - first :: 2, points:] = even[2], odd[2]
    return Transform(2, filter_, input_, output, spread=2, first=first)


STRIDED = {taps: _strided(taps) for taps in (3, 4, 5)}  # by the taps along an axis
SPREAD = {(taps, first): _spread(taps, first) for taps in STRIDED for first in (0, 1)}
_OF_THREE: tuple[Rows, Rows, Rows] = (  # at 0, 1, -1, 2 and infinity
    [[1 / 2, 0, 0], [-1 / 2, -1 / 2, -1 / 2], [-1 / 6, 1 / 6, -1 / 6], [1 / 6, 1 / 3, 2 / 3], [0, 0, 1]],
    [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]],
    [[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 1]],
)
F3 = Transform(1, *_OF_THREE)
F9 = Transform(1, *_OF_THREE, folded=True)  # 25 products, where nine taps by F3 take 45


def fits(spec: ConvSpec) -> bool:
    """Whether windows are of 3 by 3, 4 by 4 or 5 by 5 on the last two axes, or of at least 3 on the only one, at stride
    1, or of images at stride 2.
    """
    if spec.input_dilation or spec.groups > 1:
        return False
    if set(spec.stride) != {1}:
        return is_strided(spec)
    if spec.axes == 1:
        return spec.window[0] >= TAPS
    return spec.window[-1] == spec.window[-SPACE] and spec.window[-1] in IMAGES


def is_strided(spec: ConvSpec) -> bool:
    """Whether windows of images are two elements apart, and their own elements, as many along both axes, together."""
    of_images = (spec.axes, spec.stride, spec.dilation) == (SPACE, (2, 2), (1, 1))
    return of_images and spec.window[0] == spec.window[1] and spec.window[0] in STRIDED


def is_spread(spec: ConvSpec) -> bool:
    """Whether it is the input gradient of a convolution that `is_strided`, as one convolution, which kernels compute.

    The paddings before both axes must be both even or both odd. Of no elements the result would be of another size.
    """
    if (spec.axes, spec.stride, spec.dilation, spec.input_dilation) != (SPACE, (1, 1), (1, 1), (2, 2)):
        return False
    ((top, _), (left, _)), (tall, wide) = spec.padding, spec.window
    is_square = tall == wide and tall in STRIDED and (top - left) % 2 == 0
    return is_square and 0 not in spec.size and spec.groups == 1 and spec.padding_mode == "zeros"


def as_images(spec: ConvSpec) -> ConvSpec:
    """Signals as images that are one element wide; what has more axes as it is."""
    if spec.axes >= SPACE:
        return spec
    size, window, stride, dilation = ((*of, 1) for of in (spec.size, spec.window, spec.stride, spec.dilation))
    padding = (*spec.padding, (0, 0))
    return replace(spec, size=size, window=window, stride=stride, dilation=dilation, padding=padding)


def transform_for(spec: ConvSpec) -> Transform:
    """Of signals F(3, 3), folded where there are more taps; of images that of tiles of 6 x 6, or of stride 2.

    F(2x2, 3x3) is for maps so small that most of a larger tile would be cut off.
    """
    if spec.axes == 1:
        return F3 if spec.window[0] <= TAPS else F9
    if is_strided(spec):
        return STRIDED[spec.window[0]]
    across = (-(-n // d) for n, d in zip(spec.out_size[-SPACE:], spec.dilation[-SPACE:], strict=True))
    return F2 if spec.window[-1] == TAPS and min(across) <= F2.results else IMAGES[spec.window[-1]]


@lru_cache(maxsize=4096)
def compiled_for(spec: ConvSpec) -> Transform:
    """That of the compiled kernels: of signals and of stride 2 as NumPy's, of images that of tiles of 6 x 6.

    Where so few tiles share a weight that reading it takes longer than to multiply it, F(2x2, 3x3), whose transformed
    weight is less than half as large.
    """
    if is_spread(spec):
        return SPREAD[spec.window[0], spec.padding[0][0] % 2]
    if spec.axes == 1 or is_strided(spec):
        return transform_for(spec)
    if spec.window[-1] != TAPS:
        return IMAGES[spec.window[-1]]
    weight = F4.points * F4.terms(spec.window) * spec.channels * spec.filters
    products, _ = operations(spec, F4)
    return F2 if weight > FAR and products < 2 * _SHARED * weight else F4


FAR = 1 << 22  # elements of a weight that are read from memory at every call
BLOCK_ROWS = 96  # of the products of NumPy's blocks, at least: they share what is read of the weight
_SHARED = 8  # tiles
_LARGE_WEIGHT = 1 << 20  # elements, transformed
_STAGED_ELEMENTS = 2_600_000  # of points of tiles, and of results: a few megabytes


def transformed_weight(w: Array, transform: Transform) -> Array:
    """(*window, C, F) as (points, windows of as many taps as a tile's that are added up, C, F)."""
    taps = taps_of(w, transform)
    u = transform.flattened(transform.filter, w.dtype) @ taps.reshape(*taps.shape[:2], -1)
    return np.ascontiguousarray(u.reshape(len(u), -1, *taps.shape[2:]).swapaxes(0, 1))


def taps_of(w: Array, transform: Transform) -> Array:
    """(*window, C, F) as (windows that are added up, their taps, C, F), the last filled up with zeros."""
    *window, channels, filters = w.shape
    terms, each = transform.terms(tuple(window)), transform.taps**transform.axes
    taps = w.reshape(-1, channels, filters)
    if missing := terms * each - len(taps):
        taps = np.concatenate([taps, np.zeros((missing, channels, filters), w.dtype)])
    return taps.reshape(terms, each, channels, filters)


@lru_cache(maxsize=4096)
def operations(spec: ConvSpec, transform: Transform) -> tuple[int, int]:
    """Multiplications and additions of the products, and of the transforms of input and results.

    The input is transformed once for all the terms of a sum.
    """
    tiles = tiles_of(spec, transform)
    terms, points = transform.terms(spec.window), transform.points
    products = 2 * points * tiles * terms * spec.channels * spec.filters
    elements = math.prod(transform.edges) * spec.channels + math.prod(transform.tile) * spec.filters
    transforms = 2 * points * tiles * elements
    return products, transforms


@lru_cache(maxsize=4096)
def tiles_of(spec: ConvSpec, transform: Transform) -> int:
    """Tiles of all images and slices."""
    lead = math.prod(spec.out_size[: -transform.axes])
    pairs = zip(spec.out_size[-transform.axes :], spec.dilation[-transform.axes :], strict=True)
    return spec.batch * lead * math.prod(math.ceil(n / (d * transform.results)) * d for n, d in pairs)


def is_staged(spec: ConvSpec) -> bool:
    """Whether so few tiles share a large weight that NumPy's threads had better read it only once.

    They then share the products by points, each of all tiles, and not the tiles: 3x3 256 to 256 at dilation 2 on 28x28
    took 0.92 of the time, 512 to 512 on 7x7, N = 8, 0.86.
    """
    transform = transform_for(spec)
    terms, slices = transform.terms(spec.window), math.prod(spec.out_size[: -transform.axes])
    weight = transform.points * terms * spec.channels * spec.filters
    points = transform.points * tiles_of(spec, transform) * (spec.channels + spec.filters)
    return slices == 1 and weight > _LARGE_WEIGHT and points < _STAGED_ELEMENTS
