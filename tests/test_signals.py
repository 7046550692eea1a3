"""Filters of signals and planes as products with a banded matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from single_planes import (
    BOUNDS,
    DEFAULT,
    DRAWN,
    VIEWS,
    assert_drawn_agree,
    assert_near,
    defined,
    memory_beside_result,
    spec_of,
    values,
)
from xpconv.cpu import blas, planes, signals


def filtered(x, w, limit=DEFAULT, **options):
    return signals.conv(x, w, spec_of(x, w, **options), limit)


@pytest.mark.parametrize("dtype", BOUNDS)
@given(*DRAWN, st.sampled_from([1, 5_000, DEFAULT]))
def test_products_agree_with_the_definition(dtype, axes, batch, channels, flip, layout, limit):
    assert_drawn_agree(filtered, dtype, axes, batch, channels, flip, layout, limit)


@pytest.mark.parametrize("dtype", BOUNDS)
@given(
    st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.sampled_from(["channels_last", "channels_first"]),
    st.integers(1, 4000), st.integers(1, 150), st.sampled_from([1, 2, 50]), st.integers(1, 2),
    st.sampled_from([2_000, 20_000, DEFAULT]),
)  # fmt: skip
def test_long_signals_are_cut_in_rows(dtype, stride, dilation, layout, more, m, batch, channels, limit):
    rng = np.random.default_rng(more * m)
    size = (more // batch + (m - 1) * dilation + 1,)
    x, w = values(rng, (batch, *size, channels), dtype), values(rng, (m, 1, channels), dtype)
    options = dict(stride=stride, dilation=dilation)
    assert_near(filtered(x, w, limit, layout=layout, **options), defined(x, w, **options), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("m", [1, 5, 6, 40])
@pytest.mark.parametrize(
    ("padding", "every", "stride", "dilation"),
    [((0, 0), 1, 1, 1), ((3, 2), 1, 1, 1), ((50, 0), 1, 1, 2), ((0, 60), 1, 3, 1), ((3, 3), -2, 1, 1)],
)
def test_long_signals_are_shared_from_where_they_read_no_zeros(dtype, m, padding, every, stride, dilation):
    rng = np.random.default_rng(m)
    x, w = values(rng, (1, 900_001, 1), dtype)[:, ::every], values(rng, (m, 1, 1), dtype)
    options = dict(stride=stride, dilation=dilation)
    y = filtered(x, w, padding=(padding,), **options)
    assert_near(y, defined(np.pad(x, ((0, 0), padding, (0, 0))), w, **options), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((40, 700), (5, 5), 1), ((40, 700), (3, 4), (1, 2)), ((257, 30), (15, 9), (2, 1)), ((9, 300, 20), (3, 2, 3), 1)],
)
def test_wide_planes_are_copied_some_columns_at_a_time(dtype, size, window, stride):
    rng = np.random.default_rng(1)
    x, w = values(rng, (2, *size, 2), dtype), values(rng, (*window, 1, 2), dtype)
    assert_near(filtered(x, w, stride=stride), defined(x, w, stride=stride), BOUNDS[dtype])


@pytest.mark.skipif(blas.library() is None, reason="NumPy has another BLAS")
@pytest.mark.parametrize("size", [(9_000,), (100_000,), (30, 40), (300, 400)])
def test_blas_leaves_every_product_to_the_thread_that_asks(size, monkeypatch):
    rng = np.random.default_rng(6)
    window = (300,) if len(size) == 1 else (15, 15)
    x, w = values(rng, (1, *size, 1), "float32"), values(rng, (*window, 1, 1), "float32")
    threads, matmul = [], np.matmul

    def told(*arrays, out):
        threads.append(blas.library().threads())
        return matmul(*arrays, out=out)

    monkeypatch.setattr(np, "matmul", told)
    monkeypatch.setattr(planes, "_tap_by_tap", pytest.fail)  # it would make good what the products leave out
    y = filtered(x, w)
    assert set(threads) == {1}
    monkeypatch.undo()
    assert_near(y, defined(x, w), 2e-6)


def test_whole_numbers_stay_exact():
    rng = np.random.default_rng(2)
    for size, window in (((5000,), (31,)), ((70, 80), (7, 5))):
        x = rng.integers(-99, 99, (2, *size, 1)).astype("float32")
        w = rng.integers(-9, 9, (*window, 1, 1)).astype("float32")
        np.testing.assert_array_equal(filtered(x, w), defined(x, w))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("dilation", [1, 2])
def test_what_is_not_finite_stays_within_its_windows(value, dilation):
    rng = np.random.default_rng(3)
    for size, window in (((5000,), (8,)), ((60, 50), (6, 7))):
        x, w = np.ones((2, *size, 2), "float32"), rng.standard_normal((*window, 1, 2)).astype("float32")
        w[(1,) * len(window)] = 0
        x[(1, *(n // 2 for n in size), 1)] = value
        with np.errstate(over="ignore", invalid="ignore"):
            y, expected = filtered(x, w, dilation=dilation), defined(x, w, dilation=dilation).astype("float32")
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(600,), (40, 44)])
@pytest.mark.parametrize("channels", [1, 3])
def test_inputs_of_any_strides_are_read_and_left_alone(view, size, channels):
    rng = np.random.default_rng(4)
    x, w = view(rng.standard_normal((2, *size, channels))), rng.standard_normal((*(5, 4)[: len(size)], 1, channels))
    before = x.copy()
    if x.flags.owndata:
        x.flags.writeable = False
    assert_near(filtered(x, w), defined(x, w), 1e-13)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("limit", [2**17, 2**20])
@pytest.mark.parametrize("size", [(200_000,), (500, 400), (30, 60, 50)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, np.nan])
def test_the_memory_beside_the_result_keeps_to_the_limit(limit, size, channels, value):
    rng = np.random.default_rng(5)
    w = rng.standard_normal((*(3, 4, 3)[: len(size)], 1, channels))
    x = rng.standard_normal((1, *size, channels))
    x[(0, *(n // 2 for n in size))] = value
    spec = spec_of(x, w)
    rows = signals.rows_of(spec, 8)
    least = rows.read * spec.reach[0] + rows.written
    assert memory_beside_result(lambda: signals.conv(x, w, spec, limit)) <= max(limit, least) + 2**15
