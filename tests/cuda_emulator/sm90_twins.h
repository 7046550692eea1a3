// Host twins of the wrappers in kernels/sm90.cuh; see ptx_twins.h for the manner.
#ifndef XPCONV_EMULATOR_SM90_TWINS_H
#define XPCONV_EMULATOR_SM90_TWINS_H

struct TensorMap;

// ---- barriers in shared memory ----
inline void barrier_init(unsigned long long* barrier, unsigned count, EMULATOR_SITE) {
    emulator_barrier_init(barrier, count, file, line);
}
inline void barrier_init_fence() {}
inline void barrier_expect(unsigned long long* barrier, unsigned bytes, EMULATOR_SITE) {
    emulator_barrier_arrive(barrier, bytes, file, line);
}
inline void barrier_arrive(unsigned long long* barrier, EMULATOR_SITE) {
    emulator_barrier_arrive(barrier, 0, file, line);
}
inline void barrier_wait(unsigned long long* barrier, unsigned parity, EMULATOR_SITE) {
    emulator_barrier_wait(barrier, parity, file, line);
}
inline void fence_async_proxy() { emulator_fence_async_proxy(); }

// ---- tensor copies: coordinates from the innermost dimension outwards ----
inline void tma_prefetch(const TensorMap*) {}
inline void tma_load_tile_2d(void* shared, const TensorMap* map, unsigned long long* barrier, int x, int y,
                             EMULATOR_SITE) {
    const int coordinates[] = {x, y};
    emulator_tensor_copy(shared, map, barrier, 2, coordinates, nullptr, file, line);
}
inline void tma_load_tile_3d(void* shared, const TensorMap* map, unsigned long long* barrier, int x, int y, int z,
                             EMULATOR_SITE) {
    const int coordinates[] = {x, y, z};
    emulator_tensor_copy(shared, map, barrier, 3, coordinates, nullptr, file, line);
}
inline void tma_load_tile_5d(void* shared, const TensorMap* map, unsigned long long* barrier, int x, int y, int z,
                             int u, int v, EMULATOR_SITE) {
    const int coordinates[] = {x, y, z, u, v};
    emulator_tensor_copy(shared, map, barrier, 5, coordinates, nullptr, file, line);
}
inline void tma_load_im2col_3d(void* shared, const TensorMap* map, unsigned long long* barrier, int c, int w, int n,
                               unsigned short off_w, EMULATOR_SITE) {
    const int coordinates[] = {c, w, n};
    const unsigned short offsets[] = {off_w};
    emulator_tensor_copy(shared, map, barrier, 3, coordinates, offsets, file, line);
}
inline void tma_load_im2col_4d(void* shared, const TensorMap* map, unsigned long long* barrier, int c, int w, int h,
                               int n, unsigned short off_w, unsigned short off_h, EMULATOR_SITE) {
    const int coordinates[] = {c, w, h, n};
    const unsigned short offsets[] = {off_w, off_h};
    emulator_tensor_copy(shared, map, barrier, 4, coordinates, offsets, file, line);
}
inline void tma_load_im2col_5d(void* shared, const TensorMap* map, unsigned long long* barrier, int c, int w, int h,
                               int d, int n, unsigned short off_w, unsigned short off_h, unsigned short off_d,
                               EMULATOR_SITE) {
    const int coordinates[] = {c, w, h, d, n};
    const unsigned short offsets[] = {off_w, off_h, off_d};
    emulator_tensor_copy(shared, map, barrier, 5, coordinates, offsets, file, line);
}

// ---- products of a warpgroup ----
inline unsigned long long matrix_descriptor(const void* shared, unsigned leading_bytes, unsigned stride_bytes) {
    const unsigned long long address = shared_address(shared) & 0x3ffffu, leading = leading_bytes & 0x3ffffu,
                             stride = stride_bytes & 0x3ffffu;
    return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1ull << 62;
}
inline void wgmma_fence() {}
inline void wgmma_commit() { emulator_wgmma_commit(); }
template <int PENDING>
inline void wgmma_wait(EMULATOR_SITE) {
    emulator_wgmma_wait(PENDING, file, line);
}
template <int COUNT>
inline void accumulators_fence(float (&)[COUNT]) {}
template <int N, bool TRANSPOSED_B, class ELEMENT>
inline void wgmma_m64k16(float (&d)[N / 2], unsigned long long a, unsigned long long b, ELEMENT, EMULATOR_SITE) {
    emulator_wgmma(d, N, a, b, TRANSPOSED_B, emulator_element_of<ELEMENT>::value, file, line);
}
template <int N>
inline void wgmma_m64k8_tf32(float (&d)[N / 2], unsigned long long a, unsigned long long b, EMULATOR_SITE) {
    emulator_wgmma(d, N, a, b, 0, EMULATOR_TF32, file, line);
}

// ---- conversions ----
inline unsigned emulator_float_to_bfloat(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return bits + 0x7fffu + (bits >> 16 & 1u) >> 16;
}
template <class ELEMENT>
inline unsigned rounded_pair(float first, float second, ELEMENT) {
    if (emulator_element_of<ELEMENT>::value == EMULATOR_HALF)
        return emulator_float_to_half(first) | (unsigned)emulator_float_to_half(second) << 16;
    return emulator_float_to_bfloat(first) | emulator_float_to_bfloat(second) << 16;
}

template <int REGISTERS>
inline void registers_increase() {}
template <int REGISTERS>
inline void registers_decrease() {}

#endif
