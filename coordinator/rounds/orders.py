"""Which job does each step of a round order, and where do its files lie?

Pure functions of plan and round: whoever runs the jobs (the coordinator's worker process, or a
benchmark in one process) gets the same bytes from the same updates. Every job is seeded from the
round, so that doing it again after a crash gives the same file.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordinator.folders import Folders
from coordinator.learning import jobs
from coordinator.rounds.machine import Aggregated, RoundState, Rules
from fedreid.contract import UpdateReport
from fedreid.names import Digest
from fedreid.plan import Plan, is_difference
from fedreid.seeds import derive_seed

AGGREGATE = "aggregate"
DISTILLED = "distilled"


def start_job(folders: Folders, plan: Plan, federation: str) -> jobs.InitialiseJob:
    """Make the model that the run starts from."""
    return jobs.InitialiseJob(
        backbone=plan.backbone,
        seed=derive_seed(plan.seed, federation, plan.name, "start"),
        out=str(folders.work(plan.name, 0) / "start.safetensors"),
    )


def aggregate_job(
    folders: Folders, state: RoundState, plan: Plan, federation: str
) -> jobs.AggregateJob:
    """Make the global model of the round's updates."""
    before = state.previous_digest
    return jobs.AggregateJob(
        base=str(model_path(folders, Digest(state.base_digest))),
        previous=str(model_path(folders, Digest(before))) if before else "",
        contributions=_contributions(folders, state),
        aggregation=plan.aggregation,
        momentum=plan.training.momentum if plan.training.optimiser == "sgd" else 0.0,
        seed=derive_seed(plan.seed, federation, state.run, state.number, "first"),
        out=str(_staged(folders, state, AGGREGATE)),
    )


def cluster_job(
    folders: Folders, state: RoundState, plan: Plan, federation: str
) -> jobs.ClusterJob:
    """Tell which silos' models are alike."""
    return jobs.ClusterJob(
        backbone=plan.backbone,
        student=str(_staged(folders, state, AGGREGATE)),
        contributions=_contributions(folders, state),
        distillation=plan.distillation,
        seed=derive_seed(plan.seed, federation, state.run, state.number, "cluster"),
    )


def cluster_aggregate_jobs(
    folders: Folders,
    state: RoundState,
    plan: Plan,
    federation: str,
    clusters: Sequence[Sequence[str]],
) -> list[jobs.AggregateJob]:
    """Make each cluster's own model; a single cluster has the global one."""
    if len(clusters) < 2:
        return []
    whole = aggregate_job(folders, state, plan, federation)
    return [
        msgspec.structs.replace(
            whole,
            contributions=tuple(c for c in whole.contributions if c.silo in members),
            out=str(_staged(folders, state, f"cluster-{index}")),
        )
        for index, members in enumerate(clusters)
    ]


def aggregated(report: jobs.AggregateReport, clusters: tuple[tuple[str, ...], ...]) -> Aggregated:
    """What the round learns from its aggregation."""
    return Aggregated(
        weights=report.weights,
        update_norm=report.update_norm,
        update_norms=report.update_norms,
        flags=report.flags,
        clusters=clusters,
    )


def models_by_silo(state: RoundState, digests: Sequence[str]) -> dict[str, str]:
    """The digest of each silo's own model, where the clusters' models have these digests."""
    return {
        silo: digest
        for members, digest in zip(state.clusters, digests, strict=False)  # none for one cluster
        for silo in members
    }


def distil_job(folders: Folders, state: RoundState, plan: Plan, federation: str) -> jobs.DistilJob:
    """Recalibrate the aggregate, distil the silos' models into it, or both."""
    return jobs.DistilJob(
        backbone=plan.backbone,
        student=str(_staged(folders, state, AGGREGATE)),
        contributions=_teachers(folders, state, plan),
        weights=state.weights,
        distillation=plan.distillation,
        distil=_distils(plan, state),
        recalibrate=plan.aggregation.bn == "recalibrated",
        seed=derive_seed(plan.seed, federation, state.run, state.number, "distil"),
        out=str(_staged(folders, state, DISTILLED)),
    )


def evaluate_job(folders: Folders, state: RoundState, plan: Plan, rules: Rules) -> jobs.EvaluateJob:
    """Measure the round's model on the coordinator's own images."""
    return jobs.EvaluateJob(
        backbone=plan.backbone,
        model=str(result_path(folders, state, rules)),
        folder=plan.evaluation.folder,
        threads=plan.distillation.threads,
    )


def quantise_job(
    folders: Folders, state: RoundState, plan: Plan, rules: Rules
) -> jobs.EncodeJob | None:
    """Make the round's model what its download can say, where that is a difference from the base.

    Done as soon as the model is made, so that what is measured is what is published.
    """
    if not is_difference(plan.wire.download):
        return None
    result = result_path(folders, state, rules)
    return jobs.EncodeJob(
        model=str(result),
        encoding=plan.wire.download,
        base=str(model_path(folders, Digest(state.base_digest))),
        out=str(result.with_suffix(f".{plan.wire.download}")),
    )


def result_path(folders: Folders, state: RoundState, rules: Rules) -> Path:
    """The model that the round will publish."""
    return _staged(folders, state, DISTILLED if rules.distils else AGGREGATE)


def update_path(folders: Folders, state: RoundState, silo: str) -> Path:
    """Where the accepted update of a silo lies, in canonical form."""
    return folders.spool(state.run, state.number) / update_name(silo)


def update_name(silo: str) -> str:
    """The name of an accepted update's file in its round's spool."""
    return f"{silo}.safetensors"


def model_path(folders: Folders, digest: Digest) -> Path:
    """The canonical file of a published model."""
    return folders.models / f"{digest}.safetensors"


def rules_of(plan: Plan, state: RoundState | None) -> Rules:
    """What of the plan decides how a round goes on; before it is open, it has nothing to do."""
    return Rules(
        min_silos=plan.quorum.min_silos,
        min_fraction=plan.quorum.min_fraction,
        deadline_s=plan.quorum.deadline_s,
        phase_deadline_s=plan.quorum.phase_deadline_s,
        distils=state is not None and _uses_public_images(plan, state),
        evaluates=bool(plan.evaluation.folder),
        gate_drop=plan.evaluation.gate_drop,
        quarantine_rounds=plan.validation.quarantine_rounds,
    )


def _uses_public_images(plan: Plan, state: RoundState) -> bool:
    return _distils(plan, state) or plan.aggregation.bn == "recalibrated"


def _distils(plan: Plan, state: RoundState) -> bool:
    due = (state.published_before + 1) % plan.distillation.every == 0
    return bool(plan.distillation.images) and plan.distillation.loss != "none" and due


def _staged(folders: Folders, state: RoundState, name: str) -> Path:
    return folders.work(state.run, state.number) / f"{name}.safetensors"


def _teachers(folders: Folders, state: RoundState, plan: Plan) -> tuple[jobs.Contribution, ...]:
    """All updates but those that were screened out: who has no share teaches nothing either."""
    out = {silo for silo, flags in state.flags.items() if "outlier" in flags}
    return tuple(
        contribution
        for contribution in _contributions(folders, state)
        if not (plan.aggregation.screen and contribution.silo in out)
    )


def _contributions(folders: Folders, state: RoundState) -> tuple[jobs.Contribution, ...]:
    return tuple(
        jobs.Contribution(
            silo=update.silo,
            path=str(update_path(folders, state, update.silo)),
            num_images=update.report.num_images,
            num_steps=update.report.num_steps,
            cosine_distance=_distance(update.report, state),
        )
        for update in state.updates
    )


def _distance(report: UpdateReport, state: RoundState) -> float:
    """The cosine distance that a silo told; for one that withholds it, the mean of the others'.

    Where all withhold it, all are 0, and the weighting is uniform.
    """
    if report.privacy is None:
        return report.cosine_distance
    told = [u.report.cosine_distance for u in state.updates if u.report.privacy is None]
    return math.fsum(told) / len(told) if told else 0.0
