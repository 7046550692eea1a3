"""The kernels of `unfold` and `fold`: every size of element, both layouts, against the definitions."""

import ml_dtypes  # noqa: F401  NumPy's bfloat16
import numpy as np
import pytest
from hypothesis import given

import oracle
from cases import first, integers, pool_cases
from xpconv.cuda import hardware
from xpconv.cuda.geometry import dense
from xpconv.cuda.kernels import ELEMENTS
from xpconv.cuda.plans import patches as plans
from xpconv.cuda.plans.conv import Operand
from xpconv.cuda.steps import Unfit, Work
from xpconv.engines import agnostic
from xpconv.spec import PoolSpec

LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "channels_first"])


def spec_of(layout, batch, channels, size, window, stride=None, dilation=None, pads=None):
    ones = (1,) * len(size)
    pads = tuple(pads) if pads else tuple((m // 2, 1) for m in window)
    return PoolSpec(layout, batch, channels, tuple(size), tuple(window), stride or ones, dilation or ones, pads)


def unfolded(x, spec):
    """By the definition; x and patches in the spec's layout."""
    last = x if spec.layout == "channels_last" else np.moveaxis(x, 1, -1)
    patches = oracle.unfold(last, window=spec.window, stride=spec.stride, dilation=spec.dilation, pads=spec.padding)
    if spec.layout == "channels_last":
        return patches
    n = spec.axes
    return np.transpose(patches, (0, 2 * n + 1, *range(n + 1, 2 * n + 1), *range(1, n + 1)))


def check_unfold(cupy, spec, dtype, instance=""):
    from xpconv.cuda import patches

    x = integers(np.random.default_rng(0), spec.x_shape, dtype)
    work = plans.unfold(spec, Operand(dense(x.shape), True), x.dtype.itemsize)
    assert isinstance(work, Work)
    assert instance in work.steps[0].kernel.expression
    assert work.steps[0].kernel in plans.instances((9, 0))
    got = patches.unfold(cupy.asarray(x), spec)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got.get(), unfolded(x, spec))


def check_fold(cupy, spec, dtype):
    from xpconv.cuda import patches

    p = integers(np.random.default_rng(0), spec.patches_shape, dtype)
    work = plans.fold(spec, Operand(dense(p.shape), True), np.dtype(dtype).name)
    assert isinstance(work, Work)
    assert work.steps[0].kernel in plans.instances((9, 0))
    exact = p.astype({"c": "c16", "i": "i8", "u": "i8"}.get(p.dtype.kind, "f8"))
    np.testing.assert_array_equal(patches.fold(cupy.asarray(p), spec).get(), agnostic.fold(exact, spec).astype(dtype))


# --- Every instance ---------------------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize(
    "dtype", ["int8", "bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_patches_of_any_element(cupy, layout, dtype):
    check_unfold(cupy, spec_of(layout, 2, 3, (7, 9), (3, 2)), dtype)


@pytest.mark.parametrize(("channels", "word"), [(1, 2), (2, 4), (12, 8), (16, 16), (7, 2)])
def test_words_hold_as_many_channels_as_divide(cupy, channels, word):
    check_unfold(cupy, spec_of("channels_last", 3, channels, (5, 6), (2, 3)), "float16", f"unfold<{word}>")


@LAYOUTS
@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("channels", [3, 8])
def test_patches_of_any_type_are_added_up(cupy, layout, dtype, channels):
    check_fold(cupy, spec_of(layout, 2, channels, (5, 6), (3, 2)), dtype)


# --- Geometry ---------------------------------------------------------------------------------------------------------


@LAYOUTS
@given(case=pool_cases(ceil_mode=False))
def test_all_geometries(cupy, layout, case):
    from xpconv.cuda import patches

    geometry = case.geometry
    spec = spec_of(
        layout, case.x.shape[0], case.x.shape[-1], case.x.shape[1:-1], geometry["window"], geometry["stride"],
        geometry["dilation"], geometry["pads"],
    )  # fmt: skip
    x = case.x if layout == "channels_last" else np.ascontiguousarray(first(case.x))
    expected = unfolded(x, spec)
    np.testing.assert_array_equal(patches.unfold(cupy.asarray(x), spec).get(), expected)
    folded = patches.fold(cupy.asarray(np.ascontiguousarray(expected)), spec).get()
    np.testing.assert_array_equal(folded, agnostic.fold(expected, spec))


@LAYOUTS
def test_steps_other_than_one(cupy, layout):
    plane = spec_of(layout, 2, 3, (9, 11), (3, 2), stride=(2, 3), dilation=(1, 4))
    volume = spec_of(layout, 2, 3, (5, 6, 7), (2, 3, 2), stride=(2, 1, 2), dilation=(1, 2, 1))
    for spec in (plane, volume):
        check_unfold(cupy, spec, "float32")
        check_fold(cupy, spec, "float32")


@LAYOUTS
@pytest.mark.parametrize("dtype", ["int8", "float32", "float64"])
def test_patches_that_do_not_fill_the_last_vector(cupy, layout, dtype):
    spec = spec_of(layout, 1, 1, (5, 5), (3, 1), pads=((1, 1), (0, 0)))
    assert np.prod(spec.patches_shape) % 2
    check_unfold(cupy, spec, dtype)


@LAYOUTS
@pytest.mark.parametrize("view", [np.s_[:, ::-1], np.s_[..., ::2], np.s_[..., 1:4]])
def test_views_are_read_where_they_lie(cupy, layout, view):
    from xpconv.cuda import patches

    whole = integers(np.random.default_rng(0), (2, 8, 8, 8), "float32")
    x, own = whole[view], cupy.asarray(whole)[view]
    n, a, b, c = x.shape
    batch, channels, size = (n, c, (a, b)) if layout == "channels_last" else (n, a, (b, c))
    spec = spec_of(layout, batch, channels, size, (2, 2))
    np.testing.assert_array_equal(patches.unfold(own, spec).get(), unfolded(x, spec))

    spec = spec_of(layout, batch, channels, size, (1, 1), pads=((0, 0), (0, 0)))
    p = unfolded(x, spec)
    turned = np.ascontiguousarray(p[::-1])
    np.testing.assert_array_equal(patches.fold(cupy.asarray(turned)[::-1], spec).get(), x)


def test_values_that_are_not_finite_stay_in_their_patches(cupy):
    from xpconv.cuda import patches

    for layout in ("channels_last", "channels_first"):
        spec = spec_of(layout, 1, 4, (5, 7), (3, 3))
        p = np.ones(spec.patches_shape, "float32")
        p.reshape(-1)[17], p.reshape(-1)[-3] = np.nan, np.inf
        np.testing.assert_array_equal(patches.fold(cupy.asarray(p), spec).get(), agnostic.fold(p, spec))


def test_large_batches_go_in_several_rows_of_the_grid(cupy, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 2000)
    for cached in (plans.unfold, plans.fold):
        cached.cache_clear()
    for layout in ("channels_last", "channels_first"):
        spec = spec_of(layout, 11, 3, (4, 5), (2, 2), pads=((0, 1), (0, 0)))
        check_unfold(cupy, spec, "float32")
        check_fold(cupy, spec, "float32")
    assert plans.unfold(spec, Operand(dense(spec.x_shape), True), 4).steps[0].grid[1] > 1
    for cached in (plans.unfold, plans.fold):
        cached.cache_clear()


def test_plans_are_legal():
    spec = spec_of("channels_last", 64, 64, (112, 112), (7, 7))
    for work in (
        plans.unfold(spec, Operand(dense(spec.x_shape), True), 4),
        plans.fold(spec, Operand(dense(spec.patches_shape), True), "float32"),
    ):
        assert isinstance(work, Work)
        (step,) = work.steps
        assert 0 < step.grid[0] <= hardware.GRID_X
        assert 0 < step.grid[1] <= hardware.GRID_YZ
    huge = spec_of("channels_last", 1, 1 << 12, (1 << 12, 1 << 12), (7, 7))
    assert isinstance(plans.unfold(huge, Operand(dense(huge.x_shape), True), 1), Unfit)
