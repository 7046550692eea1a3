"""The kernels that lay arrays out anew: every size of element, both ways to move them, against NumPy."""

import ml_dtypes  # noqa: F401  NumPy's bfloat16
import numpy as np
import pytest

from cases import far_apart
from xpconv.cuda.geometry import dense
from xpconv.cuda.plans import layout as plans
from xpconv.cuda.steps import Unfit, Work

DTYPES = ("int8", "float16", "bfloat16", "float32", "float64", "complex64", "complex128")
RANDOM = np.random.default_rng(0)


def values(shape, dtype):
    """Bytes without a meaning, but no NaN, which would differ from itself."""
    return RANDOM.integers(-100, 100, shape).astype(dtype)


def expression(shape, valid, strides, itemsize, aligned=True):
    work = plans.copy(shape, valid, strides, itemsize, aligned)
    assert isinstance(work, Work)
    assert work.steps[0].kernel in plans.instances((9, 0))
    return work.steps[0].kernel.expression


# --- Feature maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "size"), [(40, (13, 16)), (33, (7, 9)), (3, (5, 6)), (8, (8,)), (130, (1, 3, 43))]
)
def test_channels_go_last_and_back(cupy, channels, size, dtype):
    from xpconv.cuda import layout

    x = values((2, channels, *size), dtype)
    y = layout.as_channels_last(cupy.asarray(x))
    np.testing.assert_array_equal(y.get(), np.moveaxis(x, 1, -1))
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(layout.as_channels_first(y).get(), x)


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize(("channels", "wanted"), [(3, 8), (20, 24), (61, 64)])
@pytest.mark.parametrize("size", [(6, 10), (2, 3)], ids=["by tiles", "one by one"])
def test_channels_are_filled_up_with_zeros(cupy, size, channels, wanted, dtype):
    from xpconv.cuda import layout

    x = values((2, channels, *size), dtype)
    y = layout.as_channels_last(cupy.asarray(x), wanted).get()
    np.testing.assert_array_equal(y[..., :channels], np.moveaxis(x, 1, -1))
    assert not y[..., channels:].any()


# --- Views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32", "float64", "complex128"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[::2, 1:, ::-3],
        lambda x: x[..., :4],
        lambda x: x[..., 1:5],
        lambda x: x.transpose(3, 1, 0, 2),
        lambda x: x.transpose(0, 3, 2, 1)[:, ::-1],
        lambda x: x[:1, :, :1],
        lambda x: x[:, :0],
    ],
)
def test_any_view_is_packed(cupy, view, dtype):
    from xpconv.cuda import layout

    x = values((3, 9, 10, 16), dtype)
    y = layout.packed(view(cupy.asarray(x)))
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(y.get(), view(x))


def test_a_broadcast_array_is_packed(cupy):
    from xpconv.cuda import layout

    x = values((1, 9, 1), "float32")
    y = layout.packed(cupy.broadcast_to(cupy.asarray(x), (4, 9, 12)))
    np.testing.assert_array_equal(y.get(), np.broadcast_to(x, (4, 9, 12)))


def test_planes_may_lie_farther_apart_than_32_bits_count(cupy):
    from xpconv.cuda import launch

    with far_apart(cupy, *values((2, 6), "int8")) as (one, other, apart):
        work = plans.copy((2, 3), (2, 3), (apart, 2), 1, False)
        y = cupy.empty((2, 3), dtype=np.int8)
        launch.run(work, {"x": one, "y": y})
        x = cupy.asnumpy(one), cupy.asnumpy(other)
    np.testing.assert_array_equal(y.get(), np.stack(x)[:, ::2])


# --- Weights ----------------------------------------------------------------------------------------------------------


def in_order(w, order):
    """A weight (*window, C, F) in another order."""
    if order == "filters_last":
        return w
    return np.moveaxis(w, -1, 0) if order == "channels_last" else np.moveaxis(w, (-1, -2), (0, 1))


@pytest.mark.parametrize("given", ["filters_last", "channels_last", "channels_first"])
@pytest.mark.parametrize("wanted", ["filters_last", "channels_last", "channels_first"])
@pytest.mark.parametrize("shape", [(3, 3, 12, 40), (5, 3, 8), (1, 2, 2, 1, 9)])
def test_weights_in_every_order(cupy, given, wanted, shape):
    from xpconv.cuda import layout

    w = values(shape, "float32")
    got = layout.weight_as(cupy.asarray(np.ascontiguousarray(in_order(w, given))), given, wanted)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got.get(), in_order(w, wanted))


def test_weights_are_filled_up_with_zeros(cupy):
    from xpconv.cuda import layout

    w = values((3, 3, 3, 10), "float16")
    whole = np.zeros((3, 3, 8, 16), "float16")
    whole[:, :, :3, :10] = w
    got = layout.weight_as(cupy.asarray(w), "filters_last", "channels_last", channels=8, filters=16)
    np.testing.assert_array_equal(got.get(), in_order(whole, "channels_last"))


# --- Without the kernels, and plans -----------------------------------------------------------------------------------


def test_where_no_kernel_can_be_had_cupy_copies(cupy, monkeypatch):
    from xpconv.cuda import launch, layout

    def unavailable(*_):
        raise launch.KernelUnavailable

    monkeypatch.setattr(launch, "run", unavailable)
    x = values((2, 3, 4), "float32")
    y = layout.as_channels_last(cupy.asarray(x), 5).get()
    np.testing.assert_array_equal(y[..., :3], np.moveaxis(x, 1, -1))
    assert not y[..., 3:].any()


def test_words_are_as_long_as_memory_allows():
    assert expression((4, 6, 8), (4, 6, 8), dense((4, 6, 8)), 4) == "copy_strided<16>"
    assert expression((4, 6, 8), (4, 6, 8), (96, 8, 1), 4) == "copy_strided<16>"
    assert expression((4, 6, 6), (4, 6, 6), (96, 8, 1), 4) == "copy_strided<8>"
    assert expression((4, 6, 8), (4, 6, 8), (97, 8, 1), 4) == "copy_strided<4>"
    assert expression((4, 6, 8), (4, 6, 8), dense((4, 6, 8)), 4, aligned=False) == "copy_strided<4>"
    assert expression((4, 6, 3), (4, 6, 3), (18, 1, 6), 1) == "copy_strided<1>"
    assert expression((4, 64, 32), (4, 64, 32), (2048, 1, 64), 2) == "copy_transposed<2,2>"
    assert expression((4, 63, 32), (4, 63, 32), (2016, 1, 63), 2) == "copy_transposed<2,1>"


def test_huge_arrays_are_copied_plane_by_plane_or_declined():
    shape = (5, 1 << 20, 1 << 12)
    work = plans.copy(shape, shape, (1 << 33, 1 << 13, 1), 4, True)
    assert isinstance(work, Work)
    assert work.steps[0].grid[1] == 65535  # the first two axes are one, longer than a grid
    shape = (5, 1 << 19, 1 << 11)
    work = plans.copy(shape, shape, (1 << 34, 1 << 14, 3), 4, True)
    assert isinstance(work, Work)
    assert work.steps[0].grid[1] == 5
    assert isinstance(plans.copy((1 << 32,), (1 << 32,), (1,), 1, True), Unfit)
    assert isinstance(plans.copy((4,), (4,), (1,), 3, True), Unfit)


def test_the_planes_of_a_huge_array_are_all_copied(cupy, monkeypatch):
    from xpconv.cuda import layout

    monkeypatch.setattr(plans, "MOST", 50)
    plans.copy.cache_clear()
    x = values((9, 6, 14), "float32")
    y = layout.packed(cupy.asarray(x)[:, ::-1, ::2])
    np.testing.assert_array_equal(y.get(), x[:, ::-1, ::2])
    plans.copy.cache_clear()
