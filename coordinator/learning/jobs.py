"""Which jobs does the coordinator hand to its worker process, and what comes back?

Every model named here is the path of a canonical tensor file (fedreid.wire.tensors). A job
writes its output through fedreid.files, so doing it again after a crash is harmless.
"""

from typing import Literal

import msgspec

from fedreid.contract import EvaluationResult
from fedreid.jobs import Job, Report
from fedreid.plan import AggregationPlan, BackbonePlan, DistillationPlan, Encoding

Flag = Literal["clipped", "free_rider", "distance", "outlier"]
"""What can look wrong with an update; see ``coordinator.learning.suspicion``."""
SUSPECT: frozenset[Flag] = frozenset(("free_rider", "distance", "outlier"))
"""Flags that an honest silo should not get again and again."""


class Contribution(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted update."""

    silo: str
    path: str
    num_images: int
    num_steps: int
    """Optimiser steps that led to it."""
    cosine_distance: float


class InitialiseJob(Job, frozen=True, kw_only=True):
    """Make the first model of a run from the plan's start weights."""

    backbone: BackbonePlan
    seed: int
    out: str


class InitialiseReport(Report, frozen=True, kw_only=True):
    """The first model was written."""

    parameters: int
    """Learned values in it."""


class AggregateJob(Job, frozen=True, kw_only=True):
    """What the updates of a round make together."""

    base: str
    previous: str = ""
    """The model before the base; empty if there is none."""
    contributions: tuple[Contribution, ...]
    aggregation: AggregationPlan
    momentum: float = 0.0
    """Of the silos' optimiser, for FedNova's normalisation."""
    seed: int = 0
    """Draws the silo that ``bn = reference`` takes for the first of the round."""
    out: str
    spare: str = ""
    """File that the aggregate is written over, if it is there; empty: none."""


class AggregateReport(Report, frozen=True, kw_only=True):
    """The aggregate was written."""

    weights: dict[str, float]
    """Share of each silo, 0 of one that is screened out; sums to 1."""
    all_distances_zero: bool
    """Every cosine distance was 0, so the weights are uniform: worth a warning."""
    update_norm: float
    """‖aggregate − base‖ over learned tensors."""
    update_norms: dict[str, float]
    """‖w_k − base‖ of each silo's update over learned tensors."""
    flags: dict[str, tuple[Flag, ...]]
    """What looks wrong with a silo's update; silos without any are left out."""


class ClusterJob(Job, frozen=True, kw_only=True):
    """Tell which silos' models see public images alike."""

    backbone: BackbonePlan
    student: str
    """Lends its BatchNorm to models that keep theirs at the silo."""
    contributions: tuple[Contribution, ...]
    distillation: DistillationPlan
    """Whose images the models are compared on, a batch of them."""
    seed: int


class ClusterReport(Report, frozen=True, kw_only=True):
    """The clusters: silos in sorted order, each in one of them."""

    clusters: tuple[tuple[str, ...], ...]


class DistilJob(Job, frozen=True, kw_only=True):
    """Distil the silos' models into the aggregate on public images, or only recalibrate."""

    backbone: BackbonePlan
    student: str
    contributions: tuple[Contribution, ...]
    weights: dict[str, float]
    distillation: DistillationPlan
    distil: bool
    """False: only re-estimate BatchNorm statistics (``bn = recalibrated``)."""
    recalibrate: bool
    seed: int
    out: str


class DistilReport(Report, frozen=True, kw_only=True):
    """The distilled model was written; losses are means over public images, of many a sample."""

    images: int
    loss_before: float | None
    loss_after: float | None


class EvaluateJob(Job, frozen=True, kw_only=True):
    """Measure a model on a labelled folder of the coordinator's own."""

    backbone: BackbonePlan
    model: str
    folder: str
    threads: int


class EvaluateReport(Report, frozen=True, kw_only=True):
    """What was measured."""

    result: EvaluationResult


class EncodeJob(Job, frozen=True, kw_only=True):
    """Write a model's payload in another encoding, for downloads."""

    model: str
    """With an encoding of differences it becomes what the payload says."""
    encoding: Encoding
    base: str = ""
    """The model that differences are from; empty for other encodings."""
    out: str


class EncodeReport(Report, frozen=True, kw_only=True):
    """The payload was written."""

    digest: str
    size_bytes: int
