"""Machine code from kernels: compiled once, in the background, kept on disk, loaded by its address.

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
from functools import cache, partial
from itertools import count
from pathlib import Path
from threading import Event, Lock
from typing import Any

from llvmlite import __version__ as llvmlite_version
from llvmlite import binding, ir

from xpconv.cpu.compiled.background import Background
from xpconv.cpu.compiled.processor import machine as machine
from xpconv.files import cache_folder, written_whole

_numbers = count()  # of libraries


class Library:
    """The kernels of one module, by name."""

    def __init__(self, name: str, object_code: bytes, kernels: tuple[str, ...]) -> None:
        builder = binding.JITLibraryBuilder().add_object_img(object_code).add_current_process()
        for kernel in kernels:
            builder.export_symbol(kernel)
        unique = f"{name}-{next(_numbers)}"  # in a child process too, whose parent may just have linked it
        self._kept = builder.link(_jit(), unique)  # the code lives as long as this does
        self._addresses = {kernel: self._kept[kernel] for kernel in kernels}

    def address(self, kernel: str) -> int:
        """Where a kernel begins."""
        return self._addresses[kernel]

    def function(self, kernel: str, arguments: int, *, returns: bool = False) -> Callable[..., Any]:
        """A kernel of so many integers as a Python function, which runs without the interpreter's lock.

        Bytes stand for where they lie. ctypes passes four pointers in 0.24 us, and four integers of 64 bits in 0.44.
        """
        kind = ctypes.CFUNCTYPE(ctypes.c_int64 if returns else None, *([ctypes.c_void_p] * arguments))
        return kind(self._addresses[kernel])


# --- Those that are there, and those that are being made --------------------------------------------------------------

_libraries: dict[str, Library | None] = {}  # None where one does not compile
_awaited: dict[str, Event] = {}  # of those that are being compiled
_failures: dict[str, Exception] = {}  # that nobody was told of
_background = Background("xpconv-compiler")
_lock = Lock()  # of all these
_llvm = Lock()  # of LLVM, which serves one caller at a time; a child process begins while nobody is in it


def library(name: str, make: Callable[[ir.Module], tuple[str, ...]]) -> Library | None:
    """The library of that name; None, with one warning, where it does not compile, and while it is being compiled.

    One that is not on disk is compiled in the background, in some tenths of a second. Where the variable
    XPCONV_COMPILE is "wait", the caller waits for it.
    """
    found = _libraries.get(name)
    return _sought(name, make) if found is None else found


def settled() -> int | None:
    """How many libraries were asked for; None while one of them is being compiled."""
    return None if _awaited else len(_libraries)


def any_fails() -> bool:
    """Whether a library does not compile here."""
    return None in _libraries.copy().values()  # the compiler's thread adds to them


def _sought(name: str, make: Callable[[ir.Module], tuple[str, ...]]) -> Library | None:
    """From disk at once, as long as nobody else is in LLVM; else from the background."""
    with _lock:
        if name not in _libraries and name not in _awaited:
            if _background.is_idle and (found := _loaded(name)):
                _libraries[name] = found
            else:
                made = Event()
                if _background.do(partial(_make_beside, name, make, made)):
                    _awaited[name] = made
        awaited = _awaited.get(name)
    if awaited is not None and _waits():
        awaited.wait()
    if _failures:
        _tell_failures()
    return _libraries.get(name)


def _tell_failures() -> None:
    """One warning of all that have failed since the last."""
    with _lock:
        failures = _failures.copy()
        _failures.clear()
    for error in [*failures.values()][:1]:
        names = ", ".join(failures)
        warnings.warn(f"xpconv's kernels {names} do not compile here, NumPy answers: {error}", stacklevel=4)


def _waits() -> bool:
    """Whether callers wait for what is being compiled."""
    how = os.environ.get("XPCONV_COMPILE") or "background"
    if how not in ("background", "wait"):
        raise ValueError(f'XPCONV_COMPILE must be "background" or "wait", got {how!r}')
    return how == "wait"


def _make_beside(name: str, make: Callable[[ir.Module], tuple[str, ...]], made: Event) -> None:
    """Put a library where callers find it; another process may have compiled it meanwhile."""
    found, failure = None, None
    try:
        found = _loaded(name) or _compiled(name, make)
    except Exception as error:  # that a call tells of
        failure = error
    with _lock:
        if failure is not None:
            _failures[name] = failure
        _libraries[name] = found
        _awaited.pop(name, None)
    made.set()


def _after_fork() -> None:
    """A child process has none of its parent's threads; nobody was in LLVM when it began."""
    global _lock
    _lock = Lock()
    _awaited.clear()
    _llvm.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_llvm.acquire, after_in_parent=_llvm.release, after_in_child=_after_fork)


# --- From disk, or by LLVM --------------------------------------------------------------------------------------------


def _loaded(name: str) -> Library | None:
    """From the cache; None where it is not there, or cannot be used."""
    path = _cached(name)
    try:
        names, _, object_code = path.read_bytes().partition(b"\n")
        with _llvm:
            return Library(name, object_code, tuple(names.decode().split()))
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None


def _compiled(name: str, make: Callable[[ir.Module], tuple[str, ...]]) -> Library:
    module = ir.Module(name)
    module.triple = binding.get_process_triple()
    kernels = make(module)
    with _llvm:
        object_code = _object_code(str(module))
        made = Library(name, object_code, kernels)
    path = _cached(name)
    with suppress(OSError):  # a cache that cannot be written costs the next process its time, and nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_bytes(" ".join(kernels).encode() + b"\n" + object_code)
    return made


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
    """Of the text that kernels and the tables they read are made from, of LLVM and of the processor."""
    here = machine()
    digest = hashlib.sha256(f"{llvmlite_version} {binding.llvm_version_info} {here} {os.name}".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
