"""Small convolutions that NumPy repeats: the short way must not be told from the long one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal as scipy_signal

import xpconv
from cases import conv_cases, first, integers, weight_first
from xpconv.cpu import costs, joined, small, spectra
from xpconv.cpu.small_patches import by_taps, of_patches
from xpconv.cpu.spares import KEPT_BYTES, Spares
from xpconv.dispatch import run
from xpconv.engines import agnostic, numpy_pools
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import numpy as engine
from xpconv.engines import small as small_calls
from xpconv.repeats import _Calls, _key


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)


def check(function, arrays, **options):
    """Whether a call was repeated, and if so as the long way computes it."""
    request = function.request(*arrays, **options)
    repeat = engine.replay(request)
    if repeat is None:
        return False
    expected = run(request)
    y = repeat(*request.given)
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    assert not any(a is not None and np.shares_memory(y, a) for a in arrays)
    return True


@given(conv_cases(dtypes=(np.float32, np.float64)), st.sampled_from(["auto", "gemm"]), st.booleans())
def test_whatever_is_repeated_is_what_the_long_way_computes(case, method, channels_first):
    x, w = (first(case.x), weight_first(case.w)) if channels_first else (case.x, case.w)
    layout = "channels_first" if channels_first else "channels_last"
    options = {**case.options, "layout": layout, "fill_value": case.fill, "method": method}
    function = getattr(xpconv, case.function)
    if check(function, (x, w, case.bias), **options):
        request = function.request(x, w, case.bias, **options)
        expected = first(case.expected()) if channels_first else case.expected()
        np.testing.assert_array_equal(engine.replay(request)(*request.given), expected)


def defined(function, arrays, **options):
    """The reference engine's result."""
    request = function.request(*arrays, **options)
    y = getattr(agnostic, request.operation)(*request.arrays, request.spec, **request.options)
    return y[request.drop]


LAYERS = {  # batch, size, channels, filters, window, options
    "single channel": (1, (8, 9), 1, 4, (3, 3), {"padding": 1}),
    "single channels": (2, (8, 9), 1, 4, (3, 2), {"padding": ((2, 0), (0, 1)), "stride": (1, 2), "dilation": (2, 1)}),
    "channels": (1, (8, 8), 5, 6, (3, 3), {"padding": 1}),
    "images": (3, (8, 7), 5, 6, (3, 2), {"stride": 2, "padding": 1, "padding_mode": "constant", "fill_value": 2}),
    "strided": (2, (8, 6), 5, 6, (3, 3), {"padding": 1, "stride": 2}),
    "channels by themselves": (2, (8, 6), 5, 5, (3, 3), {"padding": 1, "groups": 5}),
    "no padding": (2, (8, 8), 3, 4, (2, 3), {}),
    "one tap": (2, (6, 5), 7, 4, (1, 1), {}),
    "one tap, padded": (1, (6, 5), 7, 4, (1, 1), {"padding": 1}),
    "one tap, strided": (2, (6, 5), 3, 1, (1, 1), {"stride": 2}),
    "one filter": (2, (8, 8), 3, 1, (3, 3), {"padding": "same"}),
    "joined": (1, (34, 36), 3, 6, (5, 5), {"padding": 2}),
    "channelwise": (2, (8, 7), 5, 5, (3, 2), {"padding": ((1, 0), (0, 2)), "stride": (1, 2), "groups": 5}),
    "signals": (2, (30,), 3, 4, (5,), {"padding": "full"}),
    "volume": (1, (5, 6, 4), 2, 3, (2, 3, 2), {"padding": 1}),
    "more than is kept": (1, (64, 70), 4, 2, (3, 3), {"padding": 1}),
}


def layer(name, layout, dtype, rng):
    batch, size, channels, filters, window, options = LAYERS[name]
    w_shape = (*window, channels // options.get("groups", 1), filters)
    x, w, bias = (rng.standard_normal(n) for n in ((batch, *size, channels), w_shape, (filters,)))
    x, w = (first(x), weight_first(w)) if layout == "channels_first" else (x, w)
    arrays = tuple(np.ascontiguousarray(a, dtype) for a in (x, w, bias))
    return arrays, {**options, "layout": layout}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [xpconv.conv, xpconv.corr])
def test_small_layers_are_the_definition(name, layout, dtype, function):
    arrays, options = layer(name, layout, dtype, np.random.default_rng(0))
    for activation in (None, "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"):
        for some in (arrays, arrays[:2]):
            assert check(function, some, activation=activation, **options)
            expected = defined(function, [a.astype("float64") for a in some], activation=activation, **options)
            for _ in range(2):
                y = function(*some, activation=activation, **options)
                np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 if dtype == "float32" else 1e-12)


# whose input gradients end before what they are made of, or read no tap in places
LEFT = ("single channels", "images", "one tap, padded", "one tap, strided", "channelwise")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("family", ["conv", "corr"])
def test_small_input_gradients_are_repeated(name, layout, family):
    (x, w, _), options = layer(name, layout, "float64", np.random.default_rng(0))
    options = {key: value for key, value in options.items() if key not in ("padding_mode", "fill_value")}
    size = LAYERS[name][1]
    grad, transpose = (getattr(xpconv, f"{family}_{part}") for part in ("grad_input", "transpose"))
    gy = getattr(xpconv, family)(x, w, **options)
    bias = np.arange(1.0, 1 + LAYERS[name][2])
    for function, arrays, more in ((grad, (gy, w), {"size": size}), (transpose, (gy, w, bias), {"activation": "relu"})):
        assert check(function, arrays, **options, **more) or name in LEFT
        expected = defined(function, arrays, **options, **more)
        for _ in range(2):
            np.testing.assert_allclose(function(*arrays, **options, **more), expected, rtol=1e-9, atol=1e-12)
    assert not check(grad, (gy, w), **{**options, "padding_mode": "wrap"}, size=size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("channel") or name == "channels"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("family", ["conv", "corr"])
def test_small_weight_gradients_are_the_definition(name, layout, family, dtype):
    rng = np.random.default_rng(0)
    (x, w, _), options = layer(name, layout, dtype, rng)
    options = {key: value for key, value in options.items() if key not in ("padding_mode", "fill_value")}
    gy = rng.standard_normal(getattr(xpconv, family)(x, w, **options).shape).astype(dtype)
    function, options = getattr(xpconv, f"{family}_grad_weight"), {**options, "window": LAYERS[name][4]}
    assert check(function, (x, gy), **options)
    x.flags.writeable = False
    spoilt = x.copy()
    spoilt.flat[x.size // 2] = np.nan
    for a, b in ((x, gy), (np.asfortranarray(x), gy[::-1].copy()[::-1]), (spoilt, gy)):
        expected = defined(function, [a.astype("float64"), b.astype("float64")], **options)
        for _ in range(2):
            y = function(a, b, **options)
            bound = 1e-4 if dtype == "float32" else 1e-11
            np.testing.assert_allclose(y, expected, rtol=bound, atol=bound)
            assert y.flags.c_contiguous
            assert y.dtype == dtype


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_poolings_of_whole_maps_are_repeated(layout, keepdims, dtype):
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(dtype)
    spoilt = x.copy()
    spoilt[1, 2, 2, 1] = np.nan
    for function in (xpconv.global_max_pool, xpconv.global_avg_pool):
        for a in (x, spoilt, np.asfortranarray(x), x[:, ::-1]):
            assert check(function, (a,), keepdims=keepdims, layout=layout)
            expected = defined(function, (a.astype("float64"),), keepdims=keepdims, layout=layout)
            for _ in range(2):
                y = function(a, keepdims=keepdims, layout=layout)
                np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def is_known(function, *args, **kwargs):
    """Whether a public function repeats calls of this kind with what is prepared."""
    calls = next(cell.cell_contents for cell in function.__closure__ if isinstance(cell.cell_contents, _Calls))
    known = calls.get(_key(args, kwargs, frozenset()))
    return known is not None and known.replay is not None


@pytest.mark.parametrize("dtype", ["float32", "int8", "complex64"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("shapes", [
    ((4, 30), (5,)), ((4, 30), (4, 5)), ((5,), (4, 30)), ((3, 1, 20), (2, 4)), ((30,), (5,)),
])  # fmt: skip
def test_batches_of_signals_are_repeated(shapes, mode, dtype):
    rng = np.random.default_rng(0)
    for name in ("convolve", "correlate"):
        function = getattr(xpconv.signal, name)
        for _ in range(3):
            in1, in2 = (integers(rng, shape, dtype) for shape in shapes)
            in2 = in2 * (2 - 1j) if dtype == "complex64" else in2
            rows = np.vectorize(lambda a, b, name=name: getattr(scipy_signal, name)(a, b, mode, method="direct"),
                                signature="(n),(m)->(k)")  # fmt: skip
            np.testing.assert_array_equal(function(in1, in2, mode, axes=-1), rows(in1, in2))
        assert is_known(function, in1, in2, mode, axes=-1) == (dtype == "float32")


def test_smallest_elements_are_repeated():
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float64", "int8"):
        for _ in range(3):
            x = integers(rng, (2, 8, 8, 3), dtype)
            np.testing.assert_array_equal(xpconv.min_pool(x, 2), x.reshape(2, 4, 2, 4, 2, 3).min(axis=(2, 4)))
            x[0, 1, 1, 1] = -128
            y, indices = xpconv.min_pool(x, 2, return_indices=True)
            assert (y[0, 0, 0, 1], indices[0, 0, 0, 1]) == (-128, 9)
        assert is_known(xpconv.min_pool, x, 2) == (dtype != "int8")


@pytest.mark.parametrize(("pays", "size", "filters"), [(True, 34, 6), (False, 28, 6), (False, 34, 8), (False, 34, 40)])
def test_results_are_joined_where_that_takes_less_than_it_saves(pays, size, filters):
    x, w = np.ones((1, size, size, 3), np.float32), np.ones((3, 3, 3, filters), np.float32)
    assert joined.pays_at_once(xpconv.corr.request(x, w, padding=1).spec) == pays


@pytest.mark.filterwarnings("error")
def test_results_that_are_joined_are_given_up_without_a_warning_where_one_is_not_finite():
    (x, w, _), options = layer("joined", "channels_last", "float64", np.random.default_rng(0))
    spec = xpconv.corr.request(x, w, **options).spec
    computed = small_calls.conv(x.dtype, "gemm", spec, 0, None, spec.y_shape)
    assert computed(x, w, None).shape == spec.y_shape
    x[0, 9, 9] = np.inf
    assert computed(x, w, None) is NotImplemented


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_in_a_small_layer_goes_where_the_definition_says(name, layout, value, where):
    arrays, options = layer(name, layout, "float64", np.random.default_rng(0))
    arrays[where].flat[arrays[where].size // 2] = value
    for activation in (None, "relu", "leaky_relu"):
        expected = defined(xpconv.corr, arrays, activation=activation, **options)
        for _ in range(2):
            y = xpconv.corr(*arrays, activation=activation, **options)
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["single channel", "images", "one tap"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_a_small_layer_reads_arrays_wherever_they_lie(name, layout):
    arrays, options = layer(name, layout, "float32", np.random.default_rng(0))
    x, w, bias = arrays
    expected = xpconv.corr(*arrays, **options)
    spread = np.zeros((*x.shape, 2), x.dtype)
    spread[..., 1] = x
    x.flags.writeable = w.flags.writeable = False
    backwards = [np.ascontiguousarray(a[::-1])[::-1] for a in arrays]
    for lying in ((x, w, bias), (spread[..., 1], np.asfortranarray(w), bias), backwards):
        for _ in range(2):
            np.testing.assert_array_equal(xpconv.corr(*lying, **options), expected)


def test_a_small_call_is_told_what_changed_in_place_and_gives_memory_of_its_own():
    rng = np.random.default_rng(0)
    for name in LAYERS:
        arrays, options = layer(name, "channels_last", "float64", rng)
        earlier = []
        for _ in range(4):
            y = xpconv.corr(*arrays, **options)
            np.testing.assert_allclose(y, defined(xpconv.corr, arrays, **options), rtol=1e-9, atol=1e-12)
            assert not any(np.shares_memory(y, other) for other in (*arrays, *earlier))
            earlier.append(y)
            for a in arrays:
                a += 1


def test_threads_that_repeat_a_small_call_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(0)
    w, window = integers(rng, (3, 3, 4, 5), "float32"), {"stride": 1, "padding": 1}
    xs = [integers(rng, (1, 8, 8, 4), "float32") for _ in range(8)]
    expected = [(defined(xpconv.corr, (x, w), padding=1), defined(xpconv.max_pool, (x, 3), **window)) for x in xs]

    def repeated(k):
        for _ in range(300):
            np.testing.assert_array_equal(xpconv.corr(xs[k], w, padding=1), expected[k][0])
            np.testing.assert_array_equal(xpconv.max_pool(xs[k], 3, **window), expected[k][1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(repeated, range(8)))


def test_a_call_within_a_call_has_memory_of_its_own_and_little_of_it_is_kept():
    spares = Spares(object, KEPT_BYTES)
    one, other = spares.take(), spares.take()
    assert one is not other
    spares.give(one)
    assert spares.take() is one
    many = [spares.take() for _ in range(100)]
    for each in many:
        spares.give(each)
    assert 100 - len({*many} - {spares.take() for _ in range(100)}) <= 4
    large = Spares(object, KEPT_BYTES + 1)
    large.give(one)
    assert large.take() is not one


@pytest.mark.parametrize("size", [4, 40, 100], ids=["all kept", "padding kept", "nothing kept"])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_patches_are_what_the_windows_read_in_whatever_memory(layout, window, padding, size):
    """Those of windows of one element could be a view of memory that the next call writes to."""
    shape = (1, size, size, 1) if layout == "channels_last" else (1, 1, size, size)
    xs = [np.random.default_rng(seed).standard_normal(shape) for seed in range(2)]
    spec = xpconv.sum_pool2d.request(xs[0], window, layout=layout, stride=1, padding=padding).spec
    patches = by_taps(spec, xs[0].dtype, spec.y_shape, (math.prod(spec.y_shape),))
    read = of_patches(spec, 7, patches, np.multiply, lambda copy: copy[::-1])
    found = [read(x, 2) for x in xs]
    for x, taps in zip(xs, found, strict=True):
        whole = np.pad(x.reshape(size, size), padding, constant_values=7)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (window, window))
        np.testing.assert_array_equal(taps, 2 * windows.transpose(2, 3, 0, 1).reshape(window**2, -1)[::-1])


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", ["single channel", "channels", "no padding"])
def test_a_small_layer_is_repeated_into_memory_of_the_users(name, layout):
    (x, w, bias), options = layer(name, layout, "float32", np.random.default_rng(0))
    expected = xpconv.corr(x, w, bias, activation="relu", **options)
    out = np.empty_like(expected)
    turned = np.empty(expected.shape[::-1], expected.dtype).T
    for memory in (out, turned):
        request = xpconv.corr.request(x, w, bias, activation="relu", out=memory, **options)
        assert engine.replay_into(request)(x, w, bias, memory) is memory
        np.testing.assert_array_equal(memory, expected)
        memory[...] = 0
        for _ in range(2):
            assert xpconv.corr(x, w, bias, activation="relu", out=memory, **options) is memory
            np.testing.assert_array_equal(memory, expected)
    out.flags.writeable = False
    with pytest.raises(TypeError, match="out cannot be written"):
        xpconv.corr(x, w, bias, activation="relu", out=out, **options)
    assert engine.replay_into(xpconv.corr.request(x, w, out=np.empty(expected.shape), **options)) is None


def test_a_small_signal_is_repeated_into_memory_of_the_users():
    x, w, out = np.arange(40.0), np.array([1.0, 2, -1]), np.empty(42)
    assert engine.replay_into(xpconv.conv1d.request(x, w, padding="full", out=out)) is not None
    for _ in range(3):
        np.testing.assert_array_equal(xpconv.conv1d(x, w, padding="full", out=out), np.convolve(x, w))
    memory = np.arange(60.0)
    for _ in range(2):
        with pytest.raises(ValueError, match="out overlaps x"):
            xpconv.conv1d(memory[:40], w, padding="full", out=memory[18:])


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("boundary", ["fill", "symm"])
@pytest.mark.parametrize("shapes", [((100,), (5,)), ((5,), (100,)), ((20, 18), (3, 4)), ((100,), (4,))])
def test_signals_in_the_words_of_scipy_are_repeated(mode, boundary, shapes):
    rng = np.random.default_rng(0)
    for name in ("convolve", "correlate"):
        for _ in range(3):
            in1, in2 = (integers(rng, shape) for shape in shapes)
            options = {} if boundary == "fill" else {"boundary": boundary}
            if len(shapes[0]) == 2 and not (name == "correlate" and mode == "same"):
                expected = getattr(scipy_signal, f"{name}2d")(in1, in2, mode, **options)
            elif boundary == "fill":
                expected = getattr(scipy_signal, name)(in1, in2, mode, method="direct")
            else:
                continue
            np.testing.assert_array_equal(getattr(xpconv.signal, name)(in1, in2, mode, **options), expected)


def test_of_signals_what_is_told_by_their_shapes_is_repeated():
    for shapes in ((100, 5), (5, 100)):
        in1, in2 = (np.arange(n, dtype="float64") for n in shapes)
        request = xpconv.signal.convolve.request(in1, in2)
        np.testing.assert_array_equal(engine.replay(request)(*request.given), np.convolve(in1, in2))
        assert {id(a) for a in request.given if a is not None} == {id(in1), id(in2)}


POOLS = [
    ((1, 8, 8, 4), 2, {}), ((2, 9, 7, 3), 3, {"stride": 2, "padding": 1}), ((2, 9, 7, 3), (3, 1), {"stride": 1}),
    ((2, 9, 7, 3), (1, 4), {"stride": (2, 1)}), ((1, 7, 8, 2), 2, {"ceil_mode": True, "padding": ((1, 0), (0, 1))}),
    ((2, 7, 9, 2), 2, {"ceil_mode": True}), ((2, 20, 3), 5, {"stride": 1, "dilation": 2, "padding": "same"}),
    ((1, 5, 4, 6, 2), 2, {}), ((3, 30), (2,), {}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "window", "options"), POOLS)
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_poolings_are_the_definition(shape, window, options, layout, dtype):
    rng = np.random.default_rng(0)
    x = integers(rng, shape, dtype)
    x = np.ascontiguousarray(np.moveaxis(x, -1, -len(window if isinstance(window, tuple) else shape[2:]) - 1)) if (
        layout == "channels_first") else x  # fmt: skip
    options = {**options, "layout": layout}
    counts = ({"count_include_pad": True}, {"count_include_pad": False}, {"divisor": 3}, {"divisor": 8})
    calls = [(xpconv.max_pool, {}), (xpconv.sum_pool, {}), *((xpconv.avg_pool, more) for more in counts)]
    for spoilt in (None, np.nan, np.inf, -np.inf):
        if spoilt is not None:
            x.flat[x.size // 2] = spoilt
        for function, more in calls:
            expected = defined(function, (x, window), **options, **more)
            request = function.request(x, window, **options, **more)
            repeat = engine.replay(request)
            for a in (x, np.asfortranarray(x), np.ascontiguousarray(x[::-1])[::-1]):
                one, other = repeat(a), repeat(a)
                np.testing.assert_allclose(one, expected, rtol=1e-6)
                assert not np.shares_memory(one, other)
                for _ in range(2):
                    y = function(a, window, **options, **more)
                    np.testing.assert_allclose(y, expected, rtol=1e-6)
                    assert y.dtype == x.dtype


def test_a_divisor_whose_inverse_is_infinite_still_divides():
    x = np.zeros((1, 8, 8, 4), "float32")
    assert (xpconv.avg_pool(x, 2, divisor=2.0**-140) == 0).all()


@pytest.mark.parametrize("value", [1e-41, 1.4e-45, 1e-38, 1.0])
def test_means_of_the_smallest_values_are_not_rounded_before_they_are_added(value):
    x = np.full((1, 8, 8, 4), value, "float32")
    np.testing.assert_array_equal(xpconv.avg_pool(x, 2), np.full((1, 4, 4, 4), x.flat[0]))


def test_maps_of_which_few_elements_are_read_are_not_copied_to_be_padded():
    spec = xpconv.max_pool.request(np.ones((1, 300, 300, 1)), 3, stride=100, padding=1).spec
    assert numpy_pools.small("max_pool", np.dtype("float64"), spec, {}) is None


def test_poolings_that_are_not_small_take_the_long_way():
    def is_small(spec, dtype="float64"):
        return numpy_pools.small("max_pool", np.dtype(dtype), spec, {}) is not None

    spec = xpconv.max_pool.request(np.ones((1, 8, 8, 4)), 2).spec
    assert is_small(spec)
    assert not is_small(spec, "int64")
    with xpconv.workspace_limit(8 * 8 * 4 * 8):
        assert is_small(spec)
    with xpconv.workspace_limit(8 * 8 * 4 * 8 - 1):
        assert not is_small(spec)
    for shape, window in (((1, 182, 182, 1), 2), ((1, 9, 9, 1), 1), ((0, 9, 9, 1), 2)):
        assert not is_small(xpconv.max_pool.request(np.ones(shape), window).spec)
    x = np.ones((1, 8, 8, 4))
    assert engine.replay(xpconv.max_pool.request(x, 2, return_indices=True)) is None
    assert engine.replay(xpconv.lp_pool.request(x, 2, p=2)) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), [
    ((1, 8, 8, 1), (3, 3, 1, 4), {"padding": 1}),
    ((2, 9, 8, 3), (3, 2, 3, 4), {"stride": (2, 1), "dilation": (1, 3), "padding": ((0, 2), (3, 1))}),
    ((2, 9, 8, 3), (3, 2, 3, 4), {"padding": 1, "padding_mode": "constant", "fill_value": 2.5}),
    ((50,), (5,), {"padding": "same"}),
    ((50,), (5,), {"padding": "full", "padding_mode": "constant", "fill_value": -3}),
    ((50,), (50,), {}),
    ((9, 2), (3, 2, 4), {}),
    ((33, 30), (3, 5), {"padding": "same"}),
    ((64, 64), (31, 31), {"padding": "same"}),
    ((41, 37), (4, 3), {"stride": (2, 3), "dilation": (3, 2), "padding": ((0, 2), (3, 1))}),
    ((41, 37), (4, 3), {"padding": 2, "padding_mode": "constant", "fill_value": 3}),
])  # fmt: skip
def test_small_layers_and_signals_are_repeated(x_shape, w_shape, options, activation, dtype):
    rng = np.random.default_rng(0)
    one_axis = len(w_shape) in (1, 3)
    for function in (xpconv.conv1d, xpconv.corr1d) if one_axis else (xpconv.conv2d, xpconv.corr2d):
        x, w = integers(rng, x_shape, dtype), integers(rng, w_shape, dtype)
        assert check(function, (x, w), activation=activation, **options)
        turned = x[::-1], np.asarray(w, order="F")
        assert check(function, turned, activation=activation, **options)


def test_what_is_large_or_read_by_other_rules_is_repeated_as_well():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((1, 8, 8, 2)), rng.standard_normal((3, 3, 2, 4))
    assert check(xpconv.conv2d, (x, w), method="gemm")
    assert check(xpconv.conv2d, (x, w), method="gemm", padding=1, padding_mode="wrap")
    assert check(xpconv.conv2d, (x, w[:, :, :1]), method="gemm", groups=2)
    assert check(xpconv.conv2d, (rng.standard_normal((1, 90, 90, 2)), rng.standard_normal((9, 9, 2, 4))), method="gemm")
    with xpconv.workspace_limit(36 * 18 * 8 - 1):  # less than the patches of all results
        assert check(xpconv.conv2d, (x, w), method="gemm")
    for method in ("fft", "direct"):
        assert check(xpconv.conv2d, (x, w), method=method)
    for size, window in ((90_000, 1001), (90_000, 60)):  # by spectra, and by bands
        assert check(xpconv.conv1d, (rng.standard_normal(size), rng.standard_normal(window)), padding="same")


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), [
    ((2, 56, 56, 16), (1, 1, 16, 80), {}),
    ((2, 40, 40, 32), (3, 3, 32, 48), {"padding": 1}),
    ((2, 40, 40, 32), (3, 3, 32, 48), {"padding": ((0, 2), (3, 1)), "stride": 2}),
])  # fmt: skip
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("value", [0, np.nan, -np.inf])
def test_large_layers_are_repeated(x_shape, w_shape, options, activation, layout, value):
    rng = np.random.default_rng(2)
    x, w, bias = (rng.standard_normal(shape, np.float32) for shape in (x_shape, w_shape, w_shape[-1:]))
    x[1, 5, 7, 3] = value
    x.flags.writeable = False
    if layout == "channels_first":
        x, w = np.ascontiguousarray(first(x)), weight_first(w)
    asked = {**options, "layout": layout, "activation": activation}
    with np.errstate(invalid="ignore"):
        for arrays in ((x, w, bias), (x[:, ::-1], w, None)):
            request = xpconv.corr2d.request(*arrays, **asked)
            y = engine.replay(request)(*request.given)
            if y is NotImplemented:
                assert xpconv.explain(xpconv.corr2d, *arrays, **asked).method == "winograd"
                assert value != 0
            else:
                np.testing.assert_array_equal(y, run(request))
                assert y.flags.c_contiguous


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_stays_within_the_windows_of_a_small_plane(value):
    x, w = np.ones((40, 40), np.float32), np.arange(1, 26, dtype=np.float32).reshape(5, 5)
    x[20, 20] = value
    w[1, 1] = 0
    with np.errstate(invalid="ignore", over="ignore"):
        expected = sum(w[4 - i, 4 - j] * x[i : i + 36, j : j + 36] for i in range(5) for j in range(5))
    request = xpconv.conv2d.request(x, w)
    np.testing.assert_allclose(engine.replay(request)(x, w, None), expected, rtol=1e-6)
    for _ in range(2):
        np.testing.assert_allclose(xpconv.conv2d(x, w), expected, rtol=1e-6)


def test_a_plane_whose_sums_are_more_than_the_limit_takes_the_long_way():
    x, w = np.ones((40, 40), np.float32), np.ones((5, 5), np.float32)
    spec = xpconv.conv2d.request(x, w, padding="same").spec
    for limit, is_small in ((40 * 5 * 44 * 4, True), (40 * 5 * 44 * 4 - 1, False)):
        with xpconv.workspace_limit(limit):
            assert (small_calls.conv(x.dtype, "direct", spec, 0, None, spec.y_shape) is not None) is is_small
            assert check(xpconv.conv2d, (x, w), padding="same")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "window", "options"), [
    ((1000,), (31,), {}), ((1001,), (40,), {"padding": "same", "dilation": 3}), ((5000,), (90,), {"stride": 3}),
    ((900,), (33,), {"padding": ((5, 40),), "padding_mode": "constant", "fill_value": 2}),
])  # fmt: skip
def test_rows_of_a_short_signal_are_multiplied_at_once(size, window, options, dtype):
    assert_once(small.signal, size, window, options, dtype, 2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "window", "options"), [
    ((3000,), (801,), {"padding": "same"}), ((90, 80), (31, 30), {}), ((64, 64), (31, 31), {"padding": "same"}),
    ((50, 60), (31, 12), {"padding": "full"}), ((70, 40), (9, 40), {"padding": ((20, 3), (0, 39))}),
    ((60,), (31,), {"padding": ((40, 33),)}), ((20, 30), (31, 33), {"padding": "full", "stride": 2}),
    ((90, 81), (30, 31), {"stride": (2, 3), "padding": ((3, 9), (0, 4)), "padding_mode": "constant", "fill_value": 7}),
])  # fmt: skip
def test_the_spectrum_of_a_small_plane_is_taken_at_once(size, window, options, dtype):
    assert_once(spectra.at_once, size, window, options, dtype, 2e-6)


def assert_once(prepare, size, window, options, dtype, bound):
    """That what is prepared is the definition, finite or not, with a mean that cancels."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(size) + 100).astype(dtype), rng.standard_normal(window)
    w = (w - w.mean()).astype(dtype)
    for function in (xpconv.conv, xpconv.corr):
        arrays = x[None, ..., None], w[..., None, None]
        request = function.request(*arrays, **options)
        fill = request.options["fill_value"]
        y = prepare(request.spec, x.dtype, fill)(*arrays).reshape(request.spec.y_shape)
        assert y.dtype == dtype
        wide = (a.astype("longdouble") for a in arrays)
        expected = function(*wide, **options)
        assert np.abs(y - expected).max() <= bound * max(np.abs(expected).max(), 1) * (1 if dtype == "float64" else 10)
        spoilt = x.copy()
        spoilt[(len(x) // 2,) * x.ndim] = np.inf
        assert prepare(request.spec, x.dtype, fill)(spoilt[None, ..., None], arrays[1]) is None


def test_one_signal_is_left_to_numpys_loop_where_that_is_quickest():
    def by(n, m, **options):
        spec = xpconv.conv1d.request(np.ones(n), np.ones(m), **options).spec
        return costs.direct_by(spec)

    assert by(1_000, 5) == by(50, 50) == by(1_000_000, 3) == "loop"
    assert by(1_000_000, 11) == by(10_000, 31) == by(3_000_000, 3) == "bands"
    assert by(1_000_000, 5, stride=2) != "loop"
    assert by(1_000_000, 5, dilation=2) != "loop"


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float32", "complex64", "longdouble"])
def test_the_loop_is_the_definition_in_every_dtype(dtype):
    rng = np.random.default_rng(3)
    x, w = integers(rng, 40, dtype), integers(rng, 7, dtype)
    if dtype == "complex64":
        x, w = x + 1j * integers(rng, 40, dtype), w - 2j * integers(rng, 7, dtype)
    spec = xpconv.conv1d.request(x, w).spec
    y = small.correlation(x[None, :, None], w[:, None, None], spec)[0, :, 0]
    np.testing.assert_array_equal(y, np.convolve(x, w, "valid"))
    assert y.dtype == x.dtype


@pytest.mark.parametrize("padding", [(0, 2), (2, 2), (1, 2), (2, 1), (4, 4), (2, 0), (7, 1)])
@pytest.mark.parametrize("size", [3, 20, 12_000, 600_000])
@pytest.mark.parametrize("edge", [1, np.inf])
@pytest.mark.parametrize("taps", [4, 5])
def test_the_loop_sums_over_what_is_there_and_over_zeros_alike(size, padding, edge, taps):
    x, w = np.arange(1.0, size + 1), np.array([edge, 2, -1, 5, edge])[-taps:]
    for function in (xpconv.conv1d, xpconv.corr1d):
        padded = np.pad(x, padding)
        with np.errstate(invalid="ignore"):
            expected = np.convolve(padded, w if function is xpconv.conv1d else w[::-1], "valid")
            for _ in range(2):
                y = function(x, w, padding=(padding,), method="direct")
                np.testing.assert_array_equal(y, expected)
            spec = function.request(x, w, padding=(padding,)).spec
            y = small.correlation(x[None, :, None], w[:, None, None], spec)
            np.testing.assert_array_equal(y[0, :, 0], expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "window", "options"), [
    ((64, 64), (31, 31), {}), ((64, 61), (5, 3), {"stride": 2}), ((64, 64), (3, 3), {"padding": "same"}),
    ((400,), (31,), {"padding": "same"}), ((90,), (5,), {}), ((20_000,), (7,), {"padding": 3}),
    ((1, 9, 9, 3), (3, 3, 3, 5), {"padding": 1}), ((2, 30, 3), (5, 3, 7), {}), ((1, 12, 12, 16), (3, 3, 16, 16), {}),
])  # fmt: skip
def test_a_repeated_call_gives_the_bits_of_the_first(monkeypatch, size, window, options, dtype):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(size).astype(dtype), rng.standard_normal(window).astype(dtype)
    function = getattr(xpconv, f"conv{len(window) if len(window) < 3 else len(window) - 2}d")
    first = function(x, w, **options)
    for _ in range(3):
        np.testing.assert_array_equal(function(x, w, **options), first)
