"""What does the Admin service tell of a run? Everything a report shows, as our own types."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coordinator.client import admin_of, every_evaluation, every_round
from coordinator.folders import Folders
from fedreid.clock import Clock
from fedreid.contract import EvaluationResult
from fedreid.errors import RunError
from fedreid.pki.identity import IdentityStore
from fedreid.v1 import admin_pb2
from fedreid.wire.messages import evaluation_from_wire

PUBLISHED = "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A silo as the coordinator knows it now."""

    name: str
    state: str
    reason: str
    last_seen_s: float
    """0: never."""
    certificate_ends_s: float
    """0: it has none yet."""
    agent_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An accepted update."""

    silo: str
    images: int
    train_loss: float | None
    """None: its silo keeps it back, beside the noise that it adds."""
    weight: float
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round."""

    number: int
    phase: str
    reason: str
    model_digest: str
    invited: tuple[str, ...]
    parts: tuple[Part, ...]
    refused: dict[str, str]
    declined: dict[str, str]
    phase_seconds: dict[str, float]
    upload_bytes: int
    download_bytes: int
    loss_before: float | None
    """Of distillation; None without it."""
    loss_after: float | None

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(self.phase_seconds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one model scored at one silo; at the coordinator's own test set if ``silo`` is empty."""

    silo: str
    round: int
    result: EvaluationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A published model."""

    version: int
    run: str
    round: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A federation and its current or last run."""

    federation: str
    at_s: float
    run: str
    state: str
    reason: str
    models_planned: int
    models_published: int
    plan_toml: str
    members: tuple[Member, ...]
    rounds: tuple[Round, ...]
    """By number."""
    figures: tuple[Figure, ...]
    """By round, silo and model."""
    models: tuple[Model, ...]
    """Newest first."""


def gather(data: Path, coordinator: str | None, clock: Clock) -> Gathered:
    """Ask a running coordinator with the admin identity in ``data``.

    Raises:
        RunError: there has been no run yet.
        FedreidError: it can't be reached, or refuses.
    """
    holder = IdentityStore(Folders(data).admin).load().holder()
    with admin_of(data, coordinator) as admin:
        run = admin.GetRun(admin_pb2.GetRunRequest())
        if not run.run:
            raise RunError(
                "There is nothing to report: no run has started yet",
                next_step="Start one: coordinator run start PLAN.toml.",
            )
        rounds = every_round(admin, run.run)
        figures = every_evaluation(admin, run.run)
        silos = admin.ListSilos(admin_pb2.ListSilosRequest()).silos
        models = admin.ListModels(admin_pb2.ListModelsRequest()).models
    return Gathered(
        federation=holder.principal.federation,
        at_s=clock.now_s(),
        run=run.run,
        state=run.state,
        reason=run.reason,
        models_planned=run.rounds_planned,
        models_published=run.rounds_published,
        plan_toml=run.plan_toml,
        members=_members(silos),
        rounds=tuple(map(round_from_wire, rounds)),
        figures=tuple(
            Figure(silo=one.silo, round=one.round, result=evaluation_from_wire(one.evaluation))
            for one in figures
        ),
        models=tuple(
            Model(version=one.version, run=one.run, round=one.round, digest=one.model_digest)
            for one in models
        ),
    )


def _members(silos: Sequence[admin_pb2.Silo]) -> tuple[Member, ...]:
    return tuple(
        Member(
            name=silo.name,
            state=silo.state,
            reason=silo.reason,
            last_seen_s=silo.last_seen_s,
            certificate_ends_s=silo.certificate_not_after_s,
            agent_version=silo.agent_version,
        )
        for silo in silos
    )


def round_from_wire(state: admin_pb2.RoundSummary) -> Round:
    """A round as the Admin service tells of it."""
    distils = state.HasField("distillation_loss_before")
    return Round(
        number=state.number,
        phase=state.phase,
        reason=state.reason,
        model_digest=state.model_digest,
        invited=tuple(state.invited),
        parts=tuple(
            Part(
                silo=part.silo,
                images=part.report.num_images,
                train_loss=None if part.report.HasField("privacy") else part.report.train_loss,
                weight=part.weight,
                flags=tuple(part.flags),
            )
            for part in state.participants
        ),
        refused=dict(state.refused),
        declined=dict(state.declined),
        phase_seconds=dict(state.phase_seconds),
        upload_bytes=state.upload_bytes,
        download_bytes=state.download_bytes,
        loss_before=state.distillation_loss_before if distils else None,
        loss_after=state.distillation_loss_after if distils else None,
    )
