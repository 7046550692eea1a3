"""The command line: parses, hands over, prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from xpconv.device import DeviceInfo, backend, choose, devices
from xpconv.filters import apply_filter, named_filter
from xpconv.layers import DTYPES, PRECISIONS, described, named
from xpconv.pictures import check_output, read_picture, write_picture
from xpconv.spec import ConvSpec, one_of

if TYPE_CHECKING:
    from xpconv.cuda.measuring import Outcome

app = typer.Typer(
    help="Convolution and pooling for the array you already have.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130  # how a program ends that Ctrl-C has ended

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


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print an expected error as one line: a wrong argument leaves with 2, what the machine cannot do with 1."""
    try:
        yield
    except ValueError as error:
        status, message = 2, str(error)
    except OSError as error:
        reason = error.strerror or str(error)
        status, message = 1, f"{error.filename}: {reason}" if error.filename else reason
    except (RuntimeError, MemoryError) as error:
        status, message = 1, str(error)
    else:
        return
    typer.echo(f"xpconv: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


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
def bench(
    layer: Annotated[
        str | None, typer.Argument(help="A layer in words, as in 'conv2d x=8,56,56,64 w=3,3,64,128 padding=1'.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Time the CUDA kernels, and remember the fastest.")] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option(help='A network ("ResNet-50"), one layer of it by its whole name, or "all"; may be repeated.'),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the arrays; float32 if nothing else is said.")] = None,
    batch: Annotated[int | None, typer.Option(help="Items of named layers; 8 if nothing else is said.", min=1)] = None,
    precision: Annotated[str | None, typer.Option(help="Of float32: highest, or tf32 (forward alone).")] = None,
    device: Annotated[str, typer.Option(help="cuda or cuda:1.")] = "cuda",
) -> None:
    """Measure which CUDA kernel is the fastest for a layer and for its gradients, on this device.

    What is measured is kept in the user's cache (XPCONV_CACHE_DIR names another folder); later calls of the same layer
    on the same device take it, and `xpconv.explain` says "measured". Ctrl-C keeps what is measured so far. Without a
    layer, a few that stand for their networks are measured.

    Examples:

    - `xpconv bench --tune --layers ResNet-50 --batch 64 --dtype float16`

    - `xpconv bench --tune "conv2d x=8,56,56,64 w=3,3,64,128 padding=1 dtype=float32"`
    """
    with errors_in_one_line():
        if not tune:
            raise ValueError("bench can only tune so far: xpconv bench --tune")
        cases = tuning_cases(layer, layers or [], batch, dtype, precision)
        chosen = cuda_device(device)
        from xpconv.cuda import tuning  # what follows loads CuPy, which the other commands do without

        tuning.check_recordable()
        finished = tune_layers(cases, chosen)
    if not finished:
        raise typer.Exit(_INTERRUPTED)


class Case(NamedTuple):
    """A layer to measure, and in what it is computed."""

    name: str
    spec: ConvSpec
    dtype: str
    precision: str


def tuning_cases(
    layer: str | None, names: list[str], batch: int | None, dtype: str | None, precision: str | None
) -> list[Case]:
    """What the arguments of bench ask to measure."""
    dtype = dtype and one_of("--dtype", dtype, DTYPES)
    precision = precision and one_of("--precision", precision, PRECISIONS)
    if layer is None:
        dtype, precision, batch = dtype or "float32", precision or "highest", batch or 8
        said_too = f"N={batch}, {dtype}{' in TF32' if precision == 'tf32' else ''}"
        return [Case(f"{found}, {said_too}", found.spec(batch), dtype, precision) for found in named(names)]
    for option, given_too in (("--layers", names), ("--batch", batch)):
        if given_too:
            raise ValueError(f"{option} is for layers by name, and {layer!r} is a layer in words")
    said = described(layer)
    for option, value, inside in (("--dtype", dtype, said.dtype), ("--precision", precision, said.precision)):
        if value and inside and value != inside:
            raise ValueError(f"{option} {value} contradicts {inside} in {layer!r}")
    dtype, precision = dtype or said.dtype or "float32", precision or said.precision or "highest"
    return [Case(layer, said.spec, dtype, precision)]


def cuda_device(name: str) -> DeviceInfo:
    """The CUDA device of that name; a RuntimeError says why it cannot be had."""
    chosen, _ = choose(name)
    if not chosen.name.startswith("cuda"):
        raise ValueError(f"--tune times CUDA kernels, and device {name!r} is {chosen.name}; take cuda or cuda:N")
    return chosen


def tune_layers(cases: list[Case], chosen: DeviceInfo) -> bool:
    """Measure, keep what was measured at every step, and show it; whether it came to its end, and not to Ctrl-C."""
    from xpconv.cuda import measuring, tuning

    console, kept, finished = Console(), 0, False
    table, troubles = Table("layer", "direction", "default", "fastest", Column("by", overflow="fold")), []
    _, there = backend(chosen.name)
    with there:
        hardware = measuring.hardware()
        try:
            for case, outcome in _outcomes(cases, f"measuring on {chosen.name}", console):
                table.add_row(escape(case.name), outcome.direction, *_outcome_cells(outcome))
                troubles += [f"{name} is left out: {reason}" for name, reason in outcome.left_out.items()]
                if outcome.entry:
                    tuning.record(hardware, {outcome.key: outcome.entry})
                    kept += 1
            finished = True
        except KeyboardInterrupt:
            pass
    console.print(table)
    for trouble in dict.fromkeys(troubles):
        typer.echo(f"xpconv: {trouble}", err=True)
    typer.echo(f"{'' if finished else 'interrupted; '}{kept} convolutions measured, kept in {tuning.path()}")
    return finished


def _outcomes(cases: list[Case], description: str, console: Console) -> Iterator[tuple[Case, Outcome]]:
    """Measure one case after the other; a bar shows how far it is."""
    from xpconv.cuda import measuring

    clock = measuring.EventClock()
    steps = [(case, direction) for case in cases for direction in measuring.directions(case.dtype, case.precision)]
    for case, direction in track(steps, description, console=console, transient=True, disable=not console.is_terminal):
        for outcome in measuring.measure(direction, case.spec, case.dtype, case.precision, clock):
            yield case, outcome


def _outcome_cells(outcome: Outcome) -> tuple[str, str, str]:
    if outcome.entry is None:
        return "", "", f"not measured: {escape(outcome.reason)}"
    default, fastest = (f"{time:,.1f} µs" for time in (outcome.entry.default, outcome.entry.microseconds))
    return default, fastest, escape(outcome.entry.plan)


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
