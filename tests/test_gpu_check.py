"""`benchmarks/gpu_check.sh` runs through without a device, with and without torch, and pretends no figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cuda_emulator.compiler import why_unavailable

CHECKOUT = Path(__file__).parents[1]
SCRIPT = CHECKOUT / "benchmarks" / "gpu_check.sh"
NOT_MEASURED = "emulated: not a measurement"
TIMED = ("ms", "ms_10_90", "times_faster", "best_peer", "share_of_copy", "teraflops", "seconds", "host_overhead_us",
         "bytes_per_ms", "gigabytes_per_second")  # fmt: skip
# Some platforms have bash and no emulator; a device that answers makes "--emulated" no less an emulation.
pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))


def run(folder, *options, **environment):
    """The script's process, which has ended."""
    return subprocess.run(
        [SCRIPT, "--emulated", "--results", folder, *options],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def check(folder, *options, **environment):
    """The record and the table that the script writes, and what it prints."""
    done = run(folder, *options, **environment)
    assert done.returncode == 0, done.stderr
    (record,), (table,) = folder.glob("*.json"), folder.glob("*.txt")
    return json.loads(record.read_text()), table.read_text(), done.stdout


def figures(entry, name=""):
    """Everything below an entry that is about time."""
    if name in TIMED:
        yield from _leaves(entry)
    elif isinstance(entry, dict):
        for key, value in entry.items():
            yield from figures(value, key)


def _leaves(entry):
    if isinstance(entry, dict | list):
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from _leaves(value)
    else:
        yield entry


def test_everything_runs_through_and_measures_nothing(tmp_path):
    record, table, printed = check(tmp_path)
    parts = record["parts"]
    states = {name: (part["state"], part.get("reason")) for name, part in parts.items()}
    assert record["emulated"]
    assert list(parts) == ["environment", "conformance", "tests", "latency", "sanitizer", "benchmark"]
    assert {name for name, (state, _) in states.items() if state != "complete"} == {"sanitizer"}, states
    assert set(parts["conformance"]["summary"]) == {"right"}
    assert parts["tests"]["counts"] == {"passed": 1}
    assert parts["sanitizer"]["tools"]["none"]["state"] == "clean"
    assert not parts["sanitizer"]["tools"]["none"]["wrong_results"]
    cells = parts["benchmark"]["cells"]
    assert len(cells) == 11
    assert all(cell["right"] for cell in cells.values()), cells
    found = set(figures(parts))
    assert found == {NOT_MEASURED}
    assert table.count(NOT_MEASURED) > 10
    assert NOT_MEASURED in table.splitlines()[1]
    assert "MISSED" not in table
    assert "written: " in printed


@pytest.mark.skipif(
    find_spec("torch") is None, reason="torch is not installed: it is missing in the other test already"
)
def test_torch_that_is_missing_is_named(tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text("raise ImportError('hidden for this test')")
    results = tmp_path / "results"
    record, table, _ = check(results, "--only", "benchmark", PYTHONPATH=str(tmp_path / "hidden"))
    assert list(record["parts"]) == ["environment", "benchmark"]
    assert record["parts"]["environment"]["torch"] == {"missing": "ImportError: hidden for this test"}
    benchmark = record["parts"]["benchmark"]
    assert benchmark["torch"] == {"missing": "ImportError: hidden for this test"}
    assert all(set(cell["ms"]) == {"xpconv"} and cell["right"] for cell in benchmark["cells"].values())
    assert "hidden for this test" in table


def test_a_part_that_fails_takes_no_other_with_it(tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "array_api_compat.py").write_text("raise ImportError('hidden for this test')")
    results = tmp_path / "results"
    record, table, _ = check(results, "--only", "latency,benchmark", PYTHONPATH=str(tmp_path / "hidden"))
    for name in ("latency", "benchmark"):
        assert record["parts"][name]["state"] == "failed"
        assert "hidden for this test" in record["parts"][name]["reason"]
    assert "not measured" in table


def test_an_emulation_does_not_write_among_the_results():
    where = CHECKOUT / "benchmarks" / "results"
    before = sorted(where.iterdir())
    done = run(where, "--only", "environment")
    assert done.returncode == 1
    assert done.stderr == "an emulation measures nothing: its results do not belong in benchmarks/results\n"
    assert sorted(where.iterdir()) == before
