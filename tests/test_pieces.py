"""Operations that a limit of memory cuts into pieces: their results, what they hold, and what is told of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xpconv
from cases import conv_cases, integers, pool_cases
from xpconv.cpu import cuts, joined, pieces
from xpconv.engines import compiled, gradient_pieces, numpy_pools, piecewise
from xpconv.engines.agnostic import padding_source

LIMIT = 4 << 20


@pytest.fixture(autouse=True)
def short_rows_are_cut(monkeypatch):
    monkeypatch.setattr(cuts, "SHORT_BYTES", 64)
    remembered = piecewise._pieces, numpy_pools._pieces, gradient_pieces._pieces
    for pieces_of in remembered:
        pieces_of.cache_clear()
    yield
    for pieces_of in remembered:
        pieces_of.cache_clear()


@pytest.fixture
def by_numpy(monkeypatch):
    monkeypatch.setattr(compiled, "kernels", lambda: None)


@pytest.fixture
def cut(monkeypatch):
    """How many calls were cut into pieces."""
    counts, of = [], piecewise._pieces

    def counted(*arguments):
        found = of(*arguments)
        if found:
            counts.append(len(found))
        return found

    monkeypatch.setattr(piecewise, "_pieces", counted)
    return counts


@pytest.mark.usefixtures("by_numpy")
@given(
    conv_cases(dtypes=(np.float32, np.float64, np.float16, np.int32, np.complex128)),
    st.sampled_from(["auto", "direct", "gemm"]),
    st.sampled_from(["channels_last", "channels_first"]),
    st.sampled_from([1, 60, 300, 1500]),
)
def test_pieces_are_what_the_loops_of_the_definition_give(case, method, layout, limit):
    x, w, expected, options = case.x, case.w, case.expected(), case.options
    if layout == "channels_first":
        x, w, expected = np.moveaxis(x, -1, 1), w.transpose(-1, -2, *range(w.ndim - 2)), np.moveaxis(expected, -1, 1)
    with xpconv.workspace_limit(limit):
        call = getattr(xpconv, case.function)
        y = call(x, w, case.bias, method=method, layout=layout, fill_value=case.fill, **options)
    np.testing.assert_array_equal(y, expected)


PADDINGS = [{"padding_mode": mode} for mode in ("zeros", "edge", "reflect", "symmetric", "wrap")]
PADDINGS.append({"padding_mode": "constant", "fill_value": 3.0})


@pytest.mark.usefixtures("by_numpy")
@pytest.mark.parametrize("options", PADDINGS)
@pytest.mark.parametrize("method", ["gemm", "winograd", "direct", "fft"])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_method_in_pieces_agrees_with_itself(method, layout, dtype, options, cut):
    rng = np.random.default_rng(3)
    x, w, bias = (integers(rng, shape, dtype) for shape in ((3, 20, 22, 4), (3, 3, 4, 6), (6,)))
    if layout == "channels_first":
        x, w = np.ascontiguousarray(np.moveaxis(x, -1, 1)), w.transpose(-1, -2, 0, 1)
    call = {"padding": ((4, 2), (0, 25)), "method": method, "layout": layout, "activation": "tanh", **options}
    whole = xpconv.corr(x, w, bias, **call)
    assert not cut
    rounding = 1e-3 if dtype == "float16" else 2e-4 if dtype == "float32" else 1e-9
    for limit in (40_000, 10_000):
        with xpconv.workspace_limit(limit):
            np.testing.assert_allclose(xpconv.corr(x, w, bias, **call), whole, atol=rounding)
            out = np.empty_like(whole)
            assert xpconv.corr(x, w, bias, out=out, **call) is out
            np.testing.assert_allclose(out, whole, atol=rounding)
    plain = options["padding_mode"] == "zeros" and layout == "channels_last" and dtype != "float16"
    assert cut or (plain and method != "direct")
    assert max(cut, default=2) > 1


@pytest.mark.usefixtures("by_numpy")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_the_windows_that_hold_it(bad, cut):
    x, w = np.ones((2, 40, 40, 8), np.float32), np.ones((15, 15, 8, 8), np.float32)
    x[1, 17, 23, 3] = bad
    with xpconv.workspace_limit(400_000):
        y = xpconv.corr(x, w, padding="same", padding_mode="reflect")
    assert cut
    assert np.isfinite(y[0]).all()
    reached = np.zeros((40, 40), bool)
    reached[10:25, 16:31] = True
    np.testing.assert_array_equal(~np.isfinite(y[1]).all(axis=-1), reached)


@given(
    st.integers(1, 12), st.integers(0, 30), st.integers(0, 30),
    st.sampled_from(["edge", "reflect", "symmetric", "wrap"]), st.data(),
)  # fmt: skip
def test_runs_put_every_element_of_a_padded_axis_in_its_place(n, before, after, mode, data):
    source = padding_source(np, n, before, after, mode)
    first = data.draw(st.integers(0, len(source) - 1))
    source = source[first : data.draw(st.integers(first + 1, len(source)))]
    axis, found = np.arange(n), np.full(len(source), -1)
    for places, read in piecewise.runs(source):
        found[places] = axis[read]
    np.testing.assert_array_equal(found, source)


@pytest.mark.parametrize("held", [10, 100, 1000, 7000, 30_000])
def test_pieces_hold_no_more_than_the_limit_and_make_every_result_once(held):
    spec = xpconv.corr.request(np.ones((3, 9, 8, 2)), np.ones((3, 3, 2, 2)), padding=1, stride=(1, 2)).spec

    def nbytes(part):
        return math.prod(part.y_shape)

    found = pieces.cut(spec, nbytes, held)
    if held >= math.prod(spec.y_shape):
        assert found is None
        return
    made = np.zeros(spec.y_shape, int)
    for piece in found:
        part = pieces.part_of_piece(spec, piece)
        there = made[piece.images, *piece.places]
        there += 1
        assert there.shape == part.y_shape
        assert part.padded_size == part.size
        assert nbytes(part) <= max(held, cuts.SHORT_BYTES)
    assert (made == 1).all()


def test_pieces_of_a_row_leave_results_to_be_joined():
    spec = xpconv.corr.request(np.ones((1, 4, 10_000, 1)), np.ones((3, 5, 1, 4))).spec
    found = pieces.cut(spec, lambda part: math.prod(part.y_shape), 2000)
    parts = {pieces.part_of_piece(spec, piece) for piece in found[:-1]}
    assert {joined.results(part) for part in parts} == {6}


@pytest.mark.usefixtures("by_numpy")
def test_a_stride_is_cut_once(monkeypatch):
    gy, w = np.ones((8, 16, 20, 20), np.float32), np.ones((16, 16, 3, 3), np.float32)
    options = {"stride": 2, "padding": 1, "size": (40, 40), "layout": "channels_first"}
    whole, counts, of_input = xpconv.corr_grad_input(gy, w, **options), [], gradient_pieces.of_input

    def counted(*arguments):
        counts.append(of_input(*arguments))
        return counts[-1]

    monkeypatch.setattr(gradient_pieces, "of_input", counted)
    with xpconv.workspace_limit(1_000_000):
        np.testing.assert_allclose(xpconv.corr_grad_input(gy, w, **options), whole, rtol=1e-5)
    assert [len(parts) for parts in counts] == [4]


@pytest.mark.parametrize("limit", [1, 1 << 20, 1 << 30])
def test_a_transpose_of_nothing_has_one_shape(limit):
    with xpconv.workspace_limit(limit):
        y = xpconv.corr_transpose(np.zeros((1, 0, 1, 4), "float32"), np.ones((5, 6, 4, 4), "float32"), stride=(2, 3))
    assert y.shape == (1, 3, 6, 4)


def test_what_no_piece_keeps_to_is_left_whole():
    spec = xpconv.corr.request(np.ones((3, 9, 8, 2)), np.ones((3, 3, 2, 2))).spec
    assert pieces.cut(spec, lambda _: 1 << 30, 1 << 20) is None


@pytest.mark.usefixtures("by_numpy")
def test_a_plan_tells_of_the_largest_piece():
    x, w = np.ones((2, 300, 300, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    with xpconv.workspace_limit(LIMIT):
        told = xpconv.explain(xpconv.corr, x, w, padding="same", padding_mode="wrap", method="gemm")
    assert told.tile.startswith("1 of 2 images, ")
    assert " of 300 rows: " in told.tile
    assert told.workspace <= LIMIT


@pytest.mark.usefixtures("by_numpy")
@given(
    conv_cases(dtypes=(np.float32, np.float64, np.int32), modes=("zeros", "edge", "reflect", "symmetric", "wrap")),
    st.sampled_from(["channels_last", "channels_first"]),
    st.sampled_from([1, 200, 1000]),
)
def test_gradients_in_pieces_are_those_of_the_whole(case, layout, limit):
    x, w, y = case.x, case.w, case.expected()
    if layout == "channels_first":
        x, y = np.moveaxis(x, -1, 1), np.moveaxis(y, -1, 1)
        w = w.transpose(-1, -2, *range(w.ndim - 2))
    size, window = case.x.shape[1:-1], case.w.shape[:-2]
    inputs, weights = (getattr(xpconv, f"{case.function}_grad_{side}") for side in ("input", "weight"))

    def gradients():
        return inputs(y, w, size=size, layout=layout, **case.options), weights(
            x, y, window=window, layout=layout, **case.options
        )

    whole = gradients()
    with xpconv.workspace_limit(limit):
        for some, expected in zip(gradients(), whole, strict=True):
            np.testing.assert_array_equal(some, expected)


@pytest.mark.usefixtures("by_numpy")
@given(
    pool_cases(dtypes=(np.float32, np.float64, np.float16)),
    st.sampled_from(["channels_last", "channels_first"]),
    st.sampled_from([1, 100, 500]),
)
def test_poolings_in_pieces_are_those_of_the_whole(case, layout, limit):
    x = case.x if layout == "channels_last" else np.moveaxis(case.x, -1, 1)
    options = {**case.options, "layout": layout}
    window = options.pop("window")
    patches = {name: value for name, value in options.items() if name != "ceil_mode"}

    def results():
        yield xpconv.max_pool(x, window, **options)
        yield xpconv.avg_pool(x, window, **options)
        yield xpconv.lp_pool(x, window, **options)
        yield from xpconv.max_pool(x, window, return_indices=True, **options)
        unfolded = xpconv.unfold(x, window, **patches)
        yield unfolded
        yield xpconv.fold(unfolded, size=case.x.shape[1:-1], window=window, **patches)
        yield xpconv.adaptive_avg_pool(x, 1, layout=layout)
        yield xpconv.avg_pool_grad(xpconv.avg_pool(x, window, **options), window, size=case.x.shape[1:-1], **options)

    whole = list(results())
    with xpconv.workspace_limit(limit):
        for some, expected in zip(results(), whole, strict=True):
            np.testing.assert_array_equal(some, expected)


@pytest.mark.usefixtures("by_numpy")
@pytest.mark.parametrize("merge", ["max_pool", "avg_pool", "lp_pool"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_long_windows_are_merged_in_pieces(merge, dtype):
    x = integers(np.random.default_rng(5), (2, 40, 50, 3), dtype)
    pool = getattr(xpconv, merge)
    whole = pool(x, (15, 17), stride=(1, 2), padding=((3, 4), (2, 0)))
    with xpconv.workspace_limit(20_000):
        some = pool(x, (15, 17), stride=(1, 2), padding=((3, 4), (2, 0)))
    np.testing.assert_allclose(some, whole, rtol=1e-3 if dtype == "float16" else 1e-6)
