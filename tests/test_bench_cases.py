"""What `xpconv bench` measures: layers by name and in words, the same results from everybody, and what limits them."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from xpconv.bench import limits, rivals
from xpconv.bench.cases import Case, cases
from xpconv.bench.data import data_of, errors, right
from xpconv.bench.row import checked
from xpconv.bench.sides import OURS, Place, ours
from xpconv.layers import LAYERS, MORE, OPERATIONS, Layer, described, named

WORDS = "conv2d x=2,6,5,4 w=3,2,2,6 padding=1:0,0:1 stride=2,1 groups=2 dtype=float64"
TINY = Layer("tiny", "3x3", (6, 5), 4, 4, 3, padding=1)
POOL = replace(TINY, groups=4, operation="max pool", stride=2)


def case(layer=TINY, **options):
    return Case.of_layer(layer, 2, **options)


def test_every_named_layer_is_a_case_of_its_own():
    made = cases(["all"], ["float32"], [1, 8], ["channels_last"])
    keys = [found.key for found in made]
    assert len(set(keys)) == len(keys)
    assert {found.operation for found in made} == set(OPERATIONS)
    assert {layer.operation for layer in LAYERS} == {"conv"}
    assert {layer.network for layer in MORE if layer.first} == {layer.network for layer in MORE}
    windows = {found.window[0] for found in made if found.network == "filter"}
    assert windows == {3, 5, 11, 31, 101}


def test_options_multiply_but_not_what_has_no_batch():
    layers, layouts = ["LeNet 5x5 6->16, 14x14", "signal"], ["channels_last", "channels_first"]
    made = cases(layers, ["float32", "float64"], [1, 8], layouts)
    assert sum(found.network == "LeNet" for found in made) == 8
    assert sum(found.network == "signal" for found in made) == 2


def test_without_a_layer_each_network_has_those_that_stand_first():
    made = {found.name for found in cases([], ["float32"], [8], ["channels_last"])}
    assert made == {layer.name for layer in named([], (*LAYERS, *MORE))}
    assert len(made) < len(LAYERS)


def test_a_case_counts_the_operations_and_bytes_of_its_definition():
    conv, pool = case(), case(POOL)
    assert conv.operations == 2 * 2 * 6 * 5 * 4 * 9 * 4
    assert conv.bytes == 4 * (2 * 6 * 5 * 4 * 2 + 9 * 4 * 4)
    assert pool.operations is None
    assert pool.bytes == 4 * (2 * 6 * 5 * 4 + 2 * 3 * 3 * 4)
    assert case(TINY, dtype="float64").bytes == 2 * conv.bytes
    assert ours(conv, data_of(conv)).plan.operations == conv.operations
    assert ours(conv, data_of(conv)).plan.bytes_moved == conv.bytes


def test_a_layer_in_words_says_its_own_batch_and_dtype():
    (found,) = cases([WORDS], ["float32"], [8], ["channels_first"])
    assert (found.batch, found.dtype, found.layout) == (2, "float64", "channels_last")
    assert found.out_size == described(WORDS).spec.out_size
    two = cases(["corr1d x=1,9,2 w=3,2,4"], ["float32", "float64"], [8], ["channels_last"])
    assert [c.dtype for c in two] == ["float32", "float64"]


def test_one_map_and_one_kernel_in_words_are_a_filter_which_other_rivals_take():
    (image,) = cases(["conv2d x=9,8 w=3,3 padding=1"], ["float32"], [8], ["channels_last"])
    assert (image.operation, image.plain) == ("filter", True)
    (signal,) = cases(["corr1d x=9 w=3 padding=1"], ["float32"], [8], ["channels_last"])
    assert (signal.operation, signal.flip) == ("signal", False)
    (valid,) = cases(["conv2d x=9,8 w=3,3"], ["float32"], [8], ["channels_last"])
    assert (valid.operation, valid.plain) == ("conv", False)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in ("filter", "signal")])
def test_everybody_gives_the_result_of_the_definition(operation, layout, dtype):
    layer = replace(TINY, operation=operation, groups=4 if "pool" in operation or operation == "global average" else 1)
    layer = replace(layer, size=(3, 3), padding=0) if operation == "global average" else layer
    assert_right(case(layer, dtype=dtype, layout=layout), "torch", "onnxruntime", "jax")


@pytest.mark.parametrize("words", [
    WORDS, "corr2d x=2,4,6,5 w=6,4,3,3 layout=channels_first dilation=2,1 padding=2,1",
    "conv1d x=2,9,3 w=4,3,2 stride=2", "conv3d x=1,4,3,5,2 w=3,1,2,2,3 padding=1,0,0",
    "conv2d x=9,8 w=3,5 padding=1,2", "corr1d x=9 w=3 padding=1",
])  # fmt: skip
def test_a_layer_in_words_is_what_it_says_to_everybody(words):
    (found,) = cases([words], ["float64"], [8], ["channels_last"])
    assert_right(found, *rivals.RIVALS)


def assert_right(found, *names):
    data = data_of(found)
    others, left_out = rivals.sides_of(names, found, data, Place())
    expected = ("is not installed", "filters single maps", "is compared on layers", "has no", "computes on CUDA")
    tolerated = (*expected, "NotImplemented", "NOT_IMPLEMENTED", "Fail")
    assert all(any(word in why for word in tolerated) for why in left_out.values()), left_out
    sides, _, wrong = checked(found, data, [ours(found, data), *others])
    assert not wrong or found.dtype == "float16"  # which torch and onnxruntime do not compute on every CPU
    assert sides[0].name == OURS


def test_a_large_batch_is_checked_at_both_ends():
    found = Case.of_layer(TINY, 40)
    data = data_of(found)
    y = ours(found, data).call()
    for item, seen in ((0, True), (3, True), (20, False), (39, True)):
        bent = y.copy()
        bent[item] += 1
        assert right(found, errors(found, data, {"bent": bent})["bent"]) != seen


def test_a_limit_is_the_slower_of_products_and_copies():
    there = {"matrix_gflops": {"float32": 100.0}, "copy_gbs": 10.0}
    assert limits.bound(10**9, 10**6, "float32", there) == ("matrix product", 0.01)
    assert limits.bound(10**6, 10**8, "float32", there) == ("copy", 0.01)
    assert limits.bound(None, 10**8, "float32", there) == ("copy", 0.01)
    assert limits.bound(10**9, 10**8, "int8", there) == ("copy", 0.01)  # whose products nobody measured


def test_limits_are_measured_with_the_clock(monkeypatch):
    seen = []

    def clock(calls):
        for call in calls:
            seen.append(call())
        return 2e-3

    monkeypatch.setattr(limits, "SPAN", 0.006)
    found = limits.measured(Place(threads=2), ["float32", "float64", "float16"], clock, sizes=(16, 64), copied=8000)
    assert found == {
        "matrix_gflops": dict.fromkeys(("float32", "float64", "float16"), float(f"{2 * 64**3 / 2e-3 / 1e9:.4g}")),
        "copy_gbs": 0.008,
    }
    products = [y for y in seen if isinstance(y, np.ndarray)]
    assert {y.dtype.name for y in products} == {"float32", "float64"}


def test_a_rival_is_named_installed_or_a_line_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert rivals.why_missing("opencv") == "cv2 is not installed: pip install opencv-python-headless"
    assert rivals.chosen(["none"]) == ([], {})
    names, missing = rivals.chosen([])
    assert "opencv" not in names
    assert "opencv" in missing
    with pytest.raises(RuntimeError, match="--rivals opencv: cv2 is not installed: pip install opencv"):
        rivals.chosen(["scipy", "opencv"])
    with pytest.raises(ValueError, match="'tensorflow' is unknown"):
        rivals.chosen(["tensorflow"])
