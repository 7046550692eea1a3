"""Run all parts, each in a process of its own with a time limit, and write one JSON and one table after each."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.files import free_files, stem, write
from benchmarks.gpu import conformance, environment, latency, report, sanitizer, speed, suite
from benchmarks.gpu.common import CHECKOUT, Record, run_part

# name: what it runs, whether that needs CuPy in its own process, seconds at most
PARTS = {
    "environment": (environment.main, False, 60.0),
    "conformance": (conformance.main, False, 90.0),
    "tests": (suite.main, False, 120.0),
    "latency": (latency.main, True, 60.0),
    "sanitizer": (sanitizer.main, False, 100.0),
    "benchmark": (speed.main, True, float("inf")),
}
_STALLED = 90.0  # seconds without a word from the benchmark after which it hangs
_GRACE = 10.0  # seconds beyond its limit in which a part may end by itself
_RESTARTS = 5


def main() -> None:
    """The parts asked for, or one part in this process."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.add_argument("part", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--only", help=f"parts with commas between them: {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (9)")
    parser.add_argument("--results", type=Path, help="folder for the JSON and the table (benchmarks/results)")
    parser.add_argument("--after", type=Path, help="JSON of an earlier run: benchmark only what that one has not")
    parser.add_argument("--emulated", action="store_true", help="run through with no device; measure nothing")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    parser.add_argument("--family", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        _part(asked)
        return
    names = asked.only.split(",") if asked.only else list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    _all(asked, ["environment", *(name for name in names if name != "environment")])


def _part(asked: argparse.Namespace) -> None:
    known = json.loads(asked.after.read_text(encoding="utf-8")) if asked.after else None
    known = known.get("parts", {}).get(asked.part, known) if known else None
    record = Record(asked.out, emulated=asked.emulated, seconds=asked.seconds, known=known)
    inner = {
        "family": partial(conformance.family, name=asked.family),
        "first": latency.first,
        "warm": lambda record, cupy: speed.warm(record, cupy, int(asked.family)),
    }
    if asked.part in inner:
        run_part(inner[asked.part], record)
        return
    body, needs_cupy, _ = PARTS[asked.part]
    run_part(body, record, needs_cupy=needs_cupy)


def _all(asked: argparse.Namespace, names: list[str]) -> None:
    end = time.monotonic() + 60 * asked.minutes
    record: dict[str, Any] = {"date": date.today().isoformat(), "emulated": asked.emulated, "parts": {}}
    if asked.after:
        record["after"] = f"the benchmark's cells begin with those of {asked.after.name}, from another session"
    with tempfile.TemporaryDirectory() as work:
        _with_array_api_compat(record, Path(work))
        files: tuple[Path, Path] | None = None
        for name in names:
            begin = time.monotonic()
            limit = min(PARTS[name][2], end - begin - 2 * _GRACE)
            result = (
                _run(asked, name, limit, Path(work)) if limit > 1 else {"state": "not run", "reason": "no time left"}
            )
            result["seconds_taken"] = round(time.monotonic() - begin, 1)
            record["parts"][name] = result
            files = files or _files(asked, record)
            write(record, files, report.text(record))
            print(
                f"{name}: {result.get('state')} in {result['seconds_taken']} s {result.get('reason', '')}", flush=True
            )
    assert files is not None
    print(files[1].read_text(encoding="utf-8").partition("\nCELLS")[0])
    print(f"written: {files[0]} and {files[1].name}")


def _run(asked: argparse.Namespace, name: str, limit: float, work: Path) -> dict[str, Any]:
    """One part; the benchmark again where it lost its device or hung, from where it was."""
    out = work / f"{name}.json"
    after = asked.after if name == "benchmark" else None
    end = time.monotonic() + limit
    endings: list[str] = []
    for _ in range(_RESTARTS):
        ending = _process(asked, name, end - time.monotonic(), out, after)
        result = _read(out)
        if ending:
            endings.append(ending)
        resumable = name == "benchmark" and (result.get("state") == "lost" or "no word" in ending or "died" in ending)
        if not resumable or not result.get("cells") or end - time.monotonic() < 30:
            break
        after = out.with_name("before.json")
        out.replace(after)
    if endings:
        result["endings"] = endings
    if result.get("state") in (None, "running"):
        result.update(state="stopped", reason=endings[-1] if endings else "no record")
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _process(asked: argparse.Namespace, name: str, seconds: float, out: Path, after: Path | None) -> str:
    """Run a part's process; how it ended where that was not by itself."""
    words = [sys.executable, "-m", "benchmarks.gpu", name, "--out", str(out), "--seconds", str(seconds)]
    words += ["--emulated"] if asked.emulated else []
    words += ["--after", str(after)] if after else []
    log = out.with_suffix(".log")
    with log.open("w", encoding="utf-8") as to:
        process = subprocess.Popen(words, stdout=to, stderr=subprocess.STDOUT, start_new_session=True)
        begin = heard = time.monotonic()
        changed = 0.0
        while process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if out.exists() and out.stat().st_mtime != changed:
                changed, heard = out.stat().st_mtime, now
            stalled = name == "benchmark" and now - heard > _STALLED
            if stalled or now - begin > seconds + _GRACE:
                os.killpg(process.pid, 9)
                process.wait()
                return f"stopped: no word for {_STALLED:.0f} s" if stalled else f"stopped after {now - begin:.0f} s"
    if process.returncode == 0:
        return ""
    return f"died with {process.returncode}: {log.read_text(encoding='utf-8', errors='replace')[-1500:]}"


# --- Files ------------------------------------------------------------------------------------------------------------


def _files(asked: argparse.Namespace, record: dict[str, Any]) -> tuple[Path, Path]:
    """Where the results go, by device and date; nothing is overwritten, and no emulation's among the measured."""
    results = CHECKOUT / "benchmarks" / "results"
    folder = asked.results or (Path(tempfile.mkdtemp(prefix="gpu-check-")) if asked.emulated else results)
    if asked.emulated and folder.resolve() == results.resolve():
        sys.exit("an emulation measures nothing: its results do not belong in benchmarks/results")
    device = record["parts"]["environment"].get("device", "unknown device")
    return free_files(folder, stem(device, record["date"]))


def _with_array_api_compat(record: dict[str, Any], work: Path) -> None:
    """Where array-api-compat is not installed, let the copy that SciPy or scikit-learn carries stand in for it."""
    if importlib.util.find_spec("array_api_compat") is not None:
        return
    for package, inner in (("scipy", "_lib"), ("scipy", "_external"), ("sklearn", "externals")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            copy = Path(place) / inner / "array_api_compat"
            if (copy / "__init__.py").exists():
                (work / "packages").mkdir(exist_ok=True)
                (work / "packages" / "array_api_compat").symlink_to(copy)
                os.environ["PYTHONPATH"] = os.pathsep.join((os.environ.get("PYTHONPATH", ""), str(work / "packages")))
                record["array_api_compat"] = f"not installed; {package}'s copy stands in"
                return
    record["array_api_compat"] = "not installed, and neither SciPy nor scikit-learn carries a copy"


if __name__ == "__main__":
    main()
