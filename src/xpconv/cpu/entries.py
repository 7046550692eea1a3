"""What was made of arrays, up to a number of bytes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from xpconv.cpu.address import address_of
from xpconv.spec import Array

MOST_BYTES = 1 << 28  # that are kept of weights


class Sized(Protocol):
    """What tells how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


Entry = TypeVar("Entry", bound=Sized)


def key_of(array: Array, purpose: Hashable) -> Hashable:
    """Where the array lies and what it is taken for, by which an entry is found."""
    return address_of(array), array.shape, array.strides, array.dtype.char, purpose


class Entries(Generic[Entry]):
    """Entries by their keys, for any number of threads; the one that was not used for the longest time goes first."""

    def __init__(self, most_bytes: int, most: int | None = None) -> None:
        self._most_bytes, self._most = most_bytes, most
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._lock = Lock()
        _all.add(self)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(entry.nbytes for entry in self._entries.values())

    def get(self, key: Hashable) -> Entry | None:
        """The entry, which is used now; None where there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, entry: Entry) -> None:
        """Keep it, in the place of the key's last, and let go what is too much."""
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while self.nbytes > self._most_bytes or (self._most is not None and len(self._entries) > self._most):
                self._entries.popitem(last=False)

    def forget(self) -> None:
        """Have none, and a lock that nobody holds."""
        self._entries, self._lock = OrderedDict(), Lock()


_all: WeakSet[Entries[Any]] = WeakSet()


def _after_fork() -> None:
    """A child process has none of its parent's threads, one of which may have held a lock and been half-way."""
    for entries in _all:
        entries.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
