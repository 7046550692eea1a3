"""What the compiled kernels take, and by which function: all that the engine knows of them."""

from __future__ import annotations

from xpconv.cpu.compiled import direct, threads, winograd
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import FLOATS
from xpconv.cpu.plan import Compiled
from xpconv.spec import ConvSpec

CONVOLUTIONS = {"direct": direct.conv, "winograd": winograd.conv}


def takes(dtype: str, spec: ConvSpec, limit: int) -> Compiled:
    """What is taken of one convolution, within a limit of scratch memory."""
    if dtype not in FLOATS or machine() is None or not threads.available():
        return Compiled()
    return Compiled(direct.computed(dtype, spec, limit), winograd.takes(dtype, spec, limit))
