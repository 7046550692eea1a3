"""Specs of SciPy's convolve and correlate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from xpconv.spec.convolution import conv_spec
from xpconv.spec.forms import check_sizes
from xpconv.spec.windows import ConvSpec, Pairs, Sizes


@dataclass(frozen=True)
class Pairing:
    """How two signals stand to one convolution: what its axes are to the axes of the user's result.

    The convolved axes come last in `order`. Of the others, those that only the input has are its batch, those that
    both have are groups, and those that only the kernel has are filters.
    """

    swapped: bool  # the second signal is the input, the first one the kernel
    order: Sizes  # axes of the user's result, in the order of the convolution's
    y_shape: Sizes  # of the result, in that order


@lru_cache(maxsize=4096)
def signal_spec(
    in1: Sizes, in2: Sizes, *, name: str, flip: bool, mode: str, axes: Sizes | None, padding_mode: str
) -> tuple[ConvSpec, Pairing]:
    """Geometry of SciPy's convolve or correlate: one channel a group, and the axes not convolved broadcast."""
    check_sizes("in1", in1)
    check_sizes("in2", in2)
    shapes, rank = f"shapes: in1 {in1}, in2 {in2}", max(len(in1), len(in2))
    convolved = _convolved_axes(in1, in2, axes, shapes)
    x, w = ((1,) * (rank - len(shape)) + shape for shape in (in1, in2))
    _check_signals(x, w, convolved, shapes)
    swapped = _change_places(x, w, convolved, mode, padding_mode, shapes)
    x, w = (w, x) if swapped else (x, w)
    order, batch, groups, filters = _paired(x, w, convolved)
    size, window = (tuple(shape[axis] for axis in convolved) or (1,) for shape in (x, w))
    spec, _ = conv_spec(
        (batch, groups, *size), (groups * filters, 1, *window), name=name, axes=None, flip=flip or swapped,
        stride=(1,) * len(size), padding=_mode_padding(mode, window), dilation=(1,) * len(size), groups=groups,
        padding_mode=padding_mode, layout="channels_first",
    )  # fmt: skip
    items = (w[axis] if x[axis] == 1 else x[axis] for axis in order[: rank - len(convolved)])
    return spec, Pairing(swapped, order, (*items, *(spec.out_size if convolved else ())))


def _convolved_axes(in1: Sizes, in2: Sizes, axes: Sizes | None, shapes: str) -> Sizes:
    """The axes to convolve, counted from the first of the longer shape."""
    if len(in1) != len(in2) and (axes is None or max(axes, default=0) >= 0):
        raise ValueError(
            f"in1 has {len(in1)} axes and in2 {len(in2)}: say which to convolve, counted from the end, "
            f"for example axes=-1; {shapes}"
        )
    if axes is None:
        return tuple(range(len(in1)))
    if not axes:
        raise ValueError(f"axes=() leaves nothing to convolve; for all axes leave it out; {shapes}")
    shared, rank = min(len(in1), len(in2)), max(len(in1), len(in2))
    for axis in axes:
        if not -shared <= axis < shared:
            raise ValueError(f"axes={axes} names axis {axis}, which in1 and in2 do not both have; {shapes}")
    convolved = {axis % rank for axis in axes}
    if len(convolved) != len(axes):
        raise ValueError(f"axes={axes} names an axis twice; {shapes}")
    return tuple(sorted(convolved))


def _check_signals(x: Sizes, w: Sizes, convolved: Sizes, shapes: str) -> None:
    for axis, (n, m) in enumerate(zip(x, w, strict=True)):
        place = f"axis {axis - len(x)}"
        if axis in convolved and not (n and m):
            raise ValueError(f"{'in2' if n else 'in1'} is empty on {place}, which is convolved; {shapes}")
        if axis not in convolved and n != m and 1 not in (n, m):
            raise ValueError(
                f"in1 has {n} items on {place} and in2 {m}: without convolving it they must be equal or one of them "
                f"1; {shapes}"
            )


def _change_places(x: Sizes, w: Sizes, convolved: Sizes, mode: str, padding_mode: str, shapes: str) -> bool:
    """Whether the second signal is the input: "valid" slides the shorter one, and so may "full" among zeros."""
    if mode == "full" and padding_mode == "zeros":
        return math.prod(x[axis] for axis in convolved) < math.prod(w[axis] for axis in convolved)
    if mode != "valid" or all(x[axis] >= w[axis] for axis in convolved):
        return False
    if all(x[axis] <= w[axis] for axis in convolved):
        return True
    raise ValueError(
        f"mode='valid' needs in1 or in2 to be the longer one on every convolved axis; take 'full' or 'same'; {shapes}"
    )


def _paired(x: Sizes, w: Sizes, convolved: Sizes) -> tuple[Sizes, int, int, int]:
    """The order of the axes in the convolution, and its batch, groups, and filters of each group."""
    items = [axis for axis in range(len(x)) if axis not in convolved]
    batch = [axis for axis in items if w[axis] == 1]
    groups = [axis for axis in items if w[axis] != 1 and x[axis] != 1]
    filters = [axis for axis in items if w[axis] != 1 and x[axis] == 1]
    order = (*batch, *groups, *filters, *convolved)
    if any(0 in (x[axis], w[axis]) for axis in items):  # no items at all: an empty batch
        return order, 0, 1, 1

    def count(part: list[int]) -> int:
        return math.prod(max(x[axis], w[axis]) for axis in part)

    return order, count(batch), count(groups), count(filters)


def _mode_padding(mode: str, window: Sizes) -> str | Pairs:
    """SciPy's "same" is the middle of "full", for correlations too: m // 2 before."""
    return tuple((m // 2, (m - 1) // 2) for m in window) if mode == "same" else mode
