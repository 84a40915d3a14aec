"""Does the gate keep a model from being published that lies too far below the run's best?"""

import pytest

from coordinator.rounds.machine import (
    Aggregated,
    Evaluated,
    Phase,
    Published,
    RoundState,
    Rules,
    advance,
    open_round,
)
from tests.coordinator.rounds.states import BASE, BEGAN_S, opened, rules, update

GATED = rules(evaluates=True, gate_drop=2.0)
NEW = "m" * 64


def measured(state: RoundState, value: float, by: Rules = GATED) -> RoundState:
    """The round after the coordinator has measured its model; published if the gate lets it."""
    for silo in state.invited:
        state = advance(state, update(silo), by, BEGAN_S)
    for event in (Aggregated(weights={}, update_norm=1.0), Evaluated(map=value)):
        state = advance(state, event, by, BEGAN_S)
    return advance(state, Published(model_digest=NEW, download_bytes=0), by, BEGAN_S)


def following(
    state: RoundState, *, base_digest: str | None = None, base_map: float | None = None
) -> RoundState:
    """The next round; from another model where one was put back."""
    outcome = state.model_digest if state.phase is Phase.PUBLISHED else state.base_digest
    return open_round(
        run="spring",
        number=state.number + 1,
        base_digest=base_digest or outcome,
        base_map=base_map,
        before=state,
        published_before=state.published_before,
        invited=state.invited,
        rules=GATED,
        now_s=BEGAN_S,
    )


def test_the_first_model_of_a_run_passes_and_sets_the_mark() -> None:
    state = measured(opened("a", "b"), 0.1)
    assert state.phase is Phase.PUBLISHED
    assert (state.gate_map, state.gate_best_map) == (0.1, None)
    assert following(state).gate_best_map == 0.1


@pytest.mark.parametrize(
    ("value", "passes"), [(0.9, True), (0.5, True), (0.481, True), (0.479, False)]
)
def test_a_model_may_lie_so_many_points_below_the_best_and_no_more(
    value: float, passes: bool
) -> None:
    state = measured(following(measured(opened("a", "b"), 0.5)), value)
    assert state.phase is (Phase.PUBLISHED if passes else Phase.FAILED)
    assert (state.gate_map, state.gate_best_map) == (value, 0.5)


def test_a_round_that_the_gate_stopped_names_both_figures_and_changes_nothing() -> None:
    state = measured(following(measured(opened("a", "b"), 0.5)), 0.125)
    assert "12.5" in state.reason and "50.0" in state.reason and "2 points" in state.reason
    after = following(state)
    assert after.base_digest == NEW
    assert after.gate_best_map == 0.5


def test_the_best_is_of_all_models_published_so_far_not_the_last_one() -> None:
    state = measured(opened("a", "b"), 0.5)
    for value in (0.485, 0.481):
        state = measured(following(state), value)
        assert state.phase is Phase.PUBLISHED
    assert following(state).gate_best_map == 0.5


def test_without_a_gate_nothing_is_compared() -> None:
    by = rules(evaluates=True)
    state = measured(opened("a", "b"), 0.9, by)
    state = measured(following(state), 0.0, by)
    assert state.phase is Phase.PUBLISHED
    assert state.gate_map is None


# After a roll-back


def test_after_a_roll_back_the_mark_is_the_models_own() -> None:
    state = measured(opened("a", "b"), 0.9)
    assert following(state, base_digest=BASE, base_map=0.4).gate_best_map == 0.4
    assert following(state, base_digest=BASE).gate_best_map is None


def test_neither_movement_nor_clusters_outlive_a_roll_back() -> None:
    state = measured(opened("a", "b"), 0.9)
    assert following(state).previous_digest == BASE
    assert following(state, base_digest="e" * 64).previous_digest == ""
