"""Plans for `conv_simt.cu`, the kernel that takes every convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from xpconv.cuda.geometry import MOST, Geometry
from xpconv.cuda.hardware import GRID_X, GRID_YZ, Hardware
from xpconv.cuda.kernels import ARITHMETIC, ELEMENTS, ITEMSIZE, signed, sum_size
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan


@dataclass(frozen=True)
class Tile:
    """Positions, filters and terms of a block's tile; positions and filters of a thread's."""

    positions: int
    filters: int
    depth: int
    thread_positions: int
    thread_filters: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.positions // self.thread_positions * (self.filters // self.thread_filters)

    def shared(self, dtype: str) -> int:
        """Bytes of the two buffers, each with padded rows."""
        size = sum_size(dtype)
        padding = max(16 // size, 1)
        return 2 * self.depth * (self.positions + self.filters + 2 * padding) * size


LARGE = Tile(128, 128, 8, 8, 8)  # float32 alone: others would need too many registers
MEDIUM = Tile(64, 64, 8, 4, 4)
LARGE_VECTOR = Tile(128, 128, 16, 8, 8)  # deeper: the loads' arithmetic is shared by twice the products
MEDIUM_VECTOR = Tile(64, 64, 16, 4, 4)  # and here so that every thread has a vector to load
NARROW = Tile(128, 16, 8, 8, 1)
FLOAT_VECTOR = 4  # float32 elements in 16 bytes


@dataclass(frozen=True)
class Choice:
    """One instance of the kernel."""

    dtype: str
    tile: Tile
    vector: int = 1  # elements loaded at once
    positions_inner: bool = False  # whether neighbouring threads load neighbouring positions, or channels

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor should hold: as many as the registers for the sums and the loads allow."""
        if self.tile is LARGE:
            return 1
        if self.tile is LARGE_VECTOR:
            return 2
        return {4: 3, 8: 2, 16: 1}[sum_size(self.dtype)]

    @property
    def kernel(self) -> Kernel:
        """The instance's name."""
        tile = self.tile
        numbers = (tile.positions, tile.filters, tile.depth, tile.thread_positions, tile.thread_filters, self.vector)
        words = (ELEMENTS[signed(self.dtype)], *map(str, numbers), str(self.positions_inner).lower(), str(self.blocks))
        return Kernel("conv_simt.cu", f"conv_simt<{','.join(words)}>")


def unfit(g: Geometry) -> Unfit | None:
    """Why the kernel cannot take a geometry, if it cannot."""
    if max(g.positions, g.depth, *g.size, *g.out) > MOST:
        return Unfit("more than 2^31 positions or terms")
    if any(abs(stride) > MOST for strides in (g.strides.x, g.strides.w, g.strides.y) for stride in strides[1:]):
        return Unfit("a stride of 2^31 elements or more")
    return None


def chosen(g: Geometry, dtype: str, hardware: Hardware, *, vectors: bool) -> Choice:
    """The instance for a geometry; `vectors` says whether x and w may be read 16 bytes at a time."""
    inner, tile = _positions_inner(g), _tile(g, dtype, hardware)
    if dtype == "float32" and vectors and not inner and tile is not NARROW:
        return Choice(dtype, MEDIUM_VECTOR if tile is MEDIUM else LARGE_VECTOR, FLOAT_VECTOR)
    return Choice(dtype, tile, 1, inner)


def work(g: Geometry, choice: Choice, hardware: Hardware, limit: int) -> Work | Unfit:
    """The launches for one convolution; `limit` bounds the bytes of scratch memory."""
    if declined := unfit(g):
        return declined
    tile, dtype = choice.tile, choice.dtype
    tiles = -(-g.positions // tile.positions) * -(-g.filters // tile.filters)
    if tiles > GRID_X or g.groups > GRID_YZ:
        return Unfit(f"a grid of {tiles} x {g.groups} blocks is too large")
    splits, per_split = _splits(g, dtype, tile, tiles, hardware, limit)
    struct = g.packed(splits=splits, depth_per_split=per_split, channels_inner=not choice.positions_inner)
    arguments = ("x", "w", "bias", "y", "partial", struct)
    steps = [Step(choice.kernel, (tiles, g.groups, splits), tile.threads, tile.shared(dtype), arguments)]
    scratch = {}
    if splits > 1:
        scratch["partial"] = splits * _results_bytes(g, dtype)
        steps.append(sum_splits(g, dtype, hardware, struct))
    told = f"{tile.positions} x {tile.filters} results of {tile.depth} terms at a time"
    reason = f"ordinary cores take any dtype, layout and padding{f'; sums in {splits} parts' if splits > 1 else ''}"
    return Work(tuple(steps), Plan("gemm", reason, told, sum(scratch.values())), scratch)


def sum_splits(g: Geometry, dtype: str, hardware: Hardware, struct: object) -> Step:
    """The launch that adds up the parts in their order."""
    results = g.groups * g.positions * g.filters
    blocks = min(-(-results // 256), 8 * hardware.multiprocessors)
    kernel = Kernel("sum_splits.cu", f"sum_splits<{ELEMENTS[signed(dtype)]}>")
    return Step(kernel, (blocks, 1, 1), 256, 0, ("partial", "bias", "y", struct))


def _positions_inner(g: Geometry) -> bool:
    """Whether neighbouring results, not neighbouring terms of a sum, read neighbouring elements of x."""
    if g.items_inner or g.channels == 1:
        return True
    return abs(g.strides.x[4]) < abs(g.strides.x[1])


def _tile(g: Geometry, dtype: str, hardware: Hardware) -> Tile:
    """The largest tile that still gives every multiprocessor work, unless few filters ask for the narrow one."""
    if g.filters <= NARROW.filters:
        return NARROW
    blocks = -(-g.positions // LARGE.positions) * -(-g.filters // LARGE.filters) * g.groups
    if dtype == "float32" and g.filters > MEDIUM.filters and blocks >= hardware.multiprocessors:
        return LARGE
    return MEDIUM


def _results_bytes(g: Geometry, dtype: str) -> int:
    return g.groups * g.positions * g.filters * sum_size(dtype)


def _splits(g: Geometry, dtype: str, tile: Tile, tiles: int, hardware: Hardware, limit: int) -> tuple[int, int]:
    """Parts of the depth, and the terms of each.

    A grid that leaves multiprocessors idle is split until there are two blocks for each, but no part gets fewer than
    64 terms, since a part costs a pass over its results.
    """
    blocks, results = tiles * g.groups, _results_bytes(g, dtype)
    wanted = min(2 * hardware.multiprocessors // max(blocks, 1), g.depth // 64, limit // max(results, 1), GRID_YZ)
    if wanted < 2:
        return 1, g.depth
    per_split = -(-g.depth // (wanted * tile.depth)) * tile.depth
    return -(-g.depth // per_split), per_split


def choices() -> Iterator[Choice]:
    """Every instance that `chosen` can name."""
    for dtype, inner in product(ARITHMETIC, (False, True)):
        yield Choice(dtype, MEDIUM, 1, inner)
        yield Choice(dtype, NARROW, 1, inner)
    for inner in (False, True):
        yield Choice("float32", LARGE, 1, inner)
    for tile in (LARGE_VECTOR, MEDIUM_VECTOR):
        yield Choice("float32", tile, FLOAT_VECTOR)


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    sums = [Kernel("sum_splits.cu", f"sum_splits<{ELEMENTS[dtype]}>") for dtype in ARITHMETIC]
    return [*(choice.kernel for choice in choices()), *sums]


def vectors_fit(g: Geometry, dtype: str, x_aligned: bool, w_aligned: bool) -> bool:
    """Whether 16-byte loads along the channels of x and the filters of w meet aligned memory throughout."""
    width = 16 // ITEMSIZE[dtype]
    x, w = g.strides.x, g.strides.w
    dense = x[1] == 1 and w[0] == 1 and x_aligned and w_aligned
    steps = (g.x_group, g.x_start, x[0], *x[2:], g.w_group, g.w_start, *w[1:], g.channels, g.filters)
    return dense and all(step % width == 0 for step in steps)
