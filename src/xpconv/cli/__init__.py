"""The command line: parses, hands over, prints."""

from __future__ import annotations

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
from xpconv.cli.filter_command import filter_file
from xpconv.device import choose, devices

app = typer.Typer(
    help="Convolution and pooling for the array you already have.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(bench)
app.command()(explain)
app.command("filter")(filter_file)

Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:1; auto takes what XPCONV_DEVICE names, else a GPU if one answers.")
]


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
