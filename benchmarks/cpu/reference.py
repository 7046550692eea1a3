"""The right results: in float64, tap by tap, by NumPy alone; and how far a result is from them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from .cells import Cell

Data = dict[str, np.ndarray]
# the largest error that counts as right, relative to the largest result; Winograd's F(4, 3) makes 2e-5
TOLERANCES = {"float32": 1e-4, "float64": 1e-11}


def data_of(cell: Cell) -> Data:
    """x, w and gy (for gradients), channels last, or plain."""
    rng, layer = np.random.default_rng(0), cell.layer
    batch = (cell.batch,) if cell.batch else ()
    maps = (lambda channels: (channels,)) if cell.batch else (lambda _: ())
    shapes = {"x": (*batch, *layer.size, *maps(layer.channels))}
    shapes["w"] = layer.w_shape if cell.batch else layer.w_shape[: layer.axes]
    if cell.operation.endswith("gradient"):
        shapes["gy"] = (*batch, *layer.out_size, *maps(layer.filters))
    return {name: rng.standard_normal(shape, dtype=np.dtype(cell.dtype)) for name, shape in shapes.items()}


def errors(cell: Cell, data: Data, results: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest error of each result, relative to the largest value; infinite for a wrong shape and for NaN."""
    worst, largest = dict.fromkeys(results, 0.0), 0.0
    for piece, expected in _expected(cell, data):
        largest = max(largest, float(np.abs(expected).max()))
        for name, result in results.items():
            part = result[piece]
            error = float(np.abs(part - expected).max()) if part.shape == expected.shape else np.inf
            worst[name] = max(worst[name], np.inf if np.isnan(error) else error)
    return {name: error / largest for name, error in worst.items()}


def right(cell: Cell, error: float) -> bool:
    """Whether a result with this error may be timed."""
    return error <= TOLERANCES[cell.dtype]


def _expected(cell: Cell, data: Data) -> Iterator[tuple[slice, np.ndarray]]:
    """The result in pieces of one item, which keeps its float64 small; a weight's gradient at once."""
    if not cell.batch:
        yield slice(None), _plain(cell, data)
        return
    whole = cell.operation == "weight gradient"
    for i in (None,) if whole else range(cell.batch):
        piece = slice(None) if i is None else slice(i, i + 1)
        part = {name: (a if name == "w" else a[piece]).astype(np.float64) for name, a in data.items()}
        yield piece, _of_maps(cell, part)


def _plain(cell: Cell, data: Data) -> np.ndarray:
    """Large windows on one map: through SciPy's FFT in float64."""
    from scipy.signal import fftconvolve

    w = data["w"] if cell.operation == "signal" else np.flip(data["w"])
    return fftconvolve(data["x"].astype(np.float64), w.astype(np.float64), "same")


def _of_maps(cell: Cell, data: Data) -> np.ndarray:
    x, w, gy = data["x"], data["w"], data.get("gy")
    layer, padding = cell.layer, cell.layer.padding
    around = [(0, 0), *[(padding, padding)] * layer.axes, (0, 0)]
    padded = np.pad(x, around, constant_values=-np.inf if cell.operation == "max pool" else 0)
    views = _views(cell, padded)
    if cell.operation in ("average pool", "global average"):
        return sum(view for _, view in views) / layer.window**layer.axes
    if cell.operation == "max pool":
        return np.maximum.reduce([view for _, view in views])
    if cell.operation == "input gradient":
        padded[...] = 0
        for tap, view in views:
            view += gy @ w[tap].T
        return padded[(slice(None), *[slice(padding, padding + n) for n in layer.size])]
    if cell.operation == "weight gradient":
        columns = gy.reshape(-1, layer.filters)
        return np.stack([view.reshape(-1, layer.channels).T @ columns for _, view in views]).reshape(w.shape)
    return sum(_grouped(view, w[tap], layer.groups) for tap, view in views)


def _views(cell: Cell, padded: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each tap, and the elements that it meets."""
    layer = cell.layer
    for tap in product(range(layer.window), repeat=layer.axes):
        starts = [k * layer.dilation for k in tap]
        ends = [a + (n - 1) * layer.stride + 1 for a, n in zip(starts, layer.out_size, strict=True)]
        where = [slice(a, b, layer.stride) for a, b in zip(starts, ends, strict=True)]
        yield tap, padded[(slice(None), *where)]


def _grouped(view: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
    """The channels of every group times its filters."""
    if groups == 1:
        return view @ w
    channels, filters = w.shape
    x = view.reshape(-1, groups, channels).swapaxes(0, 1)
    y = x @ w.reshape(channels, groups, filters // groups).swapaxes(0, 1)
    return y.swapaxes(0, 1).reshape(*view.shape[:-1], filters)
