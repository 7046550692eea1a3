"""Memory of small calls that are repeated, prepared once: its padding is filled, and its views are made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

KEPT_BYTES = 1 << 15  # of what a kind of calls keeps at most, of which there may be a thousand
_MOST = 4  # kept of one kind, for calls at the same time

T = TypeVar("T")


class Spares(Generic[T]):
    """What calls of one kind compute in. A call takes one, and gives it back: what it has, no other thread has.

    A call that finds none makes one, and so does every call where one is larger than what is kept.
    """

    def __init__(self, make: Callable[[], T], nbytes: int) -> None:
        self.make, self.nbytes, self.are_kept = make, nbytes, nbytes <= KEPT_BYTES
        self._spare: deque[T] = deque(maxlen=_MOST if self.are_kept else 0)  # its methods need no lock
        self.give = self._spare.append

    def take(self) -> T:
        """One that nobody else has."""
        try:
            return self._spare.pop()
        except IndexError:
            return self.make()
