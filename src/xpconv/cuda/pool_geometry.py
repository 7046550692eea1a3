"""The twin of `kernels/pool.cuh`: how a pooling's numbers are laid out for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from xpconv.cuda.geometry import AXES, DIVISOR, MOST, dense, divisor, map_strides, three
from xpconv.cuda.hardware import GRID_YZ
from xpconv.spec import PoolSpec, Sizes, in_layout

POOL_GEOMETRY = np.dtype(
    [
        ("x_strides", "i8", 5), ("y_strides", "i8", 5), ("power", "f8"), ("number", "f8"),
        ("size", "i4", AXES), ("out", "i4", AXES),
        ("window", "i4", AXES), ("stride", "i4", AXES), ("dilation", "i4", AXES),
        ("before", "i4", AXES), ("after", "i4", AXES), ("plane", "i4", AXES),
        ("batch", "i4"), ("items", "i4"), ("threads", "i4"), ("channels_inner", "i4"), ("last_inner", "i4"),
        ("raise", "i4"), ("root", "i4"), ("division", "i4"), ("lanes", "i4"), ("disjoint", "i4"),
        ("quotient", "i4", AXES), ("remainder", "i4", AXES), ("by", DIVISOR, 4),
    ],
    align=True,
)  # fmt: skip

DIVISIONS = (None, "count", "padded_count", "number")  # in the order of the header's enum
_PER_AXIS = ("size", "out", "window", "stride", "dilation", "before", "after", "plane")
_PLAIN_FIELDS = (*_PER_AXIS, "x_strides", "y_strides", "batch", "number", "power", "channels_inner", "last_inner",
                 "raise", "root", "lanes", "disjoint")  # fmt: skip


@dataclass(frozen=True)
class PoolGeometry:
    """One pooling for the kernels, in elements, with three spatial axes; missing ones stand in front with size 1."""

    batch: int
    channels: int
    x_strides: Sizes  # batch, channel, three spatial axes
    y_strides: Sizes
    size: Sizes
    out: Sizes
    window: Sizes = (1,) * AXES
    stride: Sizes = (1,) * AXES
    dilation: Sizes = (1,) * AXES
    before: Sizes = (0,) * AXES
    after: Sizes = (0,) * AXES
    plane: Sizes = (0,) * AXES
    division: str | None = None
    number: float = 1.0
    power: float = 1.0
    raised: bool = False
    root: bool = False
    channels_inner: bool = False
    last_inner: bool = True
    lanes: int = 1
    disjoint: bool = False

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return prod(self.window)

    @property
    def given(self) -> int:
        """Elements of x."""
        return self.batch * self.channels * prod(self.size)

    @property
    def results(self) -> int:
        """Elements of y."""
        return self.batch * self.channels * prod(self.out)

    def reordered(self, order: Sizes) -> PoolGeometry:
        """The same pooling with its spatial axes in another order."""
        axes: dict[str, Any] = {name: tuple(getattr(self, name)[a] for a in order) for name in _PER_AXIS}
        x, y = ((*s[:2], *(s[2 + a] for a in order)) for s in (self.x_strides, self.y_strides))
        return replace(self, **axes, x_strides=x, y_strides=y)

    def packed(self, made: Sequence[int], vector: int) -> tuple[np.ndarray, int, int] | None:
        """The struct, the threads of one row of the grid and the rows; None where one item has too many.

        `made` are the places along the three axes that get a thread each, for every `vector` channels.
        """
        channels = self.channels // vector
        row = (made[2], made[1]) if self.last_inner else (made[1], made[2])
        counts = (channels, *row, made[0]) if self.channels_inner else (*row, made[0], channels)
        items = min(self.batch, MOST // 2 // max(prod(counts), 1))
        if items < 1 or -(-self.batch // items) > GRID_YZ:
            return None
        g = np.zeros((), POOL_GEOMETRY)
        for name in _PLAIN_FIELDS:
            g[name] = self.raised if name == "raise" else getattr(self, name)
        g["items"], g["threads"] = items, items * prod(counts)
        g["division"] = DIVISIONS.index(self.division)
        g["quotient"], g["remainder"] = np.divmod(self.size, self.out)
        for i, count in enumerate(counts):
            g["by"][i] = divisor(count)
        g.flags.writeable = False
        return g, items * prod(counts), -(-self.batch // items)


def of_windows(spec: PoolSpec, x: Sizes, y: Sizes) -> PoolGeometry:
    """The pooling of arrays with these strides (in elements, as the user laid the arrays out)."""
    return PoolGeometry(
        batch=spec.batch, channels=spec.channels, x_strides=map_strides(x, spec.layout),
        y_strides=map_strides(y, spec.layout), size=three(spec.size, 1), out=three(spec.out_size, 1),
        window=three(spec.window, 1), stride=three(spec.stride, 1), dilation=three(spec.dilation, 1),
        before=three([before for before, _ in spec.padding], 0), after=three([after for _, after in spec.padding], 0),
        channels_inner=channels_dense(spec.layout, spec.channels),
    )  # fmt: skip


def averaging(g: PoolGeometry, spec: PoolSpec, count_include_pad: bool, given: float | None) -> PoolGeometry:
    """The pooling with what its sums are divided by; one number where every window counts as many taps."""
    if given is not None:
        return replace(g, division="number", number=float(given))
    counts = [set(spec.counts(axis, count_include_pad)) for axis in range(spec.axes)]
    if all(len(values) == 1 for values in counts) and all(min(values) > 0 for values in counts):
        return replace(g, division="number", number=float(prod(map(min, counts))))
    return replace(g, division="padded_count" if count_include_pad else "count")


def channels_dense(layout: str, channels: int) -> bool:
    """Whether neighbouring channels, not neighbouring positions, lie side by side."""
    return layout == "channels_last" and channels > 1


def dense_maps(layout: str, batch: int, channels: int, size: Sizes) -> Sizes:
    """Strides of feature maps that lie densely in a layout, as (batch, channel, three of space)."""
    return map_strides(dense(in_layout(layout, batch, size, channels)), layout)
