"""Calls that the compiled kernels repeat: the short way must not be told from the long one."""

import numpy as np
import pytest

import xpconv
from cases import integers
from xpconv.dispatch import run

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu import address
from xpconv.cpu.compiled import threads
from xpconv.cpu.compiled.build import machine
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import methods
from xpconv.engines import numpy as engine

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

LAYERS = {
    "direct": ((2, 24, 24, 16), (5, 5, 16, 24), {"stride": 2}),
    "one by one": ((2, 24, 24, 16), (1, 1, 16, 24), {}),
    "groups": ((2, 24, 24, 16), (3, 3, 4, 32), {"groups": 4, "padding": 1}),
    "depthwise": ((2, 24, 24, 32), (3, 3, 1, 32), {"groups": 32, "padding": 1}),
    "plane": ((40, 60), (5, 7), {"padding": "same"}),
    "signal": ((4000,), (31,), {"padding": "full"}),
    "winograd": ((2, 40, 40, 64), (3, 3, 64, 64), {"padding": 1}),
}


def kernels_of(function, *arrays, **options):
    """The compiled kernels that a call is left to."""
    request = function.request(*arrays, **options)
    x, spec = request.arrays[0], request.spec
    return compiled_calls.kernel_of(x.dtype, spec, methods.planned(x, spec, "auto").method)


def check(function, arrays, **options):
    """Each of several calls with arrays that lie alike, the later ones repeated."""
    repeat = engine.replay(function.request(*arrays[0], **options))
    assert repeat is not None
    for each in arrays:
        expected = run(function.request(*each, **options))
        y = function(*each, **options)
        np.testing.assert_array_equal(y, expected)
        assert y.strides == expected.strides
        np.testing.assert_array_equal(repeat(*function.request(*each, **options).given), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions(name, activation, layout, dtype):
    x_shape, w_shape, options = LAYERS[name]
    rng, function = np.random.default_rng(0), xpconv.conv1d if len(x_shape) == 1 else xpconv.conv2d
    options, arrays = {**options, "activation": activation}, []
    for biased in (True, True, True):
        x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
        bias = integers(rng, (), dtype) if len(x_shape) < 3 else integers(rng, w_shape[-1:], dtype)
        if len(x_shape) == 4 and layout == "channels_first":
            x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
            options["layout"] = layout
        arrays.append((x, w, bias if biased and len(x_shape) == 4 else None))
    kernel = kernels_of(function, *arrays[0], **options)
    assert kernel == {"one by one": "direct", "groups": "direct", "signal": "plane"}.get(name, name) or (
        name == "depthwise" and kernel == "plane"  # channels first
    )
    check(function, arrays, **options)


@pytest.mark.parametrize("pool", ["max_pool2d", "sum_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_poolings(pool, layout):
    rng = np.random.default_rng(0)
    arrays = [(integers(rng, (2, 32, 32, 32), "float32"), 3) for _ in range(3)]
    function = getattr(xpconv, pool)
    for x, window in arrays:
        expected = run(function.request(x, window, stride=2, layout=layout))
        np.testing.assert_array_equal(function(x, window, stride=2, layout=layout), expected)
    assert engine.replay(function.request(*arrays[0], stride=2, layout=layout)) is not None


@pytest.mark.parametrize(("shape", "layout"), [
    ((2, 32, 30, 16), "channels_last"), ((2, 16, 32, 30), "channels_first"), ((70, 65), "channels_last"),
])  # fmt: skip
def test_means_of_windows_that_count_different_elements(shape, layout):
    rng = np.random.default_rng(3)
    options = {"stride": 2, "padding": ((0, 1), (1, 2)), "count_include_pad": False, "layout": layout}
    for _ in range(3):
        x = integers(rng, shape, "float32")
        request = xpconv.avg_pool2d.request(x, 3, **options)
        np.testing.assert_array_equal(xpconv.avg_pool2d(x, 3, **options), run(request))
        np.testing.assert_allclose(run(request), xpconv.avg_pool2d(x.astype(float), 3, **options), rtol=1e-6)
    assert engine.replay(request) is not None


def test_arrays_that_lie_otherwise_are_another_call():
    rng = np.random.default_rng(1)
    whole, w = integers(rng, (2, 48, 48, 32), "float32"), integers(rng, (5, 5, 16, 24), "float32")
    views = [whole[:, ::2, ::2, :16], whole[:, :24, 24:, 16:], whole[::-1, 23::-1, :24, ::2], whole[:, :24, :24, :16]]
    kernels = [w, np.asarray(w, order="F"), w[::-1, :, ::-1], np.broadcast_to(w[:1, :1], w.shape)]
    for x in views:
        for kernel in kernels:
            expected = xpconv.conv2d(x.copy(), kernel.copy())
            for _ in range(2):
                np.testing.assert_array_equal(xpconv.conv2d(x, kernel), expected)


def test_tiles_of_spectra_that_are_computed_again_have_the_weight_of_their_channel():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 512, 512), np.float32), rng.standard_normal((2, 1, 31, 31), np.float32)
    x[0, 1, 100, 100] = np.nan
    options = {"groups": 2, "layout": "channels_first"}
    expected = xpconv.corr2d(x, w, method="direct", **options)
    for _ in range(3):
        found = xpconv.corr2d(x, w, method="fft", **options)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.nanmax(np.abs(expected)))


def test_a_value_that_is_not_finite_is_decided_anew():
    x, w = np.ones((2, 40, 40, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    assert xpconv.explain(xpconv.conv2d, x, w).method == "winograd"
    repeat = engine.replay(xpconv.conv2d.request(x, w, activation="relu"))
    x[1, 5, 6, 7] = np.nan
    assert repeat(x, w, None) is NotImplemented
    for _ in range(2):
        y = xpconv.conv2d(x, w, activation="relu")
        assert np.isnan(y[1, 3:6, 4:7]).all()
        assert np.isfinite(y).sum() == y.size - 9 * 64


def test_a_repeated_call_keeps_to_the_threads_that_are_free(monkeypatch):
    x, w = np.ones((2, 24, 24, 16), np.float32), np.ones((5, 5, 16, 24), np.float32)
    repeat = engine.replay(xpconv.conv2d.request(x, w))
    assert repeat(x, w, None) is not NotImplemented
    monkeypatch.setattr(compiled_calls.kernels(), "thread_count", lambda: threads.thread_count() + 1)
    assert repeat(x, w, None) is NotImplemented


def test_a_repeated_call_of_few_products_takes_one_thread_whatever_is_free(monkeypatch):
    x, w = np.ones((1, 8, 8, 1), np.float32), np.ones((3, 3, 1, 4), np.float32)
    assert kernels_of(xpconv.conv2d, x, w) == "direct"
    repeat, asked, run_ = engine.replay(xpconv.conv2d.request(x, w)), [], threads.run
    monkeypatch.setattr(threads, "run", lambda *told: asked.append(told[4]) or run_(*told))
    for free in (1, 2, 5):
        monkeypatch.setattr(compiled_calls.kernels(), "thread_count", lambda free=free: free)
        np.testing.assert_array_equal(repeat(x, w, None), np.full((1, 6, 6, 4), 9))
    assert asked == [1, 1, 1]


def test_a_bias_that_is_changed_in_place_is_read_anew():
    x, w = np.zeros((1, 8, 8, 1), np.float32), np.ones((3, 3, 1, 4), np.float32)
    bias = np.zeros(4, np.float32)
    for value in range(4):
        bias[1], w[1, 1] = value, value
        x[0, 4, 4] = 1
        y = xpconv.corr2d(x, w, bias)
        assert y[0, 0, 0].tolist() == [0, value, 0, 0]
        assert y[0, 3, 3].tolist() == [value, 2 * value, value, value]


def test_addresses_are_those_that_numpy_tells():
    whole = np.arange(24.0).reshape(4, 6)
    views = [whole, whole[1:, ::-2], whole[:0], whole.T, np.array(3), np.broadcast_to(whole[:1], (3, 6))]
    for view in views:
        assert address.address_of(view) == address._told_by_numpy(view) == view.ctypes.data
    assert address.address_of is address._read  # on CPython, which has NumPy's arrays in memory as C does


@pytest.mark.parametrize("function", [xpconv.global_avg_pool, xpconv.global_max_pool])
@pytest.mark.parametrize(("shape", "layout"), [((8, 64, 7, 7), "channels_first"), ((4, 40, 40, 1), "channels_last")])
def test_whole_maps_that_lie_in_one_piece(shape, layout, function):
    x = integers(np.random.default_rng(0), shape, "float32")
    axes = (2, 3) if layout == "channels_first" else (1, 2)
    expected = x.max(axes) if function is xpconv.global_max_pool else x.mean(axes)
    for _ in range(3):
        np.testing.assert_allclose(function(x, layout=layout), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("function", [xpconv.global_avg_pool, xpconv.global_max_pool])
@pytest.mark.parametrize("shape", [(3, 7, 7, 96), (1, 300, 40), (2, 3, 4, 5, 32), (2, 60, 70, 9)])
def test_poolings_of_whole_maps(shape, function, keepdims, dtype):
    x = integers(np.random.default_rng(0), shape, dtype)
    x[0, 0, ..., 3] = np.nan
    assert engine.replay(function.request(x, keepdims=keepdims)) is not None
    assert xpconv.explain(function, x).engine == "numpy"
    axes = tuple(range(1, x.ndim - 1))
    for array in (x, x[::-1, ::-1], x):
        y = function(array, keepdims=keepdims)
        reduced = array.max if function is xpconv.global_max_pool else array.mean
        expected = reduced(axes, keepdims=keepdims)
        assert y.dtype == x.dtype
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        first = np.moveaxis(array, -1, 1)
        y = function(first, keepdims=keepdims, layout="channels_first")
        np.testing.assert_allclose(y, np.moveaxis(expected, -1, 1) if keepdims else expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("options", [
    {"padding": 1}, {"stride": 2, "padding": 1}, {"stride": (3, 2), "dilation": (2, 1)}, {"stride": 2, "groups": 4},
])  # fmt: skip
def test_input_gradients_and_transposed_convolutions(options, layout, dtype):
    rng, groups, last = np.random.default_rng(2), options.get("groups", 1), layout == "channels_last"
    x, w = np.empty((2, 24, 25, 16)), integers(rng, (3, 3, 16 // groups, 32), dtype)
    gy = integers(rng, xpconv.corr2d(x, w, **options).shape, dtype)
    if not last:
        gy, w = np.moveaxis(gy, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    options = {**options, "layout": layout}
    arrays = [(gy, w), (gy[::-1] + 1, w), (gy, -w), (gy * 2, w)]
    check(xpconv.corr_grad_input, [a for a in arrays if a[0].flags.c_contiguous], size=(24, 25), **options)
    bias = integers(rng, 16, dtype)
    for activation in (None, "relu", "tanh"):
        biased = [(gy, w, bias), (gy, -w, 2 * bias)]
        check(xpconv.conv_transpose2d, biased, activation=activation, **options)


def test_an_input_gradient_that_is_not_finite_is_decided_anew():
    gy, w = np.ones((2, 40, 40, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    repeat = engine.replay(xpconv.corr_grad_input.request(gy, w, size=40, padding=1))
    gy[1, 5, 6, 7] = np.nan
    assert repeat(gy, w, None) is NotImplemented
    gx = xpconv.corr_grad_input(gy, w, size=40, padding=1)
    assert np.isfinite(gx).sum() == gx.size - 9 * 64


def test_a_phase_that_no_tap_reaches_takes_the_long_way():
    gy, w = np.ones((1, 8, 8, 8)), np.ones((2, 2, 8, 8))
    assert engine.replay(xpconv.corr_grad_input.request(gy, w, size=24, stride=3)) is None
