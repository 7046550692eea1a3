"""Dask arrays: every chunk of a result is an ordinary call on the parts of chunks that it reads.

Nothing is computed here: `chunks` works out, in integers along each axis, what every chunk of the result reads, and
gives a lazy array. What is not in this module is made by the agnostic engine of Dask's own operations.
"""

from __future__ import annotations

from typing import Any

from xpconv.chunks import convolutions, poolings, scattering, telling
from xpconv.chunks.graph import Lifted, without_axes
from xpconv.plan import Arrays, Plan
from xpconv.request import Index
from xpconv.spec import AdaptiveSpec, Array, ConvSpec, PoolSpec, ScatterSpec

METHODS = ("auto", "direct", "gemm", "winograd", "fft")  # of NumPy and CuPy, whose chunks these are


def plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan:
    """What the engine of the chunks does with one of them."""
    result = globals()[operation](*arrays, spec, **options)
    return telling.told(operation, result[0] if isinstance(result, tuple) else result, arrays, options)


def lifted(array: Array, index: Index) -> Lifted:
    """An array with the axes that it lacks, which tasks add to the blocks that they read."""
    return Lifted(array, index)


def dropped(result: Array, index: Index) -> Array:
    """The result without the axes that the user's arrays did not have."""
    return without_axes(result, index)


def conv(
    x: Array, w: Array, bias: Array | None, spec: ConvSpec, *, fill_value: complex, activation: str | None,
    precision: str, method: str,
) -> Array:  # fmt: skip
    """A convolution for each chunk of the result."""
    options = {"fill_value": fill_value, "activation": activation, "precision": precision, "method": method}
    return convolutions.conv(x, w, bias, spec, options)


def conv_grad_input(gy: Array, w: Array, bias: Array | None, spec: ConvSpec, *, activation: str | None = None) -> Array:
    """For each chunk of the input the adjoint of the windows that reach it."""
    return convolutions.conv_grad_input(gy, w, bias, spec, activation)


def conv_grad_weight(x: Array, gy: Array, spec: ConvSpec) -> Array:
    """The sum of what every block of `gy` gives."""
    return convolutions.conv_grad_weight(x, gy, spec)


# --- Patches and pooling ----------------------------------------------------------------------------------------------


def unfold(x: Array, spec: PoolSpec) -> Array:
    """The patches of each chunk."""
    return poolings.unfold(x, spec)


def fold(patches: Array, spec: PoolSpec) -> Array:
    """For each chunk of the result the patches that reach it, added up."""
    return poolings.fold(patches, spec)


def max_pool(x: Array, spec: PoolSpec, *, return_indices: bool) -> Any:
    """The maxima of each chunk, and where they lie in the whole plane."""
    return poolings.pool("max_pool", x, spec, {"return_indices": return_indices}, x.dtype)


def sum_pool(x: Array, spec: PoolSpec) -> Array:
    """The sums of each chunk."""
    return poolings.pool("sum_pool", x, spec, {}, x.dtype)


def avg_pool(x: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """The means of each chunk."""
    return poolings.pool("avg_pool", x, spec, {"count_include_pad": count_include_pad, "divisor": divisor}, x.dtype)


def lp_pool(x: Array, spec: PoolSpec, *, p: float) -> Array:
    """The norms of each chunk, real for complex numbers."""
    return poolings.pool("lp_pool", x, spec, {"p": p}, abs(x._meta).dtype)


def avg_pool_grad(gy: Array, spec: PoolSpec, *, count_include_pad: bool, divisor: float | None) -> Array:
    """For each chunk of the input the shares of the windows that reach it, added up."""
    return poolings.avg_pool_grad(gy, spec, count_include_pad=count_include_pad, divisor=divisor)


def adaptive_max_pool(x: Array, spec: AdaptiveSpec, *, return_indices: bool) -> Any:
    """The maxima of some windows for each chunk, and where they lie in the whole plane."""
    return poolings.adaptive("adaptive_max_pool", x, spec, {"return_indices": return_indices})


def adaptive_avg_pool(x: Array, spec: AdaptiveSpec) -> Array:
    """The means of some windows for each chunk."""
    return poolings.adaptive("adaptive_avg_pool", x, spec, {})


def max_unpool(y: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every value sent to the chunk that holds its index."""
    return scattering.scatter("max_unpool", y, indices, spec, 0)


def max_pool_grad(gy: Array, indices: Array, spec: ScatterSpec) -> Array:
    """Every gradient sent to the chunk that holds its index; -1 to none."""
    return scattering.scatter("max_pool_grad", gy, indices, spec, -1)
