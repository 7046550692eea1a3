"""NumPy's own methods for a convolution, of padded channels-last arrays, and the plan that chooses among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xpconv.cpu import joined, overlap, separable, signals, small, strips, winograd_blocks
from xpconv.cpu.choice import ROUNDING
from xpconv.cpu.costs import direct_by, is_cut, may_separate
from xpconv.cpu.plan import Tile, conv_plan, kernel_for, row_bytes
from xpconv.cpu.planes import finite
from xpconv.dtypes import kind_of
from xpconv.engines import agnostic, compiled, fft
from xpconv.engines.agnostic import tap
from xpconv.plan import Plan, conv_operations
from xpconv.spec import Array, ConvSpec
from xpconv.workspace import current_limit


def planned(x: Array, spec: ConvSpec, method: str) -> Plan:
    """How it is computed now: as planned with the compiled kernels, if those that this takes are there."""
    arguments = spec, itemsize(x), is_spectral(x), method, current_limit()
    plan = conv_plan(*arguments, taken := compiled.takes(x.dtype, spec))
    if kernel_for(spec, plan.method, taken) and not compiled.kernel_of(x.dtype, spec, plan.method):
        return compiled.meanwhile(conv_plan(*arguments))
    return plan


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
    if x.dtype.char in _IN_BLAS and direct_by(spec) == "bands":
        if may_separate(spec) and (factors := separable.factors(w, spec)):
            return separable.conv(x, w, factors, spec, current_limit())
        return signals.conv(x, w, spec, current_limit())
    if _by_passes(spec):
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


def _fft(x: Array, w: Array, spec: ConvSpec) -> Array:
    if in_tiles(x, spec):
        return overlap.conv(x, w, spec, current_limit())
    return fft.conv(x, w, spec)


def in_tiles(x: Array, spec: ConvSpec) -> bool:
    """Whether spectra are those of tiles, which are computed again one by one where they are not finite."""
    return x.dtype.char in _IN_BLAS and is_cut(spec)


def gemm(x: Array, w: Array, spec: ConvSpec) -> Array:
    """Matrix products, strip by strip."""
    return strips.conv(x, w, spec, current_limit())


def patches_of(columns: Array, tile: Tile, spec: ConvSpec, length: int) -> Array:
    """The patches of one tile, copied side by side: (positions, length)."""
    block = columns[tile.images, tile.rows]
    return block.reshape(math.prod(block.shape[: spec.axes + 1]), length)


def _winograd(x: Array, w: Array, spec: ConvSpec) -> Array:
    return winograd_blocks.conv(x, w, spec, current_limit())


ALGORITHMS = {"direct": _direct, "gemm": gemm, "winograd": _winograd, "fft": _fft}


def summed(method: str, x: Array, w: Array, spec: ConvSpec, fill: complex) -> Array:
    """The sums of products (N, *out, F) of `x` (N, *size, C), surrounded as the spec says, by one of the methods."""
    x, spec = _as_read(method, x, spec, fill)
    return ALGORITHMS[method](x, w, spec)


def summed_if_finite(method: str, x: Array, w: Array, spec: ConvSpec, fill: complex) -> Array | None:
    """The same; None where a value that is not finite would have spread over a tile or a spectrum."""
    if method not in ROUNDING or (method == "fft" and in_tiles(x, spec)):
        return summed(method, x, w, spec, fill)
    with np.errstate(over="ignore", invalid="ignore"):
        x, spec = _as_read(method, x, spec, fill)
        if method == "winograd":
            return winograd_blocks.conv_if_finite(x, w, spec, current_limit())
        y = ALGORITHMS[method](x, w, spec)
    return y if compiled.finite(y) else None


def _as_read(method: str, x: Array, spec: ConvSpec, fill: complex) -> tuple[Array, ConvSpec]:
    """`x` as the method reads it, and what it then does: surrounded, unless it sees to that itself."""
    zeros = spec.padding_mode == "zeros" or (spec.padding_mode == "constant" and fill == 0)
    if zeros and not spec.input_dilation and _in_blocks(method, spec, x.dtype):
        return x, spec
    return agnostic.surrounded(x, spec, fill), replace(spec.valid, input_dilation=())


def _in_blocks(method: str, spec: ConvSpec, dtype: np.dtype) -> bool:
    """Whether zeros are put around a block of the input at a time, or around nothing, and not around the whole."""
    if method != "direct":
        return method in ("gemm", "winograd")
    return _by_passes(spec) or direct_by(spec) == "loop" or (dtype.char in _IN_BLAS and direct_by(spec) == "bands")


def _by_passes(spec: ConvSpec) -> bool:
    """Whether every channel is filtered by itself, tap by tap."""
    return spec.groups == spec.channels == spec.filters and direct_by(spec) == "taps"


def small_sums(dtype: Any, method: str, spec: ConvSpec, fill: complex) -> Callable[[Array, Array], Any] | None:
    """A small one's sums in one go: a function of x (N, *size, C) and w (*window, C, F); None for what is not small.

    Its result (N, *out, F) is None where it cannot be used.
    """
    surrounds = spec.padding_mode in ("zeros", "constant") and min(min(pads) for pads in spec.padding) >= 0
    if not surrounds or spec.input_dilation or dtype.char not in "fd":
        return None
    if method == "direct" and direct_by(spec) == "bands" and small.is_plane(spec):
        return small.plane(spec, dtype, fill) if small.sums(spec) * dtype.itemsize <= current_limit() else None
    if method == "direct" and direct_by(spec) == "bands" and small.is_signal(spec):
        return small.signal(spec, dtype, fill) if 4 * spec.padded_size[0] * dtype.itemsize <= current_limit() else None
    if method == "fft" and small.is_spectrum(spec):
        held = 8 * math.prod(spec.padded_size) * dtype.itemsize
        return small.spectrum(spec, dtype, fill) if held <= current_limit() else None
    if conv_operations(spec) >= 2 * small.MOST and not (spec.layout == "channels_last" and strips.is_product(spec)):
        return None
    pad = small.padding(spec, dtype, fill)
    if method == "direct" and direct_by(spec) == "loop":
        if fill == 0 and spec.size[0] > small.COPIED:
            return lambda x, w: small.correlation(x, w, spec)
        valid = spec.valid
        return lambda x, w: small.correlation(pad(x), w, valid)
    patches = spec.batch * spec.out_size[0] * row_bytes(spec, dtype.itemsize)
    if method != "gemm" or spec.groups > 1 or patches > current_limit():
        return None
    if joined.results(spec) > 1:
        return _small_joined(spec, small.product(joined.wide(spec), dtype), pad)
    multiply = small.product(spec, dtype)
    return lambda x, w: multiply(pad(x), w)


def products_of_planes(x: Array, w: Array, spec: ConvSpec) -> Array:
    """A product of channels-first planes as they lie, without a transpose: (F, C) times (N, C, positions)."""
    planes = x.reshape(spec.batch, spec.channels, math.prod(spec.size))
    y = strips.products_of_planes(w.reshape(spec.filters, spec.channels), planes, spec)
    return y.reshape(spec.batch, spec.filters, *spec.size)


def _small_joined(
    spec: ConvSpec, multiply: Callable[[Array, Array], Array], pad: Callable[[Array], Array]
) -> Callable[[Array, Array], Array | None]:
    """A function of x and w: a product of results beside each other, or None if one is not finite."""
    weight, shape = joined.wide_weight(spec), (spec.batch, *spec.out_size, spec.filters)

    def summed(x: Array, w: Array) -> Array | None:
        with np.errstate(over="ignore", invalid="ignore"):
            y = multiply(pad(x), weight(w))
        return y.reshape(shape) if finite(y) else None

    return summed
