"""Two records: which rows got slower or faster by more than the noise of both, on a machine that is never the same.

The model, in logarithms of times. Between the runs every candidate on a device changed by the machine's factor, which
is estimated from what is not under test: the median of the rivals' changes over the rows, or without rivals the change
of the device's own limits. What the rivals' changes scatter about that factor is the noise of a change, which has in it
the noise within both runs and all that differs from one process to the next. Rows that copies limit have more of it,
since how much of a shared cache is free differs too: for them it is taken to be at least 10 %.

A row got slower or faster where its change, less the machine's, is more than 5 % and more than 3.5 times that noise,
and so is its change less that of the row's own rivals, who were there when other work disturbed it; where it is more
than what these themselves changed by, either way, for then the machine treats such a layer otherwise; and where the
95 % intervals of both medians, the machine's factor taken off, have nothing in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, TypeAlias

from xpconv.bench.record import Record
from xpconv.bench.sides import OURS
from xpconv.bench.statistics import deviation, median_interval

Verdict: TypeAlias = Literal["slower", "faster", "same", "too few rounds"]
Row: TypeAlias = Mapping[str, Any]

LEAST = 0.05  # a change that is worth a word
_SURE = 3.5  # times the noise, of both changes: of 1000 rows two at most are beyond by chance
_MANY = 16  # changes that tell how large the noise is; fewer may agree by chance
_FLOOR, _FLOOR_OF_FEW = 0.015, 0.04  # the least noise that is believed
_FLOOR_OF_COPIES = 0.1  # an unchanged max pool took a quarter longer in the next process
_ROUNDS = 3  # of fewer the median says next to nothing


@dataclass(frozen=True)
class Machine:
    """How a device itself changed between two runs, how that is known, and the noise of a row's change."""

    factor: float  # times: above 1 the machine was slower in the later run
    noise: float  # of the logarithm of a change
    by: str

    def beyond(self, *, copies: bool = False) -> float:
        """How large a change has to be to count."""
        return max(LEAST, math.expm1(_SURE * (max(self.noise, _FLOOR_OF_COPIES) if copies else self.noise)))

    def __str__(self) -> str:
        return (
            f"took {self.factor:.3g} times as long as before by {self.by}, which is taken off; "
            f"noise of a row's change {self.noise:.1%}, so that less than {self.beyond():.0%} counts as same "
            f"({self.beyond(copies=True):.0%} where copies are the limit)"
        ).replace("%", " %")


@dataclass(frozen=True)
class Change:
    """One row in both records."""

    key: str
    before_ms: float
    after_ms: float
    times: float  # after over before, the machine's factor taken off: above 1 it is slower
    verdict: Verdict
    before_method: str = ""
    after_method: str = ""


@dataclass(frozen=True)
class Comparison:
    """A record beside an earlier one."""

    before: str  # when the earlier run began
    machines: Mapping[str, Machine]  # by device
    changes: tuple[Change, ...]  # of the rows in both
    missing: tuple[str, ...]  # keys that only the earlier record has
    added: tuple[str, ...]  # and only the later
    warnings: tuple[str, ...] = ()  # what else differs between the runs

    def of(self, verdict: Verdict) -> list[Change]:
        """The changes of this kind, the largest first."""
        found = [change for change in self.changes if change.verdict == verdict]
        return sorted(found, key=lambda change: -abs(math.log(change.times)))


def compare(before: Record, after: Record) -> Comparison:
    """What changed from one run to another."""
    old, new = ({row["key"]: row for row in record["rows"]} for record in (before, after))
    both = [(old[key], row) for key, row in new.items() if key in old]
    machines = {}
    for device in dict.fromkeys(row["device"] for _, row in both):
        limits = [record["devices"].get(device, {}).get("limits", {}) for record in (before, after)]
        machines[device] = machine([pair for pair in both if pair[1]["device"] == device], *limits)
    return Comparison(
        before.get("begun", "at an unknown time"),
        machines,
        tuple(change(*pair, machines[pair[1]["device"]]) for pair in both),
        tuple(key for key in old if key not in new),
        tuple(key for key in new if key not in old),
        tuple(_warnings(before, after)),
    )


def machine(both: Sequence[tuple[Row, Row]], limits_before: Row, limits_after: Row) -> Machine:
    """How a device changed, from its rows in both records, and from its limits."""
    changes = [found for before, after in both for found in _changes_of_rivals(before, after)]
    floor = _FLOOR if len(changes) >= _MANY else _FLOOR_OF_FEW
    if changes:
        middle = median(changes)
        by = f"{len(changes)} times of rivals"
        return Machine(math.exp(middle), max(floor, deviation(changes)), by)
    changes = list(_changes_of_limits(limits_before, limits_after))
    if not changes:
        return Machine(1.0, floor, "nothing, for there is nothing to compare")
    middle = median(changes)
    ours = [_logarithm(after) - _logarithm(before) - middle for before, after in both]
    noise = max(floor, max(changes) - middle, deviation(ours))
    return Machine(math.exp(middle), noise, "its matrix products and copies")


def change(before: Row, after: Row, device: Machine) -> Change:
    """What became of one row."""
    change_of_ours = _logarithm(after) - _logarithm(before)
    times = math.exp(change_of_ours) / device.factor
    of_rivals = median([*_changes_of_rivals(before, after)] or [math.log(device.factor)])
    beside = change_of_ours - of_rivals
    old, new = (_samples(row) for row in (before, after))
    verdict: Verdict = "same"
    if min(len(old), len(new)) < _ROUNDS:
        verdict = "too few rounds"
    else:
        least = math.log1p(device.beyond(copies=_is_copying(after)))
        beyond = max(least, abs(of_rivals - math.log(device.factor)))
        (old_low, old_high), (new_low, new_high) = median_interval(old), median_interval(new)
        if min(math.log(times), beside) > beyond and new_low / device.factor > old_high:
            verdict = "slower"
        elif max(math.log(times), beside) < -beyond and new_high / device.factor < old_low:
            verdict = "faster"
    was, now = (1e3 * math.exp(_logarithm(row)) for row in (before, after))
    return Change(after["key"], was, now, times, verdict, before.get("method", ""), after.get("method", ""))


def _is_copying(row: Row) -> bool:
    return row.get("limit") == "copy"


def _samples(row: Row, name: str = OURS) -> list[float]:
    return [seconds[name] for seconds in row["rounds"] if name in seconds]


def _logarithm(row: Row, name: str = OURS) -> float:
    """Of the median."""
    return math.log(median(_samples(row, name)))


def _changes_of_rivals(before: Row, after: Row) -> Iterator[float]:
    """Of those that a row has in both records."""
    for name in after["rivals"]:
        if _samples(before, name) and _samples(after, name):
            yield _logarithm(after, name) - _logarithm(before, name)


def _changes_of_limits(before: Row, after: Row) -> Iterator[float]:
    """Of times: a limit that is half as high takes twice as long."""
    products_before, products_after = before.get("matrix_gflops", {}), after.get("matrix_gflops", {})
    for dtype in products_after:
        if dtype in products_before:
            yield math.log(products_before[dtype] / products_after[dtype])
    if "copy_gbs" in before and "copy_gbs" in after:
        yield math.log(before["copy_gbs"] / after["copy_gbs"])


def _warnings(before: Record, after: Record) -> Iterator[str]:
    for name in ("processor", "threads", "variables", "packages"):
        was, now = (record["machine"].get(name) for record in (before, after))
        if was != now:
            yield f"{name} differ: {_told(was, now)} before, {_told(now, was)} now"
    if before["asked"].get("cold") != after["asked"].get("cold"):
        yield "one of the runs overwrote the caches before each call (--cold), the other did not"


def _told(value: Any, other: Any) -> str:
    """A value; of one that has entries those that the other has not."""
    if not isinstance(value, dict):
        return str(value)
    others = other if isinstance(other, dict) else {}
    return ", ".join(f"{name} {entry}" for name, entry in value.items() if others.get(name) != entry) or "none"
