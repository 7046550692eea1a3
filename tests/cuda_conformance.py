"""One small kernel for each wrapper of inline PTX, and what NumPy says it computes.

The tests run the kernels in the emulator. On a machine with a GPU `benchmarks/gpu_check.sh` runs the same kernels on
the same numbers through CuPy, and so asks whether the emulator's twins of the wrappers mean what the device does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from xpconv.cuda import source, tensor_maps
from xpconv.cuda.tensor_maps import TensorMap

HOPPER = ("-arch=sm_90a",)


@dataclass(frozen=True)
class Trial:
    """One launch: arrays by name, arguments as a plan's step has them, and what must come out."""

    arrays: Mapping[str, np.ndarray]
    arguments: tuple[Any, ...]
    expected: Mapping[str, np.ndarray]
    slack: Mapping[str, np.ndarray] = field(default_factory=dict)  # absolute error allowed; without it, equal bits
    floats: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)  # what results of bits mean


@dataclass(frozen=True)
class Case:
    """A kernel instance and the trials to make with it."""

    name: str
    kernel: str
    expression: str
    block: int
    trials: Mapping[str, Callable[[np.random.Generator], Trial]]
    grid: int = 1
    shared: int = 0
    capability: tuple[int, int] = (7, 5)  # the least, or where it is Hopper's the only one
    judged: bool = True  # False: nobody promises the outcome, it is only told

    @property
    def options(self) -> tuple[str, ...]:
        """Of the compiler."""
        return ("-std=c++17", *(HOPPER if self.capability == (9, 0) else ()))

    @property
    def text(self) -> str:
        """The kernel with the headers that it needs."""
        headers = [source.text(name) for name in ("types.cuh", "sm90.cuh")]
        return "\n".join((*headers, '#line 1 "conformance.cu"', self.kernel))

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a device of this compute capability has the instructions."""
        return capability == self.capability if self.capability == (9, 0) else capability >= self.capability


@dataclass(frozen=True)
class Verdict:
    """How results compare with what was expected."""

    elements: int
    identical: int  # in every bit
    wrong: int  # beyond the allowed error; a NaN is as good as another
    worst: float  # error in units of what is allowed
    first: str = ""  # one that is wrong


# --- Machines that run a case -----------------------------------------------------------------------------------------


class Emulator:
    """Kernels on the CPU."""

    def __init__(self) -> None:
        from cuda_emulator import memory, module
        from cuda_emulator.tensor_map_driver import TensorMapDriver

        self._memory, self._module, self.driver = memory, module.RawModule, TensorMapDriver

    def function(self, case: Case) -> Any:
        """The kernel, compiled with all others of the same text: that takes g++ less long than each alone."""
        expressions = dict.fromkeys(other.expression for other in CASES.values() if other.kernel == case.kernel)
        module = self._module(case.text, options=case.options, name_expressions=tuple(expressions))
        return module.get_function(case.expression)

    def array(self, values: np.ndarray, *, written: bool) -> Any:
        """Device memory with these values, or of this kind."""
        values = np.ascontiguousarray(values)
        raw = self._memory.allocate(values.nbytes, initialised=False)
        return _OfEmulator(raw.view(values.dtype).reshape(values.shape), values if written else None, self._memory)

    def host(self, array: Any) -> np.ndarray:
        """A result back as NumPy's; all of it must have been written."""
        assert self._memory.first_uninitialised(array.data.ptr, array.values.nbytes) is None, "not all is written"
        return array.values


class _OfEmulator:
    """Device memory with CuPy's way to its address."""

    def __init__(self, memory: np.ndarray, values: np.ndarray | None, checker: Any) -> None:
        self.values = memory
        self.data = type("Pointer", (), {"ptr": memory.ctypes.data})()
        if values is not None:
            memory[...] = values
            checker.mark_initialised(self.data.ptr, memory.nbytes)


class Device:
    """Kernels through CuPy."""

    def __init__(self, cupy: Any) -> None:
        self._cupy, self.driver = cupy, tensor_maps._libcuda

    def function(self, case: Case) -> Any:
        """The compiled kernel."""
        module = self._cupy.RawModule(code=case.text, options=case.options, name_expressions=(case.expression,))
        return module.get_function(case.expression)

    def array(self, values: np.ndarray, *, written: bool) -> Any:
        """An array with these values, or of this kind and full of 0xff."""
        return self._cupy.asarray(values if written else np.full(values.nbytes, 0xFF, np.uint8).view(values.dtype))

    def host(self, array: Any) -> np.ndarray:
        """A result back as NumPy's."""
        return array.get()


def run(case: Case, trial: Trial, machine: Any) -> dict[str, np.ndarray]:
    """The results of one launch, by name; an array that is given and expected is changed in place."""
    arrays = {name: machine.array(values, written=True) for name, values in trial.arrays.items()}
    for name, values in trial.expected.items():
        if name not in arrays:
            arrays[name] = machine.array(values, written=False)
    function = machine.function(case)
    if case.shared > 48 * 1024:
        function.max_dynamic_shared_size_bytes = case.shared
    arguments = tuple(_resolved(argument, arrays, machine.driver) for argument in trial.arguments)
    function((case.grid,), (case.block,), arguments, shared_mem=case.shared)
    return {name: machine.host(arrays[name]).reshape(values.shape) for name, values in trial.expected.items()}


def _resolved(argument: Any, arrays: Mapping[str, Any], driver: Callable[[], Any]) -> Any:
    if isinstance(argument, TensorMap):
        before, tensor_maps.driver = tensor_maps.driver, driver
        try:
            return argument.resolve(arrays[argument.array].data.ptr)
        finally:
            tensor_maps.driver = before
    return arrays[argument] if isinstance(argument, str) else argument


def judged(
    trial: Trial, results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray] | None = None
) -> Verdict:
    """All results of a trial compared with what NumPy expects, or with another machine's results."""
    elements = identical = wrong = 0
    worst, first = 0.0, ""
    for name, right in (expected or trial.expected).items():
        got = results[name]
        same = _bits(got) == _bits(right)
        number = trial.floats.get(name, lambda values: values)
        with np.errstate(invalid="ignore"):
            a, b = (np.asarray(number(values), np.float64) for values in (got, right))
            error = np.abs(a - b)
        bad = ~same & ~(np.isnan(a) & np.isnan(b))
        if name in trial.slack:
            excess = np.where(bad, error / trial.slack[name], 0)
            worst = max(worst, float(np.nanmax(excess, initial=0)))
            bad &= ~(excess <= 1)
        elements, identical, wrong = elements + got.size, identical + int(same.sum()), wrong + int(bad.sum())
        if bad.any() and not first:
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            first = f"{name}{list(where)} is {got[where]} ({_bits(got)[where]:#x}), not {right[where]}"
    return Verdict(elements, identical, wrong, worst, first)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


# --- Elements ---------------------------------------------------------------------------------------------------------


def bfloat(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even; a NaN keeps its upper bits and becomes quiet."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bfloat(bits: np.ndarray) -> np.ndarray:
    """The floats that these bits are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def truncated(values: np.ndarray) -> np.ndarray:
    """Floats as a TF32 product reads them: what is beyond the upper 19 bits does not count."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@dataclass(frozen=True)
class Element:
    """An element type of the tensor cores."""

    name: str
    type: str  # in C++
    depth: int  # elements in 32 bytes
    narrow: Callable[[np.ndarray], np.ndarray]
    widen: Callable[[np.ndarray], np.ndarray]


ELEMENTS = (
    Element("float16", "half_bits", 16, lambda x: x.astype(np.float16).view(np.uint16), lambda b: b.view(np.float16)),
    Element("bfloat16", "bfloat_bits", 16, bfloat, from_bfloat),
    Element("tf32", "unsigned", 8, lambda x: x.astype(np.float32), truncated),
)


def _whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _spread(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of very different sizes, of whose sums much is cut off."""
    return _normal(rng, *shape) * np.exp2(rng.integers(-8, 9, shape)).astype(np.float32)


NUMBERS = {"whole numbers": _whole, "fractions": _normal, "fractions of many sizes": _spread}
SUM_STEP = 2.0**-20  # allowed of the sum of the terms' sizes; float32's own half unit in the last place is 2^-24


# --- Conversions ------------------------------------------------------------------------------------------------------

CONVERSIONS = r"""
__global__ void widen(const half_bits* x, float* half, float* bfloat) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    half[i] = half_to_float(x[i]);
    bfloat[i] = bfloat_to_float(bfloat_bits{x[i].bits});
}
__global__ void narrow(const float* x, half_bits* half, bfloat_bits* bfloat) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    half[i] = float_to_half(x[i]);
    bfloat[i] = float_to_bfloat(x[i]);
}
"""
TO_TF32 = r"""
__global__ void to_tf32(const float* x, unsigned* tf32) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    tf32[i] = float_to_tf32(x[i]);
}
"""
PAIRS = r"""
template <class ELEMENT>
__global__ void pairs(const float* x, unsigned* y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = rounded_pair(x[2 * i], x[2 * i + 1], ELEMENT());
}
"""
_FLOATS = 2**18


def _every_half(_: np.random.Generator) -> Trial:
    bits = np.arange(65536, dtype=np.uint16)
    expected = {"half": bits.view(np.float16).astype(np.float32), "bfloat": from_bfloat(bits)}
    return Trial({"x": bits}, ("x", "half", "bfloat"), expected)


def _floats(rng: np.random.Generator) -> np.ndarray:
    """Every half, the ties between halves, random bits and random numbers of a half's sizes."""
    exact = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    special = np.array([65504, 65519.99, 65520, 1e-8, 2.0**-25, 3.0 * 2.0**-25, 1e-40, 3.4e38], np.float32)
    ties = np.where(np.isfinite(exact), exact, 0) * np.float32(1 + 2.0**-11)
    sized = _normal(rng, 65536 - special.size) * np.exp2(rng.integers(-26, 17, 65536 - special.size))
    anything = rng.integers(0, 2**32, 65536, dtype=np.uint32).view(np.float32)
    return np.concatenate([exact, ties, special, sized.astype(np.float32), anything])


def _narrowed(rng: np.random.Generator) -> Trial:
    x = _floats(rng)
    with np.errstate(over="ignore"):
        half = np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))
    floats = {"half": lambda bits: bits.view(np.float16), "bfloat": from_bfloat}
    return Trial({"x": x}, ("x", "half", "bfloat"), {"half": half, "bfloat": bfloat(x)}, floats=floats)


def _pairs(element: Element, rng: np.random.Generator) -> Trial:
    trial = _narrowed(rng)
    of_bits = {"float16": "half", "bfloat16": "bfloat"}[element.name]
    return Trial(trial.arrays, ("x", "y"), {"y": trial.expected[of_bits]}, floats={"y": trial.floats[of_bits]})


def _rounded_to_tf32(rng: np.random.Generator) -> Trial:
    x = _floats(rng)
    return Trial({"x": x}, ("x", "tf32"), {"tf32": nearest_tf32(x)}, floats={"tf32": lambda b: b.view(np.float32)})


def nearest_tf32(x: np.ndarray) -> np.ndarray:
    """The bits of floats rounded to 10 bits of fraction, ties away from zero."""
    bits = x.view(np.uint32)
    away = np.where(np.isinf(x), bits, (bits.astype(np.uint64) + 0x1000 & 0xFFFFE000).astype(np.uint32))
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), away)


# --- Matrix fragments -------------------------------------------------------------------------------------------------

MATRICES = r"""
template <int MATRICES, bool TRANSPOSED>
__global__ void load(const uint4* x, unsigned* y) {
    SHARED_MEMORY(raw);
    const int lane = threadIdx.x;
    *(uint4*)(raw + 16 * lane) = x[lane];
    __syncwarp();
    unsigned r[MATRICES];
    const unsigned char* row = raw + 16 * (lane % (8 * MATRICES));
    if constexpr (MATRICES == 4 && TRANSPOSED) load_matrix_x4_transposed(r, row);
    if constexpr (MATRICES == 4 && !TRANSPOSED) load_matrix_x4(r, row);
    if constexpr (MATRICES == 2 && TRANSPOSED) load_matrix_x2_transposed(r, row);
    if constexpr (MATRICES == 2 && !TRANSPOSED) load_matrix_x2(r, row);
    for (int m = 0; m < MATRICES; ++m) y[32 * m + lane] = r[m];
}
"""


def _matrices(count: int, transposed: bool, rng: np.random.Generator) -> Trial:
    x = rng.integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    y = np.ascontiguousarray((x.swapaxes(1, 2) if transposed else x)[:count])
    return Trial({"x": x}, ("x", "y"), {"y": y.view(np.uint32)})


# --- Asynchronous copies ----------------------------------------------------------------------------------------------

COPIES = r"""
template <int BYTES, bool FROM_NOWHERE>
__global__ void copies(const unsigned char* x, const int* valid, unsigned char* y) {
    SHARED_MEMORY(raw);
    for (int i = threadIdx.x; i < 2 * BYTES * (int)blockDim.x; i += blockDim.x) raw[i] = 77;
    __syncthreads();
    for (int group = 0; group < 2; ++group) {
        const int chunk = group * blockDim.x + threadIdx.x;
        const bool wanted = valid[chunk];
        const unsigned char* from = FROM_NOWHERE && !wanted ? nullptr : x + BYTES * chunk;
        if constexpr (BYTES == 16) copy_async_16(raw + BYTES * chunk, from, wanted);
        if constexpr (BYTES == 8) copy_async_8(raw + BYTES * chunk, from, wanted);
        if constexpr (BYTES == 4) copy_async_4(raw + BYTES * chunk, from, wanted);
        copy_async_commit();
    }
    const int half = BYTES * blockDim.x;
    copy_async_wait<1>();
    __syncthreads();
    for (int i = threadIdx.x; i < half; i += blockDim.x) y[i] = raw[i];
    copy_async_wait<0>();
    __syncthreads();
    for (int i = half + threadIdx.x; i < 2 * half; i += blockDim.x) y[i] = raw[i];
}
"""
_COPYING = 128  # threads


def _copies(nbytes: int, rng: np.random.Generator) -> Trial:
    x = rng.integers(1, 256, (2 * _COPYING, nbytes), dtype=np.uint8)
    valid = rng.integers(0, 2, 2 * _COPYING, dtype=np.int32)
    return Trial({"x": x, "valid": valid}, ("x", "valid", "y"), {"y": x * valid[:, None].astype(np.uint8)})


# --- Products of a warp -----------------------------------------------------------------------------------------------

PRODUCTS = r"""
template <class ELEMENT>
__global__ void product(const unsigned short* a, const unsigned short* b, float* d) {
    const int group = threadIdx.x / 4, member = threadIdx.x % 4;
    a += blockIdx.x * 256;
    b += blockIdx.x * 128;
    d += blockIdx.x * 128;
    unsigned left[4], right[2];
    float sums[4];
    for (int r = 0; r < 4; ++r) {
        left[r] = *(const unsigned*)(a + (group + r % 2 * 8) * 16 + 2 * member + r / 2 * 8);
        sums[r] = d[(group + r / 2 * 8) * 8 + 2 * member + r % 2];
    }
    for (int r = 0; r < 2; ++r) {
        const unsigned short* column = b + (2 * member + r * 8) * 8 + group;
        right[r] = column[0] | column[8] << 16;
    }
    mma_16x8x16(sums, left, right, ELEMENT());
    for (int r = 0; r < 4; ++r) d[(group + r / 2 * 8) * 8 + 2 * member + r % 2] = sums[r];
}
__global__ void product_tf32(const unsigned* a, const unsigned* b, float* d) {
    const int group = threadIdx.x / 4, member = threadIdx.x % 4;
    a += blockIdx.x * 128;
    b += blockIdx.x * 64;
    d += blockIdx.x * 128;
    unsigned left[4], right[2];
    float sums[4];
    for (int r = 0; r < 4; ++r) {
        left[r] = a[(group + r % 2 * 8) * 8 + member + r / 2 * 4];
        sums[r] = d[(group + r / 2 * 8) * 8 + 2 * member + r % 2];
    }
    for (int r = 0; r < 2; ++r) right[r] = b[(member + r * 4) * 8 + group];
    mma_16x8x8_tf32(sums, left, right);
    for (int r = 0; r < 4; ++r) d[(group + r / 2 * 8) * 8 + 2 * member + r % 2] = sums[r];
}
"""
_TILES = 32


def _product(element: Element, draw: Callable[..., np.ndarray], rng: np.random.Generator) -> Trial:
    a = element.narrow(draw(rng, _TILES, 16, element.depth))
    b = element.narrow(draw(rng, _TILES, element.depth, 8))
    d = draw(rng, _TILES, 16, 8)
    left, right = (element.widen(operand).astype(np.float64) for operand in (a, b))
    exact, sizes = left @ right + d, np.abs(left) @ np.abs(right) + np.abs(d)
    slack = {} if draw is _whole else {"d": sizes * SUM_STEP}
    return Trial({"a": a, "b": b, "d": d}, ("a", "b", "d"), {"d": exact.astype(np.float32)}, slack)


# --- Barriers in shared memory, and registers -------------------------------------------------------------------------

RELAY = r"""
__global__ void __launch_bounds__(256) relay(const float* x, float* y, int rounds) {
    SHARED_MEMORY(raw);
    unsigned long long *full = (unsigned long long*)raw, *empty = full + 1;
    float* s = (float*)(raw + 16);
    const int t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        barrier_init(full, 128);
        barrier_init(empty, 128);
        barrier_init_fence();
    }
    __syncthreads();
    for (int round = 0; round < rounds; ++round) {
        const unsigned parity = round & 1;
        if (threadIdx.x < 128) {
            barrier_wait(empty, parity ^ 1);
            s[t] = x[128 * round + t];
            barrier_arrive(full);
        } else {
            barrier_wait(full, parity);
            y[128 * round + t] = s[127 - t];
            barrier_arrive(empty);
        }
    }
}
"""
REGISTERS = r"""
__global__ void __launch_bounds__(384, 1) registers(const float* x, float* y) {
    if (threadIdx.x < 128)
        registers_decrease<40>();
    else
        registers_increase<232>();
    y[threadIdx.x] = x[threadIdx.x] + 1;
}
"""


def _relay(rng: np.random.Generator) -> Trial:
    x = _normal(rng, 7, 128)
    return Trial({"x": x}, ("x", "y", np.int32(7)), {"y": np.ascontiguousarray(x[:, ::-1])})


def _registers(rng: np.random.Generator) -> Trial:
    x = _whole(rng, 384)
    return Trial({"x": x}, ("x", "y"), {"y": x + 1})


# --- Tensor copies ----------------------------------------------------------------------------------------------------

TENSOR_COPIES = r"""
template <int RANK, bool IM2COL>
__global__ void fetch(const __grid_constant__ TensorMap map, unsigned char* y, int bytes, int4 start, int last,
                      int4 offset) {
    SHARED_MEMORY(raw);
    unsigned long long* barrier = (unsigned long long*)(raw + bytes);
    if (threadIdx.x == 0) {
        tma_prefetch(&map);
        barrier_init(barrier, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_expect(barrier, bytes);
        if constexpr (!IM2COL && RANK == 2) tma_load_tile_2d(raw, &map, barrier, start.x, start.y);
        if constexpr (!IM2COL && RANK == 3) tma_load_tile_3d(raw, &map, barrier, start.x, start.y, start.z);
        if constexpr (!IM2COL && RANK == 5)
            tma_load_tile_5d(raw, &map, barrier, start.x, start.y, start.z, start.w, last);
        if constexpr (IM2COL && RANK == 3) tma_load_im2col_3d(raw, &map, barrier, start.x, start.y, start.z, offset.x);
        if constexpr (IM2COL && RANK == 4)
            tma_load_im2col_4d(raw, &map, barrier, start.x, start.y, start.z, start.w, offset.x, offset.y);
        if constexpr (IM2COL && RANK == 5)
            tma_load_im2col_5d(raw, &map, barrier, start.x, start.y, start.z, start.w, last, offset.x, offset.y,
                               offset.z);
    }
    barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) y[i] = raw[i];
}
"""
INT4 = np.dtype([(name, "i4") for name in "xyzw"])
LINE = 128  # bytes of a box's row
_PIXELS = 64
_FETCHED = _PIXELS * LINE


def _int4(values: tuple[int, ...]) -> np.ndarray:
    result = np.zeros((), INT4)
    for name, value in zip("xyzw", values, strict=False):
        result[name] = value
    return result


def swizzled(lines: np.ndarray) -> np.ndarray:
    """Lines of 128 bytes with their 16-byte chunks as the 128-byte swizzle puts them, and the other way round."""
    chunks = np.ascontiguousarray(lines).view(np.uint8).reshape(-1, 8, 16)
    order = np.arange(8) ^ (np.arange(len(chunks)) % 8)[:, None]
    return np.take_along_axis(chunks, order[:, :, None], axis=1).reshape(-1, LINE)


def _fetched(tensor: TensorMap, x: np.ndarray, rows: np.ndarray, start: tuple[int, ...], offset=()) -> Trial:
    last = np.int32(start[4] if len(start) == 5 else 0)
    arguments = (tensor, "y", np.int32(_FETCHED), _int4(start), last, _int4(offset))
    return Trial({"x": x}, arguments, {"y": swizzled(rows)})


def _element_strides(x: np.ndarray) -> tuple[int, ...]:
    return tuple(stride // x.itemsize for stride in x.strides[-2::-1])


def _tile(rank: int, start: tuple[int, ...], rng: np.random.Generator) -> Trial:
    """A box that hangs over the array's edges where `start` says so; outside are zeros."""
    box = {2: (64, 64), 3: (64, 16, 4), 5: (64, 4, 4, 2, 2)}[rank]
    sizes = {2: (136, 100), 3: (136, 20, 5), 5: (136, 6, 5, 3, 4)}[rank]
    x = rng.integers(1, 65536, sizes[::-1], dtype=np.uint16)
    wide = np.pad(x, [(side, side) for side in box[::-1]])
    cut = tuple(slice(i + side, i + 2 * side) for i, side in zip(start[::-1], box[::-1], strict=True))
    tensor = TensorMap("x", "bfloat16", 0, sizes, _element_strides(x), box)
    return _fetched(tensor, x, wide[cut], start)


def _im2col(axes: int, channel: int, steps: tuple[int, ...], image: int, offset: tuple, rng) -> Trial:
    """The channels of one tap at places that run over rows, planes and images."""
    sizes, images, channels = (9, 7, 5)[:axes], 4, 136
    lower, upper = (-1,) * axes, (-1, 0, 1)[:axes]
    x = rng.integers(1, 65536, (images, *sizes[::-1], channels), dtype=np.uint16)
    tensor = TensorMap(
        "x", "bfloat16", 0, (channels, *sizes, images), _element_strides(x), (64, _PIXELS), lower, upper, steps[:axes]
    )
    start = (channel, *lower, image)
    rows = _taps(x, start, offset[:axes], lower, upper, steps, 64)
    return _fetched(tensor, x, rows, start, offset[:axes])


def _taps(x: np.ndarray, start, offset, lower, upper, steps, channels: int) -> np.ndarray:
    """Row by row what an im2col copy reads of x (images, depth, height, width, channels), by its definition."""
    sizes = x.shape[-2:0:-1]  # width first
    c, *at = start
    rows = np.zeros((_PIXELS, channels), x.dtype)
    for row in rows:
        place = [p + o for p, o in zip(at, offset, strict=False)]
        if all(0 <= p < size for p, size in zip(place, sizes, strict=True)) and 0 <= at[-1] < len(x):
            values = x[(at[-1], *place[::-1])][c : c + channels]
            row[: values.size] = values
        for axis, size in enumerate(sizes):
            at[axis] += steps[axis]
            if at[axis] < size + upper[axis]:
                break
            at[axis] = lower[axis]
        else:
            at[-1] += 1
    return rows


def _floats_by_tensor_copy(rng: np.random.Generator) -> Trial:
    """Floats with all bits of their fractions, through a map of TF32: does the copy round them, and how?"""
    x = _normal(rng, 64, 32)
    tensor = TensorMap("x", "float32", 0, (32, 64), (32,), (32, 64))
    return _fetched(tensor, x, x, (0, 0))


def rounding_of(trial: Trial, lines: np.ndarray) -> str:
    """What a tensor copy of TF32 did to the floats of `_floats_by_tensor_copy`."""
    x, got = trial.arrays["x"], swizzled(lines).view(np.float32).reshape(64, 32)
    known = {
        "left as they are": x,
        "cut off to 10 bits of fraction": truncated(x),
        "rounded to 10 bits, ties away from zero": nearest_tf32(x).view(np.float32),
    }
    return next((name for name, values in known.items() if np.array_equal(got, values)), "changed in another way")


# --- Products of a warpgroup ------------------------------------------------------------------------------------------

WARPGROUP = r"""
template <int N, bool TRANSPOSED, int ELEMENT>
__global__ void __launch_bounds__(128) product(const uint4* a, const uint4* b, float* y) {
    SHARED_MEMORY(raw);
    uint4* s = (uint4*)raw;
    constexpr int B_BYTES = TRANSPOSED ? N / 64 * 8192 : N * 128;
    for (int i = threadIdx.x; i < 512; i += 128) s[i] = a[i];
    for (int i = threadIdx.x; i < B_BYTES / 16; i += 128) s[512 + i] = b[i];
    fence_async_proxy();
    __syncthreads();
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0;
    const unsigned long long left = matrix_descriptor(raw, 0, 1024);
    const unsigned long long right = matrix_descriptor(raw + 8192, TRANSPOSED ? 8192 : 0, 1024);
    accumulators_fence(d);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        const unsigned long long l = left + 2 * step, r = right + (TRANSPOSED ? 128 : 2) * step;
        if constexpr (ELEMENT == 0) wgmma_m64k16<N, TRANSPOSED>(d, l, r, half_bits());
        if constexpr (ELEMENT == 1) wgmma_m64k16<N, TRANSPOSED>(d, l, r, bfloat_bits());
        if constexpr (ELEMENT == 2) wgmma_m64k8_tf32<N>(d, l, r);
        if (step % 2) wgmma_commit();
    }
    wgmma_wait<1>();
    wgmma_wait<0>();
    accumulators_fence(d);
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < N / 2; ++i)
        y[(warp * 16 + i / 2 % 2 * 8 + group) * N + i / 4 * 8 + 2 * member + i % 2] = d[i];
}
"""


def _warpgroup(n: int, transposed: bool, element: Element, draw: Callable[..., np.ndarray], rng) -> Trial:
    depth = 4 * element.depth  # a line
    a, b = element.narrow(draw(rng, 64, depth)), element.narrow(draw(rng, n, depth))
    lines = b.T.reshape(depth, n // 64, 64).swapaxes(0, 1) if transposed else b
    left, right = (element.widen(operand).astype(np.float64) for operand in (a, b))
    exact, sizes = left @ right.T, np.abs(left) @ np.abs(right).T
    slack = {} if draw is _whole else {"y": sizes * SUM_STEP}
    return Trial({"a": swizzled(a), "b": swizzled(lines)}, ("a", "b", "y"), {"y": exact.astype(np.float32)}, slack)


# --- All of them ------------------------------------------------------------------------------------------------------


def _warp_products() -> list[Case]:
    cases = []
    for element in ELEMENTS:
        expression = "product_tf32" if element.name == "tf32" else f"product<{element.type}>"
        trials = {name: partial(_product, element, draw) for name, draw in NUMBERS.items()}
        cases.append(Case(f"mma {element.name}", PRODUCTS, expression, 32, trials, grid=_TILES, capability=(8, 0)))
    return cases


def _warpgroup_products() -> list[Case]:
    cases = []
    for n, transposed, (index, element) in product((64, 128, 256), (False, True), enumerate(ELEMENTS)):
        if transposed and element.name == "tf32":
            continue  # no such product
        trials = {name: partial(_warpgroup, n, transposed, element, draw) for name, draw in NUMBERS.items()}
        expression = f"product<{n}, {str(transposed).lower()}, {index}>"
        name = f"wgmma {element.name}, {n} columns, {'N' if transposed else 'K'} along the rows of B"
        cases.append(Case(name, WARPGROUP, expression, 128, trials, shared=8192 + n * LINE, capability=(9, 0)))
    return cases


def _tensor_copies() -> list[Case]:
    starts = {2: [(0, 0), (-8, -3), (100, 70)], 3: [(0, 0, 0), (-8, -3, -1), (72, 5, 3)],
              5: [(8, 1, 0, 0, 1), (-8, -1, -2, -1, -1), (100, 3, 2, 2, 3)]}  # fmt: skip
    cases = []
    for rank, places in starts.items():
        trials = {f"from {start}": partial(_tile, rank, start) for start in places}
        cases.append(_fetch(f"tensor copy, tile of rank {rank}", f"fetch<{rank}, false>", trials))
    walks = [(0, (1, 1, 1), 0, (2, 1, 0)), (64, (2, 1, 3), 1, (0, 2, 1)), (96, (3, 2, 1), 2, (1, 0, 2))]
    for axes in (1, 2, 3):
        trials = {f"channel {walk[0]}, steps {walk[1][:axes]}": partial(_im2col, axes, *walk) for walk in walks}
        cases.append(_fetch(f"tensor copy, im2col of {axes} axes", f"fetch<{axes + 2}, true>", trials))
    trials = {"fractions": _floats_by_tensor_copy}
    cases.append(_fetch("tensor copy of TF32", "fetch<2, false>", trials, judged=False))
    return cases


def _fetch(name: str, expression: str, trials: Mapping[str, Callable], *, judged: bool = True) -> Case:
    return Case(
        name, TENSOR_COPIES, expression, 64, trials, shared=_FETCHED + 8, capability=(9, 0), judged=judged
    )  # fmt: skip


def _cases() -> list[Case]:
    widened, narrowed = {"all 65,536": _every_half}, {"numbers, ties and any bits": _narrowed}
    cases = [
        Case("half and bfloat to float", CONVERSIONS, "widen", 1024, widened, grid=64),
        Case("float to half and bfloat", CONVERSIONS, "narrow", 1024, narrowed, grid=_FLOATS // 1024),
        Case("float to tf32", TO_TF32, "to_tf32", 1024, {"numbers, ties and any bits": _rounded_to_tf32},
             grid=_FLOATS // 1024, capability=(8, 0)),
    ]  # fmt: skip
    for element in ELEMENTS[:2]:
        trials = {"numbers, ties and any bits": partial(_pairs, element)}
        name, expression = f"pairs of floats to {element.name}", f"pairs<{element.type}>"
        cases.append(Case(name, PAIRS, expression, 1024, trials, grid=_FLOATS // 2048, capability=(9, 0)))
    for count, transposed in product((2, 4), (False, True)):
        expression = f"load<{count}, {str(transposed).lower()}>"
        trials = {"any bits": partial(_matrices, count, transposed)}
        name = f"ldmatrix of {count}{', transposed' if transposed else ''}"
        cases.append(Case(name, MATRICES, expression, 32, trials, shared=512))
    for nbytes, nowhere in product((16, 8, 4), (False, True)):
        expression = f"copies<{nbytes}, {str(nowhere).lower()}>"
        name = f"cp.async of {nbytes} bytes{', zeros from no address' if nowhere else ''}"
        trials = {"half of them zeros": partial(_copies, nbytes)}
        shared = 2 * nbytes * _COPYING
        cases.append(Case(name, COPIES, expression, _COPYING, trials, shared=shared, capability=(8, 0)))
    cases += _warp_products()
    cases.append(Case("mbarrier", RELAY, "relay", 256, {"7 rounds": _relay}, shared=528, capability=(9, 0)))
    cases.append(Case("setmaxnreg", REGISTERS, "registers", 384, {"once": _registers}, capability=(9, 0)))
    return cases + _tensor_copies() + _warpgroup_products()


CASES = {case.name: case for case in _cases()}


def families() -> dict[str, list[Case]]:
    """The cases by kernel text, for who runs each family in a process of its own."""
    found: dict[str, list[Case]] = {}
    for case in CASES.values():
        found.setdefault(case.kernel, []).append(case)
    return {cases[0].name.partition(",")[0]: cases for cases in found.values()}


_WRAPPER = re.compile(r"__forceinline__ __device__ [\w ]+? (\w+)\(")


def wrappers() -> set[str]:
    """The names of all functions of `ptx.cuh` and `sm90.cuh`."""
    return {
        name
        for file in ("ptx.cuh", "sm90.cuh")
        for name in _WRAPPER.findall((source.kernel_dir() / file).read_text(encoding="utf-8"))
    }
