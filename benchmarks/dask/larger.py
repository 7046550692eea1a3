"""Arrays four times larger than the memory that the workers may use, every element of the results compared.

The input repeats a small pattern, whose period no chunk is a multiple of; where the whole is one and edges are wrapped,
the result repeats what SciPy makes of the pattern, and a chunk that is misplaced or lacks its neighbours is noticed.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client
from scipy import ndimage

import xpconv
from xpconv.bench.statistics import short

from .cluster import begin_anew, told, workers

PERIOD = 127
TIMES = 4
WORKERS = 2


@dataclass(frozen=True)
class Job:
    """A convolution of a plane, or with channels of one image."""

    name: str
    window: int
    chunk: int
    channels: tuple[int, int] | None = None  # in, out
    stored: bool = False  # in Zarr, and read again; otherwise every chunk is compared and let go

    @property
    def pixel(self) -> int:
        """Bytes."""
        return 4 * (self.channels[0] if self.channels else 1)


JOBS = (
    Job("9x9 on a plane, reduced", 9, 2048),
    # of 8 MB; with chunks of 34 MB a worker came near its limit and was started anew once in three runs
    Job("3x3, 8 to 8 channels, stored in Zarr and read again", 3, 512, (8, 8), stored=True),
)


def measure(record: dict[str, Any], limit: int = 2**29, jobs: tuple[Job, ...] = JOBS) -> None:
    """Put the jobs on record; the limit is of each worker, in bytes."""
    record.update(workers=WORKERS, memory_limit=limit, jobs={})
    for job in jobs:
        with workers(WORKERS, limit) as client:  # fresh ones, whose peaks are of this job
            record["jobs"][job.name] = _run(job, client, TIMES * WORKERS * limit)


def _run(job: Job, client: Client, least: int) -> dict[str, Any]:
    periods = int(np.ceil(np.sqrt(least / job.pixel) / PERIOD))
    pattern, w, expected = _data(job)
    x = _repeating(pattern, periods, job.chunk)
    y = xpconv.conv2d(x, w, padding="same", padding_mode="wrap")
    before = begin_anew(client)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() if job.stored else nullcontext() as folder:
        if folder is not None:
            client.compute(y.to_zarr(folder, compute=False)).result()
            y = da.from_zarr(folder)
        distance = client.compute(_distances(y, expected).max()).result()
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) if folder else 0
    seconds = time.perf_counter() - begin
    after = told(client)
    return {
        "shape": x.shape,
        "bytes": x.nbytes,
        "result_bytes": y.nbytes,
        "chunk_bytes": prod(x.chunksize) * x.itemsize,
        "chunks": x.npartitions,
        "seconds": short(seconds),
        "error": short(float(distance) / float(abs(expected).max()), 2),
        "idle_bytes": [worker.peak for worker in before],
        "peak_bytes": [worker.peak for worker in after],
        "spilled_bytes": [worker.spilled for worker in after],
        "sent_bytes": [worker.sent for worker in after],
        "stored_bytes": on_disk,
        "workers_died": len({worker.pid for worker in after} - {worker.pid for worker in before}),
    }


def _data(job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pattern, the filters, and the result that repeats."""
    rng = np.random.default_rng(0)
    taps, period = (job.window, job.window), (PERIOD, PERIOD)
    c_in, c_out = job.channels or (1, 1)
    x, w = rng.integers(0, 8, (*period, c_in)), rng.integers(0, 4, (*taps, c_in, c_out))
    planes = [
        sum(ndimage.convolve(x[..., i], w[..., i, o], mode="wrap") for i in range(c_in)) for o in range(c_out)
    ]
    expected = np.stack(planes, axis=-1)
    if job.channels is None:
        x, w, expected = x[..., 0], w[..., 0, 0], expected[..., 0]
    else:
        x, expected = x[None], expected[None]
    return x.astype(np.float32), w.astype(np.float32), expected.astype(np.float32)


def _repeating(pattern: np.ndarray, periods: int, chunk: int) -> Any:
    """The pattern over and over along both axes of space, made chunk by chunk."""
    shape = [periods * n if n == PERIOD else n for n in pattern.shape]
    chunks = da.core.normalize_chunks([chunk if n == PERIOD else n for n in pattern.shape], shape)
    return da.map_blocks(_block, pattern=pattern, chunks=chunks, dtype=pattern.dtype, meta=pattern[:0])


def _distances(y: Any, expected: np.ndarray) -> Any:
    """The largest of each chunk, at its place."""
    return y.map_blocks(_distance, expected=expected, chunks=(1,) * y.ndim, dtype=y.dtype, meta=expected[:0])


def _block(pattern: np.ndarray, block_info: Any = None) -> np.ndarray:
    return _part(pattern, block_info[None]["array-location"])


def _distance(block: np.ndarray, expected: np.ndarray, block_info: Any = None) -> np.ndarray:
    wrong = _part(expected, block_info[0]["array-location"])
    wrong -= block
    np.abs(wrong, out=wrong)
    return wrong.max(keepdims=True)


def _part(pattern: np.ndarray, location: Any) -> np.ndarray:
    places = (np.arange(*ends) % n for ends, n in zip(location, pattern.shape, strict=True))
    return pattern[np.ix_(*places)]
