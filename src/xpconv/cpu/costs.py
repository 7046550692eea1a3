"""What each of NumPy's methods is expected to take: pure, from what a spec counts and what NumPy does in a second."""

from __future__ import annotations

import math
from functools import lru_cache

from xpconv.cpu import image_spectra, joined, overlap, planes, small, spectra, strips, winograd
from xpconv.cpu.entries import MOST_BYTES
from xpconv.plan import conv_operations
from xpconv.spec import ConvSpec
from xpconv.workspace import DEFAULT_LIMIT

# Per second; only ratios matter. Fitted with NumPy 2.4 to two cores of an AMD Zen 3, and where products and copies are
# shared among threads, to two cores of a Zen 5, whose times are a fifth of these; right within a factor of two.
_PATCHES = 3.0e9  # elements copied side by side, in long runs
_PATCH_PRODUCTS = 125e9  # operations of their products
_SINGLE = 0.5e9  # elements of windows of a single channel, which a product makes one result of
_PRODUCTS = 85e9  # operations of a matrix product
_READ_ONCE = 1.5e9  # elements of a weight that BLAS reads
_TILE_PRODUCTS = 120e9  # operations of Winograd's products
_TILES = 2.5e9  # elements of its tiles, before and after their transforms
_WEIGHTS = 4.5e9  # elements of a transformed weight that a block reads
_FAR_WEIGHTS = 2.5e9  # of those, from memory
_COMPARED = 2e9  # elements of a weight beside those that what is kept was made of
_FRESH_WEIGHTS = 0.25e9  # elements of a weight transformed, where they are too many to be kept from call to call
_PASSES = 2.6e9  # elements multiplied and added to the result
_SHARED_PASSES = 7.5e9  # by all threads, of channels beside each other
_MADE = 1.5e9  # products copied, made and added at once
_SUMS = 0.9e9  # elements of a product added to others
_TRANSFORMS = 4.0e9  # operations of a transform in double precision
_AT_ONCE = {1: 0.06e9, 2: 0.09e9}  # elements of a signal or a plane whose spectrum is taken at once
_TILED = 11e9  # operations of transforms of tiles that stay in the cache
_ROWS = 2e9  # elements of rows of planes given to products
_BAND_PRODUCTS = 62e9  # operations of the products of signals
_STORED_SUMS = 4e9  # sums of a plane that a product stores, and that are added
_PLANE_PRODUCTS = 57e9  # operations of those products
_TURNED = 0.2e9  # elements of channels that are brought together in planes, and back

# Seconds, of one array operation.
_TAP = 4.5e-6
_PLANNED = 20e-6  # a call that is planned each time, where others would be prepared once
CALL = 10e-6  # of the compiled kernels, repeated: weights packed, threads asked
_HANDED = 100e-6  # strips to another thread
_WOKEN = 250e-6  # another thread
_BLOCKS = 100e-6
_SPECTRUM = 50e-6
_CUT = 150e-6  # into tiles
_BANDS = 60e-6
_ROW = 0.1e-6  # of a plane's results
_ONCE = 13e-6  # what is small, all at once
_LOOP = 7.5e-6

_SECOND = 0.6  # of the time of one thread that two take
_FEW_TAPS = 11  # of a signal, which NumPy's own loop reads quickly
_SEPARATED = 8_000_000  # operations that take as long as to look for products


def direct_seconds(spec: ConvSpec) -> float:
    """By what NumPy does of them the fastest."""
    return min(cost(spec) for cost in _DIRECT_COSTS.values())


@lru_cache(maxsize=4096)
def direct_by(spec: ConvSpec) -> str:
    """How NumPy sums the products: by passes of the "taps", by "bands" of them, its own "loop", or "patches"."""
    return min(_DIRECT_COSTS, key=lambda name: _DIRECT_COSTS[name](spec))


def _loop_seconds(spec: ConvSpec) -> float:
    """Of one signal, by `numpy.correlate`, which is quick for few taps; infinite for anything else."""
    if spec.axes > 1 or (spec.batch, spec.channels, spec.filters, *spec.stride, *spec.dilation) != (1, 1, 1, 1, 1):
        return math.inf
    taps = spec.window[0]
    short = 0.45e-9 if taps <= 5 else (0.16e-9 if taps < 10 else 0.25e-9) * taps
    each = 10e-9 + 0.07e-9 * taps if taps > _FEW_TAPS else short
    return spec.out_size[0] * each + _LOOP


def _banded_seconds(spec: ConvSpec) -> float:
    """Elements given to the products, and the products; infinite where groups are wide.

    Most products of a signal are with zeros; of a plane a sum is stored, and added, for every column of the kernel.
    """
    if not spec.filters_planes:
        return math.inf
    results = spec.batch * math.prod(spec.out_size) * spec.channels
    if spec.axes == 1:
        each, is_small = 2 * (spec.reach[0] + 15) / _BAND_PRODUCTS, small.is_signal(spec)
    else:
        each = 1 / _ROWS + math.prod(spec.window[1:]) / _STORED_SUMS + 2 * math.prod(spec.window) / _PLANE_PRODUCTS
        each += _ROW / max(spec.out_size[-1], 1)
        is_small = small.is_plane(spec)
    if is_small:
        return results * each + _ONCE
    return _shared_seconds(results * each + _turned_seconds(spec), planes.is_shared(spec)) + _BANDS


def _shared_seconds(alone: float, is_shared: bool) -> float:
    """What takes so long in one thread, by all: the second saves a little less than half."""
    return alone * _SECOND + _HANDED if is_shared else alone


def _turned_seconds(spec: ConvSpec) -> float:
    """Of channels brought together in planes, and of results brought back."""
    results = spec.batch * math.prod(spec.out_size) * spec.channels
    return 2 * results / _TURNED if spec.channels > 1 and spec.layout == "channels_last" else 0


def may_separate(spec: ConvSpec) -> bool:
    """Whether it is worth looking whether a weight is a sum of few products of filters of one axis each."""
    return spec.filters_planes and spec.axes > 1 and min(spec.window) > 1 and conv_operations(spec) > _SEPARATED


def _taps_seconds(spec: ConvSpec) -> float:
    """One pass over the result per tap; where a group has several channels, of products that a matrix makes."""
    taps, results = math.prod(spec.window), spec.batch * math.prod(spec.out_size) * spec.filters
    planned = _PLANNED if spec.groups == 1 else 0
    if spec.groups == spec.channels:
        short = 64 / spec.filters if spec.filters > spec.channels else 0  # loops over the filters of a result
        shared = spec.filters_planes and spec.channels > 1  # in strips, whose runs are long
        return taps * (results * (1 + short) / (_SHARED_PASSES if shared else _PASSES) + _TAP) + planned
    turned = 3 if spec.groups > 1 else 1  # groups are brought together, and back
    passes = taps * (turned * results / _SUMS + _TAP + spec.groups * _TAP)
    few = 1 + 8 * spec.groups / max(spec.filters, 1)  # columns of a product
    return passes + 2 * few * conv_operations(spec) / _PRODUCTS + planned


def _patches_seconds(spec: ConvSpec) -> float:
    """Of few channels by themselves, all products at once; infinite for anything else."""
    products = conv_operations(spec) // 2
    few = spec.filters_planes and spec.channels > 1 and 0 < products <= small.MOST_CHANNELWISE
    return products / _MADE + CALL if few else math.inf


_DIRECT_COSTS = {"taps": _taps_seconds, "patches": _patches_seconds, "bands": _banded_seconds, "loop": _loop_seconds}


def gemm_seconds(spec: ConvSpec) -> float:
    """The patches, which take the longer the shorter their runs, and their products, those with zeros included."""
    if spec.filters_planes:
        return spec.batch * math.prod(spec.out_size) * math.prod(spec.window) * spec.channels / _SINGLE + CALL
    wide = joined.wide(spec)
    results, taps = wide.batch * math.prod(wide.out_size), math.prod(wide.window)
    run, filters = wide.window[-1] * wide.channels // wide.groups, wide.filters // wide.groups
    copied = results * taps * wide.channels * (1 + 6 / max(run, 1)) / _PATCHES if taps > 1 else 0
    products = conv_operations(wide) * (1 + 12 / max(filters, 1)) / _PATCH_PRODUCTS
    weight = math.prod(spec.w_shape) / _READ_ONCE
    if strips.is_shared(wide):
        return copied + products + weight + _HANDED + CALL
    alone = 2 if wide.groups > 1 else 1  # BLAS shares one product, but not many small ones
    return 2 * copied + alone * products + weight + CALL


def fft_seconds(spec: ConvSpec) -> float:
    """By whichever NumPy does of them: the whole input, or of single planes tiles that overlap."""
    return min(whole_fft_seconds(spec), _cut_fft_seconds(spec))


@lru_cache(maxsize=4096)
def is_cut(spec: ConvSpec) -> bool:
    """Whether single planes are transformed in tiles."""
    return _cut_fft_seconds(spec) < whole_fft_seconds(spec)


def _cut_fft_seconds(spec: ConvSpec) -> float:
    if not spec.filters_planes or 0 in spec.out_size:
        return math.inf
    if spectra.is_at_once(spec):
        return math.prod(spectra.only_tile(spec)) / _AT_ONCE[spec.axes] + _SPECTRUM
    alone = overlap.operations(spec, DEFAULT_LIMIT) / _TILED + _turned_seconds(spec)
    return _shared_seconds(alone, overlap.is_shared(spec, DEFAULT_LIMIT)) + _CUT


def whole_fft_seconds(spec: ConvSpec, limit: int = DEFAULT_LIMIT) -> float:
    """Transforms of input, kernel and result, and the products at every frequency."""
    plane = math.prod(spec.padded_size)
    maps = image_spectra.blocks(spec, limit).transforms
    transforms = 2.5 * plane * max(math.log2(max(plane, 2)), 1) * maps
    products = 4 * plane * spec.batch * spec.channels * spec.filters // spec.groups
    return _SPECTRUM + (transforms + products) / _TRANSFORMS


def winograd_seconds(spec: ConvSpec) -> float:
    """Tiles copied and transformed, one product for each of their points, and the weight read for every block."""
    if not winograd.fits(spec):
        return math.inf
    transform = winograd.transform_for(spec)
    products, transforms = winograd.operations(spec, transform)
    points, terms, channels, filters = transform.points, transform.terms(spec.window), spec.channels, spec.filters
    tiles = winograd.tiles_of(spec, transform)
    moved = tiles * (math.prod(transform.edges) * (channels + 6) + math.prod(transform.tile) * filters)
    short = 1 + 16 / max(channels, 1) + 4 / max(filters, 1)  # sums and rows of a product
    multiplied = products * short + transforms * (1 + (16 / points) ** 2)
    weight, given = points * terms * channels * filters, math.prod(spec.window) * channels * filters
    times = 1 if winograd.is_staged(spec) else max(2, tiles / winograd.BLOCK_ROWS)
    read = times * weight / (_WEIGHTS if weight <= winograd.FAR else _FAR_WEIGHTS)
    made = given / _COMPARED if 4 * (weight + given) <= MOST_BYTES else weight / _FRESH_WEIGHTS
    return multiplied / _TILE_PRODUCTS + moved / _TILES + read + made + _WOKEN + _BLOCKS


COSTS = {"direct": direct_seconds, "gemm": gemm_seconds, "winograd": winograd_seconds, "fft": fft_seconds}
