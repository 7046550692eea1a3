"""Memory that begins with a line of the caches: a vector that lies in two lines takes twice as long to load."""

from __future__ import annotations

import math

import numpy as np

from xpconv.cpu.address import address_of
from xpconv.spec import Array, Sizes

LINE = 64  # bytes


def lined(shape: Sizes, dtype: np.dtype) -> Array:
    """An array, its values undefined."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(nbytes + LINE, np.uint8)
    start = -address_of(memory) % LINE
    return memory[start : start + nbytes].view(dtype).reshape(shape)
