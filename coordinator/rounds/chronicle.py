"""What of a round goes into the audit log? Each update's fate, and how the round ended."""

from itertools import takewhile

from coordinator.rounds.machine import (
    Accepted,
    Aggregated,
    Declined,
    Event,
    Phase,
    RoundState,
    UpdateAccepted,
    UpdateRejected,
)
from fedreid.audit import AuditLine, AuditLog, Field


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
        _note_accepted(audit, after, event.update)
    elif isinstance(event, UpdateRejected):
        audit.append("update.refused", **place, silo=event.silo, reason=event.reason)
    elif isinstance(event, Declined):
        audit.append("round.declined", **place, silo=event.silo, policy_key=event.policy_key)
    elif isinstance(event, Aggregated):
        for silo in after.flags:
            _note_flagged(audit, after, silo)
    if after.ended and not before.ended:
        _note_end(audit, after)


def make_up(audit: AuditLog, state: RoundState) -> None:
    """Write what a crash has left out of the log: the journal has it, and comes before the log."""
    place = (state.run, state.number)

    def before_the_round(line: AuditLine) -> bool:
        number = line.fields.get("round", -1)
        return line.event == "round.opened" and (line.fields.get("run"), number) != place

    since = list(takewhile(lambda line: not before_the_round(line), audit.newest_first()))
    of_round = [x for x in since if (x.fields.get("run"), x.fields.get("round")) == place]
    noted = {(line.event, line.fields.get("silo")) for line in of_round}
    if ("round.opened", None) not in noted:
        note_opened(audit, state)
    for update in state.updates:
        if ("update.accepted", update.silo) not in noted:
            _note_accepted(audit, state, update)
    for silo in state.flags:
        if ("update.flagged", silo) not in noted:
            _note_flagged(audit, state, silo)
    if state.ended and (f"round.{state.phase}", None) not in noted:
        _note_end(audit, state)


def _note_accepted(audit: AuditLog, state: RoundState, update: Accepted) -> None:
    audit.append(
        "update.accepted",
        run=state.run,
        round=state.number,
        silo=update.silo,
        payload_digest=update.payload_digest,
        size_bytes=update.size_bytes,
        num_images=update.report.num_images,
        cosine_distance=update.report.cosine_distance,
    )


def _note_flagged(audit: AuditLog, state: RoundState, silo: str) -> None:
    audit.append(
        "update.flagged",
        run=state.run,
        round=state.number,
        silo=silo,
        flags=list(state.flags[silo]),
        update_norm=state.update_norms[silo],
    )


def _note_end(audit: AuditLog, state: RoundState) -> None:
    place: dict[str, Field] = {"run": state.run, "round": state.number}
    if state.phase is Phase.PUBLISHED:
        audit.append(
            "round.published", **place, model_digest=state.model_digest, weights=state.weights
        )
    else:
        audit.append(f"round.{state.phase}", **place, reason=state.reason)
