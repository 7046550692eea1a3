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
from xpconv.cpu.memory import borrowed
from xpconv.spec import Array, ConvSpec, Sizes

_ARRAYS = 4  # of a tile in double precision, held at a time
_BLOCK_BYTES = 1 << 21  # of tiles that a thread transforms at once
_SHARED = 20_000  # elements whose transforms take longer than waking a thread
_WORK = {"float32": np.float32, "complex64": np.complex64, "complex128": np.complex128}
_SAMPLES = 16  # elements along an axis that tell a tile's mean
_LENGTHS = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of transforms, in reaches of the window

# In operations of a transform, for what takes as long.
_MOVED = 16  # an element copied to its tile, multiplied, and brought back
_CALLED = 200_000  # the calls for one block of tiles


@dataclass(frozen=True)
class _Run:
    """Tiles side by side along one axis, counted in results: where the first begins, how many, and of what length."""

    start: int
    tiles: int
    length: int


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, C) of padded `x` (N, *padded, C) and `w` (*window, 1, C): each channel by itself.

    Tiles that hold what is not finite, which spreads over all of them, are computed again by `signals.conv`.
    """
    y, is_complex = planes.empty(spec, x.dtype), x.dtype.kind == "c"
    source, results = (np.moveaxis(a, (-1, 0), (0, 1)) for a in (x, y))
    lengths = tile_lengths(spec, limit, is_complex)
    most, threads = _at_once(spec, lengths, limit, is_complex)
    for (channels,) in _chunks(
        (spec.channels,), max(1, most // (spec.batch * math.prod(_tile_counts(spec, lengths)) + 1))
    ):
        kernel = w[..., channels]
        at_once = max(1, most // kernel.shape[-1] - 1)
        parts = [
            (tiles[:, *chunk], out[:, *chunk])
            for runs in product(*_runs(spec, lengths))
            for tiles, out in [(_tiles(source[channels], runs, spec), _result_tiles(results[channels], runs))]
            for chunk in _chunks(tiles.shape[1 : 2 + spec.axes], at_once)
        ]
        transforms = _Transforms(kernel, spec, lengths, threads if len(parts) == 1 else 1)

        team.share(partial(_filter_parts, kernel, transforms, spec, limit), parts, threads)
    return y


def _filter_parts(w: Array, transforms: _Transforms, spec: ConvSpec, limit: int, parts: Iterator) -> None:
    for tiles, out in parts:
        _filter(tiles, w, transforms, spec, limit, out)


class _Transforms:
    """Tiles to the products of their spectra and the kernels', and back; each by some threads."""

    def __init__(self, w: Array, spec: ConvSpec, lengths: Sizes, threads: int) -> None:
        kernel = planes.offsets_first(w, spec)
        self._lengths, self._axes, self._is_complex = lengths, tuple(range(-spec.axes, 0)), kernel.dtype.kind == "c"
        self._work, self._threads = _WORK.get(kernel.dtype.name, np.float64), threads
        spread: Array = np.zeros((len(kernel), *(1,) * (spec.axes + 1), *lengths), self._work)
        taps = tuple(slice(0, reach, d) for reach, d in zip(spec.reach, spec.dilation, strict=True))
        spread[..., *taps] = kernel.conj().reshape(*spread.shape[: spec.axes + 2], *spec.window)
        self._total = kernel.sum(axis=tuple(range(1, kernel.ndim)), dtype=np.result_type(self._work, np.float64))
        self._spectrum = self._forward(spread)
        np.conj(self._spectrum, out=self._spectrum)  # of the kernel turned: a correlation is what windows are

    def __call__(self, tiles: Array, steps: Sizes, out: Array) -> None:
        """Filter tiles (C, ..., *elements); those results are written that have their window in the tile."""
        with borrowed("tiles") as memory:
            whole = memory.take("whole", (*tiles.shape[: -len(self._lengths)], *self._lengths), np.dtype(self._work))
            elements = tiles.shape[-len(self._lengths) :]
            for axis, n in zip(self._axes, elements, strict=True):
                whole[(..., slice(n, None), *(slice(None),) * (-1 - axis))] = 0
            some = tiles[..., *(slice(None, None, -(-n // _SAMPLES)) for n in elements)]
            mean = some.mean(axis=self._axes, keepdims=True, dtype=self._work)
            mean[~np.isfinite(mean)] = 0
            np.subtract(tiles, mean, out=whole[..., *map(slice, elements)])
            spectrum = self._forward(whole)
        spectrum *= self._spectrum
        back = fft.ifftn if self._is_complex else fft.irfftn
        filtered = back(spectrum, self._lengths, self._axes, overwrite_x=True, workers=self._threads)
        taken_off = (mean * self._total.reshape(-1, *(1,) * (mean.ndim - 1))).astype(self._work)
        sizes = zip(out.shape[-len(steps) :], steps, strict=True)
        results = filtered[..., *(slice(0, (n - 1) * s + 1, s) for n, s in sizes)]
        np.add(results, taken_off, out=out, casting="same_kind")

    def _forward(self, tiles: Array) -> Array:
        forward = fft.fftn if self._is_complex else fft.rfftn
        return forward(tiles, axes=self._axes, workers=self._threads)


def _filter(source: Array, w: Array, transforms: _Transforms, spec: ConvSpec, limit: int, out: Array) -> None:
    """Some tiles (C, N, *tiles, *elements) into (C, N, *tiles, *results)."""
    with np.errstate(over="ignore", invalid="ignore"):
        transforms(source, spec.stride, out)
    if planes.finite(out):
        return
    elements = source.shape[-spec.axes :]
    exact = replace(
        spec, layout="channels_first", batch=1, channels=len(source), filters=len(source), groups=len(source),
        size=elements, padding=((0, 0),) * spec.axes, padding_mode="zeros", input_dilation=(),
    )  # fmt: skip
    for place in np.ndindex(source.shape[1 : -spec.axes]):
        if not planes.finite(out[:, *place]):
            y = signals.conv(np.moveaxis(source[:, *place], 0, -1)[np.newaxis], w, exact, limit)
            out[:, *place] = np.moveaxis(y[0], -1, 0)


def _runs(spec: ConvSpec, lengths: Sizes) -> list[list[_Run]]:
    """For every axis the tiles that cover it; where they would reach beyond its end, one more that ends there."""
    runs = []
    for n, results in zip(spec.out_size, _results(spec, lengths), strict=True):
        length = min(n, results)
        last = [_Run(n - length, 1, length)] if n % length else []
        runs.append([_Run(0, n // length, length), *last])
    return runs


def _tiles(x: Array, runs: tuple[_Run, ...], spec: ConvSpec) -> Array:
    """A view of planes (C, N, *padded) as (C, N, *tiles, *elements): what the results of each tile read."""
    spans = [(run.length - 1) * s + reach for run, s, reach in zip(runs, spec.stride, spec.reach, strict=True)]
    return _strided(x, runs, spec.stride, spans)


def _result_tiles(y: Array, runs: tuple[_Run, ...]) -> Array:
    """A view of results (C, N, *out) as (C, N, *tiles, *results)."""
    return _strided(y, runs, (1,) * len(runs), [run.length for run in runs])


def _strided(x: Array, runs: tuple[_Run, ...], steps: Sizes, spans: list[int]) -> Array:
    begin = x[:, :, *(slice(run.start * step, None) for run, step in zip(runs, steps, strict=True))]
    strides = begin.strides[2:]
    between = (run.length * step * stride for run, step, stride in zip(runs, steps, strides, strict=True))
    shape = (*begin.shape[:2], *(run.tiles for run in runs), *spans)
    return np.lib.stride_tricks.as_strided(begin, shape, (*begin.strides[:2], *between, *strides))


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
    for n, s, reach in zip(spec.out_size, spec.stride, spec.reach, strict=True):
        whole = (n - 1) * s + reach
        wanted = {min(math.ceil(reach * factor), whole) for factor in _LENGTHS}
        axes.append(sorted({fft.next_fast_len(length, real=not is_complex) for length in wanted | {whole}}))
    candidates = list(product(*axes))
    small = [lengths for lengths in candidates if 2 * _tile_bytes(lengths, is_complex) <= limit]
    return min(small or candidates[:1], key=lambda lengths: _operations(spec, lengths, limit, is_complex))


def operations(spec: ConvSpec, limit: int, is_complex: bool = False) -> float:
    """Operations of the transforms, and what all else takes in the same measure."""
    return _operations(spec, tile_lengths(spec, limit, is_complex), limit, is_complex)


def _operations(spec: ConvSpec, lengths: Sizes, limit: int, is_complex: bool) -> float:
    elements, tiles = math.prod(lengths), spec.batch * spec.channels * math.prod(_tile_counts(spec, lengths))
    each = (1 + is_complex) * elements * (2.5 * math.log2(max(elements, 2)) + _MOVED / 2)
    blocks = math.ceil(tiles / _tiles_at_once(lengths, limit, is_complex))
    return (2 * tiles + spec.channels) * each + blocks * _CALLED


def workspace(spec: ConvSpec, limit: int, is_complex: bool = False) -> int:
    """Bytes of the tiles and kernels that are transformed at once."""
    lengths = tile_lengths(spec, limit, is_complex)
    tiles = spec.channels * (spec.batch * math.prod(_tile_counts(spec, lengths)) + 1)
    most, threads = _at_once(spec, lengths, limit, is_complex)
    return _tile_bytes(lengths, is_complex) * min(max(most, 2) * threads, tiles)


def _results(spec: ConvSpec, lengths: Sizes) -> Sizes:
    """Results of a tile on every axis, at the spec's stride."""
    return tuple((n - reach) // s + 1 for n, reach, s in zip(lengths, spec.reach, spec.stride, strict=True))


def _tile_counts(spec: ConvSpec, lengths: Sizes) -> Sizes:
    """Tiles on every axis."""
    return tuple(-(-n // results) for n, results in zip(spec.out_size, _results(spec, lengths), strict=True))


def _at_once(spec: ConvSpec, lengths: Sizes, limit: int, is_complex: bool) -> tuple[int, int]:
    """Tiles, or kernels, that a thread transforms, and how many threads the limit and the work are enough for."""
    most = _tiles_at_once(lengths, limit, is_complex)
    elements = math.prod(lengths) * math.prod(_tile_counts(spec, lengths)) * spec.batch * spec.channels
    enough = limit // (max(most, 2) * _tile_bytes(lengths, is_complex)) if elements > _SHARED else 1
    return most, max(1, min(team.thread_count(), enough))


def _tiles_at_once(lengths: Sizes, limit: int, is_complex: bool) -> int:
    """Tiles, or kernels, whose transforms stay below the limit."""
    return max(1, min(limit, _BLOCK_BYTES) // _tile_bytes(lengths, is_complex))


def _tile_bytes(lengths: Sizes, is_complex: bool) -> int:
    """Of a tile, its spectrum, and the results, in double precision."""
    return _ARRAYS * 8 * (1 + is_complex) * math.prod(lengths)
