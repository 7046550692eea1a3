// The geometry of one convolution, in elements, with one to three spatial axes brought to three (missing ones in front
// have size 1). Its twin in Python is xpconv/cuda/geometry.py; a test holds the two together.
#ifndef XPCONV_GEOMETRY_CUH
#define XPCONV_GEOMETRY_CUH

#include "types.cuh"

// n / divisor for 0 <= n < 2^31 as a multiplication (Granlund and Montgomery, 1994).
struct Divisor {
    unsigned divisor, multiplier, shift;

    DEVICE int quotient(int n) const { return (int)((__umulhi((unsigned)n, multiplier) + (unsigned)n) >> shift); }
    DEVICE int remainder(int n, int quotient) const { return n - quotient * (int)divisor; }
};

enum PaddingMode { PAD_ZEROS, PAD_CONSTANT, PAD_EDGE, PAD_REFLECT, PAD_SYMMETRIC, PAD_WRAP };

struct ConvGeometry {
    // From the pointer to the first element of group 0; then from one element to the next. Any of them may be negative:
    // a flipped kernel starts at its last tap.
    long long x_start, w_start, y_start;
    // All but the batch's fit 32 bits, so that a 64-bit offset costs a wide multiplication a term and no more.
    long long x_strides[5];  // batch, channel, three spatial axes
    long long w_strides[5];  // filter, channel, three axes of the window
    long long y_strides[5];  // batch, filter, three spatial axes
    long long x_group, w_group, y_group;
    unsigned long long fill[2];  // the bits of one element, for PAD_CONSTANT
    int size[3], window[3], stride[3], dilation[3], before[3], out[3];
    int batch, groups;
    int channels, filters;  // of one group
    int positions;          // batch * out
    int depth;              // window * channels: the length of every sum
    int splits, depth_per_split;
    int channels_inner;  // whether a sum runs over channels inside taps, or over taps inside channels
    int items_inner;     // whether results are numbered item by item inside places, or place by place inside items
    int padding_mode, activation;
    Divisor by_inner, by_window[2], by_out[3], by_batch;  // by_window: of the last two axes
};

// Where a position of the result reads first, before padding is looked at.
template <typename Offset>
struct Corner {
    Offset image;  // offset of the item in x
    int at[3];
};

struct Position {
    int item, at[3];
};

DEVICE Position position_of(int index, const ConvGeometry& g) {
    Position p;
    if (g.items_inner) {
        const int place = g.by_batch.quotient(index);
        p.item = g.by_batch.remainder(index, place);
        index = place;
    }
    const int rows = g.by_out[2].quotient(index);
    p.at[2] = g.by_out[2].remainder(index, rows);
    const int planes = g.by_out[1].quotient(rows);
    p.at[1] = g.by_out[1].remainder(rows, planes);
    const int item = g.by_out[0].quotient(planes);
    p.at[0] = g.by_out[0].remainder(planes, item);
    if (!g.items_inner) p.item = item;
    return p;
}

template <typename Offset>
DEVICE Corner<Offset> corner_of(int index, const ConvGeometry& g) {
    Position p = position_of(index, g);
    Corner<Offset> corner;
    corner.image = (Offset)p.item * (Offset)g.x_strides[0];
#pragma unroll
    for (int a = 0; a < 3; a++) corner.at[a] = p.at[a] * g.stride[a] - g.before[a];
    return corner;
}

// One term of the sum: a channel, and an offset of the window.
struct Term {
    int channel, tap[3];
};

DEVICE Term term_of(int k, const ConvGeometry& g) {
    int outer = g.by_inner.quotient(k), inner = g.by_inner.remainder(k, outer);
    int tap = g.channels_inner ? outer : inner;
    Term term;
    term.channel = g.channels_inner ? inner : outer;
    int rest = g.by_window[1].quotient(tap);
    term.tap[2] = g.by_window[1].remainder(tap, rest);
    term.tap[0] = g.by_window[0].quotient(rest);
    term.tap[1] = g.by_window[0].remainder(rest, term.tap[0]);
    return term;
}

DEVICE int floor_modulo(int n, int period) {
    int r = n % period;
    return r < 0 ? r + period : r;
}

// The element of an axis that is copied to coordinate i outside of it. A call, since a copy at every load would fill
// the kernel with divisions.
__device__ __noinline__ int copied_from(int i, int size, int mode) {
    switch (mode) {
        case PAD_EDGE: return i < 0 ? 0 : size - 1;
        case PAD_WRAP: return floor_modulo(i, size);
        case PAD_SYMMETRIC: {
            int r = floor_modulo(i, 2 * size);
            return r < size ? r : 2 * size - 1 - r;
        }
        case PAD_REFLECT: {
            if (size == 1) return 0;
            int r = floor_modulo(i, 2 * size - 2);
            return r < size ? r : 2 * size - 2 - r;
        }
        default: return -1;
    }
}

// The element of an axis that lies at coordinate i of the padded axis; -1 where the padding holds a constant.
DEVICE int padded_source(int i, int size, int mode) {
    if ((unsigned)i < (unsigned)size) return i;
    return mode <= PAD_CONSTANT ? -1 : copied_from(i, size, mode);
}

// Offset in x of one term of one position; false where it reads a constant padding.
template <typename Offset>
DEVICE bool source_of(const Corner<Offset>& corner, const Term& term, const ConvGeometry& g, Offset& offset) {
    offset = corner.image + (Offset)term.channel * (int)g.x_strides[1];
    bool inside = true;
#pragma unroll
    for (int a = 0; a < 3; a++) {
        int i = corner.at[a] + term.tap[a] * g.dilation[a];
        if (g.padding_mode > PAD_CONSTANT) i = padded_source(i, g.size[a], g.padding_mode);
        inside = inside && (unsigned)i < (unsigned)g.size[a];
        offset += (Offset)i * (int)g.x_strides[2 + a];
    }
    return inside;
}

template <typename Offset>
DEVICE Offset weight_of(const Term& term, const ConvGeometry& g) {
    Offset offset = (Offset)term.channel * (int)g.w_strides[1];
#pragma unroll
    for (int a = 0; a < 3; a++) offset += (Offset)term.tap[a] * (int)g.w_strides[2 + a];
    return offset;
}

template <typename Offset>
DEVICE Offset result_of(int index, const ConvGeometry& g) {
    Position p = position_of(index, g);
    Offset offset = (Offset)p.item * (Offset)g.y_strides[0];
#pragma unroll
    for (int a = 0; a < 3; a++) offset += (Offset)p.at[a] * (int)g.y_strides[2 + a];
    return offset;
}

// What padding holds where it copies nothing; the bits of zero but for PAD_CONSTANT.
template <typename T>
DEVICE T padding_element(const ConvGeometry& g) {
    union {
        unsigned long long bits[2];
        T element;
    } fill = {{g.fill[0], g.fill[1]}};  // not through a pointer: the struct is aligned to 8 bytes, an element up to 16
    return fill.element;
}

#endif
