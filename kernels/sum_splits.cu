// The second half of a convolution whose sums were split: partial (splits, groups, positions, filters) added up in
// the order of the splits, so that the same call gives the same bits; then bias, activation, and the store.
#include "epilogue.cuh"
#include "geometry.cuh"

template <typename T>
__global__ void __launch_bounds__(256, 3)
    sum_splits(const typename Element<T>::Sum* __restrict__ partial, const T* __restrict__ bias, T* __restrict__ y,
               const __grid_constant__ ConvGeometry g) {
    const long long results = (long long)g.groups * g.positions * g.filters;
    for (long long place = blockIdx.x * 256ll + threadIdx.x; place < results; place += gridDim.x * 256ll) {
        typename Element<T>::Sum sum = partial[place];
        for (int split = 1; split < g.splits; split++) sum = sum + partial[split * results + place];
        const int filter = (int)(place % g.filters);
        const long long row = place / g.filters;
        const int position = (int)(row % g.positions), group = (int)(row / g.positions);
        y[g.y_start + group * g.y_group + result_of<long long>(position, g) + filter * g.y_strides[1]] =
            finished<T>(sum, bias, group * g.filters + filter, g.activation);
    }
}
