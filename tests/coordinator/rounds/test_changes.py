"""What may a plan change under way, and does each round follow its own plan after a restart?"""

from pathlib import Path

import pytest

from coordinator.rounds.changes import changes_between
from coordinator.rounds.journal import Journal, ModelRow, RunRow
from coordinator.rounds.planned import Planned, Plans
from fedreid.audit import AuditLog, read_audit
from fedreid.errors import PlanRefused, RunError
from fedreid.plan import Plan, parse_plan
from tests.parties import FakeClock

BASE = """
name = "spring"
rounds = 10
[aggregation]
bn = "local"
[quorum]
min_silos = 2
"""
RUN = RunRow(name="spring", plan_toml=BASE, state="running", started_at_s=1.0)
START = ModelRow(version=1, digest="m", run="spring", round=0, release=b"r", signature=b"s")


def edited(*edits: tuple[str, str]) -> Plan:
    text = BASE
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return parse_plan(text)


def changes(after: Plan, *, published: int = 4) -> tuple[str, ...]:
    return changes_between(parse_plan(BASE), after, published=published)


def test_every_change_is_named_with_both_values() -> None:
    after = edited(("rounds = 10", "rounds = 20"), ("min_silos = 2", "min_silos = 3"))
    assert changes(after) == ("quorum.min_silos: 2 → 3", "rounds: 10 → 20")


@pytest.mark.parametrize(
    "table",
    [
        "[training]\nlearning_rate = 0.01\nbackbone_learning_rate = 0.001\nepochs = 3\n",
        "[wire]\nupload = 'bf16'\n",
        "[validation]\nquarantine_rounds = 3\n",
        "[evaluation]\nevery = 5\nstandalone = false\n",
    ],
)
def test_how_silos_train_send_and_measure_may_change(table: str) -> None:
    assert changes(parse_plan(BASE + table))


@pytest.mark.parametrize(
    ("after", "key"),
    [
        (edited(('name = "spring"', 'name = "summer"')), "name"),
        (edited(("rounds = 10", "rounds = 10\nseed = 8")), "seed"),
        (parse_plan(BASE + "[backbone]\nname = 'resnet18'\n"), "backbone.name"),
        (parse_plan(BASE + "[backbone]\nheight_px = 128\n"), "backbone.height_px"),
        (edited(('bn = "local"', 'bn = "pooled"')), "aggregation.bn"),
        (parse_plan(BASE + "[training]\nrecipe = 'bot'\n"), "backbone.last_stride"),
        (parse_plan(BASE + "[wire]\ndownload = 'bf16'\n"), "wire.download"),
        (parse_plan(BASE + "[evaluation]\nfolder = '/srv/test'\n"), "evaluation.folder"),
    ],
)
def test_what_a_run_keeps_is_refused_with_the_reason(after: Plan, key: str) -> None:
    with pytest.raises(PlanRefused, match=f"can't change {key} ") as refused:
        changes(after)
    assert refused.value.why and "another" in refused.value.next_step


def test_a_run_can_end_earlier_but_not_before_where_it_is() -> None:
    assert changes(edited(("rounds = 10", "rounds = 4")), published=4) == ("rounds: 10 → 4",)
    with pytest.raises(PlanRefused, match="can't end after 4 rounds"):
        changes(edited(("rounds = 10", "rounds = 4")), published=5)


def test_a_plan_that_changes_nothing_is_refused() -> None:
    with pytest.raises(PlanRefused, match="follows already"):
        changes(parse_plan(BASE + "deadline_s = 21600\n"))  # the default, spelt out


def test_each_round_follows_its_own_plan_after_a_restart_too(
    tmp_path: Path, clock: FakeClock
) -> None:
    audit = AuditLog(tmp_path / "audit", clock)
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add_run(RUN, START)
    for from_round, deadline_s in ((3, 60), (3, 90), (7, 30)):
        Plans(journal, RUN).change(
            "spring",
            Planned.of(from_round, BASE + f"deadline_s = {deadline_s}.0\n"),
            published=2,
            admin="ann",
            audit=audit,
        )
    journal.close()
    plans = Plans(Journal(tmp_path / "journal.sqlite"), RUN)
    deadlines = [plans.of_round(number).quorum.deadline_s for number in (1, 2, 3, 6, 7, 8)]
    assert deadlines == [21600, 21600, 90, 90, 30, 30]
    assert plans.newest.from_round == 7
    told = [line.fields["changes"] for line in read_audit(tmp_path / "audit")]
    assert told[2] == ["quorum.deadline_s: 90.0 → 30.0"]


def test_a_refused_change_leaves_nothing_behind(tmp_path: Path, clock: FakeClock) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add_run(RUN, START)
    plans, audit = Plans(journal, RUN), AuditLog(tmp_path / "audit", clock)
    other = Planned.of(2, BASE.replace("spring", "summer"))
    with pytest.raises(PlanRefused):
        plans.change("spring", other, published=1, admin="ann", audit=audit)
    assert journal.plan_changes("spring") == [] and list(read_audit(tmp_path / "audit")) == []
    assert plans.newest.toml == BASE


def test_without_a_run_there_is_no_plan(tmp_path: Path) -> None:
    plans = Plans(Journal(tmp_path / "journal.sqlite"), None)
    with pytest.raises(RunError, match="no run"):
        plans.of_round(1)
