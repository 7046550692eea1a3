"""Which kernels which tests launch: noted in a file where the environment names one."""

from __future__ import annotations

import os

_seen: set[tuple[str, str]] = set()


def note(expression: str) -> None:
    """Append the kernel and the test that runs, once for each pair and process, to $XPCONV_KERNEL_COVERAGE."""
    path = os.environ.get("XPCONV_KERNEL_COVERAGE")
    if path is None:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "no test").rpartition(" ")[0].partition("[")[0]
    if (expression, test) not in _seen:
        _seen.add((expression, test))
        with open(path, "a", encoding="utf-8") as file:  # a line is written at once, so workers do not mix
            file.write(f"{expression}\t{test}\n")
