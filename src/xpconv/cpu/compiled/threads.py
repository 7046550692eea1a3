"""Work shared among threads, handed over inside compiled code.

A task is a kernel ``task(arguments, item, scratch)``; `run` computes items 0 to n - 1, each by whichever thread takes
it first, so that what is computed does not depend on the threads. Helpers look for work for a while before they
sleep, since waking a sleeping thread takes longer than many a call. A call that finds the helpers at work for
another computes by itself. Helpers keep off their caller's processor: two threads that never sleep look like a fair
load of one processor to the scheduler, and calls then took up to three times as long for a tenth of a second.

The words of a team, each on a cache line of its own: the job's number, its item to take next together with that
number, how many items are done, and what the job is. Taking an item compares the number, so that a helper that comes
late never takes an item of the next job by what it knows of the last.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from functools import cache
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
from llvmlite import ir

from xpconv.cpu import blas, processors
from xpconv.cpu.address import DATA, address_of
from xpconv.cpu.compiled.build import Library, library
from xpconv.cpu.compiled.ir import Kernel
from xpconv.cpu.compiled.values import Shared, Value
from xpconv.cpu.lines import LINE, lined

_JOB, _NEXT, _DONE, _TASK = (LINE * i for i in range(4))
_ARGUMENTS, _ITEMS, _SCRATCH, _STRIDE, _MEMBERS = (_TASK + 8 * i for i in range(1, 6))
_BYTES = 5 * LINE
_MOST_ITEMS = 1 << 31
_CLOSED = _MOST_ITEMS // 2  # beyond the items of any job, below the next job's
_LIBRARY = f"threads-{DATA}"  # another build of Python may begin its objects otherwise
# For work before a helper sleeps, below a millisecond in all. One that was asleep may wake on its caller's processor
# and wait there: with a tenth of the looks, calls of half a millisecond took as long as on one thread.
_LOOKS = 30_000


def _make(module: ir.Module) -> tuple[str, ...]:
    take, find = _take(module), _find(module)
    _serial(module, find)
    _publish(module, find)
    _work(module, take)
    _serve(module, take)
    return "serial", "publish", "work", "serve"


def _find(module: ir.Module) -> Kernel:
    """What tasks are told: addresses instead of the objects of arrays, of which the first word tells how many."""
    kernel = Kernel(module, "find", ("words",), returns=True)
    (words,) = kernel.arguments
    told = words + 8
    with kernel.loop(kernel.load(words)) as i:
        kernel.store(kernel.load(kernel.load(told + i * 8), offset=DATA), told + i * 8)
    kernel.store(kernel.constant(0), words)  # they are found
    kernel.finish(told)
    return kernel


def _serial(module: ir.Module, find: Kernel) -> None:
    kernel = Kernel(module, "serial", ("task", "words", "items", "scratch"))
    task, words, items, scratch = kernel.arguments
    arguments = kernel.call(find, words)
    with kernel.loop(items) as item:
        kernel.call_address(task, arguments, item, scratch)
    kernel.finish()


def _publish(module: ir.Module, find: Kernel) -> None:
    """A new job, its number last of all; first no item of the last job can be taken any more.

    A helper that comes late may read some words of the new job beside its own job's number: it then fails to take.
    """
    kernel = Kernel(module, "publish", ("team", "job", "task", "words", "items", "scratch", "stride", "members"))
    team, job, task, words, *others = kernel.arguments
    description = task, kernel.call(find, words), *others
    number, next_item, done = (Shared(kernel, team + place) for place in (_JOB, _NEXT, _DONE))
    next_item.add(_CLOSED)
    for place, value in zip((_TASK, _ARGUMENTS, _ITEMS, _SCRATCH, _STRIDE, _MEMBERS), description, strict=True):
        kernel.store(value, team, place)
    done.set(0)
    next_item.set(job * _MOST_ITEMS)
    number.set(job)
    kernel.finish()


def _take(module: ir.Module) -> Kernel:
    """Compute items of a job as long as there are any, as one of its members."""
    kernel = Kernel(module, "take", ("team", "job", "thread"))
    team, job, thread = kernel.arguments
    task, arguments, items, scratch, stride, members = (
        kernel.load(team, offset=place) for place in (_TASK, _ARGUMENTS, _ITEMS, _SCRATCH, _STRIDE, _MEMBERS)
    )
    scratch, end = scratch + thread * stride, job * _MOST_ITEMS + items
    next_item, done = Shared(kernel, team + _NEXT), Shared(kernel, team + _DONE)
    first, now = job * _MOST_ITEMS, kernel.variable(next_item.get())

    def any_left() -> Value:
        return (now.get() >= first) & (now.get() < end) & (thread < members)

    with kernel.while_(any_left):
        taken = now.get()
        with kernel.when(next_item.exchanged_if(taken, taken + 1)):
            kernel.call_address(task, arguments, taken - first, scratch)
            done.add(1)
        now.set(next_item.get())
    kernel.finish()
    return kernel


def _work(module: ir.Module, take: Kernel) -> None:
    """The caller's share of a job, and waiting for the helpers' last items."""
    kernel = Kernel(module, "work", ("team", "job"))
    team, job = kernel.arguments
    kernel.call(take, team, job, 0)
    items, done = kernel.load(team, offset=_ITEMS), Shared(kernel, team + _DONE)
    with kernel.while_(lambda: done.get() < items):
        kernel.pause()
    kernel.finish()


def _serve(module: ir.Module, take: Kernel) -> None:
    """A helper: take part in every job until there was none for so many looks; the number of the last job seen."""
    kernel = Kernel(module, "serve", ("team", "last", "thread", "looks"), returns=True)
    team, last, thread, looks = kernel.arguments
    number, seen, idle = Shared(kernel, team + _JOB), kernel.variable(last), kernel.variable(0)
    with kernel.while_(lambda: idle.get() < looks):
        job = number.get()
        with kernel.either(job.equals(seen.get())) as (same, other):
            with same:
                kernel.pause()
                idle.set(idle.get() + 1)
            with other:
                kernel.call(take, team, job, thread)
                seen.set(job)
                idle.set(kernel.constant(0))
    kernel.finish(seen.get())


@cache
def _functions() -> Any:
    compiled = library(_LIBRARY, _make)
    assert compiled is not None
    return _Functions(compiled)


class _Functions:
    def __init__(self, compiled: Library) -> None:
        self.serial = compiled.function("serial", 4)
        self.publish = compiled.function("publish", 8)
        self.work = compiled.function("work", 2)
        self.serve = compiled.function("serve", 4, returns=True)


class Team:
    """The caller of a job and its helpers."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = Lock()
        self._functions = _functions()
        self._job, self.processor = 0, -1  # the caller's processor, which helpers keep off
        self._memory = lined((_BYTES,), np.dtype(np.uint8))
        self._memory[:] = 0
        self._words = address_of(self._memory)
        self._helpers: list[_Helper] = []
        with suppress(RuntimeError):  # the system has no thread left, or the interpreter ends: those that there are
            for number in range(1, threads):
                self._helpers.append(_Helper(self._functions, self._words, number))

    def run(self, task: int, arguments: bytes, items: int, scratch: int, stride: int, members: int) -> None:
        """Compute a job with so many threads; the caller holds the lock."""
        self._job += 1
        self._keep_off(processors.now())
        try:
            self._functions.publish(self._words, self._job, task, arguments, items, scratch, stride, members)
            for helper in self._helpers[: members - 1]:
                if helper.asleep:
                    helper.wake.set()
        finally:  # whatever interrupts: helpers may be writing to arrays that are let go with this call
            self._functions.work(self._words, self._job)

    def _keep_off(self, processor: int) -> None:
        """Leave the caller's processor to the caller, where it is another than the last time."""
        if processor == self.processor:
            return
        self.processor = processor
        with suppress(OSError):  # a sandbox may forbid it
            if others := {*processors.allowed()} - {processor}:
                for helper in self._helpers:
                    if helper.native_id is not None:  # of this thread, 0 would say
                        os.sched_setaffinity(helper.native_id, others)


class _Helper:
    """A thread that serves a team."""

    def __init__(self, functions: Any, words: int, number: int) -> None:
        self.asleep, self.wake = False, Event()
        self._functions, self._words, self._number = functions, words, number
        thread = Thread(target=self._serve, name=f"xpconv-{number}", daemon=True)
        thread.start()
        self.native_id = thread.native_id

    def _serve(self) -> None:
        last = 0
        while True:
            last = self._functions.serve(self._words, last, self._number, _LOOKS)
            self.asleep = True
            self.wake.clear()
            seen = self._functions.serve(self._words, last, self._number, 1)  # a job that came meanwhile
            if seen == last:
                self.wake.wait()
            self.asleep, last = False, seen


_team: Team | None = None
_making = Lock()


def is_ready() -> bool:
    """Whether tasks can be run here."""
    return library(_LIBRARY, _make) is not None


def run(task: int, arguments: bytes, items: int, scratch_bytes: int, threads: int, members: int = 0) -> None:
    """Compute the items of a task, with as many threads as are asked for and free.

    `arguments` are what a `Told` makes; `scratch_bytes` is what each thread needs for itself. Of a team of so many
    threads only some may be `members`, where memory for all would be too much: another team would have threads of its
    own, which look for work while this one's have it.
    """
    if threads == 1:
        _alone(task, arguments, items, scratch_bytes)
        return
    _calling.append(None)
    try:
        _run(task, arguments, items, scratch_bytes, threads, members or threads)
    finally:
        _calling.pop()


_calling: list[None] = []  # an entry for each thread that calls now, for what several threads are worth


def _run(task: int, arguments: bytes, items: int, scratch_bytes: int, threads: int, members: int) -> None:
    """By a team, where half the threads or more have nothing of their own to compute, and no other has it."""
    team = _team_of(threads) if items > 1 and threads >= 2 * len(_calling) else None
    if team is None or not team.lock.acquire(blocking=False):
        _alone(task, arguments, items, scratch_bytes)
        return
    stride = -(-scratch_bytes // 4096) * 4096 + 4096  # no two threads share a page, nor a set of the cache
    try:
        scratch, place = _scratch(stride * members)
        team.run(task, arguments, items, place, stride, members)
    finally:
        team.lock.release()
    _keep(scratch, place)


def _alone(task: int, arguments: bytes, items: int, scratch_bytes: int) -> None:
    """By the thread that calls."""
    if not scratch_bytes:
        _functions().serial(task, arguments, items, 0)
        return
    scratch, place = _scratch(scratch_bytes)
    _functions().serial(task, arguments, items, place)
    _keep(scratch, place)


# Memory of calls that have ended, and where it lies; the next take it, page faults and all behind it.
_spare: deque[tuple[np.ndarray, int]] = deque(maxlen=2)  # its methods need no lock
_MOST_SPARE = 1 << 25  # bytes of one of them


def _scratch(nbytes: int) -> tuple[np.ndarray, int]:
    """So much memory, and where it lies."""
    try:
        memory, place = _spare.pop()
    except IndexError:
        memory, place = np.empty(0, np.uint8), 0
    if memory.size < nbytes:
        memory = lined((nbytes,), np.dtype(np.uint8))
        place = address_of(memory)
    return memory, place


def _keep(memory: np.ndarray, place: int) -> None:
    """Give memory back, for the next call."""
    if memory.size <= _MOST_SPARE:
        _spare.append((memory, place))


def _team_of(threads: int) -> Team:
    """The team of the process, made anew where another size is asked for."""
    global _team
    team = _team
    if team is None or team.threads != threads:
        with _making:
            team = _teams.get(threads)
            if team is None:
                team = _teams[threads] = Team(threads)
            _team = team
    return team


_teams: dict[int, Team] = {}


def _after_fork() -> None:
    """A child process has none of its parent's threads."""
    global _team, _making
    _team, _making = None, Lock()
    _teams.clear()
    _calling.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --- How many ---------------------------------------------------------------------------------------------------------


def thread_count() -> int:
    """How many threads a call may take: the processors of this process, or fewer where a setting says so.

    The settings are NUMBA_NUM_THREADS and OMP_NUM_THREADS, and threadpoolctl's limit of NumPy's BLAS. A child of
    `multiprocessing`, which has siblings for the other processors, takes one unless a variable is set.
    """
    most = processors.most_threads()
    told = blas.threads() or _told()
    return most if told is None else max(1, min(most, told))


def _told() -> int | None:
    """What threadpoolctl tells of a BLAS that is not OpenBLAS; None where it knows none of NumPy's."""
    library = _other_blas()
    return None if library is None else library.num_threads


@cache
def _other_blas() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    found = (lib for lib in ThreadpoolController().lib_controllers if lib.user_api == "blas")
    return next((lib for lib in found if "numpy" in lib.filepath), None)
