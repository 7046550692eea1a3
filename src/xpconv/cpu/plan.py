"""From a spec to an algorithm: pure, so that it can be tested and printed without computing anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from xpconv.plan import Plan, operations
from xpconv.spec import ConvSpec, Windows

# Rates of one core, from which only ratios matter. Measured with NumPy 2.4 on two cores of an AMD Zen 3: patches are
# copied at about 0.5e9 elements a second and multiplied at 40e9 operations a second; a tap of a depthwise or a
# single-channel convolution costs one pass over the result; double-precision transforms run at 1.5e9 operations a
# second.
_COPIES = 0.5e9
_PRODUCTS = 40e9
_PASSES = 0.6e9
_TRANSFORMS = 1.5e9


@dataclass(frozen=True)
class Tile:
    """Images and rows of the result that are computed in one product."""

    images: slice
    rows: slice


@lru_cache(maxsize=4096)
def conv_plan(spec: ConvSpec, itemsize: int, inexact: bool, method: str, limit: int) -> Plan:
    """The plan for one forward convolution; `inexact` is false for integers, whose sums must not be rounded."""
    seconds = expected_seconds(spec)
    if method == "auto":
        candidates = seconds if inexact else {name: seconds[name] for name in ("direct", "gemm")}
        method = min(candidates, key=candidates.__getitem__)
        reason = "the least expected time: " + ", ".join(f"{name} {s:.2g} s" for name, s in candidates.items())
    else:
        reason = "asked for"
    tile = "the whole result, tap by tap" if method == "direct" else "the whole result"
    if method == "gemm":
        first = next(tiles(spec, row_bytes(spec, itemsize), limit), Tile(slice(0, 0), slice(0, 0)))
        tile = f"{_length(first.images)} of {spec.batch} images, {_length(first.rows)} of {spec.out_size[0]} rows"
    return Plan(method, reason, tile, _workspace(spec, itemsize, method, limit))


def expected_seconds(spec: ConvSpec) -> dict[str, float]:
    """What each method is expected to take; only the ratios matter."""
    return {name: cost(spec) for name, cost in _COSTS.items()}


def _length(part: slice) -> int:
    return part.stop - part.start


def _direct_seconds(spec: ConvSpec) -> float:
    """One pass over the result, per tap and channel of a group."""
    passes = math.prod(spec.window) * (spec.channels // spec.groups)
    return passes * spec.batch * math.prod(spec.out_size) * spec.filters / _PASSES


def _gemm_seconds(spec: ConvSpec) -> float:
    """Copying every patch once, and one product; groups are products of their own."""
    patches = spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels
    return patches / _COPIES + operations(spec) / _PRODUCTS + 2e-6 * spec.groups


def _fft_seconds(spec: ConvSpec) -> float:
    """Transforms of input, kernel and result, and the products at every frequency."""
    plane = math.prod(spec.padded_size)
    maps = spec.batch * (spec.channels + spec.filters) + spec.channels * spec.filters // spec.groups
    transforms = 2.5 * plane * max(math.log2(max(plane, 2)), 1) * maps
    products = 4 * plane * spec.batch * spec.channels * spec.filters // spec.groups
    return 1e-4 + (transforms + products) / _TRANSFORMS


_COSTS = {"direct": _direct_seconds, "gemm": _gemm_seconds, "fft": _fft_seconds}


def _workspace(spec: ConvSpec, itemsize: int, method: str, limit: int) -> int:
    padded = spec.batch * math.prod(spec.padded_size) * spec.channels * itemsize if spec.padded_size != spec.size else 0
    if method == "gemm":
        largest = next(tiles(spec, row_bytes(spec, itemsize), limit), Tile(slice(0, 0), slice(0, 0)))
        return padded + _length(largest.images) * _length(largest.rows) * row_bytes(spec, itemsize)
    if method == "fft":
        maps = spec.batch * (spec.channels + spec.filters) + spec.channels * spec.filters // spec.groups
        return padded + 8 * math.prod(spec.padded_size) * maps
    return padded + spec.batch * math.prod(spec.out_size) * spec.filters * itemsize


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
