// Convolution on the tensor cores of Hopper (sm_90a alone): float16, bfloat16, and float32 with operands rounded to
// TF32; zero padding, channels last.
//
//     y[n, i, f] = phi(bias[f] + sum over tap, c of x[n, i * stride + tap * dilation - before, c] * w[tap, c, f])
//
// read as a product of matrices, A (positions x terms) times B (terms x filters), in tiles of 128 positions by TILE_N
// filters and steps of 128 bytes of channels of one tap. Neither matrix is ever made: the tensor memory accelerator,
// TMA, walks x by its im2col map, so one thread asks for 128 positions of one tap at once, and padding and ragged ends
// read as zeros.
//
// One warpgroup loads, two multiply. The loading thread fills a ring of stages in shared memory; barrier full[s] opens
// when the bytes of stage s have landed, barrier empty[s] when all eight multiplying warps have done with them. Each
// multiplying warpgroup has 64 rows of the tile and all its columns, and keeps one batch of products in flight: a stage
// goes back to the loader once the next stage's products are under way. Blocks are persistent, so the loader works on
// the next tile while the others still store.
//
// Rows of a stage are 128 bytes long in the 128-byte swizzle that both TMA and wgmma know. B comes as the weight lies:
// filters dense ([window][C][F], TERMS_DENSE false) or terms dense (true: the input gradient, whose terms are F).
// pack_terms makes the second of any weight, as float32 needs it. TMA fills in zeros beyond the channels of B as of A,
// so what follows a tap's channels in memory never meets a sum.
//
// With splits > 1 each tile adds up a part of the steps, and sum_splits.cu puts the parts together in a fixed order.
#include "epilogue.cuh"
#include "geometry.cuh"
#include "sm90.cuh"

// What the plan decides beyond the geometry; its twin is in xpconv/cuda/plans/sm90.py.
struct Sm90Tiling {
    long long y_step;     // from position to position of the result, where it is the same throughout; else 0
    int axes;             // spatial axes of the tensor map of x, the last ones of the geometry's three
    int stages;           // of the ring
    int chunks;           // steps that one tap takes
    int steps;            // taps * chunks
    int steps_per_split;
    int tiles_m, tiles_n, tiles;  // tiles: with all groups and splits
    int vectors;          // whether eight results side by side may be stored at once if y itself is aligned
    int backwards[3];     // whether the weight's tensor map counts the taps of an axis from the last
};

template <typename T, int TILE_N>
struct Sm90Tile {
    static constexpr int TILE_M = 128, ROWS = 64;           // of a block, of a warpgroup
    static constexpr int CHUNK = 128 / sizeof(T);           // elements of a swizzled row: terms of a step
    static constexpr int TERMS = 32 / sizeof(T);            // of one product
    static constexpr int SLABS = TILE_N / CHUNK;            // of B, each CHUNK filters wide
    static constexpr int ROW_BYTES = 128, ATOM_BYTES = 8 * ROW_BYTES;  // eight rows repeat the swizzle
    static constexpr int A_BYTES = TILE_M * ROW_BYTES, B_BYTES = TILE_N * ROW_BYTES, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int LOADERS = 128, WARPS = 8, THREADS = LOADERS + 32 * WARPS;
    static constexpr int STORE_COLUMNS = 64, STORE_FLOATS = 16 * STORE_COLUMNS;  // of one warp's part of the epilogue
};

// A place in the ring; the parity tells one round from the next.
struct RingPlace {
    int stage;
    unsigned parity;

    DEVICE void advance(int stages) {
        if (++stage < stages) return;
        stage = 0;
        parity ^= 1;
    }
};

// One tile of one part of one group's result.
struct TileWork {
    int split, group, first_m, first_n, first_step, last_step;
};

// Tiles in an order that keeps x and w in the second-level cache: bands of eight tiles of filters, and within a band
// all filters of a run of positions before the next run.
template <int TILE_M, int TILE_N>
DEVICE TileWork tile_work(int tile, const ConvGeometry& g, const Sm90Tiling& t) {
    const int BAND = 8, plane = t.tiles_m * t.tiles_n;
    const int part = tile / plane, in_plane = tile % plane;
    const int band = in_plane / (BAND * t.tiles_m), in_band = in_plane % (BAND * t.tiles_m);
    const int width = min(BAND, t.tiles_n - band * BAND);
    TileWork work;
    work.split = part / g.groups;
    work.group = part % g.groups;
    work.first_m = in_band / width * TILE_M;
    work.first_n = (band * BAND + in_band % width) * TILE_N;
    work.first_step = work.split * t.steps_per_split;
    work.last_step = min(work.first_step + t.steps_per_split, t.steps);
    return work;
}

// 128 positions, from the one whose window starts at `at`, of one chunk of channels of one tap.
DEVICE void load_x(unsigned char* shared, const TensorMap* map, unsigned long long* full, int channel, const int* at,
                   int item, const int* tap, const ConvGeometry& g, int axes) {
    unsigned short offset[3];
#pragma unroll
    for (int a = 0; a < 3; a++) offset[a] = (unsigned short)(tap[a] * g.dilation[a]);
    if (axes == 1)
        tma_load_im2col_3d(shared, map, full, channel, at[2], item, offset[2]);
    else if (axes == 2)
        tma_load_im2col_4d(shared, map, full, channel, at[2], at[1], item, offset[2], offset[1]);
    else
        tma_load_im2col_5d(shared, map, full, channel, at[2], at[1], at[0], item, offset[2], offset[1], offset[0]);
}

// One chunk of channels of one tap of TILE_N filters.
template <typename T, int TILE_N, bool TERMS_DENSE>
DEVICE void load_w(unsigned char* shared, const TensorMap* map, unsigned long long* full, int channel, int filter,
                   const int* tap, const TileWork& work, const ConvGeometry& g, const Sm90Tiling& t) {
    typedef Sm90Tile<T, TILE_N> Tile;
    int at[3];
#pragma unroll
    for (int a = 0; a < 3; a++) at[a] = t.backwards[a] ? g.window[a] - 1 - tap[a] : tap[a];
    if (TERMS_DENSE) {
        tma_load_tile_5d(shared, map, full, work.group * g.channels + channel, filter, at[2], at[1], at[0]);
    } else {
#pragma unroll 1
        for (int slab = 0; slab < Tile::SLABS; slab++)
            tma_load_tile_5d(shared + slab * Tile::CHUNK * Tile::ROW_BYTES, map, full,
                             work.group * g.filters + filter + slab * Tile::CHUNK, channel, at[2], at[1], at[0]);
    }
}

// The part of the one thread that asks for every stage of every tile of this block.
template <typename T, int TILE_N, bool TERMS_DENSE>
DEVICE void load_stages(unsigned char* ring, unsigned long long* full, unsigned long long* empty,
                        const TensorMap* x_map, const TensorMap* w_map, const ConvGeometry& g, const Sm90Tiling& t) {
    typedef Sm90Tile<T, TILE_N> Tile;
    RingPlace place = {0, 0};
    for (int tile = blockIdx.x; tile < t.tiles; tile += gridDim.x) {
        const TileWork work = tile_work<Tile::TILE_M, TILE_N>(tile, g, t);
        const Position first = position_of(work.first_m, g);
        int at[3], tap[3];
#pragma unroll
        for (int a = 0; a < 3; a++) at[a] = first.at[a] * g.stride[a] - g.before[a];
        int chunk = work.first_step % t.chunks;
        const int taps = work.first_step / t.chunks, rows = taps / g.window[2];
        tap[2] = taps % g.window[2];
        tap[1] = rows % g.window[1];
        tap[0] = rows / g.window[1];
#pragma unroll 1
        for (int step = work.first_step; step < work.last_step; step++) {
            unsigned char* stage = ring + place.stage * Tile::STAGE_BYTES;
            barrier_wait(empty + place.stage, place.parity ^ 1);
            barrier_expect(full + place.stage, Tile::STAGE_BYTES);
            load_x(stage, x_map, full + place.stage, work.group * g.channels + chunk * Tile::CHUNK, at, first.item, tap,
                   g, t.axes);
            load_w<T, TILE_N, TERMS_DENSE>(stage + Tile::A_BYTES, w_map, full + place.stage, chunk * Tile::CHUNK,
                                           work.first_n, tap, work, g, t);
            place.advance(t.stages);
            if (++chunk < t.chunks) continue;
            chunk = 0;
            if (++tap[2] < g.window[2]) continue;
            tap[2] = 0;
            if (++tap[1] < g.window[1]) continue;
            tap[1] = 0;
            tap[0]++;
        }
    }
}

// The sums of one warpgroup's rows of a tile. Returns with the last stage read and given back. Nothing may branch
// between the products of a step (not even to skip the zeros of a short chunk): the compiler would make them wait for
// each other.
template <typename T, int TILE_N, bool TERMS_DENSE>
DEVICE void multiply(float (&sums)[TILE_N / 2], const unsigned char* ring, unsigned long long* full,
                     unsigned long long* empty, RingPlace& place, int steps, int warpgroup, int stages) {
    typedef Sm90Tile<T, TILE_N> Tile;
    static_assert(TERMS_DENSE || sizeof(T) == 2, "of four bytes, wgmma takes no other B");
    const bool gives_back = threadIdx.x % 32 == 0;
    int before = 0;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        barrier_wait(full + place.stage, place.parity);
        const unsigned char* a = ring + place.stage * Tile::STAGE_BYTES + warpgroup * Tile::ROWS * Tile::ROW_BYTES;
        const unsigned char* b = ring + place.stage * Tile::STAGE_BYTES + Tile::A_BYTES;
        // where terms are dense the leading distance is not used; else it leads to the next slab of filters
        const unsigned leading = TERMS_DENSE ? 16 : Tile::CHUNK * Tile::ROW_BYTES;
        const unsigned long long a_first = matrix_descriptor(a, 16, Tile::ATOM_BYTES);
        const unsigned long long b_first = matrix_descriptor(b, leading, Tile::ATOM_BYTES);
        // from product to product, in the descriptor's units of 16 bytes
        const unsigned a_next = Tile::TERMS * sizeof(T) / 16;
        const unsigned b_next = TERMS_DENSE ? a_next : Tile::TERMS * Tile::ROW_BYTES / 16;
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Tile::CHUNK / Tile::TERMS; k++) {
            if constexpr (sizeof(T) == 4)
                wgmma_m64k8_tf32<TILE_N>(sums, a_first + k * a_next, b_first + k * b_next);
            else
                wgmma_m64k16<TILE_N, !TERMS_DENSE>(sums, a_first + k * a_next, b_first + k * b_next, T());
        }
        wgmma_commit();
        wgmma_wait<1>();  // the products of the step before are finished, so its stage can be filled again
        if (step > 0 && gives_back) barrier_arrive(empty + before);
        before = place.stage;
        place.advance(stages);
    }
    wgmma_wait<0>();
    accumulators_fence(sums);
    if (steps > 0 && gives_back) barrier_arrive(empty + before);
}

// Up to eight neighbours of a row of results, as many as there are.
template <typename T>
DEVICE void store_octet(const float (&results)[8], T* to, long long stride, int count, bool vector) {
    if (!vector) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < count) to[i * stride] = Element<T>::store(results[i]);
    } else if constexpr (sizeof(T) == 4) {
        Pack<T, 4>* halves = reinterpret_cast<Pack<T, 4>*>(to);
        halves[0] = {results[0], results[1], results[2], results[3]};
        halves[1] = {results[4], results[5], results[6], results[7]};
    } else {
        Pack<unsigned, 4> pairs;
#pragma unroll
        for (int i = 0; i < 4; i++) pairs.at[i] = rounded_pair(results[2 * i], results[2 * i + 1], T());
        *reinterpret_cast<Pack<unsigned, 4>*>(to) = pairs;
    }
}

// phi(sum + bias) of eight neighbours. The common activations take no branch.
DEVICE void finish_octet(float (&results)[8], const float (&biases)[8], bool biased, int activation) {
    if (biased) {
#pragma unroll
        for (int i = 0; i < 8; i++) results[i] += biases[i];
    }
    if (activation <= RELU) {
        const float least = activation == RELU ? 0.0f : -__int_as_float(0x7f800000);
#pragma unroll
        for (int i = 0; i < 8; i++) results[i] = results[i] < least ? least : results[i];
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) results[i] = activated(results[i], activation);
    }
}

// One warp's 16 rows of a tile: through its part of shared memory, 64 columns at a time, so that each thread gets eight
// neighbouring results. Groups of eight columns change places from row to row to spread the banks.
template <typename T, int TILE_N>
DEVICE void store(const float (&sums)[TILE_N / 2], float* stage, int first_m, const TileWork& work,
                  const T* __restrict__ bias, T* __restrict__ y, float* __restrict__ partial, const ConvGeometry& g,
                  const Sm90Tiling& t, bool vectors) {
    typedef Sm90Tile<T, TILE_N> Tile;
    const int lane = threadIdx.x % 32, octet = lane % 8;
    y += g.y_start + work.group * g.y_group;
    partial += ((long long)work.split * g.groups + work.group) * g.positions * g.filters;
#pragma unroll 1
    for (int slab = 0; slab < TILE_N / Tile::STORE_COLUMNS; slab++) {
#pragma unroll
        for (int s = 0; s < TILE_N / Tile::STORE_COLUMNS; s++) {
            if (s != slab) continue;  // registers have no run-time index
#pragma unroll
            for (int j = 0; j < 32; j += 2) {
                const int row = lane / 4 + j / 2 % 2 * 8, column = j / 4 * 8 + lane % 4 * 2;
                float* to = stage + row * Tile::STORE_COLUMNS + (column ^ row % 4 * 8);
                *reinterpret_cast<Pack<float, 2>*>(to) = {sums[s * 32 + j], sums[s * 32 + j + 1]};
            }
        }
        __syncwarp();
        const int filter = work.first_n + slab * Tile::STORE_COLUMNS + octet * 8, count = g.filters - filter;
        float biases[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            biases[i] = bias && i < count ? Element<T>::load(bias[work.group * g.filters + filter + i]) : 0.0f;
#pragma unroll 1
        for (int row = lane / 8; row < 16; row += 4) {
            const int position = first_m + row;
            if (position >= g.positions || count <= 0) break;
            float results[8];
            const float* from = stage + row * Tile::STORE_COLUMNS + (octet ^ row % 4) * 8;
            copy<4>(from, results);
            copy<4>(from + 4, results + 4);
            if (g.splits > 1) {
                store_octet(results, partial + (long long)position * g.filters + filter, 1, count,
                            count >= 8 && g.filters % 4 == 0);
            } else {
                finish_octet(results, biases, bias != nullptr, g.activation);
                const long long at = t.y_step ? position * t.y_step : result_of<long long>(position, g);
                store_octet(results, y + at + filter * g.y_strides[1], g.y_strides[1], count, count >= 8 && vectors);
            }
        }
        __syncwarp();
    }
}

template <typename T, int TILE_N, bool TERMS_DENSE>
__global__ void __launch_bounds__(Sm90Tile<T, TILE_N>::THREADS, 1)
    conv_sm90(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
              const T* __restrict__ bias, T* __restrict__ y, float* __restrict__ partial,
              const __grid_constant__ ConvGeometry g, const __grid_constant__ Sm90Tiling t) {
    typedef Sm90Tile<T, TILE_N> Tile;
    SHARED_MEMORY(shared);
    float* store_stages = reinterpret_cast<float*>(shared + t.stages * Tile::STAGE_BYTES);
    unsigned long long* full = reinterpret_cast<unsigned long long*>(store_stages + Tile::WARPS * Tile::STORE_FLOATS);
    unsigned long long* empty = full + t.stages;

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < t.stages; stage++) {
            barrier_init(full + stage, 1);             // the loader, and the bytes it expects
            barrier_init(empty + stage, Tile::WARPS);  // one thread of each multiplying warp
        }
        barrier_init_fence();
        fence_async_proxy();
        tma_prefetch(&x_map);
        tma_prefetch(&w_map);
    }
    __syncthreads();

    // The register file is dealt out anew: 128 * 40 + 256 * 232 is just below the 65536 there are.
    if (threadIdx.x < Tile::LOADERS) {
        registers_decrease<40>();
        if (threadIdx.x == 0) load_stages<T, TILE_N, TERMS_DENSE>(shared, full, empty, &x_map, &w_map, g, t);
    } else {
        registers_increase<232>();
        const int warp = (threadIdx.x - Tile::LOADERS) / 32, warpgroup = warp / 4;
        const bool vectors = t.vectors && reinterpret_cast<unsigned long long>(y) % 16 == 0;
        RingPlace place = {0, 0};
        for (int tile = blockIdx.x; tile < t.tiles; tile += gridDim.x) {
            const TileWork work = tile_work<Tile::TILE_M, TILE_N>(tile, g, t);
            float sums[TILE_N / 2];
#pragma unroll
            for (int i = 0; i < TILE_N / 2; i++) sums[i] = 0;
            multiply<T, TILE_N, TERMS_DENSE>(sums, shared, full, empty, place, work.last_step - work.first_step,
                                             warpgroup, t.stages);
            store<T, TILE_N>(sums, store_stages + warp * Tile::STORE_FLOATS, work.first_m + warp * 16, work, bias, y,
                             partial, g, t, vectors);
        }
    }
}

// The weight with its terms dense: [window][filters][groups][channels], in rows of `pitch` elements. A block turns a
// square of 32 channels by 32 filters, of one tap and one group.
template <typename T>
__global__ void __launch_bounds__(256)
    pack_terms(const T* __restrict__ w, T* __restrict__ packed, const __grid_constant__ ConvGeometry g, int pitch) {
    const int SIDE = 32, ROW = SIDE + 1;  // the odd row spreads the banks
    SHARED_MEMORY(shared);
    T* square = reinterpret_cast<T*>(shared);
    const int squares_f = (g.filters + SIDE - 1) / SIDE, squares_c = (g.channels + SIDE - 1) / SIDE;
    const int square_f = blockIdx.x % squares_f, rest_f = blockIdx.x / squares_f;
    const int square_c = rest_f % squares_c, rest_c = rest_f / squares_c;
    const int group = rest_c % g.groups, tap = rest_c / g.groups;
    const int tap_rows = tap / g.window[2];
    w += g.w_start + group * g.w_group + tap % g.window[2] * g.w_strides[4] +
         tap_rows % g.window[1] * g.w_strides[3] + tap_rows / g.window[1] * g.w_strides[2];
    const int lane = threadIdx.x % SIDE;
#pragma unroll 1
    for (int i = threadIdx.x / SIDE; i < SIDE; i += 256 / SIDE) {
        const int channel = square_c * SIDE + i, filter = square_f * SIDE + lane;
        if (channel < g.channels && filter < g.filters)
            square[i * ROW + lane] = w[filter * g.w_strides[0] + channel * g.w_strides[1]];
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x / SIDE; i < SIDE; i += 256 / SIDE) {
        const int channel = square_c * SIDE + lane, filter = square_f * SIDE + i;
        if (channel >= g.channels || filter >= g.filters) continue;
        const long long row = (long long)tap * g.filters + filter;
        packed[row * pitch + group * g.channels + channel] = square[lane * ROW + i];
    }
}
