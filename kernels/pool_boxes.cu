// Pooling over boxes that divide the plane: adaptive pooling (its boxes may overlap by one element) and, with one box
// or with slabs that are put together in a second launch, global pooling.
//
//     y[n, i, c] = merge over x[n, floor(i * size / out) : ceil((i + 1) * size / out), c]     (disjoint: floor, twice)
//
// A box may be large and results few, so `lanes` threads of a block share each box: they take every lanes-th element of
// its rows, and their parts are joined in shared memory in a fixed order. With channels inner, neighbouring threads
// hold neighbouring channels; else neighbouring elements of a row.
#include "pool.cuh"

// What part of an axis box i covers; (i * size) / out in two parts, since the product may not fit.
DEVICE int box_bound(int i, int axis, bool up, const PoolGeometry& g) {
    const unsigned out = g.out[axis];
    const unsigned long long far = (unsigned long long)i * (unsigned)g.remainder[axis] + (up ? out - 1 : 0);
    const unsigned part = far >> 32 ? (unsigned)(far / out) : (unsigned)far / out;
    return i * g.quotient[axis] + (int)part;
}

DEVICE Range box_of(int i, int axis, const PoolGeometry& g) {
    Range box;
    box.first = box_bound(i, axis, false, g);
    box.stop = box_bound(i + 1, axis, !g.disjoint, g);
    return box;
}

template <typename Policy, int VECTOR>
__global__ void __launch_bounds__(256, 2)
    pool_boxes(const typename Policy::In* __restrict__ x, typename Policy::Out* __restrict__ y,
               long long* __restrict__ indices, const __grid_constant__ PoolGeometry g) {
    typedef typename Policy::State State;
    constexpr int BATCH = VECTOR * sizeof(typename Policy::In) >= 8 ? 2 : 4;  // loads under way at a time
    SHARED_MEMORY(shared);
    State* parts = reinterpret_cast<State*>(shared);  // (lanes, width, VECTOR)

    const int thread = threadIdx.x, width = (int)blockDim.x / g.lanes;
    const int lane = g.channels_inner ? thread / width : thread % g.lanes;
    const int column = g.channels_inner ? thread % width : thread / g.lanes;
    Place place;
    const bool valid = place_of<VECTOR>((int)blockIdx.x * width + column, g, place);
    Range box[3];
#pragma unroll
    for (int a = 0; a < 3; a++) box[a] = box_of(valid ? place.at[a] : 0, a, g);

    State state[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; v++) state[v] = Policy::start();
    if (valid) {
        x += map_offset(place, g.x_strides);
        const long long step = g.lanes * g.x_strides[4];
#pragma unroll 1
        for (int i = box[0].first; i < box[0].stop; i++) {
#pragma unroll 1
            for (int j = box[1].first; j < box[1].stop; j++) {
                const auto* element = x + offset_at(i, j, box[2].first + lane, g.x_strides);
                const int row = i * g.plane[0] + j * g.plane[1];
#pragma unroll 1
                for (int k = box[2].first + lane; k < box[2].stop; k += BATCH * g.lanes, element += BATCH * step) {
                    typename Policy::In elements[BATCH][VECTOR];
#pragma unroll
                    for (int b = 0; b < BATCH; b++)
                        if (k + b * g.lanes < box[2].stop) copy<VECTOR>(element + b * step, elements[b]);
#pragma unroll
                    for (int b = 0; b < BATCH; b++) {
                        const int here = k + b * g.lanes;
                        if (here >= box[2].stop) continue;
#pragma unroll
                        for (int v = 0; v < VECTOR; v++)
                            Policy::add(state[v], Policy::load(elements[b][v], g), row + here * g.plane[2]);
                    }
                }
            }
        }
    }

#pragma unroll 1
    for (int half = g.lanes / 2; half > 0; half /= 2) {
        if (lane >= half && lane < 2 * half)
#pragma unroll
            for (int v = 0; v < VECTOR; v++) parts[(lane * width + column) * VECTOR + v] = state[v];
        __syncthreads();
        if (lane < half)
#pragma unroll
            for (int v = 0; v < VECTOR; v++)
                Policy::join(state[v], parts[((lane + half) * width + column) * VECTOR + v]);
    }

    if (!valid || lane > 0) return;
    const int count = box[0].length() * box[1].length() * box[2].length();
    const long long offset =
        map_offset(place, g.y_strides) + offset_at(place.at[0], place.at[1], place.at[2], g.y_strides);
    store_results<Policy, VECTOR>(state, y + offset, Policy::INDICES ? indices + offset : indices, count, g);
}
