"""Winograd's minimal filtering F(4x4, 3x3) and F(2x2, 3x3) in NumPy: few large matrix products.

``y = A^T [(G w G^T) * (B^T d B)] A`` on tiles d of the input (Lavin and Gray, 2016, arXiv:1509.09308): 36 products make
16 results of a channel, where the definition takes 144. The transforms are one matrix product each over all tiles of
a block, with the Kronecker square of their matrix: one redundant product takes less time than forty passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from xpconv.spec import Array, ConvSpec

_BLOCK_BYTES = 1 << 24  # of tiles before and after their transforms: with a quarter, a third more time
_SPACE = 2  # axes that are transformed: the last two


class Transform:
    """The matrices of F(m x m, 3 x 3), each squared to serve two axes at once."""

    def __init__(self, filter_: list[list[float]], input_: list[list[float]], output: list[list[float]]) -> None:
        self.filter, self.input, self.output = (np.array(matrix) for matrix in (filter_, input_, output))
        self.results = len(output)  # m
        self.points = len(input_)  # m + 2

    def squared(self, matrix: Array, dtype: np.dtype) -> Array:
        """For tiles whose two axes are flattened into one."""
        return np.kron(matrix, matrix).astype(dtype)


F4 = Transform(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]],
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
)  # fmt: skip
F2 = Transform(
    [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    [[1, 1, 1, 0], [0, 1, -1, -1]],
)


def fits(spec: ConvSpec) -> bool:
    """Whether the last two axes have windows of three at stride 1, and nothing is in groups."""
    last = zip(spec.window[-_SPACE:], spec.stride[-_SPACE:], strict=True)
    plain = not spec.input_dilation and spec.groups == 1 and set(spec.stride) == {1}
    return plain and spec.axes >= _SPACE and all(m == 3 and s == 1 for m, s in last)


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of padded `x` (N, *padded, C) and `w` (*window, C, F).

    Dilated windows read interleaved images, each of which has a plain convolution; axes before the last two are taps
    whose products are added up.
    """
    if spec.flip:
        w = np.flip(w, axis=tuple(range(spec.axes)))
    transform = transform_for(spec)
    y = np.empty((spec.batch, *spec.out_size, spec.filters), x.dtype)
    weight = transformed_weight(w, transform)
    (dilated_down, dilated_across), lead = spec.dilation[-_SPACE:], spec.axes - _SPACE
    for down in range(dilated_down):
        for across in range(dilated_across):
            phase = (*(slice(None),) * (lead + 1), slice(down, None, dilated_down), slice(across, None, dilated_across))
            if 0 not in y[phase].shape:
                _plain(x[phase], weight, y[phase], spec.dilation[:lead], transform, limit)
    return y


def transform_for(spec: ConvSpec) -> Transform:
    """F(4x4, 3x3), or F(2x2, 3x3) where maps are so small that most of a larger tile would be cut off."""
    across = (-(-n // d) for n, d in zip(spec.out_size[-_SPACE:], spec.dilation[-_SPACE:], strict=True))
    return F2 if min(across) <= F2.results else F4


def transformed_weight(w: Array, transform: Transform) -> Array:
    """(*window, C, F) as (points squared, taps of the leading axes, C, F)."""
    *lead, _, _, channels, filters = w.shape
    taps = math.prod(lead)
    w = w.reshape(taps, 9, channels * filters)
    u = transform.squared(transform.filter, w.dtype) @ w
    return np.ascontiguousarray(u.reshape(taps, -1, channels, filters).swapaxes(0, 1))


def _plain(x: Array, weight: Array, y: Array, dilation: tuple[int, ...], transform: Transform, limit: int) -> None:
    """Without dilation in the last two axes: block by block of rows of tiles, in memory that all blocks share."""
    points, _, channels, filters = weight.shape
    places, across = _leading(x, y, dilation), -(-y.shape[-2] // transform.results)
    forward, back = (transform.squared(m, x.dtype) for m in (transform.input, transform.output))
    tile_bytes = _tile_bytes(points, channels, filters, x.dtype.itemsize)
    rows = max(1, min(limit, _BLOCK_BYTES) // (tile_bytes * across))
    memory = _Memory(x.dtype)
    for image, top, bottom in _blocks(y, rows, transform.results):
        results = y[image][..., top:bottom, :, :]
        tiles = -(-(bottom - top) // transform.results), across
        count = math.prod(results.shape[:-3]) * math.prod(tiles)
        total = memory.take("total", (points, count, filters))
        for tap, place in enumerate(places):
            source = memory.take("source", (points, count * channels))
            _cut(x[image][(*place, slice(top, None))], results.shape, tiles, transform, source)
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


def _cut(x: Array, shape: tuple[int, ...], tiles: tuple[int, int], transform: Transform, into: Array) -> None:
    """Overlapping tiles of (..., rows, columns, C) into (points squared, tiles C); zeros beyond the end."""
    edge, step, (down, across) = transform.points, transform.results, tiles
    rows, columns = shape[-3] + 2, shape[-2] + 2
    whole = (down * step + 2, across * step + 2)
    if (rows, columns) != whole:
        padded = np.zeros((*x.shape[:-3], *whole, x.shape[-1]), x.dtype)
        padded[..., :rows, :columns, :] = x[..., :rows, :columns, :]
        x = padded
    *lead, vertical, horizontal, channel = x.strides
    view = np.lib.stride_tricks.as_strided(
        x,
        (edge, edge, *x.shape[:-3], down, across, x.shape[-1]),
        (vertical, horizontal, *lead, vertical * step, horizontal * step, channel),
        writeable=False,
    )
    into.reshape(view.shape)[...] = view


def _untile(parts: Array, y: Array, tiles: tuple[int, int], transform: Transform) -> None:
    """Results of tiles (m m, tiles F) put where they belong; what lies beyond the end is dropped."""
    m, (down, across) = transform.results, tiles
    *lead, rows, columns, filters = y.shape
    parts = np.moveaxis(parts.reshape(m, m, *lead, down, across, filters), (0, 1), (-4, -2))
    if (rows, columns) == (down * m, across * m):
        split = (*y.strides[:-3], y.strides[-3] * m, y.strides[-3], y.strides[-2] * m, y.strides[-2], y.strides[-1])
        np.lib.stride_tricks.as_strided(y, parts.shape, split)[...] = parts
        return
    y[...] = parts.reshape(*lead, down * m, across * m, filters)[..., :rows, :columns, :]


def _tile_bytes(points: int, channels: int, filters: int, itemsize: int) -> int:
    """Of a tile before and after the transform, and of its products, which are added up, and their results."""
    return points * (2 * channels + 3 * filters) * itemsize


def workspace(spec: ConvSpec, itemsize: int, limit: int) -> int:
    """Bytes beside the padded input: the weight transformed, and a block of tiles."""
    transform = transform_for(spec)
    points, taps = transform.points**2, math.prod(spec.window[:-_SPACE])
    tile_bytes = _tile_bytes(points, spec.channels, spec.filters, itemsize)
    row = tile_bytes * -(-spec.out_size[-1] // spec.dilation[-1] // transform.results)
    rows = spec.batch * -(-math.prod(spec.out_size[:-1]) // transform.results)
    weight = points * taps * spec.channels * spec.filters * itemsize
    return 2 * weight + row * min(rows, max(1, min(limit, _BLOCK_BYTES) // max(row, 1)))


@lru_cache(maxsize=4096)
def operations(spec: ConvSpec, transform: Transform) -> tuple[int, int]:
    """Multiplications and additions of the products, and of the transforms of input and results."""
    lead = math.prod(spec.out_size[:-_SPACE])
    pairs = zip(spec.out_size[-_SPACE:], spec.dilation[-_SPACE:], strict=True)
    tiles = spec.batch * lead * math.prod(math.ceil(n / (d * transform.results)) * d for n, d in pairs)
    taps, points = math.prod(spec.window[:-_SPACE]), transform.points**2
    products = 2 * points * tiles * taps * spec.channels * spec.filters
    transforms = 2 * points * tiles * (points * taps * spec.channels + transform.results**2 * spec.filters)
    return products, transforms
