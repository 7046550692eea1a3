"""The result in blocks, and how the input of a block is read: from where it lies, or gathered in memory of its own.

A block is some rows of the result along the first spatial axis, of one item of the batch or of several whole ones.
Where the input is padded, or lies in memory otherwise than channels last, the rows that a block reads are gathered,
padding and all, in the thread's own memory: a few hundred kilobytes that stay in its cache. No padded copy of the
whole input is ever made. Kernels that find each element by a table (`placed`) gather no padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np

from xpconv.cpu.address import Told
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import OUTSIDE
from xpconv.cpu.compiled.values import Operand, Value
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

Sources: TypeAlias = Callable[[ConvSpec | PoolSpec], tuple[Array, ...]]

BLOCK_BYTES = 1 << 18  # of input that a block reads, about: a quarter of a level 2 cache or a half
FIELDS = (
    "x_item", "x_row", "batch", "images", "image_groups", "rows", "row_blocks", "out_rows", "line", "stride",
    "reach", "gathered", "row_sources", "runs", "run_count", "geometry", "strip", "longer", "more_rows",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of at most `rows` rows of `images` items, and the tables that their input is found with."""

    images: int
    rows: int
    image_groups: int
    row_blocks: int
    line: int  # results in a row
    strip: int  # bytes that one image's share of a block takes when gathered; 0 where it is read in place
    steps: Sizes  # bytes from one position to the next on each axis of what a block reads, then between images
    placed: bool  # whether its input is all of its images, in which tables tell where each position lies
    tables: dict[str, Array]  # kept alive here: kernels know addresses
    numbers: dict[str, int]

    @property
    def count(self) -> int:
        """How many there are."""
        return self.image_groups * self.row_blocks

    @property
    def pixels(self) -> int:
        """Results of a whole block."""
        return self.images * self.rows * self.line

    def strides(self, itemsize: int) -> Sizes:
        """Bytes between neighbours of what a block reads, as those of an array (N, *size, C)."""
        return (self.steps[-1], *self.steps[:-1], itemsize)

    def places(self, counts: Sizes, steps: Sizes) -> Array:
        """Bytes from the start of a block's input to every place of a grid over the spatial axes."""
        return grid(counts, [step * s for _, step, s in zip(counts, self.steps, steps, strict=False)])

    def starts(self, spec: ConvSpec | PoolSpec) -> Array:
        """Where, in a block's input, the window of each of its results begins, in bytes."""
        one = self.places((self.rows, *spec.out_size[1:]), spec.stride)
        return (np.arange(self.images, dtype=np.int64)[:, None] * self.steps[-1] + one).reshape(-1)

    def results(self, spec: ConvSpec | PoolSpec, y_strides: Sizes, pixel: int, turned: bool) -> Array:
        """Where, from the start of a block's results, each pixel's begin, in bytes.

        Results that are `turned` lie in memory of the thread's own, pixels apart, and are transposed afterwards.
        """
        if turned:
            return np.arange(self.pixels, dtype=np.int64) * pixel
        one = grid((self.rows, *spec.out_size[1:]), list(y_strides[1:-1]))
        return (np.arange(self.images, dtype=np.int64)[:, None] * y_strides[0] + one).reshape(-1)


class Arguments(Told):
    """What a task is told, by name: of the first so many the arrays of a call each time, numbers and tables once."""

    def __init__(
        self, names: tuple[str, ...], arrays: int, numbers: dict[str, int], tables: dict[str, Array],
        cut: Blocks | None = None,
    ) -> None:  # fmt: skip
        unknown = numbers.keys() - set(names)  # tables may only be there for others, which hold their addresses
        assert not unknown, f"the task is told no {unknown}"
        numbers, tables = (numbers, tables) if cut is None else (cut.numbers | numbers, cut.tables | tables)
        self._kept = tables, cut  # kernels know addresses only, and tables hold some, even of those with another's name
        values = {**numbers, **{name: table.ctypes.data for name, table in tables.items()}}
        super().__init__(arrays, [values.get(name, 0) for name in names[arrays:]])


def strides_of(array: Array) -> Sizes:
    """Bytes between neighbours on each axis; a single channel lies as channels do that are last."""
    return array.strides if array.shape[-1] != 1 else (*array.strides[:-1], array.itemsize)


def grid(counts: Sizes, steps: list[int]) -> Array:
    """Every place of a grid, in order."""
    places = np.zeros(1, np.int64)
    for count, step in zip(counts, steps, strict=True):
        places = (places[:, None] + np.arange(count, dtype=np.int64) * step).reshape(-1)
    return places


def blocks_of(
    spec: ConvSpec | PoolSpec, strides: Sizes, dtype: str, team: int, sources: Sources, fill: float, limit: int,
    shape: tuple[int, int] | None = None, gap: int = 0, placed: bool = False, unit: int = 0,
) -> Blocks:  # fmt: skip
    """Blocks for channels-last `strides`, at least one for each of a team; or those of a `shape`, rows and images.

    Where rows come in units (0 for none) and images are not as many for each thread, blocks are, and differ by a unit
    at most, the longer ones first. N=1 on two threads: 3x3 256@56 with 7 blocks of 2 units 4.10 ms, with 6 of 2 and 2
    of 1 3.85; 64@56 with 4, 4, 4 and 2 units 0.356, with 4, 4, 3 and 3 0.326.

    What one gathers stays below `limit` bytes, unless a single window's rows do not. With a `gap` all input is
    gathered, with so many bytes between positions. What is `placed` is read by tables of places from wherever channels
    are last, padded or not, and a block's input is then all of its images'.
    """
    size, first = np.dtype(dtype).itemsize, spec.out_size[0]
    gathered = gap > 0 or (strides[-1] != size if placed else not in_place(spec, strides, size))
    positions, position = math.prod(spec.padded_size[1:]), spec.channels * size + gap
    row_bytes = positions * position
    rows, images = shape or _shape(spec, row_bytes, team, min(limit, BLOCK_BYTES), size)
    if shape is None:
        rows = max(min(rows, _rows_held(spec, row_bytes, limit)), 1)
    row_blocks, longer = -(-first // rows), 0
    if unit and row_blocks > 1 and spec.batch % team:
        units = first // unit
        row_blocks = min(-(-row_blocks // team) * team, units)
        rows, longer = -(-units // row_blocks) * unit, units % row_blocks
    strip = ((rows - 1) * spec.stride[0] + spec.reach[0]) * row_bytes
    numbers = {
        "x_item": strides[0], "x_row": 0 if placed else strides[1] * spec.stride[0], "batch": spec.batch,
        "images": images, "image_groups": -(-spec.batch // images), "rows": rows - unit * min(longer, 1),
        "longer": longer, "more_rows": unit, "row_blocks": row_blocks, "out_rows": first,
        "line": math.prod(spec.out_size[1:]), "stride": spec.stride[0], "reach": spec.reach[0],
        "gathered": int(gathered), "strip": strip,
    }  # fmt: skip
    tables = _gathering(spec, strides, positions, position, dtype, sources, fill) if gathered else _nothing()
    numbers["run_count"] = len(tables["runs"])
    steps = _dense_steps(spec, position, strip) if gathered else (*strides[1:-1], strides[0])
    return Blocks(
        images, rows, numbers["image_groups"], numbers["row_blocks"], numbers["line"], strip if gathered else 0, steps,
        placed and not gathered, tables, numbers,
    )  # fmt: skip


def in_place(spec: ConvSpec | PoolSpec, strides: Sizes, size: int) -> bool:
    """Whether windows can be read from where the input lies: neither padded nor in another order."""
    padded = any(pads != (0, 0) for pads in spec.padding) or bool(getattr(spec, "input_dilation", ()))
    dense = strides[-1] == size and strides[-2] == size * spec.channels and min(strides) >= 0
    return dense and not padded and spec.padded_size == spec.size


def _rows_held(spec: ConvSpec | PoolSpec, row_bytes: int, nbytes: int) -> int:
    """Rows of the result whose input takes so many bytes."""
    return (nbytes // max(row_bytes, 1) - spec.reach[0]) // spec.stride[0] + 1


def _shape(spec: ConvSpec | PoolSpec, row_bytes: int, team: int, nbytes: int, size: int) -> tuple[int, int]:
    """Rows and images of a block: what the cache holds, evenly, and something for everybody."""
    first, stride, reach = spec.out_size[0], spec.stride[0], spec.reach[0]
    held = max(
        _rows_held(spec, row_bytes, nbytes), -(-2 * reach // stride), 1
    )  # at least as many new rows as are gathered again
    parts = max(-(-first // held), min(-(-team // spec.batch), first))
    rows = -(-first // parts)
    if rows < first and parts * spec.batch < _MANY * team:
        return _evenly(spec, max(held, _rows_held(spec, row_bytes, 2 * nbytes)), team, size), 1
    if rows < first:
        return rows, 1
    strip = max(spec.padded_size[0] * row_bytes, 1)
    groups = max(-(-spec.batch * strip // nbytes), min(spec.batch, team))
    return rows, max(-(-spec.batch // groups), 1)


_MANY = 8  # blocks for each of a team, which then hardly wait for the last
_AGAIN = 0.2  # of a row's time, to gather it once more
_LATE = 0.25  # of a block's time, that threads are apart at the end
_IN_CACHE = 3 << 18  # bytes of a weight that stay in a level 2 cache
_READ = (2, 8)  # results whose products take as long as reading the weight, from that cache and from beyond it


def _evenly(spec: ConvSpec | PoolSpec, most: int, team: int, size: int) -> int:
    """Rows of a block, of few blocks, with which a team is done the soonest.

    That is when the busiest has the least to do, what every block reads again included, and a part of a block's time
    later, as threads do not go on equally fast.

    Milliseconds of N=1 on two threads. Zen 4: 3x3 128@56 of stride 2 with 9 blocks of 3 rows and one of the last 0.53,
    with 4 of 7 0.50; 1x1 1024->256@14 with 4, 4, 4 and 2 rows 0.28, with 7 and 7 0.23. Emerald Rapids, whose two
    threads are seldom as fast as each other: stem with 2 blocks of 56 rows 1.21, with 7 of 16 1.00; 3x3 256@28 of
    stride 2, whose weight lies far, with 2 of 7 0.90, with 7 of 2 1.28.
    """
    first, again = spec.out_size[0], _AGAIN * (spec.reach[0] - spec.stride[0]) / spec.stride[0]
    if isinstance(spec, ConvSpec):
        far = math.prod(spec.w_shape) * size > _IN_CACHE
        again += _READ[far] / math.prod(spec.out_size[1:])

    def longest(rows: int) -> float:
        busy = [0.0] * team
        for _ in range(spec.batch):
            for row in range(0, first, rows):
                busy[busy.index(min(busy))] += min(rows, first - row) + again
        return max(busy) + _LATE * rows

    return min(range(min(first, most), 0, -1), key=longest)


def _dense_steps(spec: ConvSpec | PoolSpec, position: int, strip: int) -> Sizes:
    """Bytes from one position to the next on each axis of gathered rows, and from one image to the next."""
    steps = [position]
    for n in reversed(spec.padded_size[1:]):
        steps.insert(0, steps[0] * n)
    return (*steps, strip)


def _gathering(
    spec: ConvSpec | PoolSpec, strides: Sizes, positions: int, position: int, dtype: str, sources: Sources, fill: float
) -> dict[str, Array]:
    """The tables that `gather_kernel` reads."""
    first, *others = sources(spec)
    line = np.zeros(1, np.int64)
    for source, step in zip(others, strides[2:-1], strict=True):
        places = (line[:, None] + source * step).reshape(-1)
        line = np.where(((line == OUTSIDE)[:, None] | (source < 0)).reshape(-1), OUTSIDE, places)
    runs = runs_of(line, strides[-2])
    whole = len(runs) == 1 and runs[0, 0] == 0 and (not others or strides[1] == positions * strides[-2])
    outside = np.array([fill], dtype)
    geometry = [
        strides[-2], strides[-1], spec.channels, positions, strides[1] if whole else 0, outside.ctypes.data,
        position,
    ]  # fmt: skip
    return {
        "row_sources": np.where(first < 0, OUTSIDE, first * strides[1]),
        "runs": runs,
        "geometry": np.array(geometry, np.int64),
        "outside": outside,
    }


def runs_of(line: Array, step: int) -> Array:
    """Pairs of a beginning and a length: positions that follow each other by a step, or are all outside."""
    outside = line == OUTSIDE
    breaks = (outside[1:] != outside[:-1]) | (~outside[1:] & (np.diff(line) != step))
    starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    return np.stack([line[starts], np.diff(np.append(starts, len(line)))], axis=1).astype(np.int64)


def _nothing() -> dict[str, Array]:
    return {name: np.zeros(0, np.int64) for name in ("row_sources", "runs", "geometry")}


# --- Inside kernels ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The block of one item, inside a kernel."""

    count: Value  # results
    pixels: Value  # results of one image
    first: Value  # image
    images: Value
    row: Value  # of the result
    rows: Value
    free: Value  # scratch memory beyond what is gathered


def opened(kernel: Kernel, given: SimpleNamespace, block: Value, scratch: Value) -> Block:
    """Find the block of that number."""
    place, first = block % given.row_blocks, (block // given.row_blocks) * given.images
    row = place * given.rows + kernel.minimum(place, given.longer) * given.more_rows
    most = (place < given.longer).where(given.rows + given.more_rows, given.rows)
    rows = kernel.minimum(given.out_rows - row, most)
    images = kernel.minimum(given.batch - first, given.images)
    free = scratch + given.gathered * given.images * given.strip
    return Block(images * rows * given.line, rows * given.line, first, images, row, rows, free)


def read(
    kernel: Kernel, given: SimpleNamespace, block: Block, scratch: Value, gather: Kernel, offset: Operand = 0
) -> Value:
    """Where a block's input lies, so many bytes from the first channel; gathered now where that has to be."""
    x = given.x + offset
    source = kernel.variable(x + block.first * given.x_item + block.row * given.x_row)
    with kernel.when(given.gathered > 0):
        with kernel.loop(block.images) as image:
            kernel.call(
                gather, x + (block.first + image) * given.x_item, given.row_sources + block.row * given.stride * 8,
                (block.rows - 1) * given.stride + given.reach, given.runs, given.run_count, given.geometry,
                scratch + image * given.strip,
            )  # fmt: skip
        source.set(scratch)
    return source.get()
