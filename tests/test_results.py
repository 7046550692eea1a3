"""Memory for results: that of large ones is used again, and never while anybody can read it."""

import gc
import mmap
import os
import threading

import numpy as np
import pytest

import xpconv
from xpconv.cpu import results

LARGE = (9, 1 << 20)  # of float32: 36 MiB
pytestmark = pytest.mark.skipif(not results._IS_RECYCLED, reason="this system's memory cannot be kept for the asking")


@pytest.fixture(autouse=True)
def _nothing_kept():
    gc.collect()
    results._kept.clear()
    yield
    results._kept.clear()


def address(a):
    return a.__array_interface__["data"][0]


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4), (1 << 18,), (1, 1 << 19)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_makes_results_again_makes_new_ones(shape, dtype):
    make, once = results.maker(shape, np.dtype(dtype)), results.new(shape, np.dtype(dtype))
    first, second = make(), make()
    assert first.shape == once.shape
    assert first.dtype == once.dtype
    assert not np.shares_memory(first, second)
    assert once.nbytes < results._LARGE or address(first) % 64 == address(second) % 64 == 0


def large(dtype=np.float32):
    return results.new(LARGE, np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128", "float16", "int8"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (1 << 18,), (3, 1 << 20), (5, 7 << 20)])
def test_a_result_is_an_ordinary_array(shape, dtype):
    y = results.new(shape, np.dtype(dtype))
    assert (y.shape, y.dtype) == (shape, dtype)
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert y.flags.aligned
    assert y.nbytes < 1 << 20 or address(y) % 64 == 0
    y[...] = 1
    assert np.all(y[-1:] == 1 if shape else y == 1)


def test_the_memory_of_a_large_result_is_used_again():
    y = large()
    y[...] = 1
    first = address(y)
    del y
    assert address(large()) == first


def test_two_results_that_take_turns_are_both_used_again():
    a, b = large(), large()
    before = {address(a), address(b)}
    assert len(before) == 2
    del a, b
    a, b = large(), large()
    assert {address(a), address(b)} == before


@pytest.mark.parametrize(
    "part", [lambda y: y[3:5, ::-2], lambda y: y.T, memoryview, lambda y: y.view(np.uint8), lambda y: y.ravel()[7:]]
)
def test_memory_that_somebody_can_read_is_not_used_again(part):
    y = large()
    y[...] = 7
    held = np.asarray(part(y))
    before = held.copy()
    del y
    large()[...] = 8
    np.testing.assert_array_equal(held, before)


def test_another_size_is_not_served_from_it_and_two_are_kept_at_most():
    sizes = [results.new((n, 1 << 20), np.dtype(np.float32)) for n in (9, 10, 11)]
    addresses = [address(y) for y in sizes]
    while sizes:
        sizes.pop(0)
    assert [len(pages) >> 22 for pages in results._kept] == [10, 11]
    again = results.new((10, 1 << 20), np.dtype(np.float32))
    assert address(again) == addresses[1]


def test_what_is_kept_follows_the_workspace_limit():
    with xpconv.workspace_limit(4 << 20):
        y = large()
        y[...] = 1
        del y
    assert not results._kept
    with xpconv.workspace_limit(9 << 20):
        y = large()
        del y
    assert len(results._kept) == 1


def test_small_results_are_left_to_numpy():
    y = results.new((1 << 20,), np.dtype(np.float32))
    del y
    assert not results._kept


def test_without_memory_the_error_is_numpys():
    with pytest.raises(MemoryError, match="Unable to allocate"), xpconv.workspace_limit(1 << 62):
        results.new((1 << 58,), np.dtype(np.float32))


def test_pages_that_the_system_does_not_take_back_are_freed(monkeypatch):
    monkeypatch.setattr(mmap, "MADV_FREE", -1)  # what an old kernel answers with an error
    y = large()
    del y
    assert not results._kept


def test_threads_never_share_a_result():
    wrong = []

    def work(mark):
        for _ in range(15):
            y = large(np.uint8) if mark % 2 else large()
            y[::4, :: 1 << 10] = mark
            if not np.all(y[::4, :: 1 << 10] == mark):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(results._kept) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_writes_to_its_own():
    held = large()
    held[...] = 3
    freed = large()
    del freed
    child = os.fork()
    if child == 0:
        held[...] = 4
        y = large()
        y[...] = 5
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert np.all(held == 3)


def test_convolutions_return_right_values_in_used_memory():
    x = np.random.default_rng(0).standard_normal((1, 750, 750, 16), dtype=np.float32)
    w = np.random.default_rng(1).standard_normal((3, 3, 16, 16), dtype=np.float32)

    def results():
        return [function(x, w, padding="same") for function in (xpconv.conv2d, xpconv.corr2d)]

    kept, places = [], set()
    for y in results():
        kept.append(y.copy())
        places.add(address(y))
    del y
    again = results()
    assert {address(y) for y in again} == places
    for y, before in zip(again, kept, strict=True):
        np.testing.assert_array_equal(y, before)
