"""How large graphs are and how long they take to build, by the number of chunks; nothing is computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np

import xpconv
from xpconv.bench.statistics import short

from .speed import dask_image

CHUNKS = (100, 1_000, 10_000, 100_000)
# The side of a chunk of float32: of 1 MiB, from which on rims travel in place of blocks, and of a quarter.
_SIDES = {"xpconv, rims": 512, "xpconv, whole blocks": 256, "dask-image": 512}
_TAPS = np.ones((3, 3), np.float32)
_LONGEST = 25.0  # seconds that a graph may take, by what the one before took; otherwise it is left out


def measure(record: dict[str, Any], numbers: tuple[int, ...] = CHUNKS, longest: float = _LONGEST) -> None:
    """Put the graphs of a 3x3 convolution on record."""
    record.update(rows=[], left_out=[])
    makers: dict[str, Callable[[Any], Any] | None] = {
        "xpconv, rims": _ours, "xpconv, whole blocks": _ours, "dask-image": _theirs(),
    }  # fmt: skip
    for name, make in makers.items():
        if make is None:
            record["left_out"].append(f"{name} is not installed: pip install dask-image")
            continue
        last: dict[str, Any] = {}
        for number in numbers:
            if last and (takes := _seconds(last) * number / last["chunks"]) > longest:
                record["left_out"].append(f"{name}, {number} chunks (about {takes:.0f} s)")
            else:
                last = _row(make, _SIDES[name], number)
                record["rows"].append({"name": name, **last})


def _seconds(row: dict[str, Any]) -> float:
    return row["build_seconds"] + row["optimise_seconds"]


def _ours(x: Any) -> Any:
    return xpconv.conv2d(x, _TAPS, padding="same", padding_mode="symmetric")


def _theirs() -> Callable[[Any], Any] | None:
    convolve = dask_image()
    return convolve and partial(convolve, weights=_TAPS)


def _row(make: Callable[[Any], Any], side: int, number: int) -> dict[str, Any]:
    rows = isqrt(number)
    x = da.zeros((rows * side, number // rows * side), chunks=side, dtype=np.float32)
    make(x[:side, :side])  # what is remembered after the first call is no part of a graph
    begin = time.perf_counter()
    y = make(x)
    built = time.perf_counter()
    (optimised,) = dask.optimize(y)
    end = time.perf_counter()
    return {
        "chunks": y.npartitions,
        "tasks": len(optimised.dask),  # with those that make the input
        "tasks_per_chunk": short(len(optimised.dask) / y.npartitions, 3),
        "build_seconds": short(built - begin, 3),
        "optimise_seconds": short(end - built, 3),
        "pickled_bytes": len(cloudpickle.dumps(y.dask)),
    }
