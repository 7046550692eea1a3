"""Which part of which block each chunk needs, against plain enumeration."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xpconv.chunks import borders, rims, runs, windows
from xpconv.chunks.channels import meetings, whole_groups
from xpconv.spec import pool_spec
from xpconv.spec.windows import ConvSpec


@st.composite
def cuts(draw, least=1, most=12):
    """The edges of an axis in blocks."""
    n = draw(st.integers(least, most))
    inner = draw(st.sets(st.integers(1, n - 1))) if n > 1 else set()
    return (0, *sorted(inner), n)


def taken(part, edges):
    """The positions on the whole axis that the runs of a part stand for."""
    places = []
    for block, start, step, count in part:
        local = [start + step * i for i in range(count)]
        assert all(0 <= p < edges[block + 1] - edges[block] for p in local)
        places += [edges[block] + p for p in local]
    return places


@given(edges=cuts(), data=st.data())
def test_a_part_is_its_elements_in_order(edges, data):
    first = data.draw(st.integers(0, edges[-1]))
    stop = data.draw(st.integers(first, edges[-1]))
    assert taken(runs.part_of(first, stop, edges), edges) == list(range(first, stop))
    places = data.draw(st.lists(st.integers(0, edges[-1] - 1)))
    assert taken(runs.part_at(places, edges), edges) == places


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@given(edges=cuts(most=6), before=st.integers(0, 20), after=st.integers(0, 20), data=st.data())
def test_padding_repeats_what_numpy_repeats(mode, edges, before, after, data):
    n = edges[-1]
    expected = np.pad(np.arange(n), (before, after), mode=mode)
    first = data.draw(st.integers(-before, n + after - 1))
    stop = data.draw(st.integers(first + 1, n + after))
    part = borders.padded_part(first, stop, edges, mode)
    assert taken(part, edges) == expected[first + before : stop + before].tolist()


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
@given(edges=cuts(most=6), before=st.integers(0, 9), after=st.integers(0, 9), data=st.data())
def test_what_fell_on_the_padding_goes_back_once(mode, edges, before, after, data):
    n = edges[-1]
    padded = before + n + after
    padded_edges = (0, *sorted(data.draw(st.sets(st.integers(1, max(padded - 1, 1)))) - {padded}), padded)
    values = np.arange(padded) ** 2
    expected = np.zeros(n, int)
    np.add.at(expected, np.pad(np.arange(n), (before, after), mode=mode), values)
    folds = borders.folded(edges, (before, after), mode, padded_edges)
    for fold, first, stop in zip(folds, edges, edges[1:], strict=False):
        gathered = values[taken(fold.part, padded_edges)]
        assert fold.size == stop - first
        chunk = gathered[: fold.size].copy()
        np.add.at(chunk, list(fold.targets), gathered[fold.size :])
        np.testing.assert_array_equal(chunk, expected[first:stop])


@st.composite
def sliding(draw):
    """A window along one axis, and the edges of the axis' blocks."""
    edges = draw(cuts())
    window, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    assume(edges[-1] + sum(padding) >= (window - 1) * dilation + 1)
    spec = ConvSpec(
        "channels_last", 1, 1, (edges[-1],), (window,), (stride,), (dilation,), (padding,), 1, 1, False, "zeros"
    )
    return spec, edges


@given(case=sliding())
def test_every_result_reads_what_its_window_covers(case):
    spec, edges = case
    results = windows.result_edges(spec, 0, edges)
    assert all(first < stop for first, stop in pairwise(results))
    (before, _), n = spec.padding[0], spec.size[0]
    whole = [None] * before + list(range(n)) + [None] * spec.padding[0][1]
    for reading, first, stop in zip(windows.readings(spec, 0, edges, results), results, results[1:], strict=False):
        left, right = reading.padding
        local = [None] * left + taken(reading.part, edges) + [None] * right
        assert reading.size == len(local) - left - right
        expected = whole[first * spec.stride[0] : (stop - 1) * spec.stride[0] + spec.reach[0]]
        assert local == expected
        assert not reading.size or reading.start == taken(reading.part, edges)[0]


@given(case=sliding(), data=st.data())
def test_every_window_that_reaches_a_chunk_is_given_to_it(case, data):
    spec, edges = case
    out, (before, _) = spec.out_size[0], spec.padding[0]
    inner = data.draw(st.sets(st.integers(1, out - 1))) if out > 1 else set()
    results = (0, *sorted(inner), out)
    for reach, first, stop in zip(windows.reaches(spec, 0, edges, results), edges, edges[1:], strict=False):
        given_results = list(range(*reach.results))
        assert taken(reach.part, results) == given_results
        expected, made = np.zeros((2, stop - first))
        for i in range(out):
            for k in range(spec.window[0]):
                place = i * spec.stride[0] + k * spec.dilation[0] - before
                if first <= place < stop:
                    expected[place - first] += 10.0**k * (i + 1)
        for local, i in enumerate(given_results):
            for k in range(spec.window[0]):
                place = local * spec.stride[0] + k * spec.dilation[0] - reach.padding[0]
                if 0 <= place < reach.size:
                    made[place] += 10.0**k * (i + 1)
        if given_results:
            span = (len(given_results) - 1) * spec.stride[0] + spec.reach[0]
            assert 0 <= reach.padding[0] < span  # what is cropped is less than there is
            assert sum(reach.padding) + reach.size == span
        np.testing.assert_array_equal(made, expected)


def test_a_chunk_between_two_windows_is_reached_by_none():
    apart = ConvSpec("channels_last", 1, 1, (1,), (1,), (3,), (1,), ((2, 2),), 1, 1, False)
    assert [reach.results for reach in windows.reaches(apart, 0, (0, 1), (0, 2))] == [(0, 0)]


def test_what_ceil_mode_reads_beyond_the_padding_is_not_padding():
    spec, _ = pool_spec(
        (1, 7, 1), name="pool", window=(3,), stride=(3,), padding=((1, 0),), dilation=(1,), ceil_mode=True,
        layout="channels_last", plain=False,
    )  # fmt: skip
    assert spec.out_size == (3,)
    last = windows.readings(spec, 0, (0, 4, 7), (0, 2, 3))[-1]
    assert (last.size, last.padding) == (2, (0, 0))


def test_results_stay_with_the_block_in_the_middle_of_their_window():
    same = ConvSpec("channels_last", 1, 1, (300,), (5,), (1,), (1,), ((2, 2),), 1, 1, False)
    assert windows.result_edges(same, 0, (0, 100, 200, 300)) == (0, 100, 200, 300)
    halved = ConvSpec("channels_last", 1, 1, (300,), (2,), (2,), (1,), ((0, 0),), 1, 1, False)
    assert windows.result_edges(halved, 0, (0, 100, 200, 300)) == (0, 50, 100, 150)


@given(case=sliding())
def test_rims_hold_what_other_chunks_read(case):
    spec, edges = case
    sizes = runs.sizes_of(edges)
    parts = [reading.part for reading in windows.readings(spec, 0, edges, windows.result_edges(spec, 0, edges))]
    strips = rims.strips_of(parts, sizes)
    for part in parts:
        for run in part:
            if run.block != rims.home_of(part) and strips[run.block] and run.count:
                first, stop = rims.span_of(run)
                assert any(start <= first and stop <= end for start, end in strips[run.block])
    assert all(2 * sum(end - start for start, end in own) <= n for own, n in zip(strips, sizes, strict=True))


def test_filters_meet_the_channels_of_their_groups():
    met = meetings((0, 4, 6), (0, 5, 9), groups=3)  # 2 channels and 3 filters a group
    assert [m.filters for m in met] == [(0, 3), (3, 5), (5, 6), (6, 9)]
    assert [m.channels for m in met] == [(0, 2), (2, 4), (2, 4), (4, 6)]
    assert [m.maps.groups for m in met] == [1, 1, 1, 1]
    assert [m.maps for m in meetings((0, 6), (0, 9), groups=3)] == [(6, 9, 3)]
    assert [m.channels for m in whole_groups(6, (0, 3, 5, 9), groups=3)] == [(0, 2), (2, 6)]
