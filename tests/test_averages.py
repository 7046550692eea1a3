"""Means of padded maps by the compiled kernels: windows that are not whole are divided by what they count."""

import numpy as np
import pytest

import xpconv
from cases import integers
from engine_cases import reference

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled.build import machine
from xpconv.engines import averages

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)


@pytest.fixture(autouse=True)
def summed(monkeypatch):
    """How often borders are summed, of maps of every size."""
    monkeypatch.setattr(averages, "_FEW", 0)
    again, found = averages._again, []

    def seen(sums):
        return lambda x: (found.append(1), sums(x))[1]

    def counted(*args):
        rims = again(*args)
        return None if rims is None else [(rim, seen(sums)) for rim, sums in rims]

    monkeypatch.setattr(averages, "_again", counted)
    return found


def _spec(*args, **options):
    return xpconv.avg_pool.request(*args, **options).spec


CASES = [
    ((2, 13, 14, 20), 3, {"stride": 1, "padding": 1}),
    ((2, 13, 14, 20), (3, 2), {"stride": 2, "padding": ((1, 0), (0, 1))}),
    ((1, 40, 41, 33), 5, {"stride": (1, 2), "padding": "same"}),
    ((3, 30, 31, 16), 3, {"stride": 2, "padding": 1, "ceil_mode": True}),
    ((2, 30, 31, 16), 3, {"stride": 2, "ceil_mode": True, "count_include_pad": True}),
    ((2, 33, 34, 8), 3, {"stride": 1, "padding": 2, "dilation": 2}),
    ((1, 200, 9), 4, {"stride": 1, "padding": 2}),
    ((2, 300, 32), 3, {"stride": 1, "padding": 1}),
    ((1, 9, 10, 11, 20), 3, {"stride": 1, "padding": 1}),
    ((2, 4, 4, 8), 3, {"stride": 1, "padding": 1}),
    ((2, 12, 12, 8), 3, {"stride": 3}),
]


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "window", "options"), CASES)
def test_means_are_those_of_the_definition(shape, window, options, dtype, layout, summed):
    x = integers(np.random.default_rng(0), shape, dtype)
    x = np.moveaxis(x, -1, 1).copy() if layout == "channels_first" else x
    right = reference(xpconv.avg_pool, x, window, layout=layout, **options)
    for _ in range(3):  # the first call, and when it is repeated
        y = xpconv.avg_pool(x, window, layout=layout, **options)
        np.testing.assert_allclose(y, right, rtol=1e-6 if dtype == "float32" else 1e-14)
    is_padded = options.get("padding") or options.get("ceil_mode")
    assert bool(summed) == bool(is_padded and layout == "channels_last" and shape[1] > 4)


def test_axes_of_one_element_may_be_missing(summed):
    x = integers(np.random.default_rng(1), (50, 60, 40), "float32")
    for given, options in ((x, {}), (x[..., 0], {}), (np.moveaxis(x, -1, 0).copy(), {"layout": "channels_first"})):
        right = reference(xpconv.avg_pool2d, given, 3, stride=1, padding=1, **options)
        for _ in range(3):
            y = xpconv.avg_pool2d(given, 3, stride=1, padding=1, **options)
            np.testing.assert_allclose(y, right, rtol=1e-6)
    assert len(summed) == 4 * 3


def test_windows_that_count_nothing_are_nan(summed):
    x = np.ones((1, 20, 20, 32), np.float32)
    y = xpconv.avg_pool2d(x, 2, stride=1, padding=2)
    assert np.isnan(y[:, [0, -1]]).all()
    assert np.isnan(y[:, :, [0, -1]]).all()
    assert (y[:, 1:-1, 1:-1] == 1).all()
    assert summed


def test_what_is_not_finite_stays_in_its_windows(summed):
    x = np.ones((1, 30, 30, 32), np.float32)
    x[0, 0, 0], x[0, 29, 15] = np.nan, np.inf
    y = xpconv.avg_pool2d(x, 3, stride=1, padding=1)
    assert np.isnan(y[0, :2, :2]).all()
    assert np.isinf(y[0, 28:, 14:17]).all()
    assert np.isfinite(y).sum() == y.size - 32 * (4 + 6)
    assert summed


def test_borders_that_memory_does_not_reach_for_are_not_summed(summed):
    x = integers(np.random.default_rng(2), (1, 40, 90, 32), "float32")
    right = reference(xpconv.avg_pool2d, x, (1, 25), stride=1, padding=(0, 12))
    with xpconv.workspace_limit(50_000):
        np.testing.assert_allclose(xpconv.avg_pool2d(x, (1, 25), stride=1, padding=(0, 12)), right, rtol=1e-6)
    assert not summed


def test_borders_are_each_result_that_is_not_whole_once():
    spec = _spec(np.empty((1, 13, 14, 15, 2), np.float32), 3, stride=(1, 2, 1), padding=((1, 1), (1, 0), (0, 1)))
    times = np.zeros(spec.y_shape, int)
    for rim in averages.borders(spec, count_include_pad=False, dtype=np.dtype("float32")):
        times[rim.results] += 1
        assert rim.spec.y_shape == times[rim.results].shape
    counts = [np.array(spec.counts(axis, False)) == 3 for axis in range(3)]
    whole = counts[0][:, None, None] & counts[1][:, None] & counts[2]
    np.testing.assert_array_equal(times, np.broadcast_to(1 - whole[None, ..., None], times.shape))


@pytest.mark.parametrize("options", [{"padding": 3, "window": 7}, {"padding": 1, "window": 3}])
def test_where_borders_are_most_all_is_divided_at_once(options):
    spec = _spec(np.empty((1, 5, 5, 2), np.float32), options["window"], stride=1, padding=options["padding"])
    assert averages.borders(spec, count_include_pad=False, dtype=np.dtype("float32")) is None
