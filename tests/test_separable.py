"""Filters that are products of filters of one axis: which are found, and that their passes give the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from single_planes import (
    BOUNDS,
    DEFAULT,
    VIEWS,
    assert_near,
    defined,
    geometry,
    memory_beside_result,
    sizes_of,
    spec_of,
    values,
)
from xpconv.cpu import separable

GAUSSIAN = np.exp(-(np.linspace(-2.5, 2.5, 9) ** 2) / 2)


def filtered(x, w, limit=DEFAULT, **options):
    """By the weight's factors, which must exist."""
    spec = spec_of(x, w, **options)
    factors = separable.factors(w, spec)
    assert factors is not None
    return separable.conv(x, w, factors, spec, limit)


def products(rng, window, channels, count, dtype):
    """A weight (*window, 1, C) that is a sum of that many products."""
    total = 0
    for _ in range(count):
        product = np.ones(channels)
        for m in reversed(window):
            product = values(rng, (m, *(1,) * (product.ndim - 1), channels), dtype) * product
        total = total + product
    return total[..., np.newaxis, :].astype(dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
@given(
    st.lists(geometry, min_size=2, max_size=3),
    st.integers(0, 3), st.integers(1, 3), st.booleans(), st.sampled_from(["channels_last", "channels_first"]),
    st.sampled_from([1, 5_000, DEFAULT]),
)  # fmt: skip
def test_the_passes_agree_with_the_definition(dtype, axes, batch, channels, flip, layout, limit):
    size, window, stride, dilation = sizes_of(axes)
    rng = np.random.default_rng(sum(size) * 100 + batch)
    x, w = values(rng, (batch, *size, channels), dtype), products(rng, window, channels, 1, dtype)
    options = dict(flip=flip, stride=stride, dilation=dilation)
    assert_near(filtered(x, w, limit, layout=layout, **options), defined(x, w, **options), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("window", "count"), [((9, 12), 3), ((6, 6), 2), ((1, 9), 1), ((3, 3, 8), 1)])
def test_sums_of_products_are_found(dtype, window, count):
    rng = np.random.default_rng(1)
    x, w = values(rng, (2, *(m + 9 for m in window), 2), dtype), products(rng, window, 2, count, dtype)
    assert len(separable.factors(w, spec_of(x, w))) == count
    assert_near(filtered(x, w), defined(x, w), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_volume_may_be_a_product_of_an_axis_and_a_plane(dtype):
    rng = np.random.default_rng(9)
    plane, axis = products(rng, (6, 8), 2, 2, dtype), values(rng, (6, 1, 1, 1, 2), dtype)
    x, w = values(rng, (2, 15, 14, 13, 2), dtype), axis * plane
    assert len(separable.factors(w, spec_of(x, w))) == 2
    assert_near(filtered(x, w), defined(x, w), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gaussian_rounded_to_its_dtype_is_one_product(dtype):
    w = np.outer(GAUSSIAN, GAUSSIAN).astype(dtype)[..., np.newaxis, np.newaxis]
    x = np.random.default_rng(2).standard_normal((1, 200, 150, 1)).astype(dtype)
    assert len(separable.factors(w, spec_of(x, w))) == 1
    assert_near(filtered(x, w), defined(x, w), BOUNDS[dtype])


@pytest.mark.parametrize("scale", [1, -1 / 16, 1 / 2])
@pytest.mark.parametrize(
    "taps", [([1, 2, 1], [1, 0, -1]), ([3, 6, 9], [2, 4, -6]), ([0, 0, 5], [0, 7, 0]), ([0, 0], [1, 1])]
)
def test_products_of_whole_numbers_and_binary_fractions_stay_exact(taps, scale):
    w = (np.outer(*taps) * scale).astype("float32")[..., np.newaxis, np.newaxis]
    x = np.random.default_rng(3).integers(-99, 99, (1, 40, 30, 1)).astype("float32")
    with np.errstate(all="raise"):
        y = filtered(x, w)
    np.testing.assert_array_equal(y, defined(x, w))


def test_the_channel_with_the_most_products_decides():
    rng = np.random.default_rng(4)
    w = np.concatenate([products(rng, (6, 7), 1, count, "float64") for count in (1, 2)], axis=-1)
    x = rng.standard_normal((1, 20, 20, 2))
    assert len(separable.factors(w, spec_of(x, w))) == 2
    assert_near(filtered(x, w), defined(x, w), 1e-13)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("spoil", [np.nan, np.inf, 0.5])
def test_kernels_without_few_products_have_no_factors(spoil, place):
    w = np.stack([np.outer(GAUSSIAN, GAUSSIAN)[:5, :5]] * 2, axis=-1)[..., np.newaxis, :]
    spec = spec_of(np.ones((1, 9, 9, 2)), w)
    assert separable.factors(w, spec) is not None
    w[2, 3, 0, place] = spoil
    assert separable.factors(w, spec) is None


@pytest.mark.parametrize("change", [1e-5, 1e-7])
def test_a_kernel_is_no_product_that_differs_by_more_than_its_rounding(change):
    rng = np.random.default_rng(10)
    w = np.outer(GAUSSIAN, GAUSSIAN) * (1 + change * rng.uniform(-1, 1, (9, 9)))
    w = w.astype("float32")[..., np.newaxis, np.newaxis]
    assert (separable.factors(w, spec_of(np.ones((1, 9, 9, 1), "float32"), w)) is None) == (change > 1e-6)


def test_products_of_all_axes_count():
    rng = np.random.default_rng(11)
    w = products(rng, (9, 9, 9), 1, 2, "float64")  # two by two: four, and three would pay
    assert separable.factors(w, spec_of(np.ones((1, 9, 9, 9, 1)), w)) is None
    planes = np.diag([3.0, 4, 0, 0, 0, 0]), np.diag([0.0, 0, 1, 0, 0, 0])
    w = sum(np.multiply.outer(axis, plane) for axis, plane in zip(np.eye(6), planes, strict=False))
    w = w[..., np.newaxis, np.newaxis]  # the first plane makes two, the other one more that would be exact
    assert separable.factors(w, spec_of(np.ones((1, 9, 9, 9, 1)), w)) is None


@pytest.mark.parametrize(("circle", "found"), [(2, 2), (8, None)])
def test_products_much_larger_than_the_kernel_are_refused(circle, found):
    w = np.zeros((24, 24))  # a circulant matrix: its factors are waves, which cancel off its diagonal
    w[:circle, :circle] = np.eye(circle) + 0.1 * np.roll(np.eye(circle), 1, axis=1)
    w = w[..., np.newaxis, np.newaxis]
    factors = separable.factors(w, spec_of(np.ones((1, 30, 30, 1)), w))
    assert factors is None if found is None else len(factors) == found


@pytest.mark.parametrize("dtype", ["float16", "longdouble", "int64"])
def test_other_dtypes_have_no_factors(dtype):
    w = np.ones((3, 3, 1, 1), dtype)
    assert separable.factors(w, spec_of(np.ones((1, 9, 9, 1), dtype), w)) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_within_its_windows_and_is_what_the_definition_says(value):
    x = np.ones((2, 60, 50, 2), "float32")
    x[1, 20, 30, 1] = value
    w = products(np.random.default_rng(6), (6, 7), 2, 2, "float32")
    with np.errstate(over="ignore", invalid="ignore"):
        y, expected = filtered(x, w), defined(x, w).astype("float32")
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    if not np.isfinite(value):
        assert np.argwhere(~np.isfinite(y)).tolist() == [[1, i, j, 1] for i in range(15, 21) for j in range(24, 31)]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("channels", [1, 3])
def test_inputs_of_any_strides_are_read_and_left_alone(view, channels):
    rng = np.random.default_rng(7)
    x, w = view(rng.standard_normal((2, 40, 44, channels))), products(rng, (5, 4), channels, 1, "float64")
    before = x.copy()
    if x.flags.owndata:
        x.flags.writeable = False
    assert_near(filtered(x, w), defined(x, w), 1e-13)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_the_result_lies_as_the_layout_does(layout):
    x, w = np.ones((2, 9, 8, 3)), np.ones((3, 3, 1, 3))
    y = filtered(x, w, layout=layout)
    assert (y if layout == "channels_last" else np.moveaxis(y, -1, 1)).flags.c_contiguous


@pytest.mark.parametrize("limit", [2**17, 2**20])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, np.nan])
def test_the_memory_beside_the_result_keeps_to_the_limit(limit, channels, value):
    rng = np.random.default_rng(8)
    x, w = rng.standard_normal((1, 400, 300, channels)), products(rng, (6, 6), channels, 2, "float64")
    x[0, 100, 100] = value
    spec = spec_of(x, w)
    factors = separable.factors(w, spec)
    assert memory_beside_result(lambda: separable.conv(x, w, factors, spec, limit)) <= limit + 2**15
