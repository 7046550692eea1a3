// The convolution on tensor cores (compute capability 8.0 and later), for half, bfloat and float:
//
//     y[n, i, f] = phi(bias[f] + sum over tap, c of x_padded[n, i * stride + tap * dilation, c] * w[tap, c, f])
//
// read as a product of matrices, A (positions x terms) times B (terms x filters), in which A is never made: each block
// computes a tile of TILE_M positions by TILE_N filters. mma_tile.cuh multiplies; this file brings tiles of A and B
// from x and w into a ring of STAGES buffers in shared memory, 16 bytes at a time by asynchronous copies that run
// STAGES - 1 tiles ahead of the products, and stores the results. PRODUCTS = 3 gives float arithmetic, see
// mma_tile.cuh.
//
// A_ALONG_DEPTH says that 16 bytes of x hold terms of one position (channels last: terms run over channels inside
// taps). Otherwise they hold neighbouring positions of one term, which is how the weight gradient reads x: there the
// items of the convolution are the channels of x. B_ALONG_DEPTH says that 16 bytes of w hold terms of one filter, as in
// the input gradient, where channels and filters have changed places. Otherwise they hold neighbouring filters of one
// term. The plan sees to it that no 16 bytes straddle two taps, places or groups, and that all of them are aligned.
//
// Padding with zeros is a copy that writes zeros. The modes that repeat elements of x work out which element, by a
// slower path. A constant cannot be copied from x: conv_simt.cu takes that.
// With splits > 1 each block adds up a part of the depth, and sum_splits.cu puts the parts together in a fixed order.
#include "epilogue.cuh"
#include "geometry.cuh"
#include "mma_tile.cuh"

// The tile of a block. Blocks that run at the same time share rows of A and columns of B through the second-level
// cache: they walk over BAND columns of tiles before they go on to the next row.
struct TilePlace {
    int m, n;
};

DEVICE TilePlace tile_place(int block, int tiles_m, int tiles_n) {
    constexpr int BAND = 8;
    if (tiles_n <= BAND) return {block / tiles_n, block % tiles_n};
    const int band = block / (tiles_m * BAND), in_band = block - band * tiles_m * BAND;
    const int width = min(BAND, tiles_n - band * BAND);
    return {in_band / width, band * BAND + in_band % width};
}

// Offsets are 32 bits wide, and wrap where nothing is read; added to a pointer they count as signed.
typedef unsigned Offset;

// Where the window of a position starts, maybe in the padding: as coordinates, and as an offset in x.
struct Origin {
    Offset offset;
    int at[3];

    DEVICE void seek(int position, Offset start, const ConvGeometry& g) {
        const Corner<Offset> corner = corner_of<Offset>(position, g);
        offset = start + corner.image;
#pragma unroll
        for (int a = 0; a < 3; a++) {
            at[a] = corner.at[a];
            offset += (Offset)at[a] * (Offset)g.x_strides[2 + a];
        }
    }
};

// A term of the sums: how far from the origin it reads x, and where w.
struct Cursor {
    Offset x, w;
    int channel, shift[3];

    DEVICE void seek(int k, Offset w_start, const ConvGeometry& g) {
        const Term term = term_of(min(k, g.depth - 1), g);
        channel = term.channel;
        x = (Offset)channel * (Offset)g.x_strides[1];
        w = w_start + weight_of<Offset>(term, g);
#pragma unroll
        for (int a = 0; a < 3; a++) {
            shift[a] = term.tap[a] * g.dilation[a];
            x += (Offset)shift[a] * (Offset)g.x_strides[2 + a];
        }
    }
    // Goes to term k, which lies `terms` behind the present one. Within a tap nothing has to be divided.
    DEVICE void advance(int k, int terms, Offset w_start, const ConvGeometry& g) {
        if (!g.channels_inner || channel + terms >= g.channels) return seek(k, w_start, g);
        channel += terms;
        x += terms * (Offset)g.x_strides[1];
        w += terms * (Offset)g.w_strides[1];
    }
};

// Brings the tiles of one block, in order. Thread t copies chunk t % 8 of lines t / 8, t / 8 + LINE_STEP, ...: for a
// tile along the depth it always copies the same terms of several positions (or filters), for a tile across the depth
// the same positions (or filters), one set in each panel, of several terms.
template <typename T, typename Tile, int TILE_M, int TILE_N, bool A_ALONG_DEPTH, bool B_ALONG_DEPTH>
struct Loader {
    static constexpr int VECTOR = Tile::VECTOR, LINE = Tile::DEPTH;  // elements of a chunk and of a line
    static constexpr int LINE_STEP = Tile::THREADS / CHUNKS;
    static constexpr int ORIGINS = A_ALONG_DEPTH ? TILE_M / LINE_STEP : TILE_M / LINE;
    static constexpr int ORIGIN_STEP = A_ALONG_DEPTH ? LINE_STEP : LINE;
    static constexpr int TERMS = Tile::DEPTH / LINE_STEP;  // of a thread in a tile across the depth
    static constexpr int FILTERS = B_ALONG_DEPTH ? TILE_N / LINE_STEP : TILE_N / LINE;
    static constexpr int FILTER_STEP = B_ALONG_DEPTH ? LINE_STEP : LINE;
    static constexpr bool USES_COLUMN = A_ALONG_DEPTH || B_ALONG_DEPTH, USES_ROWS = !A_ALONG_DEPTH || !B_ALONG_DEPTH;

    const ConvGeometry& g;
    const T *x, *w;
    const int group, last_k;  // last_k: where the sums end
    const int line, chunk, position, filter;  // line, position and filter: the first of this thread
    Origin origins[ORIGINS];
    Cursor column;       // the terms of this thread in tiles along the depth
    Cursor rows[TERMS];  // and in tiles across the depth

    DEVICE Loader(const T* x, const T* w, const ConvGeometry& g, int thread, int group, int first_m, int first_n,
                  int first_k, int last_k)
        : g(g), x(x), w(w), group(group), last_k(last_k), line(thread / CHUNKS), chunk(thread % CHUNKS),
          position(first_m + (A_ALONG_DEPTH ? line : chunk * VECTOR)),
          filter(first_n + (B_ALONG_DEPTH ? line : chunk * VECTOR)) {
#pragma unroll
        for (int i = 0; i < ORIGINS; i++) origins[i].seek(position_of_origin(i), x_start(), g);
        if constexpr (USES_COLUMN) column.seek(column_k(first_k), w_start(), g);
        if constexpr (USES_ROWS)
#pragma unroll
            for (int r = 0; r < TERMS; r++) rows[r].seek(row_k(first_k, r), w_start(), g);
    }

    DEVICE Offset x_start() const { return (Offset)g.x_start + (Offset)group * (Offset)g.x_group; }
    DEVICE Offset w_start() const {
        return (Offset)g.w_start + (Offset)group * (Offset)g.w_group + (Offset)filter * w_step();
    }
    DEVICE Offset w_step() const { return B_ALONG_DEPTH ? (Offset)g.w_strides[0] : 1; }
    // Positions beyond the last are read like the last (or the last 16 bytes of them): their sums are not stored.
    DEVICE int position_of_origin(int i) const {
        return min(position + i * ORIGIN_STEP, g.positions - (A_ALONG_DEPTH ? 1 : VECTOR));
    }
    // This thread's terms of the tiles that start at first_k.
    DEVICE int column_k(int first_k) const { return first_k + chunk * VECTOR; }
    DEVICE int row_k(int first_k, int r) const { return first_k + line + r * LINE_STEP; }
    // Where they lie in a tile, in bytes.
    DEVICE int line_place(int i) const { return chunk_place<T, true>(line + i * LINE_STEP, chunk); }
    DEVICE int panel_place(int r, int panel) const {
        return chunk_place<T, false>(panel * Tile::DEPTH + line + r * LINE_STEP, chunk);
    }

    // The tiles of A and B that start at first_k, into one buffer of the ring.
    DEVICE void load(unsigned char* tile_a, int first_k) {
        unsigned char* tile_b = tile_a + Tile::BYTES_A;
        if (g.padding_mode > PAD_CONSTANT)
            gather_repeated(tile_a, first_k);
        else
            gather(tile_a, first_k);
        if constexpr (B_ALONG_DEPTH) {
#pragma unroll
            for (int j = 0; j < FILTERS; j++) copy_weights(tile_b + line_place(j), column, column_k(first_k), j);
        } else {
#pragma unroll
            for (int r = 0; r < TERMS; r++)
#pragma unroll
                for (int j = 0; j < FILTERS; j++)
                    copy_weights(tile_b + panel_place(r, j), rows[r], row_k(first_k, r), j);
        }
        const int next_k = first_k + Tile::DEPTH;
        if constexpr (USES_COLUMN) column.advance(column_k(next_k), Tile::DEPTH, w_start(), g);
        if constexpr (USES_ROWS)
#pragma unroll
            for (int r = 0; r < TERMS; r++) rows[r].advance(row_k(next_k, r), Tile::DEPTH, w_start(), g);
    }

    DEVICE void gather(unsigned char* tile, int first_k) const {
        if constexpr (A_ALONG_DEPTH) {
#pragma unroll
            for (int i = 0; i < ORIGINS; i++) copy_elements(tile + line_place(i), column, column_k(first_k), i);
        } else {
#pragma unroll
            for (int r = 0; r < TERMS; r++)
#pragma unroll
                for (int i = 0; i < ORIGINS; i++)
                    copy_elements(tile + panel_place(r, i), rows[r], row_k(first_k, r), i);
        }
    }
    DEVICE void copy_elements(unsigned char* place, const Cursor& cursor, int k, int i) const {
        bool inside = k < last_k;
#pragma unroll
        for (int a = 0; a < 3; a++) inside &= (unsigned)(origins[i].at[a] + cursor.shift[a]) < (unsigned)g.size[a];
        copy_async_16(place, x + (int)(origins[i].offset + cursor.x), inside);
    }
    DEVICE void copy_weights(unsigned char* place, const Cursor& cursor, int k, int j) const {
        const bool inside = (k < last_k) & (filter + j * FILTER_STEP < g.filters);
        copy_async_16(place, w + (int)(cursor.w + j * (FILTER_STEP * w_step())), inside);
    }

    // With padding that repeats elements of x, everything is worked out anew for each copy.
    DEVICE void gather_repeated(unsigned char* tile, int first_k) const {
#pragma unroll 1
        for (int r = 0; r < (A_ALONG_DEPTH ? 1 : TERMS); r++) {
            const int k = A_ALONG_DEPTH ? column_k(first_k) : row_k(first_k, r);
            const Term term = term_of(min(k, g.depth - 1), g);
#pragma unroll 1
            for (int i = 0; i < ORIGINS; i++) {
                Offset offset;
                source_of(corner_of<Offset>(position_of_origin(i), g), term, g, offset);
                const int place = A_ALONG_DEPTH ? line_place(i) : panel_place(r, i);
                copy_async_16(tile + place, x + (int)(x_start() + offset), k < last_k);
            }
        }
    }
};

// VECTOR neighbouring results from shared memory to `to`, each made by `finish(sum, i)`, at once where they are dense
// and aligned; `count` of them exist.
template <typename R, int VECTOR, typename Finish>
DEVICE void store_results(const float* sums, R* to, long long step, int count, Finish finish) {
    Pack<R, VECTOR> pack;
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        if (i < count) pack.at[i] = finish(sums[i], i);
    if (count >= VECTOR && step == 1 && reinterpret_cast<size_t>(to) % alignof(Pack<R, VECTOR>) == 0) {
        *reinterpret_cast<Pack<R, VECTOR>*>(to) = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        if (i < count) to[i * step] = pack.at[i];
}

#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
constexpr int SHARED_KIB = 164;  // of a multiprocessor
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr int SHARED_KIB = 228;
#else
constexpr int SHARED_KIB = 100;
#endif

// Blocks that a multiprocessor has room for at a time, by shared memory (the device takes 1 KiB of each) and registers:
// a thread gets no fewer registers than that asks for.
template <typename Tile, int STAGES>
struct Together {
    static constexpr int BY_MEMORY = SHARED_KIB / (STAGES * Tile::BYTES / 1024 + 1);
    static constexpr int AT_MOST = BY_MEMORY < Tile::BLOCKS_BY_REGISTERS ? BY_MEMORY : Tile::BLOCKS_BY_REGISTERS;
    static constexpr int BLOCKS = AT_MOST < 1 ? 1 : AT_MOST;
};

template <typename T, int PRODUCTS, int TILE_M, int TILE_N, int WARP_M, int WARP_N, int STAGES, bool A_ALONG_DEPTH,
          bool B_ALONG_DEPTH>
__global__ void __launch_bounds__(
    MmaTile<T, PRODUCTS, TILE_M, TILE_N, WARP_M, WARP_N, A_ALONG_DEPTH, B_ALONG_DEPTH>::THREADS,
    Together<MmaTile<T, PRODUCTS, TILE_M, TILE_N, WARP_M, WARP_N, A_ALONG_DEPTH, B_ALONG_DEPTH>, STAGES>::BLOCKS)
    conv_mma(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
             float* __restrict__ partial, const __grid_constant__ ConvGeometry g) {
    typedef MmaTile<T, PRODUCTS, TILE_M, TILE_N, WARP_M, WARP_N, A_ALONG_DEPTH, B_ALONG_DEPTH> Tile;
    typedef Loader<T, Tile, TILE_M, TILE_N, A_ALONG_DEPTH, B_ALONG_DEPTH> TileLoader;
    static_assert(STAGES * Tile::BYTES >= TILE_M * Tile::ROW * (int)sizeof(float), "results fit the ring");
    SHARED_MEMORY(shared);

    const int thread = threadIdx.x, group = blockIdx.y, split = blockIdx.z;
    const TilePlace place =
        tile_place(blockIdx.x, (g.positions + TILE_M - 1) / TILE_M, (g.filters + TILE_N - 1) / TILE_N);
    const int first_m = place.m * TILE_M, first_n = place.n * TILE_N;
    const int first_k = split * g.depth_per_split;
    const int last_k = min(first_k + g.depth_per_split, g.depth);
    TileLoader loader(x, w, g, thread, group, first_m, first_n, first_k, last_k);
    Tile product(thread);

    // Copies run AHEAD tiles before products. A group of copies is closed in every round, also when there is nothing
    // left to copy, so that counting groups counts tiles.
    constexpr int AHEAD = STAGES - 1;
    int stage = 0;
#pragma unroll 1
    for (int k = first_k - AHEAD * Tile::DEPTH; k < last_k; k += Tile::DEPTH) {
        if (k >= first_k) {
            copy_async_wait<AHEAD - 1>();
            __syncthreads();  // the tile is there for all, and all have finished with the one before it
        }
        if (k + AHEAD * Tile::DEPTH < last_k) loader.load(shared + stage * Tile::BYTES, k + AHEAD * Tile::DEPTH);
        copy_async_commit();
        stage = stage + 1 == STAGES ? 0 : stage + 1;  // filled next, hence the oldest: multiplied now
        const unsigned char* tile_a = shared + stage * Tile::BYTES;
        if (k >= first_k) product.multiply_tiles(tile_a, tile_a + Tile::BYTES_A);
    }
    copy_async_wait<0>();
    __syncthreads();

    float* results = reinterpret_cast<float*>(shared);
    product.put(results);
    __syncthreads();
    constexpr int VECTOR = CHUNK_BYTES / sizeof(T);
#pragma unroll 1
    for (int i = thread; i < TILE_M * TILE_N / VECTOR; i += Tile::THREADS) {
        const int m = i / (TILE_N / VECTOR), n = i % (TILE_N / VECTOR) * VECTOR;
        const int position = first_m + m, filter = first_n + n;
        if (position >= g.positions || filter >= g.filters) continue;
        const float* sums = results + m * Tile::ROW + n;
        const int count = min(VECTOR, g.filters - filter);
        if (g.splits > 1) {
            const long long part = (long long)split * g.groups + group;
            store_results<float, VECTOR>(sums, partial + (part * g.positions + position) * g.filters + filter, 1, count,
                                         [](float sum, int) { return sum; });
        } else {
            T* to = y + (g.y_start + group * g.y_group + result_of<long long>(position, g) + filter * g.y_strides[1]);
            store_results<T, VECTOR>(sums, to, g.y_strides[1], count, [&](float sum, int k) {
                return finished<T>(sum, bias, group * g.filters + filter + k, g.activation);
            });
        }
    }
}
