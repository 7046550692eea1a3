"""Results of a block whose channels lie first: computed with channels last, in memory of the thread's own, and turned.

They go to `y` in runs of positions that lie side by side there: all of the block's, or those of a row, or of a line of
one, where the rest of it belongs to other blocks.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

from xpconv.cpu.compiled.blocks import Block
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.values import Value
from xpconv.spec import ConvSpec, PoolSpec, Sizes

FIELDS = ("turned", "y_item", "y_row", "plane", "dense", "lines", "line_step")


def numbers_of(spec: ConvSpec | PoolSpec, y_strides: Sizes, size: int) -> dict[str, int]:
    """Whether results are turned, and how they lie in a channels-last `y` of these strides."""
    along, line = y_strides[1:-1], math.prod(spec.out_size[1:]) * size
    apart = spec.axes == 3 and along[1] != spec.out_size[2] * size
    return {
        "turned": int(y_strides[-1] != size), "y_item": y_strides[0], "y_row": y_strides[1], "plane": y_strides[-1],
        "dense": int(not apart and along[0] == line), "lines": spec.out_size[1] if apart else 1,
        "line_step": along[1] if apart else 0,
    }  # fmt: skip


def turn_back(
    kernel: Kernel, given: SimpleNamespace, block: Block, transpose: Kernel, results: Value, step: Value, first: Value,
    maps: Value, size: int,
) -> None:  # fmt: skip
    """So many maps from the first on, of pixels a step of bytes apart, to where `y` has them."""
    runs = given.dense.equals(1).where(kernel.constant(1), block.rows * given.lines)
    pixels = block.pixels // runs
    with kernel.loop(block.images) as image, kernel.loop(runs) as run:
        row, line = block.row + run // given.lines, run % given.lines
        kernel.call(
            transpose, results + (image * block.pixels + run * pixels) * step + first * size, step,
            given.y + (block.first + image) * given.y_item + row * given.y_row + line * given.line_step
            + first * given.plane, given.plane, pixels, maps,
        )  # fmt: skip
