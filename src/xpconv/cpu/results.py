"""Memory for results: a large one takes that of an earlier result which nobody holds any more.

The system clears what it hands out, and takes back what is large as soon as it is freed: a result of 103 MB (3x3 3->64
at 224x224, N = 8) took 7.0 ms in new memory and 4.0 in memory that had been written before. What is kept meanwhile is
the system's for the asking (madvise, MADV_FREE), which costs 0.06 ms.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from xpconv.cpu.lines import lined
from xpconv.spec import Array, Sizes
from xpconv.workspace import current_limit

_LARGE = 1 << 20  # bytes of a result that may be stored so
_MAPPED = 1 << 25  # bytes from which glibc's malloc always asks the system
_PAGE = 1 << 21  # bytes of a huge page
_KEPT_LIMITS = 4  # times the workspace limit that a result which is kept takes at most

_kept: deque[mmap.mmap] = deque(maxlen=2)  # what layers of one size write in turn; its methods need no lock


def new(shape: Sizes, dtype: np.dtype) -> Array:
    """Memory for a result, its values undefined; a large one begins with a line of the caches."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _LARGE:
        return np.empty(shape, dtype)
    if _MAPPED <= nbytes <= _KEPT_LIMITS * current_limit() and _IS_RECYCLED:
        memory = _recycled(nbytes)
        if memory is not None:
            return memory[:nbytes].view(dtype).reshape(shape)
    return lined(shape, dtype)


def maker(shape: Sizes, dtype: np.dtype) -> Callable[[], Array]:
    """What makes `new` memory of one kind again and again: NumPy itself, a third as long, where the memory is small."""
    is_small = math.prod(shape) * dtype.itemsize < _LARGE
    return partial(np.empty if is_small else new, shape, dtype)


_IS_RECYCLED = sys.platform != "win32" and hasattr(mmap, "MADV_FREE")


def _recycled(nbytes: int) -> Array | None:
    """So many bytes, which are kept when the last array that shares them is gone; None where the system has none."""
    length = -(-nbytes // _PAGE) * _PAGE
    for _ in range(len(_kept)):
        with suppress(IndexError):  # another thread has taken it
            pages = _kept.popleft()
            if len(pages) == length:
                return np.asarray(_Lease(pages))
            _kept.append(pages)
    try:
        return np.asarray(_Lease(_mapped(length)))
    except OSError:
        return None


def _mapped(length: int) -> mmap.mmap:
    pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class _Lease:
    """What arrays hold as long as they share the pages, and what keeps them then."""

    def __init__(self, pages: mmap.mmap) -> None:
        self._pages, self._kept = pages, _kept
        address = np.frombuffer(pages, np.uint8).ctypes.data
        self.__array_interface__ = {
            "data": (address, False), "shape": (len(pages),), "typestr": "|u1", "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        with suppress(OSError):  # a kernel that does not take them back: they are freed
            self._pages.madvise(mmap.MADV_FREE)
            self._kept.append(self._pages)
