"""Dask arrays: the numbers of the whole array, in any chunks, and nothing computed before it is asked for."""

import pickle
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

dask = pytest.importorskip("dask", reason="Dask is not installed")

import dask.array as da  # noqa: E402
from dask.callbacks import Callback  # noqa: E402

import xpconv  # noqa: E402
from cases import conv_cases, first, pool_cases, weight_first  # noqa: E402
from chunkings import call, in_chunks, lazily  # noqa: E402
from engine_cases import (  # noqa: E402
    AVERAGES,
    CONVOLUTIONS,
    FIRST,
    POOLINGS,
    TRANSPOSED,
    conv_arrays,
    gradients_of_conv,
    integers,
    pool_arrays,
    reference,
    spatial_size,
)
from xpconv import dispatch  # noqa: E402
from xpconv.chunks import graph, scattering, work  # noqa: E402
from xpconv.workspace import current_limit  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("error::numpy.exceptions.ComplexWarning"),
    pytest.mark.filterwarnings("ignore:.*rechunk x to"),
]
both_transports = pytest.mark.usefixtures("transport")
both_layouts = pytest.mark.parametrize("layout", ["channels_last", FIRST])
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=["rims", "whole blocks"])
def transport(request, monkeypatch):
    """Both ways of reading the neighbours of a chunk: small blocks are read whole otherwise."""
    monkeypatch.setattr(graph, "WORTH_A_RIM", 0 if request.param == "rims" else 1 << 60)


def assert_agrees(function, *arrays, seed=0, **options):
    """The numbers and dtypes of the reference; spectra of chunks may round in the last digits."""
    result = call(function, *arrays, rng=np.random.default_rng(seed), **options)
    expected = reference(function, *arrays, **options)
    for own, right in zip(*((r if isinstance(r, tuple) else (r,)) for r in (result, expected)), strict=True):
        assert own.dtype == right.dtype
        if own.dtype.kind in "iu":
            np.testing.assert_array_equal(own, right)
        else:
            np.testing.assert_allclose(own, right, rtol=2 * np.finfo(own.dtype).eps, atol=1e-9)


# --- Values -----------------------------------------------------------------------------------------------------------


@both_transports
@given(case=conv_cases(), seed=seeds)
def test_conv_and_corr_are_the_sum_of_their_definition(case, seed):
    rng = np.random.default_rng(seed)
    y = call(
        getattr(xpconv, case.function), case.x, case.w, case.bias, rng=rng, fill_value=case.fill, **case.options
    )
    assert y.dtype == case.expected().dtype
    np.testing.assert_allclose(y, case.expected(), atol=0 if y.dtype.kind in "iu" else 1e-9)
    y = call(
        getattr(xpconv, case.function), first(case.x), weight_first(case.w), case.bias, rng=rng, layout=FIRST,
        fill_value=case.fill, **case.options,
    )  # fmt: skip
    np.testing.assert_allclose(y, first(case.expected()), atol=0 if y.dtype.kind in "iu" else 1e-9)


@both_transports
@pytest.mark.parametrize(("family", "layout"), [("conv", "channels_last"), ("corr", FIRST)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_and_its_gradients_are_the_references(name, family, layout):
    for seed, dtype in enumerate(("float64", "int16")):
        x, w, gy, size, window, options = gradients_of_conv(CONVOLUTIONS[name], layout, family, dtype)
        bias = integers(w.shape[0 if layout == FIRST else -1], seed=4, dtype=dtype)
        assert_agrees(getattr(xpconv, family), x, w, bias, activation="relu", seed=seed, **options)
        assert_agrees(getattr(xpconv, f"{family}_grad_input"), gy, w, size=size, seed=seed, **options)
        assert_agrees(getattr(xpconv, f"{family}_grad_weight"), x, gy, window=window, seed=seed, **options)


@both_transports
@both_layouts
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution_is_the_references(name, layout):
    x, w, options = conv_arrays(TRANSPOSED[name], layout, "int32")
    filters = (w.shape[1] if layout == FIRST else w.shape[-2]) * options.get("groups", 1)
    bias = integers(filters, seed=4, dtype="int32")
    for seed in range(2):
        assert_agrees(xpconv.conv_transpose, x, w, bias, activation="relu", seed=seed, **options)


@both_layouts
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_plain_arrays_and_single_maps_too(axes, layout):
    image, kernel = integers(*(7, 6, 5)[:axes]), integers(*(3, 2, 2)[:axes], seed=1)
    for name in (f"conv{axes}d", f"corr_transpose{axes}d"):
        assert_agrees(getattr(xpconv, name), image, kernel, stride=2, layout=layout)
    maps = integers(*(3, *(5,) * axes)) if layout == FIRST else integers(*((5,) * axes), 3)
    one_map = integers(*(3, *(2,) * axes)) if layout == FIRST else integers(*((2,) * axes), 3)
    assert_agrees(getattr(xpconv, f"conv{axes}d"), maps, one_map, layout=layout, activation=abs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_over_chunks_of_channels_are_kept_in_float32(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    x, w = np.full((1, 3, 4096), 1 / 3).astype(dtype), np.full((1, 4096, 2), 1 / 3).astype(dtype)
    for own in ((1, 3, 128), (1, 1, 4096)):
        weight = da.from_array(w, chunks=(1, 512, 1))
        lazy = lazily(xpconv.corr, da.from_array(x, chunks=own), weight, np.ones(2, dtype))
        assert lazy.dtype == x.dtype
        y = lazy.compute(scheduler="synchronous")
        np.testing.assert_array_equal(y, xpconv.corr(x, w, np.ones(2, dtype)))
    ones = da.from_array(np.ones((1, 9000, 1), dtype), chunks=(1, 7, 1))
    gw = lazily(xpconv.corr_grad_weight, ones, ones, window=1)
    assert gw.dtype == x.dtype
    assert float(gw.compute(scheduler="synchronous").item()) == float(np.asarray(9000, dtype))


def test_copies_of_an_element_are_summed_in_float32_too():
    gy, w = np.ones((1, 3004, 1), np.float16), np.ones((1, 1, 1), np.float16)
    options = {"size": 4, "padding": ((3000, 0),), "padding_mode": "edge"}
    gx = call(xpconv.conv_grad_input, gy, w, rng=np.random.default_rng(0), most=900, **options)
    np.testing.assert_array_equal(gx, xpconv.conv_grad_input(gy, w, **options))
    assert gx[0, 0, 0] > 2048  # where float16 would have stopped counting


@pytest.mark.parametrize("method", ["direct", "gemm", "fft"])
def test_the_method_is_that_of_the_chunks(method):
    x, w = integers(2, 9, 9, 2), integers(3, 3, 2, 2, seed=1)
    y = call(xpconv.conv2d, x, w, rng=np.random.default_rng(0), method=method, precision="tf32")
    np.testing.assert_allclose(y, xpconv.conv2d(x, w), atol=1e-9)
    with pytest.raises(ValueError, match="method='tiles' is not in the numpy engine; it has 'auto', 'direct'"):
        xpconv.conv2d(da.zeros((1, 9, 9, 2)), np.ones((3, 3, 2, 2)), method="tiles")


@both_transports
@given(case=pool_cases(), seed=seeds, options=st.sampled_from(list(AVERAGES.values())))
def test_poolings_are_the_references(case, seed, options):
    assert_agrees(xpconv.max_pool, case.x, seed=seed, return_indices=True, **case.options)
    assert_agrees(xpconv.min_pool, case.x, seed=seed, **case.options)
    assert_agrees(xpconv.sum_pool, case.x, seed=seed, **case.options)
    with np.errstate(invalid="ignore"):
        assert_agrees(xpconv.avg_pool, case.x, seed=seed, **options, **case.options)
        y = reference(xpconv.avg_pool, case.x, **options, **case.options)
        gy = integers(*y.shape, dtype="float32")
        size = case.x.shape[1:-1]
        assert_agrees(xpconv.avg_pool_grad, gy, size=size, seed=seed, **options, **case.options)


@both_layouts
@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_of_both_layouts_and_of_plain_images(name, layout):
    x, window, options = pool_arrays(POOLINGS[name], layout)
    assert_agrees(xpconv.max_pool, x, window, return_indices=True, **options)
    assert_agrees(xpconv.lp_pool, x, window, p=3, **options)
    y, indices = reference(xpconv.max_pool, x, window, return_indices=True, **options)
    size = spatial_size(x, window, layout)
    assert_agrees(xpconv.max_pool_grad, y, indices, size=size, layout=layout)


@pytest.mark.parametrize("kind", ["complex64", "int32"])
def test_norms_have_the_dtype_of_the_whole_array(kind):
    assert_agrees(xpconv.lp_pool, integers(2, 9, 3, dtype=kind), 2, p=2)


def test_the_first_nan_wins_across_chunks():
    x = integers(2, 9, 8, 3, dtype="float32")
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    assert_agrees(xpconv.max_pool2d, x, 3, stride=2, padding=1, return_indices=True)


@both_layouts
@pytest.mark.parametrize("base", [2, 32])
def test_values_go_to_any_chunk_and_the_last_of_several_counts(layout, base, monkeypatch):
    monkeypatch.setattr(scattering, "BASE", base)
    values = integers(2, 4, 3, 5, dtype="float32") if layout != FIRST else integers(2, 5, 4, 3, dtype="float32")
    indices = np.random.default_rng(1).integers(0, 30, values.shape).astype(np.uint8)
    for seed, function in enumerate((xpconv.max_unpool, xpconv.max_pool_grad)):
        assert_agrees(function, values, indices, size=(5, 6), layout=layout, seed=seed)
        assert_agrees(function, values, indices, size=(40, 6), layout=layout, seed=seed)


def test_index_minus_one_gets_no_gradient_and_others_outside_raise_when_computed():
    gy = da.ones((1, 3, 1), chunks=2)
    gx = xpconv.max_pool_grad(gy, np.asarray([-1, 0, -1]).reshape(1, 3, 1), size=4)
    assert gx.compute(scheduler="synchronous").ravel().tolist() == [1, 0, 0, 0]
    for function, index in ((xpconv.max_pool_grad, 7), (xpconv.max_pool_grad, -2), (xpconv.max_unpool, -1)):
        outside = lazily(function, gy, np.asarray([0, index, 1]).reshape(1, 3, 1), size=4)
        with pytest.raises(ValueError, match=f"indices has {index}, outside the plane of 4 elements that size gives"):
            outside.compute(scheduler="synchronous")


@both_layouts
@pytest.mark.parametrize("shape", [(2, 9, 5), (2, 5, 6, 3), (5, 6, 3)])
def test_pooling_to_a_wanted_size_and_of_whole_maps(shape, layout):
    size = (3, 4)[: 1 if shape == (2, 9, 5) else 2]
    x = integers(*shape)
    x = np.moveaxis(x, -1, -1 - len(size)) if layout == FIRST else x
    assert_agrees(xpconv.adaptive_avg_pool, x, size, layout=layout)
    assert_agrees(xpconv.adaptive_max_pool, x, size, return_indices=True, layout=layout)
    if shape[0] == 2:
        assert_agrees(xpconv.global_max_pool, x, layout=layout)
        assert_agrees(xpconv.global_avg_pool, x, layout=layout, keepdims=True)


@both_layouts
@given(case=pool_cases(dtypes=(np.int32,), ceil_mode=False), seed=seeds)
def test_patches_are_taken_and_put_back(layout, case, seed):
    x = first(case.x) if layout == FIRST else case.x
    options = {name: value for name, value in case.options.items() if name != "ceil_mode"} | {"layout": layout}
    assert_agrees(xpconv.unfold, x, seed=seed, **options)
    patches = reference(xpconv.unfold, x, **options)
    assert_agrees(xpconv.fold, patches, size=case.x.shape[1:-1], seed=seed, **options)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("function", [xpconv.signal.convolve, xpconv.signal.correlate])
def test_signals_of_scipy(function, mode):
    image, kernel = integers(13, 11), integers(4, 3, seed=1)
    for boundary in ("fill", "symm", "wrap"):
        assert_agrees(function, image, kernel, mode, boundary=boundary)
    images, kernels = integers(5, 9, 8, dtype="int32"), integers(5, 3, 2, seed=1, dtype="int32")
    assert_agrees(function, images, kernels, mode, axes=(-2, -1))
    assert_agrees(function, images, kernels[:1, :1], mode, axes=-1)


# --- The graph --------------------------------------------------------------------------------------------------------


@both_transports
def test_a_chunk_costs_one_task_or_two_with_the_rim_of_its_block():
    def tasks(side):
        x = da.zeros((side * 10, side * 10), chunks=10)
        y = lazily(xpconv.conv2d, x, np.ones((3, 3)), padding="same")
        assert y.chunks == x.chunks
        return sum(len(layer) for name, layer in y.dask.layers.items() if name not in x.dask.layers) - 1

    each = 2 if graph.WORTH_A_RIM == 0 else 1
    assert [tasks(side) for side in (4, 8, 16)] == [each * side**2 for side in (4, 8, 16)]


def test_a_graph_of_a_hundred_thousand_chunks_stays_symbolic():
    y = lazily(xpconv.max_pool2d, da.zeros((320_000, 320_000), chunks=1000), 2)
    assert y.npartitions == 102_400
    assert len(pickle.dumps(y.dask.layers[y.name])) < 100_000
    corner = y[:100, :100]
    (optimized,) = dask.optimize(corner)
    assert len(optimized.dask) < 10
    assert corner.compute(scheduler="synchronous").shape == (100, 100)


def test_a_plain_weight_is_in_the_graph_once():
    w = np.ones((3, 3, 4, 1000))
    y = xpconv.conv2d(da.zeros((8, 64, 64, 4), chunks=(1, 16, 16, 4)), w)
    (optimized,) = dask.optimize(y)
    assert len(pickle.dumps(dict(optimized.dask))) < 2 * w.nbytes


@both_transports
def test_a_few_rows_of_blocks_are_alive_at_once():
    rows, columns, most = 60, 5, [0]
    x = da.zeros((rows * 20, columns * 20), chunks=20)
    y = lazily(xpconv.conv2d, x, np.ones((3, 3)), padding="same")

    def count(key, result, graph, state, worker):  # noqa: ARG001  as Dask calls it
        most[0] = max(most[0], sum(held[0] == x.name for held in state["cache"] if isinstance(held, tuple)))

    with Callback(posttask=count):
        y.sum().compute(scheduler="synchronous")
    assert columns < most[0] <= (5 if graph.WORTH_A_RIM == 0 else 9) * columns


def test_rims_are_small_and_read_in_place_of_blocks(monkeypatch):
    monkeypatch.setattr(graph, "WORTH_A_RIM", 0)
    x = da.zeros((100, 100), chunks=10)
    y = xpconv.conv2d(x, np.ones((3, 3)), padding="same")
    task = y.dask.layers[y.name][(y.name, 4, 4)]
    assert sum(key[0] == x.name for key in task.dependencies) == 1
    assert len(task.dependencies) == 10  # the block at home, eight rims, the weight


# --- What is given, and what comes back -------------------------------------------------------------------------------


def test_plain_arrays_beside_a_dask_array_become_chunks():
    x, w, b = integers(2, 9, 8, 3), integers(3, 3, 3, 2, seed=1), integers(2, seed=2)
    expected = xpconv.conv2d(x, w, b)
    rng = np.random.default_rng(0)
    for arrays in ((in_chunks(x, rng), w, b), (x, in_chunks(w, rng), b), (in_chunks(x, rng), w.tolist(), b.tolist())):
        y = lazily(xpconv.conv2d, *arrays)
        assert isinstance(y, da.Array)
        np.testing.assert_array_equal(y.compute(scheduler="synchronous"), expected)


def test_a_dtype_may_be_asked_for_and_inputs_promoted():
    x, w = integers(2, 9, 3, dtype="uint8"), integers(2, 3, 2, seed=1, dtype="int8")
    assert_agrees(xpconv.conv, x, w, dtype="int32")
    assert_agrees(xpconv.conv, x, w.astype("float32"))


def test_threads_and_the_same_call_twice_give_the_same_bits():
    x = np.random.default_rng(0).random((3, 40, 40, 6))
    w = np.random.default_rng(1).random((5, 5, 6, 4))
    lazy = [xpconv.conv2d(da.from_array(x, chunks=(1, 13, 9, 2)), w) for _ in range(2)]
    assert lazy[0].name == lazy[1].name
    np.testing.assert_array_equal(lazy[0].compute(scheduler="threads"), lazy[1].compute(scheduler="synchronous"))


def test_chunks_of_cupy_stay_with_cupy(cupy):
    x, w = integers(2, 9, 8, 3, dtype="float32"), integers(3, 3, 3, 2, seed=1, dtype="float32")
    own = da.from_array(cupy.asarray(x), chunks=(1, 4, 5, 3), asarray=False)
    for weight in (cupy.asarray(w), da.from_array(cupy.asarray(w), chunks=(3, 3, 3, 1), asarray=False)):
        y = lazily(xpconv.conv2d, own, weight, padding=1, padding_mode="reflect")
        assert isinstance(y._meta, cupy.ndarray)
        result = y.compute(scheduler="synchronous")
        assert isinstance(result, cupy.ndarray)
        np.testing.assert_array_equal(result.get(), xpconv.conv2d(x, w, padding=1, padding_mode="reflect"))
    pooled, indices = lazily(xpconv.max_pool2d, own, 2, return_indices=True)
    gx = lazily(xpconv.max_pool_grad, pooled, indices, size=(9, 8)).compute(scheduler="synchronous")
    expected = xpconv.max_pool2d(x, 2, return_indices=True)
    np.testing.assert_array_equal(gx.get(), xpconv.max_pool_grad(*expected, size=(9, 8)))
    with pytest.raises(TypeError, match=r"needs chunks of one library, got x of cupy\.ndarray, w of numpy\.ndarray"):
        xpconv.conv2d(own, w)


# --- What is told -----------------------------------------------------------------------------------------------------


def test_chunks_that_are_too_small_are_warned_of_once():
    x, w = da.zeros((400, 400), chunks=20), np.ones((21, 21))
    message = r"conv reads 3\.8 elements for each that x has, since its windows reach \(21, 21\) elements and chunks are \(20, 20\); rechunk x to \(89, 89\) or more"  # fmt: skip  # noqa: E501
    with pytest.warns(UserWarning, match=message) as caught:
        xpconv.conv2d(x, w, padding="same")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xpconv.conv2d(x.rechunk(89), w, padding="same")
        xpconv.max_pool2d(x, 2)


def test_an_explanation_tells_the_engine_of_the_chunks_and_their_number():
    x, w = da.zeros((8, 60, 60, 3), chunks=(2, 30, 30, 3), dtype="float32"), np.ones((3, 3, 3, 8), "float32")
    explained = xpconv.explain(xpconv.conv2d, x, w, method="gemm", padding=1)
    padding = ((0, 1), (0, 1))  # of the chunk in the last corner
    chunk = xpconv.explain(xpconv.conv2d, np.zeros((2, 31, 31, 3), "float32"), w, method="gemm", padding=padding)
    assert (explained.engine, explained.method, explained.workspace) == ("dask", "gemm", chunk.workspace)
    assert explained.reason == "asked for, on the numpy engine: 16 tasks for 16 chunks of the result"
    for function, options in (
        (xpconv.conv_grad_weight, {"window": (1, 1)}), (xpconv.max_pool2d, {"window": 2}),
        (xpconv.unfold, {"window": 2}), (xpconv.adaptive_max_pool, {"size": (3, 3)}),
    ):  # fmt: skip
        arrays = (x, x) if function is xpconv.conv_grad_weight else (x,)
        assert " tasks for " in lazily(partial(xpconv.explain, function), *arrays, **options).reason


ERRORS = {
    "chunks of unknown sizes": (
        lambda x: xpconv.max_pool1d(x[x > 0], 2),
        ValueError,
        r"x has chunks of unknown sizes; call x\.compute_chunk_sizes\(\) first",
    ),
    "objects": (
        lambda x: xpconv.conv1d(x.astype(object), [1, 2]),
        TypeError,
        r"conv1d does not take dtype object \(x\); it takes integers, floats and complex numbers",
    ),
    "bool": (lambda x: xpconv.conv1d(x > 0, [1, 2]), TypeError, r"conv1d does not take bool \(x\); cast it"),
    "out": (
        lambda x: xpconv.conv1d(x, [1, 2], out=np.zeros(8)),
        TypeError,
        "conv1d cannot write the lazy result of Dask arrays into out; leave out= away, and store it",
    ),
    "a window that does not fit": (
        lambda x: xpconv.conv1d(x, np.ones(10)),
        ValueError,
        "the window does not fit: spatial axis 0 is 9 long",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_in_one_line(name):
    function, error, message = ERRORS[name]
    with pytest.raises(error, match=message) as raised:
        lazily(function, da.from_array(np.arange(9.0), chunks=4))
    assert "\n" not in str(raised.value)


def test_torch_beside_dask_is_refused():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match="needs chunks of one library"):
        xpconv.conv1d(da.zeros(9, chunks=4), torch.ones(2))


def test_the_limit_of_scratch_memory_is_the_one_of_the_call(monkeypatch):
    seen = []
    monkeypatch.setattr(work, "run", lambda request: seen.append(current_limit()) or dispatch.run(request))
    x = da.ones((20, 20), chunks=10)
    with xpconv.workspace_limit(12345):
        y = xpconv.conv2d(x, np.ones((3, 3)))
    y.compute(scheduler="synchronous")
    assert set(seen) == {12345}
    assert y.name != xpconv.conv2d(x, np.ones((3, 3))).name
