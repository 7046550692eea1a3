"""Where the elements of a tile's windows lie, by tables of the padded input's rows and columns.

Padded input is then read from where it lies, whatever the padding repeats; where it repeats nothing, an element is a
row of what is outside. Addresses are found once for a tile, a vector of them at a time, and serve all of its channels.
Gathering took a third of the time of 3x3 windows, and a fifth of 5x5 ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from xpconv.cpu.compiled.blocks import Blocks, Sources
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import OUTSIDE, lanes_of
from xpconv.cpu.compiled.values import I64, Value, vector
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

FIELDS = ("row_places", "column_places", "image_step", "row_step", "grid")
MOST = 256  # places of a tile that there is memory for


def line(elements: int) -> int:
    """Places that are found together for so many elements side by side: whole vectors of them."""
    here = machine()
    assert here is not None
    lanes = 8 * here.vector_bytes // I64.width
    return -(-elements // lanes) * lanes


def places_of(sources: Sequence[Array], steps: Sizes) -> list[Array]:
    """Where the elements of each axis lie, in bytes, of which `sources` tell the numbers; OUTSIDE where nothing is."""
    return [np.where(source < 0, OUTSIDE, source * step) for source, step in zip(sources, steps, strict=True)]


def outside_of(channels: int, fill: float, dtype: str) -> Array:
    """What is read there: whole vectors of it."""
    lanes = lanes_of(dtype)
    return np.full(-(-channels // lanes) * lanes, fill, dtype)


def tables_of(
    spec: ConvSpec | PoolSpec, cut: Blocks, x_strides: Sizes, dtype: str, sources: Sources, fill: float, run: int
) -> tuple[dict[str, int], dict[str, Array]]:
    """Numbers and tables of two axes, for taps of a run of columns, of what a block gathered or of the whole input."""
    if cut.strip:
        rows, columns = (
            np.arange(n, dtype=np.int64) * step for n, step in zip(spec.padded_size, cut.steps[:2], strict=True)
        )
    else:
        rows, columns = places_of(sources(spec), x_strides[1:-1])
    outside = outside_of(spec.channels, fill, dtype)
    grid = [spec.window[0], 8 * spec.dilation[0], spec.window[1] // run, outside.ctypes.data]
    tables = {
        "row_places": rows,
        "column_places": np.append(columns, np.full(line(1), OUTSIDE)),  # vectors read beyond the last
        "grid": np.array(grid, np.int64),
        "outside": outside,  # kept alive here: kernels know its address
    }
    numbers = {"image_step": cut.steps[-1], "row_step": 8 * spec.stride[0]}
    return numbers, tables


def across(kernel: Kernel, given: SimpleNamespace) -> Value:
    """Taps that follow each other in a row of a window."""
    return kernel.load(given.grid, offset=16)


def found(kernel: Kernel, given: SimpleNamespace, elements: int, run: int, more: int) -> Value:
    """Where, on the stack, the places of so many elements of every tap are now: of each tap as many as fill vectors.

    `rows` and `columns` are where the first tap's begin in their tables; taps follow each other by a run of columns,
    and so many `more` rows of them by a step down.
    """
    down, down_step, outside = (kernel.load(given.grid, offset=8 * i) for i in (0, 1, 3))
    lanes, table = line(1), kernel.memory(I64, MOST)
    start, nothing, target = kernel.splat(given.x, lanes), kernel.splat(outside, lanes), kernel.variable(table)
    with kernel.loop(down + more) as i:
        row = kernel.splat(kernel.load(given.rows + i * down_step), lanes)
        with kernel.loop(across(kernel, given)) as j:
            for first in range(0, elements, lanes):
                place = row + kernel.load(given.columns + j * (8 * run), vector(I64, lanes), 8 * first)
                kernel.store((place < OUTSIDE // 2).where(nothing, start + place), target.get(), 8 * first)
            target.set(target.get() + 8 * line(elements))
    return table
