"""The emulator's counterpart of cupy.RawModule: compiles a kernel's text with g++ and launches it on the CPU."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cuda_emulator import coverage, settings
from cuda_emulator.compiler import CompileException, kernel_library, runtime_library
from cuda_emulator.reports import EmulatorError, with_source_lines

__all__ = ["CompileException", "EmulatorError", "Function", "RawModule"]

_DEFAULT_SHARED_BYTES = 48 * 1024
_BOUNDS = r"__launch_bounds__\s*\([^()]*(?:\([^()]*\))?[^()]*\)"
_KERNEL = re.compile(rf"__global__\s+(?:{_BOUNDS}\s*)?void\s+(?:{_BOUNDS}\s*)?(\w+)\s*\(")
_launching = threading.Lock()  # the runtime knows one launch at a time


class RawModule:
    """Kernels of one text; `name_expressions` names the template instances, as for CuPy's. Compiles at first use."""

    def __init__(
        self,
        code: str,
        *,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        name_expressions: Sequence[str] | None = None,
        **_ignored: object,
    ) -> None:
        self.code = code
        self.backend = backend
        self.options = tuple(options)
        self.name_expressions = tuple(name_expressions or dict.fromkeys(_KERNEL.findall(code)))
        self._libraries: dict[tuple[str, ...], tuple[ctypes.PyDLL, Path]] = {}

    def compile(self, log_stream: object = None) -> None:  # noqa: ARG002  CuPy's parameter
        """Compile now, for the settings of now."""
        self._library()

    def get_function(self, name: str) -> Function:
        """The kernel of that name expression."""
        if name not in self.name_expressions:
            raise KeyError(f"{name!r} is not among the name expressions {self.name_expressions}")
        self._library()
        return Function(self, name)

    def _library(self) -> tuple[ctypes.PyDLL, Path]:
        major, minor = settings.compute_capability
        defines = [f"-D__CUDA_ARCH__={100 * major + 10 * minor}", "-D__CUDACC__", "-D__CUDACC_RTC__"]
        if (major, minor) == (9, 0):
            defines.append("-D__CUDA_ARCH_FEAT_SM90_ALL")
        defines += [option for option in self.options if option.startswith(("-D", "-U", "-std="))]
        key = (*defines, str(settings.checked))
        if key not in self._libraries:
            path = kernel_library(self._source(), defines, checked=settings.checked)
            self._libraries[key] = ctypes.PyDLL(str(path)), path
        return self._libraries[key]

    def _source(self) -> str:
        """The text, then for each kernel a function that launches it and one that describes its parameters."""
        stubs = [
            f'extern "C" void emulator_launch_{i}(emulator_launch_request* request, void** arguments) '
            f"{{ emulator_start(&{name}, request, arguments); }}\n"
            f'extern "C" const unsigned* emulator_signature_{i}() {{ return emulator_signature(&{name}); }}\n'
            for i, name in enumerate(self.name_expressions)
        ]
        return f'#line 1 "kernel.cu"\n{self.code}\n#line 1 "launch.cpp"\n{"".join(stubs)}'


class Function:
    """One kernel; calling it runs the whole grid, and raises EmulatorError when a thread did what it must not."""

    def __init__(self, module: RawModule, name: str) -> None:
        self.module = module
        self.name = name
        self._index = module.name_expressions.index(name)
        self._largest_shared_bytes = _DEFAULT_SHARED_BYTES

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """How much dynamic shared memory a launch may ask for; more than 48 KiB must be set first."""
        return self._largest_shared_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        if nbytes > settings.largest_shared_memory():
            raise _bad_launch(f"{nbytes} bytes of shared memory; the device has {settings.largest_shared_memory()}")
        self._largest_shared_bytes = nbytes

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: object = None,  # noqa: ARG002  a launch has ended when the call returns
        enable_cooperative_groups: bool = False,
    ) -> None:
        if enable_cooperative_groups:
            raise NotImplementedError("blocks run one after another: a grid cannot wait for itself")
        library, path = self.module._library()
        request = _request(_three(grid), _three(block), shared_mem)
        if shared_mem > self._largest_shared_bytes:
            limit = "max_dynamic_shared_size_bytes"
            raise _bad_launch(f"{shared_mem} bytes of shared memory; {limit} is {self._largest_shared_bytes}")
        values = self._packed(library, args)
        coverage.note(self.name)
        addresses = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        with _launching:
            launch = getattr(library, f"emulator_launch_{self._index}")
            launch(ctypes.byref(request), addresses)
            count, text = _findings()
        if count:
            raise EmulatorError(with_source_lines(text, path).splitlines(), count)

    def _packed(self, library: ctypes.PyDLL, args: Sequence[Any]) -> list[np.ndarray]:
        """The arguments as bytes, each checked against the parameter it is for."""
        parameters = self._parameters(library)
        if len(args) != len(parameters):
            raise _bad_launch(f"{self.name} has {len(parameters)} parameters and got {len(args)} arguments")
        values = []
        for i, (argument, (kind, size)) in enumerate(zip(args, parameters, strict=True)):
            value, given = _as_bytes(argument)
            if value.nbytes != size or kind not in _ACCEPTED[given]:
                what = f"{value.nbytes} bytes of kind {given!r} for a parameter of {size} bytes of kind {kind!r}"
                raise _bad_launch(f"argument {i} of {self.name}: {what}")
            values.append(value)
        return values

    def _parameters(self, library: ctypes.PyDLL) -> list[tuple[str, int]]:
        signature = getattr(library, f"emulator_signature_{self._index}")
        signature.restype = ctypes.POINTER(ctypes.c_uint)
        entries, parameters = signature(), []
        while entry := entries[len(parameters)]:
            parameters.append((chr(entry & 255), entry >> 8))
        return parameters


# Of a pointer, an integer, a floating number and a struct: the parameters that each may be given for.
_ACCEPTED = {"p": "p", "i": "ip", "f": "fs", "s": "s"}


def _as_bytes(argument: Any) -> tuple[np.ndarray, str]:
    """What CuPy would pass for an argument, and its kind."""
    if argument is None:
        return np.zeros(1, np.uintp), "p"
    pointer = getattr(getattr(argument, "data", None), "ptr", None)
    if pointer is not None:
        return np.array([pointer], np.uintp), "p"
    if isinstance(argument, bool | int | float):
        dtype = np.bool_ if isinstance(argument, bool) else np.int64 if isinstance(argument, int) else np.float64
        argument = dtype(argument)
    if isinstance(argument, np.generic | np.ndarray) and np.size(argument) == 1:
        value = np.ascontiguousarray(argument).reshape(1)
        return value, {"f": "f", "i": "i", "u": "i", "b": "i"}.get(value.dtype.kind, "s")
    raise TypeError(f"Unsupported type {type(argument)}")


def _three(size: Sequence[int]) -> tuple[int, int, int]:
    if not 1 <= len(size) <= 3:
        raise _bad_launch(f"a grid or block of {len(size)} dimensions")
    x, y, z = (*(int(extent) for extent in size), 1, 1)[:3]
    return x, y, z


def _request(grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int) -> _LaunchRequest:
    for what, size, largest in (("grid", grid, (2**31 - 1, 65535, 65535)), ("block", block, (1024, 1024, 64))):
        if any(not 1 <= extent <= limit for extent, limit in zip(size, largest, strict=True)):
            raise _bad_launch(f"{what} {size}; each is from 1 to {largest}")
    if block[0] * block[1] * block[2] > 1024:
        raise _bad_launch(f"block {block} has more than 1024 threads")
    return _LaunchRequest(grid, block, shared_bytes, settings.checked, settings.order == "reverse")


def _bad_launch(message: str) -> EmulatorError:
    return EmulatorError([f"[BAD_LAUNCH] {message}"], 1)


def _findings() -> tuple[int, str]:
    library = _reporting_library()
    return library.emulator_report_count(), library.emulator_reports().decode(errors="replace")


@cache
def _reporting_library() -> ctypes.PyDLL:
    library, _ = runtime_library()
    library.emulator_reports.restype = ctypes.c_char_p
    return library


class _LaunchRequest(ctypes.Structure):
    """Mirrors emulator_launch_request in abi.h; the kernel's library fills in the rest."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_ulonglong),
        ("checked", ctypes.c_int),
        ("reverse", ctypes.c_int),
        ("entry", ctypes.c_void_p),
        ("argument", ctypes.c_void_p),
        ("library_begin", ctypes.c_void_p),
        ("library_end", ctypes.c_void_p),
    ]
