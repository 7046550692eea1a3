"""Gradients of weights that are added up part by part, against the definition."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from xpconv.cpu import gradient_parts
from xpconv.engines import compiled

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled.build import machine

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

SMALL = {"_FEW": 8, "_MOST": 24, "_ROW": 6, "_UNIT": 2}


def in_small_parts():
    gradient_parts.parts_of.cache_clear()
    return mock.patch.multiple(gradient_parts, **SMALL)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype("f") for shape in shapes]


def by_parts(x, gy, window, **options):
    """By the kernels, of parts as small as they are now; and how many there are."""
    spec = xpconv.corr_grad_weight.request(x, gy, window=window, **options).spec
    last = (np.moveaxis(a, 1, -1) if options.get("layout") == "channels_first" else a for a in (x, gy))
    return compiled.grad_weight(*last, spec), len(compiled._parts_of(x.dtype, spec))


def assert_near(x, gy, window, **options):
    with in_small_parts():
        gw, parts = by_parts(x, gy, window, **options)
    gradient_parts.parts_of.cache_clear()
    expected = xpconv.corr_grad_weight(x.astype(float), gy.astype(float), window=window, **options)
    if options.get("layout") == "channels_first":
        expected = np.moveaxis(expected, (0, 1), (-1, -2))
    assert np.abs(gw - expected).max() <= 3e-5 * max(np.abs(expected).max(), 1)
    return parts


@given(st.data(), st.integers(1, 3), st.sampled_from(["channels_last", "channels_first"]))
def test_parts_add_up_to_the_gradient_of_any_geometry(data, axes, layout):
    def each(least, most):
        return data.draw(st.tuples(*[st.integers(least, most)] * axes))

    window, stride, dilation, spare = each(1, 3), each(1, 3), each(1, 2), each(0, 12)
    padding = data.draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * axes))
    size = tuple(
        max((m - 1) * d + 1 + n - sum(pads), 1)
        for m, d, n, pads in zip(window, dilation, spare, padding, strict=True)
    )
    batch, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 1, 2]))
    channels, filters = (data.draw(st.integers(1, 20)) * groups for _ in range(2))
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    x = np.empty((batch, *size, channels), "f")
    try:
        made = xpconv.corr(x, np.empty((*window, channels // groups, filters), "f"), **options).shape
    except ValueError:  # the window does not fit
        return
    x, gy = normal(channels, x.shape, made)
    if layout == "channels_first":
        x, gy = (np.moveaxis(a, -1, 1).copy() for a in (x, gy))
    assert_near(x, gy, window, layout=layout, **options)


@pytest.mark.parametrize("size", [(40,), (9, 30), (6, 7, 9)])
@pytest.mark.parametrize("flipped", [False, True])
def test_large_arrays_are_cut_in_parts(size, flipped):
    x, gy = normal(1, (2, *size, 16), (2, *size, 16))
    assert assert_near(x, gy, (3,) * len(size), padding=1) > 3
    if flipped:
        with in_small_parts():
            gw = xpconv.conv_grad_weight(x, gy, window=(3,) * len(size), padding=1)
        expected = xpconv.conv_grad_weight(x.astype(float), gy.astype(float), window=(3,) * len(size), padding=1)
        np.testing.assert_allclose(gw, expected, atol=1e-4 * np.abs(expected).max())


def test_a_tap_that_reads_zeros_alone_has_none():
    x, gy = normal(2, (1, 1, 20, 20, 4), (1, 3, 20, 20, 8))
    assert assert_near(x, gy, (5, 3, 3), padding=((3, 3), (1, 1), (1, 1))) > 3


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_what_padding_repeats_is_whole(mode):
    x, gy = normal(3, (2, 9, 30, 16), (2, 9, 30, 16))
    assert assert_near(x, gy, (3, 3), padding=1, padding_mode=mode) == 1


def test_a_value_that_is_not_finite_stays_in_the_taps_that_read_it():
    x, gy = normal(4, (1, 12, 30, 16), (1, 12, 30, 16))
    x[0, 0, 5, 3] = np.nan  # the last row of taps reads it for no result
    with in_small_parts():
        gw, _ = by_parts(x, gy, (3, 3), padding=((0, 2), (1, 1)))
    assert np.isnan(gw[0, :, 3]).all()
    assert np.isfinite(gw[1:]).all()
    assert np.isfinite(gw[:, :, :3]).all()


def test_sums_over_many_pixels_keep_their_digits():
    x, gy = normal(5, (1, 1200, 1200, 32), (1, 1200, 1200, 32))
    gw = xpconv.corr_grad_weight(x, gy, window=(3, 3), padding=1)
    expected = xpconv.corr_grad_weight(x.astype(float), gy.astype(float), window=(3, 3), padding=1)
    assert np.abs(gw - expected).max() < 2e-5 * np.abs(expected).max()  # in one part 6e-5
