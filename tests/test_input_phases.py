"""The phases of a strided input gradient: every place once, and the sums of the definition."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import xpconv
from cases import integers
from engine_cases import reference
from xpconv.engines import compiled as compiled_calls

axes = st.tuples(
    st.integers(1, 13), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(0, 3)
)


@pytest.fixture(params=["numpy", "compiled"])
def side(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(compiled_calls, "kernels", lambda: None)
    elif compiled_calls.kernels() is None:
        pytest.skip("the extra fast is not installed")
    else:
        monkeypatch.setattr(
            compiled_calls, "kernel_for", lambda _, m, c: "direct" if m == "direct" and c.filters else ""
        )


def geometry(drawn):
    """Size, window and options of a call, whose window fits."""
    size, window, stride, dilation, before, after = zip(*drawn, strict=True)
    fits = (
        (m - 1) * d + 1 <= n + lo + hi for n, m, d, lo, hi in zip(size, window, dilation, before, after, strict=True)
    )
    assume(all(fits))
    return size, window, {"stride": stride, "dilation": dilation, "padding": tuple(zip(before, after, strict=True))}


@given(st.lists(axes, min_size=1, max_size=3))
def test_phases_cover_every_place_of_the_input_once(drawn):
    size, window, options = geometry(drawn)
    spec = xpconv.conv.request(np.ones((1, *size, 1)), np.ones((*window, 1, 1)), **options).spec
    covered = np.zeros(size, int)
    for phase in spec.input_phases:
        covered[phase.places] += 1
        assert covered[phase.places].shape == (
            phase.spec.out_size if 0 not in phase.spec.window else covered[phase.places].shape
        )
    assert (covered == 1).all()


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@given(
    st.lists(axes, min_size=1, max_size=2),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from(["zeros", "edge", "wrap"]),
)
def test_the_input_gradient_is_the_references(layout, drawn, groups, flip, mode):
    size, window, options = geometry(drawn)
    rng, function = np.random.default_rng(0), xpconv.conv_grad_input if flip else xpconv.corr_grad_input
    forward = (xpconv.conv if flip else xpconv.corr).request(
        np.ones((2, *size, 4), "f"),
        np.ones((*window, 4 // groups, 6), "f"),
        groups=groups,
        padding_mode=mode,
        **options,
    )
    gy, w = integers(rng, forward.spec.y_shape, "float32"), integers(rng, forward.spec.w_shape, "float32")
    if layout == "channels_first":
        gy, w = np.moveaxis(gy, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
    options |= {"size": size, "groups": groups, "layout": layout, "padding_mode": mode}
    expected = reference(function, gy, w, **options)
    np.testing.assert_allclose(function(gy, w, **options), expected, atol=1e-4)  # whole numbers; spectra round


def test_a_strided_transposed_convolution_adds_bias_and_activation_where_no_tap_reaches():
    x, w, bias = np.ones((1, 3, 1), "f"), np.full((1, 1, 1), 2, "f"), np.array([-1], "f")
    y = xpconv.conv_transpose(x, w, bias, stride=3, activation="relu")
    assert y.ravel().tolist() == [1, 0, 0, 1, 0, 0, 1]
