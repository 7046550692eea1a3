"""Candidates timed in turn, and what the samples say.

A round is the seconds of a call of each candidate, one after another: what slows the machine for a while slows all of
them, and a ratio is taken within a round. Before a candidate's calls the others' threads have time to fall asleep, and
its own are woken.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Round = Mapping[str, float]
Calls = Callable[[int], list[Callable[[], Any]]]  # so many calls, made before they are timed

# Seconds in which pools of threads stop looking for work: torch's did for 9 ms after its last call, onnxruntime's for
# 48 ms, OpenBLAS's for 90 ms, and a thread that looks for work takes the processor from another's that has some.
REST = 0.12
# Seconds of calls before those that count, at least one. After 2 ms the scheduler had not yet given every pool's
# threads a processor each: torch and xpconv took up to twice as long as after 10 ms, and after 30 ms as long as then.
WAKING = 0.015
BATCH = 0.02  # seconds of calls that count, at least one
_MOST = 10_000


def measure(
    candidates: Mapping[str, Calls],
    rounds: int,
    samples: list[dict[str, float]],
    *,
    time_left: Callable[[], float] = lambda: math.inf,
    rest: float = REST,
    batch: float = BATCH,
) -> None:
    """Add rounds to the samples; whole rounds only, whatever interrupts, and none begins after the time is up."""
    seconds = {}
    for name, calls in candidates.items():
        _timed(calls(1))
        seconds[name] = _timed(calls(1))
    for _ in range(rounds):
        if not candidates or time_left() <= 0:
            return
        taken = {}
        for name, calls in candidates.items():
            waking, counted = (_count(span, seconds[name]) for span in (min(WAKING, batch), batch))
            made = calls(waking + counted)
            time.sleep(rest)
            _timed(made[:waking])
            taken[name] = _timed(made[waking:])
        seconds = {name: min(seconds[name], spent) for name, spent in taken.items()}
        samples.append(taken)


def _count(span: float, seconds: float) -> int:
    return max(1, min(_MOST, math.ceil(span / max(seconds, 1e-9))))


def _timed(calls: Sequence[Callable[[], Any]]) -> float:
    """Seconds of one of the calls; results are let go at once."""
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


# --- What the samples say ---------------------------------------------------------------------------------------------


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Of each candidate."""
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]} if rounds else {}


def ratios(rounds: Sequence[Round], ours: str, peers: Iterable[str]) -> list[float]:
    """In each round the best peer's time over ours: above 1 we are faster."""
    peers = list(peers)
    return [min(r[peer] for peer in peers) / r[ours] for r in rounds] if peers else []


def spread(values: Sequence[float], low: float = 0.1, high: float = 0.9) -> tuple[float, float]:
    """Two quantiles, straight lines between the samples."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(low), at(high)


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of no values."""
    logarithms = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logarithms)) if logarithms else None
