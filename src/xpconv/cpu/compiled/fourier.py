"""Fourier transforms of vectors of complex numbers: of few in registers, of more in two passes over memory.

Real and imaginary parts are vectors of their own, and every lane is a transform by itself. A sequence of
``first * second`` elements is transformed in place (Cooley and Tukey, 1965): over those that are `second` apart, times
powers of a root of one, then over those side by side. Frequencies stay where that leaves them; the way back takes them
from there, so that nothing is ever put in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.cpu.compiled.values import FLOATS, Operand, Value, vector
from xpconv.spec import Array


class Complex(NamedTuple):
    """Vectors of the real and of the imaginary parts."""

    re: Value
    im: Value

    @property
    def swapped(self) -> Complex:
        """The parts in each other's place: before a transform and after it, that makes it its inverse."""
        return Complex(self.im, self.re)

    def times(self, factor: Complex, kernel: Kernel) -> Complex:
        """The product."""
        re = kernel.fma(self.re, factor.re, -(self.im * factor.im))
        return Complex(re, kernel.fma(self.re, factor.im, self.im * factor.re))


# --- In registers -----------------------------------------------------------------------------------------------------


def transform(kernel: Kernel, values: Sequence[Complex]) -> list[Complex]:
    """``sum over n of  values[n] exp(-2 pi i n k / N)`` for every k; N is a power of two, or three times one."""
    if len(values) == 1:
        return list(values)
    if len(values) == 3:
        return _of_three(kernel, *values)
    even, odd = transform(kernel, values[::2]), transform(kernel, values[1::2])
    pairs = [_butterfly(kernel, e, o, k, len(values)) for k, (e, o) in enumerate(zip(even, odd, strict=True))]
    return [low for low, _ in pairs] + [high for _, high in pairs]


def inverse(kernel: Kernel, values: Sequence[Complex]) -> list[Complex]:
    """The same with the other sign: N times the inverse."""
    return [value.swapped for value in transform(kernel, [value.swapped for value in values])]


def _of_three(kernel: Kernel, a: Complex, b: Complex, c: Complex) -> list[Complex]:
    both, re, im = Complex(b.re + c.re, b.im + c.im), b.re - c.re, b.im - c.im
    middle = _plus(kernel, a, -0.5, both)
    turned = Complex(im, -re)
    height = math.sqrt(0.75)
    return [
        Complex(a.re + both.re, a.im + both.im), _plus(kernel, middle, height, turned),
        _plus(kernel, middle, -height, turned),
    ]  # fmt: skip


def _butterfly(kernel: Kernel, e: Complex, o: Complex, k: int, n: int) -> tuple[Complex, Complex]:
    """``e + w o`` and ``e - w o`` with ``w = exp(-2 pi i k / n)``, of which the larger part is multiplied last."""
    if 4 * k % n == 0:
        turned = Complex(o.im, -o.re) if k else o
        return Complex(e.re + turned.re, e.im + turned.im), Complex(e.re - turned.re, e.im - turned.im)
    c, s = math.cos(2 * math.pi * k / n), math.sin(2 * math.pi * k / n)
    if abs(c) >= s:
        part = Complex(_sum(kernel, o.re, s / c, o.im), _sum(kernel, o.im, -s / c, o.re))
        return _plus(kernel, e, c, part), _plus(kernel, e, -c, part)
    part = Complex(_sum(kernel, o.im, c / s, o.re), -_sum(kernel, o.re, -c / s, o.im))
    return _plus(kernel, e, s, part), _plus(kernel, e, -s, part)


def _plus(kernel: Kernel, a: Complex, factor: float, b: Complex) -> Complex:
    return Complex(_sum(kernel, a.re, factor, b.re), _sum(kernel, a.im, factor, b.im))


def _sum(kernel: Kernel, a: Value, factor: float, b: Value) -> Value:
    """``a + factor b``."""
    if math.isclose(abs(factor), 1):
        return a + b if factor > 0 else a - b
    return kernel.fma(b, kernel.constant(factor, b.type), a)


# --- In memory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Length:
    """Of a sequence that is transformed in two passes."""

    first: int
    second: int

    @property
    def total(self) -> int:
        """Elements."""
        return self.first * self.second

    def roots(self, dtype: str) -> Array:
        """``exp(-2 pi i k m / total)`` for every k below `first` and m below `second`."""
        angles = -2 * np.pi / self.total * np.outer(np.arange(self.first), np.arange(self.second))
        return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(dtype)


@dataclass(frozen=True)
class Sequences:
    """Sequences of one length, in one kernel: of every element the vectors of its two parts, side by side."""

    kernel: Kernel
    length: Length
    roots: Value  # where they lie
    dtype: str

    @property
    def step(self) -> int:
        """Bytes from an element to the next."""
        return 2 * lanes_of(self.dtype) * np.dtype(self.dtype).itemsize

    def place(self, start: Value, k: Operand, m: Operand) -> Value:
        """Where the element m after the multiple k of `second` lies."""
        return start + (m + k * self.length.second) * self.step

    def begin(self, load: Callable[[int, Value], Complex], to: Value) -> None:
        """The first pass, of elements ``load(n, m)``, m after the multiple n of `second`."""
        with self.kernel.loop(self.length.second) as m:
            values = transform(self.kernel, [load(n, m) for n in range(self.length.first)])
            for k, value in enumerate(values):
                turned = value.times(self._root(k, m), self.kernel) if k else value
                self.store(turned, self.place(to, k, m))

    def begin_in_place(self, start: Value) -> None:
        """The first pass, of elements that lie where they stay."""
        self.begin(lambda n, m: self.load(self.place(start, n, m)), start)

    def end(self, start: Value, k: Value) -> list[Complex]:
        """The second pass, of one frequency of the first."""
        return transform(self.kernel, [self.load(self.place(start, k, m)) for m in range(self.length.second)])

    def begin_back(self, values: Sequence[Complex], to: Value, k: Value) -> None:
        """The way back from what `end` makes."""
        for m, value in enumerate(inverse(self.kernel, values)):
            root = self._root(k, self.kernel.constant(m))
            turned = value.times(Complex(root.re, -root.im), self.kernel) if m else value
            self.store(turned, self.place(to, k, m))

    def end_back(self, start: Value, store: Callable[[int, Value, Complex], None]) -> None:
        """The way back from what `begin` makes, `total` times as large, by ``store(n, m, element)``."""
        with self.kernel.loop(self.length.second) as m:
            values = [self.load(self.place(start, k, m)) for k in range(self.length.first)]
            for n, value in enumerate(inverse(self.kernel, values)):
                store(n, m, value)

    def end_back_in_place(self, start: Value) -> None:
        """The same, of elements that stay where they lie."""
        self.end_back(start, lambda n, m, value: self.store(value, self.place(start, n, m)))

    def load(self, address: Value) -> Complex:
        """An element."""
        kind = vector(FLOATS[self.dtype], lanes_of(self.dtype))
        return Complex(self.kernel.load(address, kind), self.kernel.load(address, kind, self.step // 2))

    def store(self, value: Complex, address: Value) -> None:
        """An element to memory."""
        self.kernel.store(value.re, address)
        self.kernel.store(value.im, address, self.step // 2)

    def _root(self, k: Operand, m: Value) -> Complex:
        """A root of one in every lane."""
        size, element, lanes = np.dtype(self.dtype).itemsize, FLOATS[self.dtype], lanes_of(self.dtype)
        place = self.roots + (m + k * self.length.second) * (2 * size)
        re, im = (self.kernel.load(place, element, offset) for offset in (0, size))
        return Complex(self.kernel.splat(re, lanes), self.kernel.splat(im, lanes))
