"""A filter from file to file: what is asked for, checked; laid out or gone on with; written, and given its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xpconv.filters import Filter, check_depth, lazily_filtered
from xpconv.outofcore.formats import check_libraries, format_of
from xpconv.outofcore.journal import Part, check_target
from xpconv.outofcore.schedulers import Runner
from xpconv.outofcore.sources import Source, source
from xpconv.outofcore.streaming import stream
from xpconv.outofcore.targets import Form, Target, check_form, create, opened, tidy

_LOG2_ELEMENTS = 20  # of a chunk, unless --chunks says otherwise: a worker holds about ten times as much


@dataclass(frozen=True, eq=False)
class Job:
    """A filter from file to file, of which everything is known but the chunks that are finished.

    Parameters
    ----------
    given : Source
    chosen : Filter
    padding_mode : str
    kind : str
        the format of the result
    form : Form
        what it looks like on disk
    part : Part
        where it is made
    """

    given: Source
    chosen: Filter
    padding_mode: str
    kind: str
    form: Form
    part: Part

    @property
    def count(self) -> int:
        """The number of chunks."""
        return prod(-(-size // max(chunk, 1)) for size, chunk in zip(self.form.shape, self.form.chunks, strict=True))

    def request(self) -> dict[str, Any]:
        """What the bytes of the result follow from, in words that JSON keeps."""
        kernel = hashlib.sha256(repr(self.chosen.kernels.shape).encode() + self.chosen.kernels.tobytes()).hexdigest()
        return {
            "the input": [str(self.given.path), *self.given.version()],
            "its shape": [*self.given.shape, self.given.dtype.str],
            "the kernel": [kernel, self.chosen.scale, self.chosen.offset],
            "the padding mode": self.padding_mode,
            "the chunks": [*self.form.chunks],
            "the version of xpconv": _version(),
        }


def job(path: Path, output: Path, chosen: Filter, padding_mode: str, chunks: list[int] | None) -> Job:
    """Check what is asked for, as far as can be seen without writing.

    A kernel of n axes filters arrays of n axes, and arrays of n + 1 axes channel by channel, with the channels last.

    Parameters
    ----------
    path, output : Path
        of the array to read, and of that to write
    chosen : Filter
    padding_mode : str
        what lies beyond the border
    chunks : list of int, optional
        one size for all axes of the kernel, or one for each

    Raises
    ------
    ValueError
        formats, kernels, chunks or dtypes that do not go together
    OSError
        the input cannot be read, or the output could not be written
    RuntimeError
        a library is missing
    """
    kind = format_of(output)
    if kind is None:
        raise ValueError(f"{output} cannot be written in parts, chunk by chunk; .zarr, .npy and .tif can")
    check_libraries(kind, format_of(path) or kind)
    check_target(output)
    given = source(path)
    check_depth(str(path), given.dtype)
    axes = chosen.kernels.ndim - 1
    channels_last = given.ndim == axes + 1
    if given.ndim not in (axes, axes + 1) or (given.axes and given.axes.endswith("S") != channels_last):
        what = f"shape {given.shape}" + (f" and axes {given.axes}" if given.axes else "")
        raise ValueError(
            f"{path} has {what}; a kernel of {axes} axes filters arrays of {axes} axes, or of {axes + 1} with the "
            f"channels last"
        )
    if 0 in given.shape:
        raise ValueError(f"{path} is empty, it has shape {given.shape}")
    own = given.chunks if kind != "tiff" else None  # a TIFF's tiles are of multiples of 16
    sizes = _chunks(given.shape[:axes], prod(given.shape[axes:]), chunks, own)
    dtype = given.dtype.newbyteorder("=")
    form = Form(given.shape, dtype, (*sizes, *given.shape[axes:]), channels_last)
    check_form(kind, form)
    return Job(given, chosen, padding_mode, kind, form, Part(output))


def run(
    work: Job, runner: Runner, *, restart: bool, begins: Callable[[int], None], advance: Callable[[], None]
) -> None:
    """Write the result, or what is left of it, and give it its name when it is complete.

    Parameters
    ----------
    work : Job
    runner : Runner
        who runs the tasks
    restart : bool
        throw away what is there of an unfinished result
    begins : callable
        told how many chunks are finished already
    advance : callable
        called after every chunk

    Raises
    ------
    ValueError
        another request is unfinished, and `restart` does not say to throw it away
    RuntimeError
        another process writes the same file
    OSError
        what reading and writing raise
    """
    import dask.array as da

    with work.part.locked():
        target = _laid_out(work, restart)
        begins(len(work.part.finished()))
        meta = np.zeros((0,) * work.given.ndim, work.given.dtype)
        pixels = da.from_array(work.given, chunks=work.form.chunks, name=False, meta=meta).astype(work.form.dtype)
        stream(_filtered(pixels, work), target, work.part, runner, advance)
        tidy(work.kind, work.part.array)
        work.part.complete()


def _filtered(pixels: Any, work: Job) -> Any:
    """The lazy result."""
    if work.form.channels_last:
        return lazily_filtered(pixels, work.chosen, padding_mode=work.padding_mode)
    return lazily_filtered(pixels[..., None], work.chosen, padding_mode=work.padding_mode)[..., 0]


def _laid_out(work: Job, restart: bool) -> Target:
    """The array that an earlier call left, or a new one."""
    part, asked = work.part, work.request()
    if not restart and (before := part.request()) is not None:
        if changed := [name for name in asked if before.get(name) != asked[name]]:
            raise ValueError(
                f"{part.folder} holds {len(part.finished())} chunks of another request ({', '.join(changed)} changed); "
                f"--restart throws them away"
            )
        try:
            return opened(work.kind, part.array)
        except Exception as error:  # of any type, as the libraries meet what is no file of theirs
            raise OSError(f"{part.array} is damaged ({error}); --restart begins anew") from None
    part.clear()
    create(work.kind, part.array, work.form)
    part.begin(asked)
    return opened(work.kind, part.array)


def _chunks(
    size: tuple[int, ...], channels: int, asked: list[int] | None, own: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The chunks along the axes of the kernel, none larger than the array; by default multiples of the file's own."""
    if asked is None:
        side = 2 ** (max(_LOG2_ELEMENTS - (channels - 1).bit_length(), 0) // len(size))
        asked = [side // chunk * chunk or side for chunk in (own or (side,))[: len(size)]]
    if len(asked) not in (1, len(size)):
        raise ValueError(f"--chunks must be one size or {len(size)}, one for each axis of the kernel, got {len(asked)}")
    return tuple(min(chunk, n) for chunk, n in zip(asked * (len(size) // len(asked)), size, strict=True))


def _version() -> str:
    try:
        return version("xpconv")
    except PackageNotFoundError:
        return "not installed"
