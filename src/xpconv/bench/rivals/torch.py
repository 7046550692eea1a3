"""torch, with oneDNN on a CPU and cuDNN on a GPU: in its own memory format, and with channels last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from xpconv.bench.cases import Case, is_gradient
from xpconv.bench.data import Data
from xpconv.bench.sides import Call, Place, Side, Unsuited, all_to_first, to_last
from xpconv.layers import POOLING_GRADIENTS, POOLINGS


def sides(_: str, case: Case, data: Data, place: Place) -> Iterator[Side]:
    """Both memory formats; a signal has channels last as an image of one row."""
    import torch

    if case.operation == "filter":
        raise Unsuited("is compared on layers of several maps")
    if any(before != after for before, after in case.padding):
        raise Unsuited("has no padding of two different sizes")
    _set_up(place)
    if case.plain:
        yield from _of_signal(case, data, place)
        return
    tensors = {name: _tensor(a, place) for name, a in all_to_first(data).items()}
    yield _side("torch", case, tensors, case.axes)
    rows = {name: a[:, :, None] for name, a in tensors.items()} if case.axes == 1 else tensors
    last = torch.channels_last_3d if case.axes == 3 else torch.channels_last
    tensors = {name: a.contiguous(memory_format=last) for name, a in rows.items()}
    yield _side("torch channels_last", case, tensors, max(case.axes, 2))


def _of_signal(case: Case, data: Data, place: Place) -> Iterator[Side]:
    """A signal alone, and as an image of one row."""
    import torch

    functional, padding = torch.nn.functional, case.padding[0][0]
    x, w = (_tensor(data[name][None, None], place) for name in "xw")
    call = partial(functional.conv1d, x, w, padding=padding)
    yield Side("torch", call, lambda y: y[0, 0].cpu().numpy())
    call = partial(functional.conv2d, x[:, :, None], w[:, :, None], padding=(0, padding))
    yield Side("torch conv2d", call, lambda y: y[0, 0, 0].cpu().numpy())


def _set_up(place: Place) -> None:
    import torch

    if place.is_cpu:
        torch.set_num_threads(place.threads)
        return
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds no CUDA device")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 is compared as such


def _tensor(a: np.ndarray, place: Place) -> Any:
    import torch

    if a.dtype.name == "bfloat16":  # which torch does not read from NumPy
        return torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16).to(place.device)
    return torch.from_numpy(a).to(place.device)


def _side(name: str, case: Case, tensors: dict[str, Any], axes: int) -> Side:
    def result(y: Any) -> np.ndarray:
        y = y if axes == case.axes else y[:, :, 0]
        return to_last(case, (y.float() if case.dtype == "bfloat16" else y).cpu().numpy())

    def fresh() -> Call:
        return _call(case, tensors | {"w": tensors["w"].clone()}, axes)

    weighted = case.operation in ("conv", "input gradient")
    return Side(name, _call(case, tensors, axes), result, fresh if weighted else None)


def _call(case: Case, tensors: dict[str, Any], axes: int) -> Call:
    import torch

    functional, one = torch.nn.functional, axes - case.axes  # axes more than the case's
    if case.operation == "global average":
        return partial(getattr(functional, f"adaptive_avg_pool{axes}d"), tensors["x"], 1)
    stride, padding = [1] * one + [*case.stride], [0] * one + [before for before, _ in case.padding]
    if case.operation in POOLINGS:
        kind = "max_pool" if case.operation == "max pool" else "avg_pool"
        pool: Callable[..., Any] = getattr(functional, f"{kind}{axes}d")
        return partial(pool, tensors["x"], [1] * one + [*case.window], stride, padding)
    dilation = [1] * one + [*case.dilation]
    if case.operation in POOLING_GRADIENTS:
        return _pooling_gradient(case, tensors, axes, ([1] * one + [*case.window], stride, padding, dilation))
    if not is_gradient(case):
        conv: Callable[..., Any] = getattr(functional, f"conv{axes}d")
        return partial(conv, tensors["x"], tensors["w"], None, stride, padding, dilation, case.groups)
    wanted = [case.operation == "input gradient", case.operation == "weight gradient", False]
    steps = [stride, padding, dilation, False, [0] * axes, case.groups]
    backward = partial(  # what autograd calls
        torch.ops.aten.convolution_backward, tensors["gy"], tensors["x"], tensors["w"], None, *steps, wanted
    )
    return lambda: backward()[wanted.index(True)]


def _pooling_gradient(case: Case, tensors: dict[str, Any], axes: int, geometry: tuple[list[int], ...]) -> Call:
    """What autograd calls, the indices ready."""
    import torch

    gy, x, (window, stride, padding, dilation), aten = tensors["gy"], tensors["x"], geometry, torch.ops.aten
    if case.operation == "average pool gradient":
        backward = getattr(aten, f"avg_pool{axes}d_backward")
        return partial(backward, gy, x, window, stride, padding, False, True, None)
    kind = f"max_pool{axes}d_with_indices"
    indices = getattr(aten, kind)(x, window, stride, padding, dilation)[1]
    return partial(getattr(aten, f"{kind}_backward"), gy, x, window, stride, padding, dilation, False, indices)
