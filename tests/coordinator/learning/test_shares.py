"""Do the silos' shares follow the plan's weighting, and is no share ever out of bounds?"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from coordinator.learning.jobs import Contribution
from coordinator.learning.shares import capped, falls_back, shares
from fedreid.errors import UpdateRefused
from fedreid.plan import AggregationPlan, Weighting


def contribution(silo: str, distance: float = 0.1, images: int = 100) -> Contribution:
    return Contribution(
        silo=silo, path="", num_images=images, num_steps=1, cosine_distance=distance
    )


THREE = [contribution("c", 0.3, 200), contribution("a", 0.2, 100), contribution("b", 0.5, 700)]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("cosine", {"a": 0.2, "b": 0.5, "c": 0.3}),
        ("samples", {"a": 0.1, "b": 0.7, "c": 0.2}),
        ("uniform", {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ("blend", {"a": 20 / 430, "b": 350 / 430, "c": 60 / 430}),
    ],
)
def test_each_weighting_is_what_its_formula_says(
    weighting: Weighting, expected: dict[str, float]
) -> None:
    plan = AggregationPlan(weighting=weighting, max_share=1.0)
    assert shares(THREE, plan) == pytest.approx(expected, rel=1e-12)
    assert list(shares(THREE, plan)) == ["a", "b", "c"]


def test_blend_takes_its_powers_from_the_plan_and_survives_huge_ones() -> None:
    plan = AggregationPlan(weighting="blend", images_power=0.5, distance_power=2.0, max_share=1.0)
    slow = {c.silo: c.num_images**0.5 * c.cosine_distance**2 for c in THREE}
    expected = {silo: score / sum(slow.values()) for silo, score in slow.items()}
    assert shares(THREE, plan) == pytest.approx(expected, rel=1e-12)
    huge = AggregationPlan(weighting="blend", images_power=1e6, max_share=1.0)
    assert shares(THREE, huge)["b"] == 1.0


@pytest.mark.parametrize("weighting", ["cosine", "blend"])
def test_all_zero_distances_fall_back_to_equal_shares_and_say_so(weighting: Weighting) -> None:
    still = [contribution("a", 0.0, 10), contribution("b", 0.0, 90)]
    plan = AggregationPlan(weighting=weighting)
    assert shares(still, plan) == {"a": 0.5, "b": 0.5}
    assert falls_back(still, plan)
    assert not falls_back([*still, contribution("c", 0.1)], plan)
    assert not falls_back(still, AggregationPlan(weighting="samples"))
    assert not falls_back(still, AggregationPlan(weighting="blend", distance_power=0.0))


def test_a_blend_without_distances_is_the_sample_count() -> None:
    plan = AggregationPlan(weighting="blend", distance_power=0.0)
    still = [contribution("a", 0.0, 10), contribution("b", 0.0, 90)]
    assert shares(still, plan) == pytest.approx({"a": 0.1, "b": 0.9})


@pytest.mark.parametrize("distance", [math.nan, math.inf, -1e-9, 2.0000001])
def test_an_inadmissible_distance_is_refused_with_the_silos_name(distance: float) -> None:
    with pytest.raises(UpdateRefused, match="north"):
        shares([contribution("north", distance), contribution("south")], AggregationPlan())


def test_an_update_without_images_is_refused() -> None:
    with pytest.raises(UpdateRefused, match="no images"):
        shares([contribution("a", images=0)], AggregationPlan())


def test_the_cap_scales_up_the_rest_and_repeats_until_stable() -> None:
    assert capped([0.8, 0.1, 0.1], 0.5) == pytest.approx([0.5, 0.25, 0.25])
    # Capping the first lifts the second to 0.45 · 0.6 / 0.5, which is over as well.
    assert capped([0.5, 0.45, 0.03, 0.02], 0.4) == pytest.approx([0.4, 0.4, 0.12, 0.08])


def test_two_silos_are_never_capped() -> None:
    assert capped([0.9, 0.1], 0.5) == [0.9, 0.1]
    assert capped([1.0], 0.5) == [1.0]


def test_a_cap_nobody_can_meet_gives_equal_shares() -> None:
    assert capped([0.9, 0.05, 0.05], 0.3) == [1 / 3] * 3


def test_silos_with_nothing_share_what_the_capped_one_leaves() -> None:
    assert capped([1.0, 0.0, 0.0], 0.5) == [0.5, 0.25, 0.25]


@given(
    some.lists(some.floats(0.0, 2.0, allow_nan=False), min_size=1, max_size=12),
    some.floats(0.01, 1.0),
)
def test_shares_always_sum_to_one_and_obey_the_cap(distances: list[float], cap: float) -> None:
    silos = [contribution(f"s{k:02d}", d) for k, d in enumerate(distances)]
    p_K = list(shares(silos, AggregationPlan(max_share=cap)).values())
    assert sum(p_K) == pytest.approx(1.0, abs=1e-12)
    assert all(p >= 0.0 for p in p_K)
    if len(p_K) > 2:
        assert max(p_K) <= max(cap, 1 / len(p_K)) + 1e-12
