"""Filters that are sums of few products of filters of one axis each: a pass along every axis for each product.

Gaussians, boxes, Sobel's and Scharr's filters are one such product; a singular value decomposition finds those that
are two or three (Treitel and Shanks, 1971), whatever their name.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from xpconv.cpu import banded, planes
from xpconv.cpu.memory import Memory
from xpconv.spec import Array, ConvSpec

Factors: TypeAlias = list[tuple[Array, ...]]  # of every product the taps (C, m) of each axis

_FEWEST_ROWS = 32  # of a block, where the limit of memory lets it: products of few rows take twice as long
_CANCELLED = 4  # times the kernel's absolute sum that the products' may be: their rounding grows with it
_FRACTIONS = 2.0**20  # kernels of whole multiples of its reciprocal have exact factors


def factors(w: Array, spec: ConvSpec) -> Factors | None:
    """The weight (*window, 1, C) as the fewest products that leave out no more than its dtype's rounding.

    None where there are more than `_most_products`, where a tap is not finite, and where large products cancel.
    """
    if spec.axes < 2 or w.dtype.char not in "fdFD" or not np.isfinite(w).all():
        return None
    kernel = planes.offsets_first(w, spec).astype(np.result_type(w.dtype, np.float64))
    most, left_out = _most_products(spec), float(2 * np.finfo(w.dtype).eps + 16 * np.finfo(np.float64).eps)
    if _products(kernel[:1], most, left_out) is None:  # most kernels have none, which the first channel tells
        return None
    products = _products(kernel, most, left_out)
    if products is None or not _mild(products, kernel):
        return None
    return [tuple(taps.astype(w.dtype) for taps in product) for product in products]


def _most_products(spec: ConvSpec) -> int:
    """Products that take less time than `signals.conv` does: one for every three rows of a window."""
    return max(min(spec.window) // 3, 1)


def _products(kernel: Array, most: int, left_out: float) -> Factors | None:
    """Kernels (C, *window) as sums of products of taps (C, m), axis after axis; None for more than `most`."""
    if kernel.ndim == 2:
        return [(kernel,)]
    channels, height, *rest = kernel.shape
    products: Factors = []
    for taps, others in _pairs(kernel.reshape(channels, height, math.prod(rest)), most, left_out):
        tails = _products(others.reshape(channels, *rest), most - len(products), left_out)
        if tails is None:
            return None
        products += [(taps, *tail) for tail in tails]
    return products or None


def _pairs(matrices: Array, most: int, left_out: float) -> list[tuple[Array, Array]]:
    """Matrices (C, m, n) as sums of outer products of (C, m) and (C, n); none where they would be more than `most`."""
    if most and (exact := _exact_pair(matrices)):
        return [exact]
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    beyond = np.sqrt(np.cumsum(values[:, ::-1] ** 2, axis=1))[:, ::-1]  # what the products from each on make up
    rank = int((beyond > left_out * beyond[:, :1]).sum(axis=1).max())
    if rank > most:
        return []
    sums = np.abs(left).sum(axis=1, keepdims=True)  # taps that average: no sum of theirs is larger than the input
    left, right = left / sums, right * (values * sums[:, 0])[..., np.newaxis]
    return [(left[..., k], right[:, k]) for k in range(rank)]


def _exact_pair(matrices: Array) -> tuple[Array, Array] | None:
    """The factors of outer products of whole numbers, or of such fractions, without rounding; None for others."""
    scaled = matrices * _FRACTIONS
    if np.iscomplexobj(scaled) or not (np.abs(scaled) < 2**53).all() or (scaled != np.rint(scaled)).any():
        return None
    whole, every = scaled.astype(np.int64), np.arange(len(scaled))
    column = whole[every, :, np.abs(scaled).max(axis=1).argmax(axis=1)]
    taps = column // np.maximum(np.gcd.reduce(column, axis=1, keepdims=True), 1)
    row = np.abs(taps).argmax(axis=1)
    others = whole[every, row] // np.where(taps[every, row], taps[every, row], 1)[:, np.newaxis]
    if (taps[:, :, np.newaxis] * others[:, np.newaxis] != whole).any():
        return None
    return taps.astype(scaled.dtype), others / _FRACTIONS


def _mild(products: Factors, kernel: Array) -> bool:
    """Whether the products' terms are not much larger than the kernel's own, which they would cancel to."""
    terms = sum(np.prod([np.abs(taps).sum(axis=1) for taps in product], axis=0) for product in products)
    return bool((terms <= _CANCELLED * np.abs(kernel).reshape(len(kernel), -1).sum(axis=1)).all())


def conv(x: Array, w: Array, factors: Factors, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, C) of `x` (N, *size, C), around which there are zeros; `w` where not all is finite."""
    bands = [_bands(product, spec) for product in factors]

    def filtered(source: Array, channels: slice, out: Array, memory: Memory) -> None:
        source = source.reshape(*source.shape[:3], math.prod(source.shape[3:]))
        for k, product in enumerate(bands):
            part = memory.take("part", out.shape, out.dtype) if k else out
            _passes(source, [band[channels] for band in product], spec, part, memory)
            if k:
                out += part

    rows = _rows(spec, x.dtype.itemsize, len(factors))
    return planes.by_blocks(x, w, spec, limit, rows, filtered)


def _bands(product: tuple[Array, ...], spec: ConvSpec) -> list[Array]:
    """The banded matrices of a product: along the last axis rows times a matrix, else a matrix times columns."""
    axes = zip(product, spec.out_size, spec.stride, spec.dilation, strict=True)
    kinds = (banded.column_band,) * (spec.axes - 1) + (banded.row_band,)
    return [band(*geometry) for band, geometry in zip(kinds, axes, strict=True)]


def _passes(x: Array, bands: list[Array], spec: ConvSpec, out: Array, memory: Memory) -> None:
    """A block of rows (N, C, n, elements of a row) filtered along every axis in turn."""
    images, channels, *sizes = out.shape
    for axis, band in enumerate(bands[:-1]):
        before, after = math.prod(sizes[:axis]), math.prod(spec.padded_size[axis + 1 :])
        y = memory.take(f"pass {axis}", (images, channels, before, sizes[axis], after), out.dtype)
        banded.down(x.reshape(images, channels, before, -1, after), band, spec.stride[axis], y)
        x = y
    rows = images, channels, math.prod(sizes[:-1])
    banded.across(x.reshape(*rows, -1), bands[-1], spec.stride[-1], out.reshape(*rows, sizes[-1]))


def _rows(spec: ConvSpec, itemsize: int, products: int) -> planes.Rows:
    """Of a block a row of the input, and a row of what the passes leave, of results and of a tap's products."""
    read, results = math.prod(spec.padded_size[1:]), math.prod(spec.out_size[1:])
    passes = sum(math.prod(spec.out_size[1:axis] + spec.padded_size[axis:]) for axis in range(1, spec.axes + 1))
    return planes.Rows(read * itemsize, (passes + results * (1 + (products > 1))) * itemsize, _FEWEST_ROWS)
