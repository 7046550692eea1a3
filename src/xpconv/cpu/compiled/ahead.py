"""What the windows of the next row read, asked for while a row of results is computed.

A processor finds out by itself what is read next as long as that goes on side by side. Of several rows that are read
in turn it loses track: max 2x2s2 64@112, N=8, took 1.18 ms before and 0.96 after, 3x3s2 1.39 and 1.13. What the caches
hold is read faster without: N=1 took 0.07 ms, and 0.09 with it. The rows go to the second cache, as a row of that layer
fills the first: on a Zen 4 2x2s2 took a quarter less so than by way of the first, 3x3s2 and depthwise 3x3 144@56 too.
"""

from __future__ import annotations

import numpy as np

from xpconv.cpu.compiled.blocks import Blocks
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.values import Value
from xpconv.cpu.lines import LINE
from xpconv.spec import Array, ConvSpec, PoolSpec, Sizes

FIELDS = ("ahead", "ahead_row", "ahead_column", "asking")


def tables_of(
    spec: ConvSpec | PoolSpec, cut: Blocks, x_strides: Sizes, *, far: bool
) -> tuple[dict[str, int], dict[str, Array]]:
    """Where the rows begin that the next row's windows read first, from the first result of an image, and from row to
    row and column to column of the results; and how many rows they are, the bytes of one, and those of a column.

    They are none but of maps that are `far`, beyond the caches, and that are read from where they lie.
    """
    (stride, across), step, column = spec.stride[:1] + spec.stride[-1:], x_strides[1], x_strides[-2]
    fresh = min(stride, spec.reach[0]) if far and spec.axes == 2 and not cut.strip else 0
    first = (max(stride, spec.reach[0]) - spec.padding[0][0]) * step - spec.padding[-1][0] * column
    numbers = {"ahead": first, "ahead_row": stride * step, "ahead_column": across * column}
    return numbers, {"asking": np.array([fresh, step, column], np.int64)}


def ask(kernel: Kernel, soon: Value, asking: Value, rows: int, columns: int) -> None:
    """Ask for what so many rows of results, and so many columns of the input, are ahead of, from `soon` on."""
    fresh, row_step, column = (kernel.load(asking, offset=8 * i) for i in range(3))
    known = fresh * (rows - 1)  # which the last of these rows reads now
    with kernel.loop(known + fresh * rows, start=known) as row, kernel.loop(column * columns, step=LINE) as near:
        kernel.prefetch(soon + row * row_step + near, level=2)
