"""From a spec, a dtype, strides and a device to kernels, grids and scratch memory: pure, no GPU needed."""
