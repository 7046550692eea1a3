// Element types: what an array holds, what sums are kept in, and how one becomes the other.
#ifndef XPCONV_TYPES_CUH
#define XPCONV_TYPES_CUH

#include "ptx.cuh"

#ifndef SHARED_MEMORY  // the test emulator brings its own
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

#define DEVICE __device__ __forceinline__

template <typename R>
struct __align__(2 * sizeof(R)) Complex {
    R re, im;
};

template <typename R>
DEVICE Complex<R> operator+(Complex<R> a, Complex<R> b) {
    return {a.re + b.re, a.im + b.im};
}

// N elements that are loaded and stored together, in steps of at most 16 bytes.
template <typename T, int N>
struct __align__(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T at[N];
};

// What holds an element of so many bytes where it is moved and not computed with.
template <int BYTES>
struct Word;
template <> struct Word<1> { typedef unsigned char Type; };
template <> struct Word<2> { typedef unsigned short Type; };
template <> struct Word<4> { typedef unsigned Type; };
template <> struct Word<8> { typedef unsigned long long Type; };
template <> struct Word<16> { typedef Pack<unsigned, 4> Type; };

template <typename T, int N>
DEVICE Pack<T, N> filled(T value) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.at[i] = value;
    return pack;
}

// N aligned elements from memory into registers.
template <int N, typename T>
DEVICE void copy(const T* aligned, T* registers) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(aligned);
#pragma unroll
    for (int i = 0; i < N; i++) registers[i] = pack.at[i];
}

// Sum: what an element is added up in. Integers wrap, so the sum is unsigned; both signs share one instance.
template <typename T>
struct Element;

template <typename T, typename S>
struct PlainElement {
    typedef S Sum;
    static DEVICE Sum load(T value) { return (Sum)value; }
    static DEVICE T store(Sum value) { return (T)value; }
};

template <> struct Element<float> : PlainElement<float, float> {};
template <> struct Element<double> : PlainElement<double, double> {};
template <> struct Element<signed char> : PlainElement<signed char, unsigned> {};
template <> struct Element<unsigned char> : PlainElement<unsigned char, unsigned> {};
template <> struct Element<short> : PlainElement<short, unsigned> {};
template <> struct Element<unsigned short> : PlainElement<unsigned short, unsigned> {};
template <> struct Element<int> : PlainElement<int, unsigned> {};
template <> struct Element<unsigned> : PlainElement<unsigned, unsigned> {};
template <> struct Element<long long> : PlainElement<long long, unsigned long long> {};
template <> struct Element<unsigned long long> : PlainElement<unsigned long long, unsigned long long> {};
template <> struct Element<Complex<float>> : PlainElement<Complex<float>, Complex<float>> {};
template <> struct Element<Complex<double>> : PlainElement<Complex<double>, Complex<double>> {};

template <>
struct Element<half_bits> {
    typedef float Sum;
    static DEVICE Sum load(half_bits value) { return half_to_float(value); }
    static DEVICE half_bits store(Sum value) { return float_to_half(value); }
};

template <>
struct Element<bfloat_bits> {
    typedef float Sum;
    static DEVICE Sum load(bfloat_bits value) { return bfloat_to_float(value); }
    static DEVICE bfloat_bits store(Sum value) { return float_to_bfloat(value); }
};

// sum + a * b, in one rounding where the type has it
DEVICE float multiply_add(float a, float b, float sum) { return fmaf(a, b, sum); }
DEVICE double multiply_add(double a, double b, double sum) { return fma(a, b, sum); }
DEVICE unsigned multiply_add(unsigned a, unsigned b, unsigned sum) { return a * b + sum; }
DEVICE unsigned long long multiply_add(unsigned long long a, unsigned long long b, unsigned long long sum) {
    return a * b + sum;
}
template <typename R>
DEVICE Complex<R> multiply_add(Complex<R> a, Complex<R> b, Complex<R> sum) {
    return {multiply_add(a.re, b.re, multiply_add(-a.im, b.im, sum.re)),
            multiply_add(a.re, b.im, multiply_add(a.im, b.re, sum.im))};
}

template <typename T>
DEVICE T zero() {
    return T{};
}

#endif
