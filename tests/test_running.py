"""Windows along one axis, merged by doubling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from single_planes import DEFAULT, memory_beside_result
from xpconv.cpu import running

MERGES = [np.maximum, np.minimum, np.add]


def defined(x, size, step, stride, axis, merge):
    """Every window reduced at once."""
    x, reach = np.moveaxis(x, axis, 0), (size - 1) * step + 1
    windows = (x[begin : begin + reach : step] for begin in range(0, len(x) - reach + 1, stride))
    return np.moveaxis(np.array([merge.reduce(window, axis=0) for window in windows]), 0, axis)


@pytest.mark.parametrize("merge", MERGES)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 3), st.integers(1, 40), st.integers(1, 40),
    st.integers(1, 3), st.integers(1, 5), st.sampled_from(["float32", "float64", "float16", "int32", "uint8"]),
    st.sampled_from([1, 500, 4_000, DEFAULT]),
)  # fmt: skip
def test_windows_are_merged_along_any_axis(merge, others, axis, more, size, step, stride, dtype, limit):
    axis = min(axis, len(others))
    shape = (*others[:axis], (size - 1) * step + more, *others[axis:])
    x = np.random.default_rng(more * size).integers(0, 9, shape).astype(dtype)
    if merge is np.add and dtype == "uint8":
        x %= 3
    y = running.merged_windows(x, size, step, stride, axis, merge, limit)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, defined(x, size, step, stride, axis, merge))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("size", range(1, 70))
def test_every_size_of_window_is_made_up_of_powers_of_two(merge, size):
    x = np.random.default_rng(size).integers(-99, 99, (2, 100, 3)).astype("float32")
    parts = running._parts(size, merge) if size > 1 else []
    assert all(length & length - 1 == 0 for length, _ in parts)
    np.testing.assert_array_equal(
        running.merged_windows(x, size, 1, 1, 1, merge, DEFAULT), defined(x, size, 1, 1, 1, merge)
    )


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_within_its_windows(merge, value):
    x = np.random.default_rng(1).integers(-99, 99, (4, 60, 5)).astype("float32")
    x[1, 30, 2], x[1, -2, 0], x[2, 0, 0], x[3, -1, -1] = value, value, -value, np.nan
    for size in (2, 7, 16, 21):
        with np.errstate(all="raise"):
            y = running.merged_windows(x, size, 2, 1, 1, merge, DEFAULT)
        np.testing.assert_array_equal(y, defined(x, size, 2, 1, 1, merge))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::-1], lambda x: x[::-1, :, ::-1], lambda x: x[:, ::2], lambda x: x[..., ::3],
        lambda x: np.broadcast_to(x[:, :1], x.shape), lambda x: x.swapaxes(0, 2), np.asfortranarray,
        lambda x: np.broadcast_to(x[:1], x.shape),
    ],
)  # fmt: skip
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_inputs_of_any_strides_are_read_and_left_alone(view, merge, axis):
    x = view(np.random.default_rng(2).integers(-99, 99, (40, 44, 36)).astype("float32"))
    before = x.copy()
    if x.flags.owndata:
        x.flags.writeable = False
    for stride in (1, 4):
        y = running.merged_windows(x, 9, 1, stride, axis, merge, 2**16)
        np.testing.assert_array_equal(y, defined(x, 9, 1, stride, axis, merge))
    np.testing.assert_array_equal(x, before)


def test_the_result_lies_in_memory_as_the_input_does():
    x = np.ones((2, 3, 20, 21), "float32").transpose(0, 2, 3, 1)
    for stride in (1, 5):
        y = running.merged_windows(x, 6, 1, stride, 1, np.maximum, DEFAULT)
        assert y.transpose(0, 3, 1, 2).flags.c_contiguous


def test_sums_of_many_lose_no_digits():
    x = (1e4 + np.random.default_rng(3).standard_normal(5000)).astype("float32")
    y = running.merged_windows(x, 1000, 1, 1, 0, np.add, DEFAULT)
    exact = np.convolve(x.astype("float64"), np.ones(1000), "valid")
    assert np.abs(y / exact - 1).max() < 4 * np.finfo("float32").eps


def test_an_empty_batch_has_an_empty_result():
    for merge in MERGES:
        assert running.merged_windows(np.ones((0, 20, 3)), 7, 1, 1, 1, merge, DEFAULT).shape == (0, 14, 3)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("limit", [2**17, 2**20])
@pytest.mark.parametrize(("shape", "axis"), [((300, 1000), 0), ((300, 1000), 1), ((200_000,), 0), ((8, 50, 50, 16), 2)])
def test_the_memory_beside_the_result_keeps_to_the_limit(merge, limit, shape, axis):
    x = np.ones(shape, "float32")
    least = 4 * 48 * 4 * x[0].size if axis == 0 else 0
    memory = memory_beside_result(lambda: running.merged_windows(x, 47, 1, 1, axis, merge, limit))
    assert memory <= max(limit, least) + 2**14


@pytest.mark.parametrize(
    ("size", "merge", "most"),
    [(1, np.add, 0), (3, np.add, 0), (3, np.maximum, 0), (4, np.maximum, 1), (7, np.add, 1), (101, np.maximum, 14)],
)
def test_doubling_pays_where_it_takes_fewer_passes(size, merge, most):
    paying = [stride for stride in range(1, 50) if running.pays(10**6, size, 1, stride, merge)]
    assert paying == list(range(1, most + 1))


def test_doubling_does_not_pay_for_few_results():
    assert running.pays(100, 51, 1, 1, np.maximum)
    assert not running.pays(56, 51, 1, 1, np.maximum)
