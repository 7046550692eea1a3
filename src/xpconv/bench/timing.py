"""Candidates timed in turn.

A round is the seconds of a call of each candidate, one after another: what slows the machine for a while slows all of
them, and a ratio is taken within a round. Before a candidate's calls the others' threads have time to fall asleep, and
its own are woken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from xpconv.bench.clock import Clock, WallClock

Calls: TypeAlias = Callable[[int], list[Callable[[], Any]]]  # so many calls, made before they are timed

# Seconds in which pools of threads stop looking for work: torch's did for 9 ms after its last call, onnxruntime's for
# 48 ms, OpenBLAS's for 90 ms, and a thread that looks for work takes the processor from another's that has some.
REST = 0.12
# Seconds of calls before those that count, at least one. After 2 ms the scheduler had not yet given every pool's
# threads a processor each: torch and xpconv took up to twice as long as after 10 ms, and after 30 ms as long as then.
WAKING = 0.015
BATCH = 0.02  # seconds of calls that count, at least one
_MOST = 10_000
_TICK = 1e-10  # seconds: what no clock tells apart from nothing, which has no logarithm


def measure(
    candidates: Mapping[str, Calls],
    rounds: int,
    samples: list[dict[str, float]],
    *,
    time_left: Callable[[], float] = lambda: math.inf,
    rest: float = REST,
    batch: float = BATCH,
    clock: Clock | None = None,
) -> None:
    """Add rounds to the samples; whole rounds only, whatever interrupts, and none begins after the time is up."""
    clock, seconds = clock or WallClock(), {}
    for name, calls in candidates.items():
        clock(calls(1))
        seconds[name] = clock(calls(1))
    for _ in range(rounds):
        if not candidates or time_left() <= 0:
            return
        taken = {}
        for name, calls in candidates.items():
            waking, counted = (_count(span, seconds[name]) for span in (min(WAKING, batch), batch))
            made = calls(waking + counted)
            time.sleep(rest)
            clock(made[:waking])
            taken[name] = max(clock(made[waking:]), _TICK)
        seconds = {name: min(seconds[name], spent) for name, spent in taken.items()}
        samples.append(taken)


def _count(span: float, seconds: float) -> int:
    return max(1, min(_MOST, math.ceil(span / max(seconds, 1e-9))))


def repeated(call: Callable[[], Any]) -> Calls:
    """The same call, as often as is asked for."""
    return lambda count: [call] * count
