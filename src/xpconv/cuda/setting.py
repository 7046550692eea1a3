"""What decides between kernels beside the geometry: how arrays lie in memory, the device, what the user asked for."""

from __future__ import annotations

from dataclasses import dataclass

from xpconv.cuda.geometry import element_strides
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.tuning import Measured
from xpconv.spec import Array, Sizes

ALIGNMENT = 16  # bytes that a vector load needs


@dataclass(frozen=True)
class Operand:
    """How an array lies in memory: strides in elements, and whether it starts on a multiple of ALIGNMENT."""

    strides: Sizes
    aligned: bool

    @classmethod
    def of(cls, array: Array) -> Operand:
        """How an array on the device lies there."""
        return cls(element_strides(array), array.data.ptr % ALIGNMENT == 0)


@dataclass(frozen=True)
class Setting:
    """The dtype, the device, and what the user asked for."""

    dtype: str
    hardware: Hardware
    limit: int  # bytes of scratch memory
    precision: str = "highest"
    method: str = "auto"
    measured: Measured | None = None  # which kernels were the fastest, where that is known
