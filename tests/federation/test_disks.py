"""Is nothing lost, and nothing damaged ever used, when disks fill up or give back other bytes?

Real processes over real mTLS; the agents train nothing. A disk that is full is a small one of its
own, which only root may mount; ``tests/coordinator/test_failing_disk.py`` needs no such right.
"""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation, Program
from coordinator.folders import Folders as CoordinatorFolders
from fedreid.audit import AuditLine, read_audit
from fedreid.errors import ExitCode
from fedreid.limits import MIB
from fedreid.v1 import admin_pb2
from silo_agent.config import Folders
from tests.federation.conftest import Founding, write_plan
from tests.federation.test_backup import further

pytestmark = pytest.mark.timeout(300)
_WAIT_S = 120.0
_SMALL = {"name": "squeezenet1_1", "height_px": 64, "width_px": 32}
_BLOCK = bytes(MIB)

Mount = Callable[[Path, int], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Small disks at folders; unmounted after the test."""
    mounted: list[Path] = []

    def make(folder: Path, size_mib: int) -> None:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "none", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("a small disk can only be mounted by root")
        mounted.append(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(_BLOCK)
        except OSError:
            return ballast


def damage(path: Path) -> bytes:
    """Flip one bit in the middle of a file; what it held before."""
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    return whole


def told(local: LocalFederation, program: Program, words: str) -> None:
    local.wait_until(lambda run: words in program.log_of_this_start, timeout_s=_WAIT_S)


def ready(local: LocalFederation) -> tuple[int, str]:
    """What /readyz answers."""
    port = local.coordinator.log_of_this_start.split("metrics on port ")[1].split()[0]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def audit_of(local: LocalFederation, *events: str) -> list[AuditLine]:
    lines = read_audit(CoordinatorFolders(local.data).audit)
    return [line for line in lines if line.event in events]


def start_endless_run(local: LocalFederation, tmp_path: Path) -> None:
    quorum = {"min_silos": len(local.silos), "deadline_s": 100.0, "phase_deadline_s": 100.0}
    plan = write_plan(tmp_path / "plan.toml", rounds=10_000, backbone=_SMALL, quorum=quorum)
    local.start_run(plan)


def test_a_coordinator_whose_disk_is_full_goes_on_when_there_is_space_again(
    found: Founding, mount: Mount, tmp_path: Path
) -> None:
    mount(tmp_path / "fed" / "coordinator", 400)
    local = found()
    for silo in local.silos:
        local.join_without_training(silo)
    start_endless_run(local, tmp_path)
    further(local, 1)
    assert ready(local) == (200, "ok\n")
    late, _ = local.agents.values()
    late.stop()  # so that this round waits for its update, whenever the disk fills up
    ballast = fill(local.data)
    told(local, local.coordinator, "the disk is full. Free some space")
    status, sentence = ready(local)
    assert status == 503 and "disk" in sentence
    late.start()
    told(local, late, "disk is full")
    ballast.unlink()
    told(local, local.coordinator, "takes writes again")
    further(local, 2)
    assert ready(local)[0] == 200
    assert [line.event for line in audit_of(local, "coordinator.started")] == [
        "coordinator.started"
    ]
    ended = audit_of(local, "round.published", "round.skipped", "round.failed")
    assert {line.event for line in ended} == {"round.published"}
    accepted = [
        (line.fields["round"], line.fields["silo"]) for line in audit_of(local, "update.accepted")
    ]
    assert len(accepted) == len(set(accepted))
    for program in local.agents.values():
        assert program.running()


@pytest.mark.slow
def test_an_agent_whose_disk_is_full_goes_on_when_there_is_space_again(
    found: Founding, mount: Mount, tmp_path: Path
) -> None:
    local = found()
    full, _ = local.silos
    mount(local.agent_data(full), 100)
    for silo in local.silos:
        local.join_without_training(silo)
    start_endless_run(local, tmp_path)
    further(local, 1)
    ballast = fill(local.agent_data(full))
    told(local, local.agents[full], "the disk is full. Free some space; nothing is lost")
    ballast.unlink()
    further(local, 2)
    assert local.agents[full].running()
    assert not audit_of(local, "round.skipped", "round.failed")


@pytest.mark.slow
def test_an_accepted_update_that_is_damaged_in_the_spool_is_asked_for_again(
    found: Founding, tmp_path: Path
) -> None:
    local = found(silos=3)
    agents = {silo: local.join_without_training(silo) for silo in local.silos}
    damaged, _, late = local.silos
    for agent in agents.values():
        told(local, agent, "connected to the federation")
    agents[late].stop()
    start_endless_run(local, tmp_path)
    local.wait_until(lambda run: len(run.round.participants) == 2, timeout_s=_WAIT_S)
    (update,) = local.data.glob(f"spool/*/{damaged}.safetensors")
    damage(update)
    local.start_null_agent(late)
    local.wait_until(lambda run: run.rounds_published >= 1, timeout_s=_WAIT_S)
    with local.admin() as admin:
        first = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds[0]
    assert [part.silo for part in first.participants] == list(local.silos)
    (lost,) = audit_of(local, "update.lost")
    assert (lost.fields["silo"], lost.fields["round"]) == (damaged, first.number)
    assert local.agents[damaged].log.count(f"round {first.number}: training") == 1


@pytest.mark.slow
def test_a_damaged_model_is_never_sent_and_the_federation_goes_on_when_it_is_put_back(
    found: Founding, tmp_path: Path
) -> None:
    local = found()
    for silo in local.silos:
        local.join_without_training(silo)
    start_endless_run(local, tmp_path)
    further(local, 1)
    for agent in local.agents.values():
        agent.stop()
    with local.admin() as admin:
        newest = admin.GetRun(admin_pb2.GetRunRequest()).round.base_digest
    path = CoordinatorFolders(local.data).models / f"{newest}.safetensors"
    whole = damage(path)
    local.coordinator.stop()
    assert exit_code(local, "doctor") == ExitCode.STORAGE
    local.restart_coordinator()
    for silo in local.silos:
        for file in Folders(local.agent_data(silo)).models.glob(f"{newest}*"):
            file.unlink()
        local.start_null_agent(silo)
    told(local, local.agents[silo], "is damaged or gone")
    path.write_bytes(whole)
    further(local, 1)
    assert not audit_of(local, "round.failed")


def cut_off(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_end(path: Path) -> None:
    """Flip one bit shortly before the end of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        ("model-key.pem", damage, "signs models"),
        ("journal.sqlite", cut_off, "journal.sqlite is damaged"),
        ("audit/000001.jsonl", damage_end, "audit log is broken"),
        ("authority/*/key.pem", damage, "authorities"),
    ],
)
def test_a_coordinator_does_not_start_on_what_is_damaged_and_says_what_to_do(
    found: Founding, file: str, harm: Callable[[Path], object], words: str
) -> None:
    local = found(silos=1)
    local.coordinator.stop()
    (path,) = local.data.glob(file)
    harm(path)
    local.coordinator.start()
    assert local.coordinator.wait(60.0) in (ExitCode.STORAGE, ExitCode.TRUST)
    log = local.coordinator.log_of_this_start
    assert words in log and "next:" in log and "Traceback" not in log
    assert exit_code(local, "doctor") == ExitCode.STORAGE


def exit_code(local: LocalFederation, command: str) -> int:
    arguments = [sys.executable, "-m", "coordinator", command, "--data", str(local.data)]
    return subprocess.run(arguments, capture_output=True, check=False).returncode


@pytest.mark.slow
def test_a_line_of_the_audit_log_that_was_changed_long_ago_is_told_while_the_work_goes_on(
    found: Founding,
) -> None:
    local = found(silos=1)
    local.coordinator.stop()
    damage(CoordinatorFolders(local.data).audit / "000001.jsonl")
    local.restart_coordinator()
    told(local, local.coordinator, "audit log is broken")
    assert local.coordinator.running()
