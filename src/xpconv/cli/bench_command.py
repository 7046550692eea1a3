"""`xpconv bench`: what is asked for, checked before anything is measured; the run, shown and kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xpconv.cli import tune_command
from xpconv.cli.errors import INTERRUPTED, errors_in_one_line, whole_count
from xpconv.device import DeviceInfo, choose, devices
from xpconv.files import check_writable
from xpconv.spec import checked_layout

Words = list[str] | None
_WIDTH = 160  # of tables that no terminal shows


def bench(
    layer: Annotated[
        str | None, typer.Argument(help="A layer in words, as in 'conv2d x=8,56,56,64 w=3,3,64,128 padding=1'.")
    ] = None,
    layers: Annotated[
        Words,
        typer.Option(help='A network ("ResNet-50"), one layer by its whole name or in words, or "all"; repeatable.'),
    ] = None,
    device: Annotated[Words, typer.Option(help="cpu, cuda or cuda:1; repeatable; every one that is available.")] = None,
    dtype: Annotated[Words, typer.Option(help="float32, float64, float16, bfloat16; repeatable, or by commas.")] = None,
    batch: Annotated[Words, typer.Option(help="Items of named layers; 8 if nothing else is said; likewise.")] = None,
    layout: Annotated[Words, typer.Option(help="Of the arrays: channels_last or channels_first; likewise.")] = None,
    rivals: Annotated[
        Words,
        typer.Option(help="torch, jax, scipy, opencv, onnxruntime, cupyx, numpy, or none; likewise; those installed."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="In each of which all candidates are timed once.")] = 9,
    cold: Annotated[bool, typer.Option("--cold", help="Overwrite the caches before each call that counts.")] = False,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="No round begins later.")] = 540.0,
    save: Annotated[Path | None, typer.Option(help="The record as JSON, written anew after each row.")] = None,
    html: Annotated[Path | None, typer.Option(help="The record as a page for a browser.")] = None,
    png: Annotated[Path | None, typer.Option(help="The record as a picture.")] = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier --save: what got slower, and what faster.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Time the CUDA kernels, and remember the fastest.")] = False,
    precision: Annotated[str | None, typer.Option(help="With --tune, of float32: highest, or tf32 (forward).")] = None,
) -> None:
    """Measure what runs here: how fast, how near the limit, beside which rivals, and by which method.

    First each device's own limits are measured, its matrix products and copies; then layers of known networks, without
    --layers a few that stand for theirs. xpconv and its rivals take turns in every round, after the results of all were
    found right. Ctrl-C keeps what is measured so far.

    With --tune it is measured which CUDA kernel is the fastest for a layer and for its gradients. That is kept in the
    user's cache (XPCONV_CACHE_DIR names another folder); later calls of the same layer on the same device take it, and
    `xpconv.explain` says "measured".

    Examples:

    - `xpconv bench --save today.json --html today.html`

    - `xpconv bench --layers LeNet --layers ResNet-50 --batch 1,8 --rivals torch --compare yesterday.json`

    - `xpconv bench "conv2d x=8,56,56,64 w=3,3,64,128 padding=1 dtype=float32"`

    - `xpconv bench --tune --layers ResNet-50 --batch 64 --dtype float16`
    """
    with errors_in_one_line():
        if tune:
            finished = tune_command.run(layer, layers, split(batch), split(dtype), precision, device)
        else:
            if precision:
                raise ValueError("--precision is for --tune; without it float32 is measured in full precision")
            wanted = [*([layer] if layer else []), *(layers or [])]
            files = Files(save, html, png, compare)
            finished = measure(wanted, device, split(dtype), split(batch), split(layout), split(rivals), files, {
                "rounds": rounds, "cold": cold, "time_limit": time_limit,
            })  # fmt: skip
    if not finished:
        raise typer.Exit(INTERRUPTED)


def split(given: Words) -> list[str]:
    """An option that is repeated, or has commas."""
    return [word.strip() for words in given or [] for word in words.split(",") if word.strip()]


@dataclass(frozen=True)
class Files:
    """What is written, and what is compared with."""

    save: Path | None = None
    html: Path | None = None
    png: Path | None = None
    compare: Path | None = None

    def check(self) -> None:
        """Raise now what would be raised after the measuring."""
        for path in (self.save, self.html, self.png):
            if path:
                check_writable(path)

    def writers(self) -> list[tuple[Any, Path]]:
        """The modules that write pictures, loaded before the measuring, since they may need what is not installed."""
        wanted = (("page", self.html), ("figure", self.png))
        return [(import_module(f"xpconv.bench.{name}"), path) for name, path in wanted if path]


def measure(
    layers: list[str], device: Words, dtypes: list[str], batches: list[str], layouts: list[str], rivals: list[str],
    files: Files, how: dict[str, Any],
) -> bool:  # fmt: skip
    """Check all that was asked for, measure, show and write; whether it was not interrupted."""
    from xpconv.bench import compare, machine, record, run, table
    from xpconv.bench import rivals as rivals_here
    from xpconv.bench.cases import cases
    from xpconv.bench.data import numpys_dtype

    dtypes, layouts = dtypes or ["float32"], [checked_layout(word) for word in layouts] or ["channels_last"]
    counts = [whole_count("--batch", word) for word in batches] or [8]
    chosen = cases(layers, dtypes, counts, layouts)
    for case in chosen:
        numpys_dtype(case.dtype)  # which may not be installed
    places = _devices(device)
    names, missing = rivals_here.chosen(rivals)
    files.check()
    writers = files.writers()
    before = record.load(files.compare) if files.compare else None
    machine.wait_for_kernels()
    threads = machine.threads_here()
    told = {"layers": layers, "dtype": dtypes, "batch": counts, "layout": layouts, "rivals": names, **how}
    made = record.new(told, machine.machine(threads))
    made["missing_rivals"] = missing
    keeper, console = Keeper(files.save), Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    asked = run.Asked(names, threads=threads, **how)
    with _progress(len(places) * (1 + len(chosen) * len(asked.passes)), made, keeper, console) as step:
        run.run(places, chosen, asked, made, step)
    keeper.keep(made)
    compared = compare.compare(before, made) if before else None
    show(table.of_record(made, console.width), console)
    show(table.of_comparison(compared) if compared else (), console)
    keeper.check()
    for module, path in writers:
        module.write(*((made, path, compared) if path == files.html else (made, path)))
    if made["state"].startswith("the device was lost"):
        raise RuntimeError(made["state"])
    if not made["rows"] and made["failed"]:
        raise RuntimeError(f"nothing could be measured: {next(iter(made['failed'].values()))}")
    return bool(made["state"] != "interrupted")


def _devices(asked: Words) -> list[DeviceInfo]:
    """Those asked for, or all that can compute."""
    if asked:
        return list(dict.fromkeys(choose(name)[0] for name in asked))
    return [found for found in devices() if found.available]


def show(parts: Iterable[Any], console: Console) -> None:
    """Print tables, and lines that the terminal may break where it will."""
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str), highlight=False)


@dataclass
class Keeper:
    """Saves a record as it grows; what hinders that is told at the end, for the measuring goes on."""

    path: Path | None
    trouble: OSError | None = field(default=None)

    def keep(self, record: dict[str, Any]) -> None:
        """Save what there is."""
        from xpconv.bench import record as records

        if self.path is None:
            return
        try:
            records.save(record, self.path)
            self.trouble = None
        except OSError as error:
            self.trouble = error

    def check(self) -> None:
        """Raise what hindered the last time."""
        if self.trouble:
            raise self.trouble


@contextmanager
def _progress(count: int, made: dict[str, Any], keeper: Keeper, console: Console) -> Iterator[Callable[[str], None]]:
    """A bar with the time that is left; each step saves what is there."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, done = bar.add_task("begins", total=count), itertools.count()

        def step(comes: str) -> None:
            keeper.keep(made)
            bar.update(task, description=comes, completed=next(done))

        yield step
