"""Compiled pooling along the rows of planes: every window, every border, whole maps, and what is told of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import integers
from engine_cases import reference
from kernel_calls import LIMIT

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import plane_pooling, threads
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.engines import agnostic
from xpconv.engines import pooled as pooled_calls

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
POOLINGS = pytest.mark.parametrize("operation", ["max_pool", "sum_pool"])
_OPERATIONS = {"max_pool": "largest", "sum_pool": "added"}


def spec_of(x, window, **options):
    return xpconv.max_pool.request(x, window, layout="channels_first", **options).spec


def pooled(operation, x, window, *divisor, limit=LIMIT, **options):
    """The kernels' answer to a pooling of channels-first maps."""
    with xpconv.workspace_limit(limit):
        return pooled_calls.reduced("plane", _OPERATIONS[operation], x, spec_of(x, window, **options), *divisor)


def assert_as_defined(operation, x, window, **options):
    spec = spec_of(x, window, **options)
    with np.errstate(invalid="ignore"):
        if operation == "max_pool":
            expected = agnostic.max_pool(x, spec, return_indices=False)
        else:
            expected = agnostic.sum_pool(x, spec)
    np.testing.assert_array_equal(pooled(operation, x, window, **options), expected)


@POOLINGS
@DTYPES
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 150)), st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 2)), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 4)] * 4), st.booleans(), st.integers(1, 40), st.integers(1, 3),
)  # fmt: skip
def test_images_agree_with_the_definition(
    operation, dtype, size, window, stride, dilation, padding, ceil_mode, channels, batch
):
    pads = (padding[:2], padding[2:])
    spans = [(m - 1) * d + 1 for m, d in zip(window, dilation, strict=True)]
    size = tuple(max(n, span - sum(p)) for n, span, p in zip(size, spans, pads, strict=True))
    x = integers(np.random.default_rng(channels), (batch, channels, *size), dtype)
    options = {"stride": stride, "dilation": dilation, "padding": pads, "ceil_mode": ceil_mode}
    assert_as_defined(operation, x, window, **options)


@POOLINGS
@DTYPES
@pytest.mark.parametrize(
    ("length", "window", "stride"), [(9000, 3, 1), (5001, 2, 2), (4097, 9, 2), (3, 3, 1), (700, 500, 1)]
)
@pytest.mark.parametrize("padding", [0, 1])
def test_signals_agree_with_the_definition(operation, dtype, length, window, stride, padding):
    x = integers(np.random.default_rng(length), (2, 3, length), dtype)
    assert_as_defined(operation, x, (window,), stride=(stride,), padding=padding)


@POOLINGS
@DTYPES
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 70), st.integers(1, 3),
)  # fmt: skip
def test_whole_maps_agree_with_the_definition(operation, dtype, size, channels, batch):
    x = integers(np.random.default_rng(channels), (batch, channels, *size), dtype)
    assert_as_defined(operation, x, tuple(size))


@POOLINGS
@DTYPES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 2, 1), (4, 2, 2)])
def test_what_is_not_finite_reaches_only_the_windows_that_read_it(operation, dtype, value, window, stride, padding):
    for row in (0, 1, 5, 10):
        for column in (0, 1, 2, 15, 16, 31, 32, 33, 63, 64, 68, 69):
            x = np.ones((1, 2, 11, 70), dtype)
            x[0, 1, row, column] = value
            assert_as_defined(operation, x, (window, window), stride=stride, padding=padding)


@POOLINGS
@DTYPES
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_is_not_finite_reaches_only_its_whole_map(operation, dtype, value):
    for channel in (0, 5, 16, 18):
        for place in (0, 8, 48):
            x = np.full((2, 19, 7, 7), -3, dtype)
            x[1, channel].flat[place] = value
            assert_as_defined(operation, x, (7, 7))


@DTYPES
def test_maxima_of_negative_numbers_are_not_those_of_the_lanes_beside_them(dtype):
    for columns in range(1, 70):
        x = -1 - np.random.default_rng(columns).random((1, 3, 5, columns)).astype(dtype)
        assert_as_defined("max_pool", x, (2, min(2, columns)), ceil_mode=True)
        assert_as_defined("max_pool", x, (3, 3), stride=2, padding=1)


@DTYPES
@pytest.mark.parametrize("window", [(3, 3), (2, 2), (9, 14)])
def test_sums_are_divided_and_not_multiplied_by_the_inverse(dtype, window):
    x = np.random.default_rng(5).standard_normal((2, 19, 9, 14)).astype(dtype)
    sums = pooled("sum_pool", x, window)
    np.testing.assert_array_equal(pooled("sum_pool", x, window, 9.0), sums / np.dtype(dtype).type(9))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, ::-1],
        lambda x: x[:, :, ::2],
        lambda x: x[::-1, ::-1],
        lambda x: x[:, :, 1:-1, 1:-2],
        lambda x: np.broadcast_to(x[:, :1], x.shape),
        lambda x: np.broadcast_to(x[:, :, :1], x.shape),
    ],
)
@pytest.mark.parametrize("window", [(3, 3), (2, 2)])
@pytest.mark.parametrize("padding", [0, 1])
def test_arrays_of_any_strides_but_the_last_are_read(view, window, padding):
    x = view(integers(np.random.default_rng(4), (3, 4, 20, 70), "float32"))
    x.flags.writeable = False
    for operation in _OPERATIONS:
        assert_as_defined(operation, x, window, stride=2, padding=padding)


@DTYPES
@pytest.mark.parametrize("window", [(3, 5), (2, 2)])
def test_threads_and_blocks_change_no_bit(monkeypatch, dtype, window):
    x = np.random.default_rng(6).standard_normal((1, 3, 161, 157)).astype(dtype)
    y = pooled("sum_pool", x, window, stride=2)
    for team in (1, 3):
        monkeypatch.setattr(threads, "thread_count", lambda team=team: team)
        for limit in (plane_pooling.workspace(dtype, spec_of(x, window, stride=2)), LIMIT):
            np.testing.assert_array_equal(pooled("sum_pool", x, window, stride=2, limit=limit), y)


@DTYPES
@pytest.mark.parametrize("start", [0, 1, 16])
def test_large_results_are_the_same_wherever_they_begin(dtype, start):
    x = integers(np.random.default_rng(0), (2, 40, 301, 299), dtype)
    memory = np.empty(x.size + 16, dtype)
    x_there = memory[start : start + x.size].reshape(x.shape)
    x_there[...] = x
    np.testing.assert_array_equal(pooled("max_pool", x_there, (1, 2), stride=1), np.maximum(x[..., :-1], x[..., 1:]))


def test_sums_of_thousands_keep_their_digits():
    x = np.full((1, 2, 512, 600), 0.1, np.float32)
    tenth, each = np.float64(np.float32(0.1)), 32 // min(machine().vector_bytes, 32)  # fewer lanes add more each
    np.testing.assert_allclose(pooled("sum_pool", x, (512, 500), stride=1), 512 * 500 * tenth, rtol=each * 1e-5)
    square = x[:, :, :180, :180].copy()
    np.testing.assert_allclose(pooled("sum_pool", square, (180, 180)), 180 * 180 * tenth, rtol=each * 1e-5)


def test_the_kernels_are_those_that_the_arrays_lie_for():
    first, narrow = np.zeros((2, 32, 40, 40), "f"), np.zeros((2, 32, 7, 5), "f")
    turned = np.zeros((2, 40, 40, 32), "f")

    def tile(x, window, stride=1):
        return xpconv.explain(xpconv.max_pool2d, x, window, stride=stride, layout="channels_first").tile

    assert "columns" in tile(first, 3)
    assert "columns" in tile(narrow, (7, 5))
    assert "columns" in tile(first, 2, stride=2)
    for x, stride in ((first[..., ::2], 1), (np.moveaxis(turned, -1, 1), 1), (first, 3)):
        assert "channels" in tile(x, 3, stride)
    if lanes_of("float32") > 4:  # of which 5 columns then leave most empty
        assert "channels" in tile(narrow, 3)
    assert "channels" in xpconv.explain(xpconv.max_pool2d, turned, 3).tile


@pytest.mark.parametrize("function", [xpconv.max_pool2d, xpconv.avg_pool2d, xpconv.global_avg_pool])
def test_public_calls_and_their_repeats_agree_with_the_definition(function):
    x = integers(np.random.default_rng(8), (2, 3, 40, 50), "float32")
    arguments = () if function is xpconv.global_avg_pool else (3,)
    expected = reference(function, x, *arguments, layout="channels_first")
    for _ in range(3):
        np.testing.assert_allclose(function(x, *arguments, layout="channels_first"), expected, rtol=1e-6)


@pytest.mark.parametrize("operation", ["sum_pool", "max_pool"])
def test_blocks_that_follow_a_smaller_one_in_the_same_memory_are_padded(operation, monkeypatch):
    """Of planes of three blocks a thread takes 14, from the last one of a plane on; what was there shows as NaN."""
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    x, nan = integers(np.random.default_rng(8), (2, 19, 61, 150), "float32"), np.full((2, 19, 61, 170), np.nan, "f")
    expected = pooled(operation, x, (3, 3), stride=2, padding=1)
    assert not np.isnan(expected).any()
    for _ in range(100):
        pooled(operation, nan, (3, 3), stride=2, padding=1)
        np.testing.assert_array_equal(pooled(operation, x, (3, 3), stride=2, padding=1), expected)
