"""Poolings of few taps in NumPy, strip by strip of rows, which the threads of a team share.

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

from xpconv.cpu import running, team
from xpconv.cpu.memory import borrowed
from xpconv.spec import Array, PoolSpec

_STRIP_BYTES = 1 << 21  # that a strip reads: with a quarter, a thread twice as often waits for the other's indices
_SHARED_BYTES = 1 << 20  # whose merging takes longer than waking a thread
_HELD = 3  # times what a strip reads, at most, beside the result


class _Strip(NamedTuple):
    """Images, rows of results, and along every axis the taps of their windows."""

    images: slice
    rows: slice
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
                    part, out = maps[strip.images], results[strip.images, strip.rows]
                    for taps in strip.axes[:-1]:
                        merged = memory.take(f"axis {taps.axis}", taps.merged_shape(part), part.dtype)
                        part = running.merged_taps(part, taps, merge, fill, merged)
                    running.merged_taps(part, strip.axes[-1], merge, fill, out)
                    if divisors is not None:
                        np.divide(out, divisors if divisors.ndim == 0 else divisors[strip.rows], out=out)

        team.share(work, strips, threads)

    return pooled


def told(spec: PoolSpec, itemsize: int, limit: int) -> tuple[str, int]:
    """The largest strip, in words, and how many threads share them."""
    images, channels = _maps(spec)
    strips, threads = _strips(spec, images, channels * itemsize, limit, team.thread_count())
    if not strips:
        return "the whole result", threads
    (some, rows, _), *_ = strips
    maps = f"{some.stop - some.start} of {images} " + ("images" if spec.layout == "channels_last" else "planes")
    return f"{maps}, {rows.stop - rows.start} of {spec.out_size[0]} rows", threads


@lru_cache(maxsize=64)
def _strips(spec: PoolSpec, images: int, pixel: int, limit: int, threads: int) -> tuple[list[_Strip], int]:
    """Strips of as many rows each, and how many threads there is enough to do for; a pixel is some bytes."""
    height, total = spec.out_size[0], images * spec.out_size[0]
    across = math.prod(map(max, spec.size[1:], spec.out_size[1:]))
    row = across * pixel * min(spec.stride[0], spec.reach[0])  # read for one more of results
    threads = threads if total * row > _SHARED_BYTES else 1
    close = min(_STRIP_BYTES, limit // (_HELD * threads))
    rows = max(1, min(close // max(row, 1), -(-total // threads)))
    others = [taps_of(spec, axis, 0, spec.out_size[axis]) for axis in range(1, spec.axes)]
    each, rows = max(1, rows // max(height, 1)), -(-height // -(-height // rows)) if height else 1
    down = [slice(begin, min(begin + rows, height)) for begin in range(0, height, rows)]
    axes = [[taps_of(spec, 0, part.start, part.stop), *others] for part in down]
    places = product(range(0, images, each), zip(down, axes, strict=True))
    strips = [_Strip(slice(n, min(n + each, images)), *strip) for n, strip in places]
    return strips, max(1, min(threads, len(strips)))


def taps_of(spec: PoolSpec, axis: int, begin: int, stop: int) -> running.Taps:
    """Those of the windows of some results."""
    window, step, stride = spec.window[axis], spec.dilation[axis], spec.stride[axis]
    first = begin * stride - spec.padding[axis][0]
    return running.taps_of(spec.size[axis], stop - begin, window, step, stride, axis + 1, first)
