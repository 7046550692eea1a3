// The weight's gradient of a convolution whose groups have one channel each.
//
//     gw[tap, c, j] = sum over n, i of x_padded[n, i * stride + tap * dilation, c] * gy[n, i, c, j]
//
// A few long sums: each is cut into `splits` runs of positions. A thread takes TAPS taps of VECTOR filters at once, so
// that one element of gy serves TAPS products, and every lanes-th position of its block's run; the block adds up its
// threads as a tree, and a second kernel the runs. All orders are fixed: the same call gives the same bits.
// Neighbouring threads have neighbouring filters (channels innermost) or positions (tile_vectors == 1).
// REPEATED is for paddings that repeat x; elsewhere a window that lies inside x needs no look at its borders.
#include "geometry.cuh"

struct TapPlace {
    int at[3];
    long long offset;
};

template <typename T, int VECTOR, int TAPS, bool REPEATED, typename Offset>
__global__ void __launch_bounds__(256, 1)
    grad_weight_depthwise(const T* __restrict__ x, const T* __restrict__ gy,
                          typename Element<T>::Sum* __restrict__ partial, const int tile_vectors,
                          const int run_positions, const __grid_constant__ ConvGeometry g) {
    typedef typename Element<T>::Sum Sum;
    typedef Pack<Sum, VECTOR> Sums;
    SHARED_MEMORY(shared);
    Sums* block_sums = reinterpret_cast<Sums*>(shared);
    TapPlace* places = reinterpret_cast<TapPlace*>(block_sums + blockDim.x * TAPS);

    const int vectors = g.groups * g.filters / VECTOR, tiles = (vectors + tile_vectors - 1) / tile_vectors;
    const int tap_group = blockIdx.x / tiles, lane = threadIdx.x / tile_vectors;
    const int lane_vector = threadIdx.x - lane * tile_vectors, lanes = blockDim.x / tile_vectors;
    const int vector = (blockIdx.x - tap_group * tiles) * tile_vectors + lane_vector;
    const int all_taps = g.window[0] * g.window[1] * g.window[2];
    const int first_tap = tap_group * TAPS, taps = min(TAPS, all_taps - first_tap);
    const bool working = vector < vectors && lane < lanes;

    if (threadIdx.x < TAPS) {
        const int tap = min(first_tap + (int)threadIdx.x, all_taps - 1), rows = g.by_window[1].quotient(tap);
        TapPlace place;
        place.at[2] = g.by_window[1].remainder(tap, rows) * g.dilation[2];
        place.at[0] = g.by_window[0].quotient(rows);
        place.at[1] = g.by_window[0].remainder(rows, place.at[0]) * g.dilation[1];
        place.at[0] *= g.dilation[0];
        place.offset =
            place.at[0] * g.x_strides[2] + place.at[1] * g.x_strides[3] + place.at[2] * g.x_strides[4];
        places[threadIdx.x] = place;
    }
    __syncthreads();

    Sum sums[TAPS][VECTOR];
#pragma unroll
    for (int t = 0; t < TAPS; t++)
#pragma unroll
        for (int v = 0; v < VECTOR; v++) sums[t][v] = zero<Sum>();
    if (working) {
        const int filter = vector * VECTOR, group = filter / g.filters;
        x += g.x_start + group * g.x_group;
        gy += g.y_start + group * g.y_group + (filter - group * g.filters) * g.y_strides[1];
    }
    // the product of one position with one tap, whose element of x lies at `source`
    auto multiply = [&](const T* source, bool inside, const Sum(&gradient)[VECTOR], Sum(&sum)[VECTOR]) {
        T loaded[VECTOR];  // zeros where padding is constant: a gradient knows no other
#pragma unroll
        for (int v = 0; v < VECTOR; v++) loaded[v] = T{};
        if (inside) copy<VECTOR>(source, loaded);
#pragma unroll
        for (int v = 0; v < VECTOR; v++) sum[v] = multiply_add(Element<T>::load(loaded[v]), gradient[v], sum[v]);
    };
    const int first = blockIdx.y * run_positions, last = working ? min(run_positions, g.positions - first) : 0;
#pragma unroll 1
    for (int i = lane; i < last; i += lanes) {
        const Position p = position_of(first + i, g);
        Offset from_y = (Offset)p.item * (Offset)g.y_strides[0], from_x = (Offset)p.item * (Offset)g.x_strides[0];
        int corner[3];
        bool interior = !REPEATED;
#pragma unroll
        for (int a = 0; a < 3; a++) {
            corner[a] = p.at[a] * g.stride[a] - g.before[a];
            interior = interior && corner[a] >= 0 && corner[a] + (g.window[a] - 1) * g.dilation[a] < g.size[a];
            from_y += (Offset)p.at[a] * (Offset)g.y_strides[2 + a];
        }
        T loaded[VECTOR];
        Sum gradient[VECTOR];
        copy<VECTOR>(gy + from_y, loaded);
#pragma unroll
        for (int v = 0; v < VECTOR; v++) gradient[v] = Element<T>::load(loaded[v]);
        if (interior) {
#pragma unroll
            for (int a = 0; a < 3; a++) from_x += (Offset)corner[a] * (Offset)g.x_strides[2 + a];
#pragma unroll
            for (int t = 0; t < TAPS; t++) multiply(x + (from_x + (Offset)places[t].offset), true, gradient, sums[t]);
        } else {
#pragma unroll
            for (int t = 0; t < TAPS; t++) {
                Offset source = from_x;
                bool inside = true;
#pragma unroll
                for (int a = 0; a < 3; a++) {
                    int at = corner[a] + places[t].at[a];
                    if (REPEATED) at = padded_source(at, g.size[a], g.padding_mode);
                    inside = inside && (unsigned)at < (unsigned)g.size[a];
                    source += (Offset)at * (Offset)g.x_strides[2 + a];
                }
                multiply(x + source, inside, gradient, sums[t]);
            }
        }
    }

#pragma unroll
    for (int t = 0; t < TAPS; t++) {
        Sums pack;
#pragma unroll
        for (int v = 0; v < VECTOR; v++) pack.at[v] = sums[t][v];
        block_sums[t * blockDim.x + threadIdx.x] = pack;
    }
    __syncthreads();
#pragma unroll 1
    for (int reach = 128; reach > 0; reach >>= 1) {
        if (lane < reach && lane + reach < lanes)
#pragma unroll 1
            for (int t = 0; t < taps; t++) {
                Sums &to = block_sums[t * blockDim.x + threadIdx.x], from = (&to)[reach * tile_vectors];
#pragma unroll
                for (int v = 0; v < VECTOR; v++) to.at[v] = to.at[v] + from.at[v];
            }
        __syncthreads();
    }
    if (!working || lane > 0) return;
    partial += ((long long)blockIdx.y * all_taps + first_tap) * (g.groups * g.filters) + vector * VECTOR;
#pragma unroll 1
    for (int t = 0; t < taps; t++)
#pragma unroll
        for (int v = 0; v < VECTOR; v++)
            partial[(long long)t * (g.groups * g.filters) + v] = block_sums[t * blockDim.x + threadIdx.x].at[v];
}

// partial (splits, taps, filters) added up, and stored as the weight lies: 32 sums and 8 lanes of splits a block.
template <typename T>
__global__ void __launch_bounds__(256)
    grad_weight_depthwise_sum(const typename Element<T>::Sum* __restrict__ partial, T* __restrict__ gw,
                              const int splits, const __grid_constant__ ConvGeometry g) {
    typedef typename Element<T>::Sum Sum;
    SHARED_MEMORY(shared);
    constexpr int BATCH = 4;
    Sum* lane_sums = reinterpret_cast<Sum*>(shared);
    const int all_filters = g.groups * g.filters;
    const long long results = (long long)g.window[0] * g.window[1] * g.window[2] * all_filters;
    const long long result = blockIdx.x * 32ll + threadIdx.x % 32;
    Sum sum = zero<Sum>();
#pragma unroll 1
    for (int first = threadIdx.x / 32; result < results && first < splits; first += 8 * BATCH) {
        Sum parts[BATCH];  // all of them are under way before the first is added
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            parts[i] = first + 8 * i < splits ? partial[(first + 8 * i) * results + result] : zero<Sum>();
#pragma unroll
        for (int i = 0; i < BATCH; i++) sum = sum + parts[i];
    }
    lane_sums[threadIdx.x] = sum;
    __syncthreads();
    if (result >= results || threadIdx.x >= 32) return;
#pragma unroll 1
    for (int lane = 1; lane < 8; lane++) sum = sum + lane_sums[lane * 32 + threadIdx.x];
    const int tap = (int)(result / all_filters), filter = (int)(result - (long long)tap * all_filters);
    const int rows = g.by_window[1].quotient(tap), tap0 = g.by_window[0].quotient(rows), group = filter / g.filters;
    gw[g.w_start + group * g.w_group + (filter - group * g.filters) * g.w_strides[0] + tap0 * g.w_strides[2] +
       g.by_window[0].remainder(rows, tap0) * g.w_strides[3] + g.by_window[1].remainder(tap, rows) * g.w_strides[4]] =
        Element<T>::store(sum);
}
