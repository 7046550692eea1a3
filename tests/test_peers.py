"""xpconv agrees with NumPy, SciPy, PyTorch and JAX wherever they compute the same thing.

xpconv is always given NumPy arrays, so that the other library's operators are compared with ours, not with themselves.
The values are small integers, whatever the dtype: sums of their products are exact in any order.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import assume, given
from hypothesis import strategies as st

import xpconv

FIRST = "channels_first"

AXES = st.integers(1, 3)
SEEDS = st.integers(0, 2**32 - 1)
FLOATS = st.sampled_from([np.float32, np.float64])
NUMBERS = st.sampled_from([np.float32, np.float64, np.complex128])
DOUBLES = st.sampled_from([np.float64, np.complex128])  # where SciPy's own transforms are exact enough
HALF = 1 / 2  # of the window: PyTorch pads no more before pooling
METHODS = st.sampled_from(["auto", "direct", "gemm", "fft"])  # what xpconv has for NumPy arrays
LEADING = st.sampled_from([slice(None), slice(0, 0), 0])  # a batch, an empty batch, a single item

# Of max|y|. The exact sums leave no error to a direct method; an FFT or Winograd has some ulps of the largest entry,
# for float32 the 3e-5 that `method="auto"` promises, for float64 correspondingly 3e-5 * eps64 / eps32 ~ 6e-14.
TOLERANCE = {np.float32: 3e-5, np.float64: 1e-13, np.complex128: 1e-13}


def assert_agree(ours, theirs):
    """Same shape, same dtype, same values: exactly for integers, else up to TOLERANCE."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if theirs.dtype.kind in "iu":
        np.testing.assert_array_equal(ours, theirs)
    else:
        largest = np.max(np.abs(theirs), initial=1, where=np.isfinite(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[theirs.dtype.type] * largest)


def small_integers(seed, shape, dtype=np.float64):
    rng = np.random.default_rng(seed)
    values = rng.integers(-4, 5, shape)
    return (values + 1j * rng.integers(-4, 5, shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


def named(family, axes):
    """The function of xpconv with that many spatial axes."""
    return getattr(xpconv, f"{family}{axes}d")


def flip(w, axes):
    return np.flip(w, tuple(range(w.ndim - axes, w.ndim))).copy()


def channels_last(x):
    return np.moveaxis(x, 1, -1)


@dataclass(frozen=True)
class Geometry:
    """Channels and filters are counted per group; padding is one (before, after) an axis."""

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    batch: int
    groups: int
    channels: int
    filters: int
    seed: int

    @property
    def axes(self):
        return len(self.size)

    @property
    def symmetric(self):
        """The padding in the form that PyTorch takes."""
        return tuple(before for before, _ in self.padding)

    @property
    def shared(self):
        """The keywords that xpconv and PyTorch have in common."""
        return {"stride": self.stride, "dilation": self.dilation, "padding": self.symmetric, "groups": self.groups}

    def x(self, dtype=np.float64):
        return small_integers(self.seed, (self.batch, self.groups * self.channels, *self.size), dtype)

    def w(self, dtype=np.float64):
        return small_integers(self.seed + 1, (self.groups * self.filters, self.channels, *self.window), dtype)

    def bias(self, dtype=np.float64):
        return small_integers(self.seed + 2, self.groups * self.filters, dtype)


@st.composite
def geometries(draw, *, axes=AXES, share=2, symmetric=True):
    """Any geometry whose window fits; the padding on a side is at most that share of the window."""
    axes = draw(axes)
    window, stride, dilation, padding, size = [], [], [], [], []
    for _ in range(axes):
        m, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
        reach = (m - 1) * d + 1
        pads = st.integers(0, int(share * m))
        before = draw(pads)
        after = before if symmetric else draw(pads)
        smallest = max(1, reach - before - after)
        for values, value in zip((window, stride, dilation, padding), (m, s, d, (before, after)), strict=True):
            values.append(value)
        size.append(draw(st.integers(smallest, smallest + 5)))
    counts = [draw(st.integers(1, largest)) for largest in (2, 2, 3, 2)]
    return Geometry(*map(tuple, (size, window, stride, dilation, padding)), *counts, seed=draw(SEEDS))


families = pytest.mark.parametrize("family", ["conv", "corr"])


# --- PyTorch ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def by_torch(torch, name, *arguments, **keywords):
    """A function of torch.nn.functional, with NumPy arrays."""
    tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
    result = getattr(torch.nn.functional, name)(*tensors, **keywords)
    return tuple(part.numpy() for part in result) if isinstance(result, tuple) else result.numpy()


def torch_gradients(torch, function, arrays, seed):
    """A gradient of the result drawn from `seed`, and what comes of it for each of the arrays."""
    inputs = [torch.from_numpy(array).requires_grad_() for array in arrays]
    result = function(*inputs)
    gy = small_integers(seed, tuple(result.shape))
    return gy, [gradient.numpy() for gradient in torch.autograd.grad(result, inputs, torch.from_numpy(gy))]


def torch_weight(family, w, axes):
    """What PyTorch calls a convolution is a correlation; for a convolution it wants the kernel flipped."""
    return w if family == "corr" else flip(w, axes)


@families
@given(g=geometries(), dtype=NUMBERS, leading=LEADING, method=METHODS)
def test_corr_is_what_torch_calls_conv_and_conv_is_it_with_the_kernel_flipped(torch, family, g, dtype, leading, method):
    x, w, bias = g.x(dtype)[leading], g.w(dtype), g.bias(dtype)
    ours = named(family, g.axes)(x, w, bias, **g.shared, layout=FIRST, method=method)
    assert_agree(ours, by_torch(torch, f"conv{g.axes}d", x, torch_weight(family, w, g.axes), bias, **g.shared))


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's note on its own speed
@given(g=geometries(), dtype=FLOATS)
def test_same_padding_is_torchs_for_odd_windows_or_dilation_1_and_a_stride_takes_every_so_many_of_it(torch, g, dtype):
    # For an even, dilated window PyTorch shares the padding out evenly, which puts no tap on the element.
    dilation = tuple(d if m % 2 else 1 for m, d in zip(g.window, g.dilation, strict=True))
    same = {"padding": "same", "dilation": dilation, "groups": g.groups}
    x, w = g.x(dtype), g.w(dtype)
    theirs = by_torch(torch, f"conv{g.axes}d", x, w, **same)  # PyTorch knows "same" without stride only
    assert_agree(named("corr", g.axes)(x, w, **same, layout=FIRST), theirs)
    strided = theirs[:, :, *(slice(None, None, s) for s in g.stride)]
    assert_agree(named("corr", g.axes)(x, w, **same, stride=g.stride, layout=FIRST), strided)


@families
@given(g=geometries(), dtype=FLOATS, data=st.data())
def test_the_transposed_operations_are_torchs_conv_transpose(torch, family, g, dtype, data):
    w = g.w(dtype)  # from the channels of the result to those of the input, as in the forward operation
    x = small_integers(g.seed, (g.batch, w.shape[0], *g.size), dtype)
    bias = small_integers(g.seed + 2, g.groups * g.channels, dtype)
    sizes = zip(g.size, g.window, g.stride, g.dilation, strict=True)
    padding = [data.draw(st.integers(0, ((n - 1) * s + (m - 1) * d) // 2)) for n, m, s, d in sizes]
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(g.stride, g.dilation, strict=True)]
    keywords = {**g.shared, "padding": padding, "output_padding": extra}
    ours = named(f"{family}_transpose", g.axes)(x, w, bias, **keywords, layout=FIRST)
    theirs = by_torch(torch, f"conv_transpose{g.axes}d", x, torch_weight(family, w, g.axes), bias, **keywords)
    assert_agree(ours, theirs)


@families
@given(g=geometries())
def test_the_gradients_are_those_of_torchs_autograd(torch, family, g):
    convolve = getattr(torch.nn.functional, f"conv{g.axes}d")
    x, w = g.x(), g.w()
    arrays = [x, torch_weight(family, w, g.axes)]
    gy, (gx, gw) = torch_gradients(torch, lambda x, w: convolve(x, w, **g.shared), arrays, g.seed + 3)
    grad_input, grad_weight = getattr(xpconv, f"{family}_grad_input"), getattr(xpconv, f"{family}_grad_weight")
    assert_agree(grad_input(gy, w, size=g.size, **g.shared, layout=FIRST), gx)
    assert_agree(torch_weight(family, grad_weight(x, gy, window=g.window, **g.shared, layout=FIRST), g.axes), gw)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@given(g=geometries(share=0), data=st.data())
def test_padding_modes_and_their_gradients_are_torchs(torch, mode, g, data):
    # torch.nn.functional.pad stops short of the axis; what xpconv does beyond is compared with NumPy's pad.
    padding = [(data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))) for n in g.size]
    last_axis_first = [side for pair in reversed(padding) for side in pair]
    convolve = getattr(torch.nn.functional, f"conv{g.axes}d")

    def pad_and_convolve(x, w):
        padded = torch.nn.functional.pad(x, last_axis_first, mode)
        return convolve(padded, w, stride=g.stride, dilation=g.dilation, groups=g.groups)

    x, w = g.x(), g.w()
    keywords = {**g.shared, "padding": padding, "padding_mode": mode, "layout": FIRST}
    gy, (gx, gw) = torch_gradients(torch, pad_and_convolve, [x, w], g.seed + 3)
    assert_agree(xpconv.corr(x, w, **keywords), pad_and_convolve(torch.from_numpy(x), torch.from_numpy(w)))
    assert_agree(xpconv.corr_grad_input(gy, w, size=g.size, **keywords), gx)
    assert_agree(xpconv.corr_grad_weight(x, gy, window=g.window, **keywords), gw)


@given(g=geometries(share=HALF), dtype=FLOATS, ceil_mode=st.booleans())
def test_max_pool_and_its_indices_are_torchs_also_where_values_tie(torch, g, dtype, ceil_mode):
    x = g.x(dtype)
    keywords = {"stride": g.stride, "padding": g.symmetric, "dilation": g.dilation, "ceil_mode": ceil_mode}
    y, indices = named("max_pool", g.axes)(x, g.window, **keywords, return_indices=True, layout=FIRST)
    their_y, their_indices = by_torch(torch, f"max_pool{g.axes}d", x, g.window, **keywords, return_indices=True)
    assert_agree(y, their_y)
    found = their_y > -np.inf  # a dilated window may see nothing but padding, and then PyTorch's index lies outside
    assert_agree(indices[found], their_indices[found])


@given(g=geometries(share=HALF), holes=st.integers(1, 4))
def test_max_pool_lets_a_nan_through_as_torch_does(torch, g, holes):
    x = g.x()
    x.reshape(-1)[:: -(-x.size // holes)] = np.nan
    keywords = {"stride": g.stride, "padding": g.symmetric, "dilation": g.dilation}
    ours = named("max_pool", g.axes)(x, g.window, **keywords, layout=FIRST)
    assert_agree(ours, by_torch(torch, f"max_pool{g.axes}d", x, g.window, **keywords))


@given(
    g=geometries(share=HALF),
    ceil_mode=st.booleans(),
    count_include_pad=st.booleans(),
    divisor=st.none() | st.integers(1, 9),
)
def test_avg_pool_and_its_gradient_are_torchs(torch, g, ceil_mode, count_include_pad, divisor):
    # PyTorch's has no dilation, in 1-d no divisor, and in 3-d no window longer than the image.
    assume(all(m <= n for m, n in zip(g.window, g.size, strict=True)))
    keywords = {"stride": g.stride, "padding": g.symmetric, "ceil_mode": ceil_mode}
    keywords["count_include_pad"] = count_include_pad
    ours, theirs = dict(keywords), dict(keywords)
    if g.axes > 1:
        ours["divisor"] = theirs["divisor_override"] = divisor
    pool = getattr(torch.nn.functional, f"avg_pool{g.axes}d")
    x = g.x()
    y = named("avg_pool", g.axes)(x, g.window, **ours, layout=FIRST)
    assert_agree(y, by_torch(torch, f"avg_pool{g.axes}d", x, g.window, **theirs))
    gy, (gx,) = torch_gradients(torch, lambda x: pool(x, g.window, **theirs), [x], g.seed + 3)
    assert_agree(xpconv.avg_pool_grad(gy, g.window, size=g.size, **ours, layout=FIRST), gx)


@given(g=geometries(share=HALF), ceil_mode=st.booleans())
def test_the_gradient_of_max_pool_is_torchs(torch, g, ceil_mode):
    keywords = {"stride": g.stride, "padding": g.symmetric, "dilation": g.dilation, "ceil_mode": ceil_mode}
    pool = getattr(torch.nn.functional, f"max_pool{g.axes}d")
    x = g.x()
    y, indices = xpconv.max_pool(x, g.window, **keywords, return_indices=True, layout=FIRST)
    assume(np.all(y > -np.inf))  # where a dilated window sees nothing but padding PyTorch writes outside the array
    gy, (gx,) = torch_gradients(torch, lambda x: pool(x, g.window, **keywords), [x], g.seed + 3)
    assert_agree(xpconv.max_pool_grad(gy, indices, size=g.size, layout=FIRST), gx)


@given(g=geometries(share=0), dtype=FLOATS, p=st.integers(1, 3))
def test_lp_pool_is_torchs_on_values_that_are_not_negative(torch, g, dtype, p):
    # Of negative values PyTorch takes odd powers with their sign, xpconv as in a norm.
    x = np.abs(g.x(dtype))
    ours = named("lp_pool", g.axes)(x, g.window, p=p, stride=g.stride, layout=FIRST)
    window, stride = (g.window[0], g.stride[0]) if g.axes == 1 else (g.window, g.stride)
    assert_agree(ours, by_torch(torch, f"lp_pool{g.axes}d", x, p, window, stride))


@given(g=geometries(), dtype=FLOATS, data=st.data())
def test_adaptive_pools_are_torchs_also_for_more_outputs_than_inputs(torch, g, dtype, data):
    x = g.x(dtype)
    out = tuple(data.draw(st.integers(1, n + 2)) for n in g.size)
    mean = xpconv.adaptive_avg_pool(x, out, layout=FIRST)
    assert_agree(mean, by_torch(torch, f"adaptive_avg_pool{g.axes}d", x, out))
    ours = xpconv.adaptive_max_pool(x, out, return_indices=True, layout=FIRST)
    theirs = by_torch(torch, f"adaptive_max_pool{g.axes}d", x, out, return_indices=True)
    for our, their in zip(ours, theirs, strict=True):
        assert_agree(our, their)


@given(g=geometries(share=HALF), dtype=FLOATS)
def test_max_unpool_is_torchs(torch, g, dtype):
    # Windows that do not overlap: where two maxima share a place, PyTorch leaves open which is kept.
    keywords = {"stride": g.window, "padding": g.symmetric}
    y, indices = xpconv.max_pool(g.x(dtype), g.window, **keywords, return_indices=True, layout=FIRST)
    ours = named("max_unpool", g.axes)(y, indices, size=g.size, layout=FIRST)
    theirs = by_torch(torch, f"max_unpool{g.axes}d", y, indices, g.window, **keywords, output_size=g.size)
    assert_agree(ours, theirs)


@given(g=geometries(axes=st.just(2)), dtype=FLOATS)
def test_unfold_has_torchs_patches_with_the_window_and_the_positions_as_axes_of_their_own(torch, g, dtype):
    x = g.x(dtype)
    keywords = {"stride": g.stride, "padding": g.symmetric, "dilation": g.dilation}
    theirs = by_torch(torch, "unfold", x, g.window, **keywords)  # (N, C * prod(window), prod(out))
    first = xpconv.unfold(x, g.window, **keywords, layout=FIRST)  # (N, C, *window, *out)
    last = xpconv.unfold(channels_last(x), g.window, **keywords)  # (N, *out, *window, C)
    assert_agree(first.reshape(theirs.shape), theirs)
    assert_agree(last.transpose(0, 5, 3, 4, 1, 2).reshape(theirs.shape), theirs)


@given(g=geometries(axes=st.just(2)), dtype=FLOATS)
def test_fold_is_torchs_with_the_window_and_the_positions_as_axes_of_their_own(torch, g, dtype):
    keywords = {"stride": g.stride, "padding": g.symmetric, "dilation": g.dilation}
    shape = xpconv.unfold(g.x(), g.window, **keywords, layout=FIRST).shape
    patches = small_integers(g.seed, shape, dtype)
    columns = patches.reshape(g.batch, -1, shape[-2] * shape[-1])
    theirs = by_torch(torch, "fold", columns, g.size, g.window, **keywords)
    keywords |= {"size": g.size, "window": g.window}
    assert_agree(xpconv.fold(patches, **keywords, layout=FIRST), theirs)
    assert_agree(xpconv.fold(patches.transpose(0, 4, 5, 2, 3, 1), **keywords), channels_last(theirs))


# --- JAX --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lax():
    return pytest.importorskip("jax", reason="JAX is not installed").lax


def lax_dimensions(axes):
    """Names of the axes of input, weight and output: xpconv's default layout is one that JAX knows."""
    spatial = "DHW"[-axes:]
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def drawn_padding(data, g):
    """The padding in JAX's words and in ours."""
    return data.draw(st.sampled_from([(g.padding, g.padding), ("SAME", "same_upper"), ("SAME_LOWER", "same_lower")]))


@given(g=geometries(symmetric=False), data=st.data())
def test_corr_is_jaxs_conv_general_dilated(lax, g, data):
    theirs, ours = drawn_padding(data, g)
    x = channels_last(g.x(np.float32))
    w = np.moveaxis(g.w(np.float32), (1, 0), (-2, -1))
    expected = lax.conv_general_dilated(
        x,
        w,
        window_strides=g.stride,
        padding=theirs,
        rhs_dilation=g.dilation,
        feature_group_count=g.groups,
        dimension_numbers=lax_dimensions(g.axes),
    )
    keywords = {"stride": g.stride, "padding": ours, "dilation": g.dilation, "groups": g.groups}
    assert_agree(xpconv.corr(x, w, **keywords), expected)


@pytest.mark.parametrize(
    ("name", "operation", "neutral"),
    [("max_pool", "max", -np.inf), ("min_pool", "min", np.inf), ("sum_pool", "add", 0)],
)
@given(g=geometries(symmetric=False), data=st.data())
def test_pooling_is_jaxs_reduce_window(lax, name, operation, neutral, g, data):
    theirs, ours = drawn_padding(data, g)
    x = channels_last(g.x(np.float32))
    expected = lax.reduce_window(
        x,
        np.float32(neutral),
        getattr(lax, operation),
        window_dimensions=(1, *g.window, 1),
        window_strides=(1, *g.stride, 1),
        window_dilation=(1, *g.dilation, 1),
        padding=theirs if isinstance(theirs, str) else ((0, 0), *theirs, (0, 0)),
    )
    pool = named(name, g.axes)
    assert_agree(pool(x, g.window, stride=g.stride, dilation=g.dilation, padding=ours), expected)


# --- NumPy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.float32, np.float64, np.complex128])
def test_conv1d_is_numpys_convolve_for_every_kernel_no_longer_than_the_signal(mode, dtype):
    for n in range(1, 10):
        for m in range(1, n + 1):
            # Scaled so that the products pass the range of int8 and uint16: integers wrap.
            x, w = ((31 * small_integers(seed, size, np.int64)).astype(dtype) for seed, size in enumerate([n, m]))
            assert_agree(xpconv.conv1d(x, w, padding=mode), np.convolve(x, w, mode))


@pytest.mark.parametrize("ours", ["edge", "reflect", "symmetric", "wrap", "replicate", "circular", "zeros", "constant"])
@given(g=geometries(symmetric=False), data=st.data())
def test_a_padding_mode_is_numpys_pad_before_a_valid_correlation(ours, g, data):
    numpys = {"replicate": "edge", "circular": "wrap", "zeros": "constant"}.get(ours, ours)
    fill = data.draw(st.integers(-9, 9)) if ours == "constant" else 0
    constant, value = ({"constant_values": fill}, {"fill_value": fill}) if numpys == "constant" else ({}, {})
    beyond = [st.integers(0, 2 * n + 1) for n in g.size]
    padding = [(before + data.draw(side), after) for (before, after), side in zip(g.padding, beyond, strict=True)]
    x, w = g.x(), g.w()
    padded = np.pad(x, [(0, 0), (0, 0), *padding], numpys, **constant)
    geometry = {"stride": g.stride, "dilation": g.dilation, "groups": g.groups, "layout": FIRST}
    y = xpconv.corr(x, w, padding=padding, padding_mode=ours, **value, **geometry)
    assert_agree(y, xpconv.corr(padded, w, **geometry))


# --- SciPy's signal ---------------------------------------------------------------------------------------------------

modes = pytest.mark.parametrize("mode", ["full", "same", "valid"])
operations = pytest.mark.parametrize("operation", ["convolve", "correlate"])
scipy_casts_what_it_has_not_written = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")


@st.composite
def signal_and_kernel(draw, *, axes=AXES, dtypes=NUMBERS):
    """Two arrays of one rank, the first at least as long on every axis."""
    axes = draw(axes)
    sizes = st.lists(st.integers(1, 7), min_size=axes, max_size=axes)
    shapes = draw(sizes), draw(sizes)
    shapes = tuple(map(max, *shapes)), tuple(map(min, *shapes))
    seed = draw(SEEDS)
    return tuple(small_integers(seed + n, shape, draw(dtypes)) for n, shape in enumerate(shapes))


@st.composite
def two_signals(draw, mode, *, axes=AXES):
    """Two arrays of one rank and of any lengths; for "valid" one of them, either, is the longer on every axis."""
    dtypes = st.sampled_from([np.int64, np.float64, np.complex128])
    a, b = draw(signal_and_kernel(axes=axes, dtypes=dtypes))
    if mode != "valid":
        b = draw(signal_and_kernel(axes=st.just(a.ndim), dtypes=dtypes))[0]
    return (a, b) if draw(st.booleans()) else (b, a)


@modes
@given(arrays=signal_and_kernel(), method=METHODS)
def test_conv_of_two_plain_arrays_is_scipys_convolve(mode, arrays, method):
    x, w = arrays
    expected = scipy.signal.convolve(x, w, mode, method="direct")
    assert_agree(named("conv", x.ndim)(x, w, padding=mode, method=method), expected)


@scipy_casts_what_it_has_not_written
@pytest.mark.parametrize("mode", ["full", "valid"])
@given(arrays=signal_and_kernel())
def test_corr_of_two_plain_arrays_is_scipys_correlate_without_its_conjugation(mode, arrays):
    # "same" is left out: for an even window SciPy centres w[m//2] where xpconv and PyTorch centre w[(m-1)//2].
    x, w = arrays
    expected = scipy.signal.correlate(x, np.conj(w), mode, method="direct")
    assert_agree(named("corr", x.ndim)(x, w, padding=mode), expected)


@scipy_casts_what_it_has_not_written
@operations
@modes
@given(data=st.data(), method=st.sampled_from(["auto", "direct", "fft"]))
def test_signal_has_scipys_modes_and_methods(operation, mode, data, method):
    a, b = data.draw(two_signals(mode))
    expected = getattr(scipy.signal, operation)(a, b, mode, method="direct")
    assert_agree(getattr(xpconv.signal, operation)(a, b, mode=mode, method=method), expected)


@operations
@modes
@given(data=st.data(), boundary=st.sampled_from(["fill", "wrap", "symm"]), fillvalue=st.integers(-3, 3))
def test_signal_has_scipys_boundaries(operation, mode, data, boundary, fillvalue):
    a, b = data.draw(two_signals(mode, axes=st.just(2)))
    if (operation, mode) == ("correlate", "same"):  # for even windows SciPy's correlate2d and correlate differ by one
        assume(all(m % 2 for m in b.shape))
    if (operation, mode) == ("correlate", "valid"):  # correlate2d forgets to conjugate back when `in2` is the longer
        assume(a.shape >= b.shape or not (np.iscomplexobj(a) or np.iscomplexobj(b)))
    expected = getattr(scipy.signal, f"{operation}2d")(a, b, mode, boundary, fillvalue)
    ours = getattr(xpconv.signal, operation)(a, b, mode=mode, boundary=boundary, fillvalue=fillvalue)
    assert_agree(ours, expected)


@operations
@modes
@given(arrays=signal_and_kernel(dtypes=DOUBLES), place=st.integers(0, 3), one_kernel=st.booleans())
def test_signal_works_along_the_axes_it_is_given_and_pairs_the_others(operation, mode, arrays, place, one_kernel):
    a, b = arrays
    place = min(place, a.ndim)
    a = np.stack([a, -a, a + 1], axis=place)
    b = np.stack([b] if one_kernel else [b, 2 * b, b - 1], axis=place)
    axes = [axis for axis in range(a.ndim) if axis != place]
    # fftconvolve is the function of SciPy that has `axes`; it has no correlation.
    kernel = np.conj(np.flip(b, axes)) if operation == "correlate" else b
    expected = scipy.signal.fftconvolve(a, kernel, mode, axes)
    assert_agree(getattr(xpconv.signal, operation)(a, b, mode=mode, axes=axes), expected)


# --- SciPy's ndimage --------------------------------------------------------------------------------------------------

# What lies beyond the edge, in ndimage's words and in ours.
EDGES = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "wrap": "wrap", "constant": "constant"}


def around(window, origin, *, flip=False):
    """The padding that puts tap m//2 + origin on each element, as in ndimage; a flipped kernel is read from its end."""
    centres = [(m, m // 2 + o) for m, o in zip(window, origin, strict=True)]
    return [(m - 1 - centre, centre) if flip else (centre, m - 1 - centre) for m, centre in centres]


@st.composite
def images_and_origins(draw):
    g = draw(geometries())
    return g, [draw(st.integers(-(m // 2), (m - 1) // 2)) for m in g.window]


@pytest.mark.parametrize(("operation", "family"), [("correlate", "corr"), ("convolve", "conv")])
@pytest.mark.parametrize("mode", EDGES)
@given(image=images_and_origins(), dtype=st.sampled_from([np.int64, np.float64]), cval=st.integers(-3, 3))
def test_filters_are_ndimages_with_its_modes_and_its_origin(operation, family, mode, image, dtype, cval):
    g, origin = image
    x, w = g.x(dtype)[0, 0], g.w(dtype)[0, 0]
    expected = getattr(scipy.ndimage, operation)(x, w, mode=mode, cval=cval, origin=origin)
    edges = {"padding_mode": EDGES[mode]} | ({"fill_value": cval} if mode == "constant" else {})
    ours = named(family, g.axes)(x, w, padding=around(g.window, origin, flip=family == "conv"), **edges)
    assert_agree(ours, expected)


@pytest.mark.parametrize(
    ("operation", "name", "options", "cval"),
    [
        ("maximum_filter", "max_pool", {}, -np.inf),
        ("minimum_filter", "min_pool", {}, np.inf),
        ("uniform_filter", "avg_pool", {"count_include_pad": True}, 0),
    ],
)
@given(image=images_and_origins())
def test_pooling_with_stride_1_is_ndimages_filter(operation, name, options, cval, image):
    g, origin = image
    x = g.x()[0, 0]
    expected = getattr(scipy.ndimage, operation)(x, size=g.window, mode="constant", cval=cval, origin=origin)
    ours = named(name, g.axes)(x, g.window, stride=1, padding=around(g.window, origin), **options)
    assert_agree(ours, expected)
