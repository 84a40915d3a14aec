"""Does the doctor find what is wrong with an agent's folder, mend it or name it?"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fedreid.audit import AuditLog, audit_files
from fedreid.checkup import Finding
from fedreid.clock import SystemClock
from fedreid.files import digest_of, make_folder
from fedreid.names import Role
from fedreid.pki.identity import IdentityStore
from silo_agent.config import AgentConfig, Folders, Membership, save_config, save_membership
from silo_agent.doctor import Doctor
from silo_agent.held import NEWEST_NOTE, Held
from silo_agent.models import Newest
from silo_agent.outbox import UPDATE_FILE, Outbox
from tests.parties import Federation
from tests.silo_agent.example_round import ROUND

CLOCK = SystemClock()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """An agent that was stopped after a round."""
    made = Folders(make_folder(tmp_path / "agent", mode=0o700))
    save_config(made, AgentConfig(coordinator="localhost:1", dataset="/images"))
    save_membership(made, Membership(federation="harbour", silo="north", model_key=b"k" * 32))
    federation = Federation.founded(now_s=time.time())
    IdentityStore(made.identity).save(federation.leaf(Role.SILO, "north"))
    model = made.models / f"{'b' * 64}.fp32.safetensors"
    model.write_bytes(b"a model")
    held = Held(
        path=str(model), digest="b" * 64, run="spring", round=6, version=7,
        file_digest=digest_of(model),
    )  # fmt: skip
    model.with_name(f"{'b' * 64}.fp32.json").write_bytes(msgspec.json.encode(held))
    newest = Newest(version=7, digest="b" * 64)
    (made.models / NEWEST_NOTE).write_bytes(msgspec.json.encode(newest))
    outbox = Outbox(made)
    built = outbox.begin(ROUND.run, ROUND.round)
    (built / UPDATE_FILE).write_bytes(b"an update")
    outbox.put(built, ROUND)
    AuditLog(made.audit, CLOCK).append("agent.started")
    return made


def examined(folders: Folders, *, repair: bool = False) -> list[Finding]:
    findings = Doctor(folders, CLOCK, repair=repair).examined()
    # How much room this machine happens to have is no fault of the folder's.
    return [finding for finding in findings if finding.name != "disk"]


def bad(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.name, finding.state) for finding in findings if finding.state != "ok"}


def test_a_whole_folder_is_found_whole(folders: Folders) -> None:
    findings = examined(folders)
    assert bad(findings) == set()
    assert {finding.name for finding in findings} == {
        "settings", "modes", "identity", "audit", "privacy", "models", "rounds", "leftovers",
    }  # fmt: skip


def damaged_model(folders: Folders) -> None:
    (model,) = folders.models.glob("*.safetensors")
    model.write_bytes(b"a modem")


def damaged_update(folders: Folders) -> None:
    (update,) = folders.rounds.glob(f"*/{UPDATE_FILE}")
    update.write_bytes(b"an updatf")


def damaged_note(folders: Folders) -> None:
    (note,) = folders.rounds.glob("*/round.json")
    note.write_bytes(b"{")


def readable_key(folders: Folders) -> None:
    (folders.identity / "v0001" / "key.pem").chmod(0o644)


def torn_line(folders: Folders) -> None:
    with audit_files(folders.audit)[-1].open("ab") as stream:
        stream.write(b'{"number":')


def cut_off_write(folders: Folders) -> None:
    (folders.models / ".model.0011223344556677.tmp").write_bytes(b"half")


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (damaged_model, "models"),
        (damaged_update, "rounds"),
        (damaged_note, "rounds"),
        (torn_line, "audit"),
        (cut_off_write, "leftovers"),
    ],
)
def test_what_can_be_made_again_is_mended_when_asked(
    folders: Folders, harm: Callable[[Folders], None], name: str
) -> None:
    harm(folders)
    assert bad(examined(folders)) == {(name, "wrong")}
    assert bad(examined(folders, repair=True)) == {(name, "repaired")}
    assert bad(examined(folders)) == set()


def test_a_key_that_others_can_read_is_made_private(folders: Folders) -> None:
    readable_key(folders)
    assert bad(examined(folders)) == {("modes", "wrong"), ("identity", "wrong")}
    assert bad(examined(folders, repair=True)) == {("modes", "repaired")}
    assert bad(examined(folders)) == set()


def damaged_identity(folders: Folders) -> None:
    certificate = folders.identity / "v0001" / "certificate.pem"
    certificate.write_bytes(certificate.read_bytes()[:100])


def damaged_membership(folders: Folders) -> None:
    folders.membership.write_bytes(b"{")


def damaged_budget(folders: Folders) -> None:
    folders.privacy.write_bytes(b"{")
    folders.privacy.chmod(0o600)


def damaged_audit(folders: Folders) -> None:
    (log,) = audit_files(folders.audit)
    log.write_bytes(log.read_bytes().replace(b"agent.started", b"agent.starred"))


def damaged_newest(folders: Folders) -> None:
    (folders.models / NEWEST_NOTE).write_bytes(b"{")


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (damaged_identity, "identity"),
        (damaged_membership, "settings"),
        (damaged_budget, "privacy"),
        (damaged_audit, "audit"),
        (damaged_newest, "models"),
    ],
)
def test_what_can_not_be_made_again_is_named_with_the_next_step(
    folders: Folders, harm: Callable[[Folders], None], name: str
) -> None:
    harm(folders)
    findings = [finding for finding in examined(folders, repair=True) if finding.state == "wrong"]
    assert name in {finding.name for finding in findings}
    assert all(finding.next_step for finding in findings)
