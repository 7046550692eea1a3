"""Plans for `conv_stem.cu`: few channels, many filters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt

import numpy as np

from xpconv.cuda.geometry import MOST, Geometry
from xpconv.cuda.hardware import GRID_YZ, Hardware
from xpconv.cuda.kernels import ELEMENTS, sum_size
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan

STEM_TILE = np.dtype(
    [
        (name, "i4")
        for name in (
            "lanes_p", "lanes_f", "height", "width", "tiles_h", "tiles_w", "tiles", "rows", "columns", "filters_inner",
            "vectors", "columns_at", "weights_at", "tile_at",
        )
    ],
    align=True,
)  # fmt: skip

DTYPES = ("float16", "bfloat16", "float32", "float64")
CHANNELS = 4  # with more there are vectors to load, and the other kernels are as good
FILTERS = 4  # with fewer a thread's filters are mostly idle
_BLOCK, _WARP = 128, 32
_POSITIONS = 8  # of a thread
_LANES_F = 8  # threads along the filters, at most
_RESIDENT = 4  # blocks of a multiprocessor


@dataclass(frozen=True)
class Tile:
    """Results of a block: height x width positions of lanes_f threads' filters."""

    height: int
    width: int
    lanes_f: int
    thread_filters: int

    @property
    def lanes_p(self) -> int:
        """Threads along the positions."""
        return -(-self.height * self.width // _POSITIONS)

    @property
    def threads(self) -> int:
        """Threads of the block, whole warps."""
        return _up(self.lanes_p * self.lanes_f, _WARP)

    @property
    def filters(self) -> int:
        """Filters of the block."""
        return self.lanes_f * self.thread_filters

    def under(self, g: Geometry) -> tuple[int, int]:
        """Rows and columns of x under the tile."""
        rows = (self.height - 1) * g.stride[1] + (g.window[1] - 1) * g.dilation[1] + 1
        return rows, (self.width - 1) * g.stride[2] + (g.window[2] - 1) * g.dilation[2] + 1

    def places(self, g: Geometry, size: int) -> tuple[int, int, int, int]:
        """Where columns, weights and values begin in shared memory, and where it ends."""
        (rows, columns), offset = self.under(g), 8 if g.reach > MOST else 4
        all_rows = g.channels * g.window[0] * rows
        columns_at = _up(all_rows * offset, 16)
        weights_at = columns_at + _up(columns * offset, 16)
        tile_at = weights_at + _up(g.depth * self.filters * size, 16)
        values = max(all_rows * columns, self.thread_filters * self.threads)  # or the sums of one position of each
        return columns_at, weights_at, tile_at, tile_at + values * size


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _balanced(units: int, most: int) -> int:
    """The part of `units` that each of as few tiles as possible gets."""
    return -(-units // max(-(-units // max(most, 1)), 1))


def unfit(g: Geometry, dtype: str) -> Unfit | None:
    """Why the kernel does not take a geometry, if it does not."""
    if dtype not in DTYPES:
        return Unfit(f"no stem kernel for {dtype}")
    if g.groups != 1 or not 0 < g.channels <= CHANNELS or g.filters < FILTERS or not g.depth:
        return Unfit(f"{g.groups} groups of {g.channels} channels and {g.filters} filters; the stem kernel takes one "
                     f"group of up to {CHANNELS} channels, with {FILTERS} filters or more")  # fmt: skip
    if max(g.positions, g.depth, *g.size, *g.out) > MOST:
        return Unfit("more than 2^31 positions or terms")
    if any(abs(step) > MOST for step in g.strides.w):
        return Unfit("a weight whose elements lie more than 2^31 apart")
    return None


def work(g: Geometry, dtype: str, hardware: Hardware) -> Work | Unfit:
    """The launch of one convolution."""
    declined = unfit(g, dtype)
    if declined is not None:
        return declined
    tile = _tile(g, dtype, hardware)
    if tile is None:
        return Unfit(f"weights of {g.depth} terms and the values under a tile do not fit shared memory")
    tiles_f = -(-g.filters // tile.filters)
    tiles_h, tiles_w = -(-g.out[1] // tile.height), -(-g.out[2] // tile.width)
    tiles = g.batch * g.out[0] * tiles_h * tiles_w
    if tiles > MOST or tiles_f > GRID_YZ:
        return Unfit(f"{tiles} tiles of {tiles_f} parts of the filters are too many")
    columns_at, weights_at, tile_at, shared = tile.places(g, sum_size(dtype))
    rows, columns = tile.under(g)
    struct = np.zeros((), STEM_TILE)
    numbers = {
        "lanes_p": tile.lanes_p, "lanes_f": tile.lanes_f, "height": tile.height, "width": tile.width,
        "tiles_h": tiles_h, "tiles_w": tiles_w, "tiles": tiles, "rows": rows, "columns": columns,
        "filters_inner": _filters_inner(g), "vectors": _vectors(g, tile), "columns_at": columns_at,
        "weights_at": weights_at, "tile_at": tile_at,
    }  # fmt: skip
    for name, value in numbers.items():
        struct[name] = value
    struct.flags.writeable = False
    blocks = min(tiles, -(-_RESIDENT * hardware.multiprocessors // tiles_f))
    step = Step(
        _kernel(dtype, g.reach > MOST), (blocks, tiles_f, 1), tile.threads, shared,
        ("x", "w", "bias", "y", struct, g.packed()),
    )  # fmt: skip
    told = f"{tile.height} x {tile.width} positions of {tile.filters} filters"
    reason = "few channels: x under a tile is copied once, the weights stay beside it"
    return Work((step,), Plan("direct", reason, told, 0))


def _tile(g: Geometry, dtype: str, hardware: Hardware) -> Tile | None:
    """The largest tile of which a multiprocessor holds several, or else one that fits at all."""
    thread_filters = 2 * 16 // sum_size(dtype)
    lanes_f = _balanced(-(-g.filters // thread_filters), _LANES_F)
    share = hardware.shared_per_multiprocessor // 3
    for budget in (min(max(share, 32 * 1024), hardware.shared_per_block), hardware.shared_per_block):
        tile: Tile | None = _first_tile(g, lanes_f, thread_filters)
        while tile is not None and tile.places(g, sum_size(dtype))[3] > budget:
            tile = _smaller(g, tile, sum_size(dtype), budget)
        if tile is not None:
            return tile
    return None


def _first_tile(g: Geometry, lanes_f: int, thread_filters: int) -> Tile:
    """Twice as wide as high, of parts that are equal where the result is no multiple."""
    positions = _BLOCK // lanes_f * _POSITIONS
    width = _balanced(g.out[2], max(isqrt(2 * positions), positions // g.out[1]))
    width = min(width, positions)
    return Tile(_balanced(g.out[1], positions // width), width, lanes_f, thread_filters)


def _smaller(g: Geometry, tile: Tile, size: int, budget: int) -> Tile | None:
    """Half the filters while the weights take more than half the memory, then half the height or width."""
    if tile.lanes_f > 1 and g.depth * tile.filters * size > budget // 2:
        return _first_tile(g, -(-tile.lanes_f // 2), tile.thread_filters)
    if tile.height > 1:
        return replace(tile, height=-(-tile.height // 2))
    if tile.width > 1:
        return replace(tile, width=-(-tile.width // 2))
    return None


def _filters_inner(g: Geometry) -> bool:
    """Whether y has neighbouring filters beside each other, not neighbouring positions."""
    return abs(g.strides.y[1]) < abs(g.strides.y[4]) or g.out[2] == 1


def _vectors(g: Geometry, tile: Tile) -> bool:
    """Whether a thread's neighbouring filters can be stored in one step; y starts on a multiple of 16 bytes."""
    chunk = tile.thread_filters // 2
    steps = (g.filters, g.y_start, g.strides.y[0], *g.strides.y[2:])
    return g.strides.y[1] == 1 and all(step % chunk == 0 for step in steps)


def _kernel(dtype: str, far: bool) -> Kernel:
    return Kernel("conv_stem.cu", f"conv_stem<{ELEMENTS[dtype]},{'long long' if far else 'int'}>")


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    return [_kernel(dtype, far) for dtype in DTYPES for far in (False, True)]
