// Convolution whose groups have one channel each: depthwise convolutions, and plain filters of signals and images.
//
//     y[n, i, c, j] = phi(bias[c, j] + sum over tap of x_padded[n, i * stride + tap * dilation, c] * w[tap, c, j])
//
// There is no product of matrices in it: an element of x meets as many numbers as the window has taps and no more. What
// counts is to read it from far away once and to keep it near while it is needed. Where that can be depends on the axis
// that lies densely, and there are two kernels.
//
// conv_depthwise_channels (channels innermost). A thread makes RUN neighbouring results along the last axis for VECTOR
// channels, which it loads in one step. Where stride and dilation are 1 it takes WIDTH taps at a time: RUN + WIDTH - 1
// vectors of x in registers serve RUN * WIDTH products. Neighbouring threads have neighbouring channels, the next ones
// the same columns one row further down, so that a block's rows of x are read from the first-level cache. WIDTH == 1 is
// for other strides and dilations, WIDTH == 0 for paddings that repeat x, whose lookup would fill unrolled loads.
//
// conv_depthwise_positions (positions innermost). A block copies the part of x under its tile of results, padding
// included, to shared memory; a thread makes ROWS x 4 results. With stride and dilation 1 (SLIDING) they adjoin:
// 4 + 4 values of a row serve 16 products for each of the ROWS, and the taps come as broadcasts. Otherwise they lie
// apart, so that neighbouring threads read neighbouring values. A window too large for the memory is taken in pieces.
// One block may hold several small planes.
#include "epilogue.cuh"
#include "geometry.cuh"

// --- Channels innermost ----------------------------------------------------------------------------------------------

template <int BYTES>
struct RawBytes {
    typedef Pack<unsigned, BYTES / 4> Type;
};
template <> struct RawBytes<1> { typedef unsigned char Type; };
template <> struct RawBytes<2> { typedef unsigned short Type; };

// RUN results of VECTOR channels: their sums, and the row of x and of w that is being multiplied.
template <typename T, int VECTOR, int RUN, typename Offset>
struct DepthwiseRun {
    typedef typename Element<T>::Sum Sum;
    typedef typename RawBytes<sizeof(T) * VECTOR>::Type Raw;  // VECTOR elements as they lie, in as few registers
    Sum sums[RUN][VECTOR];
    Raw padding;  // what constant padding holds
    const T *row, *taps;
    bool inside;  // whether the row lies in x, or in a constant padding
    int first;    // coordinate of the first result's first tap on the last axis

    // The element at coordinate i of the padded last axis, at `source` if that is inside. It is converted later: with a
    // conversion beside it the load would become a branch, and loads in branches wait for each other.
    template <bool REPEATED>
    DEVICE Raw load(int i, const T* source, const ConvGeometry& g) const {
        if (REPEATED) {
            i = padded_source(i, g.size[2], g.padding_mode);
            source = row + (Offset)i * (Offset)g.x_strides[4];
        }
        Raw raw = padding;
        if (inside && (unsigned)i < (unsigned)g.size[2]) raw = *reinterpret_cast<const Raw*>(source);
        return raw;
    }

    // WIDTH taps from `tap` on; with WIDTH == 1 the results may be any stride apart.
    template <int WIDTH, bool REPEATED>
    DEVICE void multiply(int tap, const ConvGeometry& g) {
        const int step = WIDTH > 1 ? 1 : g.stride[2];
        const long long between = step * g.x_strides[4];
        int at = first + tap * g.dilation[2];
        const T* source = row + (Offset)at * (Offset)g.x_strides[4];
        Raw loaded[RUN + WIDTH - 1];
#pragma unroll
        for (int i = 0; i < RUN + WIDTH - 1; i++, at += step, source += between)
            loaded[i] = load<REPEATED>(at, source, g);
        Sum values[RUN + WIDTH - 1][VECTOR];
#pragma unroll
        for (int i = 0; i < RUN + WIDTH - 1; i++) {
            const auto& pack = reinterpret_cast<const Pack<T, VECTOR>&>(loaded[i]);
#pragma unroll
            for (int v = 0; v < VECTOR; v++) values[i][v] = Element<T>::load(pack.at[v]);
        }
        const T* weight_source = taps + (Offset)tap * (Offset)g.w_strides[4];
#pragma unroll
        for (int t = 0; t < WIDTH; t++, weight_source += g.w_strides[4]) {
            T weights[VECTOR];
            copy<VECTOR>(weight_source, weights);
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                const Sum weight = Element<T>::load(weights[v]);
#pragma unroll
                for (int o = 0; o < RUN; o++) sums[o][v] = multiply_add(values[o + t][v], weight, sums[o][v]);
            }
        }
    }
};

// A block has `tile_vectors` vectors of channels beside each other, and as many runs as its threads suffice for.
template <typename T, int VECTOR, int WIDTH, typename Offset>
__global__ void __launch_bounds__(128, 3)
    conv_depthwise_channels(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias,
                            T* __restrict__ y, const int tile_vectors, const __grid_constant__ ConvGeometry g) {
    typedef typename Element<T>::Sum Sum;
    constexpr int RUN = WIDTH > 1 ? 8 : 4;
    SHARED_MEMORY(shared);
    const int vectors = g.groups * g.filters / VECTOR, tiles = (vectors + tile_vectors - 1) / tile_vectors;
    const int tile_runs = blockDim.x / tile_vectors;
    const int tile = blockIdx.x / tiles, lane_run = threadIdx.x / tile_vectors;
    const int vector = (blockIdx.x - tile * tiles) * tile_vectors + threadIdx.x - lane_run * tile_vectors;

    // Runs are numbered down the rows first: what one row reads, the next ones read again.
    const int runs_per_row = (g.out[2] + RUN - 1) / RUN;
    const int run = tile * tile_runs + lane_run;
    const int columns = g.by_out[1].quotient(run), planes = columns / runs_per_row;
    const int item = g.by_out[0].quotient(planes);
    if (vector >= vectors || lane_run >= tile_runs || item >= g.batch) return;
    const int at[3] = {g.by_out[0].remainder(planes, item), g.by_out[1].remainder(run, columns),
                       (columns - planes * runs_per_row) * RUN};

    const int filter = vector * VECTOR, group = filter / g.filters, of_group = filter - group * g.filters;
    x += g.x_start + group * g.x_group + item * g.x_strides[0];
    w += g.w_start + group * g.w_group + of_group * g.w_strides[0];
    y += g.y_start + group * g.y_group + of_group * g.y_strides[1] + item * g.y_strides[0];

    DepthwiseRun<T, VECTOR, RUN, Offset> mine;
#pragma unroll
    for (int o = 0; o < RUN; o++)
#pragma unroll
        for (int v = 0; v < VECTOR; v++) mine.sums[o][v] = zero<Sum>();
    Pack<T, VECTOR> padding;
#pragma unroll
    for (int v = 0; v < VECTOR; v++) padding.at[v] = padding_element<T>(g);
    mine.padding = reinterpret_cast<const decltype(mine.padding)&>(padding);
    mine.first = at[2] * g.stride[2] - g.before[2];
    const bool sliding = g.stride[2] == 1 && g.dilation[2] == 1;
#pragma unroll 1
    for (int plane_tap = 0; plane_tap < g.window[0] * g.window[1]; plane_tap++) {
        const int tap0 = g.by_window[0].quotient(plane_tap), tap1 = g.by_window[0].remainder(plane_tap, tap0);
        const int depth = at[0] * g.stride[0] - g.before[0] + tap0 * g.dilation[0];
        const int height = at[1] * g.stride[1] - g.before[1] + tap1 * g.dilation[1];
        const int i0 = padded_source(depth, g.size[0], g.padding_mode);
        const int i1 = padded_source(height, g.size[1], g.padding_mode);
        mine.inside = i0 >= 0 && i1 >= 0;
        mine.row = x + ((Offset)i0 * (Offset)g.x_strides[2] + (Offset)i1 * (Offset)g.x_strides[3]);
        mine.taps = w + ((Offset)tap0 * (Offset)g.w_strides[2] + (Offset)tap1 * (Offset)g.w_strides[3]);
        int tap = 0;
        if (WIDTH > 1 && sliding)
#pragma unroll 1
            for (; tap + WIDTH <= g.window[2]; tap += WIDTH)
                mine.template multiply<(WIDTH > 1 ? WIDTH : 1), false>(tap, g);
#pragma unroll 1
        for (; tap < g.window[2]; tap++) mine.template multiply<1, WIDTH == 0>(tap, g);
    }

    // The sums pass through a place of this thread's own, so that one loop can finish and store them.
    Sum* place = reinterpret_cast<Sum*>(shared) + threadIdx.x * VECTOR;
#pragma unroll
    for (int o = 0; o < RUN; o++) {
        Pack<Sum, VECTOR> pack;
#pragma unroll
        for (int v = 0; v < VECTOR; v++) pack.at[v] = mine.sums[o][v];
        *reinterpret_cast<Pack<Sum, VECTOR>*>(place + o * blockDim.x * VECTOR) = pack;
    }
    y += (Offset)at[0] * (Offset)g.y_strides[2] + (Offset)at[1] * (Offset)g.y_strides[3];
#pragma unroll 1
    for (int o = 0; o < min(RUN, g.out[2] - at[2]); o++) {
        Sum sums[VECTOR];
        copy<VECTOR>(place + o * blockDim.x * VECTOR, sums);
        Pack<T, VECTOR> results;
#pragma unroll
        for (int v = 0; v < VECTOR; v++) results.at[v] = finished<T>(sums[v], bias, filter + v, g.activation);
        *reinterpret_cast<Pack<T, VECTOR>*>(y + (Offset)(at[2] + o) * (Offset)g.y_strides[4]) = results;
    }
}

// --- Positions innermost ---------------------------------------------------------------------------------------------

template <int N>
struct Count {
    static constexpr int value = N;
};

// How a block is divided, and how its shared memory is. Its twin is in xpconv/cuda/plans/depthwise.py.
struct DepthwiseTile {
    int lanes_w, lanes_h, planes;  // threads along the last two axes, and planes (item and filter) of a block
    int tiles_w, tiles_h;
    int piece_h, piece_w;       // taps that are multiplied at a time
    int rows, columns;          // of x under one plane's tile, at most
    int pitch, weight_pitch;    // elements between rows in shared memory
    int load_lanes;             // threads that share a row when the block loads and stores
    int rows_at, columns_at, weights_at, tile_at;  // bytes
};

template <typename T, int ROWS, bool SLIDING, typename Offset>
__global__ void __launch_bounds__(256, SLIDING && sizeof(T) <= 4 ? 4 : 1)
    conv_depthwise_positions(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias,
                             T* __restrict__ y, const __grid_constant__ DepthwiseTile tile,
                             const __grid_constant__ ConvGeometry g) {
    typedef typename Element<T>::Sum Sum;
    constexpr int RUN = 4, BATCH = 4;
    const Offset NOWHERE = (Offset)1 << (sizeof(Offset) * 8 - 1);  // a constant padding, or beyond all that is read
    SHARED_MEMORY(shared);
    Offset* row_sources = reinterpret_cast<Offset*>(shared + tile.rows_at);
    Offset* column_sources = reinterpret_cast<Offset*>(shared + tile.columns_at);
    Sum* weights = reinterpret_cast<Sum*>(shared + tile.weights_at);
    Sum* values = reinterpret_cast<Sum*>(shared + tile.tile_at);

    const T padding = padding_element<T>(g);
    x += g.x_start;
    const int thread = threadIdx.x, threads = blockDim.x;
    const int tile_h = tile.lanes_h * ROWS, tile_w = tile.lanes_w * RUN;
    const int blocks_h = blockIdx.x / tile.tiles_w, blocks_d = blocks_h / tile.tiles_h, blocks_p = blocks_d / g.out[0];
    const int first_w = (blockIdx.x - blocks_h * tile.tiles_w) * tile_w;
    const int first_h = (blocks_h - blocks_d * tile.tiles_h) * tile_h;
    const int out_d = blocks_d - blocks_p * g.out[0];
    const int all_filters = g.groups * g.filters, first_plane = blocks_p * tile.planes;
    const int planes = (int)min((long long)tile.planes, (long long)g.batch * all_filters - first_plane);

    const int lanes = tile.lanes_w * tile.lanes_h, lane_plane = thread / lanes, lane = thread - lane_plane * lanes;
    const int lane_h = lane / tile.lanes_w, lane_w = lane - lane_h * tile.lanes_w;
    const bool working = lane_plane < planes;
    // threads that load and store along a row, and the rows that are done at a time
    const int load_row = thread / tile.load_lanes, load_column = thread - load_row * tile.load_lanes;
    const int load_rows = threads / tile.load_lanes;

    Sum sums[ROWS][RUN];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int o = 0; o < RUN; o++) sums[r][o] = zero<Sum>();

    // The tile of x under `height` x `width` taps from (tap0, tap1, tap2) on, and those taps, into shared memory.
    auto stage = [&](int tap0, int tap1, int tap2, int height, int width) {
        const int rows = (tile_h - 1) * g.stride[1] + (height - 1) * g.dilation[1] + 1;
        const int needed = (tile_w - 1) * g.stride[2] + (width - 1) * g.dilation[2] + 1;
        const int columns = SLIDING ? (needed + RUN - 1) / RUN * RUN : needed;  // whole vectors
        const int depth = out_d * g.stride[0] - g.before[0] + tap0 * g.dilation[0];
        const int i0 = padded_source(depth, g.size[0], g.padding_mode);
#pragma unroll 1
        for (int row = thread; row < planes * rows; row += threads) {
            const int plane = row / rows, index = first_plane + plane, item = index / all_filters;
            const int group = (index - item * all_filters) / g.filters;
            const int i = first_h * g.stride[1] - g.before[1] + tap1 * g.dilation[1] + row - plane * rows;
            const int i1 = padded_source(i, g.size[1], g.padding_mode);
            const Offset offset = (Offset)item * (Offset)g.x_strides[0] + (Offset)group * (Offset)g.x_group +
                                  (Offset)i0 * (Offset)g.x_strides[2] + (Offset)i1 * (Offset)g.x_strides[3];
            row_sources[row] = i0 >= 0 && i1 >= 0 ? offset : NOWHERE;
        }
#pragma unroll 1
        for (int column = thread; column < columns; column += threads) {
            const int i = first_w * g.stride[2] - g.before[2] + tap2 * g.dilation[2] + column;
            const int i2 = padded_source(i, g.size[2], g.padding_mode);
            column_sources[column] = i2 >= 0 ? (Offset)i2 * (Offset)g.x_strides[4] : NOWHERE;
        }
#pragma unroll 1
        for (int place = thread; place < planes * height * tile.weight_pitch; place += threads) {
            const int row = place / tile.weight_pitch, tap = place - row * tile.weight_pitch, plane = row / height;
            const int filter = (first_plane + plane) % all_filters, group = filter / g.filters;
            const long long offset = group * g.w_group + (filter - group * g.filters) * g.w_strides[0] +
                                     tap0 * g.w_strides[2] + (tap1 + row - plane * height) * g.w_strides[3] +
                                     (tap2 + tap) * g.w_strides[4];
            weights[(plane * tile.piece_h + row - plane * height) * tile.weight_pitch + tap] =
                tap < width ? Element<T>::load(w[g.w_start + offset]) : zero<Sum>();  // a vector's end, never used
        }
        __syncthreads();
#pragma unroll 1
        for (int column = load_column; column < columns; column += tile.load_lanes) {
            const Offset from_column = column_sources[column];
#pragma unroll 1
            for (int first = load_row; first < planes * rows; first += BATCH * load_rows) {
                T loaded[BATCH];  // all of them are under way before the first is stored
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const int row = first + i * load_rows;
                    const Offset from_row = row < planes * rows ? row_sources[row] : NOWHERE;
                    loaded[i] = padding;
                    if (from_row != NOWHERE && from_column != NOWHERE) loaded[i] = x[from_row + from_column];
                }
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    const int row = first + i * load_rows;
                    if (row < planes * rows) values[row * tile.pitch + column] = Element<T>::load(loaded[i]);
                }
            }
        }
        __syncthreads();
    };

    // Neighbouring results: the values of a row slide through eight registers.
    auto slide = [&](int height, int width) {
        const int rows = tile_h + height - 1;
        const Sum* row = values + ((lane_plane * rows + lane_h * ROWS) * tile.pitch + lane_w * RUN);
        const Sum* plane_weights = weights + lane_plane * tile.piece_h * tile.weight_pitch;
#pragma unroll 1
        for (int i = 0; i < ROWS + height - 1; i++, row += tile.pitch) {
            Sum near[2 * RUN];
            auto multiply = [&](int tap, auto taps) {
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    if ((unsigned)(i - r) >= (unsigned)height) continue;
                    Sum weight[RUN];
                    copy<RUN>(plane_weights + (i - r) * tile.weight_pitch + tap, weight);
#pragma unroll
                    for (int t = 0; t < decltype(taps)::value; t++)
#pragma unroll
                        for (int o = 0; o < RUN; o++) sums[r][o] = multiply_add(near[o + t], weight[t], sums[r][o]);
                }
            };
            copy<RUN>(row, near);
            int tap = 0;
#pragma unroll 1
            for (; tap + RUN <= width; tap += RUN) {
                copy<RUN>(row + tap + RUN, near + RUN);
                multiply(tap, Count<RUN>());
#pragma unroll
                for (int o = 0; o < RUN; o++) near[o] = near[o + RUN];
            }
            if (width - tap > 1) copy<RUN>(row + tap + RUN, near + RUN);
            if (width - tap == 1) multiply(tap, Count<1>());
            if (width - tap == 2) multiply(tap, Count<2>());
            if (width - tap == 3) multiply(tap, Count<3>());
        }
    };

    // Results apart: one value of shared memory for every product.
    auto gather = [&](int height, int width) {
        const int rows = (tile_h - 1) * g.stride[1] + (height - 1) * g.dilation[1] + 1;
        const Sum* corner = values + (lane_plane * rows + lane_h * g.stride[1]) * tile.pitch + lane_w * g.stride[2];
        const int row_step = tile.lanes_h * g.stride[1] * tile.pitch, column_step = tile.lanes_w * g.stride[2];
#pragma unroll 1
        for (int a = 0; a < height; a++)
#pragma unroll 1
            for (int b = 0; b < width; b++) {
                const Sum weight = weights[(lane_plane * tile.piece_h + a) * tile.weight_pitch + b];
                const Sum* first = corner + a * g.dilation[1] * tile.pitch + b * g.dilation[2];
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int o = 0; o < RUN; o++)
                        sums[r][o] = multiply_add(first[r * row_step + o * column_step], weight, sums[r][o]);
            }
    };

#pragma unroll 1
    for (int tap0 = 0; tap0 < g.window[0]; tap0++)
#pragma unroll 1
        for (int tap1 = 0; tap1 < g.window[1]; tap1 += tile.piece_h)
#pragma unroll 1
            for (int tap2 = 0; tap2 < g.window[2]; tap2 += tile.piece_w) {
                const int height = min(tile.piece_h, g.window[1] - tap1), width = min(tile.piece_w, g.window[2] - tap2);
                stage(tap0, tap1, tap2, height, width);
                if (working && SLIDING) slide(height, width);
                if (working && !SLIDING) gather(height, width);
                __syncthreads();
            }

    // The sums pass through the tile, so that neighbouring threads store neighbouring results.
    if (working) {
        const int filter = (first_plane + lane_plane) % all_filters;
        const Sum added = bias ? Element<T>::load(bias[filter]) : zero<Sum>();
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int o = 0; o < RUN; o++) {
                const int row = SLIDING ? lane_h * ROWS + r : lane_h + r * tile.lanes_h;
                const int column = SLIDING ? lane_w * RUN + o : lane_w + o * tile.lanes_w;
                values[(lane_plane * tile_h + row) * tile_w + column] = bias ? sums[r][o] + added : sums[r][o];
            }
    }
    Offset* row_results = row_sources;
#pragma unroll 1
    for (int row = thread; row < planes * tile_h; row += threads) {
        const int plane = row / tile_h, index = first_plane + plane, item = index / all_filters;
        const int filter = index - item * all_filters, group = filter / g.filters;
        const int out_h = first_h + row - plane * tile_h;
        const Offset offset = (Offset)item * (Offset)g.y_strides[0] + (Offset)group * (Offset)g.y_group +
                              (Offset)(filter - group * g.filters) * (Offset)g.y_strides[1] +
                              (Offset)out_d * (Offset)g.y_strides[2] + (Offset)out_h * (Offset)g.y_strides[3];
        row_results[row] = out_h < g.out[1] ? offset : NOWHERE;
    }
    __syncthreads();
#pragma unroll 1
    for (int column = load_column; column < min(tile_w, g.out[2] - first_w); column += tile.load_lanes)
#pragma unroll 1
        for (int row = load_row; row < planes * tile_h; row += load_rows)
            if (row_results[row] != NOWHERE)
                y[g.y_start + row_results[row] + (Offset)(first_w + column) * (Offset)g.y_strides[4]] =
                    stored<T>(values[row * tile_w + column], g.activation);
}
