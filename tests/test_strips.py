"""Sums of products in NumPy, strip by strip, and the threads that share the strips."""

import threading

import numpy as np
import pytest

import xpconv
from xpconv.cpu import processors, products, team
from xpconv.engines import agnostic
from xpconv.engines import compiled as compiled_calls


@pytest.fixture(autouse=True)
def numpy_alone(monkeypatch):
    monkeypatch.setattr(compiled_calls, "kernels", lambda: None)


@pytest.mark.parametrize("limit", [1, 2**17, 2**26])
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
    ((7, 8, 9), (3, 2, 3), 20, 5, {"padding": 1}),
])  # fmt: skip
def test_strips_agree_with_the_definition(size, window, channels, filters, options, layout, limit):
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


@pytest.mark.parametrize(("rows", "length", "filters"), [(70, 300, 130), (1, 5000, 70), (500, 8, 3), (9, 600, 64)])
def test_no_product_is_larger_than_blas_leaves_to_one_thread(rows, length, filters, monkeypatch):
    rng = np.random.default_rng(2)
    a, w, y = rng.standard_normal((rows, length)), rng.standard_normal((length, filters)), np.empty((rows, filters))
    widths = products.panel_widths(length, filters)
    panels = [(some, w[:, some].reshape(length, -1, width).swapaxes(0, 1)) for some, width in widths]
    sizes, multiply = [], np.matmul

    def counted(a, b, out):
        sizes.append(a.shape[-2] * a.shape[-1] * b.shape[-1])
        return multiply(a, b, out=out)

    monkeypatch.setattr(np, "matmul", counted)
    products.multiply(a, panels, y)
    assert max(sizes) <= products.SINGLE
    np.testing.assert_allclose(y, multiply(a, w), atol=1e-10)


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
def test_what_fails_in_a_thread_fails_in_the_call():
    meeting = threading.Barrier(3, timeout=20)

    def work(parts):
        for _ in parts:
            if meeting.wait() == 0 or threading.current_thread() is not threading.main_thread():
                raise MemoryError("a strip")

    with pytest.raises(MemoryError, match="a strip"):
        team.share(work, range(3), 3)
    team.share(list, range(3), 3)


@pytest.mark.usefixtures("three_threads")
def test_a_call_within_a_call_computes_alone():
    inner = []
    team.share(lambda parts: [team.share(inner.extend, range(5), 3) for _ in parts], range(2), 3)
    assert sorted(inner) == sorted([*range(5)] * 2)


@pytest.mark.usefixtures("three_threads")
def test_warnings_are_silenced_in_threads_as_in_the_call():
    x, w = np.full((8, 40, 40, 32), 1e38, np.float32), np.full((3, 3, 32, 32), 1e38, np.float32)
    with np.errstate(all="ignore"):
        assert np.isinf(xpconv.corr2d(x, w, method="gemm")).all()


def test_as_many_threads_as_blas_has_are_taken():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if processors.blas_threads() is None:
        assert team.thread_count() == 1
        return
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert team.thread_count() == 1
