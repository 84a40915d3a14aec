"""How do the silos' updates of a round become one model?

First each update is judged beside the others (``suspicion``): one that is far off is shortened or
gets no share. What counts is then combined value by value, and the coordinator takes a step::

    mean (FedPav, MM'20 §4)       c = Σ_k p_k · w_k
    median, trimmed_mean          of the silos' values, all with the same say (Yin et al. 2018)
    FedNova (Wang et al. 2020)    w_k ← w_t + (w_k − w_t) · τ/τ_k before it     τ = Σ_k p_k τ_k
    server step (FedOpt)          w ← w_t + η (c − w_t)
    server momentum (FedAvgM)     …  + β (w_t − w_{t−1})                        heavy-ball form

The heavy-ball form of momentum needs no state beside the published models, so a restarted
coordinator has nothing to lose; what distillation moved counts as movement too. Running statistics
take no steps. A variance is combined around the combined mean, σ²_k + (μ_k − μ)², which is the law
of total variance for the mean and can't be negative for any of the three. BatchNorm policies:
reid-spec §4. Sums run over the silos in sorted order, in float64, and are cast to fp32 once.

Letters: K silos, B values of one block.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from threadpoolctl import threadpool_limits

from coordinator.learning.jobs import AggregateJob, AggregateReport, Contribution
from coordinator.learning.movement import measure
from coordinator.learning.shares import falls_back, shares
from coordinator.learning.side_by_side import (
    DoubleArray,
    Opened,
    RoundFiles,
    opened_round,
)
from coordinator.learning.suspicion import Judgement, judge
from fedreid import faults
from fedreid.files import replacing
from fedreid.jobs import Progress, ProgressSink
from fedreid.plan import AggregationPlan
from fedreid.wire.tensors import FloatArray, is_statistic

_MEAN, _VARIANCE = "running_mean", "running_var"
_ROUNDING = 1e-9  # 0.3 of 10 silos are 3, whatever the product of floats says


@dataclass(frozen=True, slots=True, kw_only=True)
class _Update:
    """One silo's file and how it counts."""

    opened: Opened
    share: float
    """p_k."""
    path_length: float
    """τ_k of FedNova: the length of the silo's path in gradient steps; 1 without it."""
    scale: float
    """What the change of the learned tensors is multiplied by."""
    statistic_scales: dict[str, float]
    """The same for each running statistic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """All that an aggregate follows from."""

    files: RoundFiles
    updates_K: list[_Update]
    """Those that count, sorted by silo."""
    plan: AggregationPlan
    seed: int


def aggregate(job: AggregateJob, progress: ProgressSink) -> AggregateReport:
    """Write what the round's updates make together as a canonical tensor file.

    Raises:
        UpdateRefused: an update whose tensors do not fit the base, or an inadmissible weight.
        StorageError: a file that is damaged, or a disk that is full.
    """
    contributions_K = sorted(job.contributions, key=lambda contribution: contribution.silo)
    with ExitStack() as stack:
        # Threads that spin for work cost more than they do here, and a sum's last bit must not
        # depend on how many the machine has.
        stack.enter_context(threadpool_limits(1, user_api="blas"))
        files = opened_round(stack, job)
        movement = measure(files, progress)
        judgement = judge(contributions_K, movement, job.aggregation)
        weights = shares(judgement.counted, job.aggregation)
        opened = _Round(
            files=files,
            updates_K=_updates(files, job, judgement, weights),
            plan=job.aggregation,
            seed=job.seed,
        )
        with faults.step("aggregate.write"), replacing(Path(job.out), over=job.spare) as stream:
            squared = _write(stream, opened, progress)
    return AggregateReport(
        weights={c.silo: weights.get(c.silo, 0.0) for c in contributions_K},
        all_distances_zero=falls_back(job.contributions, job.aggregation),
        update_norm=math.sqrt(squared),
        update_norms={
            c.silo: float(norm) for c, norm in zip(contributions_K, movement.norms_K, strict=True)
        },
        flags=judgement.flags,
    )


def _updates(
    files: RoundFiles, job: AggregateJob, judgement: Judgement, weights: dict[str, float]
) -> list[_Update]:
    counted = {contribution.silo: contribution for contribution in judgement.counted}
    return [
        _Update(
            opened=opened,
            share=weights[opened.silo],
            path_length=_path_length(counted[opened.silo], job),
            scale=judgement.scales[opened.silo],
            statistic_scales={
                name: scales[opened.silo] for name, scales in judgement.statistic_scales.items()
            },
        )
        for opened in files.updates_K
        if opened.silo in counted
    ]


def _path_length(contribution: Contribution, job: AggregateJob) -> float:
    """τ_k: FedNova's norm of a silo's accumulation vector under SGD with momentum ρ.

    With ρ = 0 it is the number of steps; momentum repeats each gradient in later steps.
    """
    steps, momentum = contribution.num_steps, job.momentum
    if job.aggregation.normalisation == "none":
        return 1.0
    if momentum == 0.0:
        return float(steps)
    if momentum == 1.0:
        return steps * (steps + 1) / 2.0
    forgotten: float = momentum * (1.0 - momentum**steps) / (1.0 - momentum)
    return (steps - forgotten) / (1.0 - momentum)


def _write(stream: IO[bytes], opened: _Round, progress: ProgressSink) -> float:
    """Write header and tensors; returns ‖aggregate − base‖² over learned tensors."""
    base, files = opened.files.base, opened.files
    stream.write(base.file.layout.header())
    senders = {spec.name: _senders(spec.name, opened) for spec in files.specs}
    blocks = files.blocks
    squared = 0.0
    for done, (name, at, size) in enumerate(blocks, start=1):
        values_B, moved = _block(senders[name], opened, name, at, size)
        stream.write(values_B.data.cast("B"))
        squared += moved
        progress(Progress(phase="aggregating", done=done, total=len(blocks)))
    return squared


def _block(
    senders: Sequence[_Update], opened: _Round, name: str, at: int, size: int
) -> tuple[FloatArray, float]:
    """One block of the aggregate, and its ‖aggregate − base‖² where it is learned."""
    base_B = opened.files.base.read(name, at, size)
    if not senders:  # policy ``local``, and no silo may send this one: the base's stays
        return base_B, 0.0
    if name.endswith(_VARIANCE):
        return _variance(name, senders, opened, at, size).astype(np.float32), 0.0
    combined_B = _combined(_values(name, senders, opened, at, size), senders, opened)
    if is_statistic(name):
        return combined_B.astype(np.float32), 0.0
    values_B = _stepped(name, combined_B, opened, at).astype(np.float32)
    return values_B, _squared_distance(values_B, base_B)


def _senders(name: str, opened: _Round) -> list[_Update]:
    """The updates that carry a tensor, as they count for it; their shares sum to 1.

    A mean and a variance count only together: the pooled variance needs both.
    """
    layer = name.removesuffix(_MEAN).removesuffix(_VARIANCE)
    needed = (layer + _MEAN, layer + _VARIANCE) if is_statistic(name) else (name,)
    sent = [u for u in opened.updates_K if all(u.opened.has(part) for part in needed)]
    if len(sent) < len(opened.updates_K):  # else as they are: dividing by nearly 1 would only round
        total = sum(update.share for update in sent)
        sent = [replace(u, share=u.share / total if total > 0.0 else 1 / len(sent)) for u in sent]
    if is_statistic(name) and sent and opened.plan.bn == "reference":
        # the reference's order of silos is another in each round
        return [replace(sent[opened.seed % len(sent)], share=1.0)]
    if opened.plan.normalisation == "fednova":
        mean_length = sum(update.share * update.path_length for update in sent)
        return [replace(u, scale=u.scale * mean_length / u.path_length) for u in sent]
    return sent


def _values(
    name: str, senders: Sequence[_Update], opened: _Round, at: int, size: int
) -> Iterator[FloatArray | DoubleArray]:
    """Each sender's values of one block, with its change scaled as it counts."""
    for update in senders:
        values_B = update.opened.read(name, at, size)
        scale = update.statistic_scales[name] if is_statistic(name) else update.scale
        if scale == 1.0:
            yield values_B
        else:
            base_B = opened.files.base.read(name, at, size).astype(np.float64)
            yield base_B + scale * (values_B - base_B)


def _combined(
    values_KB: Iterator[FloatArray | DoubleArray], senders: Sequence[_Update], opened: _Round
) -> DoubleArray:
    """The mean by share, or the median or trimmed mean of all alike."""
    if opened.plan.combine == "mean":
        return _mean(values_KB, senders)
    sorted_KB = np.sort(np.array(list(values_KB), dtype=np.float64), axis=0)
    cut = _cut(len(senders), opened.plan)
    middle_B: DoubleArray = sorted_KB[cut : len(senders) - cut].mean(axis=0)
    return middle_B


def _mean(values_KB: Iterator[FloatArray | DoubleArray], senders: Sequence[_Update]) -> DoubleArray:
    """Σ_k p_k · w_k, one silo at a time."""
    sum_B: DoubleArray | None = None
    part_B = np.zeros(0)
    for update, values_B in zip(senders, values_KB, strict=True):
        if sum_B is None:
            sum_B, part_B = np.zeros(len(values_B)), np.empty(len(values_B))
        part_B[:] = values_B  # widened by itself: within a product it takes NumPy twice as long
        part_B *= update.share
        sum_B += part_B
    assert sum_B is not None, "somebody sends it"
    return sum_B


def _cut(silos: int, plan: AggregationPlan) -> int:
    """How many of the smallest and of the largest values do not count; one or two always do."""
    most = (silos - 1) // 2
    if plan.combine == "median":
        return most
    return min(most, math.ceil(plan.trim * silos - _ROUNDING))


def _stepped(name: str, values_B: DoubleArray, opened: _Round, at: int) -> DoubleArray:
    """The coordinator's step from the base towards the combined values, and its momentum."""
    plan, files = opened.plan, opened.files
    momentum = plan.server_momentum if files.previous is not None else 0.0
    if plan.server_learning_rate == 1.0 and momentum == 0.0:
        return values_B  # FedPav: the base has no part in it
    base_B = files.base.read(name, at, values_B.size).astype(np.float64)
    stepped_B: DoubleArray = base_B + plan.server_learning_rate * (values_B - base_B)
    if momentum and files.previous is not None:
        stepped_B += momentum * (base_B - files.previous.read(name, at, values_B.size))
    return stepped_B


def _variance(
    name: str, senders: Sequence[_Update], opened: _Round, at: int, size: int
) -> DoubleArray:
    """Combined from σ²_k + (μ_k − μ)², where μ is the combined mean.

    For the mean this is the law of total variance, equal to reid-spec §4's
    Σ p_k (σ²_k + μ_k²) − μ², but nothing cancels, so it is never < 0.
    """
    mean_name = name.removesuffix(_VARIANCE) + _MEAN
    mean_B = _combined(_values(mean_name, senders, opened, at, size), senders, opened)
    means_KB = _values(mean_name, senders, opened, at, size)
    variances_KB = _values(name, senders, opened, at, size)
    around_KB = (
        variance_B + (own_B - mean_B) ** 2
        for variance_B, own_B in zip(variances_KB, means_KB, strict=True)
    )
    return _combined(around_KB, senders, opened)


def _squared_distance(left_B: FloatArray, right_B: FloatArray) -> float:
    difference_B = (left_B - right_B).astype(np.float64)
    return float(np.dot(difference_B, difference_B))
