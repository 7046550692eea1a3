"""The processor that kernels are compiled for: this one, or a lesser one that a variable names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from llvmlite import binding


@dataclass(frozen=True)
class Machine:
    """The processor that code is made for."""

    name: str
    features: str
    vector_bytes: int
    registers: int  # of vectors

    @property
    def is_wide(self) -> bool:
        """Whether 64 bytes are multiplied at once: a Zen 4 multiplies one half after the other."""
        return self.vector_bytes == 64 and self.name != "znver4"


@cache
def machine() -> Machine | None:
    """This processor; None where it lacks a fused multiply-add, without which vector kernels are slower than NumPy.

    The variable XPCONV_CPU names a level of x86-64 to keep to: "x86-64-v3" has AVX2, to try and to time here what other
    processors run.
    """
    features = binding.get_host_cpu_features()
    known = binding.get_host_cpu_name(), features.flatten()
    wide, narrow = features.get("avx512f") and features.get("avx512vl"), features.get("avx2") and features.get("fma")
    if asked := os.environ.get("XPCONV_CPU"):
        return _level(asked, {"x86-64-v3": bool(narrow), "x86-64-v4": bool(wide and narrow)})
    if wide:
        return Machine(*known, 64, 32)
    if narrow:
        return Machine(*known, 32, 16)
    if binding.get_process_triple().startswith(("aarch64", "arm64")):
        return Machine(*known, 16, 32)
    return None


def _level(asked: str, here: dict[str, bool]) -> Machine:
    """A level of x86-64 by its name, if this processor has it."""
    if not here.get(asked):
        can = " or ".join(name for name, has in here.items() if has)
        raise ValueError(f"XPCONV_CPU is {asked!r}; kernels can be limited to {can or 'no other processor'} here")
    return Machine(asked, "", *((32, 16) if asked == "x86-64-v3" else (64, 32)))
