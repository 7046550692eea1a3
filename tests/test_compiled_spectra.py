"""Compiled filters of single planes by spectra of tiles: as the definition, within the rounding of a transform."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import MODES
from engine_cases import reference
from kernel_calls import LIMIT, VIEWS_OF_PLANES, by_kernels, takes
from single_planes import BOUNDS

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu import tiled_spectra
from xpconv.cpu.compiled import kernels, spectra
from xpconv.cpu.compiled.build import machine

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
filtered = partial(by_kernels, "spectra")


def assert_as_defined(function, x, w, bias=None, *, bound=None, **options):
    """Within the dtype's bound of what the definition makes of double precision."""
    wide = [None if a is None else a.astype("float64") for a in (x, w, bias)]
    expected, y = reference(function, *wide, **options), filtered(function, x, w, bias, **options)
    assert (y.shape, y.dtype) == (expected.shape, x.dtype)
    np.testing.assert_allclose(y, expected, rtol=0, atol=(bound or BOUNDS[x.dtype.name]) * np.abs(expected).max())


def arrays(size, window, channels=1, batch=2, dtype="float32"):
    """Channels-first x and w, of a filter for each channel."""
    rng = np.random.default_rng(sum(size) + channels)
    x, w = rng.standard_normal((batch, channels, *size)), rng.standard_normal((channels, 1, *window))
    return x.astype(dtype), w.astype(dtype)


def first(channels, **options):
    return {"layout": "channels_first", "groups": channels, **options}


@pytest.fixture
def tiles_of(monkeypatch):
    """A function that lets all tiles be of such lengths."""

    def let(*lengths):
        monkeypatch.setattr(tiled_spectra, "lengths", lambda _: lengths)
        for cached in (kernels._prepared, kernels._takes):
            cached.cache_clear()

    yield let
    monkeypatch.undo()
    for cached in (kernels._prepared, kernels._takes):
        cached.cache_clear()


@DTYPES
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 150)), st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)), st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)), st.sampled_from(MODES), st.booleans(), st.sampled_from([1, 1, 3]),
    st.integers(1, 3),
)  # fmt: skip
def test_images_agree_with_the_definition(dtype, size, window, dilation, down, across, mode, flip, channels, batch):
    spans = [(m - 1) * d + 1 for m, d in zip(window, dilation, strict=True)]
    size = tuple(max(n, span - sum(p), 5) for n, span, p in zip(size, spans, (down, across), strict=True))
    x, w = arrays(size, window, channels, batch, dtype)
    bias, options = np.arange(channels).astype(dtype), {"padding": (down, across), "dilation": dilation}
    options |= {"padding_mode": mode, "activation": "relu"} | ({"fill_value": 3} if mode == "constant" else {})
    assert_as_defined(xpconv.conv if flip else xpconv.corr, x, w, bias, **first(channels, **options))


@DTYPES
@pytest.mark.parametrize("length", tiled_spectra.LENGTHS)
def test_every_length_transforms_down_and_across(dtype, length, tiles_of):
    tiles_of(length, 64)
    x, w = arrays((2 * length, 130), (length // 2, 9), 1, 1, dtype)
    assert_as_defined(xpconv.corr, x, w, **first(1, padding=3))
    tiles_of(64, length)
    x, w = arrays((130, 2 * length), (9, length // 2), 1, 1, dtype)
    assert_as_defined(xpconv.corr, x, w, **first(1, padding=3))


@pytest.mark.parametrize("window", [(1, 1), (32, 1), (1, 32), (32, 32), (5, 31)])
@pytest.mark.parametrize("size", [(32, 32), (33, 63), (64, 65), (31, 100)])
def test_tiles_cover_the_result_once(window, size, tiles_of):
    tiles_of(32, 32)
    x, w = arrays(size, window, 2, 1)
    if all(m <= n for m, n in zip(window, size, strict=True)):
        assert_as_defined(xpconv.corr, x, w, **first(2))
    assert_as_defined(xpconv.corr, x, w, **first(2, padding="full"))


def test_the_last_of_an_odd_number_of_tiles_is_filtered_too(tiles_of):
    tiles_of(32, 32)
    x, w = arrays((70, 30), (9, 9), 3, 1)
    spec = xpconv.corr.request(x, w, **first(3)).spec
    assert tiled_spectra.tile_counts(spec, (32, 32)) == (3, 1)
    assert_as_defined(xpconv.corr, x, w, **first(3))


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "tanh"])
def test_bias_and_activation_are_applied_once(activation):
    x, w = arrays((60, 60), (13, 13), 2)
    bias = np.array([0.5, -1], "float32")
    assert_as_defined(xpconv.corr, x, w / 13, bias, **first(2, activation=activation))


@DTYPES
def test_a_large_mean_that_cancels_takes_no_digits(dtype):
    x, w = arrays((150, 140), (15, 15), 1, 1, dtype)
    w = np.rint(8 * w)
    w[..., -1, -1] -= w.sum()
    assert_as_defined(xpconv.corr, x + x.dtype.type(1e4), w, bound=4e-6 if dtype == "float32" else 1e-11, **first(1))


@DTYPES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("method", ["auto", "fft"])
def test_what_is_not_finite_stays_within_its_windows(dtype, value, activation, method):
    x, w = arrays((200, 210), (21, 17), 1, 1, dtype)
    value = value if dtype == "float32" or not np.isfinite(value) else 1.7e308
    x[0, 0, 90, 100] = value
    options = first(1, activation=activation)
    assert takes("spectra", x.dtype, xpconv.corr.request(x, w, **options).spec)
    with np.errstate(over="ignore", invalid="ignore"):
        y, expected = xpconv.corr(x, w, method=method, **options), xpconv.corr(x, w, method="direct", **options)
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    near = np.isfinite(expected) & (np.abs(expected) < 1e6)
    np.testing.assert_allclose(y[near], expected[near], rtol=0, atol=1e-4)


@DTYPES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", [(0, 0), (0, 100), (77, 140), (149, 139)])
@pytest.mark.parametrize("flip", [False, True])
def test_only_tiles_that_are_not_finite_are_computed_again(dtype, mode, place, flip, tiles_of):
    tiles_of(32, 32)
    x, w = arrays((150, 141), (5, 9), 2, 2, dtype)
    x, function = x[..., ::-1], xpconv.conv if flip else xpconv.corr
    bias, options = np.array([0.5, -1], dtype), {"padding": 4, "padding_mode": mode, "dilation": (2, 1)}
    options |= first(2, activation="relu") | ({"fill_value": 3} if mode == "constant" else {})
    clean = filtered(function, x, w, bias, **options)
    x[1, 1, *place] = np.nan
    y = filtered(function, x, w, bias, **options)
    expected = reference(function, *(a.astype("float64") for a in (x, w, bias)), **options)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    assert np.isnan(y).any()
    np.testing.assert_allclose(y, expected, rtol=0, atol=BOUNDS[dtype] * np.nanmax(np.abs(expected)))
    differs = y != clean
    assert not differs[0].any()
    assert not differs[1, 0].any()
    assert (np.isnan(y) | differs).mean() < 1 / 8  # all others are those of the spectra, to the bit


def test_many_tiles_that_are_not_finite_are_computed_at_once(tiles_of, monkeypatch):
    tiles_of(32, 32)
    monkeypatch.setattr(spectra.spectra_again, "compute", None)
    x, w = arrays((150, 140), (9, 9), 1, 1)
    x[..., ::20, ::20] = np.inf
    y, expected = (xpconv.corr(x, w, method=method, **first(1)) for method in ("fft", "direct"))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("view", VIEWS_OF_PLANES)
@pytest.mark.parametrize("padding", [0, 5])
def test_arrays_of_any_strides_are_read_and_left_alone(view, padding):
    x, w = view(arrays((60, 70), (11, 7), 2, 2)[0]), arrays((60, 70), (11, 7), 2, 2)[1]
    if x.flags.owndata:
        x.flags.writeable = False
    before = x.copy()
    for weight in (w, w[::-1, :, ::-1], np.asfortranarray(w)):
        assert_as_defined(xpconv.corr, x, weight, **first(2, padding=padding))
    np.testing.assert_array_equal(x, before)


def test_results_are_written_where_they_belong():
    x, w = arrays((100, 90), (15, 15), 3, 2)
    whole = np.full((2, 3, 100, 200), 7, "float32")
    out = whole[..., 5:95]
    y = xpconv.corr(x, w, padding="same", out=out, **first(3, method="fft"))
    assert y is out
    assert_as_defined(xpconv.corr, x, w, padding="same", **first(3))
    np.testing.assert_allclose(out, filtered(xpconv.corr, x, w, padding="same", **first(3)), atol=1e-4)
    assert (whole[..., :5] == 7).all()
    assert (whole[..., 95:] == 7).all()


def test_results_do_not_depend_on_the_threads(monkeypatch):
    x, w = arrays((300, 280), (17, 19), 1, 1)
    several = filtered(xpconv.corr, x, w, **first(1))
    monkeypatch.setattr(kernels.threads, "thread_count", lambda: 1)
    np.testing.assert_array_equal(filtered(xpconv.corr, x, w, **first(1)), several)


def test_others_are_left_to_others():
    def is_taken(size, window, limit=LIMIT, dtype="float32", **options):
        x, w = np.empty((1, *size, 1), dtype), np.empty((*window, 1, 1), dtype)
        return spectra.takes(dtype, xpconv.corr.request(x, w, **options).spec, limit)

    assert is_taken((300, 300), (31, 31))
    assert not is_taken((300, 300), (31, 31), limit=1000)
    assert not is_taken((300, 300), (31, 31), stride=2)
    assert not is_taken((300,), (31,))
    assert not is_taken((40, 40, 40), (9, 9, 9))
    assert not is_taken((600, 600), (257, 3))


def test_what_the_memory_limit_lets_is_computed_alike():
    x, w = arrays((300, 300), (31, 31), 5, 1)
    spec = xpconv.corr.request(x, w, **first(5)).spec
    nbytes = spectra.workspace("float32", spec)
    assert spectra.takes("float32", spec, nbytes)
    assert not spectra.takes("float32", spec, nbytes - 1)
    np.testing.assert_array_equal(
        filtered(xpconv.corr, x, w, limit=nbytes, **first(5)), filtered(xpconv.corr, x, w, **first(5))
    )


def test_large_windows_are_filtered_so_and_small_ones_are_not():
    def method(m):
        x, w = np.empty((2048, 2048), "float32"), np.empty((m, m), "float32")
        return xpconv.explain(xpconv.corr2d, x, w, padding="same").method

    assert method(5) == "direct"
    assert {method(m) for m in (15, 31, 101, 201)} == {"fft"}
