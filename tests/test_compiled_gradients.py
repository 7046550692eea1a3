"""The compiled gradients of convolution: of the input phase by phase, of the weight in chunks."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import xpconv
from cases import MODES, integers
from engine_cases import reference

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.activations import LEAK
from xpconv.cpu.address import Told
from xpconv.cpu.compiled import gradients, kernels, threads
from xpconv.cpu.compiled.tile import shape_for
from xpconv.engines import agnostic
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import numpy as engine

if not kernels.are_shared_ready("float32"):
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

LIMIT = 1 << 26
LAYOUTS = ("channels_last", "channels_first")
axis = st.tuples(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)
)


@st.composite
def calls(draw, modes=MODES):
    """Arrays x, w and gy of small integers, the family, and the options: up to 40 channels and filters."""
    size, window, stride, dilation, before, after = zip(*draw(st.lists(axis, min_size=1, max_size=3)), strict=True)
    pads = draw(st.sampled_from(("valid", "same", tuple(zip(before, after, strict=True)))))
    lost = (before, after) if not isinstance(pads, str) else ((0,) * len(size),) * 2
    spans = zip(size, window, dilation, *lost, strict=True)
    assume(pads == "same" or all((m - 1) * d < n + lo + hi for n, m, d, lo, hi in spans))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    per_group, maps = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    assume(groups * max(per_group, maps) <= 40)
    dtype, layout = draw(st.sampled_from(("float32", "float64"))), draw(st.sampled_from(LAYOUTS))
    options = {"stride": stride, "dilation": dilation, "padding": pads, "padding_mode": draw(st.sampled_from(modes))}
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = integers(rng, (draw(st.integers(1, 3)), *size, groups * per_group), dtype)
    w = integers(rng, (*window, per_group, groups * maps), dtype)
    return _in(layout, x, w, draw(st.sampled_from(("conv", "corr"))), options | {"groups": groups})


def _in(layout, x, w, family, options):
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()
    options = {**options, "layout": layout}
    spec = getattr(xpconv, family).request(x, w, **options).spec
    return x, w, integers(np.random.default_rng(7), spec.y_shape, x.dtype), family, options, spec


def input_gradient(gy, w, spec, bias=None, activation=None):
    """By the engine, phase by phase."""
    return engine.conv_grad_input(gy, w, bias, spec, activation=activation)


def weight_gradient(x, gy, spec, limit=LIMIT):
    """In the spec's layout."""
    x, gy = (agnostic.channels_last(a, spec.layout) for a in (x, gy))
    return agnostic.as_weight(gradients.grad_weight(x, gy, spec, compiled_calls.sources, limit), spec)


def assert_near(gx, wanted):
    """Whole numbers, but for the rounding of Winograd's tiles and of spectra."""
    np.testing.assert_allclose(gx, wanted, atol=3e-5 * max(np.abs(wanted).max(initial=1), 1))


def expected(side, first, second, family, options, shape):
    """What the agnostic engine makes of it; sums of small integers are exact in any order."""
    name = {"input": "size", "weight": "window"}[side]
    return reference(getattr(xpconv, f"{family}_grad_{side}"), first, second, **options, **{name: shape})


@given(calls(modes=("zeros",)))
def test_the_input_gradient_is_the_references_bias_and_activation_included(call):
    _, w, gy, family, options, spec = call
    bias = np.arange(spec.channels, dtype=gy.dtype) - 3
    plain = expected("input", gy, w, family, options, spec.size)
    assert_near(input_gradient(gy, w, spec), plain)
    total = agnostic.channels_last(plain, spec.layout) + bias
    finished = agnostic.as_layout(np.maximum(total, 0), spec.layout)
    assert_near(input_gradient(gy, w, spec, bias, "relu"), finished)
    leaking = agnostic.as_layout(np.where(total < 0, LEAK * total, total), spec.layout)
    assert_near(input_gradient(gy, w, spec, bias, "leaky_relu"), leaking)


@given(calls())
def test_the_compiled_weight_gradient_is_the_references(call):
    x, _, gy, family, options, spec = call
    wanted = expected("weight", x, gy, family, options, spec.window)
    np.testing.assert_array_equal(weight_gradient(x, gy, spec), wanted)


@given(calls(modes=("zeros",)))
def test_both_compiled_gradients_are_the_adjoints(call):
    x, w, gy, family, options, spec = call
    product = (reference(getattr(xpconv, family), x, w, **options) * gy).sum(dtype=float)
    assert abs((x * input_gradient(gy, w, spec)).sum(dtype=float) - product) <= 1e-3 * (1 + abs(product))
    assert (w * weight_gradient(x, gy, spec)).sum(dtype=float) == product


LARGE = {
    "chunks": ((3, 61, 58, 20), (3, 3, 20, 33), {"padding": 1}),
    "chunks of many images": ((40, 9, 9, 48), (3, 3, 48, 70), {"padding": "same"}),
    "stride and dilation": ((3, 80, 83, 33), (3, 2, 33, 40), {"stride": (2, 3), "dilation": (3, 2), "padding": 2}),
    "places that no tap reaches": ((2, 50, 64, 24), (2, 1, 24, 40), {"stride": 3}),
    "many panels": ((4, 8, 8, 130), (3, 3, 130, 270), {"padding": ((2, 0), (0, 1))}),
    "groups": ((3, 40, 41, 64), (3, 3, 32, 48), {"groups": 2, "padding_mode": "wrap", "padding": 1}),
    "signal": ((3, 3000, 25), (5, 25, 17), {"stride": 2, "padding": 3, "padding_mode": "reflect"}),
    "volume": ((2, 12, 13, 14, 26), (3, 2, 3, 26, 36), {"padding": 1, "stride": (1, 2, 1)}),
    "wider than a block": ((1, 4, 3000, 30), (2, 3, 30, 9), {}),
}


@pytest.mark.parametrize("family", ["conv", "corr"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LARGE)
def test_large_gradients_are_the_same_by_any_number_of_threads(name, layout, family, monkeypatch):
    x_shape, w_shape, options = LARGE[name]
    rng = np.random.default_rng(5)
    x, w = integers(rng, x_shape, "float32"), integers(rng, w_shape, "float32")
    x, w, gy, family, options, spec = _in(layout, x, w, family, options)
    wanted = expected("weight", x, gy, family, options, spec.window)
    rounded = rng.standard_normal(x.shape, "float32")
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        np.testing.assert_array_equal(weight_gradient(x, gy, spec), wanted)
        results.append(weight_gradient(rounded, gy, spec))
        if spec.padding_mode == "zeros":
            wanted_input = expected("input", gy, w, family, options, spec.size)
            assert_near(input_gradient(gy, w, spec), wanted_input)
    assert all((other == results[0]).all() for other in results[1:])


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[:, ::-1, :, ::-1],
        lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
        lambda a: np.repeat(a, 2, axis=3)[..., ::2],
        lambda a: a.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3),
        lambda a: a.transpose(3, 1, 2, 0).copy().transpose(3, 1, 2, 0),
        lambda a: np.broadcast_to(a[:1, :, :, :1], a.shape),
    ],
)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("filters", [1, 40])
def test_compiled_gradients_read_arrays_of_any_strides(view, padding, filters):
    rng, options = np.random.default_rng(6), {"stride": (1, 2), "padding": padding}
    x, w = view(integers(rng, (5, 30, 21, 20), "float32")), integers(rng, (3, 3, 20, filters), "float32")
    spec = xpconv.corr.request(x, w, **options).spec
    gy = view(integers(rng, spec.y_shape, "float32"))
    wanted = expected("weight", x, gy, "corr", options, spec.window)
    np.testing.assert_array_equal(weight_gradient(x, gy, spec), wanted)
    gx = input_gradient(gy, w[::-1, ::-1], spec)
    assert_near(gx, expected("input", gy, w[::-1, ::-1], "corr", options, spec.size))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["conv", "corr"])
def test_the_weight_gradient_of_many_channels_lies_as_the_weight_does(layout, family):
    x, w = np.ones((2, 20, 20, 32), "float32"), np.ones((3, 3, 32, 40), "float32")
    x, _, gy, *_, spec = _in(layout, x, w, family, {})
    assert weight_gradient(x, gy, spec).flags.c_contiguous


def test_the_weight_gradient_keeps_to_a_limit_of_memory(monkeypatch):
    asked = []
    run = threads.run

    def seen(task, arguments, items, scratch, team):
        asked.append(scratch * team)
        run(task, arguments, items, scratch, team)

    monkeypatch.setattr(threads, "run", seen)
    monkeypatch.setattr(threads, "thread_count", lambda: 4)
    rng, options = np.random.default_rng(8), {"padding": 1}
    x, w = integers(rng, (2, 90, 90, 32), "float32"), np.ones((3, 3, 32, 64), "float32")
    x, w, gy, family, options, spec = _in("channels_last", x, w, "corr", options)
    limit = 1 << 18
    wanted = expected("weight", x, gy, family, options, spec.window)
    np.testing.assert_array_equal(weight_gradient(x, gy, spec, limit), wanted)
    assert max(asked) <= limit // 2
    sums = wanted.nbytes
    job = gradients._job(spec, x.strides, gy.strides, "float32", 4, compiled_calls.sources, limit)
    assert job.chunks * sums <= max(limit // 4, sums)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "filters", "span"), [(7, 3, 4), (5, 16, 5), (33, 7, 16), (1, 1, 1)])
def test_the_last_vector_of_a_total_ends_with_the_gradient(dtype, rows, filters, span):
    compiled = gradients._library(dtype, shape_for(filters, dtype))
    rng, size = np.random.default_rng(0), rows * filters
    memory = integers(rng, size + 64, dtype)  # beyond the gradient it belongs to somebody else
    partial, before = integers(rng, (2, size), dtype), memory.copy()
    arguments = Told(3, (len(partial), rows, filters, span, 0)).of(memory, memory, partial)
    threads.run(compiled.address("total"), arguments, -(-rows // span), 0, 1)
    np.testing.assert_array_equal(memory[:size], before[:size] + partial.sum(axis=0))
    np.testing.assert_array_equal(memory[size:], before[size:])
