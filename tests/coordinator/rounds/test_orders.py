"""Do a round's jobs say of its silos what they told?"""

from pathlib import Path

import pytest

from coordinator.folders import Folders
from coordinator.rounds.machine import UpdateAccepted, advance
from coordinator.rounds.orders import aggregate_job
from fedreid.plan import Plan
from tests.coordinator.rounds.states import BEGAN_S, opened, rules, update


def distances(folder: Path, *updates: UpdateAccepted) -> dict[str, float]:
    """By silo, the cosine distance that the aggregate is weighted by."""
    state = opened(*(one.update.silo for one in updates))
    for one in updates:
        state = advance(state, one, rules(), BEGAN_S)
    job = aggregate_job(Folders(folder), state, Plan(name="spring", rounds=9), "harbour")
    return {one.silo: one.cosine_distance for one in job.contributions}


def test_a_silo_that_withholds_its_distance_counts_as_the_mean_of_the_others(
    tmp_path: Path,
) -> None:
    found = distances(
        tmp_path, update("a", distance=0.2), update("b", private=True), update("c", distance=0.6)
    )
    assert found == {"a": 0.2, "b": pytest.approx(0.4), "c": 0.6}


def test_where_every_silo_withholds_it_none_counts_more_than_another(tmp_path: Path) -> None:
    found = distances(tmp_path, update("a", private=True), update("b", private=True))
    assert found == {"a": 0.0, "b": 0.0}  # all 0: the weighting becomes uniform


def test_a_distance_of_0_that_is_told_stays_0(tmp_path: Path) -> None:
    found = distances(tmp_path, update("a", distance=0.0), update("b", distance=0.5))
    assert found == {"a": 0.0, "b": 0.5}
