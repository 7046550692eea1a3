"""The registers that every kernel used on every device when it was last compiled: `cuda_budgets.txt`.

Compiling all takes eight minutes of a processor and comes to the same for the same text. The table therefore says
what each file's rows follow from, by a fingerprint, and what has not changed since need not be compiled whole again.
``python tests/cuda_budgets.py`` compiles the files that have changed and writes the table anew; a number that grew is
to be explained in the commit.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import nvrtc
from xpconv.cuda import source
from xpconv.cuda.catalogue import instances
from xpconv.cuda.steps import Kernel

TABLE = Path(__file__).with_name("cuda_budgets.txt")
ARCHITECTURES = {
    (7, 5): "sm_75", (8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_89", (9, 0): "sm_90a", (10, 0): "sm_100",
    (12, 0): "sm_120",
}  # fmt: skip
TOGETHER = 6  # kernels of one file that are compiled in one go

Registers = Mapping[tuple[str, str], int]  # by architecture and expression
Batch = tuple[tuple[int, int], str, tuple[Kernel, ...]]  # capability, file, kernels


def batches() -> list[Batch]:
    """What a run of the suite compiles.

    All of a file that has changed since the table was written; of another the kernel with the most registers, which
    would be the first to spill. ``XPCONV_ALL_BUDGETS=1`` compiles all.
    """
    result = []
    for (capability, file, _), kernels in groups().items():
        if file in changed_files() or os.environ.get("XPCONV_ALL_BUDGETS") == "1":
            result += _cut(capability, file, kernels)
        else:
            most = max(kernels, key=lambda kernel: budgets()[ARCHITECTURES[capability], kernel.expression])
            result.append((capability, file, (most,)))
    return result


def usage(capability: tuple[int, int], file: str, kernels: tuple[Kernel, ...]) -> dict[str, nvrtc.Usage]:
    """What the kernels use, compiled as CuPy does it: beside a kernel's own architecture it gives the plain one."""
    architecture, options = ARCHITECTURES[capability], kernels[0].options
    plain = architecture.removesuffix("a") if any(option.startswith("-arch") for option in options) else architecture
    return nvrtc.compiled(source.text(file), [kernel.expression for kernel in kernels], plain, options).usage


@cache
def budgets() -> Registers:
    """The table's."""
    header, *rows = (line.split("\t") for line in _lines() if not line.startswith("#"))
    return {
        (architecture, row[0]): int(cell)
        for row in rows
        for architecture, cell in zip(header[1:], row[1:], strict=True)
        if cell != "-"
    }


@cache
def changed_files() -> frozenset[str]:
    """Files of which something is not as it was when the table was written."""
    told = dict(line.removeprefix("# ").split("\t") for line in _lines() if line.startswith("#"))
    return frozenset(file for file in _files() if told.get(file) != fingerprint(file, budgets()))


def fingerprint(file: str, registers: Registers) -> str:
    """Of all that a file's rows follow from, and of the rows, so that nobody edits a number and has it believed."""
    rows = [
        (architecture, kernel.options, kernel.expression, registers.get((architecture, kernel.expression)))
        for (capability, name, _), kernels in groups().items()
        if name == file
        for architecture in (ARCHITECTURES[capability],)
        for kernel in kernels
    ]
    text = "\n".join((compiler(), source.text(file), *map(repr, rows)))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def compiler() -> str:
    """NVIDIA's, and how it is called."""
    try:
        release = metadata.version("nvidia-cuda-nvrtc-cu12")
    except metadata.PackageNotFoundError:  # installed by other means: it cannot be told apart from another
        release = "unknown"
    return release + Path(nvrtc.__file__).read_text(encoding="utf-8")


@cache
def groups() -> dict[tuple[tuple[int, int], str, tuple[str, ...]], list[Kernel]]:
    """Kernels by capability, file and options."""
    groups = defaultdict(list)
    for capability in ARCHITECTURES:
        for kernel in dict.fromkeys(instances(capability)):
            groups[capability, kernel.file, kernel.options].append(kernel)
    return dict(groups)


def _files() -> list[str]:
    return list(dict.fromkeys(file for _, file, _ in groups()))


def _cut(capability: tuple[int, int], file: str, kernels: list[Kernel]) -> list[Batch]:
    return [(capability, file, tuple(kernels[i : i + TOGETHER])) for i in range(0, len(kernels), TOGETHER)]


def _lines() -> list[str]:
    return TABLE.read_text(encoding="utf-8").splitlines()


def table(registers: Registers) -> str:
    """The text of the file: the fingerprints, and a row of each kernel."""
    expressions = dict.fromkeys(kernel.expression for kernels in groups().values() for kernel in kernels)
    lines = [f"# {file}\t{fingerprint(file, registers)}" for file in _files()]
    lines.append("\t".join(("kernel", *ARCHITECTURES.values())))
    for expression in expressions:
        cells = (str(registers.get((name, expression), "-")) for name in ARCHITECTURES.values())
        lines.append("\t".join((expression, *cells)))
    return "\n".join(lines) + "\n"


def write() -> None:
    """Compile what has changed and write what it uses."""
    registers = dict(budgets())
    for (capability, file, _), kernels in groups().items():
        for batch in _cut(capability, file, kernels) if file in changed_files() else ():
            for expression, used in usage(*batch).items():
                registers[ARCHITECTURES[capability], expression] = used.registers
                if used.spilled:
                    print(f"{ARCHITECTURES[capability]} {expression} spills {used.spilled} bytes", file=sys.stderr)
    TABLE.write_text(table(registers), encoding="utf-8")


if __name__ == "__main__":
    write()
