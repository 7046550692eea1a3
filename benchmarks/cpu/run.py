"""One cell after another: the sides are made, checked, timed in turn, and on record whatever comes after."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from xpconv.bench import rivals
from xpconv.bench.data import data_of
from xpconv.bench.row import checked
from xpconv.bench.sides import OURS
from xpconv.bench.statistics import medians, ratios, short, spread
from xpconv.bench.timing import BATCH, REST, Calls, measure, repeated

from .cells import Cell
from .sides import FIRST, sides_of


@dataclass(frozen=True)
class Asked:
    """How the cells are timed."""

    rounds: int = 7
    threads: int = 1
    both_layouts: bool = False
    both_weights: bool = False
    time_left: Callable[[], float] = lambda: float("inf")
    rest: float = REST
    batch: float = BATCH


def run(cells: list[Cell], asked: Asked, record: dict[str, Any], done: Callable[[str], None]) -> None:
    """Put the cells on record, and call `done` with the key of each."""
    record["not_run"] = [cell.key for cell in cells]
    with rivals.without_gradients({peer for cell in cells for peer in cell.peers}):
        for cell in cells:
            if asked.time_left() <= 0:
                return
            entry = record["cells"][cell.key] = _described(cell)
            record["not_run"].remove(cell.key)
            try:
                time_cell(cell, asked, entry)
            finally:
                entry.update(figures(entry))
                done(cell.key)
            gc.collect()  # the arrays of a large cell, before the next has its own


def time_cell(cell: Cell, asked: Asked, entry: dict[str, Any]) -> None:
    """Check and time the sides of a cell."""
    data = data_of(cell.case)
    sides, entry["missing"] = sides_of(cell, data, both=asked.both_layouts, threads=asked.threads)
    entry["methods"] = {side.name: side.method for side in sides if side.method}
    sides, found, entry["wrong"] = checked(cell.case, data, sides)
    entry["errors"] = {name: short(error, 2) if isfinite(error) else "infinite" for name, error in found.items()}
    how = {"time_left": asked.time_left, "rest": asked.rest, "batch": asked.batch}
    measure({side.name: repeated(side.call) for side in sides}, asked.rounds, entry["rounds"], **how)
    fresh = {side.name: _fresh(side.fresh) for side in sides if side.fresh}
    if asked.both_weights and fresh:
        measure(fresh, asked.rounds, entry["first_rounds"], **how)


def figures(entry: dict[str, Any]) -> dict[str, Any]:
    """What the rounds of a cell say."""
    rounds = entry["rounds"]
    if not rounds:
        return {}
    found: dict[str, Any] = {"ms": _milliseconds(rounds), "ms_10_90": _spreads(rounds), **_against(rounds)}
    if entry["operations"]:
        found["gflops"] = {name: short(entry["operations"] / ms / 1e6) for name, ms in found["ms"].items()}
    if OURS in rounds[0] and FIRST in rounds[0]:  # above 1 channels last is the faster
        found["first_over_last"] = short(medians([{"": r[FIRST] / r[OURS]} for r in rounds])[""])
    if entry["first_rounds"]:
        found["first"] = {"ms": _milliseconds(entry["first_rounds"]), **_against(entry["first_rounds"])}
    return found


def _against(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The best peer's time over ours, and the peer that is best by its median."""
    peers = [name for name in rounds[0] if name not in (OURS, FIRST)]
    if OURS not in rounds[0] or not peers:
        return {}
    values, middle = ratios(rounds, OURS, peers), medians(rounds)
    return {
        "ratio": short(medians([{"": value} for value in values])[""]),
        "ratio_10_90": [short(value) for value in spread(values)],
        "best_peer": min(peers, key=middle.__getitem__),
    }


def _described(cell: Cell) -> dict[str, Any]:
    told = asdict(cell)
    told.pop("peers")
    return {**told, "operations": cell.case.operations, "rounds": [], "first_rounds": []}


def _fresh(make: Callable[[], Any]) -> Calls:
    return lambda count: [make() for _ in range(count)]


def _milliseconds(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: short(1e3 * seconds) for name, seconds in medians(rounds).items()}


def _spreads(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [short(1e3 * value) for value in spread([r[name] for r in rounds])] for name in rounds[0]}
