"""Arrays on disk, read in parts: a task takes a source with it, and opens the file where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xpconv.outofcore.formats import format_of, is_zarr


@dataclass(frozen=True)
class Source:
    """An array on disk that is read by indexing, and travels to other processes as its name.

    Parameters
    ----------
    path : Path
        absolute
    kind : str
        npy, zarr or tiff
    shape, dtype
        of the array
    chunks : tuple of int, or None
        in which the file keeps it
    axes : str
        what the file says of its axes, in tifffile's letters; empty for others
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None = None
    axes: str = ""

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        with _in_its_name(self.path), _opened(self.path, self.kind) as (array, _):
            return np.array(array[index])  # a copy, since the file is closed here

    def version(self) -> list[int]:
        """Bytes and time of the last change, of all that belongs to the array."""
        files = [self.path, *(self.path.rglob("*") if self.path.is_dir() else ())]
        facts = [file.stat() for file in files]
        return [sum(fact.st_size for fact in facts), max(fact.st_mtime_ns for fact in facts)]


def source(path: Path) -> Source:
    """Find out what an array file holds.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Source

    Raises
    ------
    ValueError
        no array is read in parts under this extension
    OSError
        the file is missing, broken or cut short, or holds no array
    """
    kind = format_of(path)
    if kind is None:
        raise ValueError(f"{path} cannot be read in parts, chunk by chunk; .zarr, .npy and .tif can")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    path = path.resolve()
    with _in_its_name(path), _opened(path, kind) as (array, axes):
        chunks = getattr(array, "chunks", None)
        found = Source(path, kind, tuple(array.shape), np.dtype(array.dtype), chunks, axes)
        if array.size:
            array[(slice(-1, None),) * found.ndim]  # the last element: a file that was cut short lacks it
        return found


@contextmanager
def _in_its_name(path: Path) -> Iterator[None]:
    """Errors of readers and decoders, which are of any type and seldom name the file, as one that does."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise OSError(f"{path} cannot be read as an array in parts: {reason}") from None


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, str]]:
    """An open array, and what its file says of its axes."""
    if kind == "npy":
        yield np.load(path, mmap_mode="r", allow_pickle=False), ""
    elif kind == "zarr":
        yield _zarr(path), ""
    else:
        with _tiff(path) as opened:
            yield opened


def _zarr(path: Path) -> Any:
    import zarr

    if not is_zarr(path):
        raise ValueError("it is no folder that holds a zarr.json or .zarray")
    found = zarr.open(path, mode="r")
    if not isinstance(found, zarr.Array):
        names = ", ".join(sorted(found.array_keys())) or "none"
        raise ValueError(f"it is a group; give the path of one of its arrays: {names}")
    return found


@contextmanager
def _tiff(path: Path) -> Iterator[tuple[Any, str]]:
    """The first series at its full resolution; through a memory map where the file holds it in one piece."""
    import tifffile
    import zarr

    with tifffile.TiffFile(path) as file:
        if not file.series:
            raise ValueError("it holds no image")
        series, page = file.series[0].levels[0], file.pages.first
        if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise ValueError(f"its colours are {page.photometric.name}; grey (MINISBLACK) and RGB are read")
        if "S" in series.axes[:-1]:
            raise ValueError(f"its axes are {series.axes}; colours (S) must come last")
        if series.dataoffset is not None:
            yield tifffile.memmap(path, series=0, level=0, mode="r"), series.axes
        else:
            with series.aszarr() as store:
                yield zarr.open_array(store, mode="r"), series.axes
