"""Which of a round's updates look wrong, and how much of each may count?

A pure function of the few numbers that ``movement`` has measured and of what the silos report.
Updates are only ever compared with the others of their round; where fewer than three silos take
part nobody can say who of them is odd, and only what is odd by itself is flagged.

How far a silo moves depends on its steps, of which one with many images makes many. A path that
goes straight on grows with them, one that wanders about with their root, and an honest silo's lies
in between. So its length is compared per step and per root of steps, and the lesser of the two
ratios to the others' median counts: its *excess*. Paths that end in an optimum may grow by less, so
a silo that moves no further than SHORT times the others' median, as it is, has no excess above 1.

============  ==================================================================================
flag          meaning
============  ==================================================================================
clipped       its excess is above ``clip_norm_ratio``; it is shortened until it is not
outlier       its excess is above OUTLIER_EXCESS, or above AGAINST_EXCESS and it points against the
              others, which agree
distance      its cosine distance is above DISTANCE_EXCESS times the others'
free_rider    it is the base itself, the last movement of the model, or another silo's update
============  ==================================================================================

With ``screen`` an outlier gets no share, and a distance that is flagged counts as the median of
the others. Clipping shortens what is too far, learned tensors as one, each running statistic by
itself, for their units differ; a variance stays between the base's and the silo's and so positive.

Letters: K silos, H of them heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from coordinator.learning.jobs import Contribution, Flag
from coordinator.learning.movement import Movement
from coordinator.learning.side_by_side import DoubleArray
from fedreid.limits import (
    AGAINST_EXCESS,
    AGREEMENT,
    COPY_COSINE,
    DISTANCE_EXCESS,
    OUTLIER_EXCESS,
    SHORT,
    STANDSTILL,
    STATISTIC_EXCESS,
)
from fedreid.plan import AggregationPlan

BoolArray = npt.NDArray[np.bool_]

_SILOS_TO_COMPARE = 3
_SAME = 1e-12  # ‖δ_i − δ_j‖² / ‖δ_i‖² of equal updates, as far as float64 can tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How a round's updates may count."""

    counted: tuple[Contribution, ...]
    """Those that get a share, with the distance that it follows from."""
    scales: dict[str, float]
    """What each silo's change of the learned tensors is multiplied by; at most 1."""
    statistic_scales: dict[str, dict[str, float]]
    """The same by running statistic and silo."""
    flags: dict[str, tuple[Flag, ...]]
    """By silo, sorted; silos without any are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Findings:
    """What a comparison of the updates has found."""

    excess_K: DoubleArray
    believed_K: DoubleArray
    """The distances, with the others' median for one that does not fit."""
    odd: dict[Flag, BoolArray]
    """Which updates get each flag."""


def judge(
    contributions_K: Sequence[Contribution], movement: Movement, plan: AggregationPlan
) -> Judgement:
    """Flag, clip and screen the updates of a round, which are sorted by silo."""
    silos_K = [contribution.silo for contribution in contributions_K]
    found = _compared(contributions_K, movement, plan)
    flags_K = [
        tuple(sorted(flag for flag, odd_K in found.odd.items() if odd_K[k]))
        for k in range(len(silos_K))
    ]
    return Judgement(
        counted=tuple(
            msgspec.structs.replace(contribution, cosine_distance=float(distance))
            if plan.screen
            else contribution
            for contribution, distance, flags in zip(
                contributions_K, found.believed_K, flags_K, strict=True
            )
            if not (plan.screen and "outlier" in flags)
        ),
        scales=_scales(silos_K, found.excess_K, plan.clip_norm_ratio),
        statistic_scales=_statistic_scales(silos_K, movement, plan),
        flags={silo: flags for silo, flags in zip(silos_K, flags_K, strict=True) if flags},
    )


def _compared(
    contributions_K: Sequence[Contribution], movement: Movement, plan: AggregationPlan
) -> _Findings:
    """Compare the updates; under clustering silos start from different models and are not."""
    distances_K = np.array([contribution.cosine_distance for contribution in contributions_K])
    alone = _Findings(excess_K=np.ones(len(distances_K)), believed_K=distances_K, odd={})
    if plan.clustering != "none":
        return alone
    idle_K = (movement.norms_K == 0.0) | _copies(movement)
    if len(distances_K) < _SILOS_TO_COMPARE:
        return replace(alone, odd={"free_rider": idle_K})
    norms_K = movement.norms_K
    steps_K = np.array([c.num_steps for c in contributions_K], dtype=np.float64)
    excess_K = _excess(norms_K, steps_K)
    far_K = excess_K > OUTLIER_EXCESS
    typical_K = _typical(distances_K)
    odd_K = (typical_K > 0.0) & (distances_K > DISTANCE_EXCESS * typical_K)
    return _Findings(
        excess_K=excess_K,
        believed_K=np.where(odd_K, typical_K, distances_K),
        odd={
            "clipped": excess_K > (plan.clip_norm_ratio or np.inf),
            "outlier": far_K | (_against(movement, far_K) & (excess_K > AGAINST_EXCESS)),
            "distance": odd_K,
            "free_rider": idle_K | (norms_K / steps_K < STANDSTILL * _typical(norms_K / steps_K)),
        },
    )


def _excess(norms_K: DoubleArray, steps_K: DoubleArray) -> DoubleArray:
    """How many times further than the others each update has moved, as its steps may explain it."""
    straight_K, wandering_K = norms_K / steps_K, norms_K / np.sqrt(steps_K)
    typical_2K = np.stack([_typical(straight_K), _typical(wandering_K)])
    moving_K = typical_2K.min(axis=0) > 0.0  # else the others stand still: nothing to compare with
    ratios_2K = np.ones((2, len(norms_K)))
    np.divide([straight_K, wandering_K], typical_2K, out=ratios_2K, where=moving_K)
    short_K = norms_K <= SHORT * _typical(norms_K)
    excess_K: DoubleArray = np.where(short_K, np.minimum(ratios_2K, 1.0), ratios_2K).min(axis=0)
    return excess_K


def _typical(values_K: DoubleArray) -> DoubleArray:
    """The median of the others, for each; of two in the middle the larger.

    Who is compared has no part in it, or one of few could move the measure towards itself; and of
    two others an honest one can't be outweighed by one that sends nothing.
    """
    others = [np.sort(np.delete(values_K, k)) for k in range(len(values_K))]
    return np.array([ordered[len(ordered) // 2] for ordered in others])


def _against(movement: Movement, far_K: BoolArray) -> BoolArray:
    """Whether an update points against the others, which agree with each other.

    Honest ones do as well: near the end of a run changes cancel out, and in the round after one in
    which a silo had the largest share the others all pull the model back. So this says something
    only of an update that is long besides. Those that are ``far`` are outliers already and have no
    voice. Of the rest never all point against the others: the sum of all cosines would have to be
    positive and negative at once.
    """
    heard = [k for k, far in enumerate(far_K) if not far]
    against_K = np.zeros(len(far_K), dtype=np.bool_)
    if len(heard) < _SILOS_TO_COMPARE:
        return against_K
    cosines_HH = movement.cosines()[np.ix_(heard, heard)]
    np.fill_diagonal(cosines_HH, 0.0)
    others = len(heard) - 1
    with_others_H = cosines_HH.sum(axis=1)
    pairs = others * (others - 1)  # of the others, in either order
    agreement_H = (with_others_H.sum() - 2.0 * with_others_H) / pairs
    own_H = with_others_H / others
    against_K[heard] = (agreement_H > AGREEMENT) & (own_H < -0.5 * agreement_H)
    return against_K


def _copies(movement: Movement) -> BoolArray:
    """Whether an update is the last movement of the model again, or another silo's update."""
    norms_K = movement.norms_K
    count = len(norms_K)
    copies_K = np.array([abs(movement.cosine_along(k)) > COPY_COSINE for k in range(count)])
    squared_K = np.diag(movement.products_KK)
    apart_KK = squared_K[:, None] + squared_K - 2.0 * movement.products_KK
    same_KK = (apart_KK <= _SAME * squared_K[:, None]) & (norms_K[:, None] > 0.0)
    same_KK = np.triu(same_KK, k=1)
    found_K: BoolArray = copies_K | same_KK.any(axis=0) | same_KK.any(axis=1)
    return found_K


def _scales(silos_K: Sequence[str], excess_K: DoubleArray, ratio: float) -> dict[str, float]:
    """What brings each excess down to ``ratio``; 1 where it is below, or nothing is clipped."""
    return {
        silo: float(ratio / excess) if 0.0 < ratio < excess else 1.0
        for silo, excess in zip(silos_K, excess_K, strict=True)
    }


def _statistic_scales(
    silos_K: Sequence[str], movement: Movement, plan: AggregationPlan
) -> dict[str, dict[str, float]]:
    """What brings each running statistic's change down to STATISTIC_EXCESS medians."""
    scales = {}
    for name, norms_K in movement.statistics.items():
        sent_K = norms_K[~np.isnan(norms_K)]
        middle = float(np.median(sent_K)) if len(sent_K) >= _SILOS_TO_COMPARE else 0.0
        clips = plan.clip_norm_ratio > 0.0 and middle > 0.0
        excess_K = norms_K / middle if clips else np.ones(len(norms_K))
        scales[name] = _scales(silos_K, excess_K, STATISTIC_EXCESS)
    return scales
