"""The command line: parses, hands over, prints."""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from xpconv.cli.bench_command import bench
from xpconv.cli.errors import errors_in_one_line
from xpconv.cli.explain_command import explain
from xpconv.device import choose, devices
from xpconv.filters import apply_filter, named_filter
from xpconv.pictures import check_output, read_picture, write_picture

app = typer.Typer(
    help="Convolution and pooling for the array you already have.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(bench)
app.command()(explain)

Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:1; auto takes what XPCONV_DEVICE names, else a GPU if one answers.")
]


class PaddingMode(StrEnum):
    """What lies beyond the border of a picture."""

    symmetric = "symmetric"
    reflect = "reflect"
    edge = "edge"
    wrap = "wrap"
    zeros = "zeros"


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if not wanted:
        return
    try:
        typer.echo(f"xpconv {version('xpconv')}")
    except PackageNotFoundError:
        typer.echo("xpconv, run from its source without being installed")
    raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Convolution and pooling for the array you already have."""


@app.command("devices")
def list_devices() -> None:
    """List what can compute here, and what cannot and why.

    Example: `xpconv devices`
    """
    table = Table("device", "what it is", "ready")
    found = devices()
    for device in found:
        ready = "[green]yes[/green]" if device.available else "[red]no[/red]"
        table.add_row(device.name, device.description, ready)
    with errors_in_one_line():
        Console().print(table)
        for device in found:
            if not device.available:
                typer.echo(f"{device.name}: {device.reason}")
        chosen, _ = choose()
        typer.echo(f"auto takes {chosen.name}")


@app.command("filter")
def filter_picture(
    picture: Annotated[Path, typer.Argument(help="Picture to read: PNG, JPEG, TIFF, WebP, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write; the extension says the format.")],
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
    device: Device = "auto",
) -> None:
    """Convolve a picture with a kernel.

    Each channel is convolved by itself (the kernel is flipped, as in mathematics), alpha is kept, and the result has
    the size and depth of the picture. sobel shows how steep the brightness is; emboss and laplacian show zero as
    mid-grey.

    Examples:

    - `xpconv filter photo.jpg --kernel sobel -o edges.png`

    - `xpconv filter photo.jpg --kernel gaussian --size 21 -o soft.jpg`

    - `xpconv filter scan.png --kernel "[[0, -1, 0], [-1, 5, -1], [0, -1, 0]]" -o crisp.png`
    """
    with errors_in_one_line():
        chosen = named_filter(kernel, size)
        check_output(output)
        original = read_picture(picture)
        pixels = apply_filter(original.pixels, chosen, padding_mode=padding_mode.value, device=device)
        write_picture(output, original.with_pixels(pixels))
        if original.depth_lost:
            typer.echo(f"xpconv: {picture} holds 16-bit colour, of which Pillow reads the upper 8 bits", err=True)
        typer.echo(f"{output}: {picture} convolved with {chosen.name}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures, made if missing.")] = Path(
        "xpconv-demo"
    ),
    device: Device = "auto",
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the split, the weights and the order of the digits.")
    ] = 0,
) -> None:
    """Train a digit reader, filter a photograph, and save pictures of what happened.

    Takes well under a minute on a CPU. The last line is the accuracy on digits that the training never saw.

    Example: `xpconv demo --output pictures --seed 1`
    """
    from xpconv import demo as demonstration  # loads matplotlib, which the other commands do without

    with errors_in_one_line():
        chosen, why = choose(device)
        fact, _, _ = why.partition(";")  # what to install is for `xpconv devices` to say
        typer.echo(f"device: {chosen.name}, {chosen.description} ({fact})")
        saved = demonstration.filter_photographs(output, device=device)
        digits = demonstration.read_digits(output, device=device, seed=seed)
        Console().print(confusion_table(digits.confusion))
        typer.echo(f"trained in {digits.seconds:.1f} s; pictures:")
        for path in [*saved, *digits.pictures]:
            typer.echo(f"  {path}")
        typer.echo(f"held-out accuracy: {digits.accuracy:.2%}".replace("%", " %"))


def confusion_table(counts: np.ndarray) -> Table:
    """Draw how often each digit was read as each; zeros are left out."""
    table = Table("it is", title="held-out digits: what they are, what they were read as", title_justify="left")
    for digit in range(10):
        table.add_column(str(digit), justify="right")
    for digit, row in enumerate(counts):
        cells = [_cell(count, right=digit == read) for read, count in enumerate(row)]
        table.add_row(str(digit), *cells)
    return table


def _cell(count: int, *, right: bool) -> str:
    if count == 0:
        return ""
    return f"[green]{count}[/green]" if right else f"[bold red]{count}[/bold red]"
