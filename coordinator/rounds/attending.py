"""What does a silo that takes part get told, and what does it say beside its update?"""

import asyncio
from collections.abc import Callable, Sequence

from coordinator import metrics
from coordinator.rounds.current import Current, wait_for
from coordinator.rounds.journal import EvaluationRow
from coordinator.rounds.machine import Declined, Phase
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.tasks import task_for
from coordinator.rounds.together import Together
from coordinator.rounds.turns import Turns
from coordinator.trust.registry import Registry
from fedreid.clock import Clock
from fedreid.contract import EvaluationResult, RenewTask, Task, WaitTask
from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import BEGINNING_S, LEAST_WAIT_S, VERSIONS_AHEAD, WAKING_AT_ONCE
from fedreid.names import SiloName
from fedreid.work import off_loop


class Attending:
    """Gives silos their tasks, and takes what they answer."""

    def __init__(
        self,
        *,
        current: Current,
        models: Models,
        registry: Registry,
        presence: Presence,
        downloads: Turns,
        clock: Clock,
    ) -> None:
        self._current = current
        self._models = models
        self._registry = registry
        self._presence = presence
        self._downloads = downloads
        self._clock = clock
        self._caught_up_with: set[SiloName] = set()
        self._waking = asyncio.Semaphore(WAKING_AT_ONCE)
        self._beginning = asyncio.Semaphore(WAKING_AT_ONCE)
        self._figures = Together(asyncio.Lock(), self._save_figures)

    async def next_task(
        self, silo: SiloName, wait_s: float, *, first: Callable[[], Task | None] = lambda: None
    ) -> Task:
        """The silo's task; waits for up to ``wait_s`` for something to do.

        ``first`` is asked whenever something has changed; what it gives goes before the round.
        """
        until_s = self._clock.monotonic_s() + wait_s
        while True:
            changed = self._current.changed
            task = first() or self._task(silo)
            left_s = until_s - self._clock.monotonic_s()
            if isinstance(task, RenewTask):
                return task
            if isinstance(task, WaitTask):
                if left_s <= 0:
                    return task
                await wait_for(changed, left_s)
                async with self._waking:  # all who wait are woken at once: others have turns too
                    await asyncio.sleep(0)
            elif not await self._may_begin(max(left_s, LEAST_WAIT_S)):
                return WaitTask(reason="many silos fetch the model: this one waits for its turn")
            elif not isinstance(task := self._task(silo), WaitTask):
                return task  # as it is by now
            self._presence.seen(silo)

    async def _may_begin(self, wait_s: float) -> bool:
        """Let a silo begin its task, in the order in which they came; False if it had to wait.

        What a task begins with is a model to fetch. A thousand who begin at once would each wait
        for a turn to fetch it, and everybody's calls would wait for theirs.
        """
        try:
            async with asyncio.timeout(wait_s):
                await self._beginning.acquire()
                try:
                    while self._downloads.waiting >= WAKING_AT_ONCE:
                        await asyncio.sleep(BEGINNING_S)
                except BaseException:
                    self._beginning.release()
                    raise
        except TimeoutError:
            return False
        asyncio.get_running_loop().call_later(BEGINNING_S, self._beginning.release)
        return True

    def _task(self, silo: SiloName) -> Task:
        if not self._registry.active(silo):
            row = self._registry.known(silo)
            return WaitTask(reason=f"this silo is {row.state}: {row.reason}")
        current = self._current
        return task_for(
            silo,
            run=current.run,
            plan=None if current.run is None else current.plan,
            state=current.round,
            evaluated=current.evaluated,
            activity=current.activity,
            now_s=self._clock.now_s(),
        )

    async def decline(self, silo: SiloName, run: str, number: int, policy_key: str) -> None:
        """A silo will not do its task of a round, and will be silent: nobody waits for it."""
        self._presence.away(silo)
        state = self._current.round
        if state is None or (state.run, state.number) != (run, number):
            return
        await self._current.apply(Declined(silo=silo, policy_key=policy_key))
        if state.phase is Phase.PUBLISHED:  # what it declines is to measure the run's last model
            self._current.evaluated.add((number, silo))

    async def save_evaluations(
        self, silo: SiloName, run: str, number: int, results: list[EvaluationResult]
    ) -> None:
        """Store what a silo measured.

        Raises:
            UpdateRefused: the run is not the current one, or has no such round.
        """
        current = self._current
        newest = 0 if current.round is None else current.round.number
        if current.run is None or run != current.run.name or not 0 <= number <= newest:
            raise UpdateRefused(Refusal.REPORT, "The figures are of a run or round that is not on")
        rows = [
            EvaluationRow(run=run, round=number, silo=silo, result=result) for result in results
        ]
        await self._figures.bring(rows)
        # Without rows the silo has no query with a match: there is nothing to wait for.
        if number == newest and (not rows or any(row.result.model == "global" for row in rows)):
            current.evaluated.add((number, silo))

    async def _save_figures(self, reports: Sequence[list[EvaluationRow]]) -> None:
        rows = [row for report in reports for row in report]
        await off_loop(self._current.journal.save_evaluations, rows)

    async def catch_up(self, silo: SiloName, version: int, digest: str) -> None:
        """Where a silo has taken a version that the journal does not know, publish beyond it.

        The journal is of an older backup or disk then, and agents take no older version: the
        newest models get one that is newer than any silo's. A silo is believed once in a
        coordinator's life, for what it may say next is what this coordinator has published.
        """
        current = self._current
        if silo in self._caught_up_with or not await off_loop(self._is_ahead, version, digest):
            return
        async with current.turn:
            if not await off_loop(self._is_ahead, version, digest):
                return
            self._caught_up_with.add(silo)
            models = await off_loop(self._models.released_beyond, version)
            await off_loop(current.journal.add_models, models)
            metrics.MODEL_VERSION.set(models[-1].version)
            for model in models:
                current.chronicle.append(
                    "model.caught_up",
                    run=model.run,
                    version=model.version,
                    model_digest=model.digest,
                    silo=silo,
                    silo_version=version,
                )
            await off_loop(current.chronicle.settle)

    def _is_ahead(self, version: int, digest: str) -> bool:
        newest = self._current.journal.newest_model()
        if newest is None or version > newest.version + VERSIONS_AHEAD:
            return False
        another = version == newest.version and digest != newest.digest
        return another or version > newest.version
