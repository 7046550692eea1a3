"""Is a filter of one signal or plane ever slower than a route that NumPy or SciPy has?

Times every route on every geometry in turn, in one process, and prints the ratios to the fastest of the others:

    python -m benchmarks.filters [signals] [images] [--limit SECONDS]

With the extra `fast` it times the compiled kernels, without it NumPy alone. Routes that take four times as long as
another are not timed further. OpenCV's, in brackets, is for comparison alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage, signal

import xpconv

LENGTHS, TAPS = (100, 1_000, 10_000, 100_000, 1_000_000), (3, 5, 11, 31, 101, 1001)
SIDES, WINDOWS = (64, 128, 512, 2048), (3, 5, 7, 11, 31, 101)
SECONDS = 0.2  # of a geometry
AT_LEAST = 150e-6  # of what is timed at once
HOPELESS = 4  # times the fastest route's time

Routes = dict[str, Callable[[], object]]


def main() -> None:
    """Print one line per geometry, and how many are slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["signals", "images"])
    parser.add_argument("--limit", type=float, default=600, help="seconds after which no geometry is begun")
    asked = parser.parse_args()
    end = time.perf_counter() + asked.limit
    slower = 0
    for kind in asked.kinds:
        for x, w in geometries(kind):
            if time.perf_counter() > end:
                break
            slower += _printed(x, w, _of_signal(x, w) if kind == "signals" else _of_image(x, w)) > 1.05
    print(f"{slower} slower than another route by more than a twentieth")


def geometries(kind: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Signals or images, and their kernels."""
    rng = np.random.default_rng(0)
    sizes, windows, axes = (LENGTHS, TAPS, 1) if kind == "signals" else (SIDES, WINDOWS, 2)
    for n in sizes:
        for m in windows:
            for dtype in ("float32", "float64"):
                if m <= n:
                    yield rng.standard_normal((n,) * axes).astype(dtype), rng.standard_normal((m,) * axes).astype(dtype)


def _of_signal(x: np.ndarray, w: np.ndarray) -> Routes:
    return {
        "xpconv": lambda: xpconv.conv1d(x, w, padding="same"),
        "np.convolve": lambda: np.convolve(x, w, "same"),
        "signal.convolve": lambda: signal.convolve(x, w, "same", "direct"),
        "fftconvolve": lambda: signal.fftconvolve(x, w, "same"),
        "oaconvolve": lambda: signal.oaconvolve(x, w, "same"),
        "lfilter": lambda: signal.lfilter(w, np.ones(1, x.dtype), x),
        "convolve1d": lambda: ndimage.convolve1d(x, w, mode="constant"),
    }


def _of_image(x: np.ndarray, w: np.ndarray) -> Routes:
    routes: Routes = {
        "xpconv": lambda: xpconv.conv2d(x, w, padding="same"),
        "ndimage.convolve": lambda: ndimage.convolve(x, w, mode="constant"),
        "convolve2d": lambda: signal.convolve2d(x, w, "same"),
        "fftconvolve": lambda: signal.fftconvolve(x, w, "same"),
        "oaconvolve": lambda: signal.oaconvolve(x, w, "same"),
    }
    try:
        import cv2
    except ImportError:
        return routes
    turned = np.ascontiguousarray(w[::-1, ::-1])
    return routes | {"(OpenCV)": lambda: cv2.filter2D(x, -1, turned, borderType=cv2.BORDER_CONSTANT)}


def _printed(x: np.ndarray, w: np.ndarray, routes: Routes) -> float:
    """The ratio to the fastest other route, printed before all medians in microseconds."""
    times = measured(routes)
    ratios = {
        name: statistics.median(own / other for own, other in zip(times["xpconv"], times[name], strict=True))
        for name in times
        if name != "xpconv" and not name.startswith("(")
    }
    worst = max(ratios.values(), default=0)
    medians = "  ".join(f"{name} {1e6 * statistics.median(some):.1f}" for name, some in times.items())
    geometry = f"{'x'.join(map(str, x.shape))} by {'x'.join(map(str, w.shape))} {x.dtype}"
    print(f"{worst:5.2f}  {geometry}:  {medians}", flush=True)
    return worst


def measured(routes: Routes) -> dict[str, list[float]]:
    """Seconds of each route that is not hopeless, round by round, each round beginning with another."""
    first = {name: min(_seconds(route, 1) for _ in range(3)) for name, route in routes.items()}
    fastest = min(seconds for name, seconds in first.items() if not name.startswith("("))
    names = [name for name, seconds in first.items() if name == "xpconv" or seconds < HOPELESS * fastest]
    calls = {name: max(1, int(AT_LEAST / first[name])) for name in names}
    rounds = max(5, min(41, int(SECONDS / sum(first[name] * calls[name] for name in names))))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for k in range(len(names)):
            name = names[(turn + k) % len(names)]
            times[name].append(_seconds(routes[name], calls[name]))
    return times


def _seconds(route: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        route()
    return (time.perf_counter() - begin) / calls


if __name__ == "__main__":
    main()
