"""A model of many workers: what they take in turn and what the one scheduler takes, in measured constants.

    T(W) = N t g + max( N (c + t o + r k(W) / b) / W,   N t s )
    k(W) = (W - 1) (1 - (1 - 1 / W)^8)

N chunks of t tasks each; c seconds for the tasks' own work on a chunk, with all cores of the machine at work; o seconds
that a worker spends around a task. The scheduler makes and orders a task in g seconds, before any begins, and spends s
on it afterwards. The rim of a chunk has r bytes and travels once to each of the k other workers that hold one of its
eight neighbours, where chunks are dealt out at random; fewer where neighbours stay together. A worker sends or receives
b bytes in a second; meanwhile it computes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from xpconv.bench.statistics import short

NEIGHBOURS = 8
WORKERS = (1, 2, 10, 100)


@dataclass(frozen=True)
class Constants:
    """Of a job on a machine."""

    chunks: int  # N
    tasks: float  # t, of a chunk
    compute: float  # c
    rim: float  # r
    bandwidth: float  # b
    prepare: float  # g
    scheduler: float  # s
    worker: float  # o

    def seconds(self, workers: int) -> float:
        """T(W)."""
        later = max(self._chunk(workers) / workers, self.tasks * self.scheduler)
        return self.chunks * (self.tasks * self.prepare + later)

    def sent(self, workers: int) -> float:
        """Bytes of rims that travel."""
        return self.chunks * self.rim * copies(workers)

    def most_workers(self) -> int:
        """From so many workers on the scheduler is what takes the time."""
        workers = 1
        while self._chunk(workers) / workers > self.tasks * self.scheduler:
            workers += 1
        return workers

    def least_growth(self, workers: int) -> float:
        """The factor by which the sides of chunks must grow for so many workers to take as long as the scheduler.

        Work grows as the square of it, rims as itself, the number of tasks of a chunk not at all.
        """
        given = workers * self.tasks * self.scheduler - self.tasks * self.worker
        if given <= 0:
            return 0.0
        half = self.rim * copies(workers) / self.bandwidth / (2 * self.compute)
        return sqrt(half**2 + given / self.compute) - half

    def _chunk(self, workers: int) -> float:
        return self.compute + self.tasks * self.worker + self.rim * copies(workers) / self.bandwidth


def copies(workers: int) -> float:
    """k(W).

    Examples
    --------
    >>> copies(1), round(copies(2), 3), round(copies(100), 3)
    (0.0, 0.996, 7.646)
    """
    return (workers - 1) * (1 - (1 - 1 / workers) ** NEIGHBOURS)


def of(job: dict[str, Any], costs: dict[str, Any], alone: bool) -> Constants:
    """Of a job of the scaling, with what Dask costs; alone on the machine, or with all cores at work."""
    real = costs["convolution"]
    return Constants(
        chunks=job["chunks"],
        tasks=job["tasks"] / job["chunks"],
        compute=job["apart_seconds"]["1" if alone else "2"],
        rim=job["rim_bytes"],
        bandwidth=costs["transfer_bytes_per_second"],
        prepare=real["prepare_seconds"],
        scheduler=real["scheduler_seconds"] - real["prepare_seconds"],
        worker=costs["trivial"]["worker_seconds"],
    )


def predictions(job: dict[str, Any], costs: dict[str, Any]) -> dict[str, Any]:
    """What the model says of a job, beside what was measured."""
    alone, busy = of(job, costs, alone=True), of(job, costs, alone=False)
    by_workers = {}
    for workers in WORKERS:
        constants = alone if workers == 1 else busy
        growth = constants.least_growth(workers)
        by_workers[str(workers)] = {
            "seconds": short(constants.seconds(workers)),
            "measured_seconds": job["seconds"].get(str(workers)),
            "sent_bytes": short(constants.sent(workers)),
            "measured_sent_bytes": job["sent_bytes"].get(str(workers)),
            "chunk_side": short(job["chunk_side"] * growth),
        }
    return {
        "compute_seconds": alone.compute,
        "constants": asdict(busy),
        "scheduler_limits_from": busy.most_workers(),
        "workers": by_workers,
    }
