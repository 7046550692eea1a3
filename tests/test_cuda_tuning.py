"""Measured plans: what is kept of a measurement, that plans take it, and that nothing wrong or broken can win."""

import json
import math
import sys
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest

import xpconv
from cases import integers
from xpconv.cuda import hardware, tuning
from xpconv.cuda.catalogue import instances
from xpconv.cuda.geometry import dense, forward, input_gradient, weight_gradient
from xpconv.cuda.plans import conv as conv_plans
from xpconv.cuda.plans.alternatives import name_of
from xpconv.cuda.plans.conv import Operand, Setting, alternatives, key
from xpconv.cuda.steps import Kernel, Unfit
from xpconv.cuda.tuning import Entry, Measured
from xpconv.layers import LAYERS, described

H200 = next(known for known in hardware.KNOWN if known.name == "H200")
A100 = next(known for known in hardware.KNOWN if known.name == "A100")
LAYER = "conv2d x=1,5,6,16 w=3,3,16,20 padding=1"
SETTING = Setting("float32", H200, 1 << 26)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of the test's own, not looked at yet."""
    monkeypatch.setenv("XPCONV_CACHE_DIR", str(tmp_path))
    tuning.forget()
    yield tmp_path
    tuning.forget()


def geometry(text=LAYER, **changes):
    spec = described(text).spec
    return replace(forward(spec, dense(spec.x_shape), dense(spec.w_shape), dense(spec.y_shape)), **changes)


def operands(g, aligned=True):
    return Operand(g.strides.x, aligned), Operand(g.strides.w, aligned)


# --- What a convolution goes by ---------------------------------------------------------------------------------------


def test_a_key_is_that_of_all_convolutions_that_are_computed_alike():
    g = geometry()
    known = key(g, *operands(g), SETTING)
    for same in (geometry(LAYER.replace("conv", "corr")), replace(g, activation="relu"), replace(g, x_start=8)):
        assert key(same, *operands(same), SETTING) == known
    half = replace(SETTING, dtype="float16")
    assert key(g, *operands(g), replace(half, precision="tf32")) == key(g, *operands(g), half)
    others = (
        key(g, *operands(g), half),
        key(g, *operands(g), replace(SETTING, precision="tf32")),
        key(g, *operands(g, aligned=False), SETTING),
        *(key(other, *operands(other), SETTING) for other in (
            replace(g, batch=2), replace(g, before=(0, 1, 0)), replace(g, padding_mode="wrap"),
            geometry("conv2d x=1,16,5,6 w=20,16,3,3 padding=1 layout=channels_first"),
        )),
    )  # fmt: skip
    assert len({known, *others}) == 1 + len(others)


def test_a_device_goes_by_its_multiprocessors_too():
    slice_of_it = replace(H200, multiprocessors=16)
    assert tuning.device_key(H200) == "H200, 9.0, 132 multiprocessors" != tuning.device_key(slice_of_it)


@pytest.mark.parametrize("device", hardware.KNOWN, ids=lambda device: device.name)
@pytest.mark.parametrize(("dtype", "precision"), [("float32", "highest"), ("float32", "tf32"), ("bfloat16", "highest")])
def test_alternatives_are_legal_known_and_begin_with_the_plan(device, dtype, precision):
    setting = Setting(dtype, device, 1 << 24, precision)
    known = set(instances(device.capability))
    for layer in [layer for layer in LAYERS if layer.first]:
        spec = layer.spec(2)
        x, w, y = dense(spec.x_shape), dense(spec.w_shape), dense(spec.y_shape)
        for g in (forward(spec, x, w, y), *input_gradient(spec, y, w, x), weight_gradient(spec, x, y, w)):
            works = alternatives(g, *operands(g), setting)
            chosen = conv_plans._chosen(g, *operands(g), setting)
            assert next(iter(works)) == name_of(chosen)
            for work in works.values():
                assert sum(work.scratch.values()) <= setting.limit
                for step in work.steps:
                    assert step.kernel in known
                    assert step.shared <= device.shared_per_block
                    assert 0 < step.grid[0] <= hardware.GRID_X
                    assert all(0 < n <= hardware.GRID_YZ for n in step.grid[1:])


def test_a_deep_sum_has_alternatives_of_every_kernel_in_several_numbers_of_parts():
    g = geometry("conv2d x=1,14,14,256 w=3,3,256,256 padding=1")
    names = list(alternatives(g, *operands(g), replace(SETTING, dtype="float16")))
    for kernel in ("conv_sm90", "conv_mma", "conv_simt"):
        assert len({name.partition(", ")[2] for name in names if f"{kernel}<" in name}) > 2, kernel


# --- Plans take what was measured -------------------------------------------------------------------------------------


def measured_as(g, name, setting=SETTING, device=H200):
    entry = Entry(name, 1.0, 2.0)
    return replace(setting, measured=Measured({tuning.device_key(device): {key(g, *operands(g), setting): entry}}))


def chosen_in(g, setting):
    return conv_plans._chosen(g, *operands(g), setting)


def test_the_measured_alternative_is_taken_and_told():
    g = geometry("conv2d x=8,14,14,256 w=3,3,256,256 padding=1")
    for name, work in alternatives(g, *operands(g), SETTING).items():
        taken = chosen_in(g, measured_as(g, name))
        assert name_of(taken) == name
        assert taken.plan.reason == f"measured to be the fastest here: {work.plan.reason}"


def test_a_measurement_that_does_not_fit_is_passed_over():
    g = geometry("conv2d x=8,14,14,256 w=3,3,256,256 padding=1")
    default, *others = alternatives(g, *operands(g), SETTING)
    split = next(name for name in others if name.endswith("parts"))
    assert name_of(chosen_in(g, measured_as(g, "conv_that_was<float>"))) == default
    assert name_of(chosen_in(g, measured_as(g, split, device=A100))) == default
    little = measured_as(g, split, replace(SETTING, limit=1))
    assert chosen_in(g, little).scratch == {}
    nowhere = replace(g, strides=replace(g.strides, x=(1 << 40, *g.strides.x[1:4], 1 << 40)))
    assert isinstance(chosen_in(nowhere, measured_as(nowhere, split)), Unfit)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return integers(rng, (1, 5, 6, 16)), integers(rng, (3, 3, 16, 20))


@pytest.mark.parametrize("direction", ["forward", "input gradient", "weight gradient"])
def test_calls_and_their_gradients_take_the_winner_and_explain_says_measured(cupy, arrays, direction, monkeypatch):
    from xpconv.cuda import launch, measuring

    x, w = arrays
    gy = integers(np.random.default_rng(1), (1, 5, 6, 20))
    function, given, options = {
        "forward": (xpconv.conv2d, (x, w), dict(activation="relu")),
        "input gradient": (xpconv.conv_grad_input, (gy, w), dict(size=(5, 6))),
        "weight gradient": (xpconv.conv_grad_weight, (x, gy), dict(window=(3, 3))),
    }[direction]
    there = [cupy.asarray(array) for array in given]
    timed, launched = [], []
    (outcome,) = measuring.measure(direction, described(LAYER).spec, "float64", "highest", last_wins(timed))
    before = xpconv.explain(function, *there, padding=1, **options)
    tuning.record(launch.hardware(0), {outcome.key: outcome.entry})
    after = xpconv.explain(function, *there, padding=1, **options)
    assert "measured" not in before.reason
    assert after.reason.startswith("measured to be the fastest here")
    run = launch.run
    monkeypatch.setattr(launch, "run", lambda work, *rest: (launched.append(name_of(work)), run(work, *rest)))
    result = function(*there, padding=1, **options)
    assert launched == [outcome.entry.plan] == timed[-1:]
    np.testing.assert_array_equal(result.get(), function(*given, padding=1, **options))


def last_wins(timed):
    """A clock that is faster with every alternative, and so prefers the last; it counts, and launches all the same."""
    order = {}

    def clock(name, run):
        timed.append(name)
        run()
        return 1 / (20 + order.setdefault(name, len(order)))

    return clock


# --- Measuring --------------------------------------------------------------------------------------------------------


@pytest.fixture
def measure(cupy):  # noqa: ARG001  its kernels are launched
    """Measure a layer forward in float64 by a clock that knows how long each alternative takes, in order."""
    from xpconv.cuda import measuring

    def outcome(*seconds, text=LAYER, dtype="float64", direction="forward", timed=None):
        names = []

        def clock(name, run):
            run()
            names.append(name)
            order = list(dict.fromkeys(names))
            return seconds[min(order.index(name), len(seconds) - 1)]

        found = list(measuring.measure(direction, described(text).spec, dtype, "highest", clock))
        if timed is not None:
            timed += names
        return found

    return outcome


def alternatives_of(text=LAYER, dtype="float64"):
    from xpconv.cuda import measuring

    g = geometry(text)
    return list(alternatives(g, *operands(g), Setting(dtype, measuring.hardware(), 1 << 26)))


def test_the_fastest_wins_and_its_time_is_kept(measure):
    (outcome,) = measure(2e-3, 1.5e-3)
    assert outcome.entry == Entry(alternatives_of()[1], 1500.0, 2000.0)
    assert outcome.key == key(geometry(), *operands(geometry()), replace(SETTING, dtype="float64"))


def test_noise_does_not_turn_the_estimated_plan_out(measure):
    (outcome,) = measure(1.0, 0.99)
    assert outcome.entry == Entry(alternatives_of()[0], 1e6, 1e6)


def test_the_hopeless_are_timed_once_and_the_others_take_turns(measure):
    timed = []
    measure(1.0, 0.9, 3.0, timed=timed)
    names = alternatives_of()
    assert [timed.count(name) for name in names] == [10, 10, *[1] * (len(names) - 2)]
    assert timed[len(names) :] == names[:2] * 9


def test_a_slow_estimated_plan_is_timed_in_every_round(measure):
    (outcome,) = measure(9.0, 1.0)
    assert outcome.entry.default == 9e6


@pytest.mark.parametrize("trouble", ["wrong", "not compiled", "too much memory"])
def test_what_goes_wrong_is_left_out_and_never_wins(measure, monkeypatch, trouble):
    from xpconv.cuda import launch, measuring

    sound = measuring.alternatives

    def with_one_more(g, *rest):
        works = sound(g, *rest)
        first = next(iter(works.values()))
        if trouble == "wrong":
            more = next(iter(sound(replace(g, before=(0, 0, 1)), *rest).values()))
        elif trouble == "not compiled":
            more = replace(first, steps=(replace(first.steps[0], kernel=Kernel("conv_simt.cu", "no_such<double>")),))
        else:
            more = replace(first, scratch={"partial": 1 << 45})
        return {**works, "one more": more}

    monkeypatch.setattr(measuring, "alternatives", with_one_more)
    monkeypatch.setattr(launch, "_failed", {})
    timed = []
    with warnings.catch_warnings(action="error"):
        (outcome,) = measure(1.0, timed=timed)
    assert outcome.entry is not None
    assert "one more" not in timed
    assert list(outcome.left_out) == ["one more"]
    said = {"wrong": "not that of the plan", "not compiled": "no_such", "too much memory": "memory"}[trouble]
    assert said in outcome.left_out["one more"]


def test_where_the_estimated_plan_fails_nothing_is_measured(measure, monkeypatch):
    from xpconv.cuda import launch

    monkeypatch.setattr(launch, "prepared", lambda *_: (_ for _ in ()).throw(launch.KernelUnavailable("no compiler")))
    (outcome,) = measure(1.0)
    assert (outcome.entry, outcome.reason) == (None, "no compiler")


def test_a_gradient_is_measured_once_for_each_kind_of_convolution_in_it(measure):
    outcomes = measure(1.0, text="conv2d x=1,6,6,16 w=2,2,16,20 stride=2", direction="input gradient")
    assert len(outcomes) == 1  # four residues, alike but for where they start


@pytest.mark.parametrize("direction", ["forward", "weight gradient"])
def test_kernels_of_every_kind_agree(measure, direction):
    timed = []
    (outcome,) = measure(1.0, text="corr2d x=8,4,4,64 w=2,2,64,64", dtype="bfloat16", direction=direction, timed=timed)
    assert not outcome.left_out
    assert {name.partition("<")[0] for name in timed} >= {"conv_mma", "conv_simt"}


def test_what_has_no_choice_is_told(measure):
    (outcome,) = measure(1.0, text="conv2d x=1,5,5,3 w=3,3,3,2", dtype="int16")
    assert (outcome.entry, outcome.reason) == (None, "one kernel alone takes it")
    (outcome,) = measure(1.0, text="conv2d x=1,4096,4096,1 w=101,101,1,1", dtype="float32")
    assert outcome.reason == "computed by spectra"


def test_a_layer_is_measured_as_the_engine_computes_it(cupy):  # noqa: ARG001
    from xpconv.cuda import measuring

    setting = replace(SETTING, dtype="float16")
    spec = described("corr2d x=32,256,14,14 w=256,256,3,3 padding=1 layout=channels_first").spec
    for direction in measuring.DIRECTIONS:
        turned, _ = measuring.as_computed(direction, spec, setting)
        assert turned == replace(spec, layout="channels_last")
    as_it_is, _ = measuring.as_computed("forward", spec, replace(setting, dtype="float64"))
    assert as_it_is == spec
    spec = described("corr2d x=1,9,9,8 w=3,3,8,8 padding=2 padding_mode=wrap").spec
    padded, wide = measuring.as_computed("input gradient", spec, setting)
    assert (padded, wide.dtype) == (spec.valid, "float32")
    depthwise = described("corr2d x=2,9,9,8 w=3,3,1,8 groups=8").spec
    assert measuring.another_way("weight gradient", depthwise, SETTING) == "one kernel alone takes it"
    assert measuring.another_way("forward", depthwise, SETTING) == ""


def test_events_tell_the_time_of_a_launch(cupy):
    from xpconv.cuda.measuring import EventClock

    ran = []
    assert EventClock(4096)("one", lambda: ran.append(cupy.zeros(3))) >= 0
    assert len(ran) == 1


# --- The file ---------------------------------------------------------------------------------------------------------

ENTRIES = {"a convolution": Entry("conv_simt<float>, 2 parts", 12.5, 20.0)}


def test_what_is_recorded_is_read_and_added_to(folder):
    tuning.record(H200, ENTRIES)
    tuning.record(A100, ENTRIES)
    tuning.record(H200, {"another": Entry("conv_mma<float>", 1.0, 1.0)})
    assert tuning.measured().preferred(H200, "another") == "conv_mma<float>"
    tuning.forget()
    for device, name in ((H200, "a convolution"), (A100, "a convolution"), (H200, "another")):
        assert tuning.measured().preferred(device, name) is not None
    assert tuning.measured().preferred(A100, "another") is None
    assert [file.name for file in folder.iterdir()] == ["cuda-tuning.json"]


def test_without_a_file_it_is_looked_for_once(monkeypatch):
    looked = []
    monkeypatch.setattr(tuning, "path", lambda: looked.append(1) or tuning.Path("/nowhere/at/all"))
    with warnings.catch_warnings(action="error"):
        assert [tuning.measured() for _ in range(3)] == [None] * 3
    assert len(looked) == 1


BROKEN = {
    "cut off": ('{"format": 1, "by":', "it is no file of measurements"),
    "not text": (b"\xff\xfe\x00", "it is no file of measurements"),
    "nested": ("[" * 100_000, "it is no file of measurements"),
    "another's": ('["hello"]', "it is no file of measurements"),
    "newer": ('{"format": 2, "by": {}, "shape": "new"}', "its format is 2, and this xpconv reads 1"),
    "odd": ('{"format": "x", "by": {}}', "its format is 'x', and this xpconv reads 1"),
    "damaged": ({"H200": {"a": {"plan": 3, "microseconds": 1, "default": 2}}}, "its measurements are damaged"),
    "short": ({"H200": {"a": {"plan": "b"}}}, "its measurements are damaged"),
    "flat": ({"H200": 4}, "its measurements are damaged"),
    "a list": ([], "its measurements are damaged"),
}


def written(file, content):
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, str):
        file.write_text(content)
    else:
        file.write_text(json.dumps({"format": 1, "by": tuning._stamp(), "devices": content}))


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_used_is_one_line_and_no_tuning(folder, case):
    content, reason = BROKEN[case]
    written(folder / tuning.FILE, content)
    with pytest.warns(RuntimeWarning) as told:
        assert [tuning.measured(), tuning.measured()] == [None, None]
    (line,) = (str(warning.message) for warning in told)
    assert line == f"xpconv plans without the measurements in {folder / tuning.FILE}: {reason}"


def test_a_file_that_cannot_be_read_is_one_line_too(folder):
    (folder / tuning.FILE).mkdir()
    with pytest.warns(RuntimeWarning, match="Is a directory"):
        assert tuning.measured() is None
    with pytest.raises(IsADirectoryError):
        tuning.check_recordable()


@pytest.mark.parametrize("part", ["xpconv", "kernels"])
def test_measurements_of_other_kernels_are_not_used_and_give_way(folder, monkeypatch, part):
    with monkeypatch.context() as patch:
        stamp = tuning._stamp() | {part: "older"}
        patch.setattr(tuning, "_stamp", lambda: stamp)
        tuning.record(H200, ENTRIES)
    tuning.forget()
    with warnings.catch_warnings(action="error"):
        assert tuning.measured() is None
    tuning.check_recordable()
    tuning.record(A100, ENTRIES)
    assert list(tuning.read(folder / tuning.FILE).devices) == [tuning.device_key(A100)]


@pytest.mark.parametrize("case", BROKEN)
def test_a_newer_file_is_kept_and_a_broken_one_gives_way(folder, case):
    file = folder / tuning.FILE
    written(file, BROKEN[case][0])
    before = file.read_bytes()
    if case == "newer":
        with pytest.raises(RuntimeError, match=r"is kept as it is: its format is 2.*XPCONV_CACHE_DIR"):
            tuning.check_recordable()
        assert file.read_bytes() == before
    else:
        tuning.check_recordable()
        tuning.record(H200, ENTRIES)
        assert tuning.read(file).preferred(H200, "a convolution") == "conv_simt<float>, 2 parts"


def test_a_kernels_text_is_part_of_the_stamp(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "kernel_dir", lambda: tmp_path)
    (tmp_path / "a.cu").write_text("one")
    (tmp_path / "README.md").write_text("about")
    stamp = tuning._stamp.__wrapped__
    before = stamp()
    (tmp_path / "README.md").write_text("more about")
    assert stamp() == before
    (tmp_path / "a.cu").write_text("two")
    assert stamp() != before


def test_threads_read_the_file_once(folder, monkeypatch):
    tuning.record(H200, ENTRIES)
    tuning.forget()
    reads, read, found = [], tuning.read, []
    monkeypatch.setattr(tuning, "read", lambda file: reads.append(file) or read(file))
    threads = [threading.Thread(target=lambda: found.append(tuning.measured())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [folder / tuning.FILE]
    assert len(set(map(id, found))) == 1


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    assert tuning.path() == tmp_path / "cuda-tuning.json"
    monkeypatch.delenv("XPCONV_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.path() == tmp_path / "xpconv" / "cuda-tuning.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.path() == tmp_path / ".cache" / "xpconv" / "cuda-tuning.json"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert tuning.path() == tmp_path / "local" / "xpconv" / "cuda-tuning.json"


# --- Layers -----------------------------------------------------------------------------------------------------------


def test_layers_are_those_that_they_are_called():
    assert len({str(layer) for layer in LAYERS}) == len(LAYERS)
    assert {layer.network for layer in LAYERS if layer.first} == {layer.network for layer in LAYERS}
    for layer in LAYERS:
        spec = layer.spec(4)
        assert spec.batch == 4
        assert math.prod(spec.out_size) > 0


def test_a_description_is_the_call_it_looks_like():
    spec = described("corr2d x=2,8,9,7 w=6,4,3,5 stride=2,1 padding=1:2,0:3 dilation=1 groups=2 "
                     "padding_mode=replicate layout=channels_first precision=tf32")  # fmt: skip
    assert (spec.dtype, spec.precision) == (None, "tf32")
    spec = spec.spec
    x, w = np.zeros((2, 8, 9, 7)), np.zeros((6, 4, 3, 5))
    request = xpconv.corr2d.request(x, w, stride=(2, 1), padding=((1, 2), (0, 3)), groups=2, padding_mode="replicate",
                                    layout="channels_first")  # fmt: skip
    assert spec == request.spec
    assert described("conv x=9,2 w=3,2,4").spec == xpconv.conv.request(np.zeros((9, 2)), np.zeros((3, 2, 4))).spec
