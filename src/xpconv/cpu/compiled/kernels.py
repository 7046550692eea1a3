"""What the compiled kernels take, and by which function: all that the engine knows of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from xpconv.cpu.compiled import (
    channelwise,
    direct,
    finite,
    gradients,
    plane,
    plane_pooling,
    threads,
    turn,
    winograd,
    winograd_gradient,
)
from xpconv.cpu.compiled.blocks import Sources, strides_of
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.call import Call, Prepared
from xpconv.cpu.compiled.ir import FLOATS
from xpconv.cpu.compiled.moves import name_of
from xpconv.cpu.plan import Compiled
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

_CONVOLUTIONS: dict[str, Callable[[Call], Prepared]] = {
    "direct": direct.Direct, "depthwise": channelwise.Depthwise, "plane": plane.Plane, "winograd": winograd.Winograd,
}  # fmt: skip
_POOLINGS: dict[str, Callable[..., Callable[[Array, Array], None]]] = {
    "channelwise": channelwise.Pooling, "plane": plane_pooling.Pooling,
}  # fmt: skip
grad_weight, winograd_grad_weight = gradients.grad_weight, winograd_gradient.grad_weight
all_finite, thread_count, turned = finite.finite, threads.thread_count, turn.turned


def available() -> bool:
    """Whether there are kernels for this processor at all."""
    return machine() is not None and threads.available()


def prepared(
    kernel: str, x: Array, w: Array, y: Array, spec: ConvSpec, sources: Sources, fill: float, activation: str | None,
    leak: float, limit: int,
) -> Prepared:  # fmt: skip
    """A convolution by the kernels of that name, of arrays ``(x, w, bias, y)`` that lie as these do."""
    strides = strides_of(x), w.strides, strides_of(y)
    return _prepared(
        kernel, Call(spec, *strides, name_of(x.dtype), threads.thread_count(), sources, fill, activation, leak, limit)
    )


@lru_cache(maxsize=256)
def _prepared(kernel: str, call: Call) -> Prepared:
    return _CONVOLUTIONS[kernel](call)


def prepared_pooling(
    kernel: str, operation: str, x: Array, y: Array, spec: PoolSpec, sources: Sources, divisor: float, limit: int
) -> Callable[[Array, Array], None]:
    """The "largest" of windows, or all "added" and divided, by the kernels of that name, of ``(x, y)`` that lie so."""
    strides = strides_of(x), strides_of(y)
    return _prepared_pooling(
        kernel, operation, spec, strides, name_of(x.dtype), threads.thread_count(), sources, divisor, limit
    )


@lru_cache(maxsize=128)
def _prepared_pooling(kernel: str, *geometry: Any) -> Callable[[Array, Array], None]:
    return _POOLINGS[kernel](*geometry)


def takes(dtype: str, spec: ConvSpec, limit: int) -> Compiled:
    """What is taken of one convolution, within a limit of scratch memory."""
    return _takes(dtype, spec, limit, threads.thread_count())


@lru_cache(maxsize=1024)
def _takes(dtype: str, spec: ConvSpec, limit: int, _threads: int) -> Compiled:
    if not _here(dtype):
        return Compiled()
    return Compiled(
        direct.computed(dtype, spec, limit), spec.filters_planes and channelwise.takes(dtype, spec, limit),
        plane.takes(dtype, spec, limit), winograd.takes(dtype, spec, limit),
    )  # fmt: skip


def pools(x: Array, spec: PoolSpec, limit: int) -> str:
    """The kernels that take a pooling of a channels-last array, by name; "" where none do."""
    return _pools(name_of(x.dtype), spec, strides_of(x), limit, threads.thread_count())


@lru_cache(maxsize=1024)
def _pools(dtype: str, spec: PoolSpec, strides: Sizes, limit: int, _threads: int) -> str:
    if not _here(dtype):
        return ""
    plane_takes, turned_takes = plane_pooling.takes(dtype, spec, strides, limit), channelwise.takes(dtype, spec, limit)
    if plane_takes and not (turned_takes and plane_pooling.is_slow(dtype, spec)):
        return "plane"
    return "channelwise" if turned_takes else ""


def takes_weight_gradient(dtype: str, spec: ConvSpec, limit: int) -> bool:
    """Whether the gradient of such a convolution's weight is taken."""
    if not _here(dtype) or 0 in (spec.batch, spec.channels, spec.filters, *spec.out_size):
        return False
    return direct.workspace(dtype, spec) <= limit


def takes_winograd_gradient(dtype: str, spec: ConvSpec, limit: int) -> bool:
    """Whether it is taken in Winograd's domain."""
    return _takes_winograd_gradient(dtype, spec, limit, threads.thread_count())


@lru_cache(maxsize=1024)
def _takes_winograd_gradient(dtype: str, spec: ConvSpec, limit: int, _threads: int) -> bool:
    return _here(dtype) and winograd_gradient.takes(dtype, spec, limit)


def _here(dtype: str) -> bool:
    return dtype in FLOATS and available()
