"""What Hypothesis draws: calls over the whole parameter space, small enough for plain loops.

Values are small integers, whatever the dtype, so that sums are exact in any order and results compare for equality.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

import oracle

DTYPES = (np.float64, np.float64, np.float32, np.complex128, np.int64, np.int32, np.uint8)
MODES = ("zeros", "constant", "edge", "reflect", "symmetric", "wrap")


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
    """Small integers of any dtype; complex ones have an imaginary part."""
    low = 0 if np.dtype(dtype).kind == "u" else -4
    values = rng.integers(low, 5, shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.integers(low, 5, shape)
    return values.astype(dtype)


@dataclass
class ConvCase:
    """One call of conv or corr, in channels-last terms, with its padding resolved by the oracle."""

    flip: bool
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    padding: Any
    pads: list[tuple[int, int]]
    geometry: dict[str, Any]  # stride, dilation, as tuples
    groups: int
    mode: str
    fill: int

    @property
    def function(self) -> str:
        return "conv" if self.flip else "corr"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the public call; the forward one also takes fill_value."""
        return {**self.geometry, "padding": self.padding, "groups": self.groups, "padding_mode": self.mode}

    def expected(self) -> np.ndarray:
        return oracle.conv(
            self.x, self.w, self.bias, flip=self.flip, pads=self.pads, groups=self.groups, mode=self.mode,
            fill=self.fill, **self.geometry,
        )  # fmt: skip


def _steps(draw: Any, axes: int, most: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(1, most)) for _ in range(axes))


def _padding(draw: Any, size, window, stride, dilation, flip) -> tuple[Any, list[tuple[int, int]]]:
    """What the user writes, and what it means."""
    axes = len(size)
    name = draw(st.sampled_from(("valid", "full", "same", "same_upper", "same_lower", "int", "ints", "pairs")))
    if name == "int":
        p = draw(st.integers(0, 3))
        return p, [(p, p)] * axes
    if name == "ints":
        ps = [draw(st.integers(0, 3)) for _ in range(axes)]
        return (tuple(ps) if axes > 1 else ps[0]), [(p, p) for p in ps]
    if name == "pairs":
        pairs = [(draw(st.integers(0, 4)), draw(st.integers(0, 4))) for _ in range(axes)]
        return tuple(pairs), pairs
    return name, oracle.named_pads(name, size, window, stride, dilation, flip)


def _fits(size, window, dilation, pads) -> bool:
    axes = zip(size, window, dilation, pads, strict=True)
    return all(n + lo + hi >= (m - 1) * d + 1 for n, m, d, (lo, hi) in axes)


@st.composite
def conv_cases(draw: Any, *, dtypes=DTYPES, modes=MODES, batches=(0, 1, 2)) -> ConvCase:
    """A convolution or correlation of one to three axes."""
    axes = draw(st.sampled_from((1, 1, 2, 2, 3)))
    most = (9, 6, 4)[axes - 1]
    size = tuple(draw(st.integers(1, most)) for _ in range(axes))
    window = tuple(draw(st.integers(1, (5, 3, 2)[axes - 1])) for _ in range(axes))
    stride, dilation = _steps(draw, axes, 3), _steps(draw, axes, 3)
    flip = draw(st.booleans())
    padding, pads = _padding(draw, size, window, stride, dilation, flip)
    assume(_fits(size, window, dilation, pads))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    per_group, maps = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    x = integers(rng, (draw(st.sampled_from(batches)), *size, groups * per_group), dtype)
    w = integers(rng, (*window, per_group, groups * maps), dtype)
    bias = integers(rng, (groups * maps,), dtype) if draw(st.booleans()) else None
    mode = draw(st.sampled_from(modes))
    fill = draw(st.integers(0, 3)) if mode == "constant" else 0
    return ConvCase(flip, x, w, bias, padding, pads, {"stride": stride, "dilation": dilation}, groups, mode, fill)


@dataclass
class PoolCase:
    """One call of a pooling, in channels-last terms."""

    x: np.ndarray
    padding: Any
    geometry: dict[str, Any]  # window, stride, dilation, pads, ceil_mode: the oracle's arguments

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the public call."""
        return {name: value for name, value in self.geometry.items() if name != "pads"} | {"padding": self.padding}


@st.composite
def pool_cases(draw: Any, *, dtypes=(np.float64, np.float32, np.int32, np.uint8), ceil_mode=None) -> PoolCase:
    """A pooling of one to three axes; padding may exceed half the window."""
    axes = draw(st.sampled_from((1, 1, 2, 2, 3)))
    size = tuple(draw(st.integers(1, (9, 6, 4)[axes - 1])) for _ in range(axes))
    window = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride, dilation = _steps(draw, axes, 3), _steps(draw, axes, 2)
    padding, pads = _padding(draw, size, window, stride, dilation, flip=False)
    assume(_fits(size, window, dilation, pads))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.sampled_from((0, 1, 2))), *size, draw(st.integers(1, 2)))
    geometry = {
        "window": window, "stride": stride, "dilation": dilation, "pads": pads,
        "ceil_mode": draw(st.booleans()) if ceil_mode is None else ceil_mode,
    }  # fmt: skip
    return PoolCase(integers(rng, shape, draw(st.sampled_from(dtypes))), padding, geometry)


def first(array: np.ndarray) -> np.ndarray:
    """Feature maps, channels first."""
    return np.moveaxis(array, -1, 1)


def weight_first(w: np.ndarray) -> np.ndarray:
    """A weight, channels first."""
    return np.transpose(w, (w.ndim - 1, w.ndim - 2, *range(w.ndim - 2)))


@contextmanager
def far_apart(cupy, first_item, second_item):
    """Two small arrays of bytes on a device, more than 2^31 from each other, and how far the second is from the first.

    The test is skipped where the system puts them side by side.
    """
    one = cupy.asarray(first_item)
    spacer = np.empty(3 << 30, np.uint8)  # address space alone: nobody touches it
    whole = cupy.zeros(1 << 26, dtype=second_item.dtype)  # so large that it gets pages of its own
    other = whole[: second_item.size]
    other[...] = cupy.asarray(second_item.reshape(-1))
    apart = other.data.ptr - one.data.ptr
    if abs(apart) < 1 << 31:
        pytest.skip("the system put the two arrays side by side")
    yield one, other, apart
    assert spacer.size
    assert whole.size
