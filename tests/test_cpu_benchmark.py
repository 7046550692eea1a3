"""`python -m benchmarks.cpu`: its statistics on made-up samples, its cells, its checks, and one cell run through."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.cpu import __main__ as program
from benchmarks.cpu import report
from benchmarks.cpu.cells import Cell, cells
from benchmarks.cpu.run import Asked, figures, run
from benchmarks.cpu.sides import sides_of

from xpconv.bench.data import data_of, errors, right
from xpconv.layers import Layer

ROUNDS = [{"xpconv": 1.0, "torch": 3.0, "onnxruntime": 2.0}, {"xpconv": 2.0, "torch": 2.0, "onnxruntime": 8.0},
          {"xpconv": 1.0, "torch": 4.0, "onnxruntime": 5.0}]  # fmt: skip
TINY = Cell("conv", "3x3 stride 1", Layer("", "tiny", (5, 4), 3, 2, 3, padding=1), 2, peers=())
OPERATIONS = ("conv", "max pool", "average pool", "input gradient", "weight gradient")


def entry(rounds, **more):
    told = {"group": "conv", "kind": "1x1", "batch": 1, "operations": 4e6, "rounds": rounds, "first_rounds": []} | more
    return told | figures(told)


def test_a_cell_tells_its_median_ratio_the_best_peer_and_its_speed():
    told = entry(ROUNDS)
    assert told["ratio"] == 2.0
    assert told["ratio_10_90"] == [1.2, 3.6]
    assert told["best_peer"] == "torch"
    assert told["ms"]["xpconv"] == 1000.0
    assert told["gflops"]["xpconv"] == 0.004


def test_channels_first_is_compared_with_channels_last_and_is_no_peer():
    told = entry([{"xpconv": 2.0, "xpconv channels_first": 3.0}])
    assert told["first_over_last"] == 1.5
    assert "ratio" not in told


def test_a_cell_without_us_has_no_ratio():
    assert "ratio" not in entry([{"torch": 1.0}])
    assert "ms" not in entry([])


def test_the_summary_has_a_mean_for_all_and_for_each_class():
    fast, slow = [{"xpconv": 1.0, "torch": 4.0}], [{"xpconv": 1.0, "torch": 1.0}]
    found = {"a": entry(fast), "b": entry(slow, kind="stem", batch=8), "c": entry(fast, group="pool"), "d": entry([])}
    found["e"] = entry(slow, kind="grouped", batch=4)
    means = {name.strip(): (count, mean) for name, count, mean in report.summary(found)}
    assert means["convolutions"] == means["convolutions, torch alone"] == (3, pytest.approx(4 ** (1 / 3)))
    assert means["dense convolutions, torch alone"] == (2, pytest.approx(2.0))
    assert means["N = 8"] == means["stem"] == (1, pytest.approx(1.0))
    assert means["1x1"] == means["pool"] == (1, pytest.approx(4.0))
    assert "depthwise" not in means


def test_small_calls_have_a_mean_of_their_own_and_one_beside_torch_alone():
    rounds, group = [{"xpconv": 1.0, "torch": 4.0, "numpy": 1.0}], "overhead"
    found = {"a": entry(rounds, group=group, kind="small layer")}
    found["b"] = entry([{"xpconv": 1.0, "torch": 1.0}], group=group, kind="small pooling")
    means = {name.strip(): (count, mean) for name, count, mean in report.summary(found)}
    assert means["overhead"] == (2, pytest.approx(1.0))
    assert means["small layer"] == means["small pooling"] == (1, pytest.approx(1.0))
    assert means["overhead, torch alone"] == (2, pytest.approx(2.0))
    assert means["small layer, torch alone"] == (1, pytest.approx(4.0))
    assert {cell.kind for cell in cells(("overhead",))} == {"small signal", "small layer", "small pooling"}


def test_there_are_34_cells_of_convolutions_and_every_name_is_unique():
    assert len(cells(("conv",))) == 34
    keys = [cell.key for cell in cells()]
    assert len(set(keys)) == len(keys)
    assert [cell.batch for cell in cells(("conv",), "7x7s2")] == [1, 8]
    assert all(cell.layer.out_size == cell.layer.size for cell in cells(("conv",)) if cell.layer.stride == 1)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_side_agrees_with_the_reference(operation, both):
    layer = replace(TINY.layer, filters=3, groups=3) if operation.endswith("pool") else TINY.layer
    assert_right(replace(TINY, operation=operation, layer=layer), both)


@pytest.mark.parametrize(
    "layer",
    [
        Layer("", "stride", (6, 5), 2, 3, 3, stride=2, padding=1),
        Layer("", "dilated", (6, 5), 2, 3, 3, padding=2, dilation=2),
        Layer("", "grouped", (4, 3), 4, 6, 3, padding=1, groups=2),
        Layer("", "signal", (9,), 2, 3, 3, padding=1),
        Layer("", "volume", (4, 3, 3), 2, 3, 3, padding=1),
    ],
    ids=lambda layer: layer.name,
)
def test_every_geometry_agrees_with_the_reference(layer):
    assert_right(replace(TINY, layer=layer), both=True)


@pytest.mark.parametrize(
    ("operation", "size", "peers"), [("filter", (9, 8), ("scipy",)), ("signal", (20,), ("scipy",))]
)
def test_plain_arrays_agree_with_the_reference(operation, size, peers):
    layer = Layer("", "plain", size, 1, 1, 3, padding=1)
    assert_right(replace(TINY, batch=0, layer=layer, operation=operation, peers=peers), both=True)


@pytest.mark.parametrize("cell", [cells(("lenet",))[0], *cells(("overhead",))], ids=lambda cell: cell.key)
def test_peers_that_are_installed_agree_with_the_reference(cell):
    assert_right(cell, both=True)


def assert_right(cell, both):
    """Every side of the cell."""
    data = data_of(cell.case)
    sides, missing = sides_of(cell, data, both=both)
    assert all("is not installed" in why for why in missing.values()), missing
    for name, error in errors(cell.case, data, {side.name: side.result(side.call()) for side in sides}).items():
        assert right(cell.case, error), name


def test_wrong_results_are_noticed():
    data = data_of(TINY.case)
    (side,), _ = sides_of(TINY, data)
    y = side.call()
    bent, broken = y.copy(), y.copy()
    bent[1, 2, 1, 0] += 0.1
    broken[1, 2, 1, 0] = np.nan
    found = errors(TINY.case, data, {"bent": bent, "broken": broken, "short": y[:, 1:]})
    assert not any(right(TINY.case, error) for error in found.values())


def run_quickly(cells, **asked):
    """The record of a run without rests."""
    record = {"cells": {}}
    run(cells, Asked(**{"rounds": 2, "rest": 0, "batch": 1e-4} | asked), record, str)
    return record


def test_a_cell_runs_through_and_the_table_tells_it():
    record = run_quickly([TINY], both_layouts=True, both_weights=True)
    told = record["cells"][TINY.key]
    assert len(told["rounds"]) == len(told["first_rounds"]) == 2
    assert not told["wrong"]
    assert record["not_run"] == []
    line = report.line(TINY.key, json.loads(json.dumps(told)))
    assert told["methods"]["xpconv"] in line
    assert "channels_first" in line


def test_a_peer_that_is_not_installed_is_told_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    data = data_of((cell := replace(TINY, peers=("opencv",))).case)
    missing = sides_of(cell, data)[1]
    assert missing["opencv"] == "cv2 is not installed: pip install opencv-python-headless"
    assert "opencv" not in report.line("a", entry([{"xpconv": 1.0}], missing=missing, methods={}, errors={}))


def test_a_wrong_side_is_told_and_not_timed(monkeypatch):
    monkeypatch.setattr("xpconv.bench.row.right", lambda *_: False)
    told = run_quickly([TINY])["cells"][TINY.key]
    assert told["rounds"] == []
    assert "WRONG xpconv" in report.line(TINY.key, told)


def test_what_the_time_does_not_suffice_for_is_named():
    left = iter([1, 1, 1])  # before the cell, and before each of its rounds
    second = replace(TINY, batch=1)
    record = run_quickly([TINY, second], time_left=lambda: next(left, 0))
    assert "ms" in record["cells"][TINY.key]
    assert record["not_run"] == [second.key]


def test_what_was_measured_before_an_interruption_is_written(tmp_path, monkeypatch, capsys):
    second = replace(TINY, batch=1)

    def measured(_, __, samples, **___):
        if seen:
            raise KeyboardInterrupt
        seen.append(samples)
        samples.append({"xpconv": 1.0})

    seen = []
    monkeypatch.setattr("benchmarks.cpu.cells.cells", lambda *_: [TINY, second])
    monkeypatch.setattr("benchmarks.cpu.run.measure", measured)
    program.main(["--group", "conv", "--results", str(tmp_path)])
    (written,), (table,) = tmp_path.glob("cpu-*.json"), tmp_path.glob("cpu-*.txt")
    record = json.loads(written.read_text(encoding="utf-8"))
    assert record["state"] == "interrupted"
    assert record["cells"][TINY.key]["ms"] == {"xpconv": 1000.0}
    assert "ms" not in record["cells"][second.key]
    assert "OPENBLAS_CORETYPE=" in table.read_text(encoding="utf-8")
    assert "interrupted after" in capsys.readouterr().out
