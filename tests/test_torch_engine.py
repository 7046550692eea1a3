"""torch tensors: the reference's values, by torch's operators, seen through by autograd and `torch.func`."""

from functools import partial
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import xpconv  # noqa: E402
from engine_cases import (  # noqa: E402
    AVERAGES,
    CONVOLUTIONS,
    FIRST,
    POOLINGS,
    TRANSPOSED,
    conv_arrays,
    gradients_of_conv,
    integers,
    pool_arrays,
    reference,
    spatial_size,
)
from xpconv.engines import agnostic  # noqa: E402
from xpconv.engines import torch as engine  # noqa: E402

both_layouts = pytest.mark.parametrize("layout", ["channels_last", FIRST])
both_families = pytest.mark.parametrize("family", ["conv", "corr"])


def tensors(*arguments):
    """NumPy arrays as tensors; windows stay as they are."""
    return tuple(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments)


def assert_same(result, expected):
    """The same shape, dtype and values; each is one array or a pair."""
    if isinstance(expected, tuple):
        for one, other in zip(result, expected, strict=True):
            assert_same(one, other)
        return
    assert isinstance(result, torch.Tensor)
    assert str(result.dtype).removeprefix("torch.") == str(expected.dtype)
    np.testing.assert_array_equal(result.detach().numpy(), expected)


def assert_agrees(function, *arrays, **options):
    """Exactly what the reference makes of the same NumPy arrays."""
    assert_same(function(*tensors(*arrays), **options), reference(function, *arrays, **options))


def declines(function, *arrays, **options):
    """Whether the engine leaves this call to the agnostic one."""
    request = function.request(*arrays, **options)
    operation = getattr(engine, request.operation, None)
    return operation is None or operation(*request.arrays, request.spec, **request.options) is NotImplemented


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


gradcheck = partial(torch.autograd.gradcheck, fast_mode=True)
gradgradcheck = partial(torch.autograd.gradgradcheck, fast_mode=True)


def leaves(*shapes):
    return tuple(random(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes))


# --- Values -----------------------------------------------------------------------------------------------------------


@both_layouts
@both_families
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_the_references(name, family, layout):
    x, w, options = conv_arrays(CONVOLUTIONS[name], layout)
    bias = integers(w.shape[0 if layout == FIRST else -1], seed=4)
    assert_agrees(getattr(xpconv, family), x, w, bias, **options)


@both_layouts
@both_families
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_of_convolution_are_the_references(name, family, layout):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], layout, family)
    assert_agrees(getattr(xpconv, f"{family}_grad_input"), gy, w, size=size, **options)
    assert_agrees(getattr(xpconv, f"{family}_grad_weight"), x, gy, window=window, **options)


@both_layouts
@both_families
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution_is_the_references(name, family, layout):
    x, w, options = conv_arrays(TRANSPOSED[name], layout)
    filters = (w.shape[1] if layout == FIRST else w.shape[-2]) * options.get("groups", 1)
    function = getattr(xpconv, f"{family}_transpose")
    assert_agrees(function, x, w, integers(filters, seed=4), activation="relu", **options)


@pytest.mark.parametrize("function", [xpconv.conv1d, xpconv.corr1d], ids=["conv1d", "corr1d"])
def test_plain_signals_need_no_channels(function):
    assert_agrees(function, integers(9), integers(3, seed=1), padding="same")
    assert_agrees(function, integers(2, 9, 3), integers(4, 3, seed=1), stride=2)


def test_constant_padding_has_the_fill_value():
    options = {"padding": ((1, 2), (0, 3)), "padding_mode": "constant", "fill_value": 7}
    assert_agrees(xpconv.conv2d, integers(2, 5, 6, 2), integers(3, 3, 2, 3), **options)
    assert_agrees(xpconv.conv2d, integers(2, 5, 6, 2, dtype="complex128"), integers(3, 3, 2, 3), **options)


@both_layouts
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"])
def test_activations_follow_the_bias(activation, layout):
    x, w, options = conv_arrays(CONVOLUTIONS["image"], layout)
    options |= {"activation": activation}
    bias = integers(4, seed=4)
    result = xpconv.conv2d(*tensors(x, w, bias), **options)
    np.testing.assert_allclose(result.numpy(), reference(xpconv.conv2d, x, w, bias, **options), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "float32", "complex64", "complex128"])
@pytest.mark.parametrize("name", ["image", "stride, dilation, remainder", "groups", "asymmetric padding", "wrap"])
def test_every_dtype_is_kept_and_exact(name, dtype):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], "channels_last", "conv", dtype)
    assert_agrees(xpconv.conv2d, x, w, **options)
    assert_agrees(xpconv.conv_grad_input, gy, w, size=size, **options)
    assert_agrees(xpconv.conv_grad_weight, x, gy, window=window, **options)


def test_integers_wrap_and_mix_with_floats():
    x, w = np.full((1, 5, 5, 8), 200, np.uint8), np.full((3, 3, 8, 2), 100, np.uint8)
    assert_agrees(xpconv.conv2d, x, w)
    assert_agrees(xpconv.conv2d, x, w, dtype="int32")
    assert xpconv.conv2d(torch.tensor(x), torch.ones(3, 3, 8, 2)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["image", "signal", "volume", "depthwise", "asymmetric padding", "wrap", "full"])
def test_sixteen_bits_are_summed_in_thirty_two(name, dtype):
    """The reference sums the same numbers in double precision; half a unit in the last place remains, for rounding."""
    x, w, options = conv_arrays(CONVOLUTIONS[name], "channels_last")
    x, w = (random(*a.shape, seed=5).abs().to(dtype) for a in (x, w))
    y = xpconv.conv(x, w, **options)
    gy, axes = torch.rand_like(y), w.ndim - 2
    pairs = [
        (xpconv.conv, (x, w), {}),
        (xpconv.conv_grad_input, (gy, w), {"size": x.shape[1:-1]}),
        (xpconv.conv_grad_weight, (x, gy), {"window": w.shape[:axes]}),
    ]
    for function, arrays, sizes in pairs:
        result = function(*arrays, **sizes, **options)
        expected = reference(function, *(a.double().numpy() for a in arrays), **sizes, **options)
        assert result.dtype == dtype
        np.testing.assert_allclose(result.double().numpy(), expected, rtol=0.51 * torch.finfo(dtype).eps)


@both_layouts
@pytest.mark.parametrize("family", ["max_pool", "min_pool"])
@pytest.mark.parametrize("dtype", ["float64", "uint8"])
@pytest.mark.parametrize("name", POOLINGS)
def test_extremes_and_their_indices_are_the_references(name, dtype, family, layout):
    x, window, options = pool_arrays(POOLINGS[name], layout, dtype)
    assert_agrees(getattr(xpconv, family), x, window, return_indices=True, **options)
    assert_agrees(getattr(xpconv, family), x, window, **options)


@both_layouts
@pytest.mark.parametrize("counting", AVERAGES)
@pytest.mark.parametrize("name", POOLINGS)
def test_averages_and_their_gradients_are_the_references(name, counting, layout):
    x, window, options = pool_arrays(POOLINGS[name], layout)
    options |= AVERAGES[counting]
    y = xpconv.avg_pool(*tensors(x), window, **options)
    expected = reference(xpconv.avg_pool, x, window, **options)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-14)

    size = spatial_size(x, window, layout)
    gy = integers(*expected.shape, seed=6)
    gx = xpconv.avg_pool_grad(*tensors(gy), window, size=size, **options)
    expected = reference(xpconv.avg_pool_grad, gy, window, size=size, **options)
    np.testing.assert_allclose(gx.numpy(), expected, rtol=1e-14, atol=1e-14)


@both_layouts
@pytest.mark.parametrize("dtype", ["float32", "complex64", "int16"])
@pytest.mark.parametrize("name", POOLINGS)
def test_sums_are_the_references(name, dtype, layout):
    x, window, options = pool_arrays(POOLINGS[name], layout)
    assert_agrees(xpconv.sum_pool, integers(*x.shape, dtype=dtype), window, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_sixteen_bit_pooling_rounds_once(axes, dtype):
    x = random(2, *(12,) * axes, 4).abs().to(dtype)
    wide = x.double().numpy()
    rounding = {"rtol": 0.51 * torch.finfo(dtype).eps}
    window = (6,) * axes
    for function in (xpconv.avg_pool, xpconv.sum_pool, xpconv.max_pool):
        result = function(x, window)
        assert result.dtype == dtype
        np.testing.assert_allclose(result.double(), reference(function, wide, window), **rounding)
    for function in (xpconv.adaptive_avg_pool, xpconv.adaptive_max_pool):
        result = function(x, (5,) * axes)
        assert result.dtype == dtype
        np.testing.assert_allclose(result.double(), reference(function, wide, (5,) * axes), **rounding)


@both_layouts
@pytest.mark.parametrize("shape", [(2, 9, 5), (2, 7, 9, 5), (1, 5, 4, 6, 2), (1, 3, 4, 3, 4, 2), (0, 7, 9, 5)])
def test_pooling_to_a_wanted_size_is_the_references(shape, layout):
    x = integers(*shape)
    x, size = (np.moveaxis(x, -1, 1) if layout == FIRST else x), (3, 4, 2, 3)[: len(shape) - 2]
    average = xpconv.adaptive_avg_pool(*tensors(x), size, layout=layout)
    np.testing.assert_allclose(average, reference(xpconv.adaptive_avg_pool, x, size, layout=layout), atol=1e-14)
    assert_agrees(xpconv.adaptive_max_pool, x, size, return_indices=True, layout=layout)
    assert_agrees(xpconv.global_max_pool, x, layout=layout)


@both_layouts
def test_patches_and_norms_are_the_references(layout):
    x = integers(2, 6, 7, 3) if layout == "channels_last" else integers(2, 3, 6, 7)
    geometry = {"stride": 2, "padding": ((1, 2), (0, 1)), "layout": layout}
    assert_agrees(xpconv.unfold, x, (3, 2), **geometry)
    assert_agrees(xpconv.fold, reference(xpconv.unfold, x, (3, 2), **geometry), size=(6, 7), window=(3, 2), **geometry)
    assert_agrees(xpconv.lp_pool, x, (2, 2), p=1, layout=layout)


# --- Maxima: NaN, ties, indices ---------------------------------------------------------------------------------------


@both_layouts
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_nan_wins_a_maximum_with_the_first_nans_index(axes, channels, layout):
    x = integers(2, *(7,) * axes, channels)
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    x = np.moveaxis(x, -1, 1) if layout == FIRST else x
    window = (3,) * axes
    assert_agrees(xpconv.max_pool, x, window, stride=2, padding=1, return_indices=True, layout=layout)
    assert_agrees(xpconv.adaptive_max_pool, x, window, return_indices=True, layout=layout)
    assert_agrees(xpconv.max_pool, x, window, stride=2, padding=1, layout=layout)


def test_of_equal_values_the_first_has_the_index():
    for value in (0.0, -np.inf):
        assert_agrees(xpconv.max_pool2d, np.full((1, 6, 7, 4), value), 3, stride=2, padding=1, return_indices=True)


@both_layouts
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "complex64"])
def test_values_go_back_to_their_indices(dtype, layout):
    values = integers(2, 4, 3, 5, dtype=dtype)
    indices = np.random.default_rng(1).integers(0, 20, values.shape)
    assert any(len(np.unique(plane)) < plane.size for plane in indices[0].T)  # some values share an index
    for function in (xpconv.max_unpool, xpconv.max_pool_grad):
        assert_agrees(function, values, indices, size=(4, 5), layout=layout)


def test_index_minus_one_gets_no_gradient():
    gx = xpconv.max_pool_grad(torch.ones(1, 3, 1), torch.tensor([-1, 0, -1]).reshape(1, 3, 1), size=4)
    assert gx.ravel().tolist() == [1, 0, 0, 0]


def test_indices_of_any_integer_type_are_taken():
    y, indices = xpconv.max_pool2d(random(2, 6, 6, 3), 2, return_indices=True)
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(
            xpconv.max_unpool(y, indices.to(dtype), size=(6, 6)), xpconv.max_unpool(y, indices, size=(6, 6))
        )


# --- The operator is used, or the case declined -----------------------------------------------------------------------

NATIVE_CONVOLUTIONS = [name for name in CONVOLUTIONS if not name.startswith(("four", "empty", "no channels"))]
NATIVE_POOLINGS = [
    "signal", "image", "volume", "single image", "plain image", "stride", "padding", "padding of a signal",
    "padding of a volume", "ceil", "ceil with a stride", "ceil with padding",
]  # fmt: skip


@both_layouts
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_torch_convolves_all_but_a_few_cases(name, layout):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], layout, "conv")
    x, w, gy = tensors(x, w, gy)
    declined = name not in NATIVE_CONVOLUTIONS
    assert declines(xpconv.conv, x, w, **options) == declined
    assert declines(xpconv.conv_grad_input, gy, w, size=size, **options) == declined
    assert declines(xpconv.conv_grad_weight, x, gy, window=window, **options) == declined


@both_layouts
@pytest.mark.parametrize("name", POOLINGS)
def test_torch_pools_the_windows_that_it_has(name, layout):
    x, window, options = pool_arrays(POOLINGS[name], layout)
    (x,) = tensors(x)
    declined = name not in NATIVE_POOLINGS
    assert declines(xpconv.avg_pool, x, window, **options) == declined
    assert declines(xpconv.sum_pool, x, window, **options) == declined
    dilated = name in ("dilation", "ceil with dilation")
    assert declines(xpconv.max_pool, x, window, return_indices=True, **options) == (declined and not dilated)


def test_integers_are_left_to_the_reference():
    x, w = torch.ones(1, 5, 5, 2, dtype=torch.int32), torch.ones(3, 3, 2, 4, dtype=torch.int32)
    assert declines(xpconv.conv2d, x, w)
    assert declines(xpconv.sum_pool2d, x, 2)
    assert not declines(xpconv.max_pool2d, x, 2)
    assert not declines(xpconv.conv2d, x.float(), w.float())


def test_every_operation_that_is_declined_whole_is_in_the_table():
    declined = next(names for names, cases in engine.DECLINED.items() if cases.startswith("everything")).split(", ")
    operations = {name for name in vars(agnostic) if hasattr(getattr(xpconv, name, None), "request")}
    assert operations - vars(engine).keys() == set(declined)


# --- Gradients --------------------------------------------------------------------------------------------------------

GEOMETRIES = {
    "plain": {},
    "stride and padding": {"stride": 2, "padding": 1},
    "dilation, asymmetric": {"dilation": 2, "padding": ((2, 1), (0, 3))},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "groups": {"groups": 2, "stride": (1, 2)},
}


@both_layouts
@both_families
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_autograd_differentiates_convolution_twice(geometry, family, layout):
    options = GEOMETRIES[geometry] | {"layout": layout, "activation": "tanh"}
    per_group = 2 // options.get("groups", 1)
    x, w, bias = leaves((1, 5, 4, 2), (2, 2, per_group, 2), (2,))
    if layout == FIRST:
        x, w = leaves((1, 2, 5, 4), (2, per_group, 2, 2))
    function = getattr(xpconv, f"{family}2d")
    assert gradcheck(lambda *a: function(*a, **options), (x, w, bias))
    assert gradgradcheck(lambda *a: function(*a, **options), (x, w, bias))


@both_families
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_autograd_differentiates_the_gradients_twice(geometry, family):
    options = GEOMETRIES[geometry]
    x, w = leaves((1, 5, 4, 2), (2, 2, 2 // options.get("groups", 1), 2))
    gy = torch.ones_like(getattr(xpconv, f"{family}2d")(x, w, **options)).requires_grad_()
    to_input, to_weight = getattr(xpconv, f"{family}_grad_input"), getattr(xpconv, f"{family}_grad_weight")
    for check in (gradcheck, gradgradcheck):
        assert check(lambda g, w: to_input(g, w, size=(5, 4), **options), (gy, w))
        assert check(lambda x, g: to_weight(x, g, window=(2, 2), **options), (x, gy))


@both_layouts
@pytest.mark.parametrize("name", ["stride", "groups", "full", "same_upper", "wrap", "signal", "volume"])
@both_families
def test_autograd_takes_the_gradients_that_the_functions_take(name, family, layout):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], layout, family)
    x, w, gy = tensors(x, w, gy)
    y = getattr(xpconv, family)(x.requires_grad_(), w.requires_grad_(), **options)
    gx, gw = torch.autograd.grad(y, (x, w), gy)
    assert torch.equal(gx, getattr(xpconv, f"{family}_grad_input")(gy, w, size=size, **options))
    assert torch.equal(gw, getattr(xpconv, f"{family}_grad_weight")(x, gy, window=window, **options))


def test_autograd_differentiates_transposed_convolution_twice():
    x, w, bias = leaves((1, 3, 3, 2), (3, 2, 2, 2), (2,))
    for options in ({"stride": 2, "output_padding": 1}, {"stride": 2, "padding": ((1, 0), (0, 1))}):
        for check in (gradcheck, gradgradcheck):
            assert check(lambda *a: xpconv.corr_transpose2d(*a, activation="sigmoid", **options), (x, w, bias))  # noqa: B023


def test_autograd_differentiates_complex_convolution():
    x, w = (torch.complex(*leaves(s, s)).detach().requires_grad_() for s in ((1, 4, 4, 2), (2, 2, 2, 2)))
    assert gradcheck(lambda *a: xpconv.conv2d(*a, padding=1), (x, w))


@both_layouts
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, (1, 0)], ids=["torch's", "reference's"])
def test_autograd_differentiates_pooling(padding, axes, layout):
    x = torch.randperm(4**axes * 2, generator=torch.Generator().manual_seed(0)).double()
    x = (x.reshape(1, *(4,) * axes, 2) if layout != FIRST else x.reshape(1, 2, *(4,) * axes)).requires_grad_()
    options = {"stride": 2, "padding": padding if isinstance(padding, int) else (padding,) * axes, "layout": layout}
    window = (3,) * axes
    assert gradcheck(lambda x: xpconv.max_pool(x, window, **options), (x,))
    assert gradcheck(lambda x: xpconv.min_pool(x, window, return_indices=True, **options)[0], (x,))
    assert gradcheck(lambda x: xpconv.lp_pool(x + 1, window, p=3, **options), (x / 100,))
    for divisor in (None, 2.5):
        for check in (gradcheck, gradgradcheck):
            assert check(lambda x: xpconv.avg_pool(x, window, divisor=divisor, **options) ** 2, (x / 100,))  # noqa: B023


def test_autograd_differentiates_the_gradients_of_pooling():
    (gy,) = leaves((1, 3, 3, 2))
    indices = torch.randint(-1, 25, gy.shape, generator=torch.Generator().manual_seed(0))
    for check in (gradcheck, gradgradcheck):
        assert check(lambda g: xpconv.avg_pool_grad(g, (3, 3), size=(5, 5), stride=2, padding=1), (gy,))
        assert check(lambda g: xpconv.max_pool_grad(g, indices, size=(5, 5)), (gy,))
        assert check(lambda g: xpconv.max_unpool(g, indices.abs() // 4, size=(5, 5)), (gy,))


def test_the_gradient_of_a_maximum_is_max_pool_grad():
    (x,) = leaves((2, 7, 7, 3))
    y, indices = xpconv.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)
    gy = random(*y.shape, seed=1)
    (gx,) = torch.autograd.grad(y, x, gy)
    assert torch.equal(gx, xpconv.max_pool_grad(gy, indices, size=(7, 7)))
    assert y.requires_grad
    assert not indices.requires_grad


# --- torch.func -------------------------------------------------------------------------------------------------------

WEIGHT, BIAS, GRADIENT = random(3, 2, 3, 4, seed=1), random(4, seed=2), random(2, 4, 4, 2, seed=1)
MAPPED = {
    "conv2d": lambda x: xpconv.conv2d(x, WEIGHT, BIAS, padding="same"),
    "conv2d, wrapped": lambda x: xpconv.conv2d(x, WEIGHT, padding=1, padding_mode="wrap"),
    "corr_transpose2d": lambda x: xpconv.corr_transpose2d(x, WEIGHT.mT, stride=2, output_padding=1),
    "conv_grad_weight": lambda x: xpconv.conv_grad_weight(x, GRADIENT, window=(3, 3)),
    "max_pool2d": lambda x: xpconv.max_pool2d(x, 2),
    "max_pool2d with indices": lambda x: xpconv.max_pool2d(x, 2, return_indices=True),
    "avg_pool2d": lambda x: xpconv.avg_pool2d(x, 3, padding=1),
    "avg_pool_grad": lambda x: xpconv.avg_pool_grad(x, (2, 2), size=(12, 12)),
    "max_pool_grad": lambda x: xpconv.max_pool_grad(x, torch.arange(216).reshape(2, 6, 6, 3) % 9, size=(3, 3)),
    "max_unpool": lambda x: xpconv.max_unpool(x, torch.arange(216).reshape(2, 6, 6, 3) % 9, size=(3, 3)),
    "adaptive_max_pool": lambda x: xpconv.adaptive_max_pool(x, (4, 3), return_indices=True),
    "adaptive_avg_pool": lambda x: xpconv.adaptive_avg_pool(x, (4, 3)),
    "unfold": lambda x: xpconv.unfold(x, (2, 2), padding="same"),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batching rule for a few operators
@pytest.mark.parametrize("name", MAPPED)
def test_vmap_gives_what_one_call_after_the_other_gives(name):
    x = random(3, 2, 6, 6, 3)
    mapped = torch.func.vmap(MAPPED[name])(x)
    each = [MAPPED[name](one) for one in x]
    if isinstance(mapped, tuple):
        mapped, each = torch.stack(mapped), [torch.stack(pair) for pair in each]
        mapped = mapped.movedim(0, 1)
    torch.testing.assert_close(mapped, torch.stack(each))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # it traces through them
@pytest.mark.parametrize("name", ["conv2d", "corr2d"])
def test_torch_compile_traces_through_a_convolution(name):
    x, w = torch.randn(1, 6, 6, 2), torch.randn(3, 3, 2, 4)
    function = getattr(xpconv, name)
    compiled = torch.compile(lambda a: function(a, w, padding="same"), backend="eager")
    torch.testing.assert_close(compiled(x), function(x, w, padding="same"))


def test_vmap_can_run_over_weights():
    x, w = random(2, 6, 6, 3), random(5, 3, 3, 3, 4, seed=1)
    mapped = torch.func.vmap(lambda w: xpconv.conv2d(x, w, padding=1))(w)
    torch.testing.assert_close(mapped, torch.stack([xpconv.conv2d(x, one, padding=1) for one in w]))


def test_func_grad_gives_one_gradient_per_example():
    x, w = random(4, 6, 6, 3), random(3, 3, 3, 2, seed=1)

    def loss(w, x):
        return xpconv.max_pool2d(xpconv.conv2d(x, w, activation="relu"), 2).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x)
    (total,) = torch.autograd.grad(loss(w.requires_grad_(), x), w)
    torch.testing.assert_close(each.sum(0), total)


# --- The result is torch's --------------------------------------------------------------------------------------------


@both_layouts
def test_a_non_contiguous_or_broadcast_input_is_read_right(layout):
    x, w, options = conv_arrays(CONVOLUTIONS["image"], layout)
    strided = torch.tensor(np.repeat(x, 2, axis=1))[:, ::2]
    assert not strided.is_contiguous()
    assert_same(xpconv.conv2d(strided, torch.tensor(w), **options), reference(xpconv.conv2d, x, w, **options))
    for function in (xpconv.max_pool2d, xpconv.avg_pool2d):
        assert_same(function(strided, 1, layout=layout), reference(function, x, 1, layout=layout))
    broadcast = torch.ones(1).expand(x.shape).double()
    assert_same(
        xpconv.conv2d(broadcast, torch.tensor(w), **options), reference(xpconv.conv2d, np.ones(x.shape), w, **options)
    )


@both_layouts
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_contiguous_arrays_give_contiguous_results(axes, layout):
    x = torch.ones(2, *(8,) * axes, 8)
    w = torch.ones(8, 8, *(3,) * axes) if layout == FIRST else torch.ones(*(3,) * axes, 8, 8)
    for y in (
        xpconv.conv(x, w, layout=layout, padding=1),
        xpconv.max_pool(x, (2,) * axes, layout=layout),
        xpconv.avg_pool(x, (2,) * axes, layout=layout),
    ):
        assert y.is_contiguous()


def test_inputs_are_not_modified():
    x, w = random(2, 6, 6, 4), random(3, 3, 4, 2, seed=1)
    before = x.clone(), w.clone()
    xpconv.conv2d(x, w, padding=1, activation="relu")
    xpconv.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(x, before[0])
    assert torch.equal(w, before[1])


def test_the_device_is_the_inputs_own():
    x, w = torch.ones(2, 6, 6, 4, device="meta"), torch.ones(3, 3, 4, 2, device="meta")
    y = xpconv.conv2d(x, w)
    assert (y.device.type, y.shape) == ("meta", (2, 4, 4, 2))
    with pytest.raises(TypeError, match=r"x on meta, w on cpu"):
        xpconv.conv2d(x, torch.ones(3, 3, 4, 2))


def test_parameters_of_a_module_get_gradients():
    w = torch.nn.Parameter(random(3, 3, 2, 4))
    xpconv.conv2d(random(1, 5, 5, 2), w, padding="same_upper").sum().backward()
    assert w.grad.shape == w.shape
    assert isinstance(w.grad, torch.Tensor)


@pytest.mark.parametrize(("allowed", "inside"), [(False, "ieee"), (True, "tf32")])
def test_tf32_is_set_for_the_call_and_given_back(allowed, inside):
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    with engine._tf32(allowed):
        assert conv.fp32_precision == inside
    assert conv.fp32_precision == before


def test_tf32_is_given_back_after_an_error():
    before = torch.backends.cudnn.conv.fp32_precision
    with pytest.raises(ZeroDivisionError), engine._tf32(before != "tf32"):
        raise ZeroDivisionError
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_precision_decides_about_tf32_on_a_gpu():
    single = mock.Mock(is_cuda=True, dtype=torch.float32)
    for precision, inside in (("highest", "ieee"), ("tf32", "tf32")):
        with engine._multiplying(single, precision):
            assert torch.backends.cudnn.conv.fp32_precision == inside
