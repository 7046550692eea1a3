"""Compiled depthwise convolution and pooling by themselves: every tile, every border, every way that arrays lie."""

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import MODES, integers, pool_cases
from engine_cases import reference
from kernel_calls import LIMIT, by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import ahead, channelwise, threads
from xpconv.cpu.compiled.build import machine
from xpconv.engines import agnostic
from xpconv.engines import pooled as pooled_calls

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
POOLINGS = pytest.mark.parametrize("operation", ["max_pool", "sum_pool"])


depthwise = partial(by_kernels, "depthwise")


def pooled(operation, x, window, *divisor, limit=LIMIT, **options):
    """The kernels' answer to a pooling."""
    spec = xpconv.max_pool.request(x, window, **options).spec
    with xpconv.workspace_limit(limit):
        return pooled_calls.reduced("channelwise", _OPERATIONS[operation], x, spec, *divisor)


_OPERATIONS = {"max_pool": "largest", "sum_pool": "added"}


def defined(operation, x, window, **options):
    """What the agnostic engine makes of the same pooling."""
    spec = xpconv.max_pool.request(x, window, **options).spec
    if operation == "max_pool":
        return agnostic.max_pool(x, spec, return_indices=False)
    return agnostic.sum_pool(x, spec)


def in_layout(x, w, layout):
    return (x, w) if layout == "channels_last" else (np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1)))


@DTYPES
@LAYOUTS
@given(
    st.integers(1, 40), st.integers(1, 5), st.tuples(st.integers(1, 9), st.integers(1, 33)),
    st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 11])), st.tuples(*[st.integers(1, 3)] * 4),
    st.tuples(*[st.integers(0, 3)] * 4), st.sampled_from(MODES), st.booleans(),
)  # fmt: skip
def test_depthwise_agrees_with_the_definition(dtype, layout, channels, batch, size, window, steps, padding, mode, flip):
    rng = np.random.default_rng(channels)
    stride, dilation, pads = steps[:2], steps[2:], (padding[:2], padding[2:])
    spans = [(m - 1) * d + 1 for m, d in zip(window, dilation, strict=True)]
    size = tuple(max(n, span - sum(p)) for n, span, p in zip(size, spans, pads, strict=True))
    x, w = integers(rng, (batch, *size, channels), dtype), integers(rng, (*window, 1, channels), dtype)
    x, w = in_layout(x, w, layout)
    options = {"stride": stride, "dilation": dilation, "padding": pads, "padding_mode": mode, "groups": channels}
    options |= {"layout": layout, "activation": "relu"} | ({"fill_value": 2} if mode == "constant" else {})
    function, bias = xpconv.conv if flip else xpconv.corr, integers(rng, (channels,), dtype)
    expected = reference(function, x, w, bias, **options)
    np.testing.assert_array_equal(depthwise(function, x, w, bias, **options), expected)


@LAYOUTS
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("columns", [6, 7, 17])
@pytest.mark.parametrize(("window", "dilation"), [((3, 3), 1), ((5, 5), 1), ((2, 10), 1), ((3, 7), (2, 1))])
def test_rows_of_results_that_are_computed_together(layout, rows, columns, window, dilation):
    rng = np.random.default_rng(rows)
    x, w = integers(rng, (2, rows, columns, 37), "float32"), integers(rng, (*window, 1, 37), "float32")
    x, w = in_layout(x, w, layout)
    options = {"groups": 37, "layout": layout, "padding": "same", "dilation": dilation}
    for more in ({}, {"stride": (np.max(dilation), 1)}, {"padding_mode": "constant", "fill_value": 3}):
        expected = reference(xpconv.corr, x, w, **options, **more)
        np.testing.assert_array_equal(depthwise(xpconv.corr, x, w, **options, **more), expected)


@pytest.mark.parametrize("window", [3, 5])
def test_padding_is_multiplied_as_well(window):
    x, w = np.ones((1, 8, 15, 20), np.float32), np.ones((window, window, 1, 20), np.float32)
    w[0, -1, 0, 3] = np.inf
    options = {"groups": 20, "padding": window // 2}
    with np.errstate(invalid="ignore"):
        expected = reference(xpconv.corr, x, w, **options)
    assert np.isnan(expected).any()
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(depthwise(xpconv.corr, x, w, **options), expected)


@LAYOUTS
@pytest.mark.parametrize(
    ("size", "window"), [((70,), (3,)), ((70,), (10,)), ((5, 6, 9), (2, 3, 3)), ((4, 5, 6), (1, 1, 5))]
)
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_signals_and_volumes_agree_with_the_definition(layout, size, window, padding, stride):
    rng = np.random.default_rng(2)
    x, w = integers(rng, (3, *size, 37), "float32"), integers(rng, (*window, 1, 37), "float32")
    x, w = in_layout(x, w, layout)
    options = {"groups": 37, "layout": layout, "padding": padding, "stride": stride}
    np.testing.assert_array_equal(depthwise(xpconv.conv, x, w, **options), reference(xpconv.conv, x, w, **options))


@DTYPES
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_the_bias_and_the_activation_are_stored(dtype, layout, activation):
    rng = np.random.default_rng(3)
    x, w = in_layout(integers(rng, (2, 9, 11, 35), dtype), integers(rng, (3, 3, 1, 35), dtype), layout)
    bias, options = integers(rng, (35,), dtype), {"groups": 35, "layout": layout, "activation": activation}
    expected = reference(xpconv.corr, x, w, bias, **options)
    np.testing.assert_allclose(depthwise(xpconv.corr, x, w, bias, **options), expected, rtol=1e-6)


@POOLINGS
@DTYPES
@LAYOUTS
@given(pool_cases(dtypes=(np.float64,)), st.integers(1, 140), st.integers(1, 5))
def test_pooling_agrees_with_the_definition(operation, dtype, layout, case, channels, batch):
    size, options = case.x.shape[1:-1], {**case.options, "layout": layout}
    x = integers(np.random.default_rng(channels), (batch, *size, channels), dtype)
    x = x if layout == "channels_last" else np.moveaxis(x, -1, 1)
    np.testing.assert_array_equal(pooled(operation, x, **options), defined(operation, x, **options))


@POOLINGS
@DTYPES
@pytest.mark.parametrize("channels", [1, 16, 65])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (1, 3, 0), (7, 1, 3)])
def test_what_is_not_a_number_reaches_only_the_windows_that_read_it(
    operation, dtype, channels, window, stride, padding
):
    options = {"stride": stride, "padding": padding, "window": (1, window)}
    options["padding"] = ((0, 0), (padding, padding))
    for column in range(24):
        for channel in {0, channels // 2, channels - 1}:
            x = np.ones((1, 1, 24, channels), dtype)
            x[0, 0, column, channel] = np.nan
            np.testing.assert_array_equal(pooled(operation, x, **options), defined(operation, x, **options))


@DTYPES
def test_windows_of_minus_infinity_and_of_padding_alone_are_minus_infinity(dtype):
    x = np.full((1, 6, 30, 20), -np.inf, dtype)
    x[0, :, 25:] = 3
    for options in (
        {"window": (2, 3)},
        {"window": (2, 2), "dilation": (1, 40), "stride": 1, "padding": ((0, 0), (30, 30))},
    ):
        np.testing.assert_array_equal(pooled("max_pool", x, **options), defined("max_pool", x, **options))
    assert np.isneginf(pooled("max_pool", x, (2, 3))[:, :, :8]).all()


@DTYPES
def test_sums_are_divided_and_not_multiplied_by_the_inverse(dtype):
    x = np.random.default_rng(5).standard_normal((2, 9, 14, 19)).astype(dtype)
    sums = pooled("sum_pool", x, (3, 3))
    np.testing.assert_array_equal(pooled("sum_pool", x, (3, 3), 9.0), sums / np.dtype(dtype).type(9))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::-1, ::-1],
        lambda x: x[:, :, ::2],
        lambda x: x[..., ::-2],
        lambda x: x.transpose(3, 2, 1, 0),
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: np.broadcast_to(x[:, :, :1], x.shape),
        lambda x: np.broadcast_to(x[..., :1], x.shape),
    ],
)
@pytest.mark.parametrize("padding", [0, 1])
def test_arrays_of_any_strides_are_read(view, padding):
    rng = np.random.default_rng(4)
    x = view(integers(rng, (18, 20, 22, 18), "float32"))
    x.flags.writeable = False
    w = integers(rng, (3, 3, 1, 18), "float32")[..., : x.shape[-1]][::-1, :, :, ::-1]
    options = {"padding": padding, "groups": x.shape[-1]}
    np.testing.assert_array_equal(depthwise(xpconv.corr, x, w, **options), reference(xpconv.corr, x, w, **options))
    for operation in ("max_pool", "sum_pool"):
        options = {"window": (3, 3), "padding": padding}
        np.testing.assert_array_equal(pooled(operation, x, **options), defined(operation, x, **options))


@DTYPES
def test_threads_and_blocks_change_no_bit(monkeypatch, dtype):
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((2, 61, 57, 40)).astype(dtype), rng.standard_normal((3, 5, 1, 40)).astype(dtype)
    options = {"padding": 2, "groups": 40}
    y = depthwise(xpconv.corr, x, w, **options)
    for team in (1, 3):
        monkeypatch.setattr(threads, "thread_count", lambda team=team: team)
        for limit in (channelwise.workspace(dtype, xpconv.corr.request(x, w, **options).spec), LIMIT):
            np.testing.assert_array_equal(depthwise(xpconv.corr, x, w, limit=limit, **options), y)


@pytest.mark.parametrize("window", [(150, 134), (151, 131)])
def test_sums_of_thousands_keep_their_digits(window):
    x, w = np.full((1, 152, 140, 17), 0.1, np.float32), np.full((*window, 1, 17), 0.1, np.float32)
    tenth, taps = np.float64(np.float32(0.1)), window[0] * window[1]
    np.testing.assert_allclose(pooled("sum_pool", x, window, stride=1), taps * tenth, rtol=1e-5)
    np.testing.assert_allclose(depthwise(xpconv.corr, x, w, groups=17), taps * tenth**2, rtol=1e-5)
    x[0, 80:, 100, 3] = 5
    np.testing.assert_array_equal(pooled("max_pool", x, window, stride=1), defined("max_pool", x, window, stride=1))


def test_several_callers_at_once_get_their_own_results():
    rng = np.random.default_rng(7)
    inputs = [integers(rng, (4, 30 + i, 31, 24), "float32") for i in range(6)]
    expected = [defined("max_pool", x, (3, 3), padding=1) for x in inputs]
    wrong = []

    def call(i):
        for _ in range(20):
            if not np.array_equal(pooled("max_pool", inputs[i], (3, 3), padding=1), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@DTYPES
@pytest.mark.parametrize("channels", [32, 24])
@pytest.mark.parametrize("start", [0, 1, 16])
def test_large_results_are_the_same_wherever_they_begin(dtype, channels, start):
    rng, size = np.random.default_rng(0), 300
    x, w = integers(rng, (2, size, size, channels), dtype), integers(rng, (3, 1, 1, channels), dtype)
    bias = integers(rng, channels, dtype)
    sums = sum(x[:, i : i + size - 2] * w[i, 0, 0] for i in range(3)) + bias
    memory = np.empty(sums.size + 16, dtype)
    out = memory[start : start + sums.size].reshape(sums.shape)
    xpconv.corr2d(x, w, bias, groups=channels, method="direct", out=out)
    np.testing.assert_array_equal(out, sums)
    np.testing.assert_array_equal(xpconv.corr2d(x, w, bias, groups=channels, method="direct"), sums)
    np.testing.assert_array_equal(pooled("max_pool", x, (2, 1)), np.maximum(x[:, :-1:2], x[:, 1::2]))


@DTYPES
@POOLINGS
@pytest.mark.parametrize("channels", [32, 64, 107])
@pytest.mark.parametrize("way", [np.s_[:], np.s_[:, ::2, ::2], np.s_[::-1, ::-1, ::-1], np.s_[..., 1:]])
@pytest.mark.parametrize("streamed", [0, 1 << 40])
def test_windows_one_by_one_of_maps_beyond_the_caches(monkeypatch, dtype, operation, channels, way, streamed):
    monkeypatch.setattr(channelwise, "_STREAMED", streamed)
    monkeypatch.setattr(channelwise, "_ASKED", dict.fromkeys(channelwise._ASKED, 0))
    x = integers(np.random.default_rng(channels), (3, 41, 37, channels + 1), dtype)[way]
    x[1, 3, 5, ::3] = np.nan
    cases = [((2, 2), {}), ((3, 3), {"padding": 1}), ((1, 3), {"dilation": 2}), ((5, 4), {"padding": (0, 2)})]
    for window, options in cases:
        y, expected = (pool(operation, x, window, stride=2, **options) for pool in (pooled, defined))
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("window", "stride"), [((3, 3), 2), ((2, 2), 2), ((2, 3), (3, 1)), ((5, 2), (1, 2))])
def test_rows_are_asked_for_that_the_next_windows_read_first(window, stride):
    x = np.empty((2, 30, 26, 8), np.float32)
    spec = xpconv.max_pool.request(x, window, stride=stride, padding=((1, 0), (1, 1))).spec
    numbers, tables = ahead.tables_of(spec, SimpleNamespace(strip=0), x.strides, far=True)
    for row, column in np.ndindex(spec.out_size[0] - 1, spec.out_size[1]):
        read, soon = ({*range(r * spec.stride[0] - 1, r * spec.stride[0] - 1 + window[0])} for r in (row, row + 1))
        first, left = min(soon - read), column * spec.stride[1] - 1
        begin = numbers["ahead"] + row * numbers["ahead_row"] + column * numbers["ahead_column"]
        assert begin == first * x.strides[1] + left * x.strides[2]
        assert tables["asking"].tolist() == [len(soon - read), x.strides[1], x.strides[2]]
    for cut, far in ((SimpleNamespace(strip=0), False), (SimpleNamespace(strip=4096), True)):
        assert ahead.tables_of(spec, cut, x.strides, far=far)[1]["asking"][0] == 0


def test_what_surrounds_gathered_rows_is_kept_as_long_as_the_call():
    rng = np.random.default_rng(9)
    x, w = np.moveaxis(rng.standard_normal((1, 16, 9, 8)), 1, -1), rng.standard_normal((3, 4, 1, 16))
    options = {"padding": 3, "padding_mode": "constant", "fill_value": 2.0, "groups": 16}
    expected = xpconv.corr(x, w, method="gemm", **options)
    for _ in range(3):
        made = by_kernels("depthwise", xpconv.corr, x, w, **options)
        np.testing.assert_allclose(made, expected, rtol=1e-12, atol=1e-12)
        others = [np.full(1, 7.0) for _ in range(5000)]  # where anything was that is kept no more
        assert len(others) == 5000
