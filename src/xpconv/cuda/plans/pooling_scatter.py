"""Plans for `pool_scatter.cu`: values that go back to flat positions of a plane."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from xpconv.cuda.geometry import DIVISOR, MOST, divisor, map_strides, three
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.kernels import ARITHMETIC, ELEMENTS, ITEMSIZE, signed, sum_size
from xpconv.cuda.pool_geometry import dense_maps
from xpconv.cuda.setting import Operand, Setting
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan
from xpconv.spec import ScatterSpec

SCATTER_GEOMETRY = np.dtype(
    [
        ("value_strides", "i8", 5), ("index_strides", "i8", 5),
        ("result_item", "i8"), ("result_channel", "i8"), ("result_place", "i8"),
        ("batch", "i4"), ("channels", "i4"), ("outputs", "i4"), ("places", "i4"),
        ("tile", "i4"), ("tiles", "i4"), ("slab", "i4"), ("slabs", "i4"), ("chunks", "i4"),
        ("by_out", DIVISOR, 2), ("by_tiles", DIVISOR), ("by_slabs", DIVISOR), ("by_chunks", DIVISOR),
    ],
    align=True,
)  # fmt: skip

CHUNK = 64  # outputs, as in the kernel
WARPS = 4  # of a block
_FILE = "pool_scatter.cu"
_SLAB_BYTES = 12 * 1024  # of shared memory for each warp: the block's 48 KiB need no asking
_SMALLEST_SLAB = 64  # places: below that a warp looks at too many outputs for each that is its own
_FULL_WARPS = 16  # for each multiprocessor, that an estimate takes to keep it busy
_SECTOR = 32  # bytes that memory moves at a time
_BITS = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64", 16: "complex128"}  # unpooling moves elements as they are


@dataclass(frozen=True)
class _Cut:
    """How a result is cut among the warps."""

    tile: int  # channels
    tiles: int
    slab: int  # places
    slabs: int
    chunks: int


@lru_cache(maxsize=4096)
def scatter(spec: ScatterSpec, values: Operand, indices: Operand, setting: Setting, *, add: bool) -> Work | Unfit:
    """Values added at their indices, or put there."""
    if len(spec.size) > 3:
        return Unfit(f"{len(spec.size)} spatial axes; the kernels take up to 3")
    if setting.dtype not in ELEMENTS:
        return Unfit(f"no kernel for {setting.dtype}")
    dtype = signed(setting.dtype) if add else _BITS[ITEMSIZE[setting.dtype]]
    cut = _cut(spec, dtype, setting.hardware)
    maps = spec.batch * cut.tiles
    if max(prod(spec.size), prod(spec.out_size)) > MOST // 2 or maps * max(cut.slabs, cut.chunks) > MOST:
        return Unfit("more places or outputs than an integer counts")
    struct, steps, scratch = _packed(spec, values, indices, cut), [], 8 * maps * cut.chunks
    if ranged := cut.slabs > 1 and cut.chunks > 1 and scratch <= setting.limit:
        kernel = Kernel(_FILE, "index_ranges")
        steps.append(Step(kernel, (-(-maps * cut.chunks // WARPS), 1, 1), 32 * WARPS, 0, ("indices", "ranges", struct)))
    shared = WARPS * cut.slab * cut.tile * sum_size(dtype)
    arguments = ("x", "indices", "ranges", "y", struct)
    steps.append(Step(_kernel(dtype, add), (-(-maps * cut.slabs // WARPS), 1, 1), 32 * WARPS, shared, arguments))
    reason = "each warp owns places and takes the outputs in order" + ("; far ones are skipped" if ranged else "")
    told = Plan("direct", reason, f"{cut.slab} places of {cut.tile} channels a warp", scratch if ranged else 0)
    return Work(tuple(steps), told, {"ranges": scratch} if ranged else {})


def _cut(spec: ScatterSpec, dtype: str, hardware: Hardware) -> _Cut:
    """Channels enough to use what memory moves at a time; places as shared memory holds, fewer where maps are few."""
    tile, outputs = 1, prod(spec.out_size)
    small_maps = max(32 // outputs, 1)  # share a warp
    most = min(max(_SECTOR // ITEMSIZE[dtype], 4), 32) if spec.layout == "channels_last" else small_maps
    while tile < min(most, spec.channels):
        tile *= 2
    tiles, places = -(-spec.channels // tile), prod(spec.size)
    share = spec.batch * tiles * places // max(_FULL_WARPS * hardware.multiprocessors, 1)
    slab = min(max(share, _SMALLEST_SLAB), _SLAB_BYTES // (tile * sum_size(dtype)), places)
    return _Cut(tile, tiles, slab, -(-places // slab), -(-outputs // CHUNK))


def _packed(spec: ScatterSpec, values: Operand, indices: Operand, cut: _Cut) -> np.ndarray:
    """The struct that the kernels take by value."""
    g, out, places = np.zeros((), SCATTER_GEOMETRY), three(spec.out_size, 1), prod(spec.size)
    g["value_strides"] = map_strides(values.strides, spec.layout)
    g["index_strides"] = map_strides(indices.strides, spec.layout)
    result = dense_maps(spec.layout, spec.batch, spec.channels, (1, 1, places))
    g["result_item"], g["result_channel"], g["result_place"] = result[0], result[1], result[4]
    g["batch"], g["channels"], g["outputs"], g["places"] = spec.batch, spec.channels, prod(out), places
    for name in ("tile", "tiles", "slab", "slabs", "chunks"):
        g[name] = getattr(cut, name)
    g["by_out"][0], g["by_out"][1] = divisor(out[1]), divisor(out[2])
    g["by_tiles"], g["by_slabs"], g["by_chunks"] = divisor(cut.tiles), divisor(cut.slabs), divisor(cut.chunks)
    g.flags.writeable = False
    return g


def _kernel(dtype: str, add: bool) -> Kernel:
    return Kernel(_FILE, f"pool_scatter<{ELEMENTS[dtype]},{str(add).lower()}>")


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    adding = [_kernel(dtype, True) for dtype in ARITHMETIC]
    return [Kernel(_FILE, "index_ranges"), *adding, *(_kernel(dtype, False) for dtype in _BITS.values())]
