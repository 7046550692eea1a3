"""Time the alternatives for a convolution on the current device; only those that agree with the estimated plan win."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from statistics import median
from typing import Any, TypeAlias

import cupy
import numpy as np

from xpconv.cuda import launch
from xpconv.cuda.geometry import Geometry, dense, forward, input_gradient, weight_gradient
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.plans.conv import Operand, Setting, alternatives, key, of_dense
from xpconv.cuda.plans.spectra import spectra
from xpconv.cuda.plans.turning import turn
from xpconv.cuda.steps import Work
from xpconv.cuda.tuning import Entry
from xpconv.dtypes import widened
from xpconv.spec import Array, ConvSpec, Sizes
from xpconv.workspace import current_limit

DIRECTIONS = ("forward", "input gradient", "weight gradient")

Clock: TypeAlias = Callable[[str, Callable[[], None]], float]  # of an alternative's name and its launch: seconds

_ROUNDS = 9
_HOPELESS = 2.0  # times the fastest of the first round: not timed again
_GAIN = 1.02  # times faster than the estimated plan, or that plan stays: less is noise
_DRAWN = 2**20 + 7  # random numbers, repeated to fill an array; their count has no factor in common with a shape
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}

# Two right results of one dtype differ by less than this part of the largest element; whole numbers are the same.
_ALLOWED = {
    "float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5, "float64": 1e-13, "complex64": 1e-5, "complex128": 1e-13,
}  # fmt: skip
_ALLOWED_TF32 = 4e-3


@dataclass(frozen=True)
class Outcome:
    """What came of one convolution of one direction: an entry, or the reason why there is none."""

    direction: str
    key: str = ""
    entry: Entry | None = None
    reason: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)  # alternatives that were not timed, and why


def directions(dtype: str, precision: str) -> tuple[str, ...]:
    """What can be measured; gradients are always computed in full precision."""
    return DIRECTIONS[:1] if dtype == "float32" and precision == "tf32" else DIRECTIONS


def hardware() -> Hardware:
    """Of the current device."""
    return launch.hardware(cupy.cuda.runtime.getDevice())


def measure(direction: str, spec: ConvSpec, dtype: str, precision: str, clock: Clock) -> Iterator[Outcome]:
    """Time a layer in one direction on the current device: once for each convolution that it is computed by."""
    setting = Setting(dtype, hardware(), current_limit(), precision)
    if reason := another_way(direction, spec, setting):
        yield Outcome(direction, reason=reason)
        return
    try:
        timing = _Timing(direction, *as_computed(direction, spec, setting), clock)
        for name, g in timing.geometries.items():
            yield timing.outcome(name, g)
    except MemoryError:
        yield Outcome(direction, reason="the device has too little memory")
    finally:
        cupy.get_default_memory_pool().free_all_blocks()  # the next layer's arrays have other sizes


def another_way(direction: str, spec: ConvSpec, setting: Setting) -> str:
    """How a layer is computed where that is not one of the alternatives; else nothing."""
    if direction == "forward" and spectra(spec, setting.dtype, setting.hardware, setting.limit):
        return "computed by spectra"
    if direction == "weight gradient":
        work = of_dense("conv_grad_weight", spec, None, setting)
        if isinstance(work, Work) and any(step.kernel.file == "grad_weight_depthwise.cu" for step in work.steps):
            return "one kernel alone takes it"
    return ""


def as_computed(direction: str, spec: ConvSpec, setting: Setting) -> tuple[ConvSpec, Setting]:
    """The layer as the engine hands it to the kernels: padded by copies before its gradient, or in another layout."""
    if direction == "input gradient" and spec.padding_mode != "zeros":
        wide = "float32" if setting.dtype in ("float16", "bfloat16") else setting.dtype
        spec, setting = spec.valid, replace(setting, dtype=wide)
    turning = turn(spec, setting.dtype, setting.hardware, setting.limit, setting.precision)
    if turning and (direction != "weight gradient" or turning.items == spec.batch):
        spec = replace(spec, layout="channels_last", batch=turning.items)
        setting = replace(setting, limit=max(setting.limit - turning.workspace, 1))
    return spec, setting


class EventClock:
    """Seconds on the device between two events around a launch.

    The level 2 cache is overwritten before, so that nothing is timed on what the launch before it left there; that also
    keeps the device busy while the host prepares the launch, which so is not timed. `overwritten` are the bytes: of
    none the launch finds what was left.
    """

    def __init__(self, overwritten: int | None = None) -> None:
        level_2 = cupy.cuda.Device().attributes["L2CacheSize"]
        count = max(4 * level_2, 2**28) if overwritten is None else overwritten
        self._buffer = cupy.empty(count, dtype=cupy.uint8)
        self._begin, self._end = cupy.cuda.Event(), cupy.cuda.Event()

    def __call__(self, _name: str, run: Callable[[], None]) -> float:
        if self._buffer.size:
            self._buffer.fill(0)
        self._begin.record()
        run()
        self._end.record()
        self._end.synchronize()
        return cupy.cuda.get_elapsed_time(self._begin, self._end) / 1e3


class _Timing:
    """The arrays of one direction of a layer, and what is timed on them."""

    def __init__(self, direction: str, spec: ConvSpec, setting: Setting, clock: Clock) -> None:
        shapes = {"x": spec.x_shape, "w": spec.w_shape, "y": spec.y_shape}
        if direction == "input gradient":
            shapes = {"x": spec.y_shape, "w": spec.w_shape, "y": spec.x_shape}
        elif direction == "weight gradient":
            shapes = {"x": spec.x_shape, "w": spec.y_shape, "y": spec.w_shape}
        self._direction, self._setting, self._clock = direction, setting, clock
        x, w, y = shapes.values()
        host = _drawn(setting.dtype)
        self._x, self._w, self._y = _filled(host, x), _filled(host, w, 1009), cupy.empty(y, dtype=host.dtype)
        self._operands = Operand.of(self._x), Operand.of(self._w)
        parts = _geometries(direction, spec, x, w, y)
        self.geometries = {key(g, *self._operands, setting): g for g in parts}  # those that are alike are timed once

    def outcome(self, name: str, g: Geometry) -> Outcome:
        """Time one convolution; `name` is its key."""
        told = Outcome(self._direction, name)
        works = alternatives(g, *self._operands, self._setting)
        if len(works) < 2:
            return replace(told, reason="one kernel alone takes it" if works else "no kernel takes it")
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of kernels that cannot be compiled
            runs, left_out = self._agreeing(works)
        estimated = next(iter(works))
        if estimated not in runs:
            return replace(told, reason=left_out[estimated], left_out=left_out)
        seconds = self._seconds(runs, estimated)
        fastest = min(seconds, key=lambda name: seconds[name])
        if seconds[fastest] * _GAIN > seconds[estimated]:
            fastest = estimated
        entry = Entry(fastest, *(float(f"{1e6 * seconds[name]:.4g}") for name in (fastest, estimated)))
        return replace(told, entry=entry, left_out=left_out)

    def _agreeing(self, works: dict[str, Work]) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
        """The launches that give the result of the first, and why the others are left out."""
        runs: dict[str, Callable[[], None]] = {}
        left_out: dict[str, str] = {}
        expected = None
        for name, work in works.items():
            self._y.fill(0)
            try:
                run = self._run(work)
                run()
                result = widened(self._y)
                if expected is None:
                    expected = cupy.array(result)
                elif not _same(result, expected, self._allowed):
                    left_out[name] = "its result is not that of the plan that is taken without measuring"
                    continue
            except (launch.KernelUnavailable, RuntimeError, MemoryError) as error:  # of the driver: RuntimeError
                left_out[name] = " ".join(str(error).split()) or type(error).__name__
                if expected is None:
                    break
                continue
            runs[name] = run
        return runs, left_out

    def _run(self, work: Work) -> Callable[[], None]:
        launch_all = launch.prepared(work, ("x", "w", "bias", "y"), self._y.data.device_id)
        return lambda: launch_all(self._x, self._w, None, self._y)

    def _seconds(self, runs: dict[str, Callable[[], None]], estimated: str) -> dict[str, float]:
        """The median of each over rounds in which all take turns; the hopeless are timed once."""
        first = {name: self._clock(name, run) for name, run in runs.items()}
        enough = _HOPELESS * min(first.values())
        times: dict[str, list[float]] = {name: [] for name in runs if name == estimated or first[name] <= enough}
        for _ in range(_ROUNDS):
            for name, taken in times.items():
                taken.append(self._clock(name, runs[name]))
        return {name: median(taken) for name, taken in times.items()}

    @property
    def _allowed(self) -> float:
        in_tf32 = self._setting.dtype == "float32" and self._setting.precision == "tf32"
        return _ALLOWED_TF32 if in_tf32 else _ALLOWED.get(self._setting.dtype, 0.0)


def _geometries(direction: str, spec: ConvSpec, x: Sizes, w: Sizes, y: Sizes) -> tuple[Geometry, ...]:
    """The convolutions that a direction of a layer is computed by."""
    strides = dense(x), dense(w), dense(y)
    if direction == "input gradient":
        return input_gradient(spec, *strides)
    return (forward(spec, *strides) if direction == "forward" else weight_gradient(spec, *strides),)


def _same(result: Array, expected: Array, allowed: float) -> bool:
    """Whether no element is farther from the expected one than so large a part of the largest."""
    if not allowed:
        return bool((result == expected).all())
    return float(abs(result - expected).max()) <= allowed * float(abs(expected).max())  # never of NaN


@cache
def _drawn(dtype: str) -> np.ndarray:
    """Random numbers on the host: CuPy's own would need cuRAND."""
    rng = np.random.default_rng(0)
    if "int" in dtype:
        return rng.integers(0, 9, _DRAWN).astype(dtype)
    values = rng.standard_normal(_DRAWN, dtype=np.float32)
    if dtype == "bfloat16":
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise RuntimeError("bfloat16 needs NumPy to have it: pip install ml-dtypes") from None
        return values.astype(bfloat16)
    return (values + 1j * values[::-1] if "complex" in dtype else values).astype(dtype)


def _filled(host: np.ndarray, shape: Sizes, start: int = 0) -> Any:
    """An array on the device of the numbers from `start` on, over and over; moved as bits, which every dtype has."""
    count = prod(shape)
    bits = cupy.asarray(np.roll(host, -start)[: min(count, _DRAWN)].view(_BITS[host.dtype.itemsize]))
    if count > _DRAWN:
        bits = cupy.tile(bits, -(-count // _DRAWN))[:count]
    return cupy.ascontiguousarray(bits).view(host.dtype).reshape(shape)
