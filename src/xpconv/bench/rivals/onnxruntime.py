"""onnxruntime on the CPU: a model of one node, of which the weight is a part, and for copies of it an input."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from xpconv.bench.cases import Case
from xpconv.bench.data import Data
from xpconv.bench.sides import Call, Place, Side, Unsuited, all_to_first, to_last

_NODES = {"conv": "Conv", "max pool": "MaxPool", "average pool": "AveragePool", "global average": "GlobalAveragePool"}
_OPSET, _IR_VERSION = 17, 8  # that every onnxruntime of these years reads


def sides(_: str, case: Case, data: Data, place: Place) -> Iterator[Side]:
    """One, on values that it holds as its own."""
    if case.operation not in _NODES:
        raise Unsuited(f"has no {case.operation}")
    if not place.is_cpu:
        raise Unsuited("is timed on the CPU alone")
    import onnxruntime

    data = all_to_first(data)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    feeds = {"x": value(data["x"])}
    weighted = case.operation == "conv"
    session = _session(case, {"w": data["w"]} if weighted else {}, data, place.threads)
    given: list[Any] = []

    def fresh() -> Call:
        if not given:
            given.append(_session(case, {}, data, place.threads))
        return partial(given[0].run_with_ort_values, None, feeds | {"w": value(data["w"].copy())})

    call = partial(session.run_with_ort_values, None, feeds)
    yield Side("onnxruntime", call, lambda y: to_last(case, y[0].numpy()), fresh if weighted else None)


def _session(case: Case, constants: Data, data: Data, threads: int) -> Any:
    import onnx
    import onnxruntime

    helper = onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(data["x"].dtype)
    names = ["x", "w"] if case.operation == "conv" else ["x"]
    inputs = [helper.make_tensor_value_info(name, kind, data[name].shape) for name in names if name not in constants]
    node = helper.make_node(_NODES[case.operation], names, ["y"], **_attributes(case))
    weights = [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()]
    results = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([node], "case", inputs, results, weights)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _attributes(case: Case) -> dict[str, Any]:
    if case.operation == "global average":
        return {}
    before, after = zip(*case.padding, strict=True)
    found: dict[str, Any] = {"kernel_shape": case.window, "strides": case.stride, "pads": [*before, *after]}
    if case.operation == "conv":
        found |= {"dilations": case.dilation, "group": case.groups}
    if case.operation == "average pool":
        found["count_include_pad"] = 1
    return found
