"""Files written whole or not at all, and the folder of the user's cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


def cache_folder() -> Path:
    """Where xpconv keeps what it can make again; the variable XPCONV_CACHE_DIR names another folder."""
    if folder := os.environ.get("XPCONV_CACHE_DIR"):
        return Path(folder)
    if sys.platform == "win32" and (folder := os.environ.get("LOCALAPPDATA")):
        return Path(folder) / "xpconv"
    folder = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(folder) if os.path.isabs(folder) else Path("~/.cache").expanduser()  # the standard ignores others
    return base / "xpconv"


def check_writable(path: Path) -> None:
    """Raise before the work what `written_whole` would raise after it, as far as can be seen without writing.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        a folder is called so, or the folder it lies in is missing or not writable
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: its folder is not writable")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, which becomes `path` at the end, or is removed if the writing fails.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        what the writing raises, in the name of `path`

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with written_whole(folder / "a.txt") as part:
    ...     _ = part.write_text("all of it")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    target = path.resolve()  # through a link to the file, which the renaming would replace
    part = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if str(error.filename) != str(part):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # nobody knows the part by name
    finally:
        with suppress(OSError):  # where it could not even be made
            part.unlink()
