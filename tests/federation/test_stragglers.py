"""Does a run go on while silos are slow, come, go, decline and come back, and its plan changes?"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from benchmark.federation import LocalFederation, Program
from coordinator.folders import Folders as CoordinatorFolders
from fedreid.audit import AuditLine, read_audit
from fedreid.errors import RunError
from fedreid.plan import parse_plan
from fedreid.v1 import admin_pb2
from silo_agent.config import Folders, Policy, load_config, save_config
from tests.federation.conftest import Founding
from tests.federation.test_network import BACKBONE, QUORUM, Linked, plan

pytestmark = pytest.mark.timeout(600)
_PATIENT = {**QUORUM, "min_fraction": 0.5}
_BRISK = {**_PATIENT, "deadline_s": 20.0}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Proxies that end with the test."""
    with ExitStack() as stack:
        yield stack


def audited(local: LocalFederation, event: str) -> list[AuditLine]:
    return [
        line for line in read_audit(CoordinatorFolders(local.data).audit) if line.event == event
    ]


def rounds(local: LocalFederation) -> list[admin_pb2.RoundSummary]:
    with local.admin() as admin:
        return list(admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds)


def who(state: admin_pb2.RoundSummary) -> set[str]:
    """Whose updates count in a round."""
    return {part.silo for part in state.participants}


def change(local: LocalFederation, written: Path) -> dict[str, object]:
    """Change the plan as an administrator does."""
    told = local.command(
        "coordinator", "run", "change", str(written), "--data", str(local.data), "--json"
    )
    changed: dict[str, object] = json.loads(told)
    return changed


def a_round_of(fed: Linked, silos: set[str]) -> None:
    """Wait until a further round was published in which exactly these count."""
    newest = rounds(fed.local)[-1].number
    fed.wait_for(
        lambda: any(
            state.number > newest and state.phase == "published" and who(state) == silos
            for state in rounds(fed.local)
        )
    )


def test_rounds_go_on_while_silos_come_fall_behind_and_go(
    found: Founding, stack: ExitStack, tmp_path: Path
) -> None:
    fed = Linked(found(silos=3), stack)
    first, second, third = fed.local.silos
    fed.local.start_run(plan(tmp_path / "plan.toml", rounds=1000, quorum=_PATIENT))
    for silo in (first, second):
        fed.join(silo)
    fed.until(lambda run: run.rounds_published >= 1)
    fed.join(third)
    a_round_of(fed, {first, second, third})
    change_the_deadline(fed, tmp_path)
    fall_behind(fed, third, others={first, second})
    a_round_of(fed, {first, second, third})
    fed.local.agents.pop(second).stop()
    fed.local.command("silo_agent", "leave", "--data", str(fed.local.agent_data(second)))
    a_round_of(fed, {first, third})
    end_it(fed, tmp_path)
    fed.check()


def change_the_deadline(fed: Linked, tmp_path: Path) -> None:
    """Rounds from the next one on are over sooner, also after a crash of the coordinator."""
    other = {**BACKBONE, "name": "resnet18"}
    with pytest.raises(RunError, match=r"can't change backbone\.name"):
        change(fed.local, plan(tmp_path / "b.toml", rounds=1000, backbone=other))
    changed = change(fed.local, plan(tmp_path / "c.toml", rounds=1000, quorum=_BRISK))
    assert changed["changes"] == ["quorum.deadline_s: 240.0 → 20.0"]
    fed.local.coordinator.kill()
    fed.local.restart_coordinator()
    with fed.local.admin() as admin:
        run = admin.GetRun(admin_pb2.GetRunRequest())
    assert parse_plan(run.plan_toml).quorum.deadline_s == 20.0
    from_round = int(str(changed["from_round"]))
    fed.until(lambda run: run.round.number > from_round)


def fall_behind(fed: Linked, slow: str, *, others: set[str]) -> None:
    """A silo whose update does not arrive by the deadline: it does not count, and is told so."""
    proxy = fed.proxies[slow]
    stuck = proxy.when_passed("up", 700_000, proxy.part)
    fed.wait_for(stuck.is_set)
    number = rounds(fed.local)[-1].number
    a_round_of(fed, others)
    proxy.heal()
    agent = fed.local.agents[slow]
    fed.wait_for(lambda: "too late, it does not count" in agent.log)
    late = {(x.fields["silo"], x.fields["round"]) for x in audited(fed.local, "update.late")}
    assert late == {(slow, number)}
    assert agent.log.count(f"round {number}: trained on") == 1


def end_it(fed: Linked, tmp_path: Path) -> None:
    """The run ends where its plan says last."""
    fed.control("pause")  # or rounds could pass that end while the plan is being changed
    done = rounds(fed.local)[-1].number
    change(fed.local, plan(tmp_path / "d.toml", rounds=done + 2, quorum=_BRISK))
    fed.control("resume")
    fed.until(lambda run: run.state == "finished")
    with fed.local.admin() as admin:
        run = admin.GetRun(admin_pb2.GetRunRequest())
    assert run.rounds_planned == run.rounds_published == done + 2


def keeping(local: LocalFederation, silo: str) -> Program:
    """Start an agent whose training keeps something at home, as a classifier is kept."""
    agent = Program(
        ("tests.federation.keeping_agent", str(local.agent_data(silo))), local.root / f"{silo}.log"
    )
    local.agents[silo] = agent
    agent.start()
    return agent


@pytest.mark.slow
def test_a_silo_that_was_away_for_fifty_rounds_gets_one_model_and_keeps_its_own(
    found: Founding, stack: ExitStack, tmp_path: Path
) -> None:
    fed = Linked(found(silos=3), stack)
    away = min(fed.local.silos)
    for silo in fed.local.silos:
        fed.local.command(*fed.local.join_arguments(silo), "--enrol-only")
        keeping(fed.local, silo)
    fed.local.start_run(plan(tmp_path / "plan.toml", rounds=1000, quorum=_PATIENT))
    a_round_of(fed, set(fed.local.silos))
    fed.local.agents[away].stop()
    last = max(kept(fed.local, away))
    # Its administrators know; or each round would wait some seconds for it.
    fed.local.command("coordinator", "silo", "suspend", away, "--data", str(fed.local.data))
    fed.until(lambda run: run.rounds_published >= last + 50)
    fed.local.command("coordinator", "silo", "resume", away, "--data", str(fed.local.data))
    taken = len(models_taken(fed.local, away))
    fed.local.agents[away].start()
    a_round_of(fed, set(fed.local.silos))
    fed.control("stop")
    fed.local.agents[away].stop()
    rounds_kept = kept(fed.local, away)
    back = min(number for number in rounds_kept if number > last)
    assert back > last + 50
    # Each round's training found what the one before it had kept, over the gap too.
    assert rounds_kept == [n for n in rounds_kept if n <= last or n >= back] and last in rounds_kept
    numbers = [line.fields["round"] for line in models_taken(fed.local, away)[taken:]]
    assert numbers[0] == back - 1
    fed.check()


def models_taken(local: LocalFederation, silo: str) -> list[AuditLine]:
    lines = read_audit(Folders(local.agent_data(silo)).audit)
    return [line for line in lines if line.event == "model.taken"]


def kept(local: LocalFederation, silo: str) -> list[int]:
    """The rounds that the newest of a silo's rounds knows of."""
    folder = max(Folders(local.agent_data(silo)).rounds.glob("test-*"))
    text = (folder / "private" / "classifier").read_text()
    return [int(number) for number in text.split()]


def test_a_silo_that_declines_holds_no_round_to_its_deadline(
    found: Founding, stack: ExitStack, tmp_path: Path
) -> None:
    fed = Linked(found(silos=3), stack)
    frugal, *others = fed.local.silos
    for silo in fed.local.silos:
        fed.local.command(*fed.local.join_arguments(silo), "--enrol-only")
    folders = Folders(fed.local.agent_data(frugal))
    save_config(folders, replace(load_config(folders), policy=Policy(rounds_per_day=1)))
    for silo in fed.local.silos:
        agent = fed.local.start_null_agent(silo)
        fed.wait_for(lambda agent=agent: "connected" in agent.log)  # type: ignore[misc]
    fed.local.start_run(plan(tmp_path / "plan.toml", rounds=3, quorum=_PATIENT))
    fed.until(lambda run: run.state == "finished")
    one, two, three = rounds(fed.local)
    assert who(one) == set(fed.local.silos)
    assert dict(two.declined) == {frugal: "rounds_per_day"} and who(two) == set(others)
    assert sum(two.phase_seconds.values()) < _PATIENT["deadline_s"] / 4
    assert set(three.invited) == set(others)  # it has said that it is silent
    (line,) = audited(fed.local, "round.declined")
    assert (line.fields["silo"], line.fields["policy_key"]) == (frugal, "rounds_per_day")
    (own,) = [x for x in read_audit(folders.audit) if x.event == "policy.refused"]
    assert own.fields["key"] == "rounds_per_day"
    assert fed.local.agents[frugal].running()
    fed.check()
