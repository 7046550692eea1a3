"""Devices times cases: limits first, then the rows in several passes, all on record whatever comes after."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from xpconv.bench import limits, rivals
from xpconv.bench.cases import Case
from xpconv.bench.clock import Clock, clock_for
from xpconv.bench.clock import on as current
from xpconv.bench.record import Record
from xpconv.bench.row import Row, key_of
from xpconv.bench.sides import Place
from xpconv.bench.timing import BATCH, REST
from xpconv.device import DeviceInfo, backend, synchronize

# A row's rounds are taken in so many passes over all rows: other work on the machine comes in bursts of some seconds,
# which then meet a few rounds of many rows, and leave their medians alone, instead of all rounds of a few.
PASSES = 3


@dataclass(frozen=True)
class Asked:
    """How the cases are timed."""

    rivals: Sequence[str] = ()
    rounds: int = 9
    threads: int = 1
    cold: bool = False
    time_limit: float = math.inf
    rest: float = REST
    batch: float = BATCH
    clock: Callable[..., Clock] = field(default=clock_for)

    @property
    def passes(self) -> list[int]:
        """The rounds of each pass over the rows."""
        count = min(PASSES, self.rounds)
        return [self.rounds * (i + 1) // count - self.rounds * i // count for i in range(count)]


def run(
    devices: Sequence[DeviceInfo], cases: Sequence[Case], asked: Asked, record: Record, told: Callable[[str], None]
) -> None:
    """Put the limits and the cases of every device on record; `told` hears after each step what comes next.

    Whatever happens, the record holds what was measured: an exception of a row, a lost device, Ctrl-C, the time limit.
    """
    record["not_measured"] = [key_of(case, device.name) for device in devices for case in cases]
    running = _Running(asked, record, told, time.monotonic())
    try:
        with rivals.without_gradients(asked.rivals):
            for device in devices:
                running.on(device, cases)
        if record["state"] == "interrupted":
            record["state"] = "stopped by the time limit" if running.cut else "complete"
    except KeyboardInterrupt:
        record["state"] = "interrupted"
    finally:
        running.stamp()


@dataclass
class _Running:
    """A run on its way."""

    asked: Asked
    record: Record
    told: Callable[[str], None]
    begin: float
    cut: bool = False  # whether the time did not suffice for all rounds of all rows
    rows: dict[str, Any] = field(default_factory=dict)  # on record, by their keys

    def stamp(self) -> None:
        """Put on record how long the run has taken so far."""
        self.record["seconds"] = round(time.monotonic() - self.begin, 1)

    def time_left(self) -> float:
        """Seconds."""
        return self.asked.time_limit - (time.monotonic() - self.begin)

    def on(self, device: DeviceInfo, cases: Sequence[Case]) -> None:
        """Measure the limits of a device, then its rows, pass by pass; one that is lost ends there."""
        place = Place(device.name, self.asked.threads)
        about: dict[str, Any] = {"description": device.description, "threads": place.threads}
        with current(backend(device.name)[1]):
            self.told(f"what {device.name} can do")
            try:
                clock = self.asked.clock(device.name, cold=self.asked.cold)
                dtypes = list(dict.fromkeys(case.dtype for case in cases))
                about["limits"] = limits.measured(place, dtypes, self.asked.clock(device.name, cold=False))
            except Exception as error:
                self.lost(device.name, error)
                return
            self.record["devices"][device.name] = about
            rows = [Row(case, place) for case in cases]
            for rounds in self.asked.passes:
                for row in rows:
                    if row.key not in self.record["failed"] and not self.step(row, rounds, place, clock):
                        return

    def step(self, row: Row, rounds: int, place: Place, clock: Clock) -> bool:
        """Measure some rounds of a row; whether the device is still there, and time left."""
        if self.time_left() <= 0:
            self.cut = True
            return False
        self.told(row.key)
        before, there = len(row.rounds), True
        how = {"rest": self.asked.rest if place.is_cpu else 0.0, "batch": self.asked.batch}
        try:
            row.measure(self.asked.rivals, rounds, time_left=self.time_left, clock=clock, **how)
        except Exception as error:
            self.record["failed"][row.key] = rivals.reason(error)
            there = not _is_lost(place)
            if not there:
                self.lost(place.device, error)
        finally:  # also of Ctrl-C
            self.keep(row)
            self.cut |= there and len(row.rounds) - before < rounds and row.key not in self.record["failed"]
            _let_go(place)
        return there

    def keep(self, row: Row) -> None:
        """Put what is known of a row on record, in the place of what was known before."""
        if row.rounds:
            self.rows[row.key] = row.told(self.record["devices"][row.device]["limits"])
            self.record["rows"] = list(self.rows.values())
        waiting = self.record["not_measured"]
        if row.key in waiting and (row.rounds or row.key in self.record["failed"]):
            waiting.remove(row.key)
        self.stamp()

    def lost(self, device: str, error: BaseException) -> None:
        """A device that computes no more: its rows that are left stay unmeasured."""
        self.record["state"] = f"the device was lost: {device}: {rivals.reason(error)}"


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
