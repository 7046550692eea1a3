"""The gradient of means by NumPy alone, axis by axis."""

import numpy as np
import pytest

import xpconv
from xpconv.cpu import spreading, team
from xpconv.engines import agnostic, compiled
from xpconv.engines import numpy as engine


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch):
    monkeypatch.setattr(compiled, "kernels", lambda: None)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("size", "window", "options"), [
    ((17,), 3, {"stride": 2}),
    ((17, 14), (3, 2), {"stride": (2, 3), "padding": 1}),
    ((17, 14), (3, 2), {"stride": (1, 4), "padding": ((1, 0), (0, 1)), "ceil_mode": True}),
    ((17, 14), 3, {"stride": 1, "dilation": (2, 3), "padding": "same"}),
    ((9, 8), 2, {"stride": 5}),  # of which some elements are in no window
    ((6, 7, 8), (2, 3, 4), {"stride": (2, 1, 3)}),
])  # fmt: skip
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_share_goes_to_all_that_its_window_had(
    monkeypatch, size, window, options, layout, include, dtype, threads
):
    if threads > 1:
        monkeypatch.setattr(team, "thread_count", lambda: threads)
        monkeypatch.setattr(spreading, "_SHARED_BYTES", 0)
        monkeypatch.setattr(spreading, "_PART_BYTES", 1)
    shape = (2, *size, 3) if layout == "channels_last" else (2, 3, *size)
    y = xpconv.avg_pool(np.ones(shape), window, layout=layout, **options)
    gy = np.random.default_rng(len(size)).integers(-8, 9, y.shape).astype(dtype)[:, ::-1]
    asked = {"size": size, "count_include_pad": include, "layout": layout, **options}
    spec = xpconv.avg_pool_grad.request(gy, window, **asked).spec
    gx = xpconv.avg_pool_grad(gy, window, **asked)
    expected = agnostic.avg_pool_grad(gy.astype("complex128"), spec, count_include_pad=include, divisor=None)
    assert gx.dtype == gy.dtype
    assert gx.flags.c_contiguous
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(gx, expected, rtol=tolerance, atol=8 * tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_share_that_is_not_finite_stays_within_its_window(value):
    gy = np.ones((1, 9, 9, 2))
    gy[0, 3, 4, 1] = value
    gx = engine.avg_pool_grad(gy, xpconv.avg_pool_grad.request(gy, 3, size=(19, 19), stride=2).spec,
                              count_include_pad=True, divisor=None)  # fmt: skip
    assert (~np.isfinite(gx)).sum() == 9


def test_no_windows_share_nothing():
    gx = xpconv.avg_pool_grad(np.ones((0, 4, 4, 3), np.float32), 2, size=(8, 8))
    assert gx.shape == (0, 8, 8, 3)
