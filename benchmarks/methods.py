"""Does the NumPy engine's "auto" take the fastest of its methods?

Times every method on every geometry, interleaved, and prints the medians beside what the plan expected:

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.methods > benchmarks/results/methods.txt
"""

from __future__ import annotations

import os
import platform
import statistics
import time

import numpy as np

import xpconv
from xpconv.cpu.plan import expected_seconds
from xpconv.engines.numpy import METHODS

ROUNDS = 5
LONGEST = 5.0  # seconds: a method expected to take longer is not run

# name: input shape, weight shape, options; float32, channels last
GEOMETRIES = {
    "digits 3x3 1->32": ((128, 8, 8, 1), (3, 3, 1, 32), {"padding": 1}),
    "digits 3x3 32->64": ((128, 4, 4, 32), (3, 3, 32, 64), {"padding": 1}),
    "lenet 5x5 1->6": ((8, 28, 28, 1), (5, 5, 1, 6), {"padding": 2}),
    "stem 7x7s2 3->64": ((1, 224, 224, 3), (7, 7, 3, 64), {"padding": 3, "stride": 2}),
    "1x1 64->256": ((1, 56, 56, 64), (1, 1, 64, 256), {}),
    "3x3 64->64": ((1, 56, 56, 64), (3, 3, 64, 64), {"padding": 1}),
    "3x3 256->256": ((1, 14, 14, 256), (3, 3, 256, 256), {"padding": 1}),
    "15x15 16->16": ((1, 64, 64, 16), (15, 15, 16, 16), {"padding": 7}),
    "depthwise 3x3 144": ((1, 56, 56, 144), (3, 3, 1, 144), {"padding": 1, "groups": 144}),
    "depthwise 7x7 96": ((1, 56, 56, 96), (7, 7, 1, 96), {"padding": 3, "groups": 96}),
    "grouped 3x3 32x8": ((1, 14, 14, 256), (3, 3, 8, 256), {"padding": 1, "groups": 32}),
    "volume 3x3x3 8->8": ((1, 32, 32, 32, 8), (3, 3, 3, 8, 8), {"padding": 1}),
    **{f"image 512 {m}x{m}": ((512, 512), (m, m), {"padding": "same"}) for m in (3, 5, 7, 11, 15, 31, 63)},
    "image 64 7x7": ((64, 64), (7, 7), {"padding": "same"}),
    "image 64 31x31": ((64, 64), (31, 31), {"padding": "same"}),
    **{f"signal 100000 x {m}": ((100_000,), (m,), {}) for m in (5, 31, 101, 1001)},
    "signal 1000 x 5": ((1000,), (5,), {}),
    "signal 1000 x 101": ((1000,), (101,), {}),
}


def main() -> None:
    """Print one line per geometry."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__}, float32, "
        f"OPENBLAS_NUM_THREADS={os.environ.get('OPENBLAS_NUM_THREADS', 'not set')}"
    )
    print(f"medians of {ROUNDS} interleaved runs in ms; in brackets what the plan expected; * is what auto takes\n")
    ratios = []
    for name, (x_shape, w_shape, options) in GEOMETRIES.items():
        times, expected, taken = measured(x_shape, w_shape, options)
        best = min(times.values())
        ratios.append(times[taken] / best)
        cells = "  ".join(
            f"{method}{'*' if method == taken else ' '} {1e3 * seconds:9.2f} ({1e3 * expected[method]:9.2f})"
            for method, seconds in times.items()
        )
        print(f"{name:20} {cells}   auto / best {ratios[-1]:.2f}", flush=True)
    print(f"\nauto / best: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}")


def measured(x_shape, w_shape, options):
    """Median seconds of each method, the seconds that the plan expected, and the method it takes."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in (x_shape, w_shape))
    function = getattr(xpconv, f"conv{len(x_shape)}d") if len(x_shape) < 3 else xpconv.conv
    expected = expected_seconds(function.request(x, w, **options).spec)
    methods = [m for m in METHODS if m != "auto" and expected[m] < LONGEST]
    samples: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(ROUNDS + 1):
        for method in methods:
            start = time.perf_counter()
            function(x, w, method=method, **options)
            samples[method].append(time.perf_counter() - start)
    times = {method: statistics.median(taken[1:]) for method, taken in samples.items()}
    return times, expected, xpconv.explain(function, x, w, **options).method


if __name__ == "__main__":
    main()
