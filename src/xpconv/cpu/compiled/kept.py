"""What was made of an array, kept for as long as the array holds the same values.

An entry is found by where the array lies, and used only if the array's bytes are those of a private copy: a change in
place is never overlooked, an array is never kept alive, and one that comes to lie where another was is told apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.address import address_of
from xpconv.cpu.compiled.build import library
from xpconv.cpu.compiled.ir import I64, Kernel, vector
from xpconv.spec import Array

_MOST_BYTES = 1 << 28
_WORDS = 8  # compared at a time


@dataclass(frozen=True)
class _Entry:
    values: Array  # a copy
    made: Array

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.made.nbytes


class Kept:
    """Entries up to a number of bytes; the one that was not used for the longest time goes first."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.nbytes for entry in self._entries.values())

    def of(self, array: Array, purpose: Hashable, make: Callable[[Array], Array]) -> Array:
        """What `make` made of the array, or makes now of the private copy, which is what it will be compared with."""
        key = (array.ctypes.data, array.shape, array.strides, array.dtype.char, purpose)
        values = _as_it_lies(array)
        with self._lock:
            entry = self._entries.get(key)
        if entry is None or not _same(entry.values, values):
            copy = array.copy(order="K")
            entry = _Entry(_as_it_lies(copy), make(copy))
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while self.nbytes > self._most_bytes:
                self._entries.popitem(last=False)
        return entry.made


def _as_it_lies(array: Array) -> Array:
    """The array with its axes in the order of memory: a view, unless something lies between its elements."""
    order = sorted(range(array.ndim), key=lambda axis: abs(array.strides[axis]), reverse=True)
    return np.ascontiguousarray(array.transpose(order))


def is_ready() -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return library("kept", _make) is not None


def _same(first: Array, second: Array) -> bool:
    """Whether two arrays of one shape and dtype, both contiguous, hold the same bytes: NaN is NaN, -0 is not 0."""
    compiled = library("kept", _make)
    assert compiled is not None
    found = np.zeros(-(-first.nbytes // _CHUNK), np.int64)
    arguments = np.array([address_of(first), address_of(second), first.nbytes, address_of(found)], np.int64)
    team = threads.thread_count() if len(found) > 1 else 1
    threads.run(compiled.address("differs"), arguments, len(found), 0, team)
    return not found.any()


_CHUNK = 1 << 18  # bytes of an item


def _make(module: ir.Module) -> tuple[str, ...]:
    """The task: the bits that differ in a chunk."""
    kernel = Kernel(module, "differs", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, ("first", "second", "nbytes", "found"))
    first, second = given.first + item * _CHUNK, given.second + item * _CHUNK
    nbytes = kernel.minimum(given.nbytes - item * _CHUNK, _CHUNK)
    kind, size = vector(I64, _WORDS), 8 * _WORDS
    whole, found = nbytes - nbytes % size, kernel.variable(kernel.constant(0, kind))
    with kernel.loop(whole, step=size) as i:
        found.set(found.get() | (kernel.load(first + i, kind) ^ kernel.load(second + i, kind)))
    rest = kernel.variable(kernel.any_bit(found.get()))
    with kernel.loop(nbytes, start=whole, step=4) as i:  # floats of four bytes or of eight
        pair = [kernel.load_small(address + i) for address in (first, second)]
        rest.set(rest.get() | (pair[0] ^ pair[1]))
    kernel.store(rest.get(), given.found + item * 8)
    kernel.finish()
    return ("differs",)
