"""Memory that begins with a line of the caches: a vector that lies in two lines takes twice as long to load."""

from __future__ import annotations

import numpy as np

from xpconv.cpu.address import address_of
from xpconv.spec import Array

LINE = 64  # bytes


def lined(nbytes: int) -> Array:
    """So many bytes, their values undefined."""
    memory = np.empty(nbytes + LINE, np.uint8)
    start = -address_of(memory) % LINE
    return memory[start : start + nbytes]
