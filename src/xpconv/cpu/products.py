"""Matrix products in NumPy that BLAS computes on the thread that asks, one after another in a single call.

`numpy.matmul` of stacks of matrices calls BLAS for each of them, without the interpreter lock. OpenBLAS shares what has
more than `SINGLE` multiplications among threads; below, its kernels for small matrices read both where they lie, and
reached 230 to 250 of the 237 GFLOP/s of a core that a whole product reached (AMD Zen 5), in two threads 400 to 418.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from xpconv.spec import Array

SINGLE = 1 << 18  # multiplications of one call that OpenBLAS leaves to one thread
_FILTERS = 64  # of a panel: with 16, half the speed
_FEWEST = 8  # rows of a product, unless panels are narrowed to _NARROWEST for them
_NARROWEST = 16


def panel_widths(length: int, filters: int) -> list[tuple[slice, int]]:
    """Filters that panels of one width make, and the width; those that are left over make one of their own."""
    width = max(min(_FILTERS, filters), 1)
    while width > _NARROWEST and length * width * _FEWEST > SINGLE:
        width //= 2
    whole = filters // width * width
    return [(slice(0, whole), width), (slice(whole, filters), filters - whole)][: 1 + (whole < filters)]


def multiply(a: Array, weight: list[tuple[slice, Array]], out: Array) -> None:
    """Matrices `a` (..., rows, k) times a weight, into `out` (..., rows, F); rows of both may lie apart.

    The weight is panels (..., panels, k, width) and the filters that they make.
    """
    rows, length = a.shape[-2:]
    for columns, panel in weight:
        width = panel.shape[-1]
        parts = -(-rows // max(1, SINGLE // max(length * width, 1)))
        each = -(-rows // parts) if parts else 0
        whole = rows // each * each if each else 0
        for begin, end, size in ((0, whole, each), (whole, rows, rows - whole)):
            if end > begin:
                some = _by_rows(a[..., begin:end, :], size)[..., np.newaxis, :, :, :]
                np.matmul(some, panel[..., np.newaxis, :, :], out=_by_panels(out[..., begin:end, columns], size, width))


def transform(matrix: Array, x: Array, out: Array) -> None:
    """A small matrix times all of `x` (..., points, columns), some columns at a time."""
    some = max(1, SINGLE // matrix.size)
    some -= some % 16 if some > 16 else 0
    for begin in range(0, x.shape[-1], some):
        np.matmul(matrix, x[..., begin : begin + some], out=out[..., begin : begin + some])


def _by_rows(a: Array, size: int) -> Array:
    """A view (..., rows, k) as (..., parts, size, k)."""
    *lead, step, element = a.strides
    shape = (*a.shape[:-2], a.shape[-2] // size, size, a.shape[-1])
    return np.lib.stride_tricks.as_strided(a, shape, (*lead, step * size, step, element))


def _by_panels(out: Array, size: int, width: int) -> Array:
    """A view (..., rows, filters) as (..., panels, parts, size, width)."""
    *lead, step, element = out.strides
    shape = (*out.shape[:-2], out.shape[-1] // width, out.shape[-2] // size, size, width)
    return np.lib.stride_tricks.as_strided(out, shape, (*lead, element * width, step * size, step, element))


class Memory:
    """Arrays that are used again, also by later calls: a fresh one costs more in page faults than what is done in it.

    3x3 64->64 on 56x56 took 0.89 ms in fresh arrays where it took 0.21 in these.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """An array of that shape, of what the last of that name had if that is enough."""
        size = math.prod(shape)
        held = self._arrays.get(name)
        if held is None or held.nbytes < size * dtype.itemsize:
            held = self._arrays[name] = np.empty(-(-size * dtype.itemsize // 8), np.uint64)
        return held.view(dtype)[:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(held.nbytes for held in self._arrays.values())


@contextmanager
def memory(purpose: str) -> Iterator[Memory]:
    """This thread's for a purpose, of which little is kept."""
    mine: Memory = getattr(_kept, purpose, None) or Memory()
    setattr(_kept, purpose, None)  # a call in a call has its own
    yield mine
    if mine.nbytes <= KEPT_BYTES:
        setattr(_kept, purpose, mine)


_kept = threading.local()
KEPT_BYTES = 12 << 20
