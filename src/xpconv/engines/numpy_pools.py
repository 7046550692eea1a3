"""Poolings by NumPy: small ones in one go, large ones strip by strip, and of large windows axis by axis.

What is prepared is repeated, and computes a first call as well. It is a function of x in the spec's layout, which may
lack axes of one element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from xpconv.cpu import pieces, pool_strips, running, small_pools
from xpconv.cpu.margins import Span
from xpconv.cpu.pieces import Piece
from xpconv.cpu.results import new
from xpconv.dtypes import widened
from xpconv.engines import agnostic, pooled
from xpconv.engines.agnostic import as_layout, channels_last, divisors_of, lowest, pad
from xpconv.plan import Plan
from xpconv.spec import Array, PoolSpec, Sizes
from xpconv.workspace import current_limit

Pooled = Callable[[Array], Array]
MERGED = {"max_pool": np.maximum, "sum_pool": np.add, "avg_pool": np.add}


def pool(operation: str, dtype: Any, spec: PoolSpec, options: dict[str, Any], shape: Sizes | None = None) -> Pooled:
    """A function of x, for maxima, sums and means, whose result has the shape."""
    shape = spec.y_shape if shape is None else shape
    return small(operation, dtype, spec, options, shape) or _large(operation, dtype, spec, options, shape)


def plan(operation: str, x: Array, spec: PoolSpec) -> Plan:
    """What is done with it."""
    if _is_small(x.dtype, spec):
        return Plan("direct", "windows side by side", threads=1)
    reason = "windows along one axis after the other" + (", divided" if operation == "avg_pool" else "")
    if not pool_strips.fits(spec, MERGED[operation]):
        return Plan("direct", reason, threads=1)
    tile, threads = pool_strips.told(spec, _kept(operation, x.dtype).itemsize, current_limit())
    return Plan("direct", reason, tile, threads=threads)


def small(
    operation: str, dtype: Any, spec: PoolSpec, options: dict[str, Any], shape: Sizes | None = None
) -> Pooled | None:
    """The same of small maps; None for anything else."""
    merge, shape = MERGED[operation], spec.y_shape if shape is None else shape
    if not _is_small(dtype, spec):
        return None
    by = divisors(spec, dtype, **options) if operation == "avg_pool" else None
    merged = small_pools.merged(spec, dtype, merge, lowest(np, dtype) if merge is np.maximum else 0)
    if by is None:
        return lambda x: merged(x).reshape(shape)
    if by.ndim:
        by = np.broadcast_to(by if spec.layout == "channels_last" else by[..., 0], spec.y_shape).reshape(-1)

    def averaged(x: Array) -> Array:
        y = merged(x)
        return np.divide(y, by, y).reshape(shape)

    return averaged


def _is_small(dtype: Any, spec: PoolSpec) -> bool:
    return dtype.char in "fd" and small_pools.fits(spec, dtype)


def _large(
    operation: str, dtype: Any, spec: PoolSpec, options: dict[str, Any], shape: Sizes, *, as_summed: bool = False
) -> Pooled:
    """Of maps that take longer than their calls; `as_summed`, in the dtype that sums are kept in."""
    merge = MERGED[operation]
    kept = _kept(operation, dtype)
    made = kept if as_summed else dtype
    fill = lowest(np, dtype) if merge is np.maximum else 0
    by = divisors(spec, kept, **options) if operation == "avg_pool" else None
    most, pads = pieces.share(current_limit()), not pool_strips.fits(spec, merge)
    found = _pieces(spec, dtype.itemsize, kept.itemsize, pads, most)
    if found:
        sums = "max_pool" if merge is np.maximum else "sum_pool"

        def of_piece(x: Array, part: PoolSpec) -> Array:
            return _large(sums, dtype, part, {}, part.y_shape, as_summed=True)(x)

        return lambda x: by_pieces(x.reshape(spec.x_shape), spec, dtype, found, of_piece, fill, by).reshape(shape)
    if pool_strips.fits(spec, merge):
        pooled_into = pool_strips.prepared(spec, kept.itemsize, merge, fill, by, current_limit())

        def by_strips(x: Array) -> Array:
            y = new(spec.y_shape, kept)
            pooled_into(x.reshape(spec.x_shape).astype(kept, copy=False), y)
            return y.astype(made, copy=False).reshape(shape)

        return by_strips

    def by_axes(x: Array) -> Array:
        x = channels_last(x.reshape(spec.x_shape).astype(kept, copy=False), spec.layout)
        y = _merged(pad(x, spec.reading, fill), spec, merge)
        y = y if by is None else np.divide(y, by, out=y)  # in new memory it takes twice as long
        return np.ascontiguousarray(as_layout(y, spec.layout)).astype(made, copy=False).reshape(shape)

    return by_axes


def by_pieces(
    x: Array, spec: PoolSpec, dtype: Any, found: list[Piece], of_piece: Callable[[Array, PoolSpec], Array],
    fill: float, by: Array | None = None,
) -> Array:  # fmt: skip
    """The pooling of x in the spec's layout, piece by piece, divided by what `divisors` gives.

    `fill` is what windows of nothing but padding hold.
    """
    y = new(spec.y_shape, dtype)
    maps, results = channels_last(x, spec.layout), channels_last(y, spec.layout)
    for piece in found:
        there = results[piece.images, *piece.places]
        if (read := pieces.read(spec.reading, piece)) is None:
            made = np.full(there.shape, fill, np.result_type(y, np.float32) if by is not None else y.dtype)
        else:
            spans, part = read
            source = maps[piece.images, *(slice(lo, hi) for lo, hi in spans)]
            made = channels_last(of_piece(as_layout(source, spec.layout), part), spec.layout)
        there[...] = made if by is None else made / (by if by.ndim == 0 else by[piece.places])
    return y


def indexed(x: Array, spec: PoolSpec) -> tuple[Array, Array]:
    """Maxima and their flat positions in the plane, by the reference's comparisons, some results at a time."""

    def held(part: PoolSpec) -> int:
        return math.prod(part.x_shape) * x.itemsize + math.prod(part.y_shape) * (3 * x.itemsize + 3 * _INDEX.itemsize)

    found = pieces_within(spec, held, pieces.share(current_limit()))
    if found is None:
        largest, at = agnostic.max_pool(x, spec, return_indices=True)
        return np.ascontiguousarray(largest), np.ascontiguousarray(at)
    y, indices = new(spec.y_shape, x.dtype), new(spec.y_shape, _INDEX)
    maps, *results = (channels_last(a, spec.layout) for a in (x, y, indices))
    for piece in found:
        made: tuple[Any, Any] = lowest(np, x.dtype), -1  # of windows of nothing but padding
        if (read := pieces.read(spec.reading, piece)) is not None:
            spans, part = read
            source = maps[piece.images, *(slice(lo, hi) for lo, hi in spans)]
            last = replace(part, layout="channels_last")
            largest, at = agnostic.max_pool(source, last, return_indices=True)
            made = largest, _in_plane(at, part.size, spans, spec.size)
        for result, values in zip(results, made, strict=True):
            result[piece.images, *piece.places] = values
    return y, indices


_INDEX = np.dtype(np.int64)


def _in_plane(indices: Array, size: Sizes, spans: list[Span], plane: Sizes) -> Array:
    """Flat positions in a part of a plane as those in the plane; -1 stays."""
    places = np.unravel_index(np.maximum(indices, 0), size)
    moved = tuple(place + lo for place, (lo, _) in zip(places, spans, strict=True))
    return np.where(indices < 0, -1, np.ravel_multi_index(moved, plane))


@lru_cache(maxsize=256)
def _pieces(spec: PoolSpec, given: int, summed: int, pads: bool, limit: int) -> list[Piece] | None:
    """Where a copy of the input in the dtype of sums is made, or one that is padded and merged axis by axis."""

    def held(part: PoolSpec) -> int:
        read, made = math.prod(part.x_shape), math.prod(part.y_shape)
        return ((read if given != summed else 0) + (3 * read if pads else 0) + made) * summed

    return pieces_within(spec, held, limit) if pads or given != summed else None


def pieces_within(spec: PoolSpec, held: Callable[[PoolSpec], int], limit: int) -> list[Piece] | None:
    """The pieces of a pooling that holds more than the limit; None of one that does not."""
    return None if 0 in (*spec.x_shape, *spec.y_shape) else pieces.cut(spec, held, limit)


def _kept(operation: str, dtype: Any) -> Any:
    """What maxima, or sums, are kept in."""
    return dtype if MERGED[operation] is np.maximum else widened(np.empty(0, dtype)).dtype


def _merged(x: Array, spec: PoolSpec, merge: np.ufunc) -> Array:
    """Padded `x` with the elements of every window merged: those of one axis after those of the other."""
    geometry = zip(spec.window, spec.dilation, spec.stride, spec.out_size, strict=True)
    for axis, (size, step, stride, results) in enumerate(geometry, start=1):
        x = running.merged_windows(x, size, step, stride, axis, merge, current_limit())
        x = x[(*(slice(None),) * axis, slice(results))]  # windows that begin beyond the end are none
    return x


def divisors(spec: PoolSpec, dtype: Any, *, count_include_pad: bool, divisor: float | None) -> Array:
    """What the sums of windows are divided by, (*out, 1), or without axes where all share it."""
    shared = pooled.shared_divisor(spec, count_include_pad, divisor)
    if shared is not None:
        return np.array(shared, dtype)
    return divisors_of(np.empty(0, dtype), replace(spec, layout="channels_last"), count_include_pad)
