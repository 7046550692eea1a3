// The universal convolution, on the ordinary cores: any element type, one to three axes, groups, every padding mode.
//
//     y[n, i, f] = phi(bias[f] + sum over tap, c of x_padded[n, i * stride + tap * dilation, c] * w[tap, c, f])
//
// read as a product of matrices, A (positions x terms) times B (terms x filters), in which A is never made: each block
// computes a tile of TILE_M positions by TILE_N filters and gathers TILE_K columns of A at a time straight from x.
// Padding is handled in the gather, so x is never copied.
//
// A thread loads its part of the next tiles into registers while the block multiplies the present ones, which lie in
// two buffers of shared memory, and adds up THREAD_M x THREAD_N results in registers. In the end the sums pass through
// shared memory, THREADS_M rows at a time, so that neighbouring threads store neighbouring elements.
//
// POSITIONS_INNER says which axis of x and y lies densely: positions (channels first) or channels (channels last). It
// decides which elements neighbouring threads load, and nothing else: strides say where elements are.
// BLOCKS is how many blocks a multiprocessor should hold, which bounds the registers of a thread.
// VECTOR elements along the channels of x and along the filters of w are loaded at once.
// With splits > 1 each block adds up a part of the depth, and sum_splits.cu puts the parts together in a fixed order.
#include "epilogue.cuh"
#include "geometry.cuh"

template <typename T, int TILE_M, int TILE_N, int TILE_K, int THREAD_M, int THREAD_N, int VECTOR, bool POSITIONS_INNER>
struct SimtTile {
    typedef typename Element<T>::Sum Sum;
    static constexpr int THREADS_M = TILE_M / THREAD_M, THREADS_N = TILE_N / THREAD_N;
    static constexpr int THREADS = THREADS_M * THREADS_N;
    static constexpr int CHUNK_M = THREAD_M < 4 ? THREAD_M : 4, CHUNK_N = THREAD_N < 4 ? THREAD_N : 4;
    static constexpr int PAD = 16 / sizeof(Sum) > 1 ? 16 / sizeof(Sum) : 1;  // keeps rows aligned, spreads banks
    static constexpr int ROW_A = TILE_M + PAD, ROW_B = TILE_N + PAD;
    static constexpr int BUFFER = TILE_K * (ROW_A + ROW_B);  // sums in one of the two buffers

    // How the threads share the loading of A: each has LANES_K columns apart from STEP_K, LANES_M rows apart from STEP_M.
    static constexpr int WIDTH_K = TILE_K / VECTOR;
    static constexpr int STEP_M = POSITIONS_INNER ? TILE_M : THREADS / WIDTH_K;
    static constexpr int STEP_K = POSITIONS_INNER ? THREADS / TILE_M : WIDTH_K;
    static constexpr int LANES_M = TILE_M / STEP_M, LANES_K = WIDTH_K / STEP_K;
    // The same for B, where a load is VECTOR filters wide.
    static constexpr int WIDTH_N = TILE_N / VECTOR;
    static constexpr int B_LOADS = (TILE_K * WIDTH_N + THREADS - 1) / THREADS;

    static_assert(TILE_M % STEP_M == 0 && WIDTH_K % STEP_K == 0 && LANES_M * LANES_K > 0, "A divides among the threads");
    static_assert(!POSITIONS_INNER || (VECTOR == 1 && THREADS % TILE_M == 0), "vectors run along the channels");
    static_assert(THREADS_M * ROW_B <= 2 * BUFFER, "a slab of results fits the buffers");
};

template <typename T, int TILE_M, int TILE_N, int TILE_K, int THREAD_M, int THREAD_N, int VECTOR, bool POSITIONS_INNER,
          int BLOCKS>
__global__ void __launch_bounds__((TILE_M / THREAD_M) * (TILE_N / THREAD_N), BLOCKS)
    conv_simt(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
              typename Element<T>::Sum* __restrict__ partial, const __grid_constant__ ConvGeometry g) {
    typedef SimtTile<T, TILE_M, TILE_N, TILE_K, THREAD_M, THREAD_N, VECTOR, POSITIONS_INNER> Tile;
    typedef typename Tile::Sum Sum;
    SHARED_MEMORY(shared);
    Sum* buffers = reinterpret_cast<Sum*>(shared);

    const int tiles_n = (g.filters + TILE_N - 1) / TILE_N;
    const int tile_n = blockIdx.x % tiles_n, tile_m = blockIdx.x / tiles_n;
    const int group = blockIdx.y, split = blockIdx.z, thread = threadIdx.x;
    const int first_m = tile_m * TILE_M, first_n = tile_n * TILE_N;
    const int first_k = split * g.depth_per_split;
    const int last_k = min(first_k + g.depth_per_split, g.depth);
    x += g.x_start + (long long)group * g.x_group;
    w += g.w_start + (long long)group * g.w_group;

    const int a_k = (POSITIONS_INNER ? thread / TILE_M : thread % Tile::WIDTH_K) * VECTOR;
    const int a_m = POSITIONS_INNER ? thread % TILE_M : thread / Tile::WIDTH_K;
    Corner<long long> corners[Tile::LANES_M];
#pragma unroll
    for (int i = 0; i < Tile::LANES_M; i++)
        corners[i] = corner_of<long long>(min(first_m + a_m + i * Tile::STEP_M, g.positions - 1), g);

    // Elements as they lie in memory; they become sums when they are put into shared memory, so that no load waits.
    Pack<T, VECTOR> a_next[Tile::LANES_K][Tile::LANES_M], b_next[Tile::B_LOADS];
    auto load_a = [&](int tile_k) {
#pragma unroll
        for (int j = 0; j < Tile::LANES_K; j++) {
            const int k = tile_k + a_k + j * Tile::STEP_K * VECTOR;
            const Term term = term_of(min(k, g.depth - 1), g);
#pragma unroll
            for (int i = 0; i < Tile::LANES_M; i++) {
                long long offset;
                const bool inside = source_of(corners[i], term, g, offset);
                a_next[j][i] = filled<T, VECTOR>(k < last_k ? padding_element<T>(g) : zero<T>());
                if (k < last_k && inside) a_next[j][i] = *reinterpret_cast<const Pack<T, VECTOR>*>(x + offset);
            }
        }
    };
    // Where this thread's load number i of B lies in the tile.
    auto b_place = [&](int i, int& k, int& n) {
        const int place = thread + i * Tile::THREADS;
        k = POSITIONS_INNER ? place % TILE_K : place / Tile::WIDTH_N;
        n = (POSITIONS_INNER ? place / TILE_K : place % Tile::WIDTH_N) * VECTOR;
        return place < TILE_K * Tile::WIDTH_N;
    };
    auto load_b = [&](int tile_k) {
#pragma unroll
        for (int i = 0; i < Tile::B_LOADS; i++) {
            int k, n;
            const bool mine = b_place(i, k, n) && tile_k + k < last_k && first_n + n < g.filters;
            b_next[i] = filled<T, VECTOR>(zero<T>());
            if (!mine) continue;
            const long long offset = weight_of<long long>(term_of(tile_k + k, g), g);
            b_next[i] = *reinterpret_cast<const Pack<T, VECTOR>*>(
                w + offset + (long long)(first_n + n) * (int)g.w_strides[0]);
        }
    };
    auto put = [&](Sum* buffer) {
        Sum* tile_b = buffer + TILE_K * Tile::ROW_A;
#pragma unroll
        for (int j = 0; j < Tile::LANES_K; j++)
#pragma unroll
            for (int i = 0; i < Tile::LANES_M; i++)
#pragma unroll
                for (int v = 0; v < VECTOR; v++)
                    buffer[(a_k + j * Tile::STEP_K * VECTOR + v) * Tile::ROW_A + a_m + i * Tile::STEP_M] =
                        Element<T>::load(a_next[j][i].at[v]);
#pragma unroll
        for (int i = 0; i < Tile::B_LOADS; i++) {
            int k, n;
            if (!b_place(i, k, n)) continue;
#pragma unroll
            for (int v = 0; v < VECTOR; v++) tile_b[k * Tile::ROW_B + n + v] = Element<T>::load(b_next[i].at[v]);
        }
    };

    const int thread_n = thread % Tile::THREADS_N, thread_m = thread / Tile::THREADS_N;
    Sum sums[THREAD_M][THREAD_N];
#pragma unroll
    for (int i = 0; i < THREAD_M; i++)
#pragma unroll
        for (int j = 0; j < THREAD_N; j++) sums[i][j] = zero<Sum>();

    if (first_k < last_k) {
        load_a(first_k);
        load_b(first_k);
        put(buffers);
    }
    __syncthreads();
    int side = 0;
    for (int tile_k = first_k; tile_k < last_k; tile_k += TILE_K) {
        const bool more = tile_k + TILE_K < last_k;
        if (more) {
            load_a(tile_k + TILE_K);
            load_b(tile_k + TILE_K);
        }
        const Sum* tile_a = buffers + side * Tile::BUFFER;
        const Sum* tile_b = tile_a + TILE_K * Tile::ROW_A;
#pragma unroll
        for (int k = 0; k < TILE_K; k++) {
            Sum a[THREAD_M], b[THREAD_N];
#pragma unroll
            for (int i = 0; i < THREAD_M; i += Tile::CHUNK_M)
                copy<Tile::CHUNK_M>(tile_a + k * Tile::ROW_A + i * Tile::THREADS_M + thread_m * Tile::CHUNK_M, a + i);
#pragma unroll
            for (int j = 0; j < THREAD_N; j += Tile::CHUNK_N)
                copy<Tile::CHUNK_N>(tile_b + k * Tile::ROW_B + j * Tile::THREADS_N + thread_n * Tile::CHUNK_N, b + j);
#pragma unroll
            for (int i = 0; i < THREAD_M; i++)
#pragma unroll
                for (int j = 0; j < THREAD_N; j++) sums[i][j] = multiply_add(a[i], b[j], sums[i][j]);
        }
        if (more) {
            side ^= 1;
            put(buffers + side * Tile::BUFFER);
        }
        __syncthreads();
    }

    // Store: row i of every thread at a time.
#pragma unroll
    for (int i = 0; i < THREAD_M; i++) {
#pragma unroll
        for (int j = 0; j < THREAD_N; j++)
            buffers[thread_m * Tile::ROW_B + j / Tile::CHUNK_N * Tile::CHUNK_N * Tile::THREADS_N +
                    thread_n * Tile::CHUNK_N + j % Tile::CHUNK_N] = sums[i][j];
        __syncthreads();
#pragma unroll 1
        for (int place = thread; place < Tile::THREADS_M * TILE_N; place += Tile::THREADS) {
            const int row = POSITIONS_INNER ? place % Tile::THREADS_M : place / TILE_N;
            const int n = POSITIONS_INNER ? place / Tile::THREADS_M : place % TILE_N;
            const int position =
                first_m + i / Tile::CHUNK_M * Tile::CHUNK_M * Tile::THREADS_M + row * Tile::CHUNK_M + i % Tile::CHUNK_M;
            const int filter = first_n + n;
            if (position >= g.positions || filter >= g.filters) continue;
            const Sum sum = buffers[row * Tile::ROW_B + n];
            if (g.splits > 1) {
                const long long part = (long long)split * g.groups + group;
                partial[(part * g.positions + position) * g.filters + filter] = sum;
            } else {
                y[g.y_start + group * g.y_group + result_of<long long>(position, g) +
                  (long long)filter * (int)g.y_strides[1]] =
                    finished<T>(sum, bias, group * g.filters + filter, g.activation);
            }
        }
        __syncthreads();
    }
}
