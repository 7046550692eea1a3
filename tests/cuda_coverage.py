"""Runs the tests of the CUDA engine and writes which of them launch each kernel; fails where one is never launched.

``python tests/cuda_coverage.py`` from the checkout; the list is tests/cuda_coverage.txt.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from xpconv.cuda.catalogue import instances

LIST = Path(__file__).with_name("cuda_coverage.txt")
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))


def launched() -> dict[str, set[str]]:
    """Tests by kernel."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", str(LIST.parent), "-k", "cupy or cuda"]
        command += [f"--ignore={LIST.with_name(name)}" for name in ("test_cuda_budget.py", "test_cuda_mutants.py")]
        subprocess.run(command, check=True, env={**os.environ, "XPCONV_KERNEL_COVERAGE": str(notes)})
        tests = defaultdict(set)
        for line in notes.read_text(encoding="utf-8").splitlines():
            expression, test = line.split("\t")
            tests[expression].add(Path(test).name)
    return tests


def main() -> int:
    """Write the list; the number of kernels that nothing launched."""
    tests = launched()
    kernels = dict.fromkeys(kernel for capability in CAPABILITIES for kernel in instances(capability))
    lines = [f"{len(kernels)} kernels; each with the number of tests that launch it, and one of them"]
    for kernel in kernels:
        names = sorted(tests.get(kernel.expression, ()))
        lines.append("\t".join((kernel.file, kernel.expression, str(len(names)), names[0] if names else "-")))
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")
    missed = [kernel.expression for kernel in kernels if not tests.get(kernel.expression)]
    print(f"{len(kernels) - len(missed)} of {len(kernels)} kernels launched", *missed, sep="\n")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main() > 0)
