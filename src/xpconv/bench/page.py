"""The record as one HTML page that needs nothing but itself: no network, and for all that matters no JavaScript."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from xpconv.bench import sections
from xpconv.bench.compare import Comparison
from xpconv.bench.machine import SLOWS
from xpconv.bench.marks import PALETTE
from xpconv.bench.markup import Markup, element, joined
from xpconv.bench.reading import Row, means, moment, networks
from xpconv.bench.record import Record
from xpconv.bench.scale import many, number, times
from xpconv.files import written_whole


def write(record: Record, path: Path, compared: Comparison | None = None) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    record : dict
        as `xpconv bench` makes it
    path : Path
    compared : Comparison, optional
        what became slower or faster since an older record

    Raises
    ------
    OSError
        the file cannot be written
    """
    with written_whole(path) as part:
        part.write_text(html(record, compared), encoding="utf-8")


def html(record: Record, compared: Comparison | None = None) -> str:
    """The page as text; the record itself is in it, in the element with the id "record"."""
    rows = [row | {"number": place} for place, row in enumerate(record["rows"])]
    folder = files("xpconv.bench")
    text = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    return Template(text["page.html"]).substitute(
        title=joined([f"xpconv on {record['machine']['processor']}"]),
        style=text["page.css"] + _colours(),
        header=_header(record, rows),
        main=joined(sections.of(record, rows, compared), "\n"),
        record=_embedded(record),
        script=text["page.js"],
    )


def _embedded(record: Record) -> str:
    """JSON in which no text can end the element or begin another: `<`, `>` and `&` only stand in texts."""
    text = json.dumps(record, ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _colours() -> str:
    return "\n".join(f".c{n} {{ --mark: light-dark({light}, {dark}) }}" for n, (light, dark) in enumerate(PALETTE))


# --- The head ---------------------------------------------------------------------------------------------------------


def _header(record: Record, rows: list[Row]) -> Markup:
    machine = record["machine"]
    count = f"{many(len(rows), 'row')} of {many(len(networks(rows)), 'network')}"
    lead = f"{count}, {moment(record['begun'])}, {record['state']} after {record['seconds']:.0f} s"
    warnings = [element("li", text) for text in _warnings(record)]
    return joined([
        element("p", f"xpconv {record['xpconv']}, benchmark", class_="over"),
        element("h1", f"{machine['processor']}, {machine['threads']} threads"),
        element("p", lead, class_="lead"),
        element("ul", warnings, class_="warnings") if warnings else "",
        _means(record, rows),
        element("dl", [_fact(term, text) for term, text in _facts(record) if text], class_="facts"),
    ])  # fmt: skip


def _warnings(record: Record) -> Iterator[str]:
    if record["state"] != "complete":
        yield f"The run is not complete ({record['state']}); not measured: {many(len(record['not_measured']), 'row')}."
    for name in SLOWS:
        value = record["machine"]["variables"].get(name, "not set")
        if value != "not set":
            yield f"{name}={value} may slow NumPy's BLAS, and with it what xpconv leaves to NumPy."
    if missing := record["missing_rivals"]:
        yield f"Not measured beside {', '.join(missing)}: {'; '.join(missing.values())}."


def _means(record: Record, rows: list[Row]) -> Markup | str:
    """How fast beside each rival, in one number each."""
    found = [
        element(
            "div",
            element("dt", mean.rival if len(record["devices"]) == 1 else f"{mean.rival}, {device}"),
            element("dd", element("b", times(mean.ratio)), element("small", _wins(mean.faster, mean.rows))),
        )
        for device in record["devices"]
        for mean in means([row for row in rows if row["device"] == device])
    ]
    if not found:
        return ""
    note = element("p", "The time of each over xpconv's, geometric mean. Above 1, xpconv is faster.", class_="note")
    return joined([element("dl", found, class_="means"), note])


def _wins(faster: int, rows: int) -> str:
    return f"faster in {faster} of {rows}" if rows > 1 else "of one row"


def _fact(term: str, text: str) -> Markup:
    return element("div", element("dt", term), element("dd", text))


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    machine, asked = record["machine"], record["asked"]
    for name, device in record["devices"].items():
        yield name, f"{device['description']}: {_limits(device['limits'])}"
    yield "processor", f"{machine['cores']} cores, {machine['threads']} threads"
    yield "load before", _listed(machine["load_average"])
    yield "system", f"{machine['system']}, Python {machine['python']}"
    yield "BLAS", _listed(machine["blas"])
    yield "packages", ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    changed = [f"{name}={value}" for name, value in machine["variables"].items() if value != "not set"]
    yield "variables", ", ".join(changed)
    yield "commit", machine.get("commit") or ""
    yield "asked", _asked(asked)


def _listed(value: Any) -> str:
    """A list, or the reason why there is none."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _limits(limits: dict[str, Any]) -> str:
    products = ", ".join(f"{dtype} {number(speed)}" for dtype, speed in limits["matrix_gflops"].items())
    return f"matrix product {products} GFLOP/s, copy {number(limits['copy_gbs'])} GB/s"


def _asked(asked: dict[str, Any]) -> str:
    parts = [f"{name.replace('_', ' ')} {', '.join(map(str, value))}" for name, value in asked.items()
             if isinstance(value, list) and value]  # fmt: skip
    return "; ".join([*parts, f"{asked['rounds']} rounds", "cold caches" if asked["cold"] else "warm caches"])
