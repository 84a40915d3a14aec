"""Which run and round is it, and how do they change? In the journal, then in memory, then told.

The journal is written before memory changes and before anybody is answered, so a restarted
coordinator finds itself in the same phase of the same round and does it again. Memory follows at
once, before the audit log is written: a disk that fills up there must not let the two part.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from msgspec.structs import replace

from coordinator import metrics
from coordinator.rounds.chronicle import Chronicle, note_event
from coordinator.rounds.journal import PAUSED, RUNNING, Journal, RunRow
from coordinator.rounds.machine import Event, Phase, RoundState, UpdateAccepted, advance
from coordinator.rounds.orders import rules_of
from coordinator.rounds.planned import Planned, Plans
from coordinator.rounds.together import Together
from fedreid import faults
from fedreid.audit import AuditLog, Field
from fedreid.clock import Clock
from fedreid.limits import CONCURRENT_TRANSFERS
from fedreid.plan import Plan
from fedreid.work import off_loop


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happening:
    """An event, and the state that it is about, if it is about one alone."""

    event: Event
    seen: RoundState | None


class Current:
    """The current run and round, for everybody who reads or changes them."""

    def __init__(self, journal: Journal, audit: AuditLog, clock: Clock) -> None:
        self.journal = journal
        self.chronicle = Chronicle(audit)
        self._clock = clock
        self.turn = asyncio.Lock()
        """Held from the look at what is so until what follows from it is in journal and memory."""
        self._events = Together(self.turn, self._apply)
        self.changed = asyncio.Event()
        """Set when run, phase or plan changes the next time; then there is another one."""
        self.stirred = asyncio.Event()
        """The same, and set as well when a silo has come: for who waits for silos."""
        self.activity = ""
        """What the coordinator does or waits for, for a person to read."""
        self.gathering_since_s = clock.monotonic_s()
        """Since when the next round could begin; by the monotonic clock."""
        self.downloaded_bytes = 0
        """Of models that were sent in this round."""
        self.left_over: list[RoundState] = []
        """Rounds that have ended, and whose folders are there still."""
        self.replay()

    def replay(self) -> None:
        """Read where the journal's newest run stands."""
        self.run: RunRow | None = self.journal.newest_run()
        self.round: RoundState | None = None
        self.rounds_published = 0
        self.failed_in_a_row = 0
        self.evaluated: set[tuple[int, str]] = set()
        """(round, silo) of published models that silos have measured; of the newest round alone."""
        self.plans = Plans(self.journal, self.run)
        if self.run is None:
            return
        self.round = self.journal.newest_round(self.run.name)
        if self.round is not None:
            published = self.round.phase is Phase.PUBLISHED
            self.rounds_published = self.round.published_before + published
            measured = self.journal.measured(self.run.name, self.round.number)
            self.evaluated = {(self.round.number, silo) for silo in measured}

    @property
    def plan(self) -> Plan:
        """What the round under way follows, or else the next one.

        Raises:
            RunError: there never was a run.
        """
        under_way = self.round is not None and not self.round.ended
        return self.plans.of_round(self.next_number - under_way)

    @property
    def transfers(self) -> int:
        """How many silos may fetch at once, and how many may send."""
        return CONCURRENT_TRANSFERS if self.run is None else self.plan.wire.transfers

    @property
    def newest_plan(self) -> Planned:
        """The current run's plan as it was changed last.

        Raises:
            RunError: there never was a run.
        """
        return self.plans.newest

    @property
    def next_number(self) -> int:
        """The number of the run's next round."""
        return 1 if self.round is None else self.round.number + 1

    @property
    def run_under_way(self) -> bool:
        """Whether there is a run that can go on."""
        return self.run is not None and self.run.state in (RUNNING, PAUSED)

    async def apply(self, event: Event, *, seen: RoundState | None = None) -> None:
        """Let an event happen: journal first, then memory, then everybody who waits.

        ``seen`` is the state that the event is about; if the round has moved on since in what
        counts, the event no longer matters. Events that come while one is committed go together
        into the next commit, each after the one before it.
        """
        await self._events.bring(_Happening(event=event, seen=seen))

    async def _apply(self, happenings: Sequence[_Happening]) -> None:
        begun = self.round
        if begun is None:
            return
        state, steps = begun, []
        for each in happenings:
            if each.seen is not None and each.seen.updates != state.updates:
                continue
            after = self.after(state, each.event)
            if after != state:
                steps.append((state, each.event, after))
                state = after
        if steps:
            with _commit_of([event for _, event, _ in steps]), _closing_intake(begun, state):
                await off_loop(self.journal.save_round, state)
            self.take(state)
            for step in steps:
                note_event(self.chronicle, *step)
            await off_loop(self.chronicle.settle)

    def after(self, state: RoundState, event: Event) -> RoundState:
        """The round as an event would leave it now."""
        return advance(state, event, rules_of(self.plan, state), self._clock.now_s())

    def take(self, state: RoundState) -> None:
        """Make a journalled state the current one.

        Within a phase nobody's task changes but that of the silo whose update it was: then nobody
        who waits is woken, for of a thousand silos each would be, a thousand times.
        """
        before, self.round = self.round, state
        metrics.ROUND_CURRENT.set(state.number)
        if state.ended:
            self.gathering_since_s = self._clock.monotonic_s()
            self._note_end(state)
        if before is None or (before.number, before.phase) != (state.number, state.phase):
            self.notify()

    def _note_end(self, state: RoundState) -> None:
        metrics.note_round(state, self._clock.now_s())
        if state.phase is Phase.PUBLISHED:
            self.rounds_published += 1
        self.failed_in_a_row = 0 if state.phase is Phase.PUBLISHED else self.failed_in_a_row + 1
        self.left_over.append(state)

    async def set_run_state(self, state: str, reason: str) -> None:
        """Let the run pause, go on or end."""
        assert self.run is not None
        with faults.step("run.commit"):
            await off_loop(self.journal.set_run_state, self.run.name, state, reason)
        self.run = replace(self.run, state=state, reason=reason)
        self.gathering_since_s = self._clock.monotonic_s()
        self.notify()
        await self.note(f"run.{state}", run=self.run.name, reason=reason)

    async def note(self, event: str, **fields: Field) -> None:
        """Write a line into the audit log, after those that are owed to it."""
        self.chronicle.append(event, **fields)
        await off_loop(self.chronicle.settle)

    def tell(self, activity: str) -> None:
        """Say what the coordinator does or waits for."""
        self.activity = activity

    def notify(self) -> None:
        """Let everybody look again who waits for a change."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        self.stir()

    def stir(self) -> None:
        """Let the conductor look again who is there."""
        stirred, self.stirred = self.stirred, asyncio.Event()
        stirred.set()


async def wait_for(changed: asyncio.Event, seconds: float) -> None:
    """Wait until something has changed, but no longer than this."""
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return


def _commit_of(events: Sequence[Event]) -> AbstractContextManager[None]:
    if any(isinstance(event, UpdateAccepted) for event in events):
        return faults.step("upload.accept.commit")
    return faults.step("round.commit")


def _closing_intake(before: RoundState, after: RoundState) -> AbstractContextManager[None]:
    closing = before.phase is Phase.COLLECTING and after.phase is not Phase.COLLECTING
    return faults.step("intake.close.commit") if closing else nullcontext()
