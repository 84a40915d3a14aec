"""Who makes a round go on? The conductor: it does what a phase asks for, and tells the machine.

The journal is written before memory changes and before anybody is answered, so a restarted
coordinator finds itself in the same phase of the same round and does it again. Memory follows at
once, before the audit log is written: a disk that fills up there must not let the two part.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from msgspec.structs import replace

from coordinator import metrics
from coordinator.folders import Folders
from coordinator.rounds.chronicle import Chronicle, make_up, note_event, note_opened
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
    Declined,
    Event,
    Phase,
    Published,
    RoundState,
    Rules,
    SiloGone,
    TimePassed,
    UpdateAccepted,
    advance,
    open_round,
)
from coordinator.rounds.orders import models_by_silo, rules_of
from coordinator.rounds.phases import Phases, check_folders
from coordinator.rounds.planned import Planned, Plans
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.quarantine import due, streaks_after
from coordinator.rounds.tasks import evaluation_awaited, task_for
from coordinator.trust.registry import QUARANTINED, Registry
from fedreid import faults
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.contract import EvaluationResult, Task, WaitTask
from fedreid.errors import (
    FedreidError,
    JobFailed,
    Refusal,
    RunError,
    UpdateRefused,
    storage_errors,
)
from fedreid.files import remove_folder, sync_folder
from fedreid.limits import (
    FAILED_ROUNDS_IN_A_ROW,
    GATHER_S,
    JOB_ATTEMPTS,
    JOB_RETRY_S,
    VERSIONS_AHEAD,
)
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
        self._chronicle = Chronicle(audit)
        self._clock = clock
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._gathering_since_s = clock.monotonic_s()
        self._downloaded_bytes = 0
        self._failed_jobs = 0
        self._left_over: list[Path] = []
        self._caught_up_with: set[SiloName] = set()
        self.activity = ""
        """What the coordinator does or waits for, for a person to read."""
        phases.tell = self._tell
        self.round: RoundState | None = None
        self._replay()
        if self.round is not None:
            make_up(self._chronicle, self.round)
        self._drop_gone()
        self._chronicle.settle()
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
                self._chronicle.append(f"silo.{row.state}", silo=silo, reason=row.reason)
                self._chronicle.settle()  # once the round is without it, no start would tell
                self._journal.save_round(after)
                note_event(self._chronicle, before, event, after)
                self._chronicle.append("silo.gone", silo=silo)
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
        self._evaluated: set[tuple[int, str]] = set()  # of the newest round alone
        self._late: set[tuple[str, int]] = set()
        self._plans = Plans(self._journal, self.run)
        if self.run is None:
            return
        self.round = self._journal.newest_round(self.run.name)
        if self.round is not None:
            published = self.round.phase is Phase.PUBLISHED
            self.rounds_published = self.round.published_before + published
            measured = self._journal.measured(self.run.name, self.round.number)
            self._evaluated = {(self.round.number, silo) for silo in measured}

    @property
    def plan(self) -> Plan:
        """What the round under way follows, or else the next one.

        Raises:
            RunError: there never was a run.
        """
        under_way = self.round is not None and not self.round.ended
        return self._plans.of_round(self._next_number - under_way)

    @property
    def newest_plan(self) -> Planned:
        """The current run's plan as it was changed last.

        Raises:
            RunError: there never was a run.
        """
        return self._plans.newest

    @property
    def _next_number(self) -> int:
        return 1 if self.round is None else self.round.number + 1

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
            self._chronicle.append("run.started", run=run.name, model=model.digest)
            await off_loop(self._chronicle.settle)
            return run

    async def control(self, state: str, reason: str) -> RunRow:
        """Pause, resume or stop the current run.

        Raises:
            RunError: it is not under way.
        """
        self._run_under_way()
        await self._set_run_state(state, reason)  # first, or another round would be opened
        if state == STOPPED:
            await self.apply(Abandoned(reason=reason))
        assert self.run is not None
        return self.run

    async def change_run(self, plan_toml: str, admin: str) -> tuple[int, tuple[str, ...]]:
        """Give the current run another plan, which its next round begins to follow.

        Returns:
            That round's number, and what is different, a line for each key.

        Raises:
            PlanRefused: the plan is wrong, or changes what a run keeps.
            RunError: no run is under way, or a folder of the plan is missing.
        """
        check_folders(parse_plan(plan_toml))
        async with self._turn:
            run = self._run_under_way()
            planned = Planned.of(self._next_number, plan_toml)
            changes = await off_loop(
                self._plans.change,
                run.name,
                planned,
                published=self.rounds_published,
                admin=admin,
                audit=self._chronicle,
            )
            self._notify()
            await off_loop(self._chronicle.settle)
            return planned.from_round, changes

    def _run_under_way(self) -> RunRow:
        if self.run is None or self.run.state not in (RUNNING, PAUSED):
            raise RunError("No run is under way", next_step="Start one: coordinator run start.")
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
            with _commit_of(event), _closing_intake(state, after):
                await off_loop(self._journal.save_round, after)
            self._take(after)
            note_event(self._chronicle, state, event, after)
            await off_loop(self._chronicle.settle)

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
            self._chronicle.append(
                "model.rolled_back",
                run=self.run.name,
                version=model.version,
                of_version=version,
                model_digest=model.digest,
                admin=admin,
            )
            note_event(self._chronicle, state, Abandoned(reason=reason), after)
            await off_loop(self._chronicle.settle)
            return model

    async def catch_up(self, silo: SiloName, version: int, digest: str) -> None:
        """Where a silo has taken a version that the journal does not know, publish beyond it.

        The journal is of an older backup or disk then, and agents take no older version: the
        newest models get one that is newer than any silo's. A silo is believed once in a
        coordinator's life, for what it may say next is what this coordinator has published.
        """
        if silo in self._caught_up_with or not await off_loop(self._is_ahead, version, digest):
            return
        async with self._turn:
            if not await off_loop(self._is_ahead, version, digest):
                return
            self._caught_up_with.add(silo)
            models = await off_loop(self._models.released_beyond, version)
            await off_loop(self._journal.add_models, models)
            metrics.MODEL_VERSION.set(models[-1].version)
            for model in models:
                self._chronicle.append(
                    "model.caught_up",
                    run=model.run,
                    version=model.version,
                    model_digest=model.digest,
                    silo=silo,
                    silo_version=version,
                )
            await off_loop(self._chronicle.settle)

    def _is_ahead(self, version: int, digest: str) -> bool:
        newest = self._journal.newest_model()
        if newest is None or version > newest.version + VERSIONS_AHEAD:
            return False
        another = version == newest.version and digest != newest.digest
        return another or version > newest.version

    async def silo_gone(self, silo: SiloName, state: str, reason: str = "") -> None:
        """A silo leaves or is kept out: from now on nothing of it counts."""
        try:
            await to_the_end(self._shut_out(silo, state, reason))
            await self._end_calls(silo)
        finally:  # who asked may have given up waiting
            if not self._registry.active(silo):
                await to_the_end(self.apply(SiloGone(silo=silo)))
        self._presence.gone(silo)
        self._chronicle.append("silo.gone", silo=silo)
        await off_loop(self._chronicle.settle)

    async def _shut_out(self, silo: SiloName, state: str, reason: str) -> None:
        with faults.step("silo.gone.commit"):
            await off_loop(self._registry.set_state, silo, state, reason)
        self._chronicle.append(f"silo.{state}", silo=silo, reason=reason)
        with suppress(FedreidError):  # then it is owed; the silo is out all the same
            await off_loop(self._chronicle.settle)

    async def note_late(self, silo: SiloName, run: str, number: int) -> bool:
        """Write down that a silo's update of a round came too late; whether that was news."""
        newest = 0 if self.round is None else self.round.number
        known = self.run is not None and run == self.run.name and 1 <= number <= newest
        if not known or (silo, number) in self._late:
            return False
        self._late.add((silo, number))
        self._chronicle.append("update.late", run=run, round=number, silo=silo)
        await off_loop(self._chronicle.settle)
        return True

    async def decline(self, silo: SiloName, run: str, number: int, policy_key: str) -> None:
        """A silo will not do its task of a round, and will be silent: nobody waits for it."""
        self._presence.away(silo)
        state = self.round
        if state is None or (state.run, state.number) != (run, number):
            return
        await self.apply(Declined(silo=silo, policy_key=policy_key))
        if state.phase is Phase.PUBLISHED:  # what it declines is to measure the run's last model
            self._evaluated.add((number, silo))
        self._notify()

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
        # Without rows the silo has no query with a match: there is nothing to wait for.
        if number == newest and (not rows or any(row.result.model == "global" for row in rows)):
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

    async def has_accepted(self, silo: SiloName, run: str, number: int, digest: str) -> bool:
        """Whether an update was accepted, in whichever round there ever was."""
        state = await off_loop(self._journal.round, run, number)
        accepted = None if state is None else state.accepted(silo)
        return accepted is not None and accepted.payload_digest == digest

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
                with storage_errors("go on in", self._folders.root):
                    await self._step()
            except FedreidError as error:
                self.activity = str(error)
                await _wait(self._changed, JOB_RETRY_S)

    async def _step(self) -> None:
        await off_loop(self._chronicle.settle)
        while self._left_over:
            await off_loop(remove_folder, self._left_over[-1])
            self._left_over.pop()
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
        async with self._turn:  # or a change of the plan could come in between
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
            base = await off_loop(self._journal.newest_model)
            assert base is not None, "a run begins with a model"
            state = open_round(
                run=self.run.name,
                number=self._next_number,
                base_digest=base.digest,
                base_map=await off_loop(self._measured_map, base),
                before=self.round,
                published_before=self.rounds_published,
                invited=invited,
                rules=self._rules(None),
                now_s=self._clock.now_s(),
            )
            with faults.step("round.open"):
                await off_loop(self._journal.save_round, state)
            self._downloaded_bytes = 0
            self._evaluated.clear()
            self._take(state)
            note_opened(self._chronicle, state)
            await off_loop(self._chronicle.settle)

    def _measured_map(self, model: ModelRow) -> float | None:
        """The mAP of a model on the coordinator's own images, if it was measured."""
        own = self._journal.measured(model.run, model.round).get("")
        return None if own is None else own.map

    async def _do_phase(self, state: RoundState) -> None:
        """Do what the phase asks for; on failure try again until its deadline."""
        self.activity = str(state.phase)
        left_s = state.deadline_s - self._clock.now_s()
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                event = await self._phases.damage(state)
                if event is None and state.phase is Phase.PUBLISHING:
                    await self._publish(state)
                    return
                if event is None:
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
        if self.round is None or self.round.ended:
            return  # given up meanwhile: its files were taken away from under the job
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
            with faults.step("publish.commit"):
                await off_loop(self._journal.save_round, after, models)
            metrics.MODEL_VERSION.set(models[-1].version)
            before = self.round
            with faults.step("announce"):
                self._take(after)
            note_event(self._chronicle, before, published, after)
            await off_loop(self._chronicle.settle)
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
            plan=None if self.run is None else self.plan,
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
        self._left_over.extend(self._folders.of_round(state.run, state.number))

    async def _set_run_state(self, state: str, reason: str) -> None:
        assert self.run is not None
        with faults.step("run.commit"):
            await off_loop(self._journal.set_run_state, self.run.name, state, reason)
        self.run = replace(self.run, state=state, reason=reason)
        self._gathering_since_s = self._clock.monotonic_s()
        self._notify()
        self._chronicle.append(f"run.{state}", run=self.run.name, reason=reason)
        await off_loop(self._chronicle.settle)

    def _tell(self, activity: str) -> None:
        self.activity = activity

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _commit_of(event: Event) -> AbstractContextManager[None]:
    if isinstance(event, UpdateAccepted):
        return faults.step("upload.accept.commit")
    return faults.step("round.commit")


def _closing_intake(before: RoundState, after: RoundState) -> AbstractContextManager[None]:
    closing = before.phase is Phase.COLLECTING and after.phase is not Phase.COLLECTING
    return faults.step("intake.close.commit") if closing else nullcontext()


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
