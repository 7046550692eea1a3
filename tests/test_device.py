"""The choice of device, with a stand-in for CuPy: drivers that fail, two devices, another CUDA than the driver's."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from xpconv import device as module
from xpconv.device import DeviceInfo, backend, choose, devices, synchronize, to_device

H200 = {"name": b"NVIDIA H200", "totalGlobalMem": 150_122_987_520, "major": 9, "minor": 0}
V100 = {"name": b"Tesla V100-SXM2-16GB", "totalGlobalMem": 16_935_682_048, "major": 7, "minor": 0}

NO_DRIVER = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_NVRTC = 'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so.13 or libnvrtc.so.12\n'
NVRTC_ARCHS = {12: (50, 60, 70, 75, 80, 90, 120), 13: (75, 80, 90, 120)}


class CUDARuntimeError(RuntimeError):
    __module__ = "cupy_backends.cuda.api.runtime"


class DynamicLibNotFoundError(RuntimeError):
    __module__ = "cuda.pathfinder._dynamic_libs.load_dl_common"


class Device:
    """CuPy's device: a context that makes itself current."""

    __module__ = "cupy.cuda.device"
    current = 0
    waited_for: list[int]

    def __init__(self, device=None):
        if isinstance(device, Device):
            device = device.id
        self.id = Device.current if device is None else device

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return self.id

    def __enter__(self):
        self.outer, Device.current = Device.current, self.id
        return self

    def __exit__(self, *_):
        Device.current = self.outer

    def synchronize(self):
        Device.waited_for.append(self.id)


class CudaArray:
    """CuPy's array: values that lie on a device until `get`."""

    __module__ = "cupy"

    def __init__(self, host, device):
        self._host, self.device = host, Device(device)

    def get(self):
        return self._host.copy()


def asarray(values, dtype=None):
    if isinstance(values, CudaArray) and values.device.id == Device.current:
        return values
    host = values.get() if isinstance(values, CudaArray) else np.array(values, dtype=dtype)
    return CudaArray(host, Device.current)


def raising(error):
    def call(*_):
        raise error

    return call


class WithoutCupy:
    """An import hook that finds no CuPy, installed or not."""

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002
        if name.partition(".")[0] == "cupy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch):
    """No variable, no CuPy and no driver, whatever the machine has; and nothing left of a stand-in afterwards."""
    monkeypatch.delenv("XPCONV_DEVICE", raising=False)
    monkeypatch.setattr(module, "_driver_version", lambda: 0)
    monkeypatch.setattr(sys, "meta_path", [WithoutCupy(), *sys.meta_path])
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if is_cupys(name)}
    yield
    for name in filter(is_cupys, list(sys.modules)):
        del sys.modules[name]
    sys.modules.update(before)


def is_cupys(name):
    return name.startswith("array_api_compat.cupy") or name.partition(".")[0] == "cupy"


@pytest.fixture
def install_cupy(monkeypatch):
    """Put a CuPy in place: its devices or its driver's error, what it was built for, its NVRTC."""

    def install(*found, driver=12080, built_for=12090, nvrtc=(12, 9), error=None):
        monkeypatch.setattr(module, "_driver_version", lambda: driver)
        monkeypatch.setattr(Device, "current", 0)
        monkeypatch.setattr(Device, "waited_for", [], raising=False)
        cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
        vars(cupy).update({name: getattr(np, name) for name in np.__all__})
        vars(cupy).update(__version__="14.2.0", __path__=[], cuda=cuda, ndarray=CudaArray, asarray=asarray)
        cuda.Device = Device
        cuda.runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=raising(CUDARuntimeError(error)) if error else lambda: len(found),
            getDevice=lambda: Device.current,
            getDeviceProperties=lambda index: found[index],
            runtimeGetVersion=lambda: built_for,
        )
        cuda.nvrtc = SimpleNamespace(
            getVersion=(lambda: nvrtc) if nvrtc else raising(DynamicLibNotFoundError(NO_NVRTC)),
            getSupportedArchs=lambda: NVRTC_ARCHS[nvrtc[0]],
        )
        device = ModuleType("cupy.cuda.device")
        device.Device = Device
        parts = {"": cupy, ".cuda": cuda, ".cuda.device": device, ".linalg": np.linalg, ".fft": np.fft}
        sys.modules.update({f"cupy{name}": part for name, part in parts.items()})

    return install


def the_reason():
    """Why there is no CUDA, after checking that the list, "auto" and asking for it agree."""
    cpu, cuda = devices()
    assert cpu.available
    assert not cuda.available
    assert backend() == (backend("cpu")[0], "cpu")
    with pytest.raises(RuntimeError) as refused:
        backend("cuda")
    assert str(refused.value) == f"device='cuda' cannot be had: {cuda.reason}"
    assert "\n" not in cuda.reason
    return cuda.reason


# -- what is listed, and why not -------------------------------------------------------------------------------------


def test_the_cpu_is_listed_first_with_its_cores():
    cpu = devices()[0]
    assert (cpu.name, cpu.available, cpu.reason) == ("cpu", True, "")
    assert "core" in cpu.description


def test_importing_xpconv_imports_no_cupy(tmp_path):
    (tmp_path / "cupy.py").write_text("raise SystemExit('cupy was imported')")
    code = (
        "import xpconv, xpconv.device as d, sys; d.backend('cpu'); d.synchronize('cpu'); print('cupy' in sys.modules)"
    )
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def run_python(code, first_on_path):
    """Run `code` in a Python of its own, which looks for modules in one more folder."""
    path = os.pathsep.join([str(first_on_path), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("driver", "way_out"),
    [
        (0, 'install the NVIDIA driver, then pip install "xpconv[cuda13]" ("xpconv[cuda12]" for a driver before 580)'),
        (11040, 'the NVIDIA driver supports CUDA 11.4: update it to 580 or newer, then pip install "xpconv[cuda13]"'),
        (12080, 'pip install "xpconv[cuda12]"'),
        (13000, 'pip install "xpconv[cuda13]"'),
        (14010, 'pip install "xpconv[cuda13]"'),
    ],
)
def test_without_cupy_the_reason_names_the_extra_that_fits_the_driver(monkeypatch, driver, way_out):
    monkeypatch.setattr(module, "_driver_version", lambda: driver)
    assert the_reason() == f"CuPy is not installed; {way_out}"


def test_cupy_without_a_driver_falls_back_and_says_so(install_cupy):
    install_cupy(error=NO_DRIVER, driver=0)
    assert the_reason() == (
        "CuPy 14.2.0 for CUDA 12 is installed, but no NVIDIA driver answers; "
        'install the driver, then pip install "xpconv[cuda12]"'
    )


def test_cupy_for_a_newer_cuda_than_the_driver_names_what_to_exchange(install_cupy):
    install_cupy(error=NO_DRIVER, driver=12080, built_for=13020)
    assert the_reason() == (
        "CuPy 14.2.0 for CUDA 13 is installed, but the NVIDIA driver supports CUDA 12.8; "
        'pip uninstall cupy-cuda13x, then pip install "xpconv[cuda12]"'
    )


def test_cupy_for_an_older_cuda_than_the_driver_computes(install_cupy):
    install_cupy(H200, driver=13000, built_for=12090)
    assert devices()[1].available


def test_any_other_error_of_the_driver_is_passed_on(install_cupy):
    install_cupy(error="cudaErrorNoDevice: no CUDA-capable device is detected")
    assert the_reason() == "the NVIDIA driver says cudaErrorNoDevice: no CUDA-capable device is detected"


def test_a_driver_that_shows_no_device_points_to_the_variable_that_hides_them(install_cupy):
    install_cupy()
    assert the_reason() == "the NVIDIA driver shows no device; look at CUDA_VISIBLE_DEVICES"


def test_cupy_without_a_compiler_names_the_extra_that_brings_it(install_cupy):
    install_cupy(H200, nvrtc=None)
    assert the_reason() == f'CuPy finds no NVRTC to compile with ({NO_NVRTC.strip()}); pip install "xpconv[cuda12]"'


def test_a_compiler_newer_than_the_driver_is_refused(install_cupy):
    install_cupy(H200, nvrtc=(13, 0))
    assert the_reason() == (
        "CuPy compiles with NVRTC 13.0, but the NVIDIA driver supports CUDA 12.8; "
        'remove that NVRTC, then pip install "xpconv[cuda12]"'
    )


def test_a_device_too_old_for_the_compiler_is_listed_with_the_extra_that_still_serves_it(install_cupy):
    install_cupy(V100, driver=13000, built_for=13020, nvrtc=(13, 0))
    assert the_reason() == 'NVRTC 13 compiles for compute capability 7.5 and newer; pip install "xpconv[cuda12]"'
    assert devices()[1].name == "cuda:0"


def test_a_cupy_that_fails_to_import_is_quoted_in_one_line(monkeypatch):
    page = ImportError("\n====\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: libcublas.so.12\n====\n")
    page.__cause__ = ImportError("libcublas.so.12: cannot open shared object file")
    monkeypatch.setattr(module, "import_module", fail_for("cupy.cuda", page))
    assert the_reason().startswith(
        "CuPy does not import (libcublas.so.12: cannot open shared object file); install the NVIDIA driver"
    )


def test_what_is_left_of_a_half_removed_cupy_is_no_cupy_and_harms_no_other_array(tmp_path):
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").touch()
    code = "import xpconv.device as d, array_api_compat as a; print(d.devices()[1].reason); print(a.is_cupy_array(1))"
    done = run_python(code, tmp_path)
    reason, is_cupy_array = done.stdout.splitlines()
    assert reason.startswith("CuPy is installed in part (No module named 'cupy.cuda'); "), done.stderr
    assert is_cupy_array == "False"


def fail_for(name, error):
    real = module.import_module

    def import_module(wanted):
        if wanted == name:
            raise error
        return real(wanted)

    return import_module


def test_two_devices_are_listed_with_name_memory_and_capability(install_cupy):
    install_cupy(H200, V100)
    assert [str(device) for device in devices()[1:]] == [
        "cuda:0  NVIDIA H200, 140 GiB, compute capability 9.0",
        "cuda:1  Tesla V100-SXM2-16GB, 16 GiB, compute capability 7.0",
    ]


def test_a_device_that_cannot_compute_prints_its_reason():
    line = str(DeviceInfo("cuda", "NVIDIA GPU, through CuPy", available=False, reason="no driver"))
    assert line == "cuda    NVIDIA GPU, through CuPy: not available, no driver"


def test_the_driver_is_asked_without_cupy(monkeypatch):
    monkeypatch.undo()
    assert module._driver_version() >= 0


# -- which one is taken ----------------------------------------------------------------------------------------------


def test_the_namespace_creates_arrays_on_the_device():
    xp, device = backend("cpu")
    x = xp.asarray([[1.0, 2.0]], device=device)
    assert type(x) is np.ndarray
    assert xp.zeros((2,), device=device).shape == (2,)


def test_auto_takes_the_current_cuda_device(install_cupy):
    install_cupy(H200, H200)
    Device.current = 1
    xp, device = backend()
    assert (xp.__name__, device) == ("array_api_compat.cupy", Device(1))
    assert choose()[1] == "the current CUDA device"


def test_a_number_names_the_device_and_arrays_are_made_there(install_cupy):
    install_cupy(H200, H200)
    xp, device = backend("cuda:1")
    x = xp.asarray([1.0, 2.0], device=device)
    assert isinstance(x, CudaArray)
    assert x.device == Device(1)


def test_cpu_is_cpu_although_a_device_answers(install_cupy):
    install_cupy(H200)
    assert backend("cpu")[1] == "cpu"


def test_a_number_beyond_the_devices_says_how_many_there_are(install_cupy):
    install_cupy(H200, H200)
    with pytest.raises(ValueError, match=r"^device='cuda:7' does not exist, CUDA devices here: 2 \(cuda:0, cuda:1\)$"):
        backend("cuda:7")


def test_a_numbered_device_without_cuda_gives_the_reason():
    with pytest.raises(
        RuntimeError, match=r"^device='cuda:1' cannot be had: CuPy is not installed; .*xpconv\[cuda13\]"
    ):
        backend("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cuda:-1", "CPU", "cpu:0", "", 0, None])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(ValueError, match=r'^device must be "auto", "cpu", "cuda" or "cuda:N" with N from 0, got '):
        backend(name)


def test_the_variable_says_what_auto_means(install_cupy, monkeypatch):
    install_cupy(H200, H200)
    monkeypatch.setenv("XPCONV_DEVICE", "cuda:1")
    assert backend()[1] == Device(1)
    monkeypatch.setenv("XPCONV_DEVICE", "cpu")
    assert backend("auto")[1] == "cpu"
    assert backend("cuda")[1] == Device(0)
    assert choose()[1] == "XPCONV_DEVICE=cpu"


@pytest.mark.parametrize("value", ["", "auto"])
def test_an_empty_variable_changes_nothing(monkeypatch, value):
    monkeypatch.setenv("XPCONV_DEVICE", value)
    assert backend()[1] == "cpu"


def test_errors_name_the_variable_when_it_asked(monkeypatch):
    monkeypatch.setenv("XPCONV_DEVICE", "gpu")
    with pytest.raises(ValueError, match=r"^XPCONV_DEVICE must be .* got 'gpu'$"):
        backend()
    monkeypatch.setenv("XPCONV_DEVICE", "cuda")
    with pytest.raises(RuntimeError, match=r"^XPCONV_DEVICE='cuda' cannot be had: CuPy is not installed"):
        backend()


# -- moving and waiting ----------------------------------------------------------------------------------------------


def test_arrays_move_to_a_device_and_back(install_cupy):
    install_cupy(H200, H200)
    x = np.array([1.0, 2.0])
    there = to_device(x, "cuda:1")
    assert isinstance(there, CudaArray)
    assert there.device == Device(1)
    back = to_device(there, "cpu")
    assert type(back) is np.ndarray
    assert back.tolist() == [1.0, 2.0]


def test_arrays_move_between_two_devices(install_cupy):
    install_cupy(H200, H200)
    x = to_device(np.ones(2), "cuda:0")
    assert to_device(x, Device(1)).device == Device(1)


def test_an_array_that_is_there_already_is_returned_itself(install_cupy):
    install_cupy(H200, H200)
    x, y = np.ones(2), to_device(np.ones(2), "cuda:1")
    assert to_device(x, "cpu") is x
    assert to_device(y, "cuda:1") is y


def test_to_device_takes_what_backend_returned(install_cupy):
    install_cupy(H200)
    _, device = backend()
    assert to_device(np.ones(2), device).device == device


def test_torch_arrays_stay_in_torch():
    torch = pytest.importorskip("torch")
    x = torch.ones(2)
    assert isinstance(to_device(x, "cpu"), torch.Tensor)
    assert isinstance(to_device(x, "auto"), torch.Tensor)
    assert to_device(x, torch.device("meta")).device.type == "meta"
    synchronize(x)


def test_jax_arrays_stay_in_jax_and_know_devices_by_name():
    jax = pytest.importorskip("jax")
    x = jax.numpy.ones(2)
    assert isinstance(to_device(x, "cpu"), jax.Array)
    assert to_device(x, jax.devices()[0]).device == jax.devices()[0]
    with pytest.raises(ValueError, match="got 'gpu'"):
        to_device(x, "gpu")
    synchronize(x)


def test_a_strict_array_moves_by_its_own_means():
    strict = pytest.importorskip("array_api_strict")
    moved = to_device(strict.ones(2), strict.Device("device1"))
    assert moved.device == strict.Device("device1")


def test_moving_a_list_is_refused():
    with pytest.raises(
        TypeError, match=r"^to_device moves arrays, got list; make it one first: numpy.asarray\(array\)$"
    ):
        to_device([1.0], "cpu")


def test_synchronize_waits_for_the_device_of_an_array_or_the_device_named(install_cupy):
    install_cupy(H200, H200)
    synchronize(to_device(np.ones(2), "cuda:1"))
    synchronize("cuda")
    synchronize(Device(1))
    synchronize("auto")
    assert Device.waited_for == [1, 0, 1, 0]


def test_synchronize_has_nothing_to_wait_for_on_the_cpu():
    synchronize(np.ones(2))
    synchronize("cpu")
    assert "cupy" not in sys.modules  # not even looked for


def test_synchronize_refuses_what_is_neither_array_nor_device():
    with pytest.raises(TypeError, match=r"^synchronize takes an array or a device, got list$"):
        synchronize([1.0])
    with pytest.raises(ValueError, match="got 'gpu'"):
        synchronize("gpu")
