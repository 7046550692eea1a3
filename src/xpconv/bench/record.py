"""The record of a run: what it holds at its beginning, how it is kept, and how an earlier one is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from xpconv.bench.sides import OURS
from xpconv.files import written_whole

FORMAT = 1
Record: TypeAlias = dict[str, Any]
_HELD: dict[str, type] = {
    "state": str, "asked": dict, "machine": dict, "devices": dict, "rows": list, "not_measured": list,
}  # fmt: skip
_ROW = ("key", "device", "ms", "rivals", "rounds")


def new(asked: Mapping[str, Any], machine: Mapping[str, Any]) -> Record:
    """One in which nothing is measured; should it end here, it was interrupted."""
    return {
        "format": FORMAT,
        "xpconv": _version(),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "state": "interrupted",
        "asked": dict(asked),
        "machine": dict(machine),
        "devices": {},
        "missing_rivals": {},
        "rows": [],
        "failed": {},  # keys of rows that could not be measured, and why
        "not_measured": [],
    }


def save(record: Record, path: Path) -> None:
    """Write all of it; a reader never sees half, nor loses an earlier one to a full disk."""
    with written_whole(path) as part:
        part.write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")


def load(path: Path) -> Record:
    """A record that was saved.

    Raises
    ------
    OSError
        there is no such file, or it cannot be read
    ValueError
        it is no record, or of another format; in one line
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no record of xpconv bench: {error}") from None
    if not isinstance(found, dict) or "format" not in found:
        raise ValueError(f'{path} is no record of xpconv bench: it has no "format"; xpconv bench --save writes one')
    if found["format"] != FORMAT:
        raise ValueError(f"{path} has format {found['format']!r}, and this xpconv reads {FORMAT}; measure it again")
    for name, kind in _HELD.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f'{path} is no whole record of xpconv bench: "{name}" is missing or damaged')
    for number, row in enumerate(found["rows"], 1):
        if not _is_whole(row):
            raise ValueError(f"{path} is no whole record of xpconv bench: row {number} is damaged")
    return found


def _is_whole(row: Any) -> bool:
    """Whether a row has what it is compared by."""
    if not isinstance(row, dict) or any(name not in row for name in _ROW):
        return False
    rounds = row["rounds"]
    return bool(rounds) and all(isinstance(seconds, dict) and seconds.get(OURS, 0) > 0 for seconds in rounds)


def _version() -> str:
    try:
        return version("xpconv")
    except PackageNotFoundError:
        return "from source"
