"""The kernels that filter two tiles at once by their spectrum: one is the real part, the other the imaginary.

A spectrum lies in blocks of as many frequencies of the rows as a vector has lanes, of each all columns: what goes on
along the rows of a tile goes on along the blocks, and squares are turned in registers between the two. As the kernel is
real, so is what becomes of either part.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from llvmlite import ir

from xpconv.cpu.compiled.call import LINE
from xpconv.cpu.compiled.fourier import Complex, Length, Sequences
from xpconv.cpu.compiled.ir import FLOATS, Kernel, Value, vector
from xpconv.cpu.compiled.moves import in_vectors, lanes_of, put, take, turned
from xpconv.cpu.compiled.tile import Finish


def down_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``down(first, second, pitch, means, roots, work, to)``: columns of two tiles less means to blocks of frequencies."""
    kernel = Kernel(module, "down", ("first", "second", "pitch", "means", "roots", "work", "to"))
    first, second, pitch, means, roots, work, to = kernel.arguments
    lanes, kind = lanes_of(dtype), vector(FLOATS[dtype], lanes_of(dtype))
    columns, element, size = Sequences(kernel, down, roots, dtype), FLOATS[dtype], np.dtype(dtype).itemsize
    re, im = (kernel.splat(kernel.load(means, element, part * size), lanes) for part in range(2))
    with kernel.loop(across.total, step=lanes) as column:
        at = column * np.dtype(dtype).itemsize

        def load(n: int, m: Value, at: Value = at) -> Complex:
            place = (m + n * down.second) * pitch + at
            return Complex(kernel.load(first + place, kind) - re, kernel.load(second + place, kind) - im)

        columns.begin(load, work)
        with kernel.loop(down.first) as k:
            values = columns.end(work, k)
            for part in range(0, down.second, lanes):
                square = values[part : part + lanes]
                parts = (turned(kernel, [value[i] for value in square]) for i in range(2))
                block = (k * (down.second // lanes) + part // lanes) * (across.total * columns.step)
                for j, both in enumerate(zip(*parts, strict=True)):
                    columns.store(Complex(*both), to + block + (column + j) * columns.step)
    kernel.finish()
    return kernel


def across_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``across(spectrum, roots, factors, soon)``: the rows of a spectrum forth, times factors, and back.

    Meanwhile what will be read or written `soon` is asked for, as many rows of it with every block as a tile has.
    """
    kernel = Kernel(module, "across", ("spectrum", "roots", "factors", "soon"))
    spectrum, roots, factors, soon = kernel.arguments
    rows = Sequences(kernel, across, roots, dtype)
    with kernel.loop(down.total // lanes_of(dtype)) as block:
        _ask(kernel, soon, block * lanes_of(dtype), lanes_of(dtype))
        here, there = (whole + block * (across.total * rows.step) for whole in (spectrum, factors))
        rows.begin(lambda n, m, here=here: rows.load(here + (m + n * across.second) * rows.step), here)
        with kernel.loop(across.first) as k:
            values = rows.end(here, k)
            places = (there + (k * across.second + m) * rows.step for m in range(across.second))
            values = [v.times(rows.load(place), kernel) for v, place in zip(values, places, strict=True)]
            rows.begin_back(values, here, k)

        def store(n: int, m: Value, value: Complex, here: Value = here) -> None:
            rows.store(value, here + (m + n * across.second) * rows.step)

        rows.end_back(here, store)
    kernel.finish()
    return kernel


SOON = ("address", "step", "nbytes", "rows")  # of each of the parts of arrays that are asked for
ASKED = 4  # of these


def _ask(kernel: Kernel, soon: Value, first: Value, count: int) -> None:
    """Ask for so many rows, from the first on, of every part."""
    for part in range(ASKED):
        given = kernel.given(soon + part * (8 * len(SOON)), SOON)
        with kernel.loop(kernel.minimum(first + count, given.rows), start=first) as row:
            line = given.address + row * given.step
            with kernel.loop(given.nbytes, step=LINE) as near:
                kernel.prefetch(line + near)


def factors_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``factors(spectrum, roots, scale)``: the rows of a filter's spectrum, conjugate and divided by all elements."""
    kernel = Kernel(module, "factors", ("spectrum", "roots"))
    spectrum, roots = kernel.arguments
    rows = Sequences(kernel, across, roots, dtype)
    scale = kernel.constant(1 / (down.total * across.total), vector(FLOATS[dtype], lanes_of(dtype)))
    with kernel.loop(down.total // lanes_of(dtype)) as block:
        here = spectrum + block * (across.total * rows.step)
        rows.begin(lambda n, m, here=here: rows.load(here + (m + n * across.second) * rows.step), here)
        with kernel.loop(across.first) as k:
            for m, value in enumerate(rows.end(here, k)):
                rows.store(Complex(value.re * scale, -(value.im * scale)), here + (k * across.second + m) * rows.step)
    kernel.finish()
    return kernel


def up_kernel(module: ir.Module, dtype: str, down: Length, across: Length) -> Kernel:
    """``up(spectrum, roots, work, columns, first, second, pitch)``: blocks of frequencies to two tiles' columns."""
    names = ("spectrum", "roots", "work", "wanted", "first", "second", "pitch")
    kernel = Kernel(module, "up", names)
    spectrum, roots, work, wanted, first, second, pitch = kernel.arguments
    lanes = lanes_of(dtype)
    columns = Sequences(kernel, down, roots, dtype)
    with kernel.loop(wanted, step=lanes) as column:
        with kernel.loop(down.first) as k:
            values: list[Complex] = []
            for part in range(0, down.second, lanes):
                block = (k * (down.second // lanes) + part // lanes) * (across.total * columns.step)
                places = (spectrum + block + (column + j) * columns.step for j in range(lanes))
                square = [columns.load(place) for place in places]
                parts = (turned(kernel, [value[i] for value in square]) for i in range(2))
                values += [Complex(re, im) for re, im in zip(*parts, strict=True)]
            columns.begin_back(values, work, k)
        at = column * np.dtype(dtype).itemsize

        def store(n: int, m: Value, value: Complex, at: Value = at) -> None:
            place = (m + n * down.second) * pitch + at
            kernel.store(value.re, first + place)
            kernel.store(value.im, second + place)

        columns.end_back(work, store)
    kernel.finish()
    return kernel


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
    """``stored(...)``: results of a tile, with what its mean comes to, finished; `found` is NaN if one is not finite."""
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
