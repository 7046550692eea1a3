"""What NumPy's engine does with a call, told without doing it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xpconv.cpu import strips
from xpconv.engines import agnostic, compiled, gradient_pieces, numpy_pools, piecewise, pooled
from xpconv.engines.methods import itemsize, spectral_gradient, spread_gradient, spread_intended
from xpconv.plan import Arrays, Plan, conv_operations
from xpconv.spec import Array, ConvSpec
from xpconv.workspace import current_limit


def plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan | None:
    """What the engine does with these arguments; None for what it leaves to the agnostic engine."""
    plan = _plan(operation, arrays, spec, options)
    if arrays[0] is None or not _awaits_kernels(operation, arrays[0], spec, options):
        return plan
    return compiled.meanwhile(plan or agnostic.plan(operation, arrays, spec, options))


def _plan(operation: str, arrays: Arrays, spec: Any, options: dict[str, Any]) -> Plan | None:
    """What it does now."""
    x = arrays[0]
    if operation == "conv":
        return piecewise.plan(x, spec, options["method"])
    if operation == "conv_grad_input" and spec.padding_mode == "constant":  # what lies around x has no gradient
        spec = replace(spec, padding_mode="zeros")
    if operation == "conv_grad_input" and spec.padding_mode == "zeros" and is_direct_adjoint(spec):
        return piecewise.plan(x, spec.input_adjoint, "auto")
    side = operation.removeprefix("conv_grad_")
    if side != operation and (spectra := spectral_gradient(x, spec, side)):
        return spectra
    if operation == "conv_grad_input" and x is not None and spread_intended(x, inside := _inside(x, spec)):
        awaited = Plan("direct", f"{_DIRECT[operation]}, as {compiled.found().why_not_ready()}")
        return spread_gradient(x, inside) or awaited
    if operation == "conv_grad_weight" and x is not None and compiled.takes_gradient(x.dtype, spec):
        if some := compiled.winograd_gradient_threads(x.dtype, spec):
            tile = "compiled: blocks of tiles, added in registers"
            return Plan("winograd", "a quarter of the products", tile, threads=some)
        tile, threads = "compiled: blocks of pixels, added in registers", compiled.threads_for(conv_operations(spec))
        return Plan("direct", "by tiles of channels and filters", tile, threads=threads)
    if operation == "conv_grad_weight":
        if spec.groups > 1:
            return None
        tile, workspace, threads = strips.gradient_told(spec, itemsize(x), current_limit())
        return Plan("gemm", "patches, transposed, times gy", tile, workspace, threads=threads)
    indices = options.get("return_indices", False)
    if x is not None and (by_kernels := pooled.plan(operation, x, spec, indices=indices)):
        return by_kernels
    if indices:
        return None
    if x is not None and operation in numpy_pools.MERGED:
        return numpy_pools.plan(operation, x, spec)
    return Plan("direct", _DIRECT[operation]) if operation in _DIRECT else None


def _awaits_kernels(operation: str, x: Array, spec: Any, options: dict[str, Any]) -> bool:
    """Whether NumPy does what kernels will do once they are there; convolutions are planned so themselves."""
    if operation == "conv_grad_weight":
        spectral = spectral_gradient(x, spec, "weight")
        return not spectral and compiled.fits_gradient(x.dtype, spec) and not compiled.takes_gradient(x.dtype, spec)
    return pooled.is_awaited(operation, x, spec, indices=options.get("return_indices", False))


def _inside(gy: Array, spec: ConvSpec) -> ConvSpec:
    """Whose input gradient is taken: that of the padded input, unless what falls on the padding is taken by itself."""
    apart = spec.padding_mode == "zeros" or gradient_pieces.is_folded(gy, spec)
    return replace(spec, padding_mode="zeros") if apart else spec.valid


_DIRECT = {  # what NumPy does to the whole result at once; the rest it leaves to the agnostic engine
    "conv_grad_input": "one convolution for each phase of the stride",
    "unfold": "the strided windows, copied out",
    "fold": "patches added up, tap by tap",
    "lp_pool": "powers added up, and their roots",
    "adaptive_avg_pool": "means along one axis after the other",
    "avg_pool_grad": "every share added to what its window had, axis by axis",
    "max_unpool": "every value put at its index",
    "max_pool_grad": "every gradient added at its index",
}


def is_direct_adjoint(spec: ConvSpec) -> bool:
    """Whether the input gradient is one convolution, whose plan then says how."""
    return set(spec.stride) == {1}
