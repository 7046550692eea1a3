"""Gradients added at their indices by NumPy alone, part by part."""

import numpy as np
import pytest

import xpconv
from single_planes import memory_beside_result
from xpconv.cpu import scattering
from xpconv.engines import compiled


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch):
    monkeypatch.setattr(compiled, "kernels", lambda: None)


def defined(gy, indices, size):
    """One gradient after the other, channels last."""
    gx = np.zeros((len(gy), *size, gy.shape[-1]), np.result_type(gy.dtype, np.float32))
    for place in np.argwhere(indices >= 0):
        n, *_, c = place
        gx[(n, *np.unravel_index(int(indices[tuple(place)]), size), c)] += gy[tuple(place)]
    return gx.astype(gy.dtype)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("part", [1, 7, 24, 10_000])
@pytest.mark.parametrize(("dtype", "index_dtype", "least"), [
    ("float32", "int64", -1), ("float64", "int32", 0), ("float16", "uint64", 0), ("complex64", "int64", -1),
])  # fmt: skip
@pytest.mark.parametrize("size", [(7,), (5, 6), (2, 3, 4)])
def test_every_gradient_is_added_at_its_index(size, dtype, index_dtype, least, part, layout, monkeypatch):
    monkeypatch.setattr(scattering, "_PART", part)
    rng = np.random.default_rng(part)
    shape = (3, *(2,) * len(size), 4)
    gy = rng.integers(-4, 5, shape).astype(dtype)
    indices = rng.integers(least, np.prod(size), shape).astype(index_dtype)
    expected = defined(gy, indices, size)
    if layout == "channels_first":
        gy, indices, expected = (np.moveaxis(a, -1, 1) for a in (gy, indices, expected))
    gx = xpconv.max_pool_grad(gy, indices, size=size, layout=layout)
    assert gx.dtype == gy.dtype
    assert gx.flags.c_contiguous
    np.testing.assert_array_equal(gx, expected)


@pytest.mark.parametrize("shape", [(0, 2, 2, 3), (2, 0, 2, 3), (2, 2, 2, 0)])
def test_no_gradients_leave_zeros(shape):
    gx = xpconv.max_pool_grad(np.ones(shape, np.float32), np.zeros(shape, np.int64), size=(4, 5))
    np.testing.assert_array_equal(gx, np.zeros((shape[0], 4, 5, shape[-1])))


@pytest.mark.parametrize("arranged", [np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1]])
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0), ("float32", -1), ("complex128", -1)])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_places_take_no_more_memory_than_the_limit(layout, dtype, least, arranged):
    shape = (16, 32, 32, 4) if layout == "channels_last" else (16, 4, 32, 32)
    indices = arranged(np.random.default_rng(0).integers(least, 1024, shape))
    gy = arranged(np.ones(shape, dtype))
    with xpconv.workspace_limit(1 << 19):
        beside = memory_beside_result(lambda: xpconv.max_pool_grad(gy, indices, size=(32, 32), layout=layout))
    assert beside < 1 << 19
