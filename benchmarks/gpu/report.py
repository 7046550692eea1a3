"""The record of all parts as text: what was found, and every target with the figure beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu.common import NOT_MEASURED
from benchmarks.gpu.layers import BATCHES, DIRECTIONS, DTYPES

_LEAST = {"float32": 1.5, "tf32": 1.0, "float16": 1.0, "bfloat16": 1.0}  # times faster than torch with cuDNN
_SHARE_OF_COPY, _FILTERS, _OVERHEAD_US, _FIRST_S, _FROM_DISK_S = 0.8, 10.0, 10.0, 1.5, 0.02


def text(record: dict[str, Any]) -> str:
    """All sections."""
    parts = record.get("parts", {})
    sections = (_head, _conformance, _sanitizer, _suite, _latency, _targets, _cells)
    lines: list[str] = []
    for section in sections:
        try:
            lines += [*section(record, parts), ""]
        except Exception as error:  # a table must not fail over one odd entry; the JSON has it
            lines += [f"{section.__name__.strip('_')}: could not be told ({type(error).__name__}: {error})", ""]
    return "\n".join(lines)


def _head(record: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    environment = parts.get("environment", {})
    yield f"xpconv on {environment.get('device', 'an unknown device')}, {record['date']}"
    if record["emulated"]:
        yield f"ALL FIGURES: {NOT_MEASURED}"
    for name in ("nvidia_smi", "cupy", "torch", "packages"):
        yield f"{name}: {_inline(environment.get(name))}"
    yield ""
    yield "part          state, seconds"
    for name, part in parts.items():
        why = f": {part['reason']}" if "reason" in part else ""
        yield f"{name:13} {part.get('state', 'no record')}, {part.get('seconds_taken', '?')} s{why}"


def _inline(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _conformance(_: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    part = parts.get("conformance", {})
    yield f"WRAPPERS OF PTX: {_inline(part.get('summary', {})) or 'nothing was run'}"
    for family, told in part.get("families", {}).items():
        if told.get("state") not in ("complete", None):
            yield f"  {family}: {told['state']}, {told.get('reason', '')}"
    for name, case in part.get("cases", {}).items():
        yield f"  {name}: {case['state']}{', ' + case['reason'] if 'reason' in case else ''}"
        for trial, entry in case.get("trials", {}).items():
            yield f"    {trial}: {_trial(entry)}"


def _trial(entry: dict[str, Any]) -> str:
    if "failed" in entry:
        return entry["failed"]
    verdict, twin = entry["of_definition"], entry.get("of_twin", {})
    words = [f"{verdict['identical']} of {verdict['elements']} bits as NumPy says, {verdict['wrong']} wrong"]
    if verdict["worst"]:
        words.append(f"worst error {verdict['worst']:.2g} of what is allowed")
    words.append(f"twin: {twin['same bits']} of {twin['of']} the same" if "of" in twin else f"twin: {_inline(twin)}")
    words += [entry["observed"]] if "observed" in entry else []
    words += [verdict["first"]] if verdict["first"] else []
    return "; ".join(words)


def _sanitizer(_: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    part = parts.get("sanitizer", {})
    yield f"COMPUTE-SANITIZER: {part.get('reason', part.get('state', 'nothing was run'))}"
    for name, told in part.get("tools", {}).items():
        summary = "; ".join(told.get("summary", []))
        yield f"  {name}: {told['state']}, {told.get('calls_done', 0)} calls, {told.get('ending', '')} {summary}"
        for finding in (told.get("findings", []) + told.get("wrong_results", []))[:8]:
            yield f"    {finding}"


def _suite(_: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    part = parts.get("tests", {})
    yield f"TESTS: {_inline(part.get('counts', {})) or part.get('reason', 'nothing was run')}; {part.get('ending', '')}"
    for name in part.get("failures", [])[:40]:
        yield f"  {name}"


# --- Targets ----------------------------------------------------------------------------------------------------------


def _targets(_: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    cells, latency = parts.get("benchmark", {}).get("cells", {}), parts.get("latency", {})
    yield "TARGETS (geometric means of times faster; a cell counts only where its result is right)"
    for dtype in DTYPES:
        dense = _ratios(cells, lambda key, dtype=dtype: _is_dense(key) and key.endswith(f"| {dtype}"))
        yield _target(
            f"convolutions, {dtype}{' exact' if dtype == 'float32' else ''}", _mean(dense), _LEAST[dtype], dense
        )
        for name, wanted in _parts_of(dtype):
            if some := _ratios(cells, wanted):
                yield _target(f"    {name}", _mean(some), None, some)
    for kind, start in (("depthwise", "layer | depthwise "), ("pooling", "pooling "), ("layout", "layout ")):
        shares = _numbers(cells, "share_of_copy", lambda k, s=start: k.startswith(s) and "| N=64 | forward" in k)
        yield _target(f"{kind}, N = 64, share of copy bandwidth (median)", _median(shares), _SHARE_OF_COPY, shares)
    some = _ratios(cells, lambda key: key.startswith("filter "))
    yield _target("filters of single images", _mean(some), _FILTERS, some)
    overheads = [
        v["median"] for k, v in latency.get("host_overhead_us", {}).items() if "torch" not in k and "median" in v
    ]
    yield _target("host overhead of a small call, us (worst)", _worst(overheads), -_OVERHEAD_US, overheads)
    for name, key, most in (
        ("first use, s (worst)", "cold", _FIRST_S),
        ("from disk cache, s (worst)", "from_disk", _FROM_DISK_S),
    ):
        seconds = [s for s in latency.get(key, {}).get("seconds", {}).values() if not isinstance(s, dict)]
        yield _target(name, _worst(seconds), -most, seconds)


def _parts_of(dtype: str) -> Iterator[tuple[str, Callable[[str], bool]]]:
    """Which cells of a dtype make up a direction, a batch and a network."""
    for direction in DIRECTIONS:
        yield direction, lambda key, end=f"| {direction} | {dtype}": _is_dense(key) and key.endswith(end)
    for batch in BATCHES:
        yield (
            f"N = {batch}",
            lambda key, n=f"| N={batch} |": _is_dense(key) and n in key and key.endswith(f"| {dtype}"),
        )
    for network in ("ResNet-50", "VGG-16", "audio", "volume", "depthwise"):
        yield network, lambda key, n=f"layer | {network} ": key.startswith(n) and key.endswith(f"| {dtype}")


def _is_dense(key: str) -> bool:
    return key.startswith("layer ") and not key.startswith("layer | depthwise ")


def _numbers(cells: dict[str, Any], entry: str, wanted: Callable[[str], bool]) -> list[Any]:
    return [cell[entry] for key, cell in cells.items() if wanted(key) and cell.get("right") and entry in cell]


def _ratios(cells: dict[str, Any], wanted: Callable[[str], bool]) -> list[Any]:
    return _numbers(cells, "times_faster", wanted)


def _mean(values: list[Any]) -> float | str | None:
    return _of_measured(values, lambda numbers: math.exp(statistics.fmean(map(math.log, numbers))))


def _median(values: list[Any]) -> float | str | None:
    return _of_measured(values, statistics.median)


def _worst(values: list[Any]) -> float | str | None:
    return _of_measured(values, max)


def _of_measured(values: list[Any], summary: Callable[[list[float]], float]) -> float | str | None:
    if NOT_MEASURED in values:
        return NOT_MEASURED
    numbers = [value for value in values if isinstance(value, int | float) and value > 0]
    return summary(numbers) if numbers else None


def _target(name: str, value: float | str | None, target: float | None, values: list[Any]) -> str:
    """One line; a negative target is a limit from above."""
    if value is None:
        return f"  {name:52} not measured"
    told = value if isinstance(value, str) else f"{value:.3g}"
    if target is None:
        return f"  {name:52} {told:>8}  of {len(values)}"
    wanted = f"target {'at least' if target > 0 else 'at most'} {abs(target):g}"
    if isinstance(value, str):
        return f"  {name:52} {told}  {wanted}"
    met = value >= target if target > 0 else value <= -target
    return f"  {name:52} {told:>8}  of {len(values)}; {wanted}: {'met' if met else 'MISSED'}"


# --- Details ----------------------------------------------------------------------------------------------------------


def _latency(_: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    part = parts.get("latency", {})
    yield "FIRST USE (seconds) AND HOST OVERHEAD (microseconds)"
    for key in ("cold", "from_disk"):
        yield f"  {key}: {_inline(part.get(key, {}).get('seconds', part.get(key)))}"
    for name, entry in part.get("host_overhead_us", {}).items():
        yield f"  {name}: {_inline(entry)}"


def _cells(_: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    part = parts.get("benchmark", {})
    copy = part.get("copy", {})
    yield f"CELLS; copy bandwidth, GB/s: {_inline(copy.get('gigabytes_per_second', copy))}; torch: {part.get('torch')}"
    yield f"  {'what':84} {'ms':>9} {'best peer':>9} {'faster':>7} {'of copy':>7} {'TFLOP/s':>7}  error   method; peer"
    for key, cell in part.get("cells", {}).items():
        if "ms" not in cell:
            yield f"  {key:84} {cell.get('missing', cell.get('state'))}"
            continue
        peer = cell.get("best_peer", "")
        columns = [
            cell["ms"]["xpconv"],
            cell["ms"].get(peer, ""),
            *(cell.get(name, "") for name in ("times_faster", "share_of_copy", "teraflops")),
        ]
        numbers = " ".join(f"{_short(c):>{width}}" for c, width in zip(columns, (9, 9, 7, 7, 7), strict=True))
        wrong = "" if cell["right"] else f"WRONG {cell.get('differs', '')} "
        plan = cell.get("plan", {})
        how = f"{plan.get('engine', '')} {plan.get('method', '')}".strip()
        yield f"  {key:84} {numbers}  {wrong}{cell['errors'].get('xpconv', '')}  {how}; {peer}"
    yield from (f"kernel that could not be had: {told}" for told in part.get("kernels_unavailable", []))
    waiting = part.get("not_run", [])
    yield f"not run, for want of time: {len(waiting)} groups"
    yield from (f"  {key}" for key in waiting)


def _short(value: Any) -> str:
    return "-" if value == NOT_MEASURED else f"{value:.3g}" if isinstance(value, float) else str(value)
