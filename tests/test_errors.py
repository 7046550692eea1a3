"""Bad input gets one line that names the argument, both numbers and the way out."""

# ruff: noqa: E501  a message is one line here too

import re

import numpy as np
import pytest

import xpconv

X, W = np.ones((8, 32, 30, 6)), np.ones((3, 5, 6, 16))
SIGNAL = np.ones((2, 9, 3))

SHAPES = {
    "channels that the weight does not read": (
        lambda: xpconv.conv2d(X, W[:, :, :4]),
        "x has 6 channels but w reads 4; shapes: x (8, 32, 30, 6), w (3, 5, 4, 16)",
    ),
    "groups that do not read all channels": (
        lambda: xpconv.conv2d(X, W[:, :, :2], groups=2),
        "x has 6 channels but w reads 2 groups x 2 = 4; shapes: x (8, 32, 30, 6), w (3, 5, 2, 16)",
    ),
    "groups that do not divide the filters": (
        lambda: xpconv.conv2d(X, np.ones((3, 3, 2, 16)), groups=3),
        "groups=3 does not divide the 16 filters of w; shapes: x (8, 32, 30, 6), w (3, 3, 2, 16)",
    ),
    "a window longer than the input": (
        lambda: xpconv.conv1d(SIGNAL, np.ones((4, 3, 2)), dilation=4, padding=1),
        "the window does not fit: spatial axis 0 is 9 long + 2 padding, the dilated window spans 13; pad more or shrink "
        "the window",
    ),
    "a pooling window longer than the input": (
        lambda: xpconv.max_pool2d(X, 33),
        "the window does not fit: spatial axis 0 is 32 long + 0 padding, the dilated window spans 33; pad more or "
        "shrink the window",
    ),
    "an empty window": (
        lambda: xpconv.conv1d(SIGNAL, np.ones((0, 3, 2))),
        "the window is empty: it is 0 long on spatial axis 0",
    ),
    "a weight of too many axes": (
        lambda: xpconv.conv1d(SIGNAL, W),
        "conv1d takes w of 1 to 3 axes, got 4; shapes: x (2, 9, 3), w (3, 5, 6, 16)",
    ),
    "a weight of too few axes": (
        lambda: xpconv.conv([1, 2, 3], [1, 2]),
        "conv reads the spatial axes off w, which needs at least 3 axes; shapes: x (3,), w (2,); for plain signals and "
        "images take conv1d, conv2d or conv3d",
    ),
    "an input of the wrong rank": (
        lambda: xpconv.conv2d(X[0, 0], W),
        "conv2d with this w takes x of 3 or 4 axes, got 2; shapes: x (30, 6), w (3, 5, 6, 16)",
    ),
    "a plain weight and a batch": (
        lambda: xpconv.conv2d(X, np.ones((3, 3))),
        "conv2d with a plain w of 2 axes takes x of 2 axes, got 4; shapes: x (8, 32, 30, 6), w (3, 3)",
    ),
    "a bias of another length": (
        lambda: xpconv.conv2d(X, W, np.ones(3)),
        "bias has shape (3,) but there are 16 filters: pass shape (16,)",
    ),
    "a scalar bias for many maps": (
        lambda: xpconv.conv2d(X, W, 1.0),
        "bias has shape () but there are 16 filters: pass shape (16,)",
    ),
    "a gradient of another shape": (
        lambda: xpconv.conv_grad_input(np.ones((8, 30, 25, 16)), W, size=(32, 30)),
        "gy has shape (8, 30, 25, 16) but a forward conv from size (32, 30) with w (3, 5, 6, 16) makes (8, 30, 26, 16)",
    ),
    "a gradient for another window": (
        lambda: xpconv.corr_grad_weight(X, np.ones((8, 30, 26, 16)), window=(3, 4)),
        "gy has shape (8, 30, 26, 16) but a forward corr of x (8, 32, 30, 6) with window (3, 4) makes (8, 30, 27, 16)",
    ),
    "a batch on one side of a weight gradient": (
        lambda: xpconv.conv_grad_weight(X, np.ones((30, 26, 16)), window=(3, 5)),
        "x and gy must both have the batch axis or both lack it; shapes: x (8, 32, 30, 6), gy (30, 26, 16)",
    ),
    "groups in a weight gradient": (
        lambda: xpconv.conv_grad_weight(X, np.ones((8, 30, 26, 16)), window=(3, 5), groups=4),
        "groups=4 must divide x's 6 channels and gy's 16; shapes: x (8, 32, 30, 6), gy (8, 30, 26, 16)",
    ),
    "a transposed weight for other channels": (
        lambda: xpconv.conv_transpose2d(X, W),
        "x has 6 channels but w, the weight of the forward conv, makes 16; shapes: x (8, 32, 30, 6), w (3, 5, 6, 16)",
    ),
    "an output padding beyond the stride": (
        lambda: xpconv.conv_transpose1d(SIGNAL, np.ones((3, 4, 3)), stride=2, output_padding=2),
        "output_padding=2 must be smaller than the stride or the dilation (2, 1); pad the result instead",
    ),
    "a transposed result of nothing": (
        lambda: xpconv.conv_transpose1d(SIGNAL[:, :1], np.ones((1, 4, 3)), padding=1),
        "the padding leaves nothing: the result's spatial size would be (-1,); shapes: x (2, 1, 3), w (1, 4, 3)",
    ),
    "nothing to repeat": (
        lambda: xpconv.conv1d(SIGNAL[:, :0], np.ones((2, 3, 1)), padding=1, padding_mode="wrap"),
        "padding_mode='wrap' has nothing to repeat: spatial axis 0 is empty",
    ),
    "patches of another shape": (
        lambda: xpconv.fold(np.ones((1, 2, 3, 1)), size=5, window=3),
        "patches have shape (1, 2, 3, 1) but size (5,) and window (3,) make (1, 3, 3, 1)",
    ),
    "indices of another shape": (
        lambda: xpconv.max_unpool(np.ones((2, 2)), np.ones((2, 3), int), size=(4,)),
        "max_unpool takes one index per value: y has shape (2, 2), indices (2, 3)",
    ),
    "an index outside the plane": (
        lambda: xpconv.max_unpool1d(np.ones(2), np.array([0, 4]), size=4),
        "indices has 4, outside the plane of 4 elements that size gives",
    ),
    "a gradient's index outside the plane": (
        lambda: xpconv.max_pool_grad(np.ones((2, 1)), np.array([[0], [-2]]), size=(4,)),
        "indices has -2, outside the plane of 4 elements that size gives",
    ),
    "an index outside a plane that its dtype cannot count": (
        lambda: xpconv.max_unpool1d(np.ones(2), np.array([0, 200], np.uint8), size=100),
        "indices has 200, outside the plane of 100 elements that size gives",
    ),
    "a pooling gradient of another shape": (
        lambda: xpconv.avg_pool_grad(np.ones((1, 3, 1)), 2, size=4),
        "gy has shape (1, 3, 1) but the forward avg_pool makes (1, 2, 1)",
    ),
    "global pooling without maps": (
        lambda: xpconv.global_avg_pool([[1.0, 2.0]]),
        "global_avg_pool takes x of at least 3 axes, batch, channels and space; got x (1, 2)",
    ),
    "global pooling of nothing": (
        lambda: xpconv.global_max_pool(np.ones((1, 0, 3))),
        "global_max_pool needs a spatial size of at least 1, got x (1, 0, 3)",
    ),
    "adaptive pooling of nothing": (
        lambda: xpconv.adaptive_avg_pool(np.ones((1, 0, 3)), 2),
        "adaptive_avg_pool needs a spatial size of at least 1, got x (1, 0, 3)",
    ),
    "a pooling input of the wrong rank": (
        lambda: xpconv.max_pool2d([1.0, 2.0], 2),
        "max_pool2d takes x of 3 or 4 axes, got 1; shape: x (2,)",
    ),
    "ragged lists": (
        lambda: xpconv.conv1d([[1, 2], [3]], [1]),
        "x is not a rectangular array of numbers: setting an array element with a sequence.",
    ),
}

VALUES = {
    "a NaN stride": (dict(stride=float("nan")), "stride must be an integer or one integer per spatial axis, got stride=nan"),
    "a fractional stride": (dict(stride=(1, 1.5)), "stride must be an integer or one integer per spatial axis, got stride=(1, 1.5)"),
    "a stride of zero": (dict(stride=0), "stride must be at least 1, got stride=0"),
    "a stride for another rank": (dict(stride=(1, 1, 1)), "stride has 3 entries but there are 2 spatial axes; got stride=(1, 1, 1)"),
    "a dilation of zero": (dict(dilation=0), "dilation must be at least 1, got dilation=0"),
    "no groups": (dict(groups=0), "groups must be at least 1, got groups=0"),
    "fractional groups": (dict(groups=1.5), "groups must be an integer, got groups=1.5"),
    "a negative padding": (dict(padding=-1), "padding must be at least 0, got padding=-1"),
    "a negative padding on one side": (dict(padding=((0, 0), (0, -2))), "padding must be at least 0, got padding=((0, 0), (0, -2))"),
    "a fractional padding": (dict(padding=0.5), "padding must be an integer or one integer per spatial axis, got padding=0.5"),
    "an unknown padding": (dict(padding="SAME"), "padding='SAME' is unknown; take one of 'valid', 'full', 'same', 'same_upper', 'same_lower'"),
    "pairs for another rank": (dict(padding=((1, 1),)), "padding takes one (before, after) per spatial axis and there are 2; got padding=((1, 1),)"),
    "an unknown mode": (dict(padding_mode="mirror"), "padding_mode='mirror' is unknown; take one of 'zeros', 'constant', 'edge', 'reflect', 'symmetric', 'wrap', 'replicate', 'circular'"),
    "a fill value that nothing takes": (dict(fill_value=3), "fill_value=3 needs padding_mode='constant', got 'zeros'"),
    "a fill value that is no number": (dict(fill_value="a", padding_mode="constant"), "fill_value='a' cannot be cast to x's dtype float64"),
    "an unknown layout": (dict(layout="NHWC"), "layout='NHWC' is unknown; take one of 'channels_last', 'channels_first'"),
    "an unknown precision": (dict(precision="low"), "precision='low' is unknown; take one of 'highest', 'tf32'"),
    "an unknown activation": (dict(activation="swish"), "activation='swish' is unknown; take None, a callable or one of 'relu', 'leaky_relu', 'sigmoid', 'tanh', 'gelu', 'silu'"),
    "a method that the engine lacks": (dict(method="strassen"), "method='strassen' is not in the numpy engine; it has 'auto', 'direct', 'gemm', 'winograd', 'fft'"),
}  # fmt: skip

OTHERS = {
    "padding that reads two ways": (
        lambda: xpconv.conv1d(SIGNAL, np.ones((3, 3, 1)), padding=(1, 2)),
        "padding=(1, 2) is ambiguous for one spatial axis; write ((1, 2),)",
    ),
    "a fill value outside the dtype": (
        lambda: xpconv.conv1d(np.ones(4, np.uint8), np.ones(2, np.uint8), padding=1, padding_mode="constant", fill_value=300),
        "fill_value=300 is outside x's dtype uint8, 0 to 255",
    ),
    "a NaN fill for integers": (
        lambda: xpconv.conv1d([1, 2], [1], padding=1, padding_mode="constant", fill_value=float("nan")),
        "fill_value=nan cannot be cast to x's dtype int64",
    ),
    "a divisor of zero": (
        lambda: xpconv.avg_pool1d([1.0, 2.0], 2, divisor=0),
        "divisor must be a finite number other than zero, got 0",
    ),
    "a divisor that is no number": (
        lambda: xpconv.avg_pool1d([1.0, 2.0], 2, divisor="a"),
        "divisor must be a finite number other than zero, got 'a'",
    ),
    "a norm of no order": (
        lambda: xpconv.lp_pool1d([1.0, 2.0], 2, p="a"),
        "p must be positive and finite, got p='a'; for the maximum take max_pool of |x|",
    ),
    "a list for an activation": (
        lambda: xpconv.conv1d([1.0], [1.0], activation=["relu"]),
        "activation=['relu'] is unknown; take None, a callable or one of 'relu', 'leaky_relu'",
    ),
    "a list for a padding mode": (
        lambda: xpconv.conv1d([1.0], [1.0], padding_mode=["wrap"]),
        "padding_mode=['wrap'] is unknown; take one of 'zeros'",
    ),
    "a gradient of no axes": (
        lambda: xpconv.avg_pool_grad(5.0, 2, size=4),
        "avg_pool_grad takes gy of 2 or 3 axes, got 0; shape: gy ()",
    ),
    "a norm of order zero": (
        lambda: xpconv.lp_pool1d([1.0, 2.0], 2, p=0),
        "p must be positive and finite, got p=0; for the maximum take max_pool of |x|",
    ),
    "an adaptive size of zero": (lambda: xpconv.adaptive_avg_pool(SIGNAL, 0), "size must be at least 1, got size=0"),
}  # fmt: skip

TYPES = {
    "bool": (
        lambda: xpconv.conv1d(np.array([True, False]), np.ones(1)),
        "conv1d does not take bool (x); cast it, for example to uint8 or float32",
    ),
    "objects": (
        lambda: xpconv.conv1d(np.ones(3), np.array([1, None])),
        "conv1d does not take dtype object (w); it takes integers, floats and complex numbers",
    ),
    "text": (
        lambda: xpconv.max_pool1d(np.array(["a", "b"]), 1),
        "max_pool1d does not take dtype <U1 (x); it takes integers, floats and complex numbers",
    ),
    "dates": (
        lambda: xpconv.sum_pool1d(np.array(["2026-01-01"], "M8[D]"), 1),
        "sum_pool1d does not take dtype datetime64[D] (x); it takes integers, floats and complex numbers",
    ),
    "a mask": (
        lambda: xpconv.conv1d(np.ma.masked_array([1.0, 2.0], [0, 1]), [1.0]),
        "conv1d has no rule for the mask of x; pass x.filled(...)",
    ),
    "nothing": (lambda: xpconv.conv1d(None, [1]), "conv1d needs an array for x, got None"),
    "nothing to pool": (lambda: xpconv.max_pool1d(None, 2), "max_pool1d needs an array for x, got None"),
    "a missing argument": (lambda: xpconv.conv2d([1]), "conv2d: missing a required argument: 'w'"),
    "an argument that is none": (
        lambda: xpconv.conv2d([1], [1], stirde=2),
        "conv2d: got an unexpected keyword argument 'stirde'",
    ),
    "an option given by position": (lambda: xpconv.max_pool1d([1], 1, 1), "max_pool1d: too many positional arguments"),
    "something that is no array": (
        lambda: xpconv.conv1d({1: 2}, [1]),
        "conv1d cannot compute on x of type dict; pass an array of NumPy, CuPy, torch, JAX or another array-API library",
    ),
    "fractional indices": (
        lambda: xpconv.max_unpool1d(np.ones(2), np.ones(2), size=4),
        "indices must be integers, got float64",
    ),
    "an activation of integers": (
        lambda: xpconv.conv1d([1, 2], [1], activation="tanh"),
        "activation='tanh' needs a real floating result but conv1d makes int64; cast the inputs to a float",
    ),
    "out that is no array": (
        lambda: xpconv.conv1d([1, 2], [1], out=[0, 0]),
        "out must be an array, got list",
    ),
    "an operation that is none": (
        lambda: xpconv.explain(len, [1]),
        "explain takes one of xpconv's operations, got <built-in function len>",
    ),
}


def assert_fails_with(error, message, call):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value).rstrip() or "inhomogeneous" in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_do_not_go_together(case):
    call, message = SHAPES[case]
    assert_fails_with(ValueError, message, call)


@pytest.mark.parametrize("case", VALUES)
def test_values_that_mean_nothing(case):
    options, message = VALUES[case]
    assert_fails_with(ValueError, message, lambda: xpconv.conv2d(X, W, **options))


@pytest.mark.parametrize("case", OTHERS)
def test_other_values_that_mean_nothing(case):
    call, message = OTHERS[case]
    assert_fails_with(ValueError, message, call)


@pytest.mark.parametrize("case", TYPES)
def test_types_that_cannot_be_computed(case):
    call, message = TYPES[case]
    assert_fails_with(TypeError, message, call)


def test_two_libraries_in_one_call():
    strict = pytest.importorskip("array_api_strict")
    assert_fails_with(
        TypeError,
        "conv1d needs arrays of one library, got array_api_strict.Array, numpy.ndarray",
        lambda: xpconv.conv1d(strict.ones(3), np.ones(2)),
    )


def test_numpy_and_torch_in_one_call():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert_fails_with(
        TypeError,
        "conv1d needs arrays of one library, got numpy.ndarray, torch.Tensor",
        lambda: xpconv.conv1d(np.ones(3), torch.ones(2)),
    )


def test_two_devices_in_one_call():
    strict = pytest.importorskip("array_api_strict")
    assert_fails_with(
        TypeError,
        "conv1d needs its arrays on one device, got x on array_api_strict.Device('device1'), "
        "w on array_api_strict.Device('CPU_DEVICE'); move one with xpconv.to_device",
        lambda: xpconv.conv1d(strict.ones(3, device=strict.Device("device1")), strict.ones(2)),
    )


def test_bool_is_refused_on_every_library(lib):
    with pytest.raises(TypeError, match=r"conv1d does not take bool \(w\); cast it"):
        xpconv.conv1d(lib.array(np.ones(3)), lib.array(np.ones(2, bool)))
