"""Plans for `conv_depthwise.cu` and `grad_weight_depthwise.cu`: convolutions whose groups have one channel each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from xpconv.cuda.geometry import AXES, MOST, Geometry
from xpconv.cuda.hardware import GRID_X, GRID_YZ, Hardware
from xpconv.cuda.kernels import ARITHMETIC, ELEMENTS, ITEMSIZE, signed, sum_size
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan
from xpconv.spec import Sizes

TILE = np.dtype(
    [
        (name, "i4")
        for name in (
            "lanes_w", "lanes_h", "planes", "tiles_w", "tiles_h", "piece_h", "piece_w", "rows", "columns", "pitch",
            "weight_pitch", "load_lanes", "rows_at", "columns_at", "weights_at", "tile_at",
        )
    ],
    align=True,
)  # fmt: skip

REPEATING = ("edge", "reflect", "symmetric", "wrap")  # padding modes that read x again
WIDTHS = (3, 5, 7)  # taps of a row that `conv_depthwise_channels` multiplies at a time
USUAL = ("float16", "bfloat16", "float32", "float64")  # what has an instance for every case; other dtypes share fewer
CHANNELS_BLOCK = 128
POSITIONS_BLOCK = 256
COLUMNS = 4  # neighbouring results of a thread of `conv_depthwise_positions`
FEW_CHANNELS = 8  # with fewer there is nothing to load beside each other
_WARP = 32
_VECTOR_BYTES = 16
_SEGMENT = 256  # bytes of neighbouring channels that a block reads at one position
_TAPS, _TAPS_REPEATED = 9, 3  # taps that a thread of the weight's gradient adds up
_TAP_PLACE = 24  # bytes of the kernel's TapPlace


def unfit(g: Geometry) -> Unfit | None:
    """Why the kernels cannot take a geometry, if they cannot."""
    if g.channels != 1:
        return Unfit(f"groups of {g.channels} channels; the depthwise kernel takes groups of one")
    maps = g.batch * g.groups * g.filters
    if max(g.positions, g.taps, maps, *(n + s for n, s in zip(g.size, g.stride, strict=True))) > MOST:
        return Unfit("more than 2^31 positions or maps")
    return None


def vectors_fit(g: Geometry, dtype: str, aligned: bool) -> bool:
    """Whether neighbouring channels can be read and written a vector at a time; `aligned`: all arrays start so."""
    width = _vector(dtype)
    steps = [g.x_start, g.w_start, g.y_start, g.groups]
    steps += [
        *_used(g.strides.x, g.batch, g.size),
        *_used(g.strides.w, 1, g.window),
        *_used(g.strides.y, g.batch, g.out),
    ]
    dense = g.filters == 1 and g.x_group == g.w_group == g.y_group == 1 and aligned
    return width > 1 and dense and all(step % width == 0 for step in steps)


def _used(strides: Sizes, items: int, sizes: Sizes) -> list[int]:
    """Strides of the axes that have a second element."""
    counts = (items, 1, *sizes)
    return [stride for stride, n in zip(strides, counts, strict=True) if n > 1]


def work(g: Geometry, dtype: str, hardware: Hardware, *, aligned: bool) -> Work | Unfit:
    """The launch of one convolution; `aligned` says whether x, w and y start on multiples of 16 bytes."""
    declined = unfit(g)
    if declined is not None:
        return declined
    if dtype != signed(dtype) and g.activation == "relu":
        g = replace(g, activation=None)  # the signed instance would read large numbers as negative ones
    if _channels_inner(g) or _sparse(g):
        return _channels_work(g, dtype, aligned)
    return _positions_work(g, dtype, hardware)


def _channels_inner(g: Geometry) -> bool:
    """Whether neighbouring channels, not neighbouring positions, lie beside each other."""
    if g.groups * g.filters < FEW_CHANNELS:
        return False
    if g.groups == 1:
        return abs(g.strides.y[1]) < abs(g.strides.y[4])
    return abs(g.x_group) < abs(g.strides.x[4])


def _sparse(g: Geometry) -> bool:
    """Whether the windows leave most of x out, so that copying what lies under a tile would be a waste."""
    return g.stride[1] * g.stride[2] > 8 * max(g.window[1] * g.window[2], 1)


# --- Channels innermost -----------------------------------------------------------------------------------------------


def _vector(dtype: str) -> int:
    """Channels of a vector: as many as give 16 bytes of sums."""
    return _VECTOR_BYTES // sum_size(dtype)


def _width(g: Geometry, dtype: str, vector: int) -> int:
    """Taps of a row multiplied at a time: the number that reads the fewest vectors of x for a run of eight results."""
    if g.padding_mode in REPEATING or g.reach > MOST:
        return 0
    m = g.window[2]
    if g.stride[2] != 1 or g.dilation[2] != 1 or m < WIDTHS[0]:
        return 1
    widths = WIDTHS if vector > 1 and dtype in USUAL else WIDTHS[:1]
    return min(widths, key=lambda width: m // width * (7 + width) + m % width * 8)


def _channels_work(g: Geometry, dtype: str, aligned: bool) -> Work | Unfit:
    far = g.reach > MOST
    wide = not far and g.padding_mode not in REPEATING and vectors_fit(g, dtype, aligned)
    vector = _vector(dtype) if wide else 1
    width = _width(g, dtype, vector)
    results = 8 if width > 1 else 4
    tile_vectors = _tile_vectors(g, dtype, vector)
    tiles = -(-(g.groups * g.filters // vector) // tile_vectors)
    runs = g.batch * g.out[0] * g.out[1] * -(-g.out[2] // results)
    blocks = tiles * -(-runs // (CHANNELS_BLOCK // tile_vectors))
    if max(blocks, runs + CHANNELS_BLOCK) > GRID_X:
        return Unfit(f"a grid of {blocks} blocks is too large")
    kernel = _channels_kernel(dtype, vector, width, far)
    shared = CHANNELS_BLOCK * results * vector * sum_size(dtype)
    arguments = ("x", "w", "bias", "y", np.int32(tile_vectors), g.packed())
    told = f"{results} results of {vector} channels a thread, {max(width, 1)} taps at a time"
    return Work(
        (Step(kernel, (blocks, 1, 1), CHANNELS_BLOCK, shared, arguments),),
        Plan("direct", "one channel a group; channels lie beside each other", told, 0),
    )


def _tile_vectors(g: Geometry, dtype: str, vector: int) -> int:
    """Vectors beside each other in a block: 256 bytes, or nearly, in tiles of equal width."""
    vectors = g.groups * g.filters // vector
    wanted = min(_SEGMENT // (vector * ITEMSIZE[dtype]), _WARP)
    return -(-vectors // -(-vectors // wanted))


def _channels_kernel(dtype: str, vector: int, width: int, far: bool) -> Kernel:
    words = f"{ELEMENTS[signed(dtype)]},{vector},{width},{_offset(far)}"
    return Kernel("conv_depthwise.cu", f"conv_depthwise_channels<{words}>")


def _offset(far: bool) -> str:
    return "long long" if far else "int"


# --- Positions innermost ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """How a block of `conv_depthwise_positions` is divided; the window is taken in pieces of piece_h x piece_w taps."""

    sliding: bool
    thread_rows: int
    lanes_w: int
    lanes_h: int
    planes: int
    piece_h: int
    piece_w: int

    @property
    def threads(self) -> int:
        """Threads of the block, whole warps."""
        return _up(self.lanes_w * self.lanes_h * self.planes, _WARP)

    @property
    def size(self) -> tuple[int, int]:
        """Results along the last two axes."""
        return self.lanes_h * self.thread_rows, self.lanes_w * COLUMNS

    def tiles(self, g: Geometry) -> tuple[int, int]:
        """Tiles along the last two axes."""
        height, width = self.size
        return -(-g.out[1] // height), -(-g.out[2] // width)

    def blocks(self, g: Geometry) -> int:
        """Blocks of the grid."""
        return prod(self.tiles(g)) * g.out[0] * -(-g.batch * g.groups * g.filters // self.planes)

    def layout(self, g: Geometry, dtype: str) -> tuple[dict[str, int], int]:
        """The kernel's struct, and the bytes of shared memory it speaks of."""
        size, height, width = sum_size(dtype), *self.size
        rows = (height - 1) * g.stride[1] + (self.piece_h - 1) * g.dilation[1] + 1
        columns = (width - 1) * g.stride[2] + (self.piece_w - 1) * g.dilation[2] + 1
        columns = _up(columns, COLUMNS) if self.sliding else columns
        narrow = self.sliding and self.lanes_w < 8 and columns % 8 == 0
        pitch = columns + COLUMNS if narrow else columns  # an odd number of vectors: rows meet other banks
        weight_pitch = _up(self.piece_w, COLUMNS)
        offset = 8 if g.reach > MOST else 4
        columns_at = _up(self.planes * rows * offset, 16)
        weights_at = columns_at + _up(columns * offset, 16)
        tile_at = weights_at + _up(self.planes * self.piece_h * weight_pitch * size, 16)
        total = tile_at + self.planes * rows * pitch * size
        tiles_h, tiles_w = self.tiles(g)
        load_lanes = next((lanes for lanes in (8, 16) if lanes >= columns), _WARP)
        if self.planes * rows <= 2:
            load_lanes = self.threads  # a signal: all threads along its one row
        return {
            "lanes_w": self.lanes_w, "lanes_h": self.lanes_h, "planes": self.planes, "tiles_w": tiles_w,
            "tiles_h": tiles_h, "piece_h": self.piece_h, "piece_w": self.piece_w, "rows": rows, "columns": columns,
            "pitch": pitch, "weight_pitch": weight_pitch, "load_lanes": load_lanes, "rows_at": 0,
            "columns_at": columns_at, "weights_at": weights_at, "tile_at": tile_at,
        }, total  # fmt: skip


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _balanced(units: int, most: int) -> int:
    """The part of `units` that each of as few tiles as possible gets."""
    return -(-units // max(-(-units // most), 1))


def _first_tile(g: Geometry, sliding: bool, hardware: Hardware) -> Tile:
    """A tile for results alone: about square, several planes where they are small, and no fewer blocks than needed."""
    thread_rows = 4 if g.out[1] > 2 or g.reach > MOST else 1
    lanes_w = _balanced(-(-g.out[2] // COLUMNS), 16 if thread_rows > 1 else POSITIONS_BLOCK)
    lanes_h = _balanced(-(-g.out[1] // thread_rows), POSITIONS_BLOCK // lanes_w)
    planes = min(POSITIONS_BLOCK // (lanes_w * lanes_h), g.batch * g.groups * g.filters)
    tile = Tile(sliding, thread_rows, lanes_w, lanes_h, planes, max(g.window[1], 1), max(g.window[2], 1))
    while tile.blocks(g) < 2 * hardware.multiprocessors and tile.threads > 64:
        tile = _fewer_lanes(tile)
    return tile


def _fewer_lanes(tile: Tile) -> Tile:
    """Half as many planes, rows or columns."""
    name = "planes" if tile.planes > 1 else "lanes_h" if tile.lanes_h > 1 else "lanes_w"
    return replace(tile, **{name: -(-getattr(tile, name) // 2)})


def _smaller(tile: Tile) -> Tile | None:
    """The next tile to try when one does not fit shared memory: fewer planes, shorter pieces, fewer lanes."""
    least = COLUMNS if tile.sliding else 1
    if tile.planes > 1:
        return replace(tile, planes=-(-tile.planes // 2))
    if tile.piece_h > 1:
        return replace(tile, piece_h=-(-tile.piece_h // 2))
    if tile.piece_w > least:
        return replace(tile, piece_w=_up(-(-tile.piece_w // 2), least))
    return _fewer_lanes(tile) if tile.lanes_h * tile.lanes_w > 1 else None


def _tile(g: Geometry, dtype: str, hardware: Hardware) -> Tile | None:
    """The first tile that fits a share of shared memory which lets a multiprocessor hold several blocks."""
    sliding = dtype in USUAL and g.reach <= MOST and g.stride[1:] == (1, 1) and g.dilation[1:] == (1, 1)
    budget = min(max(hardware.shared_per_multiprocessor // 4, 24 * 1024), 48 * 1024, hardware.shared_per_block)
    tile: Tile | None = _first_tile(g, sliding, hardware)
    while tile is not None and tile.layout(g, dtype)[1] > budget:
        tile = _smaller(tile)
    return tile


def _positions_work(g: Geometry, dtype: str, hardware: Hardware) -> Work | Unfit:
    tile = _tile(g, dtype, hardware)
    if tile is None or tile.blocks(g) > GRID_X:
        return Unfit("no tile of it fits shared memory and the grid")
    numbers, shared = tile.layout(g, dtype)
    struct = np.zeros((), TILE)
    for name, value in numbers.items():
        struct[name] = value
    struct.flags.writeable = False
    kernel = _positions_kernel(dtype, tile.thread_rows, tile.sliding, g.reach > MOST)
    height, width = tile.size
    told = f"{tile.planes} planes of {height} x {width} results, {tile.piece_h} x {tile.piece_w} taps at a time"
    return Work(
        (Step(kernel, (tile.blocks(g), 1, 1), tile.threads, shared, ("x", "w", "bias", "y", struct, g.packed())),),
        Plan("direct", "one channel a group; positions lie beside each other", told, 0),
    )


def _positions_kernel(dtype: str, thread_rows: int, sliding: bool, far: bool) -> Kernel:
    words = f"{ELEMENTS[signed(dtype)]},{thread_rows},{str(sliding).lower()},{_offset(far)}"
    return Kernel("conv_depthwise.cu", f"conv_depthwise_positions<{words}>")


# --- The weight's gradient --------------------------------------------------------------------------------------------


def gradient_work(g: Geometry, dtype: str, hardware: Hardware, *, aligned: bool, limit: int) -> Work | Unfit:
    """The launches of the weight's gradient; `g` is the forward convolution's, its y gy, its w gw.

    The launches call gy w and gw y, as those of the other kernels do, which compute it as a convolution of x with gy.

    `aligned` says whether x and gy start on multiples of 16 bytes.
    """
    declined = unfit(g)
    if declined is not None:
        return declined
    inner, far = _channels_inner(g), g.reach > MOST
    repeated = far or g.padding_mode in REPEATING
    vectors = inner and not repeated and vectors_fit(_without_weight(g), dtype, aligned)
    vector = _vector(dtype) if vectors else 1
    tile_vectors = _tile_vectors(g, dtype, vector) if inner else 1
    taps = _TAPS_REPEATED if repeated else _TAPS
    blocks = -(-(g.groups * g.filters // vector) // tile_vectors) * -(-g.taps // taps)
    splits = _gradient_splits(g, dtype, hardware, blocks, POSITIONS_BLOCK // tile_vectors, limit)
    run_positions = -(-g.positions // splits)
    splits = -(-g.positions // run_positions)
    results = g.taps * g.groups * g.filters
    if blocks > GRID_X or results > MOST:
        return Unfit(f"a grid of {blocks} blocks is too large")
    if splits * results * sum_size(dtype) > limit:
        return Unfit(f"{splits * results * sum_size(dtype)} bytes of sums, the limit is {limit}")
    struct, size = g.packed(), sum_size(dtype)
    shared = POSITIONS_BLOCK * taps * vector * size + taps * _TAP_PLACE
    steps = (
        Step(_gradient_kernel(dtype, vector, repeated, far), (blocks, splits, 1), POSITIONS_BLOCK, shared,
             ("x", "w", "partial", np.int32(tile_vectors), np.int32(run_positions), struct)),
        Step(_gradient_sum(dtype), (-(-results // 32), 1, 1), 256, 256 * size,
             ("partial", "y", np.int32(splits), struct)),
    )  # fmt: skip
    partial = splits * results * size
    told = f"{taps} taps of {vector} filters a thread, {run_positions} positions a block"
    reason = f"one channel a group: {splits} parts of every sum, then their sum"
    return Work(steps, Plan("direct", reason, told, partial), {"partial": partial})


def _without_weight(g: Geometry) -> Geometry:
    """The geometry as vectors see it: what is stored in the weight's place is stored one by one."""
    return replace(g, w_start=0, w_group=1, strides=replace(g.strides, w=(0,) * (AXES + 2)))


def _gradient_splits(g: Geometry, dtype: str, hardware: Hardware, blocks: int, lanes: int, limit: int) -> int:
    """Parts of every sum: four blocks a multiprocessor, but eight positions for every lane."""
    results = g.taps * g.groups * g.filters * sum_size(dtype)
    wanted = min(-(-4 * hardware.multiprocessors // blocks), g.positions // (8 * lanes), GRID_YZ, limit // results)
    return max(wanted, 1)


def _gradient_kernel(dtype: str, vector: int, repeated: bool, far: bool) -> Kernel:
    taps = _TAPS_REPEATED if repeated else _TAPS
    words = f"{ELEMENTS[signed(dtype)]},{vector},{taps},{str(repeated).lower()},{_offset(far)}"
    return Kernel("grad_weight_depthwise.cu", f"grad_weight_depthwise<{words}>")


def _gradient_sum(dtype: str) -> Kernel:
    return Kernel("grad_weight_depthwise.cu", f"grad_weight_depthwise_sum<{ELEMENTS[signed(dtype)]}>")


# --- Every kernel -----------------------------------------------------------------------------------------------------


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    return [*_instances()]


def _instances() -> Iterator[Kernel]:
    for dtype in ARITHMETIC:
        usual = dtype in USUAL
        yield _channels_kernel(dtype, 1, 0, True)
        yield from (_channels_kernel(dtype, 1, width, False) for width in (0, 1, WIDTHS[0]))
        yield _positions_kernel(dtype, 4, False, True)
        yield from (_positions_kernel(dtype, rows, False, False) for rows in (1, 4))
        yield from (_positions_kernel(dtype, rows, True, False) for rows in (1, 4) if usual)
        yield from (_gradient_kernel(dtype, 1, repeated, far) for repeated, far in _GRADIENTS)
        yield _gradient_sum(dtype)
        if (vector := _vector(dtype)) > 1:
            widths = (1, *WIDTHS) if usual else (1, WIDTHS[0])
            yield from (_channels_kernel(dtype, vector, width, False) for width in widths)
            yield _gradient_kernel(dtype, vector, False, False)


_GRADIENTS = ((False, False), (True, False), (True, True))  # whether padding repeats x, and 64-bit offsets
