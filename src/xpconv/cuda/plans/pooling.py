"""Plans for `pool.cu` and `pool_average_grad.cu`: pooling by sliding windows, and the adjoint of its mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any

from xpconv.cuda.geometry import MOST, dense
from xpconv.cuda.hardware import Hardware
from xpconv.cuda.kernels import ARITHMETIC, ELEMENTS, ITEMSIZE, signed
from xpconv.cuda.pool_geometry import PoolGeometry, averaging, dense_maps, of_windows
from xpconv.cuda.setting import Operand, Setting
from xpconv.cuda.steps import Kernel, Step, Unfit, Work
from xpconv.plan import Plan
from xpconv.spec import PoolSpec, Sizes

BLOCK, SMALL_BLOCK = 256, 64  # threads; the small one where there are few, to spread them
ORDERED = tuple(name for name in ELEMENTS if not name.startswith("complex"))
FLOATING = tuple(name for name in ELEMENTS if "int" not in name)
WIDE = {"float16": "float32", "bfloat16": "float32"}  # what parts of a sum are kept in, where that is another dtype
_REAL = {"complex64": "float32", "complex128": "float64"}

# What a plan weighs, in loads of one element: estimates from data sheets, none was measured.
_TRAFFIC = 16  # an element that goes to or comes from memory, against one from the first cache
_UNDER_WAY = 4096  # threads for each multiprocessor, below which waiting and not throughput sets the time
_POWER = 16  # a power that is neither 1 nor 2
_LAUNCH = 300_000  # one more launch, for each multiprocessor


@dataclass(frozen=True)
class Part:
    """One launch: the geometry, the policy of the kernel, and the dtypes it reads and writes."""

    geometry: PoolGeometry
    policy: str  # Maximum, MaximumAt, Total, Norm, AnyNorm; Shares is the adjoint of the mean
    read: str
    written: str
    aligned: bool  # whether both arrays start where a vector may

    @property
    def made(self) -> Sizes:
        """What gets a thread: the results, or for the adjoint the elements of the plane."""
        return self.geometry.size if self.policy == "Shares" else self.geometry.out

    @property
    def given(self) -> Sizes:
        """What is read: the other of the two."""
        return self.geometry.out if self.policy == "Shares" else self.geometry.size


# --- Whole poolings ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def max_pool(spec: PoolSpec, x: Operand, y: Sizes, setting: Setting, *, return_indices: bool) -> Work | Unfit:
    """The largest element of every window; with its place in one launch, without in one or one for each axis."""
    if refused := _refused(spec, setting, ORDERED):
        return refused
    g = of_windows(spec, x.strides, y)
    if not return_indices:
        return _work(Part(g, "Maximum", setting.dtype, setting.dtype, x.aligned), spec.layout, setting)
    if prod(spec.size) > MOST:
        return Unfit("more than 2^31 elements in a plane that indices count")
    whole = Part(replace(g, plane=dense(g.size)), "MaximumAt", setting.dtype, setting.dtype, x.aligned)
    return _launched([whole], {}, _DIRECT, setting)


@lru_cache(maxsize=4096)
def sum_pool(spec: PoolSpec, x: Operand, y: Sizes, setting: Setting) -> Work | Unfit:
    """The sum over every window."""
    if refused := _refused(spec, setting, tuple(ELEMENTS)):
        return refused
    dtype = signed(setting.dtype)
    whole = Part(of_windows(spec, x.strides, y), "Total", dtype, dtype, x.aligned)
    return _work(whole, spec.layout, setting)


@lru_cache(maxsize=4096)
def avg_pool(
    spec: PoolSpec, x: Operand, y: Sizes, setting: Setting, *, count_include_pad: bool, divisor: float | None
) -> Work | Unfit:
    """The mean of every window."""
    if refused := _refused(spec, setting, FLOATING):
        return refused
    g = averaging(of_windows(spec, x.strides, y), spec, count_include_pad, divisor)
    return _work(Part(g, "Total", setting.dtype, setting.dtype, x.aligned), spec.layout, setting)


@lru_cache(maxsize=4096)
def lp_pool(spec: PoolSpec, x: Operand, y: Sizes, setting: Setting, *, p: float) -> Work | Unfit:
    """The p-norm of every window."""
    if refused := _refused(spec, setting, FLOATING):
        return refused
    g = replace(of_windows(spec, x.strides, y), power=float(p), raised=True, root=True)
    policy = "Norm" if p in (1, 2) else "AnyNorm"
    whole = Part(g, policy, setting.dtype, _REAL.get(setting.dtype, setting.dtype), x.aligned)
    return _work(whole, spec.layout, setting)


@lru_cache(maxsize=4096)
def avg_pool_grad(
    spec: PoolSpec, gy: Operand, gx: Sizes, setting: Setting, *, count_include_pad: bool, divisor: float | None
) -> Work | Unfit:
    """The adjoint of `avg_pool`, gathered."""
    if refused := _refused(spec, setting, FLOATING):
        return refused
    # the kernel reads gy by x_strides and writes gx by y_strides
    g = averaging(of_windows(spec, gy.strides, gx), spec, count_include_pad, divisor)
    return _work(Part(g, "Shares", setting.dtype, setting.dtype, gy.aligned), spec.layout, setting)


def _refused(spec: PoolSpec, setting: Setting, dtypes: tuple[str, ...]) -> Unfit | None:
    if spec.axes > 3:
        return Unfit(f"{spec.axes} spatial axes; the kernels take up to 3")
    if setting.dtype not in dtypes:
        return Unfit(f"no kernel for {setting.dtype}")
    axes = zip(spec.padded_size, spec.reach, spec.stride, spec.out_size, strict=True)
    reach = max(n + reach + s * (out + 4) for n, reach, s, out in axes)
    if max(reach, prod(spec.window)) > MOST:
        return Unfit("more than 2^31 elements in an axis or a window")
    return None


# --- One launch, or one for each axis ---------------------------------------------------------------------------------


_DIRECT = Plan("direct", "every window in one pass over x")


def _work(whole: Part, layout: str, setting: Setting) -> Work | Unfit:
    """The whole window at once, or for large windows one axis after the other, as the estimates have it."""
    stages, scratch = _stages(whole, layout)
    fits = len(stages) > 1 and sum(scratch.values()) <= setting.limit
    launch_costs = _LAUNCH * setting.hardware.multiprocessors * (len(stages) - 1)
    costs = [sum(_cost(part, setting.hardware) for part in parts) for parts in ([whole], stages)]
    if fits and costs[1] + launch_costs < costs[0]:
        reason = f"a window of {' x '.join(map(str, whole.geometry.window))}: one axis after the other"
        return _launched(stages, scratch, Plan("separable", reason), setting)
    return _launched([whole], {}, _DIRECT, setting)


def _cost(part: Part, hardware: Hardware) -> float:
    """Estimated time of a launch, in loads of an element at full rate."""
    g = part.geometry
    loads = prod(g.out) * g.taps  # of one channel of one item; the adjoint's windows are as many
    loads *= _POWER if part.policy == "AnyNorm" and g.raised else 1
    waiting = loads / prod(part.made) * _UNDER_WAY * hardware.multiprocessors
    shared = loads * g.batch * g.channels / _reuse(part, vector_of(part), hardware).gain
    return max(shared, waiting) + _TRAFFIC * (g.given + g.results)


def _changes(g: PoolGeometry, axis: int) -> bool:
    """Whether pooling does anything to an axis: a window of one may still skip elements or read padding."""
    return (g.window[axis], g.stride[axis], g.before[axis]) != (1, 1, 0) or g.size[axis] != g.out[axis]


def _stages(whole: Part, layout: str) -> tuple[list[Part], dict[str, int]]:
    """The pooling as one pooling for each axis that it changes, that which shrinks the most first.

    A mean divides in every stage by what that axis counts, a given number in the last; parts are kept in scratch
    memory in the dtype of sums.
    """
    g = whole.geometry
    axes = [a for a in range(3) if _changes(g, a)]
    if len(axes) < 2:
        return [whole], {}
    axes.sort(key=lambda a: (whole.made[a] / max(whole.given[a], 1), -a))
    here, between = list(whole.given), _REAL.get(whole.read, whole.read) if "Norm" in whole.policy else whole.read
    wide = WIDE.get(between, between) if whole.policy != "Maximum" else between
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    strides = g.x_strides
    for number, axis in enumerate(axes):
        first, last = number == 0, number == len(axes) - 1
        there = [whole.made[a] if a == axis else n for a, n in enumerate(here)]
        target = g.y_strides if last else dense_maps(layout, g.batch, g.channels, tuple(there))
        part = _stage(whole, axis, tuple(here), tuple(there), (strides, target), first, last)
        read, written = whole.read if first else wide, whole.written if last else wide
        parts.append(replace(part, read=read, written=written, aligned=part.aligned if first else True))
        if not last:
            scratch[f"stage_{number % 2}"] = max(
                scratch.get(f"stage_{number % 2}", 0), g.batch * g.channels * prod(there) * ITEMSIZE[wide]
            )
        here, strides = there, target
    return parts, scratch


def _stage(
    whole: Part, axis: int, here: Sizes, there: Sizes, strides: tuple[Sizes, Sizes], first: bool, last: bool
) -> Part:
    """The pooling along one axis, the others left as they are."""
    g = whole.geometry
    size, out = (there, here) if whole.policy == "Shares" else (here, there)

    def along(values: Sizes, other: int) -> Sizes:
        return tuple(value if a == axis else other for a, value in enumerate(values))

    geometry = replace(
        g, x_strides=strides[0], y_strides=strides[1], size=size, out=out, window=along(g.window, 1),
        stride=along(g.stride, 1), dilation=along(g.dilation, 1), before=along(g.before, 0), after=along(g.after, 0),
        plane=(0, 0, 0), raised=g.raised and first, root=g.root and last,
        division=None if g.division == "number" and not last else g.division,
    )  # fmt: skip
    middle = "Norm" in whole.policy and not first and not last
    return replace(whole, geometry=geometry, policy="Total" if middle else whole.policy)


def _launched(parts: list[Part], scratch: dict[str, int], plan: Plan, setting: Setting) -> Work | Unfit:
    steps: list[Step] = []
    tile = ""
    for number, part in enumerate(parts):
        source = "x" if number == 0 else f"stage_{(number - 1) % 2}"
        target = "y" if number == len(parts) - 1 else f"stage_{number % 2}"
        step = _step(part, source, target, setting.hardware)
        if isinstance(step, Unfit):
            return step
        steps.append(step[0])
        tile = step[1]
    return Work(tuple(steps), replace(plan, tile=tile, workspace=sum(scratch.values())), scratch)


# --- Launches ---------------------------------------------------------------------------------------------------------


def _step(part: Part, source: str, target: str, hardware: Hardware) -> tuple[Step, str] | Unfit:
    """One launch, and what each thread of it makes."""
    vector = vector_of(part)
    outputs = (reuse := _reuse(part, vector, hardware)).outputs
    if outputs > 1:
        part = replace(part, geometry=replace(part.geometry.reordered(reuse.order), last_inner=False))
    made = (*part.made[:2], -(-part.made[2] // outputs))
    packed = part.geometry.packed(made, vector)
    if packed is None:
        return Unfit("more than 2^30 results of one item")
    struct, threads, rows = packed
    block = BLOCK if threads * rows >= BLOCK * hardware.multiprocessors else SMALL_BLOCK
    arguments: tuple[Any, ...] = (source, target) if part.policy == "Shares" else (source, target, "indices")
    step = Step(_kernel(part, vector, outputs), (-(-threads // block), rows, 1), block, 0, (*arguments, struct))
    return step, f"{outputs} results of {vector} channels a thread"


def widest(policy: str, dtype: str) -> int:
    """Elements that a thread may load at once: 16 bytes, but no more than its registers hold results of."""
    if policy == "AnyNorm":
        return 1
    return min(4 if policy == "MaximumAt" else 8, 16 // ITEMSIZE[dtype])


def vector_of(part: Part) -> int:
    """Elements that a thread of this launch loads at once."""
    return widest(part.policy, part.read) if vectors_fit(part) else 1


def vectors_fit(part: Part) -> bool:
    """Whether loads and stores of many channels meet aligned memory throughout."""
    g, width = part.geometry, widest(part.policy, part.read)
    if not (g.channels_inner and part.aligned and g.x_strides[1] == g.y_strides[1] == 1):
        return False
    extents, strides = (g.batch, *part.given), (g.x_strides[0], *g.x_strides[2:])
    steps = [stride for n, stride in zip(extents, strides, strict=True) if n > 1]
    return g.channels % width == 0 and all(step % width == 0 for step in steps)


@dataclass(frozen=True)
class Reuse:
    """Results that a thread makes in a row, the order of axes for it, and how many loads that saves: their ratio."""

    outputs: int = 1
    order: Sizes = (0, 1, 2)
    gain: float = 1.0


def _reuse(part: Part, vector: int, hardware: Hardware) -> Reuse:
    """Results that a thread makes in a row, and the axes in the order that brings that row to the end.

    Windows that overlap share what is loaded. That pays where windows are large enough for the loads to count; for
    loads of single elements also where windows do not overlap, since more of them are under way. Either way threads
    enough must be left.
    """
    g = part.geometry
    if part.policy not in ("Maximum", "Total") or (vector > 1 and g.taps < 9):
        return Reuse()
    outputs = 2 if vector == 8 else 4
    axes = range(3) if g.channels_inner else range(2)  # neighbouring threads keep the rows, if those lie densely
    gains = {a: outputs * g.window[a] / (g.window[a] + (outputs - 1) * g.stride[a]) for a in axes}
    least = 1.5 if vector > 1 else 1.0
    along = [a for a in axes if g.dilation[a] == 1 and g.out[a] >= outputs and gains[a] >= least]
    if not along or g.results // (vector * outputs) < 1024 * hardware.multiprocessors:
        return Reuse()
    last = max(along, key=lambda a: gains[a])
    return Reuse(outputs, (*(a for a in range(3) if a != last), last), gains[last])


def _kernel(part: Part, vector: int, outputs: int) -> Kernel:
    read, written = ELEMENTS[part.read], ELEMENTS[part.written]
    if part.policy == "Shares":
        return Kernel("pool_average_grad.cu", f"pool_average_grad<{read},{written},{vector}>")
    return Kernel("pool.cu", f"pool<{policy_name(part.policy, read, written)},{vector},{outputs}>")


def policy_name(policy: str, read: str, written: str) -> str:
    """The policy as C++ names it."""
    if policy in ("Maximum", "MaximumAt"):
        return f"{policy}<{read}>"
    if policy == "Total":
        return f"Total<{read},{written}>"
    return f"Norm<{read},{written},{'true' if policy == 'AnyNorm' else 'false'}>"


# --- Every instance ---------------------------------------------------------------------------------------------------


def instances(capability: tuple[int, int]) -> list[Kernel]:  # noqa: ARG001  the same for every device
    """Every kernel that a plan of this module can name."""
    return list(dict.fromkeys(_instances()))


def _instances() -> Iterator[Kernel]:
    nothing = PoolGeometry(0, 0, (), (), (), ())
    for policy, dtypes in _TAKEN.items():
        for read, written in (pair for dtype in dtypes for pair in stage_dtypes(policy, dtype)):
            part = partial(_kernel, Part(nothing, policy, read, written, False))
            widths = dict.fromkeys((1, widest(policy, read)))
            many = (1, 4) if policy in ("Maximum", "Total") else (1,)
            for width, outputs in product(widths, many):
                yield part(width, 2 if outputs > 1 and width == 8 else outputs)


_TAKEN = {
    "Maximum": ORDERED, "MaximumAt": ORDERED, "Total": ARITHMETIC, "Norm": FLOATING, "AnyNorm": FLOATING,
    "Shares": FLOATING,
}  # fmt: skip


def stage_dtypes(policy: str, dtype: str) -> list[tuple[str, str]]:
    """What a policy reads and writes for arrays of a dtype: at once, and in stages."""
    if policy.startswith("Maximum"):
        return [(dtype, dtype)]
    written = _REAL.get(dtype, dtype) if "Norm" in policy else dtype
    wide = WIDE.get(written, written)
    return [(dtype, written), (dtype, wide), (wide, written), (wide, wide)]
