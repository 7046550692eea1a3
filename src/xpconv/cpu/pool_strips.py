"""Poolings of few taps in NumPy, strip by strip of rows, or of a part of one, which the threads of a team share.

A strip is merged axis by axis, and divided, while it is close. What lies around the maps is not put there: a tap is
merged into those results whose windows have it on the map. Of 64 channels of 112x112, N = 8, windows of three took 9 ms
when all maps were padded and merged along one axis after the other, and take 2.1 (two cores of a Zen 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from xpconv.cpu import cuts, running, team
from xpconv.cpu.memory import borrowed
from xpconv.spec import Array, PoolSpec

_STRIP_BYTES = 1 << 21  # that a strip reads: with a quarter, a thread twice as often waits for the other's indices
_SHARED_BYTES = 1 << 20  # whose merging takes longer than waking a thread
_HELD = 3  # times what a strip reads, at most, beside the result


class _Strip(NamedTuple):
    """A part of all maps that is read, one of the results, and along every axis the taps of their windows."""

    read: tuple[slice, ...]
    results: tuple[slice, ...]
    axes: list[running.Taps]


def _maps(spec: PoolSpec) -> tuple[int, int]:
    """Maps, and the channels of each, of most arrays."""
    return (spec.batch, spec.channels) if spec.layout == "channels_last" else (spec.batch * spec.channels, 1)


def as_maps(read: Array, written: Array, spec: PoolSpec) -> tuple[Array, Array]:
    """Views (maps, *size, channels) of both as they lie: with channels first every plane is a map of one channel.

    It is not where planes do not follow each other: they would have to be copied. What is written lies in one piece.
    """
    if spec.layout == "channels_last":
        return read, written
    if spec.batch == 1 or read.strides[0] == spec.channels * read.strides[1]:
        planes = spec.batch * spec.channels
        return read.reshape(planes, *read.shape[2:], 1), written.reshape(planes, *written.shape[2:], 1)
    return np.moveaxis(read, 1, -1), np.moveaxis(written, 1, -1)


def fits(spec: PoolSpec, merge: np.ufunc) -> bool:
    """Whether merging tap by tap takes no more passes than doubling, along any axis."""
    axes = zip(spec.padded_size, spec.window, spec.dilation, spec.stride, strict=True)
    return not any(running.pays(*axis, merge) for axis in axes)


def prepared(
    spec: PoolSpec, itemsize: int, merge: np.ufunc, fill: float, divisors: Array | None, limit: int
) -> Callable[[Array, Array], None]:
    """A function of x and y, in the spec's layout: the windows of maps, merged, and divided by `divisors` (*out, 1)."""

    def strips_of(images: int, channels: int) -> tuple[list[_Strip], int]:
        return _strips(spec, images, channels * itemsize, limit, team.thread_count())

    images, channels = _maps(spec)
    most_often = strips_of(images, channels)

    def pooled(x: Array, y: Array) -> None:
        maps, results = as_maps(x, y, spec)
        strips, threads = most_often if maps.shape[-1] == channels else strips_of(len(maps), maps.shape[-1])

        def work(strips: Iterator[_Strip]) -> None:
            with borrowed("pools") as memory, np.errstate(over="ignore", invalid="ignore"):
                for strip in strips:
                    part, out = maps[strip.read], results[strip.results]
                    for taps in strip.axes[:-1]:
                        merged = memory.take(f"axis {taps.axis}", taps.merged_shape(part), part.dtype)
                        part = running.merged_taps(part, taps, merge, fill, merged)
                    running.merged_taps(part, strip.axes[-1], merge, fill, out)
                    if divisors is not None:
                        np.divide(out, divisors if divisors.ndim == 0 else divisors[strip.results[1:]], out=out)

        team.share(work, strips, threads)

    return pooled


def told(spec: PoolSpec, itemsize: int, limit: int) -> tuple[str, int]:
    """The largest strip, in words, and how many threads share them."""
    images, channels = _maps(spec)
    strips, threads = _strips(spec, images, channels * itemsize, limit, team.thread_count())
    if not strips:
        return "the whole result", threads
    kind = "images" if spec.layout == "channels_last" else "planes"
    return cuts.in_words(strips[0].results, images, spec.out_size, kind), threads


@lru_cache(maxsize=64)
def _strips(spec: PoolSpec, images: int, pixel: int, limit: int, threads: int) -> tuple[list[_Strip], int]:
    """Strips of as many rows each, and how many threads there is enough to do for; a pixel is some bytes.

    They are cut along the first axis of which the limit is enough for a row, one along each axis before it, or that has
    short rows.
    """
    of_axes = [_read_across(spec, axis) * pixel for axis in range(spec.axes)]
    of_first = [_HELD * across * reach for across, reach in zip(of_axes, spec.reach, strict=True)]
    axis, within = cuts.along(of_first, limit)
    height, others = spec.out_size[axis], spec.out_size[:axis]
    row, total = of_axes[axis] * min(spec.stride[axis], spec.reach[axis]), images * math.prod(others) * height
    threads = max(1, min(threads, within // max(of_first[axis], 1))) if total * row > _SHARED_BYTES else 1
    close = min(_STRIP_BYTES, within // (_HELD * threads))
    rows = max(1, min(close // max(row, 1), -(-total // threads)))
    each = 1 if axis else max(1, rows // max(height, 1))
    whole = [taps_of(spec, after, 0, spec.out_size[after]) for after in range(axis + 1, spec.axes)]
    cut_axes = [
        [_cut(spec, at, part.start, part.stop) for part in cuts.evenly(size, most)]
        for at, (size, most) in enumerate([*((size, 1) for size in others), (height, rows)])
    ]
    strips = []
    for n, parts in product(range(0, images, each), product(*cut_axes)):
        some, (read, results, taps) = slice(n, min(n + each, images)), zip(*parts, strict=True)
        strips.append(_Strip((some, *read), (some, *results), [*taps, *whole]))
    return strips, max(1, min(threads, len(strips)))


def _read_across(spec: PoolSpec, axis: int) -> int:
    """Pixels of one place along an axis, that windows of one along each axis before it read, or results if more."""
    return math.prod(spec.reach[:axis]) * math.prod(map(max, spec.size[axis + 1 :], spec.out_size[axis + 1 :]))


def _cut(spec: PoolSpec, axis: int, begin: int, stop: int) -> tuple[slice, slice, running.Taps]:
    """What some results along an axis read, they, and the taps of their windows in what is read."""
    size, stride = spec.size[axis], spec.stride[axis]
    first = begin * stride - spec.padding[axis][0]
    low = min(max(first, 0), size)
    high = max(min((stop - begin - 1) * stride + first + spec.reach[axis], size), low)
    shape = high - low, stop - begin, spec.window[axis], spec.dilation[axis], stride, axis + 1
    return slice(low, high), slice(begin, stop), running.taps_of(*shape, first - low)


def taps_of(spec: PoolSpec, axis: int, begin: int, stop: int) -> running.Taps:
    """Those of the windows of some results."""
    window, step, stride = spec.window[axis], spec.dilation[axis], spec.stride[axis]
    first = begin * stride - spec.padding[axis][0]
    return running.taps_of(spec.size[axis], stop - begin, window, step, stride, axis + 1, first)
