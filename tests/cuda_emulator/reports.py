"""The checker's findings as an exception, with addresses in a kernel's library turned into lines of its source."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_ADDRESS = re.compile(r"@(0x[0-9a-f]+)@")


class EmulatorError(AssertionError):
    """A kernel, or its launch, did what CUDA does not allow; `reports` has one line for each finding."""

    def __init__(self, reports: list[str], count: int) -> None:
        self.reports = reports
        more = f"\n({count} findings in all)" if count > len(reports) else ""
        super().__init__("\n".join(reports) + more)


def with_source_lines(text: str, library: Path) -> str:
    """The reports with `file:line` in place of each address."""
    addresses = sorted(set(_ADDRESS.findall(text)))
    if not addresses:
        return text
    command = ["addr2line", "-e", str(library), *addresses]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return text
    prefix = f"{library.parent}/"
    lines = {a: line.removeprefix(prefix).partition(" ")[0] for a, line in zip(addresses, found, strict=True)}
    return _ADDRESS.sub(lambda match: lines[match[1]], text)
