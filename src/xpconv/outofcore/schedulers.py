"""Who runs the tasks: threads of this process, processes of this machine, or a cluster. Dask's, all of them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from xpconv.outofcore.formats import check_library

Tasks = Sequence[Any]  # `dask.delayed.Delayed`s
Done = Callable[[int], None]  # told the number of each task that is done, in the thread that runs the tasks
Runner = Callable[[Tasks, Done], None]
_PATIENCE = 10  # seconds in which a cluster must answer


@contextmanager
def runner(scheduler: str) -> Iterator[Runner]:
    """Make ready what runs tasks, and put it away afterwards.

    ``processes`` is a `distributed.LocalCluster` and not `dask.multiprocessing`, which sends every block that tasks
    share through the parent process, and gives up when a process dies.

    Parameters
    ----------
    scheduler : {"threads", "processes"} or str
        or the address of a scheduler of `distributed`

    Yields
    ------
    Runner

    Raises
    ------
    ValueError
        neither of the words, nor an address
    OSError
        the address does not answer
    """
    if scheduler == "threads":
        yield _by_threads
        return
    if scheduler != "processes" and not scheduler.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"--scheduler must be threads, processes, or an address such as tcp://10.0.0.1:8786, got {scheduler!r}"
        )
    check_library("distributed")
    with _local() if scheduler == "processes" else _client(scheduler) as client:
        yield lambda tasks, done: _by_client(client, tasks, done)


class _Threads(ThreadPoolExecutor):
    """Threads that compute with the context variables of who submits, such as NumPy's error state, as Dask's own do."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(copy_context().run, fn, *args, **kwargs)


def _by_threads(tasks: Tasks, done: Done) -> None:
    """In threads of their own: when this ends, by an interruption too, nobody is left who writes."""
    import dask
    from dask.callbacks import Callback
    from dask.system import CPU_COUNT

    numbers = {task.key: number for number, task in enumerate(tasks)}
    pool = _Threads(dask.config.get("num_workers", None) or CPU_COUNT)

    with _interrupted_between_tasks() as check:

        def told(key: Any, *_: Any) -> None:
            if key in numbers:
                done(numbers[key])
            check()

        try:
            with Callback(posttask=told):
                dask.compute(*tasks, scheduler="threads", pool=pool)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupted_between_tasks() -> Iterator[Callable[[], None]]:
    """Hold back Ctrl-C: the function that is yielded raises it, or the end does; a second one is raised at once.

    Raised anywhere, it now and then left the lock of Dask's queue held. The pool tells that queue of every task that it
    cancels when it ends, and waited for the lock for ever. It had to wait for the tasks under way before as well.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    came: list[int] = []

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    def held(number: int, _: Any) -> None:
        check()
        came.append(number)

    signal.signal(signal.SIGINT, held)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()


@contextmanager
def _local() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    how = {"processes": True, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which workers inherit: this process ends them
    try:
        cluster = LocalCluster(**how)
    finally:
        signal.signal(signal.SIGINT, before)
    with cluster, Client(cluster) as client:
        yield client


@contextmanager
def _client(address: str) -> Iterator[Any]:
    import asyncio

    from distributed import Client

    asyncio.run(_check_answers(address))
    with Client(address, timeout=_PATIENCE) as client:
        if not client.scheduler_info()["workers"]:
            raise RuntimeError(f"the scheduler {address} has no workers; start some with: dask worker {address}")
        yield client


async def _check_answers(address: str) -> None:
    """Connect, and no more: a client that could not connect waits long in its closing, and prints its troubles."""
    from distributed.comm import connect

    try:
        comm = await connect(address, timeout=_PATIENCE)
    except ValueError as error:
        raise ValueError(f"--scheduler {address}: {error}") from None
    except Exception:  # whoever answers there may send anything
        raise OSError(f"no Dask scheduler answers at {address} within {_PATIENCE} seconds") from None
    await comm.close()


def _by_client(client: Any, tasks: Tasks, done: Done) -> None:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    numbers = {future: number for number, future in enumerate(client.compute(list(tasks)))}
    try:
        for future in as_completed(numbers):
            future.result()
            done(numbers[future])
    except (ImportError, KilledWorker) as error:
        raise RuntimeError(f"the workers of the scheduler failed: {error}") from None
    finally:
        client.cancel(list(numbers))
