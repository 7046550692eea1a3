"""Every kernel that a plan can name compiles for every device we know, within its budget of registers, none spilled.

Shared memory is what a plan asks for and nothing beside it; that it is there, the tests of the plans check for every
device. The budgets are what the kernels used when they were last looked at. ``python tests/test_cuda_budget.py`` writes
them anew; a number that grew is to be explained in the commit.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from nvrtc import compiled
from xpconv.cuda import source
from xpconv.cuda.catalogue import instances
from xpconv.cuda.steps import Kernel

TABLE = Path(__file__).with_name("cuda_budgets.txt")
ARCHITECTURES = {
    (7, 5): "sm_75", (8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_89", (9, 0): "sm_90a", (10, 0): "sm_100",
    (12, 0): "sm_120",
}  # fmt: skip
TOGETHER = 6  # kernels of one file that are compiled in one go

pytestmark = pytest.mark.skipif(
    find_spec("cuda") is None or find_spec("cuda.bindings") is None,
    reason="NVIDIA's compiler is not installed: pip install 'cuda-bindings==12.9.*' 'cuda-toolkit[nvrtc]==12.*'",
)


def batches() -> list[tuple[tuple[int, int], str, tuple[Kernel, ...]]]:
    """Kernels of one file for one architecture, a few at a time."""
    result = []
    for capability in ARCHITECTURES:
        by_file = defaultdict(list)
        for kernel in dict.fromkeys(instances(capability)):
            by_file[kernel.file, kernel.options].append(kernel)
        for (file, _), kernels in by_file.items():
            cuts = range(0, len(kernels), TOGETHER)
            result += [(capability, file, tuple(kernels[cut : cut + TOGETHER])) for cut in cuts]
    return result


@cache
def budgets() -> dict[tuple[str, str], int]:
    """Registers by architecture and expression."""
    header, *rows = (line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines())
    return {
        (architecture, row[0]): int(cell)
        for row in rows
        for architecture, cell in zip(header[1:], row[1:], strict=True)
        if cell != "-"
    }


def usage(capability, file, kernels):
    """What the kernels use, compiled as CuPy does it: beside a kernel's own architecture it gives the plain one."""
    architecture, options = ARCHITECTURES[capability], kernels[0].options
    plain = architecture.removesuffix("a") if any(option.startswith("-arch") for option in options) else architecture
    return compiled(source.text(file), [kernel.expression for kernel in kernels], plain, options).usage


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


def write_table() -> None:
    """Compile everything and write what it uses."""
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for capability, file, kernels in batches():
        for expression, used in usage(capability, file, kernels).items():
            rows[expression][ARCHITECTURES[capability]] = used.registers
            if used.spilled:
                print(f"{ARCHITECTURES[capability]} {expression} spills {used.spilled} bytes", file=sys.stderr)
    lines = ["\t".join(("kernel", *ARCHITECTURES.values()))]
    for expression, cells in rows.items():
        lines.append("\t".join((expression, *(str(cells.get(name, "-")) for name in ARCHITECTURES.values()))))
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()
