// What the poolings share: their geometry, who makes which result, and what is done with the elements of a window.
//
// The geometry's twin in Python is xpconv/cuda/pool_geometry.py; a test holds the two together.
#ifndef XPCONV_POOL_CUH
#define XPCONV_POOL_CUH

#include "geometry.cuh"

enum Division { DIVIDE_NOT, DIVIDE_BY_COUNT, DIVIDE_BY_PADDED_COUNT, DIVIDE_BY_NUMBER };

// One pooling, in elements, with three spatial axes. The results that one thread makes lie along the last of them; the
// plan may bring the axes in another order for that.
struct PoolGeometry {
    long long x_strides[5], y_strides[5];  // batch, channel, three spatial axes; the indices lie as y does
    double power;                          // the p of the p-norm
    double number;                         // for DIVIDE_BY_NUMBER
    int size[3], out[3];
    int window[3], stride[3], dilation[3];
    int before[3], after[3];  // padding
    int plane[3];             // how far one step along an axis goes in the flat plane that indices count
    int batch, items;         // items: of the batch, that one row of the grid makes
    int threads;              // of one row of the grid, that have something to make
    int channels_inner;       // whether neighbouring threads make neighbouring channels
    int last_inner;           // then, or else: whether they make neighbours along the last axis, not the middle one
    int raise, root;          // for the p-norm: whether elements are raised to p, and the sum to 1 / p
    int division;
    int lanes, disjoint;            // of pool_boxes.cu
    int quotient[3], remainder[3];  // likewise: of size divided by out
    Divisor by[4];                  // how many there are to make, along the fastest first; see place_of
};

// What one thread makes: VECTOR channels from `channel` on, at `at` (along the last axis in units of OUTPUTS).
struct Place {
    int item, channel, at[3];
};

// The place with this number, counted as the geometry says; false beyond the end.
template <int VECTOR>
DEVICE bool place_of(int number, const PoolGeometry& g, Place& place) {
    int rest[4], digit[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int n = i ? rest[i - 1] : number;
        rest[i] = g.by[i].quotient(n);
        digit[i] = g.by[i].remainder(n, rest[i]);
    }
    place.channel = (g.channels_inner ? digit[0] : digit[3]) * VECTOR;
    const int faster = g.channels_inner ? digit[1] : digit[0], slower = g.channels_inner ? digit[2] : digit[1];
    place.at[1] = g.last_inner ? slower : faster;
    place.at[2] = g.last_inner ? faster : slower;
    place.at[0] = g.channels_inner ? digit[3] : digit[2];
    place.item = (int)blockIdx.y * g.items + rest[3];
    return number < g.threads && place.item < g.batch;
}

// Offsets of an item's channel, and of a position: 64 bits, since views may reach far.
DEVICE long long map_offset(const Place& place, const long long* strides) {
    return place.item * strides[0] + place.channel * strides[1];
}
DEVICE long long offset_at(int i, int j, int k, const long long* strides) {
    return i * strides[2] + j * strides[3] + k * strides[4];
}

DEVICE int ceil_quotient(int n, int divisor) { return divisor == 1 ? n : (n + divisor - 1) / divisor; }

struct Range {
    int first, stop;

    DEVICE int length() const { return stop > first ? stop - first : 0; }
};

// The taps of a window starting at `start` that lie in [low, high).
DEVICE Range taps_inside(int start, int low, int high, int window, int dilation) {
    Range taps;
    taps.first = start >= low ? 0 : ceil_quotient(low - start, dilation);
    taps.stop = start >= high ? 0 : min(window, ceil_quotient(high - start, dilation));
    return taps;
}

// The taps of window i of an axis that count in a mean; what ceil_mode reads beyond the padding never does.
DEVICE int counted_taps(int i, int axis, const PoolGeometry& g) {
    const bool padded = g.division == DIVIDE_BY_PADDED_COUNT;
    const int low = padded ? -g.before[axis] : 0, high = g.size[axis] + (padded ? g.after[axis] : 0);
    const int start = i * g.stride[axis] - g.before[axis];
    return taps_inside(start, low, high, g.window[axis], g.dilation[axis]).length();
}

// How many taps of the window at these three positions a mean counts; none make the mean 0 / 0.
DEVICE int taps_counted(int i, int j, int k, const PoolGeometry& g) {
    if (g.division == DIVIDE_NOT || g.division == DIVIDE_BY_NUMBER) return 1;
    return counted_taps(i, 0, g) * counted_taps(j, 1, g) * counted_taps(k, 2, g);
}

// A sum over `count` elements, divided as the geometry says. Integers have sums and no means.
template <typename R>
DEVICE R real_quotient(R sum, int count, const PoolGeometry& g) {
    return sum / (g.division == DIVIDE_BY_NUMBER ? (R)g.number : (R)count);
}
DEVICE float quotient(float sum, int count, const PoolGeometry& g) { return real_quotient(sum, count, g); }
DEVICE double quotient(double sum, int count, const PoolGeometry& g) { return real_quotient(sum, count, g); }
DEVICE unsigned quotient(unsigned sum, int, const PoolGeometry&) { return sum; }
DEVICE unsigned long long quotient(unsigned long long sum, int, const PoolGeometry&) { return sum; }
template <typename R>
DEVICE Complex<R> quotient(Complex<R> sum, int count, const PoolGeometry& g) {
    return {real_quotient(sum.re, count, g), real_quotient(sum.im, count, g)};
}

// ---- What is done with the elements of a window: load makes a Value of one, add merges it, join merges two parts ----

// How an element is compared: 16-bit floats as float, which holds them all.
template <typename T>
struct Ordered {
    typedef T Value;
    static DEVICE Value load(T element) { return element; }
    static DEVICE T store(Value value) { return value; }
    static DEVICE Value lowest() { return T(-1) < T(0) ? (T)((T)1 << (8 * sizeof(T) - 1)) : (T)0; }
};
template <typename T, typename R>
struct OrderedFloat {
    typedef R Value;
    static DEVICE Value load(T element) { return Element<T>::load(element); }
    static DEVICE T store(Value value) { return Element<T>::store(value); }
    static DEVICE Value lowest() { return (R)__uint_as_float(0xff800000u); }  // -inf
};
template <> struct Ordered<half_bits> : OrderedFloat<half_bits, float> {};
template <> struct Ordered<bfloat_bits> : OrderedFloat<bfloat_bits, float> {};
template <> struct Ordered<float> : OrderedFloat<float, float> {};
template <> struct Ordered<double> : OrderedFloat<double, double> {};

template <typename V>
DEVICE bool is_nan(V value) {
    return value != value;
}

// The largest element; NaN wins. A window of padding alone keeps the lowest value there is.
template <typename T>
struct Maximum {
    typedef T In;
    typedef T Out;
    typedef typename Ordered<T>::Value Value;
    typedef Value State;
    static constexpr bool INDICES = false;

    static DEVICE State start() { return Ordered<T>::lowest(); }
    static DEVICE Value load(T element, const PoolGeometry&) { return Ordered<T>::load(element); }
    static DEVICE void add(State& best, Value value, int) { best = value > best || is_nan(value) ? value : best; }
    static DEVICE void join(State& best, State other) { add(best, other, 0); }
    static DEVICE T result(State best, int, const PoolGeometry&) { return Ordered<T>::store(best); }
    static DEVICE int index(State) { return -1; }
};

// The largest element and where it first lies in the plane; -1 for a window of padding alone.
template <typename T>
struct MaximumAt {
    typedef T In;
    typedef T Out;
    typedef typename Ordered<T>::Value Value;
    struct State {
        Value best;
        int at;
    };
    static constexpr bool INDICES = true;

    static DEVICE State start() { return {Ordered<T>::lowest(), -1}; }
    static DEVICE Value load(T element, const PoolGeometry&) { return Ordered<T>::load(element); }
    // elements come in the order of the plane
    static DEVICE void add(State& state, Value value, int at) {
        if (state.at < 0 || value > state.best || (is_nan(value) && !is_nan(state.best))) state = {value, at};
    }
    // and parts in any
    static DEVICE void join(State& state, State other) {
        const bool same = other.best == state.best || (is_nan(other.best) && is_nan(state.best));
        const bool better = other.best > state.best || (is_nan(other.best) && !is_nan(state.best));
        if (other.at >= 0 && (state.at < 0 || better || (same && other.at < state.at))) state = other;
    }
    static DEVICE T result(State state, int, const PoolGeometry&) { return Ordered<T>::store(state.best); }
    static DEVICE int index(State state) { return state.at; }
};

// The sum of the elements, or their mean. A sum in stages keeps its parts in the wider type.
template <typename I, typename O>
struct Total {
    typedef I In;
    typedef O Out;
    typedef typename Element<I>::Sum Value;
    typedef Value State;
    static constexpr bool INDICES = false;

    static DEVICE State start() { return zero<State>(); }
    static DEVICE Value load(I element, const PoolGeometry&) { return Element<I>::load(element); }
    static DEVICE void add(State& sum, Value value, int) { sum = sum + value; }
    static DEVICE void join(State& sum, State other) { sum = sum + other; }
    static DEVICE O result(State sum, int count, const PoolGeometry& g) {
        return Element<O>::store(g.division == DIVIDE_NOT ? sum : quotient(sum, count, g));
    }
    static DEVICE int index(State) { return -1; }
};

DEVICE float magnitude(float a) { return fabs(a); }
DEVICE double magnitude(double a) { return fabs(a); }
// Without the overflow of the squares; infinite where a part is, even beside a NaN.
template <typename R>
DEVICE R magnitude(Complex<R> a) {
    const R re = fabs(a.re), im = fabs(a.im);
    if (isinf(re) || isinf(im)) return (R)__uint_as_float(0x7f800000u);
    const R large = re > im ? re : im, small = re > im ? im : re;
    if (large == (R)0) return re + im;  // zero, or NaN beside it
    const R ratio = small / large;
    return large * sqrt((R)1 + ratio * ratio);
}

// The p-norm: the sum of |element|^p, to the power 1 / p. ANY: p may be other than 1 and 2.
template <typename I, typename O, bool ANY>
struct Norm {
    typedef I In;
    typedef O Out;
    typedef typename Element<O>::Sum Value;
    typedef Value State;
    static constexpr bool INDICES = false;

    static DEVICE State start() { return zero<State>(); }
    static DEVICE Value load(I element, const PoolGeometry& g) {
        const Value size = magnitude(Element<I>::load(element));
        if (!g.raise || g.power == 1) return size;
        return ANY ? pow(size, (Value)g.power) : size * size;
    }
    static DEVICE void add(State& sum, Value value, int) { sum = sum + value; }
    static DEVICE void join(State& sum, State other) { sum = sum + other; }
    static DEVICE O result(State sum, int, const PoolGeometry& g) {
        if (!g.root || g.power == 1) return Element<O>::store(sum);
        return Element<O>::store(ANY ? pow(sum, (Value)(1 / g.power)) : sqrt(sum));
    }
    static DEVICE int index(State) { return -1; }
};

// ---- Stores ----

template <typename T, int N>
DEVICE void store_pack(T* aligned, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(aligned) = pack;
}

// Results of VECTOR neighbouring channels, and their indices where the policy has them.
template <typename Policy, int VECTOR>
DEVICE void store_results(const typename Policy::State* states, typename Policy::Out* y, long long* indices, int count,
                          const PoolGeometry& g) {
    Pack<typename Policy::Out, VECTOR> values;
#pragma unroll
    for (int v = 0; v < VECTOR; v++) values.at[v] = Policy::result(states[v], count, g);
    store_pack(y, values);
    if (!Policy::INDICES) return;
    Pack<long long, VECTOR> places;
#pragma unroll
    for (int v = 0; v < VECTOR; v++) places.at[v] = Policy::index(states[v]);
    store_pack(indices, places);
}

#endif
