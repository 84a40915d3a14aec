"""Is what is odd flagged, and is nobody honest taken for it?

Letters: K silos, D values of a model.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from coordinator.learning.jobs import Contribution
from coordinator.learning.movement import Movement
from coordinator.learning.side_by_side import DoubleArray
from coordinator.learning.suspicion import Judgement, _against, judge
from fedreid.limits import AGAINST_EXCESS, AGREEMENT, DISTANCE_EXCESS, OUTLIER_EXCESS
from fedreid.plan import AggregationPlan

PLAN = AggregationPlan()
OFF = AggregationPlan(clip_norm_ratio=0.0, screen=False)


def movement_of(changes_KD: DoubleArray, *, moved_D: DoubleArray | None = None) -> Movement:
    moved_D = np.zeros(changes_KD.shape[1]) if moved_D is None else moved_D
    return Movement(
        products_KK=changes_KD @ changes_KD.T,
        norms_K=np.linalg.norm(changes_KD, axis=1),
        along_K=changes_KD @ moved_D,
        moved=float(np.linalg.norm(moved_D)),
        statistics={},
    )


def contributions(
    count: int, *, steps: Sequence[int] = (), distances: Sequence[float] = ()
) -> list[Contribution]:
    return [
        Contribution(
            silo=f"silo-{k}",
            path="",
            num_images=100,
            num_steps=steps[k] if steps else 10,
            cosine_distance=distances[k] if distances else 0.1,
        )
        for k in range(count)
    ]


def judged(
    changes_KD: DoubleArray,
    *,
    plan: AggregationPlan = PLAN,
    steps: Sequence[int] = (),
    distances: Sequence[float] = (),
    moved_D: DoubleArray | None = None,
) -> Judgement:
    silos = contributions(len(changes_KD), steps=steps, distances=distances)
    return judge(silos, movement_of(changes_KD, moved_D=moved_D), plan)


def counted(judgement: Judgement) -> list[str]:
    return [contribution.silo for contribution in judgement.counted]


def honest(count: int, *, agreement: float = 0.0, values: int = 5000) -> DoubleArray:
    """Changes of length 1 whose cosines with each other are about ``agreement``."""
    random = np.random.default_rng(0)
    common_D, own_KD = random.normal(size=values), random.normal(size=(count, values))
    changes_KD = np.sqrt(agreement) * common_D + np.sqrt(1 - agreement) * own_KD
    unit_KD: DoubleArray = changes_KD / np.linalg.norm(changes_KD, axis=1, keepdims=True)
    return unit_KD


@pytest.mark.parametrize("agreement", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_honest_silos_count_as_they_are(count: int, agreement: float) -> None:
    judgement = judged(honest(count, agreement=agreement))
    assert judgement.flags == {}
    assert list(judgement.counted) == contributions(count)
    assert set(judgement.scales.values()) == {1.0}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_silos_of_very_different_sizes_are_honest_however_their_paths_bend(power: float) -> None:
    steps = [240, 120, 60, 40, 3]
    lengths_K = np.array(steps, dtype=np.float64) ** power  # from going in circles to straight on
    judgement = judged(honest(5) * lengths_K[:, None], steps=steps)
    assert judgement.flags == {}
    assert set(judgement.scales.values()) == {1.0}


@pytest.mark.parametrize("attacker", range(5))
@pytest.mark.parametrize("agreement", [0.0, 0.5])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_a_change_turned_round_and_ten_times_as_long_gets_no_share(
    attacker: int, agreement: float, power: float
) -> None:
    steps = [120, 60, 30, 20, 10]
    changes_KD = honest(5, agreement=agreement) * np.array(steps)[:, None] ** power
    changes_KD[attacker] *= -10.0
    judgement = judged(
        changes_KD, steps=steps, distances=[0.1] * attacker + [2.0] + [0.1] * (4 - attacker)
    )
    assert counted(judgement) == [f"silo-{k}" for k in range(5) if k != attacker]
    assert set(judgement.flags) == {f"silo-{attacker}"}
    assert {"distance", "outlier"} <= set(judgement.flags[f"silo-{attacker}"])


def test_a_change_is_shortened_to_the_plans_multiple_of_the_median() -> None:
    changes_KD = honest(5)
    changes_KD[3] *= 2.5
    judgement = judged(changes_KD)
    assert judgement.flags == {"silo-3": ("clipped",)}
    assert judgement.scales["silo-3"] == pytest.approx(0.8)
    assert len(judgement.counted) == 5


def test_with_everything_off_flags_are_told_and_all_counts() -> None:
    changes_KD = honest(5)
    changes_KD[1] *= -10.0
    judgement = judged(changes_KD, plan=OFF, distances=[0.1, 2.0, 0.1, 0.1, 0.1])
    assert judgement.flags == {"silo-1": ("distance", "outlier")}
    assert list(judgement.counted) == contributions(5, distances=[0.1, 2.0, 0.1, 0.1, 0.1])
    assert set(judgement.scales.values()) == {1.0}


def test_a_change_against_others_who_agree_is_an_outlier_if_it_is_long_besides() -> None:
    changes_KD = honest(5, agreement=0.4)
    changes_KD[2] *= -(AGAINST_EXCESS + 0.1)
    judgement = judged(changes_KD)
    assert judgement.flags == {"silo-2": ("outlier",)}
    assert "silo-2" not in counted(judgement)


def test_the_silo_that_pulled_the_model_its_way_counts_when_the_others_pull_it_back() -> None:
    """As in rounds of generated silos: cosines of -0.9 between honest updates."""
    changes_KD = honest(4, agreement=0.9)
    changes_KD[3] *= -1.0
    judgement = judged(changes_KD, steps=[24, 12, 48, 96])
    assert judgement.flags == {}
    assert len(judgement.counted) == 4


def test_changes_that_cancel_out_at_the_end_of_a_run_are_honest() -> None:
    changes_KD = honest(5, agreement=0.2)
    changes_KD -= changes_KD.mean(axis=0)  # each points against the mean of the others
    assert judged(changes_KD).flags == {}


def test_two_silos_are_never_compared() -> None:
    changes_KD = honest(2)
    changes_KD[1] *= -1e6
    judgement = judged(changes_KD, distances=[1e-6, 2.0])
    assert judgement.flags == {}
    assert len(judgement.counted) == 2


def test_silos_that_start_from_different_models_are_never_compared() -> None:
    changes_KD = honest(5)
    changes_KD[1] = changes_KD[0] * -1e6
    plan = AggregationPlan(clustering="finch", clip_norm_ratio=0.0, screen=False)
    assert judged(changes_KD, plan=plan, distances=[2.0, 0.0, 0.0, 0.0, 0.0]).flags == {}


# Cosine distances


@pytest.mark.parametrize(("times", "odd"), [(0.0, False), (9.9, False), (10.1, True)])
def test_a_distance_far_beyond_the_others_is_not_believed(times: float, odd: bool) -> None:
    assert DISTANCE_EXCESS == 10.0
    distances = [0.02, 0.01, 0.01 * times, 0.01, 0.005]
    judgement = judged(honest(5), distances=distances)
    assert judgement.flags == ({"silo-2": ("distance",)} if odd else {})
    believed = {c.silo: c.cosine_distance for c in judgement.counted}
    assert believed["silo-2"] == (0.01 if odd else distances[2])
    assert [believed[f"silo-{k}"] for k in (0, 1, 3, 4)] == [0.02, 0.01, 0.01, 0.005]


def test_a_distance_beside_zeros_is_believed() -> None:
    assert judged(honest(3), distances=[0.0, 0.0, 0.3]).flags == {}


# Free riders


def test_the_base_model_handed_back_is_a_free_riders() -> None:
    changes_KD = honest(5)
    changes_KD[1] = 0.0
    changes_KD[2] *= 0.001
    judgement = judged(changes_KD)
    assert judgement.flags == {"silo-1": ("free_rider",), "silo-2": ("free_rider",)}


@pytest.mark.parametrize("factor", [1.0, 0.1, 3.0, -0.5])
def test_the_last_movement_of_the_model_again_is_a_free_riders(factor: float) -> None:
    changes_KD = honest(4)
    moved_D: DoubleArray = np.random.default_rng(9).normal(size=(changes_KD.shape[1],))
    changes_KD[3] = factor * moved_D / 70.0  # about as long as the others
    flags = judged(changes_KD, moved_D=moved_D).flags
    assert set(flags) == {"silo-3"} and "free_rider" in flags["silo-3"]


def test_going_on_in_the_models_direction_is_honest() -> None:
    changes_KD = honest(4, agreement=0.3)
    moved_D: DoubleArray = changes_KD.mean(axis=0)
    assert judged(changes_KD, moved_D=moved_D).flags == {}


@pytest.mark.parametrize("count", [2, 5])
def test_one_update_sent_by_two_is_a_free_riders_and_both_are_flagged(count: int) -> None:
    changes_KD = honest(count)
    changes_KD[1] = changes_KD[0]
    assert judged(changes_KD).flags == {"silo-0": ("free_rider",), "silo-1": ("free_rider",)}


# Any round


@settings(deadline=None)
@given(
    lengths=some.lists(some.just(0.0) | some.floats(1e-6, 1e6), min_size=1, max_size=8),
    turned=some.sets(some.integers(0, 7)),
    agreement=some.floats(0.0, 1.0),
    distances=some.lists(some.floats(0.0, 2.0), min_size=8, max_size=8),
    steps=some.lists(some.integers(1, 10_000), min_size=8, max_size=8),
    ratio=some.just(0.0) | some.floats(0.01, 10.0),
)
def test_whatever_is_sent_somebody_counts_and_nobody_for_more_than_they_sent(
    lengths: list[float],
    turned: set[int],
    agreement: float,
    distances: list[float],
    steps: list[int],
    ratio: float,
) -> None:
    changes_KD = honest(len(lengths), agreement=agreement, values=50) * np.array(lengths)[:, None]
    changes_KD[[k for k in turned if k < len(lengths)]] *= -1.0
    plan = AggregationPlan(clip_norm_ratio=ratio)
    judgement = judged(
        changes_KD, plan=plan, steps=steps[: len(lengths)], distances=distances[: len(lengths)]
    )
    assert judgement.counted
    assert all(0.0 < scale <= 1.0 for scale in judgement.scales.values())
    before = dict(zip(counted(judged(changes_KD, plan=OFF)), distances, strict=False))
    for contribution in judgement.counted:
        assert contribution.cosine_distance <= before[contribution.silo]
    outliers = {silo for silo, flags in judgement.flags.items() if "outlier" in flags}
    assert len(outliers) + len(judgement.counted) == len(lengths)
    assert AggregationPlan().clip_norm_ratio < OUTLIER_EXCESS, "an outlier is beyond clipping"


def slow_against(movement: Movement) -> list[bool]:
    """As the definition says it, silo by silo: the others agree, and this one points away."""
    cosines = movement.cosines()
    silos = range(len(cosines))
    found = []
    for k in silos:
        others = [j for j in silos if j != k]
        agreement = np.mean([cosines[i, j] for i, j in combinations(others, 2)])
        own = np.mean([cosines[k, j] for j in others])
        found.append(bool(agreement > AGREEMENT and own < -0.5 * agreement))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_who_points_against_the_others_is_found_as_the_definition_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    changes_KD = random.normal(size=(7, 5)) + 1.5 * random.normal(size=5)
    changes_KD[seed % 7] *= -1.0
    movement = movement_of(changes_KD)
    none_K = np.zeros(7, dtype=np.bool_)
    assert _against(movement, none_K).tolist() == slow_against(movement)


def test_a_thousand_updates_are_judged_at_once() -> None:
    random = np.random.default_rng(0)
    changes_KD = random.normal(size=(1000, 40)) + 1.0
    changes_KD[7] *= -20.0
    changes_KD[9] = changes_KD[8]
    found = judged(changes_KD)
    assert "outlier" in found.flags["silo-7"]
    assert found.flags["silo-8"] == found.flags["silo-9"] == ("free_rider",)
