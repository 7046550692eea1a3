"""Plans for `layout.cu`: transposes between the layouts, weights repacked, views made dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np

from xpconv.cuda.geometry import DIVISOR, MOST, dense, divisor
from xpconv.cuda.hardware import GRID_X, GRID_YZ
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan
from xpconv.spec import Sizes

AXES = 8
COPY_GEOMETRY = np.dtype(
    [
        ("x_strides", "i8", AXES), ("y_strides", "i8", AXES), ("extents", "i4", AXES), ("valid", "i4", AXES),
        ("first", "i4"), ("planes", "i4"), ("items", "i4"), ("tiles_from", "i4"), ("tiles_to", "i4"),
        ("by", DIVISOR, AXES),
    ],
    align=True,
)  # fmt: skip

WORDS = (1, 2, 4, 8, 16)  # bytes
SIDES = {1: 4, 2: 2}  # elements that make a word of 4 bytes, for the transpose
_BLOCK, _TILE, _PITCH = 256, 32, 33
_SHORT = 8  # an axis below this fills too little of a tile
_PER_THREAD = 4  # words


@dataclass(frozen=True)
class Axis:
    """One axis of a copy: elements of y, those of them that x has, and the steps in both."""

    extent: int
    valid: int
    x: int
    y: int


@lru_cache(maxsize=4096)
def copy(shape: Sizes, valid: Sizes, x_strides: Sizes, itemsize: int, aligned: bool) -> Work | Unfit:
    """The launch that fills a dense y of `shape` with x, whose shape is `valid`, and zeros beyond it.

    `x_strides` are in elements; `aligned` says whether x starts on a multiple of 16 bytes, as y does.
    """
    if itemsize not in WORDS:
        return Unfit(f"elements of {itemsize} bytes")
    axes = merged([Axis(*numbers) for numbers in zip(shape, valid, x_strides, dense(shape), strict=True)])
    if len(axes) > AXES:
        return Unfit(f"{len(axes)} axes that lie apart; the kernel takes {AXES}")
    if max((axis.extent for axis in axes), default=1) > MOST:
        return Unfit("an axis of more than 2^31 elements")
    return _transposed(axes, itemsize, aligned) or _strided(axes, itemsize, aligned)


def merged(axes: list[Axis]) -> list[Axis]:
    """The same copy with as few axes as possible; the last one stays the dense one of y."""
    result: list[Axis] = []
    for axis in axes:
        if axis.extent == axis.valid == 1:
            continue
        outer = result[-1] if result else None
        whole = axis.valid == axis.extent
        if outer and whole and outer.x == axis.x * axis.extent and outer.y == axis.y * axis.extent:
            joined = Axis(outer.extent * axis.extent, outer.valid * axis.extent, axis.x, axis.y)
            if joined.extent <= MOST:
                result[-1] = joined
                continue
        result.append(axis)
    return result


def _strided(axes: list[Axis], itemsize: int, aligned: bool) -> Work | Unfit:
    """A word a thread; where the dense axis of both is the same, a word is several elements."""
    width = _width(axes, itemsize) if aligned else 1
    if width > 1:
        axes = [replace(a, x=a.x // width, y=a.y // width) for a in axes[:-1]] + [
            replace(axes[-1], extent=axes[-1].extent // width, valid=axes[-1].valid // width)
        ]
    items = prod(axis.extent for axis in axes)
    planes = Axis(1, 1, 0, 0)
    if items > MOST:
        planes, *axes = axes
        items //= planes.extent
    if items > MOST or len(axes) >= AXES:
        return Unfit(f"{items} elements of all axes but the first")
    g = _packed([planes, *_padded(axes, AXES - 1)])
    g["planes"], g["items"], g["first"] = planes.extent, items, AXES - len(axes)
    kernel = Kernel("layout.cu", f"copy_strided<{itemsize * width}>")
    blocks = -(-items // (_BLOCK * _PER_THREAD))
    step = Step(kernel, (blocks, min(planes.extent, GRID_YZ), 1), _BLOCK, 0, ("x", "y", _frozen(g)))
    return Work((step,), Plan("direct", "the same elements in another order", f"words of {itemsize * width} bytes", 0))


def _width(axes: list[Axis], itemsize: int) -> int:
    """Elements of a word of at most 16 bytes."""
    if not axes or axes[-1].x != 1:
        return 1
    *outer, last = axes
    numbers = (last.extent, last.valid, *(step for axis in outer for step in (axis.x, axis.y)))
    widths = (word // itemsize for word in reversed(WORDS) if word >= itemsize)
    return next(width for width in widths if all(n % width == 0 for n in numbers))


def _transposed(axes: list[Axis], itemsize: int, aligned: bool) -> Work | None:
    """Tiles through shared memory, if x is dense along another axis than y and both are long enough for it."""
    source = next((a for a in axes[:-1] if a.x == 1 and a.extent >= _SHORT), None)
    if source is None or axes[-1].x == 1 or axes[-1].extent < _SHORT:
        return None
    outer, target = [a for a in axes[:-1] if a is not source], axes[-1]
    if len(outer) > AXES - 2 or any(a.extent != a.valid for a in outer):
        return None
    side = SIDES.get(itemsize, 1)
    steps = (source.valid, source.y, target.extent, target.x, *(step for a in outer for step in (a.x, a.y)))
    if not aligned or any(step % side for step in steps):
        side = 1
    tiles_from, tiles_to = (-(-a.extent // (side * _TILE)) for a in (source, target))
    blocks = tiles_from * tiles_to * prod(a.extent for a in outer)
    if blocks > GRID_X:
        return None
    g = _packed([*_padded(outer, AXES - 2), source, target])
    g["first"], g["tiles_from"], g["tiles_to"] = AXES - 2 - len(outer), tiles_from, tiles_to
    kernel = Kernel("layout.cu", f"copy_transposed<{itemsize},{side}>")
    shared = side * _TILE * _PITCH * side * itemsize
    step = Step(kernel, (blocks, 1, 1), _BLOCK, shared, ("x", "y", _frozen(g)))
    told = f"{side * _TILE} x {side * _TILE} elements through shared memory"
    return Work((step,), Plan("direct", "x and y are dense along different axes", told, 0))


def _padded(axes: list[Axis], count: int) -> list[Axis]:
    return [Axis(1, 1, 0, 0)] * (count - len(axes)) + axes


def _packed(axes: list[Axis]) -> np.ndarray:
    g = np.zeros((), COPY_GEOMETRY)
    for i, axis in enumerate(axes):
        g["x_strides"][i], g["y_strides"][i], g["extents"][i], g["valid"][i] = axis.x, axis.y, axis.extent, axis.valid
        g["by"][i] = divisor(axis.extent)
    return g


def _frozen(g: np.ndarray) -> np.ndarray:
    g.flags.writeable = False
    return g


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    strided = [Kernel("layout.cu", f"copy_strided<{word}>") for word in WORDS]
    sides = [(word, side) for word in WORDS for side in sorted({1, SIDES.get(word, 1)})]
    return strided + [Kernel("layout.cu", f"copy_transposed<{word},{side}>") for word, side in sides]
