// The same elements in another order: transposes between the layouts, weights repacked, views made dense.
//
//     y[i] = x[i] where i lies in x, else 0      for every index i of y, each array with strides of its own
//
// Elements are moved as words of 1 to 16 bytes, whatever they mean; the plan takes as many of them for a word as lie
// beside each other in both arrays. Axes are in the order of y, the last one dense.
//
// copy_strided: a thread a word. For everything whose dense axis is the same in x and y, or too short for a tile.
// copy_transposed: x is dense along the axis before the last. A block moves a tile of both axes through shared memory,
// so that it reads along the one and writes along the other. Words of 4 bytes of smaller elements are loaded from
// SIDE rows and turned in registers, SIDE x SIDE elements at a time. Rows of the tile are one word longer than needed:
// neither the threads that write a row nor those that read a column meet in a bank.
#include "geometry.cuh"

// Its twin is in xpconv/cuda/plans/layout.py.
struct CopyGeometry {
    long long x_strides[8], y_strides[8];
    int extents[8];  // of y
    int valid[8];    // of x, where y is longer and ends with zeros
    int first;       // axes before this one have one element
    int planes;      // what blockIdx.y counts: the indices of axis 0
    int items;       // words of the other axes
    int tiles_from, tiles_to;  // of copy_transposed, along the last axis but one and the last
    Divisor by[8];
};

template <int BYTES>
__global__ void __launch_bounds__(256)
    copy_strided(const typename Word<BYTES>::Type* __restrict__ x, typename Word<BYTES>::Type* __restrict__ y,
                 const __grid_constant__ CopyGeometry g) {
    typedef typename Word<BYTES>::Type W;
    constexpr int BATCH = 4;
    const long long stride = (long long)gridDim.x * 256;
#pragma unroll 1
    for (int plane = blockIdx.y; plane < g.planes; plane += gridDim.y)
#pragma unroll 1
        for (long long first = blockIdx.x * 256ll + threadIdx.x; first < g.items; first += BATCH * stride) {
            W loaded[BATCH];  // all of them are under way before the first is stored
            long long targets[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                long long from = plane * g.x_strides[0];
                targets[b] = plane * g.y_strides[0];
                bool inside = plane < g.valid[0] && first + b * stride < g.items;
                int rest = (int)min(first + b * stride, g.items - 1ll);
#pragma unroll
                for (int a = 7; a > 0; a--) {
                    if (a < g.first) break;
                    const int outer = g.by[a].quotient(rest), i = g.by[a].remainder(rest, outer);
                    inside = inside && i < g.valid[a];
                    from += i * g.x_strides[a];
                    targets[b] += i * g.y_strides[a];
                    rest = outer;
                }
                loaded[b] = W{};
                if (inside) loaded[b] = x[from];
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                if (first + b * stride < g.items) y[targets[b]] = loaded[b];
        }
}

template <int BYTES, int SIDE>
__global__ void __launch_bounds__(256)
    copy_transposed(const typename Word<BYTES>::Type* __restrict__ x, typename Word<BYTES>::Type* __restrict__ y,
                    const __grid_constant__ CopyGeometry g) {
    typedef typename Word<BYTES>::Type E;
    typedef Pack<E, SIDE> Row;  // SIDE elements beside each other
    constexpr int PITCH = 33;
    SHARED_MEMORY(shared);
    Row* tile = reinterpret_cast<Row*>(shared);  // [SIDE][32][PITCH]

    const int tiles = g.tiles_from * g.tiles_to, batch = blockIdx.x / tiles, place = blockIdx.x - batch * tiles;
    const int first_to = place / g.tiles_from * 32, first_from = place % g.tiles_from * 32;  // in rows of SIDE
    int rest = batch;
    long long from = 0, to = 0;
#pragma unroll 1
    for (int a = 5; a >= g.first; a--) {
        const int outer = g.by[a].quotient(rest), i = g.by[a].remainder(rest, outer);
        from += i * g.x_strides[a];
        to += i * g.y_strides[a];
        rest = outer;
    }
    x += from;
    y += to;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    // a lane along the axis that is dense in x, a warp along the other
#pragma unroll
    for (int i = warp; i < 32; i += 8) {
        const int at_from = (first_from + lane) * SIDE, at_to = (first_to + i) * SIDE;
        Row rows[SIDE];
#pragma unroll
        for (int r = 0; r < SIDE; r++) {
            rows[r] = Row{};
            if (at_from < g.valid[6] && at_to + r < g.valid[7])
                rows[r] = *reinterpret_cast<const Row*>(x + (at_from + (at_to + r) * g.x_strides[7]));
        }
#pragma unroll
        for (int c = 0; c < SIDE; c++) {
            Row column;
#pragma unroll
            for (int r = 0; r < SIDE; r++) column.at[r] = rows[r].at[c];
            tile[(c * 32 + lane) * PITCH + i] = column;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = warp; i < 32; i += 8) {
        const int at_from = (first_from + i) * SIDE, at_to = (first_to + lane) * SIDE;
#pragma unroll
        for (int c = 0; c < SIDE; c++)
            if (at_from + c < g.extents[6] && at_to < g.extents[7]) {
                const Row row = tile[(c * 32 + i) * PITCH + lane];
                *reinterpret_cast<Row*>(y + ((at_from + c) * g.y_strides[6] + at_to)) = row;
            }
    }
}
