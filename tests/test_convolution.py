"""Convolution and correlation are what their formula says, on every library."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import xpconv
from cases import conv_cases, first, integers, weight_first


@given(case=conv_cases())
def test_conv_and_corr_are_the_sum_of_their_definition(lib, case):
    y = lib.call(getattr(xpconv, case.function), case.x, case.w, case.bias, fill_value=case.fill, **case.options)
    expected = case.expected()
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)


@given(case=conv_cases())
def test_channels_first_is_the_same_with_the_axes_moved(lib, case):
    y = lib.call(
        getattr(xpconv, case.function), first(case.x), weight_first(case.w), case.bias,
        layout="channels_first", fill_value=case.fill, **case.options,
    )  # fmt: skip
    np.testing.assert_array_equal(y, first(case.expected()))


@pytest.mark.parametrize("method", ["direct", "gemm", "fft"])
@given(case=conv_cases())
def test_every_method_of_the_numpy_engine_agrees(method, case):
    y = getattr(xpconv, case.function)(case.x, case.w, case.bias, fill_value=case.fill, method=method, **case.options)
    np.testing.assert_allclose(y, case.expected(), atol=1e-4 if case.x.dtype == np.float32 else 1e-10)


@given(case=conv_cases(modes=("zeros",), batches=(1, 2)), data=st.data())
def test_the_transposed_convolution_lays_the_kernel_down_at_every_element(lib, case, data):
    rng = np.random.default_rng(0)
    most = [max(s, d) - 1 for s, d in zip(case.geometry["stride"], case.geometry["dilation"], strict=True)]
    extra = tuple(data.draw(st.integers(0, n)) for n in most)
    w = integers(rng, case.w.shape, case.x.dtype)
    x = integers(rng, (*case.x.shape[:-1], w.shape[-1]), case.x.dtype)
    by_size = case.padding in ("same_upper", "same_lower")  # theirs depends on the size of the result
    pads, padding = ([(0, 0)] * len(extra), "valid") if by_size else (case.pads, case.padding)
    options = {**case.geometry, "groups": case.groups}
    call = partial(
        lib.call, getattr(xpconv, f"{case.function}_transpose"), x, w, padding=padding, output_padding=extra, **options
    )
    expected = oracle.conv_transpose(x, w, flip=case.flip, pads=pads, extra=extra, **options)
    if expected is None:
        with pytest.raises(ValueError, match="the padding leaves nothing"):
            call()
    else:
        np.testing.assert_array_equal(call(), expected)


@pytest.mark.parametrize("name", ["same_upper", "same_lower"])
@pytest.mark.parametrize(("n", "m", "s", "d"), [(3, 3, 2, 1), (4, 2, 3, 1), (2, 4, 2, 2), (3, 1, 4, 1)])
def test_the_transposed_same_upper_is_stride_times_as_long_and_adjoint_to_the_forward_one(lib, name, n, m, s, d):
    rng = np.random.default_rng(0)
    x, w, g = integers(rng, (n,)), integers(rng, (m,)), integers(rng, (n * s,))
    y = lib.call(xpconv.conv_transpose1d, x, w, padding=name, stride=s, dilation=d)
    assert y.shape == (n * s,)
    forward = lib.call(xpconv.conv1d, g, w, padding=name, stride=s, dilation=d)
    assert np.vdot(y, g) == np.vdot(x, forward)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_any_number_of_axes(lib, axes):
    rng = np.random.default_rng(axes)
    x, w = integers(rng, (1, *(3,) * axes, 2)), integers(rng, (*(2,) * axes, 2, 3))
    ones = (1,) * axes
    expected = oracle.conv(x, w, flip=True, stride=ones, dilation=ones, pads=[(0, 0)] * axes)
    np.testing.assert_array_equal(lib.call(xpconv.conv, x, w), expected)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_plain_arrays_and_single_items_are_the_full_form_without_its_axes(lib, axes, layout):
    rng = np.random.default_rng(axes)
    image, kernel = integers(rng, (5,) * axes), integers(rng, (3, 2, 2)[:axes])
    function = getattr(xpconv, f"conv{axes}d")
    x, w = image[None, ..., None], kernel[..., None, None]
    full = oracle.conv(x, w, flip=True, stride=(1,) * axes, dilation=(1,) * axes, pads=[(0, 0)] * axes)
    if layout == "channels_first":
        x, w = first(x), weight_first(w)
    np.testing.assert_array_equal(lib.call(function, image, kernel, layout=layout), full[0, ..., 0])
    np.testing.assert_array_equal(lib.call(function, x[0], w, layout=layout).ravel(), full.ravel())
    one_map = w[..., 0] if layout == "channels_last" else w[0]
    np.testing.assert_array_equal(lib.call(function, x, one_map, layout=layout), full[..., 0])
    np.testing.assert_array_equal(lib.call(function, x[0], one_map, layout=layout), full[0, ..., 0])


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_plain_transposed_arrays_too(lib, layout):
    image, kernel = np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 10], [100, 1000]])
    y = lib.call(xpconv.conv_transpose2d, image, kernel, stride=2, layout=layout)
    np.testing.assert_array_equal(y, np.kron(image, kernel[::-1, ::-1]))
    x = image[None, ..., None] if layout == "channels_last" else image[None, None]
    one_map = kernel[..., None] if layout == "channels_last" else kernel[None]
    y = lib.call(xpconv.corr_transpose2d, x, one_map, stride=2, layout=layout)
    np.testing.assert_array_equal(y[0], np.kron(image, kernel))


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_a_transposed_map_reads_every_channel(lib, layout):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 4, 3)), integers(rng, (2, 3))  # (N, size, C), (window, C)
    expected = oracle.conv_transpose(x, w[:, None], flip=True, stride=(2,), dilation=(1,), pads=[(0, 0)], extra=(0,))[
        ..., 0
    ]
    if layout == "channels_first":
        x, w = first(x), w.T.copy()
    np.testing.assert_array_equal(lib.call(xpconv.conv_transpose1d, x, w, stride=2, layout=layout), expected)


@pytest.mark.parametrize("dilation", [1, 3])
def test_the_fft_runs_on_the_device_of_its_arrays(dilation):
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    x, w = strict.arange(9, dtype=strict.float64, device=device), strict.ones(2, device=device)
    y = xpconv.conv1d(x, w, dilation=dilation, method="fft")
    assert y.device == device
    assert [round(float(v), 9) for v in y] == [2 * i + dilation for i in range(9 - dilation)]


@given(case=conv_cases(dtypes=(np.float64,), modes=("zeros",), batches=(2,)), data=st.data())
@settings(max_examples=10)
def test_convolution_is_linear(lib, case, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    other = integers(rng, case.x.shape)
    call = lambda x: lib.call(getattr(xpconv, case.function), x, case.w, **case.options)  # noqa: E731
    np.testing.assert_array_equal(call(2 * case.x + 3 * other), 2 * call(case.x) + 3 * call(other))


def test_shifting_the_input_shifts_the_result(lib):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (1, 8, 9, 2)), integers(rng, (3, 3, 2, 2))
    shifted = np.roll(x, (1, 2), axis=(1, 2))
    y = lib.call(xpconv.conv2d, x, w, padding="same", padding_mode="wrap")
    moved = lib.call(xpconv.conv2d, shifted, w, padding="same", padding_mode="wrap")
    np.testing.assert_array_equal(moved, np.roll(y, (1, 2), axis=(1, 2)))


def test_convolution_is_correlation_with_the_flipped_kernel(lib):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 6, 5, 4)), integers(rng, (3, 2, 2, 6))
    options = {"stride": 2, "dilation": (1, 2), "groups": 2, "padding": ((2, 0), (1, 3))}
    y = lib.call(xpconv.conv2d, x, w, **options)
    np.testing.assert_array_equal(y, lib.call(xpconv.corr2d, x, w[::-1, ::-1].copy(), **options))


def test_one_axis_lies_inside_two(lib):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 9, 3)), integers(rng, (4, 3, 2))
    y = lib.call(xpconv.conv1d, x, w, stride=2, padding=3)
    flat = lib.call(xpconv.conv2d, x[:, None], w[None], stride=(1, 2), padding=(0, 3))
    np.testing.assert_array_equal(y, flat[:, 0])


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_see_only_their_own_channels(lib, groups):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (1, 5, 5, 4)), integers(rng, (2, 2, 4 // groups, 8))
    y = lib.call(xpconv.conv2d, x, w, groups=groups)
    channels, maps = 4 // groups, 8 // groups
    parts = [
        lib.call(
            xpconv.conv2d, x[..., g * channels : (g + 1) * channels].copy(), w[..., g * maps : (g + 1) * maps].copy()
        )
        for g in range(groups)
    ]
    np.testing.assert_array_equal(y, np.concatenate(parts, axis=-1))


@pytest.mark.parametrize("m", range(1, 7))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_lays_the_centre_tap_on_every_stride_th_element(m, stride):
    x = np.arange(1, 11)
    centre = np.zeros(m, int)
    centre[(m - 1) // 2] = 1
    for dilation in (1, 2, 3):
        for function in (xpconv.conv1d, xpconv.corr1d):
            y = function(x, centre, padding="same", stride=stride, dilation=dilation)
            assert y.tolist() == x[::stride].tolist()


def test_complex_values_are_never_conjugated(lib):
    y = lib.call(xpconv.corr1d, np.array([1j, 2]), np.array([1j, 1]))
    np.testing.assert_array_equal(y, [1j * 1j + 2])


ACTIVATIONS = {
    "relu": lambda a: np.maximum(a, 0),
    "leaky_relu": lambda a: np.where(a < 0, 0.01 * a, a),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "gelu": lambda a: np.array([0.5 * v * (1 + __import__("math").erf(v / 2**0.5)) for v in a]),
    "silu": lambda a: a / (1 + np.exp(-a)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_applied_after_the_bias(lib, name):
    x = np.linspace(-6, 6, 25)
    y = lib.call(xpconv.conv1d, x, np.ones(1), np.array([0.25]), activation=name)
    np.testing.assert_allclose(y, ACTIVATIONS[name](x + 0.25), atol=1e-12)


def test_a_callable_activation_takes_the_finished_array(lib):
    y = lib.call(xpconv.conv1d, np.arange(4.0), np.ones(2), activation=lambda a: a * a)
    np.testing.assert_array_equal(y, [1, 9, 25])


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu"])
def test_activations_keep_nan_and_the_limits_at_infinity(lib, name):
    y = lib.call(xpconv.conv1d, np.array([np.nan, np.inf, -np.inf]), np.ones(1), activation=name)
    limits = {"tanh": (1, -1), "sigmoid": (1, 0), "leaky_relu": (np.inf, -np.inf)}.get(name, (np.inf, 0))
    assert np.isnan(y[0])
    np.testing.assert_array_equal(y[1:], limits)
