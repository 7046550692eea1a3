"""Machine code from kernels: compiled once for this processor, kept on disk, loaded by its address.

The name of a file of the cache holds what the code follows from: the text of this package, LLVM, and the processor.
An edited kernel or another machine therefore never meets old code.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from llvmlite import __version__ as llvmlite_version
from llvmlite import binding, ir

from xpconv.files import cache_folder, written_whole


@dataclass(frozen=True)
class Machine:
    """The processor that code is made for."""

    name: str
    features: str
    vector_bytes: int
    registers: int  # of vectors


@cache
def machine() -> Machine | None:
    """This processor; None where it lacks a fused multiply-add, without which vector kernels are slower than NumPy."""
    features = binding.get_host_cpu_features()
    known = Machine(binding.get_host_cpu_name(), features.flatten(), 0, 0)
    if features.get("avx512f") and features.get("avx512vl"):
        return Machine(known.name, known.features, 64, 32)
    if features.get("avx2") and features.get("fma"):
        return Machine(known.name, known.features, 32, 16)
    if binding.get_process_triple().startswith(("aarch64", "arm64")):
        return Machine(known.name, known.features, 16, 32)
    return None


class Library:
    """The kernels of one module, by name."""

    def __init__(self, name: str, object_code: bytes, kernels: tuple[str, ...]) -> None:
        builder = binding.JITLibraryBuilder().add_object_img(object_code).add_current_process()
        for kernel in kernels:
            builder.export_symbol(kernel)
        self._kept = builder.link(_jit(), name)  # the code lives as long as this does
        self._addresses = {kernel: self._kept[kernel] for kernel in kernels}

    def address(self, kernel: str) -> int:
        """Where a kernel begins."""
        return self._addresses[kernel]

    def function(self, kernel: str, arguments: int, *, returns: bool = False) -> Callable[..., Any]:
        """A kernel of so many integers as a Python function, which runs without the interpreter's lock."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int64 if returns else None, *([ctypes.c_int64] * arguments))
        return kind(self._addresses[kernel])


_lock = Lock()
_libraries: dict[str, Library | None] = {}


def library(name: str, make: Callable[[ir.Module], tuple[str, ...]]) -> Library | None:
    """The library of that name, from memory, from disk, or compiled now; None, with one warning, where that fails."""
    with suppress(KeyError):
        return _libraries[name]
    with _lock:
        if name not in _libraries:
            try:
                _libraries[name] = _loaded(name) or _compiled(name, make)
            except (RuntimeError, OSError) as error:  # LLVM's own errors are RuntimeErrors
                warnings.warn(f"xpconv's kernels {name!r} do not compile here, NumPy answers: {error}", stacklevel=2)
                _libraries[name] = None
    return _libraries[name]


def _loaded(name: str) -> Library | None:
    """From the cache; None where it is not there, or cannot be used."""
    path = _cached(name)
    try:
        names, _, object_code = path.read_bytes().partition(b"\n")
        return Library(name, object_code, tuple(names.decode().split()))
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None


def _compiled(name: str, make: Callable[[ir.Module], tuple[str, ...]]) -> Library:
    module = ir.Module(name)
    module.triple = binding.get_process_triple()
    kernels = make(module)
    object_code = _object_code(str(module))
    path = _cached(name)
    with suppress(OSError):  # a cache that cannot be written costs the next process its time, and nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_bytes(" ".join(kernels).encode() + b"\n" + object_code)
    return Library(name, object_code, kernels)


def _object_code(text: str) -> bytes:
    parsed = binding.parse_assembly(text)
    parsed.verify()
    target = _target_machine()
    options = binding.PipelineTuningOptions(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False  # the kernels are both
    passes = binding.create_pass_builder(target, options)
    passes.getModulePassManager().run(parsed, passes)
    return target.emit_object(parsed)


@cache
def _jit() -> Any:
    """LLVM's newer linker: the older one puts code and its constants where it finds room, and where they came to lie
    more than 2 GB apart an assertion of LLVM's ended the process.
    """
    return binding.create_lljit_compiler(_target_machine(), use_jit_link=True)


def _target_machine() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()  # of a pause between two looks on an ARM, without which LLVM aborts
    here = machine()
    assert here is not None
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=here.name,
        features=here.features,
        opt=3,
        reloc="pic",
        codemodel="small" if sys.maxsize < 2**32 else "default",
    )


def _cached(name: str) -> Path:
    return cache_folder() / "cpu" / f"{name}-{_fingerprint()}.o"


@cache
def _fingerprint() -> str:
    """Of the text that kernels are made from, of LLVM and of the processor."""
    here = machine()
    digest = hashlib.sha256(f"{llvmlite_version} {binding.llvm_version_info} {here} {os.name}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
