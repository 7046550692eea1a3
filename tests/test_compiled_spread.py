"""Input gradients of stride two in Winograd's domain, at once: against the definition, and when they go by phases."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import xpconv
from engine_cases import reference

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import kernels, threads, winograd
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.plan import Compiled, spread_plan
from xpconv.engines import agnostic, methods
from xpconv.engines import compiled as compiled_calls

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

BOUND = {"float32": 5e-6, "float64": 1e-13}
LAYOUTS = ("channels_last", "channels_first")


@pytest.fixture(autouse=True)
def _wait(monkeypatch):
    monkeypatch.setenv("XPCONV_COMPILE", "wait")


def forward_spec(
    size, channels=16, filters=32, batch=1, layout="channels_last", function=xpconv.corr, taps=3, **options
):
    """The convolution whose input's gradient is taken."""
    window = taps if isinstance(taps, tuple) else (taps,) * len(size)
    shapes = (batch, *size, channels), (*window, channels // options.get("groups", 1), filters)
    x, w = in_layout(layout, *(np.broadcast_to(np.float32(0), shape) for shape in shapes))
    return function.request(x, w, **{"stride": 2, "layout": layout} | options).spec


def in_layout(layout, maps, w):
    if layout == "channels_last":
        return maps, w
    return np.moveaxis(maps, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()


def normal(seed, *shapes, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def at_once(gy, w, bias, spec, activation=None, **options):
    """By the kernels, whatever the plan would take; `gy` and `w` as the layout has them."""
    assert compiled_calls.takes(gy.dtype, spec.input_adjoint).winograd
    gy, w = agnostic.channels_last(gy, spec.layout), agnostic.weight_last(w, spec.layout).swapaxes(-1, -2)
    return compiled_calls.by_kernels("winograd", gy, w, bias, spec.input_adjoint, 0, activation, **options)


def exact(gy, w, bias, spec, activation=None):
    """By the definition, in float64."""
    arrays = (a.astype(np.float64) for a in (gy, w, bias))
    gx = agnostic.conv_grad_input(*arrays, spec, activation=activation)
    return np.ascontiguousarray(gx)


def assert_near(gy, w, bias, spec, **options):
    gx, expected = at_once(gy, w, bias, spec, **options), exact(gy, w, bias, spec, **options)
    assert gx.shape == expected.shape == spec.x_shape
    assert np.abs(gx - expected).max() <= BOUND[gx.dtype.name] * np.abs(expected).max()


sides = st.tuples(st.integers(1, 24), st.integers(0, 5), st.integers(0, 3))


@given(
    st.sampled_from((3, 4, 5)), sides, sides, st.integers(1, 40), st.integers(1, 70), st.integers(1, 4),
    st.sampled_from(LAYOUTS), st.sampled_from([xpconv.corr, xpconv.conv]), st.sampled_from(sorted(BOUND)),
    st.sampled_from([None, "relu", "leaky_relu"]),
)  # fmt: skip
def test_gradients_of_any_geometry(
    taps, down, across, channels, filters, batch, layout, function, dtype, activation
):
    size, before, after = zip(down, across, strict=True)
    assume(sum(before) % 2 == 0)
    assume(all(n + lo + hi >= taps for n, lo, hi in (down, across)))
    padding = tuple(zip(before, after, strict=True))
    spec = forward_spec(size, channels, filters, batch, layout, function, taps, padding=padding)
    arrays = normal(channels * 100 + filters, spec.y_shape, spec.w_shape, (channels,), dtype=dtype)
    assert_near(*arrays, spec, activation=activation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "channels", "filters", "batch", "padding"), [
    ((56, 56), 128, 128, 1, 1), ((57, 50), 64, 48, 3, 0), ((14, 15), 256, 96, 9, 1), ((200, 301), 16, 8, 1, 2),
    ((7, 7), 512, 64, 1, 1), ((3, 4000), 24, 40, 1, 1),
])  # fmt: skip
@pytest.mark.parametrize("taps", [3, 4, 5])
def test_blocks_cover_a_gradient_once(size, channels, filters, batch, padding, layout, taps):
    spec = forward_spec(size, channels, filters, batch, layout, taps=taps, padding=padding)
    assert_near(*normal(1, spec.y_shape, spec.w_shape, (channels,)), spec)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taps", [3, 4, 5])
def test_stripes_of_a_tile_make_the_same_gradient(layout, padding, taps):
    spec = forward_spec((19, 43), 5, 9, 2, layout, taps=taps, padding=padding)
    arrays = normal(2, spec.y_shape, spec.w_shape, (5,))
    kernels._prepared.cache_clear()
    with mock.patch.object(winograd, "_tiles", return_value=1):
        assert_near(*arrays, spec)
    kernels._prepared.cache_clear()


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taps", [3, 4, 5])
def test_nothing_beside_a_view_is_used(layout, padding, taps):
    spec = forward_spec((21, 30), 17, 19, 2, layout, taps=taps, padding=padding)
    shape = spec.y_shape
    around = np.full([n + 8 for n in shape], np.nan, "f")
    gy = around[tuple(slice(4, 4 + n) for n in shape)]
    gy[...], w, bias = normal(3, shape, spec.w_shape, (17,))
    assert_near(gy, w, bias, spec)
    assert_near(gy[:, ::-1, ::-1], w, bias, spec)
    assert_near(gy, np.repeat(w, 2, axis=-1)[..., ::2], bias, spec)


@pytest.mark.parametrize(("size", "options"), [
    ((20, 20), {"padding": ((1, 1), (0, 1))}), ((20, 20), {"dilation": 2}), ((20, 20), {"groups": 2}),
    ((20, 20), {"stride": 3}), ((20, 20), {"stride": (2, 1)}), ((20,), {}), ((9, 20, 20), {}), ((20, 20), {"taps": 2}),
    ((20, 20), {"taps": 6}), ((20, 20), {"taps": (3, 5)}),
], ids=str)  # fmt: skip
def test_other_gradients_are_not_taken(size, options):
    assert winograd.members("float32", forward_spec((20, 20)).input_adjoint, 1 << 28, 2)
    assert not winograd.members("float32", forward_spec(size, **options).input_adjoint, 1 << 28, 2)


def taken(spec, share=1.0):
    return Compiled(filters=spec.channels, winograd=share, threads=2)


@pytest.mark.parametrize(("taps", "size", "channels", "filters", "batch", "is_taken"), [
    (3, (56, 56), 128, 128, 1, True), (3, (112, 112), 64, 64, 8, True), (3, (28, 28), 256, 256, 8, True),
    (3, (28, 28), 16, 32, 1, False), (3, (224, 224), 3, 64, 8, False), (3, (14, 14), 512, 512, 1, False),
    (4, (28, 28), 64, 64, 8, True), (5, (32, 32), 192, 192, 1, True), (4, (224, 224), 8, 8, 8, False),
])  # fmt: skip
def test_the_plan_weighs_the_transforms(taps, size, channels, filters, batch, is_taken):
    spec = forward_spec(size, channels, filters, batch, taps=taps, padding=1)
    assert bool(spread_plan(spec, 4, taken(spec))) is is_taken


def test_the_plan_weighs_the_threads_that_have_room():
    spec = forward_spec((56, 56), 128, 128, 8, padding=1)
    assert spread_plan(spec, 4, taken(spec)).threads == 2
    assert spread_plan(spec, 4, taken(spec, 0.5)) is None
    assert spread_plan(spec, 4, taken(spec, 0)) is None


# --- By the public functions ------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """Arrays, and options, of a gradient that is taken at once; how many were so far."""
    made, by_kernels, prepared = [], compiled_calls.by_kernels, compiled_calls.prepared

    def counted(kernel, *arguments, **options):
        made.append(kernel)
        return by_kernels(kernel, *arguments, **options)

    def repeated(kernel, *arguments):
        made.append(kernel)
        return prepared(kernel, *arguments)

    monkeypatch.setattr(compiled_calls, "by_kernels", counted)
    monkeypatch.setattr(compiled_calls, "prepared", repeated)
    gy, w, bias = normal(4, (2, 28, 28, 128), (3, 3, 128, 128), (128,))
    return gy, w, bias, {"stride": 2, "padding": 1, "size": (56, 56)}, made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_gradient_is_computed_at_once_and_repeated_to_the_bit(large, layout):
    gy, w, _, options, made = large
    expected = reference(xpconv.corr_grad_input, gy, w, **options)
    (gy, w), (expected, _) = in_layout(layout, gy, w), in_layout(layout, expected, w)
    made.clear()
    once = xpconv.corr_grad_input(gy, w, layout=layout, **options)
    assert set(made) == {"winograd"}
    again = xpconv.corr_grad_input(gy, w, layout=layout, **options)
    assert (once == again).all()
    assert np.abs(once - expected).max() <= 5e-6 * np.abs(expected).max()
    assert xpconv.explain(xpconv.corr_grad_input, gy, w, layout=layout, **options).method == "winograd"


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_a_transposed_convolution_adds_its_bias_and_activation(large, activation):
    gy, w, bias, _, made = large
    w, bias = w / 70, bias / 70
    options = {"stride": 2, "padding": 1, "output_padding": 1, "activation": activation}  # tanh is no kernel's
    expected = reference(xpconv.conv_transpose, gy, w, bias, **options)
    made.clear()
    for _ in range(2):
        y = xpconv.conv_transpose(gy, w, bias, **options)
        assert np.abs(y - expected).max() <= 5e-6 * np.abs(expected).max()
    assert set(made) == {"winograd"}


def test_a_changed_weight_is_transformed_again(large):
    gy, w, _, options, _ = large
    xpconv.corr_grad_input(gy, w, **options)
    before = xpconv.corr_grad_input(gy, w, **options)
    w *= 2
    np.testing.assert_allclose(xpconv.corr_grad_input(gy, w, **options), 2 * before, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_stays_in_its_windows(large, layout, value):
    gy, w, _, options, _ = large
    gy[0, 5, 7, 3], gy[1, 27, 0, 1] = value, value
    expected = reference(xpconv.corr_grad_input, gy, w, **options)
    (gy, w), (expected, _) = in_layout(layout, gy, w), in_layout(layout, expected, w)
    for _ in range(2):
        gx = xpconv.corr_grad_input(gy, w, layout=layout, **options)
        assert (np.isfinite(gx) == np.isfinite(expected)).all()
        np.testing.assert_allclose(gx, expected, rtol=0, atol=1e-3)


def test_a_tap_that_is_not_finite_reaches_its_phase_alone(large):
    gy, w, _, options, _ = large
    w[1, 1, 0, 0] = np.nan
    gx = xpconv.corr_grad_input(gy, w, **options)
    assert np.isnan(gx[:, ::2, ::2, 0]).all()
    assert np.isfinite(gx[:, 1::2]).all()
    assert np.isfinite(gx[..., 1:]).all()


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_gradients_of_padding_are_brought_back(large, mode):
    gy, w, _, options, made = large
    options = options | {"padding_mode": mode}
    expected = reference(xpconv.corr_grad_input, gy, w, **options)
    made.clear()
    gx = xpconv.corr_grad_input(gy, w, **options)
    assert "winograd" in made
    assert np.abs(gx - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(8, 0, 500, 128), (8, 500, 0, 128)])
def test_a_gradient_of_nothing_is_nothing_but_the_bias(shape):
    w, bias = np.zeros((5, 5, 128, 128), "f"), np.arange(128, dtype="f")
    expected = reference(xpconv.conv_transpose, np.zeros(shape, "f"), w, bias, stride=2)
    for _ in range(2):
        y = xpconv.conv_transpose(np.zeros(shape, "f"), w, bias, stride=2)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("limit", [1 << 16, 1 << 18, 1 << 20])
@pytest.mark.parametrize("mode", ["zeros", "edge", "wrap"])
def test_what_memory_holds_alone_makes_the_same_gradient(large, mode, limit):
    gy, w, _, options, _ = large
    options = options | {"padding_mode": mode}
    expected = reference(xpconv.corr_grad_input, gy, w, **options)
    with xpconv.workspace_limit(limit):
        gx = xpconv.corr_grad_input(gy, w, **options)
    assert np.abs(gx - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("mode", ["zeros", "constant", "edge"])
def test_explain_tells_what_computes_it_now(large, monkeypatch, mode):
    gy, w, _, options, _ = large
    options = options | {"padding_mode": mode}
    assert xpconv.explain(xpconv.corr_grad_input, gy, w, **options).method == "winograd"
    monkeypatch.setattr(compiled_calls, "is_ready", lambda kernel, *_: kernel != "winograd")
    plan = xpconv.explain(xpconv.corr_grad_input, gy, w, **options)
    assert plan.reason == "one convolution for each phase of the stride, as the kernels are being compiled"


def test_without_room_for_tiles_it_goes_by_phases(large):
    gy, w, _, options, made = large
    whole = xpconv.corr_grad_input(gy, w, **options)
    made.clear()
    with xpconv.workspace_limit(1 << 13):
        assert methods.spread_gradient(gy, forward_spec((56, 56), 128, 128, 2, padding=1)) is None
        gx = xpconv.corr_grad_input(gy, w, **options)
    assert "winograd" not in made
    assert np.abs(gx - whole).max() <= 5e-6 * np.abs(whole).max()


def test_any_number_of_threads_makes_the_same_bits(large, monkeypatch):
    gy, w, _, options, _ = large
    made = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        made.append(xpconv.corr_grad_input(gy, w, **options))
    assert (made[0] == made[1]).all()
    assert (made[0] == made[2]).all()
