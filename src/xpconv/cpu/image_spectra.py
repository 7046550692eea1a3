"""Convolutions with large windows: products of the spectra of whole images and kernels, some filters at a time.

Single precision is transformed in double, so that the error stays near the dtype's own. What lies around the images is
where they end: the zeros that a transform needs after them are those before the next. Of few images and many filters
the kernels' spectra are most of what is held, so as many filters are taken at once as a limit has room for; the
images' spectra are made again for the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft

from xpconv.cpu import cuts, team
from xpconv.cpu.results import new
from xpconv.cpu.spectra import of_kernel
from xpconv.spec import Array, ConvSpec, Sizes

_BLOCK_BYTES = 1 << 23  # of images that are transformed at once
_SHARED = 150_000  # elements whose transforms, a millisecond, are worth waking a thread
_FREQUENCIES = 1 << 12  # whose sums stay in a core's cache


@dataclass(frozen=True)
class Blocks:
    """Images, and filters of a group, whose spectra are held at a time; bytes that these take; transforms of all."""

    images: int
    filters: int
    nbytes: int
    transforms: int


@lru_cache(maxsize=1024)
def blocks(spec: ConvSpec, limit: int, is_complex: bool = False) -> Blocks:
    """As many as the limit has room for, and one of each where it has not."""
    channels, filters = max(spec.channels // spec.groups, 1), spec.filters // spec.groups
    one = math.prod(_lengths(spec)) * (16 if is_complex else 8)  # a map before its transform, and nearly so after it
    room = limit // one
    some = max(1, min(filters, (room - 2 * channels) // (channels + 3), room // (3 * channels)))
    image = 2 * channels + 3 * some  # before and after a transform, and on the way back between its axes
    images = max(1, min(spec.batch, (min(room, _BLOCK_BYTES // one) - channels * some) // image))
    held = one * (channels * some + max(images * image, 2 * channels * some))  # a kernel's taps, before and after
    again = -(-filters // some)
    transforms = spec.groups * (spec.batch * (channels * again + filters) + channels * filters)
    return Blocks(images, some, held, transforms)


def least_bytes(spec: ConvSpec) -> int:
    """That one image and one filter take."""
    return blocks(spec, 0).nbytes


@lru_cache(maxsize=1024)
def _lengths(spec: ConvSpec) -> Sizes:
    return tuple(fft.next_fast_len(max(n, 1), real=True) for n in spec.padded_size)


def conv(x: Array, w: Array, spec: ConvSpec, limit: int) -> Array:
    """The result (N, *out, F) of `x` (N, *size, C) and `w` (*window, C / groups, F).

    There are zeros around `x`, and between its elements where the spec dilates it.
    """
    y = new((spec.batch, *spec.out_size, spec.filters), x.dtype)
    if 0 in (*y.shape, *x.shape, *w.shape):
        y[...] = 0
        return y
    work = np.dtype(np.complex128 if x.dtype.kind == "c" else np.float64)
    cut = blocks(spec, limit, work.kind == "c")
    transforms = _Transforms(spec, work)
    channels, filters = spec.channels // spec.groups, spec.filters // spec.groups
    for group in range(spec.groups):
        read = slice(group * channels, (group + 1) * channels)
        for part in cuts.evenly(filters, cut.filters):
            made = slice(group * filters + part.start, group * filters + part.stop)
            kernels = transforms.of_kernels(w[..., made])
            for images in cuts.evenly(spec.batch, cut.images):
                spectra = _products(transforms.of_images(x[images, ..., read]), kernels, transforms.threads)
                transforms.back(spectra, y[images, ..., made])
    return y


class _Transforms:
    """Images and kernels to their spectra, and results back, each by all threads where that pays."""

    def __init__(self, spec: ConvSpec, work: np.dtype) -> None:
        self._spec, self._work, self._lengths = spec, work, _lengths(spec)
        self._axes = tuple(range(-spec.axes, 0))
        self.threads = team.thread_count() if math.prod(self._lengths) * spec.channels > _SHARED else 1

    def of_images(self, x: Array) -> Array:
        """(N, C, *frequencies) of (N, *size, C)."""
        spec, n = self._spec, len(x)
        steps = spec.input_dilation or (1,) * spec.axes
        axes = zip(spec.size, steps, spec.padding, spec.padded_size, strict=True)
        placed = [_placed(size, step, before, end) for size, step, (before, _), end in axes]
        there = x[:, *(read for read, _ in placed)]
        whole: Array = np.zeros((n, x.shape[-1], *self._lengths), self._work)
        whole[:, :, *(places for _, places in placed)] = there.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))
        forward = fft.fftn if self._work.kind == "c" else fft.rfftn
        return forward(whole, axes=self._axes, workers=self.threads, overwrite_x=True)

    def of_kernels(self, w: Array) -> Array:
        """(C, F, *frequencies) of (*window, C, F), as linear convolution reads it."""
        spec = self._spec
        taps = w if spec.flip else w[(slice(None, None, -1),) * spec.axes]
        spread: Array = np.zeros((*w.shape[-2:], *spec.reach), self._work)
        spread[..., *(slice(None, None, step) for step in spec.dilation)] = np.moveaxis(taps, (-2, -1), (0, 1))
        return of_kernel(spread, self._lengths, self.threads)

    def back(self, spectra: Array, out: Array) -> None:
        """Results (N, *out, F) of their spectra (N, F, *frequencies), which are lost."""
        back = fft.ifftn if self._work.kind == "c" else fft.irfftn
        y = back(spectra, self._lengths, self._axes, overwrite_x=True, workers=self.threads)
        axes = zip(self._spec.reach, self._spec.out_size, self._spec.stride, strict=True)
        y = y[..., *(slice(reach - 1, reach + (n - 1) * step, step) for reach, n, step in axes)]
        whole = y.transpose(0, *range(2, y.ndim), 1)
        out[...] = np.rint(whole).astype(np.int64) if out.dtype.kind in "iu" else whole  # the widest, so that it wraps


def _placed(size: int, step: int, before: int, end: int) -> tuple[slice, slice]:
    """Along an axis the elements that are not cropped, and their places among so many, one every so many steps."""
    first = max(-(before // step), 0)
    last = max(min(size, -(-(end - before) // step)), first)
    begin = before + first * step
    return slice(first, last), slice(begin, begin + (last - first) * step, step)


def _products(images: Array, kernels: Array, threads: int) -> Array:
    """Sums over the channels, at every frequency: (N, F, *frequencies)."""
    made = np.empty((len(images), kernels.shape[1], *images.shape[2:]), images.dtype)
    x, w, y = (a.reshape(*a.shape[:2], -1) for a in (images, kernels, made))

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            np.einsum("nct,cft->nft", x[..., part], w[..., part], out=y[..., part])

    team.share(work, cuts.evenly(y.shape[-1], _FREQUENCIES), threads)
    return made
