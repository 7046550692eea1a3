"""When a large window is cheaper as a product of spectra, by CuPy's cuFFT, than tap by tap.

The rates are estimates from data sheets, in units of one multiprocessor and one clock; only ratios matter, and spectra
are taken only where they are expected to need less than half of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from xpconv.cuda.hardware import Hardware
from xpconv.plan import Plan, conv_operations
from xpconv.spec import ConvSpec

_DIRECT_SHARE = 0.5  # of the peak rate of multiplications, what a kernel of ours is expected to reach
_BYTES = 10  # of memory, per multiprocessor and clock
_PASSES = 6  # over every plane: a transform reads and writes it about three times
_FIXED = 250_000  # clocks of a dozen launches and the plans of the transforms


@dataclass(frozen=True)
class Slab:
    """Rows of the result that are transformed at a time."""

    rows: int


@lru_cache(maxsize=4096)
def spectra(spec: ConvSpec, dtype: str, hardware: Hardware, limit: int) -> tuple[Slab, Plan] | None:
    """The slab and the plan of a convolution by spectra, where that is expected to win; None elsewhere."""
    if "int" in dtype or min(spec.y_shape) == 0:
        return None
    slab = slab_for(spec, limit)
    if slab is None:
        return None
    by_spectra, by_taps = _spectra_clocks(spec, hardware), _direct_clocks(spec, dtype, hardware)
    if 2 * by_spectra >= by_taps:
        return None
    reason = (
        f"cuFFT is expected to take {by_taps / by_spectra:.1f} times less than a kernel over every tap; "
        "a NaN or an infinity spreads over its rows"
    )
    return slab, Plan("fft", reason, f"{slab.rows} of {spec.out_size[0]} rows", slab_bytes(spec, slab.rows))


def slab_for(spec: ConvSpec, limit: int) -> Slab | None:
    """The most rows whose spectra fit the limit; None where that would be less than the window spans."""
    rows = spec.out_size[0]
    while slab_bytes(spec, rows) > limit:
        rows = rows // 2
        if rows * spec.stride[0] < spec.reach[0]:
            return None
    return Slab(rows)


def slab_bytes(spec: ConvSpec, rows: int) -> int:
    """Input, kernel and result of a slab in double precision, and the spectrum of each."""
    height = (rows - 1) * spec.stride[0] + spec.reach[0]
    return 2 * 8 * height * math.prod(spec.padded_size[1:]) * _planes(spec)


def slab_spec(spec: ConvSpec, rows: int) -> ConvSpec:
    """The convolution of one slab of the padded input."""
    valid = spec.valid
    return replace(valid, size=((rows - 1) * spec.stride[0] + spec.reach[0], *valid.size[1:]))


def _planes(spec: ConvSpec) -> int:
    return spec.batch * (spec.channels + spec.filters) + spec.channels * spec.filters // spec.groups


def _spectra_clocks(spec: ConvSpec, hardware: Hardware) -> float:
    plane = math.prod(spec.padded_size)
    traffic = plane * 8 * _PASSES * _planes(spec) / _BYTES
    transforms = 2.5 * plane * math.log2(max(plane, 2)) * _planes(spec)
    products = 4 * plane * spec.batch * spec.channels * spec.filters // spec.groups
    arithmetic = (transforms + products) / (2 * _DIRECT_SHARE * hardware.doubles_per_clock)
    return max(traffic, arithmetic) / hardware.multiprocessors + _FIXED


def _direct_clocks(spec: ConvSpec, dtype: str, hardware: Hardware) -> float:
    rate = hardware.doubles_per_clock if dtype in ("float64", "complex128") else hardware.floats_per_clock
    if dtype in ("float16", "bfloat16") and hardware.tensor_cores and spec.channels // spec.groups >= 8:
        rate = max(rate, hardware.tensor_products_per_clock(dtype))
    multiplications = conv_operations(spec) / 2 * (4 if dtype.startswith("complex") else 1)
    return multiplications / (_DIRECT_SHARE * rate) / hardware.multiprocessors
