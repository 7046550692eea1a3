"""What Dask itself costs on this machine: the scheduler and the workers per task, and bytes from worker to worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.order import order
from distributed import Client, wait

import xpconv
from xpconv.bench.statistics import short

from .cluster import told, workers

_SENT = 2**26  # bytes of a block that travels
_BLOCKS = 7
_CHUNK = 512


def measure(record: dict[str, Any], trivial: int = 20_000, chunks: int = 40) -> None:
    """Put the costs on record; `chunks` along both axes."""
    with workers(2) as client:
        record["trivial"] = _costs(client, _trivial, trivial)
        record["convolution"] = _costs(client, _convolution, chunks)
        record["convolution"]["prepare_seconds"] = _prepare(chunks)
        record.update(_transfer(client))


def _costs(client: Client, run: Callable[[Client, int], int], count: int) -> dict[str, Any]:
    """Seconds of a task: the scheduler's process, which is this one with the client in it, all workers, on the wall."""
    run(client, 2)  # what is loaded in the first run is no cost of a task
    workers_before = sum(worker.cpu for worker in told(client))
    begin, cpu = time.perf_counter(), time.process_time()
    tasks = run(client, count)
    spent = time.process_time() - cpu, time.perf_counter() - begin
    on_workers = sum(worker.cpu for worker in told(client)) - workers_before
    return {
        "tasks": tasks,
        "scheduler_seconds": short(spent[0] / tasks, 3),
        "worker_seconds": short(on_workers / tasks, 3),
        "wall_seconds": short(spent[1] / tasks, 3),
    }


def _trivial(client: Client, count: int) -> int:
    with client.as_current():
        wait(client.map(_increment, range(count), pure=False))
    return count


def _increment(number: int) -> int:
    return number + 1


def _convolution(client: Client, side: int) -> int:
    """A real graph: an array that is made, rims, windows across chunks of 1 MiB, and a sum."""
    total = _total(side)
    client.compute(total).result()
    return len(dask.optimize(total)[0].dask)


def _prepare(side: int) -> float:
    """Seconds in which a task of such a graph is made and put in its order: none begins before all are."""
    total = _total(side)
    begin = time.perf_counter()
    tasks = dict(dask.optimize(total)[0].dask)
    order(tasks)
    return short((time.perf_counter() - begin) / len(tasks), 3)


def _total(side: int) -> Any:
    image = da.zeros((side * _CHUNK, side * _CHUNK), chunks=_CHUNK, dtype=np.float32)
    weights = np.full((3, 3), np.random.default_rng().random(), np.float32)  # nothing is remembered
    return xpconv.conv2d(image, weights, padding="same").sum()


def _transfer(client: Client) -> dict[str, Any]:
    """A block's way from one worker to the other, and that of next to nothing."""
    first, second = list(client.nthreads())

    def seconds(count: int) -> float:
        block = client.submit(np.ones, count, np.uint8, workers=[first], pure=False)
        block.result() if count < 100 else client.submit(len, block, workers=[first]).result()
        begin = time.perf_counter()
        client.submit(len, block, workers=[second], pure=False).result()
        return time.perf_counter() - begin

    large, small = (median(seconds(count) for _ in range(_BLOCKS)) for count in (_SENT, 8))
    return {"transfer_bytes_per_second": short(_SENT / (large - small), 3), "transfer_seconds": short(small, 3)}
