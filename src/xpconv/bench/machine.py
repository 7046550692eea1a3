"""What the machine is: processor, cores, threads, versions, and the variables that change NumPy's BLAS."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "numpy", "scipy", "array-api-compat", "llvmlite", "threadpoolctl", "torch", "onnxruntime", "onnx",
    "opencv-python", "opencv-python-headless", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip
SLOWS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # NumPy's BLAS then has kernels or blocks for another processor
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_WAIT_POLICY")


def wait_for_kernels() -> None:
    """Let calls of this process wait for kernels that are not compiled yet, if nothing else was asked for."""
    os.environ.setdefault("XPCONV_COMPILE", "wait")


def machine(threads: int) -> dict[str, Any]:
    """Everything that answers."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "threads_of_xpconv": _attempt(_compiled_threads),
        "load_average": _attempt(lambda: [round(load, 2) for load in os.getloadavg()]),
        "variables": {name: os.environ.get(name, "not set") for name in (*SLOWS, *_THREADS)} | _lesser_processor(),
        "blas": _attempt(_blas),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": _attempt(_commit),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _lesser_processor() -> dict[str, str]:
    """The variable that keeps xpconv's kernels from some of the processor's instructions, where it does."""
    return {name: os.environ[name] for name in ("XPCONV_CPU",) if os.environ.get(name)}


def slowed(variables: dict[str, str]) -> str:
    """A line on the variables that slow NumPy's BLAS."""
    told = ", ".join(f"{name}={variables.get(name, 'not set')}" for name in SLOWS)
    is_set = any(variables.get(name, "not set") != "not set" for name in SLOWS)
    return told + (": NumPy's BLAS MAY BE SLOWED" if is_set else "")


def busy(machine: dict[str, Any]) -> str:
    """A line on other work that ran when the measuring began; nothing where there was little."""
    load, cores = machine.get("load_average"), machine.get("cores")
    if not isinstance(load, list) or not cores or load[0] < cores / 4:
        return ""
    return f"{load[0]} threads of other work ran on the {cores} cores when this began: TIMES AND RATIOS MAY BE WRONG"


def processor() -> str:
    """Its name, as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if not names and platform.system() == "Darwin":
        names = [str(_attempt(lambda: _command("sysctl", "-n", "machdep.cpu.brand_string")))]
    return names[0] if names else platform.processor() or platform.machine()


def threads_here() -> int:
    """As many as there are processors for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compiled_threads() -> int | str:
    try:
        from xpconv.cpu.compiled import threads
    except ImportError:
        return "none, NumPy alone"
    return threads.thread_count()


def _blas() -> list[str]:
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture", "num_threads")
    return [" ".join(str(library.get(key, "")) for key in keys).strip() for library in threadpool_info()]


def _commit() -> str | None:
    """Of the checkout that xpconv is imported from, if it is one."""
    if not (_SOURCE.parents[1] / ".git").exists():
        return None
    changed = _command("git", "-C", str(_SOURCE), "status", "--porcelain", "--untracked-files=no", "--", ".")
    return _command("git", "-C", str(_SOURCE), "rev-parse", "HEAD") + (" and changes" if changed else "")


def _command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def _attempt(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return f"not known ({type(error).__name__})"
