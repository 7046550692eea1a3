"""The gradient of the weight in Winograd's domain: all that it takes, against the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpconv
from cases import MODES

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled import gradients, threads, winograd_gradient
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.moves import lanes_of
from xpconv.engines import agnostic
from xpconv.engines import compiled as compiled_calls

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

LIMIT = 1 << 26
BOUND = {"float32": 3e-5, "float64": 1e-13}


def arrays(seed, dtype, batch, size, channels, filters, layout="channels_last", taps=3, **options):
    """x, gy and the spec of the convolution between them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *size, channels)).astype(dtype)
    spec = xpconv.corr2d.request(x, np.empty((taps, taps, channels, filters), dtype), **options).spec
    gy = rng.standard_normal(spec.y_shape).astype(dtype)
    if layout == "channels_first":  # in memory alone
        x, gy = (np.moveaxis(np.moveaxis(a, -1, 1).copy(), 1, -1) for a in (x, gy))
    return x, gy, spec


def compared(x, gy, spec, limit=LIMIT):
    """The gradient, its largest error over the largest value, and the gradient of the definition."""
    gw = winograd_gradient.grad_weight(x, gy, spec, compiled_calls.sources, limit)
    expected = gradients.grad_weight(x.astype("d"), gy.astype("d"), spec, compiled_calls.sources, limit)
    assert gw.dtype == x.dtype
    return gw, np.abs(gw - expected).max() / max(np.abs(expected).max(), 1e-30), expected


@pytest.mark.parametrize("dtype", BOUND)
@given(
    st.integers(0, 99), st.integers(1, 3), st.tuples(st.integers(1, 19), st.integers(1, 19)), st.integers(1, 40),
    st.integers(1, 70), st.tuples(*[st.integers(1, 3)] * 2), st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from(MODES), st.booleans(), st.sampled_from(["channels_last", "channels_first"]),
)  # fmt: skip
@settings(max_examples=60)
def test_gradients_agree_with_the_definition(
    dtype, seed, batch, size, channels, filters, dilation, pads, mode, flip, layout
):
    span = [(n, 2 * d) for n, d in zip(size, dilation, strict=True)]
    pads = [
        min(pad, n - 1) if mode != "zeros" else pad
        for pad, n in zip(pads, (size[0],) * 2 + (size[1],) * 2, strict=True)
    ]
    if any(n + lo + hi <= reach for (n, reach), lo, hi in zip(span, pads[::2], pads[1::2], strict=True)):
        return
    mode = "zeros" if mode == "constant" else mode
    options = {"padding": (tuple(pads[:2]), tuple(pads[2:])), "dilation": dilation, "padding_mode": mode}
    function = xpconv.conv2d if flip else xpconv.corr2d
    x, gy, _ = arrays(seed, dtype, batch, size, channels, filters, layout, **options)
    spec = function.request(x, np.empty((3, 3, channels, filters), dtype), **options).spec
    _, error, _ = compared(x, gy, spec)
    assert error <= BOUND[dtype]


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("batch", "size", "channels", "filters"), [(8, (56, 56), 64, 64), (3, (13, 15), 129, 40)])
def test_several_blocks_and_chunks_add_up_to_the_same_bits_by_any_number_of_threads(
    dtype, batch, size, channels, filters, monkeypatch
):
    x, gy, spec = arrays(0, dtype, batch, size, channels, filters, padding=1)
    gw, error, _ = compared(x, gy, spec)
    assert error <= BOUND[dtype]
    for team in (1, 3):
        monkeypatch.setattr(threads, "thread_count", lambda team=team: team)
        np.testing.assert_array_equal(compared(x, gy, spec)[0], gw)


def test_threads_that_a_half_of_the_limit_has_no_room_for_take_no_part(monkeypatch):
    x, gy, spec = arrays(3, "float32", 8, (28, 28), 32, 32, padding=1)
    everybody, _, _ = compared(x, gy, spec)
    monkeypatch.setattr(threads, "thread_count", lambda: 4)
    limits = range(1 << 18, 1 << 24, 1 << 16)
    limit = next(n for n in limits if winograd_gradient._members("float32", spec, n, 4) == 3)
    taken, run = [], threads.run
    monkeypatch.setattr(threads, "run", lambda *asked: (taken.append(asked[4:]), run(*asked)))
    with xpconv.workspace_limit(limit):
        assert xpconv.explain(xpconv.corr_grad_weight, x, gy, window=3, padding=1).threads == 3
        some = xpconv.corr_grad_weight(x, gy, window=3, padding=1)
    assert (4, 3) in taken
    np.testing.assert_allclose(some, everybody, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_the_engine_takes_it_for_large_layers_and_says_so(layout):
    x, gy, _ = arrays(1, "float32", 8, (28, 28), 64, 64, padding=1)
    if layout == "channels_first":
        x, gy = (np.moveaxis(a, -1, 1).copy() for a in (x, gy))
    options = {"window": 3, "padding": 1, "layout": layout}
    assert xpconv.explain(xpconv.corr_grad_weight, x, gy, **options).method == "winograd"
    assert xpconv.explain(xpconv.corr_grad_weight, x[:1], gy[:1], **options).method == "direct"  # a single block
    gw = xpconv.corr_grad_weight(x, gy, **options)
    expected = xpconv.corr_grad_weight(x.astype("d"), gy.astype("d"), **options)
    assert np.abs(gw - expected).max() <= 3e-5 * np.abs(expected).max()


def test_what_is_not_finite_reaches_the_taps_that_read_it_and_no_others():
    x, gy, spec = arrays(2, "float32", 8, (28, 28), 64, 64, padding=1)
    x[3, 0, 5, 7] = np.nan  # the last row of taps never meets the first row of x under its first results
    gw = xpconv.corr_grad_weight(x, gy, window=3, padding=1)
    with np.errstate(invalid="ignore"):
        expected = agnostic.conv_grad_weight(x, gy, spec)
    np.testing.assert_array_equal(np.isnan(gw), np.isnan(expected))
    assert np.isfinite(gw).any()


def test_what_is_not_taken():
    def takes(channels=64, filters=64, size=(56, 56), limit=LIMIT, **options):
        spec = arrays(0, "float32", 8, size, channels, filters, padding=1, **options)[2]
        return winograd_gradient.members("float32", spec, limit, 2)

    assert takes()
    assert takes(dilation=2)
    assert not takes(stride=2)
    assert not takes(taps=5)
    assert not takes(channels=lanes_of("float32") - 1)
    assert not takes(channels=512, filters=512)  # whose sums no half of the memory holds twice
    assert not takes(size=(4, 4))
    assert not takes(limit=1 << 20)


def test_a_gradient_that_memory_does_not_let_be_turned_is_summed_directly(monkeypatch):
    x, gy, _ = arrays(3, "float32", 8, (28, 28), 64, 64, padding=1)
    x, gy = (np.moveaxis(a, -1, 1).copy() for a in (x, gy))
    asked, winograd = [], compiled_calls.kernels().winograd_grad_weight
    monkeypatch.setattr(
        compiled_calls.kernels(), "winograd_grad_weight", lambda *args: asked.append(args) or winograd(*args)
    )
    expected = xpconv.corr_grad_weight(x, gy, window=3, padding=1, layout="channels_first")
    assert len(asked) == 1
    with xpconv.workspace_limit(4 * gy.nbytes - 1):
        gw = xpconv.corr_grad_weight(x, gy, window=3, padding=1, layout="channels_first")
    assert len(asked) == 1
    np.testing.assert_allclose(gw, expected, atol=3e-5 * np.abs(expected).max())
