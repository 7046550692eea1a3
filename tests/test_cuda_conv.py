"""The universal CUDA kernel, instance by instance: the general suite reaches a few of them, these tests all."""

import math

import ml_dtypes  # noqa: F401  NumPy's bfloat16
import numpy as np
import pytest

import oracle
import xpconv
from cases import far_apart, first, integers, weight_first
from xpconv.cuda import hardware
from xpconv.cuda.geometry import dense, forward, input_gradient
from xpconv.cuda.plans import conv as conv_plans
from xpconv.cuda.plans import simt
from xpconv.cuda.plans.conv import Operand, Setting
from xpconv.cuda.steps import Unfit, Work
from xpconv.engines import agnostic
from xpconv.spec import conv_spec

H200 = next(known for known in hardware.KNOWN if known.name == "H200")
CHOICES = list(simt.choices())


def spec_of(x_shape, w_shape, **options):
    defaults = dict(stride=(1, 1), padding="valid", dilation=(1, 1), groups=1, padding_mode="zeros", flip=True)
    fixed = dict(name="conv", axes=None, layout="channels_last")
    return conv_spec(x_shape, w_shape, **fixed | defaults | options)[0]


def name_of(choice):
    return choice.kernel.expression.removeprefix("conv_simt")


@pytest.mark.parametrize("limit", [1, 1 << 26], ids=["whole", "split"])
@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
def test_every_instance_computes_tiles_that_are_not_full(cupy, choice, limit):
    from xpconv.cuda import launch

    rng = np.random.default_rng(0)
    filters = choice.tile.filters + (4 if choice.tile is not simt.NARROW else -5)
    rows = -(-(choice.tile.positions + 5) // 9)
    x, w = integers(rng, (1, rows, 9, 40), choice.dtype), integers(rng, (3, 3, 20, 2 * filters), choice.dtype)
    bias = integers(rng, (2 * filters,), choice.dtype)
    geometry = dict(stride=(1, 1), dilation=(1, 2), pads=[(1, 1), (3, 1)], flip=True)
    wide = {"f": np.float64, "V": np.float64, "c": np.complex128, "i": np.int64}[x.dtype.kind]  # V: bfloat16
    expected = oracle.conv_by_taps(x.astype(wide), w.astype(wide), bias.astype(wide), groups=2, **geometry)
    expected = expected.astype(choice.dtype)  # one rounding, as in the kernel
    layout = "channels_first" if choice.positions_inner else "channels_last"
    if choice.positions_inner:
        x, w = np.ascontiguousarray(first(x)), np.ascontiguousarray(weight_first(w))
    spec = spec_of(x.shape, w.shape, padding=((1, 1), (3, 1)), dilation=(1, 2), groups=2, layout=layout)
    x, w, bias = cupy.asarray(x), cupy.asarray(w), cupy.asarray(bias)
    g = forward(spec, dense(x.shape), dense(w.shape), dense(spec.y_shape))
    work = simt.work(g, choice, H200, limit)
    assert (len(work.steps) == 1) == (limit == 1)
    y = cupy.empty(spec.y_shape, dtype=choice.dtype)
    launch.run(work, {"x": x, "w": w, "bias": bias, "y": y})
    y = y.get() if layout == "channels_last" else np.moveaxis(y.get(), 1, -1)
    np.testing.assert_array_equal(y, expected)


# --- What is not finite, and what is done to a finished sum -----------------------------------------------------------


def computed(cupy, x, w, choice, *, activation=None, fill=b"", **options):
    """One convolution by one instance."""
    from xpconv.cuda import launch

    spec = spec_of(x.shape, w.shape, **options)
    g = forward(spec, dense(x.shape), dense(w.shape), dense(spec.y_shape), fill=fill, activation=activation)
    y = cupy.empty(spec.y_shape, dtype=x.dtype)
    launch.run(simt.work(g, choice, H200, 1), {"x": cupy.asarray(x), "w": cupy.asarray(w), "y": y})
    return y.get()


@pytest.mark.parametrize("tile", [simt.MEDIUM, simt.NARROW], ids=["medium", "narrow"])
def test_infinities_do_not_meet_the_zeros_behind_the_last_term(cupy, tile):
    x, w = np.ones((1, 4, 5, 5), np.float32), np.ones((3, 3, 5, 8), np.float32)
    assert (3 * 3 * 5) % tile.depth
    x[..., -1] = w[:, :, 0] = np.inf
    y = computed(cupy, x, w, simt.Choice("float32", tile))
    np.testing.assert_array_equal(y, np.full((1, 2, 3, 8), np.inf, np.float32))


@pytest.mark.parametrize("vector", [1, 4])
def test_constant_padding_fills_whole_vectors(cupy, vector):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (1, 4, 5, 8), np.float32), integers(rng, (3, 3, 8, 8), np.float32)
    choice = next(c for c in CHOICES if (c.dtype, c.vector, c.positions_inner) == ("float32", vector, False))
    pads = ((2, 1), (1, 2))
    y = computed(cupy, x, w, choice, fill=np.float32(3).tobytes(), padding=pads, padding_mode="constant")
    padded = oracle.padded(x, pads, "constant", 3)
    expected = oracle.conv_by_taps(padded, w, None, flip=True, groups=1, stride=(1, 1), dilation=(1, 1),
                                   pads=[(0, 0), (0, 0)])  # fmt: skip
    np.testing.assert_array_equal(y, expected)


ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_activations_of_every_kind_of_number(cupy, dtype):
    values = [-np.inf, -100, -3, -1, -0.5, -0.0, 0.0, 0.25, 1, 2, 3, 100, np.inf, np.nan]
    x, w = np.array(values, dtype).reshape(1, 1, -1, 1), np.ones((1, 1, 1, 1), dtype)
    choice = next(c for c in CHOICES if c.dtype == dtype and not c.positions_inner)
    tolerance = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    for activation in ACTIVATIONS:
        y = computed(cupy, x, w, choice, activation=activation)
        expected = agnostic.conv(x.astype("f8"), w.astype("f8"), None, spec_of(x.shape, w.shape), activation=activation)
        np.testing.assert_allclose(y, expected.astype(dtype), rtol=tolerance, atol=tolerance, err_msg=activation)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_relu_looks_at_the_sum_that_has_wrapped(cupy, dtype):
    largest = np.iinfo(dtype).max
    x = np.array([largest, largest // 2, -largest, 1, -1], dtype).reshape(1, 1, 5, 1)
    w = np.full((1, 1, 1, 1), 2, dtype)
    choice = next(c for c in CHOICES if c.dtype == dtype and not c.positions_inner)
    y = computed(cupy, x, w, choice, activation="relu")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, np.maximum(x * w, 0))


def test_items_may_lie_farther_apart_than_32_bits_count(cupy):
    from xpconv.cuda import launch

    rng, choice = np.random.default_rng(0), simt.Choice("int8", simt.MEDIUM)
    x, w = integers(rng, (2, 4, 5, 2), "int8"), integers(rng, (3, 3, 2, 4), "int8")
    spec, own_w = spec_of(x.shape, w.shape), cupy.asarray(w)
    expected = oracle.conv_by_taps(x.astype(int), w.astype(int), None, flip=True, groups=1, stride=(1, 1),
                                   dilation=(1, 1), pads=[(0, 0), (0, 0)])  # fmt: skip
    with far_apart(cupy, x[0], x[1]) as (one, _, apart):
        y = cupy.empty(spec.y_shape, dtype="int8")
        g = forward(spec, (apart, *dense(x.shape)[1:]), dense(w.shape), dense(spec.y_shape))
        launch.run(simt.work(g, choice, H200, 1), {"x": one, "w": own_w, "y": y})
        np.testing.assert_array_equal(y.get(), expected.astype("int8"))
    with far_apart(cupy, np.zeros(spec.y_shape[1:], "int8"), np.zeros(spec.y_shape[1:], "int8")) as (one, other, apart):
        g = forward(spec, dense(x.shape), dense(w.shape), (apart, *dense(spec.y_shape)[1:]))
        launch.run(simt.work(g, choice, H200, 1), {"x": cupy.asarray(x), "w": own_w, "y": one})
        for item, result in zip(expected.astype("int8"), (one, other), strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(result).ravel(), item.ravel())


# --- Plans ------------------------------------------------------------------------------------------------------------

LAYERS = {
    "resnet 3x3": ((8, 56, 56, 64), (3, 3, 64, 64), dict(padding="same")),
    "resnet 1x1": ((64, 14, 14, 1024), (1, 1, 1024, 256), {}),
    "resnet stem": ((1, 224, 224, 3), (7, 7, 3, 64), dict(stride=(2, 2), padding="same")),
    "few filters": ((1, 64, 64, 16), (3, 3, 16, 1), {}),
    "groups": ((2, 28, 28, 64), (3, 3, 16, 128), dict(groups=4)),
    "one pixel": ((1, 1, 1, 2048), (1, 1, 2048, 1000), {}),
    "long signal": ((4, 1, 500_000, 2), (1, 9, 2, 8), {}),
}


@pytest.mark.parametrize("device", hardware.KNOWN, ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex128", "int8"])
@pytest.mark.parametrize("layer", LAYERS)
def test_plans_are_legal_on_every_device(device, dtype, layer):
    x, w, options = LAYERS[layer]
    spec = spec_of(x, w, **options)
    operands = Operand(dense(x), True), Operand(dense(w), True)
    setting = Setting(dtype, device, 1 << 26)
    works = [
        conv_plans.conv(spec, *operands, dense(spec.y_shape), b"", None, setting),
        conv_plans.grad_input(spec, Operand(dense(spec.y_shape), True), operands[1], dense(x), None, setting),
        conv_plans.grad_weight(spec, operands[0], Operand(dense(spec.y_shape), True), dense(w), setting),
    ]
    for work in works:
        assert isinstance(work, Work)
        assert sum(work.scratch.values()) <= setting.limit
        for step in work.steps:
            assert 0 < step.block <= 1024
            assert step.shared <= device.shared_per_block
            assert 0 < step.grid[0] <= hardware.GRID_X
            assert all(0 < n <= hardware.GRID_YZ for n in step.grid[1:])


def test_a_stride_that_32_bits_do_not_hold_is_declined():
    x, w = (1, 1 << 16, 1 << 16, 2), (3, 3, 2, 4)
    spec = spec_of(x, w, stride=(1 << 10, 1 << 10))
    setting, operand = Setting("complex64", H200, 1 << 26), Operand(dense(w), True)
    assert isinstance(
        conv_plans.conv(spec, Operand(dense(x), True), operand, dense(spec.y_shape), b"", None, setting), Work
    )
    apart = (*dense(x)[:1], 1 << 31, *dense(x)[2:])
    work = conv_plans.conv(spec, Operand(apart, True), operand, dense(spec.y_shape), b"", None, setting)
    assert isinstance(work, Unfit)
    assert "2^31" in work.reason


def test_more_results_than_an_integer_counts_are_declined():
    shape = (1 << 20, 1 << 12, 1)
    spec = conv_spec(
        shape, (1, 1, 1), name="conv", axes=None, flip=True, stride=(1,), padding="valid", dilation=(1,), groups=1,
        padding_mode="zeros", layout="channels_last",
    )[0]  # fmt: skip
    work = conv_plans.conv(spec, Operand(dense(shape), True), Operand((1, 1, 1), True), dense(shape), b"", None,
                           Setting("float32", H200, 1 << 26))  # fmt: skip
    assert isinstance(work, Unfit)
    assert "2^31" in work.reason


def test_an_input_gradient_is_one_convolution_for_each_residue():
    spec = spec_of((1, 9, 8, 4), (3, 3, 4, 8), stride=(2, 3))
    phases = input_gradient(spec, dense(spec.y_shape), dense(spec.w_shape), dense(spec.x_shape))
    assert len(phases) == 6
    assert sum(math.prod(phase.out) for phase in phases) == 9 * 8
    assert sum(phase.taps for phase in phases) == 9


def test_small_grids_are_split_and_large_ones_are_not():
    deep = spec_of((1, 7, 7, 512), (3, 3, 512, 512), padding="same")
    wide = spec_of((64, 56, 56, 64), (3, 3, 64, 64), padding="same")
    setting = Setting("float32", H200, 1 << 26)
    for spec, split in ((deep, True), (wide, False)):
        x, w = Operand(dense(spec.x_shape), True), Operand(dense(spec.w_shape), True)
        work = simt.work(
            forward(spec, x.strides, w.strides, dense(spec.y_shape)),
            simt.Choice("float32", simt.MEDIUM), setting.hardware, setting.limit,
        )  # fmt: skip
        assert (len(work.steps) == 2) == split


# --- Memory that is not laid out row by row ---------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [np.s_[:, ::-1], np.s_[:, :, ::-2], np.s_[..., 1::2], np.s_[..., ::-1]])
def test_views_are_read_where_they_lie(cupy, cut):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 7, 8, 8), np.float32), integers(rng, (3, 3, 8, 8), np.float32)
    w = w[..., : x[cut].shape[-1], ::-1]
    expected = xpconv.corr2d(x[cut], w, padding=1)
    y = xpconv.corr2d(cupy.asarray(x)[cut], cupy.asarray(w.copy()[..., ::-1])[..., ::-1], padding=1)
    np.testing.assert_array_equal(y.get(), expected)


def test_a_broadcast_image_is_read_once(cupy):
    x, w = np.ones((1, 1, 6, 2), np.float32), np.ones((3, 3, 2, 4), np.float32)
    wide = cupy.broadcast_to(cupy.asarray(x), (3, 5, 6, 2))
    np.testing.assert_array_equal(xpconv.conv2d(wide, cupy.asarray(w)).get(), np.full((3, 3, 4, 4), 18))


@pytest.mark.parametrize("dtype", ["complex128", "complex64", "float64", "float16", "int8"])
def test_constant_padding_holds_any_element(cupy, dtype):
    x, w = np.ones((1, 4, 2), dtype), np.ones((3, 2, 2), dtype)
    options = dict(padding=1, padding_mode="constant", fill_value=3 + 4j if dtype.startswith("complex") else 3)
    y = xpconv.conv1d(cupy.asarray(x), cupy.asarray(w), **options)
    np.testing.assert_array_equal(y.get(), xpconv.conv1d(x, w, **options))
