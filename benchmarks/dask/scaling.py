"""One worker process and two, of one thread each, on arrays whose chunks they hold.

What two processes gain on a machine is at most what they gain without Dask, each with a chunk of its own and no word
between them: they share caches and memory. That is measured beside, as `apart`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from statistics import fmean, median
from typing import Any

import dask.array as da
import numpy as np
from dask.sizeof import sizeof
from dask.task_spec import GraphNode
from distributed import Client

import xpconv
from xpconv.bench.statistics import medians, short
from xpconv.bench.timing import REST, repeated
from xpconv.bench.timing import measure as take_turns
from xpconv.chunks.graph import RimLayer

from .cluster import kept, told, workers

_APART = 0.3  # seconds of calls of one worker by itself


@dataclass(frozen=True)
class Job:
    """A convolution of `shape` in square chunks, of the same padding everywhere."""

    name: str
    side: int
    chunk: int
    window: int
    channels: int = 0  # in and out; 0: a plane

    @property
    def weights(self) -> np.ndarray:
        """Filters, or the one."""
        maps = (self.channels, self.channels) if self.channels else ()
        return np.random.default_rng(0).random((self.window, self.window, *maps), np.float32)

    def shape(self, side: int) -> tuple[int, ...]:
        """Of an image."""
        return (1, side, side, self.channels) if self.channels else (side, side)

    def image(self) -> Any:
        """The lazy array."""
        return da.random.random(self.shape(self.side), chunks=self.shape(self.chunk)).astype(np.float32)

    @property
    def chunks(self) -> int:
        """How many there are."""
        return (self.side // self.chunk) ** 2


JOBS = (
    Job("9x9 on a plane", 16384, 2048, 9),
    Job("3x3, 64 to 64 channels", 1536, 256, 3, 64),
)


def measure(record: dict[str, Any], jobs: tuple[Job, ...] = JOBS, rounds: int = 3, rest: float = REST) -> None:
    """Put the jobs on record, and of each what the model of many workers needs."""
    record.update(rounds=rounds, jobs={})
    with workers(1) as one, workers(2) as two:
        for job in jobs:
            record["jobs"][job.name] = _run(job, (one, two), rounds, rest)


def _run(job: Job, clients: tuple[Client, Client], rounds: int, rest: float) -> dict[str, Any]:
    calls = {str(n): _Call(job, client, kept(client, job.image())) for n, client in enumerate(clients, 1)}
    image = calls["1"].image
    lazy = xpconv.conv2d(image, job.weights, padding="same")
    samples: list[dict[str, float]] = []
    before = {name: call.sent() for name, call in calls.items()}
    take_turns({name: repeated(call) for name, call in calls.items()}, rounds, samples, rest=rest)
    sent = {name: short((call.sent() - before[name]) / call.count) for name, call in calls.items()}
    parted = [{name: _apart(job, call.client) for name, call in calls.items()} for _ in range(rounds)]
    apart = {name: short(seconds) for name, seconds in medians(parted).items()}
    return {
        "chunks": job.chunks,
        "chunk_side": job.chunk,
        "chunk_bytes": 4 * prod(job.shape(job.chunk)),
        "tasks": len(lazy.dask) - len(image.dask),
        "rim_bytes": a_chunk(job)[1],
        "seconds": {name: short(seconds) for name, seconds in medians(samples).items()},
        "times_faster": short(median(r["1"] / r["2"] for r in samples)),
        "sent_bytes": sent,
        "apart_seconds": apart,
        "apart_times_faster": short(median(2 * r["1"] / r["2"] for r in parted)),
    }


@dataclass
class _Call:
    """With other weights every time, so that no chunk is remembered."""

    job: Job
    client: Client
    image: Any
    count: int = 0

    def __call__(self) -> Any:
        self.count += 1
        weights = self.job.weights + np.float32(1e-6 * self.count)
        return kept(self.client, xpconv.conv2d(self.image, weights, padding="same"))

    def sent(self) -> int:
        """Bytes from worker to worker until now."""
        return sum(worker.sent for worker in told(self.client))


def a_chunk(job: Job) -> tuple[Callable[[], Any], int]:
    """The work of the tasks of a chunk with neighbours all around, and the bytes of the rim that these are given."""
    block = np.random.default_rng(0).random(job.shape(job.chunk), np.float32)
    x = da.zeros(job.shape(3 * job.chunk), chunks=block.shape, dtype=block.dtype)
    y = xpconv.conv2d(x, job.weights, padding="same")
    layers, middle = y.dask.layers, (0, 1, 1, 0) if job.channels else (1, 1)
    task, values, rim = layers[y.name][(y.name, *middle)], {}, None
    for key in task.dependencies:
        own = layers[key[0]]
        if key[0] == x.name:
            values[key] = block
        elif isinstance(own, RimLayer):
            rim = own[(key[0], *middle)]
            values[key] = own[key]({(x.name, *key[1:]): block})
        else:  # the filters, as they are
            values[key] = own[key]() if isinstance(own[key], GraphNode) else own[key]
    at_home = {(x.name, *middle): block}
    calls = [lambda: task(values), *([lambda: rim(at_home)] if rim else [])]
    return lambda: [call() for call in calls], sizeof(rim(at_home)) if rim else 0


def _apart(job: Job, client: Client) -> float:
    """Seconds of a chunk on each of the workers, all of them at once."""
    running = [client.submit(_seconds, job, pure=False, workers=[worker]) for worker in client.nthreads()]
    return fmean(client.gather(running))


def _seconds(job: Job) -> float:
    """The results are kept, as a worker keeps them, and let go: memory that is new has to be mapped."""
    call, _ = a_chunk(job)
    call()
    results, begin = [], time.perf_counter()
    while time.perf_counter() - begin < _APART:
        results.append(call())
    count = len(results)
    del results
    return (time.perf_counter() - begin) / count
