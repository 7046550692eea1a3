"""Losses against their definitions."""

import numpy
import pytest
from numpy.testing import assert_allclose

from xpconv import nn


def normal(*shape, seed=0):
    return numpy.random.default_rng(seed).normal(size=shape)


def test_cross_entropy_is_minus_the_mean_log_of_the_labels_probability():
    logits, labels = normal(5, 4), numpy.array([0, 3, 1, 1, 2])
    probabilities = numpy.exp(logits) / numpy.exp(logits).sum(axis=1, keepdims=True)
    loss, _ = nn.softmax_cross_entropy(logits, labels)
    assert loss.shape == ()
    assert_allclose(loss, -numpy.log(probabilities[numpy.arange(5), labels]).mean())


def test_the_gradient_of_cross_entropy_is_probability_minus_truth():
    logits, labels = normal(5, 4), numpy.array([0, 3, 1, 1, 2])
    probabilities = numpy.exp(logits) / numpy.exp(logits).sum(axis=1, keepdims=True)
    _, gradient = nn.softmax_cross_entropy(logits, labels)
    assert_allclose(gradient, (probabilities - numpy.eye(4)[labels]) / 5)


def test_cross_entropy_of_huge_logits_does_not_overflow():
    loss, gradient = nn.softmax_cross_entropy(numpy.array([[1e4, 0.0], [0.0, 1e4]]), numpy.array([0, 0]))
    assert_allclose(loss, 5e3)
    assert_allclose(gradient, [[0, 0], [-0.5, 0.5]])


def test_cross_entropy_takes_a_label_per_pixel():
    logits, labels = normal(2, 3, 3, 4), numpy.random.default_rng(0).integers(4, size=(2, 3, 3))
    loss, gradient = nn.softmax_cross_entropy(logits, labels)
    flat_loss, flat_gradient = nn.softmax_cross_entropy(logits.reshape(-1, 4), labels.reshape(-1))
    assert_allclose(loss, flat_loss)
    assert_allclose(gradient.reshape(-1, 4), flat_gradient)


def test_mse_is_the_mean_of_the_squares():
    prediction, target = normal(3, 4), normal(3, 4, seed=1)
    loss, gradient = nn.mse(prediction, target)
    assert loss.shape == ()
    assert_allclose(loss, ((prediction - target) ** 2).sum() / 12)
    assert_allclose(gradient, 2 * (prediction - target) / 12)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss"])
def test_losses_agree_with_torch(name):
    torch = pytest.importorskip("torch")
    prediction = normal(5, 4)
    target = numpy.array([0, 3, 1, 1, 2]) if name == "cross_entropy" else normal(5, 4, seed=1)
    leaf = torch.tensor(prediction, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(leaf, torch.tensor(target))
    expected.backward()
    loss, gradient = {"cross_entropy": nn.softmax_cross_entropy, "mse_loss": nn.mse}[name](prediction, target)
    assert_allclose(loss, expected.item())
    assert_allclose(gradient, leaf.grad.numpy())


@pytest.mark.parametrize("loss", [nn.softmax_cross_entropy, nn.mse])
def test_losses_of_float32_stay_float32(loss):
    prediction = normal(5, 4).astype(numpy.float32)
    target = numpy.array([0, 3, 1, 1, 2]) if loss is nn.softmax_cross_entropy else prediction
    value, gradient = loss(prediction, target)
    assert value.dtype == gradient.dtype == numpy.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.softmax_cross_entropy(normal(2, 3), numpy.array([0, 3])), ValueError, "labels run from 0 to 3"),
        (lambda: nn.softmax_cross_entropy(normal(2, 3), numpy.array([-1, 0])), ValueError, "labels run from -1 to 0"),
        (lambda: nn.softmax_cross_entropy(normal(2, 3), numpy.array([0])), ValueError, "one entry per row of logits"),
        (lambda: nn.softmax_cross_entropy(normal(0, 3), numpy.array([], int)), ValueError, "at least one"),
        (lambda: nn.softmax_cross_entropy(normal(1, 3), numpy.array([1.0])), TypeError, "labels must be integers"),
        (lambda: nn.mse(normal(2, 3), normal(2, 1)), ValueError, "must have one shape"),
        (lambda: nn.accuracy(normal(2, 3), numpy.array([0])), ValueError, "one entry per row of logits"),
    ],
)
def test_labels_and_targets_that_do_not_fit_are_named(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
