// Values that go back to flat positions of a plane of zeros: the adjoint of maximum pooling, which adds them, and
// unpooling, where of several values for one position the last counts.
//
//     gx[n, indices[n, o, c], c] += gy[n, o, c]        x[n, indices[n, o, c], c] = y[n, o, c]
//
// The windows are not known here, and outputs that meet at a position must count in their order. So each warp owns a
// slab of the plane of `tile` channels, kept in shared memory in the type of sums, and takes the outputs in order,
// 32 / tile of them at a time. Lanes that meet at an element are found by comparing them (match), and one adds for all,
// in order. In the end the slab is stored, once. No atomics: the same call gives the same bits.
//
// A slab need not look at every output. index_ranges notes how far the indices of every CHUNK outputs reach, and a warp
// skips the chunks that cannot reach its slab. For what pooling gives, indices in the order of the windows, that is
// nearly all; any others are slower and as right.
#include "geometry.cuh"

constexpr int CHUNK = 64;  // outputs; xpconv/cuda/plans/pooling_scatter.py knows it too
constexpr unsigned EVERY_LANE = 0xffffffffu;

struct ScatterGeometry {
    long long value_strides[5], index_strides[5];  // batch, channel, three axes of the outputs
    long long result_item, result_channel, result_place;  // strides of the result
    int batch, channels, outputs, places;                 // outputs and places: of one map
    int tile, tiles, slab, slabs, chunks;                 // channels of a tile, places of a slab
    Divisor by_out[2];                                    // of the last two axes
    Divisor by_tiles, by_slabs, by_chunks;
};

// What a lane is to do: its channel, and which of the outputs taken at a time.
struct ScatterLane {
    int channel, turn, turns;
    bool valid;
    long long values, indices;  // offsets of its map
};

DEVICE ScatterLane lane_of(int item, int tile, const ScatterGeometry& g) {
    const int lane = threadIdx.x % 32;
    ScatterLane mine;
    mine.channel = tile * g.tile + lane % g.tile;
    mine.turn = lane / g.tile;
    mine.turns = 32 / g.tile;
    mine.valid = mine.channel < g.channels;
    mine.values = item * g.value_strides[0] + mine.channel * g.value_strides[1];
    mine.indices = item * g.index_strides[0] + mine.channel * g.index_strides[1];
    return mine;
}

DEVICE long long output_offset(int output, const long long* strides, const ScatterGeometry& g) {
    const int row = g.by_out[1].quotient(output), k = g.by_out[1].remainder(output, row);
    const int i = g.by_out[0].quotient(row), j = g.by_out[0].remainder(row, i);
    return i * strides[2] + j * strides[3] + k * strides[4];
}

// The index of a lane's output; -1 for one beyond the end.
DEVICE long long index_of(const long long* indices, const ScatterLane& mine, int output, int stop,
                          const ScatterGeometry& g) {
    if (!mine.valid || output >= stop) return -1;
    return indices[mine.indices + output_offset(output, g.index_strides, g)];
}

// ranges (batch, tiles, chunks, 2): the smallest and the largest index of a chunk; one warp makes one.
__global__ void __launch_bounds__(128)
    index_ranges(const long long* __restrict__ indices, int* __restrict__ ranges,
                 const __grid_constant__ ScatterGeometry g) {
    const long long number = blockIdx.x * 4ll + threadIdx.x / 32;
    if (number >= (long long)g.batch * g.tiles * g.chunks) return;
    const int map = g.by_chunks.quotient((int)number), chunk = g.by_chunks.remainder((int)number, map);
    const int item = g.by_tiles.quotient(map), tile = g.by_tiles.remainder(map, item);
    const ScatterLane mine = lane_of(item, tile, g);
    const int stop = min((chunk + 1) * CHUNK, g.outputs);
    int low = g.places, high = -1;
    for (int output = chunk * CHUNK + mine.turn; output < stop; output += mine.turns) {
        const long long index = index_of(indices, mine, output, stop, g);
        if (index < 0 || index >= g.places) continue;
        low = min(low, (int)index);
        high = max(high, (int)index);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        low = min(low, __shfl_xor_sync(EVERY_LANE, low, distance));
        high = max(high, __shfl_xor_sync(EVERY_LANE, high, distance));
    }
    if (threadIdx.x % 32 == 0) {
        ranges[2 * number] = low;
        ranges[2 * number + 1] = high;
    }
}

template <typename V>
DEVICE V value_from(V value, int lane) {
    return __shfl_sync(EVERY_LANE, value, lane);
}
template <typename R>
DEVICE Complex<R> value_from(Complex<R> value, int lane) {
    return {value_from(value.re, lane), value_from(value.im, lane)};
}

// Values of a warp into its slab, in the order of the lanes; `element` is where each goes, -1 nowhere.
template <bool ADD, typename Sum>
DEVICE void merge_into(Sum* slab, int element, Sum value, const ScatterGeometry& g) {
    const int lane = threadIdx.x % 32;
    unsigned same = 1u << lane;
    // those that go nowhere meet nobody
    if (g.tile < 32) same = __match_any_sync(EVERY_LANE, element < 0 ? -1 - lane : element);
    if (!ADD) {
        if (element >= 0 && same >> lane == 1u) slab[element] = value;  // the last of them
    } else {
        const bool first = element >= 0 && (same & ((1u << lane) - 1)) == 0;
        Sum sum = first ? slab[element] + value : value;
        unsigned rest = same & (same - 1);
        while (__any_sync(EVERY_LANE, rest != 0)) {
            const Sum other = value_from(value, rest ? __ffs((int)rest) - 1 : lane);
            if (rest) sum = sum + other;
            rest &= rest - 1;
        }
        if (first) slab[element] = sum;
    }
    __syncwarp();
}

template <typename T, bool ADD>
__global__ void __launch_bounds__(128)
    pool_scatter(const T* __restrict__ values, const long long* __restrict__ indices, const int* __restrict__ ranges,
                 T* __restrict__ result, const __grid_constant__ ScatterGeometry g) {
    typedef typename Element<T>::Sum Sum;
    SHARED_MEMORY(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long number = blockIdx.x * 4ll + warp;
    if (number >= (long long)g.batch * g.tiles * g.slabs) return;
    const int map = g.by_slabs.quotient((int)number), first_place = g.by_slabs.remainder((int)number, map) * g.slab;
    const int item = g.by_tiles.quotient(map), tile = g.by_tiles.remainder(map, item);
    const ScatterLane mine = lane_of(item, tile, g);
    const int places = min(g.slab, g.places - first_place);
    Sum* slab = reinterpret_cast<Sum*>(shared) + warp * g.slab * g.tile;  // (places, tile)
    for (int e = lane; e < places * g.tile; e += 32) slab[e] = zero<Sum>();
    __syncwarp();

    for (int group = 0; group < g.chunks; group += 32) {
        const int near = group + lane;
        bool reaches = near < g.chunks;
        if (reaches && ranges) {
            const int* range = ranges + 2 * ((long long)map * g.chunks + near);
            reaches = range[0] < first_place + places && range[1] >= first_place;
        }
        for (unsigned todo = __ballot_sync(EVERY_LANE, reaches); todo; todo &= todo - 1) {
            const int start = (group + __ffs((int)todo) - 1) * CHUNK, stop = min(start + CHUNK, g.outputs);
            long long next = index_of(indices, mine, start + mine.turn, stop, g);
            for (int output = start + mine.turn; output - mine.turn < stop; output += mine.turns) {
                const long long place = next - first_place;
                const bool here = place >= 0 && place < places;
                next = index_of(indices, mine, output + mine.turns, stop, g);
                if (!__any_sync(EVERY_LANE, here)) continue;
                Sum value = zero<Sum>();
                if (here) value = Element<T>::load(values[mine.values + output_offset(output, g.value_strides, g)]);
                merge_into<ADD>(slab, here ? (int)place * g.tile + lane % g.tile : -1, value, g);
            }
        }
    }

    result += item * g.result_item;
#pragma unroll 1
    for (int e = lane; e < places * g.tile; e += 32) {
        const int channel = tile * g.tile + e % g.tile, place = first_place + e / g.tile;
        if (channel < g.channels)
            result[channel * g.result_channel + place * g.result_place] = Element<T>::store(slab[e]);
    }
}
