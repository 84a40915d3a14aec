"""Do the figures of a state follow it, also over a restart and when a silo goes?"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from coordinator import metrics
from coordinator.readings import participants, show_past
from coordinator.rounds.journal import EvaluationRow, Journal, ModelRow, RunRow
from coordinator.rounds.machine import Declined, UpdateRejected, advance
from coordinator.trust.registry import REVOKED
from fedreid.contract import EvaluationResult
from fedreid.exposition import Exposition
from tests.coordinator.rounds.states import BEGAN_S, opened, rules, update
from tests.coordinator.test_metrics import published, value
from tests.coordinator.trust.assembled import Assembled


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def test_each_invited_silo_is_in_one_state() -> None:
    state = opened("a", "b", "c", "d")
    for event in (
        update("a"),
        UpdateRejected(silo="b", reason="norm"),
        Declined(silo="c", policy_key="rounds_total"),
    ):
        state = advance(state, event, rules(), BEGAN_S)
    assert participants(state) == {
        "invited": 4, "accepted": 1, "refused": 1, "declined": 1, "awaited": 1,
    }  # fmt: skip


def test_a_restart_shows_the_newest_figures_before_another_round_ends(journal: Journal) -> None:
    state = published()
    journal.add_run(
        RunRow(name=state.run, plan_toml="", state="running", started_at_s=BEGAN_S),
        ModelRow(version=1, digest="s" * 64, run=state.run, round=0, release=b"", signature=b""),
    )
    journal.save_round(
        state,
        [
            ModelRow(
                version=2,
                digest="m" * 64,
                run=state.run,
                round=state.number,
                release=b"",
                signature=b"",
            )
        ],
    )
    result = EvaluationResult(
        model="global", rank1=0.5, rank5=0.6, rank10=0.7, map=0.25, minp=0.1, queries=9
    )
    row = EvaluationRow(run=state.run, round=state.number, silo="b", result=result)
    journal.save_evaluations([row])
    metrics.forget_silos(["a", "b"])
    rounds = value("fedreid_rounds_total", outcome="published")
    show_past(journal)
    assert value("fedreid_model_version") == 2
    assert value("fedreid_round_last_success_timestamp_seconds") == state.phase_since_s
    assert value("fedreid_silo_aggregation_weight_ratio", silo="b") == 0.75
    assert value("fedreid_silo_map_ratio", silo="b", model="global") == 0.25
    assert value("fedreid_rounds_total", outcome="published") == rounds


def test_a_coordinator_without_a_run_shows_nothing_of_one(journal: Journal) -> None:
    show_past(journal)
    assert value("fedreid_model_version") == 0


def served(folder: Path, story: Callable[[Assembled], Coroutine[None, None, None]]) -> None:
    async def all_of_it() -> None:
        assembled = Assembled(folder)
        async with assembled.serving():
            await story(assembled)

    asyncio.run(all_of_it())


def scrape(assembled: Assembled) -> str:
    return Exposition(REGISTRY, assembled.readings.take).text().decode()


def test_a_revoked_silo_leaves_no_series_and_is_counted_as_revoked(tmp_path: Path) -> None:
    async def story(assembled: Assembled) -> None:
        for name in ("north", "south"):
            await assembled.enrolled(name)
        before = scrape(assembled)
        assembled.registry.set_state("north", REVOKED)
        after = scrape(assembled)
        assert 'fedreid_silos{state="active"} 2.0' in before
        assert 'fedreid_silos{state="active"} 1.0' in after
        assert 'fedreid_silos{state="revoked"} 1.0' in after
        assert 'silo="north"' in before and 'silo="north"' not in after
        for kept in ("last_seen_timestamp_seconds", "certificate_not_after_timestamp_seconds"):
            assert f'fedreid_silo_{kept}{{silo="south"}}' in after

    served(tmp_path, story)


def test_a_silo_that_was_never_heard_of_counts_from_the_start(tmp_path: Path) -> None:
    async def story(assembled: Assembled) -> None:
        await assembled.enrolled("north")
        found = re.search(r'last_seen_timestamp_seconds\{silo="north"\} (\S+)', scrape(assembled))
        assert found is not None
        (authority,) = re.findall(
            r"\nfedreid_ca_not_after_timestamp_seconds (\S+)", scrape(assembled)
        )
        assert 0 < float(found[1]) < float(authority)

    served(tmp_path, story)
