"""Memory that NumPy's blocks are computed in, used again."""

import numpy as np

from xpconv.cpu.memory import Memory


def test_memory_is_used_again_by_arrays_of_any_dtype():
    memory = Memory()
    first = memory.take("one", (3,), np.dtype("float64"))
    for dtype in ("complex128", "float32", "complex64", "int8"):
        again = memory.take("one", (1,), np.dtype(dtype))
        assert again.dtype == dtype
        assert again.shape == (1,)
        assert np.shares_memory(first, again)
