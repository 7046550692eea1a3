"""Measure xpconv on Dask arrays: memory, speed, scaling, graphs, and the constants of a model of many workers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from xpconv.bench.machine import machine, threads_here

from ..files import free_files, stem, write
from . import costs, graphs, larger, model, report, scaling, speed


def _model(part: dict[str, Any], scaled: dict[str, Any]) -> None:
    """The constants, and what the model says of the jobs of the scaling."""
    measured = part["costs"] = {}
    costs.measure(measured)
    part["jobs"] = {name: model.predictions(job, measured) for name, job in scaled["jobs"].items()}


PARTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "larger": larger.measure,
    "speed": speed.measure,
    "scaling": scaling.measure,
    "graphs": graphs.measure,
}
_NAMES = (*PARTS, "model")
_PACKAGES = ("dask", "distributed", "dask-image", "zarr")


def main(words: list[str] | None = None) -> None:
    """The parts that were asked for, as a table, and as files where a folder is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dask", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=_NAMES, help="only this part; may be repeated; the model needs the scaling"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="where a JSON and a table are written")
    asked = parser.parse_args(words)
    names = [name for name in _NAMES if not asked.only or name in asked.only]
    if "model" in names and "scaling" not in names:
        names.insert(-1, "scaling")
    record = _new_record()
    where = stem("dask", record["environment"]["processor"], record["date"])
    files = free_files(asked.results, where) if asked.results else None
    begin = time.monotonic()
    try:
        for name in names:
            _run(name, record)
            print(f"{report.part(name, record)}\n", flush=True)
            record["seconds"] = round(time.monotonic() - begin, 1)
            if files:
                write(record, files, report.text(record))
        record["state"] = "complete"
    except KeyboardInterrupt:
        record["state"] = "interrupted"
    if files:
        write(record, files, report.text(record))
        print(f"written: {files[0]} and {files[1].name}")


def _run(name: str, record: dict[str, Any]) -> None:
    part: dict[str, Any] = {}
    if name == "model":
        _model(part, record["parts"]["scaling"])
    else:
        PARTS[name](part)
    record["parts"][name] = part  # whole parts only


def _new_record() -> dict[str, Any]:
    environment = machine(threads_here())
    for name in _PACKAGES:
        try:
            environment["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            environment["packages"][name] = "not installed"
    today = date.today().isoformat()
    return {"date": today, "state": "running", "seconds": 0.0, "environment": environment, "parts": {}}


if __name__ == "__main__":
    main()
