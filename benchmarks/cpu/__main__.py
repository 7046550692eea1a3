"""Time xpconv on NumPy arrays beside torch, onnxruntime, OpenCV and SciPy, on the CPU."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from ..files import free_files, stem, write

_GROUPS = ("conv", "lenet", "wide", "large", "pool", "filter", "grad", "float64", "overhead", "process")


def main(words: list[str] | None = None) -> None:
    """What was asked for, as a table, and as files where a folder is named."""
    asked = _parser().parse_args(words)
    if asked.threads:  # read by BLAS and the compiled kernels when they are loaded, below
        os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), str(asked.threads)))
    if asked.alone:
        sys.modules["llvmlite"] = None  # type: ignore[assignment]  # an import of it then fails
    from xpconv.bench.machine import machine

    from . import process, report
    from .cells import cells
    from .run import Asked, run

    begin = time.monotonic()
    threads = asked.threads or os.cpu_count() or 1
    how = Asked(
        asked.rounds,
        threads,
        asked.layouts == "both",
        asked.weights == "both",
        lambda: asked.time_limit - (time.monotonic() - begin),
    )
    groups = tuple(dict.fromkeys(asked.group or _GROUPS))
    record = _new_record(asked, machine(threads))
    files = free_files(asked.results, _name(record)) if asked.results else None

    def done(key: str | None = None) -> None:
        record["seconds"] = round(time.monotonic() - begin, 1)
        if key:
            print(report.line(key, record["cells"][key]), flush=True)
        if files:
            write(record, files, report.text(record))

    try:
        run(cells(groups, asked.cells), how, record, done)
        if "process" in groups:
            process.measure(record, how.time_left)
        record["state"] = "complete" if how.time_left() > 0 else "stopped by the time limit"
    except KeyboardInterrupt:
        record["state"] = "interrupted"
    done()
    print(f"\n{report.text(record, cells=False)}")
    if files:
        print(f"written: {files[0]} and {files[1].name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--group", action="append", choices=_GROUPS, help="only this group; may be repeated")
    parser.add_argument("--cells", default="", metavar="SUBSTRING", help="only cells whose name holds this")
    parser.add_argument("--rounds", type=int, default=7, help="in which every candidate is timed once (7)")
    parser.add_argument("--threads", type=int, help="of every library (as many as there are cores)")
    parser.add_argument("--time-limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where a JSON and a table are written")
    parser.add_argument("--layouts", choices=("channels_last", "both"), default="channels_last", help="of xpconv")
    parser.add_argument(
        "--weights", choices=("repeated", "both"), default="repeated",
        help='the same weight array in every call; "both" also times calls that each have a new copy of it',
    )  # fmt: skip
    parser.add_argument("--alone", action="store_true", help="xpconv without its compiled kernels: NumPy alone")
    return parser


def _new_record(asked: argparse.Namespace, environment: dict[str, Any]) -> dict[str, Any]:
    told = {name: getattr(asked, name) for name in ("rounds", "layouts", "weights", "group", "cells", "alone")}
    return {
        "date": date.today().isoformat(),
        "state": "running",
        "seconds": 0.0,
        "environment": environment,
        "asked": told,
        "cells": {},
        "not_run": [],
    }


def _name(record: dict[str, Any]) -> str:
    name = stem("cpu", record["environment"]["processor"], record["date"])
    return f"{name}-numpy-alone" if record["asked"]["alone"] else name


if __name__ == "__main__":
    main()
