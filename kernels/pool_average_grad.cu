// The adjoint of the mean over sliding windows: each gradient is shared out over the taps that its window counted.
//
//     gx[n, p, c] = sum over the windows i that read p of gy[n, i, c] / count[i]
//
// read as a gather, so that no two threads add to one element: along each axis window i reads p where
// p + before - i * stride is a tap's multiple of the dilation, which bounds i from both sides. In the geometry x is gy,
// y is gx, size is gx's plane and out is gy's. Each thread makes VECTOR channels of one element of the plane.
//
// Gradients whose windows count alike, in the interior all, are added up before the one division.
#include "pool.cuh"

// The windows of one axis that may read a position; with a dilation only some of them do.
struct Readers {
    Range windows;
    int position;  // on the padded axis

    DEVICE bool include(int window, int stride, int dilation) const {
        return dilation == 1 || (position - window * stride) % dilation == 0;
    }
};

DEVICE Readers readers_of(int at, int axis, const PoolGeometry& g) {
    Readers readers;
    readers.position = at + g.before[axis];
    const int farthest = readers.position - (g.window[axis] - 1) * g.dilation[axis];
    readers.windows.first = farthest > 0 ? ceil_quotient(farthest, g.stride[axis]) : 0;
    readers.windows.stop = min(g.out[axis], readers.position / g.stride[axis] + 1);
    return readers;
}

template <typename I, typename O, int VECTOR>
__global__ void __launch_bounds__(256, 2)
    pool_average_grad(const I* __restrict__ gy, O* __restrict__ gx, const __grid_constant__ PoolGeometry g) {
    typedef typename Element<I>::Sum Sum;
    constexpr int BATCH = VECTOR * sizeof(I) >= 8 ? 2 : 4;  // loads under way at a time
    Place place;
    if (!place_of<VECTOR>((int)(blockIdx.x * blockDim.x + threadIdx.x), g, place)) return;
    const Readers axis0 = readers_of(place.at[0], 0, g), axis1 = readers_of(place.at[1], 1, g);
    const Readers axis2 = readers_of(place.at[2], 2, g);
    gy += map_offset(place, g.x_strides);

    Sum total[VECTOR], alike[VECTOR];  // divided, and what waits for the division by `count`
    int count = 1;
#pragma unroll
    for (int v = 0; v < VECTOR; v++) total[v] = alike[v] = zero<Sum>();
    auto add = [&](const I* elements, int now) {
        if (now != count) {
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                total[v] = total[v] + quotient(alike[v], count, g);
                alike[v] = zero<Sum>();
            }
            count = now;
        }
#pragma unroll
        for (int v = 0; v < VECTOR; v++) alike[v] = alike[v] + Element<I>::load(elements[v]);
    };
    const bool counting = g.division == DIVIDE_BY_COUNT || g.division == DIVIDE_BY_PADDED_COUNT;
#pragma unroll 1
    for (int i = axis0.windows.first; i < axis0.windows.stop; i++) {
        if (!axis0.include(i, g.stride[0], g.dilation[0])) continue;
#pragma unroll 1
        for (int j = axis1.windows.first; j < axis1.windows.stop; j++) {
            if (!axis1.include(j, g.stride[1], g.dilation[1])) continue;
            const int row_count = counting ? counted_taps(i, 0, g) * counted_taps(j, 1, g) : 1;
            const I* element = gy + offset_at(i, j, axis2.windows.first, g.x_strides);
#pragma unroll 1
            for (int k = axis2.windows.first; k < axis2.windows.stop; k += BATCH, element += BATCH * g.x_strides[4]) {
                I elements[BATCH][VECTOR];
                bool reads[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    reads[b] = k + b < axis2.windows.stop && axis2.include(k + b, g.stride[2], g.dilation[2]);
                    if (reads[b]) copy<VECTOR>(element + b * g.x_strides[4], elements[b]);
                }
#pragma unroll
                for (int b = 0; b < BATCH; b++)
                    if (reads[b]) add(elements[b], counting ? row_count * counted_taps(k + b, 2, g) : 1);
            }
        }
    }

    Pack<O, VECTOR> result;
#pragma unroll
    for (int v = 0; v < VECTOR; v++) {
        const Sum rest = g.division == DIVIDE_NOT ? alike[v] : quotient(alike[v], count, g);
        result.at[v] = Element<O>::store(total[v] + rest);
    }
    gx += map_offset(place, g.y_strides) + offset_at(place.at[0], place.at[1], place.at[2], g.y_strides);
    store_pack(gx, result);
}
