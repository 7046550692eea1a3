"""Where the elements of an array lie: kernels know nothing else of one. What they are told is words of 64 bits."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache

import numpy as np

from xpconv.spec import Array


def _told(array: Array) -> int:
    place: int = array.__array_interface__["data"][0]
    return place


def _read(array: Array) -> int:
    """From the first word of NumPy's array object after what every object begins with."""
    return _word(id(array) + _HEADER).value


_word, _HEADER = ctypes.c_ssize_t.from_address, object.__basicsize__


def _quickest() -> Callable[[Array], int]:
    """What NumPy tells takes 2 us, of which a small call has five; 0.3 us where the word is seen to be the same."""
    probe = np.zeros(3, np.int32)[1:]
    return _read if ctypes.sizeof(ctypes.c_void_p) == 8 and _read(probe) == _told(probe) else _told


address_of = _quickest()


def words(*numbers: int) -> bytes:
    """Numbers as kernels read them."""
    return words_of(len(numbers)).pack(*numbers)


@cache
def words_of(count: int) -> struct.Struct:
    """What packs so many."""
    return struct.Struct(f"{count}q")
