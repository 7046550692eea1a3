"""The emulated CuPy is CuPy where a library would stumble: conversions, memory, devices, streams and their errors."""

import gc
import pickle
import sys
from importlib import import_module

import array_api_compat
import ml_dtypes
import numpy as np
import pytest

import xpconv
from cuda_emulator.compiler import why_unavailable
from cuda_emulator.emulated_cuda import machine
from cuda_emulator.emulated_cupy import emulated_cupy, modules, real_cupy_answers
from xpconv.nn.transfer import from_host, to_host

WHY_NOT = "a real CUDA device answers to CuPy here" if real_cupy_answers() else why_unavailable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

NO_CONVERSION = (
    r"^Implicit conversion to a NumPy array is not allowed\. "
    r"Please use `\.get\(\)` to construct a NumPy array explicitly\.$"
)
NO_MIXING = r"^Unsupported type <class 'numpy\.ndarray'>$"
CAPTURING = "^cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing$"


@pytest.fixture
def cupy():
    with emulated_cupy(devices=2) as module:
        yield module


# -- its place ---------------------------------------------------------------------------------------------------------


def test_it_is_imported_as_cupy_within_its_block_and_nowhere_else():
    before = {name: part for name, part in sys.modules.items() if name.startswith("cupy")}
    with emulated_cupy() as cupy:
        import cupy.cuda as found
        from cupyx.scipy.special import erf

        assert sys.modules["cupy"] is cupy
        assert found is cupy.cuda
        assert erf(cupy.zeros(2)).get().tolist() == [0, 0]
        x = cupy.zeros(1)
    assert {name: part for name, part in sys.modules.items() if name.startswith("cupy")} == before
    assert not array_api_compat.is_cupy_array(x)
    with emulated_cupy() as again:
        assert again is cupy
        assert array_api_compat.is_cupy_array(x)


def test_array_api_compat_takes_its_arrays_for_cupys(cupy):
    x = cupy.ones((2, 3), dtype="float32")
    xp = array_api_compat.array_namespace(x)
    assert xp.__name__ == "array_api_compat.cupy"
    assert xp.concat([x, x]).shape == (4, 3)
    assert xp.unique_values(x).get().tolist() == [1]
    assert str(array_api_compat.device(x)) == "<CUDA Device 0>"


def test_a_block_after_another_namespace_was_there_has_its_own(monkeypatch):
    monkeypatch.setattr(array_api_compat, "cupy", object(), raising=False)
    with emulated_cupy() as cupy:
        assert array_api_compat.array_namespace(cupy.ones(1)).__name__ == "array_api_compat.cupy"


def test_xpconv_finds_its_devices():
    with emulated_cupy("8.0", devices=2, memory=40 * 2**30):
        assert [str(device) for device in xpconv.devices()[1:]] == [
            "cuda:0  NVIDIA A100-SXM4-80GB, 40 GiB, compute capability 8.0",
            "cuda:1  NVIDIA A100-SXM4-80GB, 40 GiB, compute capability 8.0",
        ]
        xp, device = xpconv.backend("cuda:1")
        x = xp.asarray([1.0, 2.0], device=device)
        assert x.device == device
        assert to_host(x).tolist() == [1, 2]
        there = from_host(np.ones(2, np.float32), xp, device=device)
        assert (there.dtype, there.device.id) == (np.float32, 1)
        assert type(xpconv.to_device(x, "cpu")) is np.ndarray
        assert xpconv.to_device(np.ones(2), "cuda:1").device == device
        xpconv.synchronize(x)


def test_a_block_within_another_has_devices_of_its_own():
    for capability in ("9.0", "8.0"):
        with emulated_cupy(capability) as cupy:
            x = cupy.ones(5, dtype="float32")
            assert xpconv.explain(xpconv.conv1d, x, x[:2])
            with emulated_cupy("7.5"):
                assert cupy.cuda.Device().compute_capability == "75"
                assert xpconv.conv1d(cupy.ones(5), cupy.ones(2)).get().tolist() == [2] * 4
            assert xpconv.conv1d(x, x[:2]).get().tolist() == [2] * 4
            assert import_module("xpconv.cuda.launch").hardware(0).capability == tuple(map(int, capability.split(".")))


def test_what_cupy_has_not_it_has_not(cupy):
    for name in ("block", "matrix", "longdouble", "geomspace", "errstate", "vecdot"):
        assert not hasattr(cupy, name)
    with pytest.raises(ImportError):
        import cupy.signal


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_nothing_turns_it_into_a_numpy_array_but_get(cupy):
    x = cupy.asarray([1.0, 2.0])
    assert not isinstance(x, np.ndarray)
    assert type(x).__module__ == "cupy"
    for convert in (np.asarray, np.array, np.ascontiguousarray, lambda x: np.zeros(2).__setitem__(..., x)):
        with pytest.raises(TypeError, match=NO_CONVERSION):
            convert(x)
    assert type(x.get()) is np.ndarray
    assert cupy.asnumpy(x).tolist() == x.get().tolist() == x.tolist() == [1, 2]
    assert pickle.loads(pickle.dumps(x)).get().tolist() == [1, 2]


def test_it_does_not_mix_with_numpys_arrays(cupy):
    x, host = cupy.ones(2), np.ones(2)
    for mix in (
        lambda: x + host,
        lambda: host + x,
        lambda: x.__iadd__(host),
        lambda: x < host,
        lambda: cupy.add(x, host),
        lambda: cupy.where(x > 0, x, host),
        lambda: cupy.concatenate([x, host]),
        lambda: cupy.sum(host),
    ):
        with pytest.raises(TypeError, match=NO_MIXING):
            mix()
    with pytest.raises(TypeError, match=r"^Unsupported type <class 'list'>$"):
        cupy.add(x, [1, 2])
    with pytest.raises(TypeError):
        x * [1, 2]
    with pytest.raises(ValueError, match=r"^non-scalar numpy\.ndarray cannot be used for fill$"):
        x[...] = host
    with pytest.raises(ValueError, match=r"^Unsupported dtype object$"):
        cupy.asarray([None])


def test_numbers_of_python_and_numpy_are_operands(cupy):
    x = cupy.ones(2, dtype="float32")
    assert (2 * x + 1).dtype == np.float32
    assert (x * np.float64(2)).dtype == (np.float64(2) * x).dtype == np.float64
    assert (x == np.array(1.0)).all()
    assert np.exp(x).get().tolist() == cupy.exp(x).get().tolist()
    assert np.sum(x).item() == 2
    x[0] = np.float32(5)
    assert x.get().tolist() == [5, 1]


def test_there_are_no_scalars_but_arrays_without_axes(cupy):
    x = cupy.arange(6.0).reshape(2, 3)
    parts = [x.sum(), cupy.max(x), x[0, 0], x[0][1], x @ x.T, cupy.dot(x[0], x[0]), cupy.any(x), cupy.count_nonzero(x)]
    assert all(type(part) is cupy.ndarray for part in parts)
    assert [parts[i].shape for i in (0, 1, 2, 3, 5, 6)] == [()] * 6
    assert (float(x[1, 0]), int(x[1, 1]), bool(x[0, 0])) == (3.0, 4, False)
    assert x[1, 2].item() == 5.0
    with pytest.raises(TypeError):
        range(3)[cupy.asarray(1)]
    with pytest.raises(ValueError, match=r"^The truth value of an array with more than one element is ambiguous"):
        bool(x)
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


def test_views_share_memory_and_results_do_not(cupy):
    x = cupy.zeros((4, 6))
    views = [x[1], x[::2, 1:3], x.T, x.reshape(6, 4), x.ravel(), cupy.expand_dims(x, 0), cupy.flip(x), x[0, 0]]
    assert all(view.base is x and not view.flags.owndata for view in views)
    assert all(cupy.shares_memory(x, view) for view in views)
    assert not any(cupy.may_share_memory(x, other) for other in (x + 0, x.copy(), x[[0, 1]], x.astype(x.dtype)))
    assert x.astype(x.dtype, copy=False) is cupy.asarray(x) is x
    x[1:3, ::5] = 7
    views[0][2] = 3
    assert x.get()[1].tolist() == [7, 0, 3, 0, 0, 7]
    assert x[1, 2:].data.ptr == x.data.ptr + x.strides[0] + 2 * x.strides[1]
    spread = cupy.broadcast_to(x[0], (3, 6))
    assert spread.strides == (0, 8)
    assert cupy.shares_memory(spread, x)


def test_the_layout_is_told(cupy):
    x = cupy.asarray(np.ones((2, 3, 4), np.int16))
    assert (x.shape, x.strides, x.ndim, len(x)) == ((2, 3, 4), (24, 8, 2), 3, 2)
    assert (x.size, x.nbytes, x.itemsize) == (24, 48, 2)
    assert (x.flags.c_contiguous, x.flags["F_CONTIGUOUS"], x.flags.owndata) == (True, False, True)
    assert x.T.flags.f_contiguous
    assert cupy.ascontiguousarray(x.T).flags.c_contiguous
    assert x.data.ptr % 256 == 0
    assert x.data.device_id == x.device.id == 0
    interface = x.T.__cuda_array_interface__
    assert (interface["strides"], interface["data"]) == ((2, 8, 24), (x.data.ptr, False))
    again = cupy.ndarray((3, 4), np.int16, memptr=x.data + 24)
    assert cupy.shares_memory(again, x[1])


def test_indices_beyond_an_axis_wrap_around(cupy):
    x = cupy.arange(3)
    assert x[[1, 3]].get().tolist() == [1, 0]
    assert cupy.take(x, cupy.asarray([4, -1])).get().tolist() == [1, 2]
    with pytest.raises(IndexError, match="out of bounds"):
        x[3]


def test_arithmetic_warns_of_nothing(cupy, recwarn):
    x = cupy.asarray([0.0, -1.0, 1e308])
    assert not cupy.isfinite(x / 0).any()
    assert cupy.isnan(cupy.sqrt(x)).get().tolist() == [False, True, False]
    assert (x * 100).get()[2] == np.inf
    assert (cupy.asarray([127], dtype="int8") + cupy.asarray([1], dtype="int8")).get().tolist() == [-128]
    assert not recwarn.list


def test_bfloat16_is_a_dtype(cupy):
    x = cupy.asarray(np.ones(3, ml_dtypes.bfloat16))
    assert (x + x).dtype == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match=r"^Unsupported dtype float8_e4m3fn$"):
        x.astype(ml_dtypes.float8_e4m3fn)


def test_get_and_set_want_the_same_shape_and_dtype(cupy):
    x = cupy.zeros(3, dtype="float32")
    x.set(np.arange(3, dtype=np.float32))
    out = np.empty(3, np.float32)
    assert x.get(out=out) is out
    assert out.tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match=r"^float64 array cannot be set to float32 array$"):
        x.set(np.zeros(3))
    with pytest.raises(ValueError, match=r"^Shape mismatch\. Old shape: \(3,\), new shape: \(2,\)$"):
        x.set(np.zeros(2, np.float32))
    with pytest.raises(TypeError, match=r"^Only numpy.ndarray can be set to cupy.ndarray$"):
        x.set([1, 2, 3])


def test_functions_come_from_numpy(cupy):
    x = cupy.arange(4.0)
    assert cupy.split(x, 2)[1].get().tolist() == [2, 3]
    assert cupy.linalg.norm(x).item() == np.linalg.norm(np.arange(4.0))
    assert cupy.fft.rfft(x).get().tolist() == np.fft.rfft(np.arange(4.0)).tolist()
    assert cupy.random.default_rng(1).standard_normal(3).get().shape == (3,)
    assert cupy.result_type(x, cupy.float32) == np.float64
    assert cupy.get_array_module(x) is cupy
    assert cupy.get_array_module(np.ones(1)) is np
    assert cupy.add(x, 1, out=x) is x
    assert x.get().tolist() == [1, 2, 3, 4]
    assert cupy.array([x[:2], x[2:]]).get().tolist() == [[1, 2], [3, 4]]


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_that_nothing_has_written_is_not_read(cupy):
    x = cupy.empty((2, 3), dtype="float32")
    for read in (x.get, x.sum, x.copy, lambda: x + 1, lambda: x.__iadd__(1), lambda: float(x[0, 0])):
        with pytest.raises(AssertionError, match=r"^element \[.*\] of a cupy array .* is read, but nothing has "):
            read()
    x[0] = 1
    assert x[0].get().tolist() == [1, 1, 1]
    assert x.reshape(6)[:2].sum().item() == 2
    with pytest.raises(AssertionError, match=r"^element \[1, 0\] of a cupy array \(2, 3\) float32 is read"):
        x.get()
    x[:, ::2] = 4
    with pytest.raises(AssertionError, match=r"^element \[1\] of a cupy array \(2,\) float32 is read"):
        x[:, 1].get()
    cupy.add(x[0], x[0], out=x[1])
    assert x.get().tolist() == [[4, 1, 4], [8, 2, 8]]


def test_single_elements_that_are_written_count(cupy):
    x = cupy.empty(4)
    x[cupy.asarray([2, 0])] = 5
    x[cupy.asarray([False, True, False, False])] = 6
    assert x[:3].get().tolist() == [5, 6, 5]
    with pytest.raises(AssertionError, match=r"element \[3\]"):
        x.get()
    with pytest.raises(AssertionError, match=r"element \[0\]"):
        cupy.zeros(3)[cupy.empty(1, dtype=int)]


def test_likes_of_unwritten_arrays_read_nothing(cupy):
    x = cupy.empty((2, 3))
    assert cupy.zeros_like(x).get().sum() == 0
    assert cupy.full_like(x, 2).get().sum() == 12
    assert (cupy.empty_like(x).shape, cupy.result_type(x)) == ((2, 3), np.float64)


def test_memory_has_an_end():
    with emulated_cupy(memory=2**20) as cupy:
        held = cupy.zeros(2**19, dtype="uint8")
        with pytest.raises(MemoryError) as refused:
            cupy.zeros(2**20, dtype="uint8")
        assert type(refused.value) is cupy.cuda.memory.OutOfMemoryError
        assert str(refused.value) == "Out of memory allocating 1,048,576 bytes (allocated so far: 524,288 bytes)."
        del held
        assert cupy.zeros(2**20 - 1024, dtype="uint8").sum().item() == 0


def test_the_pool_counts_and_can_be_limited(cupy):
    pool = cupy.get_default_memory_pool()
    x = cupy.zeros(100)
    assert pool.used_bytes() == 1024
    pool.set_limit(size=2048)
    with pytest.raises(MemoryError, match=r"\(allocated so far: 1,024 bytes, limit set to: 2,048 bytes\)\.$"):
        cupy.zeros(200)
    del x
    gc.collect()
    assert (pool.used_bytes(), pool.n_free_blocks(), pool.total_bytes()) == (0, 1, 1024)
    assert cupy.zeros(190).sum().item() == 0
    free, total = cupy.cuda.Device().mem_info
    assert total - free == pool.total_bytes()


def test_xpconv_tries_again_with_less_memory(cupy):
    cupy.get_default_memory_pool().set_limit(size=4096)
    with pytest.raises(MemoryError, match="Out of memory allocating"):
        xpconv.conv1d(cupy.ones(500, dtype="uint8"), cupy.ones(3, dtype="uint8"), dtype="float64")


# -- devices -----------------------------------------------------------------------------------------------------------


def test_arrays_are_made_on_the_current_device_and_stay_there(cupy):
    with cupy.cuda.Device(1):
        assert cupy.cuda.get_device_id() == 1
        x = cupy.ones(2)
    assert cupy.cuda.get_device_id() == 0
    assert x.device == cupy.cuda.Device(1)
    with pytest.raises(ValueError, match=r"^The device where the array resides \(1\) is different from the current "):
        x + 1
    assert cupy.asarray(x).device.id == 0
    assert x.copy().device.id == 1
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=r"^cudaErrorInvalidDevice: invalid device ordinal$"):
        cupy.cuda.Device(2).use()


@pytest.mark.parametrize(
    ("capability", "name", "opt_in", "shared"),
    [("9.0", b"NVIDIA H200", 232448, 233472), ("7.5", b"Tesla T4", 65536, 65536)],
)
def test_a_device_has_the_limits_of_its_capability(capability, name, opt_in, shared):
    with emulated_cupy(capability) as cupy:
        device = cupy.cuda.Device()
        assert device.compute_capability == capability.replace(".", "")
        assert device.attributes["MaxSharedMemoryPerBlockOptin"] == opt_in
        assert device.attributes["MaxSharedMemoryPerMultiprocessor"] == shared
        assert device.attributes["MaxGridDimY"] == 65535
        assert cupy.cuda.runtime.getDeviceProperties(0)["name"] == name
        with pytest.raises(TypeError, match="unhashable"):
            hash(device)


# -- streams and graphs ------------------------------------------------------------------------------------------------


def test_streams_nest_and_events_tell_the_time(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    assert cupy.cuda.get_current_stream() is cupy.cuda.Stream.null
    with stream:
        assert cupy.cuda.get_current_stream() == stream
        assert (cupy.ones(3) + 1).get().tolist() == [2, 2, 2]
        begin, end = stream.record(), stream.record()
    assert cupy.cuda.get_current_stream().ptr == 0
    end.synchronize()
    assert cupy.cuda.get_elapsed_time(begin, end) >= 0
    with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="does not match with the current device"):
        stream.use()


def test_a_graph_runs_what_was_captured_each_time_it_is_launched(cupy):
    x, stream = cupy.ones(3), cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        y = x * 2 + x[0]
        x += 1
        y[1] = 9
        graph = stream.end_capture()
        assert x.get().tolist() == [1, 1, 1]
        with pytest.raises(AssertionError, match="nothing has written it"):
            y.get()
    graph.launch()
    assert (x.get().tolist(), y.get().tolist()) == ([2, 2, 2], [3, 9, 3])
    graph.launch(stream)
    assert (x.get().tolist(), y.get().tolist()) == ([3, 3, 3], [6, 9, 6])


def test_what_waits_for_the_device_ends_a_capture(cupy):
    x = cupy.ones(3)
    for wait in (
        x.get,
        lambda: float(x[0]),
        lambda: x[x > 0],
        lambda: cupy.nonzero(x),
        lambda: cupy.asarray([1.0]),
        lambda: cupy.cuda.get_current_stream().synchronize(),
        lambda: cupy.cuda.Device().synchronize(),
    ):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=CAPTURING):
                wait()
            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=r"^cudaErrorStreamCaptureInvalidated"):
                stream.end_capture()
    with pytest.raises(RuntimeError, match=r"^cannot capture on the default \(legacy\) stream$"):
        cupy.cuda.Stream.null.begin_capture()


def test_a_strict_capture_does_not_let_the_pool_grow(cupy):
    x, stream = cupy.ones(300), cupy.cuda.Stream(non_blocking=True)
    cupy.empty(300)
    with stream:
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
        y = x + 1  # in the block that was freed
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=CAPTURING):
            y * 2
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            stream.end_capture()


def test_a_graph_does_not_keep_memory_alive(cupy):
    x, stream = cupy.ones(3), cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        x += 1
        graph = stream.end_capture()
    del x
    with pytest.raises(AssertionError, match="uses memory which has been freed since it was captured"):
        graph.launch()


# -- kernels -----------------------------------------------------------------------------------------------------------

ADD = """
template <typename T> __global__ void add(const T* x, T* y, T number, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + number;
}
"""


@pytest.fixture
def add(cupy):
    """The kernel y = x + number."""
    kernels = cupy.RawModule(code=ADD, options=("-std=c++17",), name_expressions=("add<float>",))
    return kernels.get_function("add<float>")


def launch(function, x, y, number=1.0):
    function((2,), (4,), (x, y, np.float32(number), np.int32(x.size)))


def test_a_kernel_reads_and_writes_arrays(cupy, add):
    x, y = cupy.arange(6, dtype="float32"), cupy.empty(6, dtype="float32")
    launch(add, x, y)
    assert y.get().tolist() == [1, 2, 3, 4, 5, 6]
    launch(add, y[2:], x[1:5], 10)
    assert x.get().tolist() == [0, 13, 14, 15, 16, 5]


def test_what_a_kernel_has_not_written_is_found(cupy, add):
    x, y = cupy.zeros(5, dtype="float32"), cupy.empty(6, dtype="float32")
    launch(add, x, y)
    assert y[:5].get().tolist() == [1] * 5
    with pytest.raises(AssertionError, match=r"^element \[5\] of a cupy array \(6,\) float32 is read"):
        y.get()


def test_a_kernel_that_reads_or_writes_beside_its_arrays_is_stopped(cupy, add):
    written, unwritten = cupy.zeros(6, dtype="float32"), cupy.empty(6, dtype="float32")
    for x, y in ((written, cupy.empty(3, dtype="float32")), (unwritten, written)):
        with pytest.raises(AssertionError):
            launch(add, x, y)
    with pytest.raises(TypeError, match=NO_MIXING):
        launch(add, np.zeros(6, np.float32), written)
    with cupy.cuda.Device(1), pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorIllegalAddress"):
        launch(add, written, cupy.empty(6, dtype="float32"))


def test_a_graph_launches_its_kernels_again(cupy, add):
    x, y = cupy.zeros(6, dtype="float32"), cupy.empty(6, dtype="float32")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        scratch = cupy.empty(6, dtype="float32")
        launch(add, x, scratch)
        launch(add, scratch, y)
        del scratch
        graph = stream.end_capture()
    with pytest.raises(AssertionError, match="nothing has written it"):
        y.get()
    graph.launch()
    assert y.get().tolist() == [2] * 6
    x += 5
    graph.launch()
    assert y.get().tolist() == [7] * 6


def test_a_kernel_that_does_not_compile_says_so(cupy):
    with pytest.raises(cupy.cuda.compiler.CompileException, match="oops"):
        cupy.RawModule(code='extern "C" __global__ void f() { oops; }', options=("-std=c++17",)).get_function("f")


def test_a_kernel_is_compiled_for_the_device_of_the_block():
    code = 'extern "C" __global__ void f(int* arch) { *arch = __CUDA_ARCH__; }'
    for capability, expected in (("8.0", 800), ("9.0", 900)):
        with emulated_cupy(capability) as cupy:
            arch = cupy.empty((), dtype="int32")
            cupy.RawModule(code=code).get_function("f")((1,), (1,), (arch,))
            assert int(arch) == expected


# -- what a test can ask -----------------------------------------------------------------------------------------------


def test_synchronisations_are_counted(cupy):
    x = cupy.ones(3)
    before = machine().synchronisations
    (x + 1).sum()
    assert machine().synchronisations == before
    float(x[0])
    assert machine().synchronisations == before + 1


def test_there_is_one_such_module(cupy):
    assert modules()["cupy"] is cupy
