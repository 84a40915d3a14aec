"""What should a silo do now? A pure function of run and round."""

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import replace

from coordinator.rounds.journal import FINISHED, PAUSED, RUNNING, RunRow
from coordinator.rounds.machine import Phase, RoundState
from fedreid.contract import EvaluateTask, Task, TrainTask, WaitTask
from fedreid.names import Digest, RoundNumber, RunName, SiloName
from fedreid.plan import Encoding, Plan, learning_rate_factor


def task_for(
    silo: SiloName,
    *,
    run: RunRow | None,
    plan: Plan | None,
    state: RoundState | None,
    evaluated: AbstractSet[tuple[int, str]],
    activity: str,
    now_s: float,
) -> Task:
    """The silo's task; ``evaluated`` holds (round, silo) of global models already measured."""
    if run is None or plan is None:
        return WaitTask(reason="no run has been started yet")
    if run.state not in (RUNNING, PAUSED):
        if state is not None and evaluation_awaited(run, state, silo, evaluated):
            return evaluate_task(plan, state, silo)
        return WaitTask(
            reason=f"the run {run.name} is {run.state}", run_finished=run.state == FINISHED
        )
    if state is not None and silo in state.declined:
        return WaitTask(
            reason=f"this silo has declined round {state.number} (policy."
            f"{state.declined[silo]}); waiting for the next round"
        )
    if state is not None and state.wants(silo) and silo not in state.refused:
        return train_task(plan, state, silo, now_s)
    if state is not None and silo in state.refused:
        return WaitTask(
            reason=f"round {state.number} refused this silo's update "
            f"({state.refused[silo]}); waiting for the next round"
        )
    return WaitTask(reason=activity)


def in_known_encodings(task: Task, known: Collection[Encoding]) -> Task:
    """The task with fp32 in the place of encodings that the silo's agent does not know."""
    if isinstance(task, TrainTask):
        task = replace(task, upload_encoding=_known(task.upload_encoding, known))
    if isinstance(task, TrainTask | EvaluateTask):
        download = _known(task.download_encoding, known)
        task = replace(task, download_encoding=download)
    return task


def _known(encoding: Encoding, known: Collection[Encoding]) -> Encoding:
    return encoding if encoding in known else "fp32"


def evaluation_awaited(
    run: RunRow, state: RoundState, silo: str, evaluated: AbstractSet[tuple[int, str]]
) -> bool:
    """Whether the silo still has to measure the run's last model, which ``state`` published."""
    return (
        run.state == FINISHED
        and state.phase is Phase.PUBLISHED
        and state.invites(silo)
        and (state.number, silo) not in evaluated
    )


def train_task(plan: Plan, state: RoundState, silo: str, now_s: float) -> TrainTask:
    """What a silo that takes part in the round does."""
    last = state.published_before + 1 >= plan.rounds
    due = last or state.published_before % plan.evaluation.every == 0
    return TrainTask(
        run=RunName(state.run),
        round=RoundNumber(state.number),
        base_digest=Digest(state.base_of(silo)),
        seed=plan.seed,
        backbone=plan.backbone,
        training=plan.training,
        learning_rate_factor=learning_rate_factor(
            plan.training, published=state.published_before, rounds=plan.rounds
        ),
        bn=plan.aggregation.bn,
        upload_encoding=plan.wire.upload,
        download_encoding=plan.wire.download,
        evaluate=due,
        standalone=plan.evaluation.standalone,
        remaining_s=max(0.0, state.deadline_s - now_s),
    )


def evaluate_task(plan: Plan, state: RoundState, silo: str) -> EvaluateTask:
    """What a silo does when the run's last model is published."""
    return EvaluateTask(
        run=RunName(state.run),
        round=RoundNumber(state.number),
        model_digest=Digest(state.model_of(silo)),
        backbone=plan.backbone,
        bn=plan.aggregation.bn,
        download_encoding=plan.wire.download,
        threads=plan.training.threads,
    )
