"""Sums of products in NumPy, strip by strip, and the threads that share the strips."""

import contextlib
import math
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import xpconv
from single_planes import memory_beside_result
from xpconv.cpu import blas, cuts, joined, memory, processors, strips, team
from xpconv.dispatch import run
from xpconv.engines import agnostic
from xpconv.engines import compiled as compiled_calls
from xpconv.engines import numpy as engine
from xpconv.plan import conv_operations


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)


@pytest.fixture
def rows_cut(monkeypatch):
    """Of which rows are cut: those of more bytes."""

    def cut(short):
        monkeypatch.setattr(cuts, "SHORT_BYTES", short)
        strips._strips.cache_clear()

    yield cut
    strips._strips.cache_clear()


LIMITS = [(1, 1), (1, 2**20), (2**13, 1), (2**17, 2**20), (2**26, 2**20)]  # and bytes of rows that are not cut


@pytest.mark.parametrize(("limit", "short"), LIMITS)
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("size", "window", "channels", "filters", "options"), [
    ((53,), (5,), 8, 6, {"stride": 2, "padding": 2}),
    ((200,), (9,), 100, 70, {"padding": "same"}),
    ((17, 23), (3, 3), 16, 70, {"padding": 1}),
    ((17, 23), (3, 2), 16, 16, {"stride": (2, 1), "dilation": (1, 2), "padding": ((0, 2), (3, 1))}),
    ((17, 23), (7, 7), 3, 16, {"stride": 2, "padding": 3}),
    ((9, 11), (3, 3), 120, 24, {"padding": 1}),
    ((9, 11), (1, 1), 16, 40, {"stride": 2}),
    ((17, 23), (3, 3), 64, 64, {"groups": 8, "padding": 1}),
    ((17, 23), (3, 3), 12, 24, {"groups": 3}),
    ((17, 23), (3, 5), 24, 24, {"groups": 24, "padding": 2}),
    ((17, 23), (3, 3), 24, 24, {"groups": 24, "stride": 2, "dilation": 2}),
    ((40,), (5,), 24, 24, {"groups": 24}),
    ((28, 28), (5, 5), 1, 6, {"padding": 2}),
    ((38, 48), (3, 4), 3, 5, {"padding": 1, "stride": 2}),
    ((38, 49), (3, 4), 3, 5, {"padding": ((1, 0), (0, 2)), "stride": (1, 3)}),
    ((160,), (5,), 2, 3, {"padding": 2, "stride": 2}),
    ((17, 18), (3, 3), 12, 6, {"groups": 6}),
    ((7, 8, 9), (3, 2, 3), 20, 5, {"padding": 1}),
    ((7, 10, 9), (3, 2, 3), 12, 24, {"padding": ((1, 1), (2, 0), (4, 3)), "stride": (2, 3, 1), "groups": 3}),
    ((7, 8, 9), (3, 2, 3), 20, 20, {"padding": 2, "groups": 20, "dilation": (1, 2, 1)}),
])  # fmt: skip
def test_strips_agree_with_the_definition(size, window, channels, filters, options, layout, limit, short, rows_cut):
    rows_cut(short)
    rng = np.random.default_rng(len(size) + channels)
    x = rng.standard_normal((3, *size, channels))
    w = rng.standard_normal((*window, channels // options.get("groups", 1), filters))
    if layout == "channels_first":
        x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
    for function in (xpconv.conv, xpconv.corr):
        spec = function.request(x, w, layout=layout, **options).spec
        expected = agnostic.conv(x, w, None, spec, method="direct")
        with xpconv.workspace_limit(limit):
            y = function(x, w, method="gemm", layout=layout, **options)
        np.testing.assert_allclose(y, expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("part", [
    np.s_[::-1, :, ::-1, :16], np.s_[:, ::2, :, ::2], np.s_[..., :16], np.s_[..., 3:19], np.s_[:, :, ::2, :16],
    np.s_[:, ::2, :, 16:], np.s_[::2, 3:15, 2:19, ::-2],
])  # fmt: skip
@pytest.mark.parametrize(("method", "groups", "window"), [
    ("gemm", 1, (3, 3)), ("gemm", 1, (1, 1)), ("gemm", 4, (3, 3)), ("direct", 16, (3, 3)), ("direct", 16, (1, 1)),
    ("gemm", 16, (2, 3)),
])  # fmt: skip
def test_what_lies_backwards_or_apart_is_read_as_it_is(part, method, groups, window):
    rng = np.random.default_rng(1)
    whole, w = rng.standard_normal((4, 20, 22, 32)), rng.standard_normal((*window, 16 // groups, 16))
    assert_read_as_it_is(whole[part], w, method, groups)
    line = whole[part][:, 3]
    assert_read_as_it_is(line, w[0], method, groups)


def test_what_lies_twice_in_memory_is_read_as_it_is():
    rng = np.random.default_rng(1)
    x = np.broadcast_to(rng.standard_normal((1, 1, 22, 16)), (4, 20, 22, 16))
    assert_read_as_it_is(x, rng.standard_normal((3, 3, 16, 8)), "gemm", 1)


def assert_read_as_it_is(x, w, method, groups):
    spec = xpconv.corr.request(x, w, groups=groups).spec
    expected = agnostic.conv(np.ascontiguousarray(x), w, None, spec, method="direct")
    np.testing.assert_allclose(xpconv.corr(x, w, method=method, groups=groups), expected, atol=1e-10)


def spec_of(size, window, channels, filters, batch=1, **options):
    shape, options = (batch, *size, channels), {"padding": "same"} | options
    weight = (*window, channels // options.get("groups", 1), filters)
    x, w = (np.broadcast_to(np.float32(0), shape) for shape in (shape, weight))
    return xpconv.conv.request(x, w, **options).spec


@pytest.mark.parametrize("limit", [1 << 20, 1 << 22, 1 << 26])
@pytest.mark.parametrize(("window", "channels"), [((3, 3), 64), ((7, 7), 3), ((3, 3), 256), ((1, 1), 64)])
def test_strips_take_no_more_than_the_limit(window, channels, limit, monkeypatch):
    monkeypatch.setattr(team, "thread_count", lambda: 1)
    x = np.ones((1, 40, 44, channels), np.float32)
    w = np.ones((*window, channels, 32), np.float32)
    taken = []

    class Measured(memory.Memory):
        def take(self, *arguments):
            array = super().take(*arguments)
            taken.append(self.nbytes)
            return array

    monkeypatch.setattr(memory, "Memory", Measured)
    monkeypatch.setattr(memory, "_kept", threading.local())
    strips.conv(x, w, spec_of((40, 44), window, channels, 32), limit)
    assert max(taken, default=0) <= limit


LONG_ROWS = [  # of which one takes more than the limit, with what is copied
    ((5, 150, 150, 8), (5, 5, 5, 8, 8), {"padding": 2}),
    ((7, 180, 180, 16), (3, 3, 3, 16, 16), {"padding": 1, "stride": 2}),
    ((4, 200, 200, 16), (3, 3, 3, 16, 16), {"padding": 1}),
    ((4, 200, 200, 16), (3, 3, 3, 1, 16), {"padding": 1, "groups": 16}),
    ((13, 4000, 16), (7, 7, 4, 16), {"groups": 4}),
    ((5, 40_000, 16), (3, 3, 16, 16), {"padding": 1}),
    ((6, 40_000, 16), (3, 3, 1, 16), {"padding": 1, "groups": 16}),
    ((500, 4000, 8), (2, 2, 8, 8), {"padding": 1, "stride": 8}),
    ((500, 4000, 8), (1, 1, 8, 8), {"padding": 1, "stride": 8}),
    ((3, 20, 6000, 16), (3, 3, 3, 16, 8), {"padding": 1, "stride": (1, 1, 2)}),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), LONG_ROWS)
def test_volumes_and_wide_images_keep_to_the_limit(x_shape, w_shape, options, threads, monkeypatch):
    monkeypatch.setattr(memory, "KEPT_BYTES", -1)
    monkeypatch.setattr(team, "thread_count", lambda: threads)
    strips._strips.cache_clear()
    x, w = np.ones((1, *x_shape), np.float32), np.ones(w_shape, np.float32)
    with xpconv.workspace_limit(4 << 20):
        call = xpconv.corr.request(x, w, **options)
        assert memory_beside_result(lambda: run(call)) <= 4 << 20
        plan = xpconv.explain(xpconv.corr, x, w, **options)
        assert plan.workspace <= 4 << 20
        assert plan.method == "winograd" or "along axis" in plan.tile or max(call.spec.stride) > 2
        if call.spec.groups == 1:
            gy = np.ones(call.spec.y_shape, np.float32)
            gradient = xpconv.corr_grad_weight.request(x, gy, window=w_shape[:-2], **options)
            assert memory_beside_result(lambda: run(gradient)) <= 4 << 20
    strips._strips.cache_clear()


GRADIENTS = [
    ((17, 23), (3, 3), 0, 4, {}), ((17, 23), (3, 3), 4, 0, {"padding": 1}), ((40, 41), (5, 4), 1, 1, {"padding": 2}),
    ((53,), (5,), 8, 6, {"stride": 2, "padding": 2}),
    ((17, 23), (3, 2), 16, 16, {"stride": (2, 1), "dilation": (1, 2), "padding": ((0, 2), (3, 1))}),
    ((60, 62), (3, 3), 40, 24, {"padding": 1}),
    ((17, 23), (1, 1), 16, 40, {}),
    ((17, 18), (3, 4), 5, 7, {"padding": ((0, 2), (1, 4))}),
    ((20, 21), (3, 3), 4, 5, {"padding": 2, "padding_mode": "reflect"}),
    ((7, 8, 9), (3, 2, 3), 20, 5, {"padding": 1}),
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("limit", "short"), [(1, 1), (2**15, 1), (2**20, 2**20), (2**26, 2**20)])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("size", "window", "channels", "filters", "options"), GRADIENTS)
def test_weight_gradients_agree_with_the_definition_and_have_the_same_bits_at_every_call(
    monkeypatch, size, window, channels, filters, options, layout, limit, short, threads, rows_cut
):
    rows_cut(short)
    monkeypatch.setattr(team, "thread_count", lambda: threads)
    monkeypatch.setattr(strips, "_SHARED_ELEMENTS", 1000)
    monkeypatch.setattr(strips, "_STRIP_BYTES", 1 << 14)
    rng = np.random.default_rng(len(size) + channels)
    x = rng.standard_normal((3, *size, channels))
    w = rng.standard_normal((*window, channels, filters))
    gy = rng.standard_normal(xpconv.corr(x, w, **options).shape)
    if layout == "channels_first":
        x, gy = (np.moveaxis(a, -1, 1) for a in (x, gy))
    for function in (xpconv.conv_grad_weight, xpconv.corr_grad_weight):
        request = function.request(x, gy, window=window, layout=layout, **options)
        with xpconv.workspace_limit(limit):
            gw = engine.conv_grad_weight(x, gy, request.spec)
            assert np.array_equal(engine.conv_grad_weight(x, gy, request.spec), gw)
        expected = agnostic.conv_grad_weight(x, gy, request.spec)
        np.testing.assert_allclose(gw, expected, atol=1e-12 * np.abs(expected).max(initial=0))


def test_what_is_not_finite_meets_the_zeros_around_an_image_without_elements():
    x, gy = np.ones((8, 0, 66, 32), "float32"), np.full((8, 1, 66, 4), np.nan, "float32")
    spec = xpconv.corr_grad_weight.request(x, gy, window=3, padding=((2, 1), (1, 1))).spec
    assert np.isnan(engine.conv_grad_weight(x, gy, spec)).all()


@pytest.mark.parametrize("limit", [1 << 20, 1 << 22])
@pytest.mark.parametrize(("channels", "filters", "window"), [(8, 32, 3), (64, 32, 3), (1, 1, 9), (1, 4, 9)])
def test_weight_gradients_take_no_more_than_the_limit(monkeypatch, channels, filters, window, limit):
    monkeypatch.setattr(memory, "KEPT_BYTES", -1)
    x, gy = (np.ones((4, 60, 60, n), "float32") for n in (channels, filters))
    spec = xpconv.corr_grad_weight.request(x, gy, window=window, padding=window // 2).spec
    held = memory_beside_result(lambda: strips.weight_gradient(x, gy, spec, limit))
    assert held <= min(limit, strips.gradient_told(spec, 4, limit)[1]) + 2**16


@pytest.mark.parametrize(("shared", "size", "window", "channels", "batch", "groups"), [
    (True, (56, 56), (3, 3), 64, 1, 1),
    (False, (14, 14), (3, 3), 64, 1, 1),
    (True, (56, 56), (3, 3), 144, 1, 144),
    (False, (14, 14), (3, 3), 96, 1, 96),
    (True, (14, 14), (3, 3), 256, 8, 32),
    (False, (14, 14), (3, 3), 256, 1, 32),
    (False, (14, 14), (3, 3), 256, 1, 1),
    (True, (14, 14), (3, 3), 256, 8, 1),
])  # fmt: skip
def test_threads_share_what_takes_longer_than_waking_them_and_blas_does_not(
    shared, size, window, channels, batch, groups, monkeypatch
):
    monkeypatch.setattr(team, "thread_count", lambda: 2)
    most = []
    monkeypatch.setattr(team, "share", lambda *arguments: most.append(arguments[-1]))
    x, w = np.zeros((batch, *size, channels), np.float32), np.zeros((*window, channels // groups, channels), np.float32)
    strips.conv(x, w, spec_of(size, window, channels, channels, batch, groups=groups), 1 << 26)
    assert most == [1 + shared]


@pytest.mark.parametrize(("batch", "step", "shares"), [(8, 1, []), (8, -1, [2]), (1, -1, [1])])
def test_windows_of_one_are_one_product_that_blas_shares_where_the_input_lies_as_a_matrix(
    batch, step, shares, monkeypatch
):
    monkeypatch.setattr(team, "thread_count", lambda: 2)
    share, most = team.share, []
    monkeypatch.setattr(team, "share", lambda *arguments: (most.append(arguments[-1]), share(*arguments)))
    rng = np.random.default_rng(batch)
    x, w = rng.integers(-9, 9, (batch, 56, 56, 64)) + 0.0, rng.integers(-9, 9, (1, 1, 64, 64)) + 0.0
    y = strips.conv(x[:, ::step], w, spec_of((56, 56), (1, 1), 64, 64, batch), 1 << 26)
    np.testing.assert_array_equal(y, np.einsum("nijc,cf->nijf", x[:, ::step], w[0, 0]))
    assert most == shares


def test_a_window_of_one_that_is_padded_on_one_side_and_cropped_on_the_other_shifts_the_input():
    x, w = np.arange(24.0).reshape(1, 4, 3, 2), np.eye(2).reshape(1, 1, 2, 2)
    spec = replace(spec_of((4, 3), (1, 1), 2, 2), padding=((-1, 1), (0, 0)))  # a phase of an input gradient is such
    assert not strips.is_product(spec)
    y = strips.conv(x, w, spec, 1 << 20)
    np.testing.assert_array_equal(y, np.concatenate([x[:, 1:], np.zeros((1, 1, 3, 2))], axis=1))


def test_memory_is_kept_for_the_next_call_and_shared_by_none():
    with memory.borrowed("test") as outer, memory.borrowed("test") as inner:
        assert outer is not inner
    with memory.borrowed("test") as again:
        assert again is outer
        again.take("large", (memory.KEPT_BYTES + 8,), np.dtype("u1"))
    with memory.borrowed("test") as fresh:
        assert fresh.nbytes == 0


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (2, 2), (1, 4)])
def test_what_blas_shares_is_one_product_and_threads_take_as_many_strips_each(images, batch, monkeypatch):
    monkeypatch.setattr(team, "thread_count", lambda: 2)
    told = strips.told(spec_of((14, 14), (3, 3), 256, 256, batch), 4, 1 << 26)
    assert told == f"{images} of {batch} images, 14 of 14 rows"


@pytest.mark.parametrize(("size", "window", "channels", "filters", "options", "count"), [
    ((28, 28), (5, 5), 1, 6, {}, 4),
    ((14, 14), (5, 5), 6, 16, {"padding": 0, "batch": 8}, 2),
    ((14, 14), (5, 5), 6, 16, {"padding": 0}, 1),  # fewer patches than weights with zeros
    ((56, 56), (3, 3), 64, 3, {}, 4),
    ((56, 56), (3, 3), 64, 64, {}, 1),
    ((28, 27), (5, 5), 1, 6, {}, 3),
    ((28, 23), (5, 5), 1, 6, {}, 1),  # no divisor
    ((28, 28), (5, 5), 1, 6, {"dilation": 2}, 1),
    ((28, 28), (1, 1), 64, 4, {}, 1),
    ((28, 28), (3, 3), 8, 8, {"groups": 2}, 1),
])  # fmt: skip
def test_results_of_few_filters_are_joined_and_half_of_what_is_multiplied_is_theirs(
    size, window, channels, filters, options, count
):
    spec = spec_of(size, window, channels, filters, **options)
    wide = joined.wide(spec)
    assert joined.results(spec) == count
    assert math.prod(wide.out_size) * wide.filters == math.prod(spec.out_size) * spec.filters
    assert conv_operations(wide) <= 2 * conv_operations(spec)


def test_an_equal_spec_is_the_same_convolution():
    for _ in range(2):  # whose wide spec is remembered
        x, w = np.ones((1, 6, 8, 4)), np.ones((1, 1, 2, 2))
        np.testing.assert_array_equal(xpconv.corr2d(x, w, groups=2, method="gemm"), np.full((1, 6, 8, 2), 2))


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("batch", [1, 40])  # small, and by strips
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_does_not_spread_to_results_that_are_joined(value, batch, repeated):
    x, w = np.ones((batch, 28, 28, 1), np.float32), np.full((5, 5, 1, 6), 2, np.float32)
    if repeated:
        xpconv.corr2d(x, w, padding=2, method="gemm")
    x[0, 10, 10] = value
    with np.errstate(over="ignore"):
        y = xpconv.corr2d(x, w, padding=2, method="gemm")
    touched = np.zeros(y.shape[:3], bool)
    touched[0, 8:13, 8:13] = True
    assert not np.isfinite(y[touched]).any()
    assert np.isfinite(y[~touched]).all()
    np.testing.assert_array_equal(y[0, 4:6, 4:24], 50)


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_does_not_spread_to_other_groups():
    x, w = np.ones((2, 9, 9, 8), np.float32), np.ones((3, 3, 2, 8), np.float32)
    x[..., 3] = np.nan
    y = xpconv.corr2d(x, w, groups=4, method="gemm")
    assert np.isnan(y[..., 2:4]).all()
    assert (y[..., [0, 1, 4, 5, 6, 7]] == 18).all()


def test_groups_of_an_image_without_elements_add_nothing():
    y = xpconv.corr1d(np.ones((1, 0, 9)), np.ones((2, 3, 12)), groups=3, padding=2, method="gemm")
    np.testing.assert_array_equal(y, np.zeros((1, 3, 12)))


def test_planes_share_a_product_of_positions_or_of_images(monkeypatch):
    monkeypatch.setattr(team, "thread_count", lambda: 2)
    monkeypatch.setattr(strips, "is_shared", lambda _: True)
    rng = np.random.default_rng(3)
    for batch in (1, 2, 3):
        x, w = rng.standard_normal((batch, 5, 9, 7)), rng.standard_normal((4, 5, 1, 1))
        y = xpconv.corr2d(x, w, layout="channels_first", method="gemm")
        np.testing.assert_allclose(y, np.einsum("nchw,fc->nfhw", x, w[..., 0, 0]), atol=1e-12)


# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(team, "thread_count", lambda: 3)


@pytest.mark.usefixtures("three_threads")
def test_every_part_is_taken_once():
    taken = []
    team.share(lambda parts: taken.extend(parts), range(100), 3)
    assert sorted(taken) == list(range(100))


@pytest.mark.usefixtures("three_threads")
def test_threads_work_at_once_and_no_more_than_are_allowed():
    meeting = threading.Barrier(2, timeout=20)
    names = []

    def work(parts):
        for _ in parts:
            meeting.wait()
            names.append(threading.current_thread().name)

    team.share(work, range(6), 2)
    assert len(set(names)) == 2


@pytest.mark.usefixtures("three_threads")
def test_no_more_threads_begin_than_are_allowed():
    calls = []
    team.share(lambda parts: calls.append(list(parts)), range(6), 2)
    assert len(calls) == 2


def test_no_thread_is_put_on_the_processor_that_asks(monkeypatch):
    monkeypatch.setattr(processors, "CAN_CHOOSE", True)
    monkeypatch.setattr(team, "_team", {})
    monkeypatch.setattr(team, "_Member", lambda processor: processor)
    monkeypatch.setattr(processors, "allowed", lambda: [3, 4, 5])
    monkeypatch.setattr(processors, "now", lambda: 3)
    assert team._members(2) == ([4, 5], 3)
    monkeypatch.setattr(processors, "now", lambda: -1)  # it is not known
    assert team._members(2) == ([3, 4], None)


@pytest.mark.skipif(not processors.CAN_CHOOSE or len(processors.allowed()) < 2, reason="no processors to choose from")
@pytest.mark.parametrize("fails", [False, True])
def test_the_thread_that_asks_stays_on_its_processor_until_all_is_done(fails, monkeypatch):
    monkeypatch.setattr(team, "thread_count", lambda: 2)
    before, meeting, places = os.sched_getaffinity(0), threading.Barrier(2, timeout=20), []

    def work(parts):
        for _ in parts:
            meeting.wait()
            places.append(os.sched_getaffinity(0))
            if fails:
                raise MemoryError

    with pytest.raises(MemoryError) if fails else contextlib.nullcontext():
        team.share(work, range(2), 2)
    assert [len(place) for place in places] == [1, 1]
    assert places[0] != places[1]
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_has_a_team_of_its_own():
    team.share(list, range(3), 3)
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends it
        meeting = threading.Barrier(3)
        team.share(lambda parts: [meeting.wait() for _ in parts], range(3), 3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("three_threads")
def test_what_fails_in_a_thread_fails_in_the_call():
    meeting = threading.Barrier(3, timeout=20)

    def work(parts):
        for _ in parts:
            meeting.wait()
            if threading.current_thread() is not threading.main_thread():
                raise MemoryError("a strip")

    with pytest.raises(MemoryError, match="a strip"):
        team.share(work, range(3), 3)
    team.share(list, range(3), 3)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.usefixtures("three_threads")
def test_a_call_that_is_interrupted_while_it_waits_does_not_end_the_next():
    taken, goes_on, done = threading.Semaphore(0), threading.Event(), []

    def work(parts):
        for part in parts:
            if threading.current_thread() is threading.main_thread():
                assert all(taken.acquire(timeout=20) for _ in range(2))
            else:
                taken.release()
                assert goes_on.wait(20)
                time.sleep(0.2)  # in which a call that does not wait returns
            done.append(part)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            team.share(work, "abc", 3)
    finally:
        signal.signal(signal.SIGALRM, before)
    goes_on.set()
    team.share(work, "def", 3)
    assert set(done) == set("abcdef")


@pytest.mark.usefixtures("three_threads")
def test_a_call_for_which_no_thread_can_begin_computes_alone(monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    taken = []
    monkeypatch.setattr(team, "_team", {})
    monkeypatch.setattr(threading.Thread, "start", start)
    team.share(taken.extend, range(9), 3)
    assert taken == list(range(9))


@pytest.mark.skipif(not processors.CAN_CHOOSE or len(processors.allowed()) < 2, reason="no processors to choose from")
def test_a_place_that_the_thread_is_told_meanwhile_is_not_taken_back():
    first, second, *_ = processors.allowed()
    before = os.sched_getaffinity(0)
    try:
        with processors.staying(first):
            os.sched_setaffinity(0, {second})
        assert os.sched_getaffinity(0) == {second}
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("three_threads")
def test_a_call_within_a_call_computes_alone():
    inner = []
    team.share(lambda parts: [team.share(inner.extend, range(5), 3) for _ in parts], range(2), 3)
    assert sorted(inner) == sorted([*range(5)] * 2)


@pytest.mark.usefixtures("three_threads")
def test_numpys_settings_are_those_of_the_call_in_every_thread():
    meeting, told = threading.Barrier(3, timeout=20), []

    def work(parts):
        for _ in parts:
            meeting.wait()
            told.append(np.geterr()["over"])

    with np.errstate(over="raise"):
        team.share(work, range(3), 3)
    assert told == ["raise"] * 3


def test_as_many_threads_as_blas_has_are_taken():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if blas.library() is None:
        assert team.thread_count() == 1
        return
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert team.thread_count() == 1


@pytest.mark.parametrize(("channels", "filters", "pieces"), [(8, 64, 9), (96, 96, 13), (97, 128, 1), (64, 32, 1)])
def test_a_large_product_of_few_channels_is_made_in_pieces(channels, filters, pieces, monkeypatch):
    monkeypatch.setattr(strips, "_PIECE_BYTES", 1 << 14)
    rng = np.random.default_rng(0)
    shapes = (3, 14, 13, channels), (1, 1, channels, filters)
    x, w = (rng.integers(-9, 9, shape).astype(np.float32) for shape in shapes)
    made, matmul = [], np.matmul
    monkeypatch.setattr(np, "matmul", lambda *arrays, **out: (made.append(1), matmul(*arrays, **out))[1])
    y = strips.conv(x, w, xpconv.corr2d.request(x, w).spec, 1 << 26)
    assert len(made) == pieces
    np.testing.assert_array_equal(y, x @ w[0, 0])


@pytest.mark.parametrize(("channels", "filters"), [(64, 3), (32, 3), (64, 1), (16, 1)])
def test_few_filters_of_many_channels_take_patches_and_not_a_slow_product_for_each_tap(channels, filters):
    x, w = np.zeros((1, 256, 256, channels), np.float32), np.zeros((3, 3, channels, filters), np.float32)
    assert xpconv.explain(xpconv.corr2d, x, w, padding=1, layout="channels_last").method == "gemm"


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 4), (4, 2), (3, 1)])
def test_axes_of_one_element_may_lie_any_number_of_bytes_apart(channels, groups):
    dense, w = np.arange(12.0 * channels).reshape(1, 3, 4, channels), np.ones((2, 2, channels // groups, channels))
    strides = [999 * 8 if n == 1 else step for n, step in zip(dense.shape, dense.strides, strict=True)]
    x = np.lib.stride_tricks.as_strided(dense, dense.shape, strides)
    assert x.flags.c_contiguous
    spec = xpconv.corr2d.request(dense, w, groups=groups, layout="channels_last").spec
    np.testing.assert_array_equal(strips.conv(x, w, spec, 1 << 20), strips.conv(dense, w, spec, 1 << 20))
