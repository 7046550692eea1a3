"""Plans for `conv_mma.cu`: float16, bfloat16 and float32 on the tensor cores of compute capability 8.0 and later.

Float32 is either rounded to TF32, where the caller asks for that, or multiplied as three TF32 products with an error
like that of float32 arithmetic. Costs are estimates in cycles from public figures; none was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from xpconv.cuda.geometry import MOST, Geometry
from xpconv.cuda.hardware import GRID_X, GRID_YZ, KNOWN, Hardware
from xpconv.cuda.kernels import ELEMENTS, ITEMSIZE
from xpconv.cuda.plans.simt import sum_splits
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan

DTYPES = ("float16", "bfloat16", "float32")
CHUNK = 16  # bytes that are copied at once
LINE = 128  # bytes of a line in shared memory
STAGES = (4, 3)  # tiles in flight, the most first

# Devices whose tensor cores multiply TF32 more than three times as fast as the ordinary cores multiply float32, by
# their data sheets. On the others (8.6, 8.7, 8.9, 12.0) the rates are about equal, so that three products would lose.
FAST_TF32 = ((8, 0), (9, 0), (10, 0), (10, 3))

# Three products for one of float32 pay from about 32 terms on: in shorter sums the bits that the split drops count for
# more than the roundings that it saves. tests/test_cuda_mma.py has the table; shorter sums are bound by memory anyway.
LEAST_DEPTH = 64

# Estimates, for one multiprocessor.
PRODUCTS_PER_CYCLE = {"float16": 1024, "bfloat16": 1024, "float32": 512}
_BLOCK_CYCLES = 2000  # to fill the pipeline and to store
_LAUNCH_CYCLES, _BYTES_PER_CYCLE = 4000, 2300  # of the second pass that split sums need
_LEAST_STEPS = 4  # of a part of the depth


@dataclass(frozen=True)
class Tile:
    """Positions and filters of a block's tile and of a warp's, and the part of the full rate that it reaches."""

    positions: int
    filters: int
    warp_positions: int
    warp_filters: int
    efficiency: float  # an estimate: small tiles read shared memory more often for each product

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.positions // self.warp_positions * (self.filters // self.warp_filters) * 32

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one tile of x and one of w."""
        return (self.positions + self.filters) * LINE

    def stages(self, hardware: Hardware) -> int:
        """Tiles in flight: those with which two blocks share a multiprocessor, else as many as fit one block."""

        def blocks(stages: int) -> int:
            if stages * self.stage_bytes > hardware.shared_per_block:
                return 0
            return min(hardware.shared_per_multiprocessor // (stages * self.stage_bytes + 1024), 2)

        return max(STAGES, key=blocks)  # the first of equals


LARGE = Tile(128, 128, 64, 32, 1.0)
MEDIUM = Tile(128, 64, 64, 32, 0.9)
SMALL = Tile(64, 64, 32, 32, 0.75)
TILES = (LARGE, MEDIUM, SMALL)


@dataclass(frozen=True)
class Choice:
    """One instance of the kernel."""

    dtype: str
    products: int  # of TF32 that make one of float32; else 1
    tile: Tile
    stages: int
    x_along_depth: bool  # whether neighbours in x are terms of one sum, or results
    w_along_depth: bool

    @property
    def kernel(self) -> Kernel:
        """The instance's name."""
        tile = self.tile
        numbers = (self.products, tile.positions, tile.filters, tile.warp_positions, tile.warp_filters, self.stages)
        orders = (str(self.x_along_depth).lower(), str(self.w_along_depth).lower())
        return Kernel("conv_mma.cu", f"conv_mma<{','.join((ELEMENTS[self.dtype], *map(str, numbers), *orders))}>")

    @property
    def step(self) -> int:
        """Terms that are multiplied at a time."""
        return LINE // ITEMSIZE[self.dtype]

    @property
    def shared(self) -> int:
        """Bytes of the ring of tiles."""
        return self.stages * self.tile.stage_bytes


def unfit(
    g: Geometry, dtype: str, hardware: Hardware, *, precision: str, x_aligned: bool, w_aligned: bool
) -> Unfit | None:
    """Why the kernel cannot take a geometry, if it cannot; `aligned` arrays start at 16 bytes."""
    reason = unfit_device(dtype, hardware, precision) or _unfit_sizes(g) or _unfit_memory(g, dtype)
    if reason is None and products(dtype, precision) == 3 and g.depth < LEAST_DEPTH:
        reason = f"sums of {g.depth} terms are more exact without splitting float32 in two"
    if reason is None and not (x_aligned and w_aligned):
        reason = "x or w does not start at a multiple of 16 bytes"
    return None if reason is None else Unfit(reason)


def work(
    g: Geometry, dtype: str, hardware: Hardware, limit: int, *, precision: str, x_aligned: bool, w_aligned: bool
) -> Work | Unfit:
    """The launches for one convolution; `limit` bounds the bytes of scratch memory."""
    declined = unfit(g, dtype, hardware, precision=precision, x_aligned=x_aligned, w_aligned=w_aligned)
    if declined is not None:
        return declined
    choice, splits = chosen(g, dtype, hardware, limit, precision=precision)
    blocks = _tiles(g, choice.tile)
    if blocks > GRID_X or g.groups > GRID_YZ:
        return Unfit(f"a grid of {blocks} x {g.groups} blocks is too large")
    return launches(g, choice, splits, hardware)


def launches(g: Geometry, choice: Choice, splits: int, hardware: Hardware) -> Work:
    """The launches for one instance, with the depth in at most so many parts, of a geometry that fits."""
    tile, dtype = choice.tile, choice.dtype
    per_split = -(-_steps(g, choice) // splits) * choice.step
    splits = -(-g.depth // per_split)  # no part is empty
    if not choice.x_along_depth:
        g = replace(g, items_inner=True)
    struct = g.packed(splits=splits, depth_per_split=per_split, channels_inner=choice.x_along_depth)
    arguments = ("x", "w", "bias", "y", "partial", struct)
    steps = [Step(choice.kernel, (_tiles(g, tile), g.groups, splits), tile.threads, choice.shared, arguments)]
    scratch = {}
    if splits > 1:
        scratch["partial"] = _partial_bytes(g, splits)
        steps.append(sum_splits(g, dtype, hardware, struct))
    told = f"{tile.positions} x {tile.filters} results of {choice.step} terms at a time"
    rounded = " in TF32" if choice.products == 1 else ", three products of TF32 for one of float32"
    parts = f"; sums in {splits} parts" if splits > 1 else ""
    reason = f"tensor cores{rounded if dtype == 'float32' else ''}{parts}"
    return Work(tuple(steps), Plan("gemm", reason, told, sum(scratch.values())), scratch)


def chosen(g: Geometry, dtype: str, hardware: Hardware, limit: int, *, precision: str) -> tuple[Choice, int]:
    """The instance and the number of parts with the least estimated time; the first of equals."""
    orders = x_along_depth(g), w_along_depth(g)
    candidates = [
        (choice, splits)
        for choice in (Choice(dtype, products(dtype, precision), t, t.stages(hardware), *orders) for t in TILES)
        for splits in range(1, _most_splits(g, choice, hardware) + 1)
        if splits == 1 or _partial_bytes(g, splits) <= limit
    ]
    return min(candidates, key=lambda candidate: cycles(g, candidate[0], candidate[1], hardware))


def cycles(g: Geometry, choice: Choice, splits: int, hardware: Hardware) -> float:
    """Estimated time: the blocks that one multiprocessor works off, and the second pass over split sums."""
    tile = choice.tile
    rate = PRODUCTS_PER_CYCLE[choice.dtype] * tile.efficiency / choice.products
    steps = -(-_steps(g, choice) // splits)
    block = steps * tile.positions * tile.filters * choice.step / rate + _BLOCK_CYCLES
    waves = -(-_tiles(g, tile) * g.groups * splits // hardware.multiprocessors)
    second = _LAUNCH_CYCLES + 2 * _partial_bytes(g, splits) / _BYTES_PER_CYCLE if splits > 1 else 0
    return waves * block + second


def x_along_depth(g: Geometry) -> bool:
    """Whether the dense axis of x is that of channels, which sums run over; in weight gradients it is the items'."""
    return g.strides.x[1] == 1


def w_along_depth(g: Geometry) -> bool:
    """Whether the dense axis of w is that of channels, as in input gradients; else it is the filters'."""
    return g.strides.w[0] != 1


def choices(capability: tuple[int, int]) -> Iterator[Choice]:
    """Every instance that `chosen` can name for a compute capability."""
    if capability < (8, 0):
        return
    devices = [known for known in KNOWN if known.capability == capability]
    kinds = [(dtype, 1) for dtype in DTYPES] + [("float32", 3)] * (capability in FAST_TF32)
    orders = ((True, False), (True, True), (False, False))
    for (dtype, products), tile, (x_order, w_order) in product(kinds, TILES, orders):
        for stages in sorted({tile.stages(device) for device in devices} or STAGES):
            yield Choice(dtype, products, tile, stages, x_order, w_order)


def instances(capability: tuple[int, int]) -> list[Kernel]:
    """Every kernel that a plan of this module can name."""
    kernels = [choice.kernel for choice in choices(capability)]
    sums = [Kernel("sum_splits.cu", f"sum_splits<{ELEMENTS[dtype]}>") for dtype in DTYPES]
    return [*kernels, *sums] if kernels else []


def products(dtype: str, precision: str) -> int:
    """Products of TF32 that make one of float32; else one."""
    return 3 if dtype == "float32" and precision == "highest" else 1


def _steps(g: Geometry, choice: Choice) -> int:
    return -(-g.depth // choice.step)


def _tiles(g: Geometry, tile: Tile) -> int:
    return -(-g.positions // tile.positions) * -(-g.filters // tile.filters)


def _most_splits(g: Geometry, choice: Choice, hardware: Hardware) -> int:
    """Parts of the depth that are long enough, and that together give every multiprocessor two blocks."""
    blocks = 2 * hardware.multiprocessors // (_tiles(g, choice.tile) * g.groups)
    return max(min(_steps(g, choice) // _LEAST_STEPS, blocks), 1)


def _partial_bytes(g: Geometry, splits: int) -> int:
    return splits * g.groups * g.positions * g.filters * 4


def unfit_device(dtype: str, hardware: Hardware, precision: str) -> str | None:
    """Why the device or the dtype rules the kernel out, if it does."""
    if dtype not in DTYPES:
        return f"tensor cores do not multiply {dtype}"
    if not hardware.tensor_cores:
        return "tensor cores older than compute capability 8.0"
    if products(dtype, precision) == 3 and hardware.capability not in FAST_TF32:
        return "three products of TF32 are no faster here than one of float32"
    return None


def _unfit_sizes(g: Geometry) -> str | None:
    if not (g.positions and g.depth and g.filters and g.groups):
        return "nothing to add up"
    if g.padding_mode == "constant":
        return "padding with a constant"
    if max(g.positions, g.depth, *g.size, *g.out) > MOST - 1024 or g.reach > MOST:  # 1024: a tile beyond the end
        return "offsets of more than 32 bits"
    return None


def _unfit_memory(g: Geometry, dtype: str) -> str | None:
    """Why 16 bytes of x or of w are not always neighbours that belong together."""
    width, along = CHUNK // ITEMSIZE[dtype], x_along_depth(g)
    x, w = g.strides.x, g.strides.w
    if not along and x[0] != 1:
        return "channels are not dense in x"
    if w[0] != 1 and (w[1] != 1 or not along):
        return "neither filters nor channels are dense in w"
    x_sizes, w_sizes = (g.batch, g.channels, *g.size), (g.filters, g.channels, *g.window)
    dense_x, dense_w = (1 if along else 0), (1 if w_along_depth(g) else 0)
    if x_sizes[dense_x] % width or w_sizes[dense_w] % width:
        return f"{x_sizes[dense_x]} dense elements of x or {w_sizes[dense_w]} of w are not a multiple of {width}"
    steps = [s for axis, (s, n) in enumerate(zip(x, x_sizes, strict=True)) if axis != dense_x and n > 1]
    steps += [s for axis, (s, n) in enumerate(zip(w, w_sizes, strict=True)) if axis != dense_w and n > 1]
    steps += [g.x_start, g.w_start, *((g.x_group, g.w_group) if g.groups > 1 else ())]
    if any(step % width for step in steps):
        return f"rows of x or w do not start at multiples of {width} elements"
    return None
