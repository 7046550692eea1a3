"""The tensor-core kernel, instance by instance and case by case; without a GPU on the emulator.

Values are small integers wherever possible: their products and sums are exact in every type, TF32 included, so that
results compare for equality. What is not exact, the error of float32, has tests of its own.
"""

from dataclasses import replace

import ml_dtypes  # noqa: F401  NumPy's bfloat16
import numpy as np
import pytest

from cases import integers
from xpconv.cuda import hardware
from xpconv.cuda.geometry import dense, element_strides, forward, input_gradient, weight_gradient
from xpconv.cuda.plans import mma
from xpconv.cuda.steps import Unfit, Work
from xpconv.engines import agnostic
from xpconv.spec import conv_spec

H200 = next(known for known in hardware.KNOWN if known.name == "H200")
ARITHMETICS = [("float16", 1), ("bfloat16", 1), ("float32", 1), ("float32", 3)]
# Every instance for an H200, and those that other devices have instead, with other numbers of stages.
CHOICES = list(dict.fromkeys(choice for known in ((9, 0), (8, 0), (8, 6)) for choice in mma.choices(known)))
OPERATIONS = {(True, False): "conv", (True, True): "grad_input", (False, False): "grad_weight"}


def spec_of(x_shape, w_shape, **options):
    ones = (1,) * (len(w_shape) - 2)
    defaults = dict(stride=ones, padding="valid", dilation=ones, groups=1, padding_mode="zeros", flip=True)
    fixed = dict(name="conv", axes=None, layout="channels_last")
    return conv_spec(x_shape, w_shape, **fixed | defaults | options)[0]


def geometries(operation, spec, a, b, result, activation=None):
    """The convolutions that an operation of arrays with these strides consists of."""
    if operation == "conv":
        return (forward(spec, a, b, result, activation=activation),)
    if operation == "grad_input":
        return input_gradient(spec, a, b, result, activation=activation)
    return (weight_gradient(spec, a, b, result),)


def computed(cupy, operation, spec, a, b, bias=None, *, products=1, tile=mma.SMALL, stages=3, splits=1, **options):
    """A result of the kernel: of x and w, of gy and w, or of x and gy."""
    from xpconv.cuda import launch

    dtype, precision = str(a.dtype), "highest" if products == 3 else "tf32"
    shape = {"conv": spec.y_shape, "grad_input": spec.x_shape, "grad_weight": spec.w_shape}[operation]
    result = cupy.empty(shape, dtype=dtype)
    bias = None if bias is None else cupy.asarray(bias)
    for g in geometries(operation, spec, element_strides(a), element_strides(b), dense(shape), **options):
        assert mma.unfit(g, dtype, H200, precision=precision, x_aligned=True, w_aligned=True) is None
        choice = mma.Choice(dtype, products, tile, stages, mma.x_along_depth(g), mma.w_along_depth(g))
        assert OPERATIONS[choice.x_along_depth, choice.w_along_depth] == operation
        work = mma.launches(g, choice, splits, H200)
        assert len(work.steps) == (1 if splits == 1 else 2)
        launch.run(work, {"x": a, "w": b, "bias": bias, "y": result})
    return result.get()


def reference(operation, spec, a, b, bias=None, activation=None):
    """The result in float64."""
    a, b, bias = (None if v is None else v.astype(np.float64) for v in (a, b, bias))
    if operation == "conv":
        return agnostic.conv(a, b, bias, spec, activation=activation)
    if operation == "grad_input":
        return agnostic.conv_grad_input(a, b, bias, spec, activation=activation)
    return agnostic.conv_grad_weight(a, b, spec)


def drawn(dtype, operation, spec):
    """The two arrays of an operation, small integers."""
    rng = np.random.default_rng(0)
    shapes = {"conv": ("x", "w"), "grad_input": ("y", "w"), "grad_weight": ("x", "y")}[operation]
    return [integers(rng, getattr(spec, f"{name}_shape"), dtype) for name in shapes]


def check(cupy, operation, spec, dtype="bfloat16", **how):
    """The kernel's result is the definition's, rounded once."""
    a, b = drawn(dtype, operation, spec)
    expected = reference(operation, spec, a, b)
    actual = computed(cupy, operation, spec, cupy.asarray(a), cupy.asarray(b), **how)
    np.testing.assert_array_equal(actual, expected.astype(dtype))


# --- Every instance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.kernel.expression)
def test_every_instance_computes_tiles_that_are_not_full(cupy, choice):
    operation, tile, rng = OPERATIONS[choice.x_along_depth, choice.w_along_depth], choice.tile, np.random.default_rng(0)
    if operation == "conv":
        spec = spec_of((1, tile.positions // 8 + 2, 9, 32), (2, 3, 16, 2 * (tile.filters + 8)), groups=2)
    elif operation == "grad_input":
        spec = spec_of((1, tile.positions // 9 + 1, 9, 2 * (tile.filters + 5)), (2, 3, tile.filters + 5, 32), groups=2)
    else:
        channels, filters = tile.positions // 4 + 8, 2 * (tile.filters + 8)
        spec = spec_of((2, 10, 9, 2 * channels), (2, 3, channels, filters), groups=2)
    a, b = drawn(choice.dtype, operation, spec)
    bias = integers(rng, (spec.filters if operation == "conv" else spec.channels,), choice.dtype)
    bias = None if operation == "grad_weight" else bias
    expected = reference(operation, spec, a, b, bias).astype(choice.dtype)
    a, b = cupy.asarray(a), cupy.asarray(b)
    how = dict(products=choice.products, tile=tile, stages=choice.stages)
    for splits in (1, 2):
        actual = computed(cupy, operation, spec, a, b, bias, splits=splits, **how)
        np.testing.assert_array_equal(actual, expected)


# --- Geometry ---------------------------------------------------------------------------------------------------------

CASES = {
    "one element": ((1, 1, 1, 8), (1, 1, 8, 8), {}),
    "8 channels": ((2, 5, 7, 8), (3, 3, 8, 8), dict(padding="same")),
    "24 channels": ((1, 5, 7, 24), (3, 3, 24, 64), dict(padding="full")),
    "72 channels": ((1, 6, 6, 72), (2, 3, 72, 16), {}),
    "136 channels": ((1, 6, 6, 136), (1, 2, 136, 136), {}),
    "many filters": ((1, 9, 9, 8), (1, 1, 8, 64 * 9 + 8), {}),  # more tiles than a band has
    "7x7": ((1, 12, 11, 8), (7, 7, 8, 16), dict(padding=((3, 3), (3, 3)))),
    "correlation": ((2, 6, 5, 8), (3, 2, 8, 16), dict(flip=False)),
    "stride": ((2, 11, 13, 16), (3, 3, 16, 24), dict(stride=(2, 2), padding=((1, 1), (1, 1)))),
    "uneven": ((1, 12, 13, 8), (3, 2, 8, 8), dict(stride=(2, 1), dilation=(1, 3), padding=((0, 1), (2, 0)))),
    "dilation": ((1, 11, 10, 8), (3, 3, 8, 16), dict(dilation=(2, 3), padding=((2, 3), (4, 0)))),
    "groups": ((1, 6, 6, 32), (3, 3, 8, 64), dict(groups=4, padding="same")),
    "1-d": ((2, 61, 16), (5, 16, 16), dict(stride=(2,), padding="same")),
    "3-d": ((1, 5, 6, 7, 8), (2, 3, 2, 8, 16), dict(stride=(1, 2, 1), padding=((1, 0), (1, 1), (0, 2)))),
    "window larger than the image": ((1, 3, 2, 8), (5, 5, 8, 8), dict(padding=((3, 3), (4, 4)))),
}


@pytest.mark.parametrize("operation", OPERATIONS.values())
@pytest.mark.parametrize("case", CASES)
def test_geometries(cupy, case, operation):
    x, w, options = CASES[case]
    check(cupy, operation, spec_of(x, w, **options))


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("operation", ["conv", "grad_weight"])
@pytest.mark.parametrize(("dtype", "products"), ARITHMETICS[1:3])
def test_padding_that_repeats_the_image(cupy, operation, mode, dtype, products):
    spec = spec_of((2, 5, 4, 16), (3, 3, 16, 8), padding=((2, 9), (6, 1)), stride=(1, 2), dilation=(2, 1),
                   padding_mode=mode)  # fmt: skip
    check(cupy, operation, spec, dtype, products=products)


@pytest.mark.parametrize("operation", OPERATIONS.values())
@pytest.mark.parametrize("filters", [8, 56, 64, 72, 120, 136])
def test_sizes_around_a_tile(cupy, operation, filters):
    for width in (63, 64, 65, 127, 129):
        check(cupy, operation, spec_of((1, width, filters), (1, filters, filters)), tile=mma.LARGE)


@pytest.mark.parametrize("operation", OPERATIONS.values())
@pytest.mark.parametrize("splits", [2, 3, 5, 18])
def test_sums_in_parts(cupy, operation, splits):
    spec = spec_of((2, 24, 25, 128), (3, 3, 128, 128), padding="same")
    spec = replace(spec, size=(5, 4)) if operation != "grad_weight" else spec
    check(cupy, operation, spec, "float16", splits=splits)


def test_the_input_gradient_takes_the_strides_residues_one_by_one(cupy):
    spec = spec_of((1, 9, 8, 16), (3, 4, 16, 24), stride=(2, 3), padding=((1, 1), (2, 0)))
    g = geometries("grad_input", spec, dense(spec.y_shape), dense(spec.w_shape), dense(spec.x_shape))
    assert len(g) == 6
    assert len({phase.depth for phase in g}) > 1
    check(cupy, "grad_input", spec)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_bias_and_activation(cupy, activation):
    spec = spec_of((1, 9, 9, 8), (3, 3, 8, 16))
    x, w = drawn("float32", "conv", spec)
    bias = integers(np.random.default_rng(1), (16,), np.float32)
    expected = reference("conv", spec, x, w, bias, activation)
    for splits in (1, 2):
        y = computed(
            cupy, "conv", spec, cupy.asarray(x), cupy.asarray(w), bias, products=3, splits=splits, activation=activation
        )
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# --- Memory that is not laid out row by row ---------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [np.s_[:, ::-1], np.s_[:, :, ::2], np.s_[..., 16:32], np.s_[1:, 1:, :, :16]])
def test_views_are_read_where_they_lie(cupy, cut):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 7, 8, 40), "float16"), integers(rng, (3, 3, 40, 24), "float16")
    w = w[:, ::-1, : x[cut].shape[-1], 8:]
    spec = spec_of(x[cut].shape, w.shape, padding="same")
    expected = reference("conv", spec, x[cut], w)
    whole = cupy.asarray(np.ascontiguousarray(w[:, ::-1]))[:, ::-1]
    y = computed(cupy, "conv", spec, cupy.asarray(x)[cut], whole)
    np.testing.assert_array_equal(y, expected.astype("float16"))


def test_a_broadcast_image_is_read_once(cupy):
    x = integers(np.random.default_rng(0), (1, 1, 6, 8), "bfloat16")
    spec = spec_of((3, 5, 6, 8), (3, 3, 8, 8))
    _, w = drawn("bfloat16", "conv", spec)
    wide = cupy.broadcast_to(cupy.asarray(x), spec.x_shape)
    expected = reference("conv", spec, np.broadcast_to(x, spec.x_shape), w)
    np.testing.assert_array_equal(computed(cupy, "conv", spec, wide, cupy.asarray(w)), expected.astype("bfloat16"))


@pytest.mark.parametrize("filters", [5, 8])
def test_channels_first_shapes_in_channels_last_memory(cupy, filters):
    """As torch's memory_format=channels_last: terms are dense in both operands, and results are stored one by one."""
    spec = spec_of((2, 16, 6, 7), (filters, 16, 3, 3), layout="channels_first")
    x, w = drawn("float32", "conv", spec)
    expected = reference("conv", spec, x, w)
    dense_x = np.moveaxis(cupy.asarray(np.ascontiguousarray(np.moveaxis(x, 1, -1))), -1, 1)
    dense_w = np.moveaxis(cupy.asarray(np.ascontiguousarray(np.moveaxis(w, 1, -1))), -1, 1)
    g = forward(spec, element_strides(dense_x), element_strides(dense_w), dense(spec.y_shape))
    assert mma.unfit(g, "float32", H200, precision="tf32", x_aligned=True, w_aligned=True) is None
    from xpconv.cuda import launch

    y = cupy.empty(spec.y_shape, dtype="float32")
    choice = mma.Choice("float32", 1, mma.SMALL, 3, True, True)
    launch.run(mma.launches(g, choice, 1, H200), {"x": dense_x, "w": dense_w, "y": y})
    np.testing.assert_array_equal(y.get(), expected)


# --- What is not exact ------------------------------------------------------------------------------------------------

# Error of float32 sums of K terms against float64: root mean square, in units of 2^-24 of that of the result.
# FFMA: one fused multiplication and addition after the other, as the ordinary cores do it. 3xTF32: this kernel in the
# emulator, which models truncation as it was measured on Ampere's tensor cores. Break-even is near 32 terms, whence
# `mma.LEAST_DEPTH`. A single TF32 product has an error near 5000 (normal), whatever K.
#
#            normal          positive        log-normal, any sign
#      K   FFMA  3xTF32     FFMA  3xTF32     FFMA  3xTF32
#      8    0.9    1.6       0.8    1.1       1.1    1.8
#     32    1.7    1.8       1.4    1.1       1.6    1.5
#     64    2.5    1.9       1.9    1.2       2.2    1.9
#    256    4.8    2.5       3.7    1.6       6.0    2.6
#    576    7.2    3.1       6.1    2.4       7.9    3.8
#   1152   10.7    4.0       8.8    3.2      14.3    4.4
#   2304   14.1    5.4      11.9    4.4      14.3    5.0
#   4608   19.8    7.5      16.5    6.2      19.8    7.5
DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.random(shape),
    "log-normal": lambda rng, shape: rng.lognormal(0, 2, shape) * rng.choice([-1, 1], shape),
}


def fused_sums(x, w):
    """x @ w by one multiply-add after the other, each rounded once to float32."""
    sums = np.zeros((x.shape[0], w.shape[1]), np.float32)
    for k in range(x.shape[1]):
        sums = (x[:, k, None].astype(np.float64) * w[k].astype(np.float64) + sums).astype(np.float32)
    return sums


def product_of(cupy, x, w, **how):
    """x @ w by the kernel, as a convolution with a window of one element."""
    spec = spec_of((1, *x.shape), (1, *w.shape))
    return computed(cupy, "conv", spec, cupy.asarray(x[None]), cupy.asarray(w[None]), **how)[0]


@pytest.mark.parametrize("depth", [64, 576, 4608])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_three_products_of_tf32_are_as_exact_as_float32(cupy, distribution, depth):
    rng = np.random.default_rng(depth)
    x, w = (DISTRIBUTIONS[distribution](rng, shape).astype(np.float32) for shape in ((64, depth), (depth, 64)))
    exact = x.astype(np.float64) @ w.astype(np.float64)

    def errors(y):
        return np.sqrt(np.mean((y - exact) ** 2)), np.max(np.abs(y - exact))

    for ours, fused in zip(errors(product_of(cupy, x, w, products=3)), errors(fused_sums(x, w)), strict=True):
        assert ours <= fused


def test_tf32_rounds_to_nearest(cupy):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 256), (256, 64)))
    rounded = [((v.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32).astype(np.float64) for v in (x, w)]
    y = product_of(cupy, x, w)
    np.testing.assert_allclose(y, rounded[0] @ rounded[1], rtol=0, atol=1e-4)
    assert np.abs(y - x @ w).max() > 1e-3


QUIET = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
LARGEST = np.finfo(np.float32).max
FIRST_TO_ROUND_UP = np.uint32(0x7F7FF000).view(np.float32)  # to infinity, in TF32


@pytest.mark.parametrize(("dtype", "products"), ARITHMETICS)
@pytest.mark.parametrize("side", ["x", "w"])
def test_infinities_and_nans_spread_as_in_ieee_arithmetic(cupy, dtype, products, side):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (16, 64), "float32"), integers(rng, (64, 16), "float32")
    special = x if side == "x" else w.T
    special[0, 3], special[1, 5], special[2, [7, 9]] = np.inf, -np.inf, (np.inf, -np.inf)
    special[3:7, 11] = QUIET
    w[3, :4], w[5, 4:8], x[:4, 3], x[4:8, 5] = 0.25, 0, 0.25, 0
    x, w = x.astype(dtype), w.astype(dtype)
    with np.errstate(invalid="ignore"):
        expected = (x.astype(np.float64)[:, :, None] * w.astype(np.float64)[None]).sum(axis=1)
    assert {np.inf, -np.inf} < set(expected[np.isinf(expected) | np.isfinite(expected)])
    y = product_of(cupy, x, w, products=products).astype(np.float64)  # bfloat16 compares NaNs as different
    np.testing.assert_array_equal(y, expected.astype(dtype).astype(np.float64))


@pytest.mark.parametrize(("dtype", "products"), ARITHMETICS)
def test_infinities_do_not_meet_the_zeros_behind_the_last_term(cupy, dtype, products):
    x, w = np.ones((16, 72), dtype), np.ones((72, 16), dtype)  # one tile of the depth, and a part of one
    x[:, -1] = w[-1] = w[0] = np.inf
    y = product_of(cupy, x, w, products=products)
    np.testing.assert_array_equal(y.astype("f8"), np.full((16, 16), np.inf))


@pytest.mark.parametrize("products", [1, 3])
def test_finite_numbers_stay_finite_where_rounding_would_overflow(cupy, products):
    x, w = np.zeros((16, 64), np.float32), np.zeros((64, 16), np.float32)
    x[:, 0], x[:, 1] = LARGEST, -LARGEST
    w[0, :], w[1, 1] = [1, 1, -1, 0.5] * 4, 0.75
    exact = x.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(product_of(cupy, x, w, products=products), exact, rtol=4e-7 if products == 3 else 5e-3)
    np.testing.assert_allclose(
        product_of(cupy, w.T.copy(), x.T.copy(), products=products), exact.T, rtol=4e-7 if products == 3 else 5e-3
    )
    x[0, 0] = FIRST_TO_ROUND_UP
    assert np.isfinite(product_of(cupy, x, w, products=products)).all()
    x[0, 0] = np.inf
    assert np.isposinf(product_of(cupy, x, w, products=products)[0, 0])


# --- Plans ------------------------------------------------------------------------------------------------------------


def planned(operation, spec, dtype="float16", device=H200, precision="highest", limit=1 << 28, **change):
    """What a plan says to dense arrays, changed in places."""
    a, b, result = {"conv": "xwy", "grad_input": "ywx", "grad_weight": "xyw"}[operation]
    strides = [dense(getattr(spec, f"{name}_shape")) for name in (a, b, result)]
    g = replace(geometries(operation, spec, *strides)[0], **change)
    return mma.work(g, dtype, device, limit, precision=precision, x_aligned=True, w_aligned=True)


LAYERS = {
    "resnet 3x3": ((8, 56, 56, 64), (3, 3, 64, 64), dict(padding="same")),
    "resnet 1x1": ((64, 14, 14, 1024), (1, 1, 1024, 256), {}),
    "deep": ((1, 7, 7, 512), (3, 3, 512, 512), dict(padding="same")),
    "groups": ((2, 28, 28, 64), (3, 3, 16, 128), dict(groups=4)),
    "one pixel": ((1, 1, 1, 2048), (1, 1, 2048, 1000), {}),
    "wide": ((64, 56, 56, 64), (1, 1, 64, 2048), {}),
}


@pytest.mark.parametrize("device", [d for d in hardware.KNOWN if d.tensor_cores], ids=lambda device: device.name)
@pytest.mark.parametrize("operation", OPERATIONS.values())
@pytest.mark.parametrize("layer", LAYERS)
def test_plans_are_legal_and_among_the_instances(layer, operation, device):
    x, w, options = LAYERS[layer]
    for dtype, products in ARITHMETICS:
        for limit in (0, 1 << 28):
            precision = "highest" if products == 3 else "tf32"
            work = planned(operation, spec_of(x, w, **options), dtype, device, precision, limit)
            if isinstance(work, Unfit):
                assert products == 3
                assert "no faster" in work.reason or "more exact" in work.reason
                continue
            assert isinstance(work, Work)
            assert sum(work.scratch.values()) <= limit
            for step in work.steps:
                assert step.kernel in mma.instances(device.capability)
                assert step.shared <= device.shared_per_block
                assert 0 < step.grid[0] <= hardware.GRID_X
                assert all(0 < n <= hardware.GRID_YZ for n in step.grid[1:])


def test_tiles_and_parts_follow_the_size():
    def grid(layer, operation="conv"):
        x, w, options = LAYERS[layer]
        step = planned(operation, spec_of(x, w, **options)).steps[0]
        return step.kernel.expression.split(",")[2:4], step.grid[2] > 1

    assert grid("wide") == (["128", "128"], False)
    assert grid("resnet 3x3")[0] == ["128", "64"]
    assert grid("deep")[1]
    assert grid("resnet 3x3", "grad_weight")[1]


def test_one_part_has_no_second_pass_and_none_is_empty():
    spec = spec_of((1, 7, 7, 512), (3, 3, 512, 512), padding="same")
    g = geometries("conv", spec, *(dense(s) for s in (spec.x_shape, spec.w_shape, spec.y_shape)))[0]
    choice = mma.Choice("float16", 1, mma.SMALL, 3, True, False)
    for splits in range(1, 80):
        work = mma.launches(g, choice, splits, H200)
        struct = work.steps[0].arguments[-1]
        assert (len(work.steps) == 2) == (struct["splits"] > 1)
        assert struct["splits"] == work.steps[0].grid[2] <= splits
        assert (struct["splits"] - 1) * struct["depth_per_split"] < g.depth


UNFIT = {
    "device": (dict(device=next(d for d in hardware.KNOWN if d.name == "Tesla T4")), "8.0"),
    "dtype": (dict(dtype="float64"), "float64"),
    "slow tf32": (dict(device=next(d for d in hardware.KNOWN if d.name == "L4"), dtype="float32"), "no faster"),
    "short sums": (dict(dtype="float32", depth=32), "terms"),
    "constant": (dict(padding_mode="constant"), "constant"),
    "start": (dict(x_start=4), "multiples of 8"),
    "filters": (dict(filters=12), "multiple of 8"),
    "reach": (dict(w_start=8, x_group=1 << 31), "32 bits"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_declined_with_a_reason(case):
    how, reason = UNFIT[case]
    shape = (1, 9, 9, 32 if case == "short sums" else 64)
    how = {key: value for key, value in how.items() if key != "depth"}
    work = planned("conv", spec_of(shape, (1, 1, shape[-1], 16)), **how)
    assert isinstance(work, Unfit)
    assert reason in work.reason


@pytest.mark.parametrize(
    ("channels", "filters", "fits"),
    [(64, 64, (True, True, True)), (64, 10, (False, False, False)), (12, 64, (False, True, False))],
)
def test_dense_axes_hold_whole_chunks(channels, filters, fits):
    spec = spec_of((1, 9, 9, channels), (3, 3, channels, filters))
    assert tuple(isinstance(planned(operation, spec), Work) for operation in OPERATIONS.values()) == fits
