"""compute-sanitizer's four tools over small calls of every kernel."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import Record, cupy_of

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_PLACES = (
    "/usr/local/cuda*/bin/compute-sanitizer",
    "/opt/nvidia/*/compute-sanitizer",
    "/opt/nvidia/*/*/compute-sanitizer",
)
_WORKLOAD = [sys.executable, "-m", "benchmarks.gpu.workload"]
_TOGETHER = min(8, os.cpu_count() or 1)  # processes
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: .*")
_FINDING = re.compile(r"^========= (?!COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY)(\S.*)$", re.MULTILINE)
_FINDINGS = 0x5A  # exit status for them, unlike any of Python's


def main(record: Record) -> None:
    """Record each tool's summary, first findings, and how far the workload came."""
    if not record.emulated:
        with cupy_of(record):  # raises where no device answers
            pass
    record.put(tools={"none": _unwatched(record)})
    if record.emulated:
        record.put(state="not run", reason="compute-sanitizer watches a device; here the workload alone ran through")
        return
    tool = shutil.which("compute-sanitizer") or _elsewhere()
    if tool is None:
        record.put(state="not run", reason="compute-sanitizer is not on PATH, nor in /usr/local/cuda or /opt/nvidia")
        return
    options = ["--print-limit", "20", "--error-exitcode", str(_FINDINGS), "--report-api-errors", "no"]
    seconds = record.left() - 5

    def run(name: str) -> dict[str, Any]:
        return _run([tool, "--tool", name, *options, *_WORKLOAD], seconds)

    with ThreadPoolExecutor(len(TOOLS)) as pool:  # all at once: nothing is timed here
        for name, told in zip(TOOLS, pool.map(run, TOOLS), strict=True):
            record.data["tools"][name] = told
            record.save()


def _unwatched(record: Record) -> dict[str, Any]:
    """The workload with no tool, in several processes: what it finds by itself, and kernels on disk for the tools."""
    step = 1 if record.emulated else _TOGETHER
    more = ["--emulated"] if record.emulated else []
    seconds = record.left() / 3
    with ThreadPoolExecutor(step) as pool:
        shares = [[*_WORKLOAD, "--start", str(start), "--step", str(step), *more] for start in range(step)]
        told = list(pool.map(lambda words: _run(words, seconds), shares))
    worst = next((one for one in told if one["state"] != "clean"), told[0])
    wrong = [line for one in told for line in one["wrong_results"]]
    return worst | {"calls_done": sum(one["calls_done"] for one in told), "wrong_results": wrong}


def _elsewhere() -> str | None:
    return next((path for pattern in _PLACES for path in sorted(glob.glob(pattern))), None)


def _run(words: list[str], seconds: float) -> dict[str, Any]:
    if seconds < 5:
        return {"state": "not run", "reason": "the part's time was over"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w", encoding="utf-8") as to:
            process = subprocess.Popen(words, stdout=to, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                ending = f"ended with {process.wait(seconds)}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                ending = f"stopped after {seconds:.0f} s"
        text = log.read_text(encoding="utf-8", errors="replace")
    done = re.findall(r"^done (.*)$", text, re.MULTILINE)
    findings = _FINDING.findall(text)
    state = "clean" if ending == "ended with 0" else "clean as far as it came" if "stopped" in ending else "findings"
    if findings or (state == "findings"):
        state = "findings" if findings or ending == f"ended with {_FINDINGS}" else "failed"
    return {
        "state": state,
        "ending": ending,
        "calls_done": len(done),
        "last_done": done[-1] if done else None,
        "wrong_results": re.findall(r"^wrong (.*)$", text, re.MULTILINE),
        "summary": _SUMMARY.findall(text),
        "findings": findings[:40],
        "log_end": text[-3000:] if state in ("findings", "failed") else "",
    }
