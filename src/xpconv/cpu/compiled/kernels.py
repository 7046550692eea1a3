"""What the compiled kernels take, and by which function: all that the engine knows of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from xpconv.cpu.compiled import (
    bands,
    channelwise,
    direct,
    finite,
    gradients,
    indexed,
    job,
    kept,
    plane,
    plane_pooling,
    pointwise,
    scatter,
    spectra,
    spread,
    spread_channels,
    threads,
    turn,
    weights,
    winograd,
    winograd_gradient,
)
from xpconv.cpu.compiled.blocks import Sources, strides_of
from xpconv.cpu.compiled.build import any_fails, machine
from xpconv.cpu.compiled.build import settled as settled
from xpconv.cpu.compiled.call import Call, Prepared
from xpconv.cpu.compiled.moves import name_of
from xpconv.cpu.compiled.values import FLOATS
from xpconv.cpu.plan import Compiled, is_banded
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes


def _direct(call: Call) -> Prepared:
    return pointwise.Pointwise(call) if pointwise.takes(call) else direct.Direct(call)


def _is_direct_ready(dtype: str, spec: ConvSpec) -> bool:
    return direct.is_ready(dtype, spec) and (not pointwise.fits(dtype, spec) or pointwise.is_ready(dtype))


def _plane(call: Call) -> Prepared:
    return bands.Bands(call) if bands.takes(call) else plane.Plane(call)


def _is_plane_ready(dtype: str, spec: ConvSpec) -> bool:
    return bands.is_ready(dtype, spec) if is_banded(spec) else plane.is_ready(dtype, spec)


_CONVOLUTIONS: dict[str, Callable[[Call], Prepared]] = {
    "direct": _direct, "depthwise": channelwise.Depthwise, "plane": _plane, "winograd": winograd.Winograd,
    "spectra": spectra.Spectra,
}  # fmt: skip
_READY: dict[str, Callable[..., bool]] = {
    "direct": _is_direct_ready, "depthwise": channelwise.is_ready, "plane": _is_plane_ready,
    "winograd": winograd.is_ready, "spectra": spectra.is_ready, "gradient": gradients.is_ready,
    "winograd gradient": winograd_gradient.is_ready,
    "indexed": indexed.is_ready, "scatter": scatter.is_ready,
    "spread": lambda dtype, spec: _SPREADS[spec.layout].is_ready(dtype, spec),
    **{
        f"{family} {reduction}": partial(part.is_ready, operation=reduction)
        for family, part in (("channelwise", channelwise), ("plane", plane_pooling))
        for reduction in ("largest", "added")
    },
}  # fmt: skip
_POOLINGS: dict[str, Callable[..., Callable[[Array, Array], None]]] = {
    "channelwise": channelwise.pooling, "plane": plane_pooling.Pooling,
}  # fmt: skip
_SPREADS: dict[str, Any] = {"channels_first": spread, "channels_last": spread_channels}
grad_weight, winograd_grad_weight = gradients.grad_weight, winograd_gradient.grad_weight
all_finite, thread_count, turned = finite.finite, threads.thread_count, turn.turned
scattered = scatter.scattered


def is_ready(kernel: str, dtype: str, spec: ConvSpec | PoolSpec) -> bool:
    """Whether the kernels that take such a call are there; if not, they are being compiled, where that can be done."""
    own = _READY[kernel](dtype, spec)  # asked for first, since it takes the longest
    return are_shared_ready(dtype) and own


def are_shared_ready(dtype: str) -> bool:
    """Whether those are there that all kernels of a dtype need."""
    if not _here(dtype):
        return False
    if dtype not in _shared:
        ready = [part.is_ready() for part in (threads, kept, job)] + [part.is_ready(dtype) for part in _SHARED]
        if all(ready):
            _shared.add(dtype)
    return dtype in _shared


_SHARED = weights, finite, turn
_shared: set[str] = set()  # dtypes of which they are ready


def why_not_ready() -> str:
    """What is said of kernels that would be used and are not there."""
    fails = any_fails() and settled() is not None
    return "the kernels do not compile here" if fails else "the kernels are being compiled"


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


def indexed_pooling(
    x: Array, y: Array, indices: Array, spec: PoolSpec, sources: Sources, limit: int
) -> Callable[[Array, Array, Array], None]:
    """Max pooling with indices of arrays ``(x, y, indices)`` that lie as these do."""
    strides = strides_of(x), strides_of(y), strides_of(indices)
    return _indexed_pooling(spec, strides, name_of(x.dtype), threads.thread_count(), sources, limit)


_indexed_pooling = lru_cache(maxsize=128)(indexed.pooling)


def takes(dtype: str, spec: ConvSpec, limit: int) -> Compiled:
    """What is taken of one convolution, within a limit of scratch memory."""
    return _takes(dtype, spec, limit, threads.thread_count())


@lru_cache(maxsize=1024)
def _takes(dtype: str, spec: ConvSpec, limit: int, free: int) -> Compiled:
    here = machine()
    if here is None or not _here(dtype):
        return Compiled()
    return Compiled(
        direct.computed(dtype, spec, limit), spec.filters_planes and channelwise.takes(dtype, spec, limit),
        plane.takes(dtype, spec, limit), winograd.members(dtype, spec, limit, free) / free,
        spectra.takes(dtype, spec, limit), free,
        here.is_wide,
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


def pools_by_channels(dtype: np.dtype, spec: ConvSpec, limit: int) -> bool:
    """Whether the windows of a convolution are taken, a vector of channels at a time."""
    return _here(name_of(dtype)) and channelwise.takes(name_of(dtype), spec, limit)


def scatters(dtype: np.dtype) -> bool:
    """Whether values of the dtype are added at their indices."""
    return _here(name_of(dtype))


def spreads(gy: Array, spec: PoolSpec, limit: int) -> bool:
    """Whether the gradient of such means is taken row by row, of a channels-last gy."""
    dtype = name_of(gy.dtype)
    return _here(dtype) and _SPREADS[spec.layout].takes(dtype, spec, strides_of(gy), limit)


def prepared_spread(gy: Array, spec: PoolSpec, divisor: float) -> Callable[[Array, Array], None]:
    """The gradient of sums over windows, divided, of arrays ``(gy, gx)`` of which the first lies as this one does."""
    return _prepared_spread(spec, strides_of(gy), name_of(gy.dtype), threads.thread_count(), divisor)


@lru_cache(maxsize=128)
def _prepared_spread(spec: PoolSpec, *geometry: Any) -> job.Job:
    spreading: job.Job = _SPREADS[spec.layout].spread(spec, *geometry)
    return spreading


def pools_indexed(dtype: np.dtype, spec: PoolSpec, limit: int) -> bool:
    """Whether such a max pooling with indices is taken."""
    return _here(name_of(dtype)) and indexed.takes(name_of(dtype), spec, limit)


def takes_weight_gradient(dtype: str, spec: ConvSpec, limit: int) -> bool:
    """Whether the gradient of such a convolution's weight is taken."""
    if not _here(dtype) or 0 in (spec.batch, spec.channels, spec.filters, *spec.out_size):
        return False
    return direct.workspace(dtype, spec) <= limit


def winograd_gradient_threads(dtype: str, spec: ConvSpec, limit: int) -> int:
    """How many compute it in Winograd's domain, or 0."""
    return _winograd_gradient_threads(dtype, spec, limit, threads.thread_count())


@lru_cache(maxsize=1024)
def _winograd_gradient_threads(dtype: str, spec: ConvSpec, limit: int, free: int) -> int:
    return winograd_gradient.members(dtype, spec, limit, free) if _here(dtype) else 0


def _here(dtype: str) -> bool:
    """Whether there are kernels for the dtype, and for this processor at all."""
    return dtype in FLOATS and machine() is not None
