"""One cell after another: the sides are made, checked, timed in turn, and on record whatever comes after."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from .cells import Cell
from .reference import Data, data_of, errors, right
from .sides import FIRST, OURS, Side, sides_of
from .timing import BATCH, REST, Calls, measure, medians, ratios, spread


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
    with _without_gradients(cells):
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
    data = data_of(cell)
    sides, entry["missing"] = sides_of(cell, data, both=asked.both_layouts, threads=asked.threads)
    entry["methods"] = {side.name: side.method for side in sides if side.method}
    sides = _right_ones(cell, data, sides, entry)
    how = {"time_left": asked.time_left, "rest": asked.rest, "batch": asked.batch}
    measure({side.name: _repeated(side) for side in sides}, asked.rounds, entry["rounds"], **how)
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
        found["gflops"] = {name: _short(entry["operations"] / ms / 1e6) for name, ms in found["ms"].items()}
    if OURS in rounds[0] and FIRST in rounds[0]:  # above 1 channels last is the faster
        found["first_over_last"] = _short(medians([{"": r[FIRST] / r[OURS]} for r in rounds])[""])
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
        "ratio": _short(medians([{"": value} for value in values])[""]),
        "ratio_10_90": [_short(value) for value in spread(values)],
        "best_peer": min(peers, key=middle.__getitem__),
    }


def _described(cell: Cell) -> dict[str, Any]:
    told = asdict(cell)
    told.pop("peers")
    return {**told, "operations": cell.operations, "rounds": [], "first_rounds": []}


def _right_ones(cell: Cell, data: Data, sides: list[Side], entry: dict[str, Any]) -> list[Side]:
    """The sides whose results are right; what is wrong with the others goes on record."""
    results, entry["wrong"] = {}, {}
    for side in sides:
        try:
            results[side.name] = side.result(side.call())
        except Exception as error:
            entry["wrong"][side.name] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    entry["errors"] = {}
    for name, error in errors(cell, data, results).items():
        entry["errors"][name] = float(f"{error:.2g}") if isfinite(error) else "infinite"  # JSON has no such number
        if not right(cell, error):
            entry["wrong"][name] = f"error {error:.2g}"
    return [side for side in sides if side.name not in entry["wrong"]]


def _repeated(side: Side) -> Calls:
    return lambda count: [side.call] * count


def _fresh(make: Callable[[], Any]) -> Calls:
    return lambda count: [make() for _ in range(count)]


def _without_gradients(cells: list[Cell]) -> AbstractContextManager[Any]:
    """torch's inference mode, where torch takes part."""
    if not any("torch" in cell.peers for cell in cells):
        return nullcontext()
    try:
        import torch
    except ImportError:
        return nullcontext()
    return torch.inference_mode()


def _milliseconds(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: _short(1e3 * seconds) for name, seconds in medians(rounds).items()}


def _spreads(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [_short(1e3 * value) for value in spread([r[name] for r in rounds])] for name in rounds[0]}


def _short(value: float) -> float:
    """With the digits that count."""
    return float(f"{value:.4g}")
