"""Copies of strided arrays in items of elements that lie side by side."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpconv.cpu.copies import copy, runs_of


@st.composite
def arrays(draw, shape, dtype):
    """Memory that lies in some order, and an index of it that has the shape: with gaps, or turned."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1])) for _ in shape]
    sizes = [n * abs(step) for n, step in zip(shape, steps, strict=True)]
    whole = np.arange(np.prod(sizes, dtype=int)).reshape([sizes[axis] for axis in order]).astype(dtype)
    return whole.transpose(np.argsort(order)), tuple(slice(None, None, step) for step in steps)


@given(st.data())
def test_a_copy_is_the_source_and_nothing_else_is_written(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16", "uint8", "complex128", "clongdouble"]))
    (source, read), (target, written) = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    right = target.copy()
    right[written] = source[read]
    copy(source[read], target[written])
    np.testing.assert_array_equal(target, right)


def test_windows_that_overlap_are_copied():
    x = np.arange(6 * 10 * 3, dtype="float32").reshape(6, 10, 3)
    windows = np.lib.stride_tricks.as_strided(x, (4, 8, 3, 3, 3), (120, 12, 120, 12, 4), writeable=False)
    made = np.empty(windows.shape, x.dtype)
    copy(windows, made)
    np.testing.assert_array_equal(made, windows)


@pytest.mark.parametrize(("shape", "strides", "axes", "nbytes"), [
    ((4, 8, 3, 3, 3), (120, 12, 120, 12, 4), 3, 36),
    ((4, 8, 3, 1, 3), (120, 12, 120, 7, 4), 3, 12),
    ((5, 10, 8), (640, 32, 4), 1, 320),
])  # fmt: skip
def test_an_item_is_what_lies_side_by_side_in_all(shape, strides, axes, nbytes):
    runs = runs_of(shape, 4, strides)
    assert (runs.axes, runs.item.itemsize) == (axes, nbytes)
    assert runs_of(shape, 4, strides, (*strides[:-1], 8)) is None


@pytest.mark.parametrize(("shape", "strides"), [
    ((5, 2000), (8000, 4)), ((5, 100, 8), (3200, 32, 4)), ((5, 6), (24, -4)), ((5, 0), (24, 4)), ((), ()),
])  # fmt: skip
def test_there_are_no_items_of_long_rows_of_single_elements_and_of_none(shape, strides):
    assert runs_of(shape, 4, strides) is None
