"""One row of a record: a case on one device, its sides made, checked and timed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import median
from typing import Any

from xpconv.bench import limits, rivals, timing
from xpconv.bench.cases import Case
from xpconv.bench.data import Data, data_of, errors, right
from xpconv.bench.sides import OURS, Place, Side, ours
from xpconv.bench.statistics import medians, ratios, short, spread
from xpconv.bench.timing import repeated
from xpconv.explanation import Explanation

_HOPELESS = 2.0  # times the rival's other way: it is timed no more


class Row:
    """One case on one device: what is known of its sides, and its rounds so far."""

    def __init__(self, case: Case, place: Place) -> None:
        self.case, self.device, self._place = case, place.device, place
        self.key = key_of(case, place.device)
        self.rounds: list[dict[str, float]] = []
        self._plan: Explanation | None = None
        self._errors: dict[str, float] = {}
        self._left_out: dict[str, str] = {}
        self._timed: set[str] = set()  # the sides that are right, and worth their time

    def measure(self, names: Sequence[str], rounds: int, **how: Any) -> None:
        """Make the sides of xpconv and the rivals of those names, and time them in turn; `how` is for `timing.measure`.

        The first time they are checked, a rival that cannot is left out with its reason, and of a rival's ways the
        hopeless one is dropped at the end.
        """
        data = data_of(self.case)
        own = ours(self.case, data, self.device)
        others, left_out = rivals.sides_of(names, self.case, data, self._place)
        sides, first = [own, *others], not self.rounds
        if first:
            self._plan, self._left_out = own.plan, left_out
            self._timed = {side.name for side in self._right_ones(data, sides)}
        del data
        candidates = {side.name: repeated(side.call) for side in sides if side.name in self._timed}
        if gone := self._timed - set(candidates):
            raise RuntimeError(f"{', '.join(sorted(gone))} cannot be had again: {'; '.join(left_out.values())}")
        timing.measure(candidates, rounds, self.rounds, **how)
        if first and self.rounds:
            self._timed -= set(hopeless(medians(self.rounds)))
            self.rounds = [{name: r[name] for name in r if name in self._timed} for r in self.rounds]

    def _right_ones(self, data: Data, sides: Sequence[Side]) -> list[Side]:
        found, self._errors, wrong = checked(self.case, data, sides)
        if OURS in wrong:
            raise RuntimeError(f"xpconv: {wrong[OURS]}")
        self._left_out |= wrong
        return found

    def told(self, device_limits: dict[str, Any]) -> dict[str, Any]:
        """The row of the record."""
        case, rounds, plan = self.case, self.rounds, self._plan
        assert plan is not None
        seconds = medians(rounds)
        limit, least = limits.bound(case.operations, case.bytes, case.dtype, device_limits)
        best = best_sides(seconds)
        return {
            **_described(case, self._place.device),
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


def _described(case: Case, device: str) -> dict[str, Any]:
    """What stands in a row whatever is measured."""
    return {
        "key": key_of(case, device), "network": case.network, "layer": case.name, "operation": case.operation,
        "batch": case.batch or 1, "dtype": case.dtype, "layout": case.layout, "device": device,
        "operations": case.operations, "bytes": case.bytes,
    }  # fmt: skip


def key_of(case: Case, device: str) -> str:
    """Names the row in a record."""
    return f"{case.key} | {device}"


def _milliseconds(seconds: Sequence[float]) -> dict[str, Any]:
    return {"ms": short(1e3 * median(seconds)), "ms_10_90": [short(1e3 * value) for value in spread(seconds)]}
