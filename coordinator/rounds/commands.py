"""What does an administrator do to a run? Start, pause, resume, stop and change it, or go back."""

from coordinator import metrics
from coordinator.rounds.chronicle import note_event
from coordinator.rounds.current import Current
from coordinator.rounds.journal import RUNNING, STOPPED, ModelRow, RunRow
from coordinator.rounds.machine import Abandoned
from coordinator.rounds.phases import Phases, check_folders
from coordinator.rounds.planned import Planned
from coordinator.rounds.publishing import Models
from fedreid.clock import Clock
from fedreid.errors import RunError
from fedreid.names import check_label
from fedreid.plan import parse_plan
from fedreid.work import off_loop

_SEE_MODELS = "See: coordinator model list."


class Commands:
    """Changes of the run that people ask for."""

    def __init__(self, *, current: Current, models: Models, phases: Phases, clock: Clock) -> None:
        self._current = current
        self._models = models
        self._phases = phases
        self._clock = clock

    async def start_run(self, plan_toml: str) -> RunRow:
        """Start a run: make and publish its start weights.

        Raises:
            PlanRefused, NameRefused: the plan is wrong.
            RunError: another run is under way, or the name was used before.
        """
        current, plan = self._current, parse_plan(plan_toml)
        check_label(plan.name, what="run name")
        check_folders(plan)
        async with current.turn:
            if current.run is not None and current.run_under_way:
                raise RunError(
                    f"The run {current.run.name} is {current.run.state}",
                    next_step="Wait until it has finished, or: coordinator run stop.",
                )
            if await off_loop(current.journal.run_exists, plan.name):
                raise RunError(
                    f"There was a run {plan.name!r} before", next_step="Choose another name."
                )
            current.tell("making the start weights")
            model = await self._phases.start_weights(plan)
            run = RunRow(
                name=plan.name,
                plan_toml=plan_toml,
                state=RUNNING,
                started_at_s=self._clock.now_s(),
            )
            await off_loop(current.journal.add_run, run, model)
            current.replay()
            current.notify()
            await current.note("run.started", run=run.name, model=model.digest)
            return run

    async def control_run(self, state: str, reason: str) -> RunRow:
        """Pause, resume or stop the current run.

        Raises:
            RunError: it is not under way.
        """
        self._run_under_way()
        # First, or another round would be opened.
        await self._current.set_run_state(state, reason)
        if state == STOPPED:
            await self._current.apply(Abandoned(reason=reason))
        assert self._current.run is not None
        return self._current.run

    async def change_run(self, plan_toml: str, admin: str) -> tuple[int, tuple[str, ...]]:
        """Give the current run another plan, which its next round begins to follow.

        Returns:
            That round's number, and what is different, a line for each key.

        Raises:
            PlanRefused: the plan is wrong, or changes what a run keeps.
            RunError: no run is under way, or a folder of the plan is missing.
        """
        current = self._current
        check_folders(parse_plan(plan_toml))
        async with current.turn:
            run = self._run_under_way()
            planned = Planned.of(current.next_number, plan_toml)
            changes = await off_loop(
                current.plans.change,
                run.name,
                planned,
                published=current.rounds_published,
                admin=admin,
                audit=current.chronicle,
            )
            current.notify()
            await off_loop(current.chronicle.settle)
            return planned.from_round, changes

    def _run_under_way(self) -> RunRow:
        run = self._current.run
        if run is None or not self._current.run_under_way:
            raise RunError("No run is under way", next_step="Start one: coordinator run start.")
        return run

    async def roll_back(self, version: int, admin: str) -> ModelRow:
        """Publish an earlier model of the run again; the round under way is given up.

        Its release has a new version, for agents take no older one, and the next round starts
        from it. Models that the run has published count as published all the same.

        Raises:
            RunError: the run has no such model, it is the newest, or its file is gone.
        """
        current = self._current
        async with current.turn:
            run, state = current.run, current.round
            if run is None or state is None:
                raise RunError("There is no model to go back to", next_step=_SEE_MODELS)
            model = await off_loop(self._models.released_again, run.name, version)
            given_up = Abandoned(reason=f"{admin} went back to model {version}")
            after = current.after(state, given_up)
            await off_loop(current.journal.save_round, after, [model])
            metrics.MODEL_VERSION.set(model.version)
            if after != state:
                current.take(after)
            current.failed_in_a_row = 0  # what was given up is no failure of the plan's
            current.chronicle.append(
                "model.rolled_back",
                run=run.name,
                version=model.version,
                of_version=version,
                model_digest=model.digest,
                admin=admin,
            )
            note_event(current.chronicle, state, given_up, after)
            await off_loop(current.chronicle.settle)
            return model
