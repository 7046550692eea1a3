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
    loses_track: bool = True  # of what is read next, where several rows are read in turn

    @property
    def is_wide(self) -> bool:
        """Whether 64 bytes are multiplied at once: a Zen 4 multiplies one half after the other."""
        return self.vector_bytes == 64 and self.name != "znver4"

    @property
    def stores_lanes(self) -> bool:
        """Whether some lanes of a vector are stored as fast as all: AVX2's masked store takes a Zen 3 12 cycles, of
        every lane too, and NEON has none.
        """
        return self.vector_bytes == 64

    @property
    def takes_four(self) -> bool:
        """Whether tiles have four vectors of filters, which load less for what they multiply than taller ones of two.

        That was measured on an Emerald Rapids, and on no Zen.
        """
        return self.is_wide and not self.loses_track


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
        return Machine(*known, 64, 32, _loses_track())
    if narrow:
        return Machine(*known, 32, 16, _loses_track())
    if binding.get_process_triple().startswith(("aarch64", "arm64")):
        return Machine(*known, 16, 32)
    return None


def asks_ahead() -> bool:
    """Whether kernels ask early for what they read later, and for the memory of what they write."""
    here = machine()
    return here is not None and here.loses_track


def _level(asked: str, here: dict[str, bool]) -> Machine:
    """A level of x86-64 by its name, if this processor has it."""
    if not here.get(asked):
        can = " or ".join(name for name, has in here.items() if has)
        raise ValueError(f"XPCONV_CPU is {asked!r}; kernels can be limited to {can or 'no other processor'} here")
    return Machine(asked, "", *((32, 16) if asked == "x86-64-v3" else (64, 32)), _loses_track())


def _loses_track() -> bool:
    """Whether this x86 processor has to be asked early for what lies in several rows that are read in turn.

    A Zen does (`ahead`). An Emerald Rapids finds it out, and asking only takes time: max 2x2s2 64@112, N=8 0.66 ms
    without and 0.78 with, 3x3s2 0.82 and 0.96, depthwise 3x3 144@56 0.91 and 1.03, filters of 3x3 on 2048x2048 1.30 and
    1.45.
    """
    return binding.get_host_cpu_name().startswith("znver")
