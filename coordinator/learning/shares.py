"""How much does each silo's update count in the aggregate?

The share p_k of reid-spec §3. Cosine distance weight (CDW): MM'20 §6, TOMM'23 §5.3; ``samples``
is FedAvg's; ``blend`` is ours.

Letters: K silos.
"""

import math
from collections.abc import Sequence

from coordinator.learning.jobs import Contribution
from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import DISTANCE_RANGE
from fedreid.plan import AggregationPlan


def shares(contributions: Sequence[Contribution], plan: AggregationPlan) -> dict[str, float]:
    """The share p_k of each silo, in sorted order of silos; they sum to 1 (reid-spec §3).

    Where more than two silos take part none gets more than ``max_share``: see :func:`capped`.

    Raises:
        UpdateRefused: a distance outside 0..2 or not finite, or an update without images.
    """
    ordered_K = sorted(contributions, key=lambda contribution: contribution.silo)
    for contribution in ordered_K:
        _check(contribution)
    assert len({c.silo for c in ordered_K}) == len(ordered_K) > 0
    scores_K = _scores(ordered_K, plan)
    total = sum(scores_K)
    raw_K = [s / total if total > 0.0 else 1.0 / len(scores_K) for s in scores_K]
    return {c.silo: p for c, p in zip(ordered_K, capped(raw_K, plan.max_share), strict=True)}


def falls_back(contributions: Sequence[Contribution], plan: AggregationPlan) -> bool:
    """Whether every distance is 0 and the weighting, which needs them, became uniform."""
    needs = plan.weighting == "cosine" or (plan.weighting == "blend" and plan.distance_power > 0)
    return needs and all(c.cosine_distance == 0.0 for c in contributions)


def capped(shares_K: Sequence[float], max_share: float) -> list[float]:
    """Shares of which none exceeds ``max_share``; what is cut off scales up the rest.

    Scaling may lift another silo over the cap, so this repeats until none is. Silos whose own
    share is 0 take what is left in equal parts where nobody else can. A cap below 1/K can't be
    met and gives equal shares; two silos or one are never capped.
    """
    result_K = list(shares_K)
    count = len(result_K)
    if count <= 2:
        return result_K
    if max_share * count < 1.0:
        return [1.0 / count] * count
    held_K = [False] * count
    while any(p > max_share and not held for p, held in zip(result_K, held_K, strict=True)):
        held_K = [held or p > max_share for p, held in zip(result_K, held_K, strict=True)]
        free = [p for p, held in zip(result_K, held_K, strict=True) if not held]
        left, total = 1.0 - max_share * sum(held_K), sum(free)
        scaled_K = [left * p / total if total > 0.0 else left / max(1, len(free)) for p in result_K]
        result_K = [max_share if h else p for p, h in zip(scaled_K, held_K, strict=True)]
    return result_K


def _check(contribution: Contribution) -> None:
    low, high = DISTANCE_RANGE
    distance = contribution.cosine_distance
    if not (math.isfinite(distance) and low <= distance <= high):
        raise UpdateRefused(
            Refusal.WEIGHT, f"The cosine distance {distance} of {contribution.silo} is not in 0..2"
        )
    if contribution.num_images < 1:
        raise UpdateRefused(Refusal.WEIGHT, f"The update of {contribution.silo} has no images")


def _scores(ordered_K: Sequence[Contribution], plan: AggregationPlan) -> list[float]:
    """What p_k is proportional to, before any fallback or cap."""
    if plan.weighting == "cosine":
        return [c.cosine_distance for c in ordered_K]
    if plan.weighting == "samples":
        return [float(c.num_images) for c in ordered_K]
    if plan.weighting == "uniform":
        return [1.0 for _ in ordered_K]
    logs_K = [_blend_log(c, plan) for c in ordered_K]
    highest = max(logs_K)
    if highest == -math.inf:
        return [0.0 for _ in ordered_K]
    return [math.exp(log - highest) for log in logs_K]


def _blend_log(contribution: Contribution, plan: AggregationPlan) -> float:
    """log(n^a · d^b); the powers themselves may overflow."""
    log = plan.images_power * math.log(contribution.num_images)
    if plan.distance_power == 0.0:
        return log
    if contribution.cosine_distance == 0.0:
        return -math.inf
    return log + plan.distance_power * math.log(contribution.cosine_distance)
