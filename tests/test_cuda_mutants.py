"""The tests and the emulator's checker notice the faults that people make in CUDA kernels.

Of the faults in `cuda_mutants.py` a run of the suite plants a few of each kernel, since every one is compiled anew;
``XPCONV_ALL_MUTANTS=1 pytest tests/test_cuda_mutants.py`` plants them all.
"""

import os

import pytest

from cuda_emulator.compiler import why_unavailable
from cuda_emulator.emulated_cupy import real_cupy_answers
from cuda_mutants import MUTANTS
from cuda_mutation import verdict
from xpconv.cuda import source

pytestmark = [
    pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable())),
    pytest.mark.skipif(real_cupy_answers(), reason="a CUDA device answers to CuPy; faults are planted in an emulation"),
]

PLANTED = [mutant for mutant in MUTANTS if mutant.usual or os.environ.get("XPCONV_ALL_MUTANTS") == "1"]


@pytest.mark.parametrize("mutant", PLANTED, ids=str)
def test_a_planted_fault_is_noticed(mutant):
    assert verdict(mutant), f"nobody notices {mutant}"


def test_every_kernel_has_faults_and_every_run_plants_one():
    kernels = {file.name for file in source.kernel_dir().iterdir() if file.name.endswith(".cu")}
    assert kernels <= {mutant.file for mutant in MUTANTS if mutant.usual}
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS)
