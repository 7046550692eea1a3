"""The test suite with CuPy as it is: what passes, what fails, by name."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.common import CHECKOUT, Record, cupy_of

_OUTCOME = re.compile(r"^(?:\[gw\d+\].*?)?(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\s+(\S.*)$", re.MULTILINE)
_PLAIN = re.compile(r"^(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
_MOST_WORKERS = 12
_KEPT = 20000  # characters of the log
_TELLING = 10.0  # seconds for pytest to tell what failed, when it is stopped


def main(record: Record) -> None:
    """Run pytest, and count even when it has to be stopped."""
    missing = [name for name in ("pytest", "hypothesis", "array_api_compat") if find_spec(name) is None]
    if missing:
        record.put(state="not run", reason=f"not installed: {', '.join(missing)}")
        return
    if not record.emulated:
        with cupy_of(record):  # raises where no device answers: the suite would test the emulation instead
            pass
    words = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--color=no"]
    words += ["--continue-on-collection-errors"]
    words += ["tests/test_emulated_cupy.py", "-k", "likes"] if record.emulated else ["tests", "-k", "cupy"]
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    if find_spec("xdist") is not None and not record.emulated and workers > 1:
        words += ["-n", str(workers)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        ending = _run(words, log, record.left() - _TELLING - 2, {"HYPOTHESIS_STORAGE_DIRECTORY": folder})
        text = log.read_text(encoding="utf-8", errors="replace")
    outcomes = _outcomes(text)
    bad = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]  # the first is the suspect
    record.put(
        command=" ".join(words[1:]),
        ending=ending,
        counts=dict(Counter(outcome.lower() for outcome in outcomes.values())),
        failures=bad,
        first_failures=text[text.find("= FAILURES =") :][:_KEPT] if "= FAILURES =" in text else "",
        log_end=text[-_KEPT:],
    )
    if "stopped" in ending:
        record.put(state="stopped at its limit", reason="the counts are of the tests that had ended")
    elif not outcomes:
        record.put(state="failed", reason=f"no test ran; {ending}")


def _outcomes(text: str) -> dict[str, str]:
    """Outcome by test, in the order in which they ended; a name in the summary is followed by the error."""
    found: dict[str, str] = {}
    for outcome, name in _OUTCOME.findall(text):
        if name.startswith("tests/"):
            found.setdefault(name.partition(" - ")[0].strip(), outcome)
    for name, outcome in _PLAIN.findall(text):
        found.setdefault(name.partition(" - ")[0].strip(), outcome)
    return found


def _run(words: list[str], log: Path, seconds: float, more: dict[str, str]) -> str:
    with log.open("w", encoding="utf-8") as to:
        process = subprocess.Popen(
            words, cwd=CHECKOUT, stdout=to, stderr=subprocess.STDOUT, env={**os.environ, **more}, start_new_session=True
        )
        try:
            return f"ended with {process.wait(max(seconds, 1))}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then tells what failed so far
            with suppress(subprocess.TimeoutExpired):
                process.wait(_TELLING)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers
            process.wait()
            return f"stopped after {seconds:.0f} s"
