"""What the tests of filters of single planes share: padded inputs, their spec, and the definition."""

import tracemalloc

import numpy as np
from hypothesis import strategies as st

import oracle
import xpconv

DEFAULT = 2**26  # bytes
BOUNDS = {"float32": 2e-6, "float64": 1e-13, "complex64": 2e-6, "complex128": 1e-13}  # of the largest result

geometry = st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))  # see sizes_of

VIEWS = [
    lambda x: x[:, ::-1], lambda x: x[..., ::-1, :], lambda x: x[:, ::3], lambda x: x[..., ::3, :],
    lambda x: x[..., ::-1], lambda x: np.broadcast_to(x[:, :1], x.shape), lambda x: x.swapaxes(1, -2),
    lambda x: np.broadcast_to(x[..., :1, :], x.shape), np.asfortranarray,
]  # fmt: skip


def sizes_of(axes):
    """Size, window, stride and dilation of axes (elements beyond the window's reach, m, s, d), at least one."""
    more, window, stride, dilation = zip(*axes, strict=True)
    size = tuple((m - 1) * d + n for n, m, d in zip(more, window, dilation, strict=True))
    return size, window, stride, dilation


def spec_of(x, w, *, flip=False, layout="channels_last", **options):
    """The spec of padded `x` (N, *size, C) and `w` (*window, 1, C), in that layout."""
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
    function, groups = xpconv.conv if flip else xpconv.corr, w.shape[-1] if layout == "channels_last" else len(w)
    return function.request(x, w, groups=groups, layout=layout, **options).spec


def defined(x, w, *, flip=False, stride=1, dilation=1):
    """The definition in double precision."""
    axes, wide = x.ndim - 2, "complex128" if x.dtype.kind == "c" else "float64"
    stride, dilation = (v if isinstance(v, tuple) else (v,) * axes for v in (stride, dilation))
    options = dict(flip=flip, stride=stride, dilation=dilation, pads=((0, 0),) * axes, groups=x.shape[-1])
    return oracle.conv_by_taps(x.astype(wide), w.astype(wide), None, **options)


def values(rng, shape, dtype):
    """Normal numbers, complex where the dtype is."""
    drawn = rng.standard_normal(shape)
    return (drawn + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else drawn).astype(dtype)


def assert_near(y, expected, bound):
    """Within `bound` of the largest result."""
    assert y.shape == expected.shape
    if y.size:
        assert np.abs(y - expected).max() <= bound * np.abs(expected).max()


DRAWN = (
    st.lists(geometry, min_size=1, max_size=3), st.integers(0, 3), st.integers(1, 3), st.booleans(),
    st.sampled_from(["channels_last", "channels_first"]),
)  # fmt: skip


def assert_drawn_agree(filtered, dtype, axes, batch, channels, flip, layout, limit):
    """The definition's results, of geometry that was `DRAWN`."""
    size, window, stride, dilation = sizes_of(axes)
    rng = np.random.default_rng(sum(size) * 100 + batch)
    x, w = values(rng, (batch, *size, channels), dtype), values(rng, (*window, 1, channels), dtype)
    options = dict(flip=flip, stride=stride, dilation=dilation)
    assert_near(filtered(x, w, limit, layout=layout, **options), defined(x, w, **options), BOUNDS[dtype])


def memory_beside_result(call):
    """The most bytes that the call holds at a time, but for its result."""
    call()
    tracemalloc.start()
    y = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - sum(part.nbytes for part in (y if isinstance(y, tuple) else (y,)))
