"""Filters that are products of filters of one axis each, which the compiled kernels apply one after the other."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import xpconv
from cases import MODES
from engine_cases import reference

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled.build import machine
from xpconv.cpu.plan import passes_pay
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import numpy as engine
from xpconv.engines import replays

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)


@pytest.fixture
def passes(monkeypatch):
    """The passes of each call, however small it is."""
    made, two_passes = [], compiled_calls._two_passes
    monkeypatch.setattr(compiled_calls, "kernel_for", lambda _s, _m, taken: "plane" if taken.plane else "")
    for module in (compiled_calls, replays):
        monkeypatch.setattr(module, "passes_pay", lambda spec, products=1: spec.axes == 2 and products < 4)

    def counted(*args):
        made.append(args)
        return two_passes(*args)

    monkeypatch.setattr(compiled_calls, "_two_passes", counted)
    return made


def outer(rng, window, rank=1):
    """A kernel of that rank, of whole numbers."""
    return sum(np.outer(*(rng.integers(-4, 5, m) * 2 + 1 for m in window)) for _ in range(rank)).astype(float)


@given(
    st.integers(0, 99), st.tuples(st.integers(6, 30), st.integers(6, 40)),
    st.tuples(st.integers(2, 6), st.integers(2, 6)), st.integers(1, 3), st.tuples(*[st.integers(1, 2)] * 2),
    st.tuples(*[st.integers(0, 3)] * 4), st.sampled_from(MODES), st.booleans(), st.sampled_from([1, 1, 5]),
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_products_agree_with_the_definition(passes, seed, size, window, stride, dilation, pads, mode, flip, channels):
    rng, function = np.random.default_rng(seed), xpconv.conv if flip else xpconv.corr
    mode = "zeros" if mode == "constant" else mode
    pads = tuple(min(pad, n - 1) for pad, n in zip(pads, (size[0], size[0], size[1], size[1]), strict=True))
    x = rng.integers(-9, 10, (2, channels, *size)).astype("f")
    w = np.stack([outer(rng, window) for _ in range(channels)])[:, None].astype("f")
    options = {
        "stride": (stride, 1), "dilation": dilation, "padding": (pads[:2], pads[2:]), "padding_mode": mode,
        "groups": channels, "layout": "channels_first",
    }  # fmt: skip
    assume(all((m - 1) * d < n for m, d, n in zip(window, dilation, size, strict=True)))
    assume(channels == 1 or size[1] >= 24)  # narrow rows of several planes are turned
    before = len(passes)
    y = function(x, w, **options)
    assert len(passes) == before + 1
    np.testing.assert_allclose(y, reference(function, x, w, **options), rtol=2e-6, atol=2e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turned", [lambda a: a, lambda a: a[::-1, :, ::-1], lambda a: a[:, :, :, ::-1]])
def test_sums_of_products_take_a_bias_an_activation_and_an_out(passes, rank, activation, channels, turned):
    rng, options = np.random.default_rng(rank), {"padding": "same", "activation": activation, "groups": channels}
    options["layout"] = "channels_first"
    x, bias = rng.standard_normal((2, channels, 40, 50)), np.arange(1.0, channels + 1)
    w = np.stack([outer(rng, (13, 12), rank) for _ in range(channels)])[:, None] / 100
    out = turned(np.empty(x.shape))
    y = xpconv.conv2d(x, w, bias, out=out, **options)
    assert y is out
    assert len(passes) == rank
    np.testing.assert_allclose(y, reference(xpconv.conv2d, x, w, bias, **options), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(xpconv.conv2d(x, w, bias, **options), y, rtol=1e-13, atol=1e-13)


def test_a_weight_that_is_no_such_sum_and_a_fill_are_filtered_at_once(passes):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((40, 50)), rng.standard_normal((13, 13))
    np.testing.assert_allclose(xpconv.corr2d(x, w), reference(xpconv.corr2d, x, w), rtol=1e-11, atol=1e-11)
    filled = {"padding": 3, "padding_mode": "constant", "fill_value": 2.0}
    product = outer(rng, (5, 5))
    np.testing.assert_allclose(xpconv.corr2d(x, product, **filled), reference(xpconv.corr2d, x, product, **filled))
    with xpconv.workspace_limit(36 * 50 * 8 - 1):
        np.testing.assert_allclose(xpconv.corr2d(x, product), reference(xpconv.corr2d, x, product))
    assert not passes


@pytest.mark.usefixtures("passes")
def test_what_is_not_finite_stays_in_the_windows_that_hold_it():
    x, w = np.ones((30, 40)), np.outer([1.0, 0.0, 2.0], [1.0, 3.0, 0.0])
    for value in (np.nan, np.inf, -np.inf):
        x[10, 20] = value
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(xpconv.corr2d(x, w), reference(xpconv.corr2d, x, w))


def test_a_repeated_call_looks_at_the_values_of_its_weight():
    rng = np.random.default_rng(0)
    x, product, other = rng.standard_normal((300, 300)), outer(rng, (15, 15)), rng.standard_normal((15, 15))
    request = xpconv.corr2d.request(x, product, method="direct")
    assert passes_pay(request.spec)
    assert engine.replay(request) is None
    for w in (product, other, product):
        y = xpconv.corr2d(x, w, method="direct")
        np.testing.assert_allclose(y, reference(xpconv.corr2d, x, w), rtol=1e-9, atol=1e-9)


def test_passes_pay_for_large_windows_only():
    def pays(window, products=1, size=2048):
        return passes_pay(xpconv.corr2d.request(np.empty((size, size)), np.ones(window)).spec, products)

    assert pays((15, 15))
    assert not pays((5, 5))
    assert not pays((15, 15), products=3)
    assert not pays((31, 1))
    assert not pays((15, 15), size=40)
