"""Compiled Winograd: all that it takes, against the definition, and what it does to values that are not finite."""

import threading
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from kernel_calls import by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu import winograd as transforms
from xpconv.cpu.compiled import blocks, call, kernels, threads, winograd, winograd_tables, winograd_tiles
from xpconv.cpu.compiled.build import machine
from xpconv.cpu.compiled.kept import Kept
from xpconv.cpu.plan import Compiled, conv_plan
from xpconv.workspace import DEFAULT_LIMIT

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

BOUND = {"float32": 3e-5, "float64": 1e-13}
MODES = ("zeros", "constant", "edge", "reflect", "symmetric", "wrap")
LAYOUTS = ("channels_last", "channels_first")


compiled = partial(by_kernels, "winograd")


def exact(function, *arrays, **options):
    """By the definition, in float64."""
    return function(*(a.astype(np.float64) for a in arrays), method="gemm", **options)


def assert_near(function, *arrays, **options):
    y, expected = compiled(function, *arrays, **options), exact(function, *arrays, **options)
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= BOUND[y.dtype.name] * np.abs(expected).max()


def normal(seed, *shapes, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def in_layout(layout, x, w):
    if layout == "channels_last":
        return x, w
    return np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()


pads = st.tuples(st.integers(0, 3), st.integers(0, 3))
TAPS = st.sampled_from((3, 3, 4, 5))  # of a window, along an axis of images


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)), st.tuples(pads, pads), st.sampled_from(MODES),
    st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(1, 40), st.integers(1, 70), st.integers(1, 5),
    st.sampled_from(LAYOUTS), st.sampled_from([xpconv.corr, xpconv.conv]), st.sampled_from(sorted(BOUND)), TAPS,
)  # fmt: skip
def test_images_of_any_geometry(size, padding, mode, dilation, channels, filters, batch, layout, function, dtype, taps):
    padding = tuple(
        (before, max(after, (taps - 1) * d + 1 - n - before))
        for n, d, (before, after) in zip(size, dilation, padding, strict=True)
    )
    x, w, bias = normal(
        channels * 100 + filters, (batch, *size, channels), (taps, taps, channels, filters), (filters,), dtype=dtype
    )
    x, w = in_layout(layout, x, w)
    options = {"padding": padding, "padding_mode": mode, "dilation": dilation, "layout": layout}
    options["fill_value"] = 2.5 if mode == "constant" else 0
    assert_near(function, x, w, bias, **options)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 13), st.integers(1, 13)), st.tuples(pads, pads, pads),
    st.sampled_from(MODES), st.integers(1, 4), st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 20),
    st.integers(1, 40), st.integers(1, 3), st.sampled_from(LAYOUTS), st.sampled_from([xpconv.corr, xpconv.conv]), TAPS,
)  # fmt: skip
def test_volumes_of_any_geometry(size, padding, mode, deep, dilation, channels, filters, batch, layout, function, taps):
    window = (deep, taps, taps)
    padding = tuple(
        (before, max(after, (m - 1) * d + 1 - n - before))
        for n, m, d, (before, after) in zip(size, window, dilation, padding, strict=True)
    )
    x, w = normal(channels * 100 + filters, (batch, *size, channels), (*window, channels, filters))
    x, w = in_layout(layout, x, w)
    assert_near(function, x, w, padding=padding, padding_mode=mode, dilation=dilation, layout=layout)


@given(
    st.integers(1, 60), pads, st.sampled_from(MODES), st.integers(3, 12), st.integers(1, 3), st.integers(1, 40),
    st.integers(1, 70), st.integers(1, 5), st.sampled_from(LAYOUTS), st.sampled_from([xpconv.corr, xpconv.conv]),
    st.sampled_from(sorted(BOUND)),
)  # fmt: skip
def test_signals_of_any_geometry(
    size, padding, mode, window, dilation, channels, filters, batch, layout, function, dtype
):
    before, after = padding
    padding = ((before, max(after, (window - 1) * dilation + 1 - size - before)),)
    x, w, bias = normal(
        channels * 100 + filters, (batch, size, channels), (window, channels, filters), (filters,), dtype=dtype
    )
    x, w = in_layout(layout, x, w)
    options = {"padding": padding, "padding_mode": mode, "dilation": dilation, "layout": layout}
    options["fill_value"] = 2.5 if mode == "constant" else 0
    assert_near(function, x, w, bias, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("size", "window", "channels", "filters", "batch", "dilation"),
    [(4096, 9, 128, 128, 1, 1), (5000, 4, 24, 33, 3, 2), (29, 15, 512, 96, 9, 1), (100, 3, 512, 512, 2, 1),
     (3, 7, 40, 64, 50, 1), (2, 3, 16, 24, 3, 3), (1000, 12, 300, 8, 2, 40)],
)  # fmt: skip
def test_blocks_cover_long_and_many_signals_once(size, window, channels, filters, batch, dilation, layout):
    x, w = normal(11, (batch, size, channels), (window, channels, filters))
    x, w = in_layout(layout, x, w)
    assert_near(xpconv.corr, x, w, padding="same", dilation=dilation, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("size", "channels", "filters", "batch", "dilation"),
    [((61, 83), 24, 33, 3, 1), ((56, 56), 64, 64, 2, 1), ((57, 50), 64, 64, 1, 1), ((7, 7), 512, 96, 9, 1),
        ((7, 7), 512, 64, 1, 1), ((14, 14), 256, 256, 1, 1),
     ((40, 45), 64, 48, 2, (3, 2)), ((20, 33, 30), 16, 24, 2, 1), ((150, 200), 40, 8, 1, (1, 5))],
)  # fmt: skip
@pytest.mark.parametrize("taps", [3, 4, 5])
def test_blocks_cover_a_large_result_once(size, channels, filters, batch, dilation, layout, taps):
    x, w = normal(1, (batch, *size, channels), (*(taps,) * len(size), channels, filters))
    x, w = in_layout(layout, x, w)
    assert_near(xpconv.corr, x, w, padding="same", dilation=dilation, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("size", "channels", "filters", "dilation"), [((7, 7), 512, 512, 1), ((5, 9), 520, 300, 1), ((7, 6), 700, 200, 2)]
)
def test_few_tiles_of_a_large_weight_are_small(size, channels, filters, dilation, layout):
    x, w = normal(16, (1, *size, channels), (3, 3, channels, filters))
    spec = xpconv.corr.request(x, w, padding="same", dilation=dilation).spec
    assert transforms.compiled_for(spec) is transforms.F2
    assert transforms.compiled_for(replace(spec, batch=8)) is transforms.F4
    x, w = in_layout(layout, x, w)
    assert_near(xpconv.corr, x, w, padding="same", dilation=dilation, layout=layout)


def test_one_weight_of_tiles_of_both_sizes_is_kept_apart():
    x, w = normal(17, (8, 7, 7, 512), (3, 3, 512, 512))
    for batch in (1, 8, 1):
        assert_near(xpconv.corr, x[:batch], w, padding=1)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::-1, :, ::-1],
        lambda x: x[:, :, ::2],
        lambda x: x.transpose(0, 2, 1, 3),
        lambda x: x.transpose(3, 1, 2, 0),
        lambda x: np.broadcast_to(x[..., :1], x.shape),
    ],
)
@pytest.mark.parametrize("padding", [0, 1])
def test_input_and_weight_of_any_strides(view, padding):
    x, w = normal(2, (16, 22, 22, 16), (3, 3, 16, 40))
    assert_near(xpconv.corr, view(x), w.transpose(1, 0, 2, 3)[::-1], padding=padding)
    assert_near(xpconv.corr, view(x), np.repeat(w, 2, axis=-1)[..., ::2], padding=padding)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::-1, ::-1],
        lambda x: x[:, ::2],
        lambda x: x.transpose(1, 0, 2),
        lambda x: x.transpose(2, 1, 0),
        lambda x: np.broadcast_to(x[..., :1], x.shape),
        lambda x: np.broadcast_to(x[:, :1], x.shape),
    ],
)
@pytest.mark.parametrize("padding", [0, 4])
def test_signals_and_their_weight_of_any_strides(view, padding):
    x, w = normal(12, (22, 22, 22), (9, 22, 40))
    assert_near(xpconv.corr, view(x), w[::-1], padding=padding)
    assert_near(xpconv.corr, view(x), np.repeat(w, 2, axis=-1)[..., ::2], padding=padding)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 20)), st.tuples(pads, pads), st.sampled_from(MODES),
    st.integers(1, 40), st.integers(1, 70), st.integers(1, 5), st.sampled_from(LAYOUTS),
    st.sampled_from([xpconv.corr, xpconv.conv]), st.sampled_from(sorted(BOUND)), TAPS,
)  # fmt: skip
def test_images_of_stride_two_of_any_geometry(
    size, padding, mode, channels, filters, batch, layout, function, dtype, taps
):
    padding = tuple((before, max(after, taps - n - before)) for n, (before, after) in zip(size, padding, strict=True))
    shapes = (batch, *size, channels), (taps, taps, channels, filters), (filters,)
    x, w, bias = normal(channels * 100 + filters, *shapes, dtype=dtype)
    x, w = in_layout(layout, x, w)
    assert_near(function, x, w, bias, stride=2, padding=padding, padding_mode=mode, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "channels", "filters", "batch"), [
    ((56, 56), 128, 128, 1), ((57, 50), 64, 48, 3), ((14, 15), 256, 96, 9), ((200, 301), 16, 8, 1),
    ((7, 7), 512, 64, 1),
])  # fmt: skip
@pytest.mark.parametrize("taps", [3, 4, 5])
def test_blocks_cover_a_result_of_stride_two_once(size, channels, filters, batch, layout, taps):
    x, w = in_layout(layout, *normal(1, (batch, *size, channels), (taps, taps, channels, filters)))
    assert_near(xpconv.corr, x, w, stride=2, padding=1, layout=layout)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 3), (2, 0)), 0])
def test_nothing_beside_a_view_is_used_at_stride_two(padding, mode):
    around = np.full((2, 21, 26, 19), np.nan, "f")
    x = around[:, 4:17, 4:22, 2:19]
    x[...], w = normal(11, x.shape, (3, 3, 17, 6))
    assert_near(xpconv.corr, x, w, stride=2, padding=padding, padding_mode=mode)
    assert_near(xpconv.corr, x[:, ::-1], w, stride=2, padding=padding, padding_mode=mode)


@pytest.mark.parametrize(("taps", "batch", "size", "channels", "method"), [
    (3, 1, 56, 128, "winograd"), (3, 8, 56, 128, "winograd"), (3, 8, 28, 256, "winograd"), (3, 1, 14, 512, "direct"),
    (3, 8, 112, 16, "direct"), (3, 1, 7, 8, "direct"), (4, 8, 28, 64, "winograd"), (5, 1, 56, 64, "winograd"),
    (4, 8, 112, 16, "direct"), (5, 8, 112, 8, "direct"),
])  # fmt: skip
def test_the_plan_of_stride_two_weighs_the_transforms(taps, batch, size, channels, method):
    x, w = np.empty((batch, size, size, channels), "f"), np.empty((taps, taps, channels, channels), "f")
    spec = xpconv.corr2d.request(x, w, stride=2, padding=1).spec
    assert conv_plan(spec, 4, True, "auto", DEFAULT_LIMIT, Compiled(filters=channels, winograd=True)).method == method


def test_what_rounds_like_sums_has_to_save_a_tenth():
    x, w = np.empty((8, 14, 14, 512), "f"), np.empty((3, 3, 512, 512), "f")
    spec = xpconv.corr2d.request(x, w, stride=2, padding=1).spec
    plan = conv_plan(spec, 4, True, "auto", DEFAULT_LIMIT, Compiled(filters=512, winograd=True))
    assert plan.method == "direct"
    assert dict(plan.rejected)["winograd"].endswith("it has to save 10%")


def test_a_long_signal_needs_no_table_of_its_samples():
    x, w = np.ones((1, 400_001, 8), "f"), np.ones((3, 8, 8), "f")
    compiled(xpconv.corr1d, x[:, :20], w)  # whose kernels are then there
    tracemalloc.start()
    try:
        y = compiled(xpconv.corr1d, x, w)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - y.nbytes < 6 << 20  # transformed tiles; places of samples would take 12 MB more


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("size", "padding"), [
    ((13, 18), ((1, 1), (1, 1))), ((13, 18), ((0, 3), (2, 0))), ((5, 6), ((2, 2), (2, 2))),
    ((9, 7, 8), ((2, 1), (0, 1), (1, 2))), ((17,), ((3, 2),)),
])  # fmt: skip
def test_nothing_beside_a_view_is_used(size, padding, mode, dilation):
    around = np.full((2, *(n + 8 for n in size), 19), np.nan, "f")
    x = around[:, *(slice(4, 4 + n) for n in size), 2:19]
    x[...], w = normal(11, x.shape, (*(3,) * len(size), 17, 6))
    assert_near(xpconv.corr, x, w, padding=padding, padding_mode=mode, dilation=dilation)
    assert_near(xpconv.corr, x[:, ::-1], w, padding=padding, padding_mode=mode, dilation=dilation)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "window"), [((30, 31), (3, 3)), ((200,), (7,))])
def test_stores_add_the_bias_and_apply_the_activation(size, window, activation, layout):
    x, w, bias = normal(3, (2, *size, 16), (*window, 16, 35), (35,))
    x, w = in_layout(layout, x, w)
    assert_near(xpconv.corr, x, w, 10 * bias, activation=activation, layout=layout)


def spec_of(size, window=(3, 3), channels=16, **options):
    x = np.ones((1, *size, channels), np.float32)
    return xpconv.corr.request(
        x, np.ones((*window, channels // options.get("groups", 1), 32), np.float32), **options
    ).spec


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}], ids=str)
def test_strides_and_groups_of_signals_are_not_taken(options):
    assert winograd.members("float32", spec_of((20,), (9,)), 1 << 28, 2)
    assert not winograd.members("float32", spec_of((20,), (9,), **options), 1 << 28, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 3}, {"stride": (1, 2)}, {"stride": 2, "dilation": (1, 2)}, {"groups": 2},
        {"stride": 2, "window": (4, 5)}, {"stride": 2, "window": (6, 6)}, {"stride": 2, "window": (2, 2)},
    ],
    ids=str,
)  # fmt: skip
def test_strides_and_groups_are_not_taken(options):
    assert winograd.members("float32", spec_of((20, 20)), 1 << 28, 2)
    assert not winograd.members("float32", spec_of((20, 20), **options), 1 << 28, 2)


@pytest.mark.parametrize("window", [(1,), (2,), (5, 3), (3, 1), (4, 5), (6, 6), (3, 3, 2), (1, 1, 3, 3)])
def test_other_windows_are_not_taken(window):
    assert winograd.members("float32", spec_of((9, 9, 9), (2, 3, 3)), 1 << 28, 2)
    assert not winograd.members("float32", spec_of((9,) * len(window), window), 1 << 28, 2)


@pytest.mark.parametrize(("size", "window"), [((4, 4), (3, 3)), ((900,), (10,)), ((6, 4, 4), (3, 3, 3))])
def test_as_many_threads_take_part_as_there_is_memory_for(size, window):
    spec = spec_of(size, window, channels=64, padding=1)
    form = winograd.FORMS[transforms.compiled_for(spec)]
    needed = [winograd.workspace("float32", transforms.as_images(spec), form, some) for some in (1, 2, 3)]
    for count, nbytes in enumerate(needed, start=1):
        assert winograd.members("float32", spec, nbytes, 3) == count
        assert winograd.members("float32", spec, nbytes - 1, 3) == count - 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "window"), [
    ((8, 7, 7, 256), (3, 3)), ((1, 56, 56, 64), (3, 3)), ((1, 4096, 64), (9,)), ((2, 8, 9, 10, 64), (3, 3, 3)),
])  # fmt: skip
def test_some_threads_of_a_team_compute_what_all_of_them_would(shape, window, layout, monkeypatch):
    x, w = in_layout(layout, *normal(3, shape, (*window, shape[-1], shape[-1])))
    options = {"padding": "same", "layout": layout, "method": "winograd"}
    spec = xpconv.corr.request(x, w, **options).spec
    monkeypatch.setattr(threads, "thread_count", lambda: 4)
    everybody = xpconv.corr(x, w, **options)
    taken, run = [], threads.run
    monkeypatch.setattr(threads, "run", lambda *asked: (taken.append(asked[4:]), run(*asked)))
    for limit in range(1 << 18, 1 << 23, 1 << 17):
        if (members := winograd.members("float32", spec, limit, 4)) in (2, 3):
            with xpconv.workspace_limit(limit):
                assert xpconv.explain(xpconv.corr, x, w, **options).threads == members
                some = xpconv.corr(x, w, **options)
            assert taken[-1] == (4, members)
            np.testing.assert_allclose(some, everybody, rtol=1e-4, atol=1e-3)
    assert taken


# --- Values that are not finite ---------------------------------------------------------------------------------------


def test_nan_spreads_over_the_tiles_that_read_it_and_no_further():
    x, w = normal(4, (1, 20, 20, 8), (3, 3, 8, 40))
    x[0, 7, 9, 3] = np.nan  # read by results 5 to 7, 7 to 9: by tiles of rows 4 to 7, of columns 4 to 11
    nan = np.isnan(compiled(xpconv.corr, x, w))
    assert nan[0, 5:8, 7:10].all()
    nan[0, 4:8, 4:12] = False
    assert not nan.any()


def test_nan_spreads_along_the_tiles_of_a_signal_that_read_it_and_no_further():
    x, w = normal(13, (1, 40, 8), (9, 8, 40))
    x[0, 19, 3] = np.nan  # read by results 11 to 19: by tiles of results 9 to 20
    nan = np.isnan(compiled(xpconv.corr, x, w))
    assert nan[0, 11:20].all()
    nan[0, 9:21] = False
    assert not nan.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("place", [0, 1500, 1501, 1502, 2999])  # every place in a tile of three results
def test_auto_lets_nothing_spread_along_a_signal(place, value, layout):
    x, w = np.ones((2, 3000, 128), np.float32), np.ones((9, 128, 128), np.float32)
    x[1, place, 5] = value
    expected = np.full((2, 3000), 1152, np.float32)
    for end in range(1, 5):  # what the padding cuts off
        expected[:, [end - 1, -end]] = 128 * (4 + end)
    expected[1, max(place - 4, 0) : place + 5] += np.float32(value) - 1
    x, w = in_layout(layout, x, w)
    options = {"padding": 4, "layout": layout}
    assert xpconv.explain(xpconv.corr1d, x, w, **options).method == "winograd"
    y = xpconv.corr1d(x, w, **options)
    y = y if layout == "channels_last" else np.moveaxis(y, 1, -1)
    np.testing.assert_allclose(y, np.broadcast_to(expected[..., None], y.shape), rtol=3e-5)


@pytest.mark.parametrize("window", [3, 9])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_do_not_change_a_signal(window, layout, monkeypatch):
    x, w = in_layout(layout, *normal(14, (1, 1700, 24), (window, 24, 70)))  # five blocks, shared by filters too
    results = []
    for count in (1, 2, 3, 7):
        monkeypatch.setattr(threads, "thread_count", lambda count=count: count)
        results.append(compiled(xpconv.corr, x, w, padding=4, layout=layout))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(14,), (40,)])
def test_memory_used_before_does_not_show_in_signals(size, layout):
    x, w = normal(15, (3, *size, 20), (10, 20, 37))
    x, w = in_layout(layout, x, w)
    compiled(xpconv.corr, np.full((3, 500, 64), np.nan, np.float32), np.ones((9, 64, 64), np.float32))
    assert_near(xpconv.corr, x, w, padding=3, padding_mode="reflect", layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(13, 17), (5, 6), (4, 9, 10)])
def test_memory_used_before_does_not_show_in_the_result(size, layout):
    x, w = normal(5, (3, *size, 20), (*(3,) * len(size), 20, 37))
    options = {"padding": ((1, 2),) * len(size), "padding_mode": "reflect", "layout": layout}
    x, w = in_layout(layout, x, w)
    larger = np.full((3, *(n + 30 for n in size[-2:]), 64), np.nan, np.float32)
    compiled(xpconv.corr, larger, np.ones((3, 3, 64, 64), np.float32))
    assert_near(xpconv.corr, x, w, **options)


# --- Kept weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "window"), [((20, 20), (3, 3)), ((50,), (8,))])
def test_a_weight_changed_in_place_is_seen(size, window, layout):
    x, w = in_layout(layout, *normal(6, (2, *size, 16), (*window, 16, 40)))
    assert_near(xpconv.corr, x, w, layout=layout)
    for index in (0, w.size // 2, w.size - 1):
        w.reshape(-1)[index] += 100
        assert_near(xpconv.corr, x, w, layout=layout)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("place", [0, 400_000, -1])
def test_any_change_of_a_large_kept_array_is_seen(place, order):
    cache, array, made = Kept(), np.zeros((10, 70_001), np.float32, order), []
    for value in (0, 0, 1, 1):
        array.reshape(-1, order="A")[place] = value
        assert cache.of(array, "", lambda copy: made.append(1) or copy)[...].tobytes() == array.tobytes()
    assert len(made) == 2


@pytest.mark.parametrize(
    "change",
    [
        np.negative, lambda a: a[::-1], lambda a: np.roll(a, 4096), lambda a: np.roll(a, 16), lambda a: -a[::-1],
        lambda a: a * np.where(np.arange(a.size) % 16 == 3, -1, 1), lambda a: np.copysign(a, -0.0),
        lambda a: a.reshape(-1, 2)[:, ::-1].reshape(-1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [8, 40, 9_000, 40_002])
def test_changes_of_all_of_a_kept_array_are_seen(size, change):
    (array,) = normal(18, (size,))
    cache, made = Kept(), []
    for values in (array.copy(), change(array), array.copy()):
        array[...] = values
        cache.of(array, "", lambda copy: made.append(1) or copy)
    assert len(made) == (1 if np.array_equal(change(array), array) else 3)


def test_comparing_copies_no_weight_whatever_its_layout():
    w = np.zeros((256, 128, 3, 3), np.float32)
    for view in (w, np.moveaxis(w, (0, 1), (-1, -2))):
        cache = Kept()
        cache.of(view, "", np.copy)
        tracemalloc.start()
        cache.of(view, "", np.copy)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < w.nbytes / 4


def test_both_directions_of_one_weight_are_kept_apart():
    x, w = normal(7, (2, 20, 20, 16), (3, 3, 16, 40))
    for function in (xpconv.corr, xpconv.conv, xpconv.corr):
        assert_near(function, x, w)


def test_weights_of_other_shapes_in_the_same_memory_are_kept_apart():
    x, w = normal(8, (2, 4, 12, 12, 16), (3, 3, 16, 40))
    assert_near(xpconv.corr, *normal(10, (2, 12, 12, 40)), w.reshape(3, 3, 40, 16))
    assert_near(xpconv.corr, x[:, 0], w.transpose(1, 0, 2, 3))
    assert_near(xpconv.corr, x[:, 0], w)
    assert_near(xpconv.corr, x, w[None])


def test_calls_from_many_threads_are_right():
    x, w = normal(9, (2, 30, 30, 32), (3, 3, 32, 64))
    weights = [w * factor for factor in (1, 2, 4)]  # powers of two: all roundings are alike
    expected, wrong = compiled(xpconv.corr, x, w), []

    def call(number):
        for turn in range(20):
            factor = 2 ** ((number + turn) % 3)
            if not np.array_equal(compiled(xpconv.corr, x, weights[(number + turn) % 3]), factor * expected):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize(("batch", "size", "channels", "method"), [
    (1, 56, 64, "winograd"), (1, 14, 256, "winograd"), (8, 7, 512, "winograd"), (1, 6, 8, "direct"),
])  # fmt: skip
@pytest.mark.parametrize("taps", [3, 4, 5])
def test_the_plan_weighs_the_products_against_the_weight_that_is_read(batch, size, channels, method, taps):
    x, w = np.empty((batch, size, size, channels), "f"), np.empty((taps, taps, channels, channels), "f")
    assert xpconv.explain(xpconv.corr2d, x, w, padding=1).method == method


@pytest.mark.parametrize(("wide", "size", "method"), [
    (True, 7, "winograd"), (True, 6, "winograd"), (True, 5, "direct"), (False, 7, "winograd"), (False, 4, "direct"),
])  # fmt: skip
def test_narrow_vectors_are_fewer_products_in_the_time_that_a_weight_is_read(wide, size, method):
    x, w = np.empty((1, size, size, 512), "f"), np.empty((3, 3, 512, 512), "f")
    spec = xpconv.corr2d.request(x, w, padding=1).spec
    taken = Compiled(filters=512, winograd=True, wide=wide)
    assert conv_plan(spec, 4, True, "auto", DEFAULT_LIMIT, taken).method == method
    assert kernels.takes("float32", spec, DEFAULT_LIMIT).wide == machine().is_wide


@pytest.mark.parametrize(("name", "nbytes", "wide"), [
    ("znver5", 64, True), ("sapphirerapids", 64, True), ("znver4", 64, False), ("znver3", 32, False),
])  # fmt: skip
def test_vectors_are_as_wide_as_what_is_multiplied_at_once(name, nbytes, wide):
    assert replace(machine(), name=name, vector_bytes=nbytes).is_wide is wide


@pytest.mark.parametrize(("registers", "images"), [(32, 2), (16, 1)])
def test_blocks_have_fewer_tiles_beside_narrow_vectors(registers, images, monkeypatch):
    monkeypatch.setattr(winograd, "machine", lambda: replace(machine(), registers=registers))
    x, w = np.empty((8, 14, 14, 256), "f"), np.empty((3, 3, 256, 256), "f")
    spec = xpconv.corr2d.request(x, w, padding=1).spec
    whole = winograd_tables.whole_of(spec, winograd.FORMS[transforms.F4])
    assert winograd._shape(whole, winograd.FORMS[transforms.F4], 2) == (16, images)


@pytest.mark.parametrize(("side", "channels", "team", "units"), [
    (56, 64, 2, [4, 4, 3, 3]), (56, 64, 3, [3, 3, 2, 2, 2, 2]), (56, 256, 2, [2] * 6 + [1, 1]), (28, 128, 2, [4, 3]),
    (224, 64, 2, [1] * 56), (14, 64, 2, [4]),
])  # fmt: skip
def test_blocks_of_an_image_are_as_even_as_its_rows_of_tiles(side, channels, team, units, monkeypatch):
    monkeypatch.setattr(winograd, "machine", lambda: replace(machine(), registers=32))
    x, w = np.empty((1, side, side, channels), "f"), np.empty((3, 3, channels, channels), "f")
    spec, form = xpconv.corr2d.request(x, w, padding=1).spec, winograd.FORMS[transforms.F4]
    whole = winograd_tables.whole_of(spec, form)
    shape = winograd._shape(whole, form, team)
    cut = blocks.blocks_of(whole, x.strides, "float32", team, None, 0.0, 1 << 26, shape, placed=True, unit=4)
    numbers = cut.numbers
    rows = [numbers["rows"] + (block < numbers["longer"]) * numbers["more_rows"] for block in range(cut.count)]
    assert [row // 4 for row in rows] == units
    assert cut.rows == max(rows)


@pytest.mark.parametrize(("images", "side", "whole"), [(1, 28, False), (4, 14, False), (1, 14, True), (8, 7, False)])
def test_threads_with_narrow_vectors_share_filters_where_they_have_few_tiles(images, side, whole, monkeypatch):
    monkeypatch.setattr(winograd, "machine", lambda: replace(machine(), registers=16))
    x, w = np.empty((images, side, side, 256), "f"), np.empty((3, 3, 256, 256), "f")
    dense = winograd_tables.whole_of(xpconv.corr2d.request(x, w, padding=1).spec, winograd.FORMS[transforms.F4])
    block = winograd._shape(dense, winograd.FORMS[transforms.F4], 2)
    assert (block == (dense.out_size[0], images)) == whole


@pytest.mark.parametrize("size", [(20_000, 20_000), (20_000_000,)])
def test_tables_of_tiles_do_not_grow_with_their_number(size):
    x, w = np.broadcast_to(np.float32(0), (1, *size, 1)), np.empty(((3, 3, 1, 1) if len(size) == 2 else (9, 1, 1)), "f")
    spec = transforms.as_images(xpconv.corr.request(x, w, padding=1).spec)
    form = winograd.FORMS[transforms.F4 if len(size) == 2 else transforms.F9]
    _, tables = winograd_tiles.numbers_and_tables(spec, winograd_tables.whole_of(spec, form), form)
    assert sum(table.nbytes for table in tables.values()) < 1 << 20


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize(("streamed", "filters", "channels"), [(1, 32, 16), (1 << 40, 32, 17), (1, 5, 18)])
def test_results_are_the_same_past_the_caches_and_by_way_of_them(streamed, filters, channels, activation, monkeypatch):
    monkeypatch.setattr(call, "STREAMED", streamed)
    monkeypatch.setattr(winograd, "_stores_lines", lambda _: True)  # narrow vectors too
    x, w, bias = normal(5, (2, 23, 18, channels), (3, 3, channels, filters), (filters,))
    assert_near(xpconv.corr, x, w, bias=bias, padding=1, activation=activation)
