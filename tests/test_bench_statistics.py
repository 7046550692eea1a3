"""What `xpconv bench` makes of samples, and how it takes them."""

import numpy as np
import pytest

from xpconv.bench import statistics, timing

ROUNDS = [{"xpconv": 1.0, "torch": 3.0, "onnxruntime": 2.0}, {"xpconv": 2.0, "torch": 2.0, "onnxruntime": 8.0},
          {"xpconv": 1.0, "torch": 4.0, "onnxruntime": 5.0}]  # fmt: skip


def test_a_ratio_is_that_of_the_best_peer_in_the_round():
    assert statistics.ratios(ROUNDS, "xpconv", ["torch", "onnxruntime"]) == [2.0, 1.0, 4.0]
    assert statistics.ratios(ROUNDS, "xpconv", ["torch"]) == [3.0, 1.0, 4.0]
    assert statistics.ratios(ROUNDS, "xpconv", []) == []


def test_medians_are_taken_over_the_rounds():
    assert statistics.medians(ROUNDS) == {"xpconv": 1.0, "torch": 3.0, "onnxruntime": 5.0}
    assert statistics.medians([]) == {}


def test_the_spread_goes_from_the_tenth_to_the_ninetieth_percentile():
    values = [5.0, 1.0, 2.0, 9.0, 4.0]
    np.testing.assert_allclose(statistics.spread(values), np.quantile(values, [0.1, 0.9]))
    assert statistics.spread([3.0]) == (3.0, 3.0)


def test_the_mean_of_ratios_is_geometric():
    assert statistics.geometric_mean([0.5, 2.0]) == 1.0
    assert statistics.geometric_mean([]) is None


def test_candidates_take_turns_and_are_woken_before_they_are_timed():
    calls = []
    rounds = []
    candidates = {name: (lambda n, name=name: [lambda: calls.append(name)] * n) for name in "AB"}
    timing.measure(candidates, 2, rounds, rest=0, batch=1e-9)
    assert "".join(calls) == "AABB" + "AABB" * 2
    assert [list(taken) for taken in rounds] == [["A", "B"]] * 2


def test_an_interrupted_round_does_not_count():
    def interrupt():
        raise KeyboardInterrupt

    rounds, made = [], iter([*[int] * 6, interrupt, int])
    with pytest.raises(KeyboardInterrupt):
        timing.measure({"A": lambda n: [next(made) for _ in range(n)]}, 9, rounds, rest=0, batch=1e-9)
    assert len(rounds) == 2


def test_no_round_begins_after_the_time_is_up():
    rounds, left = [], iter([1, 1, 0])
    timing.measure({"A": lambda n: [int] * n}, 9, rounds, time_left=lambda: next(left), rest=0, batch=1e-9)
    assert len(rounds) == 2
