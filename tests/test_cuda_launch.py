"""What surrounds the CUDA kernels: their text, the struct they share with Python, compiling and launching."""

import threading

import numpy as np
import pytest

import xpconv
from xpconv.cuda import source
from xpconv.cuda.geometry import CONV_GEOMETRY, DIVISOR

pytestmark = pytest.mark.usefixtures("cupy")


# --- Text and structs -------------------------------------------------------------------------------------------------


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


def field_paths(dtype, prefix=""):
    for name in dtype.names:
        yield f"{prefix}{name}", dtype.fields[name][1], dtype[name].itemsize


LAYOUT_KERNEL = """
template <typename Struct>
__global__ void layout_of(long long* layout) {{
    typedef {type} S;
    S* s = nullptr;
    long long numbers[] = {{(long long)sizeof(S), {offsets}}};
    for (int i = 0; i < {count}; i++) layout[i] = numbers[i];
}}
"""


@pytest.mark.parametrize(("dtype", "type_"), [(DIVISOR, "Divisor"), (CONV_GEOMETRY, "ConvGeometry")])
def test_a_struct_lies_in_python_as_it_does_in_the_kernels(cupy, dtype, type_):
    offsets = ", ".join(f"(long long)&s->{name}" for name in dtype.names)
    kernel = LAYOUT_KERNEL.format(type=type_, offsets=offsets, count=len(dtype.names) + 1)
    module = cupy.RawModule(
        code=source._pasted("geometry.cuh", set()) + kernel,
        options=("-std=c++17",),
        name_expressions=("layout_of<int>",),
    )
    layout = cupy.empty(len(dtype.names) + 1, dtype=np.int64)
    module.get_function("layout_of<int>")((1,), (1,), (layout,))
    size, *places = layout.get().tolist()
    assert size == dtype.itemsize
    assert dict(zip(dtype.names, places, strict=True)) == {name: dtype.fields[name][1] for name in dtype.names}


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
    from cuda_emulator.emulated_cupy import emulated_cupy, real_cupy_answers

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
