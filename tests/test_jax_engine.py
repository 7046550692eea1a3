"""JAX arrays: the reference's values, by XLA's operators, seen through by `jit`, `grad`, `vmap` and `jvp`."""

import warnings
from itertools import product

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import xpconv  # noqa: E402
from engine_cases import (  # noqa: E402
    AVERAGES,
    CONVOLUTIONS,
    FIRST,
    PADDED,
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
from xpconv.engines import jax as engine  # noqa: E402

both_layouts = pytest.mark.parametrize("layout", ["channels_last", FIRST])
both_families = pytest.mark.parametrize("family", ["conv", "corr"])
pytestmark = pytest.mark.filterwarnings("error")


# Hundreds of small programs: compiling them well would take minutes.
@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def compiled(function, *arguments, **options):
    """The call as one program; windows are part of it."""
    arrays = [jnp.asarray(a) for a in arguments if isinstance(a, np.ndarray)]
    windows = [a for a in arguments if not isinstance(a, np.ndarray)]
    return jax.jit(lambda *arrays: function(*arrays, *windows, **options))(*arrays)


def assert_same(result, expected):
    """The same shape, dtype and values; each is one array or a pair of values and indices."""
    if isinstance(expected, tuple):
        assert_same(result[0], expected[0])
        assert_same(result[1], expected[1].astype(np.int32))  # the integers of JAX
        return
    assert isinstance(result, jax.Array)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(result), expected)


def assert_agrees(function, *arrays, **options):
    """Exactly what the reference makes of the same NumPy arrays."""
    assert_same(compiled(function, *arrays, **options), reference(function, *arrays, **options))


def declines(function, *arrays, **options):
    """Whether the engine leaves this call to the agnostic one."""
    request = function.request(*arrays, **options)
    operation = getattr(engine, request.operation, None)
    return operation is None or operation(*request.arrays, request.spec, **request.options) is NotImplemented


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "layout"), [("conv", "channels_last"), ("corr", FIRST)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_and_its_gradients_are_the_references(name, family, layout):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], layout, family, "float32")
    bias = integers(w.shape[0 if layout == FIRST else -1], seed=4, dtype="float32")
    assert_agrees(getattr(xpconv, family), x, w, bias, **options)
    assert_agrees(getattr(xpconv, f"{family}_grad_input"), gy, w, size=size, **options)
    assert_agrees(getattr(xpconv, f"{family}_grad_weight"), x, gy, window=window, **options)


@both_layouts
@both_families
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution_is_the_references(name, family, layout):
    x, w, options = conv_arrays(TRANSPOSED[name], layout, "float32")
    filters = (w.shape[1] if layout == FIRST else w.shape[-2]) * options.get("groups", 1)
    bias = integers(filters, seed=4, dtype="float32")
    assert_agrees(getattr(xpconv, f"{family}_transpose"), x, w, bias, activation="relu", **options)


@pytest.mark.parametrize("function", [xpconv.conv1d, xpconv.corr1d], ids=["conv1d", "corr1d"])
def test_plain_signals_need_no_channels(function):
    x, w = integers(9, dtype="float32"), integers(3, seed=1, dtype="float32")
    assert_agrees(function, x, w, padding="same")
    assert_agrees(function, integers(2, 9, 3, dtype="int32"), integers(4, 3, seed=1, dtype="int32"), stride=2)


def test_constant_padding_has_the_fill_value():
    options = {"padding": ((1, 2), (0, 3)), "padding_mode": "constant", "fill_value": 7}
    for dtype in ("float32", "complex64"):
        x, w = integers(2, 5, 6, 2, dtype=dtype), integers(3, 3, 2, 3, seed=1, dtype=dtype)
        assert_agrees(xpconv.conv2d, x, w, **options)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"])
def test_activations_follow_the_bias(activation):
    arrays = (*(integers(*shape, dtype="float32") for shape in ((2, 7, 8, 3), (3, 2, 3, 4), (4,))),)
    result = compiled(xpconv.conv2d, *arrays, activation=activation)
    expected = reference(xpconv.conv2d, *arrays, activation=activation)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "complex64"])
@pytest.mark.parametrize("name", ["stride, dilation, remainder", "groups", "wrap"])
def test_every_dtype_is_kept_and_exact(name, dtype):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], "channels_last", "conv", dtype)
    assert_agrees(xpconv.conv2d, x, w, **options)
    assert_agrees(xpconv.conv_grad_input, gy, w, size=size, **options)
    assert_agrees(xpconv.conv_grad_weight, x, gy, window=window, **options)


def test_double_precision_is_kept_where_it_is_switched_on():
    with jax.enable_x64(True):
        x, w = integers(2, 7, 8, 3), integers(3, 2, 3, 4, seed=1)
        assert_agrees(xpconv.conv2d, x, w, padding="same")
        assert xpconv.max_pool2d(jnp.asarray(x), 2, return_indices=True)[1].dtype == jnp.int64


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["depthwise", "asymmetric padding"])
def test_sixteen_bits_are_summed_in_thirty_two(name, dtype):
    """The reference sums the same numbers in double precision; half a unit in the last place remains, for rounding."""
    x, w, options = conv_arrays(CONVOLUTIONS[name], "channels_last")
    x, w = (abs(random(*a.shape, seed=5)).astype(dtype) for a in (x, w))
    gy, axes = abs(random(*xpconv.conv(x, w, **options).shape)).astype(dtype), w.ndim - 2
    pairs = [
        (xpconv.conv, (x, w), {}),
        (xpconv.conv_grad_input, (gy, w), {"size": x.shape[1:-1]}),
        (xpconv.conv_grad_weight, (x, gy), {"window": w.shape[:axes]}),
    ]
    for function, arrays, sizes in pairs:
        result = function(*arrays, **sizes, **options)
        expected = reference(function, *(np.asarray(a, np.float64) for a in arrays), **sizes, **options)
        assert result.dtype == dtype
        np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=0.51 * float(jnp.finfo(dtype).eps))


@both_layouts
@pytest.mark.parametrize("name", POOLINGS)
def test_maxima_and_their_indices_are_the_references(name, layout):
    x, window, options = pool_arrays(POOLINGS[name], layout, "float32")
    assert_agrees(xpconv.max_pool, x, window, return_indices=True, **options)
    assert_agrees(xpconv.max_pool, x, window, **options)


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8"])
@pytest.mark.parametrize("name", PADDED)
def test_extremes_of_every_dtype_are_the_references(name, dtype):
    x, window, options = pool_arrays(POOLINGS[name], "channels_last", dtype)
    assert_agrees(xpconv.max_pool, x, window, **options)
    assert_agrees(xpconv.min_pool, x, window, return_indices=True, **options)


@both_layouts
@pytest.mark.parametrize(("name", "counting"), [*((name, "elements") for name in POOLINGS), *product(PADDED, AVERAGES)])
def test_averages_and_their_gradients_are_the_references(name, counting, layout):
    x, window, options = pool_arrays(POOLINGS[name], layout, "float32")
    options |= AVERAGES[counting]
    expected = reference(xpconv.avg_pool, x, window, **options)
    np.testing.assert_allclose(compiled(xpconv.avg_pool, x, window, **options), expected, rtol=1e-6)
    gy, size = integers(*expected.shape, seed=6, dtype="float32"), spatial_size(x, window, layout)
    gx = compiled(xpconv.avg_pool_grad, gy, window, size=size, **options)
    expected = reference(xpconv.avg_pool_grad, gy, window, size=size, **options)
    np.testing.assert_allclose(gx, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "int16"])
@pytest.mark.parametrize("name", PADDED)
def test_sums_are_the_references(name, dtype):
    x, window, options = pool_arrays(POOLINGS[name], "channels_last")
    assert_agrees(xpconv.sum_pool, integers(*x.shape, dtype=dtype), window, **options)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sixteen_bit_pooling_rounds_once(dtype):
    x = abs(random(2, 12, 12, 4)).astype(dtype)
    for function in (xpconv.avg_pool2d, xpconv.sum_pool2d, xpconv.max_pool2d):
        result = function(x, 6)
        expected = reference(function, np.asarray(x, np.float64), 6)
        assert result.dtype == dtype
        np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=0.51 * float(jnp.finfo(dtype).eps))


@both_layouts
@pytest.mark.parametrize("shape", [(2, 9, 5), (2, 5, 6, 3)])
def test_pooling_to_a_wanted_size_is_the_references(shape, layout):
    x = integers(*shape, dtype="float32")
    x, size = (np.moveaxis(x, -1, 1) if layout == FIRST else x), (3, 4)[: len(shape) - 2]
    average = compiled(xpconv.adaptive_avg_pool, x, size, layout=layout)
    np.testing.assert_allclose(average, reference(xpconv.adaptive_avg_pool, x, size, layout=layout), atol=1e-6)
    assert_agrees(xpconv.adaptive_max_pool, x, size, return_indices=True, layout=layout)
    assert_agrees(xpconv.global_max_pool, x, layout=layout)


@both_layouts
def test_patches_and_norms_are_the_references(layout):
    shape = (2, 6, 7, 3) if layout == "channels_last" else (2, 3, 6, 7)
    x, geometry = integers(*shape, dtype="float32"), {"stride": 2, "padding": ((1, 2), (0, 1)), "layout": layout}
    assert_agrees(xpconv.unfold, x, (3, 2), **geometry)
    assert_agrees(xpconv.fold, reference(xpconv.unfold, x, (3, 2), **geometry), size=(6, 7), window=(3, 2), **geometry)
    assert_agrees(xpconv.lp_pool, x, (2, 2), p=1, layout=layout)


def test_nan_wins_a_maximum_with_the_first_nans_index():
    x = integers(2, 7, 7, 5, dtype="float32")
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    assert_agrees(xpconv.max_pool2d, x, 3, stride=2, padding=1, return_indices=True)
    assert_agrees(xpconv.max_pool2d, x, 3, stride=2, padding=1)


@both_layouts
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "complex64"])
def test_values_go_back_to_their_indices(dtype, layout):
    values = integers(2, 4, 3, 5, dtype=dtype)
    indices = np.random.default_rng(1).integers(0, 20, values.shape)
    assert any(len(np.unique(plane)) < plane.size for plane in indices[0].T)  # some values share an index
    for function in (xpconv.max_unpool, xpconv.max_pool_grad):
        assert_agrees(function, values, indices.astype("int32"), size=(4, 5), layout=layout)


def test_index_minus_one_gets_no_gradient():
    gy, indices = np.ones((1, 3, 1), np.float32), np.asarray([-1, 0, -1], np.int32).reshape(1, 3, 1)
    assert compiled(xpconv.max_pool_grad, gy, indices, size=4).ravel().tolist() == [1, 0, 0, 0]
    assert xpconv.max_pool_grad(jnp.asarray(gy), jnp.asarray(indices), size=4).ravel().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_narrow_indices_reach_the_whole_plane(dtype):
    values, indices = np.ones((1, 300, 1), np.float32), np.arange(300).reshape(1, 300, 1) % 100
    for function, total in ((xpconv.max_pool_grad, 300), (xpconv.max_unpool, 100)):
        plane = compiled(function, values, indices.astype(dtype), size=400)
        assert plane.ravel()[:100].sum() == plane.sum() == total


# --- The operator is used, or the case declined -----------------------------------------------------------------------


@both_layouts
@pytest.mark.parametrize("name", ["signal", "image", "four spatial axes", "groups", "wrap", "empty batch"])
def test_xla_convolves(name, layout):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], layout, "conv", "float32")
    x, w, gy = map(jnp.asarray, (x, w, gy))
    calls = [
        (lambda x, w: xpconv.conv(x, w, **options), (x, w)),
        (lambda gy, w: xpconv.conv_grad_input(gy, w, size=size, **options), (gy, w)),
        (lambda x, gy: xpconv.conv_grad_weight(x, gy, window=window, **options), (x, gy)),
    ]
    for function, arrays in calls:
        assert str(jax.make_jaxpr(function)(*arrays)).count("conv_general_dilated[") == 1


def test_the_layout_costs_no_transposition():
    for layout, shapes in {"channels_last": ((2, 6, 6, 3), (3, 3, 3, 4)), FIRST: ((2, 3, 6, 6), (4, 3, 3, 3))}.items():
        spec = xpconv.conv2d.request(*map(np.ones, shapes), layout=layout).spec
        program = jax.make_jaxpr(lambda x, w: engine._convolved(x, w, spec))(*map(jnp.ones, shapes))  # noqa: B023
        assert "transpose" not in str(program)


@pytest.mark.parametrize("name", POOLINGS)
def test_xla_reduces_windows(name):
    x, window, options = pool_arrays(POOLINGS[name], "channels_last", "float32")
    for function in (xpconv.sum_pool, xpconv.avg_pool, xpconv.max_pool):
        program = str(jax.make_jaxpr(lambda x: function(x, window, **options))(x))  # noqa: B023
        declined = function is xpconv.max_pool and "dilation" in options
        assert ("reduce_window" in program) != declined


def test_integers_and_indices_are_left_to_the_reference():
    x, w = jnp.ones((1, 5, 5, 2), "int32"), jnp.ones((3, 3, 2, 4), "int32")
    assert declines(xpconv.conv2d, x, w)
    assert declines(xpconv.conv_grad_input, jnp.ones((1, 3, 3, 4), "int32"), w, size=5)
    assert declines(xpconv.conv_grad_weight, x, jnp.ones((1, 3, 3, 4), "int32"), window=(3, 3))
    assert declines(xpconv.max_pool2d, x, 2, return_indices=True)
    assert not declines(xpconv.max_pool2d, x, 2)
    assert not declines(xpconv.conv2d, x.astype("float32"), w.astype("float32"))


def test_precision_is_handed_to_xla():
    x, w = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4))
    for precision, words in (("highest", "HIGHEST"), ("tf32", "DEFAULT")):
        program = str(jax.make_jaxpr(lambda x, w: xpconv.conv2d(x, w, precision=precision))(x, w))  # noqa: B023
        assert f"Precision.{words}" in program


def test_every_operation_that_is_declined_whole_is_in_the_table():
    declined = next(names for names, cases in engine.DECLINED.items() if cases.startswith("everything")).split(", ")
    operations = {name for name in vars(agnostic) if hasattr(getattr(xpconv, name, None), "request")}
    assert operations - vars(engine).keys() == set(declined)


# --- Transformations --------------------------------------------------------------------------------------------------

W, BIAS = np.asarray(integers(3, 3, 2, 2, seed=1, dtype="float32")), np.asarray(integers(2, seed=2, dtype="float32"))
FUNCTIONS = {
    "conv2d": lambda x: xpconv.conv2d(x, jnp.asarray(W), jnp.asarray(BIAS), padding="same", activation="tanh"),
    "conv2d, groups and stride": lambda x: xpconv.conv2d(x, jnp.asarray(W[:, :, :1]), groups=2, stride=2, dilation=2),
    "corr2d, reflected": lambda x: xpconv.corr2d(x, jnp.asarray(W), padding=((2, 1), (0, 3)), padding_mode="reflect"),
    "corr_transpose2d": lambda x: xpconv.corr_transpose2d(x, jnp.asarray(W), stride=2, padding=1, output_padding=1),
    "conv_grad_input": lambda x: xpconv.conv_grad_input(x, jnp.asarray(W), size=14, stride=2, padding="same_upper"),
    "conv_grad_weight": lambda x: xpconv.conv_grad_weight(x, x[..., :5, :5, :], window=(3, 3)),
    "max_pool2d": lambda x: xpconv.max_pool2d(x, 3, stride=2, padding=1),
    "max_pool2d, dilated": lambda x: xpconv.max_pool2d(x, 2, stride=1, dilation=2),
    "max_pool2d with indices": lambda x: xpconv.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)[0],
    "min_pool2d": lambda x: xpconv.min_pool2d(x, 2),
    "avg_pool2d": lambda x: xpconv.avg_pool2d(x, 3, stride=2, padding=1, dilation=2),
    "lp_pool2d": lambda x: xpconv.lp_pool2d(x + 10, 2, p=3),
    "avg_pool_grad": lambda x: xpconv.avg_pool_grad(x, (2, 2), size=(14, 13), ceil_mode=True),
    "max_pool_grad": lambda x: xpconv.max_pool_grad(x, indices_below(9), size=(3, 3)),
    "max_unpool": lambda x: xpconv.max_unpool(x, indices_below(9), size=(3, 3)),
    "adaptive_max_pool": lambda x: xpconv.adaptive_max_pool(x, (4, 3)),
    "adaptive_avg_pool": lambda x: xpconv.adaptive_avg_pool(x, (4, 3)),
    "unfold": lambda x: xpconv.unfold(x, (2, 2), padding="same"),
}


def indices_below(places):
    return jnp.arange(98).reshape(1, 7, 7, 2) % places


def points():
    """No two values are equal, and none is near another."""
    return jax.random.permutation(jax.random.key(0), 98).reshape(1, 7, 7, 2) / 50.0 - 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_gives_what_the_plain_call_gives(name):
    result = jax.jit(FUNCTIONS[name])(points())
    np.testing.assert_allclose(result, FUNCTIONS[name](points()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_differences_forwards_and_backwards(name):
    with jax.enable_x64(True):
        check_grads(jax.jit(FUNCTIONS[name]), (points(),), order=1, atol=1e-4, rtol=1e-4, eps=1e-5)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "conv" in name or "corr" in name])
def test_convolution_can_be_differentiated_twice(name):
    with jax.enable_x64(True):
        check_grads(jax.jit(FUNCTIONS[name]), (points(),), order=2, modes=["rev"], atol=1e-4, rtol=1e-4, eps=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_gives_what_one_call_after_the_other_gives(name):
    x = jnp.stack([points(), 1 - points()])
    function = jax.jit(FUNCTIONS[name])
    each = jnp.stack([function(one) for one in x])
    np.testing.assert_allclose(jax.vmap(function)(x), each, rtol=1e-5, atol=1e-5)


@both_layouts
@pytest.mark.parametrize("name", ["stride", "groups"])
def test_grad_takes_the_gradients_that_the_functions_take(name, layout):
    x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], layout, "conv", "float32")
    x, w, gy = map(jnp.asarray, (x, w, gy))
    _, pull = jax.vjp(lambda x, w: xpconv.conv(x, w, **options), x, w)
    gx, gw = pull(gy)
    assert jnp.array_equal(gx, xpconv.conv_grad_input(gy, w, size=size, **options))
    assert jnp.array_equal(gw, xpconv.conv_grad_weight(x, gy, window=window, **options))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_gradients_of_sixteen_bits_are_of_sixteen_bits(dtype):
    x, w = random(1, 6, 6, 2).astype(dtype), random(3, 3, 2, 4).astype(dtype)
    gradients = jax.grad(lambda x, w: xpconv.conv2d(x, w, activation="gelu").sum(), (0, 1))(x, w)
    assert [g.dtype for g in gradients] == [dtype, dtype]
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)


def test_the_gradient_of_a_maximum_is_max_pool_grad():
    x = random(2, 7, 7, 3)
    _, indices = xpconv.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)
    y, pull = jax.vjp(lambda x: xpconv.max_pool2d(x, 3, stride=2, padding=1), x)
    np.testing.assert_allclose(pull(y)[0], xpconv.max_pool_grad(y, indices, size=(7, 7)), rtol=1e-6)


def test_a_training_step_compiles_whole():
    """Weights are traced while the images are constants, and the other way round."""
    x, w = random(4, 6, 6, 3), random(3, 3, 3, 2, seed=1)

    def loss(w, x):
        return (xpconv.max_pool2d(xpconv.conv2d(x, w, activation="relu"), 2) ** 2).sum()

    summed = jax.jit(lambda w: jax.grad(loss)(w, x))(w)
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(w, x)
    np.testing.assert_allclose(each.sum(0), summed, rtol=1e-4, atol=1e-4)
    assert jax.jit(lambda x: xpconv.conv2d(x, w))(x).shape == (4, 4, 4, 2)


# --- The result is JAX's ----------------------------------------------------------------------------------------------


def test_results_stay_on_the_device_of_the_inputs():
    x, w = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 4))
    assert xpconv.conv2d(x, w).devices() == x.devices()
    with pytest.raises(TypeError, match="one library"):
        xpconv.conv2d(x, np.ones((3, 3, 2, 4), np.float32))
    with pytest.raises(TypeError, match="immutable"):
        xpconv.conv2d(x, w, out=jnp.ones((1, 3, 3, 4)))


def test_no_warning_reaches_the_user():
    x = jnp.ones((1, 6, 6, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xpconv.conv2d(x, jnp.ones((3, 3, 2, 4)), padding=1, padding_mode="wrap")
        _, indices = xpconv.max_pool2d(x, 2, return_indices=True)
        xpconv.adaptive_max_pool(x, (2, 2), return_indices=True)
    assert indices.dtype == jnp.int32
