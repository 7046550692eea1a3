"""What calls hold beside their arrays and their result, measured: no more than the workspace limit."""

from functools import partial

import numpy as np
import pytest

import xpconv
import xpconv.signal
from cases import integers
from single_planes import memory_beside_result
from xpconv.cpu import memory
from xpconv.dispatch import run
from xpconv.engines import compiled
from xpconv.engines import numpy as engine
from xpconv.workspace import DEFAULT_LIMIT, current_limit

LIMIT = 4 << 20
OBJECTS = 1 << 16  # bytes of Python's own, which follow no array
MODES = ("zeros", "edge", "reflect", "symmetric", "wrap", "constant")
FIRST = {"layout": "channels_first"}


@pytest.fixture(params=["kernels", "numpy"])
def computed_by(request, monkeypatch):
    """With the compiled kernels, if there are any, and without; nothing is kept for later calls."""
    monkeypatch.setenv("XPCONV_COMPILE", "wait")
    monkeypatch.setattr(memory, "KEPT_BYTES", -1)
    if request.param == "numpy":
        monkeypatch.setattr(compiled, "kernels", lambda: None)


def array(*shape, dtype="float32"):
    return integers(np.random.default_rng(len(shape)), shape, dtype)


def first(a):
    return np.ascontiguousarray(np.moveaxis(a, -1, 1))


X, W, BIAS, SIZE = array(2, 160, 160, 48), array(3, 3, 48, 48), array(48), (160, 160)
W_FIRST = np.ascontiguousarray(W.transpose(3, 2, 0, 1))
HALVED = array(2, 80, 80, 48)
WIDE = array(31, 31, 48, 8)
PLANE, VOLUME = array(3000, 3000), array(2, 24, 64, 64, 32)
same = partial(xpconv.corr, padding="same")

CONVOLUTIONS = {
    f"{mode}, {method}, {layout}": partial(
        same, *((X, W) if layout == "channels_last" else (first(X), W_FIRST)), BIAS, method=method, padding_mode=mode,
        layout=layout, **({"fill_value": 2.0} if mode == "constant" else {}),
    )
    for mode in MODES
    for method in ("auto", "gemm", "winograd", "direct")
    for layout in ("channels_last", "channels_first")
    if mode in ("zeros", "reflect", "constant") or method == "auto"
}  # fmt: skip
CONVOLUTIONS |= {f"{name} in its place": partial(same, X, W, activation=name) for name in ("relu", "gelu", "silu")}
CONVOLUTIONS |= {
    "half precision": partial(same, X.astype("float16"), W.astype("float16")),
    "half precision, channels first": partial(same, first(X.astype("float16")), W_FIRST.astype("float16"), **FIRST),
    "integers": partial(same, X.astype("int32"), W.astype("int32")),
    "integers, tap by tap": partial(same, X.astype("int32"), W.astype("int32"), method="direct"),
    "tap by tap, nothing around": partial(xpconv.corr, X, W, method="direct"),
    "complex numbers": partial(same, X[..., :16].astype("complex64"), W[:, :, :16, :16].astype("complex64")),
    "stride": partial(xpconv.corr, first(X), W_FIRST, padding=1, stride=2, **FIRST),
    "one tap, channels first": partial(xpconv.corr, first(X), W_FIRST[:, :, :1, :1], **FIRST),
    "groups": partial(same, X, W[:, :, :8], groups=6, padding_mode="wrap"),
    "groups, channels first": partial(same, first(X), W_FIRST[:, :8], groups=6, **FIRST),
    "depthwise": partial(same, X, W[:, :, :1], groups=48, padding_mode="reflect"),
    "depthwise, channels first": partial(same, first(X), W_FIRST[:, :1], groups=48, **FIRST),
    "large windows": partial(same, X, WIDE),
    "large windows, reflected": partial(same, X, WIDE, padding_mode="reflect"),
    "large windows of few channels by spectra": partial(same, X[..., :2], array(31, 31, 2, 2), method="fft"),
    "an image, reflected": partial(same, PLANE[None, ..., None], array(5, 5, 1, 1), padding_mode="reflect"),
    "an image, by spectra": partial(same, PLANE[None, ..., None], array(31, 31, 1, 1), padding_mode="edge"),
    "wrapped, as SciPy does": partial(xpconv.signal.convolve, PLANE, array(5, 5), mode="same", boundary="wrap"),
    "planes of a volume": partial(xpconv.signal.convolve, array(30, 512, 512), array(1, 5, 5), mode="same"),
    "volumes": partial(same, VOLUME, array(3, 3, 3, 32, 32), padding_mode="reflect"),
}
CONVOLUTIONS |= {
    f"{name}, {method}, {layout}": partial(
        same, *((x, w) if layout == "channels_last" else (first(x), np.moveaxis(w, (-1, -2), (0, 1)))), method=method,
        layout=layout,
    )
    for name, x, w in (
        ("long rows", array(1, 16, 3000, 32), array(3, 3, 32, 32)),
        ("large planes", array(1, 6, 200, 200, 32), array(3, 3, 3, 32, 32)),
    )
    for method in ("auto", "winograd", "direct")
    for layout in ("channels_last", "channels_first")
}  # fmt: skip

CONVOLUTIONS["large planes, depthwise"] = partial(
    same, array(1, 6, 200, 200, 32), array(3, 3, 3, 1, 32), groups=32
)  # fmt: skip

input_gradient = partial(xpconv.corr_grad_input, size=SIZE)
weight_gradient = partial(xpconv.corr_grad_weight, X, window=(3, 3), padding="same")
GRADIENTS = {
    "input": partial(input_gradient, X, W, padding="same"),
    "input, channels first": partial(input_gradient, first(X), W_FIRST, padding="same", **FIRST),
    "input, half precision": partial(input_gradient, X.astype("float16"), W.astype("float16"), padding="same"),
    "input, stride": partial(input_gradient, HALVED, W, padding=1, stride=2),
    "input, stride, channels first": partial(input_gradient, first(HALVED), W_FIRST, padding=1, stride=2, **FIRST),
    "input, large windows": partial(input_gradient, X[..., :8], WIDE, padding="same"),
    "transposed": partial(xpconv.corr_transpose, HALVED, array(4, 4, 48, 48), stride=2, padding=1),
    "weight": partial(weight_gradient, X),
    "weight, half precision": partial(
        xpconv.corr_grad_weight, X.astype("float16"), X.astype("float16"), window=(3, 3), padding="same"
    ),
    "weight, reflected": partial(weight_gradient, X, padding_mode="reflect"),
    "weight, depthwise": partial(weight_gradient, X, groups=48),
    "weight, groups": partial(weight_gradient, X, groups=6),
    "weight, channels first": partial(
        xpconv.corr_grad_weight, first(X), first(X), window=(3, 3), padding="same", **FIRST
    ),
    "weight, volumes": partial(xpconv.corr_grad_weight, VOLUME, VOLUME, window=(3, 3, 3), padding="same"),
    "weight, volumes, channels first": partial(
        xpconv.corr_grad_weight, first(VOLUME), first(VOLUME), window=(3, 3, 3), padding="same", **FIRST
    ),
}
GRADIENTS |= {
    f"input, {mode}": partial(input_gradient, X, W, padding="same", padding_mode=mode)
    for mode in ("edge", "reflect", "symmetric", "wrap")
}

HALF = X.astype("float16")
LARGEST, INDICES = xpconv.max_pool(X, 2, return_indices=True)
POOLINGS = {
    f"{pool.__name__} {window}, {stride}": partial(pool, X, window, stride=stride)
    for pool in (xpconv.max_pool, xpconv.avg_pool, xpconv.lp_pool)
    for window, stride in ((2, 2), (3, 1), (15, 1))
}
POOLINGS |= {
    f"{pool.__name__} of {name}": partial(pool, x, 3, stride=2, padding=1, **options)
    for pool in (xpconv.max_pool, xpconv.avg_pool, xpconv.lp_pool)
    for name, x, options in (("half precision", HALF, {}), ("channels first", first(X), FIRST))
}
POOLINGS |= {
    "maxima with indices": partial(xpconv.max_pool, X, 3, stride=2, return_indices=True),
    "gradient of maxima": partial(xpconv.max_pool_grad, LARGEST, INDICES, size=SIZE),
    "gradient of means": partial(xpconv.avg_pool_grad, HALVED, 3, stride=2, padding=1, size=SIZE),
    "means of half precision": partial(xpconv.global_avg_pool, HALF),
    "adaptive means": partial(xpconv.adaptive_avg_pool, X, (7, 7)),
    "patches": partial(xpconv.unfold, X, 3, padding=1),
    "patches added up": partial(xpconv.fold, xpconv.unfold(X[..., :12], 3, padding=1), size=SIZE, window=3, padding=1),
}

CALLS = CONVOLUTIONS | GRADIENTS | POOLINGS


@pytest.mark.usefixtures("computed_by")
@pytest.mark.parametrize("name", CALLS)
def test_no_call_holds_more_than_the_limit(name):
    with xpconv.workspace_limit(LIMIT):
        assert memory_beside_result(CALLS[name]) <= LIMIT + OBJECTS


@pytest.mark.parametrize("into", [False, True])
def test_a_call_that_finds_no_memory_tries_the_smallest_tiles(into, monkeypatch):
    convolved, limits = engine._convolved, []

    def without_memory(*arguments, **options):
        limits.append(current_limit())
        if len(limits) == 1:
            raise MemoryError
        return convolved(*arguments, **options)

    x, w = array(1, 40, 40, 8), array(3, 3, 8, 8)
    expected = xpconv.corr(x, w)
    out = np.zeros_like(expected) if into else None
    monkeypatch.setattr(engine, "_convolved", without_memory)
    found = run(xpconv.corr.request(x, w, out=out))
    assert limits == [DEFAULT_LIMIT, 1]
    assert found is out or not into
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("computed_by")
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_a_weight_is_transformed_within_the_limit(layout):
    """Beside a copy of it, and what is kept of it for later calls."""
    x, w = array(1, 14, 14, 256), array(3, 3, 256, 256)
    if layout == "channels_first":
        x, w = first(x), np.ascontiguousarray(w.transpose(3, 2, 0, 1))
    convolve, kept = partial(xpconv.conv2d, x, w, padding=1, method="winograd", layout=layout), 36 * 256 * 256 * 4

    def call():
        w[..., 0] += 1
        return convolve()

    with xpconv.workspace_limit(LIMIT):
        assert memory_beside_result(call) <= LIMIT + w.nbytes + kept + OBJECTS


PLANES, HALVES = first(array(2, 160, 160, 64)), first(array(2, 160, 160, 64).astype("float16"))
APART = {  # what lies, or is wanted, in no way that it is computed in
    "1x1, planes between others": partial(
        xpconv.corr, PLANES[:, :, ::2, ::2], array(48, 64, 1, 1), method="gemm", **FIRST
    ),
    "1x1, planes of half precision": partial(
        xpconv.corr, HALVES, array(48, 64, 1, 1).astype("float16"), method="gemm", **FIRST
    ),
    "gradient of means, stride 3": partial(
        xpconv.avg_pool_grad, first(array(2, 40, 40, 48)), 3, stride=3, size=(120, 120), **FIRST
    ),
    "gradient of means, large stride": partial(
        xpconv.avg_pool_grad, first(array(2, 80, 80, 48)), 4, stride=4, size=(320, 320), **FIRST
    ),
}


@pytest.mark.usefixtures("computed_by")
@pytest.mark.parametrize("case", APART)
def test_what_lies_apart_keeps_to_the_limit(case):
    with xpconv.workspace_limit(LIMIT):
        assert memory_beside_result(APART[case]) <= LIMIT + OBJECTS


@pytest.mark.usefixtures("computed_by")
def test_a_result_that_is_wanted_between_others_keeps_to_the_limit():
    out = np.zeros((*X.shape[:3], 96), np.float32)[..., ::2]

    def call():
        same(X, W, out=out)
        return out[:0]  # which is not made

    with xpconv.workspace_limit(LIMIT):
        assert memory_beside_result(call) <= LIMIT + OBJECTS
    np.testing.assert_allclose(out, same(X, W), atol=3e-5 * np.abs(out).max())
