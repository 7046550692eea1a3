"""Where Winograd's tiles lie: in the input, in the results, and in the planes that their points are multiplied in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from xpconv.cpu.compiled.blocks import Blocks, Sources, grid
from xpconv.cpu.compiled.transforms import Form
from xpconv.cpu.lines import LINE
from xpconv.spec import Array, ConvSpec, Sizes


def whole_of(spec: ConvSpec, form: Form) -> ConvSpec:
    """The convolution with whole windows of tiles, and as much more padding at the end as they and whole tiles need."""
    lead, window, padding = spec.axes - 2, list(spec.window), list(spec.padding)
    for axis, (results, edge) in enumerate(zip(form.matrices.tile, form.matrices.edges, strict=True), start=lead):
        stride, dilation, (before, after) = spec.stride[axis], spec.dilation[axis], padding[axis]
        missing = -window[axis] % (edge - (results - 1) * stride)
        window[axis] += missing
        padding[axis] = before, after + missing * dilation + -spec.out_size[axis] % (results * dilation) * stride
    return replace(spec, window=tuple(window), padding=tuple(padding))


def terms_of(whole: ConvSpec, form: Form) -> Array:
    """How many units beyond its tile each term of a sum is read: planes, or tiles, of as many taps as results."""
    if whole.axes == 3:
        return np.arange(whole.window[0]) * whole.dilation[0]
    return np.arange(whole.window[0] // form.matrices.taps)


def in_tile(form: Form, whole: ConvSpec, steps: Sizes) -> tuple[int, int]:
    """Bytes between the rows and between the columns of a tile, where elements of the last two axes are steps apart."""
    down, across = (step * dilation for step, dilation in zip(steps, whole.dilation[-2:], strict=True))
    return (form.matrices.fold * down, down) if form.matrices.fold else (down, across)


def unit_of(whole: ConvSpec, form: Form) -> int:
    """Rows of the first axis that tiles come in: those of a tile, dilated, or one plane of a volume."""
    return form.matrices.tile[0] * whole.dilation[0] if whole.axes == 2 else 1


def tile_counts(whole: ConvSpec, form: Form, rows: int, images: int) -> tuple[int, int]:
    """Tiles of a block's input, and of its results."""
    band, units = band_of(whole, form), rows // unit_of(whole, form)
    return images * (units + int(terms_of(whole, form)[-1])) * band, images * units * band


def plane_bytes(tiles: int, maps: int, size: int) -> int:
    """Bytes from one point of the tiles to the next: lines of the cache, an odd number of them.

    Transforms touch a line of every point at a time. Where planes were 16 KB apart, all of these lay in one set of the
    cache, and a transform took 2.3 times as long.
    """
    return (-(-tiles * maps * size // LINE) | 1) * LINE


def band_of(whole: ConvSpec, form: Form) -> int:
    """Tiles of one unit of the first axis."""
    line = math.prod(whole.out_size[1:])
    return line * unit_of(whole, form) // math.prod(form.matrices.tile)


def sources_of(whole: ConvSpec, *, spec: ConvSpec, sources: Sources) -> tuple[Array, ...]:
    """Where the padded input comes from; the padding that only completes tiles lies outside."""
    ends = (after[1] - before[1] for before, after in zip(spec.padding, whole.padding, strict=True))
    return tuple(np.pad(s, (0, end), constant_values=-1) for s, end in zip(sources(spec), ends, strict=True))


def block_strides(spec: ConvSpec, y_strides: Sizes, size: int, turned: bool) -> Sizes:
    """Bytes between neighbours of what a block stores: of `y`, or of rows that are transposed afterwards."""
    if not turned:
        return y_strides
    steps = [spec.filters * size, size]
    for n in reversed(spec.out_size):
        steps.insert(0, steps[0] * n)
    return tuple(steps)


def tiles_of(whole: ConvSpec, form: Form) -> Array:
    """The row and column that each tile of a unit begins in: those of all units would take megabytes."""
    (tall, wide), (down, across) = form.matrices.tile, whole.dilation[-2:]
    height = whole.out_size[-2] if whole.axes == 3 else unit_of(whole, form)
    counts = (height // (tall * down), down, across, whole.out_size[-1] // (wide * across))  # rows, phases, columns
    return np.stack([grid(counts, [tall * down, 1, 0, 0]), grid(counts, [0, 0, 1, wide * across])], axis=1)


def products_of(spec: ConvSpec, cut: Blocks, whole: ConvSpec, form: Form, size: int) -> dict[str, Array]:
    """Where the products of a block's tiles read and write, and how far apart the terms of a sum lie."""
    units, band, terms = cut.rows // unit_of(whole, form), band_of(whole, form), terms_of(whole, form)
    rows = np.arange(cut.images)[:, None] * (units + int(terms[-1])) * band + np.arange(units * band)
    return {
        "pixels": (rows.reshape(-1) * (spec.channels * size)).astype(np.int64),
        "rows_out": np.arange(rows.size, dtype=np.int64) * (spec.filters * size),
        "taps": (terms * (band * spec.channels * size)).astype(np.int64),
    }
