"""Seconds of a call: by the wall on a CPU, between two events on a GPU; warm, or with the caches overwritten."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

Calls = Sequence[Callable[[], Any]]
_OVERWRITTEN = 2**28  # bytes: more than the last cache of a processor holds


class Clock(Protocol):
    """Tells the seconds of one of some calls; what they return is let go at once."""

    def __call__(self, calls: Calls, /) -> float: ...


class WallClock:
    """The time on the wall; with `cold` each call finds the caches full of something else."""

    def __init__(self, *, cold: bool = False, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._other = np.zeros(_OVERWRITTEN // 8) if cold else None

    def __call__(self, calls: Calls, /) -> float:
        if self._other is None:
            return self._taken(calls) / len(calls)
        seconds = 0.0
        for call in calls:
            self._other += 1
            seconds += self._taken([call])
        return seconds / len(calls)

    def _taken(self, calls: Calls) -> float:
        start = self._now()
        for call in calls:
            call()
        return self._now() - start


class EventClock:
    """Between two events on the current stream of a CUDA device, which the rivals' work goes to as well."""

    def __init__(self, *, cold: bool = False) -> None:
        from xpconv.cuda import measuring

        self._cold = cold
        self._between = measuring.EventClock(None if cold else 0)

    def __call__(self, calls: Calls, /) -> float:
        if self._cold:
            return sum(self._between("", call) for call in calls) / len(calls)

        def all_of_them() -> None:
            for call in calls:
                call()

        return self._between("", all_of_them) / len(calls)


def on(device: Any) -> AbstractContextManager[Any]:
    """What `xpconv.backend` returned as its device, as the current one for a block."""
    return nullcontext() if device == "cpu" else device


def clock_for(device: str, *, cold: bool = False) -> Clock:
    """The clock of a device, which on a GPU is the current one."""
    return WallClock(cold=cold) if device == "cpu" else EventClock(cold=cold)
