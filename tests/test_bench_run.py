"""A run of `xpconv bench`: what stands on its record, whatever happens on the way."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from xpconv import repeats
from xpconv.bench import clock as clocks
from xpconv.bench import limits, record, rivals, row, run
from xpconv.bench.cases import Case
from xpconv.bench.compare import compare
from xpconv.bench.sides import Place, Side, ours
from xpconv.device import DeviceInfo
from xpconv.engines import numpy as engine
from xpconv.layers import Layer

CPU = DeviceInfo("cpu", "a processor")
CONV = Case.of_layer(Layer("tiny", "conv", (6, 5), 3, 2, 3, padding=1), 2)
POOL = Case.of_layer(Layer("tiny", "pool", (6, 6), 2, 2, 2, 2, groups=2, operation="max pool"), 2)
ROW = {
    "key", "network", "layer", "operation", "batch", "dtype", "layout", "device", "operations", "bytes", "method",
    "tile", "workspace", "ms", "ms_10_90", "gflops", "gbs", "limit", "share_of_limit", "error", "rivals", "left_out",
    "rounds",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _known_limits(monkeypatch):
    """Measured by nobody."""
    known = {"matrix_gflops": dict.fromkeys(("float32", "float64"), 100.0), "copy_gbs": 10.0}
    monkeypatch.setattr(limits, "measured", lambda *_: known)


def run_on(cases, devices=(CPU,), told=str, **asked):
    made = record.new({"rounds": 3}, {"cores": 1})
    how = {"rounds": 3, "rest": 0.0, "batch": 1e-5} | asked
    run.run(devices, cases, run.Asked(**how), made, told)
    return json.loads(json.dumps(made, allow_nan=False))


def rival(monkeypatch, *ways):
    """Rivals by name, each with its result's error and what becomes of what a call computes."""

    def sides_of(_names, case, data, _place):
        side = ours(case, data)
        return [
            Side(name, lambda then=then: then(side.call()), lambda y, error=error: y + error)
            for name, error, then in ways
        ], {}

    monkeypatch.setattr(rivals, "sides_of", sides_of)


def test_a_row_says_what_was_measured_and_a_record_survives_json(monkeypatch):
    rival(monkeypatch, ("numpy", 0, lambda y: y))
    found = run_on([CONV, POOL], rivals=["numpy"])
    assert found["state"] == "complete"
    assert (found["not_measured"], found["failed"]) == ([], {})
    conv, pool = found["rows"]
    assert set(conv) == set(pool) == ROW
    assert conv["key"] == "tiny | conv | N=2 | float32 | channels_last | cpu"
    assert [set(seconds) for seconds in conv["rounds"]] == [{"xpconv", "numpy"}] * 3
    medians = {name: np.median([seconds[name] for seconds in conv["rounds"]]) for name in ("xpconv", "numpy")}
    assert conv["ms"] == pytest.approx(1e3 * medians["xpconv"], rel=1e-3)
    assert conv["gflops"] == pytest.approx(CONV.operations / medians["xpconv"] / 1e9, rel=1e-2)
    assert conv["gbs"] == pytest.approx(CONV.bytes / medians["xpconv"] / 1e9, rel=1e-2)
    least = max(CONV.operations / 100e9, CONV.bytes / 10e9)
    assert conv["share_of_limit"] == pytest.approx(least / medians["xpconv"], rel=1e-2)
    ratios = [seconds["numpy"] / seconds["xpconv"] for seconds in conv["rounds"]]
    assert conv["rivals"]["numpy"]["ratio"] == pytest.approx(np.median(ratios), rel=1e-3)
    assert (pool["operations"], pool["gflops"], pool["limit"]) == (None, None, "copy")
    assert conv["method"]
    assert conv["error"] < 1e-5


def test_a_rival_is_its_faster_way_and_the_hopeless_one_is_timed_once():
    seconds = {"xpconv": 1.0, "torch": 5.0, "torch channels_last": 2.0, "scipy oaconvolve": 9.0}
    assert row.best_sides(seconds) == {"torch": "torch channels_last", "scipy": "scipy oaconvolve"}
    assert row.hopeless(seconds) == ["torch"]
    assert row.hopeless({**seconds, "torch": 3.9}) == []


def test_a_wrong_rival_is_left_out_with_its_error_and_not_timed(monkeypatch):
    def fail(_):
        raise ValueError("cannot\nand more")

    rival(monkeypatch, ("numpy", 0.5, lambda y: y), ("scipy", 0, fail), ("torch", np.nan, lambda y: y))
    (told,) = run_on([CONV], rivals=["numpy"])["rows"]
    assert told["left_out"]["numpy"].startswith("error 0.")
    assert told["left_out"]["scipy"] == "ValueError: cannot"
    assert told["left_out"]["torch"] == "its result is not finite, or misshapen"
    assert told["rivals"] == {}


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("broken")])
def test_a_row_that_fails_is_told_and_the_others_go_on(monkeypatch, error):
    made = row.data_of

    def data_of(case):
        if case is CONV:
            raise error
        return made(case)

    monkeypatch.setattr(row, "data_of", data_of)
    found = run_on([CONV, POOL])
    assert found["failed"] == {f"{CONV.key} | cpu": f"{type(error).__name__}: {error}"}
    assert [told["layer"] for told in found["rows"]] == ["pool"]
    assert (found["state"], found["not_measured"]) == ("complete", [])


def test_a_wrong_result_of_ours_is_a_failed_row(monkeypatch):
    monkeypatch.setattr(row, "right", lambda *_: False)
    found = run_on([CONV])
    assert found["rows"] == []
    assert "xpconv: error" in found["failed"][f"{CONV.key} | cpu"]


def test_ctrl_c_keeps_the_rounds_that_were_measured():
    class Interrupted:
        calls = 0

        def __call__(self, _):
            self.calls += 1
            if self.calls == 2 + 2 * 2 + 1:  # in the third round of the first row
                raise KeyboardInterrupt
            return 1e-3

    found = run_on([CONV, POOL], rounds=9, clock=lambda *_, **__: Interrupted())
    assert found["state"] == "interrupted"
    assert [len(told["rounds"]) for told in found["rows"]] == [2]
    assert found["not_measured"] == [f"{POOL.key} | cpu"]


def test_no_row_begins_after_the_time_is_up(monkeypatch):
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr(run.time, "monotonic", lambda: next(now))
    found = run_on([CONV, POOL, replace(CONV, batch=1)], time_limit=13)  # each look at the clock takes two seconds
    assert found["state"] == "stopped by the time limit"
    assert [len(told["rounds"]) for told in found["rows"]] == [1, 1]
    assert found["not_measured"] == [f"{replace(CONV, batch=1).key} | cpu"]


def test_the_rounds_of_a_row_are_spread_over_the_run(monkeypatch):
    assert run.Asked(rounds=9).passes == [3, 3, 3]
    assert run.Asked(rounds=10).passes == [3, 3, 4]
    assert run.Asked(rounds=2).passes == [1, 1]
    rival(monkeypatch, ("numpy", 0, lambda y: y))
    made, heard = record.new({}, {}), []
    asked = run.Asked(["numpy"], rounds=7, rest=0.0, batch=1e-5)
    run.run([CPU], [CONV, POOL], asked, made, lambda _: heard.append([len(told["rounds"]) for told in made["rows"]]))
    assert heard == [[], [], [2], [2, 2], [4, 2], [4, 4], [7, 4]]
    assert [len(told["rounds"]) for told in made["rows"]] == [7, 7]


def test_a_rival_that_is_gone_in_a_later_pass_costs_no_finished_round(monkeypatch):
    calls = []

    def sides_of(*_):
        calls.append(1)
        side = Side("numpy", lambda: ours(CONV, row.data_of(CONV)).call(), np.asarray)
        return ([side], {}) if len(calls) == 1 else ([], {"numpy": "MemoryError"})

    monkeypatch.setattr(rivals, "sides_of", sides_of)
    found = run_on([CONV], rivals=["numpy"], rounds=6)
    assert [len(told["rounds"]) for told in found["rows"]] == [2]
    assert "numpy cannot be had again: MemoryError" in found["failed"][f"{CONV.key} | cpu"]


def test_it_is_told_what_comes_and_finds_what_was_measured_on_record(tmp_path):
    made = record.new({}, {})
    heard = []
    asked = run.Asked(rounds=1, rest=0.0, batch=1e-5)
    run.run([CPU], [CONV, POOL], asked, made, lambda comes: heard.append((comes, len(made["rows"]))))
    assert heard == [("what cpu can do", 0), (f"{CONV.key} | cpu", 0), (f"{POOL.key} | cpu", 1)]
    record.save(made, tmp_path / "a.json")
    assert record.load(tmp_path / "a.json")["state"] == "complete"


# --- Clocks, and a slow-down that is planted --------------------------------------------------------------------------


def test_a_wall_clock_tells_the_seconds_of_one_call():
    now = [0.0]

    def call():
        now[0] += 2.0

    assert clocks.WallClock(now=lambda: now[0])([call] * 3) == 2.0


def test_a_cold_clock_overwrites_the_caches_before_each_call_and_does_not_time_that(monkeypatch):
    monkeypatch.setattr(clocks, "_OVERWRITTEN", 64)
    now, seen = [0.0], []
    clock = clocks.WallClock(cold=True, now=lambda: now[0])

    def call():
        seen.append(float(clock._other[0]))
        now[0] += 1.0

    assert clock([call, call]) == 1.0
    assert seen == [1.0, 2.0]


class Machine:
    """Time that only the work of a call takes, with noise like a real machine's."""

    def __init__(self, seed, speed=1.0):
        self.random, self.speed, self.time = random.Random(seed), speed, 0.0

    def works(self, seconds):
        spike = 1.3 if self.random.random() < 0.01 else 1.0
        self.time += seconds * self.speed * spike * self.random.lognormvariate(0, 0.01)

    def clock(self, *_, **__):
        return clocks.WallClock(now=lambda: self.time)


def slowed(machine, monkeypatch, **planted):
    """The record of a run on a machine on which engine functions take their time, some longer than they should."""
    with monkeypatch.context() as patch:
        patch.setattr(repeats, "_key", lambda *_: (object(),))  # no call is repeated, which would pass the functions by
        for name, seconds in (("conv", 1e-3), ("max_pool", 3e-4)):
            function, seconds = getattr(engine, name), seconds * planted.get(name, 1.0)

            def slow(*args, _function=function, _seconds=seconds, **options):
                machine.works(_seconds)
                return _function(*args, **options)

            patch.setattr(engine, name, slow)

        def sides_of(_names, case, data, _place):  # of a rival whose work is its own
            y = ours(case, data).call()
            return [Side("numpy", lambda: (machine.works(2e-3), y)[1], np.asarray)], {}

        patch.setattr(rivals, "sides_of", sides_of)
        cases = [replace(case, batch=n) for n in range(1, 9) for case in (CONV, POOL)]
        return run_on(cases, rivals=["numpy"], rounds=7, batch=1e-9, clock=machine.clock)


def test_a_function_that_became_slower_is_found_and_nothing_else(monkeypatch):
    before = slowed(Machine(0), monkeypatch)
    again = compare(before, slowed(Machine(1, speed=1.3), monkeypatch))
    assert again.of("slower") == again.of("faster") == []
    assert again.machines["cpu"].factor == pytest.approx(1.3, rel=0.05)
    planted = compare(before, slowed(Machine(2, speed=0.8), monkeypatch, max_pool=1.5))  # copies limit it
    found = {change.key for change in planted.of("slower")}
    assert len(found) >= 6
    assert all("| pool |" in key for key in found)
    assert planted.of("faster") == []


# --- Records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_saved_whole_and_read_back(tmp_path):
    made = record.new({"rounds": 3}, {"cores": 2})
    record.save(made, tmp_path / "a.json")
    assert record.load(tmp_path / "a.json") == made
    assert made["state"] == "interrupted"  # as it is called where nothing comes after
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is no record of xpconv bench: Expecting property name"),
        ("[]", 'is no record of xpconv bench: it has no "format"'),
        ('{"format": 2}', "has format 2, and this xpconv reads 1; measure it again"),
        ('{"format": 1, "rows": 3}', 'is no whole record of xpconv bench: "state" is missing or damaged'),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path, text, complaint):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"old\.json") as caught:
        record.load(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_row_is_told(tmp_path):
    made = record.new({}, {})
    for row_of_it in ({"key": "a"}, {"key": "a", "device": "cpu", "ms": 1, "rivals": {}, "rounds": [{"torch": 1.0}]}):
        record.save(made | {"rows": [row_of_it]}, tmp_path / "old.json")
        with pytest.raises(ValueError, match="row 1 is damaged"):
            record.load(tmp_path / "old.json")


# --- A GPU, emulated --------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(cupy, monkeypatch):
    """A CUDA device whose clock tells a millisecond each time."""
    from xpconv.cuda import measuring

    class Events:
        def __init__(self, overwritten=None):
            self.overwritten = overwritten

        def __call__(self, _, launch):
            launch()
            seen.append(self.overwritten)
            return 1e-3

    seen: list[int | None] = []
    monkeypatch.setattr(measuring, "EventClock", Events)
    cupy.overwritten = seen
    return cupy


def test_a_cuda_device_is_timed_by_events_and_its_arrays_lie_there(gpu):
    found = run_on([CONV, POOL], [DeviceInfo("cuda:0", "a GPU"), CPU], rounds=2)
    assert (found["state"], found["failed"]) == ("complete", {})
    assert [told["device"] for told in found["rows"]] == ["cuda:0"] * 2 + ["cpu"] * 2
    assert found["rows"][0]["ms"] > 0
    assert found["rows"][0]["tile"] != found["rows"][2]["tile"]
    assert set(gpu.overwritten) == {0}  # nothing is overwritten for warm calls
    gpu.overwritten.clear()
    run_on([CONV], [DeviceInfo("cuda:0", "a GPU")], rounds=1, cold=True)
    assert None in gpu.overwritten


@pytest.mark.usefixtures("gpu")
def test_a_lost_device_ends_there_and_the_others_go_on(monkeypatch):
    broken = []

    def ours(case, data, device="cpu"):
        side = made(case, data, device)
        if device != "cpu" and case is POOL:

            def call():
                broken.append(device)
                raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

            return replace(side, call=call)
        return side

    def synchronize(device):
        if broken and device != "cpu":
            raise RuntimeError("cudaErrorIllegalAddress")

    made = row.ours
    monkeypatch.setattr(row, "ours", ours)
    monkeypatch.setattr(run, "synchronize", synchronize)
    third = replace(CONV, batch=1)
    found = run_on([CONV, POOL, third], [DeviceInfo("cuda:0", "a GPU"), CPU], rounds=1)
    assert found["state"].startswith("the device was lost: cuda:0: ")
    assert "cudaErrorIllegalAddress" in found["state"]
    assert [(told["device"], told["layer"]) for told in found["rows"]] == [
        ("cuda:0", "conv"), ("cpu", "conv"), ("cpu", "pool"), ("cpu", "conv"),
    ]  # fmt: skip
    assert found["not_measured"] == [f"{third.key} | cuda:0"]


@pytest.mark.usefixtures("cupy")
def test_limits_of_a_gpu_are_cupys(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(limits, "SPAN", 1e-3)
    found = limits.measured(Place("cuda:0"), ["float32"], lambda calls: [call() for call in calls] and 1e-3,
                            sizes=(8,), copied=800)  # fmt: skip
    assert found == {"matrix_gflops": {"float32": float(f"{2 * 8**3 / 1e-3 / 1e9:.4g}")}, "copy_gbs": 0.0016}
