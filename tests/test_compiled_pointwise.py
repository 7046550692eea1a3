"""Convolutions of one tap, channels first: by products of the planes as they lie, whatever their size."""

from functools import partial

import numpy as np
import pytest

import xpconv
from cases import integers
from engine_cases import reference
from kernel_calls import by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import kernels, pointwise, threads
from xpconv.cpu.compiled.build import machine

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

compiled = partial(by_kernels, "direct", xpconv.corr, layout="channels_first")

CASES = [  # positions that fill their panels, the last of which is whole or not
    ((2, 3, 8, 16), 5),
    ((1, 64, 24, 24), 37),
    ((3, 13, 9, 7), 1),
    ((1, 1, 16, 31), 130),
    ((2, 5, 191), 24),
    ((1, 6, 5, 8, 12), 50),
    ((1, 1031, 8, 16), 30),
    ((1, 520, 32, 32), 65),
]


@pytest.fixture
def taken(monkeypatch):
    """The addresses of the tasks that are run."""
    tasks, run = [], threads.run
    monkeypatch.setattr(threads, "run", lambda task, *rest: (tasks.append(task), run(task, *rest)))
    return tasks


def _are_planes(taken, dtype):
    return taken == [pointwise._library(dtype).address("pointwise")]


def _weight(rng, filters, x_shape, dtype):
    return integers(rng, (filters, x_shape[1], *[1] * (len(x_shape) - 2)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("x_shape", "filters"), CASES)
def test_planes_are_multiplied_as_they_lie(x_shape, filters, dtype, taken):
    rng = np.random.default_rng(0)
    x, w, bias = integers(rng, x_shape, dtype), _weight(rng, filters, x_shape, dtype), integers(rng, (filters,), dtype)
    for options in ({}, {"bias": bias}, {"bias": bias, "activation": "relu"}, {"activation": "leaky_relu"}):
        taken.clear()
        y = compiled(x, w, **options)
        assert _are_planes(taken, dtype)
        right = reference(xpconv.corr, x, w, options.pop("bias", None), layout="channels_first", **options)
        np.testing.assert_allclose(y, right, rtol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("view", [
    lambda x: x[:, ::-1], lambda x: x[:, ::2], lambda x: x[::-1], lambda x: x.transpose(1, 0, 2, 3),
    lambda x: np.broadcast_to(x[:, :1], x.shape), lambda x: np.broadcast_to(x[:1], x.shape),
])  # fmt: skip
def test_channels_and_images_of_any_strides(view, taken):
    rng = np.random.default_rng(1)
    x = view(integers(rng, (4, 6, 9, 14), "float32"))
    w = _weight(rng, 11, x.shape, "float32")
    np.testing.assert_array_equal(compiled(x, w), reference(xpconv.corr, x, w, layout="channels_first"))
    assert _are_planes(taken, "float32")


@pytest.mark.parametrize("view", [lambda x: x[..., ::-1], lambda x: x[:, :, ::2], lambda x: x.swapaxes(2, 3)])
def test_positions_that_do_not_lie_side_by_side_are_left_to_others(view, taken):
    rng = np.random.default_rng(2)
    x = view(integers(rng, (2, 6, 32, 32), "float32"))
    w = _weight(rng, 11, x.shape, "float32")
    np.testing.assert_array_equal(compiled(x, w), reference(xpconv.corr, x, w, layout="channels_first"))
    assert not _are_planes(taken, "float32")


@pytest.mark.parametrize("arranged", [lambda w: np.asarray(w, order="F"), lambda w: w[::-1], lambda w: w[:, ::-1]])
def test_weights_that_do_not_lie_side_by_side_are_left_to_others(arranged, taken):
    rng = np.random.default_rng(3)
    x, w = integers(rng, (2, 8, 8, 16), "float32"), arranged(integers(rng, (12, 8, 1, 1), "float32"))
    np.testing.assert_array_equal(compiled(x, w), reference(xpconv.corr, x, w, layout="channels_first"))
    assert not _are_planes(taken, "float32")


@pytest.mark.parametrize("unlike", [
    {"stride": 2}, {"padding": 1}, {"padding": ((0, 1), (0, 0))}, {"groups": 2},
])  # fmt: skip
def test_what_is_no_product_of_whole_planes_is_left_to_others(unlike, taken):
    rng = np.random.default_rng(4)
    x = integers(rng, (2, 8, 32, 32), "float32")
    w = integers(rng, (12, 8 // unlike.get("groups", 1), 1, 1), "float32")
    np.testing.assert_array_equal(
        compiled(x, w, **unlike), reference(xpconv.corr, x, w, layout="channels_first", **unlike)
    )
    assert not _are_planes(taken, "float32")


def test_what_is_not_finite_stays_where_it_is():
    x, w = np.ones((1, 5, 9, 7), np.float32), np.ones((40, 5, 1, 1), np.float32)
    x[0, 2, 8, 6], w[3, 1] = np.nan, np.inf
    y = compiled(x, w)
    assert np.isnan(y[..., 8, 6]).all()
    y[..., 8, 6] = 0
    assert np.isinf(y[:, 3]).sum() == 62
    y[:, 3] = 0
    assert np.isfinite(y).all()


def test_with_little_memory_fewer_panels_are_held(taken):
    rng = np.random.default_rng(5)
    x, w = integers(rng, (1, 256, 16, 32), "float32"), integers(rng, (32, 256, 1, 1), "float32")
    right = reference(xpconv.corr, x, w, layout="channels_first")
    np.testing.assert_array_equal(compiled(x, w, limit=160_000), right)
    assert _are_planes(taken, "float32")


@pytest.mark.parametrize("size", [(64, 64), (9, 57)])  # lines of the caches, or not
@pytest.mark.parametrize("least", [0, 1 << 40])
def test_results_that_pass_the_caches_by_and_those_that_do_not(size, least, taken, monkeypatch):
    monkeypatch.setattr(pointwise, "STREAMED", least)
    kernels._prepared.cache_clear()
    rng = np.random.default_rng(6)
    x, w = integers(rng, (1, 2, *size), "float32"), integers(rng, (65, 2, 1, 1), "float32")
    np.testing.assert_array_equal(compiled(x, w), np.einsum("nchw,fc->nfhw", x, w[..., 0, 0]))
    assert _are_planes(taken, "float32")
