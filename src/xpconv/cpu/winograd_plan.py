"""Which blocks NumPy's Winograd filtering is cut into: pieces of images, and slices of volumes or of signals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from xpconv.cpu.cuts import evenly
from xpconv.cpu.lines import LINE
from xpconv.cpu.winograd import BLOCK_ROWS, SPACE, Transform, as_images, is_staged, operations, transform_for
from xpconv.spec import ConvSpec

_BLOCK_BYTES = 2 << 20  # of a thread
_SHARED_OPERATIONS = 30_000_000  # that take longer than waking a thread
_RUNS = (16, 8, 4, 2, 1)  # results side by side whose sums share the transformed tiles, as many as memory is for

Place = tuple[int, ...]


@dataclass(frozen=True)
class Phase:
    """Of one axis of a dilated convolution every `dilation`-th element: a plain convolution of `results`."""

    first: int  # element of the input, of those that are read
    before: int  # elements of padding before it
    results: int


@dataclass(frozen=True)
class Piece:
    """Images, and rows and columns of tiles of one phase."""

    phases: tuple[Phase, Phase]
    places: tuple[int, int]  # of the phases along their axes
    images: slice
    rows: range
    columns: range

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns of tiles."""
        return self.images.stop - self.images.start, len(self.rows), len(self.columns)


@dataclass(frozen=True, eq=False)
class Block:
    """What is computed at once: pieces, and which slices of the input are added up to which slices of results."""

    pieces: list[Piece]
    sources: list[Place]  # places along the leading axes of the padded input
    results: list[Place]


@dataclass(frozen=True, eq=False)
class Plan:
    """How a convolution is cut into blocks."""

    spec: ConvSpec  # signals as images
    transform: Transform
    terms: int  # slices that are added up to one of results
    run: int  # tiles one after another that share their sums' parts, of signals; 0 for all else
    blocks: list[Block]
    block_bytes: int
    threads: int  # that the limit lets have a block each
    itemsize: int
    together: int  # blocks whose products are made together

    @property
    def groups(self) -> list[range]:
        """Numbers of the blocks whose products are made together."""
        firsts, count = range(0, len(self.blocks), self.together), len(self.blocks)
        return [range(first, min(first + self.together, count)) for first in firsts]

    @property
    def step(self) -> int:
        """Results from one row of tiles to the next: a signal's row may be a run."""
        return self.transform.results * max(self.run, 1)

    @property
    def steps(self) -> tuple[int, int]:
        """Elements of the input from one row of tiles to the next, and from one column to the next."""
        down, across = self.transform.apart
        return down * max(self.run, 1), across

    def slices(self, block: Block) -> tuple[int, int]:
        """As `_slices`, of a block."""
        return _slices(self.run or len(block.results), self.terms)


def _slices(made: int, terms: int) -> tuple[int, int]:
    """Slices of a tile that are transformed, and that are made of them: where several windows fit, whole ones."""
    sources = made + terms - 1
    if made <= terms:
        return sources, made
    filled = -(-sources // terms) * terms
    return filled, filled


@lru_cache(maxsize=256)
def plan_of(spec: ConvSpec, limit: int, itemsize: int, threads: int) -> Plan:
    """Blocks that stay close, within the limit, and as many for each thread; long rows of tiles are cut.

    Milliseconds on two cores of an Emerald Rapids, uncut and since, as many filters as channels: 64@64x8192 416, 169,
    128@256x4096 2000, 840, 32@2048x2048 710, 620, 64@8x256x256 416, 365.
    """
    transform, terms = transform_for(spec), transform_for(spec).terms(spec.window)
    threads = threads if sum(operations(spec, transform)) > _SHARED_OPERATIONS else 1
    staged = threads > 1 and is_staged(spec)
    is_run, spec = spec.axes == 1 and terms > 1, as_images(spec)
    phases = [_phases(spec, axis) for axis in (spec.axes - 2, spec.axes - 1)]
    tiles = -(-phases[0][0].results // transform.results)
    across = -(-phases[1][0].results // transform.tile[1])
    spare = transform.points * ((terms - 1) * spec.channels * itemsize + 4 * LINE)  # where the rows of a block end
    for most in _RUNS:
        run = min(tiles, -(-most // terms) * terms + 1) if is_run else 0
        leads = list(_leading(spec, most))
        made = run or max(1, *(len(results) for _, results in leads))
        fewest = min(across, -(-BLOCK_ROWS // -(-made // terms)))
        one, row = (
            _row_elements(spec, transform, _slices(made, terms), run, columns) * itemsize for columns in (1, fewest)
        )
        if row + spare <= limit:
            break
    columns = max(1, min(across, (min(limit, max(_BLOCK_BYTES, row)) - spare) // one))
    columns = -(-across // -(-across // columns))
    row = _row_elements(spec, transform, _slices(made, terms), run, columns) * itemsize
    threads = max(1, min(threads, limit // (row + spare)))
    wanted = max(_BLOCK_BYTES // row, -(-BLOCK_ROWS // (columns * -(-made // terms))))
    pieces = list(_uncut(spec, phases, transform, max(run, 1), columns))
    total = sum(math.prod(piece.shape[:2]) for piece in pieces)
    rounds = 1 if staged else max(1, round(total * len(leads) / (wanted * threads)))
    rows = max(1, min((limit // threads - spare) // row, -(-total * len(leads) // (rounds * threads))))
    blocks = [Block(part, *lead) for part in _cut(pieces, rows) for lead in leads]
    together, threads = threads if staged else 1, min(threads, len(blocks))
    return Plan(spec, transform, terms, run, blocks, rows * row + spare, threads, itemsize, together)


def _row_elements(spec: ConvSpec, transform: Transform, slices: tuple[int, int], run: int, across: int) -> int:
    """Elements of memory that so many tiles of a row take: what is cut, and two arrays that all steps take in turn."""
    sources, made = slices
    height = transform.edges[0] + (sources - 1) * transform.results * bool(run)
    width = (across - 1) * transform.apart[1] + transform.edges[1]
    whole = height * width * (1 if run else sources) * spec.channels
    cut, results = math.prod(transform.edges) * sources * spec.channels, math.prod(transform.tile) * made * spec.filters
    spectrum, total = transform.points * sources * spec.channels, transform.points * made * spec.filters
    return whole + across * (max(cut, total) + max(spectrum, results))


def _phases(spec: ConvSpec, axis: int) -> list[Phase]:
    dilation, (before, _), results = spec.dilation[axis], spec.padding[axis], spec.out_size[axis]
    phases = []
    for place in range(min(dilation, results)):
        padding = max(0, -(-(before - place) // dilation))
        phases.append(Phase(place + padding * dilation - before, padding, -(-(results - place) // dilation)))
    return phases


def _uncut(spec: ConvSpec, phases: list[list[Phase]], transform: Transform, run: int, most: int) -> Iterator[Piece]:
    """All images and rows of every phase, at most so many of its columns at a time."""
    for (at, down), (by, across) in product(*map(enumerate, phases)):
        rows = range(-(-down.results // (transform.tile[0] * run)))
        for columns in evenly(-(-across.results // transform.tile[1]), most):
            some = range(columns.start, columns.stop)
            yield Piece((down, across), (at, by), slice(0, spec.batch), rows, some)


def _cut(pieces: list[Piece], most: int) -> Iterator[list[Piece]]:
    """Pieces with so many tile rows together."""
    part, left = [], most
    for piece in pieces:
        image, row, per_image = 0, 0, len(piece.rows)
        while image < piece.images.stop:
            images = 1 if row else max(1, min(left // per_image, piece.images.stop - image))
            stop = min(per_image, row + left)
            part.append(replace(piece, images=slice(image, image + images), rows=range(row, stop)))
            left -= images * (stop - row)
            image, row = (image + images, 0) if stop == per_image else (image, stop)
            if not left:
                yield part
                part, left = [], most
    if part:
        yield part


def _leading(spec: ConvSpec, most: int) -> Iterator[tuple[list[Place], list[Place]]]:
    """Slices to read and slices that they make: runs of so many along the last of the leading axes, or one by one."""
    sizes, window, dilation = (of[:-SPACE] for of in (spec.out_size, spec.window, spec.dilation))
    if not sizes:
        yield [()], [()]
        return
    if len(sizes) == 1 and dilation == (1,):
        runs = -(-sizes[0] // most)
        step = -(-sizes[0] // runs)
        for first in range(0, sizes[0], step):
            last = min(first + step, sizes[0])
            yield [(k,) for k in range(first, last + window[0] - 1)], [(k,) for k in range(first, last)]
        return
    for place in np.ndindex(*sizes):
        taps = (tuple(p + k * d for p, k, d in zip(place, tap, dilation, strict=True)) for tap in np.ndindex(*window))
        yield list(taps), [place]


def apart(size: int, itemsize: int) -> int:
    """Elements from the beginning of a row of so many to that of the next: an odd number of cache lines.

    Rows a power of two apart would all take the same places of the cache.
    """
    return (-(-size * itemsize // LINE) | 1) * LINE // itemsize
