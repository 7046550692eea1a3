"""What the parts share: a record that is on disk after every step, a clock, and CuPy or its emulation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_MEASURED = "emulated: not a measurement"


class Record:
    """A part's result, written to its file at every change, and how long the part may still take."""

    def __init__(self, path: Path, *, emulated: bool, seconds: float, known: dict[str, Any] | None = None) -> None:
        self.path, self.emulated = path, emulated
        self.known = known or {}  # what an earlier run has already recorded of this part
        self.data: dict[str, Any] = {}
        self._end = time.monotonic() + seconds

    def put(self, **values: Any) -> None:
        """Set entries, and write them."""
        self.data.update(values)
        self.save()

    def save(self) -> None:
        """Write all entries; a reader never sees half of them."""
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(plain(self.data), indent=1), encoding="utf-8")
        unfinished.replace(self.path)

    def left(self) -> float:
        """Seconds that remain."""
        return self._end - time.monotonic()

    def figure(self, value: float | None, digits: int = 4) -> Any:
        """A measured number; in an emulation none, whatever the clock said."""
        if self.emulated:
            return NOT_MEASURED
        return None if value is None else rounded(value, digits)


def rounded(value: float, digits: int = 4) -> float:
    """A number with so many digits that count."""
    return float(f"{value:.{digits}g}")


def plain(value: Any) -> Any:
    """The value with nothing in it that JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else str(value)


def reason(error: BaseException) -> str:
    """One line that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def attempt(function: Callable[[], Any]) -> Any:
    """What the function returns, or in one line why there is nothing."""
    try:
        return function()
    except Exception as error:
        return {"missing": reason(error)}


def command(*words: str, seconds: float = 20) -> str:
    """What a command prints."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout.strip()


@contextmanager
def cupy_of(record: Record) -> Iterator[Any]:
    """CuPy with a device that answers, or its emulation."""
    if not record.emulated:
        cupy = import_module("cupy")
        cupy.cuda.runtime.getDeviceCount()  # raises the driver's reason where there is none
        cupy.zeros(1)
        yield cupy
        return
    from cuda_emulator.emulated_cupy import emulated_cupy

    with emulated_cupy(over_real=True) as cupy, _emulated_driver():
        yield cupy


@contextmanager
def _emulated_driver() -> Iterator[None]:
    """Tensor maps encoded as the emulator reads them."""
    from cuda_emulator.tensor_map_driver import TensorMapDriver

    tensor_maps = import_module("xpconv.cuda.tensor_maps")
    before, tensor_maps.driver = tensor_maps.driver, TensorMapDriver
    try:
        yield
    finally:
        tensor_maps.driver = before


def synchronize(cupy: Any) -> None:
    """Wait for all work of the current stream."""
    cupy.cuda.get_current_stream().synchronize()


def run_part(body: Callable[..., None], record: Record, *, needs_cupy: bool = True) -> None:
    """Run a part; whatever happens to it is on record."""
    record.put(state="running")
    try:
        with cupy_of(record) if needs_cupy else nullcontext() as cupy:
            body(record, cupy) if needs_cupy else body(record)
        if record.data["state"] == "running":
            record.put(state="complete")
    except BaseException as error:
        record.put(state="failed", reason=reason(error), traceback=traceback.format_exc()[-3000:])
        print(f"failed: {reason(error)}", file=sys.stderr)
