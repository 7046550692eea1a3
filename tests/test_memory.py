"""Memory that NumPy's blocks are computed in, used again, and what was made of arrays and is kept."""

import os
import signal
import tracemalloc

import numpy as np
import pytest

from xpconv.cpu.entries import Entries
from xpconv.cpu.memory import Memory


def test_memory_is_used_again_by_arrays_of_any_dtype():
    memory = Memory()
    first = memory.take("one", (5,), np.dtype("float64"))  # no multiple of what a clongdouble takes
    for dtype in ("complex128", "float32", "complex64", "int8", "longdouble", "clongdouble"):
        again = memory.take("one", (1,), np.dtype(dtype))
        assert again.dtype == dtype
        assert again.shape == (1,)
        assert np.shares_memory(first, again)


def test_memory_is_let_go_before_more_is_taken():
    memory = Memory()
    tracemalloc.start()
    for size in (1 << 20, 2 << 20, 1 << 20):
        memory.take("one", (size,), np.dtype("uint8"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 2**20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_of_its_parents():
    entries = Entries(100)
    entries.put("key", np.zeros(3))
    with entries._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # and not for ever, if it does
            os._exit(0 if entries.get("key") is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert entries.get("key") is not None
