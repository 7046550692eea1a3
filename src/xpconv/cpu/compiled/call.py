"""A convolution of arrays that lie in memory alike: all that its kernels need to know but where the arrays are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np

from xpconv.cpu.compiled.blocks import Sources
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.values import Value
from xpconv.cpu.copies import dense_strides
from xpconv.cpu.lines import LINE
from xpconv.cpu.plan import SINGLE
from xpconv.cpu.stripes import Stripe
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

Prepared: TypeAlias = Callable[[Array, Array, Array | None, Array], bool]
"""Of ``(x, w, bias, y)``, of which all but `w` may have lost axes of one element: writes the result to `y`, and tells
whether it can be used: where False, a value that is not finite may have spread beyond the windows that hold it."""

STREAMED = 1 << 24  # bytes of a result that pushes all else from the caches
_BEYOND = 1 << 21  # bytes of a result that a core's own caches do not hold
TOGETHER = 3 << 23  # bytes of an input and a result of as many channels that do


@dataclass(frozen=True)
class Call:
    """Unpadded x (N, *size, C), w (*window, C / groups, F) and a result (N, *out, F), of any strides, in one dtype.

    What is prepared of it, a `Prepared`, is called with the arrays.
    """

    spec: ConvSpec
    x_strides: Sizes
    w_strides: Sizes
    y_strides: Sizes
    dtype: str
    threads: int  # that may be taken
    sources: Sources  # of the padded input's elements
    fill: float
    activation: str | None
    leak: float
    limit: int  # of scratch memory, in bytes

    @cached_property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @cached_property
    def products(self) -> int:
        """Multiplications of the definition."""
        spec = self.spec
        each = math.prod(spec.window) * (spec.channels // spec.groups)
        return spec.batch * math.prod(spec.out_size) * spec.filters * each

    @cached_property
    def team(self) -> int:
        """Threads that it is worth."""
        return self.threads if self.products > SINGLE else 1

    def sources_of(self, stripe: Stripe) -> Sources:
        """Those of a stripe's padded input."""
        return lambda _: stripe.of(self.sources(self.spec))

    @property
    def is_streamed(self) -> bool:
        """Whether the result may be stored past the caches: it is large, and all of its pixels begin a line of them.

        1x1 64->256@56, N=8 took 6.8 ms before and 4.5 after; a result that the caches hold took half as long again.
        """
        spec, size = self.spec, self.itemsize
        return self.y_bytes >= STREAMED and in_lines(self.y_strides, spec.filters // spec.groups * size, size)

    @property
    def is_far(self) -> bool:
        """Whether the result lies beyond a core's own caches."""
        return self.y_bytes >= _BEYOND

    @property
    def y_bytes(self) -> int:
        """Bytes of the result."""
        spec = self.spec
        return spec.batch * math.prod(spec.out_size) * spec.filters * self.itemsize


def storing(*, streams: bool, far: bool) -> int:
    """How a kernel is told to store results: past the caches (1), asked for early (-1), or neither (0)."""
    return 1 if streams else -int(far)


def storing_now(kernel: Kernel, given: SimpleNamespace) -> Value:
    """Inside a kernel, the same of this call: what does not begin a line of the caches is not stored past them."""
    return (given.y % LINE).equals(0).where(given.streams, kernel.minimum(given.streams, given.streams * -1))


def streamed_planes(spec: ConvSpec | PoolSpec, y_strides: Sizes, size: int) -> bool:
    """Whether results of planes, whose rows lie side by side, may be stored past the caches, as they are one by one."""
    together = spec.batch * spec.channels * (math.prod(spec.size) + math.prod(spec.out_size)) * size
    row = spec.out_size[-1] * size
    dense = y_strides[-2] == size and (spec.axes == 1 or y_strides[-3] == row)
    return dense and together >= TOGETHER


def is_dense(size: Sizes, strides: Sizes, itemsize: int) -> bool:
    """Whether the positions of an image (N, *size, C) lie side by side."""
    return strides[1:-1] == dense_strides(size, itemsize)


def in_lines(strides: Sizes, width: int, size: int) -> bool:
    """Whether elements lie side by side in so many bytes, which are whole lines of the caches as all steps are."""
    return strides[-1] == size and not any(step % LINE for step in (*strides[:-1], width))
