"""The LeNet that reads handwritten digits."""

import sys

import numpy
import pytest
from numpy.testing import assert_array_equal

from xpconv import nn
from xpconv.nn.lenet import lenet, load_digit_data, shifted_by_a_pixel, train_digits


def test_lenet_is_made_of_convolutions_that_flip_pooling_and_dense_layers():
    kinds = [type(layer).__name__ for layer in lenet(rng=0).layers if layer.state() or "Pool" in type(layer).__name__]
    assert kinds == ["Conv2D", "MaxPool", "Conv2D", "MaxPool", "Dense", "Dense"]


def test_lenet_takes_images_of_other_sizes_and_channels():
    model = lenet(size=(28, 20), channels=3, classes=7, rng=0)
    assert model(numpy.zeros((2, 28, 20, 3), numpy.float32)).shape == (2, 7)


def test_images_too_small_to_be_pooled_twice_are_named():
    with pytest.raises(ValueError, match=r"size must be at least 4 in both directions .* got \(8, 3\)"):
        lenet(size=(8, 3))


def test_a_quarter_of_the_digits_is_held_out_each_digit_in_proportion():
    pytest.importorskip("sklearn")
    data = load_digit_data(seed=0)
    assert data.train_images.shape == (1347, 8, 8, 1)
    assert data.test_images.shape == (450, 8, 8, 1)
    assert data.train_images.dtype == numpy.float32
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    counts = numpy.bincount(data.test_labels)
    assert counts.min() >= 43
    assert counts.max() <= 47


def test_no_held_out_digit_is_trained_on():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    data = load_digit_data(seed=0)
    parts = numpy.concatenate([data.train_images, data.test_images]).reshape(1797, 64) * 16
    assert_array_equal(numpy.unique(parts, axis=0), numpy.unique(load_digits().data, axis=0))
    assert not {x.tobytes() for x in data.train_images} & {x.tobytes() for x in data.test_images}


def test_the_split_is_fixed_by_its_seed():
    pytest.importorskip("sklearn")
    first, second, other = (load_digit_data(seed).test_images for seed in (1, 1, 2))
    assert_array_equal(first, second)
    assert not numpy.array_equal(first, other)


def test_without_scikit_learn_one_line_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'^sklearn is not installed; pip install "xpconv\[cli\]"$'):
        load_digit_data()


def test_a_shift_moves_each_image_by_at_most_a_pixel_and_lets_zeros_in():
    images = numpy.zeros((200, 5, 5, 1), numpy.float32)
    images[:, 2, 2] = 1
    images[:, 0, 0] = 2
    shifted = shifted_by_a_pixel(images, numpy.random.default_rng(0))
    _, rows, columns, _ = numpy.nonzero(shifted == 1)
    assert len(rows) == 200
    assert set(rows) == set(columns) == {1, 2, 3}
    assert ((shifted == 2).sum(axis=(1, 2, 3)) <= 1).all()
    assert (shifted[:, -1] == 0).all()


def test_lenet_reads_at_least_98_5_percent_of_the_held_out_digits():
    pytest.importorskip("sklearn")
    result = train_digits(seed=0, progress=False)
    assert result.accuracy >= 0.985
    assert result.accuracy == (result.predictions == result.test_labels).mean()
    assert result.test_images.shape == (450, 8, 8, 1)
    assert nn.accuracy(result.model(result.test_images), result.test_labels) == result.accuracy
