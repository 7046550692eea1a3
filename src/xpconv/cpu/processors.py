"""The processors of this process: which they are, how many threads to take for them, and on which a thread runs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

CAN_CHOOSE = hasattr(os, "sched_setaffinity")  # whether a thread can be told which ones to run on


def allowed() -> Sequence[int]:
    """Those that this process may run on: its first thread or this one, either of which may have been told to stay."""
    if not hasattr(os, "sched_getaffinity"):
        return range(os.cpu_count() or 1)
    some = os.sched_getaffinity(0)
    with suppress(OSError):  # the first thread has ended
        some |= os.sched_getaffinity(os.getpid())
    return sorted(some)


def now() -> int:
    """The number of the one that this thread runs on; -1 where that is not known."""
    libc = _libc()
    return -1 if libc is None else libc.sched_getcpu()


@contextmanager
def staying(here: int | None) -> Iterator[None]:
    """Keep this thread on the processor of that number, if there is one.

    Linux moves a thread to the processor of the one that wakes it, also where that goes on computing: of two threads
    that wait for the interpreter lock now and then, one lost its processor in half of the calls, which took 1.46 ms
    then and 0.87 else (3x3 64 to 64 on 56x56).
    """
    if here is None:
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):  # a processor that is no longer there
        os.sched_setaffinity(0, {here})
    try:
        yield
    finally:
        with suppress(OSError):
            if os.sched_getaffinity(0) == {here}:  # and nobody has told the thread another place meanwhile
                os.sched_setaffinity(0, before)


@cache
def level_2_bytes() -> int:
    """Of one's level 2 cache: 512 KB to 2 MB, as larger ones are shared; 512 KB where the system does not tell."""
    least, most, units = 1 << 19, 1 << 21, {"K": 1 << 10, "M": 1 << 20}
    with suppress(OSError, ValueError, KeyError):
        for index in Path(f"/sys/devices/system/cpu/cpu{allowed()[0]}/cache").glob("index*"):
            if (index / "level").read_text().strip() == "2":
                size = (index / "size").read_text().strip()
                return max(least, min(int(size[:-1]) * units[size[-1]], most))
    return least


@cache
def _libc() -> Any:
    """The C library, where it says which processor a thread runs on; else None."""
    libc = ctypes.CDLL(None) if CAN_CHOOSE else None
    return libc if hasattr(libc, "sched_getcpu") else None


@cache
def most_threads() -> int:
    """As many as there are processors, or fewer where NUMBA_NUM_THREADS or OMP_NUM_THREADS says so.

    A child of `multiprocessing`, which has siblings for the other processors, takes one unless a variable is set.
    """
    set_to = [os.environ.get(name, "").partition(",")[0] for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")]
    wanted = [int(number) for number in set_to if number.isdigit() and int(number)]
    return min([len(allowed()), *(wanted or ([1] if _is_worker() else []))])


def _is_worker() -> bool:
    """Whether `multiprocessing` started this process."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=most_threads.cache_clear)
