"""What surrounds the CUDA kernels: their text, compiling and launching."""

import threading

import numpy as np
import pytest

import xpconv
from cases import integers
from cuda_emulator import emulated_cuda
from cuda_emulator.emulated_cupy import emulated_cupy, real_cupy_answers
from xpconv.cuda import source

pytestmark = pytest.mark.usefixtures("cupy")


# --- Text ------------------------------------------------------------------------------------------------------------


def test_every_kernel_of_the_wheel_is_found():
    assert (source.kernel_dir() / "conv_simt.cu").is_file()


def test_a_header_is_pasted_once_and_lines_keep_their_numbers():
    text = source.text("conv_simt.cu")
    assert "#include" not in text
    assert text.count("struct ConvGeometry {") == 1
    file, number = None, 0
    for line in text.splitlines():
        if line.startswith("#line "):
            number, file = int(line.split()[1]) - 1, line.split('"')[1]
            continue
        number += 1
        original = (source.kernel_dir() / file.removeprefix("kernels/")).read_text().splitlines()[number - 1]
        assert line == original or original.startswith("#include")


# --- Compiling and launching ------------------------------------------------------------------------------------------


@pytest.fixture
def layer(cupy):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-4, 5, (2, 9, 9, 3)), rng.integers(-4, 5, (3, 3, 3, 5))
    expected = xpconv.conv2d(x, w, padding=1)
    return cupy.asarray(x.astype(np.float32)), cupy.asarray(w.astype(np.float32)), expected


def test_a_kernel_that_cannot_be_compiled_is_told_once_and_cupy_answers(cupy, layer, monkeypatch):
    from xpconv.cuda import launch

    def broken(*_args, **_options):
        raise cupy.cuda.compiler.CompileException("kernels/x.cu(3): error: expected a ';'")

    monkeypatch.setattr(launch, "_compiled", broken)
    monkeypatch.setattr(launch, "_functions", {})
    monkeypatch.setattr(launch, "_failed", {})
    launch._prepared.clear()
    x, w, expected = layer
    with pytest.warns(RuntimeWarning, match="could not prepare conv_stem.*expected a ';'.*more slowly"):
        y = xpconv.conv2d(x, w, padding=1)
    np.testing.assert_array_equal(y.get(), expected)
    y = xpconv.conv2d(x, w, padding=1)  # pytest turns a second warning into a failure only if it is asked to
    np.testing.assert_array_equal(y.get(), expected)
    launch._prepared.clear()


def test_many_threads_may_call_at_once(layer):
    x, w, expected = layer
    results, errors = [None] * 8, []

    def call(i):
        try:
            results[i] = xpconv.conv2d(x, w, padding=1).get()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for result in results:
        np.testing.assert_array_equal(result, expected)


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_a_result_shares_no_memory_with_its_input(cupy):
    x = cupy.arange(6.0).reshape(1, 6, 1)
    for pool in (xpconv.max_pool1d, xpconv.sum_pool1d):
        assert not cupy.may_share_memory(pool(x, 1), x)


def test_an_out_that_overlaps_an_input_is_refused(cupy):
    x = cupy.arange(6.0)
    with pytest.raises(ValueError, match="out overlaps x; pass memory of its own"):
        xpconv.conv1d(x[:5], cupy.ones(2), out=x[1:5])
    apart = cupy.zeros(12)
    xpconv.conv1d(apart[:5], cupy.ones(2), out=apart[6:10])


def test_results_lie_on_the_device_of_their_input():
    if real_cupy_answers():
        pytest.skip("a real machine rarely has two devices")
    with emulated_cupy(devices=2) as cupy:
        with cupy.cuda.Device(1):
            x, w = cupy.ones((1, 6, 6, 2), dtype=np.float32), cupy.ones((3, 3, 2, 2), dtype=np.float32)
        for _ in range(2):
            assert xpconv.conv2d(x, w).device.id == 1
            assert xpconv.max_pool2d(x, 2).device.id == 1
            assert xpconv.conv_grad_input(xpconv.conv2d(x, w), w, size=(6, 6)).device.id == 1
            assert xpconv.global_avg_pool(x).device.id == 1
        assert cupy.cuda.runtime.getDevice() == 0


# --- Streams, memory, other libraries ---------------------------------------------------------------------------------


@pytest.fixture
def calls(cupy):
    """Calls of every kind, as functions of one array."""
    w = cupy.asarray(integers(np.random.default_rng(0), (3, 3, 8, 16), np.float32))
    gy = cupy.asarray(integers(np.random.default_rng(1), (2, 9, 8, 16), np.float32))
    one = cupy.ones((3, 3, 1, 8), dtype=np.float32)
    return {
        "conv": lambda x: xpconv.conv2d(x, w, padding=1, activation="relu"),
        "tf32": lambda x: xpconv.corr2d(x, w, padding=1, precision="tf32"),
        "edge": lambda x: xpconv.conv2d(x, w, padding=1, padding_mode="edge"),
        "depthwise": lambda x: xpconv.conv2d(x, one, padding=1, groups=8),
        "grad input": lambda x: xpconv.conv_grad_input(gy, w, size=(9, 8), padding=1) + x,
        "grad weight": lambda x: xpconv.conv_grad_weight(x, gy, window=(3, 3), padding=1),
        "max": lambda x: xpconv.max_pool2d(x, 3, stride=2),
        "indices": lambda x: xpconv.max_pool2d(x, 3, stride=2, return_indices=True)[1],
        "avg": lambda x: xpconv.avg_pool2d(x, 3, padding=1),
        "avg grad": lambda x: xpconv.avg_pool_grad(x, 3, size=(27, 24)),
        "adaptive": lambda x: xpconv.adaptive_avg_pool(x, size=(4, 3)),
        "global": lambda x: xpconv.global_max_pool(x),
        "unfold": lambda x: xpconv.unfold(x, (2, 2)),
    }


def test_no_call_waits_for_the_device(cupy, calls):
    if real_cupy_answers():
        pytest.skip("a real device does not count how often it was waited for")
    x = cupy.ones((2, 9, 8, 8), dtype=np.float32)
    for name, call in calls.items():
        for _ in range(2):
            before = emulated_cuda.machine().synchronisations
            call(x)
            assert emulated_cuda.machine().synchronisations == before, name


def test_every_warm_call_can_be_captured_in_a_graph(cupy, calls):
    rng = np.random.default_rng(0)
    x = cupy.asarray(integers(rng, (2, 9, 8, 8), np.float32))
    for call in calls.values():
        call(x)
        call(x)
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            y = call(x)
            graph = stream.end_capture()
            x[...] = cupy.asarray(integers(rng, x.shape, np.float32))
            graph.launch()
            stream.synchronize()
        np.testing.assert_array_equal(y.get(), call(x).get())


def test_too_little_memory_for_parts_of_sums_is_enough_for_whole_ones():
    if real_cupy_answers():
        pytest.skip("the memory of a real device is not ours to fill")
    with emulated_cupy() as cupy:
        x = cupy.ones((1, 7, 7, 512), dtype=np.float64)
        w = cupy.ones((3, 3, 512, 64), dtype=np.float64)
        assert xpconv.explain(xpconv.conv2d, x, w, padding=1).workspace > 0
        pool = cupy.get_default_memory_pool()
        pool.set_limit(pool.used_bytes() + (1 << 16))
        y = xpconv.conv2d(x, w, padding=1)
        assert float(y[0, 3, 3, 0]) == 9 * 512
        pool.set_limit(0)


@pytest.mark.parametrize("limit", [1, 1 << 14, 1 << 20])
def test_scratch_memory_stays_below_the_limit(cupy, limit):
    x, w = cupy.ones((2, 7, 7, 256), dtype=np.float32), cupy.ones((3, 3, 256, 64), dtype=np.float32)
    with xpconv.workspace_limit(limit):
        for call in (
            lambda f: f(xpconv.conv2d, x, w, padding=1),
            lambda f: f(xpconv.conv_grad_weight, x, x[..., :64], window=(3, 3), padding=1),
            lambda f: f(xpconv.conv_grad_weight, x, x, window=(3, 3), padding=1, groups=256),
            lambda f: f(xpconv.sum_pool2d, x, (7, 7), padding=3, stride=1),
        ):
            assert call(xpconv.explain).workspace <= limit


def test_arrays_of_other_libraries_come_in_without_a_copy(cupy):
    class Foreign:
        """What numba's device arrays are to CuPy."""

        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__
            self.keep = array

    mine = cupy.arange(24.0, dtype=np.float32).reshape(1, 4, 3, 2)
    theirs = cupy.asarray(Foreign(mine))
    assert theirs.data.ptr == mine.data.ptr
    w = cupy.ones((2, 2, 2, 3), dtype=np.float32)
    np.testing.assert_array_equal(xpconv.conv2d(theirs, w).get(), xpconv.conv2d(mine, w).get())


def test_everything_runs_where_its_arrays_are():
    if real_cupy_answers():
        pytest.skip("a real machine rarely has two devices")
    with emulated_cupy(devices=2) as cupy:
        with cupy.cuda.Device(1):
            x = cupy.ones((1, 6, 6, 8), dtype=np.float32)
            w, out = cupy.ones((3, 3, 8, 8), dtype=np.float32), cupy.empty((1, 4, 4, 8), dtype=np.float32)
            bytes_, first = x.astype(np.uint8), cupy.ones((1, 8, 6, 6), dtype=np.float16)
            plain = x[0, ..., 0], w[..., 0, 0]
        calls = {
            "minimum": lambda: xpconv.min_pool2d(x, 2),
            "mixed dtypes": lambda: xpconv.conv2d(bytes_, w),
            "mean of integers": lambda: xpconv.avg_pool2d(bytes_, 2),
            "by CuPy": lambda: xpconv.conv2d(x, w, method="direct"),
            "by spectra": lambda: xpconv.conv2d(x, w, method="fft"),
            "callable": lambda: xpconv.conv2d(x, w, activation=lambda y: y * 2),
            "out": lambda: xpconv.conv2d(x, w, out=out),
            "copied padding": lambda: xpconv.conv_grad_input(out, w, size=(4, 4), padding=1, padding_mode="edge"),
            "channels first": lambda: xpconv.max_pool2d(first, 2, layout="channels_first"),
            "plain": lambda: xpconv.conv2d(*plain),
        }
        for name, call in calls.items():
            for _ in range(2):
                assert call().device.id == 1, name
        assert cupy.cuda.runtime.getDevice() == 0


@pytest.mark.parametrize("option", ["stride", "dilation"])
def test_numbers_that_32_bits_do_not_hold_are_computed_elsewhere(cupy, option):
    x, w = cupy.arange(5.0).reshape(1, 5, 1), cupy.ones((1, 1, 1))
    expected = [0.0] if option == "stride" else [0.0, 1, 2, 3, 4]
    assert xpconv.conv1d(x, w, **{option: 1 << 40}).ravel().tolist() == expected
    assert xpconv.max_pool1d(x, 1, **{"stride": 1} | {option: 1 << 40}).ravel().tolist() == expected


@pytest.mark.parametrize(
    ("error", "raised"),
    [("CUDADriverError: CUDA_ERROR_OUT_OF_MEMORY: out of memory", MemoryError),
     ("CUDARuntimeError: cudaErrorIllegalAddress: an illegal memory access was encountered", RuntimeError)],
)  # fmt: skip
def test_an_error_that_is_not_the_kernels_is_not_held_against_it(layer, monkeypatch, error, raised):
    from xpconv.cuda import launch

    kind, _, words = error.partition(": ")
    passing = type(kind, (RuntimeError,), {})

    def broken(*_args):
        raise passing(words)

    x, w, expected = layer
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_functions", {})
        patch.setattr(launch, "_compiled", broken)
        launch._prepared.clear()
        with pytest.raises(raised, match=words.partition(":")[0]):
            xpconv.conv2d(x, w, padding=1)
    launch._prepared.clear()
    np.testing.assert_array_equal(xpconv.conv2d(x, w, padding=1).get(), expected)


def test_the_second_try_has_the_memory_of_the_first():
    if real_cupy_answers():
        pytest.skip("the memory of a real device is not ours to fill")
    with emulated_cupy() as cupy:
        x = cupy.ones((1, 7, 7, 512), dtype=np.float64)
        w = cupy.ones((3, 3, 512, 64), dtype=np.float64)
        pool = cupy.get_default_memory_pool()
        pool.set_limit(pool.used_bytes() + 7 * 7 * 64 * 8 + 4096)  # room for one result
        assert float(xpconv.conv2d(x, w, padding=1)[0, 3, 3, 0]) == 9 * 512
        pool.set_limit(0)


def test_the_scratch_memory_of_a_graph_stays_its_own(cupy):
    from xpconv.cuda import launch

    x, w = cupy.ones((1, 7, 7, 512), dtype=np.float64), cupy.ones((3, 3, 512, 64), dtype=np.float64)
    xpconv.conv2d(x, w, padding=1)
    before = len(launch._kept_for_graphs)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        y = xpconv.conv2d(x, w, padding=1)
        graph = stream.end_capture()
        graph.launch()
        stream.synchronize()
    assert len(launch._kept_for_graphs) > before
    assert float(y[0, 3, 3, 0]) == 9 * 512
