"""Descriptors for Hopper's tensor memory accelerator: what a kernel's one instruction copies out of a whole array.

A plan names arrays and never sees them, so it holds a `TensorMap` without an address; at the launch the driver turns
that and the array's address into the 128 opaque bytes that the kernel takes by value. Dimensions are told from the
innermost one outwards, as the driver wants them. Names and limits: CUDA driver API, "Tensor Map Object Management".
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xpconv.spec import Sizes

ENCODED = np.dtype([("opaque", "u8", 16)])
SWIZZLED_ROW = 128  # bytes of the innermost side of a box, in the swizzle that wgmma knows as its widest

_DATA_TYPES = {"float16": 6, "bfloat16": 9, "float32": 11}  # CUtensorMapDataType; float32 is rounded to TF32 on its way
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
_INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_128B, _FILL_ZEROS = 0, 3, 2, 0
_ALIGNMENT = 64  # of the descriptor, when the driver writes it
_MOST_KNOWN = 64  # addresses that a map remembers
_MOST_STRIDE, _MOST_SIZE, _MOST_STEP = 2**40, 2**32, 8
_CORNER_BITS = {1: 15, 2: 7, 3: 4}  # by spatial axes: corners lie in [-2^bits, 2^bits - 1]
_OFFSET_BITS = {1: 16, 2: 8, 3: 5}  # and offsets of a tap in [0, 2^bits - 1]


class EncodingError(Exception):
    """The driver did not take a tensor map, or has none."""


@dataclass(frozen=True)
class TensorMap:
    """A map of the array `array` of the call, from `start` elements on; what a step gives a kernel in its place."""

    array: str
    dtype: str
    start: int
    sizes: Sizes  # channels first, the batch last
    strides: Sizes  # in elements, of every dimension but the first, which is dense
    box: Sizes  # of a tiled map one side a dimension, of an im2col map (channels, pixels)
    lower: Sizes = ()  # of an im2col map: first place of the box on each spatial axis, innermost first
    upper: Sizes = ()  # and the last, counted from the axis' last element
    steps: Sizes = ()  # and from place to place
    _known: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def im2col(self) -> bool:
        """Whether the map walks windows' places instead of boxes."""
        return bool(self.lower)

    def resolve(self, address: int) -> np.ndarray:
        """The bytes that a kernel takes, for an array at this address: remembered, since a loop comes back to it."""
        encoded = self._known.get(address)
        if encoded is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            encoded = self._known[address] = _encoded(self, address + self.start * _ITEMSIZE[self.dtype])
        return encoded

    def unfit(self, aligned: bool) -> str | None:
        """Which of the driver's limits the map breaks, if any; `aligned` tells whether the array's address is."""
        unit = 16 // _ITEMSIZE[self.dtype]
        if not aligned or self.start % unit:
            return f"{self.array} does not start at 16 bytes"
        if any(stride % unit or not 0 < stride * _ITEMSIZE[self.dtype] < _MOST_STRIDE for stride in self.strides):
            return f"strides of {self.array} are not positive multiples of 16 bytes"
        if not all(0 < size < _MOST_SIZE for size in self.sizes):
            return f"{self.array} is empty or too long"
        if not self.im2col:
            return None
        most = 1 << _CORNER_BITS[len(self.lower)]
        if not all(-most <= corner < most for corner in (*self.lower, *self.upper)):
            return f"padding or window reach beyond {most} elements"
        if not all(step <= _MOST_STEP for step in self.steps):
            return f"a stride above {_MOST_STEP}"
        return None


def most_offset(axes: int) -> int:
    """The farthest that a tap may lie from the first one, along each of so many axes."""
    return (1 << _OFFSET_BITS[axes]) - 1


def dense_strides(sizes: Sequence[int], strides: Sequence[int], unit: int) -> Sizes:
    """Strides with those of dimensions of size 1, which mean nothing but must be valid, made what dense memory has."""
    result: list[int] = []
    whole = -(-sizes[0] // unit) * unit
    for size, stride in zip(sizes[1:], strides, strict=True):
        result.append(stride if size > 1 else whole)
        whole = result[-1] * size
    return tuple(result)


def _libcuda() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


driver: Callable[[], Any] = _libcuda  # where the two functions come from; without a GPU, an emulation's


def _encoded(tensor_map: TensorMap, address: int) -> np.ndarray:
    memory = ctypes.create_string_buffer(ENCODED.itemsize + _ALIGNMENT)
    offset = -ctypes.addressof(memory) % _ALIGNMENT
    status = _encode(tensor_map, address, ctypes.c_void_p(ctypes.addressof(memory) + offset))
    if status != 0:
        raise EncodingError(f"the CUDA driver refuses a tensor map of {tensor_map.array} (error {status})")
    return np.frombuffer(memory.raw[offset : offset + ENCODED.itemsize], ENCODED).reshape(())


def _encode(tensor_map: TensorMap, address: int, to: ctypes.c_void_p) -> int:
    """Call the driver, by `cuda.h`'s signatures; its status, 0 for success."""
    m, rank = tensor_map, len(tensor_map.sizes)
    array = (_DATA_TYPES[m.dtype], ctypes.c_uint32(rank), ctypes.c_void_p(address), _array(ctypes.c_uint64, m.sizes),
             _array(ctypes.c_uint64, [stride * _ITEMSIZE[m.dtype] for stride in m.strides]))  # fmt: skip
    how = (_INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_128B, _FILL_ZEROS)
    try:
        library = driver()
        if m.im2col:
            corners = (_array(ctypes.c_int, m.lower), _array(ctypes.c_int, m.upper))
            box = (ctypes.c_uint32(m.box[0]), ctypes.c_uint32(m.box[1]))
            steps = _array(ctypes.c_uint32, (1, *m.steps, 1))
            return int(library.cuTensorMapEncodeIm2col(to, *array, *corners, *box, steps, *how))
        ones = _array(ctypes.c_uint32, (1,) * rank)
        return int(library.cuTensorMapEncodeTiled(to, *array, _array(ctypes.c_uint32, m.box), ones, *how))
    except (OSError, AttributeError) as error:
        raise EncodingError(f"no CUDA driver that knows tensor maps ({error})") from error


def _array(kind: Any, values: Sequence[int]) -> Any:
    return (kind * len(values))(*values)
