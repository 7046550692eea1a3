"""The weight's gradient by compiled kernels."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import xpconv
from cases import integers
from engine_cases import reference
from xpconv.engines import compiled as compiled_calls

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import kernels, threads

if not kernels.are_shared_ready("float32"):
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

axes = st.tuples(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2)
)
MODES = ("zeros", "edge", "wrap", "symmetric")


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(compiled_calls, "_LARGE_GRADIENT", 0)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    st.lists(axes, min_size=1, max_size=3), st.integers(1, 20), st.integers(1, 40), st.sampled_from([1, 2, 5]),
    st.integers(1, 3), st.booleans(), st.sampled_from(MODES),
)  # fmt: skip
def test_the_weight_gradient_is_the_references(layout, dtype, drawn, per_group, maps, groups, batch, flip, mode):
    size, window, stride, dilation, before, after = zip(*drawn, strict=True)
    fits = (
        (m - 1) * d + 1 <= n + lo + hi for n, m, d, lo, hi in zip(size, window, dilation, before, after, strict=True)
    )
    assume(all(fits))
    options = {"stride": stride, "dilation": dilation, "padding": tuple(zip(before, after, strict=True))}
    options |= {"groups": groups, "padding_mode": mode}
    rng, function = np.random.default_rng(per_group), xpconv.conv_grad_weight if flip else xpconv.corr_grad_weight
    x = integers(rng, (batch, *size, per_group * groups), dtype)
    forward = xpconv.corr.request(x, np.ones((*window, per_group, maps * groups), dtype), **options)
    gy = integers(rng, forward.spec.y_shape, dtype)
    if layout == "channels_first":
        x, gy = np.moveaxis(x, -1, 1), np.moveaxis(gy, -1, 1)
    options |= {"window": window, "layout": layout}
    np.testing.assert_allclose(function(x, gy, **options), reference(function, x, gy, **options), atol=1e-3)


def test_a_large_weight_gradient_is_compiled_explained_so_and_the_adjoint():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 40, 41, 24)), rng.standard_normal((3, 3, 24, 37))
    gy = rng.standard_normal((4, 20, 21, 37))
    options = {"stride": 2, "padding": 1}
    gw = xpconv.corr_grad_weight(x, gy, window=3, **options)
    assert xpconv.explain(xpconv.corr_grad_weight, x, gy, window=3, **options).tile.startswith("compiled")
    np.testing.assert_allclose((gw * w).sum(), (xpconv.corr(x, w, **options) * gy).sum(), rtol=1e-10)


def test_threads_do_not_change_the_weight_gradient(monkeypatch):
    rng = np.random.default_rng(1)
    x, gy = rng.standard_normal((3, 50, 50, 20), np.float32), rng.standard_normal((3, 48, 48, 40), np.float32)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        results.append(xpconv.corr_grad_weight(x, gy, window=3))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
