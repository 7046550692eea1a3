"""Layers: what they compute, and that their backward is the derivative of their forward."""

from copy import deepcopy

import numpy
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from xpconv import nn
from xpconv.convolution import conv2d, corr2d


def normal(*shape, seed=0):
    return numpy.random.default_rng(seed).normal(size=shape)


LAYERS = {
    "Conv1D": (lambda: nn.Conv1D(2, 3, 3, stride=2, padding=1, rng=0), (2, 7, 2)),
    "Conv2D": (lambda: nn.Conv2D(2, 3, (3, 2), padding="same", rng=0), (2, 5, 4, 2)),
    "Conv2D strided, dilated, grouped": (
        lambda: nn.Conv2D(4, 6, 2, stride=(2, 1), padding=((1, 0), (0, 2)), dilation=2, groups=2, rng=0),
        (2, 5, 4, 4),
    ),
    "Conv2D channels_first": (lambda: nn.Conv2D(4, 2, 3, groups=2, layout="channels_first", rng=0), (2, 4, 5, 4)),
    "Conv2D with wrapped padding": (
        lambda: nn.Conv2D(1, 2, 3, padding=2, padding_mode="wrap", bias=False, rng=0),
        (1, 4, 3, 1),
    ),
    "Conv3D": (lambda: nn.Conv3D(1, 2, 2, init="glorot", rng=0), (1, 3, 3, 4, 1)),
    "Corr1D": (lambda: nn.Corr1D(2, 3, 3, padding="full", rng=0), (2, 5, 2)),
    "Corr2D": (lambda: nn.Corr2D(2, 3, 3, stride=2, padding=1, rng=0), (2, 5, 4, 2)),
    "Corr3D": (lambda: nn.Corr3D(2, 2, 2, groups=2, rng=0), (1, 3, 2, 3, 2)),
    "MaxPool": (lambda: nn.MaxPool(2), (2, 4, 6, 3)),
    "MaxPool overlapping": (lambda: nn.MaxPool(3, stride=2, padding=1, layout="channels_first"), (2, 3, 5, 5)),
    "MaxPool of volumes": (lambda: nn.MaxPool(2, ceil_mode=True), (1, 3, 3, 3, 2)),
    "AvgPool": (lambda: nn.AvgPool((2, 3)), (2, 4, 6, 3)),
    "AvgPool overlapping": (lambda: nn.AvgPool(3, stride=1, padding=1, layout="channels_first"), (2, 3, 5, 4)),
    "GlobalAvgPool": (lambda: nn.GlobalAvgPool(), (2, 3, 4, 5)),
    "GlobalAvgPool channels_first": (lambda: nn.GlobalAvgPool(layout="channels_first"), (2, 3, 4, 5)),
    "Flatten": (lambda: nn.Flatten(), (2, 3, 4)),
    "Dense": (lambda: nn.Dense(4, 3, rng=0), (5, 4)),
    "Dense on a sequence": (lambda: nn.Dense(4, 3, bias=False, rng=0), (2, 5, 4)),
    "Dropout": (lambda: nn.Dropout(0.4, rng=0), (4, 5)),
    "BatchNorm": (lambda: nn.BatchNorm(3), (4, 2, 5, 3)),
    "BatchNorm channels_first": (lambda: nn.BatchNorm(2, layout="channels_first"), (4, 2, 5)),
    "Relu": (lambda: nn.Relu(), (4, 5)),
    "LeakyRelu": (lambda: nn.LeakyRelu(0.2), (4, 5)),
    "Sigmoid": (lambda: nn.Sigmoid(), (4, 5)),
    "Tanh": (lambda: nn.Tanh(), (4, 5)),
    "Gelu": (lambda: nn.Gelu(), (4, 5)),
    "Silu": (lambda: nn.Silu(), (4, 5)),
    "Sequential": (
        lambda: nn.Sequential(
            nn.Conv2D(1, 2, 3, rng=0), nn.Tanh(), nn.MaxPool(2), nn.Sequential(nn.Flatten(), nn.Dense(4, 3, rng=1))
        ),
        (2, 6, 4, 1),
    ),
}


def numeric_gradient(function, array, step=1e-6):
    """Central differences of a number with respect to every element of `array`, which is changed and restored."""
    gradient = numpy.empty_like(array)
    for index in numpy.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


@pytest.mark.parametrize("training", [True, False], ids=["in training", "in use"])
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_backward_is_the_derivative_of_forward(make, shape, training):
    layer = make().to(numpy, dtype="float64")
    for number, tensor in enumerate(layer.state().values()):
        tensor.value = tensor.value + 0.1 * abs(normal(*tensor.value.shape, seed=number))  # no bias or mean of zero
    x = normal(*shape)

    def value():  # of a copy, so that Dropout draws the same and BatchNorm remembers nothing
        return float((deepcopy(layer).forward(x, training=training)[0] * gy).sum())

    y, backward = deepcopy(layer).forward(x, training=training)
    gy = normal(*y.shape, seed=1)
    y, backward = (computing := deepcopy(layer)).forward(x, training=training)
    gx = backward(gy)

    assert gx.shape == x.shape
    assert_allclose(gx, numeric_gradient(value, x), atol=1e-7, rtol=1e-6)
    for name, parameter in layer.parameters().items():
        expected = numeric_gradient(value, parameter.value)
        assert_allclose(computing.parameters()[name].grad, expected, atol=1e-7, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_calling_a_layer_is_its_forward_in_use(make, shape):
    layer = make()
    x = normal(*shape)
    assert_array_equal(layer(x), layer.forward(x, training=False)[0])


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_float32_stays_float32_in_value_and_gradients(make, shape):
    layer = make()
    x = normal(*shape).astype(numpy.float32)
    y, backward = layer.forward(x)
    assert y.dtype == numpy.float32
    assert backward(numpy.ones_like(y)).dtype == numpy.float32
    assert {p.grad.dtype for p in layer.parameters().values()} <= {numpy.dtype(numpy.float32)}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_layers_call_nothing_but_the_array_api(make, shape):
    strict = pytest.importorskip("array_api_strict")
    x = normal(*shape).astype(numpy.float32)
    layer, strict_layer = make(), make().to(strict)
    y, backward = layer.forward(x)
    strict_y, strict_backward = strict_layer.forward(strict.asarray(x))

    assert_allclose(numpy.asarray(strict_y), y, rtol=1e-5, atol=1e-6)
    assert_allclose(numpy.asarray(strict_backward(strict_y)), backward(y), rtol=1e-4, atol=1e-5)
    assert_allclose(numpy.asarray(strict_layer(strict.asarray(x))), layer(x), rtol=1e-5, atol=1e-6)


# --- Convolution ----------------------------------------------------------------------------------------------------


def test_conv_layers_flip_the_kernel_and_corr_layers_do_not():
    x = normal(1, 5, 5, 1)
    layer, unflipped = nn.Conv2D(1, 1, 3, rng=0), nn.Corr2D(1, 1, 3, rng=0)
    assert_array_equal(layer(x), conv2d(x, layer.weight.value))
    assert_array_equal(unflipped(x), corr2d(x, unflipped.weight.value))
    assert_allclose(layer(x), corr2d(x, layer.weight.value[::-1, ::-1]), rtol=1e-6)


def test_corr_layers_take_the_weights_of_torch_as_they_are():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
    ours = nn.Corr2D(4, 6, 3, stride=2, padding=1, groups=2, layout="channels_first")
    ours.weight.value = theirs.weight.detach().numpy()
    ours.bias.value = theirs.bias.detach().numpy()
    assert_same_as_torch(ours, theirs, normal(2, 4, 7, 6))
    assert_allclose(ours.weight.grad, theirs.weight.grad.numpy(), atol=1e-12)
    assert_allclose(ours.bias.grad, theirs.bias.grad.numpy(), atol=1e-12)


def test_he_and_glorot_weights_have_the_variance_of_their_definition():
    he = nn.Conv2D(16, 64, 3, rng=0).weight.value
    glorot = nn.Dense(400, 100, init="glorot", rng=0).weight.value
    assert abs(he.var() / (2 / (9 * 16)) - 1) < 0.05
    assert abs(glorot.var() / (2 / 500) - 1) < 0.05
    assert abs(glorot).max() <= (6 / 500) ** 0.5


def test_the_same_seed_draws_the_same_weights():
    first, second, other = (nn.Conv2D(1, 4, 3, rng=seed).weight.value for seed in (0, 0, 1))
    assert_array_equal(first, second)
    assert not numpy.array_equal(first, other)


def test_weights_are_float32_until_they_are_moved():
    layer = nn.Dense(2, 3, rng=0)
    assert layer.weight.value.dtype == layer.bias.value.dtype == numpy.float32
    assert layer.to(numpy, dtype="float64") is layer
    assert layer.weight.value.dtype == layer.bias.value.dtype == numpy.float64


# --- Gradients ------------------------------------------------------------------------------------------------------


def test_gradients_of_several_backwards_add_up():
    layer, x = nn.Dense(3, 2, rng=0), normal(4, 3)
    for _ in range(2):
        y, backward = layer.forward(x)
        backward(numpy.ones_like(y))
    assert_allclose(layer.bias.grad, [8, 8])


@pytest.mark.parametrize(("layer", "shape"), [(nn.Dense(3, 2, rng=0), (4, 3)), (nn.Conv1D(1, 2, 3, rng=0), (2, 5, 1))])
def test_backward_uses_the_weight_that_forward_used(layer, shape):
    y, backward = layer.forward(normal(*shape))
    before = backward(numpy.ones_like(y))
    layer.weight.value = layer.weight.value * 0
    assert_array_equal(backward(numpy.ones_like(y)), before)
    assert before.any()


# --- Against PyTorch ------------------------------------------------------------------------------------------------


def assert_same_as_torch(ours, theirs, x):
    torch = pytest.importorskip("torch")
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    y, backward = ours.forward(x)
    gy = normal(*y.shape, seed=3)
    ty.backward(torch.tensor(gy))
    assert_allclose(y, ty.detach().numpy(), atol=1e-12)
    assert_allclose(backward(gy), tx.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (nn.Relu(), "ReLU", {}),
        (nn.LeakyRelu(0.2), "LeakyReLU", {"negative_slope": 0.2}),
        (nn.Sigmoid(), "Sigmoid", {}),
        (nn.Tanh(), "Tanh", {}),
        (nn.Gelu(), "GELU", {}),
        (nn.Silu(), "SiLU", {}),
        (
            nn.MaxPool(3, stride=2, padding=1, layout="channels_first"),
            "MaxPool2d",
            {"kernel_size": 3, "stride": 2, "padding": 1},
        ),
        (nn.AvgPool(2, layout="channels_first"), "AvgPool2d", {"kernel_size": 2}),
        (nn.Flatten(), "Flatten", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_agree_with_torch(ours, theirs, options):
    torch = pytest.importorskip("torch")
    assert_same_as_torch(ours, getattr(torch.nn, theirs)(**options), normal(2, 3, 6, 6))


def test_batch_norm_agrees_with_torch_in_training_and_in_use():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(3).double()
    ours = nn.BatchNorm(3, layout="channels_first").to(numpy, dtype="float64")
    for batch in range(3):
        assert_same_as_torch(ours, theirs, 2 + 3 * normal(4, 3, 5, 5, seed=batch))
    assert_allclose(ours.mean.value, theirs.running_mean.numpy())
    assert_allclose(ours.variance.value, theirs.running_var.numpy())
    x = normal(2, 3, 4, 4)
    assert_allclose(ours(x), theirs.eval()(torch.tensor(x)).detach().numpy())


# --- Training and use -----------------------------------------------------------------------------------------------


def test_batch_norm_in_training_gives_each_channel_mean_zero_and_variance_one():
    y, _ = nn.BatchNorm(3).forward(5 + 2 * normal(64, 4, 3), training=True)
    assert_allclose(y.mean(axis=(0, 1)), 0, atol=1e-6)
    assert_allclose(y.var(axis=(0, 1)), 1, atol=1e-4)


def test_batch_norm_in_use_depends_on_no_other_item():
    layer, x = nn.BatchNorm(3), normal(8, 3)
    layer.forward(x, training=True)
    assert_array_equal(layer(x)[:2], layer(x[:2]))


def test_batch_norm_learns_its_statistics_in_training_only():
    layer = nn.BatchNorm(3)
    layer.forward(normal(8, 3), training=False)
    assert_array_equal(layer.mean.value, [0, 0, 0])
    layer.forward(normal(8, 3), training=True)
    assert (layer.mean.value != 0).all()


def test_dropout_zeroes_its_part_and_keeps_the_mean():
    y, _ = nn.Dropout(0.25, rng=0).forward(numpy.ones(10_000), training=True)
    assert set(numpy.unique(y)) == {0, 1 / 0.75}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert abs(y.mean() - 1) < 0.03


def test_dropout_draws_anew_at_each_step_and_the_same_from_the_same_seed():
    first, second = nn.Dropout(0.5, rng=0), nn.Dropout(0.5, rng=0)
    x = numpy.ones(100)
    draws = [layer.forward(x, training=True)[0] for layer in (first, first, second)]
    assert not numpy.array_equal(draws[0], draws[1])
    assert_array_equal(draws[0], draws[2])


def test_dropout_in_use_passes_everything():
    x = normal(4, 5)
    assert_array_equal(nn.Dropout(0.9, rng=0)(x), x)


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Tanh(), nn.Silu(), nn.Relu(), nn.Gelu()])
def test_activations_stay_finite_far_from_zero(layer):
    with numpy.errstate(all="raise", under="ignore"):
        y, backward = layer.forward(numpy.array([-1e4, 1e4]))
        assert numpy.isfinite(y).all()
        assert numpy.isfinite(backward(numpy.ones(2))).all()


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Tanh(), nn.Silu(), nn.Relu(), nn.Gelu(), nn.LeakyRelu()])
def test_activations_pass_nan_on(layer):
    assert numpy.isnan(layer(numpy.array([numpy.nan]))).all()


# --- Names and chains -----------------------------------------------------------------------------------------------


def test_tensors_are_named_by_their_place():
    inner = nn.Sequential(nn.Dense(2, 2, bias=False), nn.Relu())
    model = nn.Sequential(nn.Flatten(), inner, nn.BatchNorm(2))
    assert list(model.parameters()) == ["1.0.weight", "2.scale", "2.shift"]
    assert list(model.state()) == ["1.0.weight", "2.scale", "2.shift", "2.mean", "2.variance"]


def test_a_layer_that_is_used_twice_is_one_set_of_parameters():
    shared = nn.Dense(2, 2, rng=0)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    assert list(model.parameters()) == ["0.weight", "0.bias"]


def test_activations_of_returns_the_output_of_every_layer_in_use():
    model = nn.Sequential(nn.Conv2D(1, 2, 3, rng=0), nn.Dropout(0.5, rng=0), nn.MaxPool(2))
    x = normal(1, 6, 6, 1)
    outputs = model.activations_of(x)
    assert [y.shape for y in outputs] == [(1, 4, 4, 2), (1, 4, 4, 2), (1, 2, 2, 2)]
    assert_array_equal(outputs[-1], model(x))


def test_an_empty_batch_passes_through_a_network():
    model = nn.Sequential(nn.Conv2D(1, 2, 3, rng=0), nn.Relu(), nn.MaxPool(2), nn.Flatten(), nn.Dense(8, 3, rng=0))
    assert model(numpy.zeros((0, 6, 6, 1))).shape == (0, 3)


@pytest.mark.parametrize("pool", [nn.MaxPool, nn.AvgPool])
def test_pooling_takes_all_that_its_operation_takes(pool):
    x = normal(1, 5, 6, 2)
    assert pool(2, padding="same")(x).shape == (1, 3, 3, 2)
    assert pool((2, 3), stride=(1, 2), padding=((1, 0), (0, 1)), dilation=numpy.array([1, 1]))(x).shape == (1, 5, 3, 2)
    assert pool(numpy.array([2, 3]), layout="channels_first")(x.transpose(0, 3, 1, 2)).shape == (1, 2, 2, 2)
    assert pool(2).geometry.keys() >= {"stride", "padding", "dilation", "ceil_mode", "layout"}


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.Conv2D(3, 4, 3, groups=2), "groups 2 does not divide in_channels 3 and filters 4"),
        (lambda: nn.Conv2D(0, 4, 3), "^in_channels must be at least 1, got in_channels=0$"),
        (lambda: nn.Conv2D(3, 0, 3), "^filters must be at least 1, got filters=0$"),
        (lambda: nn.Conv2D(3, 4, 3, groups=0), "^groups must be at least 1, got groups=0$"),
        (lambda: nn.Conv2D(3, 4.5, 3), "^filters must be an integer, got filters=4.5$"),
        (lambda: nn.Dense(0, 4), "^in_features must be at least 1, got in_features=0$"),
        (lambda: nn.Dense(3, 0), "^out_features must be at least 1, got out_features=0$"),
        (lambda: nn.BatchNorm(0), "^channels must be at least 1, got channels=0$"),
        (lambda: nn.MaxPool(0), "^window must be at least 1, got window=0$"),
        (lambda: nn.MaxPool((2, 0)), r"^window must be at least 1, got window=\(2, 0\)$"),
        (lambda: nn.MaxPool(2, stride=0), "^stride must be at least 1, got stride=0$"),
        (lambda: nn.MaxPool(2, padding=-1), "^padding must be at least 0, got padding=-1$"),
        (lambda: nn.AvgPool(0), "^window must be at least 1, got window=0$"),
        (lambda: nn.AvgPool(2, dilation=0), "^dilation must be at least 1, got dilation=0$"),
        (lambda: nn.AvgPool(2, layout="NHWC"), "layout='NHWC' is unknown"),
        (lambda: nn.GlobalAvgPool(layout="NHWC"), "layout='NHWC' is unknown"),
        (lambda: nn.Conv2D(3, 4, (3, 3, 3)), "window has 3 entries but there are 2 spatial axes"),
        (lambda: nn.Conv2D(3, 4, 3, padding="some"), "padding='some' is unknown"),
        (lambda: nn.Conv2D(3, 4, 3, layout="NHWC"), "layout='NHWC' is unknown"),
        (lambda: nn.Dense(3, 4, init="zeros"), 'init must be "he" or "glorot", got \'zeros\''),
        (lambda: nn.Dropout(1.0), "rate must be at least 0 and less than 1, got 1.0"),
        (lambda: nn.Dense(3, 4)(numpy.ones((2, 5))), r"x must be \(..., 3\) to meet weight \(3, 4\), got \(2, 5\)"),
        (
            lambda: nn.Conv2D(3, 4, 3)(numpy.ones((5, 5, 3))),
            r"Conv2D takes a batch of 4 axes, got x of shape \(5, 5, 3\)",
        ),
        (lambda: nn.Conv2D(3, 4, 3)(numpy.ones((1, 5, 5, 2))), "x has 2 channels but w reads 3"),
        (lambda: nn.BatchNorm(3)(numpy.ones((2, 4))), r"BatchNorm has 3 channels, x has shape \(2, 4\)"),
        (lambda: nn.BatchNorm(3).forward(numpy.ones((1, 3))), "x has one value per channel"),
    ],
)
def test_wrong_shapes_and_values_are_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
