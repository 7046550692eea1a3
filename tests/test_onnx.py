"""ONNX's own backend tests, run by xpconv: every case of every operator that xpconv has."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx, which brings the cases, is not installed")

from onnx.backend.test.loader import load_model_tests  # noqa: E402

from onnx_translation import OPERATORS, run_model  # noqa: E402

# What ONNX counts among convolutions and poolings and this test leaves out.
LEFT_OUT = {
    "CausalConvWithState": "a state is carried from call to call; the cases that spell it out with Conv do run",
    "DeformConv": "taps lie between elements, which no convolution here does",
    "GlobalLpPool": "ONNX has no case for it",
    "MaxRoiPool": "windows are data, not geometry; ONNX has no case for it",
    "QLinearConv": "rescales and rounds the result, which is not part of a convolution",
}

# The cases of one operator, and whole models that PyTorch wrote.
KINDS = ["node", "pytorch-converted", "pytorch-operator"]


def operators_in(case) -> set[str]:
    return {node.op_type for node in model_of(case).graph.node}


def model_of(case) -> "onnx.ModelProto":
    return case.model or onnx.load(Path(case.model_dir) / "model.onnx")


def data_of(case) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Pairs of inputs and the outputs ONNX expects."""
    if case.data_sets:
        yield from case.data_sets
    else:
        for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
            yield stored_tensors(folder, "input"), stored_tensors(folder, "output")


def stored_tensors(folder: Path, what: str) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(onnx.load_tensor(file)) for file in sorted(folder.glob(f"{what}_*.pb"))]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ONNX computes its cases on loading, some of them with infinities
    LOADED = [case for kind in KINDS for case in load_model_tests(kind=kind)]

CASES = {case.name: case for case in LOADED if operators_in(case) & OPERATORS.keys()}


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_the_one_that_onnx_publishes(name):
    case = CASES[name]
    for inputs, expected in data_of(case):
        results = run_model(model_of(case), inputs)
        assert len(results) == len(expected) > 0
        for result, array in zip(results, expected, strict=True):
            assert result.dtype == array.dtype
            assert result.shape == array.shape
            np.testing.assert_allclose(result, array, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_cases(operator):
    assert any(operator in operators_in(case) for case in CASES.values())


def test_there_are_as_many_cases_as_onnx_is_known_to_have():
    assert len(CASES) >= 120


def test_each_convolution_and_pooling_of_onnx_is_run_or_left_out_for_a_reason():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    ours = {name for name in known if re.search("conv|pool|col2im", name, re.IGNORECASE)}
    assert ours == OPERATORS.keys() | LEFT_OUT.keys() & known
