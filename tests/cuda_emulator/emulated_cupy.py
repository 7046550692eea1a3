"""A module that stands in for CuPy where there is no GPU: NumPy computes, and kernels run on the CPU.

`emulated_cupy` puts it in the place of `cupy` for the time of a block. There is one such module for the whole process,
so that a type or function of it that someone keeps, or a cache that knows it, is right again in the next block.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from cuda_emulator import compiler, module, settings
from cuda_emulator import emulated_cuda as cuda
from cuda_emulator import numpy_backed as backed
from cuda_emulator.tensor_map_driver import TensorMapDriver

VERSION = "14.2.0"  # the CuPy whose names and words these are

_NUMPY_ALONE = set(
    """False_ ScalarType True_ asmatrix block bmat busday_count busday_offset busdaycalendar bytes_ char character
    clongdouble complex256 core ctypeslib datetime64 datetime_as_string datetime_data dtypes einsum_path emath
    errstate f2py flexible float128 frompyfunc fromregex geomspace get_include getbufsize geterr geterrcall
    histogram_bin_edges info insert is_busday isnat lib little_endian longdouble ma matrix matvec memmap nanpercentile
    nanquantile ndenumerate nditer nested_iters object_ polyder polydiv polyint polynomial rec recarray record
    sctypeDict setbufsize seterr seterrcall show_config show_runtime spacing str_ strings test testing timedelta64
    typecodes typing unstack vecdot vecmat void""".split()
)  # what CuPy has not, and submodules that nobody here needs
_UNCHANGED = set(
    """broadcast_shapes dtype e euler_gamma finfo get_printoptions iinfo index_exp inf isdtype issubdtype iterable
    mintypecode nan ndindex newaxis pi printoptions promote_types s_ set_printoptions typename""".split()
)  # NumPy's own, in CuPy too
_ABOUT_ARRAYS = set(
    "can_cast common_type iscomplexobj isrealobj isscalar may_share_memory min_scalar_type ndim result_type shape "
    "shares_memory size".split()
)
_CREATING = set(
    "arange bartlett blackman diag_indices eye full hamming hanning identity indices kaiser linspace logspace "
    "mask_indices ones tri tril_indices triu_indices zeros".split()
)
_OWN = (
    "array asarray ascontiguousarray asfortranarray asnumpy copyto empty empty_like from_dlpack full_like ndarray "
    "ones_like take ufunc zeros_like".split()
)
_LINALG = (
    "cholesky cond cross det eig eigh eigvals eigvalsh inv lstsq matmul matrix_power matrix_rank matrix_transpose "
    "norm pinv qr slogdet solve svd tensorinv tensorsolve".split()
)
_FFT = (
    "fft fft2 fftfreq fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2 rfftfreq "
    "rfftn".split()
)
_GENERATOR = (
    "beta binomial chisquare dirichlet exponential f gamma geometric hypergeometric integers logseries poisson power "
    "random standard_exponential standard_gamma standard_normal uniform".split()
)
_LEGACY_RANDOM = (
    "beta binomial choice exponential gamma laplace lognormal normal permutation poisson rand randint randn random "
    "random_sample standard_normal uniform".split()
)


# -- the modules -------------------------------------------------------------------------------------------------------


@cache
def modules() -> dict[str, ModuleType]:
    """The emulated modules by their names in `sys.modules`."""
    cupy = _named_module("cupy", _array_functions())
    parts = {
        "cupy.cuda": _named_module("cupy.cuda", _cuda_names()),
        "cupy.linalg": _part("linalg", np.linalg, _LINALG, LinAlgError=np.linalg.LinAlgError),
        "cupy.fft": _part("fft", np.fft, _FFT),
        "cupy.random": _named_module("cupy.random", _random_names()),
        "cupy.exceptions": _named_module("cupy.exceptions", vars(np.exceptions)),
        "cupyx": _named_module("cupyx", {}),
        "cupyx.scipy": _named_module("cupyx.scipy", {}),
        "cupyx.scipy.special": _named_module("cupyx.scipy.special", _special_names()),
    }
    parts |= {f"cupy.cuda.{name}": _named_module(f"cupy.cuda.{name}", names) for name, names in _cuda_parts().items()}
    for name, part in parts.items():
        package, _, attribute = name.rpartition(".")
        if package:
            setattr(cupy if package == "cupy" else parts[package], attribute, part)
    vars(cupy).update(RawModule=RawModule, is_available=_is_available, get_default_memory_pool=lambda: _POOL)
    cupy.get_array_module = lambda *args: cupy if any(isinstance(a, backed.ndarray) for a in args) else np
    return {"cupy": cupy, **parts}


def _named_module(name: str, names: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update({key: value for key, value in names.items() if not key.startswith("__")})
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    if name in ("cupy", "cupyx"):
        module.__version__ = VERSION
    return module


def _array_functions() -> dict[str, Any]:
    """CuPy's main namespace."""
    names = {name: value for name, value in vars(np).items() if not name.startswith("_") and name not in _NUMPY_ALONE}
    functions = {name: _as_cupys(name, value) for name, value in names.items() if not isinstance(value, ModuleType)}
    functions |= {name: getattr(backed, name) for name in _OWN}
    backed.FUNCTIONS.update({getattr(np, name): functions[name] for name in _OWN if callable(getattr(np, name, None))})
    functions["asanyarray"] = backed.asarray
    return functions


def _as_cupys(name: str, value: Any) -> Any:
    if name in _UNCHANGED or isinstance(value, type) or not callable(value):
        return value
    if name in _ABOUT_ARRAYS:
        return backed.about_arrays(value)
    return backed.creating(value) if name in _CREATING else backed.on_arrays(value)


def _part(name: str, of_numpy: ModuleType, functions: Iterable[str], **more: Any) -> ModuleType:
    made = {function: backed.on_arrays(getattr(of_numpy, function)) for function in functions}
    made |= {function: backed.creating(getattr(of_numpy, function)) for function in made if function.endswith("freq")}
    module = _named_module(f"cupy.{name}", made | more)
    module.__all__ = [*made, *more]
    return module


def _special_names() -> dict[str, Any]:
    from scipy import special

    names = "erf erfc erfinv expit gamma gammaln log_softmax logit logsumexp ndtr softmax xlogy".split()
    return {name: _special(getattr(special, name)) for name in names}


def _special(function: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: backed.call(function, *args, **kwargs)


# -- random numbers ----------------------------------------------------------------------------------------------------


class Generator:
    """CuPy's generator, with NumPy's numbers."""

    __module__ = "cupy.random._generator_api"

    def __init__(self, numpy_generator: Any) -> None:
        self._numbers = numpy_generator

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _GENERATOR:
            raise AttributeError(f"'Generator' object has no attribute {name!r}")
        return lambda *args, **kwargs: backed.adopted(getattr(self._numbers, name)(*args, **kwargs))


def _random_names() -> dict[str, Any]:
    state = np.random.RandomState()
    legacy = {
        name: lambda *args, name=name, **kwargs: backed.adopted(getattr(state, name)(*args, **kwargs))
        for name in _LEGACY_RANDOM
    }
    return {
        **legacy,
        "seed": state.seed,
        "Generator": Generator,
        "default_rng": lambda seed=None: Generator(np.random.default_rng(seed)),
    }


# -- cupy.cuda ---------------------------------------------------------------------------------------------------------

_POOL = cuda.MemoryPool()
_STREAM_NAMES = {
    "Event": cuda.Event,
    "ExternalStream": cuda.ExternalStream,
    "Stream": cuda.Stream,
    "get_current_stream": cuda.current_stream,
    "get_elapsed_time": cuda.get_elapsed_time,
}
_MEMORY_NAMES = {
    "Memory": cuda.Memory,
    "MemoryPointer": cuda.MemoryPointer,
    "MemoryPool": cuda.MemoryPool,
    "alloc": cuda.alloc,
}


def _is_available() -> bool:
    return True


def _cuda_names() -> dict[str, Any]:
    return {
        **_STREAM_NAMES,
        **_MEMORY_NAMES,
        "Device": cuda.Device,
        "Graph": cuda.Graph,
        "get_device_id": cuda.get_device,
        "get_local_runtime_version": lambda: cuda.RUNTIME_VERSION,
        "is_available": _is_available,
    }


def _cuda_parts() -> dict[str, dict[str, Any]]:
    return {
        "compiler": {"CompileException": compiler.CompileException},
        "cufft": {},
        "device": {
            "Device": cuda.Device,
            "get_compute_capability": lambda: cuda.Device().compute_capability,
            "get_device_id": cuda.get_device,
        },
        "graph": {"Graph": cuda.Graph},
        "memory": {**_MEMORY_NAMES, "OutOfMemoryError": cuda.OutOfMemoryError},
        "nvrtc": {"getVersion": lambda: (12, 9), "getSupportedArchs": _supported_architectures},
        "runtime": _runtime_names(),
        "stream": _STREAM_NAMES,
    }


def _supported_architectures() -> list[int]:
    return [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121]


def _runtime_names() -> dict[str, Any]:
    return {
        "CUDARuntimeError": cuda.CUDARuntimeError,
        "deviceGetAttribute": _device_attribute,
        "deviceSynchronize": cuda.device_synchronize,
        "driverGetVersion": lambda: cuda.RUNTIME_VERSION,
        "getDevice": cuda.get_device,
        "getDeviceCount": lambda: cuda.machine().devices,
        "getDeviceProperties": cuda.device_properties,
        "is_hip": False,
        "memGetInfo": lambda: cuda.Device().mem_info,
        "runtimeGetVersion": lambda: cuda.RUNTIME_VERSION,
        "setDevice": cuda.set_device,
        "streamCaptureModeGlobal": cuda.CAPTURE_GLOBAL,
        "streamCaptureModeThreadLocal": cuda.CAPTURE_THREAD_LOCAL,
        "streamCaptureModeRelaxed": cuda.CAPTURE_RELAXED,
        "streamLegacy": 1,
        "streamPerThread": 2,
        **{f"cudaDevAttr{name}": name for name in cuda.device_attributes(cuda.Machine())},
    }


def _device_attribute(name: str, device: int) -> int:
    return cuda.Device(device).attributes[name]


# -- kernels -----------------------------------------------------------------------------------------------------------


class RawModule:
    """CuPy's module of CUDA kernels from source text; the emulator compiles them for the CPU."""

    __module__ = "cupy._core.raw"

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Iterable[str] | None = None,
        jitify: bool | None = None,
    ) -> None:
        if code is None or path or translate_cucomplex or enable_cooperative_groups or jitify:
            raise NotImplementedError("the emulated CuPy compiles plain CUDA text alone")
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.options, self.backend, self.name_expressions = code, options, backend, name_expressions
        names = None if name_expressions is None else list(name_expressions)
        self._module = module.RawModule(code, options=options, name_expressions=names)

    def compile(self, log_stream: Any = None) -> None:
        self._module.compile(log_stream)

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self._module.get_function(name))


class RawKernel:
    """A kernel of a `RawModule`: launched on the current stream, so that a graph can be captured of it."""

    __module__ = "cupy._core.raw"
    max_threads_per_block = 1024

    def __init__(self, function: module.Function) -> None:
        self._function, self.name = function, function.name

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._function.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self._function.max_dynamic_shared_size_bytes = size

    def compile(self, log_stream: Any = None) -> None:
        """It is compiled already."""

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        values = tuple(map(_kernel_argument, args))  # addresses for arrays: a graph keeps no memory alive
        cuda.submit(lambda: self._function(grid, block, values, shared_mem=shared_mem))


def _kernel_argument(value: Any) -> Any:
    """What a kernel gets for an argument: of an array only the address, which must be on the current device."""
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")
    if not isinstance(value, (backed.ndarray, cuda.MemoryPointer)):
        return value
    if value.device.id != cuda.get_device():
        raise cuda.CUDARuntimeError(700)
    return np.uintp(value.data.ptr if isinstance(value, backed.ndarray) else value.ptr)


# -- one at a time -----------------------------------------------------------------------------------------------------

_PLACES = ("cupy", "cupyx", "cupy_backends", "array_api_compat.cupy")
_kept: dict[str, ModuleType] = {}  # what was imported on top of the emulated CuPy
_last_devices: list[str] = []  # compute capabilities that the kernels in use were compiled for


@contextmanager
def emulated_cupy(
    compute_capability: str = "9.0", devices: int = 1, memory: int = 16 * 2**30, *, over_real: bool = False
) -> Iterator[ModuleType]:
    """Let `import cupy` find the emulated module.

    Parameters
    ----------
    compute_capability : str
        of every device, one of `emulated_cuda.MODELS`
    devices : int
        how many there are
    memory : int
        bytes that each device has; what a test allocates beyond them is an `OutOfMemoryError`
    over_real : bool
        also where a real CuPy has a device

    Yields
    ------
    module
        in the place of `cupy`; `cupyx.scipy.special` and array-api-compat's CuPy namespace belong to it
    """
    if not over_real and real_cupy_answers():
        raise RuntimeError("a CUDA device answers to CuPy here: test on that, not on the emulation")
    before, namespace = _set_aside(), vars(import_module("array_api_compat")).get("cupy")
    sys.modules.update(modules() | _kept)
    _forget_types()
    theirs = _bound_to_another(modules()["cupy"])
    _bind(dict.fromkeys(theirs, modules()["cupy"]))
    try:
        machine = cuda.Machine(compute_capability, devices, memory)
        driver = mock.patch.object(import_module("xpconv.cuda.tensor_maps"), "driver", TensorMapDriver)
        with cuda.running(machine), settings.using(compute_capability=machine.capability), driver:
            _forget_kernels(*cuda.answering())
            _refer_to(import_module("array_api_compat.cupy"))
            yield modules()["cupy"]
    finally:
        _kept.update({name: part for name, part in _set_aside().items() if name.startswith("array_api_compat")})
        sys.modules.update(before)
        _bind(theirs)
        _forget_kernels(*cuda.answering())
        _refer_to(namespace)
        _forget_types()


@cache
def real_cupy_answers() -> bool:
    """Whether a CuPy that is no emulation has a device. Without NVIDIA's driver it is not even imported."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return import_module("cupy").cuda.runtime.getDeviceCount() > 0
    except (OSError, ImportError, AttributeError, RuntimeError):
        return False


def _set_aside() -> dict[str, ModuleType]:
    """Take every module of a CuPy, or made for one, out of `sys.modules`."""
    names = [name for name in sys.modules if any(name == place or name.startswith(f"{place}.") for place in _PLACES)]
    return {name: sys.modules.pop(name) for name in names}


def _refer_to(namespace: Any) -> None:
    """Make `array_api_compat.cupy` the given module: an import from the package looks at its attribute first."""
    package = import_module("array_api_compat")
    if namespace is not None:
        package.cupy = namespace
    elif hasattr(package, "cupy"):
        del package.cupy


def _forget_types() -> None:
    """Clear array-api-compat's caches of which type belongs to which library: that changes with `sys.modules`."""
    for value in list(vars(import_module("array_api_compat.common._helpers")).values()):
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def _bound_to_another(cupy: ModuleType) -> dict[str, ModuleType]:
    """The modules of xpconv that have imported another CuPy than this one, and which."""
    found = {name: vars(module).get("cupy") for name, module in sys.modules.items() if name.startswith("xpconv.")}
    return {name: bound for name, bound in found.items() if isinstance(bound, ModuleType) and bound is not cupy}


def _bind(cupys: dict[str, ModuleType]) -> None:
    for name, cupy in cupys.items():
        sys.modules[name].cupy = cupy


def _forget_kernels(*devices: str) -> None:
    """Clear what xpconv remembers of a device by its number, where that is another device now."""
    if not devices or devices == tuple(_last_devices):
        return
    if launch := sys.modules.get("xpconv.cuda.launch"):
        launch.hardware.cache_clear()
        for name in ("_functions", "_failed", "_prepared"):
            getattr(launch, name).clear()
    _last_devices[:] = devices
