"""Optimisers against steps worked out by hand, and against PyTorch's."""

import numpy
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpconv import nn


def value_after(optimizer, gradients, start=1.0):
    parameter = nn.Parameter(numpy.array([start]))
    for gradient in gradients:
        parameter.grad = numpy.array([gradient])
        optimizer.step({"p": parameter})
    return parameter.value


def test_sgd_steps_against_the_gradient():
    assert_allclose(value_after(nn.SGD(0.1), [2.0, -1.0]), [1 - 0.2 + 0.1])


def test_momentum_adds_a_part_of_the_steps_before():
    # velocities: 2, then 0.5 * 2 + 2 = 3
    assert_allclose(value_after(nn.SGD(0.1, momentum=0.5), [2.0, 2.0]), [1 - 0.2 - 0.3])


def test_weight_decay_pulls_towards_zero():
    # gradient 2 + 0.5 * 1
    assert_allclose(value_after(nn.SGD(0.1, weight_decay=0.5), [2.0]), [1 - 0.25])


def test_the_first_step_of_adam_is_the_learning_rate_whatever_the_gradients_size():
    assert_allclose(value_after(nn.Adam(0.1), [1e3]), [0.9])
    assert_allclose(value_after(nn.Adam(0.1), [-1e-3]), [1.1], rtol=1e-5)


def test_the_second_step_of_adam_is_that_of_the_paper():
    # g = 1, then 0:  m = 0.1, 0.09;  v = 0.001, 0.000999;  divided by 1 - 0.9**2 and 1 - 0.999**2
    step = (0.09 / 0.19) / ((0.000999 / 0.001999) ** 0.5 + 1e-8)
    assert_allclose(value_after(nn.Adam(0.1), [1.0, 0.0]), [1 - 0.1 / (1 + 1e-8) - 0.1 * step])


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (nn.SGD(0.1, momentum=0.9, weight_decay=0.01), "SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        (nn.Adam(0.1, betas=(0.8, 0.99), epsilon=1e-6), "Adam", {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-6}),
    ],
    ids=["SGD", "Adam"],
)
def test_optimisers_agree_with_torch(ours, theirs, options):
    torch = pytest.importorskip("torch")
    start = numpy.random.default_rng(0).normal(size=(3, 2))
    leaf = torch.tensor(start, requires_grad=True)
    parameter = nn.Parameter(start)
    optimizer = getattr(torch.optim, theirs)([leaf], **options)
    for seed in range(1, 6):
        gradient = numpy.random.default_rng(seed).normal(size=(3, 2))
        leaf.grad, parameter.grad = torch.tensor(gradient), gradient
        optimizer.step()
        ours.step({"p": parameter})
    assert_allclose(parameter.value, leaf.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("optimizer", [nn.SGD(0.1, momentum=0.9), nn.Adam(0.1)], ids=["SGD", "Adam"])
def test_a_step_forgets_the_gradients_and_leaves_parameters_without_one(optimizer):
    stepped, idle = nn.Parameter(numpy.ones(2), grad=numpy.ones(2)), nn.Parameter(numpy.ones(2))
    optimizer.step({"stepped": stepped, "idle": idle})
    assert stepped.grad is None
    assert_array_equal(idle.value, [1, 1])
    assert (stepped.value < 1).all()


@pytest.mark.parametrize("optimizer", [nn.SGD(0.1, momentum=0.9), nn.Adam(0.1)], ids=["SGD", "Adam"])
def test_a_step_keeps_float32_and_leaves_the_old_array_alone(optimizer):
    before = numpy.ones(2, numpy.float32)
    parameter = nn.Parameter(before)
    for _ in range(2):
        parameter.add_grad(numpy.ones(2))
        optimizer.step({"p": parameter})
    assert parameter.value.dtype == numpy.float32
    assert_array_equal(before, [1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.SGD(0), "learning_rate must be positive, got 0"),
        (lambda: nn.SGD(0.1, momentum=1), "momentum must be at least 0 and less than 1, got 1"),
        (lambda: nn.SGD(0.1, weight_decay=-1), "weight_decay must not be negative, got -1"),
        (lambda: nn.Adam(betas=(0.9, 1.0)), r"betas must be at least 0 and less than 1, got \(0.9, 1.0\)"),
        (lambda: nn.Adam(epsilon=0), "epsilon must be positive, got 0"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
