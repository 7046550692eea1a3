"""Small convolutions that NumPy repeats: the short way must not be told from the long one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import conv_cases, first, integers, weight_first
from xpconv.cpu import costs, small
from xpconv.dispatch import run
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import numpy as engine


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)


def check(function, arrays, **options):
    """Whether a call was repeated, and if so as the long way computes it."""
    request = function.request(*arrays, **options)
    repeat = engine.replay(request)
    if repeat is None:
        return False
    expected = run(request)
    y = repeat(*request.given)
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    assert not any(a is not None and np.shares_memory(y, a) for a in arrays)
    return True


@given(conv_cases(dtypes=(np.float32, np.float64)), st.sampled_from(["auto", "gemm"]), st.booleans())
def test_whatever_is_repeated_is_what_the_long_way_computes(case, method, channels_first):
    x, w = (first(case.x), weight_first(case.w)) if channels_first else (case.x, case.w)
    layout = "channels_first" if channels_first else "channels_last"
    options = {**case.options, "layout": layout, "fill_value": case.fill, "method": method}
    check(getattr(xpconv, case.function), (x, w, case.bias), **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), [
    ((1, 8, 8, 1), (3, 3, 1, 4), {"padding": 1}),
    ((2, 9, 8, 3), (3, 2, 3, 4), {"stride": (2, 1), "dilation": (1, 3), "padding": ((0, 2), (3, 1))}),
    ((2, 9, 8, 3), (3, 2, 3, 4), {"padding": 1, "padding_mode": "constant", "fill_value": 2.5}),
    ((50,), (5,), {"padding": "same"}),
    ((50,), (5,), {"padding": "full", "padding_mode": "constant", "fill_value": -3}),
    ((50,), (50,), {}),
    ((9, 2), (3, 2, 4), {}),
    ((33, 30), (3, 5), {"padding": "same"}),
    ((64, 64), (31, 31), {"padding": "same"}),
    ((41, 37), (4, 3), {"stride": (2, 3), "dilation": (3, 2), "padding": ((0, 2), (3, 1))}),
    ((41, 37), (4, 3), {"padding": 2, "padding_mode": "constant", "fill_value": 3}),
])  # fmt: skip
def test_small_layers_and_signals_are_repeated(x_shape, w_shape, options, activation, dtype):
    rng = np.random.default_rng(0)
    one_axis = len(w_shape) in (1, 3)
    for function in (xpconv.conv1d, xpconv.corr1d) if one_axis else (xpconv.conv2d, xpconv.corr2d):
        x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
        assert check(function, (x, w), activation=activation, **options)
        turned = x[::-1], np.asarray(w, order="F")
        assert check(function, turned, activation=activation, **options)


def test_what_is_large_or_read_by_other_rules_is_repeated_as_well():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((1, 8, 8, 2)), rng.standard_normal((3, 3, 2, 4))
    assert check(xpconv.conv2d, (x, w), method="gemm")
    assert check(xpconv.conv2d, (x, w), method="gemm", padding=1, padding_mode="wrap")
    assert check(xpconv.conv2d, (x, w[:, :, :1]), method="gemm", groups=2)
    assert check(xpconv.conv2d, (rng.standard_normal((1, 80, 80, 2)), rng.standard_normal((9, 9, 2, 4))), method="gemm")
    with xpconv.workspace_limit(36 * 18 * 8 - 1):  # less than the patches of all results
        assert check(xpconv.conv2d, (x, w), method="gemm")
    assert not check(xpconv.conv2d, (x, w), method="fft")


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), [
    ((2, 56, 56, 16), (1, 1, 16, 80), {}),
    ((2, 40, 40, 32), (3, 3, 32, 48), {"padding": 1}),
    ((2, 40, 40, 32), (3, 3, 32, 48), {"padding": ((0, 2), (3, 1)), "stride": 2}),
])  # fmt: skip
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("value", [0, np.nan, -np.inf])
def test_large_layers_are_repeated(x_shape, w_shape, options, activation, layout, value):
    rng = np.random.default_rng(2)
    x, w, bias = (rng.standard_normal(shape, np.float32) for shape in (x_shape, w_shape, w_shape[-1:]))
    x[1, 5, 7, 3] = value
    x.flags.writeable = False
    if layout == "channels_first":
        x, w = np.ascontiguousarray(first(x)), weight_first(w)
    asked = {**options, "layout": layout, "activation": activation}
    with np.errstate(invalid="ignore"):
        for arrays in ((x, w, bias), (x[:, ::-1], w, None)):
            request = xpconv.corr2d.request(*arrays, **asked)
            y = engine.replay(request)(*request.given)
            if y is NotImplemented:
                assert xpconv.explain(xpconv.corr2d, *arrays, **asked).method == "winograd"
                assert value != 0
            else:
                np.testing.assert_array_equal(y, run(request))
                assert y.flags.c_contiguous


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_stays_within_the_windows_of_a_small_plane(value):
    x, w = np.ones((40, 40), np.float32), np.arange(1, 26, dtype=np.float32).reshape(5, 5)
    x[20, 20] = value
    w[1, 1] = 0
    with np.errstate(invalid="ignore", over="ignore"):
        expected = sum(w[4 - i, 4 - j] * x[i : i + 36, j : j + 36] for i in range(5) for j in range(5))
    request = xpconv.conv2d.request(x, w)
    np.testing.assert_allclose(engine.replay(request)(x, w, None), expected, rtol=1e-6)
    for _ in range(2):
        np.testing.assert_allclose(xpconv.conv2d(x, w), expected, rtol=1e-6)


def test_a_plane_whose_sums_are_more_than_the_limit_takes_the_long_way():
    x, w = np.ones((40, 40), np.float32), np.ones((5, 5), np.float32)
    request = xpconv.conv2d.request(x, w, padding="same")
    with xpconv.workspace_limit(40 * 5 * 44 * 4):
        assert engine.replay(request) is not None
    with xpconv.workspace_limit(40 * 5 * 44 * 4 - 1):
        assert engine.replay(request) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "window", "options"), [
    ((1000,), (31,), {}), ((1001,), (40,), {"padding": "same", "dilation": 3}), ((5000,), (90,), {"stride": 3}),
    ((900,), (33,), {"padding": ((5, 40),), "padding_mode": "constant", "fill_value": 2}),
])  # fmt: skip
def test_rows_of_a_short_signal_are_multiplied_at_once(size, window, options, dtype):
    assert_once(small.signal, size, window, options, dtype, 2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "window", "options"), [
    ((3000,), (801,), {"padding": "same"}), ((90, 80), (31, 30), {}), ((64, 64), (31, 31), {"padding": "same"}),
    ((90, 81), (30, 31), {"stride": (2, 3), "padding": ((3, 9), (0, 4)), "padding_mode": "constant", "fill_value": 7}),
])  # fmt: skip
def test_the_spectrum_of_a_small_plane_is_taken_at_once(size, window, options, dtype):
    assert_once(small.spectrum, size, window, options, dtype, 2e-6)


def assert_once(prepare, size, window, options, dtype, bound):
    """That what is prepared is the definition, finite or not, with a mean that cancels."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(size) + 100).astype(dtype), rng.standard_normal(window)
    w = (w - w.mean()).astype(dtype)
    for function in (xpconv.conv, xpconv.corr):
        arrays = x[None, ..., None], w[..., None, None]
        request = function.request(*arrays, **options)
        fill = request.options["fill_value"]
        y = prepare(request.spec, x.dtype, fill)(*arrays)
        assert y.dtype == dtype
        wide = (a.astype("longdouble") for a in arrays)
        expected = function(*wide, **options)
        assert np.abs(y - expected).max() <= bound * max(np.abs(expected).max(), 1) * (1 if dtype == "float64" else 10)
        spoilt = x.copy()
        spoilt[(len(x) // 2,) * x.ndim] = np.inf
        assert prepare(request.spec, x.dtype, fill)(spoilt[None, ..., None], arrays[1]) is None


def test_one_signal_is_left_to_numpys_loop_where_that_is_quickest():
    def by(n, m, **options):
        spec = xpconv.conv1d.request(np.ones(n), np.ones(m), **options).spec
        return costs.direct_by(spec)

    assert by(1_000, 5) == by(50, 50) == by(1_000_000, 3) == "loop"
    assert by(1_000_000, 31) == "bands"
    assert by(1_000_000, 5, stride=2) != "loop"
    assert by(1_000_000, 5, dilation=2) != "loop"


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float32", "complex64", "longdouble"])
def test_the_loop_is_the_definition_in_every_dtype(dtype):
    rng = np.random.default_rng(3)
    x, w = integers(rng, 40, dtype), integers(rng, 7, dtype)
    if dtype == "complex64":
        x, w = x + 1j * integers(rng, 40, dtype), w - 2j * integers(rng, 7, dtype)
    spec = xpconv.conv1d.request(x, w).spec
    y = small.correlation(x[None, :, None], w[:, None, None], spec)[0, :, 0]
    np.testing.assert_array_equal(y, np.convolve(x, w, "valid"))
    assert y.dtype == x.dtype


@pytest.mark.parametrize("padding", [(0, 2), (4, 4), (2, 0), (7, 1)])
@pytest.mark.parametrize("size", [3, 20, 12_000])
@pytest.mark.parametrize("edge", [1, np.inf])
def test_the_loop_sums_over_what_is_there_and_over_zeros_alike(size, padding, edge):
    x, w = np.arange(1.0, size + 1), np.array([edge, 2, -1, 5, edge])
    for function in (xpconv.conv1d, xpconv.corr1d):
        padded = np.pad(x, padding)
        with np.errstate(invalid="ignore"):
            expected = np.convolve(padded, w if function is xpconv.conv1d else w[::-1], "valid")
            for _ in range(2):
                y = function(x, w, padding=(padding,), method="direct")
                np.testing.assert_array_equal(y, expected)
            spec = function.request(x, w, padding=(padding,)).spec
            y = small.correlation(x[None, :, None], w[:, None, None], spec)
            np.testing.assert_array_equal(y[0, :, 0], expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "window", "options"), [
    ((64, 64), (31, 31), {}), ((64, 61), (5, 3), {"stride": 2}), ((64, 64), (3, 3), {"padding": "same"}),
    ((400,), (31,), {"padding": "same"}), ((90,), (5,), {}), ((20_000,), (7,), {"padding": 3}),
    ((1, 9, 9, 3), (3, 3, 3, 5), {"padding": 1}), ((2, 30, 3), (5, 3, 7), {}), ((1, 12, 12, 16), (3, 3, 16, 16), {}),
])  # fmt: skip
def test_a_repeated_call_gives_the_bits_of_the_first(monkeypatch, size, window, options, dtype):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(size).astype(dtype), rng.standard_normal(window).astype(dtype)
    function = getattr(xpconv, f"conv{len(window) if len(window) < 3 else len(window) - 2}d")
    first = function(x, w, **options)
    for _ in range(3):
        np.testing.assert_array_equal(function(x, w, **options), first)
