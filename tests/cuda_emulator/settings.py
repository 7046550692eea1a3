"""How kernels are run: the device that is emulated, whether accesses are checked, and which fibre goes first.

A kernel that is right gives the same result in both orders; a race or a missing wait often shows in only one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

ORDERS = ("forward", "reverse")

# Dynamic shared memory that a block may ask for, in KiB, by compute capability.
_SHARED_KIB = {(7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}

compute_capability: tuple[int, int] = (9, 0)
order: str = os.environ.get("XPCONV_EMULATOR_ORDER", "forward")
checked: bool = os.environ.get("XPCONV_EMULATOR_CHECK", "1") != "0"

if order not in ORDERS:
    raise ValueError(f"XPCONV_EMULATOR_ORDER is {order!r}; it is one of {ORDERS}")


@contextmanager
def using(**changes: object) -> Iterator[None]:
    """Run with other settings, for example `using(order="reverse", checked=False)`, and restore them after."""
    known = {"compute_capability", "order", "checked"}
    if unknown := set(changes) - known:
        raise TypeError(f"no such setting: {sorted(unknown)}; there are {sorted(known)}")
    if changes.get("order", order) not in ORDERS:
        raise ValueError(f"order is one of {ORDERS}, not {changes['order']!r}")
    before = {name: globals()[name] for name in changes}
    globals().update(changes)
    try:
        yield
    finally:
        globals().update(before)


def largest_shared_memory() -> int:
    """The bytes of dynamic shared memory that a kernel of the emulated device may opt in to."""
    return _SHARED_KIB.get(compute_capability, 48) * 1024
