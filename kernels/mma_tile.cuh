// A product of two tiles in shared memory on the tensor cores: sums (TILE_M x TILE_N) += A (TILE_M x DEPTH) times
// B (DEPTH x TILE_N), the sums in registers, WARP_M x WARP_N of them in each warp.
//
// Shared memory. Every tile is made of lines of 128 bytes, 8 chunks of 16, copied chunk by chunk. A tile whose memory
// is dense along the depth has one line for each row of A, or column of B; the line holds all DEPTH terms. A tile whose
// memory is dense the other way has one line for each term, and a panel of DEPTH such lines for every 128 bytes of the
// tile's width. Chunk c of a line lies at c ^ swizzle(line), and that leaves no bank conflict:
// - A copy: 8 neighbouring threads fill the 8 chunks of one line, hence all 32 banks.
// - A matrix load reads one chunk of each of 8 successive lines, and c ^ (line & 7) puts the 8 into 8 places.
// - Floats along the width have no matrix load that would turn them. There lane (group, member) reads element `group`
//   of 8 neighbours, which are two chunks, in line `member` of 4; c ^ 2 (line & 3) puts the 4 pairs of chunks into 4
//   places.
//
// Types. Two-byte elements are multiplied as they are. Floats are rounded to TF32 (11 significant bits). With
// PRODUCTS = 3 each is split into the rounded part and a TF32 of what rounding left, a = hi + lo, and
//     a b = hi hi' + (hi lo' + lo hi') + lo lo',
// without the last term, which is at most 2^-22 |a b|. Tensor cores truncate when they add, which would cost a bias
// that grows with the depth. So hi hi' is summed there over 8 terms at a time, and these sums are added by ordinary
// additions, which round to nearest. The terms in brackets are smaller by 2^-11, so that truncation does not harm their
// sum, which stays in the tensor cores and is added last.
//
// An infinite element makes its low part NaN; but then the sum of the high parts is not finite either, and has the
// value that float arithmetic gives. So where the high sum is not finite the low sum is left out.
//
// In the emulator, which models truncation, the error of such sums is below that of a chain of float multiply-adds from
// about 32 terms on: the root mean square is 1.9 units of 2^-24 against 2.5 for 64 terms of a normal distribution, and
// 7.5 against 19.8 for 4608; for positive ones 1.2 against 1.9, and 6.2 against 16.5. On a GPU it was not measured.
#ifndef XPCONV_MMA_TILE_CUH
#define XPCONV_MMA_TILE_CUH

#include "types.cuh"

constexpr int LINE_BYTES = 128, CHUNK_BYTES = 16, CHUNKS = LINE_BYTES / CHUNK_BYTES;

// A float's bits as TF32: rounded to nearest, and truncated where rounding would make a finite number infinite. An
// infinity and a NaN stay what they are, except a signalling NaN that has its mark in the 13 bits that are cut off.
DEVICE unsigned rounded_tf32(unsigned bits) {
    const float first_to_overflow = __uint_as_float(0x7f7ff000u);
    const bool roundable = fabsf(__uint_as_float(bits)) < first_to_overflow;
    return (bits + (roundable ? 0x1000u : 0u)) & 0xffffe000u;
}

// What rounding left of a finite float, truncated to TF32.
DEVICE unsigned remainder_tf32(unsigned bits, unsigned rounded) {
    return __float_as_uint(__uint_as_float(bits) - __uint_as_float(rounded)) & 0xffffe000u;
}

DEVICE void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], half_bits type) {
    mma_16x8x16(sum, a, b, type);
}
DEVICE void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], bfloat_bits type) {
    mma_16x8x16(sum, a, b, type);
}
DEVICE void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], float) {
    mma_16x8x8_tf32(sum, a, b);
}

// Where chunk `chunk` of a line lies in a tile, in bytes.
template <typename T, bool ALONG_DEPTH>
DEVICE int chunk_place(int line, int chunk) {
    const int swizzle = ALONG_DEPTH || sizeof(T) == 2 ? line & 7 : (line & 3) * 2;
    return line * LINE_BYTES + ((chunk ^ swizzle) * CHUNK_BYTES);
}

template <typename T, int PRODUCTS, int TILE_M, int TILE_N, int WARP_M, int WARP_N, bool A_ALONG_DEPTH,
          bool B_ALONG_DEPTH>
struct MmaTile {
    static constexpr int WARPS_M = TILE_M / WARP_M, THREADS = WARPS_M * (TILE_N / WARP_N) * 32;
    static constexpr int VECTOR = CHUNK_BYTES / sizeof(T);
    static constexpr int DEPTH = LINE_BYTES / sizeof(T);                 // terms of a tile
    static constexpr int STEPS = LINE_BYTES / 32, STEP = DEPTH / STEPS;  // one product takes 32 bytes of terms
    static constexpr int BYTES_A = TILE_M * LINE_BYTES, BYTES = BYTES_A + TILE_N * LINE_BYTES;
    static constexpr int PARTS_M = WARP_M / 16, PARTS_N = WARP_N / 8;  // a warp's sums are parts of 16 x 8
    static constexpr int ROW = TILE_N + 8;  // floats in a row of results: the 8 keep neighbouring rows on other banks
    // Blocks that share a multiprocessor's registers; more would make threads spill theirs.
    static constexpr int BLOCKS_BY_REGISTERS = PRODUCTS == 3 ? 256 / THREADS : THREADS == 256 ? 2 : 3;

    static_assert(TILE_M % DEPTH == 0 && TILE_N % DEPTH == 0, "panels are whole");
    static_assert(WARP_M % 32 == 0 && WARP_N % 32 == 0, "distances within a warp leave the lane's chunk bits alone");

    float sums[PARTS_M][PARTS_N][4], low_sums[PARTS_M][PARTS_N][4];
    int lane_a, lane_b;           // where this lane reads first in the tiles, in bytes
    int first_row, first_column;  // of this lane's sums

    DEVICE MmaTile(int thread) {
        const int lane = thread % 32, group = lane / 4, member = lane % 4;
        const int warp_m = thread / 32 % WARPS_M * WARP_M, warp_n = thread / 32 / WARPS_M * WARP_N;
        first_row = warp_m + group;
        first_column = warp_n + member * 2;
        if constexpr (A_ALONG_DEPTH)
            lane_a = chunk_place<T, true>(warp_m + lane % 16, lane / 16);
        else if constexpr (sizeof(T) == 2)
            lane_a = across(lane % 8 + lane / 16 * 8, warp_m / VECTOR + lane / 8 % 2);
        else
            lane_a = across(member, (warp_m + group) / VECTOR) + group % VECTOR * (int)sizeof(T);
        if constexpr (B_ALONG_DEPTH)
            lane_b = chunk_place<T, true>(warp_n + lane % 8 + lane / 16 * 8, lane / 8 % 2);
        else if constexpr (sizeof(T) == 2)
            lane_b = across(lane % 16, warp_n / VECTOR + lane / 16);
        else
            lane_b = across(member, (warp_n + group) / VECTOR) + group % VECTOR * (int)sizeof(T);
#pragma unroll
        for (int i = 0; i < PARTS_M; i++)
#pragma unroll
            for (int j = 0; j < PARTS_N; j++)
#pragma unroll
                for (int q = 0; q < 4; q++) sums[i][j][q] = low_sums[i][j][q] = 0;
    }

    // Place of a chunk of a term in a tile that lies across the depth; the chunk is counted through the panels.
    static DEVICE int across(int term, int chunk) {
        return chunk_place<T, false>(chunk / CHUNKS * DEPTH + term, chunk % CHUNKS);
    }

    // What a lane reads `terms` and `width` elements further on in a tile. Chunk numbers of the lane and of the
    // distance have no bit in common, and no distance changes the swizzle, so that they are combined by exclusive or.
    template <bool ALONG_DEPTH>
    static DEVICE const unsigned char* further(const unsigned char* tile, int lane_place, int terms, int width) {
        const int chunk = (ALONG_DEPTH ? terms : width) / VECTOR;
        const int lines = ALONG_DEPTH ? width : chunk / CHUNKS * DEPTH + terms;
        return tile + lines * LINE_BYTES + (lane_place ^ (chunk % CHUNKS * CHUNK_BYTES));
    }
    static DEVICE unsigned word(const unsigned char* tile, int lane_place, int terms, int width) {
        return *reinterpret_cast<const unsigned*>(further<false>(tile, lane_place, terms, width));
    }

    // 16 rows of A, terms of one step. In registers the four 8 x 8 corners of the 16 rows x 32 bytes stand in the order
    // upper left, lower left, upper right, lower right.
    DEVICE void load_a(const unsigned char* tile, int part, int step, unsigned (&a)[4]) const {
        const int terms = step * STEP, width = part * 16;
        if constexpr (A_ALONG_DEPTH) {
            load_matrix_x4(a, further<true>(tile, lane_a, terms, width));
        } else if constexpr (sizeof(T) == 2) {
            load_matrix_x4_transposed(a, further<false>(tile, lane_a, terms, width));
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = word(tile, lane_a, terms + i / 2 * 4, width + i % 2 * 8);
        }
    }

    // Terms of one step, 16 columns of B: two products' worth, each an upper and a lower half of its terms.
    DEVICE void load_b(const unsigned char* tile, int pair, int step, unsigned (&first)[2],
                       unsigned (&second)[2]) const {
        const int terms = step * STEP, width = pair * 16;
        unsigned b[4];
        if constexpr (B_ALONG_DEPTH) {
            load_matrix_x4(b, further<true>(tile, lane_b, terms, width));
        } else if constexpr (sizeof(T) == 2) {
            load_matrix_x4_transposed(b, further<false>(tile, lane_b, terms, width));
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) b[i] = word(tile, lane_b, terms + i % 2 * 4, width + i / 2 * 8);
        }
        first[0] = b[0], first[1] = b[1], second[0] = b[2], second[1] = b[3];
    }

    // The products of one tile of A with one tile of B, added to the sums.
    DEVICE void multiply_tiles(const unsigned char* a, const unsigned char* b) {
        constexpr int AT_ONCE = sizeof(T) == 2 ? 2 : 1;  // what the registers allow
#pragma unroll AT_ONCE
        for (int step = 0; step < STEPS; step++) {
            if constexpr (PRODUCTS == 3)
                multiply_split(a, b, step);
            else
                multiply_step(a, b, step);
        }
    }

    DEVICE void multiply_step(const unsigned char* tile_a, const unsigned char* tile_b, int step) {
        unsigned a[PARTS_M][4], b[PARTS_N][2];
#pragma unroll
        for (int j = 0; j < PARTS_N; j += 2) load_b(tile_b, j / 2, step, b[j], b[j + 1]);
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) load_a(tile_a, i, step, a[i]);
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int j = 0; j < PARTS_N; j++) round(b[j]);
#pragma unroll
            for (int i = 0; i < PARTS_M; i++) round(a[i]);
        }
#pragma unroll
        for (int i = 0; i < PARTS_M; i++)
#pragma unroll
            for (int j = 0; j < PARTS_N; j++) multiply(sums[i][j], a[i], b[j], T());
    }

    DEVICE void multiply_split(const unsigned char* tile_a, const unsigned char* tile_b, int step) {
        unsigned b[PARTS_N][2], b_low[PARTS_N][2];
#pragma unroll
        for (int j = 0; j < PARTS_N; j += 2) load_b(tile_b, j / 2, step, b[j], b[j + 1]);
#pragma unroll
        for (int j = 0; j < PARTS_N; j++) split(b[j], b_low[j]);
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) {
            unsigned a[4], a_low[4];
            load_a(tile_a, i, step, a);
            split(a, a_low);
#pragma unroll
            for (int j = 0; j < PARTS_N; j++) multiply(low_sums[i][j], a_low, b[j], T());
#pragma unroll
            for (int j = 0; j < PARTS_N; j++) multiply(low_sums[i][j], a, b_low[j], T());
#pragma unroll
            for (int j = 0; j < PARTS_N; j++) {
                float high_sum[4] = {0, 0, 0, 0};
                multiply(high_sum, a, b[j], T());
#pragma unroll
                for (int q = 0; q < 4; q++) sums[i][j][q] += high_sum[q];
            }
        }
    }

    template <int N>
    static DEVICE void round(unsigned (&values)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = rounded_tf32(values[i]);
    }
    template <int N>
    static DEVICE void split(unsigned (&values)[N], unsigned (&low)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const unsigned high = rounded_tf32(values[i]);
            low[i] = remainder_tf32(values[i], high);
            values[i] = high;
        }
    }

    // The finished sums, into rows of ROW floats. A lane holds pairs of neighbours, in rows 8 apart.
    DEVICE void put(float* results) const {
#pragma unroll
        for (int i = 0; i < PARTS_M; i++)
#pragma unroll
            for (int j = 0; j < PARTS_N; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int m = first_row + i * 16 + half * 8, n = first_column + j * 8;
                    Pack<float, 2> pair = {finished_sum(i, j, half * 2), finished_sum(i, j, half * 2 + 1)};
                    *reinterpret_cast<Pack<float, 2>*>(results + m * ROW + n) = pair;
                }
    }
    DEVICE float finished_sum(int i, int j, int q) const {
        const float sum = sums[i][j][q];
        if constexpr (PRODUCTS == 3) return isfinite(sum) ? sum + low_sums[i][j][q] : sum;
        return sum;
    }
};

#endif
