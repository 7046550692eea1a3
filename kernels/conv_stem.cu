// The first layer of a network: few channels, many filters.
//
//     y[n, i, f] = phi(bias[f] + sum over tap, c of x_padded[n, i * stride + tap * dilation, c] * w[tap, c, f])
//
// A product of matrices would gather every element of x once for each tap that meets it, one by one, since one or three
// channels make no vector: for 7 x 7 taps, 49 times a dozen instructions for one element. Here a block copies the part
// of x under a tile of results, padding included, to shared memory once, and keeps the weights of its filters there for
// all its tiles. A thread makes POSITIONS x FILTERS results in registers: for each term it reads POSITIONS values, at
// places that differ by a constant from term to term, and FILTERS weights in two vectors.
//
// Neighbouring threads have neighbouring filters (filters_inner) or positions, whichever y holds beside each other.
#include "epilogue.cuh"
#include "geometry.cuh"

// How a block is divided, and how its shared memory is. Its twin is in xpconv/cuda/plans/stem.py.
struct StemTile {
    int lanes_p, lanes_f;         // threads along positions and filters
    int height, width;            // results of a tile along the last two axes
    int tiles_h, tiles_w, tiles;  // along those axes, and in all
    int rows, columns;            // of x under a tile
    int filters_inner;            // whether neighbouring threads make neighbouring filters
    int vectors;                  // whether a thread stores its neighbouring filters in one step
    int columns_at, weights_at, tile_at;  // bytes
};

// Activations that are a comparison; the others are calls, which a copy at every result would make too many.
template <typename R>
DEVICE R rectified(R a, int activation) {
    if (activation == RELU) return a < 0 ? (R)0 : a;
    if (activation == LEAKY_RELU) return a < 0 ? (R)0.01 * a : a;
    return a;
}

template <typename T, typename Offset>
__global__ void __launch_bounds__(128, 4)
    conv_stem(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
              const __grid_constant__ StemTile tile, const __grid_constant__ ConvGeometry g) {
    typedef typename Element<T>::Sum Sum;
    constexpr int CHUNK = 16 / sizeof(Sum), FILTERS = 2 * CHUNK, POSITIONS = 8, BATCH = 4;
    const Offset NOWHERE = (Offset)1 << (sizeof(Offset) * 8 - 1);  // a constant padding
    SHARED_MEMORY(shared);
    Offset* row_sources = reinterpret_cast<Offset*>(shared);
    Offset* column_sources = reinterpret_cast<Offset*>(shared + tile.columns_at);
    Sum* weights = reinterpret_cast<Sum*>(shared + tile.weights_at);  // [channel][tap][filter]
    Sum* values = reinterpret_cast<Sum*>(shared + tile.tile_at);      // [channel][tap 0][row][column]

    const int thread = threadIdx.x, threads = blockDim.x;
    const int lane_f = tile.filters_inner ? thread % tile.lanes_f : thread / tile.lanes_p;
    const int lane_p = tile.filters_inner ? thread / tile.lanes_f : thread % tile.lanes_p;
    const int tile_filters = tile.lanes_f * FILTERS, first_filter = blockIdx.y * tile_filters;
    const int taps = g.window[0] * g.window[1] * g.window[2];
    const bool working = lane_f < tile.lanes_f && lane_p < tile.lanes_p;
    const T padding = padding_element<T>(g);
    x += g.x_start;
    w += g.w_start;

    // Neighbouring threads read neighbouring filters, or neighbouring taps.
    const int places = g.depth * tile_filters;
#pragma unroll 1
    for (int first = thread; first < places; first += BATCH * threads) {
        T loaded[BATCH];  // all of them are under way before the first is stored
        int targets[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int place = min(first + i * threads, places - 1);
            const int f = tile.filters_inner ? place % tile_filters : place / g.depth;
            const int k = tile.filters_inner ? place / tile_filters : place % g.depth;
            const int channel = k / taps, rest = g.by_window[1].quotient(k - channel * taps);
            Term term;
            term.channel = channel;
            term.tap[2] = g.by_window[1].remainder(k - channel * taps, rest);
            term.tap[0] = g.by_window[0].quotient(rest);
            term.tap[1] = g.by_window[0].remainder(rest, term.tap[0]);
            targets[i] = first + i * threads < places ? k * tile_filters + f : -1;
            loaded[i] = T{};
            if (first_filter + f < g.filters)
                loaded[i] = w[weight_of<Offset>(term, g) + (Offset)(first_filter + f) * (Offset)g.w_strides[0]];
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (targets[i] >= 0) weights[targets[i]] = Element<T>::load(loaded[i]);
    }

    // Where this thread's positions lie in the tile, and in the values under it.
    int corners[POSITIONS];
#pragma unroll
    for (int p = 0; p < POSITIONS; p++) {
        const int place = min(lane_p + p * tile.lanes_p, tile.height * tile.width - 1), row = place / tile.width;
        corners[p] = row * g.stride[1] * tile.columns + (place - row * tile.width) * g.stride[2];
    }

#pragma unroll 1
    for (int index = blockIdx.x; index < tile.tiles; index += gridDim.x) {
        const int strips = index / tile.tiles_w, planes = strips / tile.tiles_h, item = planes / g.out[0];
        const int first_w = (index - strips * tile.tiles_w) * tile.width;
        const int first_h = (strips - planes * tile.tiles_h) * tile.height, out_d = planes - item * g.out[0];

        const int rows = g.channels * g.window[0] * tile.rows;
#pragma unroll 1
        for (int row = thread; row < rows; row += threads) {
            const int plane = row / tile.rows, channel = plane / g.window[0];
            const int d = out_d * g.stride[0] - g.before[0] + (plane - channel * g.window[0]) * g.dilation[0];
            const int h = first_h * g.stride[1] - g.before[1] + row - plane * tile.rows;
            const int i0 = padded_source(d, g.size[0], g.padding_mode);
            const int i1 = padded_source(h, g.size[1], g.padding_mode);
            const Offset offset = (Offset)item * (Offset)g.x_strides[0] + (Offset)channel * (Offset)g.x_strides[1] +
                                  (Offset)i0 * (Offset)g.x_strides[2] + (Offset)i1 * (Offset)g.x_strides[3];
            row_sources[row] = i0 >= 0 && i1 >= 0 ? offset : NOWHERE;
        }
#pragma unroll 1
        for (int column = thread; column < tile.columns; column += threads) {
            const int i2 = padded_source(first_w * g.stride[2] - g.before[2] + column, g.size[2], g.padding_mode);
            column_sources[column] = i2 >= 0 ? (Offset)i2 * (Offset)g.x_strides[4] : NOWHERE;
        }
        __syncthreads();
#pragma unroll 1
        for (int column = thread % 32; column < tile.columns; column += 32) {
            const Offset from_column = column_sources[column];
#pragma unroll 1
            for (int first = thread / 32; first < rows; first += BATCH * (threads / 32)) {
                T loaded[BATCH];  // all of them are under way before the first is stored
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const int row = first + i * (threads / 32);
                    const Offset from_row = row < rows ? row_sources[row] : NOWHERE;
                    loaded[i] = padding;
                    if (from_row != NOWHERE && from_column != NOWHERE) loaded[i] = x[from_row + from_column];
                }
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const int row = first + i * (threads / 32);
                    if (row < rows) values[row * tile.columns + column] = Element<T>::load(loaded[i]);
                }
            }
        }
        __syncthreads();

        Sum sums[POSITIONS][FILTERS];
#pragma unroll
        for (int p = 0; p < POSITIONS; p++)
#pragma unroll
            for (int f = 0; f < FILTERS; f++) sums[p][f] = zero<Sum>();
        if (working) {
            const Sum* term_weights = weights + lane_f * CHUNK;
            const int chunk_step = tile.lanes_f * CHUNK;
#pragma unroll 1
            for (int plane = 0; plane < g.channels * g.window[0]; plane++)
#pragma unroll 1
                for (int tap1 = 0; tap1 < g.window[1]; tap1++) {
                    const Sum* from = values + (plane * tile.rows + tap1 * g.dilation[1]) * tile.columns;
#pragma unroll 1
                    for (int tap2 = 0; tap2 < g.window[2]; tap2++) {
                        Sum value[POSITIONS], weight[FILTERS];
                        copy<CHUNK>(term_weights, weight);
                        copy<CHUNK>(term_weights + chunk_step, weight + CHUNK);
#pragma unroll
                        for (int p = 0; p < POSITIONS; p++) value[p] = from[corners[p]];
#pragma unroll
                        for (int p = 0; p < POSITIONS; p++)
#pragma unroll
                            for (int f = 0; f < FILTERS; f++)
                                sums[p][f] = multiply_add(value[p], weight[f], sums[p][f]);
                        from += g.dilation[2];
                        term_weights += tile_filters;
                    }
                }
        }
        if (g.activation > LEAKY_RELU) __syncthreads();  // the values are written over
        if (!working) continue;

        if (bias) {
#pragma unroll
            for (int f = 0; f < FILTERS; f++) {
                const int filter = first_filter + f / CHUNK * tile.lanes_f * CHUNK + lane_f * CHUNK + f % CHUNK;
                const Sum added = Element<T>::load(bias[min(filter, g.filters - 1)]);
#pragma unroll
                for (int p = 0; p < POSITIONS; p++) sums[p][f] = sums[p][f] + added;
            }
        }
#pragma unroll
        for (int p = 0; p < POSITIONS; p++) {
            const int place = lane_p + p * tile.lanes_p, row = place / tile.width, out_h = first_h + row;
            const int out_w = first_w + place - row * tile.width;
            if (g.activation > LEAKY_RELU) {  // in a place of this thread's own, where one loop reaches them all
                Sum* mine = values + thread;
#pragma unroll
                for (int f = 0; f < FILTERS; f++) mine[f * threads] = sums[p][f];
#pragma unroll 1
                for (int f = 0; f < FILTERS; f++) mine[f * threads] = activated(mine[f * threads], g.activation);
#pragma unroll
                for (int f = 0; f < FILTERS; f++) sums[p][f] = mine[f * threads];
            }
            if (row >= tile.height || out_h >= g.out[1] || out_w >= g.out[2]) continue;
            const Offset place_in_y = (Offset)item * (Offset)g.y_strides[0] + (Offset)out_d * (Offset)g.y_strides[2] +
                                      (Offset)out_h * (Offset)g.y_strides[3] + (Offset)out_w * (Offset)g.y_strides[4];
            T* results = y + g.y_start + place_in_y;
#pragma unroll
            for (int chunk = 0; chunk < 2; chunk++) {
                const int filter = first_filter + (chunk * tile.lanes_f + lane_f) * CHUNK;
                Pack<T, CHUNK> pack;
#pragma unroll
                for (int f = 0; f < CHUNK; f++)
                    pack.at[f] = Element<T>::store(rectified(sums[p][chunk * CHUNK + f], g.activation));
                if (tile.vectors) {
                    if (filter < g.filters) *reinterpret_cast<Pack<T, CHUNK>*>(results + filter) = pack;
                } else {
#pragma unroll
                    for (int f = 0; f < CHUNK; f++)
                        if (filter + f < g.filters) results[(Offset)(filter + f) * (Offset)g.y_strides[1]] = pack.at[f];
                }
            }
        }
    }
}
