"""Compiled max pooling with indices, and the gradients of pooling, beside the definition."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import xpconv
from cases import PoolCase, integers, pool_cases
from kernel_calls import LIMIT

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import spread_channels, threads
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.engines import agnostic, compiled, pooled
from xpconv.spec import ScatterSpec

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
CASES, CHANNELS = pool_cases(dtypes=(np.float32, np.float64)), st.integers(1, 40)


def strewn(case, channels, values, seed=0):
    """The case's geometry on so many channels, whose values are drawn from a few."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array(values, case.x.dtype), (*case.x.shape[:-1], channels))


def laid(x, layout):
    return x if layout == "channels_last" else np.moveaxis(x, -1, 1)


def spec_of(x, case: PoolCase, layout):
    return xpconv.max_pool.request(x, layout=layout, **case.options).spec


def assert_indexed(x, spec):
    expected = agnostic.max_pool(x, spec, return_indices=True)
    for ours, theirs in zip(pooled.indexed(x, spec), expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@LAYOUTS
@given(CASES, CHANNELS)
def test_indices_are_those_of_the_definition(layout, case, channels):
    x = laid(strewn(case, channels, [0, 1, 2, -np.inf, np.inf, np.nan]), layout)
    spec = spec_of(x, case, layout)
    assume(compiled.found().pools_indexed(x.dtype, spec, LIMIT))
    assert_indexed(x, spec)


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("value", [-np.inf, np.nan, 0, np.inf])
def test_of_equal_elements_the_first_one_inside_wins(layout, dtype, value):
    x = laid(np.full((2, 9, 7, 5), value, dtype), layout)
    spec = xpconv.max_pool.request(x, (3, 3), stride=2, padding=1, ceil_mode=True, layout=layout).spec
    assert_indexed(x, spec)


@LAYOUTS
def test_windows_of_padding_alone_have_no_index(layout):
    x = laid(integers(np.random.default_rng(0), (1, 4, 4, 20), np.float32), layout)
    spec = xpconv.max_pool.request(x, (2, 2), stride=1, padding=2, layout=layout).spec
    y, indices = pooled.indexed(x, spec)
    corner = (0, 0, 0) if layout == "channels_last" else (0, slice(None), 0, 0)
    assert np.all(indices[corner] == -1)
    assert np.all(np.isneginf(y[corner]))
    assert_indexed(x, spec)


@DTYPES
@pytest.mark.parametrize("way", [np.s_[::-1, ::2, ::-1, ::2], np.s_[:, :, ::3], np.s_[..., ::-1]])
def test_indices_of_arrays_that_lie_otherwise(dtype, way):
    x = integers(np.random.default_rng(1), (4, 20, 18, 38), dtype)[way]
    x.flags.writeable = False
    assert_indexed(x, xpconv.max_pool.request(x, (3, 2), stride=(1, 2), padding=((1, 0), (0, 1))).spec)


def test_indices_by_many_blocks_and_threads():
    x = np.random.default_rng(2).standard_normal((3, 150, 150, 24), dtype=np.float32)
    spec = xpconv.max_pool.request(x, (3, 3), stride=2, padding=1).spec
    expected = agnostic.max_pool(x, spec, return_indices=True)
    wrong = []

    def work():
        for _ in range(3):
            ours = pooled.indexed(x, spec)
            wrong.extend(not np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not any(wrong)


@LAYOUTS
@given(CASES, CHANNELS, st.booleans(), st.sampled_from([None, 3.0]))
def test_the_gradient_of_means_is_that_of_the_definition(layout, case, channels, include, divisor):
    x = laid(strewn(case, channels, range(4)), layout)
    spec = spec_of(x, case, layout)
    y = np.empty(spec.y_shape, x.dtype)
    assume(compiled.found().pools_by_channels(y.dtype, spec, LIMIT))
    assume(pooled.by("avg_pool_grad", y, replace(spec, batch=1 << 20)))
    gy = integers(np.random.default_rng(3), y.shape, x.dtype)
    shares = agnostic.divided(gy, spec, include, divisor, gy.dtype)
    expected = agnostic.avg_pool_grad(gy, spec, count_include_pad=include, divisor=divisor)
    tolerance = 1e-5 if x.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(pooled.shared_out(shares, spec, 1.0), expected, rtol=tolerance, atol=tolerance)


@LAYOUTS
@DTYPES
def test_means_that_are_all_divided_alike_are_divided_as_they_are_added(layout, dtype):
    gy = laid(integers(np.random.default_rng(4), (3, 40, 40, 24), dtype), layout)
    options = {"stride": 2, "size": (81, 80), "layout": layout}
    expected = agnostic.avg_pool_grad(
        gy, xpconv.avg_pool_grad.request(gy, (3, 2), **options).spec, count_include_pad=False, divisor=None
    )
    np.testing.assert_allclose(xpconv.avg_pool_grad(gy, (3, 2), **options), expected, rtol=1e-6)


WINDOWS = [
    ((3, 3), {"padding": 1}),
    ((2, 2), {"ceil_mode": True}),
    ((4, 5), {"stride": (3, 2), "padding": ((3, 0), (1, 4))}),
    ((3, 4), {"stride": (1, 2), "dilation": (2, 3), "padding": (0, 6)}),
    ((2, 3), {"stride": (4, 2), "dilation": (1, 2)}),
    ((1, 1), {}),
]


@DTYPES
@pytest.mark.parametrize("width", [24, 31, 32, 33, 64, 79])
@pytest.mark.parametrize(("window", "options"), WINDOWS)
def test_means_two_columns_apart_share_out_plane_by_plane(dtype, width, window, options):
    x = np.zeros((3, 5, 17, width), dtype)
    options = {"stride": 2, "layout": "channels_first"} | options
    spec = xpconv.avg_pool2d.request(x, window, **options).spec
    gy = integers(np.random.default_rng(width), (3, 2 * 5, *spec.out_size), dtype)[:, ::2, ::-1]
    assert pooled.by("avg_pool_grad", gy, replace(spec, batch=1 << 20)) == "spread"
    expected = agnostic.avg_pool_grad(gy, spec, count_include_pad=True, divisor=3.0)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(pooled.shared_out(gy, spec, 3.0), expected, rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("channels", ["few", 16, 37, 64, 107])
@pytest.mark.parametrize(("window", "options"), WINDOWS)
def test_means_of_channels_share_out_row_by_row(monkeypatch, dtype, streamed, channels, window, options):
    channels = lanes_of(dtype) // 2 + 1 if channels == "few" else channels  # not a vector; fewer are left to NumPy
    monkeypatch.setattr(spread_channels, "TOGETHER", 0 if streamed else 1 << 40)
    spec = xpconv.avg_pool2d.request(np.zeros((3, 17, 14, channels), dtype), window, **{"stride": 2} | options).spec
    rows, columns = spec.out_size
    gy = integers(np.random.default_rng(channels), (3, rows, 2 * columns, channels), dtype)[::-1, ::-1, ::2]
    assert pooled.by("avg_pool_grad", gy, replace(spec, batch=1 << 20)) == "spread"
    expected = agnostic.avg_pool_grad(gy, spec, count_include_pad=True, divisor=3.0)
    compiled.found()._prepared_spread.cache_clear()  # what is streamed is decided once
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(pooled.shared_out(gy, spec, 3.0), expected, rtol=tolerance, atol=tolerance)


def test_means_that_are_not_finite_stay_within_their_windows():
    gy = np.ones((1, 20, 20, 16), np.float32)
    gy[0, 3, 4, 5], gy[0, 7, 8, 9] = np.nan, np.inf
    gx = xpconv.avg_pool_grad(gy, 3, size=41, stride=2)
    assert np.isnan(gx).sum() == np.isinf(gx).sum() == 9


def test_narrow_planes_and_rows_of_steps_are_turned_instead():
    def kernel(gy, width):
        options = {"size": (40, width), "stride": 2, "layout": "channels_first"}
        return pooled.by("avg_pool_grad", gy, xpconv.avg_pool_grad.request(gy, (2, 2), **options).spec)

    gy = np.zeros((8, 64, 20, 80), np.float32)
    assert kernel(gy[..., :40], 80) == "spread"
    assert kernel(gy[..., ::2], 80) == "channelwise"
    narrow = machine().vector_bytes // 8  # half a vector
    assert kernel(gy[..., : narrow // 2], narrow) == "channelwise"


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("channels", [1, 3, 16, 17, 64, 100])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_values_are_added_at_their_indices(layout, dtype, channels, batch):
    rng, size, places = np.random.default_rng(channels), (13, 9), 13 * 9
    values = laid(integers(rng, (batch, 40, 30, channels), dtype), layout)
    indices = laid(rng.integers(-1, places, (batch, 40, 30, channels)), layout)
    spec = ScatterSpec(layout, batch, channels, (40, 30), size)
    np.testing.assert_array_equal(pooled.scattered(values, indices, spec), added(values, indices, spec))


def added(values, indices, spec):
    """One after the other."""
    gx = np.zeros((spec.batch, np.prod(spec.size), spec.channels), values.dtype)
    values, indices = (agnostic.channels_last(a, spec.layout).reshape(spec.batch, -1, spec.channels)
                       for a in (values, indices))  # fmt: skip
    n, p, c = np.nonzero(indices >= 0)
    np.add.at(gx, (n, indices[n, p, c], c), values[n, p, c])
    return agnostic.as_layout(gx.reshape(spec.batch, *spec.size, spec.channels), spec.layout)


@pytest.mark.parametrize("way", [np.s_[::-1, ::2, ::-1, ::2], np.s_[:, ::3], np.s_[..., ::-1]])
def test_values_and_indices_that_lie_otherwise(way):
    rng = np.random.default_rng(5)
    values, indices = integers(rng, (4, 20, 18, 38), np.float32)[way], rng.integers(-1, 50, (4, 20, 18, 38))[way]
    spec = ScatterSpec("channels_last", values.shape[0], values.shape[-1], values.shape[1:3], (10, 5))
    np.testing.assert_array_equal(pooled.scattered(values, indices, spec), added(values, indices, spec))


def test_nan_and_infinities_are_added_where_they_belong():
    values = np.zeros((1, 20, 20, 16), np.float32)
    values[0, 3, 4, 5], values[0, 7, 8, 9] = np.nan, np.inf
    indices = np.broadcast_to(np.arange(400).reshape(1, 20, 20, 1), values.shape)
    gx = pooled.scattered(values, indices, ScatterSpec("channels_last", 1, 16, (20, 20), (20, 20)))
    np.testing.assert_array_equal(gx, values)


WAYS = pytest.mark.parametrize("way", [np.s_[:], np.s_[..., ::-1]])
"""Channels as they are, and the other way round, as no vector reads them."""


@LAYOUTS
@DTYPES
@WAYS
def test_every_place_is_made_zero_however_indices_jump(layout, dtype, way):
    rng, places = np.random.default_rng(8), 3000
    values = integers(rng, (2, 90, 37), dtype)[way]
    jumps = np.where(rng.random(values.shape) < 0.1, rng.integers(0, places, values.shape), -1)
    for indices in (np.full(values.shape, -1), np.full(values.shape, places - 1), jumps):
        planes = np.full((2, places, 37), np.nan, dtype)
        planes = planes if layout == "channels_last" else np.moveaxis(np.full((2, 37, places), np.nan, dtype), 1, -1)
        assert compiled.found().scattered(values, indices, planes)
        expected = added(values, indices, ScatterSpec("channels_last", 2, 37, (90,), (places,)))
        np.testing.assert_array_equal(planes, expected)


@LAYOUTS
@WAYS
@pytest.mark.parametrize("wrong", [-2, 60, 1 << 40, -(1 << 62)])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 5, 6, 19), (1, 39, 39, 7)])
def test_indices_outside_the_plane_raise(layout, way, wrong, place):
    gy, indices = np.ones((2, 40, 40, 20), np.float32), np.full((2, 40, 40, 20), 59)
    indices[..., 0], indices[place] = -1, wrong
    gy, indices = laid(gy[way], layout), laid(indices[way], layout)
    xpconv.max_pool_grad(gy, np.zeros_like(indices), size=(10, 6), layout=layout)
    with pytest.raises(ValueError, match=f"indices has {wrong}, outside the plane of 60 elements that size gives"):
        xpconv.max_pool_grad(gy, indices, size=(10, 6), layout=layout)


@DTYPES
@pytest.mark.parametrize("channels", range(1, 41))
@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"stride": 1, "dilation": 2}, {"stride": (7, 4)}])
def test_the_gradient_of_any_windows(dtype, channels, options):
    rng = np.random.default_rng(channels)
    x = rng.choice(np.array([0, 1, 2, np.nan, np.inf, -np.inf], dtype), (3, 43, 39, channels))  # ties
    y, indices = xpconv.max_pool(x, 3, return_indices=True, **options)
    gy = integers(rng, y.shape, dtype)
    gy[0, 1, 2, 0], gy[1, 2, 1, -1] = np.nan, np.inf
    spec = ScatterSpec("channels_last", 3, channels, y.shape[1:3], (43, 39))
    np.testing.assert_array_equal(pooled.scattered(gy, indices, spec), added(gy, indices, spec))


def test_an_index_that_would_wrap_to_none_raises():
    gy, indices = np.ones((1, 40, 40, 16), np.float32), np.zeros((1, 40, 40, 16), np.uint64)
    indices[0, 5, 6, 7] = 2**64 - 1
    with pytest.raises(ValueError, match="indices has 18446744073709551615, outside the plane of 60 elements"):
        xpconv.max_pool_grad(gy, indices, size=(10, 6))


@LAYOUTS
@DTYPES
def test_the_gradient_of_maxima_is_the_adjoint(layout, dtype):
    rng = np.random.default_rng(6)
    x = laid(rng.standard_normal((2, 60, 50, 24)).astype(dtype), layout)
    options = {"stride": 2, "padding": 1, "layout": layout}
    y, indices = xpconv.max_pool2d(x, 3, return_indices=True, **options)
    gy = rng.standard_normal(y.shape).astype(dtype)
    gx = xpconv.max_pool_grad(gy, indices, size=(60, 50), layout=layout)
    assert gx.shape == x.shape
    np.testing.assert_allclose(np.vdot(gx, x), np.vdot(gy, y), rtol=1e-4 if dtype == "float32" else 1e-12)
    assert np.count_nonzero(gx) == np.unique(_places(indices, layout)).size


def _places(indices, layout):
    """Every index together with its image and channel, as one number."""
    indices = agnostic.channels_last(indices, layout)
    image, channel = np.ogrid[: indices.shape[0], : indices.shape[-1]]
    return (image * indices.shape[-1] + channel)[:, None, None] * 3000 + indices


def test_without_threads_the_results_are_the_same(monkeypatch):
    x = np.random.default_rng(7).standard_normal((2, 90, 90, 20), dtype=np.float32)
    many = xpconv.max_pool2d(x, 3, return_indices=True)
    monkeypatch.setattr(threads, "thread_count", lambda: 1)
    one = xpconv.max_pool2d(x.copy(), 3, return_indices=True)
    for a, b in zip(many, one, strict=True):
        np.testing.assert_array_equal(a, b)


def test_explain_says_whether_kernels_answer(monkeypatch):
    x = np.ones((4, 40, 40, 16), np.float32)
    indices = np.zeros((4, 20, 20, 16), np.int64)
    calls = [
        (xpconv.max_pool2d, (x, 2), {"return_indices": True}, "every window with its indices", "agnostic"),
        (xpconv.max_pool2d, (x, 2), {}, "every window by itself", "numpy"),
        (xpconv.avg_pool_grad, (x, (3, 3)), {"size": (120, 120)}, "sums over windows of gy", "numpy"),
        (xpconv.max_pool_grad, (x[:, :20, :20], indices), {"size": (40, 40)}, "every gradient added", "numpy"),
    ]
    for function, arrays, options, reason, _ in calls:
        plan = xpconv.explain(function, *arrays, **options)
        assert plan.engine == "numpy"
        assert reason in plan.reason
        assert plan.tile.startswith("compiled")
    monkeypatch.setattr(compiled, "kernels", lambda: None)
    for function, arrays, options, _, engine in calls:
        plan = xpconv.explain(function, *arrays, **options)
        assert plan.engine == engine
        assert not plan.tile.startswith("compiled")
