"""Dask arrays on a cluster of two real worker processes, one of which may die."""

import os
import signal
import time

import numpy as np
import pytest

distributed = pytest.importorskip("distributed", reason="distributed is not installed")

import dask  # noqa: E402
import dask.array as da  # noqa: E402

import xpconv  # noqa: E402
from engine_cases import integers  # noqa: E402
from xpconv.chunks import graph  # noqa: E402


@pytest.fixture(scope="module")
def client():
    """A client of two worker processes, which are restarted when they die."""
    quiet = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500 ms"}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit="1GiB"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


CALLS = {
    "conv": lambda x, w: xpconv.conv2d(x, w, np.ones(4), padding="same", padding_mode="wrap", activation="relu"),
    "transposed": lambda x, w: xpconv.corr_transpose2d(x, np.swapaxes(w, -1, -2), stride=2),
    "max_pool": lambda x, w: xpconv.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)[1],  # noqa: ARG005
    "max_pool_grad": lambda x, w: xpconv.max_pool_grad(  # noqa: ARG005
        *xpconv.max_pool2d(x, 2, return_indices=True), size=x.shape[1:3]
    ),
    "weight gradient": lambda x, w: xpconv.conv_grad_weight(x, x[:, 2:-2, 2:-2, :2], window=w.shape[:2]),
    "signal": lambda x, w: xpconv.signal.convolve(x[0, ..., 0], w[:, :, 0, 0], mode="same"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:.*rechunk x to")
def test_two_worker_processes_give_the_numbers_of_the_whole_array(client, name, monkeypatch):
    monkeypatch.setattr(graph, "WORTH_A_RIM", 0)
    x, w = integers(2, 40, 36, 3), integers(5, 5, 3, 4, seed=1)
    lazy = CALLS[name](da.from_array(x, chunks=(1, 11, 9, 2)), w)
    np.testing.assert_allclose(client.compute(lazy).result(timeout=30), CALLS[name](x, w), atol=1e-9)


def test_a_worker_that_is_killed_in_the_middle_costs_time_and_no_value(client):
    victim = next(iter(client.nthreads()))
    number = client.submit(os.getpid, workers=[victim], pure=False).result(timeout=30)
    half_way = distributed.Event("half-way", client=client)

    def load(block_info=None):
        first, last = block_info[None]["array-location"][0]
        worker = distributed.get_worker()
        if hasattr(worker, "has_loaded"):  # either worker finishes one chunk, and waits in the next
            distributed.Event("half-way").wait(30)
        worker.has_loaded = True
        return np.arange(first, last, dtype=float)

    x = da.map_blocks(load, chunks=((10,) * 24,), dtype=float, meta=np.zeros(0))
    future = client.compute(xpconv.conv1d(x, [1.0, 2.0, 3.0], padding="same"))
    started = time.monotonic()
    while not any(x.name in str(key) for key in client.has_what().get(victim, ())):
        assert time.monotonic() - started < 30
        time.sleep(0.02)
    os.kill(number, signal.SIGKILL)  # and with it the chunks that it held
    half_way.set()
    np.testing.assert_array_equal(
        future.result(timeout=30), xpconv.conv1d(np.arange(240.0), [1.0, 2.0, 3.0], padding="same")
    )
    client.wait_for_workers(2, timeout=30)
    assert number not in client.run(os.getpid).values()
