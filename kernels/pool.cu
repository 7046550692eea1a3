// Pooling by a sliding window: maximum (with or without its place), sum, mean, p-norm.
//
//     y[n, i, c] = merge over tap of x[n, i * stride + tap * dilation - before, c],  taps in the padding left out
//
// Bandwidth is what it costs. Each thread makes OUTPUTS results, one after the other along the last axis, of VECTOR
// channels that are loaded and stored together. Neighbouring threads make neighbouring channels, or neighbours of a
// row: what lies densely. The plan decides which axis of the plane is the last, except that indices need the order of
// the plane. Strides say where elements lie, so x may be any view.
//
// With OUTPUTS > 1 the windows of a thread overlap (dilation 1 along the last axis): it walks over their union and
// merges every element, loaded once, into each of the windows that hold it. For large windows the plan pools one axis
// after the other, with this same kernel.
#include "pool.cuh"

template <typename Policy, int VECTOR, int OUTPUTS>
__global__ void __launch_bounds__(256, 2)
    pool(const typename Policy::In* __restrict__ x, typename Policy::Out* __restrict__ y,
         long long* __restrict__ indices, const __grid_constant__ PoolGeometry g) {
    typedef typename Policy::State State;
    constexpr int BATCH = VECTOR * sizeof(typename Policy::In) >= 8 ? 2 : 4;  // loads under way at a time
    Place place;
    if (!place_of<VECTOR>((int)(blockIdx.x * blockDim.x + threadIdx.x), g, place)) return;
    const int first_out = place.at[2] * OUTPUTS;
    const int start[3] = {place.at[0] * g.stride[0] - g.before[0], place.at[1] * g.stride[1] - g.before[1],
                          first_out * g.stride[2] - g.before[2]};
    const Range taps0 = taps_inside(start[0], 0, g.size[0], g.window[0], g.dilation[0]);
    const Range taps1 = taps_inside(start[1], 0, g.size[1], g.window[1], g.dilation[1]);
    const int reach = OUTPUTS == 1 ? g.window[2] : (OUTPUTS - 1) * g.stride[2] + g.window[2];
    const Range taps2 = taps_inside(start[2], 0, g.size[2], reach, g.dilation[2]);
    x += map_offset(place, g.x_strides);

    State states[OUTPUTS][VECTOR];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
        for (int v = 0; v < VECTOR; v++) states[o][v] = Policy::start();

    // one element of each channel, into the windows that hold it
    auto merge = [&](const typename Policy::In* elements, int tap2, int row) {
        typename Policy::Value values[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; v++) values[v] = Policy::load(elements[v], g);
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            if (OUTPUTS > 1 && (unsigned)(tap2 - o * g.stride[2]) >= (unsigned)g.window[2]) continue;
#pragma unroll
            for (int v = 0; v < VECTOR; v++)
                Policy::add(states[o][v], values[v], row + tap2 * g.dilation[2] * g.plane[2]);
        }
    };
    const long long step2 = g.dilation[2] * g.x_strides[4];
#pragma unroll 1
    for (int tap0 = taps0.first; tap0 < taps0.stop; tap0++) {
        const int i = start[0] + tap0 * g.dilation[0];
#pragma unroll 1
        for (int tap1 = taps1.first; tap1 < taps1.stop; tap1++) {
            const int j = start[1] + tap1 * g.dilation[1];
            const int row = i * g.plane[0] + j * g.plane[1] + start[2] * g.plane[2];
            const auto* element = x + offset_at(i, j, start[2], g.x_strides) + taps2.first * step2;
#pragma unroll 1
            for (int tap2 = taps2.first; tap2 < taps2.stop; tap2 += BATCH, element += BATCH * step2) {
                typename Policy::In elements[BATCH][VECTOR];
#pragma unroll
                for (int b = 0; b < BATCH; b++)
                    if (tap2 + b < taps2.stop) copy<VECTOR>(element + b * step2, elements[b]);
#pragma unroll
                for (int b = 0; b < BATCH; b++)
                    if (tap2 + b < taps2.stop) merge(elements[b], tap2 + b, row);
            }
        }
    }

    const long long first = map_offset(place, g.y_strides) + offset_at(place.at[0], place.at[1], 0, g.y_strides);
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        const int k = first_out + o;
        if (k >= g.out[2]) break;
        const long long offset = first + k * g.y_strides[4];
        const int count = taps_counted(place.at[0], place.at[1], k, g);
        store_results<Policy, VECTOR>(states[o], y + offset, Policy::INDICES ? indices + offset : indices, count, g);
    }
}
