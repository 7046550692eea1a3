"""A repeated call goes a shorter way, and must not be told from a first one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpconv
from cases import conv_cases, first, integers, pool_cases, weight_first
from xpconv import repeats
from xpconv.dispatch import run

REMEMBERED = ("numpy", "numpy:readonly", "cupy")


def described(function, *arrays, **options):
    """The call by the long way."""
    return run(function.request(*arrays, **options))


def values_of(lib, result):
    parts = result if isinstance(result, tuple) else (result,)
    return [lib.read(part) for part in parts]


def check(lib, function, shapes, dtype, seed, **options):
    """Three calls with arrays of one kind and new values each time."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        arrays = [None if shape is None else lib.array(integers(rng, shape, dtype)) for shape in shapes]
        got, expected = function(*arrays, **options), described(function, *arrays, **options)
        for part, wanted in zip(values_of(lib, got), values_of(lib, expected), strict=True):
            assert part.dtype == wanted.dtype
            np.testing.assert_array_equal(part, wanted)


@given(case=conv_cases(), seed=st.integers(0, 99), layout=st.sampled_from(["channels_last", "channels_first"]))
@settings(max_examples=15)
def test_convolutions_and_their_gradients(lib, case, seed, layout):
    if lib.name not in REMEMBERED:
        pytest.skip("only calls on NumPy's and CuPy's arrays are remembered")
    x, w = case.x.shape, case.w.shape
    if layout == "channels_first":
        x, w = first(case.x).shape, weight_first(case.w).shape
    bias = None if case.bias is None else case.bias.shape
    options = {**case.options, "layout": layout}
    check(lib, getattr(xpconv, case.function), (x, w, bias), case.x.dtype, seed, fill_value=case.fill, **options)
    y = case.expected().shape if layout == "channels_last" else first(case.expected()).shape
    grad_input, grad_weight = (getattr(xpconv, f"{case.function}_grad_{side}") for side in ("input", "weight"))
    check(lib, grad_input, (y, w), case.x.dtype, seed, size=case.x.shape[1:-1], **options)
    check(lib, grad_weight, (x, y), case.x.dtype, seed, window=case.w.shape[:-2], **options)


@given(case=pool_cases(), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_poolings(lib, case, seed):
    if lib.name not in REMEMBERED:
        pytest.skip("only calls on NumPy's and CuPy's arrays are remembered")
    for pool in (xpconv.max_pool, xpconv.min_pool, xpconv.avg_pool):
        check(lib, pool, (case.x.shape,), case.x.dtype, seed, **case.options)
    check(lib, xpconv.max_pool, (case.x.shape,), case.x.dtype, seed, return_indices=True, **case.options)


@pytest.mark.parametrize("shapes", [((9,), (3,)), ((9, 2), (3, 2, 4)), ((2, 9, 2), (3, 2)), ((9,), (3,), ())])
def test_plain_forms(lib, shapes):
    check(lib, xpconv.conv1d, shapes, np.float64, 0, padding=1)


def test_arguments_that_are_equal_but_not_the_same_are_told_apart():
    x, w = np.arange(6.0), np.ones(2)
    xpconv.conv1d(x, w, stride=1)
    with pytest.raises(ValueError, match="stride must be an integer"):
        xpconv.conv1d(x, w, stride=1.0)


def test_what_is_equal_but_not_the_same_has_another_key():
    def key(*args, **kwargs):
        return repeats._key(args, kwargs, frozenset({"bias"}))

    nested = (1,), (True,), (1.0,), ((1,),), ([1],), [1], (None,), ("1",), ("same", 1), ("same", True), (115,), (0.0,)
    values = 1, 1.0, 1j, True, 0.0, -0.0, 0j, -0j, float("nan"), "1", None, *nested
    same, equal, other = "same", "".join(["sa", "me"]), np.ones(3)
    for calls in ([key(value) for value in values], [key(x=value) for value in values],
                  [key(x=value, bias=other) for value in values]):  # fmt: skip
        assert len(set(calls)) == len(values)
    assert len({key(1), key(x=1), key(y=1), key(1, bias=None), key(bias=None, x=1), key(("x", 1)), key(("x",), 1)}) == 7
    assert key(float("nan")) == key(float("nan"))
    assert key(same, x=(same, (1, 2))) == key(equal, x=(equal, (1, 2)))
    assert key(other, bias=other) == key(other + 1, bias=other + 1) != key(other, bias=other.astype("float32"))
    for unknown in (np.float64(1), object(), {1}, (object(),)):
        assert key(1, unknown) != key(1, unknown)
        assert key(1, bias=unknown) != key(1, bias=unknown)


def test_an_array_by_a_name_that_is_not_known_to_take_arrays_is_not_remembered():
    """The key then has its bytes, which do not tell its dtype."""
    function, x = repeats.repeating(xpconv.conv1d.request, frozenset({"x"})), np.arange(4.0)
    w, calls = np.array([1.0, 2.0]), next(c.cell_contents for c in function.__closure__ if c.cell_contents == {})
    for _ in range(3):
        assert function(x=x, w=w).tolist() == function(x, w=w).tolist() == [1, 4, 7]
        np.testing.assert_array_equal(function(x, w=w.view("int64")), np.convolve(x, w.view("int64"), "valid"))
    assert calls == {}
    assert function(x, w).tolist() == [1, 4, 7]
    assert len(calls) == 1


@pytest.mark.parametrize("value", [np.int64(2), np.array(2), (np.int64(2),), [np.array(2)]], ids=repr)
def test_what_is_not_plain_is_never_taken_for_what_is(value):
    """Within a tuple these are written as bytes, which tell neither their dtype nor their shape."""
    x, w = np.arange(9.0), np.ones(3)
    alike = (np.array(2).view("float64"),) if isinstance(value, tuple) else [np.array([2, 0], "<i4")]
    for stride in (2, [2], (2,), value, value, 2, [2], (2,), value):
        assert xpconv.conv1d(x, w, stride=stride).tolist() == [3, 9, 15, 21]
    with pytest.raises(ValueError, match="stride"):
        xpconv.conv1d(x, w, stride=alike)


def test_equal_values_of_other_names_are_another_call():
    x, w = np.arange(8.0), np.ones(2)
    for _ in range(2):
        assert xpconv.conv1d(x, w, stride=3).tolist() == [1, 7, 13]
        assert xpconv.conv1d(x, w, dilation=3).tolist() == [3, 5, 7, 9, 11]
        assert xpconv.conv1d(x, w, stride=3, dilation=1).tolist() == [1, 7, 13]
        assert xpconv.conv1d(x, w, dilation=1, stride=3).tolist() == [1, 7, 13]
        assert xpconv.conv1d(w=w, x=x, stride=3).tolist() == xpconv.conv1d(x=x, w=w, stride=3).tolist() == [1, 7, 13]


def test_indices_are_checked_every_time():
    y, indices = np.array([[[5.0]]]), np.array([[[2]]])
    xpconv.max_unpool(y, indices, size=4)
    with pytest.raises(ValueError, match="outside the plane"):
        xpconv.max_unpool(y, indices + 7, size=4)
    for many in (1, 4000):  # by NumPy, and by kernels
        gy, winners = np.ones((1, 2, many)), np.full((1, 2, many), 3)
        for _ in range(3):
            assert xpconv.max_pool_grad(gy, winners, size=4).sum() == gy.sum()
        with pytest.raises(ValueError, match="indices has 10, outside the plane"):
            xpconv.max_pool_grad(gy, winners + 7, size=4)


def test_no_array_is_kept_alive():
    import gc
    import weakref

    x, w = np.arange(64.0).reshape(1, 64, 1), np.ones((3, 1, 1))
    for _ in range(2):
        xpconv.conv1d(x, w, padding=2)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


def test_views_of_other_strides_are_another_call(cupy):
    x, w = cupy.arange(40.0).reshape(1, 40, 1), cupy.ones((3, 1, 1))
    for _ in range(2):
        assert xpconv.conv1d(x[:, ::2], w).get().ravel()[:2].tolist() == [6, 12]
        assert xpconv.conv1d(x[:, :20], w).get().ravel()[:2].tolist() == [3, 6]
        assert xpconv.conv1d(x[:, 19::-1], w).get().ravel()[:2].tolist() == [54, 51]


def test_an_array_that_is_a_parameter_counts_by_its_value(lib):
    if lib.name not in REMEMBERED:
        pytest.skip("only calls on NumPy's and CuPy's arrays are remembered")
    xp = lib.namespace
    x, w = xp.arange(12.0).reshape(1, 12, 1), xp.ones((3, 1, 1))
    for stride in (2, 1, 3):
        assert xpconv.conv1d(x, w, stride=np.array(stride)).shape == (1, (12 - 3) // stride + 1, 1)
        assert xpconv.conv1d(x, w, stride=(np.array(stride),)).shape == (1, (12 - 3) // stride + 1, 1)
    for window in (2, 3, 4):
        assert xpconv.max_pool1d(x, np.array([window])).shape == (1, 12 // window, 1)
    for fill in (1.0, 5.0):
        y = xpconv.conv1d(x, w, padding=1, padding_mode="constant", fill_value=np.array(fill))
        assert float(y[0, 0, 0]) == 1 + fill


def test_an_array_given_twice_is_no_model_for_two_arrays(lib):
    if lib.name not in REMEMBERED:
        pytest.skip("only calls on NumPy's and CuPy's arrays are remembered")
    xp = lib.namespace
    a, b = xp.asarray([0.0, 1, 0, 0, 0]), xp.asarray([0.0, 1, 2, 3, 4])
    for _ in range(2):
        xpconv.conv1d(a, a, padding="full")
    assert xpconv.conv1d(a, b, padding="full").tolist() == [0, 0, 1, 2, 3, 4, 0, 0, 0]
    assert xpconv.conv1d(b, b, padding="full").tolist() == np.convolve(np.arange(5.0), np.arange(5.0)).tolist()


OUTS = {
    "its own": lambda shape: np.empty(shape, "float32"),
    "every other": lambda shape: np.empty((*shape[:-2], 2 * shape[-2], shape[-1]), "float32")[..., ::2, :],
    "turned": lambda shape: np.empty(shape[::-1], "float32").T,
}


@pytest.mark.parametrize("memory", OUTS.values(), ids=OUTS)
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("method", ["auto", "direct", "gemm"])
def test_results_written_to_out(memory, activation, method):
    rng, options = np.random.default_rng(0), {"padding": 1, "activation": activation, "method": method}
    out = memory((2, 12, 12, 16))
    for _ in range(3):
        x, w, bias = (integers(rng, shape, "float32") for shape in ((2, 12, 12, 8), (3, 3, 8, 16), (16,)))
        assert xpconv.conv2d(x, w, bias, out=out, **options) is out
        expected = xpconv.conv2d(x.astype("float64"), w.astype("float64"), bias.astype("float64"), **options)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-3)


def test_a_repeated_call_looks_at_what_it_writes_to():
    x, w = np.ones((1, 12, 12, 8), "float32"), np.ones((3, 3, 8, 8), "float32")
    memory, out = np.ones(2 * x.size, "float32"), np.empty(x.shape, "float32")
    for _ in range(2):
        xpconv.conv2d(x, w, padding=1, out=out)
    beside, above = (memory[start : start + x.size].reshape(x.shape) for start in (x.size, x.size - 1))
    xpconv.conv2d(memory[: x.size].reshape(x.shape), w, padding=1, out=beside)
    np.testing.assert_array_equal(beside, out)
    with pytest.raises(ValueError, match="out overlaps x"):
        xpconv.conv2d(memory[: x.size].reshape(x.shape), w, padding=1, out=above)
    out.flags.writeable = False
    with pytest.raises(TypeError, match="out cannot be written"):
        xpconv.conv2d(x, w, padding=1, out=out)


def test_a_repeated_call_finds_what_is_not_finite_before_it_gives_out():
    x, w = np.ones((1, 40, 40, 32), "float32"), np.ones((3, 3, 32, 32), "float32")
    out = np.empty((1, 38, 38, 32), "float32")
    for value in (1, 1, np.nan):
        x[0, 20, 20, 5] = value
        xpconv.corr2d(x, w, out=out)
    hit = np.zeros(out.shape, bool)
    hit[0, 18:21, 18:21] = True
    np.testing.assert_array_equal(np.isnan(out), hit)
