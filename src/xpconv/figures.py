"""The demonstration's pictures, drawn by matplotlib without a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xpconv.files import written_whole
from xpconv.nn import History

INK, PALE, GOOD, BAD = "#1f2937", "#9ca3af", "#2166ac", "#b2182b"
SIGNED = "RdBu_r"  # blue below zero, white zero, red above; its ends are GOOD and BAD
DPI = 150
MAPS_SHOWN = 32


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` as PNG, whole or not at all, and return `path`."""
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=DPI)
    return path


def side_by_side(panels: dict[str, np.ndarray]) -> Figure:
    """Draw pictures of one size in rows of three, each under its name."""
    rows = -(-len(panels) // 3)
    height, width = next(iter(panels.values())).shape[:2]
    figure = _figure(13, rows * (13 / 3 * height / width + 0.35) + 0.1)
    for axes, (name, picture) in zip(figure.subplots(rows, 3).flat, panels.items(), strict=False):
        axes.imshow(picture)
        axes.set_title(name, color=INK, fontsize=13)
        axes.axis("off")
    return figure


def training_curves(history: History) -> Figure:
    """Draw the loss and the held-out accuracy after each epoch."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(history.loss) + 1)
    left.semilogy(epochs, history.loss, color=BAD, label="training, shifted digits")
    left.semilogy(epochs, history.validation_loss, color=GOOD, label="held out")
    left.set_title("loss", color=INK)
    left.legend(frameon=False, labelcolor=INK)
    right.plot(epochs, 100 * np.asarray(history.validation_accuracy), color=GOOD)
    right.set_title("held-out digits read right, %", color=INK)
    for axes in (left, right):
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=PALE, alpha=0.3)
        axes.tick_params(colors=INK)
    return figure


def learned_kernels(weights: list[np.ndarray]) -> Figure:
    """Draw the kernels of two convolutions, as many as can be told apart: weights (kh, kw, channels, filters)."""
    first, second = weights
    shown = second[:, :, :16, :32]
    channels, filters = shown.shape[2:]
    boards = {
        f"first convolution: its {first.shape[3]} kernels": _mosaic(_tiles(first), columns=16),
        f"second convolution: {filters} of its {second.shape[3]} filters side by side, "
        f"each a column of {channels} of its {second.shape[2]} kernels": _mosaic(_tiles(shown), columns=filters),
    }
    heights = [board.shape[0] / board.shape[1] for board in boards.values()]
    figure = _figure(11, 9.4 * sum(heights) + 1.1)
    for axes, (title, board) in zip(figure.subplots(2, 1, height_ratios=heights), boards.items(), strict=True):
        image = _draw_signed(axes, board)
        axes.set_title(title, color=INK)
        figure.colorbar(image, ax=axes, label="weight", pad=0.02, ticks=MaxNLocator(5))
    return figure


def feature_maps(digit: np.ndarray, layers: list[tuple[str, np.ndarray]], probabilities: np.ndarray) -> Figure:
    """Draw one digit, each layer's output for it, and what it is read as."""
    boards = [
        (f"{name}: {_counted(output)}", _board(output))
        for name, output in layers[:-1]
        if name not in ("Flatten", "Dropout")  # these change no value
    ]
    heights = [max(board.shape[0] / board.shape[1], 0.03) for _, board in boards]
    above, below = 2.8, 10.8 * sum(heights) + 0.3 * len(boards) + 0.4
    figure = _figure(11, above + below)
    halves: Any = figure.subfigures(2, 1, height_ratios=[above, below])
    _draw_reading(halves[0], digit, probabilities)
    halves[1].suptitle("what each layer makes of it: red above zero, blue below", color=INK)
    for axes, (title, board) in zip(halves[1].subplots(len(boards), 1, height_ratios=heights), boards, strict=True):
        _draw_signed(axes, board)
        axes.set_title(title, color=INK, fontsize=10, loc="left")
    return figure


def hardest_digits(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, count: int = 18) -> Figure:
    """Draw the digits that were read wrong, then those that were nearly."""
    read = probabilities.argmax(axis=-1)
    wrong = read != labels
    certainty = probabilities.max(axis=-1)
    hardest = np.lexsort((np.where(wrong, -certainty, certainty), ~wrong))[:count]
    figure = _figure(11, 7.4)
    which = f"{wrong.sum()} read wrong, then the least certain" if wrong.any() else "none read wrong, the least certain"
    figure.suptitle(f"the hardest of {len(labels)} held-out digits: {which}", color=INK)
    for axes, n in zip(figure.subplots(-(-count // 6), 6).flat, hardest, strict=False):
        _draw_digit(axes, images[n])
        verdict = f"{labels[n]} read as {read[n]}" if wrong[n] else f"{labels[n]}, read right"
        axes.set_title(f"{verdict}\n{certainty[n]:.0%} certain", color=BAD if wrong[n] else INK, fontsize=11)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def _draw_reading(figure: Any, digit: np.ndarray, probabilities: np.ndarray) -> None:
    """The digit, and beside it how probable each reading is."""
    left, right = figure.subplots(1, 2, width_ratios=[1, 3])
    _draw_digit(left, digit)
    left.set_title(f"a digit of {digit.shape[0]} x {digit.shape[1]} pixels", color=INK)
    best = int(probabilities.argmax())
    right.bar(range(10), 100 * probabilities, color=[GOOD if n == best else PALE for n in range(10)])
    right.set_title(f"read as {best}, {probabilities[best]:.1%} certain", color=INK)
    right.set_ylabel("probability, %", color=INK)
    right.set_xticks(range(10))
    right.set_ylim(0, 100)
    right.spines[["top", "right"]].set_visible(False)
    right.tick_params(colors=INK)


def _draw_digit(axes: Any, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(PALE)


def _draw_signed(axes: Any, values: np.ndarray) -> Any:
    limit = float(np.nanmax(np.abs(values))) or 1.0
    axes.axis("off")
    return axes.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")


def _counted(output: np.ndarray) -> str:
    if output.ndim == 1:
        return f"{len(output)} values"
    height, width, channels = output.shape
    shown = f", {MAPS_SHOWN} shown" if channels > MAPS_SHOWN else ""
    return f"{channels} maps of {height} x {width}{shown}"


def _board(output: np.ndarray) -> np.ndarray:
    """What one layer gave for one image: maps (height, width, channels) in rows of 16, a vector as a strip."""
    if output.ndim == 1:
        return output[np.newaxis]
    return _mosaic(np.moveaxis(output, -1, 0)[:MAPS_SHOWN], columns=16)


def _tiles(weight: np.ndarray) -> np.ndarray:
    """Weights (kh, kw, channels, filters) as tiles (channels * filters, kh, kw)."""
    return weight.transpose(2, 3, 0, 1).reshape(-1, *weight.shape[:2])


def _mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (count, height, width) in rows of `columns`, a pixel of nothing (NaN) around each."""
    count, height, width = tiles.shape
    rows = -(-count // columns)
    framed = np.full((rows * columns, height + 1, width + 1), np.nan)
    framed[:count, :height, :width] = tiles
    board = framed.reshape(rows, columns, height + 1, width + 1).transpose(0, 2, 1, 3)
    return board.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
