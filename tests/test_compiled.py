"""The compiled kernels of the NumPy engine: their results, their threads, and what answers without them."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import conv_cases, integers
from engine_cases import reference

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import direct, threads
from xpconv.cpu.compiled.build import library, machine
from xpconv.cpu.compiled.ir import Kernel

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)


def compiled(x, w, **options):
    """The kernels' answer, whatever the plan would take; x unpadded."""
    spec = xpconv.corr.request(x, w, **options).spec
    assert direct.panel(x.dtype.name, spec)
    return direct.conv(x, w, spec)


@given(conv_cases(dtypes=(np.float32, np.float64), modes=("zeros",)))
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


def test_images_too_large_for_the_compiled_tables_are_left_to_numpy():
    x, w = np.zeros((513, 2, 514, 1), np.float32), np.zeros((2, 1, 1, 1), np.float32)
    assert direct.panel("float32", xpconv.corr.request(x, w).spec)
    assert not direct.panel("float32", xpconv.corr.request(x.reshape(1, 1026, 514, 1), w).spec)


def test_a_large_layer_is_compiled_and_explained_so():
    x, w = np.ones((2, 30, 30, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    plan = xpconv.explain(xpconv.conv2d, x, w)
    assert plan.method == "direct"
    assert plan.tile.startswith("compiled")
    np.testing.assert_array_equal(xpconv.conv2d(x, w), np.full((2, 28, 28, 64), 576, np.float32))


def test_compiled_error_stays_within_the_bound_of_direct():
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((1, 14, 14, 256), (3, 3, 256, 64)))
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
    arguments = np.array([counts.ctypes.data], np.int64)
    for _ in range(200):
        threads.run(task, arguments, len(counts), 0, 3)
    assert (counts == 200).all()


def _counting(module):
    kernel = Kernel(module, "count", ("arguments", "item", "scratch"))
    arguments, item, _ = kernel.arguments
    place = kernel.load(arguments) + item * 8
    kernel.store(kernel.load(place) + 1, place)
    kernel.finish()
    return ("count",)


def test_compiled_threads_keep_to_the_limit_of_threadpoolctl():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(1):
        assert threads.thread_count() == 1


def test_without_the_compiled_kernels_numpy_answers(monkeypatch):
    from xpconv.engines import numpy as engine

    monkeypatch.setattr(engine, "_compiled", lambda: None)
    x, w = np.ones((2, 30, 30, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    assert not xpconv.explain(xpconv.conv2d, x, w).tile.startswith("compiled")
    np.testing.assert_array_equal(xpconv.conv2d(x, w), np.full((2, 28, 28, 64), 576, np.float32))
