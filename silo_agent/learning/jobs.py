"""Which jobs does the agent hand to its training process, and what comes back?

All values are numbers, names and paths of this machine; a job's outputs are files.
"""

import msgspec

from fedreid.contract import EvaluateTask, EvaluationResult, ModelKind, TrainTask, UpdateReport
from fedreid.jobs import Job, Report
from fedreid.plan import BackbonePlan, BatchNormPolicy, TrainingPlan


class Silo(msgspec.Struct, frozen=True, kw_only=True):
    """Whose images, and where they lie."""

    federation: str
    name: str
    dataset: str
    layout: str
    """A layout's name, or ``auto``."""
    split: int = 0
    """Which drawn split of a small set."""
    withdrawn_confirmed: bool = False
    """The operator answers for a set that its owners have withdrawn."""


class TrainJob(Job, frozen=True, kw_only=True):
    """One round at a silo: local training, and the standalone baseline beside it."""

    silo: Silo
    run: str
    round: int
    seed: int
    backbone: BackbonePlan
    training: TrainingPlan
    learning_rate_factor: float
    bn: BatchNormPolicy
    base_model: str
    """File of w_t, canonical (fedreid.wire.tensors)."""
    previous: str
    """Finished folder of the silo's last round in this run; empty at its first."""
    out: str
    """Existing empty folder to fill: ``update.safetensors`` (the whole local backbone after
    training) and ``private/`` with what never leaves (classifier, standalone state)."""
    spare: str = ""
    """File that the update is written over, if it is there; empty: none."""
    checkpoints: str = ""
    """Folder of what a killed attempt at this job left to go on from; empty: none is kept."""
    compiled: bool = False
    """Train with torch.compile."""
    evaluate: tuple[ModelKind, ...]
    standalone: bool

    @classmethod
    def of(
        cls,
        task: TrainTask,
        silo: Silo,
        *,
        base_model: str,
        previous: str,
        out: str,
        spare: str = "",
        checkpoints: str = "",
        compiled: bool = False,
    ) -> "TrainJob":
        """The job that a task gives a silo."""
        kinds: tuple[ModelKind, ...] = ()
        if task.evaluate:
            kinds = ("global", "local", "standalone") if task.standalone else ("global", "local")
        return cls(
            silo=silo,
            run=task.run,
            round=task.round,
            seed=task.seed,
            backbone=task.backbone,
            training=task.training,
            learning_rate_factor=task.learning_rate_factor,
            bn=task.bn,
            base_model=base_model,
            previous=previous,
            out=out,
            spare=spare,
            checkpoints=checkpoints,
            compiled=compiled,
            evaluate=kinds,
            standalone=task.standalone,
        )


class TrainReport(Report, frozen=True, kw_only=True):
    """What training gave."""

    num_images: int
    num_identities: int
    cosine_distance: float
    train_loss: float
    num_steps: int
    """Optimiser steps of the federated training; the standalone baseline's are not counted."""
    evaluations: tuple[EvaluationResult, ...]
    notes: tuple[str, ...] = ()
    """What of the recipe this silo could not follow, and why."""

    def numbers(self) -> UpdateReport:
        """What of it goes with the update."""
        return UpdateReport(
            num_images=self.num_images,
            cosine_distance=self.cosine_distance,
            train_loss=self.train_loss,
            num_steps=self.num_steps,
        )


class EvaluateJob(Job, frozen=True, kw_only=True):
    """Measure one shared model on the silo's own test set."""

    silo: Silo
    backbone: BackbonePlan
    bn: BatchNormPolicy
    model: str
    """File of the shared tensors."""
    previous: str
    """As in :class:`TrainJob`: with ``bn = local`` the silo's own BatchNorm is used."""
    threads: int

    @classmethod
    def of(cls, task: EvaluateTask, silo: Silo, *, model: str, previous: str) -> "EvaluateJob":
        """The job that a task gives a silo."""
        return cls(
            silo=silo,
            backbone=task.backbone,
            bn=task.bn,
            model=model,
            previous=previous,
            threads=task.threads,
        )


class EvaluateReport(Report, frozen=True, kw_only=True):
    """What evaluation gave."""

    evaluations: tuple[EvaluationResult, ...]
