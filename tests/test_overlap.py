"""Large windows by spectra of overlapping tiles: the definition's results, in bounded memory."""

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
from xpconv.cpu import overlap


def filtered(x, w, limit=DEFAULT, **options):
    return overlap.conv(x, w, spec_of(x, w, **options), limit)


@pytest.mark.parametrize("dtype", BOUNDS)
@given(*DRAWN, st.sampled_from([1, 30_000, DEFAULT]))
def test_tiles_agree_with_the_definition(dtype, axes, batch, channels, flip, layout, limit):
    assert_drawn_agree(filtered, dtype, axes, batch, channels, flip, layout, limit)


@pytest.mark.parametrize("dtype", BOUNDS)
@given(
    st.integers(1, 3000), st.integers(1, 99), st.integers(1, 3), st.integers(1, 2), st.integers(1, 4),
    st.sampled_from([5_000, 100_000, DEFAULT]),
)  # fmt: skip
def test_signals_are_covered_by_tiles(dtype, more, m, stride, dilation, channels, limit):
    rng = np.random.default_rng(more * m)
    x, w = values(rng, (2, more + (m - 1) * dilation, channels), dtype), values(rng, (m, 1, channels), dtype)
    options = dict(stride=stride, dilation=dilation)
    assert_near(filtered(x, w, limit, **options), defined(x, w, **options), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("limit", [20_000, 400_000, DEFAULT])
@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_planes_are_covered_by_tiles(dtype, limit, stride):
    rng = np.random.default_rng(1)
    x, w = values(rng, (2, 150, 131, 3), dtype), values(rng, (9, 13, 1, 3), dtype)
    assert_near(filtered(x, w, limit, stride=stride), defined(x, w, stride=stride), BOUNDS[dtype])


_SURROUNDED = st.tuples(st.integers(1, 40), st.integers(1, 25), st.integers(0, 40), st.integers(0, 40))


@pytest.mark.parametrize("dtype", BOUNDS)
@given(
    st.lists(_SURROUNDED, min_size=1, max_size=2),
    st.integers(1, 2), st.sampled_from(["zeros", "constant"]), st.sampled_from([1, 60_000, DEFAULT]),
)  # fmt: skip
def test_zeros_around_the_input_are_as_if_they_were_there(dtype, axes, stride, padding_mode, limit):
    size, window, before, after = zip(*axes, strict=True)
    after = [max(hi, m - n - lo) for n, m, lo, hi in zip(size, window, before, after, strict=True)]
    padding = tuple(zip(before, after, strict=True))
    rng = np.random.default_rng(sum(size) + sum(window))
    x, w = values(rng, (2, *size, 2), dtype) + 3, values(rng, (*window, 1, 2), dtype)
    options = dict(padding=padding, padding_mode=padding_mode, stride=stride)
    whole = np.pad(x, ((0, 0), *padding, (0, 0)))
    assert_near(filtered(x, w, limit, **options), defined(whole, w, stride=stride), 3 * BOUNDS[dtype])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_within_its_windows_where_zeros_are_around(value):
    x, w = np.ones((1, 90, 70, 1), "float32"), np.ones((21, 20, 1, 1), "float32")
    x[0, 3, 66] = value
    whole = np.pad(x, ((0, 0), (10, 10), (9, 10), (0, 0)))
    with np.errstate(invalid="ignore"):
        for limit in (2**18, DEFAULT):
            y = filtered(x, w, limit, padding=((10, 10), (9, 10)))
            np.testing.assert_allclose(y, defined(whole, w).astype("float32"), rtol=1e-4)


def test_single_precision_keeps_its_bound_where_a_large_mean_cancels():
    rng = np.random.default_rng(2)
    x = (1e4 + rng.standard_normal((1, 20_000, 1))).astype("float32")
    w = rng.integers(-99, 99, (300, 1, 1)).astype("float32")
    w[-1] -= w.sum()
    assert_near(filtered(x, w), defined(x, w), 2e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("limit", [2**18, DEFAULT])
def test_what_is_not_finite_stays_within_its_windows(value, limit):
    rng = np.random.default_rng(3)
    for size, window in (((5000,), (50,)), ((120, 90), (16, 17))):
        x, w = np.ones((2, *size, 2), "float32"), rng.standard_normal((*window, 1, 2)).astype("float32")
        w[(1,) * len(window)] = 0
        x[(1, *(n // 2 for n in size), 1)] = value
        with np.errstate(over="ignore", invalid="ignore"):
            y, expected = filtered(x, w, limit), defined(x, w).astype("float32")
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


@pytest.mark.parametrize("limit", [2**18, 2**20])
@pytest.mark.parametrize("size", [(200_000,), (300, 250)])
@pytest.mark.parametrize("channels", [1, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("value", [0, np.nan])
def test_the_memory_beside_the_result_keeps_to_the_limit(limit, size, channels, dtype, value):
    rng = np.random.default_rng(5)
    x, w = values(rng, (1, *size, channels), dtype), values(rng, (*(11, 12)[: len(size)], 1, channels), dtype)
    x[(0, *(n // 2 for n in size))] = value
    spec = spec_of(x, w)
    assert overlap.workspace(spec, limit, dtype == "complex128") <= limit
    assert memory_beside_result(lambda: overlap.conv(x, w, spec, limit)) <= limit + 2**16


def test_tiles_grow_with_the_window_and_not_with_the_signal():
    lengths = [overlap.tile_lengths(spec_of(np.ones((1, n, 1)), np.ones((m, 1, 1))), DEFAULT)[0]
               for n, m in ((10**5, 50), (10**6, 50), (10**6, 500))]  # fmt: skip
    assert max(lengths[:2]) < lengths[2] < 10**5


def test_a_tile_is_never_shorter_than_the_window():
    spec = spec_of(np.ones((1, 100, 90, 1)), np.ones((40, 30, 1, 1)))
    assert all(n >= m for n, m in zip(overlap.tile_lengths(spec, 1), spec.reach, strict=True))


def test_operations_follow_the_work():
    specs = (spec_of(np.ones((n, 300, 300, 1)), np.ones((31, 31, 1, 1))) for n in (1, 8))
    small, large = (overlap.operations(spec, DEFAULT) for spec in specs)
    assert 6 < large / small < 8
