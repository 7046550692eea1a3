"""The pooling family is what its formulas say, on every library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import xpconv
from cases import first, pool_cases


@given(case=pool_cases())
def test_max_pool_takes_the_maximum_and_where_it_first_lies(lib, case):
    y, indices = lib.call(xpconv.max_pool, case.x, return_indices=True, **case.options)
    expected, where = oracle.max_pool(case.x, **case.geometry)
    assert y.dtype == case.x.dtype
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, where)
    np.testing.assert_array_equal(lib.call(xpconv.max_pool, case.x, **case.options), expected)


@given(case=pool_cases(dtypes=(np.float64, np.float32)), data=st.data())
def test_nan_and_infinity_in_max_pool(lib, case, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    odd = rng.choice([np.nan, np.inf, -np.inf, 0.0], size=case.x.shape)
    x = np.where(rng.random(case.x.shape) < 0.5, odd, case.x).astype(case.x.dtype)
    y, indices = lib.call(xpconv.max_pool, x, return_indices=True, **case.options)
    expected, where = oracle.max_pool(x, **case.geometry)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, where)
    np.testing.assert_array_equal(lib.call(xpconv.max_pool, x, **case.options), expected)


@given(case=pool_cases())
def test_min_pool_is_max_pool_of_the_opposite_order(lib, case):
    y, indices = lib.call(xpconv.min_pool, case.x, return_indices=True, **case.options)
    turned = case.x.astype(np.float64)
    expected, where = oracle.max_pool(-turned, **case.geometry)
    largest = np.iinfo(y.dtype).max if y.dtype.kind in "iu" else np.inf
    assert y.dtype == case.x.dtype
    np.testing.assert_array_equal(y, np.where(np.isinf(expected), largest, -expected))
    np.testing.assert_array_equal(indices, where)


@given(case=pool_cases())
def test_sum_pool_adds_each_window(lib, case):
    y = lib.call(xpconv.sum_pool, case.x, **case.options)
    expected = oracle.sum_pool(case.x, **case.geometry)
    assert y.dtype == case.x.dtype
    np.testing.assert_array_equal(y, expected)


@given(case=pool_cases(), include=st.booleans(), divisor=st.sampled_from([None, 2, 3.0]))
def test_avg_pool_divides_by_what_counts(lib, case, include, divisor):
    y = lib.call(xpconv.avg_pool, case.x, count_include_pad=include, divisor=divisor, **case.options)
    total = oracle.sum_pool(case.x.astype(np.float64), **case.geometry)
    counts = oracle.pool_counts(case.x.shape[1:-1], include_padding=include, **case.geometry)[None, ..., None]
    with np.errstate(invalid="ignore"):
        expected = total / (counts if divisor is None else divisor)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    if case.x.dtype.kind == "f":
        assert y.dtype == case.x.dtype
    else:
        assert y.dtype.kind == "f"


@given(case=pool_cases(dtypes=(np.float64, np.int32)), p=st.sampled_from([1, 2, 3, 0.5]))
def test_lp_pool_is_the_p_norm(lib, case, p):
    y = lib.call(xpconv.lp_pool, case.x, p=p, **case.options)
    powers = np.abs(case.x.astype(np.float64)) ** p
    np.testing.assert_allclose(y, oracle.sum_pool(powers, **case.geometry) ** (1 / p), rtol=1e-6)


@given(case=pool_cases(dtypes=(np.float64,)))
def test_channels_first_is_the_same_with_the_axes_moved(lib, case):
    for pool in (xpconv.max_pool, xpconv.avg_pool, xpconv.sum_pool):
        y = lib.call(pool, first(case.x), layout="channels_first", **case.options)
        np.testing.assert_array_equal(y, first(pool(case.x, **case.options)))
    _, indices = lib.call(xpconv.max_pool, first(case.x), layout="channels_first", return_indices=True, **case.options)
    np.testing.assert_array_equal(indices, first(xpconv.max_pool(case.x, return_indices=True, **case.options)[1]))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_plain_images_and_single_items(lib, axes):
    x = np.arange(float(4**axes)).reshape((4,) * axes)
    for family in ("max", "min", "sum", "avg", "lp"):
        pool = getattr(xpconv, f"{family}_pool{axes}d")
        full = lib.call(pool, x[None, ..., None], window=2)
        np.testing.assert_array_equal(lib.call(pool, x, window=2), full[0, ..., 0])
        np.testing.assert_array_equal(lib.call(pool, x[..., None], window=2), full[0])


@given(case=pool_cases(dtypes=(np.float64,), ceil_mode=False))
def test_unpooling_puts_every_maximum_back_where_it_was(lib, case):
    y, indices = xpconv.max_pool(case.x, return_indices=True, **case.options)
    size = case.x.shape[1:-1]
    if (indices < 0).any():
        with pytest.raises(ValueError, match="indices has -1, outside the plane"):
            xpconv.max_unpool(y, indices, size=size)
        return
    x = lib.call(xpconv.max_unpool, y, indices, size=size)
    flat = (len(x), -1, x.shape[-1]) if len(x) else (0, 1, x.shape[-1])
    expected = np.zeros_like(case.x)
    np.put_along_axis(expected.reshape(flat), indices.reshape(flat), y.reshape(flat), axis=1)
    np.testing.assert_array_equal(x, expected)


@given(size=st.lists(st.integers(1, 7), min_size=1, max_size=3), data=st.data())
def test_adaptive_pooling_divides_into_the_wanted_size(lib, size, data):
    out = tuple(data.draw(st.integers(1, 4)) for _ in size)
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (2, *size, 2)).astype(np.float64)
    spans = [oracle.adaptive_spans(n, m) for n, m in zip(size, out, strict=True)]
    mean, most, where = np.zeros((2, *out, 2)), np.zeros((2, *out, 2)), np.zeros((2, *out, 2), int)
    plane = np.arange(np.prod(size)).reshape(size)
    for i in np.ndindex(*out):
        box = np.ix_(*(list(spans[a][k]) for a, k in enumerate(i)))
        cells = x[:, *box, :].reshape(2, -1, 2)
        mean[:, *i], most[:, *i] = cells.mean(axis=1), cells.max(axis=1)
        where[:, *i] = plane[box].ravel()[cells.argmax(axis=1)]
    np.testing.assert_allclose(lib.call(xpconv.adaptive_avg_pool, x, size=out), mean, atol=1e-12)
    y, indices = lib.call(xpconv.adaptive_max_pool, x, size=out, return_indices=True)
    np.testing.assert_array_equal(y, most)
    np.testing.assert_array_equal(indices, where)
    np.testing.assert_array_equal(lib.call(xpconv.adaptive_max_pool, x[0], size=out), most[0])


def test_the_first_nan_wins_an_adaptive_maximum(lib):
    x = np.array([3.0, np.nan, 7.0, np.nan, 1.0, 2.0])[None, :, None]
    y, indices = lib.call(xpconv.adaptive_max_pool, x, size=2, return_indices=True)
    np.testing.assert_array_equal(y.ravel(), [np.nan, np.nan])
    assert indices.ravel().tolist() == [1, 3]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_global_pooling_reduces_every_map(lib, keepdims, layout):
    x = np.random.default_rng(0).integers(-9, 9, (2, 3, 4, 5)).astype(np.float64)
    axes = (1, 2) if layout == "channels_last" else (2, 3)
    options = {"keepdims": keepdims, "layout": layout}
    np.testing.assert_array_equal(lib.call(xpconv.global_max_pool, x, **options), x.max(axes, keepdims=keepdims))
    np.testing.assert_allclose(lib.call(xpconv.global_avg_pool, x, **options), x.mean(axes, keepdims=keepdims))


def test_a_window_of_padding_alone_has_no_element(lib):
    x, options = np.ones((1, 2, 1)), {"window": 1, "stride": 1, "padding": 1}
    y, indices = lib.call(xpconv.max_pool, x, return_indices=True, **options)
    assert y.ravel().tolist() == [-np.inf, 1, 1, -np.inf]
    assert indices.ravel().tolist() == [-1, 0, 1, -1]
    assert lib.call(xpconv.max_pool, x.astype(np.int8), **options).ravel().tolist() == [-128, 1, 1, -128]
    assert lib.call(xpconv.min_pool, x.astype(np.uint8), **options).ravel().tolist() == [255, 1, 1, 255]
    assert np.isnan(lib.call(xpconv.avg_pool, x, **options).ravel()).tolist() == [True, False, False, True]


def test_ceil_mode_drops_windows_that_would_start_in_the_end_padding(lib):
    x = np.arange(1.0, 6.0)
    options = {"window": 2, "stride": 2, "padding": ((0, 3),), "ceil_mode": True}
    assert lib.call(xpconv.max_pool1d, x, **options).tolist() == [2, 4, 5]
    assert lib.call(xpconv.avg_pool1d, x, count_include_pad=True, **options).tolist() == [1.5, 3.5, 2.5]


def test_indices_of_few_bits_reach_into_a_large_plane(lib):
    y, indices = np.array([[[1.0], [2.0]]]), np.array([[[1], [200]]], np.uint8)
    expected = np.zeros(400)
    expected[[1, 200]] = 1, 2
    np.testing.assert_array_equal(lib.call(xpconv.max_unpool, y, indices, size=400).ravel(), expected)
    np.testing.assert_array_equal(lib.call(xpconv.max_pool_grad, y, indices, size=400).ravel(), expected)
