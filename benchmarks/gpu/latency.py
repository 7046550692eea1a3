"""What the first call costs, cold and with kernels on disk, and what a repeated small call costs the host."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.common import Record, attempt, synchronize
from benchmarks.gpu.peers import torch_of

_REPEATS, _BETWEEN_WAITS = 2000, 100  # a stream takes about a thousand launches before the host must wait
_CHILD_SECONDS = 60.0


def main(record: Record, cupy: Any) -> None:
    """The first use in two processes of their own, then the overhead here."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "from_disk"):
            record.put(**{name: attempt(lambda name=name: _first_use(record, Path(folder), name))})
    record.put(host_overhead_us=_overheads(record, cupy))


def _first_use(record: Record, folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    seconds = min(_CHILD_SECONDS, record.left())
    words = [sys.executable, "-m", "benchmarks.gpu", "first", "--out", str(path), "--seconds", str(seconds)]
    done = subprocess.run(
        [*words, *(["--emulated"] if record.emulated else [])],
        capture_output=True, text=True, timeout=max(seconds, 1), check=False,
        env={**os.environ, "CUPY_CACHE_DIR": str(folder / "cache")},
    )  # fmt: skip
    if not path.exists():
        raise RuntimeError(f"ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(path.read_text(encoding="utf-8"))


def _small(cupy: Any, dtype: str = "float32") -> dict[str, Callable[[], Any]]:
    import xpconv

    x, w = cupy.ones((1, 8, 8, 16), dtype=dtype), cupy.ones((3, 3, 16, 16), dtype=dtype)
    gy, depthwise = cupy.ones((1, 8, 8, 16), dtype=dtype), cupy.ones((3, 3, 1, 16), dtype=dtype)
    return {
        "corr2d": lambda: xpconv.corr2d(x, w, padding=1),
        "corr2d, depthwise": lambda: xpconv.corr2d(x, depthwise, padding=1, groups=16),
        "corr2d_grad_input": lambda: xpconv.corr2d_grad_input(gy, w, size=8, padding=1),
        "corr2d_grad_weight": lambda: xpconv.corr2d_grad_weight(x, gy, window=3, padding=1),
        "max_pool2d": lambda: xpconv.max_pool2d(x, 2),
    }


def first(record: Record, cupy: Any) -> None:
    """In a process of its own: seconds of each operation's first call, its result waited for."""
    kinds = {f"{name}, float32": call for name, call in _small(cupy).items()}
    if record.emulated:
        kinds = {name: kinds[name] for name in list(kinds)[:1]}
    else:
        kinds["corr2d, float16"] = _small(cupy, "float16")["corr2d"]
    cupy.ones(3).sum().get()  # the context, and CuPy's own kernels
    record.put(seconds={})
    for name, call in kinds.items():
        record.data["seconds"][name] = attempt(lambda call=call: record.figure(_seconds(cupy, call)))
        record.save()


def _seconds(cupy: Any, call: Callable[[], Any]) -> float:
    synchronize(cupy)
    begin = time.perf_counter()
    call()
    synchronize(cupy)
    return time.perf_counter() - begin


def _overheads(record: Record, cupy: Any) -> dict[str, Any]:
    calls = {f"xpconv.{name}": call for name, call in _small(cupy).items()}
    torch = torch_of(record)
    if not isinstance(torch, dict):
        x, w = (torch.of(cupy.asarray(np.ones(shape, np.float32))) for shape in ((1, 16, 8, 8), (16, 16, 3, 3)))
        conv2d = torch.module.nn.functional.conv2d
        calls["torch conv2d, for comparison"] = lambda: conv2d(x, w, padding=1)
    if record.emulated:
        calls = dict(list(calls.items())[:1])
    return {name: attempt(lambda call=call: _overhead(record, cupy, call)) for name, call in calls.items()}


def _overhead(record: Record, cupy: Any, call: Callable[[], Any]) -> dict[str, Any]:
    samples = []
    for repeat in range(3 if record.emulated else _REPEATS):
        if repeat % _BETWEEN_WAITS == 0:
            synchronize(cupy)
            call()
        begin = time.perf_counter()
        call()
        samples.append(1e6 * (time.perf_counter() - begin))
    synchronize(cupy)
    low, middle, high = np.percentile(samples, (10, 50, 90))
    assert abs(middle - statistics.median(samples)) < 1e-6
    return {key: record.figure(float(value)) for key, value in (("median", middle), ("10%", low), ("90%", high))}
