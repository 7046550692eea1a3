"""Plans for `conv_sm90.cu`: float16, bfloat16 and TF32 on Hopper, where tensor maps fetch both operands.

A caller asks for float32 only where TF32 is allowed. Costs are estimates in cycles from public figures of an H200;
none was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np

from xpconv.cuda.geometry import AXES, MOST, Geometry, dense
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.kernels import ELEMENTS, ITEMSIZE
from xpconv.cuda.plans.simt import sum_splits
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.cuda.tensor_maps import SWIZZLED_ROW, TensorMap, dense_strides, most_offset
from xpconv.plan import Plan

DTYPES = ("float16", "bfloat16", "float32")
FILTERS = (64, 128, 256)  # of a tile
POSITIONS = 128  # of a tile
THREADS = 384  # one warpgroup that loads, two that multiply
OPTIONS = ("-arch=sm_90a",)  # the instructions are no part of plain sm_90
TILING = np.dtype(
    [
        ("y_step", "i8"),
        ("axes", "i4"), ("stages", "i4"), ("chunks", "i4"), ("steps", "i4"), ("steps_per_split", "i4"),
        ("tiles_m", "i4"), ("tiles_n", "i4"), ("tiles", "i4"), ("vectors", "i4"), ("backwards", "i4", AXES),
    ],
    align=True,
)  # fmt: skip

_FILE = "conv_sm90.cu"
_STORE_BYTES = 8 * 16 * 64 * 4  # the epilogue's part of shared memory
_BARRIER_BYTES = 2 * 8  # of a stage
_MOST_STAGES = 8  # more would only lengthen the way to the first product
_MOST_TILES = 2**30  # a block steps from tile to tile in 32 bits
_SQUARE = 32  # side of what one block of the repacking turns

# Estimates, in cycles of one multiprocessor.
_CYCLES_PER_FILTER = 4  # of a step: 128 x 128 bytes of products at 4096 bytes a cycle
_LOST_FILTERS = 48  # what a step costs beyond its products, as filters: reading A, and waiting
_STORE_CYCLES_PER_FILTER = 8  # of a tile
_LAUNCH_CYCLES, _BYTES_PER_CYCLE = 4000, 2300  # of the second pass that split sums need
_LEAST_USE_TENTHS = 6  # of the terms of every step that should not be zeros


@dataclass(frozen=True)
class Tiling:
    """How the result is divided: filters of a tile, parts of the depth, and what follows from them."""

    filters: int
    splits: int
    steps: int  # in all
    tiles_m: int
    tiles_n: int
    groups: int

    @property
    def steps_per_split(self) -> int:
        """Steps of one part; the last part may have fewer."""
        return -(-self.steps // self.splits)

    @property
    def tiles(self) -> int:
        """Tiles of all groups and parts."""
        return self.splits * self.groups * self.tiles_m * self.tiles_n

    def cycles(self, g: Geometry, hardware: Hardware) -> int:
        """Estimated time."""
        step = _CYCLES_PER_FILTER * (self.filters + _LOST_FILTERS)
        tile = self.steps_per_split * step + _STORE_CYCLES_PER_FILTER * self.filters
        waves = -(-self.tiles // hardware.multiprocessors)
        second = _LAUNCH_CYCLES + 2 * _partial_bytes(g, self.splits) // _BYTES_PER_CYCLE
        return waves * tile + (second if self.splits > 1 else 0)


# --- What the kernel takes --------------------------------------------------------------------------------------------


def unfit(g: Geometry, dtype: str, hardware: Hardware, *, x_aligned: bool) -> Unfit | None:
    """Why the kernel cannot take a geometry, if it cannot; an aligned x starts at 16 bytes."""
    reason = _unfit_form(g, dtype, hardware) or _unfit_channels(g, dtype) or _unfit_reach(g)
    reason = reason or x_map(g, dtype).unfit(x_aligned) or w_map(packed(g, dtype), dtype, FILTERS[0]).unfit(True)
    return None if reason is None else Unfit(reason)


def _unfit_form(g: Geometry, dtype: str, hardware: Hardware) -> str | None:
    if not hardware.hopper:
        return "not a Hopper device"
    if dtype not in DTYPES:
        return f"{dtype} has no instance"
    if g.padding_mode != "zeros":
        return f"padding mode {g.padding_mode}"
    if g.items_inner:
        return "results numbered item by item"
    if not (g.positions and g.depth and g.filters):
        return "nothing to add up"
    if max(g.positions + POSITIONS, g.depth, *g.size) > MOST:
        return "more than 2^31 positions or terms"
    return None


def _unfit_channels(g: Geometry, dtype: str) -> str | None:
    chunk, unit = _chunk(dtype), _unit(dtype)
    if g.strides.x[1] != 1:
        return "channels of x are not dense"
    if g.channels % unit:
        return f"{g.channels} channels are not a multiple of {unit}"
    if g.groups > 1 and (g.channels % chunk or g.x_group != g.channels):
        return f"{g.channels} channels of a group are not a multiple of {chunk}, so a step would read the next group's"
    return None


def _unfit_reach(g: Geometry) -> str | None:
    most = most_offset(_spatial_axes(g))
    if any((m - 1) * d > most for m, d in zip(g.window, g.dilation, strict=True)):
        return f"a window reaches farther than {most} elements"
    return None


def wasteful(g: Geometry, dtype: str) -> Unfit | None:
    """Why another tensor-core kernel, of smaller steps but about 60 % of this one's rate, is likely to be faster."""
    padded = _chunks(g, dtype) * _chunk(dtype)
    if g.channels * 10 >= padded * _LEAST_USE_TENTHS:
        return None
    return Unfit(f"{g.channels} channels would be filled up with zeros to {padded}")


def as_it_lies(g: Geometry, dtype: str, w_aligned: bool) -> bool:
    """Whether the weight needs no repacking: its filters, or its terms, are dense, and a tensor map can read it."""
    if terms_dense(g):
        dense_axis, group_step = g.strides.w[1] == 1, g.channels
    else:
        dense_axis, group_step = dtype != "float32", g.filters
    neighbours = g.groups == 1 or g.w_group == group_step
    return dense_axis and neighbours and w_map(g, dtype, FILTERS[0]).unfit(w_aligned) is None


# --- Launches ---------------------------------------------------------------------------------------------------------


def work(g: Geometry, dtype: str, hardware: Hardware, limit: int, *, x_aligned: bool, w_aligned: bool) -> Work | Unfit:
    """The launches for one convolution; `limit` bounds the bytes of scratch memory."""
    declined = unfit(g, dtype, hardware, x_aligned=x_aligned)
    if declined is not None:
        return declined
    direct = as_it_lies(g, dtype, w_aligned)
    if not direct and _packed_bytes(g, dtype) > limit:
        return Unfit(f"the weight must be repacked, which takes {_packed_bytes(g, dtype)} bytes")
    tiling = chosen(g, dtype, hardware, limit if direct else limit - _packed_bytes(g, dtype))
    if max(tiling.tiles, _squares(g)) > _MOST_TILES:
        return Unfit(f"{tiling.tiles} tiles are too many")
    return launches(g, dtype, tiling, hardware, direct=direct)


def launches(g: Geometry, dtype: str, tiling: Tiling, hardware: Hardware, *, direct: bool) -> Work:
    """The launches for one tiling of a geometry that fits; `direct` reads the weight as it lies."""
    struct, scratch, steps = g.packed(splits=tiling.splits), {}, []
    seen = g if direct else packed(g, dtype)
    weight = w_map(seen, dtype, tiling.filters)
    if not direct:
        scratch["packed"] = _packed_bytes(g, dtype)
        weight = replace(weight, array="packed")
        steps.append(_pack(g, dtype, struct))
    stages = _stages(tiling.filters, hardware)
    shared = stages * (_stage_bytes(tiling.filters) + _BARRIER_BYTES) + _STORE_BYTES
    blocks = min(tiling.tiles, hardware.multiprocessors)
    arguments = (x_map(g, dtype), weight, "bias", "y", "partial", struct, _packed_tiling(seen, dtype, tiling, stages))
    steps.append(Step(kernel(dtype, tiling.filters, terms_dense(seen)), (blocks, 1, 1), THREADS, shared, arguments))
    if tiling.splits > 1:
        scratch["partial"] = _partial_bytes(g, tiling.splits)
        steps.append(sum_splits(g, dtype, hardware, struct))
    told = f"{POSITIONS} x {tiling.filters} results of {_chunk(dtype)} terms at a time"
    parts = f"; sums in {tiling.splits} parts" if tiling.splits > 1 else ""
    reason = f"Hopper's tensor cores, fed by tensor maps{'' if direct else '; the weight repacked'}{parts}"
    return Work(tuple(steps), Plan("gemm", reason, told, sum(scratch.values())), scratch)


def chosen(g: Geometry, dtype: str, hardware: Hardware, limit: int) -> Tiling:
    """The tiling with the least estimated time; the widest tile and the fewest parts where several have it."""
    most = max(min(g.depth // 256, 32, hardware.multiprocessors), 1)
    candidates = (divided(g, dtype, filters, splits) for filters in reversed(FILTERS) for splits in range(1, most + 1))
    allowed = (c for c in candidates if c.splits == 1 or _partial_bytes(g, c.splits) <= limit)
    return min(allowed, key=lambda c: c.cycles(g, hardware))


def divided(g: Geometry, dtype: str, filters: int, splits: int) -> Tiling:
    """The tiling with so many filters to a tile and at most so many parts of the depth."""
    steps = g.taps * _chunks(g, dtype)
    per_split = -(-steps // splits)
    splits = -(-steps // per_split)  # no part is empty
    return Tiling(filters, splits, steps, -(-g.positions // POSITIONS), -(-g.filters // filters), g.groups)


def packed(g: Geometry, dtype: str) -> Geometry:
    """The geometry as the repacked weight has it: [window][filters][groups][channels], rows from 16 bytes to 16."""
    pitch = _pitch(g, dtype)
    taps = [step * g.filters * pitch for step in dense(g.window)]
    return replace(g, strides=replace(g.strides, w=(pitch, 1, *taps)), w_start=0, w_group=g.channels)


def kernel(dtype: str, filters: int, dense_terms: bool) -> Kernel:
    """The instance for a dtype, a tile, and an order of the weight."""
    return Kernel(_FILE, f"conv_sm90<{ELEMENTS[dtype]},{filters},{str(dense_terms).lower()}>", OPTIONS)


def instances(capability: tuple[int, int]) -> list[Kernel]:
    """Every kernel that a plan of this module can name."""
    return [*_instances()] if capability == (9, 0) else []


def _instances() -> Iterator[Kernel]:
    for dtype in DTYPES:
        for filters in FILTERS:
            yield kernel(dtype, filters, True)
            if dtype != "float32":
                yield kernel(dtype, filters, False)
        yield _pack_kernel(dtype)
        yield Kernel("sum_splits.cu", f"sum_splits<{ELEMENTS[dtype]}>")


def _pack_kernel(dtype: str) -> Kernel:
    return Kernel(_FILE, f"pack_terms<{ELEMENTS[dtype]}>", OPTIONS)


def _pack(g: Geometry, dtype: str, struct: np.ndarray) -> Step:
    shared = _SQUARE * (_SQUARE + 1) * ITEMSIZE[dtype]
    arguments = ("w", "packed", struct, np.int32(_pitch(g, dtype)))
    return Step(_pack_kernel(dtype), (_squares(g), 1, 1), 256, shared, arguments)


# --- Tensor maps ------------------------------------------------------------------------------------------------------


def terms_dense(g: Geometry) -> bool:
    """Whether the weight's dense axis is the one that sums run over (the input gradient), not the one of results."""
    return g.strides.w[0] != 1


def x_map(g: Geometry, dtype: str) -> TensorMap:
    """The walk over every position's window, one tap and one chunk of channels at a time."""
    axes = range(AXES - 1, AXES - 1 - _spatial_axes(g), -1)  # innermost first
    sizes = (g.groups * g.channels, *(g.size[a] for a in axes), g.batch)
    strides = (*(g.strides.x[2 + a] for a in axes), g.strides.x[0])
    return TensorMap(
        "x", dtype, g.x_start, sizes, dense_strides(sizes, strides, _unit(dtype)),
        box=(_chunk(dtype), POSITIONS),
        lower=tuple(-g.before[a] for a in axes),
        upper=tuple((g.out[a] - 1) * g.stride[a] - g.before[a] - (g.size[a] - 1) for a in axes),
        steps=tuple(g.stride[a] for a in axes),
    )  # fmt: skip


def w_map(g: Geometry, dtype: str, filters: int) -> TensorMap:
    """Boxes of the weight: one tap, one chunk of channels, and a chunk of filters or all of a tile's."""
    chunk = _chunk(dtype)
    filter_step, channel_step, *taps = g.strides.w
    start = g.w_start + sum((m - 1) * s for m, s in zip(g.window, taps, strict=True) if s < 0)
    if terms_dense(g):
        inner, rows, row_step, box = g.groups * g.channels, g.filters, filter_step, (chunk, filters)
    else:
        inner, rows, row_step, box = g.groups * g.filters, g.channels, channel_step, (chunk, chunk)
    sizes = (inner, rows, *reversed(g.window))
    strides = (row_step, *(abs(s) for s in reversed(taps)))
    return TensorMap("w", dtype, start, sizes, dense_strides(sizes, strides, _unit(dtype)), (*box, *(1,) * AXES))


def _spatial_axes(g: Geometry) -> int:
    """Spatial axes that need a dimension of x's map; the limits of the map's fields are wider with fewer."""
    trivial = [g.size[a] == g.window[a] == g.out[a] == 1 and g.before[a] == 0 for a in range(AXES)]
    return AXES - (2 if all(trivial[:2]) else 1 if trivial[0] else 0)


# --- Sizes ------------------------------------------------------------------------------------------------------------


def _unit(dtype: str) -> int:
    """Elements in 16 bytes."""
    return 16 // ITEMSIZE[dtype]


def _chunk(dtype: str) -> int:
    """Channels of a step."""
    return SWIZZLED_ROW // ITEMSIZE[dtype]


def _chunks(g: Geometry, dtype: str) -> int:
    """Steps of a tap."""
    return -(-g.channels // _chunk(dtype))


def _pitch(g: Geometry, dtype: str) -> int:
    """Elements from row to row of the repacked weight."""
    return -(-g.groups * g.channels // _unit(dtype)) * _unit(dtype)


def _packed_bytes(g: Geometry, dtype: str) -> int:
    return g.taps * g.filters * _pitch(g, dtype) * ITEMSIZE[dtype]


def _squares(g: Geometry) -> int:
    """Blocks that repack the weight."""
    return prod(g.window) * g.groups * -(-g.filters // _SQUARE) * -(-g.channels // _SQUARE)


def _partial_bytes(g: Geometry, splits: int) -> int:
    return splits * g.groups * g.positions * g.filters * 4 if splits > 1 else 0


def _stage_bytes(filters: int) -> int:
    return (POSITIONS + filters) * SWIZZLED_ROW


def _stages(filters: int, hardware: Hardware) -> int:
    free = hardware.shared_per_block - _STORE_BYTES
    return min(free // (_stage_bytes(filters) + _BARRIER_BYTES), _MOST_STAGES)


def _vectors(g: Geometry, dtype: str) -> bool:
    """Whether eight results side by side may be stored at once, where y itself is aligned."""
    steps = (g.y_start, g.y_group, g.strides.y[0], *g.strides.y[2:])
    return g.strides.y[1] == 1 and all(step % _unit(dtype) == 0 for step in steps)


def _y_step(g: Geometry) -> int:
    """Elements from position to position of y, where they are the same throughout; else 0."""
    sizes, strides = (g.batch, *g.out), (g.strides.y[0], *g.strides.y[2:])
    long = [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size > 1]
    even = all(outer == size * inner for (_, outer), (size, inner) in pairwise(long))
    return long[-1][1] if long and even else 0


def _packed_tiling(g: Geometry, dtype: str, tiling: Tiling, stages: int) -> np.ndarray:
    """The struct that the kernel takes by value."""
    t = np.zeros((), TILING)
    t["y_step"] = _y_step(g)
    t["axes"], t["stages"], t["vectors"] = _spatial_axes(g), stages, _vectors(g, dtype)
    t["chunks"], t["steps"], t["steps_per_split"] = tiling.steps // g.taps, tiling.steps, tiling.steps_per_split
    t["tiles_m"], t["tiles_n"], t["tiles"] = tiling.tiles_m, tiling.tiles_n, tiling.tiles
    t["backwards"] = [step < 0 for step in g.strides.w[2:]]
    t.flags.writeable = False
    return t
