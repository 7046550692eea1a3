"""Compiles kernels to machine code with NVIDIA's run-time compiler, which needs no GPU, and reads what they use."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What ptxas says of one kernel, between the line that names it and the line that counts its registers.
_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?"
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor."""

    registers: int  # of each thread
    spilled: int  # bytes stored to and loaded from local memory because registers ran out
    shared: int  # bytes of shared memory beyond what a launch asks for


@dataclass(frozen=True)
class Binary:
    """Machine code of some kernels, and what each uses, by name expression."""

    cubin: bytes
    usage: dict[str, Usage]
    names: dict[str, str]  # name expressions by the names in the code


class CompileError(Exception):
    """The compiler's words."""


def compiled(text: str, expressions: list[str], architecture: str, options: tuple[str, ...] = ()) -> Binary:
    """Kernels compiled for "sm_80" and the like."""
    from cuda.bindings import nvrtc

    def checked(result):
        status, *values = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(nvrtc.nvrtcGetErrorString(status)[1].decode())
        return values[0] if values else None

    program = checked(nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], []))
    try:
        for expression in expressions:
            checked(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
        # a kernel's own options and then those that CuPy 14 gives, in that order: of two architectures the "a" wins
        words = [*options, "-std=c++17", "-ftz=true", f"-arch={architecture}", "--device-as-default-execution-space"]
        words.append("--ptxas-options=-v")
        (status,) = nvrtc.nvrtcCompileProgram(program, len(words), [word.encode() for word in words])
        log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        log = log.decode(errors="replace").strip("\0 \n")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(log)
        cubin = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
        checked(nvrtc.nvrtcGetCUBIN(program, cubin))
        names = {checked(nvrtc.nvrtcGetLoweredName(program, e.encode())).decode(): e for e in expressions}
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    matches = [match for match in _USAGE.finditer(log) if match[1] in names]
    found = {names[m[1]]: Usage(int(m[4]), int(m[2]) + int(m[3]), _shared(m[5])) for m in matches}
    assert set(found) == set(expressions), log
    assert "C75" not in log, f"the compiler waits between products that should overlap: {log}"
    return Binary(cubin, found, names)


def _shared(words: str) -> int:
    size = re.search(r"(\d+) bytes smem", words)
    return int(size[1]) if size else 0
