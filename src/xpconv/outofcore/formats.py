"""Which files hold arrays that are read and written in parts, and the libraries that do so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_SUFFIXES = {".npy": "npy", ".zarr": "zarr", ".tif": "tiff", ".tiff": "tiff"}
_LIBRARIES = {"npy": ("dask",), "zarr": ("dask", "zarr"), "tiff": ("dask", "zarr", "tifffile")}
_ZARRS_OWN = ("zarr.json", ".zarray", ".zgroup")


def format_of(path: Path) -> str | None:
    """Return npy, zarr or tiff, by the name's extension; a folder that Zarr wrote is zarr by whatever name.

    Parameters
    ----------
    path : Path

    Examples
    --------
    >>> format_of(Path("scan.TIFF")), format_of(Path("photo.png"))
    ('tiff', None)
    """
    if is_zarr(path):
        return "zarr"
    return _SUFFIXES.get(path.suffix.lower())


def is_zarr(path: Path) -> bool:
    """Whether Zarr wrote this folder."""
    return any((path / name).is_file() for name in _ZARRS_OWN)


def check_libraries(*formats: str) -> None:
    """Raise a RuntimeError that says what to install, if a format needs what is missing."""
    for library in dict.fromkeys(library for name in formats for library in _LIBRARIES[name]):
        check_library(library)


def check_library(library: str) -> None:
    """Raise a RuntimeError that says what to install, if the library is missing."""
    if find_spec(library) is None:
        raise RuntimeError(f'{library} is not installed, which arrays on disk need: pip install "xpconv[dask]"')
