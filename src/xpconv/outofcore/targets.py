"""Arrays on disk, written in parts in any order: each part lies on the disk when its writing returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Index = tuple[slice, ...]
_TILE = 512  # the largest side of a TIFF's tiles; the standard wants multiples of 16
_MULTIPLE = 16


class Target(Protocol):
    """What a task needs, to write its part."""

    def write(self, index: Index, values: np.ndarray) -> None:
        """Write a part, and wait until the disk has it."""


@dataclass(frozen=True)
class Form:
    """What an array is to look like on disk; `channels_last` says whether its last axis holds colours."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    channels_last: bool


def check_form(kind: str, form: Form) -> None:
    """Raise a ValueError for an array that the format cannot hold."""
    if kind != "tiff":
        return
    if len(form.shape) != 2 + form.channels_last:
        raise ValueError(f"a TIFF holds an image, and the result has shape {form.shape}; take .zarr or .npy")
    for chunk, size in zip(form.chunks[:2], form.shape[:2], strict=True):
        if chunk < size and chunk % _MULTIPLE:
            raise ValueError(f"the chunks of a TIFF are made of tiles, --chunks must be a multiple of 16, got {chunk}")


def create(kind: str, path: Path, form: Form) -> None:
    """Lay out an array of zeros, with its space on the disk reserved where no chunk has a file of its own."""
    if kind == "zarr":
        import zarr

        chunks = tuple(max(chunk, 1) for chunk in form.chunks)
        zarr.create_array(path, shape=form.shape, dtype=form.dtype, chunks=chunks, fill_value=0, zarr_format=3)
        return
    if kind == "npy":
        np.lib.format.open_memmap(path, mode="w+", dtype=form.dtype, shape=form.shape)
    else:
        _lay_out_tiff(path, form)
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):  # else a full disk would end the process at a write to the map
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        os.fsync(file.fileno())


def tidy(kind: str, path: Path) -> None:
    """Remove what a process left that was killed while it wrote: files that Zarr had not yet renamed."""
    if kind == "zarr":
        for unfinished in path.rglob("*.partial"):
            unfinished.unlink()


def opened(kind: str, path: Path) -> Target:
    """The array that `create` laid out.

    Raises
    ------
    OSError, ValueError
        it is not there any more, or not whole
    """
    return _OPENERS[kind](path)


# --- NumPy's files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Npy:
    path: Path

    def write(self, index: Index, values: np.ndarray) -> None:
        array = np.load(self.path, mmap_mode="r+")
        array[index] = values
        array.flush()


def _npy(path: Path) -> _Npy:
    np.load(path, mmap_mode="r+")
    return _Npy(path)


# --- Zarr -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Zarr:
    path: Path

    def write(self, index: Index, values: np.ndarray) -> None:
        """Zarr renames a chunk's file to its name when it is whole, and leaves out chunks that are zero everywhere."""
        import zarr

        array = zarr.open_array(self.path, mode="r+")
        array[index] = values
        place = tuple(part.start // chunk for part, chunk in zip(index, array.chunks, strict=True))
        file = self.path / array.metadata.encode_chunk_key(place)
        if file.exists():
            with file.open("rb+") as chunk:
                os.fsync(chunk.fileno())


def _zarr(path: Path) -> _Zarr:
    import zarr

    zarr.open_array(path, mode="r+")
    return _Zarr(path)


# --- TIFF -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tiff:
    """Tiles of equal size at places that are known beforehand, since nothing is compressed."""

    path: Path
    dtype: np.dtype
    tile: tuple[int, int]
    tiles_across: int
    offsets: tuple[int, ...]

    def write(self, index: Index, values: np.ndarray) -> None:
        with self.path.open("r+b") as file:
            for (row, column), pixels in self._tiles(index, values):
                file.seek(self.offsets[row * self.tiles_across + column])
                file.write(pixels.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _tiles(self, index: Index, values: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """The tiles of a part, with zeros where they stand out over the image, as the standard wants."""
        (height, width), first = self.tile, (index[0].start // self.tile[0], index[1].start // self.tile[1])
        counts = ceil(values.shape[0] / height), ceil(values.shape[1] / width)
        for row, column in product(*map(range, counts)):
            part = values[row * height : (row + 1) * height, column * width : (column + 1) * width]
            tile = np.zeros((height, width, *values.shape[2:]), self.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield (first[0] + row, first[1] + column), tile


def _lay_out_tiff(path: Path, form: Form) -> None:
    import tifffile

    tile = tuple(_side(chunk, size) for chunk, size in zip(form.chunks[:2], form.shape[:2], strict=True))
    colours = form.channels_last and form.shape[2] in (3, 4)
    how: dict[str, Any] = {"planarconfig": "contig"} if form.channels_last else {}
    tifffile.imwrite(
        path, shape=form.shape, dtype=form.dtype, tile=tile, bigtiff=prod(form.shape) * form.dtype.itemsize >= 2**31,
        photometric="rgb" if colours else "minisblack", metadata=None, software=False, **how,
    )  # fmt: skip


def _side(chunk: int, size: int) -> int:
    """The side of tiles that make up chunks, of which the last may stand out over the image."""
    whole = chunk if chunk < size else ceil(size / _MULTIPLE) * _MULTIPLE
    return max(side for side in range(_MULTIPLE, min(whole, _TILE) + 1, _MULTIPLE) if chunk >= size or not chunk % side)


def _tiff(path: Path) -> _Tiff:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        tile, across = (page.tilelength, page.tilewidth), ceil(page.imagewidth / page.tilewidth)
        dtype = page.dtype.newbyteorder(file.byteorder)
        if path.stat().st_size < max(page.dataoffsets) + page.databytecounts[0]:
            raise OSError("it is cut short")
        return _Tiff(path, dtype, tile, across, tuple(page.dataoffsets))


_OPENERS: dict[str, Callable[[Path], Target]] = {"npy": _npy, "zarr": _zarr, "tiff": _tiff}
