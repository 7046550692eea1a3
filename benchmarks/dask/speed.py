"""Filters of one plane: the plain call, Dask on threads and on processes, dask-image and SciPy, timed in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, futures_of
from scipy import ndimage

import xpconv
from xpconv.bench.statistics import medians, short, spread
from xpconv.bench.timing import REST, repeated
from xpconv.bench.timing import measure as take_turns

from .cluster import kept, workers

PLAIN = "xpconv on NumPy"
ROWS = ((8192, 3), (8192, 9), (4096, 9), (2048, 3))  # elements along a side, and of the window
CHUNKS = (1024, 2048)
_PRODUCTS = 2e9  # of SciPy's loop in a second of one core, about
_LONGEST = 1.0  # seconds: a candidate that would take more is left out
_TOLERANCE = 1e-4


def measure(
    record: dict[str, Any], rows: tuple[tuple[int, int], ...] = ROWS, chunks: tuple[int, ...] = CHUNKS, rounds: int = 3,
    rest: float = REST,
) -> None:  # fmt: skip
    """Put the rows on record: one for every size and window."""
    record.update(rounds=rounds, rows={})
    with workers(2) as client:
        for size, window in rows:
            made = da.random.default_rng(0).random((size, size), np.float32, chunks=size // 4)
            calls, left_out = _candidates(made, window, chunks, client)
            record["rows"][f"{window}x{window} on {size}x{size}"] = _row(calls, rounds, rest) | {"left_out": left_out}


def _candidates(
    made: Any, window: int, chunks: tuple[int, ...], client: Client
) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Each with other weights in every call, so that no chunk is remembered."""
    image = made.compute(scheduler="threads")
    number = count()
    taps = np.random.default_rng(1).random((window, window), np.float32)
    fresh = lambda: taps + np.float32(1e-6 * next(number))  # noqa: E731
    ours = partial(xpconv.conv2d, padding="same", padding_mode="symmetric")
    threads = lambda y: y.persist(scheduler="threads")  # noqa: E731
    calls = {PLAIN: lambda: ours(image, fresh())}
    for side in (n for n in chunks if n <= image.shape[0]):
        lazy, far = da.from_array(image, chunks=side), kept(client, made.rechunk(side))
        calls[f"xpconv, threads, chunks {side}"] = lambda x=lazy: threads(ours(x, fresh()))
        calls[f"xpconv, processes, chunks {side}"] = lambda x=far: kept(client, ours(x, fresh()))
    slow = {"scipy.ndimage": lambda: ndimage.convolve(image, fresh(), mode="reflect")}
    if convolve := dask_image():
        side = min(chunks[-1], image.shape[0] // 2)
        lazy, far = da.from_array(image, chunks=side), kept(client, made.rechunk(side))
        slow[f"dask-image, threads, chunks {side}"] = lambda: threads(convolve(lazy, fresh()))
        slow[f"dask-image, processes, chunks {side}"] = lambda: kept(client, convolve(far, fresh()))
    left_out = [] if convolve else ["dask-image is not installed: pip install dask-image"]
    seconds = image.size * window**2 / _PRODUCTS
    for name, call in slow.items():
        if (takes := seconds / (1 if name == "scipy.ndimage" else 2)) <= _LONGEST:
            calls[name] = call
        else:
            left_out.append(f"{name} (about {takes:.0f} s)")
    return calls, left_out


def dask_image() -> Callable[..., Any] | None:
    """Its convolution, where it is installed."""
    try:
        from dask_image.ndfilters import convolve
    except ImportError:
        return None
    return convolve


def _whole(result: Any) -> np.ndarray:
    """Of chunks in this process or in others."""
    if isinstance(result, np.ndarray):
        return result
    return result.compute() if futures_of(result) else result.compute(scheduler="threads")


def _row(calls: dict[str, Callable[[], Any]], rounds: int, rest: float) -> dict[str, Any]:
    """Errors against the plain call, then seconds."""
    expected = calls[PLAIN]()
    errors = {name: float(abs(_whole(call()) - expected).max() / expected.max()) for name, call in calls.items()}
    wrong = {name: short(error, 2) for name, error in errors.items() if error > _TOLERANCE}
    samples: list[dict[str, float]] = []
    right = {name: repeated(call) for name, call in calls.items() if name not in wrong}
    take_turns(right, rounds, samples, rest=rest)
    middle = medians(samples)
    return {
        "ms": {name: short(1e3 * seconds) for name, seconds in middle.items()},
        "ms_10_90": {name: [short(1e3 * n) for n in spread([r[name] for r in samples])] for name in middle},
        "times_plain": {
            name: short(medians([{"": r[name] / r[PLAIN]} for r in samples])[""]) for name in middle if name != PLAIN
        },
        "wrong": wrong,
    }
