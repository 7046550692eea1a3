"""`xpconv bench --tune`: which layers are asked for, and what their measuring shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from xpconv.cli.errors import whole_count
from xpconv.device import DeviceInfo, backend, choose
from xpconv.layers import DTYPES, PRECISIONS, described, named
from xpconv.spec import ConvSpec, one_of

if TYPE_CHECKING:
    from xpconv.cuda.measuring import Outcome


def run(
    layer: str | None, names: list[str] | None, batches: list[str], dtypes: list[str], precision: str | None,
    devices: list[str] | None,
) -> bool:  # fmt: skip
    """Tune what the arguments ask for; whether it came to its end, and not to Ctrl-C."""
    dtype, batch = _only("--dtype", dtypes), _only("--batch", batches)
    cases = tuning_cases(layer, names or [], batch, dtype, precision)
    chosen = cuda_device(_only("--device", devices or ["cuda"]) or "cuda")
    from xpconv.cuda import tuning  # what follows loads CuPy, which the other commands do without

    tuning.check_recordable()
    return tune_layers(cases, chosen)


def _only(option: str, given: list[str]) -> str | None:
    """What an option says, of those that --tune takes once."""
    if len(given) > 1:
        raise ValueError(f"--tune takes one {option}, got {', '.join(given)}")
    return given[0] if given else None


class Case(NamedTuple):
    """A layer to measure, and in what it is computed."""

    name: str
    spec: ConvSpec
    dtype: str
    precision: str


def tuning_cases(
    layer: str | None, names: list[str], batch: str | None, dtype: str | None, precision: str | None
) -> list[Case]:
    """What the arguments of bench ask to measure."""
    dtype = dtype and one_of("--dtype", dtype, DTYPES)
    precision = precision and one_of("--precision", precision, PRECISIONS)
    if layer is None:
        dtype, precision, items = dtype or "float32", precision or "highest", whole_count("--batch", batch or "8")
        said_too = f"N={items}, {dtype}{' in TF32' if precision == 'tf32' else ''}"
        return [Case(f"{found}, {said_too}", found.spec(items), dtype, precision) for found in named(names)]
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
