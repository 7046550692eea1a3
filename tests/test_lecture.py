"""The numbers of the lecture that xpconv grew out of."""

import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st

import xpconv

SIGNAL, KERNEL = [1, 3, 2, 4, 5, 6, 1, 3], [1, 0, 3, 1, 2]
IMAGE = [[1, 3, 2, 4], [5, 6, 1, 3], [1, 2, 0, 2], [3, 4, 3, 2]]
FILTER = [[1, 0, 3], [1, 2, 1], [0, 1, 1]]


@pytest.mark.parametrize("padding", [2, "same"])
def test_the_signal_of_the_lecture(padding):
    y = xpconv.conv1d(SIGNAL, KERNEL, padding=padding)
    assert y.tolist() == [5, 14, 16, 26, 24, 34, 19, 22] == np.convolve(SIGNAL, KERNEL, "same").tolist()


@pytest.mark.parametrize("padding", [1, "same"])
def test_the_image_of_the_lecture(padding):
    expected = [[11, 25, 32, 13], [19, 25, 24, 13], [13, 28, 25, 17], [11, 17, 14, 9]]
    y = xpconv.conv2d(IMAGE, FILTER, padding=padding)
    assert y.tolist() == expected == scipy.signal.convolve2d(IMAGE, FILTER, "same").tolist()


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@given(n=st.integers(1, 12), m=st.integers(1, 12))
def test_the_three_paddings_are_numpys_three_modes(mode, n, m):
    n, m = max(n, m), min(n, m)
    x, w = np.arange(1, n + 1), np.arange(2, m + 2)
    assert xpconv.conv1d(x, w, padding=mode).tolist() == np.convolve(x, w, mode).tolist()


def test_the_size_is_floor_of_n_plus_2p_minus_m_over_s_plus_1():
    for n in range(1, 12):
        for m in range(1, 6):
            for p in range(4):
                for s in range(1, 5):
                    if n + 2 * p < m:
                        continue
                    y = xpconv.conv1d(np.ones(n), np.ones(m), padding=p, stride=s)
                    assert len(y) == int(np.floor((n + 2 * p - m) / s)) + 1


def test_a_stride_takes_every_s_th_result():
    y = xpconv.conv2d(IMAGE, FILTER, padding="full")
    assert xpconv.conv2d(IMAGE, FILTER, padding="full", stride=(2, 3)).tolist() == y[::2, ::3].tolist()


def test_feature_maps_sum_over_the_channels_add_the_bias_and_take_phi():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(7, 6, 3)), rng.normal(size=(3, 2, 3, 5)), rng.normal(size=5)
    h = xpconv.conv2d(x, w, b, activation="relu")
    for k in range(5):
        y = sum(scipy.signal.convolve2d(x[..., c], w[..., c, k], "valid") for c in range(3))
        np.testing.assert_allclose(h[..., k], np.maximum(y + b[k], 0), atol=1e-12)


def test_one_feature_map_has_no_filter_axis():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(7, 6, 3)), rng.normal(size=(3, 2, 3))
    y = xpconv.conv2d(x, w, 0.5)
    assert y.shape == (5, 5)
    np.testing.assert_allclose(y, xpconv.conv2d(x, w[..., None], [0.5])[..., 0])


def test_pooling_takes_neighbourhoods_that_do_not_overlap():
    assert xpconv.max_pool2d(IMAGE, 2).tolist() == [[6, 4], [4, 3]]
    assert xpconv.avg_pool2d(IMAGE, (2, 2)).tolist() == [[3.75, 2.5], [2.5, 1.75]]


def test_convolution_flips_and_correlation_does_not():
    assert xpconv.conv1d([1, 2, 3, 4], [1, 0, -1]).tolist() == [2, 2]
    assert xpconv.corr1d([1, 2, 3, 4], [1, 0, -1]).tolist() == [-2, -2]
