"""The libraries that every promise is tested on, and how hard Hypothesis looks."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from cuda_emulator.compiler import why_unavailable
from cuda_emulator.emulated_cupy import emulated_cupy, real_cupy_answers

_QUIET = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors)
settings.register_profile("default", deadline=None, max_examples=25, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("compiled", settings.get_profile("default"), max_examples=4)  # JAX: every shape compiles
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=_QUIET)
_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
settings.load_profile(_PROFILE)
os.environ["XPCONV_COMPILE"] = "wait"  # so that every call of a kind is computed by the same kernels
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers share one, so that a kernel is compiled once
    os.environ["XPCONV_CACHE_DIR"] = tempfile.mkdtemp(prefix="xpconv-tests-")  # nobody's measurements, no old code
    atexit.register(shutil.rmtree, os.environ["XPCONV_CACHE_DIR"], ignore_errors=True)
_SETTINGS = "_hypothesis_internal_use_settings"  # of one test; there is no public way to set them per parameter


@pytest.fixture(autouse=True, scope="module")
def _what_others_left():
    """What is imported, collected and left by other modules is not looked through by who collects garbage on purpose.

    A test of `xpconv bench`, which does so between rows, takes 0.5 s alone. It took 102 after all others had been
    collected, and 14 where that alone was put aside, after those before it had run.
    """
    gc.collect()
    gc.freeze()


class Library:
    """One array library under test: how to make its arrays, call on them, and read the result back."""

    def __init__(self, name: str) -> None:
        self.name = name
        package, _, self.manner = name.partition(":")
        self.namespace = import_module({"strict": "array_api_strict", "jax": "jax.numpy"}.get(package, package))

    def array(self, values: np.ndarray):
        """A NumPy array as this library's."""
        if self.name.startswith("numpy"):
            array = np.array(values)
            array.flags.writeable = self.manner != "readonly"
            return array
        if self.name == "torch":
            return self.namespace.from_numpy(np.ascontiguousarray(values).copy()).reshape(values.shape)
        return self.namespace.asarray(values)

    def call(self, function, *arrays: np.ndarray, **options):
        """The function's result on this library's arrays, as NumPy; its arrays must come back as its own."""
        own = [None if a is None else self.array(a) for a in arrays]
        function = partial(function, **options)
        if self.manner == "jit":
            function = import_module("jax").jit(function)
        result = function(*own)
        parts = result if isinstance(result, tuple) else (result,)
        assert all(type(part) is type(own[0]) or isinstance(part, type(own[0])) for part in parts)
        read = tuple(map(self.read, parts))
        return read if isinstance(result, tuple) else read[0]

    def read(self, array) -> np.ndarray:
        """An array of this library's as NumPy's, by the library's own means."""
        if self.name == "cupy":
            assert type(array) is self.namespace.ndarray
            return array.get()
        return np.asarray(array)


def _library(name: str):
    reason = _why_not_cupy() if name == "cupy" else _why_not(name.partition(":")[0])
    return pytest.param(name, marks=[pytest.mark.skip(reason=reason)] if reason else [], id=name)


def _why_not(name: str) -> str:
    package = {"strict": "array_api_strict"}.get(name, name)
    return f"{package} is not installed" if find_spec(package) is None else ""


def _why_not_cupy() -> str:
    reason = None if real_cupy_answers() else why_unavailable()
    return f"no CUDA device answers to CuPy, and {reason}" if reason else ""


LIBRARIES = ("numpy", "numpy:readonly", "strict", "torch", "jax", "jax:jit", "cupy")


@pytest.fixture(params=[_library(name) for name in LIBRARIES])
def lib(request: pytest.FixtureRequest) -> Iterator[Library]:
    """A library to test on; absent ones skip with a reason.

    JAX keeps double precision meanwhile. CuPy is the real one where a CUDA device answers, elsewhere an emulation.
    """
    with ExitStack() as meanwhile:
        if request.param == "cupy" and not real_cupy_answers():
            meanwhile.enter_context(emulated_cupy())
        if request.param.startswith("jax"):
            meanwhile.enter_context(import_module("jax").enable_x64(True))
            patch = meanwhile.enter_context(pytest.MonkeyPatch.context())
            if _PROFILE == "default" and hasattr(request.function, _SETTINGS):
                patch.setattr(request.function, _SETTINGS, settings.get_profile("compiled"))
        yield Library(request.param)


@pytest.fixture(params=[_library("cupy")])
def cupy(request: pytest.FixtureRequest):  # noqa: ARG001  the parameter carries the mark that skips
    """CuPy: the real one where a CUDA device answers, elsewhere an emulation."""
    with nullcontext() if real_cupy_answers() else emulated_cupy():
        yield import_module("cupy")
