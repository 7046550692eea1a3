"""What threads are given to do, but for the arrays of a call: a task, or several of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from llvmlite import ir

from xpconv.cpu.address import address_of, words_of
from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.blocks import Arguments
from xpconv.cpu.compiled.build import library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.spec import Array, Sizes

Places: TypeAlias = Sequence[Sizes]
"""For each of several jobs, how many bytes into each array its own part of it begins."""


@dataclass(frozen=True, eq=False)
class Job:
    """A task, called with its arrays: a team of threads computes its items."""

    address: int  # of the task
    arguments: Arguments
    items: int
    scratch: int  # bytes of memory for each thread
    team: int
    members: int = 0  # of the team, that compute it; 0 for all

    def __call__(self, *arrays: Array) -> None:
        """Compute on these arrays."""
        threads.run(self.address, self.arguments.of(*arrays), self.items, self.scratch, self.team, self.members)


class Jobs:
    """Jobs on parts of the same arrays, called with these: a team of threads computes the items of all."""

    def __init__(self, jobs: Sequence[Job], places: Places) -> None:
        self._jobs, self._places = jobs, places
        ends = list(accumulate(job.items for job in jobs))
        self.items, self._scratch = ends[-1], max(job.scratch for job in jobs)
        self._team, self._members = jobs[0].team, jobs[0].members
        words = [len(job.arguments.at(*begins)) for job, begins in zip(jobs, places, strict=True)]
        first = _ENTRY.size * len(jobs)
        entries = zip(
            ends, [0, *ends], (job.address for job in jobs), accumulate([first, *words]), strict=False
        )  # fmt: skip
        self._told = words_of(1).pack(0) + b"".join(_ENTRY.pack(*entry) for entry in entries)
        compiled = library("jobs", _make)
        assert compiled is not None
        self._address = compiled.address("each")

    def __call__(self, *arrays: Array) -> None:
        """Compute on these arrays."""
        addresses = [address_of(array) for array in arrays]
        parts = (
            job.arguments.at(*map(int.__add__, addresses, begins))
            for job, begins in zip(self._jobs, self._places, strict=True)
        )
        threads.run(self._address, self._told + b"".join(parts), self.items, self._scratch, self._team, self._members)


def as_one(jobs: Sequence[Job], places: Places) -> Job | Jobs:
    """Jobs on parts of the same arrays as one; a single one is on all of them."""
    return jobs[0] if len(jobs) == 1 else Jobs(jobs, places)


_ENTRY = words_of(4)  # of a job: the item after its last, its first item, its task, and where its words begin


def is_ready() -> bool:
    """Whether several can be computed as one."""
    return library("jobs", _make) is not None


def _make(module: ir.Module) -> tuple[str, ...]:
    """The task: an item of the job that has it."""
    kernel = Kernel(module, "each", ("arguments", "item", "scratch"))
    arguments, item, scratch = kernel.arguments
    entry = kernel.variable(arguments)
    with kernel.while_(lambda: kernel.load(entry.get()) <= item):
        entry.set(entry.get() + _ENTRY.size)
    first, task, words = (kernel.load(entry.get(), offset=8 * i) for i in (1, 2, 3))
    kernel.call_address(task, arguments + words, item - first, scratch)
    kernel.finish()
    return ("each",)
