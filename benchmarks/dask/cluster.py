"""Worker processes on this machine, and what they say of themselves."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, LocalCluster, wait

from ..memory import peak, reset_peak

# What a worker does of its own accord would count as work of the tasks.
_QUIET = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500 ms"}


@contextmanager
def workers(count: int, memory_limit: int | str = "6GiB") -> Iterator[Client]:
    """The client of so many processes of one thread each; the limit is of each."""
    with (
        dask.config.set(_QUIET),
        LocalCluster(
            n_workers=count, threads_per_worker=1, memory_limit=memory_limit, dashboard_address=":0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@dataclass(frozen=True)
class Worker:
    """What a worker has done until now."""

    pid: int
    peak: int  # bytes in memory at the most
    spilled: int  # bytes written to disk because memory was short
    sent: int  # bytes to other workers
    cpu: float  # seconds


def told(client: Client) -> list[Worker]:
    """Of all workers, in the order of their addresses."""
    return [Worker(**values) for _, values in sorted(client.run(_told).items())]


def begin_anew(client: Client) -> list[Worker]:
    """The peaks count from now."""
    client.run(reset_peak)
    return told(client)


def kept(client: Client, array: Any) -> Any:
    """The array with its chunks in the workers' memory."""
    array = client.persist(array)
    with client.as_current():
        wait(array)
    return array


def _told(dask_worker: Any) -> dict[str, Any]:
    metrics = getattr(dask_worker.data, "cumulative_metrics", {})
    return {
        "pid": os.getpid(),
        "peak": peak(),
        "spilled": int(metrics.get(("disk-write", "bytes"), 0)),
        "sent": int(dask_worker.transfer_outgoing_bytes_total),
        "cpu": time.process_time(),
    }
