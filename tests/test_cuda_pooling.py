"""The pooling kernels, instance by instance: the general suite reaches a few of them, these tests all.

Results are held against the agnostic engine on NumPy arrays, which the general suite holds against plain loops.
"""

import re
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from unittest import mock

import ml_dtypes  # noqa: F401  NumPy's bfloat16
import numpy as np
import pytest

import xpconv
from cases import far_apart, integers
from xpconv.cuda import hardware, source
from xpconv.cuda.geometry import dense
from xpconv.cuda.kernels import ELEMENTS, signed
from xpconv.cuda.plans import pooling as windows
from xpconv.cuda.plans import pooling_boxes as boxes
from xpconv.cuda.plans import pooling_scatter as scatter
from xpconv.cuda.plans.conv import Operand
from xpconv.cuda.plans.pooling import FLOATING, ORDERED, Setting
from xpconv.cuda.steps import Unfit, Work
from xpconv.engines import agnostic
from xpconv.spec import AdaptiveSpec, ScatterSpec, in_layout, pool_spec
from xpconv.workspace import workspace_limit

H200 = next(known for known in hardware.KNOWN if known.name == "H200")
BUSY = replace(H200, name="busy", multiprocessors=0)  # any work fills it, and launches cost nothing
LAYOUTS = ("channels_last", "channels_first")
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "complex64": 2e-6}


@contextmanager
def watched(cupy):
    """The engine's functions, the expressions of the kernels they launch, and a device for the plans to fit."""
    from xpconv.cuda import launch, pooling

    box = SimpleNamespace(cupy=cupy, pool=pooling, launched=set(), device=H200)
    run = launch.run

    def noting(work, arrays):
        box.launched.update(step.kernel.expression for step in work.steps)
        run(work, arrays)

    def present(_):
        return box.device

    with mock.patch.object(launch, "run", noting), mock.patch.object(launch, "hardware", present):
        yield box


@pytest.fixture
def cuda(cupy):
    with watched(cupy) as box:
        yield box


def same(result, expected, dtype="float64"):
    """Results, or pairs of them, that are equal but for rounding."""
    pairs = zip(result, expected, strict=True) if isinstance(result, tuple) else ((result, expected),)
    for got, wanted in pairs:
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        got, wanted = (a.astype(np.float32) if a.dtype.kind == "V" else a for a in (got.get(), wanted))  # V: bfloat16
        if got.dtype.kind in "iu":
            np.testing.assert_array_equal(got, wanted)
        else:
            tolerance = TOLERANCE.get(dtype, 1e-12)
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=4 * tolerance)


def spec_of(shape, window, layout="channels_last", **options):
    axes = len(window)
    defaults = dict(stride=(1,) * axes, padding=((0, 0),) * axes, dilation=(1,) * axes, ceil_mode=False)
    return pool_spec(shape, name="pool", window=window, layout=layout, plain=False, **defaults | options)[0]


def lying(x, layout):
    """Channels-last maps in a layout."""
    return x if layout == "channels_last" else np.ascontiguousarray(np.moveaxis(x, -1, 1))


def belonging(module, dtype):
    """The instances of a module that only arrays of this dtype reach: others may share a wider dtype's."""
    wide = windows.WIDE.get(dtype) or {"complex64": "float32", "complex128": "float64"}.get(dtype)
    for kernel in module.instances((9, 0)):
        text = kernel.expression
        for name in ("complex64", "complex128"):
            text = text.replace(ELEMENTS[name], name)
        words = set(re.split(r"[<>,]", text)) & {*ELEMENTS.values(), "complex64", "complex128"}
        own = dtype if dtype.startswith("complex") else ELEMENTS[dtype]
        if own in words and words <= {own, ELEMENTS.get(wide, wide)}:
            yield kernel.expression


# --- Every instance ---------------------------------------------------------------------------------------------------

# Spatial size, and the window over it: ragged and dilated; large, to be pooled axis by axis; of three axes; of one.
GEOMETRIES = {
    "ragged": ((9, 10), dict(window=(3, 3), stride=(1, 2), padding=((1, 2), (3, 1)), ceil_mode=True)),
    "dilated": ((9, 10), dict(window=(2, 3), stride=(2, 1), padding=((0, 3), (2, 2)), dilation=(3, 2))),
    "large": ((12, 13), dict(window=(11, 12), padding=((5, 5), (6, 6)))),
    "volume": ((5, 4, 6), dict(window=(5, 5, 5), padding=((2, 2),) * 3)),
    "signal": ((70,), dict(window=(9,), stride=(2,), padding=((4, 0),))),
}


def operations(dtype):
    """Every pooling by windows that takes a dtype."""
    if dtype in ORDERED:
        yield "max_pool", dict(return_indices=False)
        yield "max_pool", dict(return_indices=True)
    yield "sum_pool", {}
    if dtype in FLOATING:
        for p in (1, 2, 3):
            yield "lp_pool", dict(p=p)
        for name, include, divisor in product(("avg_pool", "avg_pool_grad"), (False, True), (None, 3)):
            yield name, dict(count_include_pad=include, divisor=divisor)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_every_instance_pools_windows_as_the_definition(cuda, dtype):
    for geometry, channels, layout in product(GEOMETRIES, (3, 8), LAYOUTS):
        if geometry == "signal" and channels == 8 and layout == "channels_first":
            channels = 1
        check_windows(cuda, dtype, geometry, channels, layout)
    assert set(belonging(windows, dtype)) <= cuda.launched


def check_windows(cuda, dtype, geometry, channels, layout, only=None):
    """Every pooling of a geometry, or those of one name."""
    rng, (size, window) = np.random.default_rng(0), GEOMETRIES[geometry]
    x = lying(integers(rng, (1, *size, channels), dtype), layout)
    spec = spec_of(x.shape, layout=layout, **window)
    gy = integers(rng, spec.y_shape, dtype)
    for name, options in operations(dtype):
        if only not in (None, name):
            continue
        given = gy if name == "avg_pool_grad" else x
        with np.errstate(all="ignore"):
            expected = getattr(agnostic, name)(given, spec, **options)
        for cuda.device in (BUSY, H200):
            same(getattr(cuda.pool, name)(cuda.cupy.asarray(given), spec, **options), expected, dtype)


BOXES = {"plane": ((9, 70), (4, 5)), "one element each": ((70,), (70,)), "one box": ((3, 5, 7), (1, 1, 1))}


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_every_instance_pools_boxes_as_the_definition(cuda, dtype):
    for channels, layout in product((1, 8), LAYOUTS):
        for case in BOXES:
            check_boxes(cuda, dtype, case, channels, layout)
        for limit in (1, 1 << 20):
            check_whole_planes(cuda, dtype, channels, layout, limit)
    assert set(belonging(boxes, dtype)) <= cuda.launched


def check_boxes(cuda, dtype, case, channels, layout):
    """Adaptive pooling."""
    size, out = BOXES[case]
    x = lying(integers(np.random.default_rng(0), (2, *size, channels), dtype), layout)
    spec = AdaptiveSpec(layout, 2, channels, size, out)
    for cuda.device in (BUSY, H200):
        own = cuda.cupy.asarray(x)
        if dtype in FLOATING:
            same(cuda.pool.adaptive_avg_pool(own, spec), agnostic.adaptive_avg_pool(x, spec), dtype)
        if dtype in ORDERED:
            for flag in (False, True):
                expected = agnostic.adaptive_max_pool(x, spec, return_indices=flag)
                same(cuda.pool.adaptive_max_pool(own, spec, return_indices=flag), expected)


def check_whole_planes(cuda, dtype, channels, layout, limit):
    """Global pooling, in one launch or in slabs."""
    cuda.device = H200
    x = lying(integers(np.random.default_rng(0), (1, 69, 67, channels), dtype), layout)
    axes = (1, 2) if layout == "channels_last" else (2, 3)
    with workspace_limit(limit):
        if dtype in FLOATING:
            result = cuda.pool.global_avg_pool(cuda.cupy.asarray(x), axes, keepdims=False)
            same(result, agnostic.global_avg_pool(x, axes, keepdims=False), dtype)
        if dtype in ORDERED:
            result = cuda.pool.global_max_pool(cuda.cupy.asarray(x), axes, keepdims=True)
            same(result, agnostic.global_max_pool(x, axes, keepdims=True))


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_every_instance_scatters_as_the_definition(cuda, dtype):
    for channels, layout, limit in product((1, 3, 40), LAYOUTS, (1, 1 << 20)):
        check_scatter(cuda, dtype, channels, layout, limit)
    wanted = {f"pool_scatter<{ELEMENTS[signed(dtype)]},true>", "index_ranges"}
    assert wanted <= cuda.launched <= {kernel.expression for kernel in scatter.instances((9, 0))}


def check_scatter(cuda, dtype, channels, layout, limit):
    """Values that go back to where their indices say, added and put."""
    rng = np.random.default_rng(0)
    spec = ScatterSpec(layout, 2, channels, (15, 11), (9, 17))
    shape = in_layout(layout, 2, spec.out_size, channels)
    gy = integers(rng, shape, dtype)
    for cuda.device, indices in product((BUSY, H200), index_patterns(rng, shape, 9 * 17, layout)):
        with workspace_limit(limit):
            own = cuda.cupy.asarray(gy), cuda.cupy.asarray(indices)
            same(cuda.pool.max_unpool(*own, spec), agnostic.max_unpool(gy, indices, spec), dtype)
            same(cuda.pool.max_pool_grad(*own, spec), agnostic.max_pool_grad(gy, indices, spec), dtype)


def index_patterns(rng, shape, places, layout):
    """Anywhere; nearly all in one place; in order, as pooling gives them.

    The one place is the last of a slab, and for the second item the first of the next slab, where the last output of
    every chunk goes and no other.
    """
    yield rng.integers(-1, places, shape)
    outputs = np.linspace(0, places - 1, 15 * 11).astype(int)
    batch, channels = shape[0], shape[3 if layout == "channels_last" else 1]
    one_place = np.where(rng.random((batch, outputs.size, channels)) < 0.9, 63, -1)
    one_place[1] = np.where(np.arange(outputs.size) % scatter.CHUNK == scatter.CHUNK - 1, 64, -1)[:, None]
    for indices in (one_place, np.broadcast_to(outputs[None, :, None], one_place.shape)):
        yield lying(indices.reshape(batch, 15, 11, channels), layout).copy()


# --- Memory, and numbers that are none --------------------------------------------------------------------------------

VIEWS = {
    "reversed": np.s_[:, ::-1, :, ::-1],
    "every other": np.s_[:, ::2, 1::2],
    "misaligned": np.s_[..., 1:9],
    "some channels": np.s_[..., ::3],
    "too few channels": np.s_[..., :6],
    "odd rows": np.s_[:, :, :, :8],
    "one item many times": None,
    "turned": "turned",
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_where_they_lie(cuda, view):
    rng = np.random.default_rng(0)
    whole = integers(rng, (2, 12, 13, 13 if view == "odd rows" else 12), np.float32)

    def seen(a, library):
        if view == "turned":
            return library.swapaxes(a, 1, 3)
        return library.broadcast_to(a[:1], a.shape) if VIEWS[view] is None else a[VIEWS[view]]

    own = seen(cuda.cupy.asarray(whole), cuda.cupy)
    x = np.ascontiguousarray(seen(whole, np))
    indices = integers(rng, whole.shape, np.int64) + 4
    far = seen(cuda.cupy.asarray(indices), cuda.cupy)
    indices = np.ascontiguousarray(seen(indices, np))
    for layout, cuda.device in product(LAYOUTS, (BUSY, H200)):
        spec = spec_of(x.shape, (3, 3), layout, padding=((1, 1), (2, 0)))
        for name, options in operations("float32"):
            if name == "avg_pool_grad":
                spec = spec_of(x.shape, (3, 3), layout, padding=((1, 1), (1, 1)))
            same(getattr(cuda.pool, name)(own, spec, **options), getattr(agnostic, name)(x, spec, **options), "float32")
        channels, size = (x.shape[3], x.shape[1:3]) if layout == "channels_last" else (x.shape[1], x.shape[2:])
        shapes = AdaptiveSpec(layout, 2, channels, size, (3, 2))
        same(cuda.pool.adaptive_avg_pool(own, shapes), agnostic.adaptive_avg_pool(x, shapes), "float32")
        axes = (1, 2) if layout == "channels_last" else (2, 3)
        same(cuda.pool.global_max_pool(own, axes, keepdims=False), x.max(axes))
        plane = ScatterSpec(layout, 2, channels, size, (4, 4))
        same(cuda.pool.max_pool_grad(own, far, plane), agnostic.max_pool_grad(x, indices, plane), "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_go_where_they_belong(cuda, dtype, layout):
    rng = np.random.default_rng(0)
    odd = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1.0], size=(1, 12, 13, 8), p=[0.02, 0.1, 0.1, 0.4, 0.38])
    x = lying(odd, layout).astype(dtype)
    axes = (1, 2) if layout == "channels_last" else (2, 3)
    boxed = AdaptiveSpec(layout, 1, 8, (12, 13), (3, 4))
    for cuda.device, window in product((BUSY, H200), ((3, 3), (11, 12))):
        own, spec = cuda.cupy.asarray(x), spec_of(x.shape, window, layout, padding=((6, 6), (12, 12)))
        options = dict(count_include_pad=False, divisor=None)
        with np.errstate(invalid="ignore"):
            for flag in (False, True):
                same(
                    cuda.pool.max_pool(own, spec, return_indices=flag), agnostic.max_pool(x, spec, return_indices=flag)
                )
                result = cuda.pool.adaptive_max_pool(own, boxed, return_indices=flag)
                same(result, agnostic.adaptive_max_pool(x, boxed, return_indices=flag))
            same(cuda.pool.avg_pool(own, spec, **options), agnostic.avg_pool(x, spec, **options), dtype)
            expected = agnostic.global_avg_pool(x, axes, keepdims=False)
        same(cuda.pool.global_avg_pool(own, axes, keepdims=False), expected, dtype)


def test_the_norm_of_complex_numbers_neither_overflows_nor_loses_an_infinity(cuda):
    x = np.array([3e30 + 4e30j, 0, complex(np.inf, np.nan), complex(np.nan, 0)], np.complex64).reshape(1, 4, 1)
    spec = spec_of(x.shape, (1,))
    np.testing.assert_allclose(
        cuda.pool.lp_pool(cuda.cupy.asarray(x), spec, p=1).get().ravel(), [5e30, 0, np.inf, np.nan]
    )


def test_items_may_lie_farther_apart_than_32_bits_count(cuda):
    from xpconv.cuda import launch

    spec = spec_of((2, 6, 1), (3,))
    with far_apart(cuda.cupy, np.arange(6, dtype=np.uint8), np.arange(10, 16, dtype=np.uint8)) as (near, _, apart):
        work = windows.max_pool(
            spec, Operand((apart, 1, 1), False), dense(spec.y_shape), Setting("uint8", H200, 1), return_indices=False
        )
        y = cuda.cupy.empty(spec.y_shape, dtype=np.uint8)
        launch.run(work, {"x": near, "y": y})
    assert y.get().ravel().tolist() == [2, 3, 4, 5, 12, 13, 14, 15]


def test_a_huge_batch_takes_many_rows_of_the_grid(cuda, monkeypatch):
    from xpconv.cuda import pool_geometry

    monkeypatch.setattr(pool_geometry, "MOST", 200)  # threads of a row, twice
    windows.sum_pool.cache_clear()
    boxes.adaptive_pool.cache_clear()
    x = integers(np.random.default_rng(0), (11, 5, 3, 2), np.int32)
    spec, boxed = spec_of(x.shape, (2, 2)), AdaptiveSpec("channels_last", 11, 2, (5, 3), (2, 2))
    work = windows.sum_pool(spec, Operand(dense(x.shape), True), dense(spec.y_shape), Setting("int32", H200, 1))
    assert work.steps[0].grid[1] == 2
    same(cuda.pool.sum_pool(cuda.cupy.asarray(x), spec), agnostic.sum_pool(x, spec))
    same(cuda.pool.adaptive_max_pool(cuda.cupy.asarray(x), boxed, return_indices=False),
         agnostic.adaptive_max_pool(x, boxed, return_indices=False))  # fmt: skip
    windows.sum_pool.cache_clear()
    boxes.adaptive_pool.cache_clear()


def test_empty_arrays_launch_nothing(cuda):
    for shape in ((0, 4, 4, 2), (2, 4, 4, 0)):
        x, spec = cuda.cupy.zeros(shape, dtype=np.float32), spec_of(shape, (2, 2))
        assert cuda.pool.max_pool(x, spec, return_indices=True)[1].shape == spec.y_shape
        plane = ScatterSpec("channels_last", shape[0], shape[3], (4, 4), (5, 5))
        assert cuda.pool.max_unpool(x, x.astype(np.int64), plane).shape == (shape[0], 5, 5, shape[3])
    assert not cuda.launched


# --- Plans ------------------------------------------------------------------------------------------------------------

LAYERS = {
    "resnet stem": ((64, 112, 112, 64), dict(window=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))),
    "halves": ((256, 32, 32, 128), dict(window=(2, 2), stride=(2, 2))),
    "blur": ((8, 512, 512, 3), dict(window=(101, 101), padding=((50, 50), (50, 50)))),
    "window of the size": ((1, 224, 224, 3), dict(window=(224, 224))),
    "signal": ((4, 200_000, 2), dict(window=(9,), stride=(3,))),  # more results than a grid has rows
    "volume": ((2, 64, 128, 128, 16), dict(window=(3, 3, 3), stride=(2, 2, 2), ceil_mode=True)),
    "many items": ((3_000_000, 2, 2, 512), dict(window=(2, 2))),
}


def works_of(layer, dtype, device, layout, limit=1 << 26):
    """Every work of a layer, by operation."""
    shape, geometry = LAYERS[layer]
    shape = in_layout(layout, shape[0], shape[1:-1], shape[-1])
    spec, setting = spec_of(shape, layout=layout, **geometry), Setting(dtype, device, limit)
    x, y = Operand(dense(shape), True), Operand(dense(spec.y_shape), True)
    for name, options in operations(dtype):
        ends = (y, x.strides) if name == "avg_pool_grad" else (x, y.strides)
        yield name, getattr(windows, name)(spec, *ends, setting, **options)
    boxed = AdaptiveSpec(layout, spec.batch, spec.channels, spec.size, (2,) * spec.axes)
    strides = dense(in_layout(layout, spec.batch, boxed.out_size, spec.channels))
    axes = tuple(range(1, 1 + spec.axes)) if layout == "channels_last" else tuple(range(2, 2 + spec.axes))
    mean = dtype in FLOATING
    yield "adaptive", boxes.adaptive_pool(boxed, x, strides, setting, mean=mean, return_indices=False)
    yield "global", boxes.global_pool(shape, axes, x, setting, mean=mean)
    plane = ScatterSpec(layout, spec.batch, spec.channels, spec.out_size, spec.size)
    yield "max_pool_grad", scatter.scatter(plane, y, y, setting, add=True)
    yield "max_unpool", scatter.scatter(plane, y, y, setting, add=False)


@pytest.mark.parametrize("device", hardware.KNOWN, ids=lambda device: device.name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_plans_are_legal_on_every_device(device, layout, layer):
    known = {kernel for module in (windows, boxes, scatter) for kernel in module.instances(device.capability)}
    for dtype in ("float16", "float32", "complex128", "uint8"):
        for name, work in works_of(layer, dtype, device, layout):
            assert isinstance(work, Work), (name, work)
            assert sum(work.scratch.values()) <= 1 << 26
            assert work.plan.workspace == sum(work.scratch.values())
            for step in work.steps:
                assert step.kernel in known
                assert step.block in (64, 128, 256)
                assert step.shared <= 48 * 1024
                assert 0 < step.grid[0] <= hardware.GRID_X
                assert all(0 < n <= hardware.GRID_YZ for n in step.grid[1:])


def test_large_windows_are_pooled_axis_by_axis_within_the_limit():
    for limit, method, steps in ((1 << 26, "separable", 2), (1 << 20, "direct", 1)):
        for name, work in works_of("blur", "float32", H200, "channels_last", limit):
            if name in ("sum_pool", "avg_pool", "lp_pool", "avg_pool_grad"):
                assert (work.plan.method, len(work.steps)) == (method, steps), name
    maxima = [work for name, work in works_of("blur", "float32", H200, "channels_first") if name == "max_pool"]
    assert [len(work.steps) for work in maxima] == [2, 1]  # indices want the whole window


def test_what_the_plans_decline():
    setting = Setting("float32", H200, 1 << 20)
    spec = spec_of((1, 1 << 17, 1 << 17, 1), (2, 2))
    for work in (
        windows.sum_pool(spec, Operand(dense(spec.x_shape), True), dense(spec.y_shape), setting),
        windows.sum_pool(spec_of((1, 2, 2, 2, 2, 1), (1,) * 4), Operand((1,) * 6, True), (1,) * 6, setting),
        windows.sum_pool(spec_of((1, 2, 1), (1,)), Operand((1,) * 3, True), (1,) * 3, replace(setting, dtype="bool")),
        boxes.global_pool((1, 2, 2, 2, 2, 1), (1, 2, 3, 4), Operand((1, 3, 17, 5, 11, 1), True), setting, mean=True),
        scatter.scatter(ScatterSpec("channels_last", 1, 1, (1,), (1 << 31,)), Operand((1,) * 3, True),
                        Operand((1,) * 3, True), setting, add=True),
    ):  # fmt: skip
        assert isinstance(work, Unfit)
        assert work.reason


def test_only_indices_need_a_plane_that_an_integer_counts():
    spec, setting = spec_of((1, 50_000, 50_000, 1), (2, 2), stride=(2, 2)), Setting("uint8", H200, 1)
    for indices, taken in ((False, Work), (True, Unfit)):
        x, y = Operand(dense(spec.x_shape), True), dense(spec.y_shape)
        assert isinstance(windows.max_pool(spec, x, y, setting, return_indices=indices), taken)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_lowest_of_values_has_a_place_too(cuda, dtype):
    lowest = -np.inf if dtype == "float32" else -128
    for layout, cuda.device in product(LAYOUTS, (BUSY, H200)):
        x = lying(np.full((1, 5, 7, 2), lowest, dtype), layout)
        own, boxed = cuda.cupy.asarray(x), AdaptiveSpec(layout, 1, 2, (5, 7), (2, 3))  # a lane is left over
        spec = spec_of(x.shape, (2, 2), layout, padding=((2, 0), (1, 1)))
        same(cuda.pool.max_pool(own, spec, return_indices=True), agnostic.max_pool(x, spec, return_indices=True))
        result = cuda.pool.adaptive_max_pool(own, boxed, return_indices=True)
        same(result, agnostic.adaptive_max_pool(x, boxed, return_indices=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_few_large_boxes_are_pooled_axis_by_axis(cuda, dtype, layout):
    x = lying(integers(np.random.default_rng(0), (1, 27, 41, 43, 1), dtype), layout)
    spec = AdaptiveSpec(layout, 1, 1, (27, 41, 43), (2, 3, 3))
    own = cuda.cupy.asarray(x)
    for limit, steps in ((1, 1), (1 << 20, 3)):
        with workspace_limit(limit):
            work = cuda.pool.adaptive_max_pool.job(own, spec, return_indices=False).plan()
            assert len(work.steps) == steps
            result = cuda.pool.adaptive_max_pool(own, spec, return_indices=False)
            same(result, agnostic.adaptive_max_pool(x, spec, return_indices=False))
            if dtype in FLOATING:
                same(cuda.pool.adaptive_avg_pool(own, spec), agnostic.adaptive_avg_pool(x, spec), dtype)
    result = cuda.pool.adaptive_max_pool(own, spec, return_indices=True)
    same(result, agnostic.adaptive_max_pool(x, spec, return_indices=True))


def test_slabs_of_maps_with_gaps_are_cut_along_the_longer_axis(cuda):
    x = integers(np.random.default_rng(0), (1, 138, 142, 3), np.float32)[:, ::2, ::-2]
    own = cuda.cupy.asarray(np.ascontiguousarray(x[:, :, ::-1]))
    own = cuda.cupy.repeat(cuda.cupy.repeat(own, 2, axis=1), 2, axis=2)[:, ::2, ::-2]
    work = cuda.pool.global_avg_pool.job(own, (1, 2), keepdims=False).plan()
    assert len(work.steps) == 2
    np.testing.assert_array_equal(cuda.pool.global_max_pool(own, (1, 2), keepdims=False).get(), x.max((1, 2)))
    same(cuda.pool.global_avg_pool(own, (1, 2), keepdims=False), x.mean((1, 2)), "float32")


def test_four_axes_that_lie_one_inside_the_other_are_one(cuda):
    x = integers(np.random.default_rng(0), (2, 2, 3, 2, 5, 4), np.float32)
    result = cuda.pool.global_max_pool(cuda.cupy.asarray(x), (1, 2, 3, 4), keepdims=True)
    same(result, x.max((1, 2, 3, 4), keepdims=True))


# --- The twins in Python ----------------------------------------------------------------------------------------------


def test_the_chunk_of_the_plan_is_the_kernels():
    assert f"constexpr int CHUNK = {scatter.CHUNK};" in source.text("pool_scatter.cu")


@pytest.mark.parametrize("pool", [xpconv.max_pool3d, xpconv.min_pool3d, xpconv.sum_pool3d, xpconv.avg_pool3d])
@pytest.mark.parametrize("options", [dict(stride=(1, 1, 2)), dict(stride=1, padding=((0, 0), (0, 0), (1, 0)))])
def test_a_window_of_one_may_skip_elements_or_read_padding_beside_large_windows(cupy, pool, options):
    x = integers(np.random.default_rng(0), (1, 20, 20, 6, 1), np.float32)
    y = pool(cupy.asarray(x), (11, 11, 1), **options)
    np.testing.assert_allclose(y.get(), pool(x, (11, 11, 1), **options), rtol=1e-6)


def test_the_gradient_of_a_mean_too(cupy):
    gy = np.ones((1, 24, 7, 8, 13), np.float32)
    options = dict(size=(4, 4, 2), dilation=(4, 2, 1), padding=((6, 7), (11, 11), (6, 5)), layout="channels_first")
    gx = xpconv.avg_pool_grad(cupy.asarray(gy), (2, 3, 1), **options)
    np.testing.assert_allclose(gx.get(), xpconv.avg_pool_grad(gy, (2, 3, 1), **options), rtol=1e-6)
