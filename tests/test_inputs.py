"""Whatever the memory of an array looks like, the values decide; and no input is modified."""

import numpy as np
import pytest

import xpconv
from xpconv.engines import numpy as engine
from xpconv.workspace import current_limit

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(-9, 9, (3, 8, 7, 4)).astype(np.float64)
KERNEL = RNG.integers(-9, 9, (3, 2, 4, 5)).astype(np.float64)

MEMORY = {
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "negative strides": lambda a: np.flip(a, (0, 1)).copy()[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "transposed": lambda a: np.transpose(np.transpose(a).copy()),
    "misaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "read-only": lambda a: a,
}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("method", ["auto", "direct", "gemm", "fft"])
def test_the_memory_of_an_array_does_not_matter(memory, method):
    x, w = (MEMORY[memory](a.copy()) for a in (IMAGE, KERNEL))
    x.flags.writeable = w.flags.writeable = False
    y = xpconv.conv2d(x, w, stride=2, padding=1, method=method)
    np.testing.assert_allclose(y, xpconv.conv2d(IMAGE, KERNEL, stride=2, padding=1), atol=1e-10)
    for pool in (xpconv.max_pool2d, xpconv.avg_pool2d, xpconv.lp_pool2d):
        np.testing.assert_array_equal(pool(x, 2, padding=1), pool(IMAGE, 2, padding=1))
    np.testing.assert_array_equal(xpconv.unfold(x, (2, 2)), xpconv.unfold(IMAGE, (2, 2)))


def test_broadcast_arrays(lib):
    row = np.arange(6.0)
    x = np.broadcast_to(row, (2, 5, 6))[..., None]
    w = np.broadcast_to(np.array([[1.0, 2.0]]), (3, 2))[..., None, None]
    if lib.name.startswith("numpy"):
        y = xpconv.conv2d(x, w)
        assert not x.flags.writeable
    else:
        y = lib.call(xpconv.conv2d, x, w)
    np.testing.assert_array_equal(y, xpconv.conv2d(x.copy(), w.copy()))


def test_no_input_is_modified():
    x, w, b = IMAGE.copy(), KERNEL.copy(), np.ones(5)
    y = xpconv.conv2d(x, w, b, padding="same", padding_mode="reflect", activation="relu")
    xpconv.conv_grad_input(y, w, size=(8, 7), padding="same", padding_mode="reflect")
    xpconv.conv_grad_weight(x, y, window=(3, 2), padding="same", padding_mode="reflect")
    pooled, indices = xpconv.max_pool2d(x, 2, return_indices=True)
    xpconv.max_pool_grad(pooled, indices, size=(8, 7))
    xpconv.avg_pool2d(x, 2, padding=1)
    np.testing.assert_array_equal(x, IMAGE)
    np.testing.assert_array_equal(w, KERNEL)
    np.testing.assert_array_equal(b, np.ones(5))


@pytest.mark.parametrize("padding", ["valid", 1])
def test_a_result_never_shares_memory_with_an_input(padding):
    x = np.ones((1, 4, 4, 1))
    results = [
        xpconv.conv2d(x, np.ones((1, 1, 1, 1)), padding=padding),
        xpconv.max_pool2d(x, 1, padding=padding if padding == 1 else 0),
        xpconv.max_pool2d(x, 1, return_indices=True)[0],
        xpconv.sum_pool2d(x, 1),
        xpconv.avg_pool2d(x, 1),
        xpconv.adaptive_avg_pool(x, (4, 4)),
        xpconv.adaptive_max_pool(x, (4, 4)),
        xpconv.unfold(x, (1, 1)),
        xpconv.fold(x[:, :, :, None, None], size=(4, 4), window=(1, 1)),
        xpconv.avg_pool_grad(x, 1, size=(4, 4)),
        xpconv.conv_grad_input(x, np.ones((1, 1, 1, 1)), size=(4, 4)),
    ]
    assert not any(np.shares_memory(x, y) for y in results)


def test_an_empty_batch_gives_an_empty_result(lib):
    x, w = np.ones((0, 8, 7, 4)), KERNEL
    assert lib.call(xpconv.conv2d, x, w).shape == (0, 6, 6, 5)
    assert lib.call(xpconv.max_pool2d, x, window=2).shape == (0, 4, 3, 4)
    assert lib.call(xpconv.avg_pool2d, x, window=2).shape == (0, 4, 3, 4)
    gx = lib.call(xpconv.conv_grad_input, np.ones((0, 6, 6, 5)), w, size=(8, 7))
    gw = lib.call(xpconv.conv_grad_weight, x, np.ones((0, 6, 6, 5)), window=(3, 2))
    assert gx.shape == (0, 8, 7, 4)
    assert not gw.any()
    assert gw.shape == w.shape


def test_no_channels_sum_to_the_bias(lib):
    y = lib.call(xpconv.conv1d, np.ones((2, 5, 0)), np.ones((3, 0, 2)), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(y, np.broadcast_to([1.0, 2.0], (2, 3, 2)))


def test_no_filters_give_no_maps(lib):
    for method in ("auto", "direct", "gemm", "fft") if lib.name == "numpy" else ("auto",):
        y = lib.call(xpconv.conv1d, np.ones((2, 5, 3)), np.ones((3, 3, 0)), method=method)
        assert y.shape == (2, 3, 0)


@pytest.mark.parametrize("method", ["auto", "direct", "gemm"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_the_windows_that_hold_them(method, bad):
    x = np.ones((1, 40, 40, 1))
    x[0, 20, 11, 0] = bad
    y = xpconv.conv2d(x, np.ones((31, 31, 1, 1)), padding="same", method=method)[0, ..., 0]
    touched = np.zeros((40, 40), bool)
    touched[5:36, :27] = True
    np.testing.assert_array_equal(~np.isfinite(y), touched)


def test_values_near_the_end_of_the_range(lib):
    huge = np.array([1e308, -1e308, 1e308])
    np.testing.assert_array_equal(lib.call(xpconv.conv1d, huge, np.array([1.0, 1.0])), [0, 0])
    np.testing.assert_array_equal(lib.call(xpconv.max_pool1d, huge, window=3), [1e308])


def test_out_receives_the_result():
    x, w = IMAGE, KERNEL
    expected = xpconv.conv2d(x, w)
    out = np.empty(expected.shape)
    assert xpconv.conv2d(x, w, out=out) is out
    np.testing.assert_array_equal(out, expected)
    strided = np.empty((*expected.shape[:-1], 10))[..., ::2]
    assert xpconv.corr2d(x, w[::-1, ::-1], out=strided) is strided
    np.testing.assert_array_equal(strided, expected)


def test_out_must_fit_be_writable_and_not_overlap():
    x, w = np.ones(5), np.ones(2)
    with pytest.raises(ValueError, match=r"out is \(5,\) float64, the result \(4,\) float64"):
        xpconv.conv1d(x, w, out=np.empty(5))
    with pytest.raises(ValueError, match=r"out is \(4,\) float32, the result \(4,\) float64"):
        xpconv.conv1d(x, w, out=np.empty(4, np.float32))
    for name, out in (("x", x[1:]), ("w", np.concatenate([w, w]))):
        given = {"x": x, "w": out[:2] if name == "w" else w}
        with pytest.raises(ValueError, match=f"out overlaps {name}; pass memory of its own"):
            xpconv.conv1d(given["x"], given["w"], out=out)
    read_only = np.empty(4)
    read_only.flags.writeable = False
    with pytest.raises(TypeError, match=r"out cannot be written: numpy\.ndarray is read-only or immutable"):
        xpconv.conv1d(x, w, out=read_only)


def test_out_beside_an_input_in_the_same_buffer_is_no_overlap():
    pair = np.ones((6, 2))
    xpconv.conv1d(pair[:, 0], np.array([2.0]), out=pair[:, 1])
    np.testing.assert_array_equal(pair, np.tile([1.0, 2.0], (6, 1)))


def test_the_same_call_gives_the_same_bits():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 33, 31, 17)), rng.normal(size=(3, 3, 17, 19))
    assert xpconv.conv2d(x, w).tobytes() == xpconv.conv2d(x, w).tobytes()


@pytest.mark.parametrize("limit", [1, 10_000, 4 * 2**20])
def test_the_workspace_limit_changes_the_tiles_and_not_the_result(limit):
    expected = xpconv.conv2d(IMAGE, KERNEL, method="gemm")
    with xpconv.workspace_limit(limit):
        np.testing.assert_allclose(xpconv.conv2d(IMAGE, KERNEL, method="gemm"), expected, atol=1e-12)
        gw = xpconv.conv_grad_weight(IMAGE, expected, window=(3, 2))
    np.testing.assert_allclose(gw, xpconv.conv_grad_weight(IMAGE, expected, window=(3, 2)), rtol=1e-12)


def test_the_workspace_limit_ends_with_its_block():
    before = current_limit()
    with xpconv.workspace_limit(5):
        assert current_limit() == 5
    assert current_limit() == before


@pytest.mark.parametrize("limit", [0, -1, 1.5, "4MB"])
def test_a_workspace_limit_is_a_positive_number_of_bytes(limit):
    refused = pytest.raises(ValueError, match="workspace_limit takes a positive number of bytes")
    with refused, xpconv.workspace_limit(limit):
        pass


def test_the_workspace_limit_holds():
    import tracemalloc

    x, w = np.ones((1, 256, 256, 16)), np.ones((5, 5, 16, 8))
    with xpconv.workspace_limit(2**20):
        xpconv.conv2d(x, w, method="gemm")
        tracemalloc.start()
        y = xpconv.conv2d(x, w, method="gemm")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    row = 252 * 25 * 16 * 8  # one row of patches, the smallest tile
    assert peak - y.nbytes < row + 2**20


def test_an_overflow_of_the_spectrum_alone_does_not_reach_the_result():
    x, w = np.full((1, 500, 500, 1), 1e307), np.full((161, 161, 1, 1), 1e-4)
    assert xpconv.explain(xpconv.conv2d, x, w).method == "fft"
    np.testing.assert_allclose(xpconv.conv2d(x, w), 1e303 * 161 * 161)


def test_more_digits_than_double_precision_never_go_through_spectra():
    x, w = np.ones((1, 300, 300, 1), np.longdouble), np.ones((41, 41, 1, 1), np.longdouble)
    assert xpconv.explain(xpconv.conv2d, x, w).method != "fft"


def test_a_call_that_runs_out_of_memory_is_tried_once_more_with_the_smallest_tiles(monkeypatch):
    limits, conv = [], engine.conv

    def scarce(*args, **kwargs):
        limits.append(current_limit())
        if limits[-1] > 1:
            raise MemoryError("no")
        return conv(*args, **kwargs)

    monkeypatch.setattr(engine, "conv", scarce)
    assert xpconv.conv1d([1, 2, 3], [1, 1]).tolist() == [3, 5]
    assert limits == [64 * 2**20, 1]
    monkeypatch.setattr(engine, "conv", lambda *_, **__: (_ for _ in ()).throw(MemoryError("10 TB asked for")))
    with pytest.raises(MemoryError, match="10 TB asked for"):
        xpconv.conv1d([1, 2, 3], [1, 1])


def test_large_windows_take_no_longer_than_they_must():
    image, kernel = np.ones((200, 200)), np.ones((61, 61))
    spread = xpconv.conv_transpose2d(image, kernel)
    np.testing.assert_allclose(spread, xpconv.conv2d(image, kernel, padding="full"), atol=1e-8)
    np.testing.assert_allclose(xpconv.sum_pool2d(image, 61, stride=1), 61 * 61)


@pytest.mark.parametrize("method", ["auto", "gemm", "direct", "winograd", "fft"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    "view", [lambda o: o, lambda o: o[::-1, :, ::-1], lambda o: np.empty((*o.shape, 2), o.dtype)[..., 1]]
)
def test_a_result_is_written_where_it_is_wanted(method, layout, view):
    rng = np.random.default_rng(0)
    x, w, bias = rng.standard_normal((2, 20, 21, 8)), rng.standard_normal((3, 3, 8, 6)), rng.standard_normal(6)
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    options = {"padding": 1, "layout": layout, "activation": "tanh", "method": method}
    expected = xpconv.corr(x, w, bias, **options)
    out = view(np.full(expected.shape, np.nan))
    assert engine.into(xpconv.corr.request(x, w, bias, out=out, **options))
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    out[...] = np.nan
    assert xpconv.corr(x, w, bias, out=out, **options) is out
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    x[1, 4, 4, 4] = np.nan
    np.testing.assert_array_equal(
        np.isnan(xpconv.corr(x, w, bias, out=out, **options)), np.isnan(xpconv.corr(x, w, bias, **options))
    )


def test_gradients_of_an_axis_without_elements_are_empty_or_zero():
    x, w, gy = np.ones((1, 0, 4, 3)), np.ones((2, 2, 3, 2)), np.ones((1, 1, 3, 2))
    options = {"padding": ((1, 1), (0, 0))}
    assert xpconv.corr(x, w, **options).shape == gy.shape
    assert xpconv.corr_grad_input(gy, w, size=(0, 4), **options).shape == x.shape
    np.testing.assert_array_equal(xpconv.corr_grad_weight(x, gy, window=(2, 2), **options), np.zeros(w.shape))
