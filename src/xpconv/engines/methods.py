"""NumPy's own methods for a convolution, of padded channels-last arrays, and the plan that chooses among them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from xpconv.cpu import image_spectra, overlap, separable, signals, small, strips, winograd_blocks
from xpconv.cpu.choice import ROUNDING
from xpconv.cpu.copies import dense_strides
from xpconv.cpu.costs import direct_by, is_cut, may_separate
from xpconv.cpu.plan import conv_plan, kernel_for, pads_in_blocks, spectra_plan, spread_plan
from xpconv.dtypes import kind_of
from xpconv.engines import agnostic, compiled
from xpconv.engines.agnostic import tap
from xpconv.plan import Plan
from xpconv.spec import Array, ConvSpec
from xpconv.workspace import current_limit


def planned(x: Array, spec: ConvSpec, method: str) -> Plan:
    """How it is computed now: as planned with the compiled kernels, if those that this takes are there."""
    arguments = spec, itemsize(x), is_spectral(x), method, current_limit()
    plan = conv_plan(*arguments, taken := compiled.takes(x.dtype, spec))
    if kernel_for(spec, plan.method, taken) and not compiled.kernel_of(x.dtype, spec, plan.method):
        return compiled.meanwhile(conv_plan(*arguments))
    return plan


def spectral_gradient(x: Array, spec: ConvSpec, side: str) -> Plan | None:
    """The plan of the "input" or the "weight" gradient by spectra; None where they take longer, or would round much."""
    return spectra_plan(spec, side, current_limit()) if is_spectral(x) else None


def spread_gradient(gy: Array, spec: ConvSpec) -> Plan | None:
    """The plan of an input gradient at stride 2 by kernels at once, in Winograd's domain; None where it goes by phases.

    Zeros lie between the elements of `gy`, and no kernel reads them.
    """
    plan = spread_intended(gy, spec)
    return plan if plan and compiled.is_ready("winograd", gy.dtype, spec.input_adjoint) else None


def spread_intended(gy: Array, spec: ConvSpec) -> Plan | None:
    """The same, once the kernels are there."""
    if gy.dtype.char not in "fd" or set(spec.stride) != {2}:
        return None
    return spread_plan(spec, gy.itemsize, compiled.takes(gy.dtype, spec.input_adjoint))


def is_spectral(x: Array) -> bool:
    """Whether spectra, which are computed in double precision, keep what the dtype promises."""
    return kind_of(x) != "integral" and x.dtype.char not in "gG"


def itemsize(x: Array) -> int:
    """Bytes of an element in the dtype that sums are kept in."""
    return max(x.dtype.itemsize, 4) if kind_of(x) == "real floating" else x.dtype.itemsize


def _direct(x: Array, w: Array, spec: ConvSpec) -> Array:
    """Sums of products: of single planes by their axes or by bands, else one pass over the result per tap."""
    if direct_by(spec) == "loop":
        return small.correlation(x, w, spec)
    if _in_bands(spec, x.dtype):
        if may_separate(spec) and (factors := separable.factors(w, spec)):
            return separable.conv(x, w, factors, spec, current_limit())
        return signals.conv(x, w, spec, current_limit())
    if _by_passes(spec, x.dtype):
        return strips.conv(x, w, spec, current_limit())
    if spec.groups != spec.channels:
        return agnostic.total(
            agnostic.product_of_groups(tap(x, spec, o), agnostic.weight_at(w, spec, o), spec.groups) for o in spec.taps
        )
    multiplier = spec.filters // spec.channels
    y = np.zeros((spec.batch, *spec.out_size, spec.channels, multiplier), dtype=x.dtype)
    for o in spec.taps:
        y += tap(x, spec, o)[..., None] * agnostic.weight_at(w, spec, o).reshape(spec.channels, multiplier)
    return y.reshape(spec.batch, *spec.out_size, spec.filters)


_IN_BLAS = "fdFD"  # dtypes that it multiplies


def _in_bands(spec: ConvSpec, dtype: np.dtype) -> bool:
    """Whether a product with a band of the taps makes many sums."""
    return direct_by(spec) == "bands" and dtype.char in _IN_BLAS


def _fft(x: Array, w: Array, spec: ConvSpec) -> Array:
    if _in_tiles(spec, x.dtype):
        return overlap.conv(x, w, spec, current_limit())
    return image_spectra.conv(x, w, spec, current_limit())


def _in_tiles(spec: ConvSpec, dtype: np.dtype) -> bool:
    """Whether spectra are those of tiles, which are computed again one by one where they are not finite."""
    return dtype.char in _IN_BLAS and is_cut(spec)


def gemm(x: Array, w: Array, spec: ConvSpec) -> Array:
    """Matrix products, strip by strip."""
    return strips.conv(x, w, spec, current_limit())


def _winograd(x: Array, w: Array, spec: ConvSpec) -> Array:
    return winograd_blocks.conv(x, w, spec, current_limit())


ALGORITHMS = {"direct": _direct, "gemm": gemm, "winograd": _winograd, "fft": _fft}


def summed(method: str, x: Array, w: Array, spec: ConvSpec, fill: complex) -> Array:
    """The sums of products (N, *out, F) of `x` (N, *size, C), surrounded as the spec says, by one of the methods."""
    x, spec = _as_read(method, x, spec, fill)
    return ALGORITHMS[method](x, w, spec)


def summed_if_finite(method: str, x: Array, w: Array, spec: ConvSpec, fill: complex) -> Array | None:
    """The same; None where a value that is not finite would have spread over a tile or a spectrum."""
    if method not in ROUNDING or (method == "fft" and _in_tiles(spec, x.dtype)):
        return summed(method, x, w, spec, fill)
    with np.errstate(over="ignore", invalid="ignore"):
        x, spec = _as_read(method, x, spec, fill)
        if method == "winograd":
            return winograd_blocks.conv_if_finite(x, w, spec, current_limit())
        y = ALGORITHMS[method](x, w, spec)
    return y if compiled.finite(y) else None


def _as_read(method: str, x: Array, spec: ConvSpec, fill: complex) -> tuple[Array, ConvSpec]:
    """`x` as the method reads it, and what it then does: surrounded, unless it sees to that itself."""
    if spec.padding_mode == "constant" and fill == 0:
        spec = replace(spec, padding_mode="zeros")
    if pads_in_blocks(spec, method):
        return x, spec
    return agnostic.surrounded(x, spec, fill), replace(spec.valid, input_dilation=())


def _by_passes(spec: ConvSpec, dtype: np.dtype) -> bool:
    """Whether every channel is filtered by itself, tap by tap: what BLAS does not multiply as well."""
    return spec.filters_planes and direct_by(spec) != "loop" and not _in_bands(spec, dtype)


def is_product_of_planes(x: Array, spec: ConvSpec) -> bool:
    """Whether channels-first planes are multiplied as they lie: the positions of each side by side, in single precision
    or double.
    """
    if spec.layout != "channels_first" or not strips.is_product(spec) or itemsize(x) != x.itemsize:
        return False
    steps = zip(spec.size, x.strides[2:], dense_strides(spec.size, x.itemsize), strict=True)
    return all(n == 1 or step == dense for n, step, dense in steps)


def products_of_planes(x: Array, w: Array, spec: ConvSpec) -> Array:
    """A product of channels-first planes as they lie, without a transpose: (F, C) times (N, C, positions)."""
    planes = x.reshape(spec.batch, spec.channels, math.prod(spec.size))
    y = strips.products_of_planes(w.reshape(spec.filters, spec.channels), planes, spec)
    return y.reshape(spec.batch, spec.filters, *spec.size)
