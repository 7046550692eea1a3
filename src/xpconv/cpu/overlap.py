"""Filters of single planes with large windows: products of spectra, tile by tile (overlap-save).

A tile of the input is as long as its transform, and as many results are kept as have their whole window in it
(Oppenheim and Schafer, Discrete-Time Signal Processing, 8.7.3). Single precision is transformed in single, which takes
half the time of double. Its error is a share of the tile's largest elements, so about their mean is taken off first:
what the kernel makes of that is its sum, and where a large mean cancels nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product

import numpy as np
from scipy import fft

from xpconv.cpu import planes, signals, team
from xpconv.cpu.margins import Span
from xpconv.cpu.memory import Memory, borrowed
from xpconv.cpu.spectra import of_kernel, only_tile, sampled
from xpconv.spec import Array, ConvSpec, Sizes

_ARRAYS = 5  # of a tile in double precision, held at a time
_BLOCK_BYTES = 1 << 23  # of tiles that a thread transforms at once: 1e6 by 1001 took 4.7 ms by 4 MB, 4.0 by these
_SHARED = 150_000  # elements whose transforms, a millisecond, are worth waking a thread
_WORK = {"float32": np.float32, "complex64": np.complex64, "complex128": np.complex128}
_LENGTHS = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of transforms, in reaches of the window

# In operations of a transform, for what takes as long.
_MOVED = 16  # an element copied to its tile, multiplied, and brought back
_CALLED = 1_000_000  # the calls for one block of tiles
_BESIDE = 4  # tiles along one axis that are transformed in one vector
_ALONE = 2  # times as many operations take as long of those that are left


@dataclass(frozen=True)
class _Run:
    """Along one axis tiles of as many results each: which of those at hand, where the first's results begin."""

    tiles: slice
    start: int
    length: int
    elements: int  # that each of them reads


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, C) of `x` (N, *size, C), around which there are zeros, and `w` (*window, 1, C).

    Tiles that hold what is not finite, which spreads over all of them, are computed again by `signals.conv`.
    """
    y, is_complex = planes.empty(spec, x.dtype), x.dtype.kind == "c"
    lengths = tile_lengths(spec, limit, is_complex)
    counts = _tile_counts(spec, lengths)
    each = spec.batch * math.prod(counts)  # tiles of a channel
    most, threads = _at_once(spec, lengths, limit, is_complex)
    for (channels,) in _chunks((spec.channels,), max(1, most // (each + 1))):
        some = channels.stop - channels.start
        kernel = w[..., channels]
        parts = list(_chunks((spec.batch, *counts), _evenly(each, max(1, most // some - 1), threads, spec.axes)))
        transforms = _Transforms(kernel, spec, lengths, threads if len(parts) == 1 else 1)
        share = _Share(x[..., channels], kernel, y[..., channels], spec, lengths, limit)
        team.share(partial(_filter_parts, share, transforms), parts, threads)
    return y


def _evenly(tiles: int, most: int, threads: int, axes: int) -> int:
    """Tiles that a thread transforms at once, so that all threads have as many, and vectors of one axis are full."""
    if tiles < threads:
        return most
    vector = _BESIDE if axes == 1 else 1
    most -= most % vector if most > vector else 0
    parts = -(-tiles // most)
    each = -(-tiles // (parts + -parts % threads))
    return min(most, each + -each % vector)


class _Transforms:
    """Tiles to the products of their spectra and the kernels', and back; each by some threads."""

    def __init__(self, w: Array, spec: ConvSpec, lengths: Sizes, threads: int) -> None:
        kernel = planes.offsets_first(w, spec)
        self._lengths, self._axes, self._is_complex = lengths, tuple(range(-spec.axes, 0)), kernel.dtype.kind == "c"
        self.work, self._threads = np.dtype(_WORK.get(kernel.dtype.name, np.float64)), threads
        spread: Array = np.zeros((len(kernel), *(1,) * spec.axes, *spec.reach), self.work)
        taps = kernel.conj().reshape(*spread.shape[: spec.axes + 1], *spec.window)
        spread[..., *(slice(None, None, d) for d in spec.dilation)] = taps
        self._total = kernel.sum(axis=tuple(range(1, kernel.ndim)), dtype=np.result_type(self.work, np.float64))
        self._spectrum = of_kernel(spread, lengths)
        np.conj(self._spectrum, out=self._spectrum)  # of the kernel turned: a correlation is what windows are

    def taken_off(self, tiles: Array, out: Array) -> Array:
        """Copy tiles (N, C, ..., *elements) to `out` (N, C, ..., *lengths) without their means: what results lack."""
        elements = tiles.shape[-len(self._axes) :]
        for axis, n in zip(self._axes, elements, strict=True):
            out[(..., slice(n, None), *(slice(None),) * (-1 - axis))] = 0
        some = tiles[..., *sampled(elements)]
        mean = some.mean(axis=self._axes, keepdims=True, dtype=self.work)
        mean[~np.isfinite(mean)] = 0
        np.subtract(tiles, mean, out=out[..., *map(slice, elements)])
        return (mean * self._total.reshape(-1, *(1,) * (mean.ndim - 2))).astype(self.work)

    def filtered(self, tiles: Array) -> Array:
        """The circular convolutions of tiles (N, C, ..., *lengths)."""
        spectrum = self._forward(tiles)
        spectrum *= self._spectrum
        back = fft.ifftn if self._is_complex else fft.irfftn
        return back(spectrum, self._lengths, self._axes, overwrite_x=True, workers=self._threads)

    def _forward(self, tiles: Array) -> Array:
        forward = fft.fftn if self._is_complex else fft.rfftn
        return forward(tiles, axes=self._axes, workers=self._threads)


@dataclass(frozen=True)
class _Share:
    """Channels that are filtered at once: what is read, and where results go."""

    x: Array
    w: Array
    y: Array
    spec: ConvSpec
    lengths: Sizes
    limit: int


def _filter_parts(share: _Share, transforms: _Transforms, parts: Iterator[tuple[slice, ...]]) -> None:
    """Images and along every axis tiles, some after others."""
    spec = share.spec
    source, results = planes.channels_second(share.x), planes.channels_second(share.y)
    with borrowed("tiles") as memory, np.errstate(over="ignore", invalid="ignore"):
        for images, *places in parts:
            runs = _runs(spec, share.lengths, places)
            begins = [on_axis[0].start for on_axis in runs]
            spans = _read_by(spec, [(on_axis[0].start, on_axis[-1]) for on_axis in runs])
            elements = planes.surrounded(source[images], spans, memory)
            shape = (*elements.shape[:2], *(at.stop - at.start for at in places), *share.lengths)
            tiles, lacking = memory.take("tiles", shape, transforms.work), []
            for some in product(*runs):
                read = _tiles_read(elements, some, begins, spec)
                lacking.append(transforms.taken_off(read, tiles[:, :, *(run.tiles for run in some)]))
            filtered = transforms.filtered(tiles)
            for some, lack in zip(product(*runs), lacking, strict=True):
                kept = (slice(0, (run.length - 1) * s + 1, s) for run, s in zip(some, spec.stride, strict=True))
                out = _results_of(some, results[images])
                np.add(filtered[:, :, *(run.tiles for run in some), *kept], lack, out=out, casting="same_kind")
                if not planes.finite(out):
                    _filter_again(share, images, some, out)


def _runs(spec: ConvSpec, lengths: Sizes, places: list[slice]) -> list[list[_Run]]:
    """On every axis, of some tiles those that are whole, and the last, where results end before it does."""
    runs = []
    tiles = zip(places, lengths, only_tile(spec), _results(spec, lengths), strict=True)
    axes = zip(tiles, spec.out_size, spec.stride, spec.reach, strict=True)
    for (at, length, whole, step), count, s, reach in axes:
        ends = [step * at.start, min(step * at.stop, count)]
        full, rest = divmod(ends[1] - ends[0], step)
        parts = [(slice(0, full), ends[0], step)] if full else []
        parts += [(slice(full, full + 1), ends[0] + full * step, rest)] if rest else []
        runs.append([_Run(*part, length if length >= whole else (part[2] - 1) * s + reach) for part in parts])
    return runs


def _read_by(spec: ConvSpec, runs: list[tuple[int, _Run]]) -> list[Span]:
    """On every axis the elements, from the first up to the last, that results from one on up to a run's read."""
    axes = zip(runs, spec.stride, spec.padding, strict=True)
    return [
        (begin * s - lo, (run.start + (run.tiles.stop - run.tiles.start - 1) * run.length) * s + run.elements - lo)
        for (begin, run), s, (lo, _) in axes
    ]


def _tiles_read(elements: Array, runs: tuple[_Run, ...], begins: list[int], spec: ConvSpec) -> Array:
    """A view of elements (N, C, *n), which those results from `begins` on read, as (N, C, *tiles, *elements)."""
    axes = list(zip(runs, begins, spec.stride, strict=True))
    begin = elements[:, :, *(slice((run.start - first) * s, None) for run, first, s in axes)]
    return _tiled(begin, runs, tuple(run.length * s for run, _, s in axes), tuple(run.elements for run in runs))


def _results_of(runs: tuple[_Run, ...], results: Array) -> Array:
    """A view of results (N, C, *out) as (N, C, *tiles, *length)."""
    lengths = tuple(run.length for run in runs)
    begin = results[:, :, *(slice(run.start, None) for run in runs)]
    return _tiled(begin, runs, lengths, lengths)


def _tiled(x: Array, runs: tuple[_Run, ...], moves: Sizes, lengths: Sizes) -> Array:
    """A view of `x` (N, C, *n) as (N, C, *tiles, *lengths): tiles that begin `moves` apart."""
    counts = (run.tiles.stop - run.tiles.start for run in runs)
    between = (move * stride for move, stride in zip(moves, x.strides[2:], strict=True))
    shape, strides = (*x.shape[:2], *counts, *lengths), (*x.strides[:2], *between, *x.strides[2:])
    return np.lib.stride_tricks.as_strided(x, shape, strides)


def _filter_again(share: _Share, images: slice, runs: tuple[_Run, ...], out: Array) -> None:
    """Those tiles (N, C, *tiles, *results) that are not finite, by products: each by itself."""
    spec = share.spec
    for image, *tile in np.ndindex(out.shape[0], *out.shape[2 : 2 + spec.axes]):
        here = out[image, :, *tile]
        if not planes.finite(here):
            places = zip(tile, runs, spec.reach, spec.stride, strict=True)
            alone = [
                _Run(slice(0, 1), run.start + place * run.length, run.length, (run.length - 1) * s + reach)
                for place, run, reach, s in places
            ]
            spans = _read_by(spec, [(run.start, run) for run in alone])
            elements = planes.surrounded(planes.channels_second(share.x)[images][image : image + 1], spans, Memory())
            exact = replace(
                spec, layout="channels_first", batch=1, channels=len(here), filters=len(here), groups=len(here),
                size=elements.shape[2:], padding=((0, 0),) * spec.axes, padding_mode="zeros", input_dilation=(),
            )  # fmt: skip
            y = signals.conv(elements.transpose(0, *range(2, elements.ndim), 1), share.w, exact, share.limit)
            here[...] = planes.channels_second(y)[0]


def _chunks(shape: Sizes, most: int) -> Iterator[tuple[slice, ...]]:
    """Parts of an array of that shape with at most so many items, whole axes from the last on."""
    sizes: list[int] = []
    for n in reversed(shape):
        sizes.insert(0, max(1, min(n, most)))
        most //= sizes[0]
    for places in product(*(range(0, n, size) for n, size in zip(shape, sizes, strict=True))):
        yield tuple(slice(place, place + size) for place, size in zip(places, sizes, strict=True))


@lru_cache(maxsize=4096)
def tile_lengths(spec: ConvSpec, limit: int, is_complex: bool = False) -> Sizes:
    """The lengths of a tile's transforms with the fewest operations, of tiles that stay below `limit`."""
    axes = []
    for n, s, reach, whole in zip(spec.out_size, spec.stride, spec.reach, only_tile(spec), strict=True):
        wanted = {whole}
        for results in {max((math.ceil(reach * factor) - reach) // s, 1) for factor in _LENGTHS}:
            each = -(-n // -(-n // results))  # as many tiles, of as many results each
            wanted.add(min((each - 1) * s + reach, whole))
        axes.append(sorted({fft.next_fast_len(length, real=not is_complex) for length in wanted}))
    candidates = list(product(*axes))
    small = [lengths for lengths in candidates if 2 * _tile_bytes(lengths, is_complex) <= limit]
    return min(small or candidates[:1], key=lambda lengths: _operations(spec, lengths, limit, is_complex))


def operations(spec: ConvSpec, limit: int, is_complex: bool = False) -> float:
    """Operations of the transforms, and what all else takes in the same measure."""
    return _operations(spec, tile_lengths(spec, limit, is_complex), limit, is_complex)


def _operations(spec: ConvSpec, lengths: Sizes, limit: int, is_complex: bool) -> float:
    elements, tiles = math.prod(lengths), spec.batch * spec.channels * math.prod(_tile_counts(spec, lengths))
    most, threads = _at_once(spec, lengths, limit, is_complex)
    beside = min(tiles, _evenly(tiles, max(1, most - 1), threads, spec.axes))
    left = beside % _BESIDE if spec.axes == 1 else 0
    alone = 1 + (_ALONE - 1) * left / max(beside, 1)
    each = (1 + is_complex) * elements * (2.5 * math.log2(max(elements, 2)) * alone + _MOVED / 2)
    return (2 * tiles + spec.channels) * each + math.ceil(tiles / most) * _CALLED


def is_shared(spec: ConvSpec, limit: int) -> bool:
    """Whether the transforms take so long that a second thread is worth waking."""
    return _is_shared(spec, tile_lengths(spec, limit))


def _is_shared(spec: ConvSpec, lengths: Sizes) -> bool:
    return math.prod(lengths) * math.prod(_tile_counts(spec, lengths)) * spec.batch * spec.channels > _SHARED


def workspace(spec: ConvSpec, limit: int, is_complex: bool = False) -> int:
    """Bytes of the tiles and kernels that are transformed at once."""
    lengths = tile_lengths(spec, limit, is_complex)
    tiles = spec.channels * (spec.batch * math.prod(_tile_counts(spec, lengths)) + 1)
    most, threads = _at_once(spec, lengths, limit, is_complex)
    return _tile_bytes(lengths, is_complex) * min(max(most, 2) * threads, tiles)


def _results(spec: ConvSpec, lengths: Sizes) -> Sizes:
    """Results of a tile on every axis, at the spec's stride: of all tiles as many, where that comes out even."""
    axes = zip(lengths, only_tile(spec), spec.out_size, spec.reach, spec.stride, strict=True)
    most = [count if n >= whole else (n - reach) // s + 1 for n, whole, count, reach, s in axes]
    return tuple(-(-count // -(-count // n)) for count, n in zip(spec.out_size, most, strict=True))


def _tile_counts(spec: ConvSpec, lengths: Sizes) -> Sizes:
    """Tiles on every axis."""
    return tuple(-(-n // results) for n, results in zip(spec.out_size, _results(spec, lengths), strict=True))


def _at_once(spec: ConvSpec, lengths: Sizes, limit: int, is_complex: bool) -> tuple[int, int]:
    """Tiles, or kernels, that a thread transforms, and how many threads the limit and the work are enough for."""
    threads = team.thread_count() if _is_shared(spec, lengths) else 1
    most = _tiles_at_once(lengths, limit // threads, is_complex)  # so that memory is enough for all threads
    return most, max(1, min(threads, limit // (max(most, 2) * _tile_bytes(lengths, is_complex))))


def _tiles_at_once(lengths: Sizes, limit: int, is_complex: bool) -> int:
    """Tiles, or kernels, whose transforms stay below the limit."""
    return max(1, min(limit, _BLOCK_BYTES) // _tile_bytes(lengths, is_complex))


def _tile_bytes(lengths: Sizes, is_complex: bool) -> int:
    """Of a tile, its spectrum, and the results, in double precision."""
    return _ARRAYS * 8 * (1 + is_complex) * math.prod(lengths)
