"""The record as text: the machine, the summary, every cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xpconv.bench.machine import slowed
from xpconv.bench.sides import OURS
from xpconv.bench.statistics import geometric_mean, medians, ratios

from .cells import CONVOLUTIONS, GROUPS, KINDS, LARGE, NOT_DENSE, SMALL, WIDE
from .sides import FIRST

Entries = list[dict[str, Any]]


def text(record: dict[str, Any], *, cells: bool = True) -> str:
    """All sections; those who saw the cells pass by need them no more."""
    sections = (_head, _summary, *((_cells,) if cells else ()), _overhead, _processes, _ending)
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section(record)))) + "\n"


def line(key: str, entry: dict[str, Any]) -> str:
    """One cell."""
    wrong = "".join(f"  WRONG {name}: {why}" for name, why in entry.get("wrong", {}).items())
    missing = entry.get("missing", {})
    wrong += "".join(f"  without {name} ({why})" for name, why in missing.items() if not _not_installed(why))
    method, errors = entry.get("methods", {}).get(OURS, ""), entry.get("errors", {})
    if OURS not in entry.get("ms", {}):
        return f"{key:52} {method:9} not timed{wrong}"
    peer = entry.get("best_peer", "")
    numbers = [entry["ms"][OURS], _pair(entry["ms_10_90"][OURS]), entry["ms"].get(peer), entry.get("ratio")]
    numbers += [_pair(entry.get("ratio_10_90")), entry.get("gflops", {}).get(OURS), errors.get(OURS)]
    columns = " ".join(f"{_number(n):>{w}}" for n, w in zip(numbers, (8, 15, 8, 6, 12, 6, 7), strict=True))
    more = f"  first {_number(entry['first']['ms'].get(OURS))} ms" if "first" in entry else ""
    more += f" x{_number(entry['first']['ratio'])}" if "ratio" in entry.get("first", {}) else ""
    if "first_over_last" in entry:
        how = entry["methods"].get(FIRST, "")
        more += f"  channels_first {_number(entry['ms'][FIRST])} ms, {entry['first_over_last']:.2f} of last, {how}"
    return f"{key:52} {method:9} {columns}  {peer}{more}{wrong}"


def summary(cells: dict[str, dict[str, Any]]) -> list[tuple[str, int, float]]:
    """Name, how many cells, and the geometric mean of their ratios: the convolutions, their classes, other groups."""
    timed = [entry for entry in cells.values() if "ratio" in entry]
    convolutions = [entry for entry in timed if entry["group"] == "conv"]
    rows = [("convolutions", convolutions)]
    rows += [(f"  N = {batch}", [e for e in convolutions if e["batch"] == batch]) for batch in (1, 8)]
    rows += [(f"  {kind}", [e for e in convolutions if e["kind"] == kind]) for kind in KINDS]
    rows += [(group, [e for e in timed if e["group"] == group]) for group in GROUPS[1:]]
    rows += [(f"  {kind}", [e for e in timed if e["kind"] == kind]) for kind in (*WIDE, *LARGE, *SMALL)]
    small = [entry for entry in timed if entry["group"] == "overhead"]
    found = [(name, [e["ratio"] for e in entries]) for name, entries in rows]
    found += [(f"convolutions, {peer} alone", _alone(convolutions, peer)) for peer in ("torch", "onnxruntime")]
    dense = [entry for entry in convolutions if entry["kind"] not in NOT_DENSE]
    found.append(("dense convolutions, torch alone", _alone(dense, "torch")))
    found.append(("overhead, torch alone", _alone(small, "torch")))
    found += [(f"  {kind}, torch alone", _alone([e for e in small if e["kind"] == kind], "torch")) for kind in SMALL]
    found.append(("convolutions, first calls", [e["first"]["ratio"] for e in convolutions if _first_ratio(e)]))
    found.append(("time of channels_first over channels_last", [e["first_over_last"] for e in _with_both(cells)]))
    return [(name, len(values), mean) for name, values in found if (mean := geometric_mean(values)) is not None]


def _alone(entries: Entries, peer: str) -> list[float]:
    """Ratios to one library in its best memory format."""
    found = []
    for entry in entries:
        names = [name for name in entry["rounds"][0] if name.split()[0] == peer]
        if names:
            found.append(medians([{"": value} for value in ratios(entry["rounds"], OURS, names)])[""])
    return found


def _first_ratio(entry: dict[str, Any]) -> bool:
    return "ratio" in entry.get("first", {})


def _with_both(cells: dict[str, dict[str, Any]]) -> Entries:
    return [entry for entry in cells.values() if "first_over_last" in entry]


def _head(record: dict[str, Any]) -> Iterator[str]:
    machine = record["environment"]
    yield f"xpconv on NumPy arrays, {machine['processor']}, {record['date']}"
    own = f"xpconv's kernels: {machine['threads_of_xpconv']}"
    yield f"{machine['cores']} cores, {machine['threads']} threads ({own}), load {machine['load_average']}"
    yield slowed(machine["variables"])
    yield "set: " + (_inline({k: v for k, v in machine["variables"].items() if v != "not set"}) or "no variable")
    yield f"BLAS: {machine['blas']}"
    yield f"Python {machine['python']}, {machine['system']}, commit {machine['commit']}"
    yield _inline(machine["packages"])
    asked = record["asked"]
    missing = {name: why for entry in record["cells"].values() for name, why in entry.get("missing", {}).items()}
    yield from (f"left out: {name} ({why})" for name, why in missing.items() if _not_installed(why))
    yield f"medians of {asked['rounds']} rounds, in which the candidates take turns; torch in inference mode"


def _not_installed(why: str) -> bool:
    return "is not installed" in why


def _summary(record: dict[str, Any]) -> Iterator[str]:
    yield "GEOMETRIC MEANS of the best peer's time over ours: above 1 we are faster"
    for name, count, mean in summary(record["cells"]):
        of = f" of {2 * len(CONVOLUTIONS)}" if name.startswith("convolutions") else ""
        yield f"  {name:44} {mean:6.2f}  {count}{of} cells"


def _cells(record: dict[str, Any]) -> Iterator[str]:
    yield "CELLS; error relative to the largest result"
    columns = ("ms", "10..90 %", "peer", "times", "10..90 %", "GFLOPs", "error")
    yield f"{'':52} {'method':9} " + " ".join(
        f"{c:>{w}}" for c, w in zip(columns, (8, 15, 8, 6, 12, 6, 7), strict=True)
    )
    for key, entry in record["cells"].items():
        yield line(key, entry)


def _overhead(record: dict[str, Any]) -> Iterator[str]:
    found = {
        key: entry["ms"] for key, entry in record["cells"].items() if entry["group"] == "overhead" and "ms" in entry
    }
    if found:
        yield "MICROSECONDS of a call with next to no work"
    for key, sides in found.items():
        yield f"  {key}: {_inline({name: float(_number(1e3 * ms)) for name, ms in sides.items()})}"


def _processes(record: dict[str, Any]) -> Iterator[str]:
    if starts := record.get("first_result_seconds"):
        yield f"SECONDS from import to the first result of 3x3 64@56, in a new process: {_inline(starts)}"
    if memory := record.get("extra_memory_bytes"):
        yield "MEGABYTES beside inputs and result, the most during a call, in a new process"
        for key, sides in memory.items():
            told = {name: round(n / 1e6, 1) if isinstance(n, int | float) else n for name, n in sides.items()}
            yield f"  {key}: {_inline(told)}"


def _ending(record: dict[str, Any]) -> Iterator[str]:
    yield f"{record['state']} after {record['seconds']} s"
    if waiting := record["not_run"]:
        yield f"not run: {'; '.join(waiting)}"


def _inline(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _pair(values: list[float] | None) -> str | None:
    return None if values is None else "..".join(_number(value) for value in values)


def _number(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"
