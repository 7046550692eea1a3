"""The charts of the page as SVG.

Places along an axis are written in percent and sizes in pixels, so that a chart takes the width that it is given while
its letters keep their size; whatever hangs over its edge (labels of ticks) lies in the margin that the style leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import inf
from typing import Any

from xpconv.bench.marks import mark
from xpconv.bench.markup import Markup, element
from xpconv.bench.reading import Race, Row, counted, intensity, labelled_roofs, roof_axes, title, verdict
from xpconv.bench.scale import LogAxis, number, percent, ratio, times

_LINE = 15  # pixels from one line of labels to the next
LANE, PADDING = 16, 5  # pixels: one rival's bar, and the room above the first and below the last


def drawn_as(network: int) -> tuple[str, str]:
    """The class of the network's colour, and where its shape is defined."""
    colour, shape = mark(network)
    return f"c{colour}", f"#shape{shape}"


def swatch(network: int) -> Markup:
    """Its mark for a legend."""
    colour, shape = drawn_as(network)
    return element("svg", element("use", href=shape, x="50%", y="50%"), class_=f"swatch {colour}", aria_hidden="true")


# --- The roofline -----------------------------------------------------------------------------------------------------


def roofline(rows: list[Row], limits: dict[str, Any], order: list[str], description: str) -> Markup:
    """One device: its roofs, and a point for each row whose operations are counted."""
    shown = sorted(counted(rows), key=intensity)
    x, y = roof_axes(shown, limits)
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    points = [_point(row, x, y, order, hollow=row["dtype"] != dtypes[0]) for row in shown]
    roofs = _roofs(x, y, limits["matrix_gflops"], limits["copy_gbs"])
    listed = element("g", points, role="list", class_="points")
    return element("svg", _grid(x, y), roofs, listed, class_="plot", role="group", aria_label=description)


def _grid(x: LogAxis, y: LogAxis) -> Iterator[Markup]:
    for tick in x.ticks():
        place = f"{x.at(tick)}%"
        yield element("line", x1=place, x2=place, y1=0, y2="100%", class_="grid")
        yield element("text", f"{tick:,g}", x=place, y="100%", dy=18, class_="tick middle")
    for tick in y.ticks():
        place = f"{100 - y.at(tick)}%"
        yield element("line", x1=0, x2="100%", y1=place, y2=place, class_="grid")
        yield element("text", f"{tick:,g}", x=0, y=place, dx=-8, dy=4, class_="tick end")


def _roofs(x: LogAxis, y: LogAxis, matrix: dict[str, float], copy: float) -> Iterator[Markup]:
    """What the device was measured to do: copying rises with the intensity, up to the fastest matrix product."""
    ridge = max(matrix.values(), default=inf) / copy
    begin = max(x.low, y.low / copy)
    yield _line(x, y, (begin, min(ridge, x.high)), (begin * copy, min(ridge * copy, x.high * copy)))
    label = begin * (ridge / begin) ** 0.06
    yield element(
        "text", f"copy {number(copy)} GB/s", x=f"{x.at(label)}%", y=f"{100 - y.at(label * copy)}%", dx=12, dy=10,
        class_="roof-label",
    )  # fmt: skip
    for speeds in labelled_roofs(matrix, y):
        top = 4 - _LINE * (len(speeds) - 1) / 2
        highest = max(speeds.values())
        for place, (dtype, speed) in enumerate(speeds.items()):
            yield _line(x, y, (speed / copy, x.high), (speed, speed))
            yield element(
                "text", element("tspan", "matrix product ", class_="wide"), f"{dtype} {number(speed)}",
                element("tspan", " GFLOP/s", class_="wide"), x=f"{x.at(highest / copy)}%",
                y=f"{100 - y.at(highest)}%", dx=-8, dy=top + _LINE * place, class_="roof-label end",
            )  # fmt: skip


def _line(x: LogAxis, y: LogAxis, xs: tuple[float, float], ys: tuple[float, float]) -> Markup:
    x1, x2 = (f"{x.at(value)}%" for value in xs)
    y1, y2 = (f"{100 - y.at(value)}%" for value in ys)
    return element("line", x1=x1, x2=x2, y1=y1, y2=y2, class_="roof")


def _point(row: Row, x: LogAxis, y: LogAxis, order: list[str], *, hollow: bool) -> Markup:
    network = order.index(row["network"])
    colour, shape = drawn_as(network)
    place = {"x": f"{x.at(intensity(row))}%", "y": f"{100 - y.at(row['gflops'])}%"}
    return element(
        "a", element("title", "\n".join(facts(row))),
        element("circle", cx=place["x"], cy=place["y"], r=11, class_="reach"), element("use", href=shape, **place),
        href=f"#{anchor(row)}", class_=f"point {colour}{' hollow' if hollow else ''}", data_network=network,
        role="listitem",
    )  # fmt: skip


def facts(row: Row) -> Iterator[str]:
    """A row in a few lines, the first of which names it."""
    yield f"{row['network']}: {title(row, {'operation': 'conv'})}"
    yield f"method {row['method']}"
    low, high = row["ms_10_90"]
    yield f"{number(row['ms'])} ms (10..90 %: {number(low)} to {number(high)})"
    speed = f"{number(row['gflops'])} GFLOP/s, " if row["gflops"] else ""
    yield f"{speed}{number(row['gbs'])} GB/s: {percent(row['share_of_limit'])} of the limit, {row['limit']}"
    if row["rivals"]:
        told = (f"{rival} {times(beside['ratio'])}" for rival, beside in row["rivals"].items())
        yield f"time of rivals: {', '.join(told)}"


def anchor(row: Row) -> str:
    """The id of its line in the table."""
    return f"row-{row['number']}"


# --- Bars beside rivals -----------------------------------------------------------------------------------------------


def ratio_axis(rows: list[Row]) -> LogAxis:
    """From the slowest to what nine in ten ratios do not exceed; one that is far away must not flatten the others."""
    beside = [rival for row in rows for rival in row["rivals"].values()]
    ratios = sorted(rival["ratio"] for rival in beside)
    most = ratios[int(0.9 * (len(ratios) - 1))]
    least = min(rival["ratio_10_90"][0] for rival in beside)
    return LogAxis(max(min(0.5, least), 0.1), max(2, most)).rounded()


def ratio_bars(rows: list[Row], axis: LogAxis, known: dict[str, Any]) -> Iterator[Markup]:
    """A line for each row: its name, a bar from 1 to each rival's ratio with the spread, and the ratios as numbers."""
    for row in rows:
        beside = row["rivals"]
        bars = [_ratio_bar(rival, axis, PADDING + LANE * lane) for lane, rival in enumerate(beside.values())]
        numbers = [_ratio_number(rival, told) for rival, told in beside.items()]
        height = LANE * len(beside) + 2 * PADDING
        yield _bar_line(row, known, [*_verticals(axis), bars], element("ul", numbers, class_="numbers"), height)


def ratio_ticks(axis: LogAxis) -> Markup:
    """The line of ticks below a group of bars."""
    ticks = [element("text", f"{tick:g}", x=f"{axis.at(tick)}%", y=12, class_="tick middle") for tick in axis.ticks()]
    return element("div", element("svg", ticks, height=18, class_="track"), class_="bar ticks", aria_hidden="true")


def _verticals(axis: LogAxis) -> Iterator[Markup]:
    for tick in axis.ticks():
        place = f"{axis.at(tick)}%"
        yield element("line", x1=place, x2=place, y1=0, y2="100%", class_="unity" if tick == 1 else "grid")


def _ratio_bar(rival: dict[str, Any], axis: LogAxis, top: int) -> Iterator[Markup]:
    low, high = rival["ratio_10_90"]
    start, end = sorted((axis.at(1), axis.at(rival["ratio"])))
    colour = verdict((low, high))
    yield element(
        "rect", x=f"{start}%", width=f"{round(end - start, 3)}%", y=top + 3, height=LANE - 6, class_=f"bar-{colour}"
    )
    if rival["ratio"] > axis.high:
        yield element("use", href="#beyond", x="100%", y=top + LANE / 2, class_=f"bar-{colour}")
        return
    y = top + LANE / 2
    yield element("line", x1=f"{axis.at(low)}%", x2=f"{axis.at(high)}%", y1=y, y2=y, class_="spread")


def _ratio_number(rival: str, told: dict[str, Any]) -> Markup:
    low, high = (ratio(end) for end in told["ratio_10_90"])
    facts = f"{number(told['ms'])} ms; 10..90 % of the ratio: {low} to {high}"
    return element("li", element("span", rival), " ", element("b", ratio(told["ratio"])), title=facts)


def _bar_line(row: Row, known: dict[str, Any], drawn: Any, numbers: Markup, height: int) -> Markup:
    label = element("a", title(row, known), href=f"#{anchor(row)}", class_="label")
    track = element("svg", drawn, height=height, class_="track", aria_hidden="true")
    return element("li", label, track, numbers, class_="bar")


# --- GB/s of rows without operations ----------------------------------------------------------------------------------


def throughput_bars(rows: list[Row], copy: float, known: dict[str, Any]) -> Iterator[Markup]:
    """Bars from zero, and where the device's own copy lies."""
    most = 1.06 * max(copy, *(row["gbs"] for row in rows))
    height = LANE + 2 * PADDING
    for row in rows:
        place = f"{round(100 * copy / most, 3)}%"
        drawn = [
            element("rect", x=0, width=f"{round(100 * row['gbs'] / most, 3)}%", y=PADDING + 3, height=LANE - 6,
                    class_="bar-plain"),
            element("line", x1=0, x2=0, y1=0, y2="100%", class_="unity"),
            element("line", x1=place, x2=place, y1=0, y2="100%", class_="roof"),
        ]  # fmt: skip
        told = element("li", element("b", number(row["gbs"])), f" GB/s, {percent(row['share_of_limit'])}")
        yield _bar_line(row, known, drawn, element("ul", told, class_="numbers"), height)


# --- CPU against GPU --------------------------------------------------------------------------------------------------


def race(found: Race, devices: list[str]) -> Markup:
    """Time per item over the batch, a line for each device; the number at a line's end is its last time."""
    times = found.per_item
    batches = sorted({batch for points in times.values() for batch in points})
    x = LogAxis(min(batches), max(batches)) if len(batches) > 1 else LogAxis(batches[0] / 2, batches[0] * 2)
    y = LogAxis.around((value for points in times.values() for value in points.values()), 1.25)
    lines = [_race_line(points, x, y, devices.index(device)) for device, points in times.items()]
    ticks = [
        element("text", str(batch), x=f"{x.at(batch)}%", y="100%", dy=16, class_="tick middle") for batch in batches
    ]
    base = element("line", x1=0, x2="100%", y1="100%", y2="100%", class_="unity")
    return element("svg", base, ticks, lines, class_="race", aria_hidden="true")


def _race_line(points: dict[int, float], x: LogAxis, y: LogAxis, device: int) -> Markup:
    colour, shape = drawn_as(device)
    places = [(x.at(batch), round(100 - y.at(points[batch]), 3)) for batch in sorted(points)]
    lines = [
        element("line", x1=f"{x1}%", y1=f"{y1}%", x2=f"{x2}%", y2=f"{y2}%")
        for (x1, y1), (x2, y2) in pairwise(places)
    ]
    marks = [element("use", href=shape, x=f"{x_}%", y=f"{y_}%") for x_, y_ in places]
    last = number(points[max(points)])
    told = element("text", last, x=f"{places[-1][0]}%", y=f"{places[-1][1]}%", dx=9, dy=4, class_="tick")
    return element("g", lines, marks, told, class_=f"line {colour}")
