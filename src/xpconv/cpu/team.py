"""Python threads that share the parts of one computation: NumPy's loops and products run without the interpreter lock.

BLAS shares a large product among threads of its own, and all that lies between the products is left to one. Here every
thread takes whole parts, copies and products alike, and BLAS leaves every product to the thread that asks: two threads
with one each reached 103 GFLOP/s where BLAS's own two reached 68 (36 products of 64 x 256 x 256, AMD Zen 3). Nor is a
thread of BLAS woken, which then looks for work for up to a tenth of a second and takes a processor from whoever has
some.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import TypeVar

from xpconv.cpu import blas, processors

Part = TypeVar("Part")


def share(work: Callable[[Iterator[Part]], None], parts: Sequence[Part], most: int) -> None:
    """Call `work` with parts to take one after another, in at most so many threads.

    A thread that another program's keeps from its processor takes fewer. Calls from several threads at once do not wait
    for each other: the team serves one of them, and the others compute alone.
    """
    helpers = min(thread_count(), len(parts), most) - 1
    if helpers < 1:
        work(iter(parts))
        return
    with blas.products_by_one():
        if not _busy.acquire(blocking=False):
            work(iter(parts))
            return
        try:
            try:
                members, here = _members(helpers)
            except RuntimeError:  # the system has no thread left, or the interpreter ends
                members, here = [], None
            with processors.staying(here):
                _in_team(work, parts, members)
        finally:
            _busy.release()


def _in_team(work: Callable[[Iterator[Part]], None], parts: Sequence[Part], members: list[_Member]) -> None:
    left = deque(parts)  # taking one needs no lock, not even without the interpreter's

    def taken() -> Iterator[Part]:
        with suppress(IndexError):
            while True:
                yield left.popleft()

    begun = [member.begin(lambda: work(taken())) for member in members]
    try:
        work(taken())
    finally:
        failures = [failure for ended in begun if (failure := ended.get()) is not None]
    if failures:
        raise failures[0]


_Ended = SimpleQueue["BaseException | None"]  # what work failed with, once it has ended


class _Member:
    """A thread that waits for work, on one processor where the system lets that be chosen."""

    def __init__(self, processor: int | None) -> None:
        self.processor = processor
        self._given: SimpleQueue[tuple[Callable[[], None], _Ended]] = SimpleQueue()
        threading.Thread(target=self._serve, name="xpconv", daemon=True).start()

    def begin(self, work: Callable[[], None]) -> _Ended:
        """Start it, in this thread's context: NumPy's settings of what to warn of are part of that.

        What tells its end tells of nothing else: a call that is interrupted leaves it behind.
        """
        context, ended = copy_context(), _Ended()
        self._given.put((lambda: context.run(work), ended))
        return ended

    def _serve(self) -> None:
        if self.processor is not None:
            with suppress(OSError):  # a processor that is no longer there
                os.sched_setaffinity(0, {self.processor})
        while True:
            work, ended = self._given.get()
            failure = _failure(work)
            del work  # and the arrays that it computed on, before the call goes on
            ended.put(failure)
            del failure, ended


def _failure(work: Callable[[], None]) -> BaseException | None:
    """What the work fails with; nothing else holds on to it, nor to the arrays that it computes on."""
    try:
        work()
    except BaseException as error:
        return error
    return None


_busy = threading.Lock()
_team: dict[int | None, list[_Member]] = {}


def _members(wanted: int) -> tuple[list[_Member], int | None]:
    """So many of the team, made when first wanted, and the processor for this thread, on which none of them is.

    A thread that wakes another finds it on its own processor for milliseconds, unless it is told to be elsewhere.
    """
    allowed = processors.allowed()
    if len(allowed) <= wanted or not processors.CAN_CHOOSE:
        idle = _team.setdefault(None, [])
        idle += [_Member(None) for _ in range(wanted - len(idle))]
        return idle[:wanted], None
    here = processors.now()
    others = [p for p in allowed if p != here][:wanted]
    members = [_team.setdefault(p, [_Member(p)] if p not in _team else [])[0] for p in others]
    return members, here if here in allowed else None


def _after_fork() -> None:
    """A child process has none of its parent's threads."""
    global _busy
    _busy = threading.Lock()
    _team.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --- How many ---------------------------------------------------------------------------------------------------------


def thread_count() -> int:
    """As many as BLAS takes for a product now, by its variables or by threadpoolctl; one where it does not tell."""
    return max(1, min(blas.threads() or 1, processors.most_threads()))
