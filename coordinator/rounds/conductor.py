"""Who makes a round go on? The conductor: it does what a phase asks for, and tells the machine.

One task, and one step at a time: remove what the last round has left; finish the run or open its
next round; wait for updates; do the work of a phase; publish. What it reads and changes is
``Current``; what silos and administrators change meanwhile reaches it by the same way.
"""

import asyncio
from pathlib import Path

from coordinator import metrics
from coordinator.folders import Folders
from coordinator.rounds.chronicle import note_event, note_opened
from coordinator.rounds.current import Current, wait_for
from coordinator.rounds.departures import Departures
from coordinator.rounds.journal import FAILED, FINISHED, PAUSED, ModelRow
from coordinator.rounds.machine import (
    Abandoned,
    Aggregated,
    Phase,
    Published,
    RoundState,
    TimePassed,
    open_round,
)
from coordinator.rounds.orders import models_by_silo, rules_of
from coordinator.rounds.phases import Phases
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.quarantine import due, streaks_after
from coordinator.trust.registry import QUARANTINED, Registry
from fedreid import faults
from fedreid.clock import Clock
from fedreid.errors import FedreidError, JobFailed, storage_errors
from fedreid.files import remove_folder
from fedreid.limits import FAILED_ROUNDS_IN_A_ROW, GATHER_S, JOB_ATTEMPTS, JOB_RETRY_S
from fedreid.names import SiloName
from fedreid.work import off_loop

_IDLE_S = 1.0


class Conductor:
    """The one task that moves rounds."""

    def __init__(
        self,
        *,
        current: Current,
        folders: Folders,
        models: Models,
        registry: Registry,
        presence: Presence,
        departures: Departures,
        phases: Phases,
        clock: Clock,
    ) -> None:
        self._current = current
        self._folders = folders
        self._models = models
        self._registry = registry
        self._presence = presence
        self._departures = departures
        self._phases = phases
        self._clock = clock
        self._failed_jobs = 0

    async def serve(self) -> None:
        """Move rounds on, for ever. Errors of our tree are told and tried again."""
        while True:
            try:
                with storage_errors("go on in", self._folders.root):
                    await self._step()
            except FedreidError as error:
                self._current.tell(str(error))
                await wait_for(self._current.changed, JOB_RETRY_S)

    async def _step(self) -> None:
        current = self._current
        await off_loop(current.chronicle.settle)
        await self._remove_left_over()
        changed, stirred, state = current.changed, current.stirred, current.round
        if not current.run_under_way:
            if current.run is not None and state is not None and not state.ended:
                # Stopped, and a crash or a full disk came before the round was given up.
                await current.apply(Abandoned(reason=current.run.reason))
            await off_loop(self._folders.spares.clear)
            current.tell("waiting for a run to be started")
            await wait_for(changed, _IDLE_S)
        elif state is None or state.ended:
            if not await self._go_on():
                await wait_for(stirred, _IDLE_S)
        elif state.phase is Phase.COLLECTING:
            current.tell("collecting updates")
            left_s = state.deadline_s - self._clock.now_s()
            await wait_for(changed, min(max(left_s, 0.0), _IDLE_S))
            await current.apply(TimePassed())
        else:
            await current.apply(TimePassed())
            if current.round is not None and not current.round.ended:
                await self._do_phase(current.round)

    async def _remove_left_over(self) -> None:
        left_over = self._current.left_over
        while left_over:
            for folder in self._folders.of_round(left_over[0].run, left_over[0].number):
                await off_loop(self._remove, folder)
            del left_over[0]

    def _remove(self, folder: Path) -> None:
        for update in sorted(folder.glob("[!.]*")):
            self._folders.spares.retire(update)
        remove_folder(folder)

    async def _go_on(self) -> bool:
        """Finish the run or open its next round; False if there is nothing to do yet."""
        current = self._current
        async with current.turn:  # or a change of the plan could come in between
            if current.rounds_published >= current.plan.rounds:
                await current.set_run_state(FINISHED, "all models are published")
                return True
        if current.failed_in_a_row >= FAILED_ROUNDS_IN_A_ROW:
            reason = current.round.reason if current.round is not None else ""
            await current.set_run_state(
                FAILED, f"{current.failed_in_a_row} rounds in a row failed; the last: {reason}"
            )
            return True
        if current.run is not None and current.run.state == PAUSED:
            current.tell("paused")
            return False
        invited = self._gathered()
        if invited is None:
            return False
        await self._open(invited)
        return True

    def _gathered(self) -> tuple[SiloName, ...] | None:
        """The silos to invite, or None while more are waited for."""
        current = self._current
        present = [silo for silo in self._presence.present() if self._registry.active(silo)]
        known = self._registry.count_active()
        waited_s = self._clock.monotonic_s() - current.gathering_since_s
        least = current.plan.quorum.min_silos
        if len(present) < least:
            current.tell(f"waiting for silos: {len(present)} of at least {least} are there")
            return None
        if len(present) < known and waited_s < GATHER_S:
            current.tell(f"waiting for silos that are away: {len(present)} of {known} are there")
            return None
        return tuple(present)

    async def _open(self, invited: tuple[SiloName, ...]) -> None:
        current = self._current
        assert current.run is not None
        async with current.turn:
            base = await off_loop(current.journal.newest_model)
            assert base is not None, "a run begins with a model"
            state = open_round(
                run=current.run.name,
                number=current.next_number,
                base_digest=base.digest,
                base_map=await off_loop(self._measured_map, base),
                before=current.round,
                published_before=current.rounds_published,
                invited=invited,
                rules=rules_of(current.plan, None),
                now_s=self._clock.now_s(),
            )
            with faults.step("round.open"):
                await off_loop(current.journal.save_round, state)
            current.downloaded_bytes = 0
            current.evaluated.clear()
            current.take(state)
            note_opened(current.chronicle, state)
            await off_loop(current.chronicle.settle)

    def _measured_map(self, model: ModelRow) -> float | None:
        """The mAP of a model on the coordinator's own images, if it was measured."""
        own = self._current.journal.measured(model.run, model.round).get("")
        return None if own is None else own.map

    async def _do_phase(self, state: RoundState) -> None:
        """Do what the phase asks for; on failure try again until its deadline."""
        current = self._current
        current.tell(str(state.phase))
        left_s = state.deadline_s - self._clock.now_s()
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                event = await self._phases.damage(state)
                if event is None and state.phase is Phase.PUBLISHING:
                    await self._publish(state)
                    return
                if event is None:
                    plan = current.plan
                    event = await self._phases.perform(state, plan, rules_of(plan, state))
        except TimeoutError:
            await current.apply(TimePassed(), seen=state)
            return
        except FedreidError as error:
            await self._phase_failed(state, error, left_s)
            return
        self._failed_jobs = 0
        if isinstance(event, Aggregated):
            await self._quarantine(state, event)
        await current.apply(event, seen=state)

    async def _quarantine(self, state: RoundState, event: Aggregated) -> None:
        """Keep out whose updates were suspect too often; the round is aggregated without them.

        Before the flags are journalled, so that a crash in between repeats it and loses nothing.
        """
        streaks = streaks_after(state.streaks, [u.silo for u in state.updates], event.flags)
        rounds = rules_of(self._current.plan, state).quarantine_rounds
        for silo in due(streaks, rounds):
            if state.accepted(silo) is None:
                continue
            flags = ", ".join(event.flags[silo])
            reason = f"its updates looked wrong {streaks[silo]} rounds in a row, lately: {flags}"
            await self._departures.silo_gone(SiloName(silo), QUARANTINED, reason)

    async def _phase_failed(self, state: RoundState, error: FedreidError, left_s: float) -> None:
        """Try again later what people can mend; give up what fails again by itself."""
        current = self._current
        if current.round is None or current.round.ended:
            return  # given up meanwhile: its files were taken away from under the job
        if isinstance(error, JobFailed):
            self._failed_jobs += 1
            if self._failed_jobs >= JOB_ATTEMPTS:
                self._failed_jobs = 0
                await current.apply(Abandoned(reason=f"{state.phase} failed: {error}"), seen=state)
                return
        current.tell(f"{state.phase} failed and is tried again: {error}")
        await asyncio.sleep(min(JOB_RETRY_S, max(left_s, 0.0)))
        await current.apply(TimePassed(problem=str(error)), seen=state)

    async def _publish(self, state: RoundState) -> None:
        """Place the model, then commit release and end of the round together."""
        current, plan = self._current, self._current.plan
        models = await self._phases.publish(state, plan, rules_of(plan, state))
        async with current.turn:
            before = current.round
            if before is None or before.updates != state.updates:
                return
            published = Published(
                model_digest=models[-1].digest,
                models=models_by_silo(state, [model.digest for model in models[:-1]]),
                download_bytes=current.downloaded_bytes,
            )
            after = current.after(before, published)
            if after == before:  # given up meanwhile: its models were never the federation's
                return
            with faults.step("publish.commit"):
                await off_loop(current.journal.save_round, after, models)
            metrics.MODEL_VERSION.set(models[-1].version)
            with faults.step("announce"):
                current.take(after)
            note_event(current.chronicle, before, published, after)
            await off_loop(current.chronicle.settle)
        await off_loop(self._models.remove_old)
