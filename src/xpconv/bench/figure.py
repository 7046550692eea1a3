"""The record as a figure for a paper: a roofline, and the rivals' times over xpconv's, for each device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from xpconv.bench.marks import PALETTE, mark
from xpconv.bench.reading import (
    Mean,
    Row,
    counted,
    intensity,
    labelled_roofs,
    means,
    networks,
    rivals,
    roof_axes,
    verdict,
)
from xpconv.bench.record import Record
from xpconv.bench.scale import LogAxis, number, ratio
from xpconv.files import written_whole
from xpconv.nn.extras import require

INK, SOFT, PALE = "#171b21", "#59626f", "#e2e5ea"
MARKERS = "osD^v"
VERDICTS = {"faster": PALETTE[0][0], "slower": PALETTE[1][0], "even": "#a9b1bc"}
WIDTH, LANE = 7.2, 0.13  # inches: two columns of a paper, and one bar
DPI = 300
_STYLE = {
    "font.size": 7, "axes.edgecolor": SOFT, "axes.linewidth": 0.6, "axes.labelcolor": INK, "axes.titlesize": 8,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "text.color": INK,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.size": 0,
    "ytick.minor.size": 0, "legend.frameon": False, "legend.handletextpad": 0.3, "svg.fonttype": "none",
    "text.parse_math": False,
}  # fmt: skip


def write(record: Record, path: Path) -> None:
    """Draw the record, as PNG, SVG or PDF as the extension says; one without an extension is a PNG.

    Parameters
    ----------
    record : dict
        as `xpconv bench` makes it
    path : Path

    Raises
    ------
    ModuleNotFoundError
        matplotlib is not installed; the message says what installs it
    ValueError
        nothing was measured that can be drawn, or matplotlib writes no such files
    OSError
        the file cannot be written
    """
    matplotlib = require("matplotlib", extra="cli")
    form = path.suffix.removeprefix(".").lower() or "png"
    with matplotlib.rc_context(_STYLE):
        figure = _figure(record)
        if form not in (known := figure.canvas.get_supported_filetypes()):
            raise ValueError(f"{path}: no figure ends in .{form}; take one of {', '.join(sorted(known))}")
        with written_whole(path) as part:
            figure.savefig(part, format=form, dpi=DPI)


def _figure(record: Record) -> Any:
    """A line of two panels for each device."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {name: [row for row in record["rows"] if row["device"] == name] for name in record["devices"]}
    shown = {name: rows for name, rows in shown.items() if counted(rows) or rivals(rows)}
    if not shown:
        raise ValueError("nothing was measured that a figure could show")
    heights = [max(3.2, LANE * max((lane.top for lane in _lanes(rows)), default=0) + 1) for rows in shown.values()]
    figure = Figure(figsize=(WIDTH, sum(heights)), facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06, wspace=0.04)
    panels = figure.subplots(len(shown), 2, squeeze=False, width_ratios=[1.15, 1], height_ratios=heights)
    order = networks(record["rows"])
    for (left, right), (name, rows) in zip(panels, shown.items(), strict=True):
        device = record["devices"][name]
        _roofline(left, counted(rows), device["limits"], order)
        left.set_title(shorten(f"{name}: {device['description']}", 58, placeholder=" ..."))
        _rivals(right, rows)
    _legend(figure)
    return figure


def _legend(figure: Any) -> None:
    """One of all devices, below them."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=6, fontsize=6, columnspacing=1.2)


# --- The roofline -----------------------------------------------------------------------------------------------------


def _roofline(axes: Any, rows: list[Row], limits: dict[str, Any], order: list[str]) -> None:
    if not rows:
        _say(axes, "no operations are counted")
        return
    matrix, copy = limits["matrix_gflops"], limits["copy_gbs"]
    x, y = roof_axes(rows, limits)
    _logarithmic(axes.xaxis, x)
    _logarithmic(axes.yaxis, y)
    hollow = [dtype for dtype in dict.fromkeys(row["dtype"] for row in rows) if dtype != rows[0]["dtype"]]
    axes.set_xlabel(f"operations per byte{'; hollow: ' if hollow else ''}{', '.join(hollow)}")
    axes.set_ylabel("GFLOP/s")
    axes.grid(color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    ridge = max(matrix.values(), default=x.high * copy) / copy
    axes.plot([x.low, ridge], [x.low * copy, ridge * copy], color=INK, linewidth=0.8)
    start = max(x.low, y.low / copy)
    axes.annotate(f"copy {number(copy)} GB/s", (start, start * copy), (10, 2), textcoords="offset points", fontsize=6)
    for speeds in labelled_roofs(matrix, y):
        for speed in speeds.values():
            axes.plot([speed / copy, x.high], [speed, speed], color=INK, linewidth=0.8)
        told, speed = "\n".join(f"{dtype} {number(speed)}" for dtype, speed in speeds.items()), max(speeds.values())
        axes.annotate(told, (speed / copy, speed), (-4, 0), textcoords="offset points", ha="right", va="center",
                      fontsize=6)  # fmt: skip
    _points(axes, rows, order)


def _points(axes: Any, rows: list[Row], order: list[str]) -> None:
    first = rows[0]["dtype"]
    for network in networks(rows):
        colour, shape = mark(order.index(network))
        for hollow in (False, True):
            own = [row for row in rows if row["network"] == network and (row["dtype"] != first) == hollow]
            axes.plot(
                [intensity(row) for row in own], [row["gflops"] for row in own], linestyle="none", markersize=4,
                marker=MARKERS[shape], color=PALETTE[colour][0], markerfacecolor="white" if hollow else None,
                markeredgecolor=PALETTE[colour][0] if hollow else "white", markeredgewidth=0.8 if hollow else 0.4,
                label=f"_{network}" if hollow else _short(network),  # one that begins with _ is in no legend
            )  # fmt: skip


# --- Bars beside rivals -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lane:
    """Where a bar lies, what it is called, and what it shows."""

    top: float
    label: str
    mean: Mean
    beside: list[dict[str, Any]]


def _lanes(rows: list[Row]) -> list[Lane]:
    """A bar for each network and rival, the first of a network with its name, and room between networks."""
    found: list[Lane] = []
    top = 0.0
    for network in networks(rows):
        own = [row for row in rows if row["network"] == network]
        for place, mean in enumerate(means(own)):
            beside = [row["rivals"][mean.rival] for row in own if mean.rival in row["rivals"]]
            label = _short(mean.rival) if place else f"{_short(network)}  {_short(mean.rival)}"
            found.append(Lane(top, label, mean, beside))
            top += 1
        top += 0.8
    return found


def _short(name: str) -> str:
    return shorten(name, 24, placeholder=" ...")  # a long one would leave the panels no room


def _rivals(axes: Any, rows: list[Row]) -> None:
    """A bar for each network and rival, the geometric mean; on it each layer, with a stroke."""
    lanes = _lanes(rows)
    if not lanes:
        _say(axes, "no rival was measured")
        return
    ratios = [beside["ratio"] for lane in lanes for beside in lane.beside]
    _logarithmic(axes.xaxis, LogAxis(min(0.5, *ratios), max(2.0, *ratios)).rounded())
    for lane in lanes:
        _bar(axes, lane)
    axes.axvline(1, color=SOFT, linewidth=0.6)
    axes.set_yticks([lane.top for lane in lanes], [lane.label for lane in lanes], fontsize=6, color=INK)
    axes.set_ylim(lanes[-1].top + 0.8, -0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title("time over xpconv's: above 1 xpconv is faster")
    axes.set_xlabel("geometric mean, and each layer")


def _bar(axes: Any, lane: Lane) -> None:
    """One layer is judged by its spread, several by their mean."""
    mean, beside = lane.mean.ratio, lane.beside
    judged = verdict(beside[0]["ratio_10_90"] if len(beside) == 1 else (mean, mean))
    axes.barh(lane.top, mean - 1, left=1, height=0.72, color=VERDICTS[judged])
    ratios = [rival["ratio"] for rival in beside]
    axes.plot(ratios, [lane.top] * len(ratios), "|", color=INK, markersize=4, markeredgewidth=0.5)
    axes.annotate(ratio(mean), (1, lane.top), (3, 0), xycoords=("axes fraction", "data"),
                  textcoords="offset points", va="center", fontsize=6)  # fmt: skip


def _logarithmic(axis: Any, scale: LogAxis) -> None:
    """Our own ticks: powers of ten, and on short axes their doubles and fives."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (scale.low, scale.high)})
    axis.set_ticks(scale.ticks(), [f"{tick:,g}" for tick in scale.ticks()])
    axis.set_minor_locator(_nothing())


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _say(axes: Any, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=SOFT)
