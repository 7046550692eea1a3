"""Long filters of signals, as the register tile computes them: as many results beside each other as it has filters.

``y[p S + f] = sum over j of x[p S + j] band[j, f]``: results in groups of S, and a band that has the taps in each of
its S columns, one row further down than in the last. S - 1 rows are more products than there are taps, but an element
that is read serves S results, and a vector of the band as many as a tile has pixels: the filter's own kernel reads an
element for every product, and from two lines of the cache nearly every time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xpconv.cpu import processors
from xpconv.cpu.compiled import direct, finite, plane
from xpconv.cpu.compiled.call import Call, Prepared
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.cpu.compiled.tile import SUMMED
from xpconv.cpu.plan import is_banded
from xpconv.spec import Array, ConvSpec


class Bands:
    """A filter of signals that is taken so, prepared."""

    def __init__(self, call: Call) -> None:
        spec, size = call.spec, call.itemsize
        self._call, self._exact, self._width = call, plane.Plane(call), width(call.dtype)
        self._rows = _rows(spec, self._width)
        self._taps = slice(None, None, -1 if spec.flip else 1)
        self._lines, self._step = size * (self._width + 1), size * self._width
        self._parts = [self._part(first, groups) for first, groups in self._cut() if groups]

    def _cut(self) -> list[tuple[int, int]]:
        """The first result of each part, and its groups: with padding before, without any, with padding after.

        What is not padded is read where it lies. The last group begins where others have been, to end with the last
        result.
        """
        spec, s = self._call.spec, self._width
        (before, _), (out,), (n,) = spec.padding[0], spec.out_size, spec.size
        all_groups = out // s
        head = min(-(-before // s), all_groups)
        plain = max(min((n + before - self._rows) // s + 1, all_groups) - head, 0)
        tail = all_groups - head - plain
        return [(0, head), (head * s, plain), ((head + plain) * s, tail), (out - s, min(out % s, 1))]

    def _part(self, first: int, groups: int) -> tuple[Prepared, int, int]:
        """The groups from a result on, prepared, and where what they read and what they write begins."""
        call, s, size = self._call, self._width, self._call.itemsize
        start = first - call.spec.padding[0][0]
        skipped, before = max(start, 0), max(-start, 0)
        read = (groups - 1) * s + self._rows
        there = max(min(call.spec.size[0] - skipped, read - before), 0)
        spec = replace(
            call.spec, size=(there,), window=(self._rows,), stride=(s,), padding=((before, read - before - there),),
            filters=s, flip=False,
        )  # fmt: skip
        y_strides = call.y_strides[0], s * size, size
        part = replace(call, spec=spec, w_strides=(s * size, s * size, size), y_strides=y_strides)
        return direct.Direct(part), skipped, first

    def __call__(self, x: Array, w: Array, bias: Array | None, y: Array) -> bool:
        """Write the result to `y`, where no value reaches further than its windows."""
        batch, s = self._call.spec.batch, self._width
        band = np.zeros((self._rows, s), self._call.dtype)
        taps = w.reshape(-1)[self._taps]
        np.ndarray((len(taps), s), band.dtype, band, 0, (self._step, self._lines))[...] = taps[:, None]
        biases = None if bias is None else np.broadcast_to(bias.reshape(-1), (s,))
        signals, results = x.reshape(batch, -1), y.reshape(batch, -1)
        for compute, begin, first in self._parts:
            compute(signals[:, begin:], band, biases, results[:, first:])
        return finite.finite(y) or self._exact(x, w, bias, y)


def width(dtype: str) -> int:
    """Results that are computed beside each other."""
    return 2 * lanes_of(dtype)


def _rows(spec: ConvSpec, columns: int) -> int:
    """Of the band, in runs that are equally long: what lies beyond the taps is zeros."""
    rows = spec.window[0] + columns - 1
    runs = -(-rows // SUMMED)
    return -(-rows // runs) * runs


def takes(call: Call) -> bool:
    """Whether it is taken so, of arrays that lie like these."""
    spec, size, columns = call.spec, call.itemsize, width(call.dtype)
    dense = call.y_strides[1] == size and (spec.batch == 1 or call.y_strides[0] == spec.out_size[0] * size)
    rows = _rows(spec, columns)
    team = len(processors.allowed())  # however many are free: the same call is always computed the same way
    held = (2 + team) * rows * columns + 4 * team * (rows + columns)  # the band, packed by each, and blocks
    return is_banded(spec) and dense and held * size <= call.limit


def is_ready(dtype: str, spec: ConvSpec) -> bool:
    """Whether the kernels are there; if not, they are being compiled, where that can be done."""
    columns = width(dtype)
    return direct.is_ready(dtype, replace(spec, filters=columns)) and plane.is_ready(dtype, spec)
