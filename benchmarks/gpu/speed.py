"""xpconv on CuPy beside torch with cuDNN and beside CuPy's own filters, in one process and interleaved.

A cell is one call in one dtype. It is checked against float64 before it is timed, and how often it is timed depends on
how long it takes. The time of a call is between two events around it, with the level 2 cache overwritten before; that
overwriting also keeps the device busy while the host prepares the launch.
"""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.common import NOT_MEASURED, Record, attempt, reason, synchronize
from benchmarks.gpu.environment import device_state
from benchmarks.gpu.layers import DTYPES, FILTERS, LAYOUTS, POOLINGS, Group, groups, tiny
from benchmarks.gpu.peers import Calls, filters, torch_of
from benchmarks.gpu.reference import as_float64, convolution, error_of, image_filter, pooling

_CELL_SECONDS = 0.25  # of timing
_FEWEST, _MOST = 7, 31  # rounds
_WARMING_SECONDS = 25.0
_SHARES = min(8, os.cpu_count() or 1)  # processes that warm up
_RESERVE = 4.0  # seconds kept to finish
_DRAWN = 2**20 + 7  # random numbers, repeated to fill an array; their count has no factor in common with a shape
_ALLOWED = {"float32": 3e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}  # of the largest result
_PEER_ALLOWED = 4  # times as much, between two results that both may be off


def main(record: Record, cupy: Any) -> None:
    """All groups, the most important first, as far as the time goes."""
    if not record.emulated:
        record.put(warmed=attempt(lambda: _warmed(record)))
    bench = Bench(record, cupy)
    cells = record.known.get("cells", {})
    lost = record.known.get("current")
    if lost:
        cells.setdefault(lost, {"missing": "the process ended or hung while this ran"})
    record.put(copy=bench.copy, torch=bench.torch if isinstance(bench.torch, dict) else "there", cells=cells)
    waiting = [g for g in (tiny() if record.emulated else groups()) if not any(k.startswith(g.key) for k in cells)]
    longest = 0.0
    while waiting:
        if record.left() < _RESERVE + min(longest, 15):
            break
        group = waiting.pop(0)
        record.put(current=group.key)
        begin = time.monotonic()
        if not _group(record, cupy, bench, group, cells):
            record.put(state="lost", current=None, reason=f"the device is lost since {group.key}")
            break
        longest = max(0.7 * longest, time.monotonic() - begin)
    record.put(
        current=None,
        not_run=[group.key for group in waiting],
        kernels_unavailable=attempt(lambda: list(importlib.import_module("xpconv.cuda.launch")._failed.values())),
        device_after=attempt(device_state),
    )


def _warmed(record: Record) -> str:
    """Compile what the first groups need in several processes at once, so that CuPy finds it on disk."""
    seconds = min(_WARMING_SECONDS, record.left() / 6)
    words = [sys.executable, "-m", "benchmarks.gpu", "warm", "--seconds", str(seconds), "--out"]
    processes = [
        subprocess.Popen(
            [*words, str(record.path.with_name(f"warm-{share}.json")), "--family", str(share)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for share in range(_SHARES)
    ]
    end, stopped = time.monotonic() + seconds + 5, 0
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            stopped += 1
    return f"{_SHARES} processes, of which {stopped} were stopped"


def warm(record: Record, cupy: Any, share: int) -> None:
    """One process' share: each call once, on whatever the memory holds."""
    for group in [group for group in groups() if group.layer][share::_SHARES]:
        layer = group.layer
        assert layer is not None
        shapes = (
            (group.batch, *layer.size, layer.channels),
            layer.w_shape,
            (group.batch, *layer.out_size, layer.filters),
        )
        for dtype in DTYPES:
            if record.left() < 0:
                return
            attempt(lambda group=group, dtype=dtype, shapes=shapes: _call_once(cupy, group, dtype, shapes))
            cupy.get_default_memory_pool().free_all_blocks()


def _call_once(cupy: Any, group: Group, dtype: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = [cupy.zeros(shape, dtype=_numpy_dtype(dtype)) for shape in shapes]
    function, arguments, options = _call_of_ours(group, dtype, *arrays)
    function(*arguments, **options)


def _numpy_dtype(dtype: str) -> Any:
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        return np.dtype(bfloat16)
    return np.dtype("float32" if dtype == "tf32" else dtype)


def _group(record: Record, cupy: Any, bench: Bench, group: Group, cells: dict[str, Any]) -> bool:
    """Run a group's cells; whether the device still answers."""
    try:
        bench.run(group, cells)
    except Exception as error:
        cells[group.key] = {"missing": reason(error)}
    record.save()
    try:
        synchronize(cupy)
        bench.free()
    except Exception:
        return False
    return True


class Bench:
    """Arrays, events and candidates."""

    def __init__(self, record: Record, cupy: Any) -> None:
        self.record, self.cupy = record, cupy
        self.torch = torch_of(record)
        self._drawn = cupy.asarray(np.random.default_rng(5).standard_normal(_DRAWN, dtype=np.float32))
        level_2 = cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"]
        self._flushed = cupy.empty(4096 if record.emulated else max(4 * level_2, 2**29), dtype="uint8")
        self.copy = attempt(self._copy_bandwidth)
        self._bytes_per_ms = self.copy.get("bytes_per_ms")

    def free(self) -> None:
        """Give memory back that no array holds."""
        self.cupy.get_default_memory_pool().free_all_blocks()
        if not isinstance(self.torch, dict) and not self.record.emulated:
            self.torch.module.cuda.empty_cache()

    def run(self, group: Group, cells: dict[str, Any]) -> None:
        """All cells of one group."""
        {"layer": self._layer, "pooling": self._pooling, "layout": self._layout, "filter": self._filter}[group.kind](
            group, cells
        )

    # --- Convolutions -------------------------------------------------------------------------------------------------

    def _layer(self, group: Group, cells: dict[str, Any]) -> None:
        layer = group.layer
        assert layer is not None
        need, free = 40 * layer.elements(group.batch), self.cupy.cuda.runtime.memGetInfo()[0]
        if need > free:
            raise MemoryError(f"needs about {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
        shapes = (
            (group.batch, *layer.size, layer.channels),
            layer.w_shape,
            (group.batch, *layer.out_size, layer.filters),
        )
        floats = [self._random(shape, salt) for salt, shape in enumerate(shapes)]
        for dtype in DTYPES[:1] + DTYPES[3:] if self.record.emulated else DTYPES:
            key = f"{group.key} | {dtype}"
            cells[key] = {"state": "running"}
            cells[key] = attempt(lambda dtype=dtype: self._convolution(group, dtype, floats))
            self.record.save()

    def _convolution(self, group: Group, dtype: str, floats: list[Any]) -> dict[str, Any]:
        layer = group.layer
        assert layer is not None
        x, w, gy = (self._as(array, dtype) for array in floats)
        function, arguments, options = _call_of_ours(group, dtype, x, w, gy)
        ours = lambda: function(*arguments, **options)  # noqa: E731
        try:
            got = as_float64(self.cupy, ours())
        except TypeError as error:
            if "precision" in str(error):
                return {"missing": f"xpconv.{function.__name__} has no precision to choose"}
            raise
        cell: dict[str, Any] = {"plan": attempt(lambda: _told(function, arguments, options))}
        try:
            wanted, keep = convolution(self.cupy, layer, group.direction, x, w, gy)
        except (ImportError, MemoryError) as error:  # no cuBLAS, or no room: timed, but it does not count
            wanted, keep = None, ...
            cell.update(right=False, errors={}, differs=f"could not be checked: {reason(error)}")
        else:
            self._judge(cell, "xpconv", got[..., keep], wanted, dtype)
        peers: Calls = {}
        if not isinstance(self.torch, dict):
            self.torch.allow_tf32(dtype == "tf32")
            made = attempt(lambda: self.torch.convolutions(layer, group.direction, x, w, gy))
            for name, call in made.items() if "missing" not in made else ():
                peers[f"torch {name}"] = call
                self._compare(cell, f"torch {name}", call, layer, group.direction, got, wanted, keep, dtype)
        del got, wanted
        self.free()
        itemsize = x.dtype.itemsize
        self._time(cell, ours, peers, layer.elements(group.batch) * itemsize, layer.products(group.batch))
        return cell

    def _compare(self, cell, name, call, layer, direction, got, wanted, keep, dtype) -> None:
        """A peer's error, and whether all of our result is what the peer has."""
        try:
            back = self.torch.weight_last if direction == "weight gradient" else self.torch.maps_last
            theirs = as_float64(self.cupy, back(call(), layer, self.cupy))
        except Exception as error:
            cell["errors"][name] = reason(error)
            return
        if wanted is not None:
            cell["errors"][name] = error_of(self.cupy, theirs[..., keep], wanted)
        difference = error_of(self.cupy, got, theirs)
        if not difference <= _PEER_ALLOWED * _ALLOWED[dtype]:
            cell["right"] = False
            cell["differs"] = f"from {name} by {difference:.2g} of the largest element"

    def _judge(self, cell: dict[str, Any], name: str, got: Any, wanted: Any, dtype: str) -> None:
        error = error_of(self.cupy, got, wanted)
        cell.update(errors={name: error}, right=bool(error <= _ALLOWED[dtype]))

    # --- Pooling, layout changes, filters -----------------------------------------------------------------------------

    def _pooling(self, group: Group, cells: dict[str, Any]) -> None:
        import xpconv

        size, channels = (6, 4) if self.record.emulated else POOLINGS[group.name]
        function, window, options = {
            "max 3x3, stride 2": (xpconv.max_pool2d, (3,), {"stride": 2, "padding": 1}),
            "max 2x2": (xpconv.max_pool2d, (2,), {}),
            "average 2x2": (xpconv.avg_pool2d, (2,), {}),
            "global average": (xpconv.global_avg_pool, (), {"keepdims": True}),
        }[group.name]
        for dtype in ("float32",) if self.record.emulated else ("float32", "float16"):
            x = self._as(self._random((group.batch, size, size, channels), 0), dtype)

            def ours(x: Any = x) -> Any:
                return function(x, *window, **options)

            cell: dict[str, Any] = {"plan": attempt(lambda x=x: _told(function, (x, *window), options))}
            y = ours()
            self._judge(cell, "xpconv", as_float64(self.cupy, y), pooling(self.cupy, group.name, x), dtype)
            peers = {} if isinstance(self.torch, dict) else self.torch.pooling(group.name, x)
            self._time(cell, ours, {f"torch {name}": call for name, call in peers.items()}, x.nbytes + y.nbytes)
            cells[f"{group.key} | {dtype}"] = cell

    def _layout(self, group: Group, cells: dict[str, Any]) -> None:
        from xpconv.cuda import layout

        size = (4, 5, 6) if self.record.emulated else LAYOUTS[group.name]
        turn = {"to channels first": layout.as_channels_first, "to channels last": layout.as_channels_last}[group.name]
        for dtype in ("float32",) if self.record.emulated else ("float32", "float16"):
            x = self._as(self._random((group.batch, *size), 0), dtype)
            moved = self.cupy.moveaxis(x, *((-1, 1) if group.name == "to channels first" else (1, -1)))
            same = bool((self.cupy.ascontiguousarray(moved) == turn(x)).all())
            cell: dict[str, Any] = {"right": same, "errors": {}}
            peers = {} if isinstance(self.torch, dict) else self.torch.layouts(group.name, x)
            named = {f"torch {name}": call for name, call in peers.items()}
            self._time(cell, lambda x=x: turn(x), named, 2 * x.nbytes)
            cells[f"{group.key} | {dtype}"] = cell

    def _filter(self, group: Group, cells: dict[str, Any]) -> None:
        import xpconv

        size, side = (int(number) for number in group.name.split())
        assert self.record.emulated or (size, side) in FILTERS
        image, window = self._random((size, size), 0), self._random((side, side), 1)
        ours = lambda: xpconv.conv2d(image, window, padding="same")  # noqa: E731
        cell: dict[str, Any] = {"plan": attempt(lambda: _told(xpconv.conv2d, (image, window), {"padding": "same"}))}
        wanted = image_filter(self.cupy, image, window)
        self._judge(cell, "xpconv", as_float64(self.cupy, ours()), wanted, "float32")
        peers = filters(image, window)
        for name, call in list(peers.items()):
            theirs = attempt(lambda call=call: error_of(self.cupy, as_float64(self.cupy, call()), wanted))
            cell["errors"][name] = theirs
            if isinstance(theirs, dict) or not theirs < 1e-3:
                del peers[name]
        self._time(cell, ours, peers, 2 * image.nbytes)
        cells[f"{group.key} | float32"] = cell

    # --- Arrays -------------------------------------------------------------------------------------------------------

    def _random(self, shape: tuple[int, ...], salt: int) -> Any:
        count = int(np.prod(shape))
        start = 1009 * salt
        repeated = self.cupy.tile(self._drawn, -(-(count + start) // _DRAWN))
        return self.cupy.ascontiguousarray(repeated[start : start + count].reshape(shape))

    def _as(self, array: Any, dtype: str) -> Any:
        """A float32 array rounded to the dtype; bfloat16 by its bits, which needs no arithmetic of CuPy's."""
        if dtype in ("float32", "tf32"):
            return array
        if dtype == "float16":
            return array.astype("float16")
        bits = array.view(np.uint32)
        upper = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        return upper.astype(np.uint16).view(_numpy_dtype("bfloat16"))

    # --- Time ---------------------------------------------------------------------------------------------------------

    def _time(
        self, cell: dict[str, Any], ours: Callable[[], Any], peers: Calls, nbytes: int, products: int = 0
    ) -> None:
        """Medians and spread of all candidates, and what follows from them."""
        times = self._interleaved({"xpconv": ours, **peers}, cell)
        cell["rounds"] = min(map(len, times.values()))
        medians = {name: statistics.median(taken) for name, taken in times.items()}
        figure = self.record.figure
        cell["ms"] = {name: figure(median) for name, median in medians.items()}
        cell["ms_10_90"] = {name: [figure(float(p)) for p in np.percentile(t, (10, 90))] for name, t in times.items()}
        mine = medians.pop("xpconv")
        if medians:
            best = min(medians, key=lambda name: medians[name])
            cell["best_peer"] = NOT_MEASURED if self.record.emulated else best
            cell["times_faster"] = figure(medians[best] / mine)
        if self._bytes_per_ms and not self.record.emulated:
            cell["share_of_copy"] = figure(nbytes / mine / self._bytes_per_ms)
        if products:
            cell["teraflops"] = figure(2e-9 * products / mine)

    def _interleaved(self, calls: Calls, cell: dict[str, Any]) -> dict[str, list[float]]:
        """Milliseconds of each call, one after the other in every round; one that fails is left out."""
        ready: Calls = {}
        for name, call in calls.items():
            try:
                call()
                call()
                synchronize(self.cupy)
                ready[name] = call
            except Exception as error:
                if name == "xpconv":
                    raise
                cell.setdefault("failed_peers", {})[name] = reason(error)
        begin = time.perf_counter()
        self._round(ready)
        synchronize(self.cupy)
        took = max(time.perf_counter() - begin, 1e-5)
        count = 2 if self.record.emulated else max(_FEWEST, min(_MOST, int(_CELL_SECONDS / took)))
        rounds = [self._round(ready) for _ in range(count)]
        synchronize(self.cupy)
        elapsed = self.cupy.cuda.get_elapsed_time
        return {name: [max(elapsed(*taken[name]), 1e-6) for taken in rounds] for name in ready}

    def _round(self, calls: Calls) -> dict[str, tuple[Any, Any]]:
        stream, events = self.cupy.cuda.get_current_stream(), {}
        for name, call in calls.items():
            self._flushed.data.memset_async(1, self._flushed.nbytes, stream)
            begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            begin.record(stream)
            call()
            end.record(stream)
            events[name] = begin, end
        return events

    def _copy_bandwidth(self) -> dict[str, Any]:
        """Bytes read and written a millisecond by the fastest copy of a large array."""
        count = 1024 if self.record.emulated else 2**28
        source = self.cupy.ones(count, dtype="float32")
        target = self.cupy.zeros(count, dtype="float32")
        calls: Calls = {"cupy.copyto": lambda: self.cupy.copyto(target, source)}
        calls["cupy.negative"] = lambda: self.cupy.negative(source, out=target)
        if not isinstance(self.torch, dict):
            a, b = self.torch.of(source), self.torch.of(target)
            calls["torch copy_"] = lambda: b.copy_(a)
        for _ in range(1 if self.record.emulated else 20):  # the clocks rise
            calls["cupy.negative"]()
        times = self._interleaved(calls, {})
        rates = {name: 2 * source.nbytes / statistics.median(taken) for name, taken in times.items()}
        best = max(rates, key=lambda name: rates[name])
        figure = self.record.figure
        return {
            "by": NOT_MEASURED if self.record.emulated else best,
            "bytes_per_ms": figure(rates[best], 6),
            "gigabytes_per_second": {name: figure(1e-6 * rate) for name, rate in rates.items()},
        }


def _call_of_ours(
    group: Group, dtype: str, x: Any, w: Any, gy: Any
) -> tuple[Callable[..., Any], tuple, dict[str, Any]]:
    import xpconv

    layer = group.layer
    assert layer is not None
    options: dict[str, Any] = {**layer.options, **({"precision": "tf32"} if dtype == "tf32" else {})}
    if group.direction == "forward":
        return xpconv.corr, (x, w), options
    if group.direction == "input gradient":
        return xpconv.corr_grad_input, (gy, w), options | {"size": layer.size}
    return xpconv.corr_grad_weight, (x, gy), options | {"window": (layer.window,) * layer.axes}


def _told(function: Callable[..., Any], arguments: tuple, options: dict[str, Any]) -> dict[str, str]:
    import xpconv

    plan = xpconv.explain(function, *arguments, **options)
    return {"engine": plan.engine, "method": plan.method, "tile": plan.tile, "reason": plan.reason}
