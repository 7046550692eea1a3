"""How many threads share a product: what NumPy's OpenBLAS is told, by others and by calls with threads of their own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from itertools import product
from threading import Lock
from typing import NamedTuple


class OpenBLAS(NamedTuple):
    """Its functions that tell and set how many threads share a product."""

    threads: Callable[[], int]
    set_threads: Callable[[int], None]


@cache
def library() -> OpenBLAS | None:
    """NumPy's, found through the part of it that is linked with OpenBLAS; None where it has another BLAS."""
    linked = ctypes.CDLL(import_module("numpy._core._multiarray_umath").__file__)
    for prefix, suffix in product(("scipy_", ""), ("64_", "_64", "")):
        names = (f"{prefix}openblas_{word}_num_threads{suffix}" for word in ("get", "set"))
        with suppress(AttributeError):
            return OpenBLAS(*(getattr(linked, name) for name in names))
    return None


class _Limit:
    """One thread for a product, as long as any call wants that."""

    def __init__(self) -> None:
        self.lock, self.calls, self.before = Lock(), 0, 1


_limit = _Limit()


def threads() -> int | None:
    """How many share a product where no call wants one; None where BLAS does not tell."""
    openblas = library()
    if openblas is None:
        return None
    limit = _limit
    return limit.before if limit.calls else openblas.threads()


@contextmanager
def products_by_one() -> Iterator[None]:
    """Within, every product is left to the thread that asks.

    OpenBLAS knows no other limit than the process's: a product that another thread begins meanwhile is not shared.
    """
    limit, openblas = _limit, library()
    if openblas is None:
        yield
        return
    with limit.lock:
        if not limit.calls:
            limit.before = openblas.threads()
            openblas.set_threads(1)
        limit.calls += 1
    try:
        yield
    finally:
        with limit.lock:
            limit.calls -= 1
            if not limit.calls:
                openblas.set_threads(limit.before)


def _after_fork() -> None:
    """A child process has none of its parent's threads, whose calls wanted one."""
    global _limit
    limit, _limit = _limit, _Limit()
    openblas = library()
    if limit.calls and openblas is not None:
        openblas.set_threads(limit.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
