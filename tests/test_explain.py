"""`explain` says what a call would do, and the call does it."""

import importlib

import numpy as np
import pytest

import xpconv
from xpconv.cpu.plan import conv_plan, row_bytes
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import methods
from xpconv.engines import numpy as engine
from xpconv.spec import conv_spec

LAYER = np.zeros((2, 28, 28, 16), np.float32), np.zeros((3, 3, 16, 32), np.float32)


def spec_of(x_shape, w_shape, **options):
    defaults = dict(stride=(1, 1), padding="valid", dilation=(1, 1), groups=1, padding_mode="zeros")
    fixed = dict(name="conv", axes=None, flip=True, layout="channels_last")
    return conv_spec(x_shape, w_shape, **fixed, **defaults | options)[0]


def test_an_explanation_counts_operations_and_bytes():
    plan = xpconv.explain(xpconv.conv2d, *LAYER, padding=1)
    assert plan.engine == "numpy"
    assert plan.operations == 2 * 9 * 16 * 32 * 2 * 28 * 28
    assert plan.bytes_moved == 4 * (2 * 28 * 28 * 16 + 9 * 16 * 32 + 2 * 28 * 28 * 32)
    assert str(plan).splitlines()[0] == "conv on the numpy engine"
    assert f"operations  {plan.operations:,}" in str(plan)


@pytest.mark.parametrize("method", ["direct", "gemm", "winograd", "fft"])
def test_the_method_explained_is_the_method_run(method, monkeypatch):
    ran = []
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)  # those are told by their tile, and tested with it
    for name, algorithm in methods.ALGORITHMS.items():
        monkeypatch.setitem(
            methods.ALGORITHMS, name, lambda *args, name=name, run=algorithm: (ran.append(name), run(*args))[1]
        )
    assert xpconv.explain(xpconv.conv2d, *LAYER, method=method).method == method
    xpconv.conv2d(*LAYER, method=method)
    assert ran == [method]


def test_auto_takes_patches_for_few_channels_taps_for_depthwise_and_spectra_for_large_windows(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)  # which methods NumPy itself has
    image = np.zeros((512, 512), np.float32)
    stem = np.zeros((1, 224, 224, 3), np.float32), np.zeros((7, 7, 3, 64), np.float32)
    assert xpconv.explain(xpconv.conv2d, *stem, stride=2, padding=3).method == "gemm"
    depthwise = np.zeros((3, 3, 1, 16), np.float32)
    assert xpconv.explain(xpconv.conv2d, LAYER[0], depthwise, groups=16).method == "direct"
    assert xpconv.explain(xpconv.conv2d, image, image[:101, :101]).method == "fft"
    assert xpconv.explain(xpconv.conv2d, image.astype(int), image[:101, :101].astype(int)).method != "fft"


def test_explaining_computes_nothing(monkeypatch):
    monkeypatch.setattr(engine, "conv", None)
    assert xpconv.explain(xpconv.conv2d, *LAYER, method="gemm").method == "gemm"


def test_what_an_engine_leaves_to_the_reference_is_said():
    strict = pytest.importorskip("array_api_strict")
    assert xpconv.explain(xpconv.conv2d, strict.ones((1, 8, 8, 2)), strict.ones((3, 3, 2, 2))).engine == "agnostic"
    assert xpconv.explain(xpconv.adaptive_max_pool, np.ones((1, 8, 8, 2)), (2, 2)).engine == "agnostic"


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_library_with_its_own_operators_runs_them_and_leaves_the_rest(library):
    pytest.importorskip(library, reason=f"{library} is not installed")
    array = importlib.import_module({"jax": "jax.numpy"}.get(library, library)).ones
    x, w = array((1, 8, 8, 2)), array((3, 3, 2, 4))
    for function, *arguments in ((xpconv.conv2d, x, w), (xpconv.max_pool2d, x, 2), (xpconv.avg_pool2d, x, 2)):
        assert xpconv.explain(function, *arguments).engine == library
        assert xpconv.explain(function, *arguments).method == "native"
    assert xpconv.explain(xpconv.unfold, x, (3, 3)).engine == "agnostic"
    assert xpconv.explain(xpconv.max_pool2d, x, 2, dilation=2, padding=1, ceil_mode=True).engine == "agnostic"


def test_explain_works_for_every_kind_of_operation():
    x, w = LAYER
    gy = np.zeros((2, 26, 26, 32), np.float32)
    products = 2 * 9 * 16 * 32 * 2 * 26 * 26
    assert xpconv.explain(xpconv.corr, x, w).operations == products
    assert xpconv.explain(xpconv.conv_grad_input, gy, w, size=(28, 28)).operations == products
    assert xpconv.explain(xpconv.signal.convolve, x[0, :, :, 0], w[:, :, 0, 0], "valid").operations == 2 * 9 * 26 * 26
    pooling = xpconv.explain(xpconv.max_pool2d, x, 2)
    assert pooling.operations == 2 * 28 * 28 * 16
    assert pooling.bytes_moved == 4 * (2 * 28 * 28 * 16 + 2 * 14 * 14 * 16)
    whole = xpconv.explain(xpconv.global_avg_pool, x)
    assert whole.operations is None
    assert "operations  not told" in str(whole)
    assert xpconv.explain(xpconv.conv2d, x.astype(complex), w).bytes_moved == 16 * (x.size + w.size + gy.size)


def test_gradients_tell_their_tiles_and_methods_and_who_computes_groups(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)
    x, gy = LAYER[0], np.zeros((2, 26, 26, 32), np.float32)
    with xpconv.workspace_limit(10**6):
        plan = xpconv.explain(xpconv.conv_grad_weight, x, gy, window=(3, 3))
    assert (plan.engine, plan.method) == ("numpy", "gemm")
    assert 0 < plan.workspace <= 10**6
    wide = xpconv.explain(xpconv.conv_transpose2d, np.ones((200, 200)), np.ones((61, 61)))
    assert (wide.operation, wide.method) == ("conv_grad_input", "fft")
    image, window = np.ones((1, 200, 200, 1)), (61, 61)
    assert xpconv.explain(xpconv.conv_grad_weight, image, image[:, :140, :140], window=window).method == "fft"
    grouped = xpconv.explain(xpconv.conv_grad_weight, x, gy, window=(3, 3), groups=2)
    assert grouped.engine == xpconv.explain(xpconv.max_pool2d, x, 2, return_indices=True).engine == "agnostic"


def test_the_errors_of_a_call_are_those_of_its_explanation():
    with pytest.raises(ValueError, match="x has 16 channels but w reads 8"):
        xpconv.explain(xpconv.conv2d, LAYER[0], LAYER[1][:, :, :8])


def test_the_plan_keeps_tiles_within_the_limit():
    spec, weight = spec_of((8, 56, 56, 64), (3, 3, 64, 64)), 9 * 64 * 64 * 4
    for limit in (2**20, 2**24, 2**28):
        plan = conv_plan(spec, 4, True, "gemm", limit)
        assert plan.workspace - weight <= max(limit, row_bytes(spec, 4))


def test_small_work_is_explained_as_one_threads():
    present = compiled_calls.kernels()
    if present is None or not present.takes("float32", xpconv.conv2d.request(*LAYER).spec, 1 << 26).filters:
        pytest.skip("the kernels are not here: NumPy decides")
    x, w = LAYER
    many = present.thread_count()
    assert xpconv.explain(xpconv.conv2d, x, w).threads == many
    assert xpconv.explain(xpconv.conv2d, x[:1, :5, :5], w).threads == 1
    assert xpconv.explain(xpconv.max_pool2d, x[:1, :9, :9], 2).threads == 1
    assert xpconv.explain(xpconv.max_pool2d, np.concatenate([x] * 9), 2).threads == many
    assert f"threads     {many}" in str(xpconv.explain(xpconv.conv2d, x, w))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_constant_around_the_input_changes_no_plan_of_its_gradient(stride):
    gy, w = np.ones((2, 30 // stride, 30 // stride, 24), np.float32), np.ones((3, 3, 16, 24), np.float32)
    options = {"size": 30, "padding": 1, "stride": stride}
    zeros, constant = (
        xpconv.explain(xpconv.corr_grad_input, gy, w, padding_mode=mode, **options) for mode in ("zeros", "constant")
    )
    assert (constant.method, constant.tile, constant.reason) == (zeros.method, zeros.tile, zeros.reason)
