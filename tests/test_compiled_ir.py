"""What kernels are written in: that which is made differently for different processors."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import build, ir, processor
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.cpu.compiled.values import FLOATS, vector

if build.machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("vector_bytes", [32, 64])
def test_the_first_lanes_are_stored_and_nothing_beyond_them(dtype, vector_bytes, monkeypatch):
    """By a store of some lanes, or part by part."""
    like = replace(processor.machine(), vector_bytes=vector_bytes)  # code is made for this one
    monkeypatch.setattr(ir, "machine", lambda: like)
    lanes = lanes_of(dtype)

    def make(module):
        kernel = Kernel(module, "store_first", ("source", "to", "count"))
        source, to, count = kernel.arguments
        every = kernel.load(source, vector(FLOATS[dtype], lanes))
        kernel.store_lanes(every, to, kernel.lanes_below(count, lanes), offset=np.dtype(dtype).itemsize)
        kernel.finish()
        return ("store_first",)

    library = build._compiled(f"test-store-first-{dtype}-{vector_bytes}", make)
    store = library.function("store_first", 3)
    given = np.arange(1, lanes + 1, dtype=dtype)
    for count in range(lanes + 2):
        found = np.zeros(lanes + 2, dtype)
        store(given.ctypes.data, found.ctypes.data, count)
        np.testing.assert_array_equal(found, [0, *given[:count], *[0] * (lanes + 1 - min(count, lanes))])
