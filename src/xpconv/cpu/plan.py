"""From a spec to an algorithm: pure, so that it can be tested and printed without computing anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from xpconv.cpu import overlap, strips, winograd, winograd_blocks
from xpconv.cpu.choice import ROUNDING, WORTH, chosen, rejections
from xpconv.cpu.products import KEPT_BYTES
from xpconv.plan import Plan, conv_operations
from xpconv.spec import ConvSpec, PoolSpec, Windows
from xpconv.workspace import DEFAULT_LIMIT

# Per second; only ratios matter. Fitted with NumPy 2.4 to two cores of an AMD Zen 3, and where products and copies are
# shared among threads, to two cores of a Zen 5, whose times are a fifth of these; right within a factor of two.
_COPIES = 1.0e9  # elements of patches, in long runs
_PRODUCTS = 85e9  # operations of a matrix product
_READ_ONCE = 1.5e9  # elements of a weight that BLAS reads
_SMALL_PRODUCTS = 76e9  # operations of the products of Winograd's tiles
_TILES = 1.8e9  # elements of Winograd's tiles, before and after their transforms
_WEIGHTS = 0.66e9  # elements of a weight transformed
_FRESH_WEIGHTS = 0.25e9  # of those, where they are too many to be kept from call to call
_PASSES = 2.6e9  # elements multiplied and added to the result
_SUMS = 0.9e9  # elements of a product added to others
_COMPILED = 200e9  # operations of the compiled tiles, of which filters beyond the last whole panel are wasted
_READ = 20e9  # elements of windows read, a vector of channels at a time
_POOLED = 1_000  # elements of windows that NumPy reads while the kernels are being called
_FILTERED = 95e9  # products of a filter of planes, lanes along the columns
_PASSED = 0.5e9  # elements of planes read and stored
_PACKED = 2.7e9  # elements of a weight put into the tiles' order
_REGISTERED = 3.5e9  # elements of Winograd's tiles transformed in registers
_STREAMED = 8.0e9  # elements of a weight that is read: transformed, and itself, to be told from others
_FAR = 10.0e9  # of those, where they are more than a processor's last cache holds
_NEAR_ELEMENTS = 4_000_000
_TRANSFORMS = 4.0e9  # operations of a transform in double precision
_TILED = 11e9  # of those of tiles that stay in the cache, in single precision
_BANDED = 1.0e9  # elements of signals, or rows of planes, given to products with a band
_SHIFTED = 3.3e9  # elements of planes copied side by side
_TURNED = 0.2e9  # elements of channels that are brought together in planes, and back

# Seconds, of one array operation.
_TAP = 4.5e-6
_CALL = 10e-6  # of the compiled kernels, repeated: weights packed, threads asked
_SMALL = 0.3e-6  # one small product of many
_WOKEN = 250e-6  # another thread
_SPECTRUM = 50e-6
_BANDS = 80e-6
_LOOP = 3e-6


# Below these, handing work over to other threads costs more than it brings.
SINGLE = 1_000_000  # products
READ_SINGLE = 200_000  # elements that windows read, where each channel is by itself


@dataclass(frozen=True)
class Tile:
    """Images and rows of the result that are computed in one product."""

    images: slice
    rows: slice


@dataclass(frozen=True)
class Compiled:
    """What the compiled kernels take of one convolution."""

    filters: int = 0  # that the tiles compute, those that fill them up included; 0 where they do not take it
    depthwise: bool = False
    plane: bool = False
    winograd: bool = False
    threads: int = 1  # that are free


@lru_cache(maxsize=4096)
def conv_plan(
    spec: ConvSpec, itemsize: int, spectral: bool, method: str, limit: int, compiled: Compiled = Compiled()
) -> Plan:
    """The plan for one forward convolution; `spectral` says whether the dtype bears a spectrum's rounding."""
    seconds = expected_seconds(spec, compiled)
    expected: float | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    if method == "auto":
        method, reason = chosen(seconds, spectral)
        expected, rejected = seconds[method], rejections(method, seconds, spectral)
        exact = "direct" if kernel_for(spec, "direct", compiled) else "gemm"
        reason += f"; {exact} where a value is not finite" if method in ROUNDING else ""
    else:
        reason = "asked for"
        if method == "winograd" and not (winograd.fits(spec) and spectral):
            raise ValueError(_no_winograd(spec, spectral))
    padded = spec.batch * math.prod(spec.padded_size) * spec.channels * itemsize if spec.padded_size != spec.size else 0
    kernel = kernel_for(spec, method, compiled)
    if kernel:
        taps = math.prod(spec.window)
        if kernel == "winograd":
            transform = winograd.compiled_for(spec)
            taps = transform.points * transform.terms(spec.window)
        weight = taps * spec.channels // spec.groups * compiled.filters * itemsize
        threads = _threads(spec, kernel, compiled.threads)
        return Plan(method, reason, f"compiled: {_KERNELS[kernel]}", weight, expected, rejected, threads)
    tile, workspace = _numpy_tile(spec, itemsize, method, limit)
    return Plan(method, reason, tile, padded + workspace, expected, rejected)


def _threads(spec: ConvSpec, kernel: str, free: int) -> int:
    """Of those that are free, for a convolution by the kernels of that name."""
    least = READ_SINGLE if kernel == "depthwise" else SINGLE
    return free if conv_operations(spec) // 2 > least else 1


_KERNELS = {
    "direct": "pixels by filters in registers, rows gathered block by block",
    "depthwise": "results by a vector of channels in registers",
    "plane": "rows by vectors of columns in registers; along both axes where the weight is a product",
    "winograd": "tiles transformed in registers, of 4 x 4 or 2 x 2 results, or of 3 or 9 in a row",
}


def _numpy_tile(spec: ConvSpec, itemsize: int, method: str, limit: int) -> tuple[str, int]:
    """What NumPy computes at a time, and the bytes that it takes beside a padded input."""
    by_taps = method == "direct" and direct_by(spec) == "taps" and spec.groups == spec.channels == spec.filters
    if method == "gemm" or by_taps:
        return strips.told(spec, itemsize, limit), strips.workspace(spec, itemsize, limit)
    if method == "direct" and direct_by(spec) != "taps":
        return _DIRECT[direct_by(spec)], limit if direct_by(spec) == "bands" else 0
    if method == "direct":
        return "the whole result, tap by tap", spec.batch * math.prod(spec.out_size) * spec.filters * itemsize
    if method == "winograd":
        transform = winograd.transform_for(spec)
        size = " x ".join(map(str, transform.tile[: transform.axes]))
        return f"blocks of tiles of {size} results", winograd_blocks.workspace(spec, itemsize, limit)
    if is_cut(spec):
        lengths = " x ".join(map(str, overlap.tile_lengths(spec, limit)))
        return f"tiles of {lengths} elements, which overlap", overlap.workspace(spec, limit)
    return "the whole result", _spectra_bytes(spec)


def _no_winograd(spec: ConvSpec, spectral: bool) -> str:
    if not spectral:
        return "method='winograd' computes with fractions, which integers cannot hold; take method='gemm'"
    return (
        "method='winograd' takes windows of 3 by 3 on the last two axes, or of at least 3 on a single one, at stride 1 "
        f"without groups; got window "
        f"{spec.window}, stride {spec.stride}, groups={spec.groups}: take method='auto'"
    )


@lru_cache(maxsize=4096)
def spectra_plan(spec: ConvSpec, side: str) -> Plan | None:
    """The plan of the "input" or the "weight" gradient as a convolution of spectra, where that beats the usual way."""
    if spec.padding_mode != "zeros":
        return None
    if side == "input":
        adjoint, usual, otherwise = spec.input_adjoint, "phases", _phases_seconds(spec)
    else:
        adjoint, usual, otherwise = spec.weight_adjoint, "gemm", _gemm_seconds(spec)
    seconds = _whole_fft_seconds(adjoint)
    if seconds >= otherwise:
        return None
    reason = f"the least expected time: fft of the adjoint {seconds:.2g} s, {usual} {otherwise:.2g} s"
    return Plan("fft", reason, "the whole result", _spectra_bytes(adjoint))


def _phases_seconds(spec: ConvSpec) -> float:
    """The phases of an input gradient, each by the fastest way without spectra."""
    phases = [phase.spec for phase in spec.input_phases if 0 not in phase.spec.window]
    return sum(min(_direct_seconds(phase), _gemm_seconds(phase), _winograd_seconds(phase)) for phase in phases)


def tiling(spec: ConvSpec, itemsize: int, limit: int) -> tuple[str, int]:
    """What is computed at a time when patches are copied, in words, and the bytes of its patches."""
    largest = next(tiles(spec, row_bytes(spec, itemsize), limit), Tile(slice(0, 0), slice(0, 0)))
    images, rows = (part.stop - part.start for part in (largest.images, largest.rows))
    words = f"{images} of {spec.batch} images, {rows} of {spec.out_size[0]} rows"
    return words, images * rows * row_bytes(spec, itemsize)


def expected_seconds(spec: ConvSpec, compiled: Compiled = Compiled()) -> dict[str, float]:
    """What each method is expected to take, infinite where it does not apply; only the ratios matter."""
    seconds = {name: cost(spec) for name, cost in _COSTS.items()}
    for method in ("direct", "winograd"):
        if kernel := kernel_for(spec, method, compiled):
            seconds[method] = _compiled_seconds(spec, compiled)[kernel]
    return seconds


@lru_cache(maxsize=4096)
def kernel_for(spec: ConvSpec, method: str, compiled: Compiled) -> str:
    """The compiled kernels that a method is left to, by name; "" for NumPy."""
    seconds = _compiled_seconds(spec, compiled)
    if method == "winograd":
        return method if method in seconds else ""
    seconds.pop("winograd", None)
    if method != "direct" or not seconds:
        return ""
    fastest = min(seconds, key=seconds.__getitem__)
    return fastest if seconds[fastest] < _direct_seconds(spec) else ""


def _compiled_seconds(spec: ConvSpec, compiled: Compiled) -> dict[str, float]:
    """What each of the compiled kernels is expected to take, where they take the convolution."""
    seconds = {}
    if compiled.filters:
        seconds["direct"] = _tiled_seconds(spec, compiled.filters)
    if compiled.depthwise:
        seconds["depthwise"] = _depthwise_seconds(spec)
    if compiled.plane:
        seconds["plane"] = _plane_seconds(spec)
    if compiled.winograd:
        seconds["winograd"] = _compiled_winograd_seconds(spec, max(compiled.filters, spec.filters))
    return seconds


def _tiled_seconds(spec: ConvSpec, computed: int) -> float:
    """Products at the machine's full speed, those of the filters that fill up the tiles included."""
    weight = math.prod(spec.window) * spec.channels // spec.groups * computed
    joined = spec.window[-1] if spec.groups == 1 and spec.dilation[-1] == 1 else 1
    taps = 1 + 1.5 / (joined * spec.channels // spec.groups)  # each is found in a table
    return taps * conv_operations(spec) / max(spec.filters, 1) * computed / _COMPILED + weight / _PACKED + _CALL


def _depthwise_seconds(spec: ConvSpec) -> float:
    """One element read for each product."""
    return conv_operations(spec) / 2 / _READ + _CALL


def _plane_seconds(spec: ConvSpec) -> float:
    """Products at the machine's full speed."""
    return conv_operations(spec) / 2 / _FILTERED + _CALL


def pool_is_compiled(spec: PoolSpec) -> bool:
    """Whether a pooling is so large that calling the compiled kernels takes less than what they save."""
    return spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels > _POOLED


def _compiled_winograd_seconds(spec: ConvSpec, computed: int) -> float:
    """Products at the machine's full speed, those of the filters that fill up the tiles included, tiles to transform,
    and the transformed weight to read.
    """
    transform = winograd.compiled_for(spec)
    terms, (products, _) = transform.terms(spec.window), winograd.operations(spec, transform)
    weight = (transform.points * terms + math.prod(spec.window)) * spec.channels * spec.filters
    maps = sum(-(-count // 16) * 16 for count in (spec.channels, spec.filters))  # a vector of floats at a time
    transformed = products // (2 * terms * spec.channels * spec.filters) * maps
    transforms = (1 if transform.squared else 1 / 2) * transformed / _REGISTERED  # which are told for two axes
    read = weight / (_STREAMED if weight <= _NEAR_ELEMENTS else _FAR)
    multiplied = products / spec.filters * computed / _COMPILED
    return multiplied + transforms + read + 2 * _CALL  # once more to look at the weight


def winograd_gradient_pays(spec: ConvSpec) -> bool:
    """Whether the gradient of the weight is worth its rounding in Winograd's domain."""
    products, _ = winograd.operations(spec, winograd.F4)
    tiles = products // (2 * spec.channels * spec.filters)
    sums = 4 * winograd.F4.points * spec.channels * spec.filters
    seconds = products / _COMPILED + tiles * (spec.channels + spec.filters) / _REGISTERED + sums / _STREAMED + _CALL
    return seconds < WORTH * (conv_operations(spec) / _COMPILED + _CALL)


def _direct_seconds(spec: ConvSpec) -> float:
    """By what NumPy does of them the fastest."""
    return min(cost(spec) for cost in _DIRECT_COSTS.values())


@lru_cache(maxsize=4096)
def direct_by(spec: ConvSpec) -> str:
    """How NumPy sums the products: by a pass for each of the "taps", by "bands" of them, or by its own "loop"."""
    return min(_DIRECT_COSTS, key=lambda name: _DIRECT_COSTS[name](spec))


_DIRECT = {"bands": "blocks of rows, each a product with a band of the taps", "loop": "NumPy's own loop"}


def _loop_seconds(spec: ConvSpec) -> float:
    """Of one signal, by `numpy.correlate`, which is quick for few taps; infinite for anything else."""
    if spec.axes > 1 or (spec.batch, spec.channels, spec.filters, *spec.stride, *spec.dilation) != (1, 1, 1, 1, 1):
        return math.inf
    return spec.out_size[0] * (0.3e-9 * spec.window[0] if spec.window[0] <= _FEW_TAPS else 18e-9) + _LOOP


_FEW_TAPS = 11


def _banded_seconds(spec: ConvSpec) -> float:
    """Elements given to the products, and the products, most of which are with zeros; infinite where groups are wide.

    A signal's rows are read where they lie, a plane's are copied once for every place that a window has in a row.
    """
    if not spec.filters_planes:
        return math.inf
    results = spec.batch * math.prod(spec.out_size) * spec.channels
    if spec.axes == 1:
        return results * (1 / _BANDED + 2 * (spec.reach[0] + 16) / _PRODUCTS) + _BANDS
    places = math.prod(spec.window[1:])
    products = 2 * places * (7 + spec.reach[0]) / _PRODUCTS
    return results * (1 / _BANDED + places / _SHIFTED + products) + _turned_seconds(spec) + _BANDS


def _turned_seconds(spec: ConvSpec) -> float:
    """Of channels brought together in planes, and of results brought back."""
    results = spec.batch * math.prod(spec.out_size) * spec.channels
    return 2 * results / _TURNED if spec.channels > 1 and spec.layout == "channels_last" else 0


def may_separate(spec: ConvSpec) -> bool:
    """Whether it is worth looking whether a weight is a sum of few products of filters of one axis each."""
    return spec.filters_planes and spec.axes > 1 and min(spec.window) > 1 and conv_operations(spec) > _SEPARATED


_SEPARATED = 2_000_000  # operations that take as long as to look


def passes_pay(spec: ConvSpec, products: int = 1) -> bool:
    """Whether the compiled kernels filter planes along both axes, so many times, faster than at once."""
    if spec.axes != 2 or not may_separate(spec):
        return False
    (down, across), passed = spec.window, _FILTERED / _PASSED
    return down * across + passed > products * (down + across + 2 * passed)


def _taps_seconds(spec: ConvSpec) -> float:
    """One pass over the result per tap; where a group has several channels, of products that a matrix makes."""
    taps, results = math.prod(spec.window), spec.batch * math.prod(spec.out_size) * spec.filters
    if spec.groups == spec.channels:
        short = 64 / spec.filters if spec.filters > spec.channels else 0  # loops over the filters of a result
        return taps * (results * (1 + short) / _PASSES + _TAP)
    turned = 3 if spec.groups > 1 else 1  # groups are brought together, and back
    return taps * (turned * results / _SUMS + _TAP + spec.groups * _TAP) + 2 * conv_operations(spec) / _PRODUCTS


_DIRECT_COSTS = {"taps": _taps_seconds, "bands": _banded_seconds, "loop": _loop_seconds}


def _gemm_seconds(spec: ConvSpec) -> float:
    """The products, and what is copied for them: patches, the slower the shorter their runs, or sums of pieces."""
    results, taps = spec.batch * math.prod(spec.out_size), math.prod(spec.window)
    patches = results * taps * spec.channels
    if strips.by_blas(spec):
        copied = patches * (1 + 6 / max(spec.window[-1] * spec.channels, 1)) / _COPIES if taps > 1 else 0
        return conv_operations(spec) / _PRODUCTS + copied + taps * spec.channels * spec.filters / _READ_ONCE + _CALL
    shared = _WOKEN if strips.is_shared(spec) else 0
    if strips.copies(spec):
        run = max(spec.window[-1] * spec.channels, 1)
        return conv_operations(spec) / _PRODUCTS + patches * (1 + 6 / run) / _COPIES + shared + _CALL
    blocks, pieces = strips.blocks(spec), strips.pieces(spec)
    products = 2 * patches * spec.filters // blocks
    calls = pieces * (results // max(spec.out_size[0], 1) + 1) * blocks
    return products / _PRODUCTS + pieces * results * spec.filters / _SUMS + calls * _SMALL + shared + _CALL


def _fft_seconds(spec: ConvSpec) -> float:
    """By whichever NumPy does of them: the whole input, or of single planes tiles that overlap."""
    return min(_whole_fft_seconds(spec), _cut_fft_seconds(spec))


@lru_cache(maxsize=4096)
def is_cut(spec: ConvSpec) -> bool:
    """Whether single planes are transformed in tiles."""
    return _cut_fft_seconds(spec) < _whole_fft_seconds(spec)


def _cut_fft_seconds(spec: ConvSpec) -> float:
    if not spec.filters_planes:
        return math.inf
    return overlap.operations(spec, DEFAULT_LIMIT) / _TILED + _turned_seconds(spec) + _SPECTRUM


def _whole_fft_seconds(spec: ConvSpec) -> float:
    """Transforms of input, kernel and result, and the products at every frequency."""
    plane = math.prod(spec.padded_size)
    maps = spec.batch * (spec.channels + spec.filters) + spec.channels * spec.filters // spec.groups
    transforms = 2.5 * plane * max(math.log2(max(plane, 2)), 1) * maps
    products = 4 * plane * spec.batch * spec.channels * spec.filters // spec.groups
    return _SPECTRUM + (transforms + products) / _TRANSFORMS


def _winograd_seconds(spec: ConvSpec) -> float:
    """Tiles copied and transformed, one product for each of their points, and the weight transformed."""
    if not winograd.fits(spec):
        return math.inf
    transform = winograd.transform_for(spec)
    products, transforms = winograd.operations(spec, transform)
    points, terms = transform.points, transform.terms(spec.window)
    tiles = products // (2 * points * terms * spec.channels * spec.filters or 1)
    moved = points * tiles * (2 * spec.channels + 1.5 * spec.filters)
    weight = points * terms * spec.channels * spec.filters
    transformed = weight / (_WEIGHTS if 4 * weight <= KEPT_BYTES else _FRESH_WEIGHTS)
    return (products + transforms) / _SMALL_PRODUCTS + moved / _TILES + transformed + _WOKEN


_COSTS = {"direct": _direct_seconds, "gemm": _gemm_seconds, "winograd": _winograd_seconds, "fft": _fft_seconds}


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
        images = rows // max(height, 1)
        for n in range(0, spec.batch, images):
            yield Tile(slice(n, min(n + images, spec.batch)), slice(0, height))
        return
    for n in range(spec.batch):
        for row in range(0, height, rows):
            yield Tile(slice(n, n + 1), slice(row, min(row + rows, height)))
