"""Are figures condensed and compared as the textbook says?"""

import itertools
import math
from statistics import fmean, stdev

import msgspec
import numpy as np
import pytest
from scipy import stats

from benchmark.cells import CellResult
from benchmark.statistics import EXACT_PAIRS, Spread, compare, paired_test, spread, unrest
from tests.benchmark.made_up_grid import accuracy, cell, round_of, simple


def check_spread(found: Spread | None, mean: float, sd: float | None, n: int) -> None:
    assert found is not None
    assert found.n == n
    assert found.mean == pytest.approx(mean)
    assert found.sd == (None if sd is None else pytest.approx(sd))


def test_a_spread_is_that_of_a_sample_and_skips_what_was_not_measured() -> None:
    check_spread(spread([0.2, None, 0.4, 0.6]), 0.4, 0.2, 3)
    assert spread([0.2, None]) == Spread(mean=0.2, sd=None, n=1)
    assert spread([None]) is None


def flips_by_hand(differences: list[float]) -> float:
    """Every way to swap pairs, counted; both tails."""
    means = [
        fmean(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    high = sum(mean >= fmean(differences) - 1e-12 for mean in means)
    low = sum(mean <= fmean(differences) + 1e-12 for mean in means)
    return min(1.0, 2 * min(high, low) / len(means))


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_sign_flip_test_is_exact_for_few_pairs(n: int) -> None:
    draw = np.random.default_rng(n)
    a, b = draw.normal(0.3, 0.2, n).tolist(), draw.normal(0.2, 0.2, n).tolist()
    test = paired_test(a, b)
    expected = flips_by_hand([left - right for left, right in zip(a, b, strict=True)])
    assert test.sign_flip_p == pytest.approx(expected)


def test_one_sided_differences_reach_the_smallest_p_that_the_pairs_allow() -> None:
    assert paired_test([0.5, 0.6, 0.7], [0.1, 0.3, 0.2]).sign_flip_p == pytest.approx(2 / 2**3)
    more = EXACT_PAIRS + 4
    drawn = paired_test([0.5 + 0.01 * k for k in range(more)], [0.1] * more)
    assert drawn.sign_flip_p is not None and drawn.sign_flip_p < 0.001


def test_the_t_test_is_the_one_of_the_textbook() -> None:
    a, b = [0.31, 0.36, 0.33, 0.39], [0.30, 0.31, 0.32, 0.30]
    test = paired_test(a, b)
    differences = [left - right for left, right in zip(a, b, strict=True)]
    t = fmean(differences) / (stdev(differences) / math.sqrt(4))
    assert test.t_p == pytest.approx(2 * stats.t.sf(t, df=3))
    check_spread(test.difference, 0.04, stdev(differences), 4)


def test_too_little_is_not_tested() -> None:
    assert paired_test([], []).difference is None
    one = paired_test([0.5], [0.4])
    check_spread(one.difference, 0.1, None, 1)
    assert one.t_p is None and one.sign_flip_p is None
    same = paired_test([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert same.t_p is None and same.sign_flip_p == pytest.approx(0.25)
    with pytest.raises(ValueError, match="zip"):
        paired_test([0.5], [])


def two_methods() -> list[CellResult]:
    return [
        simple("a", 0, {"x": {"global": 0.50}, "y": {"global": 0.30}}),
        simple("a", 1, {"x": {"global": 0.60}, "y": {"global": 0.20}}),
        simple("a", 2, {"x": {"global": 0.90}, "y": {"global": 0.90}}),
        simple("b", 0, {"x": {"global": 0.40}, "y": {"global": 0.20}}),
        simple("b", 1, {"x": {"global": 0.30}, "y": {"global": 0.10}}),
    ]


def test_methods_are_compared_over_the_seeds_that_both_have() -> None:
    by_seed = compare(two_methods(), "a", "b", scenario="by-dataset", model="global", metric="map")
    assert by_seed.seeds == (0, 1)
    assert by_seed.test.a == pytest.approx((0.4, 0.4))
    assert by_seed.test.b == pytest.approx((0.3, 0.2))
    by_silo = compare(
        two_methods(),
        "a",
        "b",
        scenario="by-dataset",
        model="global",
        metric="rank1",
        unit="silo",
    )
    assert by_silo.test.a == pytest.approx((0.5, 0.3, 0.6, 0.2))
    assert by_silo.test.difference is not None
    assert by_silo.test.difference.mean == pytest.approx(0.15)


def test_a_silo_that_one_side_did_not_measure_is_left_out_of_the_pair() -> None:
    cells = [
        simple("a", 0, {"x": {"global": 0.50}, "y": {"global": 0.90}}),
        simple("b", 0, {"x": {"global": 0.40}}),
    ]
    found = compare(cells, "a", "b", scenario="by-dataset", model="global", metric="map")
    assert (found.test.a, found.test.b) == ((0.5,), (0.4,))


def test_a_baseline_takes_part_with_its_one_model() -> None:
    cells = [
        simple("a", 0, {"x": {"local": 0.50, "global": 0.1}}),
        simple("alone", 0, {"x": {"standalone": 0.40}}, kind="standalone"),
        simple("all", 0, {"x": {"global": 0.70}}, kind="centralised"),
    ]
    for other, expected in (("alone", 0.4), ("all", 0.7)):
        found = compare(cells, "a", other, scenario="by-dataset", model="local", metric="map")
        assert (found.test.a, found.test.b) == ((0.5,), (expected,))


def run_of(values: dict[str, list[float]], seed: int = 0) -> CellResult:
    length = len(next(iter(values.values())))
    rounds = tuple(
        round_of(
            index + 1, {silo: {"global": accuracy(row[index])} for silo, row in values.items()}
        )
        for index in range(length)
    )
    return cell("a", seed, rounds)


def test_unrest_is_of_the_last_ten_rounds_averaged_over_silos_and_seeds() -> None:
    calm, zigzag = [0.0, 0.9] + [0.5] * 10, [0.9, 0.0] + [0.4, 0.6] * 5
    found = unrest(
        [run_of({"x": calm, "y": zigzag}), run_of({"x": calm, "y": calm}, 1)], "global", "rank1"
    )
    assert found is not None
    assert found.fluctuation == pytest.approx(stdev([0.4, 0.6] * 5) / 4)
    assert found.step == pytest.approx(0.2 / 4)
    check_spread(found.level, 0.5, 0.0, 2)
    assert found.rounds == 10


def test_unrest_needs_two_measured_rounds() -> None:
    assert unrest([run_of({"x": [0.5]})], "global", "rank1") is None
    assert unrest([run_of({"x": [0.5, 0.6]})], "local", "rank1") is None
    pair = unrest([run_of({"x": [0.5, 0.6]})], "global", "rank1")
    assert pair is not None and pair.rounds == 2
    assert pair.step == pytest.approx(0.1)


def test_rounds_that_were_not_measured_do_not_count() -> None:
    whole = run_of({"x": [0.1, 0.5, 0.5, 0.7]})
    gap = msgspec.structs.replace(whole.rounds[2], evaluations={})
    found = unrest(
        [msgspec.structs.replace(whole, rounds=(*whole.rounds[:2], gap, whole.rounds[3]))],
        "global",
        "rank1",
    )
    assert found is not None
    assert found.rounds == 3
    assert found.step == pytest.approx((0.4 + 0.2) / 2)
