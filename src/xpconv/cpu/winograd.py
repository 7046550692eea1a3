"""Winograd's minimal filtering F(4x4, 3x3), F(2x2, 3x3) and F(3, 3) in NumPy: few large matrix products.

``y = A^T [(G w G^T) * (B^T d B)] A`` on tiles d of the input (Lavin and Gray, 2016, arXiv:1509.09308): 36 products make
16 results of a channel, where the definition takes 144. The transforms are one matrix product each over all tiles of
a block, with the Kronecker square of their matrix: one redundant product takes less time than forty passes.

Signals are images one element wide, whose tiles have one axis: 5 products make 3 results of 3 taps. Longer windows are
sums of windows of three, which read one tile further each; the compiled kernels take nine taps at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from xpconv.spec import Array, ConvSpec, Sizes

_BLOCK_BYTES = 1 << 24  # of tiles before and after their transforms: with a quarter, a third more time
_SPACE = 2  # axes of an image: the last two
_TAPS = 3  # that a tile's windows have along an axis


Rows: TypeAlias = Sequence[Sequence[float]]  # of a matrix


class Transform:
    """The matrices of F(m, 3) for tiles of one axis, or squared to serve two axes at once.

    A signal, `folded`, is an image to squared matrices: its rows begin three elements after each other, so that three
    rows of three taps are nine taps in a row, and three rows of three results nine results.
    """

    def __init__(self, axes: int, filter_: Rows, input_: Rows, output: Rows, *, folded: bool = False) -> None:
        self.filter, self.input, self.output = (np.array(matrix) for matrix in (filter_, input_, output))
        results, edge = len(output), len(input_)  # m, m + 2
        self.axes, self.squared = axes, folded or axes == _SPACE
        self.fold = results if folded else 0  # elements from one row of a folded signal to the next
        self.values = (edge, edge if self.squared else 1)  # rows and columns that are transformed
        self.points = math.prod(self.values)
        self.results, self.taps = (results**2, _TAPS**2) if folded else (results, _TAPS)  # of a tile, along an axis
        still = (1,) * (_SPACE - axes)  # tiles of signals are one element wide
        self.tile = (self.results,) * axes + still  # rows and columns of results
        self.edges = (self.results + self.taps - 1,) * axes + still  # and of what they are made from

    def flattened(self, matrix: Array, dtype: np.dtype) -> Array:
        """For tiles whose axes are one."""
        return (np.kron(matrix, matrix) if self.squared else matrix).astype(dtype)

    def terms(self, window: Sizes) -> int:
        """Windows of three taps, three by three or nine, that a window is the sum of."""
        return -(-math.prod(window) // self.taps**self.axes)


F4 = Transform(
    2,
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]],
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
)  # fmt: skip
F2 = Transform(
    2,
    [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    [[1, 1, 1, 0], [0, 1, -1, -1]],
)
_OF_THREE: tuple[Rows, Rows, Rows] = (  # at 0, 1, -1, 2 and infinity
    [[1 / 2, 0, 0], [-1 / 2, -1 / 2, -1 / 2], [-1 / 6, 1 / 6, -1 / 6], [1 / 6, 1 / 3, 2 / 3], [0, 0, 1]],
    [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]],
    [[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 1]],
)
F3 = Transform(1, *_OF_THREE)
F9 = Transform(1, *_OF_THREE, folded=True)  # 25 products, where nine taps by F3 take 45


def fits(spec: ConvSpec) -> bool:
    """Whether windows are of three on the last two axes, or of at least three on the only one, at stride 1."""
    plain = not spec.input_dilation and spec.groups == 1 and set(spec.stride) == {1}
    long = spec.window[0] >= _TAPS if spec.axes == 1 else spec.window[-_SPACE:] == (_TAPS, _TAPS)
    return plain and long


def as_images(spec: ConvSpec) -> ConvSpec:
    """Signals as images that are one element wide; what has more axes as it is."""
    if spec.axes >= _SPACE:
        return spec
    size, window, stride, dilation = ((*of, 1) for of in (spec.size, spec.window, spec.stride, spec.dilation))
    padding = (*spec.padding, (0, 0))
    return replace(spec, size=size, window=window, stride=stride, dilation=dilation, padding=padding)


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of padded `x` (N, *padded, C) and `w` (*window, C, F).

    Dilated windows read interleaved images, each of which has a plain convolution; axes before the last two are taps
    whose products are added up.
    """
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    transform, shape = transform_for(spec), (spec.batch, *spec.out_size, spec.filters)
    weight = transformed_weight(w, transform)
    if spec.axes == 1:
        x, spec = x[:, :, None], as_images(spec)
    y = np.empty((spec.batch, *spec.out_size, spec.filters), x.dtype)
    (dilated_down, dilated_across), lead = spec.dilation[-_SPACE:], spec.axes - _SPACE
    for down in range(dilated_down):
        for across in range(dilated_across):
            phase = (*(slice(None),) * (lead + 1), slice(down, None, dilated_down), slice(across, None, dilated_across))
            if 0 not in y[phase].shape:
                _plain(x[phase], weight, y[phase], spec.dilation[:lead], transform, limit)
    return y.reshape(shape)


def transform_for(spec: ConvSpec) -> Transform:
    """F(3, 3) of signals; F(4x4, 3x3), or F(2x2, 3x3) of maps so small that most of a larger tile would be cut off."""
    if spec.axes == 1:
        return F3
    across = (-(-n // d) for n, d in zip(spec.out_size[-_SPACE:], spec.dilation[-_SPACE:], strict=True))
    return F2 if min(across) <= F2.results else F4


@lru_cache(maxsize=4096)
def compiled_for(spec: ConvSpec) -> Transform:
    """That of the compiled kernels: of signals F(3, 3), folded where there are more taps, of images F(4x4, 3x3).

    Where so few tiles share a weight that reading it takes longer than to multiply it, F(2x2, 3x3), whose transformed
    weight is less than half as large.
    """
    if spec.axes == 1:
        return F3 if spec.window[0] <= _TAPS else F9
    weight = F4.points * F4.terms(spec.window) * spec.channels * spec.filters
    products, _ = operations(spec, F4)
    return F2 if weight > _FAR and products < 2 * _SHARED * weight else F4


_FAR = 1 << 22  # elements of a weight that are read from memory at every call
_SHARED = 8  # tiles


def transformed_weight(w: Array, transform: Transform) -> Array:
    """(*window, C, F) as (points, windows of three that are added up, C, F), the last filled up with zeros."""
    *window, channels, filters = w.shape
    terms, each = transform.terms(tuple(window)), transform.taps**transform.axes
    taps = w.reshape(-1, channels * filters)
    if missing := terms * each - len(taps):
        taps = np.concatenate([taps, np.zeros((missing, channels * filters), w.dtype)])
    u = transform.flattened(transform.filter, w.dtype) @ taps.reshape(terms, each, channels * filters)
    return np.ascontiguousarray(u.reshape(terms, -1, channels, filters).swapaxes(0, 1))


def _plain(x: Array, weight: Array, y: Array, dilation: tuple[int, ...], transform: Transform, limit: int) -> None:
    """Without dilation in the last two axes: block by block of rows of tiles, in memory that all blocks share."""
    points, terms, channels, filters = weight.shape
    leading, across = _leading(x, y, dilation), -(-y.shape[-2] // transform.tile[1])
    places = [(place, _TAPS * further) for place in leading for further in range(terms // len(leading))]
    forward, back = (transform.flattened(m, x.dtype) for m in (transform.input, transform.output))
    tile_bytes = _tile_bytes(points, channels, filters, x.dtype.itemsize)
    rows = max(1, min(limit, _BLOCK_BYTES) // (tile_bytes * across))
    memory = _Memory(x.dtype)
    for image, top, bottom in _blocks(y, rows, transform.results):
        results = y[image][..., top:bottom, :, :]
        tiles = -(-(bottom - top) // transform.results), across
        count = math.prod(results.shape[:-3]) * math.prod(tiles)
        total = memory.take("total", (points, count, filters))
        for tap, (place, further) in enumerate(places):
            source = memory.take("source", (points, count * channels))
            _cut(x[image][(*place, slice(top + further, None))], tiles, transform, source)
            spectrum = np.matmul(forward, source, out=memory.take("spectrum", source.shape))
            spectrum = spectrum.reshape(points, count, channels)
            product = np.matmul(spectrum, weight[:, tap], out=total if tap == 0 else memory.take("more", total.shape))
            total = total if tap == 0 else np.add(total, product, out=total)
        parts = memory.take("parts", (len(back), count * filters))
        _untile(np.matmul(back, total.reshape(points, -1), out=parts), results, tiles, transform)


class _Memory:
    """Arrays that are used again: a fresh one costs as much in page faults as what is computed in it."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        """An array of that shape, of what the last of that name had if that is enough."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, self._dtype)
        return self._arrays[name][:size].reshape(shape)


def _leading(x: Array, y: Array, dilation: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """For each tap of the leading axes the places of `x`, images first, that it reads."""
    sizes = y.shape[1 : 1 + len(dilation)]
    counts = [(n - out) // d + 1 for n, out, d in zip(x.shape[1:], sizes, dilation, strict=False)]
    return [
        (slice(None), *(slice(k * d, k * d + n) for k, d, n in zip(tap, dilation, sizes, strict=True)))
        for tap in np.ndindex(*counts)
    ]


def _blocks(y: Array, rows: int, results: int) -> Iterator[tuple[slice, int, int]]:
    """Images and rows of results: several whole images, or some rows of tiles of each."""
    height = y.shape[-3]
    tile_rows = -(-height // results) * math.prod(y.shape[1:-3])
    if rows >= tile_rows:
        images = rows // tile_rows
        for n in range(0, len(y), images):
            yield slice(n, n + images), 0, height
        return
    step = max(1, rows // math.prod(y.shape[1:-3])) * results
    for n in range(len(y)):
        for top in range(0, height, step):
            yield slice(n, n + 1), top, min(top + step, height)


def _cut(x: Array, tiles: tuple[int, int], transform: Transform, into: Array) -> None:
    """Overlapping tiles of (..., rows, columns, C) into (points, tiles C); zeros beyond the end."""
    (edge_down, edge_across), (step_down, step_across), (down, across) = transform.edges, transform.tile, tiles
    whole = ((down - 1) * step_down + edge_down, (across - 1) * step_across + edge_across)
    x = x[..., : whole[0], : whole[1], :]
    rows, columns = x.shape[-3:-1]
    if (rows, columns) != whole:
        padded = np.zeros((*x.shape[:-3], *whole, x.shape[-1]), x.dtype)
        padded[..., :rows, :columns, :] = x
        x = padded
    *lead, vertical, horizontal, channel = x.strides
    view = np.lib.stride_tricks.as_strided(
        x,
        (edge_down, edge_across, *x.shape[:-3], down, across, x.shape[-1]),
        (vertical, horizontal, *lead, vertical * step_down, horizontal * step_across, channel),
        writeable=False,
    )
    into.reshape(view.shape)[...] = view


def _untile(parts: Array, y: Array, tiles: tuple[int, int], transform: Transform) -> None:
    """Results of tiles (m m, tiles F) put where they belong; what lies beyond the end is dropped."""
    (tall, wide), (down, across) = transform.tile, tiles
    *lead, rows, columns, filters = y.shape
    parts = np.moveaxis(parts.reshape(tall, wide, *lead, down, across, filters), (0, 1), (-4, -2))
    if (rows, columns) == (down * tall, across * wide):
        vertical, horizontal = y.strides[-3:-1]
        split = (*y.strides[:-3], vertical * tall, vertical, horizontal * wide, horizontal, y.strides[-1])
        np.lib.stride_tricks.as_strided(y, parts.shape, split)[...] = parts
        return
    y[...] = parts.reshape(*lead, down * tall, across * wide, filters)[..., :rows, :columns, :]


def _tile_bytes(points: int, channels: int, filters: int, itemsize: int) -> int:
    """Of a tile before and after the transform, and of its products, which are added up, and their results."""
    return points * (2 * channels + 3 * filters) * itemsize


def workspace(spec: ConvSpec, itemsize: int, limit: int) -> int:
    """Bytes beside the padded input: the weight transformed, and a block of tiles."""
    transform, images = transform_for(spec), as_images(spec)
    tile_bytes = _tile_bytes(transform.points, spec.channels, spec.filters, itemsize)
    row = tile_bytes * -(-images.out_size[-1] // images.dilation[-1] // transform.tile[1])
    rows = spec.batch * -(-math.prod(images.out_size[:-1]) // transform.results)
    weight = transform.points * transform.terms(spec.window) * spec.channels * spec.filters * itemsize
    return 2 * weight + row * min(rows, max(1, min(limit, _BLOCK_BYTES) // max(row, 1)))


@lru_cache(maxsize=4096)
def operations(spec: ConvSpec, transform: Transform) -> tuple[int, int]:
    """Multiplications and additions of the products, and of the transforms of input and results."""
    lead = math.prod(spec.out_size[: -transform.axes])
    pairs = zip(spec.out_size[-transform.axes :], spec.dilation[-transform.axes :], strict=True)
    tiles = spec.batch * lead * math.prod(math.ceil(n / (d * transform.results)) * d for n, d in pairs)
    terms, points = transform.terms(spec.window), transform.points
    products = 2 * points * tiles * terms * spec.channels * spec.filters
    transforms = 2 * points * tiles * (points * terms * spec.channels + math.prod(transform.tile) * spec.filters)
    return products, transforms
