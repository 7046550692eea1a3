"""Plans for `patches.cu`: `unfold`, which copies patches out, and its adjoint `fold`, which adds them up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from xpconv.cuda.geometry import AXES, DIVISOR, MOST, dense, divisor, map_strides, three
from xpconv.cuda.hardware import GRID_X, GRID_YZ
from xpconv.cuda.kernels import ARITHMETIC, ELEMENTS, signed, sum_size
from xpconv.cuda.setting import Operand
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan
from xpconv.spec import PoolSpec, Sizes

PATCH_GEOMETRY = np.dtype(
    [
        ("x_strides", "i8", 2 + AXES), ("patches_strides", "i8", 2 + 2 * AXES),
        ("size", "i4", AXES), ("window", "i4", AXES), ("stride", "i4", AXES), ("dilation", "i4", AXES),
        ("before", "i4", AXES), ("out", "i4", AXES),
        ("batch", "i4"), ("channels", "i4"), ("items", "i4"), ("words", "i4"), ("channels_inner", "i4"),
        ("by_channels", DIVISOR), ("by_window", DIVISOR, AXES), ("by_out", DIVISOR, AXES), ("by_size", DIVISOR, AXES),
        ("by_stride", DIVISOR, AXES),
    ],
    align=True,
)  # fmt: skip

WORDS = (1, 2, 4, 8, 16)  # bytes
_BLOCK = 256
_VECTOR_BYTES = 16


@dataclass(frozen=True)
class _Strides:
    """Elements between neighbours: (batch, channel, space), and (batch, channel, positions, window)."""

    x: Sizes
    patches: Sizes

    def divided(self, width: int) -> _Strides:
        """The same in words of `width` channels each; the channels' own stride stays one word."""
        x, patches = ((s[0] // width, s[1], *(n // width for n in s[2:])) for s in (self.x, self.patches))
        return _Strides(x, patches)


@lru_cache(maxsize=4096)
def unfold(spec: PoolSpec, x: Operand, itemsize: int) -> Work | Unfit:
    """The launch that fills dense patches from x, whatever its elements are."""
    if itemsize not in WORDS or spec.axes > AXES:
        return Unfit(f"{spec.axes} axes of elements of {itemsize} bytes")
    strides = _strides(spec, x.strides, dense(spec.patches_shape))
    inner = spec.layout == "channels_last"
    width = _width(spec, strides, itemsize, x.aligned) if inner else 1
    word, channels = itemsize * width, spec.channels // width
    count = 4 if word < 8 else _VECTOR_BYTES // word  # words that a thread writes at once
    words = channels * prod(spec.window) * prod(spec.out_size)
    launch = _grid(spec, words, count)
    if launch is None:
        return Unfit(f"{words} words of one item are too many")
    items, grid = launch
    g = _packed(spec, strides.divided(width), channels, items, words, inner)
    step = Step(Kernel("patches.cu", f"unfold<{word}>"), grid, _BLOCK, 0, ("x", "y", g))
    return Work((step,), Plan("direct", "patches are copied out once", f"{count} words of {word} bytes a thread", 0))


@lru_cache(maxsize=4096)
def fold(spec: PoolSpec, patches: Operand, dtype: str) -> Work | Unfit:
    """The launch that adds patches up into a dense x."""
    if dtype not in ELEMENTS or spec.axes > AXES:
        return Unfit(f"{spec.axes} axes of {dtype}")
    strides = _strides(spec, dense(spec.x_shape), patches.strides)
    inner = spec.layout == "channels_last"
    vector = _VECTOR_BYTES // sum_size(dtype)
    fits = inner and strides.patches[1] == 1 and patches.aligned
    if not fits or any(n % vector for n in (spec.channels, *strides.patches[:1], *strides.patches[2:])):
        vector = 1
    vectors = spec.channels // vector * prod(spec.size)
    launch = _grid(spec, vectors, 1)
    if launch is None:
        return Unfit(f"{vectors} elements of one item are too many")
    items, grid = launch
    g = _packed(spec, strides, spec.channels // vector, items, vectors, inner)
    kernel = Kernel("patches.cu", f"fold<{ELEMENTS[signed(dtype)]},{vector}>")
    step = Step(kernel, grid, _BLOCK, 0, ("x", "y", g))
    return Work((step,), Plan("direct", "every element gathers its patches", f"{vector} channels a thread", 0))


def _strides(spec: PoolSpec, x: Sizes, patches: Sizes) -> _Strides:
    """Both arrays' strides in the order of the kernels' struct."""
    n = spec.axes
    if spec.layout == "channels_last":
        batch, out, window, channel = patches[0], patches[1 : n + 1], patches[n + 1 : 2 * n + 1], patches[-1]
    else:
        batch, channel, window, out = patches[0], patches[1], patches[2 : n + 2], patches[n + 2 :]
    return _Strides(map_strides(x, spec.layout), (batch, channel, *three(out, 0), *three(window, 0)))


def _width(spec: PoolSpec, strides: _Strides, itemsize: int, aligned: bool) -> int:
    """Channels of a word of at most 16 bytes."""
    if strides.x[1] != 1 or not aligned:
        return 1
    counts = (spec.batch, 1, *three(spec.size, 1))
    steps = [step for step, n in zip(strides.x, counts, strict=True) if n > 1]
    widths = (word // itemsize for word in reversed(WORDS) if word >= itemsize)
    return next(width for width in widths if all(n % width == 0 for n in (spec.channels, *steps)))


def _grid(spec: PoolSpec, words: int, count: int) -> tuple[int, tuple[int, int, int]] | None:
    """Items of one row of the grid, so many that 32 bits count their words, and the grid."""
    items = min(spec.batch, MOST // 2 // max(words, 1))
    if items < spec.batch:
        items -= items % count  # every row of the grid starts on a whole vector
    if items < 1 or -(-spec.batch // items) > GRID_YZ:
        return None
    blocks = -(-items * words // (_BLOCK * count))
    return (items, (blocks, -(-spec.batch // items), 1)) if 0 < blocks <= GRID_X else None


def _packed(spec: PoolSpec, strides: _Strides, channels: int, items: int, words: int, inner: bool) -> np.ndarray:
    g = np.zeros((), PATCH_GEOMETRY)
    g["x_strides"], g["patches_strides"] = strides.x, strides.patches
    axes: dict[str, Any] = {
        "size": three(spec.size, 1), "window": three(spec.window, 1), "stride": three(spec.stride, 1),
        "dilation": three(spec.dilation, 1), "before": three([before for before, _ in spec.padding], 0),
        "out": three(spec.out_size, 1),
    }  # fmt: skip
    for name, values in axes.items():
        g[name] = values
    for name in ("window", "out", "size", "stride"):
        for axis in range(AXES):
            g[f"by_{name}"][axis] = divisor(max(axes[name][axis], 1))
    g["by_channels"] = divisor(max(channels, 1))
    g["batch"], g["channels"], g["items"], g["words"], g["channels_inner"] = spec.batch, channels, items, words, inner
    g.flags.writeable = False
    return g


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    unfolding = [Kernel("patches.cu", f"unfold<{word}>") for word in WORDS]
    folding = [
        Kernel("patches.cu", f"fold<{ELEMENTS[dtype]},{vector}>")
        for dtype in ARITHMETIC
        for vector in sorted({1, _VECTOR_BYTES // sum_size(dtype)})
    ]
    return unfolding + folding
