"""Poolings of large maps by NumPy, strip by strip."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import xpconv
from cases import first, pool_cases
from single_planes import memory_beside_result
from xpconv.cpu import cuts, memory, pool_strips, team
from xpconv.dispatch import run
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import numpy_pools


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)


@contextmanager
def strips_of(nbytes, limit=1 << 26):
    """Strips so small that even small maps have many, which threads share, and rows of more than a limit are cut."""
    with pytest.MonkeyPatch.context() as patch, xpconv.workspace_limit(limit):
        patch.setattr(cuts, "SHORT_BYTES", 1)
        patch.setattr(numpy_pools, "small", lambda *_: None)
        patch.setattr(pool_strips, "_SHARED_BYTES", 0)
        patch.setattr(pool_strips, "_STRIP_BYTES", nbytes)
        pool_strips._strips.cache_clear()
        yield
    pool_strips._strips.cache_clear()


def pooled(function, x, **options):
    """The result with channels last, and with channels first, which must be the same; whatever was repeated before."""
    y = run(function.request(x, layout="channels_last", **options))
    np.testing.assert_array_equal(run(function.request(first(x), layout="channels_first", **options)), first(y))
    return y


STRIPS, LIMITS = st.sampled_from([1, 64, 1024, 1 << 20]), st.sampled_from([1, 200, 2000, 1 << 26])


@given(case=pool_cases(), nbytes=STRIPS, limit=LIMITS)
def test_maxima_and_sums_of_strips_are_the_definition(case, nbytes, limit):
    with strips_of(nbytes, limit):
        largest, total = (pooled(function, case.x, **case.options) for function in (xpconv.max_pool, xpconv.sum_pool))
    assert largest.dtype == total.dtype == case.x.dtype
    np.testing.assert_array_equal(largest, oracle.max_pool(case.x, **case.geometry)[0])
    np.testing.assert_array_equal(total, oracle.sum_pool(case.x, **case.geometry))


@given(pool_cases(dtypes=(np.float64,)), STRIPS, LIMITS, st.booleans(), st.sampled_from([None, 3.0]))
def test_means_of_strips_are_the_definition(case, nbytes, limit, include, divisor):
    with strips_of(nbytes, limit):
        y = pooled(xpconv.avg_pool, case.x, count_include_pad=include, divisor=divisor, **case.options)
    counts = oracle.pool_counts(case.x.shape[1:-1], include_padding=include, **case.geometry)[None, ..., None]
    with np.errstate(invalid="ignore"):
        expected = oracle.sum_pool(case.x, **case.geometry) / (counts if divisor is None else divisor)
    np.testing.assert_allclose(y, expected, rtol=1e-14)


@given(case=pool_cases(dtypes=(np.float32,)), nbytes=STRIPS, seed=st.integers(0, 2**32 - 1))
def test_what_is_not_finite_stays_within_its_windows(case, nbytes, seed):
    rng = np.random.default_rng(seed)
    odd = rng.choice(np.array([np.nan, np.inf, -np.inf], "float32"), size=case.x.shape)
    x = np.where(rng.random(case.x.shape) < 0.3, odd, case.x)
    with strips_of(nbytes), np.errstate(all="raise"):
        largest, total = (pooled(function, x, **case.options) for function in (xpconv.max_pool, xpconv.sum_pool))
    np.testing.assert_array_equal(largest, oracle.max_pool(x, **case.geometry)[0])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(total, oracle.sum_pool(x, **case.geometry))


LARGE = [
    ((3, 90, 80, 16), 2, {}), ((2, 91, 83, 16), 3, {"stride": 2, "padding": 1}), ((2, 60, 70, 24), 3, {"stride": 1}),
    ((1, 300_000, 2), 3, {"stride": 1, "padding": 1}), ((2, 20, 30, 40, 8), 2, {}), ((1, 700, 700, 1), (2, 3), {}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "window", "options"), LARGE)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int32"])
def test_large_maps_are_pooled_by_threads_as_by_one(monkeypatch, shape, window, options, dtype):
    x = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    calls = [(xpconv.max_pool, {}), (xpconv.sum_pool, {})]
    if dtype != "int32":
        calls.append((xpconv.avg_pool, {"count_include_pad": False}))
    for function, more in calls:
        monkeypatch.setattr(team, "thread_count", lambda: 3)
        y = pooled(function, x, window=window, **options, **more)
        monkeypatch.setattr(team, "thread_count", lambda: 1)
        np.testing.assert_array_equal(pooled(function, x, window=window, **options, **more), y)
        for a in (x[:, ::-1], np.asfortranarray(x)):
            turned = pooled(function, a, window=window, **options, **more)
            expected = function(np.ascontiguousarray(a), window, **options, **more)
            np.testing.assert_array_equal(turned, expected)


def test_a_window_of_one_element_is_a_copy():
    x = np.random.default_rng(0).standard_normal((2, 200, 100, 3))
    for stride in (1, 2):
        y = xpconv.max_pool(x, 1, stride=stride)
        np.testing.assert_array_equal(y, x[:, ::stride, ::stride])
        assert not np.shares_memory(x, y)


@pytest.mark.parametrize("limit", [1 << 19, 1 << 21])  # NumPy's own buffers take 0.1 MB in each thread
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_the_memory_beside_the_result_keeps_to_the_limit(monkeypatch, layout, limit):
    monkeypatch.setattr(memory, "KEPT_BYTES", -1)
    x = np.ones((4, 200, 100, 32) if layout == "channels_last" else (4, 32, 200, 100), "float32")
    for function in (xpconv.max_pool, xpconv.avg_pool):
        with xpconv.workspace_limit(limit):
            call = function.request(x, 3, stride=1, padding=1, layout=layout)
            assert memory_beside_result(lambda call=call: run(call)) <= limit


@pytest.mark.parametrize(("shape", "window", "axis"), [
    ((1, 5, 200, 200, 16), 3, 1), ((1, 6, 40_000, 16), (3, 2), 1), ((2, 4, 300, 300, 8), (2, 3, 1), 1),
    ((1, 4, 60, 3000, 32), 3, 2),
])  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_volumes_and_wide_maps_keep_to_the_limit(shape, window, axis, threads, monkeypatch):
    monkeypatch.setattr(memory, "KEPT_BYTES", -1)
    monkeypatch.setattr(team, "thread_count", lambda: threads)
    pool_strips._strips.cache_clear()
    x = np.ones(shape, "float32")
    for function in (xpconv.max_pool, xpconv.avg_pool):
        with xpconv.workspace_limit(4 << 20):
            call = function.request(x, window, stride=1)
            assert memory_beside_result(lambda call=call: run(call)) <= 4 << 20
            assert f"along axis {axis}" in xpconv.explain(function, x, window, stride=1).tile
    pool_strips._strips.cache_clear()


def test_planes_that_do_not_follow_each_other_are_not_copied(monkeypatch):
    monkeypatch.setattr(memory, "KEPT_BYTES", -1)
    whole = np.random.default_rng(0).integers(-9, 9, (3, 120, 130, 17)).astype("float32")
    x = np.moveaxis(whole, -1, 1)[:, 1:]
    for function in (xpconv.max_pool, xpconv.avg_pool):
        call = function.request(x, 3, stride=2, padding=1, layout="channels_first")
        expected = run(function.request(np.ascontiguousarray(x), 3, stride=2, padding=1, layout="channels_first"))
        np.testing.assert_array_equal(run(call), expected)
        with xpconv.workspace_limit(1 << 19):
            assert memory_beside_result(lambda call=call: run(call)) <= 1 << 19


def test_maps_that_are_padded_to_more_than_they_are_keep_to_the_limit(monkeypatch):
    monkeypatch.setattr(memory, "KEPT_BYTES", -1)
    x = np.ones((1, 40, 1, 64, 16), "float32")
    with xpconv.workspace_limit(1 << 23):
        call = xpconv.max_pool.request(x, (2, 2, 2), stride=1, padding=((0, 0), (300, 300), (0, 0)))
        assert memory_beside_result(lambda: run(call)) <= 1 << 23


def test_large_windows_are_doubled():
    for window, is_cut in ((2, True), (3, True), (4, False), (7, False)):
        spec = xpconv.max_pool.request(np.ones((1, 64, 64, 2)), window, stride=1).spec
        assert pool_strips.fits(spec, np.maximum) is is_cut


def test_the_plan_tells_strips_and_threads(monkeypatch):
    monkeypatch.setattr(team, "thread_count", lambda: 2)
    pool_strips._strips.cache_clear()
    x = np.ones((8, 112, 112, 64), "float32")
    plan = xpconv.explain(xpconv.max_pool, x, 3, stride=2)
    assert (plan.engine, plan.method, plan.threads) == ("numpy", "direct", 2)
    assert plan.tile == "1 of 8 images, 28 of 55 rows"
    planes = xpconv.explain(xpconv.avg_pool, x, 2, layout="channels_first", stride=1)
    assert "planes" in planes.tile
    assert "divided" in planes.reason
    assert xpconv.explain(xpconv.max_pool, x, 9, stride=1).tile == "the whole result"
    assert xpconv.explain(xpconv.max_pool, x[:1, :8, :8], 2).reason == "windows side by side"
    pool_strips._strips.cache_clear()
