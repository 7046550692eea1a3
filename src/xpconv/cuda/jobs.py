"""One operation on CuPy arrays: the results to make, and the plan of the work that makes them.

An engine's function is written as the job that it is; `operation` makes of that a function which allocates, launches,
and answers NotImplemented where no kernel takes the case or none can be had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import cupy
import numpy as np

from xpconv.cuda import launch, tuning
from xpconv.cuda.setting import Setting
from xpconv.cuda.steps import Unfit, Work
from xpconv.dtypes import short_name
from xpconv.plan import Arrays, Plan
from xpconv.spec import Array, Sizes
from xpconv.workspace import current_limit


@dataclass(frozen=True)
class Result:
    """An array to make, by the name that the work knows it by."""

    name: str
    shape: Sizes
    dtype: Any


@dataclass(frozen=True)
class Job:
    """One operation on arrays that are at hand."""

    names: tuple[str, ...]  # of the operation's arrays, as the work knows them
    results: tuple[Result, ...]
    plan: Callable[[], Work | Unfit]
    zeros: bool = False  # whether there is nothing to read, so that the results are zeros

    def work(self) -> Work | Unfit:
        """The work that makes the results, or why there is none."""
        try:
            return self.plan()
        except OverflowError:  # of a struct's field: a stride or a dilation, say, that no axis is long enough for
            return Unfit("a number of 2^31 or more")

    @property
    def trivial(self) -> bool:
        """Whether there is nothing to launch."""
        return self.zeros or any(0 in result.shape for result in self.results)


def operation(job_of: Callable[..., Job]) -> Any:
    """The engine's function whose job this is; the arrays come first among its arguments."""

    @wraps(job_of)
    def compute(*args: Any, **options: Any) -> Any:
        job = job_of(*args, **options)
        return computed(job, args[: len(job.names)])

    compute.__dict__["job"] = job_of
    return compute


def computed(job: Job, arrays: Arrays) -> Any:
    """The results of the job, launched on the current device."""
    made = [(cupy.zeros if job.zeros else cupy.empty)(result.shape, dtype=result.dtype) for result in job.results]
    if not job.trivial:
        work = job.work()
        if isinstance(work, Unfit):
            return NotImplemented
        names = (*job.names, *(result.name for result in job.results))
        try:
            launch.run(work, dict(zip(names, (*arrays, *made), strict=True)))
        except launch.KernelUnavailable:
            return NotImplemented
    return made[0] if len(made) == 1 else tuple(made)


def planned(job: Job, device_id: int) -> Plan | None:
    """How the job is done; None where no kernel does it."""
    work = None if job.trivial else job.work()
    return work.plan if isinstance(work, Work) and not launch.failed(work, device_id) else None


def repeated(job: Job, device_id: int, drop: Any) -> Callable[..., Any] | None:
    """A function of the job's arrays that does it again with nothing left to decide; None where that cannot be.

    `drop` is the index that takes from the results the axes that the arrays, as they will be given, do not have.
    """
    work = None if job.trivial else job.work()
    if not isinstance(work, Work):
        return None
    try:
        launch_all = launch.prepared(work, (*job.names, *(result.name for result in job.results)), device_id)
    except launch.KernelUnavailable:
        return None
    device = cupy.cuda.Device(device_id)
    shapes = [(np.broadcast_to(0, result.shape)[drop].shape, result.dtype) for result in job.results]

    def again(*arrays: Array | None) -> Any:
        with device:
            made = [cupy.empty(shape, dtype) for shape, dtype in shapes]
            try:
                launch_all(*arrays, *made)
            except launch.KernelUnavailable:
                return NotImplemented
        return made[0] if len(made) == 1 else tuple(made)

    return again


def setting(x: Array, precision: str = "highest", method: str = "auto") -> Setting:
    """What decides between kernels, for an array and the limit in force."""
    hardware, measured = launch.hardware(x.data.device_id), tuning.measured()
    return Setting(short_name(x.dtype), hardware, current_limit(), precision, method, measured)
