"""Every kernel that a plan can name compiles for every device we know, within its budget of registers, none spilled.

Shared memory is what a plan asks for and nothing beside it; that it is there, the tests of the plans check for every
device. The budgets are what the kernels used when they were last compiled; `cuda_budgets.py` says which are compiled.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import cuda_budgets
from cuda_budgets import ARCHITECTURES, batches, budgets, usage
from xpconv.cuda import source

pytestmark = pytest.mark.skipif(
    find_spec("cuda") is None or find_spec("cuda.bindings") is None,
    reason="NVIDIA's compiler is not installed: pip install 'cuda-bindings==12.9.*' 'cuda-toolkit[nvrtc]==12.*'",
)


@pytest.mark.parametrize(
    ("capability", "file", "kernels"),
    [pytest.param(*batch, id=f"{ARCHITECTURES[batch[0]]}-{batch[1]}-{i}") for i, batch in enumerate(batches())],
)
def test_kernels_compile_within_their_budgets(capability, file, kernels):
    for expression, used in usage(capability, file, kernels).items():
        assert used.spilled == 0, f"{expression} spills {used.spilled} bytes"
        assert used.shared == 0, f"{expression} has shared memory that no plan counts"
        budget = budgets()[ARCHITECTURES[capability], expression]
        assert used.registers <= budget, f"{expression} uses {used.registers} registers, its budget is {budget}"


def test_every_run_compiles_a_kernel_of_each_file_for_each_device_and_all_of_a_file_that_has_changed(monkeypatch):
    every = cuda_budgets.groups()
    monkeypatch.setattr(cuda_budgets, "changed_files", lambda: {"pool.cu"})
    compiled = {group: [] for group in every}
    for capability, file, kernels in batches():
        compiled[capability, file, kernels[0].options] += kernels
    for group, kernels in every.items():
        if group[1] == "pool.cu":
            assert compiled[group] == kernels
        else:
            assert len(compiled[group]) == 1
    monkeypatch.setenv("XPCONV_ALL_BUDGETS", "1")
    assert sum(len(kernels) for _, _, kernels in batches()) == sum(map(len, every.values()))


def test_a_file_has_changed_with_all_that_its_registers_follow_from(monkeypatch):
    def changed():
        return cuda_budgets.changed_files.__wrapped__()

    before, kernels = changed(), cuda_budgets.groups()
    for name, value, files in [
        ("budgets", {**budgets(), ("sm_80", "sum_splits<float>"): 1}, {"sum_splits.cu"}),
        ("compiler", "another", {file for _, file, _ in kernels}),
        ("groups", {group: several[1:] for group, several in kernels.items()}, {file for _, file, _ in kernels}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(cuda_budgets, name, lambda value=value: value)
            assert changed() == before | files
    text = source.text
    monkeypatch.setattr(source, "text", lambda file: text(file).replace("is_nan", "isnan"))
    assert {"pool.cu", "pool_boxes.cu"} <= changed()
