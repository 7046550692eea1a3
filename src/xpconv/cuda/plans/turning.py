"""When channels-first arrays are worth turning: the tensor cores read channels last, and a turn is a pass over memory.

Rates are estimates from data sheets, in units of one multiprocessor and one clock; only ratios matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from xpconv.cuda.hardware import Hardware
from xpconv.cuda.kernels import ITEMSIZE
from xpconv.cuda.plans import mma
from xpconv.plan import conv_operations
from xpconv.spec import ConvSpec

_ORDINARY_SHARE, _TENSOR_SHARE = 0.6, 0.4  # of the peak rates, what the kernels are expected to reach
_BYTES = 10  # of memory, per multiprocessor and clock
_LAUNCHES = 3 * 5000  # clocks of the turns' launches


@dataclass(frozen=True)
class Turn:
    """Items that are turned at a time, and why."""

    items: int
    workspace: int  # bytes of the copies
    reason: str


@lru_cache(maxsize=4096)
def turn(spec: ConvSpec, dtype: str, hardware: Hardware, limit: int, precision: str) -> Turn | None:
    """How a channels-first convolution is turned, where that is expected to pay and the copies fit the limit."""
    if spec.layout != "channels_first" or spec.padding_mode == "constant" or not min(spec.y_shape):
        return None
    products = mma.products(dtype, precision)
    if not _suits(spec, dtype, hardware, precision):
        return None
    half = limit // 2  # the other half is for the convolution itself
    items = min((half - _weight_bytes(spec, dtype)) // max(_item_bytes(spec, dtype), 1), spec.batch)
    if items < 1:
        return None
    multiplications = conv_operations(spec) / 2 / hardware.multiprocessors
    ordinary = multiplications / (_ORDINARY_SHARE * hardware.floats_per_clock)
    tensor = multiplications * products / (_TENSOR_SHARE * hardware.tensor_products_per_clock(dtype))
    turns = 2 * _item_bytes(spec, dtype) * spec.batch / _BYTES / hardware.multiprocessors + _LAUNCHES
    if tensor + turns >= ordinary:
        return None
    workspace = _weight_bytes(spec, dtype) + items * _item_bytes(spec, dtype)
    return Turn(items, workspace, f"turned to channels last, {items} of {spec.batch} items at a time")


def _suits(spec: ConvSpec, dtype: str, hardware: Hardware, precision: str) -> bool:
    """Whether the tensor cores take the convolution once its channels are dense."""
    if dtype not in mma.DTYPES or mma.unfit_device(dtype, hardware, precision) is not None:
        return False
    unit = mma.CHUNK // ITEMSIZE[dtype]
    channels, filters = spec.channels // spec.groups, spec.filters // spec.groups
    deep = math.prod(spec.window) * min(channels, filters) >= mma.LEAST_DEPTH
    return channels % unit == 0 and filters % unit == 0 and deep


def _item_bytes(spec: ConvSpec, dtype: str) -> int:
    elements = spec.channels * math.prod(spec.size) + spec.filters * math.prod(spec.out_size)
    return elements * ITEMSIZE[dtype]


def _weight_bytes(spec: ConvSpec, dtype: str) -> int:
    return math.prod(spec.w_shape) * ITEMSIZE[dtype]
