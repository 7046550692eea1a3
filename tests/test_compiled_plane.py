"""Compiled filters of single planes: signals, images of one channel, and every channel of channels-first maps."""

import threading
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import MODES, integers
from engine_cases import reference
from kernel_calls import LIMIT, VIEWS_OF_PLANES, by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import bands, plane, threads
from xpconv.cpu.compiled.build import machine
from xpconv.engines import agnostic
from xpconv.engines import compiled as compiled_calls

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


filtered = partial(by_kernels, "plane")


def assert_as_defined(function, x, w, bias=None, **options):
    with np.errstate(invalid="ignore"):
        expected = reference(function, x, w, bias, **options)
    np.testing.assert_array_equal(filtered(function, x, w, bias, **options), expected)


def arrays(size, window, channels=1, batch=2, dtype="float32"):
    """Channels-first x and w, of a filter for each channel."""
    rng = np.random.default_rng(sum(size) + channels)
    return integers(rng, (batch, channels, *size), dtype), integers(rng, (channels, 1, *window), dtype)


def first(channels, **options):
    return {"layout": "channels_first", "groups": channels, **options}


pads = st.integers(0, 4)


@DTYPES
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 150)), st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 4), st.integers(1, 3)), st.tuples(pads, pads),
    st.tuples(pads, pads),
    st.sampled_from(MODES), st.booleans(), st.sampled_from([1, 1, 2, 40]), st.integers(1, 5),
)  # fmt: skip
def test_images_agree_with_the_definition(dtype, size, window, steps, down, across, mode, flip, channels, batch):
    stride, dilation = steps[:2], steps[2:]
    spans = [(m - 1) * d + 1 for m, d in zip(window, dilation, strict=True)]
    size = tuple(max(n, span - sum(p), 1) for n, span, p in zip(size, spans, (down, across), strict=True))
    x, w = arrays(size, window, channels, batch, dtype)
    bias, options = integers(np.random.default_rng(1), (channels,), dtype), {"padding": (down, across)}
    options |= {"stride": stride, "dilation": dilation, "padding_mode": mode, "activation": "relu"}
    options |= {"fill_value": 3} if mode == "constant" else {}
    assert_as_defined(xpconv.conv if flip else xpconv.corr, x, w, bias, **first(channels, **options))


@DTYPES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "taps", "dilation"), [(5, 3, 1), (129, 31, 2), (1000, 1, 1), (70_001, 33, 1)])
@pytest.mark.parametrize("function", [xpconv.conv, xpconv.corr])
def test_signals_agree_with_the_definition(dtype, mode, length, taps, dilation, function):
    rng = np.random.default_rng(length)
    x, w = integers(rng, (2, length, 1), dtype), integers(rng, (taps, 1, 1), dtype)
    options = {"dilation": dilation, "padding": ((40, 7),), "padding_mode": mode}
    assert_as_defined(function, x, w, integers(rng, (1,), dtype), **options)


@pytest.mark.parametrize("padding", ["valid", "full", "same"])
@pytest.mark.parametrize(("size", "window"), [((1500, 300), (2, 3)), ((40, 20_000), (9, 40)), ((300, 2048), (11, 11))])
def test_blocks_cover_large_images_once(padding, size, window):
    rng = np.random.default_rng(2)
    x, w = integers(rng, (1, *size, 1), "float32"), integers(rng, (*window, 1, 1), "float32")
    expected = reference(xpconv.corr, x, w, padding=padding)
    np.testing.assert_array_equal(filtered(xpconv.corr, x, w, padding=padding), expected)
    few = plane.workspace("float32", xpconv.corr.request(x, w, padding=padding).spec)
    np.testing.assert_array_equal(filtered(xpconv.corr, x, w, limit=few, padding=padding), expected)


@DTYPES
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("padding", [0, 1])
def test_what_is_not_finite_reaches_only_the_windows_that_read_it(dtype, value, padding):
    _, w = arrays((1, 1), (3, 3), 1, 1, dtype)
    w[w == 0] = 1
    for row in (0, 1, 3, 4, 6, 10):
        for column in (0, 1, 15, 16, 17, 63, 64, 66, 69):
            x = np.ones((1, 1, 11, 70), dtype)
            x[0, 0, row, column] = value
            assert_as_defined(xpconv.corr, x, w, **first(1, padding=padding))


@pytest.mark.parametrize("view", VIEWS_OF_PLANES)
@pytest.mark.parametrize("padding", [0, 2])
def test_arrays_of_any_strides_are_read(view, padding):
    x, _ = arrays((20, 70), (3, 3), 4, 3)
    x = view(x)
    x.flags.writeable = False
    _, w = arrays((1, 1), (5, 3), x.shape[1])
    assert_as_defined(xpconv.corr, x, w[:, :, ::-1], **first(x.shape[1], padding=padding))


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_images_and_signals_without_other_axes_are_written_where_they_belong(method):
    rng = np.random.default_rng(3)
    cases = [(xpconv.corr2d, (600, 700), (13, 11)), (xpconv.conv2d, (600, 700), (13, 11))]
    cases += [(xpconv.corr1d, (400_000,), (9,))] * (method == "direct")
    for function, size, window in cases:
        x, w = integers(rng, size, "float32"), rng.integers(-3, 4, window).astype("float32")
        expected = function(x, w, padding="same", method=method)
        for out in (np.empty_like(x), np.empty((*size[:-1], size[-1] + 9), "float32")[..., 4:-5]):
            for call in range(3):
                out[...] = 7
                tracemalloc.start()
                y = function(x, w, padding="same", method=method, out=out)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert y is out
                assert call == 0 or peak < x.nbytes / 2  # tables are made once, and no second result
                np.testing.assert_array_equal(out, expected)
    x, w = integers(rng, (60, 70), "float32"), integers(rng, (3, 3), "float32")
    for shape in ((60,), (60, 71), (1, 60, 70), ()):
        with pytest.raises(ValueError, match="out is"):
            xpconv.corr2d(x, w, padding="same", out=np.empty(shape, "f"))


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_the_bias_and_the_activation_are_stored(activation):
    x, w = arrays((9, 40), (3, 3), 3)
    bias, options = np.array([-3, 0, 5], np.float32), first(3, activation=activation)
    expected = reference(xpconv.corr, x, w, bias, **options)
    np.testing.assert_allclose(filtered(xpconv.corr, x, w, bias, **options), expected, rtol=1e-6)


@pytest.mark.parametrize("bias", [np.float64(3), np.array([3, 9, 3, 9])[::2], np.ones(2)])
def test_a_bias_of_another_dtype_or_of_any_strides_is_read(bias):
    x, w = arrays((9, 40), (3, 3), np.size(bias))
    expected = reference(xpconv.corr, x, w, **first(len(w))) + np.reshape(bias, (-1, 1, 1)).astype("f")
    x, w, spec = (
        np.moveaxis(x, 1, -1),
        agnostic.weight_last(w, "channels_first"),
        xpconv.corr.request(x, w, **first(len(w))).spec,
    )
    y = compiled_calls.by_kernels("plane", x, w, bias, spec, 0, None)
    np.testing.assert_array_equal(y, expected)


@DTYPES
@pytest.mark.parametrize(("size", "window"), [((200, 300), (5, 7)), ((100_000,), (701,))])
def test_threads_and_blocks_change_no_bit(monkeypatch, dtype, size, window):
    monkeypatch.setattr(bands, "takes", lambda _: False)
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((1, *size, 1)).astype(dtype), rng.standard_normal((*window, 1, 1)).astype(dtype)
    y = filtered(xpconv.corr, x, w, padding="same")
    for team in (1, 3):
        monkeypatch.setattr(threads, "thread_count", lambda team=team: team)
        spec = xpconv.corr.request(x, w, padding="same").spec
        for limit in (plane.workspace(dtype, spec), LIMIT):
            np.testing.assert_array_equal(filtered(xpconv.corr, x, w, limit=limit, padding="same"), y)


def test_sums_of_thousands_keep_their_digits():
    x, w = np.full((1, 30_000, 1), 0.1, np.float32), np.full((20_000, 1, 1), 0.1, np.float32)
    exact = 20_000 * np.float64(np.float32(0.1)) ** 2
    np.testing.assert_allclose(filtered(xpconv.corr, x, w), exact, rtol=1e-5)  # one by one they would be off by 1.5e-4


def test_several_callers_at_once_get_their_own_results():
    cases = [arrays((60 + i, 90), (5, 5), 1 + i % 3, 4) for i in range(6)]
    expected = [reference(xpconv.corr, x, w, **first(x.shape[1])) for x, w in cases]
    wrong = []

    def call(i):
        for _ in range(20):
            x, w = cases[i]
            if not np.array_equal(filtered(xpconv.corr, x, w, **first(x.shape[1])), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(cases))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("padding", [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 0), (0, 0)), ((0, 1), (0, 0))])
def test_padding_on_one_side_alone_is_not_read_from_the_rows_beside_it(padding):
    x, w = arrays((20, 600), (2, 2))
    assert_as_defined(xpconv.corr, x + 1, w, padding=padding, **first(1))


def test_what_the_kernels_do_not_read_is_not_taken():
    def takes(x_shape, w_shape, limit=LIMIT, **options):
        spec = xpconv.corr.request(np.empty(x_shape, "f"), np.empty(w_shape, "f"), **options).spec
        return plane.takes("float32", spec, limit)

    assert takes((1, 9, 9, 1), (3, 3, 1, 1), stride=(2, 1))
    assert takes((1, 9, 9, 1), (3, 3, 1, 1), stride=(1, 2))
    assert not takes((1, 9, 9, 1), (3, 3, 1, 1), stride=(1, 3))
    assert not takes((1, 9, 9, 1), (3, 3, 1, 2))
    assert not takes((1, 9, 9, 2), (3, 3, 2, 2))
    assert not takes((0, 9, 9, 1), (3, 3, 1, 1))
    assert not takes((1, 9, 9, 9, 1), (3, 3, 3, 1, 1))
    assert not takes((1, 9, 9, 1), (3, 3, 1, 1), limit=100)


@pytest.mark.parametrize("fill", [0, 3])
@pytest.mark.parametrize("size", [(9, 40), (20, 71)])
def test_what_is_around_one_plane_is_around_those_that_follow_it_in_the_same_memory(size, fill):
    x = np.arange(2 * 40 * size[0] * size[1], dtype=np.float32).reshape(2, 40, *size) % 17
    w = np.ones((40, 1, 3, 3), np.float32)
    options = {"stride": 2, "padding": ((1, 2), (1, 2)), "groups": 40, "layout": "channels_first"}
    y = xpconv.corr2d(x, w, padding_mode="constant", fill_value=fill, **options)
    whole = np.pad(x, ((0, 0), (0, 0), (1, 2), (1, 2)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (3, 3), (2, 3))[:, :, ::2, ::2]
    np.testing.assert_array_equal(y, windows.sum((4, 5)))
