// CUDA C++ as a kernel sees it, for g++: this header is included before the text of every kernel.
//
// No standard header is included, as none is available to NVRTC by default. A function that waits for other threads,
// or that touches memory in a way the compiler's instrumentation does not see, is a request to the runtime (abi.h).
#ifndef XPCONV_EMULATOR_DEVICE_H
#define XPCONV_EMULATOR_DEVICE_H
#define XPCONV_EMULATED 1
#include "abi.h"

// ---- qualifiers ----
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
#define __builtin_assume(condition) ((void)0)
#define SHARED_MEMORY(name) unsigned char* name = emulator_shared_memory()
#define EMULATOR_NOT_INSTRUMENTED __attribute__((no_sanitize("thread"), no_sanitize("undefined")))

typedef decltype(sizeof 0) size_t;

// ---- vector types ----
#define EMULATOR_VECTOR_2(name, element, alignment)      \
    struct alignas(alignment) name##2 { element x, y; }; \
    inline name##2 make_##name##2(element x, element y) { return {x, y}; }
#define EMULATOR_VECTOR_4(name, element, alignment)            \
    struct alignas(alignment) name##4 { element x, y, z, w; }; \
    inline name##4 make_##name##4(element x, element y, element z, element w) { return {x, y, z, w}; }
EMULATOR_VECTOR_2(char, signed char, 2)
EMULATOR_VECTOR_4(char, signed char, 4)
EMULATOR_VECTOR_2(uchar, unsigned char, 2)
EMULATOR_VECTOR_4(uchar, unsigned char, 4)
EMULATOR_VECTOR_2(short, short, 4)
EMULATOR_VECTOR_4(short, short, 8)
EMULATOR_VECTOR_2(ushort, unsigned short, 4)
EMULATOR_VECTOR_4(ushort, unsigned short, 8)
EMULATOR_VECTOR_2(int, int, 8)
EMULATOR_VECTOR_4(int, int, 16)
EMULATOR_VECTOR_2(uint, unsigned, 8)
EMULATOR_VECTOR_4(uint, unsigned, 16)
EMULATOR_VECTOR_2(longlong, long long, 16)
EMULATOR_VECTOR_2(ulonglong, unsigned long long, 16)
EMULATOR_VECTOR_2(float, float, 8)
EMULATOR_VECTOR_4(float, float, 16)
EMULATOR_VECTOR_2(double, double, 16)

// ---- where a thread is ----
#define threadIdx (emulator_thread_index())
#define blockIdx (emulator_block_index())
#define blockDim (emulator_block_size())
#define gridDim (emulator_grid_size())
#define warpSize 32

// ---- barriers ----
inline void __syncthreads(EMULATOR_SITE) { emulator_block_barrier(0, file, line); }
inline int __syncthreads_count(int predicate, EMULATOR_SITE) { return emulator_block_barrier(predicate, file, line); }
inline int __syncthreads_or(int predicate, EMULATOR_SITE) { return emulator_block_barrier(predicate, file, line) != 0; }
inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
    return emulator_block_barrier(!predicate, file, line) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) { emulator_warp_barrier(mask, file, line); }
inline void __threadfence() { emulator_fence(); }
inline void __threadfence_block() { emulator_fence(); }
inline void __trap(EMULATOR_SITE) { emulator_trap(file, line); }

// ---- warp collectives ----
template <class T>
T emulator_shuffled(unsigned mask, T value, int source_lane, EMULATOR_SITE_PARAMETERS) {
    static_assert(sizeof(T) <= 16, "a shuffle moves at most 16 bytes");
    emulator_shuffle(mask, &value, sizeof value, source_lane, file, line);
    return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATOR_SITE) {
    const int first = (int)emulator_lane() & ~(width - 1);
    return emulator_shuffled(mask, value, first + (lane & (width - 1)), file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_SITE) {
    const int own = (int)emulator_lane(), other = own ^ lanes, last = own | (width - 1);
    return emulator_shuffled(mask, value, other <= last ? other : own, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATOR_SITE) {
    const int own = (int)emulator_lane(), other = own - (int)lanes, first = own & ~(width - 1);
    return emulator_shuffled(mask, value, other >= first ? other : own, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATOR_SITE) {
    const int own = (int)emulator_lane(), other = own + (int)lanes, last = own | (width - 1);
    return emulator_shuffled(mask, value, other <= last ? other : own, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return emulator_ballot(mask, predicate, file, line);
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return emulator_ballot(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return emulator_ballot(mask, !predicate, file, line) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE) {
    static_assert(sizeof(T) <= 8, "a match compares at most 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    return emulator_match_any(mask, bits, file, line);
}

// ---- atomics: one fibre runs at a time, so that the plain operation is atomic ----
template <class T>
EMULATOR_NOT_INSTRUMENTED T emulator_exchange(T* address, T value) {
    const T before = *address;
    *address = value;
    return before;
}
template <class T>
EMULATOR_NOT_INSTRUMENTED T emulator_peek(const T* address) {
    return *address;
}
#define EMULATOR_ATOMIC(name, T, result)                        \
    inline T name(T* address, T value, EMULATOR_SITE) {         \
        emulator_atomic_access(address, sizeof(T), file, line); \
        const T before = emulator_peek(address);                \
        return emulator_exchange(address, (T)(result));         \
    }
#define EMULATOR_ATOMICS(T)                                                     \
    EMULATOR_ATOMIC(atomicMax, T, before > value ? before : value)              \
    EMULATOR_ATOMIC(atomicMin, T, before < value ? before : value)              \
    EMULATOR_ATOMIC(atomicAnd, T, before& value)                                \
    EMULATOR_ATOMIC(atomicOr, T, before | value)                                \
    EMULATOR_ATOMIC(atomicXor, T, before ^ value)                               \
    EMULATOR_ATOMIC(atomicExch, T, ((void)before, value))                       \
    inline T atomicCAS(T* address, T expected, T value, EMULATOR_SITE) {        \
        emulator_atomic_access(address, sizeof(T), file, line);                 \
        const T before = emulator_peek(address);                                \
        return emulator_exchange(address, before == expected ? value : before); \
    }
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicAdd, int, (unsigned)before + (unsigned)value)
EMULATOR_ATOMIC(atomicSub, int, (unsigned)before - (unsigned)value)
EMULATOR_ATOMIC(atomicAdd, unsigned, before + value)
EMULATOR_ATOMIC(atomicSub, unsigned, before - value)
EMULATOR_ATOMIC(atomicInc, unsigned, before >= value ? 0 : before + 1)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, before + value)
EMULATOR_ATOMIC(atomicAdd, float, before + value)
EMULATOR_ATOMIC(atomicAdd, double, before + value)
EMULATOR_ATOMIC(atomicExch, float, ((void)before, value))

// ---- loads and stores with a cache hint ----
template <class T>
__forceinline__ T __ldg(const T* address) {
    return *address;
}
template <class T>
__forceinline__ T __ldcs(const T* address) {
    return *address;
}
template <class T>
__forceinline__ T __ldcg(const T* address) {
    return *address;
}
template <class T>
__forceinline__ void __stcs(T* address, T value) {
    *address = value;
}

// ---- bits ----
template <class To, class From>
__forceinline__ To emulator_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
}
inline unsigned __float_as_uint(float value) { return emulator_bits<unsigned>(value); }
inline int __float_as_int(float value) { return emulator_bits<int>(value); }
inline float __uint_as_float(unsigned value) { return emulator_bits<float>(value); }
inline float __int_as_float(int value) { return emulator_bits<float>(value); }
inline long long __double_as_longlong(double value) { return emulator_bits<long long>(value); }
inline double __longlong_as_double(long long value) { return emulator_bits<double>(value); }
inline int __clz(int value) { return value ? __builtin_clz((unsigned)value) : 32; }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __brev(unsigned value) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; ++bit) result |= (value >> bit & 1u) << (31 - bit);
    return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

// ---- arithmetic ----
#define EMULATOR_MATH_1(name)                 \
    extern "C" double name(double) noexcept;  \
    extern "C" float name##f(float) noexcept; \
    __forceinline__ float name(float x) { return name##f(x); }
#define EMULATOR_MATH_2(name)                        \
    extern "C" double name(double, double) noexcept; \
    extern "C" float name##f(float, float) noexcept; \
    __forceinline__ float name(float x, float y) { return name##f(x, y); }
EMULATOR_MATH_1(exp)
EMULATOR_MATH_1(exp2)
EMULATOR_MATH_1(expm1)
EMULATOR_MATH_1(log)
EMULATOR_MATH_1(log2)
EMULATOR_MATH_1(log1p)
EMULATOR_MATH_1(tanh)
EMULATOR_MATH_1(erf)
EMULATOR_MATH_1(sqrt)
EMULATOR_MATH_1(cbrt)
EMULATOR_MATH_1(fabs)
EMULATOR_MATH_1(floor)
EMULATOR_MATH_1(ceil)
EMULATOR_MATH_1(trunc)
EMULATOR_MATH_1(rint)
EMULATOR_MATH_1(round)
EMULATOR_MATH_1(sin)
EMULATOR_MATH_1(cos)
EMULATOR_MATH_2(pow)
EMULATOR_MATH_2(fmod)
EMULATOR_MATH_2(fmin)
EMULATOR_MATH_2(fmax)
EMULATOR_MATH_2(copysign)
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
__forceinline__ float fma(float x, float y, float z) { return fmaf(x, y, z); }
__forceinline__ float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
__forceinline__ float __fadd_rn(float x, float y) { return x + y; }
__forceinline__ float __fmul_rn(float x, float y) { return x * y; }
__forceinline__ float __fdividef(float x, float y) { return x / y; }
__forceinline__ float __expf(float x) { return expf(x); }
__forceinline__ float __logf(float x) { return logf(x); }
__forceinline__ float __powf(float x, float y) { return powf(x, y); }
__forceinline__ float rsqrtf(float x) { return 1.0f / sqrtf(x); }
__forceinline__ double rsqrt(double x) { return 1.0 / sqrt(x); }
__forceinline__ int abs(int x) { return x < 0 ? -x : x; }
__forceinline__ long long abs(long long x) { return x < 0 ? -x : x; }
__forceinline__ float abs(float x) { return fabsf(x); }
__forceinline__ double abs(double x) { return fabs(x); }
template <class T>
__forceinline__ bool isnan(T x) {
    return __builtin_isnan(x);
}
template <class T>
__forceinline__ bool isinf(T x) {
    return __builtin_isinf(x);
}
template <class T>
__forceinline__ bool isfinite(T x) {
    return __builtin_isfinite(x);
}
// Two integers of one type; CUDA's min and max of floating numbers are fmin and fmax, which prefer a number to a NaN.
#define EMULATOR_MIN_MAX(T)                                   \
    __forceinline__ T min(T x, T y) { return y < x ? y : x; } \
    __forceinline__ T max(T x, T y) { return x < y ? y : x; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
__forceinline__ float min(float x, float y) { return fminf(x, y); }
__forceinline__ float max(float x, float y) { return fmaxf(x, y); }
__forceinline__ double min(double x, double y) { return fmin(x, y); }
__forceinline__ double max(double x, double y) { return fmax(x, y); }
extern "C" int printf(const char* format, ...);

#include "entry.h"
#include "ptx_twins.h"
#include "sm90_twins.h"
#endif
