"""The CUDA emulator: each fault it promises to find, planted beside a sibling that is right, and its twins of PTX."""

from __future__ import annotations

import gc
import re

import numpy as np
import pytest

from cuda_emulator import compiler, memory, settings, tensor_map
from cuda_emulator.module import CompileException, EmulatorError, RawModule
from xpconv.cuda import source

pytestmark = pytest.mark.skipif(compiler.why_unavailable() is not None, reason=str(compiler.why_unavailable()))

RNG = np.random.default_rng(5)


class Buffer:
    """Device memory with the one attribute that a launch needs of an array."""

    def __init__(self, array: np.ndarray) -> None:
        self.host = array
        self.data = type("Pointer", (), {"ptr": array.ctypes.data})


def device(values: np.ndarray) -> Buffer:
    values = np.ascontiguousarray(values)
    buffer = empty(values.shape, values.dtype)
    buffer.host[...] = values
    memory.mark_initialised(buffer.data.ptr, values.nbytes)
    return buffer


def empty(shape, dtype=np.float32) -> Buffer:
    dtype = np.dtype(dtype)
    raw = memory.allocate(int(np.prod(shape)) * dtype.itemsize, initialised=False)
    return Buffer(raw.view(dtype).reshape(shape))


def written(buffer: Buffer) -> bool:
    return memory.first_uninitialised(buffer.data.ptr, buffer.host.nbytes) is None


def module(text: str, *names: str, options=()) -> RawModule:
    headers = source.text("ptx.cuh") + "\n" + source.text("sm90.cuh")
    return RawModule(f'{headers}\n#line 1 "kernels/test.cu"\n{text}', options=options, name_expressions=names or None)


# ---- planted faults ----

# Each kernel is right, or wrong where FAULT is defined; the line to be named carries a mark. (x and y have N elements.)
PLANTED = r"""
constexpr int N = 256;
typedef unsigned long long u64;
#ifdef FAULT
#define IF_FAULT(wrong, right) wrong
#else
#define IF_FAULT(wrong, right) right
#endif

__global__ void past_the_end(const float* x, float* y) {  // OUT_OF_BOUNDS
    int i = threadIdx.x + IF_FAULT(1, 0);
    y[threadIdx.x] = x[i];  // here
}
__global__ void before_the_start(const float* x, float* y) {  // OUT_OF_BOUNDS
    int i = (int)threadIdx.x - IF_FAULT(1, 0);
    y[i] = x[threadIdx.x];  // here
}
__global__ void null_pointer(const float* x, float* y) {  // OUT_OF_BOUNDS
    const float* z = IF_FAULT(nullptr, x);
    y[threadIdx.x] = z[threadIdx.x];  // here
}
__global__ void past_shared_memory(const float* x, float* y) {  // OUT_OF_BOUNDS
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    s[threadIdx.x + IF_FAULT(1, 0)] = x[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void outside_a_local_array(const float* x, float* y) {  // OUT_OF_BOUNDS
    float a[4] = {};
    for (int i = 0; i < (int)x[0] * 0 + IF_FAULT(5, 4); ++i) a[i] = x[i];  // here
    y[threadIdx.x] = a[threadIdx.x % 4];
}
__global__ void misaligned_vector(const float* x, float* y) {  // MISALIGNED
    int i = threadIdx.x / 8 * 4 + IF_FAULT(1, 0);
    float4 v = *(const float4*)(x + i);  // here
    y[threadIdx.x] = v.x;
}
__global__ void no_barrier(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    s[threadIdx.x] = x[threadIdx.x];  // or here
    IF_FAULT(, __syncthreads();)
    y[threadIdx.x] = s[N - 1 - threadIdx.x];  // here
}
__global__ void no_barrier_before_reuse(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    float value = s[N - 1 - threadIdx.x];  // or here
    IF_FAULT(, __syncthreads();)
    s[threadIdx.x] = value;  // here
    y[threadIdx.x] = value;
}
__global__ void no_warp_barrier(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    s[threadIdx.x] = x[threadIdx.x];  // or here
    IF_FAULT(, __syncwarp();)
    y[threadIdx.x] = s[threadIdx.x ^ 1];  // here
}
__global__ void warp_barrier_for_a_block(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    s[threadIdx.x] = x[threadIdx.x];  // or here
    __syncwarp();
    IF_FAULT(, __syncthreads();)
    y[threadIdx.x] = s[threadIdx.x ^ 32];  // here
}
__global__ void two_threads_write(const float* x, float* y) {  // RACE
    y[threadIdx.x] = 0;  // or here
    IF_FAULT(, __syncthreads();)
    y[N - 1 - threadIdx.x] = x[threadIdx.x];  // here
}
__global__ void bytes_of_one_word(const float* x, float* y) {  // RACE
    SHARED_MEMORY(s);
    s[threadIdx.x / IF_FAULT(2, 1)] = 1;  // here
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void sum_without_atomics(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    int* s = (int*)raw;
    if (threadIdx.x == 0) *s = 0;
    __syncthreads();
    IF_FAULT(*s += 1, atomicAdd(s, 1));  // here
    __syncthreads();
    y[threadIdx.x] = *s + x[threadIdx.x];
}
__global__ void uninitialised_shared(const float* x, float* y) {  // UNINITIALISED
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    if (threadIdx.x > IF_FAULT(0, -1) + 0u || IF_FAULT(0, 1)) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[N - 1 - threadIdx.x];  // here
}
__global__ void uninitialised_global(const float* x, float* y) {  // UNINITIALISED
    float before = IF_FAULT(y, x)[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = before;
}
__global__ void no_wait_for_copy(const float* x, float* y) {  // ASYNC
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    if (threadIdx.x < N / 4) copy_async_16(s + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    copy_async_commit();
    copy_async_wait<IF_FAULT(1, 0)>();
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];  // here
    copy_async_wait<0>();
}
__global__ void no_commit_of_copy(const float* x, float* y) {  // ASYNC
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    copy_async_4(s + threadIdx.x, x + threadIdx.x, true);  // here
    IF_FAULT(, copy_async_commit();)
    copy_async_wait<0>();
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void no_barrier_after_copy(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    copy_async_4(s + threadIdx.x, x + threadIdx.x, true);  // or here
    copy_async_commit();
    copy_async_wait<0>();  // or here
    IF_FAULT(__syncwarp(), __syncthreads());
    y[threadIdx.x] = s[N - 1 - threadIdx.x];  // here
}
__global__ void copy_over_what_is_read(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[N - 1 - threadIdx.x];  // or here
    IF_FAULT(, __syncthreads();)
    copy_async_4(s + threadIdx.x, x + threadIdx.x, true);  // here
    copy_async_commit();
    copy_async_wait<0>();
}
__global__ void misaligned_copy(const float* x, float* y) {  // MISALIGNED
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    const float* from = x + 2 * threadIdx.x + IF_FAULT(1, 0);
    if (threadIdx.x < N / 2 - 1) copy_async_8(s + 2 * threadIdx.x, from, threadIdx.x > 2);  // here
    copy_async_commit();
    copy_async_wait<0>();
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void divergent_barrier(const float* x, float* y) {  // DIVERGENT_BARRIER
    if (IF_FAULT(threadIdx.x < N / 2, true)) {
        __syncthreads();
        y[threadIdx.x] = x[threadIdx.x];
    } else {
        y[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
    }
}
__global__ void mask_without_itself(const float* x, float* y) {  // WARP_MASK
    unsigned mask = IF_FAULT(0x7fffffffu, 0xffffffffu);
    y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 1);  // here
}
__global__ void masks_differ(const float* x, float* y) {  // WARP_MASK
    unsigned mask = IF_FAULT(threadIdx.x % 32 == 31 ? 0x80000001u : ~0u, ~0u);
    y[threadIdx.x] = x[threadIdx.x] + __any_sync(mask, 1);  // here
}
__global__ void reads_from_a_lane_outside(const float* x, float* y) {  // WARP_MASK
    float value = x[threadIdx.x];
    unsigned mask = IF_FAULT(0x0000ffffu, ~0u);
    if (mask >> threadIdx.x % 32 & 1) value = __shfl_sync(mask, value, 16);  // here
    y[threadIdx.x] = value;
}
__global__ void different_collectives(const float* x, float* y) {  // DIVERGENT_WARP
    float value = x[threadIdx.x];
    if (IF_FAULT(threadIdx.x % 2, 1))
        value = __shfl_xor_sync(~0u, value, 1);
    else
        value = __shfl_xor_sync(~0u, value, 2);
    y[threadIdx.x] = value;
}
__global__ void a_lane_stays_away(const float* x, float* y) {  // DEADLOCK
    y[threadIdx.x] = x[threadIdx.x];
    if (IF_FAULT(threadIdx.x == 5, false)) {
        __syncthreads();
        return;
    }
    __syncwarp();  // here
    __syncthreads();
}
__global__ void overflow(const float* x, float* y) {  // ARITHMETIC
    int big = (int)x[0] * 0 + (1 << 30);
    y[threadIdx.x] = (float)(big * IF_FAULT(4, 1));  // here
}
__global__ void division_by_zero(const float* x, float* y) {  // ARITHMETIC
    int zero = (int)x[0] * 0 + IF_FAULT(0, 3);
    y[threadIdx.x] = (float)((int)threadIdx.x / zero);  // here
}
__global__ void stops_itself(const float* x, float* y) {  // TRAP
    y[threadIdx.x] = x[threadIdx.x];
    if (IF_FAULT(threadIdx.x == 7, false)) __trap();  // here
}
__global__ void barrier_not_initialised(const float* x, float* y) {  // BARRIER_MISUSE
    SHARED_MEMORY(raw);
    u64* barrier = (u64*)raw;
    if (threadIdx.x == 0) IF_FAULT(*barrier = 0, barrier_init(barrier, N));
    __syncthreads();
    barrier_arrive(barrier);  // here
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void barrier_not_initialised_for_all(const float* x, float* y) {  // BARRIER_MISUSE
    SHARED_MEMORY(raw);
    u64* barrier = (u64*)raw;
    if (threadIdx.x == 0) barrier_init(barrier, N);
    IF_FAULT(, __syncthreads();)
    barrier_arrive(barrier);  // here
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void one_arrival_too_many(const float* x, float* y) {  // BARRIER_MISUSE
    SHARED_MEMORY(raw);
    u64* barrier = (u64*)raw;
    if (threadIdx.x == 0) {
        barrier_init(barrier, N + 1);
        barrier_expect(barrier, 16);
    }
    __syncthreads();
    if (threadIdx.x < N - 1 || IF_FAULT(true, false)) barrier_arrive(barrier);
    if (IF_FAULT(threadIdx.x == N - 1, false)) barrier_arrive(barrier);
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void writes_over_a_barrier(const float* x, float* y) {  // BARRIER_MISUSE
    SHARED_MEMORY(raw);
    u64* barrier = (u64*)raw;
    if (threadIdx.x == 0) barrier_init(barrier, N);
    __syncthreads();
    if (threadIdx.x == 9) barrier[IF_FAULT(0, 1)] = 0;  // here
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void waits_for_ever(const float* x, float* y) {  // DEADLOCK
    SHARED_MEMORY(raw);
    u64* barrier = (u64*)raw;
    if (threadIdx.x == 0) barrier_init(barrier, N + IF_FAULT(1, 0));
    __syncthreads();
    barrier_arrive(barrier);
    barrier_wait(barrier, 0);  // here
    y[threadIdx.x] = x[threadIdx.x];
}
__global__ void no_wait_on_a_barrier(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    u64* barrier = (u64*)raw;
    float* s = (float*)(raw + 16);
    if (threadIdx.x == 0) barrier_init(barrier, N);
    __syncthreads();
    s[threadIdx.x] = x[threadIdx.x];  // or here
    barrier_arrive(barrier);
    IF_FAULT(, barrier_wait(barrier, 0);)
    y[threadIdx.x] = s[N - 1 - threadIdx.x];  // here
}
__global__ void product_never_waited_for(const float* x, float* y) {  // ASYNC
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    for (int i = threadIdx.x; i < 4096; i += N) s[i] = 0;
    fence_async_proxy();
    __syncthreads();
    float d[32] = {};
    wgmma_fence();
    const u64 a = matrix_descriptor(raw, 0, 1024), b = matrix_descriptor(raw + 8192, 0, 1024);
    wgmma_m64k16<64, false>(d, a, b, half_bits());  // here
    wgmma_commit();
    wgmma_wait<IF_FAULT(1, 0)>();
    accumulators_fence(d);
    y[threadIdx.x] = d[0] + x[threadIdx.x];
}
__global__ void no_fence_before_product(const float* x, float* y) {  // PROXY
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    for (int i = threadIdx.x; i < 4096; i += N) s[i] = 0;
    IF_FAULT(, fence_async_proxy();)
    __syncthreads();
    float d[32] = {};
    wgmma_fence();
    const u64 a = matrix_descriptor(raw, 0, 1024), b = matrix_descriptor(raw + 8192, 0, 1024);
    wgmma_m64k16<64, false>(d, a, b, half_bits());  // here
    wgmma_commit();
    wgmma_wait<0>();
    accumulators_fence(d);
    y[threadIdx.x] = d[0] + x[threadIdx.x];
}
__global__ void operand_changed_too_early(const float* x, float* y) {  // RACE
    SHARED_MEMORY(raw);
    float* s = (float*)raw;
    for (int i = threadIdx.x; i < 4096; i += N) s[i] = 0;
    fence_async_proxy();
    __syncthreads();
    float d[32] = {};
    wgmma_fence();
    wgmma_m64k16<64, false>(d, matrix_descriptor(raw, 0, 1024), matrix_descriptor(raw + 8192, 0, 1024), half_bits());
    wgmma_commit();
    wgmma_wait<0>();
    IF_FAULT(, __syncthreads();)
    s[threadIdx.x] = 1;  // here
    y[threadIdx.x] = d[0] + x[threadIdx.x];
}
"""
KINDS = dict(re.findall(r"^__global__ void (\w+)\(.*\{  // (\w+)$", PLANTED, re.MULTILINE))


def marked_lines(text: str, kernel: str) -> list[int]:
    """The lines within a kernel that a report on it may name."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"__global__ void {kernel}("))
    last = lines.index("}", first)
    return [i + 1 for i in range(first, last) if lines[i].endswith("here")]


@pytest.fixture(scope="module")
def planted() -> dict[bool, RawModule]:
    return {fault: module(PLANTED, *KINDS, options=["-DFAULT"] if fault else []) for fault in (False, True)}


def run_planted(planted: dict[bool, RawModule], kernel: str, fault: bool) -> Buffer:
    x, y = device(np.arange(256, dtype=np.float32)), empty(256)
    shared = (
        16384 if "product" in kernel or "operand" in kernel else 16 + 1024 * (kernel != "past_shared_memory") + 1008
    )
    planted[fault].get_function(kernel)(
        (1,), (256,), (x, y), shared_mem=1024 if kernel == "past_shared_memory" else shared
    )
    return y


@pytest.mark.parametrize("order", settings.ORDERS)
@pytest.mark.parametrize("kernel", KINDS)
def test_a_planted_fault_is_found_and_its_line_named(planted, kernel, order):
    with settings.using(order=order), pytest.raises(EmulatorError) as caught:
        run_planted(planted, kernel, fault=True)
    found = {re.match(r"\[(\w+)\] block \(0,0,0\)", report)[1] for report in caught.value.reports}
    # What is read too early may be unwritten as well, and in flight.
    assert KINDS[kernel] in found <= {KINDS[kernel], "RACE", "UNINITIALISED"}
    report = next(report for report in caught.value.reports if KINDS[kernel] in report)
    if lines := marked_lines(PLANTED, kernel):
        assert any(report.endswith(f" at kernels/test.cu:{line}") for line in lines)


@pytest.mark.parametrize("order", settings.ORDERS)
@pytest.mark.parametrize("kernel", KINDS)
def test_the_sibling_that_is_right_is_not_reported(planted, kernel, order):
    with settings.using(order=order):
        y = run_planted(planted, kernel, fault=False)
    assert written(y)
    assert np.isfinite(y.host).all()


BLOCKS = r"""
__global__ void same_word(float* y) { y[0] = blockIdx.x; }
__global__ void own_words(float* y) { y[blockIdx.x] = blockIdx.x; }
__global__ void sum(float* y) { atomicAdd(y, 1.0f); }
__global__ void neighbour(float* y) {
    y[blockIdx.x] = 1;
    float next = blockIdx.x + 1 < gridDim.x ? y[blockIdx.x + 1] : y[0];
    if (next < 0) y[blockIdx.x] = next;
}
__global__ void bytes(unsigned char* y) { y[blockIdx.x] = (unsigned char)blockIdx.x; }
template <bool FENCE>
__global__ void last_block_sums(float* y, unsigned* count) {
    SHARED_MEMORY(raw);
    unsigned* arrived = (unsigned*)raw;
    y[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    if (FENCE) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *arrived = atomicAdd(count, 1u);
    __syncthreads();
    if (*arrived + 1 != gridDim.x || threadIdx.x) return;
    float total = 0;
    for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) total += y[i];
    y[0] = total;
}
"""


@pytest.mark.parametrize("order", settings.ORDERS)
def test_blocks_may_not_touch_the_same_word_unless_atomically(order):
    names = ("same_word", "own_words", "sum", "neighbour", "bytes", "last_block_sums<true>", "last_block_sums<false>")
    kernels = module(BLOCKS, *names)
    y, count = device(np.zeros(256, np.float32)), device(np.zeros(1, np.uint32))
    launch = {name: kernels.get_function(name) for name in names}
    with settings.using(order=order):
        for name in ("same_word", "neighbour"):
            with pytest.raises(EmulatorError, match=r"\[RACE\].*another block"):
                launch[name]((4,), (1,), (y,))
        launch["own_words"]((4,), (1,), (y,))
        launch["own_words"]((4,), (1,), (y,))  # launches follow one another
        np.testing.assert_array_equal(y.host[:4], range(4))
        y.host[0] = 0
        launch["sum"]((4,), (32,), (y,))
        assert y.host[0] == 128
        launch["bytes"]((4,), (1,), (y,))
        launch["last_block_sums<true>"]((4,), (64,), (y, count), shared_mem=4)
        assert y.host[0] == 256
        count.host[0] = 0
        with pytest.raises(EmulatorError, match=r"\[RACE\].*another block"):
            launch["last_block_sums<false>"]((4,), (64,), (y, count), shared_mem=4)


def test_reports_are_few_and_say_how_many_there_are(planted):
    with pytest.raises(EmulatorError) as caught:
        run_planted(planted, "no_barrier", fault=True)
    assert len(caught.value.reports) <= 20
    assert "findings in all" in str(caught.value)


def test_an_access_beyond_an_array_says_how_far(planted):
    with pytest.raises(
        EmulatorError, match=r"thread 255: reads 4 bytes 0 bytes past the end of a global array of 1024"
    ):
        run_planted(planted, "past_the_end", fault=True)
    with pytest.raises(EmulatorError, match=r"thread 0: writes 4 bytes 4 bytes before a global array of 1024 bytes"):
        run_planted(planted, "before_the_start", fault=True)


# ---- the interface ----

SIMPLE = r"""
struct Sizes {
    int count;
    float scale;
    int rest[73];
};
template <class T, int FACTOR>
__global__ void scaled(const T* x, T* y, const Sizes sizes, T offset) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < sizes.count) y[i] = x[i] * (T)FACTOR * (T)sizes.scale + offset + sizes.rest[72];
}
"""
SIZES = np.dtype([("count", "i4"), ("scale", "f4"), ("rest", "i4", 73)])


@pytest.mark.parametrize("checked", [True, False])
def test_instances_of_one_module_take_structs_and_scalars_by_value(checked):
    dtypes = {"float": np.float32, "double": np.float64}
    names = [f"scaled<{T}, {factor}>" for T in dtypes for factor in (2, 3)]
    sizes = np.zeros(1, SIZES)
    sizes["count"], sizes["scale"], sizes["rest"][0, 72] = 1000, 0.5, 7
    assert SIZES.itemsize == 300
    with settings.using(checked=checked):
        kernels = module(SIMPLE, *names)
        for T, dtype in dtypes.items():
            for factor in (2, 3):
                x, y = (device(RNG.standard_normal(1000).astype(dtype)), empty(1000, dtype))
                launch = kernels.get_function(f"scaled<{T}, {factor}>")
                launch((4,), (256,), (x, y, sizes, dtype(1.5)))
                np.testing.assert_allclose(y.host, x.host * factor * dtype(0.5) + 8.5, rtol=1e-6)
                assert written(y)


def test_arguments_must_fit_the_parameters():
    launch = module(SIMPLE, "scaled<float, 2>").get_function("scaled<float, 2>")
    x, y, sizes = device(np.zeros(8, np.float32)), empty(8), np.zeros(1, SIZES)
    launch((1,), (8,), (x, None, sizes, np.float32(0)))  # count is 0, so that the null pointer is not used
    with pytest.raises(EmulatorError, match=r"argument 3.*8 bytes of kind 'f' for a parameter of 4 bytes"):
        launch((1,), (8,), (x, y, sizes, 0.0))
    with pytest.raises(EmulatorError, match=r"argument 3.*kind 'i'"):
        launch((1,), (8,), (x, y, sizes, np.int32(0)))
    with pytest.raises(EmulatorError, match=r"argument 0"):
        launch((1,), (8,), (np.int32(0), y, sizes, np.float32(0)))
    with pytest.raises(EmulatorError, match=r"4 parameters and got 3"):
        launch((1,), (8,), (x, y, sizes))
    with pytest.raises(TypeError, match="Unsupported type"):
        launch((1,), (8,), ("x", y, sizes, np.float32(0)))


SHARED = r"""
extern "C" __global__ void __launch_bounds__(32) whole(float* y, int count) {
    SHARED_MEMORY(raw);
    for (int i = threadIdx.x; i < count; i += 32) ((float*)raw)[i] = i;
    __syncwarp();
    if (threadIdx.x == 0) y[0] = ((float*)raw)[count - 1] + (float)((size_t)raw % 1024);
}
"""


def test_shared_memory_beyond_48_kib_must_be_asked_for_and_has_a_limit():
    kernels = module(SHARED)  # without name expressions: kernels that are no templates are known by name
    assert kernels.name_expressions == ("whole",)
    launch, y = kernels.get_function("whole"), empty(1)
    for size in (48 * 1024, 227 * 1024):
        launch.max_dynamic_shared_size_bytes = size
        launch((1,), (32,), (y, np.int32(size // 4)), shared_mem=size)
        assert y.host[0] == size // 4 - 1
    fresh = kernels.get_function("whole")
    with pytest.raises(EmulatorError, match=r"\[BAD_LAUNCH\] 49153 bytes of shared memory"):
        fresh((1,), (32,), (y, np.int32(1)), shared_mem=48 * 1024 + 1)
    with pytest.raises(EmulatorError, match=r"\[BAD_LAUNCH\].*the device has 232448"):
        fresh.max_dynamic_shared_size_bytes = 227 * 1024 + 1
    with settings.using(compute_capability=(8, 6)), pytest.raises(EmulatorError, match="the device has 101376"):
        fresh.max_dynamic_shared_size_bytes = 163 * 1024


@pytest.mark.parametrize(
    ("grid", "block"),
    [((0,), (32,)), ((1, 65536), (32,)), ((1, 1, 65536), (32,)), ((1,), (1025,)), ((1,), (32, 64)), ((1,), (1, 1, 65))],
)
def test_launches_that_cuda_refuses(grid, block):
    launch = module(SHARED).get_function("whole")
    with pytest.raises(EmulatorError, match="BAD_LAUNCH"):
        launch(grid, block, (empty(1), np.int32(1)), shared_mem=4)


def test_grids_and_blocks_of_three_dimensions():
    text = r"""
    __global__ void where(int* y) {
        int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        int i = block * blockDim.x * blockDim.y * blockDim.z + thread;
        y[i] = (blockIdx.z * 10 + blockIdx.y) * 10 + blockIdx.x;
        y[i] = 1000 * y[i] + (threadIdx.z * 10 + threadIdx.y) * 10 + threadIdx.x;
    }"""
    y = empty((2, 3, 4, 2, 3, 5), np.int32)
    module(text).get_function("where")((4, 3, 2), (5, 3, 2), (y,))
    digits = np.indices(y.host.shape)
    expected = sum(digits[i] * 10**power for i, power in enumerate((5, 4, 3, 2, 1, 0)))
    np.testing.assert_array_equal(y.host, expected)


def test_a_kernel_that_does_not_compile_gives_the_compilers_message():
    with pytest.raises(CompileException, match=r"kernels/test.cu:2:.*'?nonsense"):
        module("\n__global__ void broken() { nonsense(); }").get_function("broken")
    with pytest.raises(KeyError, match="not among the name expressions"):
        module(SHARED).get_function("hole")


@pytest.mark.parametrize("kernel", ["past_the_end", "waits_for_ever", "misaligned_vector", "stops_itself"])
def test_a_fault_leaves_the_next_launch_working(planted, kernel):
    for _ in range(3):
        with pytest.raises(EmulatorError):
            run_planted(planted, kernel, fault=True)
        assert written(run_planted(planted, kernel, fault=False))


def test_unchecked_kernels_run_without_reports(planted):
    with settings.using(checked=False):
        y = run_planted(planted, "uninitialised_global", fault=True)
        assert written(y)  # nobody watched, so everything may have been


def test_a_kernel_may_read_its_tables_of_constants():
    text = r"""
    __constant__ float table[4] = {1, 2, 3, 4};
    __global__ void look_up(float* y) { y[threadIdx.x] = table[(threadIdx.x * 7) % 4]; }"""
    y = empty(4)
    module(text).get_function("look_up")((1,), (4,), (y,))
    np.testing.assert_array_equal(y.host, [1, 4, 3, 2])


# ---- memory ----


def test_memory_knows_which_bytes_were_written():
    raw = memory.allocate(100, initialised=False)
    address = raw.ctypes.data
    assert address % 512 == 0
    assert memory.first_uninitialised(address, 100) == 0
    memory.mark_initialised(address, 7)
    memory.mark_initialised(address + 9, 91)
    assert memory.first_uninitialised(address, 100) == 7
    assert memory.first_uninitialised(address + 9, 91) is None
    memory.mark_initialised(address + 7, 2)
    assert memory.first_uninitialised(address, 100) is None
    assert memory.allocate(0, initialised=True).size == 0


def test_outputs_that_no_thread_wrote_are_found():
    text = "__global__ void most(float* y) { if (threadIdx.x != 5) y[threadIdx.x] = 0; }"
    y = empty(32)
    module(text).get_function("most")((1,), (32,), (y,))
    assert memory.first_uninitialised(y.data.ptr, 128) == 20


def test_memory_is_the_checkers_until_its_last_view_is_gone():
    text = "__global__ void first(const float* x, float* y) { y[0] = x[0]; }"
    launch, y = module(text).get_function("first"), empty(1)
    raw = memory.allocate(64, initialised=True)
    x = Buffer(raw[16:32].view(np.float32))
    pointer = np.uint64(x.data.ptr)
    del raw
    gc.collect()
    launch((1,), (1,), (x, y))
    del x
    gc.collect()
    with pytest.raises(EmulatorError, match="OUT_OF_BOUNDS"):
        launch((1,), (1,), (pointer, y))


# ---- warps ----

WARP = r"""
__global__ void collectives(const int* x, int* y) {
    const int lane = threadIdx.x, value = x[lane];
    int* row = y + lane;
    row[0 * 32] = __shfl_sync(0xffffffffu, value, 3);
    row[1 * 32] = __shfl_xor_sync(0xffffffffu, value, 5);
    row[2 * 32] = __shfl_up_sync(0xffffffffu, value, 2);
    row[3 * 32] = __shfl_down_sync(0xffffffffu, value, 7);
    row[4 * 32] = __shfl_down_sync(0xffffffffu, value, 3, 8);
    row[5 * 32] = __shfl_sync(0xffffffffu, value, 9, 4);
    row[6 * 32] = (int)__ballot_sync(0xffffffffu, value % 3 == 0);
    row[7 * 32] = __any_sync(0xffffffffu, value == 40) + 2 * __all_sync(0xffffffffu, value >= 0);
    row[8 * 32] = (int)__match_any_sync(0xffffffffu, value % 5);
    row[9 * 32] = __syncthreads_count(value % 2) + 100 * __syncthreads_or(value == 31);
    row[9 * 32] += 1000 * __syncthreads_and(value == 31);
    int half = 0;
    if (lane < 16) half = __shfl_xor_sync(0x0000ffffu, value, 15);
    row[10 * 32] = half;
    row[11 * 32] = (int)__shfl_xor_sync(0xffffffffu, (double)value, 16);
}
"""


@pytest.mark.parametrize("order", settings.ORDERS)
def test_collectives_of_a_warp(order):
    x, y = device(np.arange(32, dtype=np.int32)), empty((12, 32), np.int32)
    with settings.using(order=order):
        module(WARP).get_function("collectives")((1,), (32,), (x, y))
    lane = np.arange(32)
    matches = [sum(1 << other for other in range(32) if other % 5 == i % 5) for i in range(32)]
    expected = [
        np.full(32, 3),
        lane ^ 5,
        np.where(lane >= 2, lane - 2, lane),
        np.where(lane + 7 < 32, lane + 7, lane),
        np.where(lane % 8 + 3 < 8, lane + 3, lane),
        lane // 4 * 4 + 1,
        np.full(32, sum(1 << i for i in range(0, 32, 3))),
        np.full(32, 2),
        np.array(matches),
        np.full(32, 116),
        np.where(lane < 16, lane ^ 15, 0),
        lane ^ 16,
    ]
    np.testing.assert_array_equal(y.host.view(np.uint32), np.array(expected, np.int64).astype(np.uint32))


# ---- twins of PTX ----


def bfloat(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


CONVERSIONS = r"""
__global__ void widen(const half_bits* x, float* half, float* bfloat) {
    const int i = blockIdx.x * 1024 + threadIdx.x;
    half[i] = half_to_float(x[i]);
    bfloat[i] = bfloat_to_float(bfloat_bits{x[i].bits});
}
__global__ void narrow(const float* x, half_bits* half, bfloat_bits* bfloat, unsigned* tf32) {
    const int i = blockIdx.x * 1024 + threadIdx.x;
    half[i] = float_to_half(x[i]);
    bfloat[i] = float_to_bfloat(x[i]);
    tf32[i] = float_to_tf32(x[i]);
}
__global__ void pairs(const float* x, unsigned* half, unsigned* bfloat) {
    const int i = blockIdx.x * 512 + threadIdx.x;
    half[i] = rounded_pair(x[2 * i], x[2 * i + 1], half_bits());
    bfloat[i] = rounded_pair(x[2 * i], x[2 * i + 1], bfloat_bits());
}
"""


def test_every_half_and_bfloat_converts_exactly():
    bits = np.arange(65536, dtype=np.uint16)
    half, wide = empty(65536), empty(65536)
    module(CONVERSIONS).get_function("widen")((64,), (1024,), (device(bits), half, wide))
    np.testing.assert_array_equal(half.host, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(wide.host, from_bfloat(bits))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_floats_round_as_the_device_rounds_them():
    specials = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        65504,
        65519.99,
        65520,
        1e-8,
        2**-24,
        2**-25,
        2**-14,
        6.1e-5,
        3.4e38,
    ]
    exact = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = np.where(np.isfinite(exact), exact, 0) * np.float32(1 + 2**-11)
    random = RNG.integers(0, 2**32, 131072, dtype=np.uint32).view(np.float32)
    scaled = RNG.standard_normal(65536).astype(np.float32) * np.exp2(RNG.integers(-26, 17, 65536)).astype(np.float32)
    x = np.concatenate([np.array(specials, np.float32), exact, ties, random, scaled])
    x = np.concatenate([x, np.zeros(-x.size % 1024, np.float32)])
    half, wide, tf32 = (empty(x.size, np.uint16), empty(x.size, np.uint16), empty(x.size, np.uint32))
    module(CONVERSIONS).get_function("narrow")((x.size // 1024,), (1024,), (device(x), half, wide, tf32))
    number = ~np.isnan(x)
    pairs = empty(x.size, np.uint16), empty(x.size, np.uint16)
    module(CONVERSIONS).get_function("pairs")((x.size // 1024,), (512,), (device(x), *pairs))
    for pair, single in zip(pairs, (half, wide), strict=True):
        np.testing.assert_array_equal(pair.host[number], single.host[number])
    np.testing.assert_array_equal(half.host[number], x[number].astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(wide.host[number], bfloat(x[number]))
    bits = x.view(np.uint32)
    away = np.where(np.isinf(x), bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))
    np.testing.assert_array_equal(tf32.host[number], away[number])
    for result in (half.host.view(np.float16), from_bfloat(wide.host), tf32.host.view(np.float32)):
        assert np.isnan(result[~number]).all()


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


@pytest.mark.parametrize("matrices", [2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_loads_scatter_as_documented(matrices, transposed):
    x = RNG.integers(0, 65536, (4, 8, 8), dtype=np.uint16)
    y = empty((matrices, 32), np.uint32)
    name = f"load<{matrices}, {str(transposed).lower()}>"
    instances = [f"load<{m}, {t}>" for m in (2, 4) for t in ("false", "true")]
    module(MATRICES, *instances).get_function(name)((1,), (32,), (device(x), y), shared_mem=512)
    expected = x.swapaxes(1, 2) if transposed else x
    np.testing.assert_array_equal(y.host.view(np.uint16).reshape(matrices, 8, 8), expected[:matrices])


PRODUCTS = r"""
template <class ELEMENT>
__global__ void product(const unsigned short* a, const unsigned short* b, float* d) {
    const int group = threadIdx.x / 4, member = threadIdx.x % 4;
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
ELEMENTS = {
    "half_bits": (16, lambda x: x.astype(np.float16).view(np.uint16), lambda bits: bits.view(np.float16)),
    "bfloat_bits": (16, bfloat, from_bfloat),
    "tf32": (8, lambda x: x.view(np.uint32), lambda bits: (bits & np.uint32(0xFFFFE000)).view(np.float32)),
}


def multiply(element: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    names = ["product<half_bits>", "product<bfloat_bits>", "product_tf32"]
    d = device(c)
    launch = module(PRODUCTS, *names).get_function("product_tf32" if element == "tf32" else f"product<{element}>")
    launch((1,), (32,), (device(a), device(b), d))
    return d.host


@pytest.mark.parametrize("element", ELEMENTS)
def test_products_have_the_documented_layout_and_truncate(element):
    depth, narrow, widen = ELEMENTS[element]
    for _ in range(20):
        a = narrow(RNG.standard_normal((16, depth)).astype(np.float32))
        b = narrow(RNG.standard_normal((depth, 8)).astype(np.float32))
        c = RNG.standard_normal((16, 8)).astype(np.float32)
        terms = np.abs(widen(a).astype(float)) @ np.abs(widen(b).astype(float)) + np.abs(c)
        exact = widen(a).astype(float) @ widen(b).astype(float) + c
        error = np.abs(multiply(element, a, b, c) - exact)
        assert (error <= terms * 2.0**-22).all()
        assert error.any()
    # Whole numbers are exact; a term far below the largest is cut off, toward zero and whatever its sign.
    a, b, c = (np.zeros(shape, np.float32) for shape in ((16, depth), (depth, 8), (16, 8)))
    a[:, 0], b[0], c[:] = 3, np.arange(8), 100
    np.testing.assert_array_equal(multiply(element, narrow(a), narrow(b), c), c + 3 * np.arange(8))
    a[:, 0], b[0], c[:] = 2.0**-13, 2.0**-13, 1
    np.testing.assert_array_equal(multiply(element, narrow(a), narrow(b), c), c)
    a[:, 0], c[:] = -(2.0**-13), 1
    np.testing.assert_array_equal(multiply(element, narrow(a), narrow(b), c), c)
    a[:, 0], b[0] = (-(2.0**-12), 2.0**-13)  # 24 + 2 places are kept before the sum, and 24 of the sum: one ulp below 1
    np.testing.assert_array_equal(multiply(element, narrow(a), narrow(b), c), c - np.float32(2.0**-24))


@pytest.mark.parametrize("element", ELEMENTS)
def test_infinities_and_nans_spread(element):
    depth, narrow, _ = ELEMENTS[element]
    a, b, c = (np.ones((16, depth), np.float32), np.ones((depth, 8), np.float32), np.zeros((16, 8), np.float32))
    a[0, 0], a[1, 0], a[2, 0], c[3, 3], b[1, 7] = np.inf, np.nan, -np.inf, np.inf, 0
    b[0, 6] = 0
    d = multiply(element, narrow(a), narrow(b), c)
    assert (d[0, :6] == np.inf).all()
    assert np.isnan(d[0, 6])
    assert np.isnan(d[1]).all()
    assert d[2, 0] == -np.inf
    assert d[3, 3] == np.inf
    assert (d[4, :6] == depth).all()


# ---- twins of Hopper's PTX ----

TENSOR_COPIES = r"""
template <int RANK, bool IM2COL>
__global__ void fetch(const __grid_constant__ TensorMap map, unsigned char* y, int bytes, int4 start, int n,
                      int4 offset) {
    SHARED_MEMORY(raw);
    unsigned long long* barrier = (unsigned long long*)(raw + bytes);
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_expect(barrier, bytes);
        if constexpr (!IM2COL && RANK == 2) tma_load_tile_2d(raw, &map, barrier, start.x, start.y);
        if constexpr (!IM2COL && RANK == 3) tma_load_tile_3d(raw, &map, barrier, start.x, start.y, start.z);
        if constexpr (IM2COL && RANK == 3) tma_load_im2col_3d(raw, &map, barrier, start.x, start.y, start.z, offset.x);
        if constexpr (IM2COL && RANK == 4)
            tma_load_im2col_4d(raw, &map, barrier, start.x, start.y, start.z, start.w, offset.x, offset.y);
        if constexpr (IM2COL && RANK == 5)
            tma_load_im2col_5d(raw, &map, barrier, start.x, start.y, start.z, start.w, n, offset.x, offset.y, offset.z);
    }
#ifndef FAULT
    barrier_wait(barrier, 0);
#endif
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) y[i] = raw[i];
}
"""
INT4 = np.dtype([(name, "i4") for name in "xyzw"])
BFLOAT16, SWIZZLE_128 = (9, 3)  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_SWIZZLE_128B


def fetch(rank, im2col, tensor, nbytes, start, offset=(), options=()) -> np.ndarray:
    """The bytes that one tensor copy leaves in shared memory."""
    names = [*(f"fetch<{r}, false>" for r in (2, 3)), *(f"fetch<{r}, true>" for r in (3, 4, 5))]
    y = empty(nbytes, np.uint8)
    first, fifth = np.zeros(1, INT4), np.int32(start[4] if rank == 5 else 0)
    for name, value in zip("xyzw", start, strict=False):
        first[name] = value
    shift = np.zeros(1, INT4)
    for name, value in zip("xyz", offset, strict=False):
        shift[name] = value
    launch = module(TENSOR_COPIES, *names, options=options).get_function(f"fetch<{rank}, {str(im2col).lower()}>")
    launch((1,), (64,), (tensor, y, np.int32(nbytes), first, fifth, shift), shared_mem=nbytes + 8)
    return y.host


def unswizzled(lines: np.ndarray) -> np.ndarray:
    """Lines of 128 bytes with their 16-byte chunks in order; the base is a multiple of 1024."""
    chunks = lines.reshape(-1, 8, 16)
    order = np.arange(8) ^ (np.arange(len(chunks)) % 8)[:, None]
    return np.take_along_axis(chunks, order[:, :, None], axis=1).reshape(lines.shape)


def taps(x: np.ndarray, start, offset, lower, upper, steps, pixels, channels) -> np.ndarray:
    """Row by row what an im2col copy reads of x (images, depth, height, width, channels), by its definition."""
    spatial = x.ndim - 2
    sizes = x.shape[-2:0:-1]  # width first
    c, *at = start
    rows = np.zeros((pixels, channels), x.dtype)
    for row in rows:
        place = [p + o for p, o in zip(at, offset, strict=False)]
        inside = all(0 <= p < size for p, size in zip(place, sizes, strict=True)) and 0 <= at[-1] < x.shape[0]
        if inside:
            values = x[(at[-1], *place[::-1])][c : c + channels]
            row[: values.size] = values
        for axis in range(spatial):
            at[axis] += steps[axis]
            if at[axis] < sizes[axis] + upper[axis]:
                break
            at[axis] = lower[axis]
        else:
            at[-1] += 1
    return rows


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("swizzle", [0, SWIZZLE_128])
def test_im2col_copies_gather_as_defined(spatial, swizzle):
    sizes = (9, 7, 5)[:spatial]  # width, height, depth
    channels, images, pixels = 96, 3, 64
    x = RNG.integers(1, 65536, (images, *sizes[::-1], channels), dtype=np.uint16)
    source = device(x)
    strides = [2 * channels * int(np.prod(sizes[:axis])) for axis in range(spatial + 1)]
    for c, steps, first, offset in [
        (0, (1, 1, 1), 0, (2, 1, 0)),
        (64, (2, 1, 3), 1, (0, 2, 1)),
        (32, (3, 2, 1), 2, (1, 0, 2)),
    ]:
        lower, upper = (-1,) * spatial, (-1, 0, 1)[:spatial]
        encoded = tensor_map.encode_im2col(
            BFLOAT16,
            spatial + 2,
            source.data.ptr,
            (channels, *sizes, images),
            strides,
            lower,
            upper,
            64,
            pixels,
            (1, *steps[:spatial], 1),
            swizzle=swizzle,
        )
        start = (c, *((-1,) * spatial), first)
        got = fetch(spatial + 2, True, encoded, pixels * 128, start, offset).reshape(pixels, 128)
        got = unswizzled(got) if swizzle else got
        expected = taps(x, start, offset[:spatial], lower, upper, steps, pixels, 64)
        np.testing.assert_array_equal(got.view(np.uint16), expected)


@pytest.mark.parametrize("swizzle", [0, SWIZZLE_128])
def test_tiled_copies_take_a_box_and_fill_what_is_outside(swizzle):
    x = RNG.integers(1, 65536, (5, 20, 80), dtype=np.uint16)
    source = device(x)
    encoded = tensor_map.encode_tiled(
        BFLOAT16, 3, source.data.ptr, (80, 20, 5), (160, 3200), (64, 8, 2), (1, 1, 1), swizzle=swizzle
    )
    padded = np.pad(x, ((2, 2), (8, 8), (64, 64)))
    for i, j, k in [(0, 0, 0), (32, 16, 4), (-8, -3, -1), (72, 5, 3)]:
        got = fetch(3, False, encoded, 2048, (i, j, k)).reshape(16, 128)
        got = unswizzled(got) if swizzle else got
        box = padded[k + 2 : k + 4, j + 8 : j + 16, i + 64 : i + 128]
        np.testing.assert_array_equal(got.view(np.uint16).reshape(2, 8, 64), box)


@pytest.mark.parametrize("order", settings.ORDERS)
def test_reading_a_tensor_copy_before_it_has_landed_is_found(order):
    source = device(np.ones((64, 64), np.uint16))
    encoded = tensor_map.encode_tiled(BFLOAT16, 2, source.data.ptr, (64, 64), (128,), (64, 8), (1, 1))
    with (
        settings.using(order=order),
        pytest.raises(EmulatorError, match=r"\[(ASYNC|RACE)\].*in flight.*at kernels/test"),
    ):
        fetch(2, False, encoded, 1024, (0, 0), options=["-DFAULT"])


def test_a_block_may_not_end_before_its_tensor_copies():
    text = r"""
    __global__ void leave(const __grid_constant__ TensorMap map) {
        SHARED_MEMORY(raw);
        unsigned long long* barrier = (unsigned long long*)(raw + 1024);
        barrier_init(barrier, 1);
        barrier_expect(barrier, 1024);
        tma_load_tile_2d(raw, &map, barrier, 0, 0);
    }"""
    source = device(np.ones((64, 64), np.uint16))
    encoded = tensor_map.encode_tiled(BFLOAT16, 2, source.data.ptr, (64, 64), (128,), (64, 8), (1, 1))
    with pytest.raises(EmulatorError, match=r"\[ASYNC\].*tensor copy.*at kernels/test.cu:7"):
        module(text).get_function("leave")((1,), (1,), (encoded,), shared_mem=1032)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(address=8), "multiple of 16"),
        (dict(strides=(120,)), "multiple of 16"),
        (dict(box=(64, 257)), "from 1 to 256"),
        (dict(box=(4, 8)), "multiple of 16"),
        (dict(box=(128, 8), swizzle=SWIZZLE_128), "beyond the swizzle"),
        (dict(sizes=(64,)), "1 sizes for rank 2"),
        (dict(element_strides=(1, 9)), "1 to 8"),
    ],
)
def test_tensor_maps_that_the_driver_refuses(change, message):
    arguments = dict(
        data_type=BFLOAT16, rank=2, address=0, sizes=(64, 64), strides=(128,), box=(64, 8), element_strides=(1, 1)
    )
    tensor_map.encode_tiled(**arguments)
    with pytest.raises(ValueError, match=message):
        tensor_map.encode_tiled(**arguments | change)


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
    for (int i = 0; i < N / 2; ++i) d[i] = 0;
    const unsigned long long left = matrix_descriptor(raw, 0, 1024);
    const unsigned long long right = matrix_descriptor(raw + 8192, TRANSPOSED ? 8192 : 0, 1024);
    wgmma_fence();
    for (int step = 0; step < 4; ++step) {
        const unsigned long long l = left + 2 * step, r = right + (TRANSPOSED ? 128 : 2) * step;
        if constexpr (ELEMENT == 0) wgmma_m64k16<N, TRANSPOSED>(d, l, r, half_bits());
        if constexpr (ELEMENT == 1) wgmma_m64k16<N, TRANSPOSED>(d, l, r, bfloat_bits());
        if constexpr (ELEMENT == 2) wgmma_m64k8_tf32<N>(d, l, r);
    }
    wgmma_commit();
    wgmma_wait<0>();
    accumulators_fence(d);
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
    for (int i = 0; i < N / 2; ++i)
        y[(warp * 16 + i / 2 % 2 * 8 + group) * N + i / 4 * 8 + 2 * member + i % 2] = d[i];
}
"""


@pytest.mark.parametrize(
    ("n", "transposed", "element"),
    [(64, False, 0), (128, False, 1), (256, False, 1), (128, True, 1), (256, True, 0), (64, False, 2), (256, False, 2)],
)
def test_products_of_a_warpgroup(n, transposed, element):
    name = ("half_bits", "bfloat_bits", "tf32")[element]
    _, narrow, widen = ELEMENTS[name]
    depth = 32 if element == 2 else 64  # a line of 128 bytes
    a, b = (narrow(RNG.standard_normal((64, depth)).astype("f4")), narrow(RNG.standard_normal((n, depth)).astype("f4")))
    if transposed:  # tiles of 64 rows of K, each of 64 of N
        tiles = b.T.reshape(depth, n // 64, 64).swapaxes(0, 1)
        lines = np.ascontiguousarray(tiles).view(np.uint8).reshape(-1, 128)
    else:
        lines = b.view(np.uint8).reshape(-1, 128)
    y = empty((64, n))
    expression = f"product<{n}, {str(transposed).lower()}, {element}>"
    launch = module(WARPGROUP, expression).get_function(expression)
    # Swizzling is an involution, so that the same permutation lays the operands out.
    arguments = (device(unswizzled(a.view(np.uint8).reshape(-1, 128))), device(unswizzled(lines)), y)
    launch((1,), (128,), arguments, shared_mem=8192 + lines.size)
    expected = widen(a).astype(float) @ widen(b).astype(float).T
    np.testing.assert_allclose(y.host, expected, rtol=1e-5, atol=3e-5)
