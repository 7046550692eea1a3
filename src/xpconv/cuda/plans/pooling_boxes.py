"""Plans for `pool_boxes.cu`: adaptive pooling, whose windows divide the plane, and global pooling, which has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod

from xpconv.cuda.geometry import MOST, dense, map_strides, three
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.kernels import ELEMENTS, ITEMSIZE
from xpconv.cuda.plans.pooling import (
    BLOCK,
    FLOATING,
    ORDERED,
    WIDE,
    Part,
    Setting,
    policy_name,
    stage_dtypes,
    vector_of,
    widest,
)
from xpconv.cuda.pool_geometry import PoolGeometry, channels_dense, dense_maps
from xpconv.cuda.setting import Operand
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan
from xpconv.spec import AdaptiveSpec, Sizes

_FULL = 1024  # threads for each multiprocessor that an estimate takes to keep it busy
_SLAB = 2048  # elements: a slab of a map is not worth a block of its own below that
_LANES = 32


@lru_cache(maxsize=4096)
def adaptive_pool(
    spec: AdaptiveSpec, x: Operand, y: Sizes, setting: Setting, *, mean: bool, return_indices: bool = False
) -> Work | Unfit:
    """The maximum or the mean of windows that divide the plane."""
    if refused := _refused(spec.size, setting, mean):
        return refused
    size = three(spec.size, 1)
    g = PoolGeometry(
        spec.batch, spec.channels, map_strides(x.strides, spec.layout), map_strides(y, spec.layout), size,
        three(spec.out_size, 1), plane=dense(size), channels_inner=channels_dense(spec.layout, spec.channels),
        division="count" if mean else None,
    )  # fmt: skip
    policy = "Total" if mean else "MaximumAt" if return_indices else "Maximum"
    whole = Part(g, policy, setting.dtype, setting.dtype, x.aligned)
    if not return_indices and _too_few(whole, setting.hardware):
        stages, scratch = _stages(whole, spec.layout)
        if len(stages) > 1 and sum(scratch.values()) <= setting.limit:
            ends = [*scratch, "y"]
            steps = [_step(*each, setting.hardware) for each in zip(stages, ["x", *ends], ends, strict=False)]
            return _done(steps, scratch, "few windows, and large: one axis after the other")
    return _done([_step(whole, "x", "y", setting.hardware)], {}, "every window by a few threads, joined in their order")


def _too_few(part: Part, hardware: Hardware) -> bool:
    """Whether there are too few windows to keep the device busy with what they hold."""
    g, vector = part.geometry, vector_of(part)
    threads = g.results // vector * _lanes(g, vector, hardware)
    return threads < _FULL * hardware.multiprocessors // 2 and g.given > _SLAB * g.results


def _stages(whole: Part, layout: str) -> tuple[list[Part], dict[str, int]]:
    """The pooling one axis after the other; the windows are boxes, so a mean of means counts every element alike."""
    g = whole.geometry
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    wide = WIDE.get(whole.read, whole.read) if whole.policy == "Total" else whole.read
    axes = [a for a in (2, 1, 0) if g.size[a] != g.out[a]]
    here, strides, read, aligned = g.size, g.x_strides, whole.read, whole.aligned
    for axis in axes:
        there = tuple(g.out[a] if a == axis else n for a, n in enumerate(here))
        if axis == axes[-1]:
            target, written = g.y_strides, whole.written
        else:
            target, written = dense_maps(layout, g.batch, g.channels, there), wide
            scratch[f"stage_{axis}"] = g.batch * g.channels * prod(there) * ITEMSIZE[wide]
        geometry = replace(g, size=here, out=there, x_strides=strides, y_strides=target)
        parts.append(replace(whole, geometry=geometry, read=read, written=written, aligned=aligned))
        here, strides, read, aligned = there, target, wide, True
    return parts, scratch


@lru_cache(maxsize=4096)
def global_pool(shape: Sizes, axes: Sizes, x: Operand, setting: Setting, *, mean: bool) -> Work | Unfit:
    """The maximum or the mean of whole maps: at once, or in slabs that a second launch puts together."""
    size = tuple(shape[a] for a in axes)
    merged, strides = _merged(size, [x.strides[a] for a in axes])
    if refused := _refused(merged, setting, mean):
        return refused
    channel = 1 if axes[0] == 2 else len(shape) - 1
    layout = "channels_first" if channel == 1 else "channels_last"
    batch, channels = shape[0], shape[channel]
    g = PoolGeometry(
        batch, channels, (x.strides[0], x.strides[channel], *three(strides, 0)),
        dense_maps(layout, batch, channels, (1, 1, 1)), three(merged, 1), (1, 1, 1),
        channels_inner=channels_dense(layout, channels), division="number" if mean else None, number=float(prod(size)),
    )  # fmt: skip
    whole = Part(g, "Total" if mean else "Maximum", setting.dtype, setting.dtype, x.aligned)
    slabs = _slabs(g, setting.hardware)
    wide = WIDE.get(setting.dtype, setting.dtype) if mean else setting.dtype
    scratch = batch * channels * slabs * ITEMSIZE[wide]
    if slabs < 2 or scratch > setting.limit:
        return _done([_step(whole, "x", "y", setting.hardware)], {}, "every map by a few threads")
    there = tuple(slabs if a == _longest(g) else 1 for a in range(3))
    between = dense_maps(layout, batch, channels, there)
    first = replace(
        whole, geometry=replace(g, out=there, y_strides=between, division=None, disjoint=True), written=wide
    )
    second = replace(whole, geometry=replace(g, size=there, x_strides=between), read=wide, aligned=True)
    steps = [_step(first, "x", "slabs", setting.hardware), _step(second, "slabs", "y", setting.hardware)]
    return _done(steps, {"slabs": scratch}, f"every map in {slabs} slabs, put together in a second launch")


def _refused(size: Sizes, setting: Setting, mean: bool) -> Unfit | None:
    if len(size) > 3:
        return Unfit(f"{len(size)} spatial axes; the kernels take up to 3")
    if setting.dtype not in (FLOATING if mean else ORDERED):
        return Unfit(f"no kernel for {setting.dtype}")
    if prod(size) > MOST // 2:
        return Unfit("more than 2^30 elements in a plane")
    return None


def _merged(size: Sizes, strides: Sequence[int]) -> tuple[Sizes, Sizes]:
    """Axes that lie one inside the other made one; the order of a map's elements is kept."""
    kept = [(n, stride) for n, stride in zip(size, strides, strict=True) if n > 1]
    merged: list[tuple[int, int]] = []
    for n, stride in kept or [(1, 1)]:
        if merged and merged[-1][1] == n * stride:
            merged[-1] = (merged[-1][0] * n, stride)
        else:
            merged.append((n, stride))
    return tuple(n for n, _ in merged), tuple(stride for _, stride in merged)


def _longest(g: PoolGeometry) -> int:
    return max(range(3), key=lambda a: (g.size[a], a))


def _slabs(g: PoolGeometry, hardware: Hardware) -> int:
    """Slabs of every map, so that all multiprocessors have work; each large enough to be worth it."""
    threads = g.batch * g.channels * (BLOCK if not g.channels_inner else _LANES)
    wanted = -(-_FULL * hardware.multiprocessors // max(threads, 1))
    return min(wanted, prod(g.size) // _SLAB, g.size[_longest(g)])


def _step(part: Part, source: str, target: str, hardware: Hardware) -> Step | Unfit:
    """One launch: as many threads to a box as its rows can use, more where there are few boxes."""
    vector = vector_of(part)
    lanes = _lanes(part.geometry, vector, hardware)
    packed = replace(part.geometry, lanes=lanes).packed(part.made, vector)
    if packed is None:
        return Unfit("more than 2^30 results of one item")
    struct, threads, rows = packed
    width = BLOCK // lanes
    shared = BLOCK * vector * _state_bytes(part) if lanes > 1 else 0
    return Step(
        _kernel(part, vector), (-(-threads // width), rows, 1), BLOCK, shared, (source, target, "indices", struct)
    )


def _state_bytes(part: Part) -> int:
    """Bytes of what a thread merges into, at most."""
    size = max(ITEMSIZE[part.read], ITEMSIZE[part.written], 4)
    return 2 * size if part.policy == "MaximumAt" else size


def _lanes(g: PoolGeometry, vector: int, hardware: Hardware) -> int:
    """Threads to a box. Along a dense row as many as there are elements, up to a warp; beyond that, and across
    channels, only while there are too few threads for the device."""
    row = -(-g.size[2] // g.out[2])
    boxes, lanes = g.results // vector, 1
    most = _LANES if g.channels_inner else BLOCK
    while lanes < min(row, most) and (
        (not g.channels_inner and lanes < _LANES) or boxes * lanes < _FULL * hardware.multiprocessors
    ):
        lanes *= 2
    return lanes


def _done(steps: list[Step | Unfit], scratch: dict[str, int], reason: str) -> Work | Unfit:
    done = [step for step in steps if isinstance(step, Step)]
    if len(done) < len(steps):
        return next(step for step in steps if isinstance(step, Unfit))
    return Work(tuple(done), Plan("direct", reason, "one map's windows at a time", sum(scratch.values())), scratch)


def _kernel(part: Part, vector: int) -> Kernel:
    policy = policy_name(part.policy, ELEMENTS[part.read], ELEMENTS[part.written])
    return Kernel("pool_boxes.cu", f"pool_boxes<{policy},{vector}>")


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    found: dict[Kernel, None] = {}
    nothing = PoolGeometry(0, 0, (), (), (), ())
    for policy, dtypes in (("Maximum", ORDERED), ("MaximumAt", ORDERED), ("Total", FLOATING)):
        for dtype in dtypes:
            for read, written in stage_dtypes(policy, dtype):
                for vector in (1, widest(policy, read)):
                    found[_kernel(Part(nothing, policy, read, written, False), vector)] = None
    return list(found)
