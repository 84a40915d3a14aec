"""Does a journal of another version open as what it says, or not at all?"""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from coordinator.rounds import formats
from coordinator.rounds.formats import FORMAT
from coordinator.rounds.journal import Journal, SiloRow
from fedreid import faults
from fedreid.errors import StorageError
from tests.coordinator.rounds.test_journal import everything, fill

SILOS_OF_OLD = """
CREATE TABLE silos (
    name VARCHAR NOT NULL PRIMARY KEY, state VARCHAR NOT NULL, key_fingerprint VARCHAR NOT NULL,
    certificate_pem BLOB NOT NULL, not_after_s FLOAT NOT NULL
);
INSERT INTO silos VALUES ('north', 'active', 'k1', x'70656d', 2e9);
"""
"""As the first journals had it, before a silo could renew its key."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal's file."""
    return tmp_path / "journal.sqlite"


@pytest.fixture
def filled(path: Path) -> Iterator[tuple[object, ...]]:
    """A journal of today with something of everything; what it tells."""
    journal = Journal(path)
    fill(journal)
    told = everything(journal)
    journal.close()
    yield told


def number_in(path: Path) -> int:
    with sqlite3.connect(path) as raw:
        return int(raw.execute("PRAGMA user_version").fetchone()[0])


def columns_in(path: Path) -> dict[str, set[str]]:
    with sqlite3.connect(path) as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE sql <> ''")]
        return {name: {c[1] for c in raw.execute(f"PRAGMA table_info({name})")} for name in names}


def test_a_new_journal_bears_the_number_of_its_format(path: Path) -> None:
    Journal(path).close()
    assert number_in(path) == FORMAT


def test_a_journal_without_a_number_is_taken_up_and_gets_one(
    path: Path, filled: tuple[object, ...]
) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 0")
    journal = Journal(path)
    assert everything(journal) == filled
    assert number_in(path) == FORMAT
    journal.close()


def test_a_journal_from_before_renewals_gets_their_columns(path: Path, tmp_path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.executescript(SILOS_OF_OLD)
    journal = Journal(path)
    assert journal.silos() == [
        SiloRow(
            name="north",
            state="active",
            key_fingerprint="k1",
            certificate_pem=b"pem",
            not_after_s=2e9,
        )
    ]
    fill(journal)
    journal.close()
    Journal(tmp_path / "new.sqlite").close()
    assert columns_in(path) == columns_in(tmp_path / "new.sqlite")


def test_a_newer_journal_is_refused_and_left_as_it_is(path: Path, filled: object) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {FORMAT + 1}")
    before = path.read_bytes()
    with pytest.raises(StorageError, match=f"format {FORMAT + 1}.*newer.*Start that version"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_step_that_fails_half_way_leaves_the_old_format(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(path) as raw:
        raw.executescript(SILOS_OF_OLD)
    before = columns_in(path)

    def fail(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE silos ADD COLUMN half VARCHAR")
        connection.exec_driver_sql("no such statement")

    monkeypatch.setitem(formats._STEPS, 0, fail)
    with pytest.raises(StorageError):
        Journal(path)
    assert (columns_in(path), number_in(path)) == (before, 0)
    monkeypatch.undo()
    journal = Journal(path)
    assert [silo.name for silo in journal.silos()] == ["north"]
    journal.close()


@pytest.mark.parametrize("old", ["", SILOS_OF_OLD], ids=["new", "old"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_coordinator_that_is_killed_at_it_opens_the_journal_the_next_time(
    path: Path, tmp_path: Path, old: str, side: str
) -> None:
    with sqlite3.connect(path) as raw:
        raw.executescript(old)
    queue = tmp_path / "faults"
    queue.write_text(f"journal.format:{side} 1 kill\n")
    opens = (
        "import pathlib, sys; from coordinator.rounds.journal import Journal; "
        "Journal(pathlib.Path(sys.argv[1]))"
    )
    opening = [sys.executable, "-c", opens, str(path)]
    environment = {**os.environ, faults.VARIABLE: str(queue)}
    assert subprocess.run(opening, env=environment).returncode == -signal.SIGKILL
    assert number_in(path) == (0 if side == "before" else FORMAT)
    assert subprocess.run(opening, env=environment).returncode == 0
    assert number_in(path) == FORMAT


def test_there_is_a_step_from_every_earlier_format() -> None:
    assert sorted(formats._STEPS) == list(range(FORMAT))
