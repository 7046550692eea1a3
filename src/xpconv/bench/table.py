"""A record, and what changed since another, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from xpconv.bench.compare import Change, Comparison
from xpconv.bench.machine import busy, slowed
from xpconv.bench.record import Record
from xpconv.bench.statistics import geometric_mean

_OTHERS = 90  # columns of text that all but the rivals take
_VARIED = ("batch", "dtype", "layout")


def of_record(record: Record, width: int) -> Iterator[Table | str]:
    """The machine, a table for each device, the means, and what is not there and why; in so many columns of text."""
    machine = record["machine"]
    yield (
        f"{machine.get('processor')}, {machine.get('threads')} threads, Python {machine.get('python')}, "
        f"xpconv {record['xpconv']}, begun {record['begun']}"
    )
    yield slowed(machine.get("variables", {}))
    yield from filter(None, [busy(machine)])
    for device, told in record["devices"].items():
        if rows := [row for row in record["rows"] if row["device"] == device]:
            yield _limits(device, told)
            yield _of_rows(rows, width)
    yield from _means(record["rows"])
    yield from (f"without {name}: {why}" for name, why in record["missing_rivals"].items())
    yield from (f"failed: {key}: {why}" for key, why in record["failed"].items())
    yield _ending(record)


def _limits(device: str, told: dict[str, Any]) -> str:
    limits = told["limits"]
    products = ", ".join(f"{_number(speed)} GFLOP/s in {dtype}" for dtype, speed in limits["matrix_gflops"].items())
    return f"{device}: {told['description']}; matrix products {products}; copies {_number(limits['copy_gbs'])} GB/s"


def _of_rows(rows: list[dict[str, Any]], width: int) -> Table:
    """One line a row; what all rows have in common stands above them."""
    shared = {name: rows[0][name] for name in _VARIED if len({row[name] for row in rows}) == 1}
    rivals = list(dict.fromkeys(name for row in rows for name in row["rivals"]))
    wide = _OTHERS + sum(max(len(name), 6) + 2 for name in rivals) <= width
    said = ", ".join(f"N={value}" if name == "batch" else str(value) for name, value in shared.items())
    numbers = ("ms", *(("10..90 %",) if wide else ()), "GFLOP/s", "of limit")
    table = Table(
        Column("layer", overflow="fold", min_width=24 if wide else 16),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        Column("method", no_wrap=True),
        *(Column(name, justify="right") for name in (rivals if wide else ())),
        *(() if wide else (Column("rivals", overflow="fold", min_width=16),)),
        title=said or None,
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for row in rows:
        table.add_row(
            escape(_name(row, shared)),
            _number(row["ms"]),
            *(("..".join(map(_number, row["ms_10_90"])),) if wide else ()),
            _number(row["gflops"]) if row["gflops"] else f"{_number(row['gbs'])} GB/s",
            f"{100 * row['share_of_limit']:.0f} %{' c' if row['limit'] == 'copy' else '  '}",
            row["method"],
            *((_ratio(row["rivals"].get(name)) for name in rivals) if wide else (_joined(row["rivals"]),)),
        )
    table.caption = (
        "of limit: of the matrix products' speed, or c: of the copies'; rivals: their time over xpconv's, above 1 "
        "xpconv is faster"
    )
    table.caption_justify = "left"
    return table


def _name(row: dict[str, Any], shared: dict[str, Any]) -> str:
    own = [f"N={row[n]}" if n == "batch" else str(row[n]) for n in _VARIED if n not in shared]
    return ", ".join([f"{row['network']} {row['layer']}", *own])


def _joined(rivals: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_ratio(rival)}" for name, rival in rivals.items())


def _ratio(rival: dict[str, Any] | None) -> str:
    if rival is None:
        return ""
    ratio = rival["ratio"]
    colour = "green" if ratio > 1 else "red"
    return f"[{colour}]{ratio:.2f}[/{colour}]" if ratio < 100 else f"[{colour}]{ratio:.0f}[/{colour}]"


def _means(rows: list[dict[str, Any]]) -> Iterator[str]:
    for device in dict.fromkeys(row["device"] for row in rows):
        for name in dict.fromkeys(name for row in rows for name in row["rivals"]):
            ratios = [r["rivals"][name]["ratio"] for r in rows if r["device"] == device and name in r["rivals"]]
            if mean := geometric_mean(ratios):
                count = f"{len(ratios)} row{'s' if len(ratios) > 1 else ''}"
                yield f"{device}: {name} takes {mean:.2f} times as long as xpconv, geometric mean of {count}"


def _ending(record: Record) -> str:
    waiting = record["not_measured"]
    told = f"{record['state']} after {record['seconds']:.0f} s, {len(record['rows'])} rows"
    return f"{told}; not measured: {'; '.join(waiting)}" if waiting else told


def of_comparison(compared: Comparison) -> Iterator[Table | str]:
    """What got slower, what faster, and how that was told from the noise."""
    yield f"compared with the run of {compared.before}"
    yield from (f"beware: {warning}" for warning in compared.warnings)
    yield from (f"{device} {machine}" for device, machine in compared.machines.items())
    changed = compared.of("slower") + compared.of("faster")
    if changed:
        yield _of_changes(changed)
    counts = [(len(compared.of(verdict)), verdict) for verdict in ("slower", "faster", "same", "too few rounds")]
    counts += [(len(compared.missing), "in the earlier run alone"), (len(compared.added), "in this run alone")]
    yield ", ".join(f"{count} {what}" for count, what in counts if count or what in ("slower", "faster", "same"))


def _of_changes(changes: list[Change]) -> Table:
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("before", "now", "times"))
    table = Table(Column("row", overflow="fold"), *numbers, "", "method", box=SIMPLE_HEAD)
    for change in changes:
        colour = "red" if change.verdict == "slower" else "green"
        methods = dict.fromkeys((change.before_method, change.after_method))
        table.add_row(
            escape(change.key), f"{_number(change.before_ms)} ms", f"{_number(change.after_ms)} ms",
            f"{change.times:.2f}", f"[{colour}]{change.verdict}[/{colour}]", ", now ".join(methods),
        )  # fmt: skip
    return table


def _number(value: float) -> str:
    """With the digits that count, and without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
