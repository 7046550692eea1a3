"""The CUDA side of the emulated CuPy: devices, their memory, streams, events and graphs.

Work runs when it is submitted, in order; what a real device would refuse is refused here with its error: memory beyond
the limit, a device that is not there, waiting for a stream that is being captured.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from cuda_emulator import memory as device_memory

RUNTIME_VERSION = 12090
CAPTURE_GLOBAL, CAPTURE_THREAD_LOCAL, CAPTURE_RELAXED = range(3)
_BLOCK = 512  # CuPy's pool rounds every allocation up to a multiple of this

_ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
    906: (
        "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing blocking stream"
    ),
}


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime answers when it refuses, with CUDA's number and text."""

    __module__ = "cupy_backends.cuda.api.runtime"

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS[status])


class OutOfMemoryError(MemoryError):
    """CuPy's: a `MemoryError` with CuPy's words."""

    __module__ = "cupy.cuda.memory"

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        so_far = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(f"{so_far}, limit set to: {limit:,} bytes)." if limit else f"{so_far}).")


# -- the machine -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What differs from one compute capability to the next."""

    name: str
    multiprocessors: int
    opt_in_kib: int  # of shared memory, the most a block can have
    shared_kib: int  # of a multiprocessor
    threads: int  # of a multiprocessor
    blocks: int  # of a multiprocessor


MODELS = {
    "7.0": Model("Tesla V100-SXM2-16GB", 80, 96, 96, 2048, 32),
    "7.5": Model("Tesla T4", 40, 64, 64, 1024, 16),
    "8.0": Model("NVIDIA A100-SXM4-80GB", 108, 163, 164, 2048, 32),
    "8.6": Model("NVIDIA RTX A6000", 84, 99, 100, 1536, 16),
    "8.9": Model("NVIDIA L40S", 142, 99, 100, 1536, 24),
    "9.0": Model("NVIDIA H200", 132, 227, 228, 2048, 32),
    "10.0": Model("NVIDIA B200", 148, 227, 228, 2048, 32),
    "12.0": Model("NVIDIA GeForce RTX 5090", 170, 99, 100, 1536, 24),
}


class _ThreadState(threading.local):
    """The current device, and the current stream of each: CUDA keeps them per thread."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}


@dataclass
class Machine:
    """The devices that answer, as one `emulated_cupy` has them."""

    compute_capability: str = "9.0"
    devices: int = 1
    memory: int = 16 * 2**30
    synchronisations: int = 0
    pools: list[DevicePool] = field(default_factory=list)
    thread: _ThreadState = field(default_factory=_ThreadState)
    capturing: list[Stream] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pools = [DevicePool(self.memory) for _ in range(self.devices)]

    @property
    def model(self) -> Model:
        return MODELS[self.compute_capability]

    @property
    def capability(self) -> tuple[int, int]:
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)


_machines: list[Machine] = []


def machine() -> Machine:
    """The machine of the innermost `emulated_cupy`."""
    if not _machines:
        raise RuntimeError("the emulated CuPy is used outside of its context manager")
    return _machines[-1]


def answering() -> list[str]:
    """The compute capabilities of the devices of this machine; none where there is no machine."""
    return [_machines[-1].compute_capability] * _machines[-1].devices if _machines else []


@contextmanager
def running(new: Machine) -> Iterator[Machine]:
    """Let this machine answer."""
    _machines.append(new)
    try:
        yield new
    finally:
        _machines.remove(new)


# -- memory ------------------------------------------------------------------------------------------------------------


class DevicePool:
    """The bookkeeping of CuPy's memory pool on one device; freed blocks stay the pool's until it needs them."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.limit, self.used = capacity, 0, 0
        self.free: Counter[int] = Counter()

    @property
    def free_bytes(self) -> int:
        return sum(size * count for size, count in self.free.items())

    def reserve(self, size: int) -> int:
        """Account for an allocation; return the block's size, rounded as CuPy rounds it."""
        block = -(-size // _BLOCK) * _BLOCK
        if self.free[block]:
            self.free[block] -= 1
        elif block:
            self._grow(block)
        self.used += block
        return block

    def _grow(self, block: int) -> None:
        """Ask the device for more, as cudaMalloc does: while a stream is captured only if that is relaxed."""
        if any(stream.capture_mode != CAPTURE_RELAXED for stream in machine().capturing):
            raise fail_capture()
        bound = min(self.limit or self.capacity, self.capacity)
        if self.used + self.free_bytes + block > bound:
            gc.collect()  # CuPy, too, frees what it can before it gives up
            self.free.clear()
            if self.used + block > bound:
                raise OutOfMemoryError(block, self.used, self.limit)

    def release(self, block: int) -> None:
        self.used -= block
        self.free[block] += 1


_mapped: WeakValueDictionary[int, Memory] = WeakValueDictionary()


class Memory:
    """One allocation on a device; its bytes come from the emulator's registry, which knows which were written."""

    __module__ = "cupy.cuda.memory"

    def __init__(self, size: int, *, initialised: bool = False) -> None:
        self._block = None  # stays so where the pool refuses: there is nothing to release
        self.device_id, self.size = machine().thread.device, size
        self._pool = machine().pools[self.device_id]
        self._block = self._pool.reserve(size)
        self.written = initialised or not size  # all of it; only then nobody need ask any more
        self.ptr, self.bytes = 0, np.empty(0, np.uint8)
        if size:
            self.bytes = device_memory.allocate(size, initialised=initialised)
            self.ptr = self.bytes.__array_interface__["data"][0]
            _mapped[self.ptr] = self
        if capturing():
            current_stream().allocated.append(self)

    @staticmethod
    def holding(address: int) -> Memory:
        """The allocation that an address lies in."""
        for memory in _mapped.values():
            if memory.ptr <= address < memory.ptr + memory.size:
                return memory
        raise ValueError(f"no emulated device memory at {address:#x}")

    def __del__(self) -> None:
        if self._block is not None:
            self._pool.release(self._block)

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def view(self, shape: Any, dtype: Any, offset: int, strides: Any) -> np.ndarray:
        """Part of the memory as NumPy sees it; for the emulation only, tests read arrays with `get`."""
        return np.ndarray(shape, dtype, self.bytes, offset, strides)

    def require_written(self, host: np.ndarray) -> None:
        """Raise at the first element of this view that nothing has written."""
        if self.written:
            return
        if device_memory.first_uninitialised(self.ptr, self.size) is None:
            self.written = True
            return
        for index, address, nbytes in _runs(host):
            offset = device_memory.first_uninitialised(address, nbytes)
            if offset is not None:
                raise AssertionError(
                    f"element {_named(host, index, offset)} of a cupy array {host.shape} {host.dtype} is read, but "
                    "nothing has written it"
                )

    def mark_written(self, host: np.ndarray) -> None:
        """Remember that all elements of this view have a value."""
        if not self.written:
            for _, address, nbytes in _runs(host):
                device_memory.mark_initialised(address, nbytes)


_WHOLE = ()


def _named(host: np.ndarray, index: tuple[int, ...], offset: int) -> str:
    """The element at an offset in bytes from the one at the index, as an index."""
    if index is _WHOLE:
        order = "C" if host.flags.c_contiguous else "F"
        index = np.unravel_index(offset // host.itemsize, host.shape, order=order)
    return f"[{', '.join(map(str, index))}]"


def _address(host: np.ndarray) -> int:
    return host.__array_interface__["data"][0]


def _runs(host: np.ndarray) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Index, address and length of pieces without gaps that make up a view: itself, or its elements."""
    start = _address(host)
    if host.flags.forc:
        yield _WHOLE, start, host.nbytes
        return
    for index in np.ndindex(host.shape):
        yield index, start + sum(i * s for i, s in zip(index, host.strides, strict=True)), host.itemsize


class MemoryPointer:
    """CuPy's pointer into an allocation."""

    __module__ = "cupy.cuda.memory"

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self._offset = mem, offset
        self.ptr = mem.ptr + offset

    device = property(lambda self: self.mem.device)
    device_id = property(lambda self: self.mem.device_id)

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self._offset + offset)

    def memset(self, value: int, size: int) -> None:
        self.memset_async(value, size)

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        target = self.mem.view(size, np.uint8, self._offset, None)

        def fill() -> None:
            target[...] = value
            self.mem.mark_written(target)

        submit(fill, stream)


def alloc(size: int) -> MemoryPointer:
    """Memory on the current device."""
    return MemoryPointer(Memory(size), 0)


class MemoryPool:
    """CuPy's default pool, as seen from the current device."""

    __module__ = "cupy.cuda.memory"

    def malloc(self, size: int) -> MemoryPointer:
        return alloc(size)

    def free_all_blocks(self, stream: Any = None) -> None:  # noqa: ARG002  CuPy's signature
        _pool().free.clear()

    def n_free_blocks(self) -> int:
        return _pool().free.total()

    def used_bytes(self) -> int:
        return _pool().used

    def free_bytes(self) -> int:
        return _pool().free_bytes

    def total_bytes(self) -> int:
        return _pool().used + _pool().free_bytes

    def get_limit(self) -> int:
        return _pool().limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        _pool().limit = int(_pool().capacity * fraction) if fraction is not None else size or 0


def _pool() -> DevicePool:
    return machine().pools[machine().thread.device]


# -- devices -----------------------------------------------------------------------------------------------------------


class Device:
    """CuPy's device: a context that makes itself current. Not hashable, as CuPy's is not."""

    __module__ = "cupy.cuda.device"

    def __init__(self, device: Any = None) -> None:
        self.id = get_device() if device is None else int(device)
        self._outer: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Device) else NotImplemented

    __hash__ = None

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        self._outer.append(get_device())
        set_device(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        set_device(self._outer.pop())

    def use(self) -> None:
        set_device(self.id)

    def synchronize(self) -> None:
        with self:
            device_synchronize()

    @property
    def compute_capability(self) -> str:
        return machine().compute_capability.replace(".", "")

    @property
    def attributes(self) -> dict[str, int]:
        _check_device(self.id)
        return device_attributes(machine())

    @property
    def mem_info(self) -> tuple[int, int]:
        _check_device(self.id)
        pool = machine().pools[self.id]
        return pool.capacity - pool.used - pool.free_bytes, pool.capacity

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{self.id + 1:02X}:00.0"


def _check_device(number: int) -> None:
    if not 0 <= number < machine().devices:
        raise CUDARuntimeError(101)


def get_device() -> int:
    return machine().thread.device


def set_device(number: int) -> None:
    _check_device(number)
    machine().thread.device = number


def device_attributes(of: Machine) -> dict[str, int]:
    """The attributes of a device that a launch is planned by, under CuPy's names."""
    model = of.model
    return {
        "CooperativeLaunch": 1,
        "L2CacheSize": 40 * 2**20,
        "MaxBlockDimX": 1024,
        "MaxBlockDimY": 1024,
        "MaxBlockDimZ": 64,
        "MaxBlocksPerMultiprocessor": model.blocks,
        "MaxGridDimX": 2**31 - 1,
        "MaxGridDimY": 65535,
        "MaxGridDimZ": 65535,
        "MaxRegistersPerBlock": 65536,
        "MaxRegistersPerMultiprocessor": 65536,
        "MaxSharedMemoryPerBlock": 48 * 2**10,
        "MaxSharedMemoryPerBlockOptin": model.opt_in_kib * 2**10,
        "MaxSharedMemoryPerMultiprocessor": model.shared_kib * 2**10,
        "MaxThreadsPerBlock": 1024,
        "MaxThreadsPerMultiProcessor": model.threads,
        "MultiProcessorCount": model.multiprocessors,
        "ReservedSharedMemoryPerBlock": 1024 if of.capability >= (8, 0) else 0,
        "TotalConstantMemory": 64 * 2**10,
        "WarpSize": 32,
    }


def device_properties(number: int) -> dict[str, Any]:
    """`cudaDeviceProp` as CuPy gives it."""
    _check_device(number)
    attributes = device_attributes(machine())
    axes = "XYZ"
    return {
        "name": machine().model.name.encode(),
        "totalGlobalMem": machine().memory,
        "major": machine().capability[0],
        "minor": machine().capability[1],
        "l2CacheSize": attributes["L2CacheSize"],
        "maxBlocksPerMultiProcessor": attributes["MaxBlocksPerMultiprocessor"],
        "maxGridSize": tuple(attributes[f"MaxGridDim{axis}"] for axis in axes),
        "maxThreadsDim": tuple(attributes[f"MaxBlockDim{axis}"] for axis in axes),
        "maxThreadsPerBlock": attributes["MaxThreadsPerBlock"],
        "maxThreadsPerMultiProcessor": attributes["MaxThreadsPerMultiProcessor"],
        "multiProcessorCount": attributes["MultiProcessorCount"],
        "regsPerBlock": attributes["MaxRegistersPerBlock"],
        "regsPerMultiprocessor": attributes["MaxRegistersPerMultiprocessor"],
        "sharedMemPerBlock": attributes["MaxSharedMemoryPerBlock"],
        "sharedMemPerBlockOptin": attributes["MaxSharedMemoryPerBlockOptin"],
        "sharedMemPerMultiprocessor": attributes["MaxSharedMemoryPerMultiprocessor"],
        "totalConstMem": attributes["TotalConstantMemory"],
        "warpSize": attributes["WarpSize"],
    }


# -- streams, events and graphs ----------------------------------------------------------------------------------------

_handles = itertools.count(0x5500_0000, 0x10)


class Stream:
    """CuPy's stream; its work has run as soon as it is submitted, unless the stream is being captured."""

    __module__ = "cupy.cuda.stream"
    null: Stream
    ptds: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        self.ptr = 0 if null else 2 if ptds else next(_handles)
        self.device_id = -1 if null or ptds else get_device()
        self.is_non_blocking, self.priority = non_blocking, priority or 0
        self.capture_mode: int | None = None
        self.nodes: list[Callable[[], None]] | None = None
        self.capture_failed = False
        self.allocated: list[Memory] = []
        self._outer: list[Stream] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ptr} (device {self.device_id})>"

    def __enter__(self) -> Stream:
        self._outer.append(current_stream())
        return self.use()

    def __exit__(self, *_: object) -> None:
        self._outer.pop().use()

    def use(self) -> Stream:
        if self.device_id not in (-1, get_device()):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with the current device "
                f"({get_device()})"
            )
        machine().thread.streams[get_device()] = self
        return self

    @property
    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        synchronise(self)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Nothing to wait for: what came before has run."""

    def launch_host_func(self, callback: Callable[[Any], None], arg: Any) -> None:
        submit(lambda: callback(arg), self)

    def is_capturing(self) -> bool:
        return self.nodes is not None

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.is_capturing():
            raise CUDARuntimeError(1)
        self.capture_mode = CAPTURE_RELAXED if mode is None else mode
        self.nodes, self.allocated, self.capture_failed = [], [], False
        machine().capturing.append(self)

    def end_capture(self) -> Graph:
        if self.nodes is None:
            raise CUDARuntimeError(1)
        nodes, self.nodes, self.capture_mode = self.nodes, None, None
        machine().capturing.remove(self)
        if self.capture_failed:
            raise CUDARuntimeError(901)
        return Graph(nodes, self.allocated)


class ExternalStream(Stream):
    """A stream made by someone else, known by its handle."""

    __module__ = "cupy.cuda.stream"

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__()
        self.ptr, self.device_id = ptr, device_id


def _own(stream: Stream, handle: int) -> Stream:
    """One of CUDA's two default streams, which belong to no device and exist before any."""
    stream.__dict__.update(ptr=handle, device_id=-1, is_non_blocking=False, priority=0, _outer=[])
    stream.__dict__.update(capture_mode=None, nodes=None, allocated=[], capture_failed=False)
    return stream


Stream.null, Stream.ptds = _own(Stream.__new__(Stream), 0), _own(Stream.__new__(Stream), 2)


def current_stream(device_id: int = -1) -> Stream:
    """The stream that work goes to."""
    device_id = get_device() if device_id == -1 else device_id
    return machine().thread.streams.get(device_id, Stream.null)


def submit(work: Callable[[], None], stream: Stream | None = None) -> None:
    """Run the work, or note it down where the stream is being captured."""
    stream = stream or current_stream()
    if stream.nodes is None:
        work()
    else:
        stream.nodes.append(work)


def capturing() -> bool:
    """Whether the current stream is being captured."""
    return bool(machine().capturing) and current_stream().is_capturing()


def fail_capture(status: int = 900) -> CUDARuntimeError:
    """The error of what no capture permits; the captures end with it."""
    for stream in machine().capturing:
        stream.capture_failed = True
    return CUDARuntimeError(status)


def synchronise(stream: Stream | None = None) -> None:
    """Wait for the stream's work, which has run: counted, and refused while it is only being noted down."""
    state, stream = machine(), stream or current_stream()
    state.synchronisations += 1
    if stream.is_capturing():
        raise fail_capture()
    if stream.ptr == 0 and any(not other.is_non_blocking for other in state.capturing):
        raise fail_capture(906)


def device_synchronize() -> None:
    """Wait for everything, which no capture permits."""
    machine().synchronisations += 1
    if machine().capturing:
        raise fail_capture()


class Graph:
    """What was captured from a stream.

    It keeps no array alive, as CUDA's does not. What was allocated during the capture and freed again is still mapped,
    since CuPy's pool gives nothing back; here the graph holds it instead.
    """

    __module__ = "cupy.cuda.graph"

    def __init__(self, nodes: list[Callable[[], None]], allocated: list[Memory]) -> None:
        self._nodes, self._allocated = nodes, allocated

    def launch(self, stream: Stream | None = None) -> None:
        for work in self._nodes:
            submit(work, stream)

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing to prepare."""


class Event:
    """CuPy's event: a time on a stream."""

    __module__ = "cupy.cuda.stream"

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self.ptr, self.block, self.disable_timing = next(_handles), block, disable_timing
        self.time: float | None = None

    done = True

    def record(self, stream: Stream | None = None) -> None:
        submit(self._now, stream)

    def _now(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        machine().synchronisations += 1
        if capturing():
            raise fail_capture()


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two events."""
    if start.disable_timing or end.disable_timing or start.time is None or end.time is None:
        raise CUDARuntimeError(400)
    return (end.time - start.time) * 1e3
