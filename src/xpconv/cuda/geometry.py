"""The twin of `kernels/geometry.cuh`: how a convolution's numbers are laid out for the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod
from typing import Any

import numpy as np

from xpconv.spec import ConvSpec, Sizes

AXES = 3  # every convolution is brought to three spatial axes; missing ones stand in front with size 1

DIVISOR = np.dtype([("divisor", "u4"), ("multiplier", "u4"), ("shift", "u4")], align=True)
CONV_GEOMETRY = np.dtype(
    [
        ("x_start", "i8"), ("w_start", "i8"), ("y_start", "i8"),
        ("x_strides", "i8", 5), ("w_strides", "i8", 5), ("y_strides", "i8", 5),
        ("x_group", "i8"), ("w_group", "i8"), ("y_group", "i8"),
        ("fill", "u8", 2),
        ("size", "i4", AXES), ("window", "i4", AXES), ("stride", "i4", AXES), ("dilation", "i4", AXES),
        ("before", "i4", AXES), ("out", "i4", AXES),
        ("batch", "i4"), ("groups", "i4"), ("channels", "i4"), ("filters", "i4"), ("positions", "i4"), ("depth", "i4"),
        ("splits", "i4"), ("depth_per_split", "i4"), ("channels_inner", "i4"), ("items_inner", "i4"),
        ("padding_mode", "i4"), ("activation", "i4"),
        ("by_inner", DIVISOR), ("by_window", DIVISOR, 2), ("by_out", DIVISOR, AXES), ("by_batch", DIVISOR),
    ],
    align=True,
)  # fmt: skip

_PLAIN_FIELDS = (  # of the struct, that have the value of the attribute of that name
    "x_start", "w_start", "y_start", "x_group", "w_group", "y_group", "size", "window", "stride", "dilation", "before",
    "out", "batch", "groups", "channels", "filters", "positions", "depth", "items_inner",
)  # fmt: skip

PADDING_MODES = ("zeros", "constant", "edge", "reflect", "symmetric", "wrap")  # in the order of the header's enum
ACTIVATIONS = (None, "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu")  # likewise

MOST = 2**31 - 1  # positions, depth and every coordinate are 32-bit integers


def divisor(n: int) -> np.ndarray:
    """Multiplier and shift with which a kernel divides by `n`."""
    shift = (n - 1).bit_length()
    multiplier = ((1 << 32) * ((1 << shift) - n)) // n + 1
    return np.array((n, multiplier, shift), DIVISOR)


@dataclass(frozen=True)
class Strides:
    """Elements between neighbours: (batch, channel, *space) of x and y, (filter, channel, *window) of w."""

    x: Sizes
    w: Sizes
    y: Sizes


@dataclass(frozen=True)
class Geometry:
    """One convolution for the kernels: every size, stride and start in elements, three spatial axes.

    `x` here is whatever the windows slide over, `y` whatever is made: for the input gradient they are `gy` and `gx`.
    """

    batch: int
    groups: int
    channels: int  # of one group
    filters: int  # of one group
    size: Sizes
    window: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes  # padding before; negative where the result starts inside x
    out: Sizes
    strides: Strides
    x_group: int
    w_group: int
    y_group: int
    x_start: int = 0
    w_start: int = 0
    y_start: int = 0
    padding_mode: str = "zeros"
    fill: bytes = b""
    activation: str | None = None
    items_inner: bool = False  # how results are numbered, which decides what neighbouring threads read
    swapped: bool = False  # a weight's gradient, where items and channels have changed places

    @property
    def positions(self) -> int:
        """Results of one filter."""
        return self.batch * prod(self.out)

    @property
    def taps(self) -> int:
        """Elements of the window."""
        return prod(self.window)

    @property
    def depth(self) -> int:
        """Length of every sum."""
        return self.taps * self.channels

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.positions * self.depth * self.filters * self.groups

    @property
    def reach(self) -> int:
        """An upper bound of every offset into x, w and y: below 2^31 they fit 32 bits."""

        def far(strides: Sizes, sizes: Sequence[int], groups: int, group: int) -> int:
            return sum(abs(s) * max(n, 1) for s, n in zip(strides, sizes, strict=True)) + abs(groups * group)

        return max(
            far(self.strides.x, (self.batch, self.channels, *self.size), self.groups, self.x_group),
            far(self.strides.w, (self.filters, self.channels, *self.window), self.groups, self.w_group),
            far(self.strides.y, (self.batch, self.filters, *self.out), self.groups, self.y_group),
        )

    def packed(self, *, splits: int = 1, depth_per_split: int = 0, channels_inner: bool = True) -> np.ndarray:
        """The struct that a kernel takes by value."""
        g = np.zeros((), CONV_GEOMETRY)
        for name in _PLAIN_FIELDS:
            g[name] = getattr(self, name)
        g["x_strides"], g["w_strides"], g["y_strides"] = self.strides.x, self.strides.w, self.strides.y
        g["fill"] = np.frombuffer(self.fill.ljust(16, b"\0"), "u8")
        g["splits"], g["depth_per_split"] = splits, depth_per_split or max(self.depth, 1)
        g["channels_inner"] = channels_inner
        g["padding_mode"] = PADDING_MODES.index(self.padding_mode)
        g["activation"] = ACTIVATIONS.index(self.activation)
        g["by_inner"] = divisor(max(self.channels if channels_inner else self.taps, 1))
        for a in range(AXES):
            g["by_out"][a] = divisor(max(self.out[a], 1))
        g["by_batch"] = divisor(max(self.batch, 1))
        for a in (1, 2):
            g["by_window"][a - 1] = divisor(max(self.window[a], 1))
        g.flags.writeable = False
        return g


def forward(
    spec: ConvSpec, x: Sizes, w: Sizes, y: Sizes, *, fill: bytes = b"", activation: str | None = None
) -> Geometry:
    """The forward convolution of arrays with these strides (in elements, of the arrays as the user laid them out)."""
    x_axes, w_axes, y_axes = map_strides(x, spec.layout), _weight_axes(w, spec.layout), map_strides(y, spec.layout)
    channels, filters = spec.channels // spec.groups, spec.filters // spec.groups
    taps, w_start = (w_axes[2:], 0)
    if spec.flip:
        w_start = sum((m - 1) * s for m, s in zip(three(spec.window, 1), taps, strict=True))
        taps = tuple(-s for s in taps)
    return Geometry(
        batch=spec.batch, groups=spec.groups, channels=channels, filters=filters,
        size=three(spec.size, 1), window=three(spec.window, 1), stride=three(spec.stride, 1),
        dilation=three(spec.dilation, 1), before=three([lo for lo, _ in spec.padding], 0),
        out=three(spec.out_size, 1), strides=Strides(x_axes, (*w_axes[:2], *taps), y_axes),
        x_group=channels * x_axes[1], w_group=filters * w_axes[0], y_group=filters * y_axes[1], w_start=w_start,
        padding_mode=spec.padding_mode, fill=fill, activation=activation,
    )  # fmt: skip


def input_gradient(
    spec: ConvSpec, gy: Sizes, w: Sizes, gx: Sizes, *, activation: str | None = None
) -> tuple[Geometry, ...]:
    """The input gradient as dense convolutions of `gy`, one for each residue of the stride.

    ``gx[p] = sum over o, f of gy[(p + before - o d) / s, f] w[o, f]`` wherever s divides. Along an axis the results
    p = r + s j of one residue r meet the taps o = o0 + i s / g, g = gcd(s, d), and read gy at
    (r + before - o0 d) / s + j - i d / g: a convolution of stride 1 and dilation -d / g, turned to read forward.
    """
    whole = forward(spec, gx, w, gy)
    axes = [_phases(whole, axis) for axis in range(AXES)]
    phases = (_phase(whole, parts, activation) for parts in product(*axes))
    return tuple(phase for phase in phases if phase.positions)


@dataclass(frozen=True)
class _AxisPhase:
    """One residue of one axis: where its results, its taps and its reading start, and their steps."""

    first: int  # result
    results: int
    tap: int  # first of the taps, by offset in the window, in the order that reads gy forward
    taps: int
    tap_step: int
    before: int
    dilation: int


def _phases(g: Geometry, axis: int) -> list[_AxisPhase]:
    s, d, m, n = g.stride[axis], g.dilation[axis], g.window[axis], g.size[axis]
    step = s // gcd(s, d)
    phases = []
    for r in range(min(s, n)):
        results = -(-(n - r) // s)
        reached = [o for o in range(min(step, m)) if (r + g.before[axis] - o * d) % s == 0]
        if not reached:
            phases.append(_AxisPhase(r, results, 0, 0, 1, 0, 1))
            continue
        taps = (m - 1 - reached[0]) // step + 1
        last = reached[0] + (taps - 1) * step  # reads the smallest element of gy
        phases.append(
            _AxisPhase(r, results, last, taps, -step, -((r + g.before[axis] - last * d) // s), d // gcd(s, d))
        )
    return phases


def _phase(g: Geometry, axes: Sequence[_AxisPhase], activation: str | None) -> Geometry:
    """The convolution of one combination of residues; `g` is the forward one, from gx to gy."""
    gx, gy, w = g.strides.x, g.strides.y, g.strides.w
    return replace(
        g,
        channels=g.filters, filters=g.channels,
        size=g.out, window=tuple(a.taps for a in axes), stride=(1,) * AXES, dilation=tuple(a.dilation for a in axes),
        before=tuple(a.before for a in axes), out=tuple(a.results for a in axes),
        strides=Strides(
            gy,
            (w[1], w[0], *(t * a.tap_step for t, a in zip(w[2:], axes, strict=True))),
            (*gx[:2], *(t * s for t, s in zip(gx[2:], g.stride, strict=True))),
        ),
        x_group=g.y_group, y_group=g.x_group,
        w_start=g.w_start + sum(t * a.tap for t, a in zip(w[2:], axes, strict=True)),
        y_start=sum(t * a.first for t, a in zip(gx[2:], axes, strict=True)),
        activation=activation,
    )  # fmt: skip


def weight_gradient(spec: ConvSpec, x: Sizes, gy: Sizes, gw: Sizes) -> Geometry:
    """The weight gradient as a convolution of `x` with `gy`, made of strides alone.

    ``gw[k, c, f] = sum over n, i of x_padded[n, i s + k d, c] gy[n, i, f]``: channels take the place of the items,
    items that of the channels, and stride and dilation change places; the window that slides is `gy`.
    """
    g = forward(spec, x, gw, gy)
    x_axes, w_axes, y_axes = ((s[1], s[0], *s[2:]) for s in (g.strides.x, g.strides.w, g.strides.y))
    return replace(
        g,
        batch=g.channels, channels=g.batch, window=g.out, stride=g.dilation, dilation=g.stride, out=g.window,
        strides=Strides(x_axes, y_axes, w_axes),
        w_group=g.y_group, y_group=g.w_group, w_start=0, y_start=g.w_start,
        items_inner=abs(x_axes[0]) < abs(x_axes[4]), swapped=True,
    )  # fmt: skip


def three(values: Sequence[int], missing: int) -> Sizes:
    """One value for each of the three axes; missing ones stand in front."""
    return (*(missing,) * (AXES - len(values)), *values)


def map_strides(strides: Sizes, layout: str) -> Sizes:
    """Strides of feature maps as (batch, channel, three of space)."""
    if layout == "channels_last":
        batch, *space, channel = strides
    else:
        batch, channel, *space = strides
    return (batch, channel, *three(space, 0))


def _weight_axes(strides: Sizes, layout: str) -> Sizes:
    """Strides of a weight as (filter, channel, three of the window)."""
    if layout == "channels_last":
        *window, channel, filters = strides
    else:
        filters, channel, *window = strides
    return (filters, channel, *three(window, 0))


def element_strides(array: Any) -> Sizes:
    """Strides of an array in elements."""
    return tuple(stride // array.dtype.itemsize for stride in array.strides)


def dense(shape: Sizes) -> Sizes:
    """Strides in elements of an array that lies in memory row by row."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))
