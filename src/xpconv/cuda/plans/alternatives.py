"""Every instance of the kernels for dense convolutions that takes a geometry, each with a few numbers of parts.

The plan modules take the one that they estimate to be the fastest; measuring takes its choice from all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

from xpconv.cuda.geometry import CONV_GEOMETRY, Geometry
from xpconv.cuda.hardware import GRID_X, GRID_YZ, Hardware
from xpconv.cuda.kernels import signed
from xpconv.cuda.plans import mma, simt, sm90
from xpconv.cuda.steps import Unfit, Work

_PARTS = (1, 2, 4, 8, 16, 32)
_LEAST_STEPS = 4  # of a part of the depth
_MOST_BLOCKS = 4  # for each multiprocessor, where the depth is in parts: more parts would only add passes


class _Tile(Protocol):
    @property
    def filters(self) -> int: ...


T = TypeVar("T", bound=_Tile)


def name_of(work: Work) -> str:
    """A name that stays the same from process to process: the kernels, and the parts of the depth."""
    kernels = " + ".join(s.kernel.expression for s in work.steps if s.kernel.file != "sum_splits.cu")
    structs = [a for step in work.steps for a in step.arguments if getattr(a, "dtype", None) == CONV_GEOMETRY]
    parts = max((int(struct["splits"]) for struct in structs), default=1)
    return f"{kernels}, {parts} parts" if parts > 1 else kernels


def instances_for(
    g: Geometry, dtype: str, hardware: Hardware, limit: int, *, precision: str, x_aligned: bool, w_aligned: bool
) -> Iterator[Work]:
    """The launches of every instance; `limit` bounds the bytes of scratch memory."""
    aligned = {"x_aligned": x_aligned, "w_aligned": w_aligned}
    for work in (
        *_hopper(g, dtype, hardware, limit, precision, aligned),
        *_tensor_cores(g, dtype, hardware, limit, precision, aligned),
        *_ordinary_cores(g, dtype, hardware, limit, vectors=simt.vectors_fit(g, dtype, x_aligned, w_aligned)),
    ):
        grids = [step.grid for step in work.steps]
        legal = all(x <= GRID_X and max(y, z) <= GRID_YZ for x, y, z in grids)
        if legal and sum(work.scratch.values()) <= limit:
            yield work


def _hopper(
    g: Geometry, dtype: str, hardware: Hardware, limit: int, precision: str, aligned: dict[str, bool]
) -> Iterator[Work]:
    if dtype not in sm90.DTYPES or (dtype == "float32" and precision != "tf32"):
        return
    if isinstance(sm90.work(g, dtype, hardware, limit, **aligned), Unfit):
        return
    direct = sm90.as_it_lies(g, dtype, aligned["w_aligned"])
    for filters in sm90.FILTERS:
        if filters >= 2 * g.filters and filters > min(sm90.FILTERS):
            continue
        for parts in _PARTS:
            tiling = sm90.divided(g, dtype, filters, parts)
            if tiling.splits == parts and _worth_it(parts, tiling.steps, tiling.tiles, hardware):
                yield sm90.launches(g, dtype, tiling, hardware, direct=direct)


def _tensor_cores(
    g: Geometry, dtype: str, hardware: Hardware, limit: int, precision: str, aligned: dict[str, bool]
) -> Iterator[Work]:
    if mma.unfit(g, dtype, hardware, precision=precision, **aligned) is not None:
        return
    estimated, _ = mma.chosen(g, dtype, hardware, limit, precision=precision)
    sized = _covering(mma.TILES, g.filters)
    for choice in mma.choices(hardware.capability):
        alike = replace(choice, tile=estimated.tile, stages=estimated.stages) == estimated
        if not alike or choice.tile not in sized or choice.shared > hardware.shared_per_block:
            continue
        steps = -(-g.depth // choice.step)
        tiles = -(-g.positions // choice.tile.positions) * -(-g.filters // choice.tile.filters) * g.groups
        for parts in _PARTS:
            if _worth_it(parts, steps, parts * tiles, hardware):
                yield mma.launches(g, choice, parts, hardware)


def _ordinary_cores(g: Geometry, dtype: str, hardware: Hardware, limit: int, *, vectors: bool) -> Iterator[Work]:
    inner = simt.chosen(g, dtype, hardware, vectors=False).positions_inner
    alike = [c for c in simt.choices() if c.dtype == signed(dtype) and c.positions_inner == inner]
    alike = [choice for choice in alike if vectors or choice.vector == 1]
    sized = _covering([choice.tile for choice in alike], g.filters)
    for choice in (replace(choice, dtype=dtype) for choice in alike if choice.tile in sized):
        split = simt.work(g, choice, hardware, limit)
        if isinstance(split, Unfit):
            continue
        partial = split.scratch.get("partial", 0)
        for fewer in (partial, partial // 2, 0):  # bytes for the parts: all that the plan would make, half, none
            work = simt.work(g, choice, hardware, fewer)
            if isinstance(work, Work):
                yield work


def _covering(tiles: list[T] | tuple[T, ...], filters: int) -> list[T]:
    """The tiles that are neither wider than the filters need nor much narrower."""
    enough = min((tile.filters for tile in tiles if tile.filters >= filters), default=max(t.filters for t in tiles))
    return [tile for tile in tiles if enough // 4 <= tile.filters <= enough]


def _worth_it(parts: int, steps: int, blocks: int, hardware: Hardware) -> bool:
    """Whether so many parts of the depth, in blocks of all parts together, may be worth their second pass."""
    if parts == 1:
        return blocks < GRID_X // 2  # the kernels step from tile to tile in 32 bits
    return steps >= _LEAST_STEPS * parts and blocks <= _MOST_BLOCKS * hardware.multiprocessors
