"""What the machine is: device, driver, libraries, clocks."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from benchmarks.gpu.common import CHECKOUT, Record, attempt, command, cupy_of

_PACKAGES = (
    "numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "array-api-compat", "ml_dtypes", "torch", "triton", "pytest",
    "pytest-xdist", "hypothesis", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)  # fmt: skip
_TOOLS = ("nvidia-smi", "compute-sanitizer", "nvcc", "g++", "ncu")
_ASKED = (
    "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "clocks.mem",
    "clocks.max.mem", "power.limit", "temperature.gpu", "pstate",
)  # fmt: skip
_STATE = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "pstate")


def main(record: Record) -> None:
    """Record everything that answers."""
    record.put(
        python=platform.python_version(),
        system=platform.platform(),
        cores=os.cpu_count(),
        commit=attempt(lambda: command("git", "-C", str(CHECKOUT), "rev-parse", "HEAD")),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        tools={name: shutil.which(name) or {"missing": "not on PATH"} for name in _TOOLS},
    )
    record.put(nvidia_smi=attempt(_asked_of_the_driver))
    record.put(cupy=attempt(lambda: _of_cupy(record)))
    record.put(torch=attempt(_of_torch))
    name = record.data["cupy"].get("name") or record.data["nvidia_smi"].get("name")
    record.put(device=f"{name} (emulated)" if record.emulated else name or "no device")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device_state() -> dict[str, str]:
    """Clocks, power and temperature at this moment."""
    return _asked_of_the_driver(_STATE)


def _asked_of_the_driver(asked: tuple[str, ...] = _ASKED) -> dict[str, str]:
    answer = command("nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader")
    values = [value.strip() for value in answer.splitlines()[0].split(",")]
    return dict(zip(asked, values, strict=False))


def _of_cupy(record: Record) -> dict[str, Any]:
    with cupy_of(record) as cupy:
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        name = properties["name"]
        told: dict[str, Callable[[], Any]] = {
            "name": lambda: name.decode() if isinstance(name, bytes) else name,
            "version": lambda: cupy.__version__,
            "capability": lambda: cupy.cuda.Device().compute_capability,
            "multiprocessors": lambda: properties["multiProcessorCount"],
            "level 2 cache": lambda: properties["l2CacheSize"],
            "memory": lambda: properties["totalGlobalMem"],
            "free and total memory": lambda: list(cupy.cuda.runtime.memGetInfo()),
            "driver": lambda: cupy.cuda.runtime.driverGetVersion(),
            "runtime": lambda: cupy.cuda.runtime.runtimeGetVersion(),
            "nvrtc": lambda: list(cupy.cuda.nvrtc.getVersion()),
            "devices": lambda: cupy.cuda.runtime.getDeviceCount(),
        }
        return {key: attempt(function) for key, function in told.items()}


def _of_torch() -> dict[str, Any]:
    torch = import_module("torch")
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": attempt(torch.backends.cudnn.version),
        "device": attempt(lambda: torch.cuda.get_device_name(0)),
    }
