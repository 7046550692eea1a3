"""Unfinished results: a hidden folder beside the target, which says what is asked for and which chunks are finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xpconv.files import check_writable, written_whole
from xpconv.outofcore.formats import is_zarr

Place = tuple[int, ...]  # of a chunk among the chunks


class Part:
    """The folder ``.NAME.part`` beside the target, with the array, the request for it, and the journal.

    The request is written after the array is laid out, a chunk's line in the journal after its data is on the disk: a
    process may be killed at any moment.

    Parameters
    ----------
    target : Path
        what the array is called when it is complete
    """

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()  # through a link, which the renaming would replace
        self.folder = self.target.with_name(f".{self.target.name}.part")
        self.array = self.folder / f"array{self.target.suffix}"
        self._request, self._journal = self.folder / "request.json", self.folder / "journal.txt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, as long as this one lives."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            _lock(file, f"another process writes {self.target.name} now")
            yield

    def request(self) -> dict[str, Any] | None:
        """What is being made here; None if nothing is."""
        if not self._request.exists() or not self.array.exists():
            return None
        try:
            return dict(json.loads(self._request.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise OSError(f"{self._request} is damaged; --restart begins anew") from None

    def finished(self) -> set[Place]:
        """The chunks that are on the disk; a last line that was cut short does not count."""
        if not self._journal.exists():
            return set()
        text = self._journal.read_text(encoding="ascii", errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()
        try:
            return {tuple(map(int, line.split())) for line in lines}
        except ValueError:
            raise OSError(f"{self._journal} is damaged; --restart begins anew") from None

    def begin(self, request: dict[str, Any]) -> None:
        """Write down what will be made here, when its array is laid out."""
        with written_whole(self._request) as path, path.open("w", encoding="utf-8") as file:
            json.dump(request, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def journal(self) -> Iterator[_Journal]:
        """Open the journal, to add what gets finished; a line that was cut short is taken away."""
        with self._journal.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            yield _Journal(file)

    def clear(self) -> None:
        """Throw away what was made, the request first."""
        self._request.unlink(missing_ok=True)
        for path in (self._journal, self.array):
            _remove(path)

    def complete(self) -> None:
        """Give the array its name, in the place of what was called so."""
        if self.target.is_dir():  # which a folder cannot replace
            former = self.folder / "former"
            _remove(former)
            self.target.rename(former)
        self.array.replace(self.target)
        shutil.rmtree(self.folder)


class _Journal:
    def __init__(self, file: Any) -> None:
        self._file = file

    def add(self, place: Place) -> None:
        """Note a chunk, for good."""
        self._file.write(" ".join(map(str, place)).encode("ascii") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def check_target(path: Path) -> None:
    """Raise before the work what hinders an array to be called so at its end, as far as can be seen.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        the folder it lies in is missing or not writable, or a folder is called so that Zarr did not write
    """
    check_writable(path.with_name("replaced") if is_zarr(path) else path)


def _remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lock(file: Any, held: str) -> None:
    """Lock a file until it is closed, where the system can; the lock of a process that was killed is gone."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(held) from None
        except OSError:
            pass  # a file system without locks
