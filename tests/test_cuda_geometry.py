"""The numbers that the CUDA kernels are given describe the convolution and its gradients: checked by plain loops."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import conv_cases, first, integers, weight_first
from xpconv.cuda.geometry import DIVISOR, Geometry, divisor, forward, input_gradient, weight_gradient
from xpconv.spec import conv_spec


def computed(g: Geometry, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
    """What a kernel does with a geometry, on the flat memory of three arrays."""
    shape = (g.groups, g.batch, g.filters, *g.out)
    for group, item, f, *i in product(*map(range, shape)):
        total = 0
        for c, *k in product(range(g.channels), *map(range, g.window)):
            at = [p * s + t * d - lo for p, s, t, d, lo in zip(i, g.stride, k, g.dilation, g.before, strict=True)]
            if all(0 <= a < n for a, n in zip(at, g.size, strict=True)):
                read = g.x_start + group * g.x_group + np.dot(g.strides.x, (item, c, *at))
                weight = g.w_start + group * g.w_group + np.dot(g.strides.w, (f, c, *k))
                total += x[read] * w[weight]
        y[g.y_start + group * g.y_group + np.dot(g.strides.y, (item, f, *i))] += total


def elements(array):
    return tuple(stride // array.itemsize for stride in array.strides)


def spec_of(case, x, w, layout):
    spec, _ = conv_spec(
        x.shape, w.shape, name=case.function, axes=None, flip=case.flip, stride=case.geometry["stride"],
        padding=tuple(case.pads), dilation=case.geometry["dilation"], groups=case.groups, padding_mode=case.mode,
        layout=layout,
    )  # fmt: skip
    return spec


def in_layout(case, layout):
    if layout == "channels_last":
        return case.x, case.w
    return np.ascontiguousarray(first(case.x)), np.ascontiguousarray(weight_first(case.w))


def last(array, layout):
    return array if layout == "channels_last" else np.moveaxis(array, 1, -1)


CASES = conv_cases(dtypes=(np.int64,), modes=("zeros",), batches=(1, 2))
LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "channels_first"])


@LAYOUTS
@given(case=CASES)
def test_the_forward_geometry_is_the_definition(layout, case):
    x, w = in_layout(case, layout)
    spec = spec_of(case, x, w, layout)
    y = np.zeros(spec.y_shape, np.int64)
    computed(forward(spec, elements(x), elements(w), elements(y)), x.reshape(-1), w.reshape(-1), y.reshape(-1))
    case.bias = None
    np.testing.assert_array_equal(last(y, layout), case.expected())


@LAYOUTS
@given(case=CASES, seed=st.integers(0, 99))
def test_the_gradients_geometries_are_its_adjoints(layout, case, seed):
    x, w = in_layout(case, layout)
    spec, case.bias = spec_of(case, x, w, layout), None
    gy = integers(np.random.default_rng(seed), spec.y_shape, np.int64)
    gx, gw = np.zeros_like(x), np.zeros_like(w)
    phases = input_gradient(spec, elements(gy), elements(w), elements(gx))
    for phase in phases:
        computed(phase, gy.reshape(-1), w.reshape(-1), gx.reshape(-1))
    assert sum(phase.positions for phase in phases) == gx.size // spec.channels
    computed(
        weight_gradient(spec, elements(x), elements(gy), elements(gw)), x.reshape(-1), gy.reshape(-1), gw.reshape(-1)
    )
    # sum(conv(x', w) gy) = sum(x' gx) and sum(conv(x, w') gy) = sum(w' gw), for inputs that were not used above
    rng = np.random.default_rng(seed + 1)
    other_x, other_w = integers(rng, case.x.shape, np.int64), integers(rng, case.w.shape, np.int64)
    case.x, kept = other_x, case.x
    assert (case.expected() * last(gy, layout)).sum() == (other_x * last(gx, layout)).sum()
    case.x, case.w = kept, other_w
    shown = other_w if layout == "channels_last" else weight_first(other_w)
    assert (case.expected() * last(gy, layout)).sum() == (shown * gw).sum()


@given(n=st.integers(1, 2**31 - 1), value=st.integers(0, 2**31 - 1))
def test_a_division_by_multiplication_is_exact(n, value):
    by = divisor(n)
    assert by.dtype == DIVISOR
    high = (value * int(by["multiplier"])) >> 32
    assert (high + value) < 2**32
    assert (high + value) >> int(by["shift"]) == value // n


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 2**16, 2**30, 2**30 + 1, 2**31 - 1])
def test_a_division_is_exact_around_multiples(n):
    by = divisor(n)
    for value in {0, 1, n - 1, n, min(2 * n, 2**31 - 1), (2**31 - 1) // n * n - 1, (2**31 - 1) // n * n, 2**31 - 1}:
        if value >= 0:
            assert (((value * int(by["multiplier"])) >> 32) + value) >> int(by["shift"]) == value // n
