"""The record as text: the machine, and each of the parts that were run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xpconv.bench.machine import busy, slowed


def text(record: dict[str, Any]) -> str:
    """All sections."""
    sections = [_head(record), *(_PARTS[name](part) for name, part in record["parts"].items()), _ending(record)]
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section))) + "\n"


def part(name: str, record: dict[str, Any]) -> str:
    """One section."""
    return "\n".join(_PARTS[name](record["parts"][name]))


def _head(record: dict[str, Any]) -> Iterator[str]:
    machine = record["environment"]
    yield f"xpconv on Dask arrays, {machine['processor']}, {record['date']}"
    yield f"{machine['cores']} cores, load {machine['load_average']}; worker processes have one thread each"
    if warning := busy(machine):
        yield warning
    yield slowed(machine["variables"])
    yield f"Python {machine['python']}, {machine['system']}, commit {machine['commit']}"
    yield ", ".join(f"{name} {version}" for name, version in machine["packages"].items())


def _larger(part: dict[str, Any]) -> Iterator[str]:
    limit = part["memory_limit"]
    yield f"LARGER THAN MEMORY: {part['workers']} workers of {_mb(limit)} MB each, every element compared with SciPy's"
    yield "array MB, peak MB of each worker (idle), MB spilled and sent by all, workers that died"
    for name, job in part["jobs"].items():
        peaks = " and ".join(_mb(n) for n in job["peak_bytes"])
        yield (
            f"  {name}: {_mb(job['bytes'])} MB in {job['chunks']} chunks of {_mb(job['chunk_bytes'])} MB, "
            f"{_number(job['seconds'])} s, peak {peaks} ({_mb(max(job['idle_bytes']))}), "
            f"spilled {_mb(sum(job['spilled_bytes']))}, sent {_mb(sum(job['sent_bytes']))}, "
            f"died {job['workers_died']}, error {_number(job['error'])}"
        )


def _speed(part: dict[str, Any]) -> Iterator[str]:
    yield f"SPEED: medians of {part['rounds']} rounds in ms, 10..90 %, and times the plain call's"
    yield "results stay in chunks, with threads in this process, with processes in theirs"
    for key, row in part["rows"].items():
        yield f"  {key}"
        for name, ms in row["ms"].items():
            ends = "..".join(_number(n) for n in row["ms_10_90"][name])
            yield f"    {name:38} {_number(ms):>7} {ends:>14} {_number(row['times_plain'].get(name, 1.0)):>6}"
        yield from (f"    {name:38} WRONG: {_number(error)}" for name, error in row["wrong"].items())
        yield from (f"    left out: {name}" for name in row["left_out"])


def _scaling(part: dict[str, Any]) -> Iterator[str]:
    yield f"SCALING: chunks in the workers' memory, medians of {part['rounds']} rounds"
    yield f"  {'':26} {'chunks':>6} {'MB each':>7} {'1 worker':>9} {'2':>9} {'faster':>7} {'apart':>6} {'MB sent':>8}"
    for name, job in part["jobs"].items():
        one, two = (f"{_number(job['seconds'][n])} s" for n in "12")
        yield (
            f"  {name:26} {job['chunks']:6} {_mb(job['chunk_bytes']):>7} {one:>9} {two:>9} "
            f"{_number(job['times_faster']):>7} {_number(job['apart_times_faster']):>6} "
            f"{_mb(job['sent_bytes']['2']):>8}"
        )
    yield "  apart: what two processes gain here with no word between them, at most 2"


def _graphs(part: dict[str, Any]) -> Iterator[str]:
    yield "GRAPHS of a 3x3 convolution; tasks with those that make the input; nothing is computed"
    yield f"  {'':22} {'chunks':>7} {'tasks':>8} {'a chunk':>7} {'build s':>8} {'optimise s':>10} {'pickled MB':>10}"
    for row in part["rows"]:
        yield (
            f"  {row['name']:22} {row['chunks']:7} {row['tasks']:8} {_number(row['tasks_per_chunk']):>7} "
            f"{_number(row['build_seconds']):>8} {_number(row['optimise_seconds']):>10} "
            f"{row['pickled_bytes'] / 1e6:10.3f}"
        )
    yield from (f"  left out: {name}" for name in part["left_out"])


def _model(part: dict[str, Any]) -> Iterator[str]:
    costs = part["costs"]
    yield "MODEL of many workers, whose formula is in benchmarks/dask/model.py"
    for name in ("trivial", "convolution"):
        cost = costs[name]
        yield (
            f"  {name} tasks, {cost['tasks']}: scheduler {_us(cost['scheduler_seconds'])} us, "
            f"workers {_us(cost['worker_seconds'])} us, wall {_us(cost['wall_seconds'])} us each"
        )
    yield f"  of these {_us(costs['convolution']['prepare_seconds'])} us of the scheduler before the first task begins"
    yield (
        f"  from worker to worker {_mb(costs['transfer_bytes_per_second'])} MB/s, "
        f"and {_number(1e3 * costs['transfer_seconds'])} ms for next to nothing"
    )
    for name, job in part["jobs"].items():
        yield (
            f"  {name}: {_us(job['compute_seconds'])} us of work a chunk alone, "
            f"{_us(job['constants']['compute'])} us with all cores at work, rims of {job['constants']['rim']} bytes; "
            f"the scheduler limits from {job['scheduler_limits_from']} workers on"
        )
        yield f"  {'workers':>9} {'seconds':>9} {'measured':>9} {'MB sent':>9} {'measured':>9} {'least chunk side':>17}"
        for workers, told in job["workers"].items():
            yield (
                f"  {workers:>9} {_number(told['seconds']):>9} {_number(told['measured_seconds']):>9} "
                f"{_mb(told['sent_bytes']):>9} {_mb(told['measured_sent_bytes']):>9} {told['chunk_side']:17.0f}"
            )
    yield "  least chunk side: below it the scheduler takes longer than so many workers"


def _ending(record: dict[str, Any]) -> Iterator[str]:
    yield f"{record['state']} after {record['seconds']} s"


_PARTS = {"larger": _larger, "speed": _speed, "scaling": _scaling, "graphs": _graphs, "model": _model}


def _mb(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}" if count >= 1e7 else _number(count / 1e6)


def _us(seconds: float) -> str:
    return _number(1e6 * seconds)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
