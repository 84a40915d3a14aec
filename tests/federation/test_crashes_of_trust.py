"""Does a crash in the middle of a decision on trust leave it taken or not taken, never half?

Real processes over real mTLS; whoever gave the command that a crash cut off gives it again.
"""

import contextlib
import json
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation
from fedreid.errors import RunError
from silo_agent.config import Folders
from tests.federation.conftest import Storming, write_plan
from tests.federation.storms import (
    BACKBONE,
    COORDINATOR,
    QUORUM,
    Storm,
    check_nothing_is_lost,
    play,
)
from tests.federation.test_crash_matrix import (
    COMMANDED,
    ENROLLING,
    RENEWING_AGENT,
    RENEWING_COORDINATOR,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def plan_in(folder: Path) -> Path:
    return write_plan(folder / "plan.toml", rounds=1000, backbone=BACKBONE, quorum=QUORUM)


def admin_says(local: LocalFederation, *arguments: str) -> str:
    return local.command("coordinator", *arguments, "--data", str(local.data))


def cut_off(storm: Storm, point: str, *arguments: str) -> None:
    """Give a command in the middle of which the coordinator dies, and wait until it is back."""
    storm.arm(COORDINATOR, f"{point} 1 crash")
    with pytest.raises(RunError):
        storm.local.command(*arguments)
    assert not storm.pending(COORDINATOR)
    deaths = storm.deaths[COORDINATOR]
    storm.wait(lambda: storm.deaths[COORDINATOR] > deaths, "the coordinator is started again")
    storm.wait(lambda: answers(storm.local), "the coordinator answers")


def answers(local: LocalFederation) -> bool:
    return "serving the federation" in local.coordinator.log_of_this_start


def answered(storm: Storm, *arguments: str) -> str:
    """Ask until the coordinator lives long enough to answer."""
    while True:
        try:
            return admin_says(storm.local, *arguments)
        except RunError as error:
            if "can't be reached" not in str(error):
                raise
        storm.wait(
            lambda: storm.local.coordinator.running() and answers(storm.local),
            "the coordinator answers",
        )


def authorities(storm: Storm) -> dict[str, object]:
    return dict(json.loads(answered(storm, "ca", "status", "--json")))


def take(storm: Storm, command: str, step: str) -> None:
    """Take a step of the roll-over, though silos that follow at once end the coordinator."""
    while authorities(storm)["step"] != step:
        with contextlib.suppress(RunError):
            admin_says(storm.local, "ca", command)


def states(local: LocalFederation) -> dict[str, str]:
    silos = json.loads(admin_says(local, "silo", "list", "--json"))
    return {silo["name"]: silo["state"] for silo in silos}


def followed(storm: Storm) -> None:
    """Wait until every silo has followed a step of the roll-over."""
    storm.wait(lambda: not authorities(storm)["awaited"], "the silos follow")


def test_a_join_that_is_cut_off_is_done_again_with_the_same_token(
    storms: Storming, tmp_path: Path
) -> None:
    storm = storms("fed")
    local = storm.local
    for silo, point in zip(local.silos, ENROLLING, strict=True):
        joining = (*local.join_arguments(silo), "--enrol-only")
        cut_off(storm, point, *joining)
        key = Folders(local.agent_data(silo)).pending_key.read_bytes()
        local.command(*joining)
        folders = Folders(local.agent_data(silo))
        assert (folders.identity / "live" / "key.pem").read_bytes() == key
        assert not folders.pending_key.exists()
        local.start_null_agent(silo)
    assert states(local) == dict.fromkeys(local.silos, "active")
    local.start_run(plan_in(tmp_path))
    storm.go_on(2)


def test_renewals_and_roll_overs_that_are_cut_off_lock_nobody_out(
    storms: Storming, tmp_path: Path
) -> None:
    def script(storm: Storm) -> None:
        silo = next(iter(storm.local.silos))
        faults = [(COORDINATOR, point) for point in RENEWING_COORDINATOR]
        faults += [(silo, point) for point in RENEWING_AGENT]
        for place, (who, point) in enumerate(faults):
            storm.arm(who, f"{point} 1 crash")
            take(storm, *(("prepare", "prepared"), ("activate", "activated"))[place % 2])
            storm.wait(lambda who=who: not storm.pending(who), f"{who} meets {point}")  # type: ignore[misc]
            followed(storm)
            if place % 2:
                admin_says(storm.local, "ca", "drop")
        for point in (point for point in COMMANDED if point.startswith("ca.")):
            admin_says(storm.local, "ca", "prepare")
            followed(storm)
            cut_off(storm, point, "coordinator", "ca", "activate", "--data", str(storm.local.data))
            step = authorities(storm)["step"]
            assert step == ("prepared" if point.endswith("before") else "activated")
            if step == "prepared":
                admin_says(storm.local, "ca", "activate")
            followed(storm)
            admin_says(storm.local, "ca", "drop")
        assert authorities(storm)["step"] == "settled"

    stormy, calm = storms("stormy"), storms("calm")
    play(stormy, plan_in(tmp_path), script)
    play(calm, plan_in(tmp_path), lambda storm: storm.go_on(stormy.published() - 1))
    print(f"{stormy.published()} rounds, killed: {stormy.deaths}")
    check_nothing_is_lost(stormy, calm)


def test_commands_that_are_cut_off_have_taken_effect_or_not(
    storms: Storming, tmp_path: Path
) -> None:
    storm = storms("fed", silos=4)
    local = storm.local
    *staying, first, second = local.silos
    for silo in (first, second):
        local.command(*local.join_arguments(silo), "--enrol-only")
    for silo in staying:
        local.join_without_training(silo)
    local.start_run(plan_in(tmp_path))
    data = ("--data", str(local.data))
    for silo, side in ((first, "before"), (second, "after")):
        cut_off(storm, f"silo.gone.commit:{side}", "coordinator", "silo", "revoke", silo, *data)
        assert states(local)[silo] == ("active" if side == "before" else "revoked")
        admin_says(local, "silo", "revoke", silo)
        assert states(local)[silo] == "revoked"
    for side, after in (("before", "running"), ("after", "paused")):
        cut_off(storm, f"run.commit:{side}", "coordinator", "run", "pause", *data)
        assert json.loads(admin_says(local, "run", "status", "--json"))["state"] == after
    admin_says(local, "run", "resume")
    storm.go_on(2)
