"""Expected errors as one line, and how the program leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

INTERRUPTED = 130  # how a program ends that Ctrl-C has ended


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print an expected error as one line: a wrong argument leaves with 2, what the machine cannot do with 1."""
    try:
        yield
    except ValueError as error:
        status, message = 2, str(error)
    except OSError as error:
        reason = error.strerror or str(error)
        status, message = 1, f"{error.filename}: {reason}" if error.filename else reason
    except (RuntimeError, MemoryError) as error:
        status, message = 1, str(error)
    else:
        return
    typer.echo(f"xpconv: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


def whole_count(option: str, word: str) -> int:
    """A number of items, as it was typed."""
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"{option} must be a whole number of at least 1, got {word!r}")
    return int(word)
