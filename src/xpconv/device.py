"""Which devices can compute here, and how arrays get to them.

Nothing is looked for when `xpconv` is imported, and CuPy is imported only when a CUDA device or the list is asked for.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_compat


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One line of `devices`: a device and, where it cannot compute, why.

    Parameters
    ----------
    name : str
        what `backend` and `to_device` take: ``"cpu"``, ``"cuda:0"``; ``"cuda"`` where no CUDA device answers
    description : str
        model, and cores or memory
    available : bool
        whether xpconv can compute on it
    reason : str
        why it cannot, with the way out; empty where it can

    Examples
    --------
    >>> print(DeviceInfo("cuda:1", "NVIDIA H200, 140 GiB, compute capability 9.0"))
    cuda:1  NVIDIA H200, 140 GiB, compute capability 9.0
    """

    name: str
    description: str
    available: bool = True
    reason: str = ""

    def __str__(self) -> str:
        line = f"{self.name:<7} {self.description}"
        return line if self.available else f"{line}: not available, {self.reason}"


def devices() -> list[DeviceInfo]:
    """List what can compute here, with the reason for each that cannot.

    Returns
    -------
    list of DeviceInfo
        the CPU, then each CUDA device, or one entry ``"cuda"`` that says why there is none

    Examples
    --------
    >>> import xpconv
    >>> cpu, *cuda = xpconv.devices()
    >>> cpu.name, cpu.available
    ('cpu', True)
    >>> all(device.available or device.reason for device in cuda)
    True
    """
    return [_cpu(), *_cuda_devices()]


def backend(device: str = "auto") -> tuple[ModuleType, Any]:
    """Choose the array namespace to compute with, and the device to create arrays on.

    Parameters
    ----------
    device : str
        ``"cpu"``: NumPy. ``"cuda"``, ``"cuda:1"``: CuPy on the current or the named CUDA device. ``"auto"``: what the
        environment variable ``XPCONV_DEVICE`` names, else the current CUDA device where CuPy and a device answer,
        else the CPU.

    Returns
    -------
    xp : module
        array-api-compat's namespace of NumPy or CuPy, whose arrays are plain NumPy or CuPy arrays and whose
        functions take ``device=``
    device : str or cupy.cuda.Device
        what to pass as ``device=``: ``"cpu"``, or CuPy's device

    Raises
    ------
    ValueError
        the name is no device's name, or counts beyond the devices here
    RuntimeError
        the device asked for cannot be had; the message says why and what to install

    Examples
    --------
    >>> import xpconv
    >>> xp, device = xpconv.backend("cpu")
    >>> x = xp.asarray([[1.0, 2.0], [3.0, 4.0]], device=device)
    >>> type(x).__name__, device
    ('ndarray', 'cpu')
    """
    chosen, _ = choose(device)
    if chosen.name == "cpu":
        return import_module("array_api_compat.numpy"), "cpu"
    return import_module("array_api_compat.cupy"), _cupy().cuda.Device(_index(chosen.name))


def choose(device: str = "auto") -> tuple[DeviceInfo, str]:
    """Return the device that `backend` takes for `device`, and why it is this one."""
    if device != "auto":
        return _named(device, "device"), "asked for"
    variable = os.environ.get("XPCONV_DEVICE") or "auto"
    if variable != "auto":
        return _named(variable, "XPCONV_DEVICE"), f"XPCONV_DEVICE={variable}"
    cuda = _current_cuda_device()
    if cuda.available:
        return cuda, "the current CUDA device"
    return _cpu(), f"no CUDA: {cuda.reason}"


def to_device(array: Any, device: Any) -> Any:
    """Return `array` on `device`, copied where it is elsewhere.

    NumPy and CuPy arrays become one another; an array of another library stays in that library.

    Parameters
    ----------
    array : array
        of NumPy, CuPy, or any library of the array API standard
    device : str or device
        a name as in `backend`, a device that `backend` returned, or a device of the array's own library

    Returns
    -------
    array
        `array` itself where it is on `device` already

    Raises
    ------
    TypeError
        `array` is no array
    ValueError, RuntimeError
        as `backend`; for other libraries, what the library raises

    Examples
    --------
    >>> import numpy as np
    >>> import xpconv
    >>> x = np.ones((2, 3))
    >>> xpconv.to_device(x, "cpu") is x
    True
    """
    if not array_api_compat.is_array_api_obj(array):
        raise TypeError(f"to_device moves arrays, got {_type_name(array)}; make it one first: numpy.asarray(array)")
    if array_api_compat.is_numpy_array(array) or array_api_compat.is_cupy_array(array):
        return _between_numpy_and_cupy(array, device)
    return array_api_compat.to_device(array, _in_library_of(array, device))


def synchronize(target: Any) -> None:
    """Wait until a device has finished the work it was given.

    CUDA kernels and JAX operations run on after the call that started them: synchronise before reading a clock.

    Parameters
    ----------
    target : array or device
        an array: wait for its device (in JAX, for the array). Or a device's name as in `backend`, or a device that
        `backend` returned. The CPU computes at once: there is nothing to wait for.

    Examples
    --------
    >>> import numpy as np
    >>> import xpconv
    >>> x = np.ones(3)
    >>> xpconv.synchronize(x)
    >>> xpconv.synchronize("cpu")
    """
    if isinstance(target, str) or _is_cupy_device(target):
        _, device = _numpy_or_cupy(target)
        if device != "cpu":
            device.synchronize()
    elif array_api_compat.is_cupy_array(target):
        target.device.synchronize()
    elif array_api_compat.is_torch_array(target):
        if target.device.type != "cpu":
            sys.modules["torch"].accelerator.synchronize(target.device)
    elif array_api_compat.is_jax_array(target):
        target.block_until_ready()
    elif not array_api_compat.is_array_api_obj(target):
        raise TypeError(f"synchronize takes an array or a device, got {_type_name(target)}")


# -- moving ----------------------------------------------------------------------------------------------------------


def _between_numpy_and_cupy(array: Any, device: Any) -> Any:
    xp, target = _numpy_or_cupy(device)
    if target == "cpu":
        return array if array_api_compat.is_numpy_array(array) else array.get()
    if array_api_compat.is_cupy_array(array) and array.device == target:
        return array
    return xp.asarray(array, device=target)


def _numpy_or_cupy(device: Any) -> tuple[ModuleType, Any]:
    """`backend`, for a device's name or a device that `backend` returned."""
    return backend(f"cuda:{device.id}" if _is_cupy_device(device) else device)


def _in_library_of(array: Any, device: Any) -> Any:
    """What `array`'s own library takes for `device`: JAX knows no names, and no library knows CuPy's devices."""
    if _is_cupy_device(device):
        device = f"cuda:{device.id}"
    elif device == "auto":
        device = choose()[0].name
    if array_api_compat.is_jax_array(array) and isinstance(device, str):
        return _jax_device(device)
    return device


def _jax_device(name: str) -> Any:
    _check_name(name, "device")
    found = sys.modules["jax"].devices(name.partition(":")[0])
    if _index(name) >= len(found):
        raise ValueError(f"device={name!r} does not exist, JAX has {len(found)}: {found}")
    return found[_index(name)]


def _is_cupy_device(device: Any) -> bool:
    return type(device).__module__.startswith("cupy") and type(device).__name__ == "Device"


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


# -- names -----------------------------------------------------------------------------------------------------------


def _named(name: str, asked_in: str) -> DeviceInfo:
    """The device called `name`, which stood in the argument or variable `asked_in`."""
    _check_name(name, asked_in)
    if name == "cpu":
        return _cpu()
    device = _current_cuda_device() if name == "cuda" else _numbered_cuda_device(name, asked_in)
    if not device.available:
        raise RuntimeError(f"{asked_in}={name!r} cannot be had: {device.reason}")
    return device


def _check_name(name: Any, asked_in: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f'{asked_in} must be "auto", "cpu", "cuda" or "cuda:N" with N from 0, got {name!r}')


def _numbered_cuda_device(name: str, asked_in: str) -> DeviceInfo:
    found = _cuda_devices()
    if found[0].name == "cuda":  # none answers
        return found[0]
    if _index(name) >= len(found):
        here = ", ".join(device.name for device in found)
        raise ValueError(f"{asked_in}={name!r} does not exist, CUDA devices here: {len(found)} ({here})")
    return found[_index(name)]


def _current_cuda_device() -> DeviceInfo:
    found = _cuda_devices()
    return found[0] if len(found) == 1 else found[_cupy().cuda.runtime.getDevice()]


def _index(name: str) -> int:
    """N of ``"cuda:N"``, 0 where none is written."""
    return int(name.partition(":")[2] or 0)


# -- the CPU ---------------------------------------------------------------------------------------------------------


def _cpu() -> DeviceInfo:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return DeviceInfo("cpu", f"{_cpu_model()}, {cores} core{'s' if cores > 1 else ''}")


def _cpu_model() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        about = ""
    model = re.search(r"^model name\s*:\s*(.+)$", about, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


# -- CUDA ------------------------------------------------------------------------------------------------------------


class _NoCuda(Exception):
    """Why no CUDA device can be used, in one line with the way out."""


def _cuda_devices() -> list[DeviceInfo]:
    """Each CUDA device, or one entry ``"cuda"`` with the reason why there is none."""
    try:
        cupy = _cupy()
        count = _count_devices(cupy)
        _check_compiler(cupy)
    except _NoCuda as obstacle:
        return [DeviceInfo("cuda", "NVIDIA GPU, through CuPy", available=False, reason=str(obstacle))]
    return [_cuda_device(cupy, index) for index in range(count)]


def _cuda_device(cupy: ModuleType, index: int) -> DeviceInfo:
    about = cupy.cuda.runtime.getDeviceProperties(index)
    capability = f"{about['major']}.{about['minor']}"
    memory = about["totalGlobalMem"] / 2**30
    description = f"{about['name'].decode()}, {memory:.0f} GiB, compute capability {capability}"
    oldest = min(cupy.cuda.nvrtc.getSupportedArchs())
    if about["major"] * 10 + about["minor"] >= oldest:
        return DeviceInfo(f"cuda:{index}", description)
    nvrtc, _ = cupy.cuda.nvrtc.getVersion()
    reason = f"NVRTC {nvrtc} compiles for compute capability {oldest // 10}.{oldest % 10} and newer; {_install(12)}"
    return DeviceInfo(f"cuda:{index}", description, available=False, reason=reason)


def _cupy() -> ModuleType:
    try:
        import_module("cupy.cuda")  # what is left of a half removed CuPy is a package without it
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            raise _NoCuda(f"CuPy is not installed; {_install_for_driver()}") from None
        sys.modules.pop("cupy", None)  # or array-api-compat would look for its ndarray, at every array
        raise _NoCuda(f"CuPy is installed in part ({error}); {_install_for_driver()}") from None
    except ImportError as error:  # CuPy frames the one line that matters, its cause, in a page of advice
        raise _NoCuda(f"CuPy does not import ({error.__cause__ or error}); {_install_for_driver()}") from None
    return import_module("cupy")


def _count_devices(cupy: ModuleType) -> int:
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        built_for, driver = runtime.runtimeGetVersion(), _driver_version()
        cupy_name = f"CuPy {cupy.__version__} for CUDA {built_for // 1000}"
        if driver == 0:
            raise _NoCuda(
                f"{cupy_name} is installed, but no NVIDIA driver answers; "
                f"install the driver, then {_install(built_for // 1000)}"
            ) from None
        if driver // 1000 < built_for // 1000:
            raise _NoCuda(
                f"{cupy_name} is installed, but the NVIDIA driver supports CUDA {_dotted(driver)}; "
                f"pip uninstall cupy-cuda{built_for // 1000}x, then {_install_for_driver()}"
            ) from None
        raise _NoCuda(f"the NVIDIA driver says {error}") from None
    if count == 0:
        raise _NoCuda("the NVIDIA driver shows no device; look at CUDA_VISIBLE_DEVICES")
    return int(count)


def _check_compiler(cupy: ModuleType) -> None:
    """Ask for NVRTC, which compiles our kernels: CuPy comes without it, and loads it only when it compiles."""
    built_for, driver = cupy.cuda.runtime.runtimeGetVersion(), _driver_version()
    try:
        major, minor = cupy.cuda.nvrtc.getVersion()
    except (RuntimeError, OSError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise _NoCuda(f"CuPy finds no NVRTC to compile with ({first_line}); {_install(built_for // 1000)}") from None
    if major > driver // 1000 > 0:
        raise _NoCuda(
            f"CuPy compiles with NVRTC {major}.{minor}, but the NVIDIA driver supports CUDA {_dotted(driver)}; "
            f"remove that NVRTC, then {_install_for_driver()}"
        )


def _driver_version() -> int:
    """CUDA version that the NVIDIA driver supports, 12080 for 12.8; 0 where there is no driver. Asks without CuPy."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _install_for_driver() -> str:
    """The way to a CuPy that fits the driver."""
    driver = _driver_version()
    if driver == 0:
        return f'install the NVIDIA driver, then {_install(13)} ("xpconv[cuda12]" for a driver before 580)'
    if driver < 12000:
        return f"the NVIDIA driver supports CUDA {_dotted(driver)}: update it to 580 or newer, then {_install(13)}"
    return _install(min(driver // 1000, 13))


def _install(cuda: int) -> str:
    return f'pip install "xpconv[cuda{cuda}]"'


def _dotted(version: int) -> str:
    """12080 as 12.8."""
    return f"{version // 1000}.{version % 1000 // 10}"
