"""Convolutions of a large weight that few results share: every part of it is packed, and all parts are added up."""

from functools import partial

import numpy as np
import pytest

import xpconv
from cases import integers
from engine_cases import reference
from kernel_calls import by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import deep, direct, threads
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.cpu.compiled.tile import Shape, shape_for

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

compiled = partial(by_kernels, "direct", xpconv.corr)

CASES = [
    ((1, 7, 7, 520), (3, 3, 520, 160), {"padding": 1}),
    ((1, 7, 7, 512), (1, 1, 512, 256), {}),
    ((1, 5, 5, 512), (1, 1, 512, 256), {}),
    ((5, 1, 1, 1031), (1, 1, 1031, 160), {}),
    ((2, 9, 10, 96), (3, 3, 96, 224), {"padding": 1, "stride": 2}),
    ((1, 9, 11, 64), (3, 3, 64, 128), {"padding": 2, "dilation": 2}),
    ((3, 11, 320), (5, 320, 64), {}),
]


@pytest.fixture(autouse=True)
def _tiles_of_two_vectors(monkeypatch):
    """As large weights have them that are packed in chunks; panels of four vectors are packed one by one."""
    monkeypatch.setattr(direct, "shape_for", lambda filters, dtype, _: shape_for(filters, dtype, 2))


def _taken(monkeypatch):
    """The addresses of the tasks that are run from here on."""
    taken, run = [], threads.run
    monkeypatch.setattr(threads, "run", lambda task, *rest: (taken.append(task), run(task, *rest)))
    return taken


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CASES)
def test_large_weights_are_multiplied_whole(x_shape, w_shape, options, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    x, w, bias = (integers(rng, shape, dtype) for shape in (x_shape, w_shape, w_shape[-1:]))
    shape, taken = Shape(lanes_of(dtype), 2), _taken(monkeypatch)
    y = compiled(x, w, bias=bias, activation="relu", **options)
    np.testing.assert_array_equal(y, reference(xpconv.corr, x, w, bias, activation="relu", **options))
    if deep.is_for(shape):
        assert direct._library(dtype, shape).address("deep") in taken


@pytest.mark.parametrize("arranged", [
    lambda w: w[::-1], lambda w: np.asarray(w, order="F"), lambda w: w[..., ::2], lambda w: w[::2],
])  # fmt: skip
def test_large_weights_of_any_strides(arranged):
    rng = np.random.default_rng(1)
    x, w = integers(rng, (1, 8, 8, 256), "float32"), arranged(integers(rng, (3, 3, 256, 96), "float32"))
    for function in (xpconv.corr, xpconv.conv):
        y = by_kernels("direct", function, x, w, padding=1)
        np.testing.assert_array_equal(y, reference(function, x, w, padding=1))


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("size", "window", "groups", "options"), [
    ((23,), (5,), 1, {"stride": 2, "padding": ((3, 1),)}),
    ((9, 11), (3, 2), 1, {"padding": ((1, 0), (0, 1)), "stride": (1, 2)}),
    ((9, 11), (2, 3), 1, {"dilation": (2, 3), "padding": 2}),
    ((9, 11), (3, 3), 2, {"padding": 1}),
    ((4, 5, 6), (2, 3, 2), 1, {"padding": 1}),
])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3])
def test_flipped_weights_of_many_channels_are_read_as_they_lie(size, window, groups, options, layout, batch):
    rng = np.random.default_rng(len(size))
    x, w = integers(rng, (batch, *size, 130 * groups), "float32"), integers(rng, (*window, 130, 96), "float32")
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    options = {"layout": layout, "groups": groups, **options}
    assert direct._is_backwards(xpconv.conv.request(x, w, **options).spec)
    y = by_kernels("direct", xpconv.conv, x, w, **options)
    np.testing.assert_array_equal(y, reference(xpconv.conv, x, w, **options))


def test_a_nan_stays_in_the_windows_that_hold_it():
    x, w = np.ones((1, 9, 9, 600), np.float32), np.ones((3, 3, 600, 64), np.float32)
    x[0, 4, 5, 599] = np.nan
    touched = np.zeros((7, 7), bool)
    touched[2:5, 3:6] = True
    np.testing.assert_array_equal(np.isnan(compiled(x, w)), np.broadcast_to(touched[None, :, :, None], (1, 7, 7, 64)))


@pytest.mark.parametrize("channels", [512, 1031, 4096])
def test_the_error_stays_within_the_bound_of_direct(channels):
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal(shape).astype("float32") for shape in ((1, 5, 5, channels), (3, 3, channels, 48)))
    exact = xpconv.corr2d(x.astype(float), w.astype(float), method="gemm")
    assert np.abs(compiled(x, w) - exact).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), [
    ((1, 14, 14, 512), (3, 3, 512, 96), {"stride": 2, "padding": 1}),
    ((1, 15_000, 1), (1025, 1, 16), {}),
    ((1, 7, 7, 520), (3, 3, 520, 80), {}),
])  # fmt: skip
def test_threads_do_not_change_a_result(x_shape, w_shape, options, monkeypatch):
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape, np.float32) for shape in (x_shape, w_shape))
    results = [compiled(x, w, **options)]
    for count in (1, 2, 3, 5, 7):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        results.append(compiled(x, w, **options))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
