"""Device memory: NumPy bytes that the checker knows, and knows which of were written.

The host can read and write it freely; whoever does so on a kernel's behalf says so here.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache

import numpy as np

from cuda_emulator.compiler import runtime_library

ALIGNMENT = 512
_GUARD = 4096  # bytes on either side that belong to no allocation, so that a near miss does not hit a neighbour


def allocate(nbytes: int, *, initialised: bool) -> np.ndarray:
    """New device memory, as bytes. It stays registered until this array and all its views are garbage collected."""
    owner = np.full(max(nbytes, 1) + 2 * _GUARD + ALIGNMENT, 0xFF, np.uint8)  # as floating numbers, NaN
    start = owner.ctypes.data + _GUARD
    start += -start % ALIGNMENT
    offset = start - owner.ctypes.data
    if initialised:
        owner[offset : offset + nbytes] = 0
    _library().emulator_register(start, max(nbytes, 1), int(initialised))
    # A view of a view refers to the owner alone, hence the finalizer is the owner's.
    weakref.finalize(owner, _library().emulator_unregister, start).atexit = False
    return owner[offset : offset + nbytes]


def mark_initialised(address: int, nbytes: int) -> None:
    """Note that the host wrote these bytes."""
    _library().emulator_mark_initialised(address, nbytes)


def first_uninitialised(address: int, nbytes: int) -> int | None:
    """The offset from `address` of the first byte that neither host nor kernel wrote; None when all were written."""
    offset = _library().emulator_first_uninitialised(address, nbytes)
    return None if offset < 0 else offset


@cache
def _library() -> ctypes.PyDLL:
    library, _ = runtime_library()
    library.emulator_register.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    library.emulator_unregister.argtypes = [ctypes.c_size_t]
    library.emulator_mark_initialised.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.emulator_first_uninitialised.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.emulator_first_uninitialised.restype = ctypes.c_longlong
    for name in ("emulator_register", "emulator_unregister", "emulator_mark_initialised"):
        getattr(library, name).restype = None
    return library
