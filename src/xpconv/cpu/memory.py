"""Memory that NumPy's blocks and strips are computed in, used again by later calls."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from xpconv.spec import Array


class Memory:
    """Arrays that are used again, also by later calls: a fresh one costs more in page faults than what is done in it.

    3x3 64->64 on 56x56 took 0.89 ms in fresh arrays where it took 0.21 in these.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """An array of that shape, of what the last of that name had if that is enough."""
        nbytes = math.prod(shape) * dtype.itemsize
        held = self._arrays.get(name)
        if held is None or held.nbytes < nbytes:
            held = None
            self._arrays.pop(name, None)  # let go before a larger one is made
            held = self._arrays[name] = np.empty(-(-nbytes // 16) * 16, np.uint8)  # malloc's, for items of any dtype
        return held[:nbytes].view(dtype).reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(held.nbytes for held in self._arrays.values())


@contextmanager
def borrowed(purpose: str) -> Iterator[Memory]:
    """This thread's for a purpose, of which little is kept."""
    mine: Memory = getattr(_kept, purpose, None) or Memory()
    setattr(_kept, purpose, None)  # a call in a call has its own
    yield mine
    if mine.nbytes <= KEPT_BYTES:
        setattr(_kept, purpose, mine)


def _keep_freed(nbytes: int) -> None:
    """Have malloc keep what is freed of arrays up to that size, and not give it back to the system each time.

    glibc does so once an array of the size has been freed, as most programs do sooner or later, up to 32 MB. Until then
    every result from 128 KB on is paid for by 2 us for each of its pages: 3x3 3->32 on 56x56 took 0.42 ms, not 0.15.
    """
    np.empty(nbytes, np.uint8)


_keep_freed(1 << 20)
_kept = threading.local()
KEPT_BYTES = 12 << 20
