"""What takes a process of its own: memory beyond inputs and result, and the time until the first result.

python -m benchmarks.cpu.process CELL SIDE    # the bytes of one side, for `memory`
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..memory import peak, reset_peak

CHECKOUT = Path(__file__).resolve().parents[2]

MEMORY = ("conv | 3x3 64@56 | N=8 | float32", "conv | 1x1 64->256@56 | N=8 | float32",
          "conv | VGG 3x3 64@224 | N=1 | float32")  # fmt: skip
SIDES = ("xpconv", "torch", "torch channels_last", "onnxruntime")
_STARTS = 3
_START = {
    "xpconv": """
import time; begin = time.perf_counter()
import numpy as np, xpconv
xpconv.corr2d(np.ones((1, 56, 56, 64), np.float32), np.ones((3, 3, 64, 64), np.float32), padding=1)
print(time.perf_counter() - begin)""",
    "torch": """
import time; begin = time.perf_counter()
import torch
torch.nn.functional.conv2d(torch.ones(1, 64, 56, 56), torch.ones(64, 64, 3, 3), padding=1)
print(time.perf_counter() - begin)""",
}


def measure(record: dict[str, Any], time_left: Callable[[], float]) -> None:
    """Record both, as far as the time goes."""
    memory = record["extra_memory_bytes"] = {}
    starts = record["first_result_seconds"] = {}
    for name, code in _START.items():
        if time_left() > 0:
            starts[name] = _told(lambda code=code: [float(_python("-c", code)) for _ in range(_STARTS)])
    if time_left() > 0:
        for name, how in {"nothing on disk": "background", "nothing on disk, by kernels": "wait"}.items():
            with tempfile.TemporaryDirectory() as empty:
                variables = {"XPCONV_CACHE_DIR": empty, "XPCONV_COMPILE": how}
                starts[f"xpconv, {name}"] = _told(
                    lambda variables=variables: [float(_python("-c", _START["xpconv"], **variables))]
                )
    for key in MEMORY:
        memory[key] = {}
        for side in SIDES:
            if time_left() > 0:
                memory[key][side] = _told(
                    lambda key=key, side=side: [int(_python("-m", "benchmarks.cpu.process", key, side))]
                )


def _told(function: Callable[[], list[float]]) -> float | str:
    """The median, or why there is none."""
    try:
        return round(statistics.median(function()), 3)
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or [f"ended with {error.returncode}"])[-1][:200]
    except (subprocess.TimeoutExpired, ValueError) as error:
        return f"not known ({type(error).__name__})"


def _python(*words: str, **variables: str) -> str:
    path = os.pathsep.join([str(CHECKOUT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, check=True, cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": path, **variables},
    )  # fmt: skip
    return done.stdout


# --- In the process of its own ----------------------------------------------------------------------------------------


def extra_memory(key: str, name: str) -> int:
    """The most bytes that a call has beside its inputs and its result, after one of a small layer."""
    from .cells import cells

    (cell,) = cells(("conv",), key)
    layer = cell.layer
    small = replace(cell, batch=1, layer=replace(layer, size=(2 * layer.window * layer.dilation,) * layer.axes))
    _side(small, name).call()
    side = _side(cell, name)
    before = reset_peak()
    result = side.call()
    return max(0, peak() - before - side.result(result).nbytes)


def _side(cell: Any, name: str) -> Any:
    from xpconv.bench.data import data_of

    from .sides import sides_of

    found, missing = sides_of(replace(cell, peers=(name.split()[0],) if name != "xpconv" else ()), data_of(cell.case))
    for side in found:
        if side.name == name:
            return side
    raise SystemExit(missing.get(name.split()[0], f"there is no {name}"))


if __name__ == "__main__":
    print(extra_memory(*sys.argv[1:]))
