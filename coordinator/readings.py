"""What do the figures show now that stand for a state? They are read from it at each scrape.

So a restart changes none of them, a silo that has gone leaves no series behind, and no call pays
for them. Whoever scrapes waits for a walk over the registry and for one folder's listing.
"""

import math
import shutil
from collections import Counter as Tally
from collections.abc import Iterable
from pathlib import Path

from coordinator import metrics
from coordinator.folders import Folders
from coordinator.rounds.current import Current
from coordinator.rounds.journal import RUNNING, Journal
from coordinator.rounds.machine import RoundState, needed
from coordinator.rounds.orders import rules_of
from coordinator.rounds.presence import Presence
from coordinator.trust.authorities import Authorities
from coordinator.trust.registry import Registry
from coordinator.trust.rollover import RollOver
from fedreid.clock import Clock
from fedreid.names import SiloName


class Readings:
    """Sets the figures that show a state."""

    def __init__(
        self,
        *,
        folders: Folders,
        current: Current,
        presence: Presence,
        authorities: Authorities,
        rollover: RollOver,
        registry: Registry,
        clock: Clock,
    ) -> None:
        self._folders = folders
        self._current = current
        self._presence = presence
        self._authorities = authorities
        self._rollover = rollover
        self._registry = registry
        self._since_s = clock.now_s()

    def take(self) -> None:
        """Set them all; from any one thread at a time."""
        self._take_silos()
        self._take_round()
        self._take_means()
        self._take_disk()
        authority = self._authorities.issuing.certificate
        metrics.CA_NOT_AFTER.set(authority.not_valid_after_utc.timestamp())
        metrics.TRUST_PENDING.set(len(self._rollover.awaited()))

    def _take_silos(self) -> None:
        rows = self._registry.silos()
        talking = {row.name for row in rows if self._registry.may_talk(row.name)}
        metrics.forget_silos(metrics.labelled_silos() - talking - {metrics.OTHER})
        for row in rows:
            if row.name not in talking or metrics.silo_label(row.name) == metrics.OTHER:
                continue
            seen_s = self._presence.of(SiloName(row.name)).seen_s
            metrics.SILO_LAST_SEEN.labels(row.name).set(max(seen_s, self._since_s))
            if row.not_after_s:
                metrics.SILO_CERTIFICATE.labels(row.name).set(row.not_after_s)
        states = Tally(row.state for row in rows)
        for state in metrics.SILO_STATES:
            metrics.SILOS.labels(state).set(states[state])
        metrics.SILOS_PRESENT.set(len(self._presence.present()))

    def _take_round(self) -> None:
        run, state = self._current.run, self._current.round
        metrics.RUN_UNDER_WAY.set(run is not None and run.state == RUNNING)
        metrics.RUN_STARTED.set(0 if run is None else run.started_at_s)
        metrics.ROUND_CURRENT.set(0 if state is None else state.number)
        if state is None:
            metrics.ROUND_QUORUM.set(0 if run is None else self._current.plan.quorum.min_silos)
            return
        metrics.ROUND_STARTED.set(state.phase_since_s - sum(state.phase_seconds.values()))
        for name, count in participants(state).items():
            metrics.ROUND_PARTICIPANTS.labels(name).set(count)
        least = needed(state, rules_of(self._current.plan, state))
        metrics.ROUND_QUORUM.set(math.ceil(least))

    def _take_means(self) -> None:
        """The global model over all silos, each counted alike."""
        for gauge, of_silos in (
            (metrics.MODEL_RANK1, metrics.SILO_RANK1),
            (metrics.MODEL_MAP, metrics.SILO_MAP),
        ):
            values = [
                sample.value
                for family in of_silos.collect()
                for sample in family.samples
                if sample.labels["model"] == "global"
            ]
            if values:
                gauge.labels("silos").set(sum(values) / len(values))

    def _take_disk(self) -> None:
        usage = shutil.disk_usage(self._folders.root)
        metrics.STORE_FREE.set(usage.free)
        metrics.STORE_SIZE.set(usage.total)
        state = self._current.round
        spool = [] if state is None else [self._folders.of_round(state.run, state.number)[0]]
        metrics.SPOOL_BYTES.set(_size(spool))


def participants(state: RoundState) -> dict[str, int]:
    """The invited silos of a round by what became of their update; each in one state besides."""
    accepted = {update.silo for update in state.updates}
    refused = state.refused.keys() - accepted
    declined = state.declined.keys() - accepted - refused
    invited = len(state.invited)
    return {
        "invited": invited,
        "accepted": len(accepted),
        "refused": len(refused),
        "declined": len(declined),
        "awaited": max(0, invited - len(accepted) - len(refused) - len(declined)),
    }


def show_past(journal: Journal) -> None:
    """Set what a restart would else leave at 0 until the next round ends: the newest figures.

    It reads what two rounds have left, however many there were.
    """
    model, run = journal.newest_model(), journal.newest_run()
    metrics.MODEL_VERSION.set(0 if model is None else model.version)
    if run is None or model is None or model.run != run.name:
        return
    state = journal.round(run.name, model.round)
    if state is not None:
        metrics.ROUND_LAST_SUCCESS.set(state.phase_since_s)
        metrics.show_round(state)
    for number in (model.round - 1, model.round):
        for row in journal.evaluations(run.name, number):
            metrics.show_evaluations(row.silo, [row.result])


def _size(folders: Iterable[Path]) -> int:
    """Bytes of files that others may move or remove meanwhile."""
    size = 0
    for folder in folders:
        for path in folder.glob("*"):
            try:
                size += path.stat().st_size
            except FileNotFoundError:
                continue
    return size
