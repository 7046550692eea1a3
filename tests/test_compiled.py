"""The compiled kernels of the NumPy engine: their results, their threads, and what answers without them."""

import multiprocessing
import os
import subprocess
import sys
import threading
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xpconv
from cases import conv_cases, integers
from engine_cases import reference
from kernel_calls import by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu import address, blas, processors
from xpconv.cpu.address import Told
from xpconv.cpu.compiled import call, threads, tile
from xpconv.cpu.compiled.build import library, machine
from xpconv.cpu.compiled.finite import finite
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.turn import channels_last, turned
from xpconv.cpu.compiled.weights import PackedBias, Packing
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import pooled

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)


compiled = partial(by_kernels, "direct", xpconv.corr)


def _whatever_is_taken(_, method, compiled):
    if method == "direct":
        return "depthwise" if compiled.depthwise else "direct" if compiled.filters else ""
    return "winograd" if compiled.winograd and method == "winograd" else ""


@pytest.fixture
def kernels_take_all(monkeypatch):
    """Whatever the kernels can compute they do, however small."""
    monkeypatch.setattr(compiled_calls, "kernel_for", _whatever_is_taken)


@pytest.mark.usefixtures("kernels_take_all")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conv_cases(dtypes=(np.float32, np.float64)))
def test_the_compiled_engine_agrees_with_the_loops_of_the_definition(case):
    y = getattr(xpconv, case.function)(case.x, case.w, case.bias, method="direct", **case.options)
    np.testing.assert_array_equal(y, case.expected())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 19), st.integers(1, 2))
def test_compiled_tiles_have_any_number_of_channels_filters_and_pixels(dtype, channels, filters, width, dilation):
    rng = np.random.default_rng(channels * 100 + filters)
    x, w = integers(rng, (2, 4, width + 2, channels), dtype), integers(rng, (2, 2, channels, filters), dtype)
    y = compiled(x, w, dilation=dilation)
    np.testing.assert_array_equal(y, reference(xpconv.corr, x, w, dilation=dilation))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": (3, 1)}, {"dilation": (1, 2)}])
def test_compiled_blocks_cover_a_large_image_once(options):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (3, 61, 83, 24), "float32"), integers(rng, (3, 3, 24, 33), "float32")
    np.testing.assert_array_equal(compiled(x, w, **options), reference(xpconv.corr, x, w, **options))


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2, "padding": 1, "padding_mode": "edge"}])
def test_compiled_pixels_that_share_a_set_of_the_cache_are_gathered_apart(options, layout):
    rng = np.random.default_rng(4)
    x, w = integers(rng, (2, 9, 8, 1024), "float32"), integers(rng, (3, 2, 1024, 128), "float32")
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    options = {**options, "layout": layout}
    np.testing.assert_array_equal(compiled(x, w, **options), reference(xpconv.corr, x, w, **options))


MODES = ("zeros", "constant", "edge", "reflect", "symmetric", "wrap")


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(300,), (23, 37), (6, 9, 11)])
def test_compiled_blocks_gather_every_padding_of_either_layout(layout, mode, size):
    rng = np.random.default_rng(3)
    x, w = integers(rng, (3, *size, 20), "float32"), integers(rng, (*(3,) * len(size), 20, 24), "float32")
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    options = {"padding": ((2, 1),) * len(size), "padding_mode": mode, "layout": layout}
    options["fill_value"] = 3 if mode == "constant" else 0
    np.testing.assert_array_equal(compiled(x, w, **options), reference(xpconv.corr, x, w, **options))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::-1, :, ::-1],
        lambda x: x[:, :, ::2],
        lambda x: x[..., ::2],
        lambda x: x.transpose(0, 2, 1, 3),
        lambda x: x.transpose(3, 1, 2, 0),
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: np.broadcast_to(x[..., :1], x.shape),
    ],
)
@pytest.mark.parametrize("padding", [0, 1])
def test_compiled_blocks_read_arrays_of_any_strides(view, padding):
    rng = np.random.default_rng(4)
    x = view(integers(rng, (16, 20, 22, 16), "float32"))
    x.flags.writeable = False
    w = integers(rng, (3, 3, x.shape[-1], 40), "float32")
    w = w.transpose(1, 0, 2, 3)[::-1]
    options = {"padding": padding}
    np.testing.assert_array_equal(compiled(x, w, **options), reference(xpconv.corr, x, w, **options))


@pytest.mark.parametrize(("channels", "filters", "groups"), [(32, 32, 4), (24, 12, 6), (64, 80, 2), (30, 90, 10)])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_compiled_groups(channels, filters, groups, layout):
    rng = np.random.default_rng(5)
    x, w = (
        integers(rng, (4, 30, 31, channels), "float32"),
        integers(rng, (3, 3, channels // groups, filters), "float32"),
    )
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    options = {"groups": groups, "layout": layout, "padding": 1}
    np.testing.assert_array_equal(compiled(x, w, **options), reference(xpconv.corr, x, w, **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("each", "groups"), [(2, 16), (2, 6), (4, 32), (4, 12), (4, 5), (8, 2), (8, 8), (8, 7)])
@pytest.mark.parametrize("options", [
    {"padding": 1}, {}, {"stride": 2, "padding": ((1, 0), (0, 2))}, {"dilation": (1, 3), "padding": 2},
    {"padding": 1, "layout": "channels_first"},
])  # fmt: skip
def test_compiled_groups_that_share_a_vector_take_turns_in_it(dtype, each, groups, options):
    rng = np.random.default_rng(15)
    x, w = integers(rng, (3, 12, 13, each * groups), dtype), integers(rng, (3, 3, each, each * groups), dtype)
    if "layout" in options:
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    given = {"bias": integers(rng, (each * groups,), dtype), "groups": groups, "activation": "relu", **options}
    np.testing.assert_array_equal(compiled(x, w, **given), reference(xpconv.corr, x, w, **given))


def test_compiled_groups_that_share_a_vector_keep_a_nan_to_themselves():
    x, w = np.ones((1, 9, 9, 32), np.float32), np.ones((3, 3, 4, 32), np.float32)
    x[0, 4, 4, 9] = np.nan  # of the third group
    hit = np.isnan(compiled(x, w, groups=8))
    expected = np.zeros_like(hit)
    expected[0, 2:5, 2:5, 8:12] = True
    np.testing.assert_array_equal(hit, expected)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "tanh"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_compiled_stores_add_the_bias_and_apply_the_activation(activation, layout):
    rng = np.random.default_rng(6)
    x, w = integers(rng, (2, 30, 31, 16), "float32"), integers(rng, (3, 3, 16, 35), "float32")
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    bias, options = integers(rng, (35,), "float32"), {"activation": activation, "layout": layout}
    expected = reference(xpconv.corr, x, w, bias, **options)
    np.testing.assert_allclose(compiled(x, w, bias=bias, **options), expected, rtol=1e-6)


def test_compiled_relu_keeps_nan_and_makes_minus_infinity_zero():
    x, w = np.ones((1, 20, 20, 8), np.float32), np.ones((3, 3, 8, 40), np.float32)
    x[0, 5, 5], x[0, 15, 15] = -np.inf, np.nan
    y = compiled(x, w, activation="relu")
    assert (y[0, 3:6, 3:6] == 0).all()
    assert np.isnan(y[0, 13:16, 13:16]).all()


def test_windows_beyond_the_workspace_limit_are_left_to_numpy():
    x, w = np.ones((1, 8, 4096, 64), np.float32), np.ones((3, 3, 64, 32), np.float32)
    with xpconv.workspace_limit(2**20):
        assert xpconv.explain(xpconv.corr, x, w, method="direct").tile.startswith("compiled")
    with xpconv.workspace_limit(2**14):
        assert not xpconv.explain(xpconv.corr, x, w, method="direct").tile.startswith("compiled")


def test_a_large_layer_is_compiled_and_explained_so():
    x, w = np.ones((2, 30, 30, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    plan = xpconv.explain(xpconv.conv2d, x, w)
    assert (plan.method, plan.tile.partition(":")[0]) == ("winograd", "compiled")
    np.testing.assert_allclose(xpconv.conv2d(x, w), np.full((2, 28, 28, 64), 576, np.float32), rtol=3e-5)
    strided = xpconv.explain(xpconv.conv2d, x, w, stride=3)
    assert (strided.method, strided.tile.partition(":")[0]) == ("direct", "compiled")
    np.testing.assert_array_equal(xpconv.conv2d(x, w, stride=3), np.full((2, 10, 10, 64), 576, np.float32))


@pytest.mark.parametrize("channels", [16, 256, 1031, 2048])
def test_compiled_error_stays_within_the_bound_of_direct(channels):
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((1, 14, 14, channels), (3, 3, channels, 64)))
    exact = xpconv.corr2d(x.astype(float), w.astype(float), method="gemm")
    assert np.abs(compiled(x, w) - exact).max() < 2e-6 * np.abs(exact).max()


def test_compiled_nan_stays_in_the_windows_that_hold_it():
    x, w = np.ones((1, 20, 20, 8), np.float32), np.ones((3, 3, 8, 40), np.float32)
    x[0, 7, 9, 3] = np.nan
    touched = np.zeros((18, 18), bool)
    touched[5:8, 7:10] = True
    np.testing.assert_array_equal(np.isnan(compiled(x, w)), np.broadcast_to(touched[None, :, :, None], (1, 18, 18, 40)))


def test_compiled_calls_from_many_threads_are_right():
    rng = np.random.default_rng(2)
    x, w = integers(rng, (2, 40, 40, 32), "float32"), integers(rng, (3, 3, 32, 64), "float32")
    expected, wrong = reference(xpconv.corr, x, w), []

    def call():
        for _ in range(20):
            if not np.array_equal(compiled(x, w), expected):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_calls_after_a_fork_are_right():
    x, w = np.ones((2, 40, 40, 32), np.float32), np.ones((3, 3, 32, 64), np.float32)
    expected = compiled(x, w)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(compiled(x, w), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_compiled_teams_compute_every_item_once():
    task = library("counting", _counting).address("count")
    counts = np.zeros(1000, np.int64)
    arguments = Told(1, ()).of(counts)
    for _ in range(200):
        threads.run(task, arguments, len(counts), 0, 3)
    assert (counts == 200).all()


def test_only_members_of_a_team_compute_and_there_is_memory_for_no_others():
    task, counts = library("placing", _placing).address("place"), np.zeros(400, np.int64)
    arguments, stride = Told(1, ()).of(counts), 8192
    for _ in range(20):
        threads.run(task, arguments, len(counts), 4096, 4)  # after which all of them look for work
        threads.run(task, arguments, len(counts), 4096, 4, 2)
        assert set(counts - counts.min()) <= {0, stride}


def test_a_job_ends_before_what_interrupts_its_caller_goes_on(monkeypatch):
    """Its arrays are let go then."""
    task = library("counting", _counting).address("count")
    team, counts = threads.Team(2), np.zeros(100_000, np.int64)

    def publish(*job):
        team._functions.was_published(*job)
        raise KeyboardInterrupt

    monkeypatch.setattr(team._functions, "was_published", team._functions.publish, raising=False)
    monkeypatch.setattr(team._functions, "publish", publish)
    with pytest.raises(KeyboardInterrupt):
        team.run(task, Told(1, ()).of(counts), len(counts), 0, 0, team.threads)
    assert (counts == 1).all()


def test_arrays_are_told_by_their_addresses_where_nobody_knows_what_is_in_an_object(monkeypatch):
    task, counts = library("counting", _counting).address("count"), np.zeros(8, np.int64)
    assert np.frombuffer(Told(1, (5,)).of(counts), np.int64).tolist() == [1, id(counts), 5]  # on CPython
    monkeypatch.setattr(address, "_IS_KNOWN", False)
    monkeypatch.setattr(address, "_place_of", address._told_by_numpy)
    arguments = Told(1, (5,)).of(counts)
    assert np.frombuffer(arguments, np.int64).tolist() == [0, counts.ctypes.data, 5]
    for team in (1, 2):
        threads.run(task, arguments, len(counts), 0, team)
    assert (counts == 2).all()


def _counting(module):
    kernel = Kernel(module, "count", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    place = kernel.load(arguments) + item * 8
    kernel.store(kernel.load(place) + 1, place)
    kernel.finish()
    return ("count",)


def _placing(module):
    """Each item, which takes some microseconds, is told where the memory of its thread lies."""
    kernel = Kernel(module, "place", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    with kernel.loop(200):
        kernel.pause()
    kernel.store(scratch, kernel.load(arguments) + item * 8)
    kernel.finish()
    return ("place",)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be placed on this system")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="a single processor")
def test_helpers_leave_the_callers_processor_to_the_caller():
    allowed = os.sched_getaffinity(0)
    task, counts = library("counting", _counting).address("count"), np.zeros(8, np.int64)
    for processor in sorted(allowed)[:2]:
        team = threads.Team(3)
        try:
            os.sched_setaffinity(0, {processor})  # where the caller then is
        finally:
            os.sched_setaffinity(0, allowed)
        team.run(task, Told(1, ()).of(counts), len(counts), 0, 0, team.threads)
        assert all(os.sched_getaffinity(helper.native_id) == allowed - {team.processor} for helper in team._helpers)
        assert team.processor in allowed


_PINNED = """
import os, threading
import numpy as np, xpconv
from xpconv.cpu import processors
from xpconv.cpu.compiled import threads

allowed = os.sched_getaffinity(0)

def first():
    os.sched_setaffinity(0, {min(allowed)})
    xpconv.corr2d(np.ones((1, 56, 56, 64), "f"), np.ones((3, 3, 64, 64), "f"), padding=1)

caller = threading.Thread(target=first)
caller.start()
caller.join()
assert processors.most_threads() == len(allowed)
assert {min(allowed)} not in [os.sched_getaffinity(helper.native_id) for helper in threads._team._helpers]
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be placed on this system")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="a single processor")
def test_a_first_caller_that_stays_on_one_processor_does_not_keep_the_others_there():
    unset = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    subprocess.run([sys.executable, "-c", _PINNED], check=True, env=unset | {"XPCONV_COMPILE": "wait"})


def test_a_team_has_the_helpers_that_can_begin(monkeypatch):
    left, begin = [None], threads.Thread.start

    def start(thread):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        begin(thread)

    task, counts = library("counting", _counting).address("count"), np.zeros(8, np.int64)
    monkeypatch.setattr(threads.Thread, "start", start)
    team = threads.Team(3)
    assert len(team._helpers) == 1
    team.run(task, Told(1, ()).of(counts), len(counts), 0, 0, team.threads)
    assert (counts == 1).all()


@pytest.mark.parametrize("tells", [True, False], ids=["the library tells", "threadpoolctl tells"])
def test_compiled_threads_keep_to_the_limit_of_threadpoolctl(tells, monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if not tells:
        monkeypatch.setattr(blas, "library", lambda: None)
    with threadpoolctl.threadpool_limits(1):
        assert threads.thread_count() == 1


def test_without_the_compiled_kernels_numpy_answers(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)
    x, w = np.ones((2, 30, 30, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    assert not xpconv.explain(xpconv.conv2d, x, w).tile.startswith("compiled")
    np.testing.assert_allclose(xpconv.conv2d(x, w), np.full((2, 28, 28, 64), 576, np.float32), rtol=3e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 15, 16, 37, 2**16 - 1, 2**16, 2**16 + 1, 300_001])
def test_one_value_that_is_not_finite_is_found_wherever_it_lies(dtype, size):
    x = np.full(size, np.finfo(dtype).max, dtype)
    assert finite(x)
    for place in {0, size // 2, size - 1}:
        for value in (np.nan, np.inf, -np.inf):
            x[place] = value
            assert not finite(x)
        x[place] = 0


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((2, 56, 56, 64), (3, 3, 64, 64), {"padding": 1}),
        ((3, 30, 31, 20), (3, 3, 20, 40), {"padding": 1, "stride": 2}),
        ((1, 14, 14, 256), (3, 3, 256, 256), {"padding": 1}),
        ((1, 56, 56, 24), (3, 3, 1, 24), {"groups": 24}),
    ],
)
def test_threads_do_not_change_a_result(x_shape, w_shape, options, monkeypatch):
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal(shape, np.float32) for shape in (x_shape, w_shape))
    assert xpconv.explain(xpconv.corr2d, x, w, **options).tile.startswith("compiled")
    results = []
    for count in (1, 2, 3, 5):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        results.append(xpconv.corr2d(x, w, **options))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("limit", [2**21, 2**23, 2**26])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((8, 56, 56, 64), (3, 3, 64, 64), {"padding": 1}),
        ((8, 56, 56, 64), (3, 3, 64, 64), {"padding": 1, "stride": 2, "layout": "channels_first"}),
        ((4, 96, 96, 48), (3, 3, 1, 48), {"groups": 48, "padding": 1}),
        ((32, 14, 14, 128), (3, 3, 4, 128), {"groups": 32, "padding": 1, "layout": "channels_first"}),
        ((1, 16, 24, 24, 16), (3, 3, 3, 16, 16), {"padding": 1}),
    ],
)
def test_measured_scratch_memory_keeps_to_the_workspace_limit(x_shape, w_shape, options, limit, monkeypatch):
    x, w = np.ones(x_shape, np.float32), np.ones(w_shape, np.float32)
    if "layout" in options:
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    monkeypatch.setattr(threads, "_spare", [])  # what earlier calls left
    with xpconv.workspace_limit(limit):
        xpconv.corr(x, w, **options)  # tables, and what is kept of the weight
        threads._spare.clear()
        tracemalloc.start()
        try:
            y = xpconv.corr(x, w, **options)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    packed = 2 * w.nbytes
    assert most - y.nbytes - packed <= limit + 2**16


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arranged", [
    lambda w: w, lambda w: np.asarray(w, order="F"), lambda w: w[::-1], lambda w: w[:, ::-1], lambda w: w[::2, ::3],
    lambda w: np.asarray(w, order="F")[::2], lambda w: np.asarray(w, order="F")[::-1], lambda w: w[:1].repeat(9, 0),
    lambda w: np.broadcast_to(w[:1], (40, w.shape[1])), lambda w: np.asfortranarray(w.reshape(7, -1)).reshape(w.shape),
])  # fmt: skip
@pytest.mark.parametrize(("filters", "groups"), [(1, 1), (8, 1), (13, 1), (40, 1), (36, 2), (120, 3)])
def test_packed_weights_hold_each_filter_once_and_zeros_beyond_the_last(dtype, arranged, filters, groups):
    w = arranged(np.arange(1, 70 * filters + 1, dtype=dtype).reshape(70, filters))
    maps = w.shape[1] // groups
    w, width = w[:, : maps * groups], tile.shape_for(max(maps, 1), dtype).filters
    order = np.random.default_rng(0).permutation(len(w))
    packed = Packing(dtype, groups, maps, width, order * w.strides[0], w.strides[1])(w, 2)
    for group, panels in enumerate(np.split(packed, groups)):
        lanes = np.moveaxis(panels, 1, 0).reshape(len(w), -1)
        np.testing.assert_array_equal(lanes[:, :maps], w[order, group * maps : (group + 1) * maps])
        assert not lanes[:, maps:].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arranged", [lambda b: b, lambda b: b[::-1], lambda b: b.astype("float64"), lambda _: None])
@pytest.mark.parametrize(("groups", "maps", "width"), [(1, 8, 8), (1, 5, 8), (3, 5, 4), (1, 1, 8)])
def test_packed_biases_hold_each_filter_once_and_zeros_beyond_the_last(dtype, arranged, groups, maps, width):
    bias = arranged(np.arange(1, groups * maps + 1, dtype="float32"))
    panels = PackedBias(dtype, groups, maps, width)(bias).reshape(groups, -1)
    assert panels.dtype == dtype
    assert panels.shape[1] % width == 0
    assert not panels[:, maps:].any()
    expected = np.zeros((groups, maps)) if bias is None else bias.reshape(groups, maps)
    np.testing.assert_array_equal(panels[:, :maps], expected)


def _threads_of_a_worker(_):
    x, w = np.ones((1, 20, 20, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)
    right = np.array_equal(compiled(x, w), np.full((1, 18, 18, 8), 72))
    return threads.thread_count() if right else None


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_multiprocessing_take_one_thread_unless_they_are_told(method, monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_threads_of_a_worker, [0]) == [1]
    if method == "spawn" and processors.most_threads() > 1:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.map(_threads_of_a_worker, [0]) == [2]


def test_memory_that_cannot_be_had_leaves_the_team_free():
    task, counts = library("counting", _counting).address("count"), np.zeros(8, np.int64)
    with pytest.raises((MemoryError, ValueError)):
        threads.run(task, Told(1, ()).of(counts), len(counts), 1 << 60, 2)
    assert not threads._team_of(2).lock.locked()
    assert threads._calling == []
    threads.run(task, Told(1, ()).of(counts), len(counts), 0, 2)
    assert (counts == 1).all()


def test_as_many_callers_as_threads_compute_by_themselves(monkeypatch):
    task, counts = library("counting", _counting).address("count"), np.zeros(8, np.int64)
    arguments, teams = Told(1, ()).of(counts), []
    team_of = threads._team_of
    monkeypatch.setattr(threads, "_team_of", lambda threads: teams.append(threads) or team_of(threads))
    threads.run(task, arguments, len(counts), 0, 2)
    monkeypatch.setattr(threads, "_calling", [None])  # another thread's call
    threads.run(task, arguments, len(counts), 0, 2)
    threads.run(task, arguments, len(counts), 0, 4)
    assert teams == [2, 4]
    assert threads._calling == [None]
    assert (counts == 3).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("channels", "filters", "groups"), [(8, 64, 1), (16, 80, 1), (16, 64, 2), (3, 40, 1)])
def test_large_results_are_the_same_wherever_they_begin(dtype, channels, filters, groups):
    rng, size = np.random.default_rng(0), 330
    x = integers(rng, (2, size, size, channels), dtype)
    w, bias = integers(rng, (1, 1, channels // groups, filters), dtype), integers(rng, filters, dtype)
    y = compiled(x, w, bias, groups=groups, activation="relu")
    assert y.nbytes > call.STREAMED
    assert y.ctypes.data % 64 == 0
    per_group = [np.s_[k * channels // groups : (k + 1) * channels // groups] for k in range(groups)]
    maps = [np.s_[k * filters // groups : (k + 1) * filters // groups] for k in range(groups)]
    sums = np.concatenate([x[..., c] @ w[0, 0, :, f] for c, f in zip(per_group, maps, strict=True)], axis=-1)
    np.testing.assert_array_equal(y, np.maximum(sums + bias, 0))
    memory = np.empty(y.size + 16, dtype)
    for start in (0, 1, 5):
        out = memory[start : start + y.size].reshape(y.shape)
        xpconv.corr(x, w, bias, groups=groups, activation="relu", method="direct", out=out)
        np.testing.assert_array_equal(out, y)


@pytest.mark.parametrize("indices", [False, True])
def test_a_pooling_asks_for_the_kernels_that_it_calls(indices, monkeypatch):
    x, asked = np.ones((4, 28, 8, 23)), []
    monkeypatch.setattr(compiled_calls, "is_ready", lambda _, __, windows: asked.append(windows) or True)
    spec = xpconv.max_pool.request(x, (5, 3), stride=2, ceil_mode=True).spec
    assert pooled.by("max_pool", x, spec, indices=indices)
    assert asked == [spec.reading] != [spec]


@pytest.mark.usefixtures("kernels_take_all")
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_half_precision_is_written_where_the_user_wants_it_and_nowhere_else(layout):
    rng = np.random.default_rng(0)
    shapes = ((2, 16, 8, 8), (16, 16, 3, 3)) if layout == "channels_first" else ((2, 8, 8, 16), (3, 3, 16, 16))
    x, w = (integers(rng, shape, "float16") for shape in shapes)
    y = xpconv.corr(x, w, padding=1, layout=layout, method="direct")
    memory = np.full(3 * y.size, 7, "float16")
    xpconv.corr(x, w, padding=1, layout=layout, method="direct", out=memory[: y.size].reshape(y.shape))
    np.testing.assert_array_equal(memory[: y.size].reshape(y.shape), y)
    assert (memory[y.size :] == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 500), (3, 257, 31), (1, 256, 512), (2, 300, 300)])
def test_matrices_are_turned(shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.testing.assert_array_equal(turned(x), x.swapaxes(1, 2))


@pytest.mark.parametrize("dtype", ["float32", "int16", "complex128"])
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (0, 5, 6, 7), (2, 300, 4), (1, 3, 3, 3, 2)])
def test_results_are_laid_out_in_memory_of_their_own(shape, dtype):
    y = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for last in (y, y[..., ::-1]):
        first = compiled_calls.laid_out(last, "channels_first")
        np.testing.assert_array_equal(first, np.moveaxis(last, -1, 1))
        assert first.flags.c_contiguous
        assert compiled_calls.laid_out(last, "channels_last").flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gap", range(2, 18))
def test_runs_of_rows_that_fill_no_square_are_packed_row_by_row(dtype, gap):
    w = np.asarray(np.arange(1.0, 70 * 40 + 1).reshape(70, 40), dtype, order="F")
    order = np.array([row for row in range(70) if row % gap != gap - 1])  # rows side by side, but for some
    packed = Packing(dtype, 1, 40, 16, order * w.strides[0], w.strides[1])(w)
    np.testing.assert_array_equal(np.moveaxis(packed, 1, 0).reshape(len(order), -1)[:, :40], w[order])


@pytest.mark.parametrize(
    "shape", [(2, 7, 5, 3), (1, 300, 17, 40), (3, 9, 20), (1, 1, 1, 1), (2, 3, 4, 5, 6), (0, 4, 5, 2)]
)
@pytest.mark.parametrize("view", [lambda a: a[..., 1:-1], lambda a: a[:, :, ::-1], lambda a: a[:, ::2, ..., ::2]])
def test_maps_of_any_strides_get_their_channels_last(shape, view):
    first = view(np.moveaxis(np.arange(np.prod(shape), dtype="f").reshape(shape), -1, 1).copy())
    maps = np.moveaxis(first, 1, -1)
    made = channels_last(maps)
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, maps)
