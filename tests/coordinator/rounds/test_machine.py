"""Does every schedule of events end a round as the design says?"""

import itertools
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from coordinator.rounds.machine import (
    ENDED,
    Abandoned,
    Aggregated,
    Declined,
    Distilled,
    Evaluated,
    Event,
    Phase,
    Published,
    ResultsLost,
    RoundState,
    Rules,
    SiloGone,
    TimePassed,
    UpdateAccepted,
    UpdateRejected,
    UpdatesLost,
    advance,
)
from tests.coordinator.rounds.states import BEGAN_S, DEADLINE_S, PHASE_S, opened, rules, update

AGGREGATED = Aggregated(weights={"a": 0.5, "b": 0.5}, update_norm=1.5)
DISTILLED = Distilled(loss_before=2.0, loss_after=1.0)
EVALUATED = Evaluated(map=0.5)
PUBLISHED = Published(model_digest="m" * 64, download_bytes=9)
COMPLETING: dict[Phase, Event] = {
    Phase.AGGREGATING: AGGREGATED,
    Phase.DISTILLING: DISTILLED,
    Phase.EVALUATING: EVALUATED,
    Phase.PUBLISHING: PUBLISHED,
}


def after(state: RoundState, *events: Event, by: Rules, now_s: float = BEGAN_S) -> RoundState:
    for event in events:
        state = advance(state, event, by, now_s)
    return state


def in_phase(phase: Phase, *, now_s: float = BEGAN_S) -> tuple[RoundState, Rules]:
    """A round of a and b that has come to ``phase``, with the rules that lead there."""
    by = rules(distils=True, evaluates=True)
    state = after(opened("a", "b", by=by), update("a"), update("b"), by=by, now_s=now_s)
    while state.phase is not phase:
        state = advance(state, COMPLETING[state.phase], by, now_s)
    return state, by


def ended_states() -> list[RoundState]:
    by = rules()
    skipped = advance(opened(), TimePassed(), by, BEGAN_S + DEADLINE_S)
    failed = advance(opened(), Abandoned(reason="stopped"), by, BEGAN_S)
    published, _ = in_phase(Phase.PUBLISHING)
    states = [skipped, failed, advance(published, PUBLISHED, by, BEGAN_S)]
    assert {state.phase for state in states} == ENDED
    return states


# The way through


@pytest.mark.parametrize("distils", [False, True])
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_round_goes_through_the_phases_that_its_plan_asks_for(
    distils: bool, evaluates: bool
) -> None:
    by = rules(distils=distils, evaluates=evaluates)
    state = after(opened("a", "b", by=by), update("a"), update("b"), by=by)
    seen = [Phase.COLLECTING]
    while not state.ended:
        seen.append(state.phase)
        state = advance(state, COMPLETING[state.phase], by, BEGAN_S)
    expected = [Phase.COLLECTING, Phase.AGGREGATING]
    expected += [Phase.DISTILLING] * distils + [Phase.EVALUATING] * evaluates + [Phase.PUBLISHING]
    assert seen == expected
    assert state.phase is Phase.PUBLISHED
    assert state.model_digest == "m" * 64
    assert state.weights == AGGREGATED.weights
    assert (state.loss_before, state.loss_after) == ((2.0, 1.0) if distils else (None, None))


def test_a_round_closes_at_once_when_nobody_is_waited_for() -> None:
    state = after(opened("a", "b", "c"), update("c"), update("a"), by=rules())
    assert state.phase is Phase.COLLECTING
    state = advance(state, update("b"), rules(), BEGAN_S + 5)
    assert state.phase is Phase.AGGREGATING
    assert [u.silo for u in state.updates] == ["a", "b", "c"]


def test_time_spent_is_booked_to_each_phase() -> None:
    by = rules(distils=True)
    state = after(opened("a", "b", by=by), update("a"), by=by, now_s=BEGAN_S + 3)
    state = advance(state, update("b"), by, BEGAN_S + 10)
    state = advance(state, AGGREGATED, by, BEGAN_S + 12)
    state = advance(state, DISTILLED, by, BEGAN_S + 15)
    state = advance(state, PUBLISHED, by, BEGAN_S + 15)
    assert state.phase_seconds == {
        "collecting": 10.0,
        "aggregating": 2.0,
        "distilling": 3.0,
        "publishing": 0.0,
    }


def test_a_clock_that_is_set_back_makes_no_negative_time() -> None:
    state, by = in_phase(Phase.AGGREGATING)
    state = advance(state, AGGREGATED, by, BEGAN_S - 1000)
    assert state.phase_seconds["aggregating"] == 0.0


@pytest.mark.parametrize("phase", [Phase.COLLECTING, Phase.AGGREGATING])
def test_a_clock_that_is_set_back_does_not_put_a_deadline_off_by_as_much(phase: Phase) -> None:
    state, by = (opened(), rules()) if phase is Phase.COLLECTING else in_phase(phase)
    allowed_s = state.deadline_s - state.phase_since_s
    back_s = state.phase_since_s - 1e7
    state = advance(state, TimePassed(), by, back_s)
    assert (state.phase, state.phase_since_s) == (phase, back_s)
    assert not advance(state, TimePassed(), by, back_s + allowed_s - 1).ended
    assert advance(state, TimePassed(), by, back_s + allowed_s).ended


def test_the_invited_are_kept_sorted() -> None:
    assert opened("c", "a", "b").invited == ("a", "b", "c")


# Quorum


@pytest.mark.parametrize(
    ("invited", "delivered", "min_silos", "min_fraction", "enough"),
    [
        (4, 2, 2, 0.5, True),
        (4, 1, 2, 0.5, False),
        (4, 2, 2, 0.51, False),
        (4, 3, 2, 0.75, True),
        (5, 2, 2, 0.5, False),
        (5, 3, 2, 0.5, True),
        (10, 2, 2, 0.0, True),
        (1, 1, 1, 1.0, True),
        (1, 1, 2, 0.0, False),
        (4, 0, 1, 0.0, False),
    ],
)
def test_a_round_goes_on_at_its_deadline_only_with_a_quorum(
    invited: int, delivered: int, min_silos: int, min_fraction: float, enough: bool
) -> None:
    by = rules(min_silos=min_silos, min_fraction=min_fraction)
    silos = [f"s{n}" for n in range(invited)]
    state = after(opened(*silos, by=by), *(update(s) for s in silos[:delivered]), by=by)
    if delivered < invited:
        state = advance(state, TimePassed(), by, BEGAN_S + DEADLINE_S)
    assert state.phase is (Phase.AGGREGATING if enough else Phase.SKIPPED)
    if not enough:
        assert f"{delivered} of {invited}" in state.reason


def test_a_round_that_nobody_is_invited_to_is_skipped() -> None:
    by = rules(min_silos=1, min_fraction=0.0)
    state = msgspec.structs.replace(opened(by=by), invited=())
    assert advance(state, TimePassed(), by, BEGAN_S).phase is Phase.SKIPPED


# Deadlines


@pytest.mark.parametrize("phase", [p for p in Phase if p not in ENDED])
def test_every_phase_ends_at_its_deadline_and_not_before(phase: Phase) -> None:
    state, by = (opened(), rules()) if phase is Phase.COLLECTING else in_phase(phase)
    assert state.phase is phase
    assert advance(state, TimePassed(), by, state.deadline_s - 0.001) == state
    ended = advance(state, TimePassed(), by, state.deadline_s)
    assert ended.phase is (Phase.SKIPPED if phase is Phase.COLLECTING else Phase.FAILED)
    assert ended.reason


def test_a_phase_that_fails_tells_its_problem_when_its_time_is_up() -> None:
    state, by = in_phase(Phase.DISTILLING)
    problem = TimePassed(problem="no images")
    assert advance(state, problem, by, BEGAN_S) == state
    ended = advance(state, problem, by, state.deadline_s)
    assert "distilling did not end within 60 s" in ended.reason
    assert "no images" in ended.reason


def test_each_phase_has_a_deadline_of_its_own() -> None:
    state, by = in_phase(Phase.AGGREGATING, now_s=BEGAN_S + 5)
    assert state.deadline_s == BEGAN_S + 5 + PHASE_S
    state = advance(state, AGGREGATED, by, BEGAN_S + 50)
    assert state.deadline_s == BEGAN_S + 50 + PHASE_S


def test_a_round_that_could_close_goes_on_at_the_deadline_with_what_it_has() -> None:
    state = after(opened(), update("a"), update("b"), by=rules(), now_s=BEGAN_S + DEADLINE_S - 1)
    assert state.phase is Phase.COLLECTING
    assert advance(state, TimePassed(), rules(), BEGAN_S + DEADLINE_S).phase is Phase.AGGREGATING


# Updates


def test_a_duplicate_update_is_counted_once() -> None:
    state = after(opened(), update("a"), by=rules())
    assert advance(state, update("a"), rules(), BEGAN_S) == state
    assert advance(state, update("a", digest="e" * 64), rules(), BEGAN_S) == state


def test_an_update_of_a_silo_that_was_not_invited_does_not_count() -> None:
    state = opened("a", "b")
    assert advance(state, update("zzz"), rules(), BEGAN_S) == state
    assert advance(state, UpdateRejected(silo="zzz", reason="norm"), rules(), BEGAN_S) == state


@pytest.mark.parametrize("phase", list(COMPLETING))
def test_a_late_update_does_not_count(phase: Phase) -> None:
    by = rules(distils=True, evaluates=True)
    state = after(opened("a", "b", "c", by=by), update("a"), update("b"), by=by)
    state = advance(state, TimePassed(), by, BEGAN_S + DEADLINE_S)
    while state.phase is not phase:
        state = advance(state, COMPLETING[state.phase], by, BEGAN_S + DEADLINE_S)
    assert not state.wants("c")
    assert advance(state, update("c"), by, BEGAN_S + DEADLINE_S) == state


def test_an_update_that_comes_after_the_deadline_does_not_count_even_if_the_clock_ticks_later() -> (
    None
):
    state = after(opened("a", "b", "c"), update("a"), by=rules())
    late = advance(state, update("b"), rules(), BEGAN_S + DEADLINE_S + 30)
    assert late.phase is Phase.SKIPPED
    assert [u.silo for u in late.updates] == ["a"]


def test_a_silo_whose_update_was_refused_is_not_waited_for() -> None:
    state = after(opened("a", "b", "c"), update("a"), update("b"), by=rules())
    assert state.phase is Phase.COLLECTING
    state = advance(state, UpdateRejected(silo="c", reason="norm"), rules(), BEGAN_S)
    assert state.phase is Phase.AGGREGATING
    assert state.refused == {"c": "norm"}


def test_a_round_whose_updates_were_all_refused_is_skipped_at_once() -> None:
    rejected = [UpdateRejected(silo=silo, reason="norm") for silo in ("a", "b")]
    state = after(opened("a", "b"), *rejected, by=rules())
    assert state.phase is Phase.SKIPPED


def test_a_silo_can_make_good_for_a_refused_update_while_the_round_is_open() -> None:
    refused = UpdateRejected(silo="a", reason="not_finite")
    state = after(opened("a", "b", "c"), refused, by=rules())
    assert state.wants("a")
    state = advance(state, update("a"), rules(), BEGAN_S)
    assert state.refused == {}
    assert state.accepted("a") is not None


def test_a_refusal_after_an_accepted_update_takes_nothing_back() -> None:
    state = after(opened("a", "b", "c"), update("a"), by=rules())
    assert advance(state, UpdateRejected(silo="a", reason="norm"), rules(), BEGAN_S) == state


# Silos that are gone


def test_a_silo_that_is_gone_is_not_waited_for_and_its_update_does_not_count() -> None:
    state = after(opened("a", "b", "c"), update("a"), update("c"), SiloGone(silo="c"), by=rules())
    assert [u.silo for u in state.updates] == ["a"]
    assert state.invited == ("a", "b")
    assert not state.wants("c")
    assert advance(state, update("c"), rules(), BEGAN_S) == state
    state = advance(state, update("b"), rules(), BEGAN_S)
    assert state.phase is Phase.AGGREGATING


def test_the_last_silo_that_is_waited_for_closes_the_round_when_it_goes() -> None:
    state = after(opened("a", "b", "c"), update("a"), update("b"), SiloGone(silo="c"), by=rules())
    assert state.phase is Phase.AGGREGATING


def test_a_round_whose_silos_are_all_gone_is_skipped() -> None:
    state = after(opened("a", "b"), SiloGone(silo="a"), SiloGone(silo="b"), by=rules())
    assert state.phase is Phase.SKIPPED


@pytest.mark.parametrize("phase", list(COMPLETING))
def test_a_counted_silo_that_goes_before_publishing_makes_the_round_aggregate_again(
    phase: Phase,
) -> None:
    by = rules(distils=True, evaluates=True)
    state = after(opened("a", "b", "c", by=by), update("a"), update("b"), update("c"), by=by)
    while state.phase is not phase:
        state = advance(state, COMPLETING[state.phase], by, BEGAN_S)
    again = advance(state, SiloGone(silo="b"), by, BEGAN_S + 1)
    assert again.phase is Phase.AGGREGATING
    assert [u.silo for u in again.updates] == ["a", "c"]
    assert again.weights == {}
    assert again.deadline_s == BEGAN_S + 1 + PHASE_S


@pytest.mark.parametrize("phase", list(COMPLETING))
def test_a_round_without_enough_silos_left_fails(phase: Phase) -> None:
    state, by = in_phase(phase)
    ended = advance(state, SiloGone(silo="a"), by, BEGAN_S)
    assert ended.phase is Phase.FAILED
    assert "a" in ended.reason
    assert [u.silo for u in ended.updates] == ["b"]


def test_a_silo_without_an_update_that_goes_after_collecting_changes_no_result() -> None:
    by = rules()
    state = after(opened("a", "b", "c"), update("a"), update("b"), by=by)
    state = advance(state, TimePassed(), by, BEGAN_S + DEADLINE_S)
    gone = advance(state, SiloGone(silo="c"), by, BEGAN_S + DEADLINE_S)
    assert (gone.phase, gone.updates) == (state.phase, state.updates)


# Ends


EVENTS: list[Event] = [
    update("a"),
    update("zzz"),
    UpdateRejected(silo="a", reason="norm"),
    Declined(silo="a", policy_key="tensors"),
    SiloGone(silo="a"),
    TimePassed(),
    TimePassed(problem="late"),
    AGGREGATED,
    DISTILLED,
    EVALUATED,
    PUBLISHED,
    Abandoned(reason="again"),
]


@pytest.mark.parametrize("state", ended_states(), ids=lambda state: str(state.phase))
def test_an_ended_round_never_changes(state: RoundState) -> None:
    for event in EVENTS:
        assert advance(state, event, rules(), BEGAN_S + 1e9) == state


@pytest.mark.parametrize("phase", [p for p in Phase if p not in ENDED])
def test_a_round_can_be_abandoned_in_every_phase(phase: Phase) -> None:
    state, by = (opened(), rules()) if phase is Phase.COLLECTING else in_phase(phase)
    ended = advance(state, Abandoned(reason="the run was stopped"), by, BEGAN_S)
    assert ended.phase is Phase.FAILED
    assert ended.reason == "the run was stopped"


@pytest.mark.parametrize(
    ("phase", "event"),
    [
        (phase, event)
        for phase, event in itertools.product(COMPLETING, COMPLETING.values())
        if event != COMPLETING[phase]
    ],
)
def test_what_another_phase_asked_for_changes_nothing(phase: Phase, event: Event) -> None:
    state, by = in_phase(phase)
    assert advance(state, event, by, BEGAN_S) == state


def test_no_work_of_a_phase_counts_while_updates_are_collected() -> None:
    for event in COMPLETING.values():
        assert advance(opened(), event, rules(), BEGAN_S) == opened()


# Any schedule

SILOS = ("a", "b", "c", "d", "e")
silos = some.sampled_from([*SILOS, "stranger"])
events = some.one_of(
    some.builds(update, silos, digest=some.sampled_from(["d" * 64, "e" * 64])),
    some.builds(UpdateRejected, silo=silos, reason=some.just("norm")),
    some.builds(Declined, silo=silos, policy_key=some.just("tensors")),
    some.builds(SiloGone, silo=silos),
    some.builds(UpdatesLost, silos=some.tuples(silos)),
    some.just(ResultsLost()),
    some.just(TimePassed()),
    some.just(AGGREGATED),
    some.just(DISTILLED),
    some.just(EVALUATED),
    some.just(PUBLISHED),
)
schedules = some.lists(some.tuples(events, some.floats(0, 100)), max_size=40)
any_rules = some.builds(
    rules,
    min_silos=some.integers(1, 5),
    min_fraction=some.floats(0, 1),
    distils=some.booleans(),
    evaluates=some.booleans(),
)


def check_always(before: RoundState, event: Event, state: RoundState, by: Rules) -> None:
    """What holds after every step of every schedule."""
    counted = [u.silo for u in state.updates]
    assert counted == sorted(set(counted)), "sorted, and no silo twice"
    assert list(state.invited) == sorted(set(state.invited))
    if before.ended:
        assert state == before
    if before.phase is not Phase.COLLECTING:
        assert set(state.updates) <= set(before.updates), "nothing counts that came late"
    if isinstance(event, SiloGone) and not before.ended:
        assert event.silo not in counted
    if not isinstance(event, UpdateAccepted):
        assert set(state.updates) <= set(before.updates)
    if state.phase is Phase.PUBLISHED:
        assert len(counted) >= by.min_silos
        assert state.model_digest
    if state.phase in (Phase.SKIPPED, Phase.FAILED):
        assert state.reason
    assert (state.run, state.number, state.base_digest) == ("spring", 7, before.base_digest)


@given(any_rules, some.sets(some.sampled_from(SILOS)).map(sorted), schedules)
@settings(max_examples=300)
def test_every_schedule_keeps_the_invariants_and_ends_by_its_deadlines(
    by: Rules, invited: list[str], schedule: list[tuple[Event, float]]
) -> None:
    state = msgspec.structs.replace(opened("x", by=by), invited=tuple(invited))
    now_s = BEGAN_S
    for event, pause_s in schedule:
        now_s += pause_s
        before, state = state, advance(state, event, by, now_s)
        check_always(before, event, state, by)
        assert advance(state, event, by, now_s) == state or not isinstance(event, UpdateAccepted)
    left = 1 + len(COMPLETING)  # each phase ends by its deadline: so many ticks are enough
    for _ in range(left):
        before, state = state, advance(state, TimePassed(), by, state.deadline_s)
        check_always(before, TimePassed(), state, by)
    assert state.ended


@given(any_rules, schedules)
def test_the_order_in_which_updates_come_changes_nothing(
    by: Rules, schedule: list[tuple[Event, float]]
) -> None:
    updates = [event for event, _ in schedule if isinstance(event, UpdateAccepted)]
    first = {e.update.silo: e for e in reversed(updates)}
    forwards = after(opened(*SILOS, by=by), *first.values(), by=by)
    backwards = after(opened(*SILOS, by=by), *reversed(first.values()), by=by)
    assert forwards == backwards


@given(any_rules, schedules)
def test_a_state_read_back_from_the_journal_goes_on_the_same(
    by: Rules, schedule: list[tuple[Event, float]]
) -> None:
    state = replayed = opened(*SILOS, by=by)
    now_s = BEGAN_S
    for event, pause_s in schedule:
        now_s += pause_s
        state = advance(state, event, by, now_s)
        replayed = advance(
            msgspec.json.decode(msgspec.json.encode(replayed), type=RoundState), event, by, now_s
        )
    assert replayed == state


# Updates that the disk has lost


@pytest.mark.parametrize("phase", [Phase.AGGREGATING, Phase.DISTILLING])
def test_a_lost_update_is_asked_for_again_and_then_nothing_has_changed(phase: Phase) -> None:
    state, by = in_phase(phase)
    lost = advance(state, UpdatesLost(silos=("a",)), by, BEGAN_S + 1)
    assert lost.phase is Phase.COLLECTING
    assert lost.wants("a") and not lost.wants("b")
    assert lost.deadline_s == BEGAN_S + DEADLINE_S
    again = after(lost, update("a"), by=by, now_s=BEGAN_S + 2)
    assert again.phase is Phase.AGGREGATING
    assert again.updates == state.updates
    assert again.weights == {}


def test_a_lost_update_that_does_not_come_in_time_is_done_without() -> None:
    by = rules()
    state = after(opened("a", "b", "c", by=by), update("a"), update("b"), update("c"), by=by)
    lost = advance(state, UpdatesLost(silos=("a",)), by, BEGAN_S + 1)
    closed = advance(lost, TimePassed(), by, BEGAN_S + DEADLINE_S)
    assert closed.phase is Phase.AGGREGATING
    assert [one.silo for one in closed.updates] == ["b", "c"]


def test_an_update_that_is_lost_after_the_deadline_does_not_count_any_more() -> None:
    by, late_s = rules(), BEGAN_S + DEADLINE_S
    state = after(opened("a", "b", "c", "d", by=by), update("a"), update("b"), update("c"), by=by)
    state = advance(state, TimePassed(), by, late_s)
    without = advance(state, UpdatesLost(silos=("a",)), by, late_s + 1)
    assert without.phase is Phase.AGGREGATING
    assert [one.silo for one in without.updates] == ["b", "c"]
    failed = advance(without, UpdatesLost(silos=("b", "c")), by, late_s + 2)
    assert failed.phase is Phase.FAILED
    assert "no quorum without b, c, lost on the coordinator's disk" in failed.reason


def test_a_lost_update_that_no_longer_counts_changes_nothing() -> None:
    state, by = in_phase(Phase.DISTILLING)
    assert advance(state, UpdatesLost(silos=("z",)), by, BEGAN_S + 1) == state


@pytest.mark.parametrize("phase", [Phase.DISTILLING, Phase.EVALUATING, Phase.PUBLISHING])
def test_a_lost_model_of_the_round_is_made_again_and_then_nothing_has_changed(phase: Phase) -> None:
    by = rules(distils=True, evaluates=True)
    made = replace(AGGREGATED, results={"aggregate": "a" * 64})
    distilled = replace(DISTILLED, results={"distilled": "d" * 64})
    steps = {**COMPLETING, Phase.AGGREGATING: made, Phase.DISTILLING: distilled}

    def until(state: RoundState, wanted: Phase) -> RoundState:
        while state.phase is not wanted:
            state = advance(state, steps[state.phase], by, BEGAN_S)
        return state

    state = until(after(opened("a", "b", by=by), update("a"), update("b"), by=by), phase)
    lost = advance(state, ResultsLost(), by, BEGAN_S)
    assert lost.phase is Phase.AGGREGATING and lost.results == {} and lost.weights == {}
    assert lost.updates == state.updates
    again = until(lost, phase)
    same = msgspec.structs.replace(state, made_again=1, phase_seconds=again.phase_seconds)
    assert again == same


def test_a_model_that_is_lost_again_and_again_ends_the_round() -> None:
    by = rules()
    state = after(opened("a", "b", by=by), update("a"), update("b"), by=by)
    made = replace(AGGREGATED, results={"aggregate": "a" * 64})
    while not state.ended:
        state = after(state, made, ResultsLost(), by=by)
    assert state.phase is Phase.FAILED
    assert "damaged on the coordinator's disk 3 times" in state.reason


# Silos that decline


def test_a_round_does_not_wait_for_a_silo_that_has_declined_it() -> None:
    by = rules()
    state = after(opened("a", "b", "c"), update("a"), update("b"), by=by)
    assert state.phase is Phase.COLLECTING
    closed = advance(state, Declined(silo="c", policy_key="rounds_per_day"), by, BEGAN_S + 1)
    assert closed.phase is Phase.AGGREGATING
    assert closed.declined == {"c": "rounds_per_day"} and closed.invited == ("a", "b", "c")


def test_a_round_that_too_many_decline_is_skipped_at_once() -> None:
    by = rules(min_silos=2)
    declined = [Declined(silo=silo, policy_key="backbones") for silo in ("b", "c")]
    state = after(opened("a", "b", "c"), *declined, by=by)
    assert state.phase is Phase.COLLECTING  # a may still come
    assert advance(state, update("a"), by, BEGAN_S).phase is Phase.SKIPPED


def test_who_has_declined_may_still_think_better_of_it_until_the_round_closes() -> None:
    by = rules()
    state = after(opened("a", "b"), Declined(silo="a", policy_key="tensors"), update("a"), by=by)
    assert state.declined == {} and state.accepted("a") is not None


@pytest.mark.parametrize("silo", ["b", "stranger"])
def test_who_has_delivered_or_was_not_invited_declines_nothing(silo: str) -> None:
    by = rules()
    state = after(opened("a", "b", "c"), update("b"), by=by)
    assert advance(state, Declined(silo=silo, policy_key="tensors"), by, BEGAN_S) == state
