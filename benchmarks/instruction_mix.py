"""What the compiler made of the CUDA kernels, read off their machine code with no GPU: estimates, not measurements.

For some instances of every kernel: registers, how many warps of its blocks fit a multiprocessor, the instructions of
the innermost loop of the arithmetic by kind, and those of the loop around it. Run it from the checkout:

    pip install "cuda-bindings==12.9.*" "cuda-toolkit[nvrtc]==12.*" nvidia-cuda-nvdisasm
    PYTHONPATH=src:tests python -m benchmarks.instruction_mix
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nvrtc import compiled
from xpconv.cuda import source
from xpconv.cuda.catalogue import instances
from xpconv.cuda.steps import Kernel

REGISTERS, WARPS = 65536, 64  # of a multiprocessor of compute capability 9.0
KINDS = {
    "products": ("FFMA", "DFMA", "HMMA", "HGMMA", "FMNMX", "FADD", "FMUL", "DADD"),
    "tensor": ("HMMA", "HGMMA"),
    "shared": ("LDS", "STS", "LDSM", "LDGSTS"),
    "global": ("LDG", "STG", "LD.", "ST."),
    "integer": ("IMAD", "IADD", "LEA", "LOP", "SHF", "ISETP", "SEL", "PRMT", "MOV", "IABS", "VIADD"),
}
SHOWN = {  # a part of the expression: threads of a block
    "conv_simt<float,128,128,16,8,8,4,": 256,
    "conv_simt<float,64,64,16,4,4,4,": 256,
    "conv_simt<double,64,64,8,4,4,1,false": 256,
    "conv_mma<half_bits,1,128,128,64,32,": 256,
    "conv_mma<float,1,128,128,64,32,": 256,
    "conv_mma<float,3,128,128,64,32,": 256,
    "conv_sm90<half_bits,256,": 384,
    "conv_depthwise_channels<float,4,3": 128,
    "pool<Maximum<float>,4,": 256,
    "conv_depthwise_positions<float": 256,
    "conv_stem<float": 256,
}


@dataclass(frozen=True)
class Loop:
    """The instructions between a label and the branch back to it."""

    start: int
    end: int
    instructions: tuple[str, ...]

    def inside(self, other: Loop) -> bool:
        """Whether another loop goes around this one."""
        return self is not other and other.start <= self.start and self.end <= other.end

    def count(self, kind: str) -> int:
        """How many are of a kind."""
        return sum(name.startswith(KINDS[kind]) for name in self.instructions)


def disassembled(cubin: bytes) -> dict[str, list[tuple[int, str]]]:
    """Address and instruction, by function."""
    tool = Path(find_spec("nvidia").submodule_search_locations[0], "cu13", "bin", "nvdisasm")  # type: ignore[union-attr,index]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] = []
    labels: dict[str, int] = {}
    pending: list[str] = []
    for line in text.splitlines():
        if section := re.match(r"\.text\.(\S+):", line):
            current = functions.setdefault(section[1], [])
        elif label := re.match(r"(\.L_x_\d+):", line):
            pending.append(label[1])
        elif code := re.match(r"\s+/\*([0-9a-f]+)\*/\s+(.*?);", line):
            address = int(code[1], 16)
            labels.update(dict.fromkeys(pending, address))
            pending = []
            current.append((address, code[2]))
    for lines in functions.values():
        lines[:] = [(a, re.sub(r"`\((\.L_x_\d+)\)", lambda m: hex(labels.get(m[1], 0)), t)) for a, t in lines]
    return functions


def loops(lines: list[tuple[int, str]]) -> list[Loop]:
    """Every loop of a function."""
    found = []
    for address, text in lines:
        back = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+)", text)
        if back and (start := int(back[1], 16)) < address:
            found.append(Loop(start, address, tuple(_name(t) for a, t in lines if start <= a <= address)))
    return found


def busiest(found: list[Loop]) -> tuple[Loop, Loop | None]:
    """The innermost loop with the most products, and the smallest loop around it."""
    innermost = [loop for loop in found if not any(other.inside(loop) for other in found)]
    inner = max(innermost, key=lambda loop: (loop.count("tensor"), loop.count("products")))
    around = [loop for loop in found if inner.inside(loop)]
    return inner, min(around, key=lambda loop: len(loop.instructions), default=None)


def _name(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]


def shown() -> list[tuple[Kernel, int]]:
    """Kernels and the threads of their blocks."""
    every = instances((9, 0))
    first = {part: next((k for k in every if k.expression.startswith(part)), None) for part in SHOWN}
    return [(kernel, SHOWN[part]) for part, kernel in first.items() if kernel is not None]


def main() -> None:
    """Print the table."""
    columns = ("kernel", "registers", "warps of 64", "inner loop", "tensor", "other products", "shared", "global")
    print("| " + " | ".join((*columns, "integer", "around it")) + " |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kernel, threads in shown():
        binary = compiled(source.text(kernel.file), [kernel.expression], "sm_90", kernel.options)
        names = {expression: name for name, expression in binary.names.items()}
        inner, around = busiest(loops(disassembled(binary.cubin)[names[kernel.expression]]))
        registers, tensor = binary.usage[kernel.expression].registers, inner.count("tensor")
        blocks = min(REGISTERS // (-(-registers // 8) * 8 * threads), WARPS * 32 // threads)
        cells = (
            f"`{kernel.expression}`", registers, blocks * threads // 32, len(inner.instructions), tensor,
            inner.count("products") - tensor, inner.count("shared"), inner.count("global"), inner.count("integer"),
            len(around.instructions) - len(inner.instructions) if around else "",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")
        if "-v" in sys.argv:
            print(Counter(inner.instructions).most_common(14))


if __name__ == "__main__":
    main()
