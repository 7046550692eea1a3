"""`xpconv.signal` is SciPy's `convolve` and `correlate`, with any boundary, on any library, one kernel per item.

SciPy computes single items, and Python loops pair them. The values are small integers, so sums are exact in any order;
what goes through an FFT is compared to within its error.
"""

import subprocess
import sys

import array_api_strict
import numpy as np
import pytest
import scipy.signal
from hypothesis import assume, given
from hypothesis import strategies as st

import xpconv
from xpconv.signal import convolve, correlate

MODES = ["full", "same", "valid"]
METHODS = ["auto", "direct", "fft"]
BOUNDARIES = {"fill": "constant", "wrap": "wrap", "symm": "symmetric"}  # in SciPy's words and in numpy.pad's

operations = pytest.mark.parametrize("function", [convolve, correlate])
modes = pytest.mark.parametrize("mode", MODES)
methods = pytest.mark.parametrize("method", METHODS)

SEEDS = st.integers(0, 2**32 - 1)
INTEGERS = st.sampled_from([np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
INEXACT = st.sampled_from([np.float32, np.float64, np.complex64, np.complex128])


def of_scipy(function):
    """SciPy's function of that name; its direct method is the definition."""
    return getattr(scipy.signal, function.__name__)


def small(seed, shape, dtype=np.float64):
    rng = np.random.default_rng(seed)
    values = rng.integers(-4, 5, shape)
    return (values + 1j * rng.integers(-4, 5, shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


def assert_same(ours, theirs, ulps=0):
    """Same shape and dtype, and values that differ by no more than `ulps` of the largest."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if theirs.dtype.kind in "iu":
        np.testing.assert_array_equal(ours, theirs)
    else:
        atol = ulps * np.finfo(theirs.dtype).eps * np.max(np.abs(theirs), initial=1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def item_by_item(function, in1, in2, axes, **options):
    """SciPy on every pair of items that broadcasting makes; `axes` is how many axes, the last ones, are convolved."""
    items = np.broadcast_shapes(in1.shape[:-axes], in2.shape[:-axes])
    in1, in2 = (np.broadcast_to(a, (*items, *a.shape[-axes:])) for a in (in1, in2))
    results = [of_scipy(function)(in1[n], in2[n], **options) for n in np.ndindex(items)]
    return np.stack(results).reshape(*items, *results[0].shape)


@st.composite
def two_signals(draw, mode, dtypes, *, axes=st.integers(1, 3)):  # noqa: B008
    """Two arrays of one rank; for "valid" one of them, either, is at least as long on every axis."""
    rank = draw(axes)
    shapes = [tuple(draw(st.integers(1, 6)) for _ in range(rank)) for _ in range(2)]
    if mode == "valid":
        shapes = [tuple(map(max, *shapes)), tuple(map(min, *shapes))]
    if draw(st.booleans()):
        shapes.reverse()
    seed = draw(SEEDS)
    return tuple(small(seed + n, shape, draw(dtypes)) for n, shape in enumerate(shapes))


# --- SciPy's meaning --------------------------------------------------------------------------------------------------


@operations
@modes
@given(data=st.data(), method=st.sampled_from(["auto", "direct"]))
def test_integers_are_scipys_and_exact_though_they_wrap(function, mode, data, method):
    dtype = data.draw(INTEGERS)
    in1, in2 = data.draw(two_signals(mode, st.just(dtype)))
    in1, in2 = in1 * dtype(37), in2 * dtype(29)
    assert_same(function(in1, in2, mode, method), of_scipy(function)(in1, in2, mode, "direct"))


@operations
@modes
@given(data=st.data(), method=st.sampled_from(METHODS))
def test_floats_and_complex_numbers_are_scipys_in_their_common_dtype(function, mode, data, method):
    in1, in2 = data.draw(two_signals(mode, INEXACT))
    common = np.result_type(in1, in2)
    expected = of_scipy(function)(in1.astype(common), in2.astype(common), mode, "direct")
    assert_same(function(in1, in2, mode, method), expected, ulps=64 if method == "fft" else 0)


@operations
@modes
def test_four_axes_are_convolved_like_three(function, mode):
    in1, in2 = small(1, (5, 4, 3, 6)), small(2, (2, 3, 1, 4))
    assert_same(function(in1, in2, mode, "direct"), of_scipy(function)(in1, in2, mode, "direct"))


@operations
def test_two_numbers_give_their_product(function):
    assert function(3, 4).shape == ()
    assert function(3, 4) == 12
    assert function(1 + 2j, 3j) == of_scipy(function)(1 + 2j, 3j)


def test_the_modes_are_numpys_on_four_numbers():
    assert convolve([1, 2, 3, 4], [1, 10]).tolist() == [1, 12, 23, 34, 40]
    assert convolve([1, 2, 3, 4], [1, 10], "same").tolist() == [1, 12, 23, 34]
    assert convolve([1, 2, 3, 4], [1, 10], "valid").tolist() == [12, 23, 34]
    assert convolve([1, 10], [1, 2, 3, 4], "valid").tolist() == [12, 23, 34]


def test_an_impulse_correlates_at_the_lag_where_scipy_says():
    in1, in2 = np.zeros(7), np.zeros(4)
    in1[5] = in2[1] = 1
    lags = scipy.signal.correlation_lags(7, 4)
    assert lags[np.argmax(correlate(in1, in2))] == 4


def test_same_starts_one_lag_later_in_scipys_correlate2d_when_the_window_is_even():
    in1, in2 = small(1, (9, 9)), small(2, (4, 3))
    ours, theirs = correlate(in1, in2, "same"), scipy.signal.correlate2d(in1, in2, "same")
    assert_same(ours, scipy.signal.correlate(in1, in2, "same", "direct"))
    assert_same(ours[1:], theirs[:-1])


def test_correlate_conjugates_the_second_also_when_it_is_the_longer():
    in1, in2 = small(1, (2, 3), np.complex128), small(2, (5, 4), np.complex128)
    expected = [[np.vdot(in2[i : i + 2, j : j + 3], in1) for j in (1, 0)] for i in (3, 2, 1, 0)]
    assert_same(correlate(in1, in2, "valid", "direct"), np.array(expected))


@operations
@methods
def test_integers_times_floats_are_floats(function, method):
    in1, in2 = small(1, (6, 5), np.uint8), small(2, (3, 2), np.float32)
    assert_same(function(in1, in2, method=method), of_scipy(function)(in1.astype(np.float32), in2), ulps=64)


def test_the_fft_rounds_integers_back():
    in1, in2 = small(1, 200, np.int64) * 1000, small(2, 90, np.int64) * 1000
    assert_same(convolve(in1, in2, method="fft"), np.convolve(in1, in2))


def test_auto_keeps_integers_exact_that_an_fft_would_round():
    in1, in2 = small(1, 4000, np.int64) * 2**22 + 1, small(2, 4000, np.int64) * 2**22 - 1
    expected = np.convolve(in1, in2)
    assert np.any(convolve(in1, in2, method="fft") != expected)
    assert_same(convolve(in1, in2), expected)


# --- Boundaries -------------------------------------------------------------------------------------------------------


@operations
@modes
@pytest.mark.parametrize("boundary", BOUNDARIES)
@given(data=st.data(), fillvalue=st.integers(-3, 3))
def test_boundaries_are_scipys_on_images(function, mode, boundary, data, fillvalue):
    in1, in2 = data.draw(two_signals(mode, st.sampled_from([np.int64, np.float64]), axes=st.just(2)))
    if (function, mode) == (correlate, "same"):
        assume(all(m % 2 for m in in2.shape))
    expected = getattr(scipy.signal, f"{function.__name__}2d")(in1, in2, mode, boundary, fillvalue)
    ours = function(in1, in2, mode, "direct", boundary=boundary, fillvalue=fillvalue)
    assert_same(ours, expected)


@operations
@pytest.mark.parametrize("mode", ["full", "same"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@given(data=st.data())
def test_a_boundary_is_numpys_pad_on_any_number_of_axes(function, mode, boundary, data):
    in1, in2 = data.draw(two_signals(mode, st.just(np.float64)))
    fill = {"constant_values": 2.5} if boundary == "fill" else {}
    padded = np.pad(in1, [(m - 1, m - 1) for m in in2.shape], BOUNDARIES[boundary], **fill)
    expected = of_scipy(function)(padded, in2, "valid", "direct")
    if mode == "same":
        starts = [(m - 1) // 2 for m in in2.shape]
        expected = expected[tuple(slice(i, i + n) for i, n in zip(starts, in1.shape, strict=True))]
    ours = function(in1, in2, mode, "direct", boundary=boundary, fillvalue=2.5)
    assert_same(ours, expected)


def test_the_fill_value_is_taken_in_the_results_dtype():
    assert convolve([1, 1], [1.0, 1.0], fillvalue=0.5).tolist() == [1.5, 2.0, 1.5]
    assert convolve([1, 1], [1, 1j], fillvalue=1j).tolist() == [0, 1 + 1j, 2j]


# --- Axes and items ---------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("peer", [scipy.signal.fftconvolve, scipy.signal.oaconvolve])
@given(data=st.data())
def test_axes_are_fftconvolves_and_oaconvolves(mode, peer, data):
    in1, in2 = data.draw(two_signals(mode, st.just(np.float64), axes=st.integers(2, 3)))
    axes = data.draw(st.lists(st.integers(0, in1.ndim - 1), min_size=1, unique=True))
    # SciPy cuts "same" down to the items of in1, and lets an axis of length 1 pass for "valid": neither is drawn.
    in2 = in2[tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(in1.ndim))]
    assume(mode != "valid" or all(n > 1 and m > 1 for axis in axes for n, m in [(in1.shape[axis], in2.shape[axis])]))
    given_axes = [axis - in1.ndim if data.draw(st.booleans()) else axis for axis in axes]
    ours = convolve(in1, in2, mode, axes=given_axes[0] if len(axes) == 1 else given_axes)
    assert_same(ours, peer(in1, in2, mode, axes), ulps=64)


@st.composite
def items(draw):
    """Shapes of items that broadcast: any of the axes may be 1 in either, or absent in front."""
    both = draw(st.lists(st.integers(1, 3), max_size=3))
    one, two = (tuple(n if draw(st.booleans()) else 1 for n in both) for _ in range(2))
    return one[draw(st.integers(0, len(one))) :], two[draw(st.integers(0, len(two))) :]


@operations
@modes
@given(data=st.data(), items=items(), method=st.sampled_from(METHODS))
def test_items_pair_as_numpy_broadcasts(function, mode, data, items, method):
    dtypes = st.sampled_from([np.int64, np.float64, np.complex128])
    in1, in2 = data.draw(two_signals(mode, dtypes, axes=st.integers(1, 2)))
    axes = in1.ndim
    in1, in2 = (small(1, (*front, *a.shape), a.dtype) for front, a in zip(items, (in1, in2), strict=True))
    expected = item_by_item(function, in1, in2, axes, mode=mode, method="direct")
    ours = function(in1, in2, mode, method, axes=range(-axes, 0))
    assert_same(ours, expected.astype(np.result_type(in1, in2)), ulps=64 if method == "fft" else 0)


@operations
@methods
def test_every_item_can_have_its_own_kernel_on_every_library(lib, function, method):
    in1, in2 = small(1, (3, 2, 6, 5)), small(2, (3, 1, 4, 2))
    ours = lib.call(function, in1, in2, mode="same", method=method, axes=(-2, -1))
    expected = item_by_item(function, in1, in2, 2, mode="same", method="direct")
    assert_same(ours, expected, ulps=64 if method == "fft" else 0)


@operations
@modes
@pytest.mark.parametrize("dtype", [np.int32, np.complex128])
def test_whole_arrays_are_scipys_on_every_library(lib, function, mode, dtype):
    in1, in2 = small(1, (4, 6), dtype), small(2, (2, 3), dtype)
    ours = lib.call(function, in1, in2, mode=mode)
    assert_same(ours, of_scipy(function)(in1, in2, mode, "direct"))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_stack_of_images_has_scipys_boundaries_on_every_library(lib, boundary):
    images, kernels = small(1, (4, 6, 5)), small(2, (4, 3, 4))
    ours = lib.call(convolve, images, kernels, mode="same", axes=(1, 2), boundary=boundary, fillvalue=2)
    pairs = zip(images, kernels, strict=True)
    expected = [scipy.signal.convolve2d(a, b, "same", boundary, 2) for a, b in pairs]
    assert_same(ours, np.stack(expected))


@operations
def test_the_axes_to_convolve_may_lie_anywhere(function):
    in1, in2 = small(1, (7, 3, 6)), small(2, (2, 3, 4))
    ours = function(in1, in2, axes=(2, 0))
    expected = [of_scipy(function)(in1[:, n], in2[:, n], method="direct") for n in range(3)]
    assert_same(ours, np.stack(expected, axis=1))


def test_no_item_is_computed_twice():
    def work(*shapes):
        spec = convolve.request(*map(np.ones, shapes), "same", axes=-1).spec
        return spec.batch, spec.groups, spec.filters // spec.groups

    assert work((4, 9), (4, 3)) == (1, 4, 1)  # a kernel for each item: groups
    assert work((4, 9), (3,)) == (4, 1, 1)  # one kernel for all: a batch
    assert work((9,), (4, 3)) == (1, 1, 4)  # one item, many kernels: filters
    assert work((2, 5, 1, 9), (5, 4, 3)) == (2, 5, 4)


def test_full_slides_the_shorter_one():
    long, short = np.ones((2, 30)), np.ones((2, 3))
    for pair in [(long, short), (short, long)]:
        assert convolve.request(*pair, axes=-1).spec.window == (3,)
    assert convolve.request(short, long, axes=-1, boundary="wrap").spec.window == (30,)


@modes
@pytest.mark.parametrize(
    ("one", "two", "both"),
    [((0,), (1,), (0,)), ((1,), (0,), (0,)), ((0,), (0,), (0,)), ((), (0, 2), (0, 2)), ((2, 1), (0,), (2, 0))],
)
def test_no_items_give_no_results_on_every_library(lib, mode, one, two, both):
    ours = lib.call(convolve, np.ones((*one, 5)), np.ones((*two, 3)), mode=mode, axes=-1)
    assert ours.shape == (*both, {"full": 7, "same": 5, "valid": 3}[mode])


# --- Derivatives ------------------------------------------------------------------------------------------------------


@operations
@methods
def test_torch_differentiates_with_a_kernel_for_each_item(function, method):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    in1, in2 = (torch.tensor(small(n, shape), requires_grad=True) for n, shape in enumerate([(2, 6), (2, 3)]))
    assert torch.autograd.gradcheck(lambda a, b: function(a, b, "same", method, axes=-1), (in1, in2))


@operations
def test_jax_differentiates_and_compiles_with_a_kernel_for_each_item(function):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    in1, in2, gy = (jax.numpy.asarray(small(n, shape, np.float32)) for n, shape in enumerate([(2, 6), (2, 3), (2, 8)]))
    gradient = jax.jit(jax.grad(lambda a: (function(a, in2, axes=-1) * gy).sum()))(in1)
    adjoint = correlate if function is convolve else convolve
    expected = item_by_item(adjoint, *map(np.asarray, (gy, in2)), 1, mode="valid", method="direct")
    assert_same(gradient, expected)


# --- The engine's choice ----------------------------------------------------------------------------------------------


def test_auto_takes_the_fft_for_a_large_kernel_and_agrees():
    rng = np.random.default_rng(0)
    in1, in2 = rng.standard_normal((300, 200)), rng.standard_normal((90, 80))
    assert xpconv.explain(convolve, in1, in2, "same").method == "fft"
    assert_same(convolve(in1, in2, "same"), scipy.signal.fftconvolve(in1, in2, "same"), ulps=64)


@pytest.mark.parametrize(("method", "n", "m"), [("direct", 40, 5), ("auto", 40, 5), ("auto", 20000, 3000)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_within_its_windows(method, n, m, value):
    in1, in2 = np.ones(n), np.ones(m)
    in1[n // 2] = value
    y = convolve(in1, in2, "same", method)
    holds = convolve((~np.isfinite(in1)).astype(int), np.ones(m, dtype=int), "same") > 0
    assert holds.sum() == m
    np.testing.assert_array_equal(~np.isfinite(y), holds)


# --- Arrays as they come ----------------------------------------------------------------------------------------------


@operations
@modes
@methods
def test_views_of_any_strides_are_read_and_not_written(function, mode, method):
    in1 = np.moveaxis(small(1, (7, 3, 12)), 0, -1)[:, ::-2]  # (3, 6, 7)
    in2 = np.broadcast_to(small(2, (4, 1)), (3, 4, 3))
    before = in1.copy(), in2.copy()
    in1.flags.writeable = False
    ours = function(in1, in2, mode, method, axes=(1, 2))
    assert_same(ours, item_by_item(function, *before, 2, mode=mode, method="direct"), ulps=64 if method == "fft" else 0)
    np.testing.assert_array_equal(in1, before[0])
    np.testing.assert_array_equal(in2, before[1])


@operations
@modes
def test_the_result_has_memory_of_its_own(function, mode):
    in1, in2 = np.ones((2, 5)), np.ones((2, 1))
    y = function(in1, in2, mode, axes=-1)
    y[...] = 7
    assert in1.tolist() == np.ones((2, 5)).tolist()
    assert in2.tolist() == np.ones((2, 1)).tolist()


def test_importing_xpconv_brings_signal_but_not_scipy():
    code = "import sys, xpconv; assert callable(xpconv.signal.convolve); print('scipy' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


# --- Errors -----------------------------------------------------------------------------------------------------------

SHAPE_ERRORS = {
    "a rank of each": (
        ((4, 5), (3,), {}),
        "in1 has 2 axes and in2 1: say which to convolve, counted from the end, for example axes=-1; "
        "shapes: in1 (4, 5), in2 (3,)",
    ),
    "axes from the front of two ranks": (
        ((4, 5), (3,), {"axes": 1}),
        "in1 has 2 axes and in2 1: say which to convolve, counted from the end, for example axes=-1; "
        "shapes: in1 (4, 5), in2 (3,)",
    ),
    "an axis that one lacks": (
        ((4, 5), (3,), {"axes": (-2, -1)}),
        "axes=(-2, -1) names axis -2, which in1 and in2 do not both have; shapes: in1 (4, 5), in2 (3,)",
    ),
    "an axis out of range": (
        ((4, 5), (3, 3), {"axes": 2}),
        "axes=(2,) names axis 2, which in1 and in2 do not both have; shapes: in1 (4, 5), in2 (3, 3)",
    ),
    "an axis of a number": (
        ((), (), {"axes": 0}),
        "axes=(0,) names axis 0, which in1 and in2 do not both have; shapes: in1 (), in2 ()",
    ),
    "an axis twice": (
        ((4, 5), (3, 3), {"axes": (1, -1)}),
        "axes=(1, -1) names an axis twice; shapes: in1 (4, 5), in2 (3, 3)",
    ),
    "no axes": (
        ((4, 5), (3, 3), {"axes": ()}),
        "axes=() leaves nothing to convolve; for all axes leave it out; shapes: in1 (4, 5), in2 (3, 3)",
    ),
    "an axis that is no integer": (
        ((4, 5), (3, 3), {"axes": 0.5}),
        "axes must be an integer or a sequence of them, got axes=0.5",
    ),
    "items that do not pair": (
        ((4, 5), (3, 3), {"axes": 1}),
        "in1 has 4 items on axis -2 and in2 3: without convolving it they must be equal or one of them 1; "
        "shapes: in1 (4, 5), in2 (3, 3)",
    ),
    "an empty signal": (
        ((0,), (3,), {"mode": "same"}),
        "in1 is empty on axis -1, which is convolved; shapes: in1 (0,), in2 (3,)",
    ),
    "an empty kernel": (
        ((3, 5), (3, 0), {"axes": 1}),
        "in2 is empty on axis -1, which is convolved; shapes: in1 (3, 5), in2 (3, 0)",
    ),
    "neither within the other": (
        ((4, 5), (5, 4), {"mode": "valid"}),
        "mode='valid' needs in1 or in2 to be the longer one on every convolved axis; take 'full' or 'same'; "
        "shapes: in1 (4, 5), in2 (5, 4)",
    ),
    "a mode that is none": (
        ((3,), (3,), {"mode": "half"}),
        "mode='half' is unknown; take one of 'full', 'same', 'valid'",
    ),
    "a method that is none": (
        ((3,), (3,), {"method": "gemm"}),
        "method='gemm' is unknown; take one of 'auto', 'direct', 'fft'",
    ),
    "a boundary that is none": (
        ((3,), (3,), {"boundary": "edge"}),
        "boundary='edge' is unknown; take one of 'fill', 'wrap', 'symm'",
    ),
    "a fill value of another kind": (
        ((3,), (3,), {"fillvalue": 1j}),
        "fillvalue=1j cannot be cast to the result's dtype float64",
    ),
}


@operations
@pytest.mark.parametrize("case", SHAPE_ERRORS)
def test_shapes_and_words_that_make_no_sense_are_named(function, case):
    (one, two, options), message = SHAPE_ERRORS[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        function(np.ones(one), np.ones(two), **options)
    assert str(error.value) == message


@operations
@pytest.mark.parametrize("in2", [np.ones(3, dtype=bool), np.array([1, None]), "kernel", array_api_strict.ones(3)])
def test_what_is_no_array_of_numbers_of_one_library_is_a_type_error(function, in2):
    with pytest.raises(TypeError, match=rf"^{function.__name__} (does not take|cannot compute|needs arrays of one)"):
        function(np.ones(5), in2)


def test_the_functions_are_described_under_their_own_names():
    assert xpconv.signal.convolve.__name__ == "convolve"
    assert "$" not in convolve.__doc__ + correlate.__doc__
