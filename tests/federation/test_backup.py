"""Does a federation go on after its coordinator's disk is lost, from a backup that is old?

Real processes over real mTLS; the agents train nothing, so that rounds follow each other quickly.
"""

import json
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation
from coordinator.folders import Folders as CoordinatorFolders
from fedreid.audit import read_audit, verify
from fedreid.errors import RunError
from fedreid.v1 import admin_pb2
from silo_agent.config import Folders
from tests.federation.conftest import Founding, write_plan

pytestmark = pytest.mark.timeout(300)
_WAIT_S = 120.0
_SMALL = {"name": "squeezenet1_1", "height_px": 64, "width_px": 32}


def further(local: LocalFederation, rounds: int) -> None:
    with local.admin() as admin:
        before = admin.GetRun(admin_pb2.GetRunRequest()).rounds_published
    local.wait_until(lambda run: run.rounds_published >= before + rounds, timeout_s=_WAIT_S)


def coordinator_says(local: LocalFederation, *arguments: str) -> str:
    return local.command("coordinator", *arguments, "--data", str(local.data))


def taken(local: LocalFederation, silo: str) -> list[tuple[int, str]]:
    """Version and digest of each model that a silo has taken, in order."""
    return [
        (int(line.fields["version"]), str(line.fields["model_digest"]))
        for line in read_audit(Folders(local.agent_data(silo)).audit)
        if line.event == "model.taken"
    ]


def renewals(local: LocalFederation, silo: str) -> int:
    lines = read_audit(Folders(local.agent_data(silo)).audit)
    return sum(line.event == "identity.renewed" for line in lines)


def lose_and_restore(local: LocalFederation, backup: Path, lost: Path) -> str:
    """The machine is gone, and another one takes its name with what the backup holds."""
    local.coordinator.kill()
    local.data.rename(lost)
    told = coordinator_says(local, "restore", str(backup))
    local.restart_coordinator()
    return told


def test_a_federation_goes_on_from_an_old_backup_twice(found: Founding, tmp_path: Path) -> None:
    local = found()
    for silo in local.silos:
        local.join_without_training(silo)
    plan = write_plan(tmp_path / "plan.toml", rounds=10_000, backbone=_SMALL)
    local.start_run(plan)
    further(local, 1)
    backup = tmp_path / "backup.tar"
    assert "PRIVATE KEYS" in coordinator_says(local, "backup", str(backup))
    assert backup.stat().st_mode & 0o077 == 0
    coordinator_says(local, "ca", "prepare")  # every silo renews its identity
    local.wait_until(
        lambda run: all(renewals(local, silo) for silo in local.silos), timeout_s=_WAIT_S
    )
    further(local, 2)

    told = lose_and_restore(local, backup, tmp_path / "lost")
    assert "revoke them again" in told
    further(local, 3)
    lose_and_restore(local, backup, tmp_path / "lost again")
    further(local, 3)

    for silo, agent in local.agents.items():
        models = taken(local, silo)
        assert [version for version, _ in models] == sorted({version for version, _ in models})
        assert agent.running() and "was already taken" not in agent.log
    events = [line.event for line in read_audit(CoordinatorFolders(local.data).audit)]
    assert events.count("coordinator.restored") == 1 and "model.caught_up" in events
    local.coordinator.stop()
    assert verify(CoordinatorFolders(local.data).audit).cut_off_bytes == 0
    coordinator_says(local, "doctor", "--repair")  # a round that has just ended leaves its folders
    findings = json.loads(coordinator_says(local, "doctor", "--json"))
    assert {finding["state"] for finding in findings} <= {"ok", "note"}


@pytest.mark.slow
def test_a_doctor_looks_at_no_coordinator_that_runs(found: Founding) -> None:
    local = found(silos=1)
    with pytest.raises(RunError, match="Another coordinator works on"):
        coordinator_says(local, "doctor")
    local.coordinator.stop()
    assert "whole" in coordinator_says(local, "doctor")
