"""Devices times cases: the sides are made, checked, timed in turn, and on record whatever comes after."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from statistics import median
from typing import Any

from xpconv.bench import limits, rivals
from xpconv.bench.cases import Case
from xpconv.bench.clock import Clock, clock_for
from xpconv.bench.clock import on as current
from xpconv.bench.data import Data, data_of, errors, right
from xpconv.bench.record import Record
from xpconv.bench.sides import OURS, Place, Side, ours
from xpconv.bench.statistics import medians, ratios, short, spread
from xpconv.bench.timing import BATCH, REST, measure, repeated
from xpconv.device import DeviceInfo, backend, synchronize

_HOPELESS = 2.0  # times the rival's other way: after the first round it is not timed again
STOPPED = "stopped by the time limit"


@dataclass(frozen=True)
class Asked:
    """How the cases are timed."""

    rivals: Sequence[str] = ()
    rounds: int = 7
    threads: int = 1
    cold: bool = False
    time_limit: float = math.inf
    rest: float = REST
    batch: float = BATCH
    clock: Callable[..., Clock] = field(default=clock_for)


def run(
    devices: Sequence[DeviceInfo], cases: Sequence[Case], asked: Asked, record: Record, told: Callable[[str], None]
) -> None:
    """Put the limits and the cases of every device on record; `told` hears after each, with what comes next.

    Whatever happens, the record holds what was measured: an exception of a row, a lost device, Ctrl-C, the time limit.
    """
    begin = time.monotonic()
    record["not_measured"] = [_key(case, device.name) for device in devices for case in cases]
    running = _Running(asked, record, told, begin)
    try:
        with rivals.without_gradients(asked.rivals):
            for device in devices:
                running.on(device, cases)
        if record["state"] == "interrupted":
            record["state"] = STOPPED if record["not_measured"] or running.cut else "complete"
    except KeyboardInterrupt:
        record["state"] = "interrupted"
    finally:
        record["seconds"] = round(time.monotonic() - begin, 1)


@dataclass
class _Running:
    """A run on its way."""

    asked: Asked
    record: Record
    told: Callable[[str], None]
    begin: float
    cut: bool = False  # whether the time did not suffice for all rounds of a row

    def time_left(self) -> float:
        """Seconds."""
        return self.asked.time_limit - (time.monotonic() - self.begin)

    def on(self, device: DeviceInfo, cases: Sequence[Case]) -> None:
        """Measure the limits of a device, then the cases; one that is lost ends there."""
        place = Place(device.name, self.asked.threads)
        told: dict[str, Any] = {"description": device.description, "threads": place.threads}
        self.record["devices"][device.name] = told
        with current(backend(device.name)[1]):
            try:
                clock = self.asked.clock(device.name, cold=self.asked.cold)
                dtypes = list(dict.fromkeys(case.dtype for case in cases))
                self.told(f"what {device.name} can do")
                told["limits"] = limits.measured(place, dtypes, self.asked.clock(device.name, cold=False))
            except Exception as error:
                self.lost(device.name, error)
                return
            for case in cases:
                if self.time_left() <= 0:
                    return
                if not self.row(case, place, clock, told["limits"]):
                    return

    def row(self, case: Case, place: Place, clock: Clock, device_limits: dict[str, Any]) -> bool:
        """Measure one case; whether its device is still there."""
        key = _key(case, place.device)
        self.told(key)
        timing = _Row(case, place, clock, self.asked, self.time_left)
        try:
            timing.measure()
        except Exception as error:
            self.record["failed"][key] = rivals.reason(error)
            if _is_lost(place):
                self.lost(place.device, error)
                return False
        finally:  # also of Ctrl-C
            if timing.rounds:
                self.record["rows"].append(timing.told(device_limits))
            if timing.rounds or key in self.record["failed"]:
                self.record["not_measured"].remove(key)
            self.cut |= 0 < len(timing.rounds) < self.asked.rounds
            self.record["seconds"] = round(time.monotonic() - self.begin, 1)
            _let_go(place)
        return True

    def lost(self, device: str, error: BaseException) -> None:
        """A device that computes no more: its rows that are left stay unmeasured."""
        self.record["state"] = f"the device was lost: {device}: {rivals.reason(error)}"
        limits_there = self.record["devices"][device]
        if "limits" not in limits_there:
            del self.record["devices"][device]


class _Row:
    """One case on one device: its sides, and its rounds so far."""

    def __init__(self, case: Case, place: Place, clock: Clock, asked: Asked, time_left: Callable[[], float]) -> None:
        self._case, self._place, self._clock, self._asked, self._time_left = case, place, clock, asked, time_left
        self._errors: dict[str, float] = {}
        self._left_out: dict[str, str] = {}
        self._ours: Side | None = None
        self.rounds: list[dict[str, float]] = []

    def measure(self) -> None:
        """Make and check the sides, then time them in turn; a rival that cannot is left out with its reason."""
        case, asked = self._case, self._asked
        data = data_of(case)
        self._ours = ours(case, data, self._place.device)
        others, self._left_out = rivals.sides_of(asked.rivals, case, data, self._place)
        sides, self._errors, wrong = checked(case, data, [self._ours, *others])
        if OURS in wrong:
            raise RuntimeError(f"xpconv: {wrong[OURS]}")
        self._left_out |= wrong
        del data
        how: dict[str, Any] = {"rest": asked.rest if self._place.is_cpu else 0.0, "batch": asked.batch}
        how |= {"time_left": self._time_left, "clock": self._clock}
        candidates = {side.name: repeated(side.call) for side in sides}
        measure(candidates, 1, self.rounds, **how)
        if not self.rounds:
            return
        for name in hopeless(self.rounds[0]):
            del candidates[name], self.rounds[0][name]
        measure(candidates, asked.rounds - 1, self.rounds, **how)

    def told(self, device_limits: dict[str, Any]) -> dict[str, Any]:
        """The row of the record."""
        case, rounds = self._case, self.rounds
        assert self._ours is not None
        assert self._ours.plan is not None
        plan, seconds = self._ours.plan, medians(rounds)
        limit, least = limits.bound(case.operations, case.bytes, case.dtype, device_limits)
        best = best_sides(seconds)
        return {
            **described(case, self._place.device),
            "method": plan.method,
            "tile": plan.tile,
            "workspace": plan.workspace,
            **_milliseconds([r[OURS] for r in rounds]),
            "gflops": None if case.operations is None else short(case.operations / seconds[OURS] / 1e9),
            "gbs": short(case.bytes / seconds[OURS] / 1e9),
            "limit": limit,
            "share_of_limit": short(least / seconds[OURS]),
            "error": short(self._errors[OURS], 2),
            "rivals": {rival: self._rival(side) for rival, side in best.items()},
            "left_out": self._left_out,
            "rounds": [
                {OURS: short(r[OURS], 6)} | {rival: short(r[side], 6) for rival, side in best.items()} for r in rounds
            ],
        }

    def _rival(self, side: str) -> dict[str, Any]:
        values = ratios(self.rounds, OURS, [side])
        return {
            "side": side,  # the faster of the ways that it has
            **_milliseconds([r[side] for r in self.rounds]),
            "ratio": short(median(values)),
            "ratio_10_90": [short(value) for value in spread(values)],
            "error": short(self._errors[side], 2),
        }


def checked(case: Case, data: Data, sides: Sequence[Side]) -> tuple[list[Side], dict[str, float], dict[str, str]]:
    """The sides whose results are right, the errors of all that have a result, and what is wrong with the others."""
    results, wrong = {}, {}
    for side in sides:
        try:
            results[side.name] = side.result(side.call())
        except Exception as error:
            wrong[side.name] = rivals.reason(error)
    found = errors(case, data, results)
    for name, worst in found.items():
        if not right(case, worst):
            what = f"error {worst:.2g} is too large" if isfinite(worst) else "its result is not finite, or misshapen"
            wrong[name] = what
    return [side for side in sides if side.name not in wrong], found, wrong


def hopeless(seconds: dict[str, float]) -> list[str]:
    """A rival's ways that took more than twice as long as its other one."""
    least = {rival: seconds[side] for rival, side in best_sides(seconds).items()}
    return [
        side for side, taken in seconds.items() if side != OURS and taken > _HOPELESS * least[rivals.rival_of(side)]
    ]


def best_sides(seconds: dict[str, float]) -> dict[str, str]:
    """For each rival its fastest way."""
    best: dict[str, str] = {}
    for side in sorted((side for side in seconds if side != OURS), key=seconds.__getitem__):
        best.setdefault(rivals.rival_of(side), side)
    return {name: best[name] for name in dict.fromkeys(map(rivals.rival_of, seconds)) if name in best}


def described(case: Case, device: str) -> dict[str, Any]:
    """What stands in a row whatever is measured."""
    return {
        "key": _key(case, device), "network": case.network, "layer": case.name, "operation": case.operation,
        "batch": case.batch or 1, "dtype": case.dtype, "layout": case.layout, "device": device,
        "operations": case.operations, "bytes": case.bytes,
    }  # fmt: skip


def _key(case: Case, device: str) -> str:
    return f"{case.key} | {device}"


def _milliseconds(seconds: Sequence[float]) -> dict[str, Any]:
    return {"ms": short(1e3 * median(seconds)), "ms_10_90": [short(1e3 * value) for value in spread(seconds)]}


def _is_lost(place: Place) -> bool:
    """Whether a device answers no more."""
    try:
        synchronize(place.device)
    except Exception:
        return True
    return False


def _let_go(place: Place) -> None:
    """The arrays of a large case, before the next has its own."""
    gc.collect()
    if not place.is_cpu:
        with suppress(Exception):  # of a lost device
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
