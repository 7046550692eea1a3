"""Frozen geometry: what one sliding window does, in plain integers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, Literal, TypeAlias

Array: TypeAlias = Any
Layout: TypeAlias = Literal["channels_last", "channels_first"]
PerAxis: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int] | Sequence[Sequence[int]]
Sizes: TypeAlias = tuple[int, ...]
Pairs: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Windows:
    """A window sliding over the spatial axes. Tuples hold one entry per spatial axis, in elements."""

    layout: str
    batch: int
    channels: int
    size: Sizes
    window: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Pairs  # before and after; the adjoints of a spec may crop, which is negative padding

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    @cached_property
    def reach(self) -> Sizes:
        """Elements the dilated window spans: (m - 1) * d + 1."""
        return tuple((m - 1) * d + 1 for m, d in zip(self.window, self.dilation, strict=True))

    @cached_property
    def padded_size(self) -> Sizes:
        """Spatial size after padding."""
        return tuple(n + before + after for n, (before, after) in zip(self.size, self.padding, strict=True))

    @cached_property
    def whole_windows(self) -> Sizes:
        """Windows that fit on each padded axis: floor((padded - reach) / stride) + 1."""
        axes = zip(self.padded_size, self.reach, self.stride, strict=True)
        return tuple((n - reach) // s + 1 for n, reach, s in axes)

    @property
    def out_size(self) -> Sizes:
        """Spatial size of the result."""
        return self.whole_windows

    @property
    def taps(self) -> Iterator[Sizes]:
        """Every offset inside the window, in the order of memory."""
        return product(*map(range, self.window))

    @property
    def x_shape(self) -> Sizes:
        """Shape of the input, in the user's layout."""
        return in_layout(self.layout, self.batch, self.size, self.channels)


def in_layout(layout: str, batch: int, spatial: Sizes, channels: int) -> Sizes:
    """Shape of an array of feature maps."""
    return (batch, *spatial, channels) if layout == "channels_last" else (batch, channels, *spatial)


@dataclass(frozen=True)
class ConvSpec(Windows):
    """One convolution (`flip`) or cross-correlation, forward, with all sizes known."""

    filters: int
    groups: int
    flip: bool
    padding_mode: str = "zeros"
    input_dilation: Sizes = ()  # the adjoint of a stride: zeros between the input's elements; () is none

    @cached_property
    def spread_size(self) -> Sizes:
        """Spatial size with the zeros of `input_dilation` between the elements."""
        if not self.input_dilation:
            return self.size
        return tuple(max((n - 1) * d + 1, 0) for n, d in zip(self.size, self.input_dilation, strict=True))

    @cached_property
    def padded_size(self) -> Sizes:
        """Spatial size after input dilation and padding."""
        return tuple(n + before + after for n, (before, after) in zip(self.spread_size, self.padding, strict=True))

    @property
    def w_shape(self) -> Sizes:
        """Shape of the weight, in the user's layout."""
        if self.layout == "channels_last":
            return (*self.window, self.channels // self.groups, self.filters)
        return (self.filters, self.channels // self.groups, *self.window)

    @property
    def y_shape(self) -> Sizes:
        """Shape of the result, in the user's layout."""
        return in_layout(self.layout, self.batch, self.out_size, self.filters)

    @cached_property
    def remainder(self) -> Sizes:
        """Elements at the end of each padded axis that no window reaches."""
        axes = zip(self.padded_size, self.reach, self.stride, strict=True)
        return tuple((n - reach) % s for n, reach, s in axes)

    @property
    def filters_planes(self) -> bool:
        """Whether each channel is filtered by itself, into a map of its own."""
        return self.groups == self.channels == self.filters

    @property
    def valid(self) -> ConvSpec:
        """The same convolution of an input that is already padded."""
        return replace(self, size=self.padded_size, padding=((0, 0),) * self.axes, padding_mode="zeros")

    @property
    def input_adjoint(self) -> ConvSpec:
        """The convolution that takes `gy` back to the (unpadded, zero-padding) input.

        It reads the weight with the roles of its channels and filters exchanged inside each group, turns the other
        way, and has zeros between the elements of `gy` where the forward one has a stride.
        """
        axes = zip(self.padding, self.reach, self.remainder, strict=True)
        return replace(
            self,
            size=self.out_size,
            channels=self.filters,
            filters=self.channels,
            stride=(1,) * self.axes,
            input_dilation=self.stride if set(self.stride) != {1} else (),
            padding=tuple((reach - 1 - before, reach - 1 - after + rest) for (before, after), reach, rest in axes),
            flip=not self.flip,
        )

    @property
    def input_phases(self) -> Iterator[Phase]:
        """The input's gradient as one convolution of `gy` for each phase of the stride, without zeros in between.

        On one axis the padded position a + t s is reached by the taps o with o d = a modulo s, every s / gcd(d, s)-th,
        each from the result t + (a - o d) / s: a window of those taps over `gy`, dilated by d / gcd(d, s). Like
        `input_adjoint` they read the weight with channels and filters exchanged, and turn the other way.
        """
        axes = [self._phases(axis) for axis in range(self.axes)]
        for parts in product(*axes):
            places, taps, windows, dilation, padding = zip(*parts, strict=True)
            spec = replace(
                self, size=self.out_size, channels=self.filters, filters=self.channels, window=windows,
                stride=(1,) * self.axes, dilation=dilation, padding=padding, flip=not self.flip,
            )  # fmt: skip
            yield Phase(places, taps, spec)

    def _phases(self, axis: int) -> list[tuple[slice, slice, int, int, tuple[int, int]]]:
        """Of one axis: places in the input, places in the weight, window, dilation and padding over `gy`."""
        n, m, s, d = self.size[axis], self.window[axis], self.stride[axis], self.dilation[axis]
        before, common = self.padding[axis][0], math.gcd(self.stride[axis], self.dilation[axis])
        step, spread = s // common, d // common
        phases = []
        for a in range(s):
            first, last = -((a - before) // s), (before + n - 1 - a) // s
            if first > last:
                continue
            taps = [o for o in range(m) if (o * d - a) % s == 0]
            reached = (a - taps[0] * d) // s if taps else 0
            behind = (len(taps) - 1) * spread if taps else 0
            padding = behind - reached - first, last + reached - (self.out_size[axis] - 1)
            start = m - 1 - taps[-1] if taps and self.flip else taps[0] if taps else m
            places = slice(a + s * first - before, None, s)
            phases.append((places, slice(start, start + step * len(taps), step), len(taps), spread, padding))
        return phases

    @property
    def weight_adjoint(self) -> ConvSpec:
        """The correlation of `x` with `gy` that gives the weight's gradient.

        Batch and channels change places: its input is `x` as (C / groups, *size, groups * N), its weight is `gy` as
        (*out, N, F), its result (C / groups, *window, F), flipped afterwards where the forward one flips.
        """
        axes = zip(self.padding, self.remainder, strict=True)
        return replace(
            self,
            batch=self.channels // self.groups,
            channels=self.groups * self.batch,
            window=self.out_size,
            stride=self.dilation,
            dilation=self.stride,
            padding=tuple((before, after - rest) for (before, after), rest in axes),
            flip=False,
        )


@dataclass(frozen=True)
class Phase:
    """The positions of an input that a stride treats alike, and the convolution that makes their gradient."""

    places: tuple[slice, ...]  # of the input
    taps: tuple[slice, ...]  # of the weight; empty on an axis where no tap reaches these places
    spec: ConvSpec

    @property
    def is_reached(self) -> bool:
        """Whether any tap reaches these places."""
        return 0 not in self.spec.window


@dataclass(frozen=True)
class PoolSpec(Windows):
    """One pooling, or the patches of one convolution."""

    padding_mode: ClassVar[str] = "zeros"
    ceil_mode: bool = False

    @cached_property
    def out_size(self) -> Sizes:
        """Windows per axis; `ceil_mode` adds the last partial one, unless it starts in the end padding."""
        if not self.ceil_mode:
            return self.whole_windows
        axes = zip(self.size, self.padding, self.padded_size, self.reach, self.stride, strict=True)
        return tuple(
            min(-(-(padded - reach) // s) + 1, -(-(n + before) // s)) for n, (before, _), padded, reach, s in axes
        )

    @cached_property
    def overhang(self) -> Sizes:
        """Elements that the last window of `ceil_mode` needs beyond the padded axis."""
        axes = zip(self.out_size, self.stride, self.reach, self.padded_size, strict=True)
        return tuple(max((out - 1) * s + reach - padded, 0) for out, s, reach, padded in axes)

    @property
    def reading(self) -> PoolSpec:
        """The same windows with the overhang made ordinary padding."""
        axes = zip(self.padding, self.overhang, strict=True)
        return replace(self, padding=tuple((lo, hi + more) for (lo, hi), more in axes))

    @property
    def y_shape(self) -> Sizes:
        """Shape of the result, in the user's layout."""
        return in_layout(self.layout, self.batch, self.out_size, self.channels)

    @property
    def patches_shape(self) -> Sizes:
        """Shape that `unfold` returns: (N, *out, *window, C) or (N, C, *window, *out)."""
        if self.layout == "channels_last":
            return (self.batch, *self.out_size, *self.window, self.channels)
        return (self.batch, self.channels, *self.window, *self.out_size)

    def positions(self, axis: int, offset: int) -> Sizes:
        """Where tap `offset` of each window lies on the unpadded axis; outside it where it lies in the padding."""
        first = offset * self.dilation[axis] - self.padding[axis][0]
        return tuple(first + i * self.stride[axis] for i in range(self.out_size[axis]))

    def counts(self, axis: int, include_padding: bool) -> Sizes:
        """Taps of each window that lie on the axis, or on the padded axis; the overhang never counts."""
        before, after = self.padding[axis] if include_padding else (0, 0)
        m, d, end = self.window[axis], self.dilation[axis], self.size[axis] + after
        ranges = ((-(-(-before - start) // d), -(-(end - start) // d)) for start in self.positions(axis, 0))
        return tuple(max(min(stop, m) - max(first, 0), 0) for first, stop in ranges)


@dataclass(frozen=True)
class AdaptiveSpec:
    """Pooling to a wanted size: window i covers floor(i n / out) up to, not including, ceil((i + 1) n / out)."""

    layout: str
    batch: int
    channels: int
    size: Sizes
    out_size: Sizes

    def spans(self, axis: int) -> Pairs:
        """Start and stop of every window."""
        n, out = self.size[axis], self.out_size[axis]
        return tuple((i * n // out, -(-(i + 1) * n // out)) for i in range(out))


@dataclass(frozen=True)
class ScatterSpec:
    """Values that go back to the flat positions of a plane."""

    layout: str
    batch: int
    channels: int
    out_size: Sizes  # of the values
    size: Sizes  # of the plane
