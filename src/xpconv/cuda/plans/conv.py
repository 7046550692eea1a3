"""Which kernel computes a convolution, its input gradient and its weight gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from xpconv.cuda.geometry import AXES, Geometry, dense, forward, input_gradient, weight_gradient
from xpconv.cuda.kernels import ELEMENTS
from xpconv.cuda.plans import depthwise, mma, simt, sm90, stem
from xpconv.cuda.plans.alternatives import instances_for, name_of
from xpconv.cuda.setting import Operand, Setting
from xpconv.cuda.steps import Unfit, Work
from xpconv.cuda.tuning import convolution_key
from xpconv.plan import Plan
from xpconv.spec import ConvSpec, Sizes


def _refused(spec: ConvSpec, setting: Setting) -> Unfit | None:
    """Why no kernel of ours computes this, if none does."""
    if spec.axes > AXES:
        return Unfit(f"{spec.axes} spatial axes; the kernels take up to {AXES}")
    if setting.dtype not in ELEMENTS:
        return Unfit(f"no kernel for {setting.dtype}")
    if setting.method in ("direct", "fft"):
        return Unfit(f"method={setting.method!r}: calls of CuPy")
    return None


@lru_cache(maxsize=4096)
def conv(
    spec: ConvSpec, x: Operand, w: Operand, y: Sizes, fill: bytes, activation: str | None, setting: Setting
) -> Work | Unfit:
    """The work of a forward convolution."""
    return _refused(spec, setting) or _chosen(
        forward(spec, x.strides, w.strides, y, fill=fill, activation=activation), x, w, setting
    )


@lru_cache(maxsize=4096)
def grad_input(
    spec: ConvSpec, gy: Operand, w: Operand, gx: Sizes, activation: str | None, setting: Setting
) -> Work | Unfit:
    """The work of an input gradient: one convolution of `gy` for each residue of the stride."""
    if refused := _refused(spec, setting):
        return refused
    parts = [
        _chosen(phase, gy, w, setting)
        for phase in input_gradient(spec, gy.strides, w.strides, gx, activation=activation)
    ]
    return _joined(parts)


@lru_cache(maxsize=4096)
def grad_weight(spec: ConvSpec, x: Operand, gy: Operand, gw: Sizes, setting: Setting) -> Work | Unfit:
    """The work of a weight gradient."""
    if spec.channels == spec.groups and min(spec.y_shape) and not _refused(spec, setting):
        whole, aligned = forward(spec, x.strides, gw, gy.strides), x.aligned and gy.aligned
        work = depthwise.gradient_work(whole, setting.dtype, setting.hardware, aligned=aligned, limit=setting.limit)
        if isinstance(work, Work):
            return work
    return _refused(spec, setting) or _chosen(weight_gradient(spec, x.strides, gy.strides, gw), x, gy, setting)


def of_dense(operation: str, spec: ConvSpec, activation: str | None, setting: Setting) -> Work | Unfit:
    """The work of an operation on dense, aligned arrays."""
    strides = {"x": dense(spec.x_shape), "w": dense(spec.w_shape), "y": dense(spec.y_shape)}
    x, w, y = (Operand(part, aligned=True) for part in strides.values())
    if operation == "conv":
        return conv(spec, x, w, strides["y"], b"", activation, setting)
    if operation == "conv_grad_input":
        return grad_input(spec, y, w, strides["x"], activation, setting)
    return grad_weight(spec, x, y, strides["w"], setting)


def _chosen(g: Geometry, x: Operand, w: Operand, setting: Setting) -> Work | Unfit:
    """The kernel that was measured to be the fastest, else the first that takes the geometry."""
    if not (g.positions and g.filters and g.groups):
        return Work((), Plan("gemm", "nothing to compute"))
    if (preferred := _preferred(g, x, w, setting)) is not None:
        return preferred
    reasons = []
    for work in _candidates(g, x, w, setting):
        if isinstance(work, Work):
            return work
        reasons.append(work.reason)
    return Unfit("; ".join(reasons))


def _candidates(g: Geometry, x: Operand, w: Operand, setting: Setting) -> Iterator[Work | Unfit]:
    dtype, hardware, limit = setting.dtype, setting.hardware, setting.limit
    aligned = {"x_aligned": x.aligned, "w_aligned": w.aligned}
    if g.depth and not g.swapped:
        yield depthwise.work(g, dtype, hardware, aligned=x.aligned and w.aligned)
        yield stem.work(g, dtype, hardware)
    if dtype in sm90.DTYPES and (dtype != "float32" or setting.precision == "tf32"):
        yield sm90.wasteful(g, dtype) or sm90.work(g, dtype, hardware, limit, **aligned)
    yield mma.work(g, dtype, hardware, limit, precision=setting.precision, **aligned)
    vectors = simt.vectors_fit(g, dtype, x.aligned, w.aligned)
    yield simt.work(g, simt.chosen(g, dtype, hardware, vectors=vectors), hardware, limit)


def _joined(parts: list[Work | Unfit]) -> Work | Unfit:
    """Works done one after the other; they may share scratch memory, since the launches are in order."""
    works = [part for part in parts if isinstance(part, Work)]
    if len(works) < len(parts):
        return next(part for part in parts if isinstance(part, Unfit))
    if len(works) == 1:
        return works[0]
    scratch: dict[str, int] = {}
    for work in works:
        for name, nbytes in work.scratch.items():
            scratch[name] = max(nbytes, scratch.get(name, 0))
    largest = max(works, key=lambda work: work.steps[0].grid[0]).plan if works else Plan("gemm", "nothing to do")
    reason = f"{largest.reason}; {len(works)} convolutions, one for each residue of the stride"
    steps = tuple(step for work in works for step in work.steps)
    return Work(steps, replace(largest, reason=reason, workspace=sum(scratch.values())), scratch)


# --- What was measured ------------------------------------------------------------------------------------------------


def alternatives(g: Geometry, x: Operand, w: Operand, setting: Setting) -> dict[str, Work]:
    """Every way to compute a geometry by its name; the first is what is taken where nothing was measured."""
    works: dict[str, Work] = {}
    for work in _alternatives(g, x, w, setting):
        works.setdefault(name_of(work), work)
    return works


def key(g: Geometry, x: Operand, w: Operand, setting: Setting) -> str:
    """What measurements of a geometry are kept under."""
    return convolution_key(g, setting.dtype, setting.precision, x_aligned=x.aligned, w_aligned=w.aligned)


def _alternatives(g: Geometry, x: Operand, w: Operand, setting: Setting) -> Iterator[Work]:
    yield from (work for work in _candidates(g, x, w, setting) if isinstance(work, Work))
    yield from instances_for(
        g, setting.dtype, setting.hardware, setting.limit,
        precision=setting.precision, x_aligned=x.aligned, w_aligned=w.aligned,
    )  # fmt: skip


def _preferred(g: Geometry, x: Operand, w: Operand, setting: Setting) -> Work | None:
    """The alternative that was the fastest when it was measured, where it still takes the geometry."""
    if setting.measured is None:
        return None
    name = setting.measured.preferred(setting.hardware, key(g, x, w, setting))
    if name is None:
        return None
    work = next((work for work in _alternatives(g, x, w, setting) if name_of(work) == name), None)
    if work is None:
        return None
    return replace(work, plan=replace(work.plan, reason=f"measured to be the fastest here: {work.plan.reason}"))
