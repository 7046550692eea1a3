"""Plants a fault in the text of a CUDA kernel, and tells whether a test or the emulator's checker notices it.

The faults themselves are in cuda_mutants.py.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest

from cuda_emulator import settings
from cuda_emulator.compiler import CompileException
from cuda_emulator.emulated_cupy import emulated_cupy
from xpconv.cuda import source

Probe = Callable[[Any], None]  # takes the emulated CuPy; raises where something is wrong


@dataclass(frozen=True)
class Mutant:
    """One fault: a text that a kernel file has once, what it becomes, and the test that should notice.

    A fault that is `usual` is planted by every run of the suite, the others on demand.
    """

    file: str
    right: str
    wrong: str
    probe: Probe
    usual: bool = False

    def __str__(self) -> str:
        right, wrong = (" ".join(text.split()) for text in (self.right, self.wrong))
        return f"{self.file}: {right[:60]} -> {wrong[:60] or 'nothing'}"


class Invalid(Exception):
    """A mutant that proves nothing: its text is not there, it does not compile, or its test fails without it."""


def verdict(mutant: Mutant) -> str | None:
    """How the fault is noticed, in either order of the threads; None where it is not."""
    if trouble := _unplanted(mutant.probe):
        raise Invalid(f"{mutant}: the test fails without the fault: {trouble}")
    with _planted(mutant):
        for order in settings.ORDERS:
            if trouble := _trouble(mutant.probe, order):
                return trouble
    return None


@cache
def _unplanted(probe: Probe) -> str | None:
    return _trouble(probe, "forward")


def _trouble(probe: Probe, order: str) -> str | None:
    """What a test complains about."""
    from xpconv.cuda import launch

    with settings.using(order=order), emulated_cupy() as cupy, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _forget_kernels()
        try:
            probe(cupy)
            trouble = None
        except CompileException as error:
            raise Invalid(str(error)) from error
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            first = next((line for line in lines if line.startswith("[")), lines[0] if lines else "")
            trouble = f"{order}: {type(error).__name__}: {first}"
        try:
            if launch._failed:  # the engine would have answered without the kernel
                raise Invalid("; ".join(launch._failed.values()))
        finally:
            _forget_kernels()
    return trouble


@contextmanager
def _planted(mutant: Mutant) -> Iterator[None]:
    """Kernels are read from a copy of their folder that has the fault."""
    text = (source.kernel_dir() / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.right)) != 1:
        raise Invalid(f"{mutant}: the text is there {count} times")
    with TemporaryDirectory() as folder:
        shutil.copytree(str(source.kernel_dir()), folder, dirs_exist_ok=True)
        (Path(folder) / mutant.file).write_text(text.replace(mutant.right, mutant.wrong), encoding="utf-8")
        with mock.patch.object(source, "kernel_dir", return_value=Path(folder)):
            source.text.cache_clear()
            try:
                yield
            finally:
                source.text.cache_clear()


def _forget_kernels() -> None:
    from xpconv.cuda import launch

    for known in (launch._functions, launch._failed, launch._prepared):
        known.clear()


def report(mutants: Sequence[Mutant]) -> int:
    """Plant every fault and print what becomes of it; how many survive."""
    survivors, start = 0, time.perf_counter()
    for mutant in mutants:
        began = time.perf_counter()
        try:
            noticed = verdict(mutant)
        except (Exception, pytest.skip.Exception) as error:  # told, and counted as a survivor
            noticed, mark = None, f"INVALID  {error}\n         "
        else:
            mark = "caught   " if noticed else "SURVIVED "
        survivors += noticed is None
        print(f"{mark}{mutant} [{time.perf_counter() - began:.1f} s]\n         {(noticed or '')[:140]}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} caught in {time.perf_counter() - start:.0f} s")
    return survivors
