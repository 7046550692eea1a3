"""The sections of the page: the changes, the roofline, the rivals, the devices, all rows, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xpconv.bench import charts, sheet
from xpconv.bench.compare import Comparison, Verdict
from xpconv.bench.markup import Markup, element, joined
from xpconv.bench.reading import Row, above_roof, counted, means, moment, networks, races, title, usual
from xpconv.bench.record import Record
from xpconv.bench.scale import LogAxis, many, number, ratio, times

_FEWER_PRODUCTS = ("winograd", "fft", "separable")


def of(record: Record, rows: list[Row], compared: Comparison | None) -> Iterator[Markup | str]:
    """All of them, in their order; one that has nothing to say is empty or says why."""
    yield _changes(compared) if compared else ""
    yield _rooflines(record, rows)
    yield _rivals(record, rows)
    yield _throughput(record, rows)
    yield _races(record, rows)
    yield _table(rows)
    yield _missing(record, rows)


def _section(name: str, title: str, *content: Any) -> Markup:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")


def _paragraph(*content: Any, class_: str | None = None) -> Markup:
    return element("p", *content, class_=class_)


def _changes(compared: Comparison) -> Markup:
    """What became slower or faster, and what is meant by that."""
    verdicts: tuple[Verdict, ...] = ("slower", "faster", "same", "too few rounds")
    counts = [f"{len(compared.of(verdict))} {verdict}" for verdict in verdicts if compared.of(verdict)]
    told = f"{', '.join(counts) or 'No row is in both runs'}; {len(compared.added)} new, {len(compared.missing)} gone."
    notes = [f"{device} {machine}." for device, machine in compared.machines.items()] + list(compared.warnings)
    notes += [f"new: {key}" for key in compared.added] + [f"gone: {key}" for key in compared.missing]
    shown = [*compared.of("slower"), *compared.of("faster")]
    lines = [
        element(
            "tr", element("td", row.verdict, class_=f"text-{row.verdict}"), element("th", row.key, scope="row"),
            [element("td", text, class_="number") for text in (
                number(row.before_ms), number(row.after_ms), times(row.times)
            )],
        )
        for row in shown
    ]  # fmt: skip
    heads = [element("th", title, scope="col", class_=None if n < 2 else "number")
             for n, title in enumerate(("verdict", "row", "ms then", "ms now", "change"))]  # fmt: skip
    table = element("table", element("thead", element("tr", heads)), element("tbody", lines))
    box = element("div", table, class_="box", tabindex="0", role="region", aria_labelledby="changes-title")
    return _section("changes", f"Since {moment(compared.before)}", _paragraph(told), box if lines else "",
                    element("ul", [element("li", note) for note in notes], class_="plain"))  # fmt: skip


def _rooflines(record: Record, rows: list[Row]) -> Markup:
    order = networks(rows)
    figures = [
        _roofline(name, device, own, order)
        for name, device in record["devices"].items()
        if counted(own := [row for row in rows if row["device"] == name])
    ]
    if not figures:
        return _section("roofline", "Roofline", _paragraph("No row was measured whose operations are counted."))
    present = {row["network"] for row in counted(rows)}
    legend = [
        element("li", element("button", charts.swatch(n), name, type="button", aria_pressed="false", data_network=n))
        for n, name in enumerate(order) if name in present
    ]  # fmt: skip
    dtypes = list(dict.fromkeys(row["dtype"] for row in counted(rows)))
    hollow = f" Filled marks are {dtypes[0]}, hollow ones {', '.join(dtypes[1:])}." if len(dtypes) > 1 else ""
    intro = (
        "Operations per second over operations per byte. A layer on the rising line is held up by memory, one on a "
        f"level line by arithmetic; both lines were measured on the device itself.{hollow}"
    )
    return _section(
        "roofline", "Roofline", _paragraph(intro), element("ul", legend, class_="legend"),
        element("div", figures, class_="rooflines"),
    )  # fmt: skip


def _roofline(name: str, device: dict[str, Any], rows: list[Row], order: list[str]) -> Markup:
    drawn = charts.roofline(rows, device["limits"], order, f"Roofline of {name}, {len(counted(rows))} layers")
    caption = element("figcaption", element("b", name), f" {device['description']}")
    above = above_roof(rows, device["limits"])
    return element(
        "figure", caption, element("div", "GFLOP/s", class_="axis-y"), drawn,
        element("div", "operations per byte", class_="axis-x"), _paragraph(_above(above), class_="note"),
    )  # fmt: skip


def _above(rows: list[Row]) -> str:
    if not rows:
        return "No point lies above the roof."
    fewer = sum(row["method"] in _FEWER_PRODUCTS for row in rows)
    told = f"{_points(len(rows))} above the roof."
    if fewer:
        told += f" {'It is' if len(rows) == 1 else f'{fewer} of them are'} of Winograd or the FFT, which do fewer " \
                "products than the definition, by which operations are counted."  # fmt: skip
    if len(rows) > fewer:
        told += " Arrays that fit in the caches are read faster than the large ones of the measured copy."
    return told


def _points(count: int) -> str:
    return "One point lies" if count == 1 else f"{count} points lie"


def _rivals(record: Record, rows: list[Row]) -> Markup:
    beside = [row for row in rows if row["rivals"]]
    if not beside:
        return _section("rivals", "Beside rivals", _paragraph("No rival was measured."))
    known, several = usual(rows), len(record["devices"]) > 1
    axis = charts.ratio_axis(beside)
    groups = [
        _rival_group(f"{name}, {device}" if several else name, own, axis, known | {"device": device})
        for device in record["devices"]
        for name in networks(beside)
        if (own := [row for row in beside if row["device"] == device and row["network"] == name])
    ]
    key = [
        element("li", element("i", class_=f"key-{verdict}"), text)
        for verdict, text in (("faster", "xpconv is faster"), ("slower", "the rival is faster"),
                              ("even", "no difference beyond the spread"))
    ]  # fmt: skip
    intro = (
        "The rival's time over xpconv's, taken in turns, and its spread over the rounds from 10 to 90 %. "
        "Every group has the same logarithmic axis."
    )
    alone = len(rows) - len(beside)
    note = _paragraph(f"Without a rival that computes the same: {many(alone, 'row')}.", class_="note") if alone else ""
    return _section("rivals", "Beside rivals", _paragraph(intro), element("ul", key, class_="legend"),
                    element("div", groups, class_="groups"), note)  # fmt: skip


def _rival_group(title: str, rows: list[Row], axis: LogAxis, known: dict[str, Any]) -> Markup:
    told = ", ".join(f"{mean.rival} {ratio(mean.ratio)}" for mean in means(rows))
    heading = element("h3", title, " ", element("small", f"geometric mean {told}"))
    return element("div", heading, element("ul", charts.ratio_bars(rows, axis, known), class_="bars"),
                   charts.ratio_ticks(axis), class_="group")  # fmt: skip


def _throughput(record: Record, rows: list[Row]) -> Markup | str:
    groups = []
    for name, device in record["devices"].items():
        own = [row for row in rows if row["device"] == name and not row["operations"]]
        if own:
            copy = device["limits"]["copy_gbs"]
            heading = element("h3", name, " ", element("small", f"the line is its copy, {number(copy)} GB/s"))
            bars = charts.throughput_bars(own, copy, usual(own) | {"operation": None})
            groups.append(element("div", heading, element("ul", bars, class_="bars"), class_="group"))
    if not groups:
        return ""
    intro = "Rows without counted operations, such as pooling: input and result, once each, over the time."
    return _section("throughput", "Bytes per second", _paragraph(intro), element("div", groups, class_="groups"))


def _races(record: Record, rows: list[Row]) -> Markup:
    found = races(rows)
    devices = list(record["devices"])
    if not found:
        why = (
            f"Only {devices[0]} was measured, so there is nothing to set against each other."
            if len(devices) == 1
            else "No layer was measured at the same batch on the CPU and on another device."
        )
        return _section("devices", "CPU against GPU", _paragraph(why))
    key = [element("li", charts.swatch(n), name) for n, name in enumerate(devices)]
    known = usual([race.row for race in found])
    cells = [
        element("figure", element("figcaption", _race_title(race.row, known)), charts.race(race, devices),
                [_paragraph(f"{device} {race.outcome(device)}", class_="note") for device in race.per_item
                 if device != "cpu"])
        for race in found
    ]  # fmt: skip
    intro = "Milliseconds per item over the batch, both logarithmic; the number is the last of each line."
    return _section("devices", "CPU against GPU", _paragraph(intro), element("ul", key, class_="legend"),
                    element("div", cells, class_="races"))  # fmt: skip


def _race_title(row: Row, known: dict[str, Any]) -> Markup:
    return joined([element("b", row["network"]), " ", title(row, known | {"batch": row["batch"]})])


def _table(rows: list[Row]) -> Markup:
    if not rows:
        return _section("rows", "All rows", _paragraph("Nothing was measured."))
    return _section("rows", "All rows", sheet.tools(rows), sheet.table(rows))


def _missing(record: Record, rows: list[Row]) -> Markup | str:
    """What one might look for in vain, and why; of rivals that are not installed the head has warned."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        for rival, why in row["left_out"].items():
            reasons[rival, why] = reasons.get((rival, why), 0) + 1
    told = [f"{rival} in {many(count, 'row')}: {why}" for (rival, why), count in reasons.items()]
    told += [f"failed: {key}: {why}" for key, why in record["failed"].items()]
    told += [f"not measured: {key}" for key in record["not_measured"]]
    if not told:
        return ""
    return _section("missing", "Left out", element("ul", [element("li", text) for text in told], class_="plain"))
