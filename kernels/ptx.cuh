// Inline PTX for sm_75 and later, one short function an instruction; beside sm90.cuh the only file with any.
//
// Everything that speaks PTX is left out under XPCONV_EMULATED: the tests run the kernels' text on the CPU, where
// functions of the same names and meaning stand in. Change one, and change the other.
#ifndef XPCONV_PTX_CUH
#define XPCONV_PTX_CUH

// An IEEE half and a bfloat16, as bits: no header of CUDA's is needed, and nothing converts unasked.
struct half_bits {
    unsigned short bits;
};
struct bfloat_bits {
    unsigned short bits;
};

__forceinline__ __device__ float bfloat_to_float(bfloat_bits value) { return __uint_as_float((unsigned)value.bits << 16); }

// Rounds to nearest, ties to even. Rounding could carry a NaN's fraction over into infinity, so NaNs are made quiet.
__forceinline__ __device__ bfloat_bits float_to_bfloat(float value) {
    const unsigned bits = __float_as_uint(value);
    bfloat_bits result;
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        result.bits = (unsigned short)(bits >> 16 | 0x40u);
    else
        result.bits = (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    return result;
}

#ifndef XPCONV_EMULATED

__forceinline__ __device__ float half_to_float(half_bits value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

__forceinline__ __device__ half_bits float_to_half(float value) {
    half_bits result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

// The 32-bit address within shared memory that PTX instructions take.
__forceinline__ __device__ unsigned shared_address(const void *pointer) {
    return (unsigned)__cvta_generic_to_shared(pointer);
}

// ---- matrix fragments: lane 8 m + r names row r, of 16 bytes, of the 8 by 8 matrix m ----

__forceinline__ __device__ void load_matrix_x4(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__forceinline__ __device__ void load_matrix_x4_transposed(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__forceinline__ __device__ void load_matrix_x2(unsigned (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__forceinline__ __device__ void load_matrix_x2_transposed(unsigned (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

#if __CUDA_ARCH__ >= 800

// ---- asynchronous copies: where `valid` is false the destination is filled with zeros and `global` is not read ----

__forceinline__ __device__ void copy_async_16(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__forceinline__ __device__ void copy_async_8(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 8 : 0)
                 : "memory");
}

__forceinline__ __device__ void copy_async_4(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 4 : 0)
                 : "memory");
}

// Closes the group of the copies issued since the last commit.
__forceinline__ __device__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies, except those of the last PENDING groups.
template <int PENDING>
__forceinline__ __device__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- tensor cores: d += a b, with the element type named by the last argument ----

__forceinline__ __device__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], half_bits) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__forceinline__ __device__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat_bits) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Only the upper 19 bits of each element count; float_to_tf32 rounds to them.
__forceinline__ __device__ void mma_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__forceinline__ __device__ unsigned float_to_tf32(float value) {
    unsigned result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return result;
}

#endif  // __CUDA_ARCH__ >= 800
#endif  // XPCONV_EMULATED
#endif  // XPCONV_PTX_CUH
