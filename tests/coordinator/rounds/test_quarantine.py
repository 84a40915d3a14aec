"""Who is kept out after suspect updates in a row, and who is not?"""

from coordinator.learning.jobs import Flag
from coordinator.rounds.machine import (
    Abandoned,
    Aggregated,
    RoundState,
    Rules,
    SiloGone,
    advance,
    open_round,
)
from coordinator.rounds.quarantine import due, streaks_after
from tests.coordinator.rounds.states import BASE, BEGAN_S, opened, rules, update

BY = rules(quarantine_rounds=2)
OUTLIER: dict[str, tuple[Flag, ...]] = {"c": ("clipped", "outlier")}


def flagged(state: RoundState, flags: dict[str, tuple[Flag, ...]], by: Rules = BY) -> RoundState:
    """The round after its updates were aggregated with these flags."""
    for silo in state.invited:
        state = advance(state, update(silo), by, BEGAN_S)
    weights = dict.fromkeys(state.invited, 0.25)
    event = Aggregated(weights=weights, update_norm=1.0, flags=flags)
    return advance(state, event, by, BEGAN_S)


def following(state: RoundState, *invited: str) -> RoundState:
    """The next round, after this one was given up: what was flagged stays known."""
    ended = advance(state, Abandoned(reason="stopped"), BY, BEGAN_S)
    return open_round(
        run="spring",
        number=state.number + 1,
        base_digest=BASE,
        before=ended,
        published_before=6,
        invited=invited or state.invited,
        rules=BY,
        now_s=BEGAN_S,
    )


def test_suspect_updates_are_counted_in_a_row() -> None:
    state = flagged(opened("a", "b", "c"), OUTLIER)
    state = flagged(following(state), OUTLIER)
    assert state.streaks == {"c": 1}
    assert following(state).streaks == {"c": 2}


def test_a_good_update_ends_the_row() -> None:
    state = flagged(following(flagged(opened("a", "b", "c"), OUTLIER)), {})
    assert following(state).streaks == {}


def test_a_round_without_the_silo_neither_adds_to_the_row_nor_ends_it() -> None:
    state = flagged(following(flagged(opened("a", "b", "c"), OUTLIER), "a", "b"), {})
    assert following(state, "a", "b", "c").streaks == {"c": 1}


def test_an_update_that_is_merely_clipped_is_not_suspect() -> None:
    assert streaks_after({"a": 3}, ["a", "b"], {"a": ("clipped",)}) == {}


def test_every_other_flag_is_suspect() -> None:
    flags: dict[str, tuple[Flag, ...]] = {
        "a": ("outlier",),
        "b": ("free_rider",),
        "c": ("distance",),
    }
    assert streaks_after({}, ["a", "b", "c", "d"], flags) == {"a": 1, "b": 1, "c": 1}


def test_who_has_sent_too_many_is_due_and_with_no_limit_nobody_is() -> None:
    assert due({"a": 1, "b": 2, "c": 3}, 2) == ["b", "c"]
    assert due({"a": 1, "b": 2000}, 0) == []


def test_a_silo_that_is_gone_begins_anew_when_it_is_let_in_again() -> None:
    state = flagged(following(flagged(opened("a", "b", "c"), OUTLIER)), OUTLIER)
    state = advance(state, SiloGone(silo="c"), BY, BEGAN_S)
    assert state.flags == {} and [u.silo for u in state.updates] == ["a", "b"]
    again = following(flagged(following(state, "a", "b"), {}), "a", "b", "c")
    assert again.streaks == {}


def test_a_round_that_is_aggregated_again_counts_its_flags_once() -> None:
    state = flagged(opened("a", "b", "c", "d"), OUTLIER)
    state = advance(state, SiloGone(silo="d"), BY, BEGAN_S)
    event = Aggregated(weights={}, update_norm=1.0, flags=OUTLIER)
    assert following(advance(state, event, BY, BEGAN_S)).streaks == {"c": 1}
