"""What NumPy made of an array, kept for as long as the array holds the same values, bit by bit.

An entry is found by where the array lies, and used only if a copy of the values is equal to them. The array is never
kept alive. Something is kept once an array is met again: a weight that a training changes from call to call is not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from xpconv.cpu.entries import MOST_BYTES, Entries, key_of
from xpconv.spec import Array

_MOST_ENTRIES = 256
_SAMPLES = 4  # along an axis, by which an array that is met again is told from one that has changed
_BITS = (2, 4, 8)  # bytes of values that are compared as integers: a NaN is equal to itself, and -0.0 not to 0.0


@dataclass(frozen=True)
class _Entry:
    some: Array  # of the values
    values: Array | None = None  # a copy of all, once something is kept
    made: Array | None = None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.some, self.values, self.made) if array is not None)


class Kept:
    """What was made of arrays that were met again, up to a number of bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._entries: Entries[_Entry] = Entries(most_bytes, _MOST_ENTRIES)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._entries.nbytes

    def of(self, array: Array, purpose: Hashable, make: Callable[[Array], Array]) -> Array | None:
        """What `make` made of the array, or makes now of a copy, which no other thread changes meanwhile.

        None where the array is met for the first time, or what is made of it is not kept.
        """
        if array.itemsize not in _BITS:
            return None
        key = key_of(array, purpose)
        entry = self._entries.get(key)
        if entry is not None and entry.values is not None and _same(entry.values, array):
            return entry.made
        some = array[tuple(slice(None, None, max(1, n // _SAMPLES)) for n in array.shape)]
        if entry is None or not _same(entry.some, some):
            self._entries.put(key, _Entry(some.copy()))
            return None
        values = array.copy(order="K")
        made = make(values)
        self._entries.put(key, _Entry(some.copy(), values, made))
        return made


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays of one shape hold the same bits."""
    bits = f"u{one.itemsize}"
    return bool((one.view(bits) == other.view(bits)).all())
