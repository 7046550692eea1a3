"""Who computes a cell: xpconv in one or both layouts, and the cell's peers."""

from __future__ import annotations

from dataclasses import replace

from xpconv.bench import rivals
from xpconv.bench.data import Data
from xpconv.bench.sides import OURS, Place, Side, ours

from .cells import Cell

FIRST = f"{OURS} channels_first"


def sides_of(cell: Cell, data: Data, *, both: bool = False, threads: int = 1) -> tuple[list[Side], dict[str, str]]:
    """The candidates, ours first, and why others are missing."""
    case = cell.case
    found = [ours(case, data)]
    if both and not case.plain:
        found.append(replace(ours(replace(case, layout="channels_first"), data), name=FIRST))
    others, missing = rivals.sides_of(cell.peers, case, data, Place(threads=threads))
    return [*found, *others], missing
