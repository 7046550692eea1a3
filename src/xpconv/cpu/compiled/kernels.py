"""What the compiled kernels take, and by which function: all that the engine knows of them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from xpconv.cpu.compiled import channelwise, direct, finite, gradients, threads, winograd
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import FLOATS
from xpconv.cpu.compiled.moves import name_of
from xpconv.cpu.plan import Compiled
from xpconv.spec import ConvSpec, PoolSpec

CONVOLUTIONS = {"direct": direct.conv, "depthwise": channelwise.depthwise, "winograd": winograd.conv}
grad_weight = gradients.grad_weight
max_pool, sum_pool, all_finite = channelwise.max_pool, channelwise.sum_pool, finite.finite


def available() -> bool:
    """Whether there are kernels for this processor at all."""
    return machine() is not None and threads.available()


def takes(dtype: str, spec: ConvSpec, limit: int) -> Compiled:
    """What is taken of one convolution, within a limit of scratch memory."""
    return _takes(dtype, spec, limit, threads.thread_count())


@lru_cache(maxsize=1024)
def _takes(dtype: str, spec: ConvSpec, limit: int, _threads: int) -> Compiled:
    if not _here(dtype):
        return Compiled()
    depthwise = spec.groups == spec.channels == spec.filters and channelwise.takes(dtype, spec, limit)
    return Compiled(direct.computed(dtype, spec, limit), depthwise, winograd.takes(dtype, spec, limit))


def pools(dtype: np.dtype, spec: PoolSpec, limit: int) -> bool:
    """Whether such a pooling is taken."""
    return _pools(name_of(dtype), spec, limit, threads.thread_count())


@lru_cache(maxsize=1024)
def _pools(dtype: str, spec: PoolSpec, limit: int, _threads: int) -> bool:
    return _here(dtype) and channelwise.takes(dtype, spec, limit)


def takes_weight_gradient(dtype: str, spec: ConvSpec, limit: int) -> bool:
    """Whether the gradient of such a convolution's weight is taken."""
    if not _here(dtype) or 0 in (spec.batch, spec.channels, spec.filters, *spec.out_size):
        return False
    return direct.workspace(dtype, spec) <= limit


def _here(dtype: str) -> bool:
    return dtype in FLOATS and available()
