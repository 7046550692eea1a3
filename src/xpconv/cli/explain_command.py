"""`xpconv explain`: the plan of a layer in words, beside what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from xpconv.cli.errors import errors_in_one_line
from xpconv.device import backend, choose
from xpconv.layers import described


def explain(
    layer: Annotated[str, typer.Argument(help="As in 'conv2d x=8,56,56,64 w=3,3,64,128 padding=1 dtype=float32'.")],
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:1; auto takes what XPCONV_DEVICE names, else a GPU.")
    ] = "auto",
) -> None:
    """Say how a layer would be computed here, why so, and what limits it.

    The limit is measured now: this machine's own matrix products and copies. The expected time is that of the model
    that chose the method, in this machine's pace at one layer; it is right within a factor of two.

    Example: `xpconv explain "conv2d x=8,56,56,64 w=3,3,64,128 padding=1 dtype=float32"`
    """
    with errors_in_one_line():
        said = described(layer)
        chosen, _ = choose(device)
        from xpconv.bench import clock, machine  # NumPy's arrays are what the other commands do without
        from xpconv.bench.expectation import expectation
        from xpconv.bench.sides import Place

        machine.wait_for_kernels()  # the plan is told as it will be
        _, there = backend(chosen.name)
        place = Place(chosen.name, machine.threads_here())
        with clock.on(there):
            found = expectation(layer, said, place, clock.clock_for(chosen.name))
        typer.echo(str(found.plan))
        typer.echo(f"  limit       {found.limit}: {_time(found.at_limit)} at the {found.speed} of {chosen.name}")
        typer.echo(f"  expected    {_time(found.expected)}")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not told: this engine weighs no times"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"
