"""Gradients beside whose arrays NumPy would hold more than the workspace limit, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

from xpconv.cpu import cuts, pieces
from xpconv.cpu.margins import Span
from xpconv.cpu.pieces import Piece
from xpconv.engines import compiled, piecewise
from xpconv.engines.methods import itemsize
from xpconv.spec import Array, ConvSpec
from xpconv.workspace import current_limit

# --- Of inputs, around which a padding mode put copies of their elements ----------------------------------------------


def is_folded(gy: Array, spec: ConvSpec) -> bool:
    """Whether what falls on the padding is computed by itself, since the padded input's gradient takes too much."""
    padded = spec.batch * math.prod(spec.padded_size) * spec.channels * itemsize(gy)
    return spec.padding_mode not in ("zeros", "constant") and 2 * padded > pieces.share(current_limit())


def fold(gx: Array, gradient: Callable[[slice, ConvSpec], Array], spec: ConvSpec) -> None:
    """Add to `gx` (N, *size, C) what falls on the padding around it, where it was copied from.

    `gradient` gives of some images (N, *size, C), as if the padded input had a box alone, whose spec has zeros around.
    """
    sources = compiled.sources(spec)
    for box in _boxes(spec):
        part = _of_box(spec, box)
        runs = [piecewise.runs(source[lo:hi]) for source, (lo, hi) in zip(sources, box, strict=True)]
        for images in pieces.at_once(spec.batch, math.prod(part.size) * spec.channels * gx.itemsize):
            made = gradient(images, replace(part, batch=images.stop - images.start))
            for there in product(*runs):
                places, read = zip(*there, strict=True)
                gx[images, *read] += _copied_from(made[:, *places], gx[images, *read].shape)


def _copied_from(made: Array, shape: tuple[int, ...]) -> Array:
    """Gradients of copies, added up along an axis where all are of one element."""
    axes = tuple(axis for axis, (n, one) in enumerate(zip(made.shape, shape, strict=True)) if one < n)
    return made.sum(axis=axes, keepdims=True) if axes else made


def _boxes(spec: ConvSpec) -> Iterator[list[Span]]:
    """What of the padded input is not the input: before and after it along an axis, within it along those before."""
    axes = list(zip(spec.size, spec.padding, spec.padded_size, strict=True))
    inside = [(before, before + n) for n, (before, _), _ in axes]
    for axis, (_, _, padded) in enumerate(axes):
        for beyond in ((0, inside[axis][0]), (inside[axis][1], padded)):
            if beyond[0] < beyond[1]:
                yield [*inside[:axis], beyond, *((0, whole) for *_, whole in axes[axis + 1 :])]


def _of_box(spec: ConvSpec, box: list[Span]) -> ConvSpec:
    """The convolution whose input is a box of the padded one, with zeros for all else."""
    around = tuple((lo, whole - hi) for (lo, hi), whole in zip(box, spec.padded_size, strict=True))
    return replace(spec, size=tuple(hi - lo for lo, hi in box), padding=around, padding_mode="zeros")


# --- Of inputs that are brought into another layout -------------------------------------------------------------------


def of_input(spec: ConvSpec, itemsize: int) -> list[tuple[slice, slice, ConvSpec]] | None:
    """Images, rows of the input and the convolution that reads them alone; None where the whole gradient is made.

    Phases of a stride are stored between each other, channels last, and then brought into the layout.
    """
    row = math.prod(spec.size[1:]) * spec.channels * itemsize
    limit, image = pieces.share(current_limit()), spec.size[0] * row
    if spec.layout == "channels_last" or spec.batch * image <= limit:
        return None
    limit //= 2  # a part before and after it is turned
    each, rows = (limit // image, spec.size[0]) if image <= limit else (1, max(limit // row, 1))
    parts = list(product(cuts.evenly(spec.batch, each), cuts.evenly(spec.size[0], rows)))
    return [(images, some, _of_rows(spec, images, some)) for images, some in parts] if len(parts) > 1 else None


def _of_rows(spec: ConvSpec, images: slice, rows: slice) -> ConvSpec:
    before = spec.padding[0][0]
    others = [(lo, lo + n) for n, (lo, _) in zip(spec.size[1:], spec.padding[1:], strict=True)]
    part = _of_box(spec, [(before + rows.start, before + rows.stop), *others])
    return replace(part, batch=images.stop - images.start)


# --- Of weights -------------------------------------------------------------------------------------------------------


def summed(
    x: Array, gy: Array, spec: ConvSpec, gradient: Callable[[Array, Array, ConvSpec], Array], *, by_kernels: bool
) -> Array | None:
    """The gradient of the weight, of channels-last `x` and `gy`: the sum of those of pieces; None where it is whole."""
    found = _pieces(spec, x.itemsize, itemsize(x), by_kernels, pieces.share(current_limit()))
    if not found:
        return None
    total: Any = 0
    with pieces.rest():
        for piece in found:
            source, part = piecewise.read(x, spec, piece, 0)
            total = total + gradient(source, gy[piece.images, *piece.places], part)
    return total


@lru_cache(maxsize=256)
def _pieces(spec: ConvSpec, given: int, summed: int, by_kernels: bool, limit: int) -> list[Piece] | None:
    is_gathered = spec.padding_mode != "zeros"

    def held(part: ConvSpec) -> int:
        read, made = math.prod(part.x_shape), math.prod(part.y_shape)
        nbytes = 0 if given == summed else (read + made) * summed
        if not by_kernels and spec.groups > 1:  # padded, and of each tap what is beside what it is multiplied with
            nbytes += math.prod((part.batch, *part.padded_size, part.channels)) * summed
            nbytes += (math.prod((part.batch, *part.out_size, part.channels)) + made) * summed
        return nbytes + (read * given if is_gathered else 0)

    if 0 in (*spec.x_shape, *spec.w_shape, *spec.y_shape) or spec.input_dilation:
        return None
    return pieces.cut(spec, held, limit)
