"""Gradients are exact adjoints, for every parameter and every library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import xpconv
from cases import conv_cases, first, integers, pool_cases, weight_first
from xpconv.cpu import costs, plan
from xpconv.engines import agnostic
from xpconv.spec import conv_spec


def inner(a, b):
    """Sum of products, nothing conjugated; exact, since the values are small integers."""
    return np.sum(np.asarray(a) * np.asarray(b))


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@given(case=conv_cases(dtypes=(np.float64, np.complex128, np.int64)))
def test_the_gradients_of_conv_are_its_adjoints(lib, layout, case):
    case.mode = "zeros" if case.mode == "constant" else case.mode  # a constant border makes conv affine, not linear
    to_x, to_w = (first, weight_first) if layout == "channels_first" else (np.asarray, np.asarray)
    x, w = to_x(case.x), to_w(case.w)
    options = {**case.options, "padding_mode": case.mode, "layout": layout}
    y = lib.call(getattr(xpconv, case.function), x, w, **options)
    gy = integers(np.random.default_rng(0), y.shape, case.x.dtype)
    gx = lib.call(getattr(xpconv, f"{case.function}_grad_input"), gy, w, size=case.x.shape[1:-1], **options)
    gw = lib.call(getattr(xpconv, f"{case.function}_grad_weight"), x, gy, window=case.w.shape[:-2], **options)
    assert gx.shape == x.shape
    assert gw.shape == w.shape
    assert gx.dtype == gw.dtype == case.x.dtype
    assert inner(y, gy) == inner(x, gx) == inner(w, gw)


@given(case=conv_cases(dtypes=(np.float64,), modes=("zeros", "reflect", "wrap")))
def test_the_gradients_are_those_of_the_definition(case):
    y = case.expected() if case.bias is None else case.expected() - case.bias
    gy = integers(np.random.default_rng(0), y.shape)
    gx = getattr(xpconv, f"{case.function}_grad_input")(gy, case.w, size=case.x.shape[1:-1], **case.options)
    gw = getattr(xpconv, f"{case.function}_grad_weight")(case.x, gy, window=case.w.shape[:-2], **case.options)
    rng = np.random.default_rng(1)
    for array, gradient in ((case.x, gx), (case.w, gw)):
        if array.size == 0:
            continue
        where = np.unravel_index(rng.integers(array.size), array.shape)
        array[where] += 1
        moved = case.expected() if case.bias is None else case.expected() - case.bias
        array[where] -= 1
        assert gradient[where] == inner(moved - y, gy)


@given(case=conv_cases(dtypes=(np.float64,), modes=("zeros",), batches=(1, 2)))
def test_the_adjoint_of_a_spec_is_a_spec(case):
    spec, _ = conv_spec(
        case.x.shape, case.w.shape, name="conv", axes=None, flip=case.flip, padding=tuple(case.pads),
        groups=case.groups, padding_mode="zeros", layout="channels_last", **case.geometry,
    )  # fmt: skip
    gy = integers(np.random.default_rng(0), spec.y_shape)
    gx = agnostic.conv(gy, agnostic.exchanged(case.w, case.groups), None, spec.input_adjoint)
    np.testing.assert_array_equal(gx, agnostic.conv_grad_input(gy, case.w, None, spec))

    gw = agnostic.conv(*agnostic.to_weight_adjoint(case.x, gy, spec), None, spec.weight_adjoint)
    np.testing.assert_array_equal(agnostic.from_weight_adjoint(gw, spec), agnostic.conv_grad_weight(case.x, gy, spec))


@given(case=conv_cases(dtypes=(np.float64, np.float32), modes=("zeros",)))
def test_gradients_through_spectra_agree(case):
    y = getattr(xpconv, case.function)(case.x, case.w, **case.options)
    gy = integers(np.random.default_rng(0), y.shape, case.x.dtype)
    gradients = (
        lambda: getattr(xpconv, f"{case.function}_grad_input")(gy, case.w, size=case.x.shape[1:-1], **case.options),
        lambda: getattr(xpconv, f"{case.function}_grad_weight")(case.x, gy, window=case.w.shape[:-2], **case.options),
    )
    for gradient in gradients:
        expected = gradient()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(costs.COSTS, "fft", lambda _: -1.0)
            plan.spectra_plan.cache_clear()
            through_spectra = gradient()
        plan.spectra_plan.cache_clear()
        np.testing.assert_allclose(through_spectra, expected, atol=1e-4 if gy.dtype == np.float32 else 1e-9)


@given(case=conv_cases(dtypes=(np.float64,), modes=("zeros",)))
def test_transposed_convolution_is_the_input_gradient(lib, case):
    geometry = {**case.geometry, "groups": case.groups, "padding": tuple(case.pads)}
    y = getattr(xpconv, case.function)(case.x, case.w, **geometry)
    gy = integers(np.random.default_rng(0), y.shape)
    size = case.x.shape[1:-1]
    reached = [
        (n - 1) * s + (m - 1) * d + 1 - lo - hi
        for n, s, m, d, (lo, hi) in zip(
            y.shape[1:-1], case.geometry["stride"], case.w.shape[:-2], case.geometry["dilation"], case.pads, strict=True
        )
    ]
    extra = tuple(n - r for n, r in zip(size, reached, strict=True))
    transposed = getattr(xpconv, f"{case.function}_transpose")
    gx = lib.call(getattr(xpconv, f"{case.function}_grad_input"), gy, case.w, size=size, **geometry)
    np.testing.assert_array_equal(lib.call(transposed, gy, case.w, output_padding=extra, **geometry), gx)


@given(case=pool_cases(dtypes=(np.float64,)), include=st.booleans(), divisor=st.sampled_from([None, 2.0]))
def test_the_gradient_of_avg_pool_is_its_adjoint(lib, case, include, divisor):
    options = {**case.options, "count_include_pad": include, "divisor": divisor}
    y = lib.call(xpconv.avg_pool, case.x, **options)
    gy = np.where(np.isnan(y), 0, integers(np.random.default_rng(0), y.shape))
    gx = lib.call(xpconv.avg_pool_grad, gy, size=case.x.shape[1:-1], **options)
    assert gx.shape == case.x.shape
    np.testing.assert_allclose(inner(np.nan_to_num(y), gy), inner(case.x, gx), atol=1e-10)


@pytest.mark.parametrize("extreme", ["max", "min"])
@given(case=pool_cases(dtypes=(np.float64,)))
def test_the_gradient_of_max_pool_goes_to_the_elements_that_won(lib, extreme, case):
    y, indices = getattr(xpconv, f"{extreme}_pool")(case.x, return_indices=True, **case.options)
    gy = integers(np.random.default_rng(0), y.shape)
    gx = lib.call(xpconv.max_pool_grad, gy, indices, size=case.x.shape[1:-1])
    won = np.where(indices >= 0, y, 0)
    assert gx.shape == case.x.shape
    assert inner(won, gy) == inner(case.x, gx)


@given(case=pool_cases(dtypes=(np.float64, np.int32), ceil_mode=False))
def test_fold_is_the_adjoint_of_unfold(lib, case):
    options = {name: value for name, value in case.options.items() if name != "ceil_mode"}
    patches = lib.call(xpconv.unfold, case.x, **options)
    geometry = {name: value for name, value in case.geometry.items() if name != "ceil_mode"}
    np.testing.assert_array_equal(patches, oracle.unfold(case.x, **geometry))
    g = integers(np.random.default_rng(0), patches.shape, case.x.dtype)
    folded = lib.call(xpconv.fold, g, size=case.x.shape[1:-1], **options)
    assert folded.dtype == case.x.dtype
    assert inner(patches, g) == inner(case.x, folded)


@given(case=pool_cases(dtypes=(np.float64,), ceil_mode=False))
def test_patches_come_channels_first_too(lib, case):
    options = {name: value for name, value in case.options.items() if name != "ceil_mode"}
    axes = case.x.ndim - 2
    patches = xpconv.unfold(case.x, **options)
    other = lib.call(xpconv.unfold, first(case.x), layout="channels_first", **options)
    moved = np.transpose(patches, (0, patches.ndim - 1, *range(axes + 1, 2 * axes + 1), *range(1, axes + 1)))
    np.testing.assert_array_equal(other, moved)
    folded = lib.call(xpconv.fold, other, size=case.x.shape[1:-1], layout="channels_first", **options)
    np.testing.assert_array_equal(folded, first(xpconv.fold(patches, size=case.x.shape[1:-1], **options)))


def test_correlation_is_patches_times_the_weight(lib):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 6, 5, 3)), integers(rng, (3, 2, 3, 4))
    patches = lib.call(xpconv.unfold, x, window=(3, 2), stride=2)
    product = np.einsum("nijklc,klcf->nijf", patches, w)
    np.testing.assert_array_equal(lib.call(xpconv.corr2d, x, w, stride=2), product)


def test_gradients_take_single_items(lib):
    rng = np.random.default_rng(0)
    x, w, gy = integers(rng, (6, 5, 3)), integers(rng, (3, 2, 3, 4)), integers(rng, (4, 4, 4))
    gx = lib.call(xpconv.conv_grad_input, gy, w, size=(6, 5))
    gw = lib.call(xpconv.conv_grad_weight, x, gy, window=(3, 2))
    assert gx.shape == (6, 5, 3)
    assert inner(lib.call(xpconv.conv2d, x, w), gy) == inner(x, gx) == inner(w, gw)


@pytest.mark.parametrize(("size", "window", "padding", "channels", "groups"), [
    ((0,), (1,), ((2, 1),), 1, 1), ((5, 4, 0), (4, 3, 1), ((2, 2), (2, 0), (2, 1)), 5, 5),
])  # fmt: skip
def test_the_gradient_of_an_input_without_elements_has_none(size, window, padding, channels, groups):
    w = np.ones((*window, channels // groups, channels))
    y = xpconv.conv(np.ones((2, *size, channels)), w, padding=padding, groups=groups)
    gx = xpconv.conv_grad_input(y, w, size=size, padding=padding, groups=groups)
    assert gx.shape == (2, *size, channels)
    assert xpconv.explain(xpconv.conv_grad_input, y, w, size=size, padding=padding, groups=groups).method
