"""What threads are given to do, but for the arrays of a call."""

from __future__ import annotations

from dataclasses import dataclass

from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import Arguments
from xpconv.spec import Array


@dataclass(frozen=True, eq=False)
class Job:
    """A task, called with its arrays: a team of threads computes its items."""

    address: int  # of the task
    arguments: Arguments
    items: int
    scratch: int  # bytes of memory for each thread
    team: int

    def __call__(self, *arrays: Array) -> None:
        """Compute on these arrays."""
        threads.run(self.address, self.arguments.of(*arrays), self.items, self.scratch, self.team)
