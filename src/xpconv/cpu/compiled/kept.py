"""What was made of an array, kept for as long as the array holds the same values.

An entry is found by where the array lies, and used only if a fingerprint of the array's bytes is that of the entry. An
array is never kept alive, and one that comes to lie where another was is told apart. A copy to compare with would take
as much of the cache again: 3x3 512@7, N=1 took twice as long with one.

The fingerprint is NH (Black, Halevi, Krawczyk, Krovetz and Rogaway: UMAC, 1999), twice, of every 16 KB in eight lanes:
sums of products ``(a + k) (b + k')`` of neighbouring words with random keys of this process. Whatever is changed, by
whoever does not know the keys, the chance that both sums of its lane stay as they were is 2^-64 at most.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from llvmlite import ir

from xpconv.cpu.address import Told
from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.build import library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.values import I32, I64, vector
from xpconv.cpu.entries import MOST_BYTES, Entries, key_of
from xpconv.spec import Array

_LANES, _VECTOR = 8, 64  # sums side by side, and the bytes that each step adds to them
_SPAN = 1 << 14  # bytes that sums are taken of, as many as there are keys: these stay in the first cache
_CHUNK = 1 << 18  # bytes of an item
_SUMS = 2 * _LANES  # of a span
_AHEAD = 1 << 11  # bytes asked for before they are read: of 9.4 MB 0.28 -> 0.22 ms, from memory 0.70 -> 0.45
_keys = np.frombuffer(os.urandom(_SPAN + _VECTOR), np.uint8)  # the second sum's are the first's, a vector further


@dataclass(frozen=True)
class _Entry:
    fingerprint: bytes
    made: Array

    @property
    def nbytes(self) -> int:
        return len(self.fingerprint) + self.made.nbytes


class Kept:
    """What was made of arrays, up to a number of bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._entries: Entries[_Entry] = Entries(most_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._entries.nbytes

    def of(self, array: Array, purpose: Hashable, make: Callable[[Array], Array]) -> Array:
        """What `make` made of the array, or makes now of a copy, which no other thread changes meanwhile."""
        key = key_of(array, purpose)
        entry = self._entries.get(key)
        if entry is None or entry.fingerprint != _fingerprint(_as_it_lies(array)):
            copy = array.copy(order="K")
            entry = _Entry(_fingerprint(_as_it_lies(copy)), make(copy))
            self._entries.put(key, entry)
        return entry.made


def _as_it_lies(array: Array) -> Array:
    """The array with its axes in the order of memory: a view, unless something lies between its elements."""
    if array.flags.c_contiguous:
        return array
    order = sorted(range(array.ndim), key=lambda axis: abs(array.strides[axis]), reverse=True)
    return np.ascontiguousarray(array.transpose(order))


def is_ready() -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    return library("kept", _make) is not None


def _fingerprint(values: Array) -> bytes:
    """Of the bytes of a contiguous array; those of the end that do not fill a vector as they are."""
    compiled = library("kept", _make)
    assert compiled is not None
    whole = values.nbytes - values.nbytes % _VECTOR
    sums, items = np.empty((-(-whole // _SPAN), _SUMS), np.int64), -(-whole // _CHUNK)
    team = threads.thread_count() if items > 1 else 1
    threads.run(compiled.address("fingerprint"), _told(whole).of(values, sums, _keys), items, 0, team)
    rest = b"" if whole == values.nbytes else values.reshape(-1).view(np.uint8)[whole:].tobytes()
    return sums.tobytes() + rest


@lru_cache(maxsize=256)
def _told(whole: int) -> Told:
    return Told(3, (whole,))


def _make(module: ir.Module) -> tuple[str, ...]:
    """The task: the sums of the spans of a chunk."""
    kernel = Kernel(module, "fingerprint", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    given = kernel.given(arguments, ("values", "sums", "keys", "whole"))
    words, lanes = vector(I32, 2 * _LANES), vector(I64, _LANES)
    low = kernel.constant((1 << 32) - 1, lanes)
    last = kernel.minimum(given.whole, (item + 1) * _CHUNK)
    with kernel.loop(last, start=item * _CHUNK, step=_SPAN) as begin:
        totals = [kernel.variable(kernel.constant(0, lanes)) for _ in range(_SUMS // _LANES)]
        with kernel.loop(kernel.minimum(given.whole - begin, _SPAN), step=_VECTOR) as at:
            value = kernel.load(given.values + begin + at, words)
            kernel.prefetch(given.values + begin + at + _AHEAD)
            for i, total in enumerate(totals):
                pairs = kernel.same_bits(value + kernel.load(given.keys + at, words, i * _VECTOR), lanes)
                total.set(total.get() + (pairs & low) * (pairs >> 32))
        for i, total in enumerate(totals):
            kernel.store(total.get(), given.sums + begin // _SPAN * (_SUMS * 8), i * _VECTOR)
    kernel.finish()
    return ("fingerprint",)
