"""Does the page of a run say what the coordinator says, and nothing that a stranger wrote?"""

import re
from pathlib import Path

import pytest

from coordinator.admin import rounds_page
from coordinator.gathered import Figure, Gathered, Member, Model, Part, Round, round_from_wire
from coordinator.report import page_of, shown_series, silo_rows, troubles_of, write_report
from coordinator.rounds.journal import Journal
from coordinator.rounds.machine import Declined, UpdateRejected, advance
from coordinator.watching import update_of
from fedreid.contract import EvaluationResult, ModelKind
from fedreid.errors import StorageError
from tests.coordinator.rounds.states import BEGAN_S, opened, rules, update


def figure(silo: str, number: int, model: ModelKind, score: float) -> Figure:
    result = EvaluationResult(
        model=model, rank1=score, rank5=score, rank10=score, map=score, minp=score, queries=9
    )
    return Figure(silo=silo, round=number, result=result)


def made_up(*silos: str, reason: str = "") -> Gathered:
    parts = tuple(
        Part(silo=silo, images=1234, train_loss=0.5, weight=1 / len(silos), flags=())
        for silo in silos
    )
    ended = Round(
        number=1,
        phase="published",
        reason="",
        model_digest="d" * 64,
        invited=silos,
        parts=parts,
        refused={},
        declined={},
        phase_seconds={"collecting": 60.0, "aggregating": 3.0},
        upload_bytes=2**21,
        download_bytes=2**20,
        loss_before=None,
        loss_after=None,
    )
    members = tuple(
        Member(
            name=silo,
            state="active",
            reason=reason,
            last_seen_s=1.9e9,
            certificate_ends_s=2e9,
            agent_version="0.1.0",
        )
        for silo in silos
    )
    return Gathered(
        federation="harbour",
        at_s=1.9e9,
        run="spring",
        state="running",
        reason="",
        models_planned=3,
        models_published=1,
        plan_toml='name = "spring"',
        members=members,
        rounds=(ended,),
        figures=tuple(
            found
            for silo in silos
            for found in (
                figure(silo, 0, "global", 0.2),
                figure(silo, 1, "global", 0.5),
                figure(silo, 1, "local", 0.6),
            )
        ),
        models=(Model(version=2, run="spring", round=1, digest="d" * 64),),
    )


def test_the_page_shows_the_newest_figures_and_marks_the_best_model() -> None:
    gathered = made_up("a", "b")
    (first, _) = silo_rows(gathered)
    assert {model: found.map for model, found in first.figures.items()} == {
        "local": 0.6,
        "global": 0.5,
    }
    assert first.best == "local" and (first.accepted, first.invited) == (1, 1)
    page = page_of(gathered)
    assert page.count('class="best"') == 2
    for told in ("1 of 3", "50.0 %", "first measured 20.0 %", "d" * 64, "1,234", "3.0 MiB"):
        assert told in page


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    page = page_of(made_up("a", "b"))
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)


def test_what_others_wrote_is_text_on_the_page() -> None:
    page = page_of(made_up("a", reason="<script>alert(1)</script>"))
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_run_without_rounds_or_silos_has_a_page() -> None:
    page = page_of(
        Gathered(
            federation="harbour", at_s=0.0, run="spring", state="running", reason="",
            models_planned=3, models_published=0, plan_toml="", members=(), rounds=(), figures=(),
            models=(),
        )
    )  # fmt: skip
    assert "0 of 3" in page and "<svg" not in page


def test_of_many_silos_the_lowest_mean_and_highest_are_drawn() -> None:
    few = {f"silo-{n}": {1: float(n)} for n in range(8)}
    assert list(shown_series(few)) == sorted(few)
    many = {f"silo-{n}": {1: float(n)} for n in range(9)}
    assert shown_series(many) == {
        "mean of silos": [(1, 4.0)],
        "lowest": [(1, 0.0)],
        "highest": [(1, 8.0)],
    }


def test_refused_and_declined_updates_come_through_the_admin_service(tmp_path: Path) -> None:
    state = opened("a", "b", "c", "d")
    for event in (
        UpdateRejected(silo="a", reason="norm"),
        Declined(silo="b", policy_key="rounds_per_day"),
        update("c"),
    ):
        state = advance(state, event, rules(), BEGAN_S)
    journal = Journal(tmp_path / "journal.sqlite")
    journal.save_round(state)
    (summary,) = rounds_page(journal, state.run, 0).rounds
    journal.close()
    told = [(one.silo, one.what, one.why) for one in troubles_of([round_from_wire(summary)])]
    assert told == [("a", "refused", "norm"), ("b", "declined", "policy rounds_per_day")]
    assert update_of("a", summary) == "refused: norm"
    assert update_of("b", summary) == "declined: rounds_per_day"
    assert update_of("c", summary) == "accepted"
    assert update_of("d", summary) == "awaited"
    assert update_of("e", summary) == ""
    assert summary.deadline_s == state.deadline_s


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_report(made_up("a"), tmp_path / "missing" / "report.html")
