"""The kernel of first layers: every dtype, tiles that are not full, both layouts."""

import math
from dataclasses import replace

import ml_dtypes  # noqa: F401  NumPy's bfloat16
import numpy as np
import pytest

import oracle
from cases import first, integers, weight_first
from xpconv.cuda import hardware
from xpconv.cuda.geometry import dense, element_strides, forward
from xpconv.cuda.plans import stem
from xpconv.cuda.steps import Unfit, Work
from xpconv.spec import conv_spec

H200 = next(known for known in hardware.KNOWN if known.name == "H200")
ONE = replace(H200, multiprocessors=1)  # so few blocks that each makes several tiles
LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "channels_first"])


def spec_of(x, w, layout="channels_last", **options):
    n = len(x) - 2
    defaults = dict(stride=(1,) * n, padding="same", dilation=(1,) * n, groups=1, padding_mode="zeros", flip=True)
    return conv_spec(x, w, name="conv", axes=None, layout=layout, **defaults | options)[0]


def last(y, layout):
    return y if layout == "channels_last" else np.moveaxis(y, 1, -1)


def launched(cupy, spec, x, w, bias, device=ONE, fill=b"", activation=None):
    from xpconv.cuda import launch

    own_x, own_w = (a if type(a) is cupy.ndarray else cupy.asarray(a) for a in (x, w))
    own_bias = None if bias is None else cupy.asarray(bias)
    g = forward(
        spec, element_strides(own_x), element_strides(own_w), dense(spec.y_shape), fill=fill, activation=activation
    )
    work = stem.work(g, np.dtype(own_x.dtype).name, device)
    assert isinstance(work, Work), work.reason
    assert work.steps[0].kernel in stem.instances((9, 0))
    y = cupy.empty(spec.y_shape, dtype=own_x.dtype)
    launch.run(work, {"x": own_x, "w": own_w, "bias": own_bias, "y": y})
    return last(y.get(), spec.layout)


def check(cupy, size, window, channels, filters, *, layout="channels_last", dtype="float32", batch=2, mode="zeros",
          with_bias=True, device=ONE, **geometry):  # fmt: skip
    rng, n = np.random.default_rng(0), len(size)
    x, w = integers(rng, (batch, *size, channels), dtype), integers(rng, (*window, channels, filters), dtype)
    bias = integers(rng, (filters,), dtype) if with_bias else None
    ones, zeros = (1,) * n, [(0, 0)] * n
    geometry = dict(stride=ones, dilation=ones, pads=[(m // 2, m // 2) for m in window], flip=True) | geometry
    padded = oracle.padded(x.astype("f8"), geometry["pads"], mode, 3)
    added = 0 if bias is None else bias.astype("f8")
    expected = oracle.conv_by_taps(padded, w.astype("f8"), added, groups=1, **geometry | dict(pads=zeros))
    if layout == "channels_first":
        x, w = np.ascontiguousarray(first(x)), np.ascontiguousarray(weight_first(w))
    geometry["padding"] = tuple(geometry.pop("pads"))
    spec = spec_of(x.shape, w.shape, layout, padding_mode=mode, **geometry)
    fill = np.asarray(3, dtype).tobytes() if mode == "constant" else b""
    np.testing.assert_array_equal(launched(cupy, spec, x, w, bias, device, fill), expected.astype(dtype))


# --- Results ----------------------------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("dtype", stem.DTYPES)
@pytest.mark.parametrize("filters", [20, 67])
def test_every_dtype(cupy, layout, dtype, filters):
    check(cupy, (11, 13), (3, 3), 3, filters, layout=layout, dtype=dtype)


@LAYOUTS
@pytest.mark.parametrize(
    ("size", "window", "channels", "filters", "stride"),
    [
        ((28, 28), (5, 5), 1, 6, (1, 1)),  # LeNet
        ((23, 37), (7, 7), 3, 64, (2, 2)),  # ResNet
        ((17, 19), (3, 3), 3, 32, (1, 1)),  # VGG
        ((32, 32), (16, 16), 3, 72, (16, 16)),  # patches of a transformer
        ((3, 90), (1, 9), 4, 4, (3, 1)),
        ((1, 1), (1, 1), 2, 5, (1, 1)),
    ],
)
def test_first_layers(cupy, layout, size, window, channels, filters, stride):
    check(cupy, size, window, channels, filters, layout=layout, stride=stride)
    check(cupy, size, window, channels, filters, layout=layout, stride=stride, with_bias=False, flip=False, device=H200)


@LAYOUTS
@pytest.mark.parametrize("size", [(300,), (5, 6, 7)])
def test_one_and_three_axes(cupy, layout, size):
    n = len(size)
    check(cupy, size, (3, 2, 3)[:n], 2, 9, layout=layout, dilation=(2, 1, 2)[:n])


@LAYOUTS
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
def test_padding_wider_than_the_axis(cupy, layout, mode):
    check(cupy, (3, 4), (3, 2), 3, 8, layout=layout, mode=mode, pads=[(5, 2), (0, 9)])


@LAYOUTS
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda a: np.maximum(a, 0)),
        ("leaky_relu", lambda a: np.where(a < 0, 0.01 * a, a)),
        ("sigmoid", lambda a: np.tanh(a / 2) / 2 + 0.5),
        ("tanh", np.tanh),
        ("silu", lambda a: a * (np.tanh(a / 2) / 2 + 0.5)),
    ],
)
def test_activations(cupy, layout, activation, function):
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 9, 14, 2), "float32"), integers(rng, (3, 3, 2, 20), "float32")
    bias = integers(rng, (20,), "float32")
    geometry = dict(stride=(1, 1), dilation=(1, 1), pads=[(1, 1), (1, 1)], flip=True, groups=1)
    expected = function(oracle.conv_by_taps(x, w, bias, **geometry).astype("f8"))
    if layout == "channels_first":
        x, w = np.ascontiguousarray(first(x)), np.ascontiguousarray(weight_first(w))
    y = launched(cupy, spec_of(x.shape, w.shape, layout), x, w, bias, activation=activation)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-5)


def test_memory_too_small_for_all_filters_at_once(cupy):
    small = replace(ONE, shared_per_block=12 * 1024, shared_per_multiprocessor=24 * 1024)
    check(cupy, (12, 13), (5, 5), 3, 64, device=small)
    check(cupy, (12, 13), (3, 3), 3, 64, device=small, dilation=(3, 4), stride=(3, 2))
    spec = spec_of((1, 40, 40, 4), (31, 31, 4, 8))
    g = forward(spec, dense(spec.x_shape), dense(spec.w_shape), dense(spec.y_shape))
    assert isinstance(stem.work(g, "float32", small), Unfit)


@LAYOUTS
@pytest.mark.parametrize("dtype", stem.DTYPES)
def test_64_bit_offsets(cupy, layout, dtype, monkeypatch):
    monkeypatch.setattr(stem, "MOST", 1000)
    monkeypatch.setattr(stem, "unfit", lambda *_: None)
    check(cupy, (9, 10), (3, 3), 3, 8, layout=layout, dtype=dtype)


@pytest.mark.parametrize("cut", [np.s_[:, ::-1], np.s_[:, :, ::-2], np.s_[..., 1::2], np.s_[..., ::-1]])
def test_views_are_read_where_they_lie(cupy, cut):
    rng = np.random.default_rng(0)
    whole = integers(rng, (2, 9, 10, 4), "float32")
    x = whole[cut]
    w = integers(rng, (3, 3, x.shape[-1], 12), "float32")
    pads = [(1, 1), (1, 1)]
    expected = oracle.conv_by_taps(x, w, None, flip=True, stride=(1, 1), dilation=(1, 1), pads=pads, groups=1)
    y = launched(cupy, spec_of(x.shape, w.shape), cupy.asarray(whole)[cut], w, None)
    np.testing.assert_array_equal(y, expected)


@LAYOUTS
def test_values_that_are_not_finite_stay_in_their_windows(cupy, layout):
    x, w = np.ones((2, 9, 14, 3), "float32"), np.ones((3, 3, 3, 8), "float32")
    x[0, 4, 5, 1], x[1, 8, 13, 2] = np.nan, np.inf
    pads = [(1, 1), (1, 1)]
    with np.errstate(invalid="ignore"):
        expected = oracle.conv_by_taps(x, w, None, flip=True, stride=(1, 1), dilation=(1, 1), pads=pads, groups=1)
    if layout == "channels_first":
        x, w = np.ascontiguousarray(first(x)), np.ascontiguousarray(weight_first(w))
    np.testing.assert_array_equal(launched(cupy, spec_of(x.shape, w.shape, layout), x, w, None), expected)


# --- Plans ------------------------------------------------------------------------------------------------------------

LAYERS = {
    "resnet": ((64, 224, 224, 3), (7, 7, 3, 64), dict(stride=(2, 2))),
    "vgg": ((32, 224, 224, 3), (3, 3, 3, 64), {}),
    "lenet": ((256, 28, 28, 1), (5, 5, 1, 6), {}),
    "patchify": ((64, 224, 224, 3), (16, 16, 3, 768), dict(stride=(16, 16), padding="valid")),
    "audio": ((8, 1, 480_000, 1), (1, 400, 1, 80), dict(stride=(1, 160))),
    "volume": ((2, 64, 128, 128, 1), (3, 3, 3, 1, 32), {}),
}


@pytest.mark.parametrize("device", hardware.KNOWN, ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", stem.DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
def test_plans_are_legal_on_every_device(device, dtype, layer):
    x, w, options = LAYERS[layer]
    spec = spec_of(x, w, **options)
    g = forward(spec, dense(x), dense(w), dense(spec.y_shape))
    work = stem.work(g, dtype, device)
    if isinstance(work, Unfit):
        assert layer == "patchify"  # 768 terms, where memory is small
        return
    (step,) = work.steps
    assert step.block <= 128
    assert step.block % 32 == 0
    assert step.shared <= device.shared_per_block
    assert 0 < step.grid[0] <= hardware.GRID_X
    tile = step.arguments[4]
    assert tile["lanes_p"] * tile["lanes_f"] <= step.block
    assert tile["tiles"] * tile["height"] * tile["width"] >= g.positions
    assert math.prod((int(tile["lanes_p"]), 8)) >= tile["height"] * tile["width"]


def test_what_it_does_not_take():
    cases = [((1, 9, 9, 5), (3, 3, 5, 8), 1), ((1, 9, 9, 4), (3, 3, 2, 8), 2), ((1, 9, 9, 1), (3, 3, 1, 3), 1)]
    for x, w, groups in cases:
        spec = spec_of(x, w, groups=groups)
        assert isinstance(stem.work(forward(spec, dense(x), dense(w), dense(spec.y_shape)), "float32", H200), Unfit)
    spec = spec_of((1, 9, 9, 3), (3, 3, 3, 8))
    g = forward(spec, dense(spec.x_shape), dense(spec.w_shape), dense(spec.y_shape))
    assert isinstance(stem.work(g, "int32", H200), Unfit)
