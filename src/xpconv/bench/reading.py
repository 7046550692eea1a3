"""What a record says beyond its fields: roofs, means, which rows belong together, where the GPU starts to win."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from math import inf
from statistics import geometric_mean
from typing import Any

from xpconv.bench.scale import LogAxis

Row = dict[str, Any]

_ROOM = 10  # of intensities left of a ridge, where a roof has its label because no point can lie there
_MERGED = 5.0  # percent of the height: roofs nearer than that have their labels one below the other
FIELDS = ("network", "layer", "operation", "batch", "dtype", "layout", "device")  # what a row is, not what it measured


def moment(begun: str) -> str:
    """When a run began, as people write it."""
    try:
        then = datetime.fromisoformat(begun)
    except ValueError:
        return begun
    return f"{then.day} {then:%B %Y, %H:%M %Z}".strip()


def networks(rows: Iterable[Row]) -> list[str]:
    """In the order in which they come."""
    return list(dict.fromkeys(row["network"] for row in rows))


def rivals(rows: Iterable[Row]) -> list[str]:
    """All that were timed, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row["rivals"]))


def varying(rows: list[Row]) -> list[str]:
    """The fields in which rows differ."""
    return [field for field in FIELDS if len({row[field] for row in rows}) > 1]


def usual(rows: list[Row]) -> dict[str, Any]:
    """What need not be said of a row: each field's commonest value, but a batch only where there is one batch alone."""
    common = {field: Counter(row[field] for row in rows).most_common(1)[0][0] for field in FIELDS if rows}
    return {field: value for field, value in common.items() if field != "batch" or field not in varying(rows)}


def title(row: Row, known: dict[str, Any]) -> str:
    """The row's layer, and whatever is not as in the rows that are known."""
    said = {"batch": f"batch\u00a0{row['batch']}", "layout": row["layout"].replace("_", " ")}
    unusual = [field for field in FIELDS[2:] if row[field] != known.get(field)]
    return ", ".join([row["layer"], *(said.get(field, str(row[field])) for field in unusual)])


# --- The roofline -----------------------------------------------------------------------------------------------------


def counted(rows: Iterable[Row]) -> list[Row]:
    """Those whose operations are counted, which the roofline can show."""
    return [row for row in rows if row["operations"] and row["bytes"] and row["gflops"]]


def intensity(row: Row) -> float:
    """Operations per byte."""
    return float(row["operations"] / row["bytes"])


def roof(row: Row, limits: dict[str, Any]) -> float:
    """GFLOP/s that the device could do at most at the row's intensity, as its own measurements say."""
    matrix = limits["matrix_gflops"].get(row["dtype"], float("inf"))
    return float(min(matrix, intensity(row) * limits["copy_gbs"]))


def above_roof(rows: Iterable[Row], limits: dict[str, Any]) -> list[Row]:
    """Those that were faster than the roof, most of all because Winograd does fewer products than are counted."""
    return [row for row in counted(rows) if row["gflops"] > roof(row, limits)]


def roof_axes(rows: list[Row], limits: dict[str, Any]) -> tuple[LogAxis, LogAxis]:
    """Operations per byte and GFLOP/s, wide enough for the points, the roofs, and their labels left of the ridges."""
    matrix, copy = limits["matrix_gflops"].values(), limits["copy_gbs"]
    x = LogAxis.around([*map(intensity, rows), *(speed / copy / _ROOM for speed in matrix)], 1.6)
    return x, LogAxis.around([*(row["gflops"] for row in rows), *matrix], 1.9)


def labelled_roofs(matrix: dict[str, float], y: LogAxis) -> list[dict[str, float]]:
    """The speeds from the fastest on, those together that are too near for a label beside each."""
    found: list[dict[str, float]] = []
    last = inf
    for dtype, speed in sorted(matrix.items(), key=lambda item: -item[1]):
        if last - y.at(speed) < _MERGED:
            found[-1][dtype] = speed
        else:
            found.append({dtype: speed})
        last = y.at(speed)
    return found


# --- Beside rivals ----------------------------------------------------------------------------------------------------


def verdict(ratio_10_90: tuple[float, float]) -> str:
    """Whether xpconv is "faster" or "slower" than the rival, or "even": the spread of the ratio holds 1."""
    low, high = ratio_10_90
    return "faster" if low > 1 else "slower" if high < 1 else "even"


@dataclass(frozen=True)
class Mean:
    """The geometric mean of a rival's times over ours, of how many rows, and in how many xpconv was the faster."""

    rival: str
    ratio: float
    rows: int
    faster: int


def means(rows: list[Row]) -> list[Mean]:
    """One for each rival, beginning with the one beside which most was measured."""
    found = []
    for rival in rivals(rows):
        ratios = [row["rivals"][rival]["ratio"] for row in rows if rival in row["rivals"]]
        found.append(Mean(rival, geometric_mean(ratios), len(ratios), sum(ratio > 1 for ratio in ratios)))
    return sorted(found, key=lambda mean: -mean.rows)


# --- CPU against GPU --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """One layer on the CPU and on others: milliseconds per item, by device and batch."""

    row: Row
    per_item: dict[str, dict[int, float]]

    def outcome(self, device: str) -> str:
        """From which batch on the device beats the CPU at every larger one too, in words."""
        cpu, own = self.per_item["cpu"], self.per_item[device]
        shared = sorted(cpu.keys() & own.keys())
        won: list[int] = []
        for batch in reversed(shared):
            if own[batch] >= cpu[batch]:
                break
            won.append(batch)
        if not won:
            return f"does not win, up to batch {shared[-1]}"
        if len(won) < len(shared):
            return f"wins from batch {won[-1]} on"
        batches = f"every batch from {shared[0]} to {shared[-1]}" if len(shared) > 1 else f"batch {shared[0]}"
        return f"wins at {batches}"


def races(rows: Iterable[Row]) -> list[Race]:
    """The layers that the CPU and another device both computed at the same batch."""
    first: dict[tuple[str, ...], Row] = {}
    times: dict[tuple[str, ...], dict[str, dict[int, float]]] = {}
    for row in rows:
        key = tuple(row[field] for field in FIELDS if field not in ("batch", "device"))
        first.setdefault(key, row)
        times.setdefault(key, {}).setdefault(row["device"], {})[row["batch"]] = row["ms"] / max(row["batch"], 1)
    found = []
    for key, devices in times.items():
        cpu = devices.get("cpu", {})
        rival = {name: batches for name, batches in devices.items() if name != "cpu" and cpu.keys() & batches.keys()}
        if rival:
            found.append(Race(first[key], {"cpu": cpu, **rival}))
    return found
