"""Does the doctor find what is wrong with a data folder, mend what it can, and name the rest?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.config import Config, initialise
from coordinator.doctor import Doctor
from coordinator.folders import Folders
from coordinator.rounds.chronicle import audit_of
from coordinator.rounds.journal import Journal
from coordinator.rounds.machine import Accepted, UpdateAccepted, advance, open_round
from coordinator.rounds.orders import rules_of, update_path
from coordinator.trust.authorities import Authorities
from coordinator.trust.own import keep_own_identities
from fedreid.audit import audit_files, verify
from fedreid.checkup import Finding, print_findings
from fedreid.contract import UpdateReport
from fedreid.errors import ExitCode
from fedreid.files import digest_of
from fedreid.plan import parse_plan
from tests.coordinator.trust.planted import plant
from tests.parties import FakeClock

TENSORS = {"w": np.ones(64, dtype=np.float32)}
REPORT = UpdateReport(num_images=10, cosine_distance=0.5, train_loss=1.0, num_steps=4)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that a test moves."""
    return FakeClock()


@pytest.fixture
def folders(tmp_path: Path, clock: FakeClock) -> Folders:
    """A coordinator that was stopped while a round collected updates."""
    made = Folders(tmp_path / "coordinator")
    initialise(made, Config(federation="harbour", hostnames=("localhost",)), clock)
    base = plant(made, TENSORS, "min_silos = 2")
    journal = Journal(made.journal)
    run = journal.newest_run()
    assert run is not None
    rules = rules_of(parse_plan(run.plan_toml), None)
    state = open_round(
        run="spring", number=1, base_digest=base, before=None, published_before=0,
        invited=("north", "south"), rules=rules, now_s=clock.now_s(),
    )  # fmt: skip
    path = update_path(made, state, "north")
    path.write_bytes(b"an update")
    update = Accepted(
        silo="north", payload_digest="d", size_bytes=9, file_digest=digest_of(path), report=REPORT
    )
    journal.save_round(advance(state, UpdateAccepted(update=update), rules, clock.now_s()))
    audit_of(made, journal, clock).append("update.accepted", silo="north")
    journal.close()
    return made


def examined(folders: Folders, clock: FakeClock, *, repair: bool = False) -> list[Finding]:
    return list(Doctor(folders, clock, repair=repair).examined())


def bad(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state != "ok"]


def damage(path: Path) -> None:
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])


def test_a_whole_folder_is_found_whole(folders: Folders, clock: FakeClock) -> None:
    findings = examined(folders, clock)
    assert bad(findings) == []
    assert {finding.name for finding in findings} == {
        "settings", "modes", "authority", "identity", "model key", "journal", "audit",
        "releases", "models", "spool", "leftovers", "disk",
    }  # fmt: skip
    assert print_findings(findings, as_json=True) is ExitCode.OK


def readable_key(folders: Folders) -> None:
    folders.model_key.chmod(0o644)


def readable_folder(folders: Folders) -> None:
    folders.root.chmod(0o755)


def torn_line(folders: Folders) -> None:
    with audit_files(folders.audit)[-1].open("ab") as stream:
        stream.write(b'{"number":')


def ended_round(folders: Folders) -> None:
    folders.spool("winter", 3)
    folders.work("winter", 3)


def cut_off_write(folders: Folders) -> None:
    (folders.models / ".model.0011223344556677.tmp").write_bytes(b"half")


def unknown_model(folders: Folders) -> None:
    (folders.models / f"{'e' * 64}.safetensors").write_bytes(b"of a round that failed")


def damaged_identity(folders: Folders) -> None:
    damage(folders.server / "live" / "certificate.pem")


def lost_commits(folders: Folders) -> None:
    """An old copy of the journal beside a newer audit log."""
    old = folders.journal.read_bytes()
    journal = Journal(folders.journal)
    journal.set_run_state("spring", "paused", "by admin")
    audit_of(folders, journal, FakeClock()).append("run.paused", run="spring")
    journal.close()
    folders.journal.write_bytes(old)


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (readable_key, "modes"),
        (readable_folder, "modes"),
        (torn_line, "audit"),
        (cut_off_write, "leftovers"),
        (unknown_model, "leftovers"),
        (damaged_identity, "identity"),
        (lost_commits, "journal"),
    ],
)
def test_what_can_be_mended_is_told_first_and_mended_when_asked(
    folders: Folders, clock: FakeClock, harm: Callable[[Folders], None], name: str
) -> None:
    harm(folders)
    findings = bad(examined(folders, clock))
    assert {(finding.name, finding.state) for finding in findings} == {(name, "wrong")}
    assert all("--repair" in finding.next_step for finding in findings)
    assert print_findings(findings, as_json=False) is ExitCode.STORAGE
    repaired = bad(examined(folders, clock, repair=True))
    assert {(finding.name, finding.state) for finding in repaired} == {(name, "repaired")}
    assert print_findings(repaired, as_json=False) is ExitCode.OK
    keep_own_identities(
        folders,
        Authorities(folders.authority),
        federation="harbour",
        hostnames=("localhost",),
        now_s=clock.now_s(),
    )  # as the coordinator does when it starts
    assert bad(examined(folders, clock)) == []
    verify(folders.audit)


def test_folders_of_a_round_that_has_ended_need_nobody_for_the_next_start_removes_them(
    folders: Folders, clock: FakeClock
) -> None:
    ended_round(folders)
    findings = examined(folders, clock)
    (finding,) = bad(findings)
    assert (finding.name, finding.state, finding.next_step) == ("leftovers", "note", "")
    assert "winter-000003" in finding.told
    assert [f.state for f in findings if f.name == "leftovers"] == ["note"]
    assert print_findings(findings, as_json=False) is ExitCode.OK
    cut_off_write(folders)
    found = bad(examined(folders, clock))
    assert [(f.name, f.state) for f in found] == [("leftovers", "note"), ("leftovers", "wrong")]
    assert "winter" not in found[1].told
    (repaired,) = bad(examined(folders, clock, repair=True))
    assert repaired.state == "repaired" and "winter-000003" in repaired.told
    assert bad(examined(folders, clock)) == []


def damaged_model(folders: Folders) -> None:
    (model,) = folders.models.glob("*.safetensors")
    damage(model)


def damaged_signing_key(folders: Folders) -> None:
    damage(folders.model_key)


def damaged_authority(folders: Folders) -> None:
    (key,) = folders.authority.glob("*/key.pem")
    damage(key)


def damaged_journal(folders: Folders) -> None:
    folders.journal.write_bytes(folders.journal.read_bytes()[:5000])


def damaged_audit(folders: Folders) -> None:
    damage(audit_files(folders.audit)[0])


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (damaged_model, "models"),
        (damaged_signing_key, "model key"),
        (damaged_authority, "authority"),
        (damaged_journal, "journal"),
        (damaged_audit, "audit"),
    ],
)
def test_what_can_not_be_mended_is_named_with_the_next_step(
    folders: Folders, clock: FakeClock, harm: Callable[[Folders], None], name: str
) -> None:
    harm(folders)
    findings = [f for f in examined(folders, clock, repair=True) if f.state == "wrong"]
    assert name in {finding.name for finding in findings}
    assert all("backup" in finding.next_step for finding in findings if finding.name == name)


def test_a_damaged_update_is_no_fault_to_act_on_for_its_silo_has_it(
    folders: Folders, clock: FakeClock
) -> None:
    (update,) = folders.root.glob("spool/*/north.safetensors")
    damage(update)
    (finding,) = bad(examined(folders, clock))
    assert (finding.name, finding.state) == ("spool", "note")
    assert "north" in finding.told


def test_an_authority_that_ends_soon_is_told_before_it_has_ended(
    folders: Folders, clock: FakeClock
) -> None:
    clock.move(10 * 365 * 86400.0 - 86400.0)
    states = [f.state for f in examined(folders, clock) if f.name == "authority"]
    assert states == ["note"]
    clock.move(2 * 86400.0)
    states = [f.state for f in examined(folders, clock) if f.name == "authority"]
    assert states == ["wrong"]
