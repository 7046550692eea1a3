"""From a spec to an algorithm: pure, so that it can be tested and printed without computing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from xpconv.cpu import costs, image_spectra, overlap, pieces, strips, tiled_spectra, winograd, winograd_blocks
from xpconv.cpu.choice import ROUNDING, WORTH, WORTH_OF_SUMS, chosen, rejections
from xpconv.plan import Plan, conv_operations
from xpconv.spec import ConvSpec, PoolSpec

# Per second, of the compiled kernels; only ratios matter, to these and to those of NumPy's methods in cpu/costs.py.
_COMPILED = 200e9  # operations of the compiled tiles, of which filters beyond the last whole panel are wasted
_READ = 20e9  # elements of windows read, a vector of channels at a time
_POOLED = 1_000  # elements of windows that NumPy reads while the kernels are being called
_FILTERED = 95e9  # products of a filter of planes, lanes along the columns
_BANDED = 210e9  # products of a signal with a band of its taps, which the tiles of a matrix product compute
_BESIDE_TAPS = 31  # rows of a band beside those of the taps, of 32 columns; narrower vectors have fewer
_FEWEST_RESULTS = 128  # of a signal
_MOST_TAPS = 4096  # of a band
_SPECTRAL = 19e9  # elements of tiles times factors of two of their transforms, as `tiled_spectra` counts them
_PASSED = 0.5e9  # elements of planes read and stored
_PACKED = 5e9  # elements of a weight put into the tiles' order
_REGISTERED = 7.0e9  # elements of tiles of F(4x4, 3x3) transformed in registers
_STREAMED = 8.0e9  # elements of a weight that is read: transformed, and itself, to be told from others
_FAR = 10.0e9  # of those, where they are more than a processor's last cache holds
_BESIDE = 7.0e9  # of those, while vectors that are not wide are multiplied
_NEAR_ELEMENTS = 4_000_000

# Below these, handing work over to other threads costs more than it brings.
SINGLE = 1_000_000  # products
READ_SINGLE = 200_000  # elements that windows read, where each channel is by itself


@dataclass(frozen=True)
class Compiled:
    """What the compiled kernels take of one convolution."""

    filters: int = 0  # that the tiles compute, those that fill them up included; 0 where they do not take it
    depthwise: bool = False
    plane: bool = False
    winograd: float = 0  # the share of the threads that have room for what they transform
    spectra: bool = False  # of tiles of planes
    threads: int = 1  # that are free
    wide: bool = True  # 64 bytes at once, which multiply twice as much as 32 while as much is read


@lru_cache(maxsize=4096)
def conv_plan(
    spec: ConvSpec, itemsize: int, spectral: bool, method: str, limit: int, compiled: Compiled = Compiled()
) -> Plan:
    """The plan for one forward convolution; `spectral` says whether the dtype bears a spectrum's rounding."""
    expected: float | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    if method == "auto":
        method, reason, expected, rejected = _expected_fastest(spec, itemsize, spectral, limit, compiled)
        exact = "direct" if kernel_for(spec, "direct", compiled) else "gemm"
        reason += f"; {exact} where a value is not finite" if method in ROUNDING else ""
    else:
        reason = "asked for"
        if method == "winograd" and not (winograd.fits(spec) and spectral):
            raise ValueError(_no_winograd(spec, spectral))
    kernel = kernel_for(spec, method, compiled)
    if kernel:
        taps = math.prod(spec.window)
        if kernel == "winograd":
            transform = winograd.compiled_for(spec)
            taps = transform.points * transform.terms(spec.window)
        weight = taps * spec.channels // spec.groups * compiled.filters * itemsize
        if kernel == "spectra":
            weight = 2 * math.prod(tiled_spectra.lengths(spec)) * spec.channels * itemsize
        share = compiled.winograd if kernel == "winograd" else 1
        threads = _threads(spec, kernel, round(share * compiled.threads))
        tile = _KERNELS["bands" if kernel == "plane" and is_banded(spec) else kernel]
        return Plan(method, reason, f"compiled: {tile}", weight, expected, rejected, threads)
    tile, workspace = _numpy_tile(spec, itemsize, spectral, method, limit)
    if not pads_in_blocks(spec, method):
        workspace += padded_bytes(spec, itemsize)
    return Plan(method, reason, tile, workspace, expected, rejected)


def _expected_fastest(
    spec: ConvSpec, itemsize: int, spectral: bool, limit: int, compiled: Compiled
) -> tuple[str, str, float, tuple[tuple[str, str], ...]]:
    """The method that is expected to be fastest within the limit, why, in what time, and why not the others."""
    seconds, large = expected_seconds(spec, compiled), []
    if not costs.is_cut(spec) and not kernel_for(spec, "fft", compiled):
        seconds["fft"] = _spectral_seconds(spec, limit)
        if seconds["fft"] == math.inf:
            large.append(("fft", "the spectra of its smallest piece take more than the workspace limit"))
            del seconds["fft"]
    worth = _worth(spec, compiled)
    method, reason = chosen(seconds, spectral, worth)
    by_numpy = method == "winograd" and not kernel_for(spec, method, compiled)
    if by_numpy and not winograd_blocks.is_within(spec, itemsize, limit):
        large.append((method, "a row of its tiles takes more than the workspace limit"))
        del seconds[method]
        method, reason = chosen(seconds, spectral, worth)
    return method, reason, seconds[method], (*rejections(method, seconds, spectral, worth), *large)


def _worth(spec: ConvSpec, compiled: Compiled) -> dict[str, float]:
    """The share of the time of a method that does not round which one that does may take.

    With 512 channels F(2x2, 3x3) errs by 9e-7 of the largest result, and sums by 5e-7; at stride 2 it errs by 5e-7 with
    128, and sums by 9e-7. On two cores of an Emerald Rapids, by it and directly, N=1: 3x3 512@7 1.13 and 1.53 ms, 512@6
    0.91 and 1.19, 512@5 0.85 and 0.78; of stride 2, N=8: 128@56 5.4 and 6.8 ms. Where vectors are multiplied in halves
    the former was not measured.
    """
    worth = dict.fromkeys(ROUNDING, WORTH)
    if kernel_for(spec, "winograd", compiled):
        transform = winograd.compiled_for(spec)
        if transform.stride > 1 or (transform is winograd.F2 and compiled.wide):
            worth["winograd"] = WORTH_OF_SUMS
    return worth


def _spectral_seconds(spec: ConvSpec, limit: int) -> float:
    """Of spectra of the whole input, or of pieces that keep to the limit; infinite where none does."""
    most = pieces.share(limit)
    if image_spectra.least_bytes(spec) <= most or 0 in (*spec.x_shape, *spec.w_shape, *spec.y_shape):
        return costs.whole_fft_seconds(spec, limit)
    found = None if spec.input_dilation else pieces.cut(spec, image_spectra.least_bytes, most)
    return len(found) * costs.whole_fft_seconds(pieces.part_of_piece(spec, found[0]), most) if found else math.inf


def pads_in_blocks(spec: ConvSpec, method: str) -> bool:
    """Whether NumPy surrounds a block of the input at a time, or nothing, and not the whole; only zeros can be."""
    if spec.padding_mode != "zeros" or spec.input_dilation:
        return False
    return method != "direct" or spec.filters_planes


def _threads(spec: ConvSpec, kernel: str, free: int) -> int:
    """Of those that are free, for a convolution by the kernels of that name."""
    least = READ_SINGLE if kernel == "depthwise" else SINGLE
    return free if conv_operations(spec) // 2 > least else 1


_KERNELS = {
    "direct": "pixels by filters in registers, rows gathered block by block",
    "depthwise": "results by a vector of channels in registers",
    "plane": "rows by vectors of columns in registers; along both axes where the weight is a product",
    "bands": "groups of results in registers, a product with a band of the taps",
    "winograd": "tiles transformed in registers, of 2 x 2 to 4 x 4 results, or of 3 or 9 in a row",
    "spectra": "tiles of the input that overlap, two at a time",
}


_DIRECT = {
    "bands": "blocks of rows, each a product with a band of the taps",
    "patches": "all taps of all windows side by side",
    "loop": "NumPy's own loop",
}


def _numpy_tile(spec: ConvSpec, itemsize: int, spectral: bool, method: str, limit: int) -> tuple[str, int]:
    """What NumPy computes at a time, and the bytes that it takes beside a padded input."""
    read = spec.batch * spec.out_size[0] * row_bytes(spec, itemsize)
    if method == "gemm" and spectral and strips.is_product(spec) and read <= limit:
        return "the whole input, as it lies", 0
    by_taps = method == "direct" and spec.filters_planes and costs.direct_by(spec) == "taps"
    if method == "gemm" or by_taps:
        return strips.told(spec, itemsize, limit), strips.workspace(spec, itemsize, limit)
    if method == "direct" and costs.direct_by(spec) != "taps":
        by = costs.direct_by(spec)
        held = {"bands": limit, "patches": min(conv_operations(spec) * itemsize, limit)}
        return _DIRECT[by], held.get(by, 0)
    if method == "direct":
        return "the whole result, tap by tap", spec.batch * math.prod(spec.out_size) * spec.filters * itemsize
    if method == "winograd":
        transform = winograd.transform_for(spec)
        size = " x ".join(map(str, transform.tile[: transform.axes]))
        return f"blocks of tiles of {size} results", winograd_blocks.workspace(spec, itemsize, limit)
    if costs.is_cut(spec):
        lengths = " x ".join(map(str, overlap.tile_lengths(spec, limit)))
        return f"tiles of {lengths} elements, which overlap", overlap.workspace(spec, limit)
    return _spectral_tile(spec, limit)


def _spectral_tile(spec: ConvSpec, limit: int) -> tuple[str, int]:
    """Of which images and filters spectra are held at a time."""
    blocks = image_spectra.blocks(spec, limit)
    filters = f"{blocks.filters} of {spec.filters // spec.groups} filters"
    groups = f" of 1 of {spec.groups} groups" if spec.groups > 1 else ""
    return f"spectra of {blocks.images} of {spec.batch} images, {filters}{groups}", blocks.nbytes


def _no_winograd(spec: ConvSpec, spectral: bool) -> str:
    if not spectral:
        return "method='winograd' computes with fractions, which integers cannot hold; take method='gemm'"
    return (
        "method='winograd' takes windows of 3 by 3, 4 by 4 or 5 by 5 on the last two axes, or of at least 3 on "
        "a single one, at stride 1, and of two axes also at stride 2 without dilation, all without groups; got window "
        f"{spec.window}, stride {spec.stride}, dilation {spec.dilation}, groups={spec.groups}: take method='auto'"
    )


@lru_cache(maxsize=4096)
def spectra_plan(spec: ConvSpec, side: str, limit: int) -> Plan | None:
    """The plan of the "input" or the "weight" gradient as a convolution of spectra, where that beats the usual way."""
    if spec.padding_mode != "zeros":
        return None
    if side == "input":
        adjoint, usual, otherwise = spec.input_adjoint, "phases", _phases_seconds(spec)
    else:
        adjoint, usual, otherwise = spec.weight_adjoint, "gemm", costs.gemm_seconds(spec)
    seconds = costs.whole_fft_seconds(adjoint, limit)
    if seconds >= otherwise or image_spectra.least_bytes(adjoint) > limit:
        return None
    reason = f"the least expected time: fft of the adjoint {seconds:.2g} s, {usual} {otherwise:.2g} s"
    return Plan("fft", reason, *_spectral_tile(adjoint, limit))


def _phases_seconds(spec: ConvSpec) -> float:
    """The phases of an input gradient, each by the fastest way without spectra."""
    phases = [phase.spec for phase in spec.input_phases if 0 not in phase.spec.window]
    methods = costs.direct_seconds, costs.gemm_seconds, costs.winograd_seconds
    return sum(min(seconds(phase) for seconds in methods) for phase in phases)


@lru_cache(maxsize=4096)
def spread_plan(spec: ConvSpec, itemsize: int, compiled: Compiled) -> Plan | None:
    """The plan of an input gradient at stride 2 as one convolution in Winograd's domain; None where one for each phase
    of the stride takes less time. `compiled` is what kernels take of the one.

    It errs by 7e-7 of the largest result with 128 and 256 filters, as sums do, and by 1.2e-6 with 512, where sums err
    by 6e-7, and may by 2e-6. Phases are weighed as sums, though 3 x 3 taps of 5 x 5 may be Winograd's too.

    Milliseconds on two cores of a Zen 3, N=8: 128@56 8.4 and 10.5, 64@112 8.9 and 10.7, 256@28 7.8 and 10.3; with
    channels first, where phases have to be turned, 9.6 and 16.2, 11.3 and 17.2, 8.5 and 11.4.
    """
    adjoint = spec.input_adjoint
    if not compiled.winograd or not winograd.is_spread(adjoint):
        return None
    computed = max(compiled.filters, adjoint.filters)
    phases = [phase.spec for phase in spec.input_phases if phase.is_reached]
    usual = sum(_tiled_seconds(phase, computed) - costs.CALL for phase in phases) + costs.CALL  # hardly more than one
    seconds = _compiled_winograd_seconds(adjoint, computed, compiled.wide) / compiled.winograd
    if seconds > WORTH_OF_SUMS * usual:
        return None
    reason = f"the least expected time: winograd of the adjoint {seconds:.2g} s, phases {usual:.2g} s"
    weight = winograd.compiled_for(adjoint).points * adjoint.channels * computed * itemsize
    threads = _threads(adjoint, "winograd", round(compiled.winograd * compiled.threads))
    tile = "compiled: tiles transformed in registers, of 4 x 4 results"
    return Plan("winograd", f"{reason}; phases where a value is not finite", tile, weight, seconds, threads=threads)


def expected_seconds(spec: ConvSpec, compiled: Compiled = Compiled()) -> dict[str, float]:
    """What each method is expected to take, infinite where it does not apply; only the ratios matter."""
    seconds = {name: cost(spec) for name, cost in costs.COSTS.items()}
    for method in ("direct", "winograd", "fft"):
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
    spectral = seconds.pop("spectra", math.inf)
    if method == "fft":
        return "spectra" if spectral < costs.fft_seconds(spec) else ""
    if method != "direct" or not seconds:
        return ""
    fastest = min(seconds, key=seconds.__getitem__)
    return fastest if seconds[fastest] < costs.direct_seconds(spec) else ""


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
        alone = _compiled_winograd_seconds(spec, max(compiled.filters, spec.filters), compiled.wide)
        seconds["winograd"] = alone / compiled.winograd
    if compiled.spectra:
        seconds["spectra"] = tiled_spectra.operations(spec) / _SPECTRAL + 2 * costs.CALL  # once more for the filters
    return seconds


def _tiled_seconds(spec: ConvSpec, computed: int) -> float:
    """Products at the machine's full speed, those of the filters that fill up the tiles included."""
    weight = math.prod(spec.window) * spec.channels // spec.groups * computed
    joined = spec.window[-1] if spec.groups == 1 and spec.dilation[-1] == 1 else 1
    taps = 1 + 1.5 / (joined * spec.channels // spec.groups)  # each is found in a table
    return taps * conv_operations(spec) / max(spec.filters, 1) * computed / _COMPILED + weight / _PACKED + costs.CALL


def _depthwise_seconds(spec: ConvSpec) -> float:
    """One element read for each product."""
    return conv_operations(spec) / 2 / _READ + costs.CALL


def _plane_seconds(spec: ConvSpec) -> float:
    """Products at the machine's full speed."""
    return min(conv_operations(spec) / 2 / _FILTERED, _banded_seconds(spec)) + costs.CALL


def is_banded(spec: ConvSpec) -> bool:
    """Whether the filter of a signal is so long that the tiles of matrix products compute it sooner.

    Emerald Rapids, 1e6 by 51, 101 and 301 taps: 1.03 -> 0.94 ms, 1.91 -> 1.25, 5.22 -> 2.61; 1e5 by 101 and 1001 0.24
    -> 0.22, 2.26 -> 1.23.
    """
    return _banded_seconds(spec) < conv_operations(spec) / 2 / _FILTERED


def _banded_seconds(spec: ConvSpec) -> float:
    """Products with a band of the taps, and four more calls; infinite for anything but single signals among zeros or
    the like, for few results, and for filters so long that sums lose digits, which spectra multiply faster.
    """
    single = (spec.axes, spec.channels, spec.filters, *spec.stride, *spec.dilation) == (1, 1, 1, 1, 1)
    if not single or spec.window[0] > _MOST_TAPS or spec.out_size[0] < _FEWEST_RESULTS:
        return math.inf
    if spec.padding_mode not in ("zeros", "constant") or min(spec.padding[0]) < 0:
        return math.inf
    return spec.batch * spec.out_size[0] * (spec.window[0] + _BESIDE_TAPS) / _BANDED + 4 * costs.CALL


def pool_is_compiled(spec: PoolSpec) -> bool:
    """Whether a pooling is so large that calling the compiled kernels takes less than what they save."""
    return spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels > _POOLED


def _compiled_winograd_seconds(spec: ConvSpec, computed: int, wide: bool) -> float:
    """Products at the machine's full speed, those of the filters that fill up the tiles included, tiles to transform,
    and the transformed weight to read.

    3x3 512@7, N=1 on two cores of a Zen 3, whose vectors are not wide: 2.4 ms, and 4.2 directly. A Zen 4, which is not
    wide either, hides products behind a weight that it reads from afar: 512@4 0.95 ms, 512@5 1.0, 512@7 1.05; directly
    0.55, 0.71 and 1.2.
    """
    transform = winograd.compiled_for(spec)
    terms, (products, _) = transform.terms(spec.window), winograd.operations(spec, transform)
    weight = (transform.points * terms + math.prod(spec.window)) * spec.channels * spec.filters
    maps = sum(-(-count // 16) * 16 for count in (spec.channels, spec.filters))  # a vector of floats at a time
    transformed = products // (2 * terms * spec.channels * spec.filters) * maps
    by_halves = transform.stride > 1 or transform.spread > 1
    share = 1 if transform.squared and not by_halves else 1 / 2  # of the additions of F(4x4, 3x3)
    transforms = share * transformed / _REGISTERED
    multiplied, is_near = products / spec.filters * computed / _COMPILED, weight <= _NEAR_ELEMENTS
    if wide or is_near:
        multiplied += weight / (_STREAMED if is_near else _FAR) / (1 if wide else 2)  # in times of products
    else:
        multiplied = max(multiplied, weight / _BESIDE)
    return multiplied + transforms + 2 * costs.CALL  # once more to look at the weight


def winograd_gradient_pays(spec: ConvSpec) -> bool:
    """Whether the gradient of the weight is worth its rounding in Winograd's domain."""
    products, _ = winograd.operations(spec, winograd.F4)
    tiles = products // (2 * spec.channels * spec.filters)
    sums = 4 * winograd.F4.points * spec.channels * spec.filters
    seconds = products / _COMPILED + tiles * (spec.channels + spec.filters) / _REGISTERED + sums / _STREAMED
    return seconds + costs.CALL < WORTH * (conv_operations(spec) / _COMPILED + costs.CALL)


def passes_pay(spec: ConvSpec, products: int = 1) -> bool:
    """Whether the compiled kernels filter planes along both axes, so many times, faster than at once."""
    if spec.axes != 2 or not costs.may_separate(spec):
        return False
    (down, across), passed = spec.window, _FILTERED / _PASSED
    return down * across + passed > products * (down + across + 2 * passed)


def padded_bytes(spec: ConvSpec, itemsize: int) -> int:
    """Bytes of the input with what is put around it, if anything is."""
    return spec.batch * math.prod(spec.padded_size) * spec.channels * itemsize if spec.padded_size != spec.size else 0


def row_bytes(spec: ConvSpec, itemsize: int) -> int:
    """Bytes of the patches of one row of the result."""
    return math.prod(spec.out_size[1:]) * math.prod(spec.window) * (spec.channels // spec.groups) * itemsize
