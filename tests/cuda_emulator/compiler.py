"""Builds the runtime and the kernels with g++, once for each text: what is built is kept on disk between processes.

The cache lies in $XPCONV_EMULATOR_CACHE or in a directory of this user's under the system's temporary directory.
"""

from __future__ import annotations

import ctypes
import fcntl
import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
_RUNTIME_SOURCES = (
    "runtime.cpp",
    "fibres.cpp",
    "collectives.cpp",
    "asynchronous.cpp",
    "tensor_core.cpp",
    "order.cpp",
    "shadow.cpp",
    "checker.cpp",
    "undefined.cpp",
    "reports.cpp",
)
_DAYS_KEPT = 3
_OF_A_KERNEL = ("compiler.py", "abi.h", "device.h", "ptx_twins.h", "sm90_twins.h", "entry.h")

# Contraction is off so that a kernel's arithmetic is what its text says: `fmaf` where it says fmaf.
_COMMON = ("-std=c++17", "-g1", "-fPIC", "-pipe", "-ffp-contract=off", "-fno-strict-aliasing")
_RUNTIME_FLAGS = (*_COMMON, "-O3", "-fvisibility=default", "-Wall", "-Wextra")
_KERNEL_FLAGS = (*_COMMON, "-w", "-fno-exceptions", "-fno-rtti", "-fno-plt")
_UNCHECKED_FLAGS = ("-O2",)
# The instrumentation calls hooks that the runtime defines (checker.cpp); the sanitizers' own libraries are not linked.
_CHECKED_FLAGS = (
    "-O1",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift-exponent",
)


class CompileException(Exception):
    """A kernel that does not compile, with the compiler's message."""


def why_unavailable() -> str | None:
    """The reason why kernels cannot be emulated on this machine, or None."""
    if sys.platform != "linux":
        return "the CUDA emulator needs Linux"
    if shutil.which("g++") is None:
        return "the CUDA emulator needs g++"
    return None


@cache
def runtime_library() -> tuple[ctypes.PyDLL, Path]:
    """The runtime, loaded once: every kernel library of this process shares its registry of memory."""
    key = _digest(_compiler_identity(), *_RUNTIME_FLAGS, *_contents(("compiler.py", "*.cpp", "*.h")))
    library = cache_directory() / f"runtime-{key}.so"
    sources = [str(HERE / name) for name in _RUNTIME_SOURCES]
    # No soname, so that a kernel library refers to this very file.
    _build(library, {}, ["g++", *_RUNTIME_FLAGS, *_machine_flags(), "-shared", *sources])
    # PyDLL keeps the interpreter's lock: no garbage collection unregisters memory while a kernel runs.
    return ctypes.PyDLL(str(library)), library


def kernel_library(source: str, defines: Sequence[str], *, checked: bool) -> Path:
    """The shared library of a kernel's text, linked to the runtime."""
    _, runtime = runtime_library()
    flags = [*_KERNEL_FLAGS, *(_CHECKED_FLAGS if checked else _UNCHECKED_FLAGS), *_machine_flags(), *defines]
    key = _digest(source, runtime.name, *flags, *_contents(_OF_A_KERNEL))
    library = cache_directory() / f"kernel-{key}.so"
    text = library.with_suffix(".cpp")
    unlinked = library.with_suffix(".o")
    # Compiled by bare name in its own directory, so that reports name files as the text's #line marks do.
    compilation = ["g++", *flags, "-include", str(HERE / "device.h"), "-c", text.name, "-o", unlinked.name]
    # Linked in a second step that knows nothing of sanitizers, or their libraries would come with it.
    linkage = ["g++", "-shared", "-Wl,-Bsymbolic", "-nodefaultlibs", unlinked.name, str(runtime), "-lm", "-lc"]
    _build(library, {text: source}, compilation, linkage)
    unlinked.unlink(missing_ok=True)
    return library


@cache
def cache_directory() -> Path:
    """Where the built libraries are kept; those that nobody has used for days are removed."""
    named = os.environ.get("XPCONV_EMULATOR_CACHE")
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    directory = Path(named) if named else Path(tempfile.gettempdir()) / f"xpconv-cuda-emulator-{user}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    oldest = time.time() - _DAYS_KEPT * 86400
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # another process cleans up too
            if path.stat().st_mtime < oldest:
                path.unlink()
    return directory


def _build(library: Path, sources: dict[Path, str], *commands: Sequence[str]) -> None:
    """Write the sources and run the commands, of which the last makes the library, unless it is there.

    One process builds; the others wait for it, and see the library only when it is complete.
    """
    if library.exists():
        library.touch()
        return
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return
        for path, text in sources.items():
            path.write_text(text, encoding="utf-8")
        unfinished = library.with_suffix(".unfinished")
        *before, last = commands
        for command in (*before, [*last, "-o", unfinished.name]):
            done = subprocess.run(command, cwd=library.parent, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CompileException(done.stderr)
        unfinished.replace(library)


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]


@cache
def _contents(patterns: tuple[str, ...]) -> list[bytes]:
    return [path.read_bytes() for pattern in patterns for path in sorted(HERE.glob(pattern))]


@cache
def _compiler_identity() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout + str(_processor())


def _machine_flags() -> tuple[str, ...]:
    """Use this processor's own instructions, most of all its fused multiply-add; `_processor` is part of the key."""
    return ("-march=native",) if platform.machine() == "x86_64" else ()


@cache
def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
