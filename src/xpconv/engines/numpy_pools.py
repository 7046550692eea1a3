"""Poolings by NumPy: small ones in one go, large ones strip by strip, and of large windows axis by axis.

What is prepared is repeated, and computes a first call as well. It is a function of x in the spec's layout, which may
lack axes of one element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xpconv.cpu import pool_strips, running, small_pools
from xpconv.cpu.results import new
from xpconv.dtypes import widened
from xpconv.engines import pooled
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


def _large(operation: str, dtype: Any, spec: PoolSpec, options: dict[str, Any], shape: Sizes) -> Pooled:
    merge = MERGED[operation]
    kept = _kept(operation, dtype)
    fill = lowest(np, dtype) if merge is np.maximum else 0
    by = divisors(spec, kept, **options) if operation == "avg_pool" else None
    if pool_strips.fits(spec, merge):
        pooled_into = pool_strips.prepared(spec, kept.itemsize, merge, fill, by, current_limit())

        def by_strips(x: Array) -> Array:
            y = new(spec.y_shape, kept)
            pooled_into(x.reshape(spec.x_shape).astype(kept, copy=False), y)
            return y.astype(dtype, copy=False).reshape(shape)

        return by_strips

    def by_axes(x: Array) -> Array:
        x = channels_last(x.reshape(spec.x_shape).astype(kept, copy=False), spec.layout)
        y = _merged(pad(x, spec.reading, fill), spec, merge)
        y = y if by is None else np.divide(y, by, out=y)  # in new memory it takes twice as long
        return np.ascontiguousarray(as_layout(y, spec.layout)).astype(dtype, copy=False).reshape(shape)

    return by_axes


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
