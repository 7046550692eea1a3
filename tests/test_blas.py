"""What NumPy's BLAS is told of threads while calls share their products among threads of their own."""

import os
import signal
import threading

import numpy as np
import pytest

import xpconv
from xpconv.cpu import blas, strips, team
from xpconv.engines import compiled as compiled_calls

if blas.library() is None:
    pytest.skip("NumPy's BLAS is not OpenBLAS", allow_module_level=True)


@pytest.fixture
def told(monkeypatch):
    """What an OpenBLAS of four threads is told, first and last its number before and after."""
    numbers = [4]
    monkeypatch.setattr(blas, "library", lambda: blas.OpenBLAS(lambda: numbers[-1], numbers.append))
    monkeypatch.setattr(blas, "_limit", blas._Limit())
    return numbers


def test_the_first_call_limits_blas_and_the_last_lifts_it(told):
    with blas.products_by_one():
        with blas.products_by_one():
            assert blas.threads() == 4
        assert told == [4, 1]
    assert told == [4, 1, 4]
    assert blas.threads() == 4


def test_the_limit_is_lifted_where_a_call_fails(told):
    with pytest.raises(MemoryError), blas.products_by_one():
        raise MemoryError
    assert told == [4, 1, 4]


def test_calls_of_many_threads_leave_blas_as_it_was(told):
    def call():
        for _ in range(200):
            with blas.products_by_one():
                assert told[-1] == 1

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert told[-1] == 4
    assert blas._limit.calls == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_within_a_call_has_the_number_from_before():
    before = blas.threads()
    with blas.products_by_one():
        child = os.fork()
        if not child:
            signal.alarm(20)  # ends it
            os._exit(0 if blas.library().threads() == before and not blas._limit.calls else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert blas.library().threads() == before


def test_another_blas_is_not_limited(monkeypatch):
    monkeypatch.setattr(blas, "library", lambda: None)
    with blas.products_by_one():
        assert blas.threads() is None
    assert team.thread_count() == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_made_by_one_thread_each_while_threads_share_strips(threads, monkeypatch):
    seen, multiply = set(), np.matmul
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)
    monkeypatch.setattr(team, "thread_count", lambda: threads)
    before = blas.threads()

    def watched(*arguments, **options):
        seen.add(blas.library().threads())
        return multiply(*arguments, **options)

    monkeypatch.setattr(strips.np, "matmul", watched)
    xpconv.corr2d(np.ones((2, 56, 56, 64), np.float32), np.ones((3, 3, 64, 64), np.float32), method="gemm")
    assert seen == {1 if threads > 1 else before}
    assert blas.library().threads() == before
