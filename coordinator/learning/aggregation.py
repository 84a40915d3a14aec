"""How do the silos' updates of a round become one model?

FedPav (MM'20 §4): w ← Σ_k p_k · w_k over the silos in sorted order, summed in float64 and cast
to fp32 once. Every other method here gives the same files other factors, and the base model w_t
(and the one before it) a factor too; the factors of all always sum to 1::

    FedNova (Wang et al. 2020)    w ← w_t + τ Σ_k p_k (w_k − w_t)/τ_k       τ = Σ_k p_k τ_k
    server step (FedOpt)          w ← w_t + η Σ_k p_k (w_k − w_t)
    server momentum (FedAvgM)     …  + β (w_t − w_{t−1})                    heavy-ball form

The heavy-ball form of momentum needs no state beside the published models, so a restarted
coordinator has nothing to lose; what distillation moved counts as movement too.
Running statistics are no steps: they are always pooled by p_k. BatchNorm policies: reid-spec §4.
Files are walked tensor by tensor and block by block, so memory grows neither with the number of
silos nor with the model; one descriptor stays open per silo.

Letters: K silos, B values of one block, C channels of one BatchNorm layer.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from coordinator.learning.jobs import AggregateJob, AggregateReport, Contribution
from coordinator.learning.shares import falls_back, shares
from fedreid.errors import Refusal, UpdateRefused
from fedreid.files import replacing
from fedreid.jobs import Progress, ProgressSink
from fedreid.limits import MIB
from fedreid.plan import AggregationPlan
from fedreid.wire.tensors import (
    FloatArray,
    TensorFile,
    TensorSpec,
    batch_norm_names,
    is_statistic,
)

DoubleArray = npt.NDArray[np.float64]

# A whole tensor summed at once costs float64 temporaries twice its size; blocks cost 20 MiB.
_BLOCK_VALUES = 1 * MIB

_MEAN, _VARIANCE = "running_mean", "running_var"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Update:
    """One silo's file, opened, with its share and where each tensor lies in it."""

    silo: str
    share: float
    """Its factor: p_k, or what the method makes of it."""
    file: TensorFile
    offsets: dict[str, int]
    norm: float = 1.0
    """τ_k of FedNova: the length of the silo's path in gradient steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """All files of one aggregation."""

    base: _Update
    previous: _Update | None
    """The model before the base, where momentum needs it."""
    updates_K: list[_Update]
    plan: AggregationPlan
    seed: int


def aggregate(job: AggregateJob, progress: ProgressSink) -> AggregateReport:
    """Write the weighted mean of the round's updates as a canonical tensor file.

    Raises:
        UpdateRefused: an update whose tensors do not fit the base, or an inadmissible weight.
        StorageError: a file that is damaged, or a disk that is full.
    """
    weights = shares(job.contributions, job.aggregation)
    with ExitStack() as stack:
        opened = _Round(
            base=_opened(stack, "", job.base, 0.0),
            previous=_opened(stack, "", job.previous, 0.0) if job.previous else None,
            updates_K=[
                replace(_opened(stack, c.silo, c.path, weights[c.silo]), norm=_path_length(c, job))
                for c in sorted(job.contributions, key=lambda contribution: contribution.silo)
            ],
            plan=job.aggregation,
            seed=job.seed,
        )
        for update in opened.updates_K:
            _check_layout(update, opened.base, job.aggregation)
        with replacing(Path(job.out)) as stream:
            squared = _write(stream, opened, progress)
    return AggregateReport(
        weights=weights,
        all_distances_zero=falls_back(job.contributions, job.aggregation),
        update_norm=math.sqrt(squared),
    )


def _opened(stack: ExitStack, silo: str, path: str, share: float) -> _Update:
    file = stack.enter_context(TensorFile(Path(path)))
    offsets = {spec.name: offset for spec, offset in file.layout.offsets()}
    return _Update(silo=silo, share=share, file=file, offsets=offsets)


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


def _check_layout(update: _Update, base: _Update, plan: AggregationPlan) -> None:
    """All of the base's tensors and no other; under ``local`` BatchNorm ones may be missing."""
    expected, sent = frozenset(base.file.layout.specs), frozenset(update.file.layout.specs)
    names = base.file.layout.names
    optional = batch_norm_names(names) if plan.bn == "local" else frozenset()
    missing = {spec.name for spec in expected - sent} - optional
    odd = sorted(missing | {spec.name for spec in sent - expected})
    if odd:
        raise UpdateRefused(
            Refusal.TENSOR_NAMES,
            f"The update of {update.silo} does not fit the base model: {odd[0]!r} differs",
        )


def _write(stream: IO[bytes], opened: _Round, progress: ProgressSink) -> float:
    """Write header and tensors; returns ‖aggregate − base‖² over learned tensors."""
    base = opened.base
    specs = base.file.layout.specs
    stream.write(base.file.layout.header())
    squared = 0.0
    for done, spec in enumerate(specs, start=1):
        for at, values_B in _blocks(spec, opened):
            stream.write(values_B.data.cast("B"))
            if not is_statistic(spec.name):
                squared += _squared_distance(values_B, _read(base, spec.name, at, values_B.size))
        progress(Progress(phase="aggregating", done=done, total=len(specs)))
    return squared


def _blocks(spec: TensorSpec, opened: _Round) -> Iterator[tuple[int, FloatArray]]:
    """The aggregate of one tensor, block by block, each with its first index."""
    terms = _terms(spec.name, opened)
    combine = _pooled_variance if spec.name.endswith(_VARIANCE) else _mean
    for at in range(0, spec.elements, _BLOCK_VALUES):
        size = min(_BLOCK_VALUES, spec.elements - at)
        yield at, combine(spec.name, terms, at, size).astype(np.float32)


def _terms(name: str, opened: _Round) -> list[_Update]:
    """The files whose weighted sum is the aggregate of a tensor; their factors sum to 1."""
    senders = _senders(name, opened.updates_K)
    if not senders:  # policy ``local``, and no silo may send this one: the base's stays
        return [replace(opened.base, share=1.0)]
    if not is_statistic(name):
        return _stepped(senders, opened)
    if opened.plan.bn == "reference":  # the reference's order of silos is another in each round
        return [replace(senders[opened.seed % len(senders)], share=1.0)]
    return senders


def _stepped(senders: list[_Update], opened: _Round) -> list[_Update]:
    """The senders with the method's factors; the base and the one before it take up the rest."""
    plan = opened.plan
    step = plan.server_learning_rate
    if plan.normalisation == "fednova":
        mean_norm = sum(update.share * update.norm for update in senders)
        senders = [replace(u, share=u.share * mean_norm / u.norm) for u in senders]
    terms = [replace(u, share=u.share * step) for u in senders] if step != 1.0 else list(senders)
    if plan.normalisation == "none" and step == 1.0 and opened.previous is None:
        return terms  # FedPav: the base has no part in it
    left = 1.0 - sum(update.share for update in terms)
    if opened.previous is None:
        return [replace(opened.base, share=left), *terms]
    momentum = plan.server_momentum
    return [
        replace(opened.base, share=left + momentum),
        replace(opened.previous, share=-momentum),
        *terms,
    ]


def _senders(name: str, updates_K: list[_Update]) -> list[_Update]:
    """The updates that carry a tensor, their shares scaled to sum to 1.

    A mean and a variance count only together: the pooled variance needs both.
    """
    layer = name.removesuffix(_MEAN).removesuffix(_VARIANCE)
    needed = (layer + _MEAN, layer + _VARIANCE) if is_statistic(name) else (name,)
    sent = [update for update in updates_K if all(part in update.offsets for part in needed)]
    if len(sent) == len(updates_K):
        return sent  # as they are: dividing by a sum of nearly 1 would only round
    total = sum(update.share for update in sent)
    return [replace(u, share=u.share / total if total > 0.0 else 1.0 / len(sent)) for u in sent]


def _mean(name: str, senders: list[_Update], at: int, size: int) -> DoubleArray:
    """Σ_k p_k · w_k."""
    sum_B = np.zeros(size)
    term_B = np.empty(size)
    for update in senders:
        np.multiply(_read(update, name, at, size), update.share, out=term_B, dtype=np.float64)
        sum_B += term_B
    return sum_B


def _pooled_variance(name: str, senders: list[_Update], at: int, size: int) -> DoubleArray:
    """Law of total variance: Σ p_k σ²_k + Σ p_k (μ_k − mean)².

    Equal to reid-spec §4's Σ p_k (σ²_k + μ_k²) − mean², but nothing cancels, so it is never < 0.
    """
    mean_name = name.removesuffix(_VARIANCE) + _MEAN
    mean_C = _mean(mean_name, senders, at, size)
    variance_C = _mean(name, senders, at, size)
    for update in senders:
        variance_C += update.share * (_read(update, mean_name, at, size) - mean_C) ** 2
    return variance_C


def _read(update: _Update, name: str, at: int, size: int) -> FloatArray:
    values_B = np.empty(size, dtype=np.float32)
    update.file.read_into(update.offsets[name] + at * values_B.itemsize, values_B.data.cast("B"))
    return values_B


def _squared_distance(left_B: FloatArray, right_B: FloatArray) -> float:
    difference_B = np.subtract(left_B, right_B, dtype=np.float64)
    return float(np.dot(difference_B, difference_B))
