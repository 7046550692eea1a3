"""Images and volumes whose rows are cut in stripes: all that they are cut in, against the definition."""

import math
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from kernel_calls import by_kernels

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu import stripes
from xpconv.cpu.compiled import channelwise, direct, kernels, winograd
from xpconv.cpu.compiled.build import machine

if machine() is None:
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

BOUND = {"direct": 2e-6, "winograd": 3e-5, "depthwise": 2e-6}
MODES = ("zeros", "constant", "edge", "reflect", "symmetric", "wrap")
LAYOUTS = ("channels_last", "channels_first")


@contextmanager
def narrow(tiles=1):
    """Rows are cut in stripes of so many tiles at most, or of as many vectors; it tells how many stripes were made."""
    made = []

    def counted(*arguments):
        made.append(len(stripes.narrowed(*arguments)))
        return stripes.narrowed(*arguments)

    kernels._prepared.cache_clear()
    with (
        mock.patch.object(winograd, "_tiles", return_value=4 * tiles),
        mock.patch.object(winograd, "narrowed", counted),
        mock.patch.object(direct, "_ROWS_BYTES", tiles * 1024),
        mock.patch.object(direct, "narrowed", counted),
        mock.patch.object(channelwise, "_PLANES_BYTES", tiles * 4096),
        mock.patch.object(channelwise, "narrowed", counted),
    ):
        yield made
    kernels._prepared.cache_clear()


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype("f") for shape in shapes]


def in_layout(layout, x, w):
    if layout == "channels_last":
        return x, w
    return np.moveaxis(x, -1, 1).copy(), np.moveaxis(w, (-1, -2), (0, 1)).copy()


def assert_near(kernel, x, w, bias=None, **options):
    exact = [a if a is None else a.astype(float) for a in (x, w, bias)]
    expected = xpconv.corr(*exact, method="gemm", **options)
    y = by_kernels(kernel, xpconv.corr, x, w, bias, **options)
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= BOUND[kernel] * np.abs(expected).max()


pads = st.tuples(st.integers(0, 3), st.integers(0, 3))


def fitting(size, window, dilation, padding):
    """The padding, with as much more as the window needs."""
    axes = zip(size, window, dilation, padding, strict=True)
    return tuple((before, max(after, (m - 1) * d + 1 - n - before)) for n, m, d, (before, after) in axes)


@given(
    st.sampled_from(["direct", "winograd"]), st.tuples(st.integers(1, 12), st.integers(1, 60)), st.tuples(pads, pads),
    st.sampled_from(MODES), st.tuples(st.integers(1, 2), st.integers(1, 3)), st.integers(1, 3), st.integers(1, 20),
    st.integers(1, 40), st.sampled_from([1, 1, 2, 8]), st.integers(1, 3), st.integers(1, 3), st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_images_of_any_geometry(
    kernel, size, padding, mode, dilation, stride, each, filters, groups, batch, tiles, layout
):
    if kernel == "winograd":
        (stride, dilation), groups = (2, (1, 1)) if stride == 2 else (1, dilation), 1
    filters *= groups
    x, w, bias = normal(each + 50 * filters, (batch, *size, each * groups), (3, 3, each, filters), (filters,))
    x, w = in_layout(layout, x, w)
    padding = fitting(size, (3, 3), dilation, padding)
    options = {"padding": padding, "padding_mode": mode, "layout": layout, "groups": groups}
    options |= {"fill_value": 2.5 if mode == "constant" else 0, "dilation": dilation, "stride": stride}
    with narrow(tiles):
        assert_near(kernel, x, w, bias, activation="relu", **options)


@given(
    st.sampled_from(["direct", "winograd"]), st.tuples(*[st.integers(1, 7), st.integers(1, 14), st.integers(1, 40)]),
    st.tuples(pads, pads, pads), st.sampled_from(MODES), st.integers(1, 3), st.tuples(*[st.integers(1, 2)] * 3),
    st.integers(1, 20), st.integers(1, 40), st.integers(1, 2), st.integers(1, 3), st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_volumes_of_any_geometry(
    kernel, size, padding, mode, deep, dilation, channels, filters, batch, tiles, layout
):
    window = (deep, 3, 3)
    x, w = normal(channels + 50 * filters, (batch, *size, channels), (*window, channels, filters))
    x, w = in_layout(layout, x, w)
    options = {"padding": fitting(size, window, dilation, padding), "padding_mode": mode, "layout": layout}
    with narrow(tiles):
        assert_near(kernel, x, w, dilation=dilation, **options)


@given(
    st.tuples(st.integers(1, 7), st.integers(1, 14), st.integers(1, 40)), st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(pads, pads, pads), st.sampled_from(MODES), st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 2)] * 3), st.integers(4, 40), st.integers(1, 2), st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_channels_of_volumes_by_themselves(size, window, padding, mode, stride, dilation, channels, batch, layout):
    x, w, bias = normal(channels, (batch, *size, channels), (*window, 1, channels), (channels,))
    x, w = in_layout(layout, x, w)
    options = {"padding": fitting(size, window, dilation, padding), "padding_mode": mode, "layout": layout}
    with narrow():
        assert_near("depthwise", x, w, bias, groups=channels, stride=stride, dilation=dilation, **options)


def test_large_planes_of_channels_by_themselves_are_cut():
    x, w = normal(7, (1, 4, 60, 70, 16), (3, 3, 3, 1, 16))
    with narrow() as made:
        assert_near("depthwise", x, w, padding=1, groups=16)
    assert made[-1] > 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", ["direct", "winograd"])
@pytest.mark.parametrize(("size", "padding"), [((30, 200), 1), ((30, 200), 0), ((5, 30, 70), 1), ((5, 30, 70), 0)])
def test_long_rows_are_cut(size, padding, kernel, layout):
    x, w = normal(1, (2, *size, 16), (*(3,) * len(size), 16, 32))
    x, w = in_layout(layout, x, w)
    with narrow() as made:
        assert_near(kernel, x, w, padding=padding, layout=layout)
    is_read_in_place = (kernel, padding, layout) == ("direct", 0, "channels_last")
    assert made[-1] == 1 if is_read_in_place else made[-1] > 3


@pytest.mark.parametrize("kernel", ["direct", "winograd"])
def test_groups_and_strides_are_cut(kernel):
    x, w = normal(2, (1, 9, 20, 90, 12), (3, 3, 3, 4, 24))
    with narrow() as made:
        if kernel == "direct":
            assert_near(kernel, x, w, padding=1, groups=3, stride=(1, 2, 3))
        else:
            assert_near(kernel, x[:, 0], np.tile(w[0], (1, 1, 3, 1)), padding=1, stride=2)
    assert made[-1] > 3


@pytest.mark.parametrize("kernel", ["direct", "winograd"])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), 0])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_beside_a_view_is_used(mode, padding, kernel):
    (whole,), (w,) = normal(3, (3, 24, 100, 16)), normal(4, (3, 3, 16, 32))
    whole[[0, 2]] = whole[:, :4] = whole[:, -4:] = whole[:, :, :4] = whole[:, :, -4:] = np.nan
    with narrow():
        assert_near(kernel, whole[1:2, 4:-4, 4:-4], w, padding=padding, padding_mode=mode)


def test_threads_do_not_change_what_is_cut(monkeypatch):
    x, w = normal(5, (1, 6, 30, 70, 16), (3, 3, 3, 16, 32))
    for kernel in ("direct", "winograd"):
        with narrow():
            one, two = (by_threads(monkeypatch, kernel, n, x, w) for n in (1, 2))
        assert (one == two).all()


def by_threads(monkeypatch, kernel, count, x, w):
    monkeypatch.setattr("xpconv.cpu.compiled.threads.thread_count", lambda: count)
    return by_kernels(kernel, xpconv.corr, x, w, padding=1)


@pytest.mark.parametrize("limit", [4 << 20, 64 << 20])
@pytest.mark.parametrize(("size", "window"), [((64, 20_000), (3, 3)), ((16, 700, 900), (3, 3, 3))])
def test_large_images_and_volumes_are_taken_within_any_limit(size, window, limit):
    x, w = np.broadcast_to(np.float32(0), (1, *size, 32)), np.empty((*window, 32, 32), "f")
    taken = kernels.takes("float32", xpconv.corr.request(x, w, padding=1).spec, limit)
    assert taken.winograd
    assert taken.filters == 32


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 60), st.integers(1, 60)), st.integers(2, 3), st.integers(1, 500),
    st.tuples(st.integers(1, 5), st.integers(1, 16)),
)  # fmt: skip
def test_stripes_cover_every_row_once_in_whole_units(size, axes, most, units):
    size, units = size[:axes], units[: axes - 1]
    seen, cut = np.zeros(size, int), stripes.places_of(size, most, units)
    for places in cut:
        seen[places] += 1
        for place, unit, n in zip(places[1:], units, size[1:], strict=True):
            assert place.start % unit == 0
            assert place.stop % unit == 0 or place.stop == n
    assert (seen == 1).all()
    assert seen[cut[0]][0].size <= max(most, math.prod(units))
    assert all(seen[places].size <= seen[cut[0]].size for places in cut)
