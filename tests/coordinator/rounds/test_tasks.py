"""What is a silo told to do in every state of run and round?"""

import msgspec
import pytest

from coordinator.rounds.journal import RunRow
from coordinator.rounds.machine import (
    Abandoned,
    Aggregated,
    Declined,
    Published,
    RoundState,
    TimePassed,
    UpdateRejected,
    advance,
)
from coordinator.rounds.tasks import (
    evaluate_task,
    evaluation_awaited,
    in_known_encodings,
    task_for,
    train_task,
)
from fedreid.contract import EvaluateTask, Task, TrainTask, WaitTask
from fedreid.names import Digest, RoundNumber, RunName, SiloName
from fedreid.plan import (
    AggregationPlan,
    BackbonePlan,
    Encoding,
    EvaluationPlan,
    Plan,
    TrainingPlan,
    WirePlan,
)
from tests.coordinator.rounds.states import BASE, BEGAN_S, DEADLINE_S, opened, rules, update

PLAN = Plan(
    name="spring",
    rounds=10,
    seed=42,
    backbone=BackbonePlan(name="resnet18"),
    training=TrainingPlan(schedule="step", steps=(6,), gamma=0.5, threads=3),
    aggregation=AggregationPlan(bn="local"),
    wire=WirePlan(upload="bf16", download="fp32"),
    evaluation=EvaluationPlan(every=3, standalone=False),
)
SILO = SiloName("a")


def run(state: str = "running") -> RunRow:
    return RunRow(name="spring", plan_toml="", state=state, started_at_s=0)


def task(
    state: RoundState | None,
    *,
    silo: str = "a",
    of: RunRow | None = None,
    evaluated: frozenset[tuple[int, str]] = frozenset(),
    now_s: float = BEGAN_S,
) -> Task:
    return task_for(
        SiloName(silo),
        run=of or run(),
        plan=PLAN,
        state=state,
        evaluated=evaluated,
        activity="collecting updates",
        now_s=now_s,
    )


def published() -> RoundState:
    done = Published(model_digest="m" * 64, download_bytes=0)
    state = opened("a", "b")
    for event in (update("a"), update("b"), Aggregated(weights={}, update_norm=0), done):
        state = advance(state, event, rules(), BEGAN_S)
    return state


def reason(given: Task) -> str:
    assert isinstance(given, WaitTask)
    return given.reason


def test_before_any_run_a_silo_waits() -> None:
    waiting = task_for(SILO, run=None, plan=None, state=None, evaluated=set(), activity="", now_s=0)
    assert waiting == WaitTask(reason="no run has been started yet")


def test_before_the_first_round_a_silo_is_told_what_the_coordinator_does() -> None:
    assert task(None) == WaitTask(reason="collecting updates")


def test_an_invited_silo_trains_as_the_plan_says() -> None:
    assert task(opened(), now_s=BEGAN_S + 100) == TrainTask(
        run=RunName("spring"),
        round=RoundNumber(7),
        base_digest=Digest(BASE),
        seed=42,
        backbone=PLAN.backbone,
        training=PLAN.training,
        learning_rate_factor=0.5,  # six models were published before
        bn="local",
        upload_encoding="bf16",
        download_encoding="fp32",
        evaluate=True,  # 6 is a multiple of 3
        standalone=False,
        remaining_s=DEADLINE_S - 100,
    )


@pytest.mark.parametrize(("before", "due"), [(0, True), (1, False), (2, False), (3, True)])
def test_silos_measure_every_so_many_models(before: int, due: bool) -> None:
    given = task(msgspec.structs.replace(opened(), published_before=before))
    assert isinstance(given, TrainTask)
    assert given.evaluate is due


def test_the_last_round_is_measured_whatever_the_plan_skips() -> None:
    last = PLAN.rounds - 1
    given = task(msgspec.structs.replace(opened(), published_before=last))
    assert isinstance(given, TrainTask)
    assert given.evaluate


def test_no_time_is_left_after_the_deadline() -> None:
    given = task(opened(), now_s=BEGAN_S + 2 * DEADLINE_S)
    assert isinstance(given, TrainTask)
    assert given.remaining_s == 0.0


def test_a_silo_that_was_not_invited_waits() -> None:
    assert reason(task(opened("b", "c"))) == "collecting updates"


def test_a_silo_whose_update_counts_waits() -> None:
    assert isinstance(task(advance(opened(), update("a"), rules(), BEGAN_S)), WaitTask)


def test_a_silo_whose_update_was_refused_is_told_why_and_does_not_train_again() -> None:
    rejected = UpdateRejected(silo="a", reason="not_finite")
    state = advance(opened(), rejected, rules(), BEGAN_S)
    assert "round 7 refused this silo's update (not_finite)" in reason(task(state))


def test_after_collecting_everybody_waits() -> None:
    state = opened("a", "b", "c")
    for event in (update("b"), update("c")):
        state = advance(state, event, rules(), BEGAN_S)
    state = advance(state, TimePassed(), rules(), BEGAN_S + DEADLINE_S)
    assert isinstance(task(state), WaitTask)


def test_between_two_rounds_a_silo_waits() -> None:
    assert task(published()) == WaitTask(reason="collecting updates")


def test_a_paused_run_lets_its_open_round_go_on() -> None:
    assert isinstance(task(opened(), of=run("paused")), TrainTask)


def test_after_the_last_model_each_silo_measures_it_once() -> None:
    state = published()
    given = task(state, of=run("finished"))
    assert given == EvaluateTask(
        run=RunName("spring"),
        round=RoundNumber(7),
        model_digest=Digest("m" * 64),
        backbone=PLAN.backbone,
        bn="local",
        download_encoding="fp32",
        threads=3,
    )
    done = frozenset({(7, "a")})
    assert task(state, of=run("finished"), evaluated=done) == WaitTask(
        reason="the run spring is finished", run_finished=True
    )
    assert isinstance(task(state, silo="b", of=run("finished"), evaluated=done), EvaluateTask)


def test_a_silo_that_had_no_part_in_the_last_round_has_nothing_to_measure() -> None:
    assert task(published(), silo="zzz", of=run("finished")) == WaitTask(
        reason="the run spring is finished", run_finished=True
    )


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_after_a_run_that_came_to_no_end_there_is_nothing_to_do(state: str) -> None:
    for last in (published(), None, advance(opened(), Abandoned(reason=""), rules(), BEGAN_S)):
        given = task(last, of=run(state))
        assert given == WaitTask(reason=f"the run spring is {state}", run_finished=False)


def test_a_measurement_is_awaited_only_of_a_published_model() -> None:
    finished = run("finished")
    assert evaluation_awaited(finished, published(), "a", set())
    assert not evaluation_awaited(finished, published(), "a", {(7, "a")})
    assert evaluation_awaited(finished, published(), "a", {(6, "a"), (7, "b")})
    assert not evaluation_awaited(finished, published(), "zzz", set())
    assert not evaluation_awaited(finished, opened(), "a", set())
    assert not evaluation_awaited(run(), published(), "a", set())


def test_a_silo_that_has_declined_a_round_waits_for_the_next() -> None:
    by = rules()
    state = advance(opened(), Declined(silo="a", policy_key="bytes_per_day"), by, BEGAN_S)
    given = task(state)
    assert isinstance(given, WaitTask) and "policy.bytes_per_day" in given.reason
    assert isinstance(task(state, silo="b"), TrainTask)


def test_a_task_proposes_no_encoding_that_the_silo_does_not_know() -> None:
    of = Plan(name="spring", rounds=10, wire=WirePlan(upload="int8_delta", download="bf16"))
    train = train_task(of, opened(), "a", BEGAN_S)
    assert in_known_encodings(train, ("fp32", "bf16", "int8_delta")) == train
    older = in_known_encodings(train, ("fp32", "bf16"))
    assert isinstance(older, TrainTask)
    assert (older.upload_encoding, older.download_encoding) == ("fp32", "bf16")
    known: tuple[Encoding, ...] = ("fp32",)
    evaluate = in_known_encodings(evaluate_task(of, opened(), "a"), known)
    assert isinstance(evaluate, EvaluateTask)
    assert evaluate.download_encoding == "fp32"
    wait = WaitTask(reason="nothing yet")
    assert in_known_encodings(wait, ()) == wait
