"""The kernels that filter two tiles at once by their spectrum: one is the real part, the other the imaginary.

A spectrum lies in blocks of as many frequencies of the columns as a vector has lanes, of each all columns: what goes on
along the rows of a tile goes on along the blocks, and squares are turned in registers between the two. As the kernel is
real, so is what becomes of either part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled.fourier import Complex, Length, Sequences
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.moves import in_vectors, lanes_of, put, take, turned
from xpconv.cpu.compiled.tile import Finish
from xpconv.cpu.compiled.values import FLOATS, Value, vector


def down_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``down(...)``: the columns of two tiles, less the means of each, to blocks of frequencies."""
    kernel = Kernel(module, "down", ("first", "second", "pitch", "means", "roots", "work", "to"))
    first, second, pitch, means, roots, work, to = kernel.arguments
    columns, blocks = Sequences(kernel, down, roots, dtype), _Blocks(kernel, dtype, down, across)
    size, element, lanes = np.dtype(dtype).itemsize, FLOATS[dtype], lanes_of(dtype)
    kind, mean = vector(element, lanes), [kernel.splat(kernel.load(means, element, i * size), lanes) for i in range(2)]
    with kernel.loop(across.total, step=lanes) as column:

        def load(n: int, m: Value, at: Value = column * size) -> Complex:
            place = (m + n * down.second) * pitch + at
            return Complex(*(kernel.load(tile + place, kind) - mean[i] for i, tile in enumerate((first, second))))

        columns.begin(load, work)
        with kernel.loop(down.first) as k:
            values = columns.end(work, k)
            for i, value in enumerate(blocks.turned(values)):
                columns.store(value, blocks.place(to, k, i, column))
    kernel.finish()
    return kernel


def across_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``across(spectrum, roots, factors)``: the rows of a spectrum forth, times factors, and back."""
    kernel = Kernel(module, "across", ("spectrum", "roots", "factors"))
    spectrum, roots, factors = kernel.arguments
    rows, blocks = Sequences(kernel, across, roots, dtype), _Blocks(kernel, dtype, down, across)
    with kernel.loop(blocks.count) as block:
        here, there = (whole + block * blocks.nbytes for whole in (spectrum, factors))
        rows.begin_in_place(here)
        with kernel.loop(across.first) as k:
            values = rows.end(here, k)
            factor = [rows.load(rows.place(there, k, m)) for m in range(across.second)]
            rows.begin_back([v.times(f, kernel) for v, f in zip(values, factor, strict=True)], here, k)
        rows.end_back_in_place(here)
    kernel.finish()
    return kernel


def factors_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``factors(spectrum, roots)``: the rows of a filter's spectrum, conjugate, divided by the elements of a tile."""
    kernel = Kernel(module, "factors", ("spectrum", "roots"))
    spectrum, roots = kernel.arguments
    rows, blocks = Sequences(kernel, across, roots, dtype), _Blocks(kernel, dtype, down, across)
    scale = kernel.constant(1 / (down.total * across.total), vector(FLOATS[dtype], lanes_of(dtype)))
    with kernel.loop(blocks.count) as block:
        here = spectrum + block * blocks.nbytes
        rows.begin_in_place(here)
        with kernel.loop(across.first) as k:
            for m, value in enumerate(rows.end(here, k)):
                rows.store(Complex(value.re * scale, -(value.im * scale)), rows.place(here, k, m))
    kernel.finish()
    return kernel


def up_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``up(...)``: blocks of frequencies to as many columns of two tiles as are wanted."""
    kernel = Kernel(module, "up", ("spectrum", "roots", "work", "wanted", "first", "second", "pitch"))
    spectrum, roots, work, wanted, first, second, pitch = kernel.arguments
    columns, blocks = Sequences(kernel, down, roots, dtype), _Blocks(kernel, dtype, down, across)
    size, lanes = np.dtype(dtype).itemsize, lanes_of(dtype)
    with kernel.loop(wanted, step=lanes) as column:
        with kernel.loop(down.first) as k:
            values = [columns.load(blocks.place(spectrum, k, i, column)) for i in range(down.second)]
            columns.begin_back(blocks.turned(values), work, k)

        def store(n: int, m: Value, value: Complex, at: Value = column * size) -> None:
            place = (m + n * down.second) * pitch + at
            kernel.store(value.re, first + place)
            kernel.store(value.im, second + place)

        columns.end_back(work, store)
    kernel.finish()
    return kernel


@dataclass(frozen=True)
class _Blocks:
    """The blocks of a spectrum: of as many frequencies of the columns as there are lanes all columns in turn."""

    kernel: Kernel
    dtype: str
    down: Length
    across: Length

    @property
    def count(self) -> int:
        """How many there are."""
        return self.down.total // lanes_of(self.dtype)

    @property
    def nbytes(self) -> int:
        """Of one."""
        return 2 * self.across.total * lanes_of(self.dtype) * np.dtype(self.dtype).itemsize

    def turned(self, values: Sequence[Complex]) -> list[Complex]:
        """Frequencies of as many columns as there are lanes as such columns of frequencies, or back, block by block."""
        lanes = lanes_of(self.dtype)
        squares = [values[i : i + lanes] for i in range(0, len(values), lanes)]
        parts = [[turned(self.kernel, [value[i] for value in square]) for i in range(2)] for square in squares]
        return [Complex(*both) for re, im in parts for both in zip(re, im, strict=True)]

    def place(self, start: Value, k: Value, i: int, column: Value) -> Value:
        """Where, of those that `turned` makes of the frequencies that begin with k, one lies, from a column on."""
        lanes = lanes_of(self.dtype)
        block = k * (self.down.second // lanes) + i // lanes
        return start + block * self.nbytes + (column + i % lanes) * (self.nbytes // self.across.total)


def read_kernel(module: ir.Module, dtype: str, gather: Kernel, down: Length, across: Length) -> Kernel:
    """``read(...)``: a tile's part of padded rows, and the mean of some of them: put in memory, and all around."""
    names = ("x", "rows", "count", "runs", "run_count", "step", "first", "columns", "outside", "to", "pitch", "mean")
    kernel = Kernel(module, "read", names)
    *what, to, pitch, mean = kernel.arguments
    given = SimpleNamespace(**dict(zip(names, kernel.arguments, strict=True)))
    lanes, size, element = lanes_of(dtype), np.dtype(dtype).itemsize, FLOATS[dtype]
    kind = vector(element, lanes)
    kernel.call(gather, *what, to, pitch)
    total, whole = kernel.variable(kernel.constant(0, kind)), given.columns // lanes * lanes
    with kernel.loop(given.count, step=_SAMPLED) as row, kernel.loop(whole, step=lanes) as column:
        total.set(total.get() + kernel.load(to + row * pitch + column * size, kind))
    sums, middle = kernel.memory(kind, 1), kernel.variable(kernel.constant(0, element))
    kernel.store(total.get(), sums)
    with kernel.loop(lanes) as lane:
        middle.set(middle.get() + kernel.load(sums + lane * size, element))
    number = kernel.at_least((given.count + (_SAMPLED - 1)) // _SAMPLED * whole, 1)
    middle.set(middle.get() // kernel.floating(number, element))
    kernel.store(middle.get(), mean)
    every = kernel.splat(middle.get(), lanes)
    with kernel.when(whole < across.total), kernel.loop(given.count) as row:
        line = to + row * pitch
        read = kernel.load(line + whole * size, kind)
        kernel.store(kernel.lanes_below(given.columns - whole, lanes).where(read, every), line + whole * size)
        with kernel.loop(across.total, start=whole + lanes, step=lanes) as column:
            kernel.store(every, line + column * size)
    with kernel.loop(down.total, start=given.count) as row, kernel.loop(across.total, step=lanes) as column:
        kernel.store(every, to + row * pitch + column * size)
    kernel.finish()
    return kernel


_SAMPLED = 4  # rows of which one is read for the mean


def stored_kernel(module: ir.Module, dtype: str) -> Kernel:
    """``stored(...)``: results of a tile and of its mean, finished; `found` becomes NaN where one is not finite."""
    names = ("tile", "pitch", "rows", "columns", "mean", "total", "bias", "finish", "y", "y_row", "found")
    kernel = Kernel(module, "stored", names)
    given = SimpleNamespace(**dict(zip(names, kernel.arguments, strict=True)))
    lanes, element = lanes_of(dtype), FLOATS[dtype]
    kind = vector(element, lanes)
    mean, total, bias = (kernel.load(place, element) for place in (given.mean, given.total, given.bias))
    shift, bias = kernel.splat(mean * total, lanes), kernel.splat(bias, lanes)
    finished = Finish(kernel, given.finish, element, lanes)
    zeros, found = kernel.constant(0, kind), kernel.variable(kernel.load(given.found, kind))
    with kernel.loop(given.rows) as row:
        source, target = given.tile + row * given.pitch, given.y + row * given.y_row

        def store(at: Value, mask: Value | None, source: Value = source, target: Value = target) -> None:
            value = take(kernel, source + at, kind, mask) + shift
            found.set(kernel.fma(value, zeros, found.get()))
            put(kernel, finished(value, bias), target + at, mask)

        in_vectors(kernel, dtype, given.columns, store)
    kernel.store(found.get(), given.found)
    kernel.finish()
    return kernel
