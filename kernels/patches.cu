// Patches of feature maps, and back.
//
//     unfold:  patches[n, i, k, c] = x_padded[n, i * stride + k * dilation, c]
//     fold:    x[n, p, c] = sum over k of patches[n, (p + before - k * dilation) / stride, k, c],
//              wherever stride divides and the window is there
//
// unfold only moves, hence it knows words of 1 to 16 bytes and no types; of channels that lie beside each other several
// make a word. A thread writes COUNT neighbouring words of the dense patches in one step: it finds out once which patch
// it is in, and again only where a row ends. fold gathers: a thread adds up the patches of its elements of x in the
// order of the window, so that nothing is added to by two threads and the same call gives the same bits.
#include "epilogue.cuh"
#include "geometry.cuh"

// Its twin is in xpconv/cuda/plans/patches.py.
struct PatchGeometry {
    long long x_strides[5];        // batch, channel, three spatial axes
    long long patches_strides[8];  // batch, channel, three axes of positions, three of the window
    int size[3], window[3], stride[3], dilation[3], before[3], out[3];
    int batch, channels;
    int items, words;    // items of one row of the grid, and what an item of the result holds
    int channels_inner;  // whether channels are the dense axis of the result, else the last spatial axis
    Divisor by_channels, by_window[3], by_out[3], by_size[3], by_stride[3];
};

// The last digit of n in a number system, and n without it.
DEVICE int next_digit(int& n, const Divisor& by) {
    const int rest = by.quotient(n), digit = by.remainder(n, rest);
    n = rest;
    return digit;
}

template <int BYTES>
__global__ void __launch_bounds__(256)
    unfold(const typename Word<BYTES>::Type* __restrict__ x, typename Word<BYTES>::Type* __restrict__ patches,
           const __grid_constant__ PatchGeometry g) {
    typedef typename Word<BYTES>::Type W;
    constexpr int COUNT = BYTES < 8 ? 4 : 16 / BYTES;
    const int first_item = blockIdx.y * g.items;
    const long long words = (long long)min(g.items, g.batch - first_item) * g.words;
    const long long first = (blockIdx.x * 256ll + threadIdx.x) * COUNT;
    if (first >= words) return;

    long long base;   // offset of the row of the patch that the word is in
    int inner, start; // index along the dense axis of the patches, and where the window reads first on the last one
    bool inside;
    auto locate = [&](int word) {
        int at[3], tap[3], rest = word;
        inner = next_digit(rest, g.channels_inner ? g.by_channels : g.by_out[2]);
        at[2] = inner;
        if (!g.channels_inner)
#pragma unroll
            for (int a = 1; a >= 0; a--) at[a] = next_digit(rest, g.by_out[a]);
#pragma unroll
        for (int a = 2; a >= 0; a--) tap[a] = next_digit(rest, g.by_window[a]);
        if (g.channels_inner)
#pragma unroll
            for (int a = 2; a >= 0; a--) at[a] = next_digit(rest, g.by_out[a]);
        base = g.channels_inner ? 0 : next_digit(rest, g.by_channels) * g.x_strides[1];
        base += (first_item + rest) * g.x_strides[0];
        inside = true;
#pragma unroll
        for (int a = 0; a < 3; a++) {
            start = tap[a] * g.dilation[a] - g.before[a];
            if (a == 2 && !g.channels_inner) break;
            const int i = start + at[a] * g.stride[a];
            inside = inside && (unsigned)i < (unsigned)g.size[a];
            base += i * g.x_strides[2 + a];
        }
    };
    locate((int)first);
    const int length = g.channels_inner ? g.channels : g.out[2];
    Pack<W, COUNT> pack;
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        if (j > 0 && inner == length) locate((int)min(first + j, words - 1));
        const int i = g.channels_inner ? inner : start + inner * g.stride[2];
        const bool there = inside && (g.channels_inner || (unsigned)i < (unsigned)g.size[2]) && first + j < words;
        pack.at[j] = there ? x[base + i * (g.channels_inner ? g.x_strides[1] : g.x_strides[4])] : W{};
        inner++;
    }
    W* to = patches + ((long long)first_item * g.words + first);
    if (first + COUNT <= words)
        *reinterpret_cast<Pack<W, COUNT>*>(to) = pack;
    else
#pragma unroll
        for (int j = 0; j < COUNT; j++)
            if (first + j < words) to[j] = pack.at[j];
}

template <typename T, int VECTOR>
__global__ void __launch_bounds__(256, 1)
    fold(const T* __restrict__ patches, T* __restrict__ x, const __grid_constant__ PatchGeometry g) {
    typedef typename Element<T>::Sum Sum;
    const int first_item = blockIdx.y * g.items;
    const long long vectors = (long long)min(g.items, g.batch - first_item) * g.words;
    const long long index = blockIdx.x * 256ll + threadIdx.x;
    if (index >= vectors) return;
    int rest = (int)index, at[3], channel = 0;
    if (g.channels_inner) channel = next_digit(rest, g.by_channels) * VECTOR;
#pragma unroll
    for (int a = 2; a >= 0; a--) at[a] = next_digit(rest, g.by_size[a]);
    if (!g.channels_inner) channel = next_digit(rest, g.by_channels);
    const int item = first_item + rest;

    // Whether window offset `tap` of some position lies here, and the offset of that patch along this axis.
    auto patch_of = [&](int a, int tap, long long& offset) {
        const int reached = at[a] + g.before[a] - tap * g.dilation[a];
        if (reached < 0) return false;
        const int i = g.by_stride[a].quotient(reached);
        offset = i * g.patches_strides[2 + a] + tap * g.patches_strides[5 + a];
        return i < g.out[a] && g.by_stride[a].remainder(reached, i) == 0;
    };
    Sum sums[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; v++) sums[v] = zero<Sum>();
    patches += item * g.patches_strides[0] + channel * g.patches_strides[1];
    long long from[3];
#pragma unroll 1
    for (int k0 = 0; k0 < g.window[0]; k0++) {
        if (!patch_of(0, k0, from[0])) continue;
#pragma unroll 1
        for (int k1 = 0; k1 < g.window[1]; k1++) {
            if (!patch_of(1, k1, from[1])) continue;
#pragma unroll 4
            for (int k2 = 0; k2 < g.window[2]; k2++) {
                if (!patch_of(2, k2, from[2])) continue;
                T loaded[VECTOR];
                copy<VECTOR>(patches + (from[0] + from[1] + from[2]), loaded);
#pragma unroll
                for (int v = 0; v < VECTOR; v++) sums[v] = sums[v] + Element<T>::load(loaded[v]);
            }
        }
    }
    Pack<T, VECTOR> pack;
#pragma unroll
    for (int v = 0; v < VECTOR; v++) pack.at[v] = Element<T>::store(sums[v]);
    x += item * g.x_strides[0] + channel * g.x_strides[1] + at[0] * g.x_strides[2] + at[1] * g.x_strides[3];
    *reinterpret_cast<Pack<T, VECTOR>*>(x + at[2] * g.x_strides[4]) = pack;
}
