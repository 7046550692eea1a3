"""From a spec to an algorithm: pure, so that it can be tested and printed without computing anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from xpconv.plan import Plan, conv_operations
from xpconv.spec import ConvSpec, Windows

# Per second, of one core; only ratios matter. Fitted to what benchmarks/methods.py measured with NumPy 2.4 on an AMD
# Zen 3, where they are right within a factor of two.
_COPIES = 1.0e9  # elements of patches, in long runs
_PRODUCTS = 85e9  # operations of a matrix product
_PASSES = 2.0e9  # elements added to the result
_COMPILED = 200e9  # operations of the compiled tiles, of which filters beyond the last whole panel are wasted
_TRANSFORMS = 4.0e9  # operations of a transform in double precision

# Seconds, of one array operation.
_TAP = 4.5e-6
_CALL = 50e-6  # of the compiled kernels: weights packed, tables found, threads asked
_GROUP = 10e-6
_SPECTRUM = 50e-6


@dataclass(frozen=True)
class Tile:
    """Images and rows of the result that are computed in one product."""

    images: slice
    rows: slice


@lru_cache(maxsize=4096)
def conv_plan(spec: ConvSpec, itemsize: int, spectral: bool, method: str, limit: int, computed: int = 0) -> Plan:
    """The plan for one forward convolution.

    `spectral` says whether the dtype bears a spectrum's rounding, `computed` how many filters the compiled kernels
    compute, those that fill up their tiles included, 0 where they do not take the convolution.
    """
    seconds, compiled = expected_seconds(spec), direct_is_compiled(spec, computed)
    if compiled:
        seconds["direct"] = _compiled_seconds(spec, computed)
    if method == "auto":
        candidates = seconds if spectral else {name: seconds[name] for name in ("direct", "gemm")}
        method = min(candidates, key=candidates.__getitem__)
        reason = "the least expected time: " + ", ".join(f"{name} {s:.2g} s" for name, s in candidates.items())
        reason += "; gemm where a value is not finite" if method == "fft" else ""
    else:
        reason = "asked for"
    padded = spec.batch * math.prod(spec.padded_size) * spec.channels * itemsize if spec.padded_size != spec.size else 0
    if method == "gemm":
        tile, workspace = tiling(spec, itemsize, limit)
    elif method == "direct" and compiled:
        tile = "compiled: pixels by filters in registers, rows gathered block by block"
        padded, workspace = 0, math.prod(spec.window) * spec.channels // spec.groups * computed * itemsize
    elif method == "direct":
        tile = "the whole result, tap by tap"
        workspace = spec.batch * math.prod(spec.out_size) * spec.filters * itemsize
    else:
        tile, workspace = "the whole result", _spectra_bytes(spec)
    return Plan(method, reason, tile, padded + workspace)


@lru_cache(maxsize=4096)
def spectra_plan(spec: ConvSpec, side: str) -> Plan | None:
    """The plan of the "input" or the "weight" gradient as a convolution of spectra, where that beats the usual way."""
    if spec.padding_mode != "zeros":
        return None
    adjoint, usual = (spec.input_adjoint, "direct") if side == "input" else (spec.weight_adjoint, "gemm")
    seconds, otherwise = expected_seconds(adjoint)["fft"], expected_seconds(spec)[usual]
    if seconds >= otherwise:
        return None
    reason = f"the least expected time: fft of the adjoint {seconds:.2g} s, {usual} {otherwise:.2g} s"
    return Plan("fft", reason, "the whole result", _spectra_bytes(adjoint))


def tiling(spec: ConvSpec, itemsize: int, limit: int) -> tuple[str, int]:
    """What is computed at a time when patches are copied, in words, and the bytes of its patches."""
    largest = next(tiles(spec, row_bytes(spec, itemsize), limit), Tile(slice(0, 0), slice(0, 0)))
    images, rows = (part.stop - part.start for part in (largest.images, largest.rows))
    words = f"{images} of {spec.batch} images, {rows} of {spec.out_size[0]} rows"
    return words, images * rows * row_bytes(spec, itemsize)


def expected_seconds(spec: ConvSpec) -> dict[str, float]:
    """What each method is expected to take; only the ratios matter."""
    return {name: cost(spec) for name, cost in _COSTS.items()}


def direct_is_compiled(spec: ConvSpec, computed: int) -> bool:
    """Whether "direct" is left to the compiled kernels, which compute so many filters, 0 where they take no such call.

    A window of one is a single product, which BLAS does at once: there the kernels took 1.4 times as long.
    """
    return computed > 0 and math.prod(spec.window) > 1 and _compiled_seconds(spec, computed) < _direct_seconds(spec)


def _compiled_seconds(spec: ConvSpec, computed: int) -> float:
    """Products at the machine's full speed, those of the filters that fill up the tiles included."""
    return conv_operations(spec) / max(spec.filters, 1) * computed / _COMPILED + _CALL


def _direct_seconds(spec: ConvSpec) -> float:
    """One pass over the result per tap; where a group has several channels, of products that a matrix makes."""
    taps, results = math.prod(spec.window), spec.batch * math.prod(spec.out_size) * spec.filters
    passes = taps * (results / _PASSES + _TAP)
    if spec.groups == spec.channels:
        return passes
    return passes + conv_operations(spec) / _PRODUCTS + taps * spec.groups * _TAP


def _gemm_seconds(spec: ConvSpec) -> float:
    """Copying every patch once, the slower the shorter the runs, and one product per group."""
    patches = spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels
    run = max(spec.window[-1] * spec.channels // spec.groups, 1)
    return patches * (1 + 6 / run) / _COPIES + conv_operations(spec) / _PRODUCTS + spec.groups * _GROUP


def _fft_seconds(spec: ConvSpec) -> float:
    """Transforms of input, kernel and result, and the products at every frequency."""
    plane = math.prod(spec.padded_size)
    maps = spec.batch * (spec.channels + spec.filters) + spec.channels * spec.filters // spec.groups
    transforms = 2.5 * plane * max(math.log2(max(plane, 2)), 1) * maps
    products = 4 * plane * spec.batch * spec.channels * spec.filters // spec.groups
    return _SPECTRUM + (transforms + products) / _TRANSFORMS


_COSTS = {"direct": _direct_seconds, "gemm": _gemm_seconds, "fft": _fft_seconds}


def _spectra_bytes(spec: ConvSpec) -> int:
    """Input, kernel and result in double precision, and the spectra of each, half as many complex numbers."""
    maps = spec.batch * (spec.channels + spec.filters) + spec.channels * spec.filters // spec.groups
    return 2 * 8 * math.prod(spec.padded_size) * maps


def row_bytes(spec: ConvSpec, itemsize: int) -> int:
    """Bytes of the patches of one row of the result."""
    return math.prod(spec.out_size[1:]) * math.prod(spec.window) * (spec.channels // spec.groups) * itemsize


def tiles(spec: Windows, bytes_per_row: int, limit: int) -> Iterator[Tile]:
    """Cut the result into tiles whose patches stay below `limit`: whole images, or rows of one image."""
    height = spec.out_size[0]
    rows = max(1, limit // max(bytes_per_row, 1))
    if rows >= height:
        images = rows // height
        for n in range(0, spec.batch, images):
            yield Tile(slice(n, min(n + images, spec.batch)), slice(0, height))
        return
    for n in range(spec.batch):
        for row in range(0, height, rows):
            yield Tile(slice(n, n + 1), slice(row, min(row + rows, height)))
