// Products as a tensor core forms them, and no more exactly.
//
// Fasi, Higham, Mikaitis and Pranesh ("Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science, 2021)
// measured: products are exact; the products and the accumulator are aligned to the largest exponent among them, and
// bits beyond 24 and a few more places are cut off, not rounded; so is the sum. Eight products (four for tf32) enter
// one such sum on Ampere, more on later devices: the fewer, the more often bits are cut, so we take Ampere's number.
#include "tensor_core.h"

#include "checker.h"
#include "reports.h"

namespace emulator {
namespace {

constexpr int EXTRA_PLACES = 2, PLACES = 24 + EXTRA_PLACES, LANES = 8;

template <class To, class From>
inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

double element_value(unsigned bits, emulator_element element) {
    if (element == EMULATOR_TF32) return bits_of<float>(bits & 0xffffe000u);
    if (element == EMULATOR_BFLOAT) return bits_of<float>(bits << 16);
    const unsigned exponent = bits >> 10 & 31, fraction = bits & 0x3ffu, sign = (bits & 0x8000u) << 16;
    if (exponent == 31) return bits_of<float>(sign | 0x7f800000u | fraction << 13);
    const float magnitude =
        exponent ? bits_of<float>((exponent + 112) << 23 | fraction << 13) : float(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

// sums[j] += a[0] b[0][j] + a[1] b[1][j] + ..., for LANES columns at once so that the compiler may vectorise.
template <int COUNT>
void accumulate(float* sums, const double* a, const double (*b)[LANES]) {
    constexpr int64_t EXPONENT_BIAS = 1023, LEAST_EXPONENT = EXPONENT_BIAS - 300;  // below any product of our elements
    constexpr uint64_t MAGNITUDE = ~0ull >> 1, BEYOND_FLOAT = (1ull << 29) - 1;
    double terms[COUNT + 1][LANES];
    int64_t largest[LANES];
    for (int j = 0; j < LANES; ++j) {
        terms[COUNT][j] = sums[j];
        largest[j] = int64_t(bits_of<uint64_t>(terms[COUNT][j]) & MAGNITUDE);
    }
    for (int k = 0; k < COUNT; ++k)
        for (int j = 0; j < LANES; ++j) {
            terms[k][j] = a[k] * b[k][j];
            const auto magnitude = int64_t(bits_of<uint64_t>(terms[k][j]) & MAGNITUDE);
            largest[j] = magnitude > largest[j] ? magnitude : largest[j];
        }
    double scale[LANES], unit[LANES];
    bool finite = true;
    for (int j = 0; j < LANES; ++j) {
        int64_t exponent = largest[j] >> 52;
        finite &= exponent != 0x7ff;
        exponent = exponent < LEAST_EXPONENT ? LEAST_EXPONENT : exponent;
        scale[j] = bits_of<double>(uint64_t(EXPONENT_BIAS + PLACES - 1 + EXPONENT_BIAS - exponent) << 52);
        unit[j] = bits_of<double>(uint64_t(exponent - (PLACES - 1)) << 52);
    }
    if (!finite) {  // infinities and NaNs spread as in IEEE 754
        for (int j = 0; j < LANES; ++j) {
            double sum = terms[COUNT][j];
            for (int k = 0; k < COUNT; ++k) sum += terms[k][j];
            sums[j] = float(sum);
        }
        return;
    }
    int32_t totals[LANES] = {};
    for (int k = 0; k <= COUNT; ++k)
        for (int j = 0; j < LANES; ++j) totals[j] += int32_t(terms[k][j] * scale[j]);
    for (int j = 0; j < LANES; ++j)
        sums[j] = float(bits_of<double>(bits_of<uint64_t>(double(totals[j]) * unit[j]) & ~BEYOND_FLOAT));
}

void accumulate_all(float* sums, const double* a, const double (*b)[LANES], int depth, emulator_element element) {
    if (element == EMULATOR_TF32)
        for (int k = 0; k < depth; k += 4) accumulate<4>(sums, a + k, b + k);
    else
        for (int k = 0; k < depth; k += 8) accumulate<8>(sums, a + k, b + k);
}

// ---- operands that a wgmma reads from shared memory, by a descriptor of 128-byte swizzled tiles ----

constexpr size_t CHUNK_BYTES = 16;

struct Operand {
    size_t start, leading, stride;  // in bytes; see matrix_descriptor
    bool transposed;                // rows of K rather than rows of M or N
    emulator_element element;
    const Site& site;

    Operand(unsigned long long descriptor, bool transposed, emulator_element element, const Site& site)
        : start((descriptor & 0x3fff) << 4),
          leading((descriptor >> 16 & 0x3fff) << 4),
          stride((descriptor >> 32 & 0x3fff) << 4),
          transposed(transposed),
          element(element),
          site(site) {}

    size_t element_bytes() const { return element == EMULATOR_TF32 ? 4 : 2; }

    // Tiles are 8 rows of 128 bytes. Rows are those of M or N, with K along them; or those of K, with 64 of N along
    // them and the next 64 `leading` bytes further on. The next 8 rows are `stride` bytes further on.
    size_t offset_of(int outer, int k) const {
        const size_t row = size_t(transposed ? k : outer), along = size_t(transposed ? outer : k) * element_bytes();
        const size_t tile = transposed ? along / 128 * leading : 0;
        const size_t linear = start + tile + row / 8 * stride + row % 8 * 128 + (transposed ? along % 128 : along);
        return linear ^ (linear >> 7 & 7) << 4;
    }

    // Reads the 16 bytes that hold consecutive elements along a row, starting at this one.
    void read_chunk(int outer, int k, double* values, size_t stride) const {
        const unsigned char* address = emulator_shared_memory() + offset_of(outer, k);
        if (!within_shared_memory(address, CHUNK_BYTES)) {
            report("OUT_OF_BOUNDS", site, "a product's operand leaves shared memory");
            abandon_launch();
        }
        check_access(address, CHUNK_BYTES, Access::read, site);
        check_proxy(address, CHUNK_BYTES, site);
        for (size_t i = 0; i < CHUNK_BYTES / element_bytes(); ++i) {
            unsigned bits = 0;
            std::memcpy(&bits, address + i * element_bytes(), element_bytes());
            values[i * stride] = element_value(bits, element);
        }
    }
};

}  // namespace

// Thread t holds, of each 8 columns j, d[4 j + 2 h + e]: row 16 (t / 32) + 8 h + t % 32 / 4, column 8 j + 2 (t % 4) +
// e.
void run_product(const PendingProduct& product, float* const* accumulators) {
    constexpr int ROWS = 64;
    const Operand a(product.a, false, product.element, product.site);
    const Operand b(product.b, product.transposed_b, product.element, product.site);
    const int chunk = int(CHUNK_BYTES / a.element_bytes()), depth = 2 * chunk;
    double left[ROWS][16], right[16][LANES];
    for (int row = 0; row < ROWS; ++row)
        for (int k = 0; k < depth; k += chunk) a.read_chunk(row, k, &left[row][k], 1);
    for (int tile = 0; tile < product.columns / LANES; ++tile) {
        if (product.transposed_b)
            for (int k = 0; k < depth; ++k) b.read_chunk(tile * LANES, k, right[k], 1);
        else
            for (int column = 0; column < LANES; ++column)
                for (int k = 0; k < depth; k += chunk) b.read_chunk(tile * LANES + column, k, &right[k][column], LANES);
        for (int row = 0; row < ROWS; ++row) {
            float* const* of_row = accumulators + row / 16 * WARP + row % 8 * 4;
            const int first = 4 * tile + row % 16 / 8 * 2;
            float sums[LANES];
            for (int column = 0; column < LANES; ++column) sums[column] = of_row[column / 2][first + column % 2];
            accumulate_all(sums, left[row], right, depth, product.element);
            for (int column = 0; column < LANES; ++column) of_row[column / 2][first + column % 2] = sums[column];
        }
    }
}

void multiply_fragments(float (*const* d)[4], const unsigned* const* a, const unsigned* const* b,
                        emulator_element element) {
    double left[16][16], right[16][LANES];
    float sums[16][LANES];
    const bool wide = element == EMULATOR_TF32;
    const int depth = wide ? 8 : 16, half_depth = depth / 2, in_register = wide ? 1 : 2;
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, member = lane % 4;
        for (int r = 0; r < 4; ++r) sums[group + r / 2 * 8][2 * member + r % 2] = (*d[lane])[r];
        for (int e = 0; e < in_register; ++e) {
            const int k = in_register * member + e;
            for (int r = 0; r < 4; ++r)
                left[group + r % 2 * 8][k + r / 2 * half_depth] =
                    element_value(wide ? a[lane][r] : a[lane][r] >> 16 * e & 0xffffu, element);
            for (int r = 0; r < 2; ++r)
                right[k + r * half_depth][group] =
                    element_value(wide ? b[lane][r] : b[lane][r] >> 16 * e & 0xffffu, element);
        }
    }
    for (int row = 0; row < 16; ++row) accumulate_all(sums[row], left[row], right, depth, element);
    for (int lane = 0; lane < 32; ++lane)
        for (int r = 0; r < 4; ++r) (*d[lane])[r] = sums[lane / 4 + r / 2 * 8][2 * (lane % 4) + r % 2];
}

}  // namespace emulator
