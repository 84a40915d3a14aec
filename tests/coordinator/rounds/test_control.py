"""Do a run's pause, stop and change of plan hold in every phase, with the true conductor?

Its jobs are done by a worker that stops where a test wants it to.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.folders import Folders
from coordinator.learning import jobs
from coordinator.rounds.attending import Attending
from coordinator.rounds.commands import Commands
from coordinator.rounds.conductor import Conductor
from coordinator.rounds.current import Current
from coordinator.rounds.departures import Departures
from coordinator.rounds.journal import PAUSED, RUNNING, STOPPED, Journal, SiloRow
from coordinator.rounds.machine import Phase, UpdateAccepted
from coordinator.rounds.orders import update_path
from coordinator.rounds.phases import Phases
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.recovery import recover
from coordinator.rounds.turns import Turns
from coordinator.trust.registry import ACTIVE, Registry
from fedreid.audit import AuditLog, read_audit
from fedreid.contract import EvaluationResult, TrainTask, WaitTask
from fedreid.errors import PlanRefused, RunError, storage_errors
from fedreid.jobs import Job, Worker
from fedreid.names import FederationName, SiloName
from fedreid.pki.signing import new_signing_key_pem, signing_key
from fedreid.wire.tensors import save_tensors
from tests.coordinator.rounds.states import update
from tests.parties import FakeClock

SILOS = [SiloName("a"), SiloName("b")]
WORKED: dict[Phase, type[Job]] = {
    Phase.AGGREGATING: jobs.AggregateJob,
    Phase.DISTILLING: jobs.DistilJob,
    Phase.EVALUATING: jobs.EvaluateJob,
    Phase.PUBLISHING: jobs.EncodeJob,
}
"""The job at which a phase can be held."""
RESULT = EvaluationResult(
    model="global", rank1=0.5, rank5=0.5, rank10=0.5, map=0.5, minp=0.5, queries=8
)


class HeldWorker(Worker):
    """Does jobs at once, but for one kind, which waits until it is let go."""

    def __init__(self) -> None:
        self.held: type[Job] | None = None
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    async def close(self) -> None:
        """There is no process to end."""

    async def run(self, job: Job, returns: Any, progress: Any) -> Any:
        """Do one job."""
        if type(job) is self.held:
            self.held = None
            self.reached.set()
            await self.let_go.wait()
        if isinstance(job, jobs.EvaluateJob):
            return jobs.EvaluateReport(result=RESULT)
        if isinstance(job, jobs.EncodeJob):
            with storage_errors("write", Path(job.out)):
                Path(job.out).write_bytes(b"\0" * 8)
            return jobs.EncodeReport(digest="e" * 64, size_bytes=8)
        assert isinstance(job, jobs.InitialiseJob | jobs.AggregateJob | jobs.DistilJob)
        Path(job.out).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(Path(job.out), {"w": np.full(4, float(job.seed % 1000), np.float32)})
        if isinstance(job, jobs.InitialiseJob):
            return jobs.InitialiseReport(parameters=4)
        if isinstance(job, jobs.DistilJob):
            return jobs.DistilReport(images=8, loss_before=2.0, loss_after=1.0)
        weights = {each.silo: 0.5 for each in job.contributions}
        return jobs.AggregateReport(
            weights=weights,
            all_distances_zero=False,
            update_norm=1.0,
            update_norms=dict.fromkeys(weights, 1.0),
            flags={},
        )


class Run:
    """A run of two silos, whose updates are accepted as soon as a round collects them."""

    def __init__(self, root: Path, clock: FakeClock) -> None:
        self.root, self._clock = root, clock
        self.folders = Folders(root)
        for name in ("images", "labelled"):
            (root / name).mkdir()
        self.worker = HeldWorker()
        self.journal = Journal(self.folders.journal)
        for silo in SILOS:
            self.journal.save_silo(SiloRow(name=silo, state=ACTIVE, not_after_s=1e12))
        self.start()

    def start(self) -> None:
        """What a coordinator is made of, over what the journal says."""
        federation = FederationName("harbour")
        key = signing_key(new_signing_key_pem())
        models = Models(self.folders, self.journal, federation, key)
        presence = Presence(self._clock)
        for silo in SILOS:
            presence.seen(silo)
        registry = Registry(self.journal, federation, self._clock)
        audit = AuditLog(self.folders.audit, self._clock)
        current = self.current = Current(self.journal, audit, self._clock)
        recover(current, registry, self.folders, models)
        phases = Phases(
            federation=federation,
            folders=self.folders,
            journal=self.journal,
            models=models,
            worker=self.worker,
            tell=current.tell,
        )
        self.commands = Commands(current=current, models=models, phases=phases, clock=self._clock)
        self.attending = Attending(
            current=current,
            models=models,
            registry=registry,
            presence=presence,
            downloads=Turns(lambda: current.transfers),
            clock=self._clock,
        )
        self.conductor = Conductor(
            current=current,
            folders=self.folders,
            models=models,
            registry=registry,
            presence=presence,
            departures=Departures(
                current=current, registry=registry, presence=presence, end_calls=_nobody
            ),
            phases=phases,
            clock=self._clock,
        )

    def plan(self, rounds: int = 5, deadline_s: float = 600.0) -> str:
        """A plan with work in every phase."""
        return f"""
        name = "spring"
        rounds = {rounds}
        wire = {{ download = "bf16" }}
        quorum = {{ min_silos = 2, deadline_s = {deadline_s} }}
        distillation = {{ images = "{self.root / "images"}" }}
        evaluation = {{ folder = "{self.root / "labelled"}" }}
        """

    async def until(self, reached: Callable[[], bool]) -> None:
        """Let everything go on until something holds; updates come whenever a round waits."""
        while not reached():
            await self.collect()
            await asyncio.sleep(0.001)

    async def collect(self) -> None:
        """Accept the updates that the round waits for."""
        state = self.current.round
        for silo in SILOS:
            if state is not None and state.wants(silo) and silo not in state.declined:
                path = update_path(self.folders, state, silo)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"")
                await self.current.apply(UpdateAccepted(update=update(silo).update))

    def phase(self) -> Phase | None:
        state = self.current.round
        return None if state is None else state.phase

    def number(self) -> int:
        state = self.current.round
        return 0 if state is None else state.number

    def events(self) -> list[str]:
        return [line.event for line in read_audit(self.folders.audit)]


async def _nobody(silo: str) -> None:
    """No calls are under way."""


@pytest.fixture
def lived(tmp_path: Path, clock: FakeClock) -> Callable[[Callable[[Run], Awaitable[None]]], None]:
    """Live through a story with a run that has been started and whose conductor serves."""

    def live(story: Callable[[Run], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            run = Run(tmp_path, clock)
            await run.commands.start_run(run.plan())
            serving = asyncio.create_task(run.conductor.serve())
            try:
                async with asyncio.timeout(60):
                    await story(run)
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                run.journal.close()

        asyncio.run(all_of_it())

    return live


Lived = Callable[[Callable[[Run], Awaitable[None]]], None]


async def hold(run: Run, phase: Phase) -> None:
    """Bring round 2 into a phase, and keep it there."""
    await run.until(lambda: run.number() == 2)
    if phase is Phase.COLLECTING:
        return
    run.worker.held = WORKED[phase]
    await run.until(run.worker.reached.is_set)
    assert run.phase() is phase


HOLDABLE = [Phase.COLLECTING, *WORKED]


@pytest.mark.parametrize("phase", HOLDABLE)
def test_a_paused_run_ends_its_round_and_opens_no_other_until_it_is_resumed(
    lived: Lived, phase: Phase
) -> None:
    async def story(run: Run) -> None:
        await hold(run, phase)
        await run.commands.control_run(PAUSED, "paused by ann")
        run.worker.let_go.set()
        await run.until(lambda: run.current.activity == "paused")
        assert (run.number(), run.phase()) == (2, Phase.PUBLISHED)
        await run.commands.control_run(RUNNING, "resumed by ann")
        await run.until(lambda: run.current.rounds_published == 5)
        await run.until(lambda: run.events()[-1] == "run.finished")

    lived(story)


@pytest.mark.parametrize("phase", HOLDABLE)
def test_a_stopped_run_publishes_nothing_of_its_round(lived: Lived, phase: Phase) -> None:
    async def story(run: Run) -> None:
        await hold(run, phase)
        await run.commands.control_run(STOPPED, "stopped by ann")
        run.worker.let_go.set()
        await run.until(lambda: "waiting for a run" in run.current.activity)
        state = run.current.round
        assert state is not None and state.reason == "stopped by ann"
        assert (run.number(), run.phase()) == (2, Phase.FAILED)
        assert [model.round for model in run.journal.models()] == [1, 0]
        with pytest.raises(RunError, match="No run is under way"):
            await run.commands.control_run(RUNNING, "resumed by ann")
        with pytest.raises(RunError, match="No run is under way"):
            await run.commands.change_run(run.plan(rounds=6), "ann")

    lived(story)


@pytest.mark.parametrize("phase", HOLDABLE)
def test_a_changed_plan_holds_from_the_next_round_on_whenever_it_comes(
    lived: Lived, phase: Phase
) -> None:
    async def story(run: Run) -> None:
        await hold(run, phase)
        before = run.current.plan
        changed = await run.commands.change_run(run.plan(rounds=3, deadline_s=60.0), "ann")
        assert changed == (3, ("quorum.deadline_s: 600.0 → 60.0", "rounds: 5 → 3"))
        assert run.current.plan == before
        run.start()  # only looked at: what the journal says is the same
        assert run.current.plan == before
        assert run.current.newest_plan.plan.rounds == 3

    lived(story)


def test_rounds_after_a_change_are_opened_by_it_and_the_run_ends_where_it_says(
    lived: Lived,
) -> None:
    async def story(run: Run) -> None:
        await hold(run, Phase.COLLECTING)
        await run.commands.change_run(run.plan(rounds=3, deadline_s=60.0), "ann")
        assert allowed_s(run) == 600.0
        await run.until(lambda: run.number() == 3)
        assert allowed_s(run) == 60.0
        await run.until(lambda: run.events()[-1] == "run.finished")
        assert run.current.rounds_published == 3
        assert run.events().count("run.changed") == 1

    lived(story)


def allowed_s(run: Run) -> float:
    """How long the round that has just begun may collect."""
    state = run.current.round
    assert state is not None and state.phase is Phase.COLLECTING
    return state.deadline_s - state.phase_since_s


def test_a_refused_change_changes_nothing(lived: Lived) -> None:
    async def story(run: Run) -> None:
        await hold(run, Phase.COLLECTING)
        for wrong in (run.plan().replace("spring", "summer"), run.plan() + "backbone.name = 'x'"):
            with pytest.raises(PlanRefused, match="can't change"):
                await run.commands.change_run(wrong, "ann")
        missing = run.plan().replace("images", "elsewhere")
        with pytest.raises((PlanRefused, RunError)):
            await run.commands.change_run(missing, "ann")
        assert run.journal.plan_changes("spring") == []

    lived(story)


def test_a_silo_that_declines_is_neither_waited_for_nor_invited_until_it_calls(
    lived: Lived,
) -> None:
    async def story(run: Run) -> None:
        await run.until(lambda: run.number() == 1)
        assert isinstance(await run.attending.next_task(SILOS[0], 0.0), TrainTask)
        await run.attending.decline(SILOS[0], "spring", 1, "rounds_per_day")
        told = await run.attending.next_task(SILOS[0], 0.0)
        assert isinstance(told, WaitTask) and "policy.rounds_per_day" in told.reason
        await run.until(lambda: run.phase() is Phase.SKIPPED)
        await run.until(lambda: "1 of at least 2" in run.current.activity)
        assert run.number() == 1
        assert run.events().count("round.declined") == 1
        await run.attending.decline(SILOS[0], "spring", 1, "rounds_per_day")  # again, too late
        assert run.events().count("round.declined") == 1

    lived(story)
