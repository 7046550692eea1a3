// Inline PTX of Hopper alone (sm_90a): barriers in shared memory, tensor copies, and products of a warpgroup.
//
// As in ptx.cuh, everything that speaks PTX is left out under XPCONV_EMULATED, where the tests' own functions of the
// same names and meaning stand in; and on every other architecture. Needs ptx.cuh before it.
#ifndef XPCONV_SM90_CUH
#define XPCONV_SM90_CUH

// A CUtensorMap. The host encodes it; the kernel takes it by value, as `const __grid_constant__ TensorMap`.
struct __align__(64) TensorMap {
    unsigned long long opaque[16];
};

#if !defined(XPCONV_EMULATED) && defined(__CUDA_ARCH_FEAT_SM90_ALL)

// ---- barriers: a phase ends when `count` threads have arrived and all expected bytes have landed ----

__forceinline__ __device__ void barrier_init(unsigned long long *barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes the initialised barriers known to the units that copy; a __syncthreads makes them known to the threads.
__forceinline__ __device__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and lets the phase wait for `bytes` more of asynchronous copies.
__forceinline__ __device__ void barrier_expect(unsigned long long *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__forceinline__ __device__ void barrier_arrive(unsigned long long *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Waits for the end of the phase of this parity; the first phase is 0, and the one before it, 1, counts as ended.
__forceinline__ __device__ void barrier_wait(unsigned long long *barrier, unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
        "@!ended bra again_%=;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// Orders this thread's earlier accesses to shared memory before later ones by tensor copies and products.
__forceinline__ __device__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- tensor copies into shared memory: coordinates from the innermost dimension outwards ----

__forceinline__ __device__ void tma_prefetch(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__forceinline__ __device__ void tma_load_tile_2d(void *shared, const TensorMap *map, unsigned long long *barrier,
                                                 int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
        "r"(x), "r"(y)
        : "memory");
}

__forceinline__ __device__ void tma_load_tile_3d(void *shared, const TensorMap *map, unsigned long long *barrier,
                                                 int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
        "r"(x), "r"(y), "r"(z)
        : "memory");
}

__forceinline__ __device__ void tma_load_tile_5d(void *shared, const TensorMap *map, unsigned long long *barrier,
                                                 int x, int y, int z, int u, int v) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
        "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
        : "memory");
}

// Pixels are those of the input that meet the filter's first tap; the offsets move on to another tap.
__forceinline__ __device__ void tma_load_im2col_3d(void *shared, const TensorMap *map, unsigned long long *barrier,
                                                   int c, int w, int n, unsigned short off_w) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2], {%6};" ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
        "r"(c), "r"(w), "r"(n), "h"(off_w)
        : "memory");
}

__forceinline__ __device__ void tma_load_im2col_4d(void *shared, const TensorMap *map, unsigned long long *barrier,
                                                   int c, int w, int h, int n, unsigned short off_w, unsigned short off_h) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
        "r"(c), "r"(w), "r"(h), "r"(n), "h"(off_w), "h"(off_h)
        : "memory");
}

__forceinline__ __device__ void tma_load_im2col_5d(void *shared, const TensorMap *map, unsigned long long *barrier,
                                                   int c, int w, int h, int d, int n, unsigned short off_w, unsigned short off_h, unsigned short off_d) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10};" ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
        "r"(c), "r"(w), "r"(h), "r"(d), "r"(n), "h"(off_w), "h"(off_h), "h"(off_d)
        : "memory");
}

// ---- products of a warpgroup: d of 64 by N in registers, a and b in shared memory ----

// Operands lie in tiles of 8 rows of 128 bytes, swizzled as a tensor copy with 128-byte swizzle leaves them; each tile
// is aligned to 1024 bytes. With K along the rows, the next 8 rows of M or N are `stride_bytes` further on, and
// `leading_bytes` is not used; 16 elements further along K is 32 bytes further, 2 in the descriptor. With N along the
// rows (TRANSPOSED_B), the next 64 of N are `leading_bytes` further on, and the next 8 of K `stride_bytes`.
__forceinline__ __device__ unsigned long long matrix_descriptor(const void *shared, unsigned leading_bytes,
                                                                unsigned stride_bytes) {
    const unsigned long long address = shared_address(shared) & 0x3ffffu, leading = leading_bytes & 0x3ffffu,
                             stride = stride_bytes & 0x3ffffu;
    return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1ull << 62;
}

// Before the first product, and whenever registers it uses have been written.
__forceinline__ __device__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__forceinline__ __device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all products but those of the last PENDING groups.
template <int PENDING>
__forceinline__ __device__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving reads and writes of accumulators across this place: put one after a wait.
template <int COUNT>
__forceinline__ __device__ void accumulators_fence(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define WGMMA_REGISTERS_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_REGISTERS_32 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_REGISTERS_64 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_REGISTERS_96 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define WGMMA_32(i) WGMMA_8(i), WGMMA_8(i + 8), WGMMA_8(i + 16), WGMMA_8(i + 24)
#define WGMMA_REGISTERS_N64 WGMMA_REGISTERS_0
#define WGMMA_REGISTERS_N128 WGMMA_REGISTERS_0 ", " WGMMA_REGISTERS_32
#define WGMMA_REGISTERS_N256 WGMMA_REGISTERS_N128 ", " WGMMA_REGISTERS_64 ", " WGMMA_REGISTERS_96
#define WGMMA_OUTPUTS_N64 WGMMA_32(0)
#define WGMMA_OUTPUTS_N128 WGMMA_32(0), WGMMA_32(32)
#define WGMMA_OUTPUTS_N256 WGMMA_32(0), WGMMA_32(32), WGMMA_32(64), WGMMA_32(96)

// The numbers after "1" are: accumulate, neither operand negated, a not transposed, b transposed or not.
#define WGMMA_16_BITS(N, A, B, T, ELEMENT)                                                                      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." ELEMENT "." ELEMENT " {" WGMMA_REGISTERS_N##N \
                 "}, %" #A ", %" #B ", 1, 1, 1, 0, %" #T ";"                                                    \
                 : WGMMA_OUTPUTS_N##N                                                                           \
                 : "l"(a), "l"(b), "n"(int(TRANSPOSED_B)))
#define WGMMA_TF32(N, A, B)                                                                                  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k8.f32.tf32.tf32 {" WGMMA_REGISTERS_N##N "}, %" #A \
                 ", %" #B ", 1, 1, 1;"                                                                       \
                 : WGMMA_OUTPUTS_N##N                                                                        \
                 : "l"(a), "l"(b))
#define WGMMA_FOR_N(ELEMENT)                                                            \
    static_assert(N == 64 || N == 128 || N == 256, "no such product");                  \
    if constexpr (N == 64) WGMMA_16_BITS(64, 32, 33, 34, ELEMENT);                      \
    if constexpr (N == 128) WGMMA_16_BITS(128, 64, 65, 66, ELEMENT);                    \
    if constexpr (N == 256) WGMMA_16_BITS(256, 128, 129, 130, ELEMENT)

// Thread t of the warpgroup holds, of each 8 columns j, d[4 j + 2 h + e]: row 16 (t / 32) + 8 h + t % 32 / 4, column
// 8 j + 2 (t % 4) + e.
template <int N, bool TRANSPOSED_B>
__forceinline__ __device__ void wgmma_m64k16(float (&d)[N / 2], unsigned long long a, unsigned long long b, half_bits) {
    WGMMA_FOR_N("f16");
}

template <int N, bool TRANSPOSED_B>
__forceinline__ __device__ void wgmma_m64k16(float (&d)[N / 2], unsigned long long a, unsigned long long b, bfloat_bits) {
    WGMMA_FOR_N("bf16");
}

// Both operands with K along the rows; 8 elements further along K is 32 bytes further.
template <int N>
__forceinline__ __device__ void wgmma_m64k8_tf32(float (&d)[N / 2], unsigned long long a, unsigned long long b) {
    static_assert(N == 64 || N == 128 || N == 256, "no such product");
    if constexpr (N == 64) WGMMA_TF32(64, 32, 33);
    if constexpr (N == 128) WGMMA_TF32(128, 64, 65);
    if constexpr (N == 256) WGMMA_TF32(256, 128, 129);
}

#undef WGMMA_REGISTERS_0
#undef WGMMA_REGISTERS_32
#undef WGMMA_REGISTERS_64
#undef WGMMA_REGISTERS_96
#undef WGMMA_8
#undef WGMMA_32
#undef WGMMA_REGISTERS_N64
#undef WGMMA_REGISTERS_N128
#undef WGMMA_REGISTERS_N256
#undef WGMMA_OUTPUTS_N64
#undef WGMMA_OUTPUTS_N128
#undef WGMMA_OUTPUTS_N256
#undef WGMMA_16_BITS
#undef WGMMA_TF32
#undef WGMMA_FOR_N

// ---- conversions: two floats rounded to nearest, ties to even, the first in the lower half ----

__forceinline__ __device__ unsigned rounded_pair(float first, float second, half_bits) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

__forceinline__ __device__ unsigned rounded_pair(float first, float second, bfloat_bits) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// ---- registers: a warpgroup of consumers takes what a warpgroup of producers gives up ----

template <int REGISTERS>
__forceinline__ __device__ void registers_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__forceinline__ __device__ void registers_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#endif  // Hopper, not emulated
#endif  // XPCONV_SM90_CUH
