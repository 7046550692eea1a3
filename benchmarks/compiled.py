"""What the compiled kernels bring: the NumPy engine with them, without them, and torch.

Every candidate is timed in every round, after a rest in which the others' threads come to sleep:

    python -m benchmarks.compiled > benchmarks/results/compiled.txt
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import xpconv
from xpconv.cpu.compiled import threads
from xpconv.engines import compiled as calls

_KERNELS = calls.kernels
ROUNDS = 9
BATCH_SECONDS = 0.015  # of calls that wake a candidate's threads, and as much of calls that count
REST = 0.02

# name: channels, filters, size, window, stride, padding; float32, channels last
LAYERS = {
    "3x3 64@56": (64, 64, 56, 3, 1, 1),
    "3x3 128@28": (128, 128, 28, 3, 1, 1),
    "3x3 256@14": (256, 256, 14, 3, 1, 1),
    "3x3 512@7": (512, 512, 7, 3, 1, 1),
    "3x3s2 128@56": (128, 128, 56, 3, 2, 1),
    "7x7s2 3->64@224": (3, 64, 224, 7, 2, 3),
    "1x1 64->256@56": (64, 256, 56, 1, 1, 0),
    "5x5 1->6@28": (1, 6, 28, 5, 1, 2),
    "5x5 6->16@14": (6, 16, 14, 5, 1, 0),
}


def main() -> None:
    """Print one line per layer and batch."""
    print(
        f"{_processor()}, {threads.thread_count()} threads, NumPy {np.__version__}, torch {torch.__version__}, "
        f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'not set')}"
    )
    print(f"medians of {ROUNDS} interleaved rounds in ms; torch in its better memory format; ratios over ours\n")
    for name, layer in LAYERS.items():
        for batch in (1, 8):
            print(_line(f"{name}, N={batch}", *layer, batch), flush=True)


def _line(name: str, channels: int, filters: int, size: int, window: int, stride: int, padding: int, batch: int) -> str:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, channels), dtype=np.float32)
    w = rng.standard_normal((window, window, channels, filters), dtype=np.float32)
    options = {"stride": stride, "padding": padding}
    xt, wt = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(w).permute(3, 2, 0, 1)
    formats = [(a.contiguous(memory_format=f), b.contiguous(memory_format=f)) for a, b, f in (
        (xt, wt, torch.channels_last), (xt, wt, torch.contiguous_format)
    )]  # fmt: skip
    candidates = {
        "ours": lambda: xpconv.corr2d(x, w, **options),
        "numpy alone": lambda: _without(lambda: xpconv.corr2d(x, w, **options)),
        "torch, last": lambda: F.conv2d(*formats[0], **options),
        "torch, first": lambda: F.conv2d(*formats[1], **options),
    }
    with torch.inference_mode():
        expected = candidates["torch, first"]().permute(0, 2, 3, 1).numpy()
        for side in ("ours", "numpy alone"):
            np.testing.assert_allclose(candidates[side](), expected, atol=3e-5 * np.abs(expected).max())
        times = _times(candidates)
    peer = min(times["torch, last"], times["torch, first"])
    cells = "  ".join(f"{side} {1e3 * seconds:8.3f}" for side, seconds in times.items())
    method = xpconv.explain(xpconv.corr2d, x, w, **options).method
    ratios = f"torch/ours {peer / times['ours']:.2f}  alone/ours {times['numpy alone'] / times['ours']:.2f}"
    return f"{name:22} {method:7} {cells}  {ratios}"


def _without(call):
    """The call's result without the compiled kernels."""
    calls.kernels = lambda: None  # unittest.mock would take longer than a small call
    try:
        return call()
    finally:
        calls.kernels = _KERNELS


def _times(candidates) -> dict[str, float]:
    """Median seconds of a call of each candidate."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, call in candidates.items():
            time.sleep(REST)
            _seconds(call)
            samples[name].append(_seconds(call))
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _seconds(call) -> float:
    """Seconds of one of the calls that fill a batch."""
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < BATCH_SECONDS:
        call()
        calls += 1
    return spent / calls


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
