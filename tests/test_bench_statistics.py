"""What `xpconv bench` makes of samples, and how it takes them."""

import math

import numpy as np
import pytest

from xpconv.bench import compare, statistics, timing

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


# --- How sure a median is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (3, 1), (6, 1), (8, 1), (9, 2), (12, 3), (17, 5)])
def test_the_interval_of_a_median_is_that_of_the_binomial_distribution(count, rank):
    values = list(range(1, count + 1))
    assert statistics.median_interval(values) == (rank, count + 1 - rank)
    tail = sum(math.comb(count, k) for k in range(rank)) / 2**count
    assert 2 * tail <= 0.05 or rank == 1


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = statistics.median_interval(rng.exponential(size=9).tolist())
        held += low <= math.log(2) <= high
    assert held / 2000 == pytest.approx(0.961, abs=0.015)


def test_the_deviation_is_that_of_the_bulk():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 4000).tolist()
    assert statistics.deviation(values) == pytest.approx(2, rel=0.1)
    assert statistics.deviation([*values, *[1e6] * 40]) == pytest.approx(2, rel=0.1)


# --- Two runs ---------------------------------------------------------------------------------------------------------

RUNS = 100
PLANTED = ("3", "7", "11", "15")  # the rows of a function that became slower


def made_up(seed, *, speed=1.0, planted=1.0, drift=0.015, rivals=("torch", "onnxruntime"), count=32):
    """A run of so many rows: rounds in which all slow down together, spikes, and what differs between processes."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        name, base = str(row), 10 ** (-5 + 4 * row / count) * speed
        own = {side: base * np.exp(rng.normal(0, drift)) for side in ("xpconv", *rivals)}
        own["xpconv"] *= planted if name in PLANTED else 1
        rounds = []
        for _ in range(9):
            shared = np.exp(rng.normal(0, 0.01)) * (1.4 if rng.random() < 0.03 else 1)
            rounds.append({side: t * shared * np.exp(abs(rng.normal(0, 0.01))) for side, t in own.items()})
        rows.append({"key": name, "device": "cpu", "rivals": {side: {} for side in rivals}, "rounds": rounds})
    fast = {"matrix_gflops": {"float32": 100 / speed * np.exp(rng.normal(0, drift))}, "copy_gbs": 20 / speed}
    return {"begun": "", "machine": {}, "asked": {}, "devices": {"cpu": {"limits": fast}}, "rows": rows}


@pytest.mark.parametrize("rivals", [("torch", "onnxruntime"), ("torch",), ()])
def test_an_unchanged_run_is_not_flagged_however_fast_the_machine_is_that_day(rivals):
    flagged = 0
    for seed in range(RUNS):
        runs = made_up(2 * seed, rivals=rivals), made_up(2 * seed + 1, rivals=rivals, speed=1.3)
        found = compare.compare(*runs)
        flagged += len(found.of("slower")) + len(found.of("faster"))
    assert flagged / (RUNS * 32) < 0.002


@pytest.mark.parametrize("rivals", [("torch", "onnxruntime"), ("torch",), ()])
def test_a_slow_down_of_a_fifth_is_flagged_in_its_rows(rivals):
    found = missed = 0
    for seed in range(RUNS):
        before, after = made_up(2 * seed, rivals=rivals), made_up(2 * seed + 1, rivals=rivals, speed=0.8, planted=1.2)
        slower = {change.key for change in compare.compare(before, after).of("slower")}
        found += len(slower & set(PLANTED))
        missed += not slower & set(PLANTED)
        faster = compare.compare(after, before).of("faster")
        assert {change.key for change in faster} & set(PLANTED) or not slower & set(PLANTED)
    assert missed == 0
    assert found / (RUNS * len(PLANTED)) > 0.75


def row_of(key, *seconds, **rivals):
    rounds = [{"xpconv": s, **rivals} for s in seconds]
    return {"key": key, "device": "cpu", "ms": 1, "rivals": rivals, "rounds": rounds, "method": "direct"}


def run_of(*rows, **limits):
    return {"machine": {}, "asked": {}, "devices": {"cpu": {"limits": limits}}, "rows": list(rows)}


def test_the_machines_factor_is_that_of_the_rivals_and_else_that_of_its_limits():
    steady = [1.0] * 9
    before, after = run_of(row_of("a", *steady, torch=1.0)), run_of(row_of("a", *steady, torch=2.0))
    (change,) = compare.compare(before, after).changes
    assert change.times == pytest.approx(0.5)
    assert change.verdict == "faster"
    before, after = (run_of(row_of("a", *steady), copy_gbs=gbs, matrix_gflops={"float32": gbs}) for gbs in (20, 10))
    found = compare.compare(before, after)
    assert found.changes[0].times == pytest.approx(0.5)
    assert "its matrix products and copies" in str(found.machines["cpu"])


def test_a_change_within_the_intervals_or_below_five_percent_is_none():
    wide = [1, 1, 1, 1, 1.1, 1.6, 1.6, 1.6, 1.6], [1.2, 1.2, 1.2, 1.2, 1.4, 2, 2, 2, 2]
    low = [1.0] * 9, [1.04] * 9
    before, after = (
        run_of(row_of("wide", *wide[i], torch=1.0), row_of("low", *low[i], torch=1.0)) for i in range(2)
    )  # fmt: skip
    assert {change.verdict for change in compare.compare(before, after).changes} == {"same"}


def test_what_disturbed_the_rivals_of_a_row_as_well_was_not_the_code():
    quiet = [row_of(str(i), *[1.0] * 9, torch=1.0, jax=1.0) for i in range(20)]
    disturbed = [row_of("0", *[2.0] * 9, torch=2.5, jax=1.9), *quiet[1:]]
    assert {change.verdict for change in compare.compare(run_of(*quiet), run_of(*disturbed)).changes} == {"same"}
    slower = [row_of("0", *[2.0] * 9, torch=1.0, jax=1.1), *quiet[1:]]
    found = compare.compare(run_of(*quiet), run_of(*slower))
    assert [change.key for change in found.of("slower")] == ["0"]
    assert [change.key for change in compare.compare(run_of(*slower), run_of(*quiet)).of("faster")] == ["0"]


def test_few_rounds_prove_nothing_and_rows_of_one_run_are_named():
    before = run_of(row_of("a", 1.0, 1.0, torch=1.0), row_of("gone", 1.0, torch=1.0))
    after = run_of(row_of("a", 9.0, 9.0, torch=1.0), row_of("new", 1.0, torch=1.0))
    found = compare.compare(before, after)
    assert [change.verdict for change in found.changes] == ["too few rounds"]
    assert (found.missing, found.added) == (("gone",), ("new",))


def test_other_versions_are_a_warning():
    before, after = run_of(), run_of()
    for found, numpy in ((before, "1"), (after, "2")):
        found["machine"] = {"packages": {"numpy": numpy, "torch": "2"}}
    assert compare.compare(before, after).warnings == ("packages differ: numpy 1 before, numpy 2 now",)


def test_a_layer_that_the_machine_treats_otherwise_is_no_change_of_ours():
    steady, others = [1.0] * 9, [row_of(str(i), *[1.0] * 9, torch=1.0) for i in range(20)]
    before = run_of(row_of("a", *steady, torch=1.0), *others)
    alone, with_its_rival = (run_of(row_of("a", *[1.3] * 9, torch=torch), *others) for torch in (1.0, 0.6))
    assert [change.key for change in compare.compare(before, alone).of("slower")] == ["a"]
    assert not compare.compare(before, with_its_rival).of("slower")


def test_a_row_that_copies_limit_has_more_noise():
    steady = [row_of(str(i), *[1.0] * 9, torch=1.0) for i in range(20)]
    copies = [row_of("c", *[seconds] * 9, torch=1.0) | {"limit": "copy"} for seconds in (1.0, 1.25, 1.5)]
    before, after, far = (run_of(row, *steady) for row in copies)
    assert not compare.compare(before, after).of("slower")
    assert [change.key for change in compare.compare(before, far).of("slower")] == ["c"]
