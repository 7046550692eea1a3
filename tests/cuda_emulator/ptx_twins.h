// Host twins of the wrappers in kernels/ptx.cuh: the same names and meaning, by requests to the runtime.
//
// This header precedes the kernels' text, where half_bits and bfloat_bits are defined; what needs them complete is a
// template, instantiated only where a kernel calls it.
#ifndef XPCONV_EMULATOR_PTX_TWINS_H
#define XPCONV_EMULATOR_PTX_TWINS_H

struct half_bits;
struct bfloat_bits;

template <class T>
struct emulator_element_of;
template <>
struct emulator_element_of<half_bits> {
    static constexpr emulator_element value = EMULATOR_HALF;
};
template <>
struct emulator_element_of<bfloat_bits> {
    static constexpr emulator_element value = EMULATOR_BFLOAT;
};

inline unsigned shared_address(const void* pointer) {
    return (unsigned)((const unsigned char*)pointer - emulator_shared_memory());
}

// ---- asynchronous copies ----
inline void copy_async_16(void* shared, const void* global, bool valid, EMULATOR_SITE) {
    emulator_copy_async(shared, global, 16, valid, file, line);
}
inline void copy_async_8(void* shared, const void* global, bool valid, EMULATOR_SITE) {
    emulator_copy_async(shared, global, 8, valid, file, line);
}
inline void copy_async_4(void* shared, const void* global, bool valid, EMULATOR_SITE) {
    emulator_copy_async(shared, global, 4, valid, file, line);
}
inline void copy_async_commit() { emulator_copy_async_commit(); }
template <int PENDING>
inline void copy_async_wait(EMULATOR_SITE) {
    emulator_copy_async_wait(PENDING, file, line);
}

// ---- matrix fragments ----
inline void load_matrix_x4(unsigned (&r)[4], const void* row, EMULATOR_SITE) {
    emulator_load_matrix(r, row, 4, 0, file, line);
}
inline void load_matrix_x4_transposed(unsigned (&r)[4], const void* row, EMULATOR_SITE) {
    emulator_load_matrix(r, row, 4, 1, file, line);
}
inline void load_matrix_x2(unsigned (&r)[2], const void* row, EMULATOR_SITE) {
    emulator_load_matrix(r, row, 2, 0, file, line);
}
inline void load_matrix_x2_transposed(unsigned (&r)[2], const void* row, EMULATOR_SITE) {
    emulator_load_matrix(r, row, 2, 1, file, line);
}

// ---- tensor-core products ----
template <class ELEMENT>
inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], ELEMENT, EMULATOR_SITE) {
    emulator_mma(d, a, b, emulator_element_of<ELEMENT>::value, file, line);
}
inline void mma_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_SITE) {
    emulator_mma(d, a, b, EMULATOR_TF32, file, line);
}

// ---- conversions ----
inline float emulator_half_to_float(unsigned bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float magnitude = (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

// Rounds to nearest, ties to even; a NaN becomes the device's one NaN.
inline unsigned short emulator_float_to_half(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude >= 0x38800000u)                                           // a normal half
        return (unsigned short)(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
    // Adding 0.5 makes the float's last place that of a subnormal half, so the addition itself rounds.
    const unsigned sum = __float_as_uint(__uint_as_float(magnitude) + 0.5f);
    return (unsigned short)(sign | (sum - 0x3f000000u));
}
template <class HALF>
inline float half_to_float(HALF value) {
    return emulator_half_to_float(value.bits);
}
template <class HALF = half_bits>
inline HALF float_to_half(float value) {
    HALF result;
    result.bits = emulator_float_to_half(value);
    return result;
}

// Rounds to nearest, ties away from zero, to 10 bits of fraction; a NaN becomes the device's one NaN.
inline unsigned float_to_tf32(float value) {
    const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffffffu;
    if (magnitude == 0x7f800000u) return bits;
    return (bits + 0x1000u) & 0xffffe000u;
}

#endif
