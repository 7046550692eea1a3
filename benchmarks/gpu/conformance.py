"""Each wrapper of inline PTX on the device, against NumPy and against the emulator's twin, on the same numbers.

Every family of kernels runs in a process of its own: an instruction that hangs or faults takes no other with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.common import Record, attempt, cupy_of, reason

_SEED = 11
_AT_A_TIME = 6
_FAMILY_SECONDS = 75.0


def main(record: Record) -> None:
    """Record a verdict for every case and trial."""
    from cuda_conformance import families

    names = ["half and bfloat to float", "mma float16"] if record.emulated else list(families())
    if not record.emulated:
        with cupy_of(record):  # raises where no device answers
            pass
    record.put(cases={}, families={})
    with ThreadPoolExecutor(min(_AT_A_TIME, os.cpu_count() or 1)) as pool:
        for name, result in zip(names, pool.map(lambda name: _in_its_own_process(record, name), names), strict=True):
            record.data["cases"].update(result.pop("cases", {}))
            record.data["families"][name] = result
            record.save()
    states = [case["state"] for case in record.data["cases"].values()]
    record.put(summary={state: states.count(state) for state in sorted(set(states))})


def _in_its_own_process(record: Record, family: str) -> dict[str, Any]:
    path = record.path.with_name(f"family-{''.join(c if c.isalnum() else '-' for c in family)}.json")
    limit = min(_FAMILY_SECONDS, record.left())
    if limit < 2:
        return {"state": "not run", "reason": "the part's time was over"}
    words = [sys.executable, "-m", "benchmarks.gpu", "family", "--family", family]
    words += ["--out", str(path), "--seconds", str(limit)]
    try:
        done = subprocess.run(
            [*words, *(["--emulated"] if record.emulated else [])],
            capture_output=True, text=True, timeout=limit, check=False,
        )  # fmt: skip
        ending = "" if done.returncode == 0 else f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        ending = f"did not end within {limit:.0f} s: a hang, or a very slow compilation"
    return _read(path, ending)


def _read(path: Path, ending: str) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {"state": "failed"}
    if ending:
        result.update(state="failed", reason=ending)
        for case in result.get("cases", {}).values():
            if case["state"] == "running":
                case.update(state="failed", reason=ending)
    return result


def family(record: Record, cupy: Any, name: str) -> None:
    """All cases of one kernel text."""
    from cuda_conformance import Device, families

    capability = tuple(int(part) for part in (cupy.cuda.Device().compute_capability[:-1],
                                              cupy.cuda.Device().compute_capability[-1]))  # fmt: skip
    device, twin = Device(cupy), attempt(_twin)
    if record.emulated:
        device.driver = twin.driver
    record.put(cases={})
    waiting = []
    for case in families()[name]:
        told: dict[str, Any] = {"state": "running"}
        record.data["cases"][case.name] = told
        record.save()
        if case.runs_on(capability):
            waiting += _tell(told, case, device)
        else:
            told.update(state="not for this device", reason=f"needs compute capability {case.capability}")
        record.save()
    for entry, compare in waiting:  # after all, since compiling the twins takes long
        entry["of_twin"] = twin if isinstance(twin, dict) else attempt(partial(compare, twin))
        record.save()


def _twin() -> Any:
    from cuda_conformance import Emulator
    from cuda_emulator.compiler import why_unavailable

    if why := why_unavailable():
        raise RuntimeError(why)
    return Emulator()


def _tell(told: dict[str, Any], case: Any, device: Any) -> list[tuple[dict[str, Any], Callable[[Any], Any]]]:
    """Put down what the device makes of a case; what remains to be compared with the twin, and where that goes."""
    from cuda_conformance import judged, rounding_of, run

    told["trials"], good, waiting = {}, True, []
    for index, (name, make) in enumerate(case.trials.items()):
        entry: dict[str, Any] = {}
        told["trials"][name] = entry
        try:
            trial = make(np.random.default_rng((_SEED, index)))
            results = run(case, trial, device)
            verdict = judged(trial, results)
            entry.update(of_definition=vars(verdict))
            good &= verdict.wrong == 0
            if not case.judged:
                entry["observed"] = rounding_of(trial, results["y"])
            waiting.append((entry, partial(_as_the_twin, case, trial, results)))
        except Exception as error:
            entry["failed"], good = reason(error), False
    told["state"] = "wrong" if case.judged and not good else "right" if case.judged else "observed"
    return waiting


def _as_the_twin(case: Any, trial: Any, results: dict[str, np.ndarray], twin: Any) -> dict[str, Any]:
    """How often the device and the twin give the same bits."""
    from cuda_conformance import judged, run

    verdict = judged(trial, results, run(case, trial, twin))
    return {"same bits": verdict.identical, "of": verdict.elements, "wrong": verdict.wrong, "first": verdict.first}
