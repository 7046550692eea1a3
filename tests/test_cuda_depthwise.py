"""The kernels of convolutions with one channel a group: both forms, every dtype, every way to take a window."""

from dataclasses import dataclass, field, replace
from itertools import product

import ml_dtypes  # noqa: F401  NumPy's bfloat16
import numpy as np
import pytest

import oracle
from cases import first, integers, weight_first
from xpconv.cuda import hardware
from xpconv.cuda.geometry import Geometry, dense, element_strides, forward, input_gradient
from xpconv.cuda.kernels import ELEMENTS
from xpconv.cuda.plans import depthwise
from xpconv.cuda.steps import Unfit, Work
from xpconv.spec import conv_spec

H200 = next(known for known in hardware.KNOWN if known.name == "H200")
ONE = replace(H200, multiprocessors=1)  # large tiles, also where the problem is small
LAST, FIRST = "channels_last", "channels_first"
EXACT = tuple(ELEMENTS)


def wide(array):
    """Small integers in a type that sums them exactly."""
    kind = {"c": np.complex128, "i": np.int64, "u": np.int64}.get(array.dtype.kind, np.float64)
    return array.astype(kind)


@dataclass
class Case:
    """One call, in channels-last terms."""

    size: tuple
    window: tuple
    channels: int = 3
    multiplier: int = 1
    batch: int = 2
    dtype: str = "float32"
    layout: str = LAST
    mode: str = "zeros"
    activation: str | None = None
    bias: bool = True
    flip: bool = True
    options: dict = field(default_factory=dict)  # stride, dilation, pads

    @property
    def geometry(self):
        ones = (1,) * len(self.size)
        return dict(stride=ones, dilation=ones, pads=[(m // 2, m // 2) for m in self.window]) | self.options

    def arrays(self):
        rng = np.random.default_rng(0)
        filters = self.channels * self.multiplier
        x = integers(rng, (self.batch, *self.size, self.channels), self.dtype)
        w = integers(rng, (*self.window, 1, filters), self.dtype)
        return x, w, integers(rng, (filters,), self.dtype) if self.bias else None

    def expected(self, x, w, bias):
        geometry = self.geometry
        padded = oracle.padded(wide(x), geometry["pads"], self.mode, 3)
        geometry["pads"] = [(0, 0)] * len(self.size)
        bias = 0 if bias is None else wide(bias)
        y = oracle.conv_by_taps(padded, wide(w), bias, flip=self.flip, groups=self.channels, **geometry)
        y = y.astype(self.dtype)
        return np.maximum(y, 0) if self.activation == "relu" else y

    def spec(self, x, w):
        stride, dilation, pads = self.geometry.values()
        return conv_spec(
            x.shape, w.shape, name="conv", axes=None, flip=self.flip, stride=stride, padding=tuple(pads),
            dilation=dilation, groups=self.channels, padding_mode=self.mode, layout=self.layout,
        )[0]  # fmt: skip


def laid(case, x, w):
    """The arrays as the layout has them."""
    if case.layout == LAST:
        return x, w
    return np.ascontiguousarray(first(x)), np.ascontiguousarray(weight_first(w))


def last(array, layout):
    return array if layout == LAST else np.moveaxis(array, 1, -1)


def run(cupy, work, shape, dtype, **arrays):
    from xpconv.cuda import launch

    assert isinstance(work, Work), work.reason
    y = cupy.empty(shape, dtype=dtype)
    launch.run(work, arrays | {"y": y})
    return y.get()


def check(cupy, case, device=ONE, aligned=True, kernel=""):
    x, w, bias = case.arrays()
    expected = case.expected(x, w, bias)
    x, w = laid(case, x, w)
    spec = case.spec(x, w)
    fill = np.asarray(3, case.dtype).tobytes() if case.mode == "constant" else b""
    geometry = forward(spec, dense(x.shape), dense(w.shape), dense(spec.y_shape), fill=fill, activation=case.activation)
    work = depthwise.work(geometry, case.dtype, device, aligned=aligned)
    assert isinstance(work, Work)
    assert kernel in work.steps[0].kernel.expression
    assert work.steps[0].kernel in depthwise.instances((9, 0))
    bias = None if bias is None else cupy.asarray(bias)
    y = run(cupy, work, spec.y_shape, case.dtype, x=cupy.asarray(x), w=cupy.asarray(w), bias=bias)
    np.testing.assert_array_equal(last(y, case.layout), expected)


def kernel(case, *words):
    form = "channels" if case.layout == LAST and case.channels >= depthwise.FEW_CHANNELS else "positions"
    return f"conv_depthwise_{form}<{','.join((ELEMENTS[depthwise.signed(case.dtype)], *map(str, words)))}"


# --- Every dtype, every instance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_every_dtype_in_both_forms(cupy, layout, dtype):
    check(cupy, Case((5, 11), (3, 3), channels=12, dtype=dtype, layout=layout))


@pytest.mark.parametrize("vector", [4, 1])
@pytest.mark.parametrize(("taps", "width"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (7, 7), (9, 3), (13, 3)])
def test_channels_take_a_row_of_taps_in_pieces(cupy, taps, width, vector):
    case = Case((3, 17), (2, taps), channels=20, multiplier=1 if vector == 4 else 2)
    width = width if vector == 4 else min(width, 3)
    check(cupy, case, kernel=kernel(case, vector, width))


@pytest.mark.parametrize(("channels", "vector"), [(37, 1), (148, 4)])
def test_channels_that_do_not_fill_the_last_block(cupy, channels, vector):
    case = Case((3, 9), (1, 3), channels=channels)
    check(cupy, case, aligned=vector > 1, kernel=kernel(case, vector, 3))


@pytest.mark.parametrize("height", [5, 1])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 6, 7, 11])
def test_positions_slide_over_a_row_of_taps(cupy, taps, height):
    case = Case((height, 19), (min(height, 3), taps), layout=FIRST)
    check(cupy, case, kernel=kernel(case, 4 if height > 2 else 1, "true"))


@pytest.mark.parametrize("options", [dict(stride=(2, 2)), dict(dilation=(3, 2)), dict(stride=(3, 1), dilation=(1, 3))])
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_steps_other_than_one(cupy, layout, options):
    case = Case((9, 13), (3, 3), channels=8, layout=layout, options=dict(stride=(1, 1), dilation=(1, 1)) | options)
    words = (4,) if layout == LAST else (4, "false")
    check(cupy, case, kernel=kernel(case, *words))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_padding_wider_than_the_axis(cupy, layout, mode):
    options = dict(pads=[(5, 2), (0, 9)])
    check(cupy, Case((3, 4), (3, 2), channels=8, layout=layout, mode=mode, options=options))
    check(cupy, Case((1, 4), (2, 3), channels=8, layout=layout, mode=mode, options=options))


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_one_and_three_axes(cupy, layout, axes):
    check(cupy, Case((4, 3, 6)[:axes], (3, 2, 3)[:axes], channels=9, layout=layout, activation="relu"))


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16"])
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_multipliers_biases_and_activations(cupy, layout, multiplier, dtype):
    case = Case((4, 6), (3, 3), channels=8, multiplier=multiplier, layout=layout, dtype=dtype, activation="relu")
    check(cupy, case)
    check(cupy, replace(case, bias=False, activation=None, flip=False))


def test_an_activation_that_calls_a_function(cupy):
    for layout in (LAST, FIRST):
        case = Case((4, 6), (3, 3), channels=8, layout=layout)
        x, w, bias = case.arrays()
        expected = np.tanh(case.expected(x, w, bias))
        x, w = laid(case, x, w)
        spec = case.spec(x, w)
        geometry = forward(spec, dense(x.shape), dense(w.shape), dense(spec.y_shape), activation="tanh")
        work = depthwise.work(geometry, "float32", ONE, aligned=True)
        y = run(cupy, work, spec.y_shape, "float32", x=cupy.asarray(x), w=cupy.asarray(w), bias=cupy.asarray(bias))
        np.testing.assert_allclose(last(y, layout), expected, rtol=1e-6)


# --- Tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (17, 66), (1, 300), (70, 3)])
def test_single_channel_images_of_any_size(cupy, size):
    check(cupy, Case(size, (3, 3), channels=1, batch=1))


def test_many_small_planes_share_a_block(cupy):
    check(cupy, Case((7, 7), (3, 3), channels=37, batch=3, layout=FIRST))


def test_a_large_window_is_taken_in_pieces(cupy):
    small = replace(ONE, shared_per_block=8 * 1024)
    check(cupy, Case((20, 24), (21, 23), channels=1, batch=1), device=small)
    check(cupy, Case((30, 24), (7, 6), channels=1, batch=1, options=dict(dilation=(4, 5), pads=[(12, 12), (13, 12)])),
          device=small)  # fmt: skip
    check(cupy, Case((1500,), (1201,), channels=1, batch=1), device=small)


def test_windows_that_leave_most_of_x_out_are_gathered(cupy):
    case = Case((20, 30), (1, 2), channels=1, options=dict(stride=(5, 7), pads=[(0, 0), (1, 1)]))
    check(cupy, case, kernel="conv_depthwise_channels<float,1,1")


@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_64_bit_offsets(cupy, layout, monkeypatch):
    monkeypatch.setattr(depthwise, "MOST", 1000)
    monkeypatch.setattr(depthwise, "unfit", lambda _: None)
    check(
        cupy,
        Case((6, 9), (3, 3), channels=8, batch=3, layout=layout),
        kernel=("channels", "positions")[layout == FIRST],
    )


@pytest.mark.parametrize("dtype", [name for name in EXACT if depthwise.signed(name) == name])
def test_every_instance_of_a_dtype(cupy, dtype, monkeypatch):
    launched, exact = set(), depthwise.unfit
    for far, layout, aligned in product((False, True), (LAST, FIRST), (True, False)):
        monkeypatch.setattr(depthwise, "MOST", 1000 if far else 2**31 - 1)
        monkeypatch.setattr(depthwise, "unfit", (lambda _: None) if far else exact)
        for taps, height, mode, stride in product((1, 3, 5, 7), (5, 1), ("zeros", "edge"), (1, 2)):
            if mode == "edge" and (taps, stride) != (3, 1):
                continue
            case = Case((height, 12), (1, taps), channels=8, batch=3, dtype=dtype, layout=layout, mode=mode,
                        options=dict(stride=(1, stride)))  # fmt: skip
            geometry = geometry_of(case)
            work = depthwise.work(geometry, dtype, ONE, aligned=aligned)
            gradient = depthwise.gradient_work(geometry, dtype, ONE, aligned=aligned, limit=1 << 26)
            fresh = {step.kernel.expression for step in (*work.steps, *gradient.steps)} - launched
            if fresh:
                check(cupy, case, aligned=aligned)
                check_gradient(cupy, case, device=ONE, aligned=aligned)
                launched |= fresh
    own = tuple(ELEMENTS[dtype] + end for end in ",>")
    names = {kernel.expression for kernel in depthwise.instances((9, 0))}
    every = {name for name in names if name.partition("<")[2].startswith(own)}
    assert every - launched == set()


def geometry_of(case):
    x, w, _ = case.arrays()
    x, w = laid(case, x, w)
    spec = case.spec(x, w)
    return forward(spec, dense(x.shape), dense(w.shape), dense(spec.y_shape))


# --- Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [np.s_[:, ::-1, ::2], np.s_[..., 1::2], np.s_[..., ::-1]])
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_views_are_read_where_they_lie(cupy, layout, cut):
    case = Case((6, 8), (3, 3), channels=16, layout=layout)
    x, w, _ = case.arrays()
    (x, w), flat = laid(case, x, w), (slice(None),) * 3
    x, w = x[cut], (w[..., : x[cut].shape[-1]] if layout == LAST else w[: x[cut].shape[1]])
    case = replace(case, channels=x.shape[1] if layout == FIRST else x.shape[-1])
    expected = case.expected(last(x, layout), w if layout == LAST else np.transpose(w, (2, 3, 1, 0)), None)
    base = cupy.asarray(np.array(x.base if x.base is not None else x))
    view = base.reshape(x.base.shape)[cut] if x.base is not None else base
    assert flat
    spec = case.spec(x, w)
    geometry = forward(spec, element_strides(view), dense(w.shape), dense(spec.y_shape))
    work = depthwise.work(geometry, "float32", ONE, aligned=False)
    y = run(cupy, work, spec.y_shape, "float32", x=view, w=cupy.asarray(np.ascontiguousarray(w)), bias=None)
    np.testing.assert_array_equal(last(y, layout), expected)


@pytest.mark.parametrize(("layout", "channels"), [(LAST, 8), (LAST, 9), (FIRST, 2)])
@pytest.mark.parametrize("taps", [3, 6, 31])
def test_values_that_are_not_finite_stay_in_their_windows(cupy, layout, channels, taps):
    case = Case((3, 40), (2, taps), channels=channels, layout=layout, bias=False, flip=False)
    x, w, _ = case.arrays()
    w[...] = 1
    x[0, 1, 17, 1], x[1, 0, 39, 0] = np.nan, np.inf
    expected = case.expected(x, w, None)
    x, w = laid(case, x, w)
    spec = case.spec(x, w)
    geometry = forward(spec, dense(x.shape), dense(w.shape), dense(spec.y_shape))
    work = depthwise.work(geometry, "float32", ONE, aligned=True)
    y = run(cupy, work, spec.y_shape, "float32", x=cupy.asarray(x), w=cupy.asarray(w), bias=None)
    np.testing.assert_array_equal(last(y, layout), expected)


# --- Gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [LAST, FIRST])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3), (4, 1)])
def test_the_input_gradient_is_the_same_kernels(cupy, layout, stride):
    from xpconv.cuda import launch

    case = Case((9, 10), (3, 2), channels=8, layout=layout, options=dict(stride=stride, pads=[(1, 0), (0, 2)]))
    x, w, _ = case.arrays()
    rng = np.random.default_rng(1)
    x, w = laid(case, x, w)
    spec = case.spec(x, w)
    gy = integers(rng, spec.y_shape, np.float32)
    gx = cupy.empty(spec.x_shape, dtype=np.float32)
    arrays = {"x": cupy.asarray(gy), "w": cupy.asarray(w), "y": gx}
    for phase in input_gradient(spec, dense(spec.y_shape), dense(w.shape), dense(spec.x_shape)):
        work = depthwise.work(phase, "float32", ONE, aligned=True)
        assert isinstance(work, Work)
        launch.run(work, arrays)
    y_of = lambda x: case.expected(last(x, layout), last_weight(w, layout), None)  # noqa: E731
    probe = integers(rng, spec.x_shape, np.float32)
    assert np.sum(last(gy, layout) * y_of(probe)) == np.sum(gx.get() * probe)


def last_weight(w, layout):
    return w if layout == LAST else np.transpose(w, (*range(2, w.ndim), 1, 0))


def weight_gradient(case, x, gy):
    """By its definition; `gy` channels last."""
    stride, dilation, pads = case.geometry.values()
    xs = np.repeat(oracle.padded(wide(x), pads, case.mode), case.multiplier, axis=-1)
    gw = np.zeros((*case.window, 1, gy.shape[-1]), wide(x).dtype)
    for k in product(*map(range, case.window)):
        offset = [oracle.offset_of(a, m, case.flip) * d for a, m, d in zip(k, case.window, dilation, strict=True)]
        cut = [slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, gy.shape[1:-1], stride, strict=True)]
        gw[(*k, 0)] = np.sum(xs[(slice(None), *cut)] * wide(gy), axis=tuple(range(gy.ndim - 1)))
    return gw.astype(case.dtype)


def check_gradient(cupy, case, device=H200, limit=1 << 26, splits=None, aligned=True):
    x, w, _ = case.arrays()
    x_laid, w_laid = laid(case, x, w)
    spec = case.spec(x_laid, w_laid)
    gy = integers(np.random.default_rng(1), spec.y_shape, case.dtype)
    expected = weight_gradient(case, x, last(gy, case.layout))
    g = forward(spec, dense(x_laid.shape), dense(spec.w_shape), dense(spec.y_shape))
    work = depthwise.gradient_work(g, case.dtype, device, aligned=aligned, limit=limit)
    assert isinstance(work, Work)
    assert all(step.kernel in depthwise.instances((9, 0)) for step in work.steps)
    assert splits is None or work.steps[0].grid[1] == splits
    gw = run(cupy, work, spec.w_shape, case.dtype, x=cupy.asarray(x_laid), w=cupy.asarray(gy))
    np.testing.assert_array_equal(last_weight(gw, case.layout), expected)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_the_weight_gradient_of_every_dtype(cupy, layout, dtype):
    check_gradient(cupy, Case((4, 5), (3, 3), channels=12, dtype=dtype, layout=layout))


@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_the_weight_gradient_of_many_splits_taps_and_steps(cupy, layout):
    check_gradient(cupy, Case((40, 40), (3, 3), channels=8, layout=layout))
    check_gradient(cupy, Case((8, 9), (5, 4), channels=9, multiplier=2, layout=layout))
    steps = dict(stride=(2, 1), dilation=(1, 2), pads=[(1, 0), (3, 1)])
    check_gradient(cupy, Case((8, 9), (3, 2), channels=8, layout=layout, flip=False, options=steps))
    check_gradient(cupy, Case((40, 40), (3, 3), channels=8, layout=layout), limit=9 * 8 * 4, splits=1)
    check_gradient(cupy, Case((3, 4, 5), (2, 3, 2), channels=1, layout=layout))
    check_gradient(cupy, Case((30,), (11,), channels=8, layout=layout))


def test_the_weight_gradient_of_more_splits_than_are_added_up_at_a_time(cupy):
    check_gradient(cupy, Case((46, 47), (3, 1), channels=64), splits=33)


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_the_weight_gradient_of_padding_that_repeats_x(cupy, layout, mode):
    check_gradient(
        cupy, Case((4, 5), (3, 4), channels=8, layout=layout, mode=mode, options=dict(pads=[(6, 1), (2, 7)]))
    )


# --- Plans ------------------------------------------------------------------------------------------------------------

LAYERS = {
    "mobilenet": ((64, 56, 56, 144), (3, 3, 1, 144), {}),
    "efficientnet": ((64, 7, 7, 1152), (5, 5, 1, 1152), {}),
    "strided": ((8, 112, 112, 96), (3, 3, 1, 96), dict(stride=(2, 2))),
    "large kernel": ((8, 56, 56, 96), (31, 31, 1, 96), {}),
    "image": ((1, 4096, 4096, 1), (31, 31, 1, 1), {}),
    "signal": ((1, 1, 1 << 24, 1), (1, 1001, 1, 1), {}),
    "atrous": ((1, 512, 512, 3), (3, 3, 1, 3), dict(dilation=(48, 96))),
}


@pytest.mark.parametrize("device", hardware.KNOWN, ids=lambda device: device.name)
@pytest.mark.parametrize("layout", [LAST, FIRST])
@pytest.mark.parametrize("layer", LAYERS)
def test_plans_are_legal_on_every_device(device, layout, layer):
    x, w, options = LAYERS[layer]
    if layout == FIRST:
        x, w = (x[0], x[3], *x[1:3]), (w[3], 1, *w[:2])
    spec = conv_spec(
        x, w, name="conv", axes=None, flip=True, padding="same", groups=w[-1 if layout == LAST else 0],
        padding_mode="zeros", layout=layout, **dict(stride=(1, 1), dilation=(1, 1)) | options,
    )[0]  # fmt: skip
    g = forward(spec, dense(x), dense(w), dense(spec.y_shape))
    for dtype in ("float16", "float32", "complex128", "int8"):
        works = (
            depthwise.work(g, dtype, device, aligned=True),
            depthwise.gradient_work(g, dtype, device, aligned=True, limit=1 << 26),
        )
        for work in works:
            assert isinstance(work, Work)
            assert sum(work.scratch.values()) <= 1 << 26
            for step in work.steps:
                assert step.kernel in depthwise.instances(device.capability)
                assert step.block in (64, 96, 128, 160, 192, 224, 256, 32)
                assert step.shared <= device.shared_per_block
                assert 0 < step.grid[0] <= hardware.GRID_X
                assert 0 < step.grid[1] <= hardware.GRID_YZ


def test_groups_of_several_channels_are_declined():
    spec = conv_spec(
        (1, 5, 5, 4), (3, 3, 2, 4), name="conv", axes=None, flip=True, stride=(1, 1), padding="valid",
        dilation=(1, 1), groups=2, padding_mode="zeros", layout=LAST,
    )[0]  # fmt: skip
    g: Geometry = forward(spec, dense(spec.x_shape), dense(spec.w_shape), dense(spec.y_shape))
    assert isinstance(depthwise.work(g, "float32", H200, aligned=True), Unfit)
