"""Who makes a round go on? The conductor: it does what a phase asks for, and tells the machine.

The journal is written before memory changes and before anybody is answered, so a restarted
coordinator finds itself in the same phase of the same round and does it again. Memory follows at
once, before the audit log is written: a disk that fills up there must not let the two part.
"""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from coordinator import metrics
from coordinator.folders import Folders
from coordinator.rounds.chronicle import note_event, note_opened
from coordinator.rounds.journal import (
    FAILED,
    FINISHED,
    PAUSED,
    RUNNING,
    STOPPED,
    EvaluationRow,
    Journal,
    ModelRow,
    RunRow,
)
from coordinator.rounds.machine import (
    Abandoned,
    Aggregated,
    Event,
    Phase,
    Published,
    RoundState,
    Rules,
    SiloGone,
    TimePassed,
    advance,
    open_round,
)
from coordinator.rounds.orders import models_by_silo, rules_of
from coordinator.rounds.phases import Phases, check_folders
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.quarantine import due, streaks_after
from coordinator.rounds.tasks import evaluation_awaited, task_for
from coordinator.trust.registry import QUARANTINED, Registry
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.contract import EvaluationResult, Task, WaitTask
from fedreid.errors import FedreidError, JobFailed, Refusal, RunError, UpdateRefused
from fedreid.files import remove_folder, sync_folder
from fedreid.limits import FAILED_ROUNDS_IN_A_ROW, GATHER_S, JOB_ATTEMPTS, JOB_RETRY_S
from fedreid.names import SiloName, check_label
from fedreid.plan import Plan, parse_plan
from fedreid.work import off_loop, to_the_end

_IDLE_S = 1.0
_SEE_MODELS = "See: coordinator model list."


class Conductor:
    """The current run and round, and the one task that moves them."""

    def __init__(
        self,
        *,
        folders: Folders,
        journal: Journal,
        models: Models,
        registry: Registry,
        presence: Presence,
        phases: Phases,
        end_calls: Callable[[str], Awaitable[None]],
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._folders = folders
        self._journal = journal
        self._models = models
        self._registry = registry
        self._presence = presence
        self._phases = phases
        self._end_calls = end_calls
        self._audit = audit
        self._clock = clock
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._gathering_since_s = clock.monotonic_s()
        self._downloaded_bytes = 0
        self._failed_jobs = 0
        self.activity = ""
        """What the coordinator does or waits for, for a person to read."""
        phases.tell = self._tell
        self.round: RoundState | None = None
        self._replay()
        self._drop_gone()
        self._tidy()

    def _drop_gone(self) -> None:
        """Take silos out of the round that went in the moment of a crash."""
        if self.round is None:
            return
        for silo in self.round.invited:
            if self._registry.active(silo):
                continue
            before, event = self.round, SiloGone(silo=silo)
            after = advance(before, event, self._rules(before), self._clock.now_s())
            if after != before:
                row = self._registry.known(silo)
                self._audit.append(f"silo.{row.state}", silo=silo, reason=row.reason)
                self._journal.save_round(after)
                note_event(self._audit, before, event, after)
                self._audit.append("silo.gone", silo=silo)
                self.round = after

    def _tidy(self) -> None:
        """Remove what a crash left of rounds that have ended."""
        kept = None
        if self.round is not None and not self.round.ended:
            kept = self._folders.spool(self.round.run, self.round.number).name
        for folder in self._folders.rounds():
            if folder.name != kept:
                remove_folder(folder)
            else:  # or a power cut could still take it, with updates that were synced in it
                sync_folder(folder.parent)
        sync_folder(self._folders.root)
        self._models.remove_unfinished()

    def _replay(self) -> None:
        self.run: RunRow | None = self._journal.newest_run()
        self.round = None
        self.rounds_published = 0
        self._failed_in_a_row = 0
        self._evaluated: set[tuple[int, str]] = set()
        self._plan: Plan | None = None
        if self.run is None:
            return
        self._plan = parse_plan(self.run.plan_toml)
        self.round = self._journal.newest_round(self.run.name)
        if self.round is not None:
            published = self.round.phase is Phase.PUBLISHED
            self.rounds_published = self.round.published_before + published
        for row in self._journal.evaluations(self.run.name):
            self._remember_evaluation(row)

    @property
    def plan(self) -> Plan:
        """The current run's plan.

        Raises:
            RunError: there never was a run.
        """
        if self._plan is None:
            raise RunError("There is no run", next_step="Start one: coordinator run start PLAN.")
        return self._plan

    async def start_run(self, plan_toml: str) -> RunRow:
        """Start a run: make and publish its start weights.

        Raises:
            PlanRefused, NameRefused: the plan is wrong.
            RunError: another run is under way, or the name was used before.
        """
        plan = parse_plan(plan_toml)
        check_label(plan.name, what="run name")
        check_folders(plan)
        async with self._turn:
            if self.run is not None and self.run.state in (RUNNING, PAUSED):
                raise RunError(
                    f"The run {self.run.name} is {self.run.state}",
                    next_step="Wait until it has finished, or: coordinator run stop.",
                )
            if await off_loop(self._journal.run_exists, plan.name):
                raise RunError(
                    f"There was a run {plan.name!r} before", next_step="Choose another name."
                )
            self.activity = "making the start weights"
            model = await self._phases.start_weights(plan)
            run = RunRow(
                name=plan.name,
                plan_toml=plan_toml,
                state=RUNNING,
                started_at_s=self._clock.now_s(),
            )
            await off_loop(self._journal.add_run, run, model)
            self._replay()
            self._notify()
            await off_loop(self._audit.append, "run.started", run=run.name, model=model.digest)
            return run

    async def control(self, state: str, reason: str) -> RunRow:
        """Pause, resume or stop the current run.

        Raises:
            RunError: it is not under way.
        """
        if self.run is None or self.run.state not in (RUNNING, PAUSED):
            raise RunError("No run is under way", next_step="Start one: coordinator run start.")
        await self._set_run_state(state, reason)  # first, or another round would be opened
        if state == STOPPED:
            await self.apply(Abandoned(reason=reason))
        assert self.run is not None
        return self.run

    async def apply(self, event: Event, *, seen: RoundState | None = None) -> None:
        """Let an event happen: journal first, then memory, then everybody who waits.

        ``seen`` is the state that the event is about; if the round has moved on since in what
        counts, the event no longer matters.
        """
        async with self._turn:
            # A call may be ended while it is in here; journal and memory must not part.
            await to_the_end(self._apply(event, seen))

    async def _apply(self, event: Event, seen: RoundState | None) -> None:
        state = self.round
        if state is None or (seen is not None and seen.updates != state.updates):
            return
        after = advance(state, event, self._rules(state), self._clock.now_s())
        if after != state:
            await off_loop(self._journal.save_round, after)
            self._take(after)
            await off_loop(note_event, self._audit, state, event, after)

    async def roll_back(self, version: int, admin: str) -> ModelRow:
        """Publish an earlier model of the run again; the round under way is given up.

        Its release has a new version, for agents take no older one, and the next round starts
        from it. Models that the run has published count as published all the same.

        Raises:
            RunError: the run has no such model, it is the newest, or its file is gone.
        """
        async with self._turn:
            state = self.round
            if self.run is None or state is None:
                raise RunError("There is no model to go back to", next_step=_SEE_MODELS)
            model = await off_loop(self._models.released_again, self.run.name, version)
            reason = f"{admin} went back to model {version}"
            after = advance(
                state, Abandoned(reason=reason), self._rules(state), self._clock.now_s()
            )
            await off_loop(self._journal.save_round, after, [model])
            metrics.MODEL_VERSION.set(model.version)
            if after != state:
                self._take(after)
            self._failed_in_a_row = 0  # what was given up is no failure of the plan's
            await off_loop(
                self._audit.append,
                "model.rolled_back",
                run=self.run.name,
                version=model.version,
                of_version=version,
                model_digest=model.digest,
                admin=admin,
            )
            await off_loop(note_event, self._audit, state, Abandoned(reason=reason), after)
            return model

    async def silo_gone(self, silo: SiloName, state: str, reason: str = "") -> None:
        """A silo leaves or is kept out: from now on nothing of it counts."""
        try:
            await to_the_end(self._shut_out(silo, state, reason))
            await self._end_calls(silo)
        finally:  # who asked may have given up waiting, or the audit log has no room
            if not self._registry.active(silo):
                await to_the_end(self.apply(SiloGone(silo=silo)))
        self._presence.gone(silo)
        await off_loop(self._audit.append, "silo.gone", silo=silo)

    async def _shut_out(self, silo: SiloName, state: str, reason: str) -> None:
        await off_loop(self._registry.set_state, silo, state, reason)
        await off_loop(self._audit.append, f"silo.{state}", silo=silo, reason=reason)

    async def next_task(
        self, silo: SiloName, wait_s: float, *, first: Callable[[], Task | None] = lambda: None
    ) -> Task:
        """The silo's task; waits for up to ``wait_s`` for something to do.

        ``first`` is asked whenever something has changed; what it gives goes before the round.
        """
        until_s = self._clock.monotonic_s() + wait_s
        while True:
            changed = self._changed
            task = first() or self._task(silo)
            left_s = until_s - self._clock.monotonic_s()
            if not isinstance(task, WaitTask) or left_s <= 0:
                return task
            await _wait(changed, left_s)
            self._presence.seen(silo)

    async def save_evaluations(
        self, silo: SiloName, run: str, number: int, results: list[EvaluationResult]
    ) -> None:
        """Store what a silo measured.

        Raises:
            UpdateRefused: the run is not the current one, or has no such round.
        """
        newest = 0 if self.round is None else self.round.number
        if self.run is None or run != self.run.name or not 0 <= number <= newest:
            raise UpdateRefused(Refusal.REPORT, "The figures are of a run or round that is not on")
        rows = [
            EvaluationRow(run=run, round=number, silo=silo, result=result) for result in results
        ]
        await off_loop(self._journal.save_evaluations, rows)
        for row in rows:
            self._remember_evaluation(row)
        if not rows:  # the silo has no query with a match: there is nothing to wait for
            self._evaluated.add((number, silo))
        self._notify()

    def awaited_evaluations(self) -> list[str]:
        """Silos whose figures for the run's last model are still to come."""
        if self.run is None or self.run.state != FINISHED or self.round is None:
            return []
        return [
            silo
            for silo in self.round.invited
            if self._registry.active(silo)
            and evaluation_awaited(self.plan, self.round, silo, self._evaluated)
        ]

    def downloaded(self, size_bytes: int) -> None:
        """Count bytes of models that were sent."""
        self._downloaded_bytes += size_bytes

    def look_again(self) -> None:
        """Something outside the rounds has changed: a silo has come, or has to renew."""
        self._notify()

    async def serve(self) -> None:
        """Move rounds on, for ever. Errors of our tree are told and tried again."""
        while True:
            try:
                await self._step()
            except FedreidError as error:
                self.activity = str(error)
                await _wait(self._changed, JOB_RETRY_S)

    async def _step(self) -> None:
        changed = self._changed
        if self.run is None or self.run.state not in (RUNNING, PAUSED):
            if self.run is not None and self.round is not None and not self.round.ended:
                # Stopped, and a crash or a full disk came before the round was given up.
                await self.apply(Abandoned(reason=self.run.reason))
            self.activity = "waiting for a run to be started"
            await _wait(changed, _IDLE_S)
        elif self.round is None or self.round.ended:
            if not await self._go_on():
                await _wait(changed, _IDLE_S)
        elif self.round.phase is Phase.COLLECTING:
            self.activity = "collecting updates"
            left_s = self.round.deadline_s - self._clock.now_s()
            await _wait(changed, min(max(left_s, 0.0), _IDLE_S))
            await self.apply(TimePassed())
        else:
            await self.apply(TimePassed())
            if not self.round.ended:
                await self._do_phase(self.round)

    async def _go_on(self) -> bool:
        """Finish the run or open its next round; False if there is nothing to do yet."""
        assert self.run is not None
        if self.rounds_published >= self.plan.rounds:
            await self._set_run_state(FINISHED, "all models are published")
            return True
        if self._failed_in_a_row >= FAILED_ROUNDS_IN_A_ROW:
            reason = self.round.reason if self.round is not None else ""
            await self._set_run_state(
                FAILED, f"{self._failed_in_a_row} rounds in a row failed; the last: {reason}"
            )
            return True
        if self.run.state == PAUSED:
            self.activity = "paused"
            return False
        invited = self._gathered()
        if invited is None:
            return False
        await self._open(invited)
        return True

    def _gathered(self) -> tuple[SiloName, ...] | None:
        """The silos to invite, or None while more are waited for."""
        present = [silo for silo in self._presence.present() if self._registry.active(silo)]
        known = sum(self._registry.active(row.name) for row in self._registry.silos())
        waited_s = self._clock.monotonic_s() - self._gathering_since_s
        if len(present) < self.plan.quorum.min_silos:
            self.activity = (
                f"waiting for silos: {len(present)} of at least "
                f"{self.plan.quorum.min_silos} are there"
            )
            return None
        if len(present) < known and waited_s < GATHER_S:
            self.activity = f"waiting for silos that are away: {len(present)} of {known} are there"
            return None
        return tuple(present)

    async def _open(self, invited: tuple[SiloName, ...]) -> None:
        assert self.run is not None
        async with self._turn:
            number = 1 if self.round is None else self.round.number + 1
            base = await off_loop(self._journal.newest_model)
            assert base is not None, "a run begins with a model"
            state = open_round(
                run=self.run.name,
                number=number,
                base_digest=base.digest,
                base_map=await off_loop(self._measured_map, base),
                before=self.round,
                published_before=self.rounds_published,
                invited=invited,
                rules=self._rules(None),
                now_s=self._clock.now_s(),
            )
            await off_loop(self._journal.save_round, state)
            self._downloaded_bytes = 0
            self._take(state)
            await off_loop(note_opened, self._audit, state)

    def _measured_map(self, model: ModelRow) -> float | None:
        """The mAP of a model on the coordinator's own images, if it was measured."""
        for row in self._journal.evaluations(model.run):
            if (row.round, row.silo) == (model.round, ""):
                return row.result.map
        return None

    async def _do_phase(self, state: RoundState) -> None:
        """Do what the phase asks for; on failure try again until its deadline."""
        self.activity = str(state.phase)
        left_s = state.deadline_s - self._clock.now_s()
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                if state.phase is Phase.PUBLISHING:
                    await self._publish(state)
                    return
                event = await self._phases.perform(state, self.plan, self._rules(state))
        except TimeoutError:
            await self.apply(TimePassed(), seen=state)
            return
        except FedreidError as error:
            await self._phase_failed(state, error, left_s)
            return
        self._failed_jobs = 0
        if isinstance(event, Aggregated):
            await self._quarantine(state, event)
        await self.apply(event, seen=state)

    async def _quarantine(self, state: RoundState, event: Aggregated) -> None:
        """Keep out whose updates were suspect too often; the round is aggregated without them.

        Before the flags are journalled, so that a crash in between repeats it and loses nothing.
        """
        streaks = streaks_after(state.streaks, [u.silo for u in state.updates], event.flags)
        for silo in due(streaks, self._rules(state).quarantine_rounds):
            if state.accepted(silo) is None:
                continue
            flags = ", ".join(event.flags[silo])
            reason = f"its updates looked wrong {streaks[silo]} rounds in a row, lately: {flags}"
            await self.silo_gone(SiloName(silo), QUARANTINED, reason)

    async def _phase_failed(self, state: RoundState, error: FedreidError, left_s: float) -> None:
        """Try again later what people can mend; give up what fails again by itself."""
        if isinstance(error, JobFailed):
            self._failed_jobs += 1
            if self._failed_jobs >= JOB_ATTEMPTS:
                self._failed_jobs = 0
                await self.apply(Abandoned(reason=f"{state.phase} failed: {error}"), seen=state)
                return
        self.activity = f"{state.phase} failed and is tried again: {error}"
        await asyncio.sleep(min(JOB_RETRY_S, max(left_s, 0.0)))
        await self.apply(TimePassed(problem=str(error)), seen=state)

    async def _publish(self, state: RoundState) -> None:
        """Place the model, then commit release and end of the round together."""
        models = await self._phases.publish(state, self.plan, self._rules(state))
        async with self._turn:
            if self.round is None or self.round.updates != state.updates:
                return
            published = Published(
                model_digest=models[-1].digest,
                models=models_by_silo(state, [model.digest for model in models[:-1]]),
                download_bytes=self._downloaded_bytes,
            )
            after = advance(self.round, published, self._rules(state), self._clock.now_s())
            if after == self.round:  # given up meanwhile: its models were never the federation's
                return
            await off_loop(self._journal.save_round, after, models)
            metrics.MODEL_VERSION.set(models[-1].version)
            before = self.round
            self._take(after)
            await off_loop(note_event, self._audit, before, published, after)
        await off_loop(self._models.remove_old)

    def _rules(self, state: RoundState | None) -> Rules:
        return rules_of(self.plan, state)

    def _task(self, silo: SiloName) -> Task:
        if not self._registry.active(silo):
            row = self._registry.known(silo)
            return WaitTask(reason=f"this silo is {row.state}: {row.reason}")
        return task_for(
            silo,
            run=self.run,
            plan=self._plan,
            state=self.round,
            evaluated=self._evaluated,
            activity=self.activity,
            now_s=self._clock.now_s(),
        )

    def _take(self, state: RoundState) -> None:
        """Make a journalled state the current one."""
        self.round = state
        metrics.ROUND_CURRENT.set(state.number)
        if state.ended:
            self._gathering_since_s = self._clock.monotonic_s()
            self._note_end(state)
        self._notify()

    def _note_end(self, state: RoundState) -> None:
        metrics.note_round(state, self._clock.now_s())
        if state.phase is Phase.PUBLISHED:
            self.rounds_published += 1
        self._failed_in_a_row = 0 if state.phase is Phase.PUBLISHED else self._failed_in_a_row + 1
        remove_folder(self._folders.spool(state.run, state.number))
        remove_folder(self._folders.work(state.run, state.number))

    def _remember_evaluation(self, row: EvaluationRow) -> None:
        if row.result.model == "global":
            self._evaluated.add((row.round, row.silo))

    async def _set_run_state(self, state: str, reason: str) -> None:
        assert self.run is not None
        await off_loop(self._journal.set_run_state, self.run.name, state, reason)
        self.run = replace(self.run, state=state, reason=reason)
        self._gathering_since_s = self._clock.monotonic_s()
        self._notify()
        await off_loop(self._audit.append, f"run.{state}", run=self.run.name, reason=reason)

    def _tell(self, activity: str) -> None:
        self.activity = activity

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
