"""The result's dtype, and the precision in which sums are kept."""

import array_api_compat.numpy
import ml_dtypes
import numpy as np
import pytest

import xpconv
from xpconv import dispatch

NUMERIC = [
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
INTEGERS = [name for name in NUMERIC if "int" in name]


TORCH_HAS_NO_ARITHMETIC = ("uint16", "uint32", "uint64")


def arrays(lib, dtype, values):
    """The values in that dtype; skips where the library has none or cannot compute with it."""
    if lib.name == "torch" and dtype in TORCH_HAS_NO_ARITHMETIC:
        pytest.skip(f"torch has no arithmetic for {dtype}")
    if lib.name == "strict" and dtype == "float16":
        pytest.skip("array_api_strict has no 16-bit floats")
    return lib.array(np.array(values).astype(dtype))


@pytest.mark.parametrize("dtype", NUMERIC)
def test_every_numeric_dtype_is_kept(lib, dtype):
    x, w = arrays(lib, dtype, [0, 1, 2, 0, 1, 2]), arrays(lib, dtype, [2, 1])
    y = xpconv.conv1d(x, w)
    assert y.dtype == x.dtype
    assert lib.read(y).tolist() == [2, 5, 2, 2, 5]
    gx = xpconv.conv_grad_input(y[None, :, None], w[:, None, None], size=6)
    gw = xpconv.conv_grad_weight(x[None, :, None], y[None, :, None], window=2)
    assert gx.dtype == gw.dtype == x.dtype
    assert lib.read(gx).ravel().tolist() == [2, 9, 12, 6, 9, 10]
    assert lib.read(gw).ravel().tolist() == [24, 14]


@pytest.mark.parametrize("dtype", NUMERIC)
def test_pooling_keeps_the_dtype_but_for_means_of_integers(lib, dtype):
    x = arrays(lib, dtype, range(6))
    if "complex" in dtype:
        with pytest.raises(TypeError, match=f"max_pool1d needs an order, .*{dtype} has none"):
            xpconv.max_pool1d(x, 2)
    else:
        for pool, expected in ((xpconv.max_pool1d, [1, 3, 5]), (xpconv.min_pool1d, [0, 2, 4])):
            assert pool(x, 2).dtype == x.dtype
            assert lib.read(pool(x, 2)).tolist() == expected
    assert lib.read(xpconv.sum_pool1d(x, 2)).tolist() == [1, 5, 9]
    mean = xpconv.avg_pool1d(x, 2)
    assert lib.read(mean).tolist() == [0.5, 2.5, 4.5]
    assert mean.dtype == x.dtype or "int" in dtype
    norm = lib.read(xpconv.lp_pool1d(x, 2, p=1))
    assert norm.dtype.kind == "f"
    np.testing.assert_allclose(norm, [1, 5, 9], rtol=1e-3)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_exact_and_wrap_as_numpys_do(lib, dtype):
    limits = np.iinfo(dtype)
    x, w = arrays(lib, dtype, [limits.max, limits.max]), arrays(lib, dtype, [3, 1])
    with np.errstate(over="ignore"):
        expected = np.convolve(np.array([limits.max] * 2, dtype), np.array([3, 1], dtype), "valid")
    assert lib.read(xpconv.conv1d(x, w)).tolist() == expected.tolist()


def test_what_torch_cannot_compute_with_is_said_so():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.ones(3, dtype=torch.uint16)
    with pytest.raises(TypeError, match=r"conv1d does not take torch.uint16 \(x\): torch has no arithmetic for it"):
        xpconv.conv1d(x, x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_floats_accumulate_in_single_precision(lib, dtype):
    ones = np.ones(4096, np.float32)
    own = lib.array(ones)
    if lib.name == "torch":
        own = own.to(getattr(lib.namespace, dtype))
    elif lib.name.startswith("jax"):
        own = own.astype(dtype)
    elif lib.name == "strict":
        pytest.skip("array_api_strict has no 16-bit floats")
    else:
        own = own.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    y = xpconv.conv1d(own, own)  # 4096 ones: summed in 16 bits it would stop at 2048, or 256
    assert y.dtype == own.dtype
    assert float(y[0]) == 4096
    assert float(xpconv.sum_pool1d(own, 4096)[0]) == 4096
    assert float(xpconv.avg_pool1d(own, 4096)[0]) == 1
    weight = xpconv.conv_grad_weight(own[None, :, None], own[None, :, None], window=1)
    assert float(weight[0, 0, 0]) == 4096


def test_an_image_of_bytes_times_a_float_kernel_is_float(lib):
    y = lib.call(xpconv.conv1d, np.array([250, 10], np.uint8), np.array([1, 1], np.float32))
    assert y.dtype == np.float32
    assert y.tolist() == [260]


@pytest.mark.parametrize("dtype", ["int32", np.int32])
def test_a_wider_result_is_accumulated_in_its_own_dtype(dtype):
    x, w = np.array([250, 10], np.uint8), np.array([-100, 100], np.int8)
    y = xpconv.conv1d(x, w, dtype=dtype)
    assert y.dtype == np.int32
    assert y.tolist() == [250 * 100 - 10 * 100]
    assert xpconv.conv1d(x, w).dtype == np.int16


def test_a_narrower_result_is_refused():
    with pytest.raises(
        TypeError, match="dtype=float32 cannot hold what conv1d makes of these inputs, which is float64"
    ):
        xpconv.conv1d([1.0, 2.0], [1.0], dtype="float32")
    with pytest.raises(TypeError, match="dtype='decimal' is not a numeric dtype that numpy has here; conv1d needs one"):
        xpconv.conv1d([1.0, 2.0], [1.0], dtype="decimal")
    with pytest.raises(TypeError, match="dtype=bool cannot hold what conv1d makes of these inputs, which is int64"):
        xpconv.conv1d([1, 2], [1], dtype="bool")


def test_a_bias_may_lose_digits_but_not_its_kind():
    y = xpconv.conv1d(np.ones(2, np.float32), np.ones(1, np.float32), 0.5)
    assert y.dtype == np.float32
    assert y.tolist() == [1.5, 1.5]
    with pytest.raises(TypeError, match="bias is float64 but the result of conv1d is int64, which cannot hold it"):
        xpconv.conv1d([1, 2], [1], 0.5)


def test_bytes_in_the_other_order_are_read_and_come_back_in_the_machines():
    x = np.arange(4).astype(">f4")
    y = xpconv.conv1d(x, np.ones(2, "<f4"))
    assert y.dtype == np.float32
    assert y.dtype.isnative
    assert y.tolist() == [1, 3, 5]


def test_a_spectrum_of_integers_is_rounded_back_exactly(lib):
    if lib.name == "torch" or lib.name.startswith("jax"):
        pytest.skip(f"the {lib.name} engine has no fft for conv")
    rng = np.random.default_rng(0)
    x, w = rng.integers(-(2**15), 2**15, 300).astype(np.int32), rng.integers(-999, 999, 50).astype(np.int32)
    assert lib.call(xpconv.conv1d, x, w, method="fft").tolist() == np.convolve(x, w, "valid").tolist()


@pytest.mark.parametrize(("dtype", "name"), [(float, "float64"), ("f8", "float64"), (complex, "complex128")])
def test_dtype_takes_pythons_and_numpys_spellings(lib, dtype, name):
    y = lib.call(xpconv.conv1d, np.ones(3, np.float32), np.ones(1, np.float32), dtype=dtype)
    assert y.dtype == name


def test_numpys_bfloat16_is_taken_as_dtype_and_as_input():
    x = np.ones(3, ml_dtypes.bfloat16)
    assert xpconv.conv1d(x, x[:1]).dtype == ml_dtypes.bfloat16
    assert xpconv.conv1d(x, np.ones(1, np.float32)).dtype == np.float32


def test_floats_without_a_common_dtype_are_refused(monkeypatch):
    """As NumPy's float16 and bfloat16 were before ml_dtypes 0.7."""

    def none(*_):
        raise TypeError("no common dtype")

    dispatch._result_dtype.cache_clear()
    monkeypatch.setattr(array_api_compat.numpy, "result_type", none)
    with pytest.raises(TypeError, match="float16 and float32 have no common dtype; cast one of them"):
        xpconv.conv1d(np.ones(3, np.float16), np.ones(1, np.float32))


def test_the_fill_value_is_rounded_to_the_inputs_dtype(lib):
    x, w = np.zeros(1, np.float32), np.array([1.0, 0.0])
    y = lib.call(xpconv.conv1d, x, w, padding=((0, 1),), padding_mode="constant", fill_value=0.1)
    assert y.tolist() == [float(np.float32(0.1))]


def test_jax_without_64_bits_says_so():
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    with pytest.raises(TypeError, match=r"dtype='float64' is not a numeric dtype that jax\.numpy has here"):
        xpconv.conv1d(jnp.ones(3), jnp.ones(1), dtype="float64")


def test_a_result_in_sixteen_bits_may_be_asked_for():
    x, w = np.ones(4, np.float16), np.ones(2, np.float16)
    assert xpconv.conv1d(x, w, dtype="float16").dtype == np.float16
    assert xpconv.conv1d(x.astype(np.int8), w.astype(np.int8), dtype=np.float16).dtype == np.float16
    with pytest.raises(TypeError, match="cannot hold"):
        xpconv.conv1d(x.astype(np.float32), w, dtype="float16")
