// What happens to a finished sum before it is stored: H = phi(sum + bias).
#ifndef XPCONV_EPILOGUE_CUH
#define XPCONV_EPILOGUE_CUH

#include "types.cuh"

enum Activation { NO_ACTIVATION, RELU, LEAKY_RELU, SIGMOID, TANH, GELU, SILU };

// The activations that need a transcendental function: a call, since a copy at every store would fill the kernel.
template <typename R>
__device__ __noinline__ R smooth_activation(R a, int activation) {
    const R half = (R)0.5;
    switch (activation) {
        case SIGMOID: return half * (tanh(half * a) + (R)1);
        case TANH: return tanh(a);
        case GELU: return half * a * ((R)1 + erf(a * (R)0.70710678118654752440));
        default: return a * half * (tanh(half * a) + (R)1);  // SILU
    }
}

template <typename R>
DEVICE R activated(R a, int activation) {
    if (activation == NO_ACTIVATION) return a;
    if (activation == RELU) return a < 0 ? (R)0 : a;
    if (activation == LEAKY_RELU) return a < 0 ? (R)0.01 * a : a;
    // at -inf the limit, where the product would be inf * 0
    if (activation >= GELU && isinf(a) && a < 0) return (R)0;
    return smooth_activation(a, activation);
}

// Integers know relu alone, complex numbers none; the caller checks. Narrow integers wrap before the sign is read.
template <typename T>
DEVICE T stored(unsigned sum, int activation) {
    T value = Element<T>::store(sum);
    return activation == RELU && value < (T)0 ? (T)0 : value;
}
template <typename T>
DEVICE T stored(unsigned long long sum, int activation) {
    T value = Element<T>::store(sum);
    return activation == RELU && value < (T)0 ? (T)0 : value;
}
template <typename T>
DEVICE T stored(float sum, int activation) {
    return Element<T>::store(activated(sum, activation));
}
template <typename T>
DEVICE T stored(double sum, int activation) {
    return Element<T>::store(activated(sum, activation));
}
template <typename T, typename R>
DEVICE T stored(Complex<R> sum, int) {
    return sum;
}

// phi(sum + bias[f]); without a bias the pointer is null
template <typename T>
DEVICE T finished(typename Element<T>::Sum sum, const T* bias, int filter, int activation) {
    if (bias) sum = sum + Element<T>::load(bias[filter]);
    return stored<T>(sum, activation);
}

#endif
