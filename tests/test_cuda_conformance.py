"""The emulator's twins of inline PTX compute what NumPy says, by the very kernels that a GPU is later asked with."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

import cuda_conformance as conformance
from cuda_conformance import CASES, Emulator, families, judged, run, wrappers
from cuda_emulator import settings
from cuda_emulator.compiler import why_unavailable
from nvrtc import compiled

needs_emulator = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))
needs_compiler = pytest.mark.skipif(
    find_spec("cuda") is None or find_spec("cuda.bindings") is None, reason="NVIDIA's compiler is not installed"
)


@needs_emulator
@pytest.mark.parametrize("order", settings.ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_twins_compute_what_numpy_says(name, order):
    case = CASES[name]
    for make in case.trials.values():
        trial = make(np.random.default_rng(7))
        with settings.using(order=order, compute_capability=max(case.capability, (8, 0))):
            verdict = judged(trial, run(case, trial, Emulator()))
        assert verdict.wrong == 0, verdict.first
        assert verdict.elements == verdict.identical or trial.slack or trial.floats


def test_every_wrapper_is_used_by_a_case():
    texts = "".join(case.kernel for case in CASES.values())
    assert {name for name in wrappers() if not re.search(rf"\b{name}\b", texts)} <= {"shared_address"}
    assert len(wrappers()) > 30


def test_a_wrong_result_is_told():
    trial = CASES["mma float16"].trials["whole numbers"](np.random.default_rng(0))
    results = {"d": trial.expected["d"].copy()}
    assert judged(trial, results).wrong == 0
    results["d"][3, 2, 1] += 1
    verdict = judged(trial, results)
    assert (verdict.wrong, verdict.elements - verdict.identical) == (1, 1)
    assert verdict.first.startswith("d[3, 2, 1] is ")
    allowed = replace(trial, slack={"d": np.full(results["d"].shape, 2.0)})
    assert (judged(allowed, results).wrong, judged(allowed, results).worst) == (0, 0.5)


def test_what_a_tensor_copy_of_tf32_may_do_is_named():
    trial = CASES["tensor copy of TF32"].trials["fractions"](np.random.default_rng(0))
    x = trial.arrays["x"]
    for told, values in [
        ("left as they are", x),
        ("cut off to 10 bits of fraction", conformance.truncated(x)),
        ("rounded to 10 bits, ties away from zero", conformance.nearest_tf32(x)),
        ("changed in another way", -x),
    ]:
        assert conformance.rounding_of(trial, conformance.swizzled(values)) == told


@needs_compiler
@pytest.mark.parametrize("family", families())
def test_cases_compile_for_the_device(family):
    cases = families()[family]
    major, minor = cases[0].capability
    architecture = "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"
    expressions = list(dict.fromkeys(case.expression for case in cases))
    for used in compiled(cases[0].text, expressions, architecture).usage.values():
        assert used.spilled == 0
