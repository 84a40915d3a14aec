"""Is a backup whole or refused, and what does a journal that comes from one know of itself?"""

import random
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pytest

from coordinator.backup import back_up, restore
from coordinator.config import Config, initialise, load_model_key
from coordinator.folders import Folders
from coordinator.rounds.journal import Journal, TokenRow
from coordinator.rounds.publishing import Models
from fedreid.audit import AuditLog, read_audit
from fedreid.errors import ConfigRefused, FedreidError, StorageError, UsageError
from fedreid.files import digest_of
from fedreid.names import Digest, FederationName
from fedreid.pki.signing import public_bytes, verify
from tests.coordinator.trust.planted import plant
from tests.parties import FakeClock

TENSORS = {"w": np.ones(64, dtype=np.float32)}
TOKEN = TokenRow(secret_hash="h", silo="north", expires_at_s=3e9)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that a test moves."""
    return FakeClock()


@pytest.fixture
def folders(tmp_path: Path, clock: FakeClock) -> Folders:
    """A stopped coordinator with a run under way."""
    made = Folders(tmp_path / "coordinator")
    initialise(made, Config(federation="harbour", hostnames=("localhost",)), clock)
    plant(made, TENSORS, "min_silos = 2")
    AuditLog(made.audit, clock).append("run.started", run="spring")
    return made


@pytest.fixture
def backup(folders: Folders, tmp_path: Path, clock: FakeClock) -> Path:
    """A backup of it."""
    path = tmp_path / "backup.tar"
    back_up(folders, path, clock)
    return path


def journal_of(folders: Folders) -> Journal:
    return Journal(folders.journal)


def test_a_backup_is_the_owners_alone_and_holds_what_it_says(backup: Path) -> None:
    assert backup.stat().st_mode & 0o077 == 0
    with tarfile.open(backup) as tar:
        names = tar.getnames()
        assert {entry.mode for entry in tar} == {0o600}
    assert names[-1] == "manifest.json"
    assert {"coordinator.toml", "journal.sqlite", "model-key.pem", "model-key.pub"} <= set(names)
    assert not [name for name in names if name.startswith(("server", "admin", "spool"))]


def test_a_restored_folder_is_private_and_tells_the_same(
    folders: Folders, backup: Path, tmp_path: Path, clock: FakeClock
) -> None:
    made_at_s = clock.now_s()
    clock.move(1000.0)
    again = Folders(tmp_path / "again")
    manifest = restore(backup, again.root, clock)
    assert manifest.federation == "harbour" and manifest.newest_version == 1
    assert again.root.stat().st_mode & 0o077 == 0
    assert not [path for path in again.root.glob("*/*/key.pem") if path.stat().st_mode & 0o077]
    for name in ("coordinator.toml", "model-key.pem", "model-key.pub"):
        assert (again.root / name).read_bytes() == (folders.root / name).read_bytes()
    before, after = journal_of(folders), journal_of(again)
    assert after.models() == before.models() and after.newest_run() == before.newest_run()
    assert after.restored == (made_at_s, clock.now_s())
    assert before.restored is None
    (model,) = after.models()
    assert digest_of(again.models / f"{model.digest}.safetensors") == model.digest
    events = [line.event for line in read_audit(again.audit)]
    assert events == ["run.started", "coordinator.restored"]
    before.close()
    after.close()


def test_a_token_that_was_not_used_may_have_been_since_and_is_good_no_longer(
    folders: Folders, tmp_path: Path, clock: FakeClock
) -> None:
    journal = journal_of(folders)
    journal.add_token(TOKEN)
    journal.close()
    back_up(folders, tmp_path / "with token.tar", clock)
    again = Folders(tmp_path / "again")
    restore(tmp_path / "with token.tar", again.root, clock)
    restored = journal_of(again)
    assert restored.token("h") is None
    restored.close()


def test_nothing_that_is_there_is_overwritten(
    folders: Folders, backup: Path, tmp_path: Path, clock: FakeClock
) -> None:
    whole = backup.read_bytes()
    with pytest.raises(UsageError, match="already"):
        back_up(folders, backup, clock)
    with pytest.raises(ConfigRefused, match="not empty"):
        restore(backup, folders.root, clock)
    empty = tmp_path / "empty"
    empty.mkdir()
    restore(backup, empty, clock)
    assert backup.read_bytes() == whole


def test_a_damaged_backup_is_refused_and_leaves_nothing(
    backup: Path, tmp_path: Path, clock: FakeClock
) -> None:
    whole, where = backup.read_bytes(), random.Random(3)
    there = sorted(tmp_path.iterdir())
    refused = 0
    with tarfile.open(backup) as tar:
        held = [(entry.offset_data, entry.size) for entry in tar]
    for start, size in held:
        damaged = bytearray(whole)
        damaged[start + where.randrange(size)] ^= 1
        backup.write_bytes(damaged)
        with pytest.raises(FedreidError):
            restore(backup, tmp_path / "again", clock)
        refused += 1
    for cut in (0, 100, len(whole) // 2, held[-1][0]):
        backup.write_bytes(whole[:cut])
        with pytest.raises(StorageError, match="can't be used"):
            restore(backup, tmp_path / "again", clock)
    assert refused > 8
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_backup_writes_nowhere_but_into_its_folder(
    tmp_path: Path, clock: FakeClock, name: str
) -> None:
    planted = tmp_path / "planted"
    planted.write_bytes(b"x")
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as tar:
        entry = tar.gettarinfo(str(planted))
        entry.name = name
        with planted.open("rb") as stream:
            tar.addfile(entry, stream)
    with pytest.raises(StorageError, match="no backup has there"):
        restore(evil, tmp_path / "again", clock)
    assert {path.name for path in tmp_path.iterdir()} == {"planted", "evil.tar"}


def test_a_folder_that_is_damaged_is_not_backed_up(
    folders: Folders, tmp_path: Path, clock: FakeClock
) -> None:
    (model,) = folders.models.iterdir()
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    with pytest.raises(StorageError, match="is damaged"):
        back_up(folders, tmp_path / "backup.tar", clock)
    assert not (tmp_path / "backup.tar").exists()
    assert not list(tmp_path.glob(".backup*"))


def test_a_backup_of_a_served_journal_holds_what_was_committed(
    folders: Folders, tmp_path: Path, clock: FakeClock
) -> None:
    served = journal_of(folders)
    served.set_run_state("spring", "paused", "for a while")
    assert folders.journal.with_name("journal.sqlite-wal").stat().st_size > 0
    back_up(folders, tmp_path / "backup.tar", clock)
    served.set_run_state("spring", "stopped", "later")
    again = Folders(tmp_path / "again")
    restore(tmp_path / "backup.tar", again.root, clock)
    restored = journal_of(again)
    run = restored.newest_run()
    assert run is not None and run.state == "paused"
    restored.close()
    served.close()


def test_models_are_signed_anew_beyond_what_a_silo_has_taken(folders: Folders) -> None:
    journal, key = journal_of(folders), load_model_key(folders)
    models = Models(folders, journal, FederationName("harbour"), key)
    (before,) = journal.models()
    (beyond,) = models.released_beyond(41)
    assert (beyond.version, beyond.digest) == (42, before.digest)
    verify(public_bytes(key), beyond.release, beyond.signature)
    journal.add_models([beyond])
    assert journal.newest_model() == beyond
    (again,) = models.released_beyond(3)
    assert again.version == 43
    models.check(Digest(beyond.digest))
    journal.close()


def test_a_journal_that_another_program_has_changed_is_not_backed_up(
    folders: Folders, tmp_path: Path, clock: FakeClock
) -> None:
    with sqlite3.connect(folders.journal) as raw:
        raw.execute("UPDATE runs SET state = 'finished'")
    with pytest.raises(StorageError, match="table runs"):
        back_up(folders, tmp_path / "backup.tar", clock)
