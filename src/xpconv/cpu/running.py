"""Windows along one axis merged by doubling: those of 2 m elements are two of m elements, m apart.

A window of m takes about log2(m) passes where merging tap by tap takes m. No digit is lost: sums are those of a tree,
and a maximum is NaN where its window holds one. The running maximum of van Herk (1992) and of Gil and Werman (1993)
makes three comparisons an element for any window, but NumPy accumulates 0.1 elements a nanosecond and merges 5 to 10:
of 1e6 samples in float32 windows of 3 to 101 took it 9 to 21 ms, doubling 0.2 to 0.9, tap by tap 0.3 to 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np

from xpconv.spec import Array

Index: TypeAlias = tuple[slice, ...]

_ARRAYS = 4  # of a block, held at a time
_BLOCK_BYTES = 1 << 22  # of elements and partial windows: with an eighth, half as much time again


def merged_windows(x: Array, size: int, step: int, stride: int, axis: int, merge: np.ufunc, limit: int) -> Array:
    """`x` with `size` elements `step` apart merged, from every `stride`-th on, along one axis; as `x` lies in memory.

    An `x` with gaps in memory is copied first, else partial windows stay below `limit` bytes.
    """
    if not pays(x.shape[axis], size, step, stride, merge):
        n = x.shape[axis]
        return merged_taps(x, taps_of(n, _results_of(n, size, step, stride), size, step, stride, axis), merge, 0)
    order = sorted(range(x.ndim), key=lambda a: -x.strides[a])
    back, axis = sorted(range(x.ndim), key=order.__getitem__), order.index(axis)
    x = np.ascontiguousarray(x.transpose(order))
    *before, n = x.shape[: axis + 1]
    reach, after = (size - 1) * step + 1, x.shape[axis + 1 :]
    y = np.empty((*before, _results_of(n, size, step, stride), *after), x.dtype)
    source, results = (a.reshape(math.prod(before), a.shape[axis], math.prod(after)) for a in (x, y))
    for outer, here in _blocks(source, results.shape[1], reach, stride, limit):
        elements = source[outer, here.start * stride : (here.stop - 1) * stride + reach]
        _doubled(elements, size, step, stride, merge, results[outer, here])
    return y.transpose(back)


def pays(n: int, size: int, step: int, stride: int, merge: np.ufunc) -> bool:
    """Whether doubling, whose passes are over all n elements of an axis, merges fewer than the taps of all results."""
    passes = (size - 1).bit_length() + len(_parts(size, merge)) - 2
    return size > 1 and passes * n < (size - 1) * _results_of(n, size, step, stride)


def _results_of(n: int, size: int, step: int, stride: int) -> int:
    """Windows on an axis of n elements."""
    return (n - (size - 1) * step - 1) // stride + 1


class Taps(NamedTuple):
    """What windows along one axis read, by taps: those that all of them have, and those that some of them have."""

    results: int
    axis: int
    whole: list[Index]
    partial: list[tuple[Index, Index]]  # the results, and what they read

    def merged_shape(self, x: Array) -> tuple[int, ...]:
        """Of what the windows of `x` make."""
        return *x.shape[: self.axis], self.results, *x.shape[self.axis + 1 :]


def taps_of(n: int, results: int, size: int, step: int, stride: int, axis: int, first: int = 0) -> Taps:
    """Those of so many windows, of which the first begins at an element that may lie before or beyond the n."""
    lead, taps = (slice(None),) * axis, Taps(results, axis, [], [])
    for offset in range(first, first + size * step, step):
        begin, stop = max(0, -(offset // stride)), min(results, (n - 1 - offset) // stride + 1)
        if begin < stop:
            read = (*lead, slice(offset + begin * stride, offset + (stop - 1) * stride + 1, stride))
            if stop - begin == results:
                taps.whole.append(read)
            else:
                taps.partial.append(((*lead, slice(begin, stop)), read))
    return taps


def merged_taps(x: Array, taps: Taps, merge: np.ufunc, fill: float, out: Array | None = None) -> Array:
    """Every result merged with one element of its window after the other, in place; `fill` where there are none."""
    if len(taps.whole) > 1:
        y = merge(x[taps.whole[0]], x[taps.whole[1]], out=out)
    elif out is None:
        y = x[taps.whole[0]].copy(order="K") if taps.whole else np.full(taps.merged_shape(x), fill, x.dtype)
    else:
        y = out
        y[...] = x[taps.whole[0]] if taps.whole else fill
    for read in taps.whole[2:]:
        merge(y, x[read], out=y)
    for place, read in taps.partial:
        here = y[place]
        merge(here, x[read], out=here)
    return y


def _parts(size: int, merge: np.ufunc) -> list[tuple[int, int]]:
    """Windows of powers of two, (elements, begin), that make up one of `size`; those of a maximum overlap."""
    half = 1 << max((size - 1).bit_length() - 1, 0)
    if merge in (np.maximum, np.minimum) or size == 2 * half:
        return [(half, 0), (half, size - half)]
    lengths = [1 << bit for bit in range(size.bit_length()) if size >> bit & 1]
    return [(length, sum(lengths[:k])) for k, length in enumerate(lengths)]


def _doubled(x: Array, size: int, step: int, stride: int, merge: np.ufunc, out: Array) -> None:
    """Contiguous `x` (outer, n, inner) into `out` (outer, results, inner).

    Passes run over the block as over one row, which takes a fraction of the time of many short ones; what they make
    across the ends of rows is not read.
    """
    parts = _parts(size, merge)
    merged = _merged_parts(x.reshape(-1), parts, x.shape[-1] * step, merge)
    with np.errstate(over="ignore", invalid="ignore"):
        total = reduce(lambda some, more: merge(some[: len(more)], more), islice(merged, len(parts) - 1))
        merge(_every(total, x.shape, stride, out.shape), _every(next(merged), x.shape, stride, out.shape), out=out)


def _merged_parts(windows: Array, parts: list[tuple[int, int]], element: int, merge: np.ufunc) -> Iterator[Array]:
    """Of every window of flat elements its parts, one after the other; each length is made of two of half of it."""
    length = 1
    for wanted, begin in parts:
        while length < wanted:
            apart = length * element
            windows, length = merge(windows[:-apart], windows[apart:]), 2 * length
        yield windows[begin * element :]


def _every(partial: Array, shape: tuple[int, ...], stride: int, results: tuple[int, ...]) -> Array:
    """The windows of flat (outer, n, inner) that begin at every `stride`-th of n."""
    _, n, inner = shape
    strides = (n * inner * partial.itemsize, stride * inner * partial.itemsize, partial.itemsize)
    return np.lib.stride_tricks.as_strided(partial, results, strides, writeable=False)


def _blocks(x: Array, results: int, reach: int, stride: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Rows and results of (outer, n, inner) whose partial windows stay close: whole rows, or part of one."""
    outer, n, inner = x.shape
    row, element, close = _ARRAYS * n * inner * x.itemsize, _ARRAYS * inner * x.itemsize, min(limit, _BLOCK_BYTES)
    if row <= close:
        rows = close // max(row, 1)
        yield from ((slice(k, k + rows), slice(0, results)) for k in range(0, outer, rows))
        return

    def results_within(nbytes: int) -> int:
        return (nbytes // element - reach) // stride + 1

    some = max(results_within(close), min(results_within(limit), 4 * reach // stride), 1)
    for k in range(outer):
        yield from ((slice(k, k + 1), slice(r, min(r + some, results))) for r in range(0, results, some))
