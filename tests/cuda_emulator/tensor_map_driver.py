"""The part of CUDA's driver library that encodes tensor maps, by the signatures of `cuda.h`.

In the place of the library for `xpconv.cuda.tensor_maps`, so that the tests run its way of calling the driver too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from cuda_emulator import tensor_map

_SUCCESS, _INVALID_VALUE = 0, 1
_ALIGNMENT = 64


class TensorMapDriver:
    """What `ctypes.CDLL` gives of libcuda, as far as it goes."""

    def cuTensorMapEncodeTiled(self, to: ctypes.c_void_p, *arguments: Any) -> int:
        """Tensor map of boxes."""
        return _written(to, tensor_map.encode_tiled, arguments)

    def cuTensorMapEncodeIm2col(self, to: ctypes.c_void_p, *arguments: Any) -> int:
        """Tensor map of windows."""
        return _written(to, tensor_map.encode_im2col, arguments)


def _written(to: ctypes.c_void_p, encode: Callable[..., np.ndarray], arguments: tuple[Any, ...]) -> int:
    assert to.value is not None
    assert to.value % _ALIGNMENT == 0
    try:
        encoded = encode(*map(_plain, arguments))
    except ValueError:
        return _INVALID_VALUE
    ctypes.memmove(to.value, encoded.ctypes.data, encoded.nbytes)
    return _SUCCESS


def _plain(argument: Any) -> Any:
    """A value of C as Python's; integers that the caller left to ctypes are C's int, and None is the null pointer."""
    if isinstance(argument, ctypes.Array):
        return list(argument)
    return argument if isinstance(argument, int) else argument.value or 0
