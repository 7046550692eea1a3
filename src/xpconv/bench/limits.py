"""What a device was measured to do: the fastest matrix product of each dtype, and the fastest copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

import xpconv
from xpconv.bench.clock import Clock
from xpconv.bench.data import numpys_dtype
from xpconv.bench.sides import Place
from xpconv.bench.statistics import short

SIZES = {True: (512, 1024, 1536), False: (4096, 8192)}  # of square matrices: on the CPU, on a GPU
COPIED = {True: 2**27, False: 2**29}  # bytes, many times what a last cache holds
SPAN = 0.6  # seconds of each, of which the fastest call counts: a limit is what can be reached
_LEAST, _MOST = 3, 200  # calls


def measured(
    place: Place, dtypes: Sequence[str], clock: Clock, *, sizes: Sequence[int] = (), copied: int = 0
) -> dict[str, Any]:
    """The limits of a device as they stand in a record: GFLOP/s of products by dtype, GB/s read and written."""
    sizes, copied = sizes or SIZES[place.is_cpu], copied or COPIED[place.is_cpu]
    products = {dtype: _fastest_product(place, dtype, sizes, clock) for dtype in dtypes}
    seconds = min(_best(call, clock) for call in _copies(place, copied))
    return {"matrix_gflops": products, "copy_gbs": short(2 * copied / seconds / 1e9)}


def _fastest_product(place: Place, dtype: str, sizes: Sequence[int], clock: Clock) -> float:
    """By NumPy's BLAS on all its threads, or by CuPy's."""
    if place.is_cpu and dtype not in ("float32", "float64"):
        dtype = "float32"  # which 16-bit floats are computed in
    speeds = []
    for n in sizes:
        a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32).astype(numpys_dtype(dtype))
        there = a if place.is_cpu else xpconv.to_device(a, place.device)
        speeds.append(2 * n**3 / _best(partial(_matmul, there), clock) / 1e9)
    return short(max(speeds))


def _matmul(a: Any) -> Any:
    return a @ a


def _copies(place: Place, size: int) -> Iterator[Callable[[], Any]]:
    """By one thread, which NumPy copies with, and by all: what is fastest depends on the memory."""
    source = np.ones(size // 8)
    if not place.is_cpu:
        there = xpconv.to_device(source, place.device)
        yield there.copy
        return
    target = np.zeros_like(source)
    yield partial(np.copyto, target, source)
    with ThreadPoolExecutor(place.threads) as pool:
        parts = list(zip(np.array_split(target, place.threads), np.array_split(source, place.threads), strict=True))
        yield lambda: list(pool.map(lambda part: np.copyto(*part), parts))


def _best(call: Callable[[], Any], clock: Clock) -> float:
    calls = round(SPAN / max(clock([call]), 1e-9))
    return min(clock([call]) for _ in range(min(max(calls, _LEAST), _MOST)))


def bound(operations: int | None, moved: int, dtype: str, limits: dict[str, Any]) -> tuple[str, float]:
    """What limits so many operations and bytes on a device with these limits, and the seconds that it takes there.

    Inputs are read once and the result is written once, while all products of the definition are computed.
    """
    seconds = {"copy": moved / limits["copy_gbs"] / 1e9}
    if operations is not None and dtype in limits["matrix_gflops"]:
        seconds["matrix product"] = operations / limits["matrix_gflops"][dtype] / 1e9
    limit = max(seconds, key=seconds.__getitem__)
    return limit, seconds[limit]
