"""What of a round goes into the audit log? Each update's fate, and how the round ended.

The journal comes first. What it has taken has happened, whether or not the disk takes the line
about it too: the line is owed then, and is written before any other. What a crash has left out is
made up when the coordinator starts.
"""

import threading
from collections import deque
from collections.abc import Iterator
from itertools import takewhile

from coordinator.folders import Folders
from coordinator.rounds.journal import Journal
from coordinator.rounds.machine import (
    Accepted,
    Aggregated,
    Declined,
    Event,
    Phase,
    ResultsLost,
    RoundState,
    UpdateAccepted,
    UpdateRejected,
    UpdatesLost,
)
from fedreid.audit import AuditLine, AuditLog, Field, newest_first
from fedreid.clock import Clock

_COMMITS = "commits"


def audit_of(folders: Folders, journal: Journal, clock: Clock) -> AuditLog:
    """The coordinator's audit log; each line says how many commits the journal had seen."""
    return AuditLog(folders.audit, clock, witnessed=lambda: {_COMMITS: journal.commits})


def commits_seen(folders: Folders) -> int:
    """How many commits the journal had seen when the audit log's last line was written.

    Raises:
        AuditBroken, StorageError: the line can't be read.
    """
    line = next(newest_first(folders.audit), None)
    seen = 0 if line is None else line.fields.get(_COMMITS, 0)
    return seen if isinstance(seen, int) else 0


class Chronicle:
    """Lines that are owed to the audit log, in their order."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._owed: deque[tuple[str, dict[str, Field]]] = deque()
        self._settling = threading.Lock()

    def append(self, event: str, **fields: Field) -> None:
        """Owe a line; this touches no disk."""
        self._owed.append((event, fields))

    def newest_first(self) -> Iterator[AuditLine]:
        """Every line that stands in the log; none that is owed."""
        return self._audit.newest_first()

    def settle(self) -> None:
        """Write what is owed; blocks on the disk.

        Raises:
            StorageError: the disk does not take it; it stays owed.
            AuditBroken: what stands at the end of the log is no line of it.
        """
        with self._settling:
            self._audit.append_owed(self._owed)


Log = AuditLog | Chronicle
"""Where lines go: at once, or as soon as the disk takes them."""


def note_opened(audit: Log, state: RoundState) -> None:
    """A round has begun."""
    audit.append(
        "round.opened",
        run=state.run,
        round=state.number,
        base_digest=state.base_digest,
        invited=list(state.invited),
    )


def note_event(audit: Log, before: RoundState, event: Event, after: RoundState) -> None:
    """An event has changed a round."""
    place: dict[str, Field] = {"run": after.run, "round": after.number}
    if isinstance(event, UpdateAccepted) and len(after.updates) > len(before.updates):
        _note_accepted(audit, after, event.update)
    elif isinstance(event, UpdatesLost):
        for silo in event.silos:
            audit.append("update.lost", **place, silo=silo)
    elif isinstance(event, ResultsLost):
        audit.append("round.made_again", **place)
    elif isinstance(event, UpdateRejected):
        audit.append("update.refused", **place, silo=event.silo, reason=event.reason)
    elif isinstance(event, Declined):
        audit.append("round.declined", **place, silo=event.silo, policy_key=event.policy_key)
    elif isinstance(event, Aggregated):
        for silo in after.flags:
            _note_flagged(audit, after, silo)
    if after.ended and not before.ended:
        _note_end(audit, after)


def make_up(audit: Log, state: RoundState) -> None:
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


def _note_accepted(audit: Log, state: RoundState, update: Accepted) -> None:
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


def _note_flagged(audit: Log, state: RoundState, silo: str) -> None:
    audit.append(
        "update.flagged",
        run=state.run,
        round=state.number,
        silo=silo,
        flags=list(state.flags[silo]),
        update_norm=state.update_norms[silo],
    )


def _note_end(audit: Log, state: RoundState) -> None:
    place: dict[str, Field] = {"run": state.run, "round": state.number}
    if state.phase is Phase.PUBLISHED:
        audit.append(
            "round.published", **place, model_digest=state.model_digest, weights=state.weights
        )
    else:
        audit.append(f"round.{state.phase}", **place, reason=state.reason)
