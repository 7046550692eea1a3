"""Convolutions beside whose arrays NumPy would hold more than the workspace limit: which, and their pieces.

What is held follows the arrays, and not the limit, where a padding mode other than "zeros" is put around an input,
where results are brought into another layout or dtype, and where spectra are those of whole images.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from xpconv.cpu import image_spectra, pieces
from xpconv.cpu.costs import direct_by, is_cut
from xpconv.cpu.pieces import Piece
from xpconv.cpu.plan import padded_bytes, pads_in_blocks
from xpconv.cpu.signals import rows_of
from xpconv.engines import compiled
from xpconv.engines.agnostic import channels_last
from xpconv.engines.methods import itemsize, planned
from xpconv.plan import Plan
from xpconv.spec import Array, ConvSpec, in_layout
from xpconv.workspace import current_limit, workspace_limit

_FILLED = ("zeros", "constant")  # padding that is one number


@dataclass(frozen=True)
class Computation:
    """A convolution by a method, and what it holds beside input, weight and result whatever the limit is."""

    spec: ConvSpec
    method: str
    given: int  # bytes of an element
    summed: int  # of one in the dtype that sums are kept in
    by_kernels: bool
    is_apart: bool  # whether the result is copied to where it is wanted

    @cached_property
    def held(self) -> int:
        """Bytes that follow the arrays."""
        spec, made = self.spec, math.prod(self.spec.y_shape)
        nbytes = 0 if self.given == self.summed else (math.prod(spec.x_shape) + made) * self.summed
        if self.by_kernels:
            return nbytes + (made * self.summed if self.is_apart else 0)
        if not pads_in_blocks(spec, self.method):
            nbytes += 2 * padded_bytes(spec, self.summed)  # axis after axis
        by_planes = self.method in ("direct", "fft") and spec.filters_planes
        if self.method == "direct" and not by_planes:
            nbytes += 2 * made * self.summed  # a tap's products, and what they are added to
        as_wanted = by_planes and (self.method == "fft" or direct_by(spec) != "taps")
        is_turned = spec.layout == "channels_first" and not as_wanted
        return nbytes + (made * self.summed if self.is_apart or is_turned else 0)

    @cached_property
    def least(self) -> int:
        """The same and the fewest bytes that the method takes, where these follow the arrays."""
        if self.by_kernels:
            return self.held
        if self.method == "fft" and not is_cut(self.spec):
            return self.held + image_spectra.least_bytes(self.spec)
        if self.method == "direct" and direct_by(self.spec) == "bands":
            rows = rows_of(self.spec, self.summed)
            return self.held + rows.read * self.spec.reach[0] + rows.written
        return self.held

    def part(self, spec: ConvSpec) -> Computation:
        """Of a piece, whose result NumPy copies to its place."""
        return replace(self, spec=spec, is_apart=self.is_apart or not self.by_kernels)

    def gathered(self, part: ConvSpec) -> int:
        """Bytes of what a piece reads with what is put around it, if anything is."""
        if self.spec.padding_mode != "zeros":
            return math.prod(part.x_shape) * self.given
        is_copied = not self.by_kernels and not pads_in_blocks(self.spec, self.method)
        return 2 * math.prod(part.x_shape) * self.summed if is_copied and any(map(any, self.spec.padding)) else 0

    def pieces(self) -> list[Piece] | None:
        """Those that the limit cuts it into; None where it is computed whole."""
        return _pieces(self, pieces.share(current_limit()))

    def rest(self) -> AbstractContextManager[None]:
        """Within, the limit is what is left of it."""
        return workspace_limit(max(current_limit() - self.held, 1)) if self.held else nullcontext()

    def rest_of(self, piece: Piece) -> AbstractContextManager[None]:
        """Within, the limit is what is left for the computation of a piece."""
        gathered = self.gathered(pieces.part_of_piece(self.spec, piece))
        return workspace_limit(max(current_limit() - gathered, 1)) if gathered else nullcontext()


def computation(x: Array, spec: ConvSpec, method: str, *, is_apart: bool = False) -> Computation:
    """Of the convolution of `x` by a method, by kernels if those are there."""
    by_kernels = bool(compiled.kernel_of(x.dtype, spec, method))
    return Computation(spec, method, x.itemsize, itemsize(x), by_kernels, is_apart)


@lru_cache(maxsize=1024)
def _pieces(whole: Computation, limit: int) -> list[Piece] | None:
    spec = whole.spec
    if whole.least <= limit or 0 in (*spec.x_shape, *spec.w_shape, *spec.y_shape) or spec.input_dilation:
        return None
    return pieces.cut(spec, lambda part: whole.part(part).least + whole.gathered(part), limit)


def read(x: Array, spec: ConvSpec, piece: Piece, fill: complex) -> tuple[Array, ConvSpec]:
    """What a piece reads of `x` (N, *size, C), with what is put around it, and the convolution of that."""
    images = x[piece.images]
    if spec.padding_mode == "zeros" and (found := pieces.read(spec, piece)) is not None:
        spans, part = found
        return images[:, *(slice(lo, hi) for lo, hi in spans)], part
    return _gathered(images, spec, piece, fill)


def _gathered(x: Array, spec: ConvSpec, piece: Piece, fill: complex) -> tuple[Array, ConvSpec]:
    """The part of the padded input that a piece reads, and the convolution of it."""
    spans, part = pieces.padded_read(spec, piece)
    shape, is_filled = in_layout(spec.layout, len(x), part.size, spec.channels), spec.padding_mode in _FILLED
    whole = channels_last(np.full(shape, fill, x.dtype) if is_filled else np.empty(shape, x.dtype), spec.layout)
    axes = zip(compiled.sources(spec), spans, spec.padding, strict=True)
    of_axes = [runs(source[lo + before : hi + before]) for source, (lo, hi), (before, _) in axes]
    for there in product(*of_axes):
        places, read = zip(*there, strict=True)
        whole[:, *places] = x[:, *read]
    return whole, part


def runs(source: Array) -> list[tuple[slice, slice]]:
    """Places beside each other, and the elements that are there: forwards, backwards, or the same; -1 tells of none."""
    (there,) = np.nonzero(source >= 0)
    found = []
    at, end = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
    steps = np.diff(source)
    changes = np.flatnonzero(np.diff(steps)) + 1  # of one step to the next
    while at < end:
        after = np.searchsorted(changes, at, side="right")
        stop = min(int(changes[after]) + 1 if after < len(changes) else end, end)
        first, step = int(source[at]), int(steps[at]) if stop - at > 1 else 1
        found.append((slice(at, stop), _from(first, stop - at, step)))
        at = stop
    return found


def _from(first: int, count: int, step: int) -> slice:
    """So many elements from the first on, or the first alone where there is no step."""
    if step >= 0:
        return slice(first, first + (count - 1) * step + 1, step or None)
    end = first + count * step
    return slice(first, end if end >= 0 else None, step)


def plan(x: Array, spec: ConvSpec, method: str) -> Plan:
    """The plan of a convolution, or that of its largest piece."""
    whole = planned(x, spec, method)
    computed = computation(x, spec, whole.method)
    found = computed.pieces()
    if not found:
        return _within(whole, x, computed)
    with computed.rest_of(found[0]):
        part = pieces.part_of_piece(spec, found[0])
        inner = planned(x, part, method)
        inner = _within(inner, x, computation(x, part, inner.method, is_apart=True))
    beside = None if inner.workspace is None else inner.workspace + computed.gathered(part)
    tile = f"{pieces.in_words(found, spec)}: {inner.tile}"
    return replace(whole, method=inner.method, tile=tile, workspace=beside)


def _within(told: Plan, x: Array, computed: Computation) -> Plan:
    """A plan within what is left of the limit beside what is held."""
    if not computed.held:
        return told
    with computed.rest():
        plan = planned(x, computed.spec, computed.method)
    workspace = None if plan.workspace is None else plan.workspace + computed.held
    return replace(told, tile=plan.tile, workspace=workspace)
