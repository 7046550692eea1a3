"""Faults planted in the CUDA kernels, one at a time: every one must be noticed by a test or by the emulator's checker.

``python tests/cuda_mutants.py [part of a name ...]`` plants them and tells which were caught, by what, and in which
order of the threads; it ends with an error if one survives.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import test_cuda_conv
from cuda_emulator import settings
from cuda_emulator.emulated_cupy import emulated_cupy
from xpconv.cuda import source
from xpconv.cuda.plans import simt

Probe = Callable[[Any], None]  # takes the emulated CuPy; raises where something is wrong


@dataclass(frozen=True)
class Mutant:
    """One fault: a text of a kernel file, what it becomes, and the test that should notice."""

    file: str
    right: str
    wrong: str
    probe: Probe

    @property
    def name(self) -> str:
        """The fault in a line."""
        right, wrong = (" ".join(text.split()) for text in (self.right, self.wrong))
        return f"{self.file}: {right[:60]} -> {wrong[:60] or 'nothing'}"


def simt_probe(limit: int = 1, **wanted: Any) -> Probe:
    """The test of one instance of `conv_simt.cu`."""
    choice = next(c for c in simt.choices() if all(getattr(c, name) == value for name, value in wanted.items()))
    return partial(test_cuda_conv.test_every_instance_computes_tiles_that_are_not_full, choice=choice, limit=limit)


MEDIUM = simt_probe(dtype="float32", tile=simt.MEDIUM, positions_inner=False)
POSITIONS = simt_probe(dtype="float32", tile=simt.MEDIUM, positions_inner=True)
VECTORS = simt_probe(dtype="float32", vector=4)
SPLIT = simt_probe(1 << 26, dtype="float32", tile=simt.MEDIUM, positions_inner=False)

MUTANTS = [
    Mutant("conv_simt.cu", "mine = b_place(i, k, n) && tile_k + k < last_k", "mine = b_place(i, k, n)", MEDIUM),
    Mutant("conv_simt.cu", "&& first_n + n < g.filters;", "&& first_n + n <= g.filters;", MEDIUM),
    Mutant("conv_simt.cu", "if (k >= last_k || !inside) continue;", "if (k > last_k || !inside) continue;", MEDIUM),
    Mutant("conv_simt.cu", "if (k >= last_k || !inside) continue;", "if (k >= last_k) continue;", MEDIUM),
    Mutant("conv_simt.cu", "        __syncthreads();\n    }\n\n    // Store", "    }\n\n    // Store", MEDIUM),
    Mutant("conv_simt.cu", "    __syncthreads();\n    int side = 0;", "    int side = 0;", MEDIUM),
    Mutant("conv_simt.cu", "            side ^= 1;\n", "", MEDIUM),
    Mutant("conv_simt.cu", "if (position >= g.positions ||", "if (position > g.positions ||", MEDIUM),
    Mutant("conv_simt.cu", "|| filter >= g.filters) continue;", ") continue;", MEDIUM),
    Mutant("conv_simt.cu", "        }\n        __syncthreads();\n    }\n}", "        }\n    }\n}", MEDIUM),
    Mutant("conv_simt.cu", "POSITIONS_INNER ? TILE_M : THREADS / WIDTH_K", "THREADS / WIDTH_K", POSITIONS),
    Mutant("conv_simt.cu", "a_m + i * Tile::STEP_M] =", "a_m + i] =", MEDIUM),
    Mutant("conv_simt.cu", "tile_b[k * Tile::ROW_B + n + v]", "tile_b[k * Tile::ROW_B + n]", VECTORS),
    Mutant("conv_simt.cu", "min(first_k + g.depth_per_split, g.depth)", "g.depth", SPLIT),
    Mutant("conv_simt.cu", "(long long)split * g.groups + group", "(long long)split * g.groups", SPLIT),
    Mutant("sum_splits.cu", "split < g.splits", "split <= g.splits", SPLIT),
    Mutant("sum_splits.cu", "place < results", "place <= results", SPLIT),
    Mutant("geometry.cuh", "(unsigned)i < (unsigned)g.size[a];", "i < g.size[a];", MEDIUM),
    Mutant("geometry.cuh", "* g.stride[a] - g.before[a];", "* g.stride[a];", MEDIUM),
    Mutant("geometry.cuh", "term.tap[a] * g.dilation[a];", "term.tap[a];", MEDIUM),
    Mutant("geometry.cuh", "+ (unsigned)n) >> shift", ") >> shift", MEDIUM),
    Mutant("epilogue.cuh", "Element<T>::load(bias[filter])", "Element<T>::load(bias[0])", MEDIUM),
    Mutant("types.cuh", "multiply_add(-a.im, b.im, sum.re)", "multiply_add(a.im, b.im, sum.re)",
           simt_probe(dtype="complex64", positions_inner=False)),
]  # fmt: skip


def verdict(mutant: Mutant) -> str | None:
    """How the fault is noticed, None where it is not."""
    original = source.text.__wrapped__

    def planted(file: str) -> str:
        text = original(file)
        return text.replace(mutant.right, mutant.wrong, 1)

    assert mutant.right in (source.kernel_dir() / mutant.file).read_text(encoding="utf-8"), f"not there: {mutant.name}"
    for order in ("forward", "reverse"):
        with settings.using(order=order), emulated_cupy() as cupy, mock.patch.object(source, "text", planted):
            try:
                _fresh()
                mutant.probe(cupy)
            except Exception as error:
                if type(error).__name__ in ("KernelUnavailable", "CompileException"):
                    raise  # a fault that does not compile proves nothing
                first = next((line for line in str(error).splitlines() if "[" in line), str(error).strip()[:90])
                return f"{order}: {type(error).__name__}: {first[:110]}"
            finally:
                _fresh()
    return None


def _fresh() -> None:
    """Forget what is compiled."""
    from xpconv.cuda import launch

    for known in (launch._functions, launch._failed, launch._prepared):
        known.clear()


def main(wanted: list[str]) -> int:
    """Plant every fault whose name holds one of the words, or all; the number of survivors."""
    chosen = [m for m in MUTANTS if not wanted or any(word in m.name for word in wanted)]
    survivors, start = 0, time.perf_counter()
    for mutant in chosen:
        noticed = verdict(mutant)
        survivors += noticed is None
        print(f"{'caught  ' if noticed else 'SURVIVED'} {mutant.name}\n         {noticed or ''}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught in {time.perf_counter() - start:.0f} s")
    return survivors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
