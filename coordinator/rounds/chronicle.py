"""What of a round goes into the audit log? Each update's fate, and how the round ended."""

from coordinator.rounds.machine import (
    Aggregated,
    Declined,
    Event,
    Phase,
    RoundState,
    UpdateAccepted,
    UpdateRejected,
)
from fedreid.audit import AuditLog, Field


def note_opened(audit: AuditLog, state: RoundState) -> None:
    """A round has begun."""
    audit.append(
        "round.opened",
        run=state.run,
        round=state.number,
        base_digest=state.base_digest,
        invited=list(state.invited),
    )


def note_event(audit: AuditLog, before: RoundState, event: Event, after: RoundState) -> None:
    """An event has changed a round."""
    place: dict[str, Field] = {"run": after.run, "round": after.number}
    if isinstance(event, UpdateAccepted) and len(after.updates) > len(before.updates):
        update = event.update
        audit.append(
            "update.accepted",
            **place,
            silo=update.silo,
            payload_digest=update.payload_digest,
            size_bytes=update.size_bytes,
            num_images=update.report.num_images,
            cosine_distance=update.report.cosine_distance,
        )
    elif isinstance(event, UpdateRejected):
        audit.append("update.refused", **place, silo=event.silo, reason=event.reason)
    elif isinstance(event, Declined):
        audit.append("round.declined", **place, silo=event.silo, policy_key=event.policy_key)
    elif isinstance(event, Aggregated):
        for silo, flags in after.flags.items():
            norm = after.update_norms[silo]
            audit.append("update.flagged", **place, silo=silo, flags=list(flags), update_norm=norm)
    if after.ended and not before.ended:
        _note_end(audit, after)


def _note_end(audit: AuditLog, state: RoundState) -> None:
    place: dict[str, Field] = {"run": state.run, "round": state.number}
    if state.phase is Phase.PUBLISHED:
        audit.append(
            "round.published", **place, model_digest=state.model_digest, weights=state.weights
        )
    else:
        audit.append(f"round.{state.phase}", **place, reason=state.reason)
