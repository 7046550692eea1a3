"""A lazy result written chunk by chunk: one task that writes for each chunk that is left."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xpconv.outofcore.journal import Part, Place
from xpconv.outofcore.schedulers import Runner
from xpconv.outofcore.targets import Target


def check_known(what: str, result: Any) -> None:
    """Raise a ValueError where nobody knows yet how large the chunks are."""
    if any(np.isnan(size) for sizes in result.chunks for size in sizes):
        raise ValueError(f"{what} has chunks of unknown sizes; call its compute_chunk_sizes() first")


def stream(result: Any, target: Target, part: Part, run: Runner, advance: Callable[[], None]) -> None:
    """Write the chunks that the journal does not hold yet, and note each in it.

    Parameters
    ----------
    result : Dask array
        with chunks of known sizes
    target : Target
        where they are written
    part : Part
        the journal's
    run : Runner
        who runs the tasks
    advance : callable
        called after every chunk
    """
    check_known("the result", result)
    tasks, places = _left(result, target, part.finished())
    with part.journal() as journal:

        def done(number: int) -> None:
            journal.add(places[number])
            advance()

        run(tasks, done)


def _left(result: Any, target: Target, finished: set[Place]) -> tuple[list[Any], list[Place]]:
    """The writing tasks of the chunks that are not finished, and the places of these."""
    written = result.map_blocks(
        partial(_write, target),
        dtype=bool,
        chunks=tuple((1,) * len(sizes) for sizes in result.chunks),
        meta=np.zeros((0,) * result.ndim, bool),
    )
    tasks = written.to_delayed()
    places = [place for place in np.ndindex(tasks.shape) if place not in finished]
    return [tasks[place] for place in places], places


def _write(target: Target, block: np.ndarray, block_info: Any = None) -> np.ndarray:
    """Write one chunk; what a task returns is kept, so that is as good as nothing."""
    target.write(tuple(slice(*ends) for ends in block_info[0]["array-location"]), block)
    return np.ones((1,) * block.ndim, bool)
