"""Work that nobody waits for, in one thread beside the callers'."""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread


class Background:
    """Jobs, done in order by a thread that lives as long as there are any.

    A child process begins with none of its parent's. The interpreter's end waits for the job under way, which may be
    in a library that cannot be left at any moment, and leaves out the others.
    """

    def __init__(self, name: str) -> None:
        self._name, self._open = name, True
        self._reset()
        atexit.register(self._close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = Lock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread: Thread | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no job is under way."""
        return self._thread is None

    def do(self, job: Callable[[], None]) -> bool:
        """Have a job done, which raises nothing; False where there can be no thread any more."""
        with self._lock:
            if not self._open:
                return False
            if self._thread is None:
                thread = Thread(target=self._work, name=self._name, daemon=True)
                try:
                    thread.start()  # and wait for the lock
                except RuntimeError:  # the interpreter ends, or the system has no thread left
                    return False
                self._thread = thread
            self._jobs.append(job)
            return True

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            job()

    def _close(self) -> None:
        with self._lock:
            self._open, thread = False, self._thread
            self._jobs.clear()
        if thread is not None:
            thread.join()
