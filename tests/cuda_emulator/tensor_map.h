// The emulated CUtensorMap. tensor_map.py fills it and mirrors this layout; on the device its 128 bytes are opaque.
#ifndef XPCONV_EMULATOR_TENSOR_MAP_H
#define XPCONV_EMULATOR_TENSOR_MAP_H
#include <cstdint>

namespace emulator {

constexpr uint32_t TENSOR_MAP_MAGIC = 0x70616d78;

// Sizes and strides run from the innermost dimension outwards; the innermost stride is the element's size.
struct TensorMapContents {
    uint64_t address;
    uint64_t strides[4];  // in bytes, of dimensions 1 to rank - 1
    uint32_t magic;
    uint32_t sizes[5];
    uint16_t box[5];             // tiled: elements a copy moves along each dimension
    uint16_t channels, pixels;   // im2col: elements and pixels a copy moves
    int16_t lower[3], upper[3];  // im2col: corners of the box of pixels, of width, height and depth
    uint8_t element_strides[5];
    uint8_t rank, element_bytes, im2col;
    uint8_t swizzle_bytes;  // 0, 32, 64 or 128
    uint8_t nan_fill;
};
static_assert(sizeof(TensorMapContents) <= 128, "a tensor map has 128 bytes");

}  // namespace emulator
#endif
