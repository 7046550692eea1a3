"""Where a record and its table are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def stem(*words: str) -> str:
    """A file's name of free text, the last of its words a date.

    Examples
    --------
    >>> stem("cpu", "AMD EPYC(TM)", "2026-11-27")
    'cpu-amd-epyc-tm-2026-11-27'
    """
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


def free_files(folder: Path, name: str) -> tuple[Path, Path]:
    """The JSON and the table; nothing is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    free, number = name, 2
    while (folder / f"{free}.json").exists():
        free, number = f"{name}-{number}", number + 1
    return folder / f"{free}.json", folder / f"{free}.txt"


def write(record: dict[str, Any], files: tuple[Path, Path], table: str) -> None:
    """Both."""
    files[0].write_text(json.dumps(record, indent=1), encoding="utf-8")
    files[1].write_text(table, encoding="utf-8")
