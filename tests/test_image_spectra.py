"""Products of the spectra of images: their results, whatever is held at a time, and how much that is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import conv_cases, integers
from single_planes import memory_beside_result
from xpconv.cpu import image_spectra, team
from xpconv.engines import agnostic


def defined(x, w, spec):
    """Tap by tap, of what is around and between the elements of x."""
    y = agnostic.conv(agnostic.surrounded(x, spec), w, None, replace(spec.valid, input_dilation=()))
    return np.asarray(y)


@given(
    conv_cases(dtypes=(np.float32, np.float64, np.int32, np.complex64), modes=("zeros",)),
    st.sampled_from(["forward", "input", "weight"]),
    st.sampled_from([1, 1000, 20_000, 1 << 20]),
)
def test_convolutions_and_their_adjoints_are_those_of_the_definition(case, side, limit):
    spec = replace(getattr(xpconv, case.function).request(case.x, case.w, **case.options).spec, layout="channels_last")
    if side != "forward":
        spec = spec.input_adjoint if side == "input" else spec.weight_adjoint
    rng = np.random.default_rng(0)
    x, w = integers(rng, spec.x_shape, case.x.dtype), integers(rng, spec.w_shape, case.x.dtype)
    y = image_spectra.conv(x, w, spec, limit)
    np.testing.assert_allclose(y, defined(x, w, spec), atol=1e-6 if case.x.dtype.itemsize == 4 else 1e-9)


@pytest.mark.parametrize(("size", "padding", "side"), [(12, 4, "input_adjoint"), (6, 0, "weight_adjoint")])
def test_what_is_cropped_of_an_input_is_not_read(size, padding, side):
    x, w = np.ones((1, size, size, 2)), np.ones((3, 3, 2, 2))
    spec = getattr(xpconv.corr.request(x, w, padding=padding, stride=2).spec, side)
    assert min(min(pads) for pads in spec.padding) < 0
    rng = np.random.default_rng(1)
    x, w = integers(rng, spec.x_shape, "float64"), integers(rng, spec.w_shape, "float64")
    np.testing.assert_allclose(image_spectra.conv(x, w, spec, 1 << 20), defined(x, w, spec), atol=1e-9)


@pytest.mark.parametrize("limit", [3 << 20, 8 << 20, 64 << 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_held_is_what_is_told(limit, threads, monkeypatch):
    monkeypatch.setattr(team, "thread_count", lambda: threads)
    x, w = np.ones((3, 80, 90, 8), np.float32), np.ones((21, 21, 8, 12), np.float32)
    spec = xpconv.corr.request(x, w, padding="same").spec
    blocks = image_spectra.blocks(spec, limit)
    assert blocks.nbytes <= limit
    assert memory_beside_result(lambda: image_spectra.conv(x, w, spec, limit)) <= 1.1 * blocks.nbytes
    assert blocks.filters < spec.filters or limit > 4 << 20
