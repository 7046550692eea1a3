"""What a plan must know of a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass

GRID_X = 2**31 - 1  # most blocks along the first axis of a grid
GRID_YZ = 65535  # and along the others


@dataclass(frozen=True)
class Hardware:
    """Limits of one device, in the words of CUDA's programming guide."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int  # bytes that a block may ask for
    shared_per_multiprocessor: int

    @property
    def tensor_cores(self) -> bool:
        """Whether the device has the asynchronous copies and matrix products that `conv_mma.cu` needs."""
        return self.capability >= (8, 0)

    @property
    def hopper(self) -> bool:
        """Whether the device has the tensor memory accelerator and warpgroup products of sm_90a, which no other has."""
        return self.capability == (9, 0)

    @property
    def floats_per_clock(self) -> int:
        """Float32 multiply-adds of a multiprocessor in one clock (CUDA programming guide, arithmetic instructions)."""
        return 64 if self.capability in ((7, 0), (7, 5), (8, 0)) else 128

    @property
    def doubles_per_clock(self) -> int:
        """The same of float64: the devices for computing have many, those for pictures two."""
        return {(7, 0): 32, (8, 0): 32, (9, 0): 64, (10, 0): 64}.get(self.capability, 2)

    def tensor_products_per_clock(self, dtype: str) -> int:
        """Multiply-adds of one multiprocessor's tensor cores in one clock, by data sheets: float32 is TF32."""
        half = {(8, 0): 1024, (9, 0): 2048, (10, 0): 4096}.get(self.capability, 256)
        return half // 2 if dtype == "float32" else half


_KIB = 1024
KNOWN = tuple(
    Hardware(name, capability, multiprocessors, block * _KIB, multiprocessor * _KIB)
    for name, capability, multiprocessors, block, multiprocessor in (
        ("Tesla V100", (7, 0), 80, 96, 96),
        ("Tesla T4", (7, 5), 40, 64, 64),
        ("A100", (8, 0), 108, 163, 164),
        ("GeForce RTX 3090", (8, 6), 82, 99, 100),
        ("Jetson AGX Orin", (8, 7), 16, 163, 164),
        ("L4", (8, 9), 58, 99, 100),
        ("H200", (9, 0), 132, 227, 228),
        ("B200", (10, 0), 148, 227, 228),
        ("GeForce RTX 5090", (12, 0), 170, 99, 100),
    )
)
