"""The table of all rows: which columns, what they show, and by what they sort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from xpconv.bench.charts import anchor
from xpconv.bench.markup import Markup, element
from xpconv.bench.reading import Row, rivals, varying
from xpconv.bench.scale import TIMES, UNKNOWN, many, number, percent, ratio

Value = float | str | None
_ALWAYS = ("network", "layer", "operation", "batch")  # other fields are columns where rows differ


@dataclass(frozen=True)
class Column:
    """A column: `value` sorts it, `text` is read."""

    title: str
    value: Callable[[Row], Value]
    text: Callable[[Any], str] | None = None  # of numbers; words are read as they are


def tools(rows: list[Row]) -> Markup:
    """What stands over the table: the filter, how many rows it leaves, and what all rows have in common."""
    fields = [field for field in ("dtype", "layout", "device") if field not in varying(rows)]
    common = ", ".join(str(rows[0][field]).replace("_", " ") for field in fields)
    return element(
        "div",
        element("label", "Filter ", element("input", type="search", id="filter", placeholder="ResNet 3x3 float32"),
                class_="scripted"),
        element("output", many(len(rows), "row"), id="shown", for_="filter"),
        element("span", f"all {common}" if common else ""),
        element("button", "Save the record as JSON", type="button", id="save", class_="scripted"),
        class_="tools",
    )  # fmt: skip


def table(rows: list[Row]) -> Markup:
    """Every row of the record, in the order in which it was measured."""
    columns = _columns(rows)
    heads = [
        element("th", element("button", column.title, type="button"), scope="col",
                class_="number" if column.text else None)
        for column in columns
    ]  # fmt: skip
    lines = [element("tr", [_cell(column, row) for column in columns], id=anchor(row)) for row in rows]
    whole = element("table", element("thead", element("tr", heads)), element("tbody", lines), id="all-rows")
    return element("div", whole, class_="box", tabindex="0", role="region", aria_labelledby="rows-title")


def _columns(rows: list[Row]) -> list[Column]:
    """Those of this record."""
    fields = [field for field in varying(rows) if field not in _ALWAYS]
    return [
        *(Column(field, partial(_field, field)) for field in _ALWAYS[:3]),
        Column("batch", lambda row: row["batch"], str),
        *(Column(field, partial(_field, field)) for field in fields),
        Column("method", lambda row: row["method"]),
        Column("ms", lambda row: row["ms"], number),
        Column("10 %", lambda row: row["ms_10_90"][0], number),
        Column("90 %", lambda row: row["ms_10_90"][1], number),
        Column("GFLOP/s", lambda row: row["gflops"], number),
        Column("GB/s", lambda row: row["gbs"], number),
        Column("of limit", lambda row: row["share_of_limit"], percent),
        *(Column(f"{name} {TIMES}", partial(_ratio, name), _factor) for name in rivals(rows)),
        Column("error", lambda row: row["error"], lambda error: UNKNOWN if error is None else f"{error:.1e}"),
    ]


def _field(field: str, row: Row) -> str:
    return str(row[field]).replace("_", " ") if field == "layout" else str(row[field])


def _ratio(name: str, row: Row) -> float | None:
    beside = row["rivals"].get(name)
    return beside["ratio"] if beside else None


def _factor(value: float | None) -> str:
    return UNKNOWN if value is None else ratio(value)


def _cell(column: Column, row: Row) -> Markup:
    value = column.value(row)
    if column.text is None or isinstance(value, str):
        return element("th" if column.title == "layer" else "td", str(value),
                       scope="row" if column.title == "layer" else None)  # fmt: skip
    return element("td", column.text(value), class_="number", data_value="" if value is None else value)
