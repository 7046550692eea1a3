"""Compile each kernel once for each device, and launch a plan's steps on the current stream.

Nothing here synchronises, and scratch memory comes from CuPy's pool, so that after one warm call the launches can be
captured in a CUDA graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import cupy

from xpconv.cuda import source
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.steps import Kernel, Step, Work
from xpconv.cuda.tensor_maps import EncodingError, TensorMap
from xpconv.spec import Array

_OPTIONS = ("-std=c++17",)
_ABOUT_THE_KERNEL = ("PTX", "BINARY", "IMAGE", "ARCH", "INVALID_VALUE", "NOT_FOUND", "Image", "Ptx", "InvalidValue")
_FREE_SHARED = 48 * 1024  # bytes of dynamic shared memory that need no asking
# Function, grid, block, bytes of shared memory; for each argument the place of its buffer, or None; or its value.
_Launch = tuple[Any, tuple[int, int, int], tuple[int, int, int], int, tuple[int | None, ...], tuple[Any, ...]]

_lock = RLock()
_functions: dict[tuple[Kernel, int], Any] = {}
_failed: dict[tuple[Kernel, int], str] = {}
_kept_for_graphs: list[Array] = []
_prepared: WeakKeyDictionary[Work, dict[tuple[tuple[str, ...], int], Callable[..., None]]] = WeakKeyDictionary()


class KernelUnavailable(Exception):
    """A kernel could not be compiled or loaded on this device; the agnostic engine can answer instead."""


@lru_cache(maxsize=64)
def hardware(device_id: int) -> Hardware:
    """What the plans must know of a device that is present."""
    device = cupy.cuda.Device(device_id)
    attributes = device.attributes
    major, minor = int(device.compute_capability[:-1]), int(device.compute_capability[-1])
    name = cupy.cuda.runtime.getDeviceProperties(device_id)["name"]
    return Hardware(
        name=name.decode() if isinstance(name, bytes) else str(name),
        capability=(major, minor),
        multiprocessors=attributes["MultiProcessorCount"],
        shared_per_block=attributes["MaxSharedMemoryPerBlockOptin"],
        shared_per_multiprocessor=attributes["MaxSharedMemoryPerMultiprocessor"],
    )


def run(work: Work, arrays: Mapping[str, Array | None]) -> None:
    """Launch every step; `arrays` are the arrays of the call by the names that the steps use."""
    device_id = next(array.data.device_id for array in arrays.values() if array is not None)
    prepared(work, tuple(arrays), device_id)(*arrays.values())


def failed(work: Work, device_id: int) -> bool:
    """Whether a kernel of this work is known not to be had on the device."""
    return any((step.kernel, device_id) in _failed for step in work.steps)


def prepared(work: Work, names: tuple[str, ...], device_id: int) -> Callable[..., None]:
    """A function of the arrays with these names that launches every step on the device, whichever is current.

    All kernels are compiled when it is made; once the first is launched, only a refused tensor map can still fail.
    """
    with _lock:
        known = _prepared.setdefault(work, {})
        if (names, device_id) not in known:
            with cupy.cuda.Device(device_id):
                launches = tuple(_launch(step, (*names, *work.scratch), device_id) for step in work.steps)
            known[names, device_id] = _launcher(launches, tuple(work.scratch.values()), device_id)
        return known[names, device_id]


def _launcher(launches: tuple[_Launch, ...], scratch: tuple[int, ...], device_id: int) -> Callable[..., None]:
    def launch(*arrays: Array | None) -> None:
        if cupy.cuda.runtime.getDevice() != device_id:
            with cupy.cuda.Device(device_id):
                return launch(*arrays)
        buffers = arrays if not scratch else (*arrays, *_scratch(scratch))
        for function, grid, block, shared, slots, values in launches:
            arguments = [_resolved(buffers, slot, value) for slot, value in zip(slots, values, strict=True)]
            function(grid, block, tuple(arguments), shared_mem=shared)
        return None

    return launch


def _scratch(sizes: tuple[int, ...]) -> list[Array]:
    """Scratch memory from CuPy's pool, which may give it to others, on this stream, as soon as the call has ended.

    A graph writes to it at every launch, so what is allocated while one is captured is never given back.
    """
    buffers = [cupy.empty(nbytes, dtype=cupy.uint8) for nbytes in sizes]
    if cupy.cuda.get_current_stream().is_capturing():
        _kept_for_graphs.extend(buffers)
    return buffers


def _resolved(buffers: tuple[Array | None, ...], slot: int | None, value: Any) -> Any:
    """An argument as CuPy takes it: a value, a buffer, or the map of a buffer."""
    if slot is None:
        return value
    buffer: Any = buffers[slot]
    if value is None:
        return buffer
    try:
        return value.resolve(buffer.data.ptr)
    except EncodingError as error:
        raise KernelUnavailable(str(error)) from error


def _launch(step: Step, names: tuple[str, ...], device_id: int) -> _Launch:
    """A step with its compiled function, and each argument as the place of a buffer or as a value."""
    function = _function(step.kernel, device_id, step.shared)
    slots, values = [], []
    for argument in step.arguments:
        name = argument.array if isinstance(argument, TensorMap) else argument
        is_name = isinstance(name, str)
        slots.append(names.index(name) if is_name and name in names else None)  # an absent array is a null pointer
        values.append(None if argument is name and is_name else argument)
    return function, step.grid, (step.block, 1, 1), step.shared, tuple(slots), tuple(values)


def _function(kernel: Kernel, device_id: int, shared: int) -> Any:
    """The compiled kernel, allowed as much shared memory as any launch so far has asked for."""
    key = kernel, device_id
    with _lock:
        if key in _failed:
            raise KernelUnavailable(_failed[key])
        try:
            if key not in _functions:
                _functions[key] = _compiled(kernel)
            function = _functions[key]
            if shared > max(_FREE_SHARED, function.max_dynamic_shared_size_bytes):
                function.max_dynamic_shared_size_bytes = shared
        except Exception as error:
            _raise_if_passing(error)
            _failed[key] = _told(kernel, error)
            warnings.warn(_failed[key], RuntimeWarning, stacklevel=2)
            raise KernelUnavailable(_failed[key]) from error
    return function


def _raise_if_passing(error: Exception) -> None:
    """Raise again what says nothing about the kernel: too little memory, and the errors of earlier launches."""
    if isinstance(error, (MemoryError, AssertionError)):
        raise error
    if type(error).__name__ in ("CUDADriverError", "CUDARuntimeError"):
        words = str(error)
        if "OUT_OF_MEMORY" in words or "MemoryAllocation" in words:
            raise MemoryError(words) from error
        if not any(word in words for word in _ABOUT_THE_KERNEL):
            raise error


def _compiled(kernel: Kernel) -> Any:
    module = cupy.RawModule(
        code=source.text(kernel.file),
        options=(*_OPTIONS, *kernel.options),
        name_expressions=(kernel.expression,),
    )
    return module.get_function(kernel.expression)  # compiles now, so that a failure can be told


def _told(kernel: Kernel, error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"xpconv could not prepare {kernel.expression} of kernels/{kernel.file} for this device ({first.strip()}); "
        "CuPy's own operations take its place, more slowly"
    )
