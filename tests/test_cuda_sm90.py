"""The Hopper kernel, instance by instance, and the tensor maps that feed it; the emulator stands in for the device."""

import ctypes
from dataclasses import replace
from itertools import product

import ml_dtypes
import numpy as np
import pytest

import oracle
from cases import integers
from cuda_emulator import memory, settings
from cuda_emulator.compiler import why_unavailable
from cuda_emulator.emulated_cupy import real_cupy_answers
from cuda_emulator.module import RawModule
from cuda_emulator.tensor_map_driver import TensorMapDriver
from xpconv.cuda import source, tensor_maps
from xpconv.cuda.geometry import dense, element_strides, forward, input_gradient
from xpconv.cuda.hardware import KNOWN
from xpconv.cuda.plans import sm90
from xpconv.cuda.steps import Unfit, Work
from xpconv.cuda.tensor_maps import EncodingError, TensorMap
from xpconv.spec import conv_spec

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

H200 = next(known for known in KNOWN if known.name == "H200")
# Few multiprocessors, so that a block has several tiles, and little memory, so that the ring goes round.
SMALL = replace(H200, multiprocessors=2, shared_per_block=2 * (128 + 256) * 128 + 40 * 1024)
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}  # the last as TF32
HALVES = ("float16", "bfloat16")


@pytest.fixture(autouse=True)
def emulated_driver(monkeypatch):
    monkeypatch.setattr(tensor_maps, "driver", TensorMapDriver)


# --- Launching --------------------------------------------------------------------------------------------------------


class Array:
    """Device memory with CuPy's way to its address."""

    def __init__(self, values):
        self.values = values
        self.data = type("Pointer", (), {"ptr": values.ctypes.data})()

    @classmethod
    def empty(cls, shape, dtype):
        raw = memory.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize, initialised=False)
        return cls(raw.view(dtype).reshape(shape))

    @classmethod
    def of(cls, values):
        array = cls.empty(values.shape, values.dtype)
        array.values[...] = values
        memory.mark_initialised(array.data.ptr, array.values.nbytes)
        return array

    def __getitem__(self, where):
        return Array(self.values[where])

    @property
    def strides(self):
        return element_strides(self.values)


class Device:
    """Launches steps on the emulator."""

    def __init__(self):
        self.modules = {}

    def module(self, kernel):
        if kernel not in self.modules:
            text = source.text(kernel.file)
            self.modules[kernel] = RawModule(text, options=kernel.options, name_expressions=(kernel.expression,))
        return self.modules[kernel]

    def run(self, work, **arrays):
        for name, nbytes in work.scratch.items():
            arrays[name] = Array.empty((nbytes,), np.uint8)
        for step in work.steps:
            function = self.module(step.kernel).get_function(step.kernel.expression)
            function.max_dynamic_shared_size_bytes = max(step.shared, 48 * 1024)
            arguments = [self.argument(a, arrays) for a in step.arguments]
            function(step.grid, (step.block,), arguments, shared_mem=step.shared)

    @staticmethod
    def argument(argument, arrays):
        if isinstance(argument, str):
            return arrays.get(argument)
        return argument.resolve(arrays[argument.array].data.ptr) if isinstance(argument, TensorMap) else argument


DEVICE = Device()


def launch(g, dtype, *, hardware=SMALL, filters=64, splits=1, **arrays):
    """One geometry with a given tiling."""
    assert sm90.unfit(g, dtype, hardware, x_aligned=True) is None
    direct = sm90.as_it_lies(g, dtype, arrays["w"].data.ptr % 16 == 0)
    work = sm90.launches(g, dtype, sm90.divided(g, dtype, filters, splits), hardware, direct=direct)
    DEVICE.run(work, **arrays)
    return direct


def convolve(spec, x, w, bias=None, *, activation=None, **how):
    """One forward convolution of dense arrays."""
    g = forward(spec, dense(x.shape), dense(w.shape), dense(spec.y_shape), activation=activation)
    y = Array.empty(spec.y_shape, x.dtype)
    bias = None if bias is None else Array.of(bias)
    launch(g, str(x.dtype), x=Array.of(x), w=Array.of(w), bias=bias, y=y, **how)
    assert memory.first_uninitialised(y.data.ptr, y.values.nbytes) is None
    return y.values


def spec_of(x_shape, w_shape, **options):
    ones = (1,) * (len(w_shape) - 2)
    defaults = dict(stride=ones, padding="valid", dilation=ones, groups=1, padding_mode="zeros", flip=True)
    return conv_spec(x_shape, w_shape, name="conv", axes=None, layout="channels_last", **defaults | options)[0]


def expected(spec, x, w, bias=None):
    """The oracle's result in float64."""
    x, w, bias = (None if a is None else a.astype(np.float64) for a in (x, w, bias))
    return oracle.conv_by_taps(
        x, w, bias, flip=spec.flip, stride=spec.stride, dilation=spec.dilation, pads=spec.padding, groups=spec.groups
    )


def drawn(*shapes, dtype="bfloat16"):
    """Small integers, whose sums are exact in any order; None for no array."""
    rng = np.random.default_rng(0)
    return [integers(rng, shape, DTYPES[dtype]) for shape in shapes]


# --- Values -----------------------------------------------------------------------------------------------------------

CASES = {
    "one tile": ((1, 8, 16, 64), (1, 1, 64, 64), {}),
    "ragged positions and filters": ((1, 9, 17, 64), (1, 1, 64, 72), {}),
    "8 channels": ((1, 5, 7, 8), (3, 3, 8, 8), dict(padding="same")),
    "24 channels": ((1, 5, 7, 24), (3, 3, 24, 64), dict(padding="same")),
    "72 channels": ((1, 6, 6, 72), (2, 3, 72, 16), {}),
    "136 channels": ((1, 6, 6, 136), (1, 2, 136, 136), {}),
    "7x7": ((1, 12, 11, 16), (7, 7, 16, 32), dict(padding=((3, 3), (3, 3)))),
    "stride": ((2, 11, 13, 16), (3, 3, 16, 32), dict(stride=(2, 2), padding=((1, 1), (1, 1)))),
    "uneven strides": ((1, 12, 17, 16), (3, 2, 16, 8), dict(stride=(2, 3), padding=((0, 1), (2, 0)))),
    "dilation": ((1, 13, 12, 16), (3, 3, 16, 8), dict(dilation=(2, 3), padding=((2, 2), (3, 1)))),
    "asymmetric padding": ((1, 7, 9, 16), (3, 3, 16, 8), dict(padding=((0, 2), (3, 1)))),
    "padding beyond the window": ((1, 4, 4, 16), (2, 2, 16, 8), dict(padding=((3, 4), (4, 2)))),
    "batch boundaries": ((5, 6, 7, 16), (3, 3, 16, 8), dict(padding="same")),
    "correlation": ((1, 6, 7, 16), (3, 2, 16, 8), dict(flip=False)),
    "1-d": ((3, 70, 16), (5, 16, 24), dict(padding=((4, 1),), stride=(2,))),
    "3-d": ((2, 4, 5, 6, 16), (2, 3, 2, 16, 8), dict(padding=((1, 0), (1, 1), (0, 1)), stride=(2, 1, 2))),
    "groups": ((1, 6, 7, 128), (3, 2, 64, 48), dict(groups=2)),
    "bands of filters": ((1, 15, 20, 8), (1, 1, 8, 648), {}),
}


@pytest.mark.parametrize("order", settings.ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_every_case_is_the_definition(case, order):
    x_shape, w_shape, options = CASES[case]
    spec, (x, w, bias) = spec_of(x_shape, w_shape, **options), drawn(x_shape, w_shape, w_shape[-1:])
    with settings.using(order=order):
        y = convolve(spec, x, w, bias)
    np.testing.assert_array_equal(y, expected(spec, x, w, bias).astype(y.dtype))


@pytest.mark.parametrize(("dtype", "filters", "splits"), list(product(DTYPES, sm90.FILTERS, (1, 3))))
def test_every_instance_computes_tiles_that_are_not_full(dtype, filters, splits):
    x, w, bias = drawn((2, 10, 9, 72), (3, 2, 72, filters + 40), (filters + 40,), dtype=dtype)
    spec = spec_of(x.shape, w.shape, padding=((1, 1), (0, 1)))
    y = convolve(spec, x, w, bias, filters=filters, splits=splits, activation="relu")
    np.testing.assert_array_equal(y, np.maximum(expected(spec, x, w, bias), 0).astype(y.dtype))


@pytest.mark.parametrize("splits", [2, 4, 5])
def test_parts_of_a_sum_may_be_uneven_and_begin_at_any_tap(splits):
    x, w = drawn((1, 5, 7, 24), (3, 3, 24, 64))
    x[0, 1, 2, 3] = np.inf  # which a step beyond the last would read, to multiply it by zeros
    spec = spec_of(x.shape, w.shape)
    with np.errstate(invalid="ignore"):
        right = expected(spec, x, w).astype(x.dtype).astype(np.float64)
    np.testing.assert_array_equal(convolve(spec, x, w, splits=splits).astype(np.float64), right)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("splits", [1, 4])
def test_sums_of_fractions_are_as_good_as_float32(dtype, splits):
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in ((1, 9, 9, 64), (3, 3, 64, 64)))
    spec = spec_of(x.shape, w.shape, padding="same")
    y, right = convolve(spec, x, w, splits=splits).astype(np.float64), expected(spec, x, w)
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]  # half a unit in the last place, relatively
    assert np.all(np.abs(y - right) <= 1.01 * step * np.abs(right) + 1e-5 * np.abs(right).max())


@pytest.mark.parametrize("splits", [1, 4])
def test_tf32_keeps_ten_bits_of_each_factor(splits):
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 9, 9, 32), (3, 3, 32, 32)))
    spec = spec_of(x.shape, w.shape, padding="same")
    error = np.abs(convolve(spec, x, w, splits=splits) - expected(spec, x, w))
    assert np.all(error <= 2 * 2.0**-10 * expected(spec, np.abs(x), np.abs(w)))


def test_the_same_call_gives_the_same_bits():
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal(shape).astype(np.float16) for shape in ((2, 9, 9, 64), (3, 3, 64, 64)))
    spec = spec_of(x.shape, w.shape)
    runs = []
    for order in settings.ORDERS:
        with settings.using(order=order):
            runs.append(convolve(spec, x, w, splits=3))
    assert runs[0].tobytes() == runs[1].tobytes()


@pytest.mark.parametrize("activation", ["leaky_relu", "sigmoid", "tanh", "gelu", "silu"])
def test_activations_follow_the_bias(activation):
    from math import erf

    x, w, bias = drawn((1, 3, 5, 8), (1, 1, 8, 16), (16,), dtype="float16")
    x = x / np.float16(16)
    spec = spec_of(x.shape, w.shape)
    a = expected(spec, x, w, bias)
    right = {
        "leaky_relu": np.where(a < 0, 0.01 * a, a),
        "sigmoid": 1 / (1 + np.exp(-a)),
        "tanh": np.tanh(a),
        "gelu": a * (1 + np.vectorize(erf)(a / 2**0.5)) / 2,
        "silu": a / (1 + np.exp(-a)),
    }[activation]
    y = convolve(spec, x, w, bias, activation=activation)
    np.testing.assert_allclose(y.astype(np.float64), right, rtol=2**-10, atol=1e-6)


# --- Input gradients --------------------------------------------------------------------------------------------------


def gradient(spec, gy, w):
    """sum(conv(x, w) * gy) differentiated by x, one tap after the other, in float64."""
    gy, w = gy.astype(np.float64), w.astype(np.float64)
    gx = np.zeros((spec.batch, *spec.padded_size, spec.channels))
    for k in spec.taps:
        offsets = [oracle.offset_of(a, m, spec.flip) for a, m in zip(k, spec.window, strict=True)]
        axes = zip(offsets, spec.dilation, spec.stride, spec.out_size, strict=True)
        cut = tuple(slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in axes)
        gx[(slice(None), *cut)] += gy @ w[k].T
    cut = tuple(slice(lo, lo + n) for (lo, _), n in zip(spec.padding, spec.size, strict=True))
    return gx[(slice(None), *cut)]


GRADIENTS = {
    "3x3": ((2, 7, 9, 24), (3, 3, 24, 72), dict(padding="same")),
    "cropped": ((1, 9, 8, 16), (2, 3, 16, 64), dict(padding=((3, 2), (2, 4)))),
    "dilation": ((1, 13, 12, 16), (3, 2, 16, 8), dict(dilation=(2, 3), padding=((2, 2), (0, 1)))),
    "stride": ((1, 12, 13, 16), (3, 3, 16, 8), dict(stride=(2, 2), padding=((1, 1), (1, 1)))),
    "uneven strides": ((1, 12, 13, 16), (3, 5, 16, 8), dict(stride=(2, 3), dilation=(1, 2), flip=False)),
    "1-d": ((3, 50, 16), (4, 16, 24), dict(stride=(2,))),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_input_gradients_take_the_weight_as_it_lies(case):
    x_shape, w_shape, options = GRADIENTS[case]
    spec = spec_of(x_shape, w_shape, **options)
    gy, w = drawn(spec.y_shape, w_shape)
    gx = Array.empty(x_shape, gy.dtype)
    for g in input_gradient(spec, dense(gy.shape), dense(w.shape), dense(x_shape)):
        launch(g, "bfloat16", x=Array.of(gy), w=Array.of(w), y=gx)
    np.testing.assert_array_equal(gx.values, gradient(spec, gy, w).astype(gx.values.dtype))


@pytest.mark.parametrize(("dtype", "filters"), list(product(DTYPES, sm90.FILTERS)))
def test_every_instance_for_input_gradients(dtype, filters):
    """The one use of TF32 in which the weight need not be repacked."""
    w_shape = (3, 2, filters + 40, 72)
    spec = spec_of((2, 10, 9, filters + 40), w_shape, padding=((1, 1), (0, 1)))
    gy, w = drawn(spec.y_shape, w_shape, dtype=dtype)
    gx = Array.empty(spec.x_shape, gy.dtype)
    (g,) = input_gradient(spec, dense(gy.shape), dense(w.shape), dense(spec.x_shape))
    assert launch(g, dtype, filters=filters, splits=2, x=Array.of(gy), w=Array.of(w), y=gx)
    np.testing.assert_array_equal(gx.values, gradient(spec, gy, w).astype(gx.values.dtype))


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_arrays_may_be_parts_of_larger_ones():
    wide_x, wide_w = drawn((2, 9, 10, 48), (3, 4, 32, 40))
    x, w, y = Array.of(wide_x)[:, 1:8, ::2, 8:32], Array.of(wide_w)[:, 1:, 8:, 16:], Array.empty((2, 6, 5, 40), "V2")
    y = Array(y.values.view(DTYPES["bfloat16"]))[:, 1:, :3, 8:32]
    spec = spec_of(x.values.shape, w.values.shape)
    assert spec.y_shape == y.values.shape
    launch(forward(spec, x.strides, w.strides, y.strides), "bfloat16", x=x, w=w, y=y)
    np.testing.assert_array_equal(y.values, expected(spec, x.values, w.values).astype(y.values.dtype))


@pytest.mark.parametrize("where", [np.s_[..., 3:11], np.s_[..., ::2]], ids=["unaligned", "strided"])
def test_results_may_lie_where_vectors_cannot_be_stored(where):
    x, w, bias = drawn((1, 4, 5, 8), (2, 2, 8, 8), (8,))
    y = Array.empty((1, 3, 4, 16), x.dtype)[where]
    spec = spec_of(x.shape, w.shape)
    g = forward(spec, dense(x.shape), dense(w.shape), y.strides)
    launch(g, "bfloat16", x=Array.of(x), w=Array.of(w), bias=Array.of(bias), y=y)
    np.testing.assert_array_equal(y.values, expected(spec, x, w, bias).astype(y.values.dtype))


def test_a_weight_may_have_its_terms_dense():
    """The 1x1 weight of a channels-first framework, (F, C), seen as (1, 1, C, F)."""
    x, w = drawn((1, 9, 15, 72), (104, 72))
    spec = spec_of(x.shape, (1, 1, 72, 104))
    y = Array.empty(spec.y_shape, x.dtype)
    g = forward(spec, dense(x.shape), (0, 0, 1, 72), dense(y.values.shape))
    assert launch(g, "bfloat16", x=Array.of(x), w=Array.of(w), y=y)
    np.testing.assert_array_equal(y.values, expected(spec, x, w.T[None, None]).astype(y.values.dtype))


WEIGHTS = {
    "filters that are no multiple of 8": ((3, 2, 40, 21), {}, np.s_[...]),
    "filters that are a multiple of 4": ((3, 2, 40, 20), {}, np.s_[...]),
    "one filter": ((3, 2, 40, 1), {}, np.s_[...]),
    "unaligned": ((3, 2, 41, 32), {}, np.s_[:, :, 1:, 5:29]),
    "channels first": ((64, 40, 3, 2), {}, np.s_[...]),
    "groups": ((3, 2, 64, 10), dict(groups=2), np.s_[...]),
    "groups, channels first": ((10, 64, 3, 2), dict(groups=2), np.s_[...]),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("case", WEIGHTS)
def test_other_weights_are_repacked(case, dtype, splits):
    w_shape, options, cut = WEIGHTS[case]
    (whole,) = drawn(w_shape, dtype=dtype)
    w = Array.of(whole)[cut]
    if "first" in case:
        w = Array(np.transpose(w.values, (2, 3, 1, 0)))
    channels = w.values.shape[2] * options.get("groups", 1)
    x, bias = drawn((2, 7, 8, channels), w.values.shape[3:], dtype=dtype)
    spec = spec_of(x.shape, w.values.shape, padding="same", **options)
    y = Array.empty(spec.y_shape, x.dtype)
    g = forward(spec, dense(x.shape), w.strides, dense(spec.y_shape))
    assert not launch(g, dtype, splits=splits, x=Array.of(x), w=w, bias=Array.of(bias), y=y)
    np.testing.assert_array_equal(y.values, expected(spec, x, w.values, bias).astype(x.dtype))


def test_nan_spreads_no_further_than_its_windows():
    """Beyond a tap's channels lie the next tap's, beyond a group's filters the next group's: neither may be read."""
    x, w = drawn((2, 6, 7, 24), (2, 2, 24, 8))
    x[1, 2, 3, 20], w[1, 0, 5, 3] = np.nan, np.inf
    spec = spec_of(x.shape, w.shape)
    with np.errstate(invalid="ignore"):
        right = expected(spec, x, w).astype(x.dtype).astype(np.float64)
        np.testing.assert_array_equal(convolve(spec, x, w).astype(np.float64), right)
    assert np.isfinite(right).any()


def test_nan_stays_in_its_group():
    x, w = drawn((1, 5, 7, 128), (1, 1, 64, 80))
    x[..., 64:] = np.nan
    spec = spec_of(x.shape, w.shape, groups=2)
    y = convolve(spec, x, w)
    np.testing.assert_array_equal(y[..., :40], expected(spec, x, w)[..., :40].astype(y.dtype))
    assert np.isnan(y[..., 40:]).all()


# --- Through CuPy: a real device where there is one -------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 1 << 28], ids=["whole", "split"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", CASES)
def test_every_case_through_cupy(cupy, case, dtype, limit, monkeypatch):
    from xpconv.cuda import launch

    if real_cupy_answers():
        monkeypatch.undo()  # the driver's own tensor maps
    hardware = launch.hardware(0)
    if not hardware.hopper:
        pytest.skip("not a Hopper device")
    x_shape, w_shape, options = CASES[case]
    spec, arrays = spec_of(x_shape, w_shape, **options), drawn(x_shape, w_shape, w_shape[-1:], dtype=dtype)
    g = forward(spec, dense(x_shape), dense(w_shape), dense(spec.y_shape), activation="relu")
    work = sm90.work(g, dtype, hardware, limit, x_aligned=True, w_aligned=True)
    y = cupy.empty(spec.y_shape, dtype=DTYPES[dtype])
    launch.run(work, dict(zip(("x", "w", "bias"), map(cupy.asarray, arrays), strict=True), y=y))
    np.testing.assert_array_equal(y.get(), np.maximum(expected(spec, *arrays), 0).astype(y.dtype))


# --- Plans and tensor maps --------------------------------------------------------------------------------------------


def planned(x_shape, w_shape, dtype="float16", hardware=H200, aligned=True, limit=1 << 28, x_strides=None, **options):
    spec = spec_of(x_shape, w_shape, **options)
    g = forward(spec, x_strides or dense(x_shape), dense(w_shape), dense(spec.y_shape))
    return sm90.work(g, dtype, hardware, limit, x_aligned=aligned, w_aligned=True)


UNFIT = {
    "float64": dict(dtype="float64"),
    "another device": dict(hardware=next(known for known in KNOWN if known.name == "A100")),
    "the next generation": dict(hardware=next(known for known in KNOWN if known.name == "B200")),
    "x is not aligned": dict(aligned=False),
    "channels that are no multiple of 8": dict(x_shape=(1, 9, 9, 12), w_shape=(3, 3, 12, 64)),
    "no memory to repack the weight": dict(w_shape=(3, 3, 64, 12), limit=1000),
    "a mirrored padding": dict(padding="same", padding_mode="reflect"),
    "small groups": dict(w_shape=(3, 3, 32, 64), groups=2),
    "a large stride": dict(stride=(9, 1)),
    "a far padding": dict(padding=((129, 0), (0, 0))),
    "a far reach": dict(x_shape=(1, 300, 9, 64), dilation=(128, 1)),
    "a negative stride": dict(x_strides=(9 * 9 * 64, -9 * 64, 64, 1)),
    "a broadcast axis": dict(x_strides=(9 * 9 * 64, 0, 64, 1)),
    "a far padding in 3-d": dict(x_shape=(1, 4, 4, 4, 64), w_shape=(1, 1, 1, 64, 64), padding=((17, 0),) * 3),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_the_kernel_does_not_take_is_declined_with_a_reason(case):
    answer = planned(**{"x_shape": (1, 9, 9, 64), "w_shape": (3, 3, 64, 64), **UNFIT[case]})
    assert isinstance(answer, Unfit)
    assert answer.reason


def test_missing_axes_widen_the_limits():
    assert isinstance(planned((1, 5000, 64), (3, 64, 64), padding=((2000, 0),), dilation=(1000,)), Work)
    assert isinstance(planned((1, 1, 5000, 64), (1, 3, 64, 64), padding=((0, 0), (2000, 0))), Work)


LAYERS = {
    "resnet 3x3": ((64, 56, 56, 64), (3, 3, 64, 64), 64, 1),
    "resnet 1x1": ((64, 14, 14, 1024), (1, 1, 1024, 256), None, 1),
    "one image": ((1, 7, 7, 512), (3, 3, 512, 512), None, None),
    "wide": ((64, 28, 28, 512), (3, 3, 512, 512), 256, 1),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_plans_are_legal_and_use_the_device(layer):
    x, w, filters, splits = LAYERS[layer]
    work = planned(x, w, padding="same")
    assert isinstance(work, Work)
    first = work.steps[0]
    assert first.shared <= H200.shared_per_block
    assert first.grid[0] <= H200.multiprocessors
    tiling = first.arguments[-1]
    assert tiling["stages"] >= 3
    assert 2 * first.grid[0] >= H200.multiprocessors or tiling["tiles"] < H200.multiprocessors
    assert filters is None or f",{filters}," in first.kernel.expression
    assert splits is None or (len(work.steps) == 1) == (splits == 1)
    assert first.kernel in sm90.instances((9, 0))
    assert all(step.kernel in sm90.instances((9, 0)) for step in work.steps)


@pytest.mark.parametrize(("channels", "is_wasteful"), [(8, True), (32, True), (40, False), (72, True), (80, False)])
def test_short_channels_leave_most_of_a_step_empty(channels, is_wasteful):
    spec = spec_of((1, 9, 9, channels), (3, 3, channels, 64))
    g = forward(spec, dense(spec.x_shape), dense(spec.w_shape), dense(spec.y_shape))
    assert isinstance(sm90.wasteful(g, "float16"), Unfit) == is_wasteful


def test_few_tiles_are_split_where_scratch_memory_allows():
    x, w, *_ = LAYERS["one image"]
    split, whole = planned(x, w, padding="same"), planned(x, w, padding="same", limit=1)
    assert len(split.steps) == 2
    assert split.plan.workspace == split.scratch["partial"] > 0
    assert len(whole.steps) == 1
    assert whole.plan.workspace == 0


def test_other_devices_have_no_instances():
    assert sm90.instances((8, 0)) == sm90.instances((10, 0)) == []


def map_of(**changes):
    return replace(TensorMap("x", "float16", 0, (64, 8, 8, 2), (64, 512, 4096), (64, 64, 1, 1)), **changes)


def test_a_map_is_128_bytes_that_are_kept():
    tensor_map = map_of()
    encoded = tensor_map.resolve(1 << 20)
    assert encoded.nbytes == 128
    assert encoded is tensor_map.resolve(1 << 20)
    for address in range(0, 1 << 14, 64):
        tensor_map.resolve(address)
    assert encoded.tobytes() == tensor_map.resolve(1 << 20).tobytes()
    assert encoded.tobytes() != map_of(start=8).resolve(1 << 20).tobytes()
    assert map_of(start=8).resolve(1 << 20).tobytes() == map_of().resolve((1 << 20) + 16).tobytes()


def test_what_the_driver_refuses_is_an_error():
    with pytest.raises(EncodingError, match="refuses a tensor map of x"):
        map_of().resolve((1 << 20) + 2)


def test_a_driver_without_tensor_maps_is_an_error(monkeypatch):
    monkeypatch.setattr(tensor_maps, "driver", lambda: ctypes.CDLL(None))
    with pytest.raises(EncodingError, match="no CUDA driver"):
        map_of(start=80).resolve(1 << 20)
