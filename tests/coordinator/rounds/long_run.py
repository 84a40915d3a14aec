"""What has a coordinator written down that has run for weeks? Made up through the journal's API."""

import msgspec

from coordinator.rounds.journal import EvaluationRow, Journal, SiloRow
from coordinator.rounds.machine import Accepted, Phase, RoundState
from fedreid.audit import AuditLog
from fedreid.contract import EvaluationResult, ModelKind, UpdateReport

_KINDS: tuple[ModelKind, ...] = ("global", "local", "standalone")


def names(count: int) -> tuple[str, ...]:
    """So many silos."""
    return tuple(f"silo-{number:03d}" for number in range(count))


def register(journal: Journal, silos: tuple[str, ...]) -> None:
    """Let silos belong to the federation that nobody has a key of."""
    for silo in silos:
        journal.save_silo(
            SiloRow(
                name=silo,
                state="active",
                key_fingerprint=silo.encode().hex(),
                certificate_pem=b"p" * 1200,
                not_after_s=2e9,
            )
        )


def finished_round(like: RoundState, number: int, silos: tuple[str, ...]) -> RoundState:
    """A round to which all silos delivered."""
    report = UpdateReport(num_images=900, cosine_distance=0.2, train_loss=1.5, num_steps=29)
    return msgspec.structs.replace(
        like,
        number=number,
        published_before=number - 1,
        invited=silos,
        phase=Phase.PUBLISHED,
        updates=tuple(
            Accepted(silo=silo, payload_digest="d" * 64, size_bytes=94_000_000, report=report)
            for silo in silos
        ),
        weights=dict.fromkeys(silos, 1 / len(silos)),
        update_norms=dict.fromkeys(silos, 0.125),
        phase_seconds={"collecting": 600.0, "aggregating": 2.0, "publishing": 0.1},
        model_digest=like.base_digest,
    )


def write_rounds(
    journal: Journal, like: RoundState, numbers: range, silos: tuple[str, ...]
) -> None:
    """Rounds that have ended, with the figures of each silo."""
    for number in numbers:
        journal.save_round(finished_round(like, number, silos))
        journal.save_evaluations(
            [
                EvaluationRow(run=like.run, round=number, silo=silo, result=_figure(kind))
                for silo in silos
                for kind in _KINDS
            ]
        )


def write_audit(audit: AuditLog, run: str, numbers: range, silos: tuple[str, ...]) -> None:
    """What the audit log holds of them."""
    for number in numbers:
        audit.append("round.opened", run=run, round=number, invited=list(silos))
        for silo in silos:
            audit.append("update.accepted", run=run, round=number, silo=silo, size_bytes=94)
        audit.append("round.published", run=run, round=number, model_digest="b" * 64)


def _figure(kind: ModelKind) -> EvaluationResult:
    return EvaluationResult(
        model=kind, rank1=0.5, rank5=0.75, rank10=0.875, map=0.25, minp=0.125, queries=900
    )
