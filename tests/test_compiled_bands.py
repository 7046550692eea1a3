"""Long filters of signals by bands of their taps: the last group of results, what is not finite, and little memory."""

import math
from functools import partial

import numpy as np
import pytest

import xpconv
from cases import integers
from engine_cases import reference
from kernel_calls import by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu import plan
from xpconv.cpu.compiled import bands, kernels, plane, threads
from xpconv.cpu.compiled.build import machine

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

compiled = partial(by_kernels, "plane", xpconv.conv1d)
MOST = plan._FEWEST_RESULTS


@pytest.fixture
def alone(monkeypatch):
    """How often the filter's own kernel is called; signals of every length are taken."""
    for module in (bands, kernels):
        monkeypatch.setattr(module, "is_banded", lambda spec: math.isfinite(plan._banded_seconds(spec)))
    calls, call = [], plane.Plane.__call__
    monkeypatch.setattr(plane.Plane, "__call__", lambda *args: (calls.append(1), call(*args))[1])
    return calls


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [xpconv.conv1d, xpconv.corr1d])
@pytest.mark.parametrize("taps", [40, 101, 1025, 2050])
@pytest.mark.parametrize("padding", ["valid", "same", "full", ((3, 0),), ((0, 70),), ((500, 1),)])
def test_signals_of_any_length(padding, taps, function, dtype, alone):
    rng = np.random.default_rng(0)
    w = integers(rng, (taps,), dtype)
    for results in range(MOST, MOST + 32, 5):
        pads = {"valid": 0, "same": taps - 1, "full": 2 * taps - 2}.get(padding) if isinstance(padding, str) else None
        size = max(results + taps - 1 - (sum(padding[0]) if pads is None else pads), 1)
        x = integers(rng, (size,), dtype)
        y = by_kernels("plane", function, x, w, padding=padding)
        np.testing.assert_array_equal(y.reshape(-1), reference(function, x, w, padding=padding))
    assert not alone


@pytest.mark.parametrize("options", [
    {"bias": [3]}, {"bias": [-2], "activation": "relu"}, {"activation": "leaky_relu"},
    {"padding": 30, "padding_mode": "constant", "fill_value": 2},
])  # fmt: skip
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_batches_in_both_layouts(layout, options, alone):
    rng = np.random.default_rng(1)
    first = layout == "channels_first"
    x = integers(rng, (3, 1, 333) if first else (3, 333, 1), "float32")
    w = integers(rng, (1, 1, 64) if first else (64, 1, 1), "float32")
    options = options | {"layout": layout}
    bias = np.array(options.pop("bias"), np.float32) if "bias" in options else None
    y = compiled(x, w, bias=bias, **options)
    np.testing.assert_allclose(y, reference(xpconv.conv1d, x, w, bias, **options), rtol=1e-6)
    assert not alone


@pytest.mark.parametrize("view", [
    lambda x: x[:, ::-1], lambda x: x[:, ::3], lambda x: x[::-1], lambda x: x[1:, 5:-7],
    lambda x: np.broadcast_to(x[:1], x.shape), lambda x: np.broadcast_to(x[:, :1], x.shape),
])  # fmt: skip
def test_signals_of_any_strides(view, alone):
    rng = np.random.default_rng(2)
    x, w = view(integers(rng, (3, 900, 1), "float32")), integers(rng, (128, 1, 1), "float32")[::-2]
    np.testing.assert_array_equal(compiled(x, w, padding=9), reference(xpconv.conv1d, x, w, padding=9))
    assert not alone


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 31, 32, 250, 399])
def test_what_is_not_finite_stays_in_its_windows(place, value, alone):
    x, w = np.ones(400, np.float32), np.ones(50, np.float32)
    x[place] = value
    y = compiled(x, w, padding="full").reshape(-1)
    touched = np.zeros(449, bool)
    touched[place : place + 50] = True
    np.testing.assert_array_equal(~np.isfinite(y), touched)
    assert alone == [1]


def test_taps_that_are_not_finite_make_what_the_definition_makes(alone):
    x, w = np.ones(400, np.float32), np.ones(50, np.float32)
    w[7] = np.nan
    assert np.isnan(compiled(x, w)).all()
    assert alone == [1]


def test_repeated_calls_and_given_memory(alone):
    rng = np.random.default_rng(3)
    x, out = integers(rng, (1003,), "float64"), np.empty(1003)
    for _ in range(4):
        w = integers(rng, (77,), "float64")
        right = reference(xpconv.conv1d, x, w, padding="same")
        np.testing.assert_array_equal(xpconv.conv1d(x, w, padding="same", method="direct"), right)
        np.testing.assert_array_equal(xpconv.conv1d(x, w, padding="same", method="direct", out=out), right)
    assert not alone


def test_with_too_little_memory_the_filters_own_kernel_answers(alone):
    rng = np.random.default_rng(4)
    x, w = integers(rng, (2000,), "float32"), integers(rng, (500,), "float32")
    np.testing.assert_array_equal(compiled(x, w, limit=20_000).reshape(-1), reference(xpconv.conv1d, x, w))
    assert alone == [1]


@pytest.mark.parametrize(("size", "taps"), [(50_001, 701), (15_000, 1025)])  # of a band larger than the signal too
def test_threads_change_no_bit(size, taps, alone, monkeypatch):
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal(size).astype("float32"), rng.standard_normal(taps).astype("float32")
    y = compiled(x, w, padding="same")
    for team in (1, 2, 3, 7):
        monkeypatch.setattr(threads, "thread_count", lambda team=team: team)
        np.testing.assert_array_equal(compiled(x, w, padding="same"), y)
    assert not alone


@pytest.mark.parametrize("unlike", [
    {"stride": 2}, {"dilation": 2}, {"padding": 40, "padding_mode": "reflect"}, {"padding": ((0, 40),), "dilation": 3},
])  # fmt: skip
def test_other_filters_have_their_own_kernel(unlike, alone):
    rng = np.random.default_rng(5)
    x, w = integers(rng, (2000,), "float32"), integers(rng, (100,), "float32")
    np.testing.assert_array_equal(compiled(x, w, **unlike).reshape(-1), reference(xpconv.conv1d, x, w, **unlike))
    assert alone == [1]


def test_the_plan_tells():
    x, w = np.zeros(1_000_000, np.float32), np.zeros(201, np.float32)
    assert "band of the taps" in xpconv.explain(xpconv.conv1d, x, w, method="direct").tile
    assert "columns" in xpconv.explain(xpconv.conv1d, x, w[:9], method="direct").tile
    reflected = {"padding": "same", "padding_mode": "reflect"}
    assert "columns" in xpconv.explain(xpconv.conv1d, x, w, method="direct", **reflected).tile
