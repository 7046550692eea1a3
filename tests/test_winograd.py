"""Winograd's minimal filtering in NumPy: its results, its bounds, and when it steps aside."""

import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from xpconv.cpu import blas, kept, team, winograd, winograd_blocks, winograd_plan
from xpconv.engines import compiled as compiled_calls


@pytest.mark.parametrize("transform", [
    *winograd.IMAGES.values(), winograd.F2, *winograd.STRIDED.values(), *winograd.SPREAD.values(), winograd.F3,
])  # fmt: skip
def test_the_matrices_make_what_the_definition_makes(transform):
    rng = np.random.default_rng(0)
    results, taps, reads = len(transform.output), transform.taps, transform.reads[0]
    d, w = rng.integers(-9, 9, reads), rng.integers(-9, 9, taps)
    read = np.zeros((results - 1) * transform.stride + taps)
    read[transform.first :: transform.spread] = d
    expected = np.correlate(read, w, "valid")[:: transform.stride]
    made = transform.output @ ((transform.filter @ w) * (transform.input @ d))
    np.testing.assert_allclose(made, expected, atol=1e-12)


def exact(function, x, w, **options):
    return function(x.astype(np.float64), w.astype(np.float64), method="gemm", **options)


def assert_near(y, expected, bound):
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= bound * np.abs(expected).max()


@pytest.fixture(params=["numpy", "compiled"])
def side(request, monkeypatch):
    """NumPy alone, or with the compiled kernels."""
    if request.param == "numpy":
        monkeypatch.setattr(compiled_calls, "kernels", lambda: None)
    elif compiled_calls.kernels() is None:
        pytest.skip("the extra fast is not installed")
    return request.param


@pytest.fixture
def alone(monkeypatch):
    """NumPy, without the compiled kernels."""
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)


sizes = st.tuples(st.integers(3, 17), st.integers(3, 17))
TAPS = st.sampled_from((3, 3, 4, 5))  # of a window, along an axis of images


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    sizes, st.integers(1, 40), st.integers(1, 70), st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.sampled_from(["channels_last", "channels_first"]), st.booleans(), st.sampled_from([1, 2**26]), TAPS,
)  # fmt: skip
def test_winograd_agrees_with_the_definition(
    dtype, size, channels, filters, batch, dilation, layout, flip, limit, taps
):
    rng = np.random.default_rng(sum(size) * 100 + channels)
    x = rng.standard_normal((batch, *size, channels)).astype(dtype)
    w = rng.standard_normal((taps, taps, channels, filters)).astype(dtype)
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
    options = {"dilation": dilation, "padding": "same", "layout": layout}
    function = xpconv.conv2d if flip else xpconv.corr2d
    with xpconv.workspace_limit(limit):
        y = function(x, w, method="winograd", **options)
    assert_near(y, exact(function, x, w, **options), 3e-5 if dtype == "float32" else 1e-12)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    sizes, st.tuples(*[st.integers(0, 3)] * 4), st.integers(1, 40), st.integers(1, 70), st.integers(1, 3),
    st.sampled_from(["channels_last", "channels_first"]), st.booleans(), st.sampled_from([1, 2**26]), TAPS,
)  # fmt: skip
def test_winograd_of_stride_two_agrees_with_the_definition(
    dtype, size, pads, channels, filters, batch, layout, flip, limit, taps
):
    rng = np.random.default_rng(sum(size) * 100 + channels)
    pads = tuple(max(pad, taps - min(size)) for pad in pads)
    x = rng.standard_normal((batch, *size, channels)).astype(dtype)
    w = rng.standard_normal((taps, taps, channels, filters)).astype(dtype)
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
    options = {"stride": 2, "padding": (pads[:2], pads[2:]), "layout": layout}
    function = xpconv.conv2d if flip else xpconv.corr2d
    with xpconv.workspace_limit(limit):
        y = function(x, w, method="winograd", **options)
    assert_near(y, exact(function, x, w, **options), 2e-6 if dtype == "float32" else 1e-13)


@pytest.mark.usefixtures("side")
def test_winograd_of_stride_two_rounds_hardly_more_than_sums():
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((2, 28, 28, 256), (3, 3, 256, 64)))
    options = {"stride": 2, "padding": 1}
    expected = exact(xpconv.corr2d, x, w, **options)
    assert_near(xpconv.corr2d(x, w, method="winograd", **options), expected, 1.5e-6)
    assert_near(xpconv.corr2d(x, w, method="direct", **options), expected, 1.5e-6)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("place", [(0, 0), (17, 18), (18, 17), (55, 55)])
def test_auto_lets_nothing_spread_at_stride_two(value, place):
    x, w = np.ones((1, 56, 56, 128), np.float32), np.ones((3, 3, 128, 128), np.float32)
    x[0, *place, 5] = value
    y, expected = (xpconv.corr2d(x, w, stride=2, padding=1, method=method) for method in ("auto", "gemm"))
    np.testing.assert_allclose(y, expected, rtol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    st.integers(1, 40), st.integers(3, 12), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3),
    st.integers(1, 3), st.sampled_from(["channels_last", "channels_first"]), st.booleans(),
    st.sampled_from([1, 2**26]),
)  # fmt: skip
def test_winograd_of_signals_agrees_with_the_definition(
    dtype, size, window, channels, filters, batch, dilation, layout, flip, limit
):
    rng = np.random.default_rng(size * 100 + channels)
    x = rng.standard_normal((batch, size, channels)).astype(dtype)
    w = rng.standard_normal((window, channels, filters)).astype(dtype)
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1), w.transpose(2, 1, 0)
    options = {"dilation": dilation, "padding": "same", "layout": layout}
    function = xpconv.conv1d if flip else xpconv.corr1d
    with xpconv.workspace_limit(limit):  # that of a byte leaves all to NumPy
        y = function(x, w, method="winograd", **options)
    assert_near(y, exact(function, x, w, **options), 3e-5 if dtype == "float32" else 1e-13)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("mode", ["zeros", "constant", "edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize(("window", "dilation"), [(3, 1), (4, 2), (9, 1), (5, 3)])
def test_winograd_of_signals_pads_in_every_mode(mode, window, dilation):
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((2, 31, 3)), rng.standard_normal((window, 3, 5))
    options = {"padding": ((4, 2),), "padding_mode": mode, "dilation": dilation}
    assert_near(xpconv.corr(x, w, method="winograd", **options), exact(xpconv.corr, x, w, **options), 1e-13)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("mode", ["zeros", "constant", "edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("dilation", [1, (2, 1, 1), (1, 2, 3)])
def test_winograd_in_the_last_two_axes_of_a_volume(mode, dilation):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 7, 9, 11, 3)), rng.standard_normal((2, 3, 3, 3, 5))
    options = {"padding": ((1, 0), (2, 1), (3, 2)), "padding_mode": mode, "dilation": dilation}
    assert_near(xpconv.corr(x, w, method="winograd", **options), exact(xpconv.corr, x, w, **options), 1e-12)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("size", [7, 14, 56])
def test_winograd_errs_by_less_than_its_bound_in_float32(size):
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((1, size, size, 256), (3, 3, 256, 64)))
    assert_near(xpconv.corr2d(x, w, padding=1, method="winograd"), exact(xpconv.corr2d, x, w, padding=1), 3e-5)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_auto_lets_nothing_spread_beyond_its_windows(value):
    x, w = np.ones((8, 56, 56, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    assert xpconv.explain(xpconv.corr2d, x, w).method == "winograd"
    x[1, 20, 30, 5] = value
    y = xpconv.corr2d(x, w)
    touched = np.zeros(y.shape[:3], bool)
    touched[1, 18:21, 28:31] = True
    np.testing.assert_allclose(y[~touched], 576, rtol=3e-5)
    expected = np.float32(575) + np.float32(value)
    np.testing.assert_allclose(y[touched], expected, rtol=1e-6)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("channels", [64, 2048])
@pytest.mark.parametrize("window", [3, 9, 15])
def test_winograd_of_signals_errs_by_less_than_its_bound_in_float32(window, channels):
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal(shape, np.float32) for shape in ((1, 100, channels), (window, channels, 40)))
    assert_near(xpconv.corr1d(x, w, method="winograd"), exact(xpconv.corr1d, x, w), 3e-5)


@pytest.mark.parametrize(
    ("window", "options", "words"),
    [
        ((5, 3, 2, 4), {}, r"got window \(5, 3\), stride \(1, 1\), dilation \(1, 1\), groups=1: take method='auto'"),
        ((3, 3, 2, 4), {"stride": 3}, r"stride \(3, 3\)"),
        ((3, 3, 2, 4), {"stride": (2, 1)}, r"stride \(2, 1\)"),
        ((3, 3, 2, 4), {"stride": 2, "dilation": 2}, r"stride \(2, 2\), dilation \(2, 2\)"),
        ((3, 3, 1, 4), {"groups": 2}, "groups=2"),
        ((2, 2, 4), {}, r"at least 3 on a single one, .*; got window \(2,\)"),
        ((9, 2, 4), {"stride": 2}, r"stride \(2,\)"),
        ((9, 1, 4), {"groups": 2}, "groups=2"),
    ],
)
def test_winograd_says_what_it_takes(window, options, words):
    x = np.ones((1, *(30,) * (len(window) - 2), 2), np.float32)
    with pytest.raises(ValueError, match=words):
        xpconv.conv(x, np.ones(window, np.float32), method="winograd", **options)


@pytest.fixture
def by_stages(alone, monkeypatch):  # noqa: ARG001
    """NumPy alone, and three threads that share every stage, whatever the size."""
    monkeypatch.setattr(team, "thread_count", lambda: 3)
    monkeypatch.setattr(winograd_plan, "is_staged", lambda spec: True)  # noqa: ARG005
    monkeypatch.setattr(winograd_plan, "_SHARED_OPERATIONS", 0)
    winograd_plan.plan_of.cache_clear()
    yield
    winograd_plan.plan_of.cache_clear()


@pytest.mark.usefixtures("by_stages")
@pytest.mark.parametrize(("size", "window", "options"), [
    ((29, 31), (3, 3), {"padding": 1}),
    ((29, 31), (3, 3), {"padding": ((3, 0), (0, 4)), "dilation": 2}),
    ((5, 7), (3, 3), {}),
    ((2000,), (9,), {"padding": 4}),
    ((500,), (31,), {"padding": 2, "dilation": 3}),
    ((7, 12, 13), (3, 3, 3), {"padding": 1}),
    ((40, 12, 13), (2, 3, 3), {"padding": (1, 0, 0), "dilation": (3, 1, 1)}),
])  # fmt: skip
@pytest.mark.parametrize("limit", [1, 2**26])
def test_stages_that_threads_share_make_what_the_definition_says(size, window, options, limit):
    rng = np.random.default_rng(len(size))
    x, w = rng.standard_normal((3, *size, 6)), rng.standard_normal((*window, 6, 5))
    x = x[:, ::-1]
    x.flags.writeable = False
    with xpconv.workspace_limit(limit):
        y = xpconv.corr(x, w, method="winograd", **options)
    assert_near(y, exact(xpconv.corr, x, w, **options), 1e-12)


@pytest.mark.usefixtures("by_stages")
def test_products_are_made_of_the_blocks_of_all_threads_where_the_weight_is_large():
    spec = xpconv.corr.request(np.ones((8, 28, 28, 16)), np.ones((3, 3, 16, 8))).spec
    plan = winograd_plan.plan_of(spec, 2**20, 8, 3)
    assert len(plan.groups) > 1
    assert {len(group) for group in plan.groups[:-1]} == {3}
    assert [number for group in plan.groups for number in group] == list(range(len(plan.blocks)))


def test_winograd_refuses_integers():
    with pytest.raises(ValueError, match="which integers cannot hold; take method='gemm'"):
        xpconv.conv2d(np.ones((1, 8, 8, 1), int), np.ones((3, 3, 1, 1), int), method="winograd")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("limit", [1, 2**20, 2**26])
def test_the_workspace_of_a_block_keeps_to_the_limit(limit):
    spec = xpconv.corr.request(np.ones((8, 56, 56, 16)), np.ones((3, 3, 16, 8))).spec
    weight = 2 * 36 * 16 * 8 * 8
    ends = 36 * 64  # of rows that begin at an odd number of cache lines
    tile = (36 * 2 * 16 + 36 * 16) * 8 + 4 * ends  # before and after, and what it is cut from
    assert winograd_blocks.workspace(spec, 8, limit) - weight - 2 * ends <= max(limit, tile)


@pytest.mark.usefixtures("alone")
def test_a_long_row_of_tiles_is_cut_in_even_parts():
    spec = xpconv.corr.request(np.broadcast_to(0.0, (1, 8, 5000, 16)), np.empty((3, 3, 16, 8)), padding=1).spec
    plan = winograd_plan.plan_of(spec, 2**26, 8, 2)
    counts = [piece.shape[2] for block in plan.blocks for piece in block.pieces if piece.rows.start == 0]
    assert len(counts) > 3
    assert max(counts) - min(counts) <= len(counts)
    assert sum(counts) == 1250
    assert plan.block_bytes < 5 << 20


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("limit", [1, 2**20, 2**26])
def test_a_block_of_a_signal_takes_the_memory_that_the_plan_says(limit):
    x, w = np.ones((4, 3000, 16), np.float32), np.ones((9, 16, 8), np.float32)
    spec = xpconv.corr.request(x, w).spec
    winograd_blocks.conv(x, w, spec, limit)
    tracemalloc.start()
    y = winograd_blocks.conv(x, w, spec, limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    padded = x.nbytes  # once more where the last tile ends beyond it
    assert peak - y.nbytes <= winograd_blocks.workspace(spec, 4, limit) + padded


@pytest.mark.usefixtures("alone")
def test_every_product_of_a_call_is_left_to_the_thread_that_asks(monkeypatch):
    shared, multiply = [], np.matmul
    x, w = np.ones((2, 56, 56, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    spec = xpconv.corr.request(x, w).spec
    openblas = blas.library()
    if openblas is None:
        pytest.skip("NumPy has another BLAS")

    def seen(*operands, **options):
        shared.append(openblas.threads())
        return multiply(*operands, **options)

    monkeypatch.setattr(np, "matmul", seen)
    winograd_blocks.conv(x, w, spec, 2**26)
    assert set(shared) == {1}


@pytest.mark.parametrize("transform", [winograd.F2, winograd.F3, winograd.F4, winograd.F9])
def test_the_matrix_of_a_tile_s_elements_is_that_of_its_values(transform):
    rng = np.random.default_rng(9)
    tile, taps = rng.standard_normal(transform.edges), rng.standard_normal(transform.taps**transform.axes)
    points = transform.of_elements(np.dtype(float)) @ tile.reshape(-1)
    points *= transform.flattened(transform.filter, np.dtype(float)) @ taps
    y = transform.flattened(transform.output, np.dtype(float)) @ points
    window = (transform.taps,) * transform.axes + (1,) * (2 - transform.axes)
    windows = np.lib.stride_tricks.sliding_window_view(tile, window)
    np.testing.assert_allclose(y, (windows * taps.reshape(window)).sum((-2, -1)).reshape(-1), rtol=1e-11)


@pytest.mark.parametrize("transform", [winograd.F2, winograd.F3, winograd.F4])
def test_the_matrices_make_a_convolution_of_one_axis(transform):
    rng = np.random.default_rng(3)
    d, g = rng.standard_normal(len(transform.input)), rng.standard_normal(3)
    y = transform.output @ ((transform.filter @ g) * (transform.input @ d))
    np.testing.assert_allclose(y, np.correlate(d, g, "valid"), rtol=1e-12)


@pytest.mark.usefixtures("side")
def test_no_activation_hides_what_is_not_finite():
    x, w = np.full((8, 56, 56, 64), 1e38, np.float32), np.full((3, 3, 64, 64), 1e-38, np.float32)
    w[..., ::2, :] *= -1
    w[1, 1] *= 3
    assert xpconv.explain(xpconv.corr2d, x, w).method == "winograd"
    expected = xpconv.corr2d(x[:1, :5, :5], w, method="gemm", activation="relu")
    np.testing.assert_allclose(xpconv.corr2d(x, w, activation="relu")[:1, :3, :3], expected, atol=1e-3)


@pytest.mark.usefixtures("side")
def test_a_weight_of_signals_changed_in_place_is_seen():
    rng = np.random.default_rng(8)
    x, w = rng.standard_normal((2, 100, 32), np.float32), rng.standard_normal((7, 32, 40), np.float32)
    for _ in range(3):
        assert_near(xpconv.corr1d(x, w, method="winograd"), exact(xpconv.corr1d, x, w), 3e-5)
        w[rng.integers(7), rng.integers(32), rng.integers(40)] += 50


@pytest.mark.usefixtures("side")
def test_a_weight_changed_in_place_is_seen():
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((2, 30, 30, 32), np.float32), rng.standard_normal((3, 3, 32, 32), np.float32)
    for _ in range(3):
        assert_near(xpconv.corr2d(x, w, method="winograd"), exact(xpconv.corr2d, x, w), 3e-5)
        w[rng.integers(3), rng.integers(3), rng.integers(32), rng.integers(32)] += 5
    w[...] = np.nan
    assert np.isnan(xpconv.corr2d(x, w, method="winograd")).all()
    w[...] = 0.0
    assert (xpconv.corr2d(x, w, method="winograd") == 0).all()


def test_what_is_kept_of_weights_is_bounded_and_keeps_no_array_alive():
    compiled_kept = pytest.importorskip("xpconv.cpu.compiled.kept", reason="the extra fast is not installed")
    cache, made = compiled_kept.Kept(most_bytes=10_000), []

    def of(array):
        return cache.of(array, "twice", lambda copy: made.append(1) or copy * 2)

    arrays = [np.full(300, i, np.float32) for i in range(10)]
    for array in arrays:
        np.testing.assert_array_equal(of(array), array * 2)
        assert cache.nbytes <= 10_000
    of(arrays[-1])
    assert len(made) == 10
    of(arrays[0])
    assert len(made) == 11
    dead = [weakref.ref(array) for array in arrays]
    del array, arrays
    assert all(reference() is None for reference in dead)


@pytest.mark.parametrize("change", [(0, 1.0), (-1, 1.0), (7, np.nan), (5, -0.0)])
def test_any_change_of_a_kept_array_is_seen(change):
    compiled_kept = pytest.importorskip("xpconv.cpu.compiled.kept", reason="the extra fast is not installed")
    cache, array = compiled_kept.Kept(), np.zeros(37, np.float32)
    for place in (slice(None), slice(None, None, -2)):
        array[...] = 0
        cache.of(array[place], "", np.copy)
        array[place][change[0]] = change[1]
        made = cache.of(array[place], "", np.copy)
        assert made.tobytes() == array[place].tobytes()


def test_what_numpy_keeps_of_weights_is_bounded_and_keeps_no_array_alive():
    cache, made = kept.Kept(most_bytes=10_000), []

    def of(array):
        return cache.of(array, "twice", lambda copy: made.append(1) or copy * 2)

    arrays = [np.full(300, i, np.float32) for i in range(10)]
    for array in arrays:
        assert of(array) is None
        np.testing.assert_array_equal(of(array), array * 2)
        assert cache.nbytes <= 10_000
    of(arrays[-1])
    assert len(made) == 10
    of(arrays[0])
    of(arrays[0])
    assert len(made) == 11
    dead = [weakref.ref(array) for array in arrays]
    del array, arrays
    assert all(reference() is None for reference in dead)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("change", [(0, 1.0), (-1, 1.0), (7, np.nan), (5, -0.0)])
def test_any_change_of_an_array_that_numpy_keeps_is_seen(change, dtype):
    cache, array = kept.Kept(), np.zeros((37, 37), dtype)
    for place in (np.s_[:, 3], np.s_[::-2, 3], np.s_[3]):
        array[...] = 0
        for _ in range(3):
            cache.of(array[place], "", np.copy)
        array[place][change[0]] = change[1]
        for _ in range(3):
            made = cache.of(array[place], "", np.copy)
            assert made is None or made.tobytes() == array[place].tobytes()


def test_a_weight_that_changes_from_call_to_call_is_not_kept():
    cache, array = kept.Kept(), np.zeros(1000, np.float32)
    for i in range(5):
        array[...] = i
        assert cache.of(array, "", np.copy) is None
    assert cache.nbytes < array.nbytes


def test_winograd_from_many_threads_is_right():
    rng = np.random.default_rng(5)
    layers = [[rng.standard_normal(shape, np.float32) for shape in ((2, 20, 20, 16), (3, 3, 16, 24))] for _ in range(4)]
    wrong = []

    def call(x, w):
        expected = exact(xpconv.corr2d, x, w)
        for _ in range(20):
            if np.abs(xpconv.corr2d(x, w, method="winograd") - expected).max() > 3e-5 * np.abs(expected).max():
                wrong.append(1)

    callers = [threading.Thread(target=call, args=layer) for layer in layers]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
