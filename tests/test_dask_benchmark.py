"""`python -m benchmarks.dask`: every part at tiny sizes, what its checks notice, and the model on made-up constants."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed", reason="distributed is not installed")
sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.dask import __main__ as program
from benchmarks.dask import costs, graphs, larger, model, report, scaling, speed
from benchmarks.dask.cluster import workers

import xpconv

TINY = (scaling.Job("plane", 32, 16, 3), scaling.Job("channels", 32, 16, 3, 2))
MADE_UP = model.Constants(
    chunks=1000, tasks=2, compute=0.1, rim=1000, bandwidth=1e6, prepare=1e-4, scheduler=0.001, worker=0.01
)
PREPARED = 1000 * 2 * 1e-4  # seconds of its graph


@pytest.fixture(scope="module", autouse=True)
def one_cluster():
    """The processes are started once: a part that asks for workers is given these."""
    patch = pytest.MonkeyPatch()
    with workers(2) as client:

        @contextmanager
        def these(*_):
            yield client

        for module in (costs, larger, scaling, speed):
            patch.setattr(module, "workers", these)
        yield
        patch.undo()


def test_one_worker_takes_its_work_and_sends_nothing():
    assert MADE_UP.seconds(1) == pytest.approx(PREPARED + 1000 * (0.1 + 2 * 0.01))
    assert MADE_UP.sent(1) == 0


def test_two_workers_share_the_work_and_send_nearly_every_rim_once():
    rims = 1 - 0.5**8  # of the eight neighbours of a chunk at least one is on the other worker
    assert MADE_UP.sent(2) == pytest.approx(1000 * 1000 * rims)
    assert MADE_UP.seconds(2) == pytest.approx(PREPARED + 1000 * (0.12 + 0.001 * rims) / 2)


def test_a_hundred_workers_wait_for_the_scheduler():
    assert MADE_UP.seconds(100) == pytest.approx(PREPARED + 1000 * 2 * 0.001)
    limit = MADE_UP.most_workers()
    assert MADE_UP.seconds(limit) == pytest.approx(PREPARED + 2.0)
    assert MADE_UP.seconds(limit - 1) > PREPARED + 2.0


@pytest.mark.parametrize("count", [30, 100, 1000])
def test_chunks_that_are_grown_as_told_keep_the_workers_as_busy_as_the_scheduler(count):
    growth = MADE_UP.least_growth(count)
    grown = replace(MADE_UP, compute=0.1 * growth**2, rim=1000 * growth)
    on_workers = grown.compute + 2 * 0.01 + grown.sent(count) / 1000 / 1e6
    assert on_workers / count == pytest.approx(2 * 0.001)


def test_where_tasks_cost_the_workers_more_than_the_scheduler_no_chunk_is_too_small():
    assert MADE_UP.least_growth(5) == 0


def test_arrays_larger_than_the_limit_are_right_in_every_element():
    jobs = (larger.Job("plane", 9, 100), larger.Job("channels", 3, 100, (2, 3), stored=True))
    record = {}
    larger.measure(record, 2**15, jobs)
    for job in record["jobs"].values():
        assert job["bytes"] >= 4 * 2 * 2**15
        assert job["error"] == 0
        assert job["workers_died"] == 0
        assert min(job["peak_bytes"]) > 1e6
    assert record["jobs"]["channels"]["stored_bytes"] > 0
    assert "every element" in next(iter(report.part("larger", {"parts": {"larger": record}}).splitlines()))


def test_a_chunk_at_the_wrong_place_is_noticed():
    pattern, w, expected = larger._data(larger.Job("plane", 3, 100))
    x = larger._repeating(pattern, 2, 100)
    y = xpconv.conv2d(x, w, padding="same", padding_mode="wrap")
    assert float(larger._distances(y, expected).max().compute(scheduler="sync")) == 0
    wrong = xpconv.conv2d(x, w, padding="same")  # zeros where the edges should be wrapped
    assert float(larger._distances(wrong, expected).max().compute(scheduler="sync")) > 0


def test_the_sides_agree_and_are_timed_in_turn():
    record = {}
    speed.measure(record, ((64, 3),), (16, 32), rounds=2, rest=0)
    (row,) = record["rows"].values()
    assert row["wrong"] == {}
    ours = {speed.PLAIN, "xpconv, threads, chunks 16", "xpconv, processes, chunks 32"}
    assert ours | {"scipy.ndimage"} <= set(row["ms"])
    assert all(ms > 0 for ms in row["ms"].values())
    assert speed.PLAIN in report.part("speed", {"parts": {"speed": record}})


def test_a_side_that_is_wrong_is_told_and_not_timed():
    calls = {speed.PLAIN: lambda: np.ones((2, 2)), "bent": lambda: np.ones((2, 2)) * 1.01}
    row = speed._row(calls, 1, 0)
    assert list(row["ms"]) == [speed.PLAIN]
    assert row["wrong"] == {"bent": 0.01}


def test_graphs_have_two_tasks_a_chunk_or_three_and_what_takes_long_is_left_out():
    record = {}
    graphs.measure(record, (9, 16))
    tasks = {(row["name"], row["chunks"]): row["tasks"] for row in record["rows"]}
    assert tasks["xpconv, whole blocks", 9] == 2 * 9 + 1  # the filters are one
    assert tasks["xpconv, rims", 16] == 3 * 16 + 1
    graphs.measure(record, (9, 16), longest=0)
    assert {row["chunks"] for row in record["rows"]} == {9}
    assert any("16 chunks" in line for line in record["left_out"])


def test_scaling_costs_and_the_model_run_through_and_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "_APART", 0.01)
    monkeypatch.setattr(costs, "_SENT", 2**16)
    monkeypatch.setitem(program.PARTS, "scaling", partial(scaling.measure, jobs=TINY, rounds=1, rest=0))
    monkeypatch.setattr(costs, "measure", partial(costs.measure, trivial=20, chunks=2))
    program.main(["--only", "model", "--results", str(tmp_path)])
    (written,), (table,) = tmp_path.glob("dask-*.json"), tmp_path.glob("dask-*.txt")
    record = json.loads(written.read_text(encoding="utf-8"))
    assert record["state"] == "complete"
    assert list(record["parts"]) == ["scaling", "model"]
    assert record["parts"]["scaling"]["jobs"]["plane"]["tasks"] == 4 + 1  # one a chunk, and the filters
    assert set(record["parts"]["model"]["jobs"]["channels"]["workers"]) == {"1", "2", "10", "100"}
    assert "SCALING" in table.read_text(encoding="utf-8")
    assert "least chunk side" in capsys.readouterr().out


@pytest.mark.parametrize(("chunk", "is_cut"), [(512, True), (64, False)])
def test_the_work_of_a_chunk_is_its_convolution_and_its_rim(chunk, is_cut):
    job = scaling.Job("plane", 3 * chunk, chunk, 3)
    call, rim = scaling.a_chunk(job)
    results = call()
    assert results[0].shape == (chunk, chunk)
    assert len(results) == 1 + is_cut
    assert (rim > 0) == is_cut
    if is_cut:
        assert 4 * 4 * chunk <= rim < 2 * 4 * 4 * chunk  # a row or a column of each side, in float32
