"""`xpconv filter`: a picture in memory, or an array on disk chunk by chunk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xpconv.cli.errors import INTERRUPTED, errors_in_one_line, whole_count
from xpconv.filters import Filter, apply_filter, named_filter
from xpconv.outofcore.formats import format_of
from xpconv.pictures import check_output, read_picture, write_picture

if TYPE_CHECKING:
    from xpconv.outofcore.filtering import Job

_LARGE = 2**28  # bytes of a TIFF that is no picture to be held in memory any more


class PaddingMode(StrEnum):
    """What lies beyond the border of a picture."""

    symmetric = "symmetric"
    reflect = "reflect"
    edge = "edge"
    wrap = "wrap"
    zeros = "zeros"


def filter_file(
    picture: Annotated[Path, typer.Argument(help="To read: PNG, JPEG, TIFF, WebP, ...; or an array: .zarr, .npy.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="To write; the extension says the format.")],
    kernel: Annotated[
        str,
        typer.Option(
            "--kernel",
            "-k",
            help="sobel, gaussian, sharpen, emboss, laplacian or box; a file .npy; or rows, as in '[[0, 1], [-1, 0]]'.",
        ),
    ],
    size: Annotated[int | None, typer.Option(help="Side of the gaussian (default 5) or the box (3), odd.")] = None,
    padding_mode: Annotated[PaddingMode, typer.Option(help="What lies beyond the border.")] = PaddingMode.symmetric,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:1; auto takes what XPCONV_DEVICE names, else a GPU.")
    ] = "auto",
    chunks: Annotated[
        str | None, typer.Option(help="Of arrays: side of the chunks, or one for each axis of the kernel, by commas.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Of arrays: threads (the default), processes, or the ADDRESS of a Dask cluster.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Of arrays: drop what is there, unfinished.")] = False,
) -> None:
    """Convolve a picture, or an array on disk, with a kernel.

    Each channel is convolved by itself (the kernel is flipped, as in mathematics), alpha is kept, and the result has
    the size and depth of the picture. sobel shows how steep the brightness is; emboss and laplacian show zero as
    mid-grey.

    Arrays (Zarr, .npy, TIFF beyond 256 MiB or with --chunks or --scheduler) are read and written chunk by chunk, on the
    CPU, and may be larger than memory. A kernel of n axes filters n axes, and a further one holds channels. An
    unfinished result is kept in `.NAME.part` beside the output, until the same command completes it; after a change of
    the input or the options --restart begins anew.

    Examples:

    - `xpconv filter photo.jpg --kernel sobel -o edges.png`

    - `xpconv filter photo.jpg --kernel gaussian --size 21 -o soft.jpg`

    - `xpconv filter scan.png --kernel "[[0, -1, 0], [-1, 5, -1], [0, -1, 0]]" -o crisp.png`

    - `xpconv filter scan.zarr --kernel gaussian --size 21 -o soft.zarr --chunks 2048 --scheduler threads`
    """
    with errors_in_one_line():
        if _in_parts(picture, output, asked=bool(chunks or scheduler or restart)):
            chosen = named_filter(kernel, size, any_axes=True)
            finished = filter_array(
                picture, output, chosen, padding_mode.value, device, chunks, scheduler or "threads", restart
            )
        else:
            chosen, finished = named_filter(kernel, size), True
            filter_picture(picture, output, chosen, padding_mode.value, device)
        if finished:
            typer.echo(f"{output}: {picture} convolved with {chosen.name}")
    if not finished:
        raise typer.Exit(INTERRUPTED)


def _in_parts(picture: Path, output: Path, *, asked: bool) -> bool:
    """Whether a file is filtered chunk by chunk: arrays are, and TIFFs that are large."""
    formats = {format_of(picture), format_of(output)}
    return asked or bool(formats & {"npy", "zarr"}) or (
        format_of(picture) == "tiff" and picture.is_file() and picture.stat().st_size > _LARGE
    )  # fmt: skip


def filter_picture(picture: Path, output: Path, chosen: Filter, padding_mode: str, device: str) -> None:
    """Filter a picture in memory."""
    check_output(output)
    original = read_picture(picture)
    pixels = apply_filter(original.pixels, chosen, padding_mode=padding_mode, device=device)
    write_picture(output, original.with_pixels(pixels))
    if original.depth_lost:
        typer.echo(f"xpconv: {picture} holds 16-bit colour, of which Pillow reads the upper 8 bits", err=True)


def filter_array(
    path: Path, output: Path, chosen: Filter, padding_mode: str, device: str, chunks: str | None, scheduler: str,
    restart: bool,
) -> bool:  # fmt: skip
    """Filter an array chunk by chunk; whether it came to its end, and not to Ctrl-C."""
    from xpconv.outofcore import filtering, schedulers

    if device not in ("auto", "cpu"):
        raise ValueError(f"--device {device} is for pictures; arrays are filtered chunk by chunk on the CPU")
    sizes = None if chunks is None else [whole_count("--chunks", word.strip()) for word in chunks.split(",")]
    job = filtering.job(path, output, chosen, padding_mode, sizes)
    try:
        with _warnings_in_one_line(job), schedulers.runner(scheduler) as runner, _progress(job) as (begins, advance):
            filtering.run(job, runner, restart=restart, begins=begins, advance=advance)
    except KeyboardInterrupt:
        found = f"{len(job.part.finished())} of {job.count} chunks are finished"
        typer.echo(f"xpconv: interrupted; {found}, and the same command goes on from there", err=True)
        return False
    return True


@contextmanager
def _progress(job: Job) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """A bar of chunks, with the time that is left."""
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("chunks", total=job.count)

        def begins(finished: int) -> None:
            if finished:
                console.print(f"{finished} of {job.count} chunks were finished before", soft_wrap=True, highlight=False)
            bar.update(task, completed=finished)

        yield begins, lambda: bar.advance(task)


@contextmanager
def _warnings_in_one_line(job: Job) -> Iterator[None]:
    """Show what is warned of as the errors are shown; a single chunk is not too small, whatever its window."""
    with warnings.catch_warnings():
        if job.count == 1:
            warnings.simplefilter("ignore")
        warnings.showwarning = lambda message, *_: typer.echo(f"xpconv: {message}", err=True)
        yield
