"""A case's arrays from a fixed seed; the right results, in float64, tap by tap, by NumPy alone; and which are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any, TypeAlias

import numpy as np

from xpconv.bench.cases import Case, is_gradient
from xpconv.layers import POOLING_GRADIENTS

Data: TypeAlias = dict[str, np.ndarray]
# The largest error that counts as right, relative to the largest result; Winograd's F(4, 3) makes 2e-5 in float32, and
# the 16-bit floats round the result itself.
TOLERANCES = {"float32": 1e-4, "float64": 1e-11, "float16": 4e-3, "bfloat16": 3e-2}
_CHECKED = 8  # items of a batch, which lie at its ends: more would take longer than the measuring
_DRAWN = np.dtype(np.float32)  # what 16-bit floats are drawn in


def data_of(case: Case) -> Data:
    """x, w as a correlation reads it, and gy (for gradients); channels last, or plain."""
    rng, dtype = np.random.default_rng(0), numpys_dtype(case.dtype)
    shapes = {"x": case.x_shape, "w": case.w_shape}
    if is_gradient(case) or case.operation in POOLING_GRADIENTS:
        shapes["gy"] = case.y_shape
    drawn = dtype if dtype in (np.float32, np.float64) else _DRAWN
    made = {name: rng.standard_normal(shape, dtype=drawn) for name, shape in shapes.items()}
    return {name: a.astype(dtype, copy=False) for name, a in made.items()}


def numpys_dtype(name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise RuntimeError("bfloat16 needs NumPy to have it: pip install ml-dtypes") from None
    return np.dtype(bfloat16)


def errors(case: Case, data: Data, results: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Largest error of each result, relative to the largest value; infinite for a wrong shape and for NaN."""
    worst, largest = dict.fromkeys(results, 0.0), 0.0
    for piece, expected in _expected(case, data):
        largest = max(largest, float(np.abs(expected).max()))
        for name, result in results.items():
            part = np.asarray(result[piece], np.float64)
            error = float(np.abs(part - expected).max()) if part.shape == expected.shape else np.inf
            worst[name] = max(worst[name], np.inf if np.isnan(error) else error)
    return {name: error / largest for name, error in worst.items()}


def right(case: Case, error: float) -> bool:
    """Whether a result with this error may be timed."""
    return error <= TOLERANCES[case.dtype]


def _expected(case: Case, data: Data) -> Iterator[tuple[slice, np.ndarray]]:
    """The result in pieces of one item, which keeps its float64 small; a weight's gradient at once."""
    if case.plain:
        yield slice(None), _plain(data)
        return
    whole = case.operation == "weight gradient"
    items = sorted({*range(min(case.batch, _CHECKED // 2)), *range(max(case.batch - _CHECKED // 2, 0), case.batch)})
    for i in (None,) if whole else items:
        piece = slice(None) if i is None else slice(i, i + 1)
        part = {name: (a if name == "w" else a[piece]).astype(np.float64) for name, a in data.items()}
        yield piece, _of_maps(case, part)


def _plain(data: Data) -> np.ndarray:
    """Large windows on one map: through SciPy's FFT in float64."""
    from scipy.signal import fftconvolve

    return fftconvolve(data["x"].astype(np.float64), np.flip(data["w"]).astype(np.float64), "same")


def _of_maps(case: Case, data: Data) -> np.ndarray:
    x, w, gy = data["x"], data["w"], data.get("gy")
    around = [(0, 0), *case.padding, (0, 0)]
    padded = np.pad(x, around, constant_values=-np.inf if case.operation.startswith("max") else 0)
    views = _views(case, padded)
    if case.operation in ("average pool", "global average"):
        return _sum(view for _, view in views) / prod(case.window)
    if case.operation == "max pool":
        return np.maximum.reduce([view for _, view in views])
    if case.operation in POOLING_GRADIENTS and gy is not None:
        return _pooling_gradient(case, padded, gy)
    if gy is None:
        return _sum(_grouped(view, w[tap], case.groups) for tap, view in views)
    if case.operation == "input gradient":
        padded[...] = 0
        for tap, view in views:
            view += gy @ w[tap].T
        return padded[_inner(case)]
    columns = gy.reshape(-1, case.filters)
    return np.stack([view.reshape(-1, case.channels).T @ columns for _, view in views]).reshape(w.shape)


def _pooling_gradient(case: Case, padded: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Each window's gradient to its first largest element, or shared by all of them."""
    gx, share = np.zeros_like(padded), gy / prod(case.window)
    if case.operation == "max pool gradient":
        largest, left = np.maximum.reduce([view for _, view in _views(case, padded)]), gy.copy()
        for (_, x), (_, view) in zip(_views(case, padded), _views(case, gx), strict=True):
            won = x == largest
            view += np.where(won, left, 0)
            left[won] = 0
        return gx[_inner(case)]
    for _, view in _views(case, gx):
        view += share
    return gx[_inner(case)]


def _inner(case: Case) -> tuple[slice, ...]:
    """Of a padded input what is not padding."""
    axes = zip(case.padding, case.size, strict=True)
    return (slice(None), *(slice(before, before + n) for (before, _), n in axes))


def _sum(terms: Iterator[np.ndarray]) -> Any:
    total = next(terms).copy()
    for term in terms:
        total += term
    return total


def _views(case: Case, padded: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each tap, and the elements that it meets."""
    for tap in product(*map(range, case.window)):
        axes = zip(tap, case.dilation, case.stride, case.out_size, strict=True)
        where = [slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, s, n in axes]
        yield tap, padded[(slice(None), *where)]


def _grouped(view: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
    """The channels of every group times its filters."""
    if groups == 1:
        return view @ w
    channels, filters = w.shape
    x = view.reshape(-1, groups, channels).swapaxes(0, 1)
    y = x @ w.reshape(channels, groups, filters // groups).swapaxes(0, 1)
    return y.swapaxes(0, 1).reshape(*view.shape[:-1], filters)
