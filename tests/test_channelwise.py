"""Compiled kernels with lanes along the channels: depthwise convolution and pooling."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xpconv
from cases import integers
from engine_cases import reference
from xpconv.engines import agnostic, pooled
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import numpy as engine

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

if compiled_calls.kernels() is None or not compiled_calls.kernels().pools_by_channels(
    np.dtype("float32"), xpconv.max_pool.request(np.ones((1, 9, 9, 16), np.float32), (2, 2)).spec, 2**26
):
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
sizes = st.one_of(st.tuples(st.integers(5, 40)), st.tuples(st.integers(5, 15), st.integers(5, 30)), st.just((5, 6, 7)))


@pytest.fixture(autouse=True)
def kernels_take_all(monkeypatch):
    """Whatever the kernels can compute they do, however small; with fewer channels NumPy does."""
    monkeypatch.setattr(pooled, "pool_is_compiled", lambda _: True)
    monkeypatch.setattr(
        compiled_calls, "kernel_for", lambda _spec, _method, compiled: "depthwise" if compiled.depthwise else ""
    )


def in_layout(x, layout):
    return x if layout == "channels_last" else np.moveaxis(x, -1, 1)


@LAYOUTS
@DTYPES
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes, st.integers(4, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans(),
    st.sampled_from(["zeros", "edge", "wrap", "reflect", "symmetric"]),
)  # fmt: skip
def test_depthwise_agrees_with_the_definition(layout, dtype, size, channels, batch, stride, dilation, flip, mode):
    rng = np.random.default_rng(channels)
    axes, function = len(size), xpconv.conv if flip else xpconv.corr
    x, w = integers(rng, (batch, *size, channels), dtype), integers(rng, (*(2, 3, 3)[-axes:], 1, channels), dtype)
    w = w if layout == "channels_last" else np.moveaxis(w, (-1, -2), (0, 1))
    options = {"stride": stride, "dilation": dilation, "padding": ((2, 1),) * axes, "padding_mode": mode}
    options |= {"groups": channels, "layout": layout}
    bias = integers(rng, (channels,), dtype)
    y = function(in_layout(x, layout), w, bias, method="direct", activation="relu", **options)
    expected = reference(function, in_layout(x, layout), w, bias, activation="relu", **options)
    np.testing.assert_array_equal(y, expected)


@LAYOUTS
@DTYPES
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes, st.integers(4, 40), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(0, 1),
    st.booleans(), st.integers(0, 6),
)  # fmt: skip
def test_pooling_is_the_references(layout, dtype, size, channels, batch, stride, dilation, padding, ceil, not_numbers):
    rng = np.random.default_rng(channels)
    x = integers(rng, (batch, *size, channels), dtype)
    x.flat[rng.integers(x.size, size=not_numbers)] = np.nan
    x[..., 0] = -np.inf
    x = in_layout(x, layout)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "ceil_mode": ceil, "layout": layout}
    request = xpconv.max_pool.request(x, (2,) * len(size), **options)
    np.testing.assert_array_equal(
        engine.max_pool(x, request.spec, return_indices=False),
        agnostic.max_pool(x, request.spec, return_indices=False),
    )
    for included in (True, False):
        given_options = {"count_include_pad": included, "divisor": None}
        np.testing.assert_allclose(
            engine.avg_pool(x, request.spec, **given_options),
            agnostic.avg_pool(x, request.spec, **given_options),
            rtol=1e-6,
        )


def test_pooling_reads_views_of_any_strides():
    rng = np.random.default_rng(0)
    x = integers(rng, (16, 20, 22, 16), "float32")
    views = (x[:, ::-1], x[:, :, ::-2], x[..., ::2], x.transpose(3, 1, 2, 0), np.broadcast_to(x[..., :1], x.shape))
    for view in views:
        for padding in (0, 1):
            expected = xpconv.max_pool2d(view.astype(int), 3, padding=padding)
            np.testing.assert_array_equal(xpconv.max_pool2d(view, 3, padding=padding), expected)


def test_a_large_pooling_is_compiled_and_explained_so(monkeypatch):
    monkeypatch.undo()
    x = np.ones((1, 64, 64, 32), np.float32)
    for function in (xpconv.max_pool2d, xpconv.avg_pool2d):
        assert xpconv.explain(function, x, 2).tile.startswith("compiled")
        assert not xpconv.explain(function, x[:, :4, :4], 2).tile.startswith("compiled")
    assert not xpconv.explain(xpconv.max_pool2d, x.astype(int), 2).tile.startswith("compiled")
    np.testing.assert_array_equal(xpconv.avg_pool2d(x, 3, padding=1, divisor=3)[0, 5, 5], np.full(32, 3, np.float32))
