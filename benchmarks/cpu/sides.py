"""Who computes a cell: xpconv, and its peers. The arrays of each lie ready in its own layout before anything is timed.

Peers that are not installed raise ImportError, whose message is their line in the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import xpconv

from .cells import Cell
from .reference import Data

OURS, FIRST = "xpconv", "xpconv channels_first"
Call = Callable[[], Any]
WEIGHTED = ("conv", "input gradient")  # what has a weight that a call may have seen before


@dataclass
class Side:
    """One candidate: its call, its result as NumPy's channels last, and calls with copies of the weight."""

    name: str
    call: Call
    result: Callable[[Any], np.ndarray]
    fresh: Callable[[], Call] | None = None
    method: str = ""


def sides_of(cell: Cell, data: Data, *, both: bool = False, threads: int = 1) -> tuple[list[Side], dict[str, str]]:
    """The candidates, ours first, and why others are missing."""
    found = [_xpconv(cell, data, layout) for layout in _layouts(cell, both)]
    missing = {}
    for name in cell.peers:
        try:
            found += PEERS[name](cell, data, threads)
        except Exception as error:  # a peer that cannot is left out with its reason
            missing[name] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    return found, missing


def to_first(a: np.ndarray) -> np.ndarray:
    """(N, C, *size) of (N, *size, C), copied."""
    return np.ascontiguousarray(np.moveaxis(a, -1, 1))


def weight_to_first(w: np.ndarray) -> np.ndarray:
    """(F, C, *window) of (*window, C, F), copied."""
    return np.ascontiguousarray(np.moveaxis(w, (-1, -2), (0, 1)))


def _all_to_first(data: Data) -> Data:
    return {name: (weight_to_first if name == "w" else to_first)(a) for name, a in data.items()}


def _to_last(cell: Cell) -> Callable[[Any], np.ndarray]:
    """A result with channels first as channels last, a view."""
    if cell.operation == "weight gradient":
        return lambda y: np.moveaxis(np.asarray(y), (0, 1), (-1, -2))
    return lambda y: np.moveaxis(np.asarray(y), 1, -1)


# --- xpconv -----------------------------------------------------------------------------------------------------------


def _layouts(cell: Cell, both: bool) -> tuple[str, ...]:
    return ("channels_last", "channels_first") if both and cell.batch else ("channels_last",)


def _xpconv(cell: Cell, data: Data, layout: str) -> Side:
    first = layout == "channels_first"
    data = _all_to_first(data) if first else data
    function, options = _xpconv_call(cell, layout)
    names = {
        "conv": "xw",
        "input gradient": ("gy", "w"),
        "weight gradient": ("x", "gy"),
        "filter": "xw",
        "signal": "xw",
    }
    args = [data[name] for name in names.get(cell.operation, "x")]

    def fresh() -> Call:
        return partial(function, args[0], args[1].copy(), **options)

    return Side(
        FIRST if first else OURS,
        partial(function, *args, **options),
        _to_last(cell) if first else np.asarray,
        fresh if cell.operation in WEIGHTED else None,
        xpconv.explain(function, *args, **options).method,
    )


def _xpconv_call(cell: Cell, layout: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function and its options."""
    layer = cell.layer
    if cell.operation in ("filter", "signal"):
        return (xpconv.corr2d if cell.operation == "filter" else xpconv.conv1d), {"padding": "same"}
    if cell.operation == "global average":
        return xpconv.global_avg_pool, {"keepdims": True, "layout": layout}
    if cell.operation.endswith("pool"):
        options = {"window": layer.window, "stride": layer.stride, "padding": layer.padding, "layout": layout}
        if cell.operation == "max pool":
            return xpconv.max_pool2d, options
        return xpconv.avg_pool2d, options | {"count_include_pad": True}
    options = {**layer.options, "layout": layout}
    if cell.operation == "input gradient":
        return xpconv.corr_grad_input, options | {"size": layer.size}
    if cell.operation == "weight gradient":
        return xpconv.corr_grad_weight, options | {"window": (layer.window,) * layer.axes}
    return getattr(xpconv, f"corr{layer.axes}d"), options


# --- torch ------------------------------------------------------------------------------------------------------------


def _torch(cell: Cell, data: Data, threads: int) -> Iterator[Side]:
    """In its own memory format, and in channels_last; a signal has the latter as an image of one row."""
    import torch

    torch.set_num_threads(threads)
    if not cell.batch:  # a plain signal, which torch does not flip
        plain = {"x": data["x"][None, None], "w": np.flip(data["w"])[None, None].copy()}
        tensors = {name: torch.from_numpy(a) for name, a in plain.items()}
        call = partial(torch.nn.functional.conv1d, **_named(tensors), padding=cell.layer.padding)
        yield Side("torch", call, lambda y: y[0, 0].numpy())
        return
    tensors = {name: torch.from_numpy(a) for name, a in _all_to_first(data).items()}
    axes = cell.layer.axes
    yield _torch_side("torch", cell, tensors, axes)
    rows = {name: a[:, :, None] for name, a in tensors.items()} if axes == 1 else tensors
    last = torch.channels_last_3d if axes == 3 else torch.channels_last
    tensors = {name: a.contiguous(memory_format=last) for name, a in rows.items()}
    yield _torch_side("torch channels_last", cell, tensors, max(axes, 2))


def _torch_side(name: str, cell: Cell, tensors: dict[str, Any], axes: int) -> Side:
    to_last = _to_last(cell)

    def result(y: Any) -> np.ndarray:
        return to_last(y.numpy() if axes == cell.layer.axes else y[:, :, 0].numpy())

    def fresh() -> Call:
        return _torch_call(cell, tensors | {"w": tensors["w"].clone()}, axes)

    return Side(name, _torch_call(cell, tensors, axes), result, fresh if cell.operation in WEIGHTED else None)


def _named(tensors: dict[str, Any]) -> dict[str, Any]:
    return {"input": tensors["x"], "weight": tensors["w"]}


def _torch_call(cell: Cell, tensors: dict[str, Any], axes: int) -> Call:
    import torch
    import torch.nn.functional as F

    layer = cell.layer
    if cell.operation == "global average":
        return partial(F.adaptive_avg_pool2d, tensors["x"], 1)
    if cell.operation.endswith("pool"):
        pool = F.max_pool2d if cell.operation == "max pool" else F.avg_pool2d
        return partial(pool, tensors["x"], layer.window, layer.stride, layer.padding)
    padding = (0, layer.padding) if axes > layer.axes else (layer.padding,) * axes
    options = {"stride": layer.stride, "padding": padding, "dilation": layer.dilation, "groups": layer.groups}
    if cell.operation == "conv":
        return partial(getattr(F, f"conv{axes}d"), **_named(tensors), **options)
    wanted = [cell.operation == "input gradient", cell.operation == "weight gradient", False]
    steps = [[layer.stride] * axes, padding, [layer.dilation] * axes, False, [0] * axes, layer.groups]
    backward = partial(  # what autograd calls
        torch.ops.aten.convolution_backward, tensors["gy"], tensors["x"], tensors["w"], None, *steps, wanted
    )
    return lambda: backward()[wanted.index(True)]


# --- onnxruntime ------------------------------------------------------------------------------------------------------


def _onnxruntime(cell: Cell, data: Data, threads: int) -> Iterator[Side]:
    """A model of one node; the weight is part of it, and for calls with a copy of the weight an input."""
    import onnxruntime

    data = _all_to_first(data)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    feeds = {"x": value(data["x"])}
    weighted = cell.operation == "conv"
    session = _session(cell, {"w": data["w"]} if weighted else {}, threads)
    given: list[Any] = []

    def fresh() -> Call:
        if not given:
            given.append(_session(cell, {}, threads))
        return partial(given[0].run_with_ort_values, None, feeds | {"w": value(data["w"].copy())})

    to_last = _to_last(cell)
    call = partial(session.run_with_ort_values, None, feeds)
    yield Side("onnxruntime", call, lambda y: to_last(y[0].numpy()), fresh if weighted else None)


def _session(cell: Cell, constants: Data, threads: int) -> Any:
    import onnx
    import onnxruntime

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    layer = cell.layer
    inputs = [helper.make_tensor_value_info("x", kind, (cell.batch, layer.channels, *layer.size))]
    if cell.operation == "conv" and not constants:
        w_shape = (layer.filters, layer.channels // layer.groups, *layer.w_shape[:-2])
        inputs.append(helper.make_tensor_value_info("w", kind, w_shape))
    names = ["x", "w"] if cell.operation == "conv" else ["x"]
    node = helper.make_node(_ONNX[cell.operation], names, ["y"], **_attributes(cell))
    weights = [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()]
    results = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([node], "cell", inputs, results, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


_ONNX = {
    "conv": "Conv",
    "max pool": "MaxPool",
    "average pool": "AveragePool",
    "global average": "GlobalAveragePool",
}


def _attributes(cell: Cell) -> dict[str, Any]:
    layer, axes = cell.layer, cell.layer.axes
    if cell.operation == "global average":
        return {}
    found: dict[str, Any] = {
        "kernel_shape": [layer.window] * axes,
        "strides": [layer.stride] * axes,
        "pads": [layer.padding] * 2 * axes,
    }
    if cell.operation == "conv":
        found |= {"dilations": [layer.dilation] * axes, "group": layer.groups}
    if cell.operation == "average pool":
        found["count_include_pad"] = 1
    return found


# --- OpenCV, SciPy, NumPy ---------------------------------------------------------------------------------------------


def _opencv(_: Cell, data: Data, threads: int) -> Iterator[Side]:
    import cv2

    cv2.setNumThreads(threads)
    call = partial(cv2.filter2D, data["x"], -1, data["w"], borderType=cv2.BORDER_CONSTANT)
    yield Side("opencv", call, np.asarray)


def _scipy(cell: Cell, data: Data, _: int) -> Iterator[Side]:
    from scipy import signal

    w = data["w"] if cell.operation == "signal" else np.flip(data["w"]).copy()
    for name in ("oaconvolve", "convolve"):
        yield Side(f"scipy {name}", partial(getattr(signal, name), data["x"], w, "same"), np.asarray)


def _numpy(_: Cell, data: Data, __: int) -> Iterator[Side]:
    yield Side("numpy", partial(np.convolve, data["x"], data["w"], "same"), np.asarray)


PEERS = {"torch": _torch, "onnxruntime": _onnxruntime, "opencv": _opencv, "scipy": _scipy, "numpy": _numpy}
