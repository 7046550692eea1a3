"""Every struct that a kernel takes by value lies in Python as it does in the kernel."""

import numpy as np
import pytest

from xpconv.cuda import source
from xpconv.cuda.geometry import CONV_GEOMETRY, DIVISOR
from xpconv.cuda.plans import depthwise, layout, patches, pooling_scatter, sm90, stem
from xpconv.cuda.pool_geometry import POOL_GEOMETRY

STRUCTS = {
    "Divisor": ("geometry.cuh", DIVISOR),
    "ConvGeometry": ("geometry.cuh", CONV_GEOMETRY),
    "DepthwiseTile": ("conv_depthwise.cu", depthwise.TILE),
    "StemTile": ("conv_stem.cu", stem.STEM_TILE),
    "Sm90Tiling": ("conv_sm90.cu", sm90.TILING),
    "PoolGeometry": ("pool.cuh", POOL_GEOMETRY),
    "ScatterGeometry": ("pool_scatter.cu", pooling_scatter.SCATTER_GEOMETRY),
    "PatchGeometry": ("patches.cu", patches.PATCH_GEOMETRY),
    "CopyGeometry": ("layout.cu", layout.COPY_GEOMETRY),
}
KERNEL = """
template <typename Struct>
__global__ void layout_of(long long* layout) {{
    Struct* s = nullptr;
    long long numbers[] = {{(long long)sizeof(Struct), {offsets}}};
    for (int i = 0; i < {count}; i++) layout[i] = numbers[i];
}}
"""


@pytest.mark.parametrize("name", STRUCTS)
def test_size_and_offsets(cupy, name):
    file, dtype = STRUCTS[name]
    offsets = ", ".join(f"(long long)&s->{field}" for field in dtype.names)
    kernel = KERNEL.format(offsets=offsets, count=len(dtype.names) + 1)
    expression = f"layout_of<{name}>"
    module = cupy.RawModule(code=source.text(file) + kernel, options=("-std=c++17",), name_expressions=(expression,))
    numbers = cupy.empty(len(dtype.names) + 1, dtype=np.int64)
    module.get_function(expression)((1,), (1,), (numbers,))
    size, *places = numbers.get().tolist()
    assert size == dtype.itemsize
    assert dict(zip(dtype.names, places, strict=True)) == {field: dtype.fields[field][1] for field in dtype.names}
