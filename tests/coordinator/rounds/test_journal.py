"""Is what the journal acknowledged still there, whole, after it is opened again?"""

import random
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from coordinator.rounds.journal import (
    EvaluationRow,
    Journal,
    ModelRow,
    RunRow,
    SiloRow,
    TokenRow,
    check_not_set_back,
)
from coordinator.rounds.machine import Phase, TimePassed, advance
from fedreid.contract import EvaluationResult
from fedreid.errors import FedreidError, StorageError
from tests.coordinator.rounds.states import BEGAN_S, DEADLINE_S, opened, rules, update

NORTH = SiloRow(
    name="north",
    state="active",
    key_fingerprint="k1",
    certificate_pem=b"pem",
    not_after_s=2e9,
)
TOKEN = TokenRow(secret_hash="h", silo="north", expires_at_s=1e9)
RESULT = EvaluationResult(
    model="global", rank1=0.5, rank5=0.75, rank10=1.0, map=0.25, minp=0.1, queries=9
)


def run(name: str = "spring") -> RunRow:
    return RunRow(name=name, plan_toml="…", state="running", started_at_s=1.5)


def model(version: int, digest: str = "m", of: str = "spring", number: int = 0) -> ModelRow:
    return ModelRow(
        version=version,
        digest=digest,
        run=of,
        round=number,
        release=b"release",
        signature=b"signature",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal's file."""
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """An empty journal."""
    opened_journal = Journal(path)
    yield opened_journal
    opened_journal.close()


def everything(journal: Journal) -> tuple[object, ...]:
    return (
        journal.silos(),
        journal.token("h"),
        journal.newest_run(),
        journal.rounds("spring"),
        journal.newest_round("spring"),
        journal.models(),
        journal.newest_model(),
        journal.evaluations("spring"),
    )


def fill(journal: Journal) -> None:
    journal.add_token(TOKEN)
    journal.consume_token(bound_to("k1"), NORTH)
    journal.add_run(run(), model(1))
    state = advance(opened(), update("a"), rules(), BEGAN_S + 1)
    journal.save_round(state)
    journal.save_round(advance(state, TimePassed(), rules(), BEGAN_S + DEADLINE_S), [model(2)])
    journal.save_evaluations([EvaluationRow(run="spring", round=1, silo="", result=RESULT)])


def bound_to(key: str, token: TokenRow = TOKEN) -> TokenRow:
    return replace(token, key_fingerprint=key)


def test_an_empty_journal_knows_nothing(journal: Journal) -> None:
    assert everything(journal) == ([], None, None, [], None, [], None, [])
    assert journal.model("m") is None
    assert not journal.run_exists("spring")


def test_a_journal_that_is_opened_again_tells_the_same(path: Path) -> None:
    journal = Journal(path)
    fill(journal)
    told = everything(journal)
    journal.close()
    again = Journal(path)
    assert everything(again) == told
    assert all(told)
    again.close()


def test_what_was_committed_is_there_though_the_process_never_closed_it(path: Path) -> None:
    journal = Journal(path)
    fill(journal)
    other = Journal(path)  # as after a kill: the log file lies beside, unmerged
    assert everything(other) == everything(journal)
    other.close()
    journal.close()


def test_the_journal_writes_ahead_and_waits_for_the_disk(journal: Journal, path: Path) -> None:
    for engine in (journal._database.engine,):
        for _ in range(3):  # any connection of the pool
            with engine.connect() as connection:
                assert connection.scalar(sa.text("PRAGMA journal_mode")) == "wal"
                assert connection.scalar(sa.text("PRAGMA synchronous")) == 2  # FULL
                assert connection.scalar(sa.text("PRAGMA busy_timeout")) == 5000
    fill(journal)
    assert path.with_name(path.name + "-wal").stat().st_size > 0


def test_a_token_binds_to_its_key_and_its_silo_in_one_step(journal: Journal) -> None:
    journal.add_token(TOKEN)
    bound = bound_to("k1")
    journal.consume_token(bound, NORTH)
    assert journal.token("h") == bound
    assert journal.silos() == [NORTH]


def test_a_token_whose_silo_cannot_be_stored_stays_unused(journal: Journal) -> None:
    journal.add_token(TOKEN)
    bound = bound_to("k1")
    broken = SiloRow(
        name="north",
        state=None,  # type: ignore[arg-type]  # what the table refuses
        key_fingerprint="k1",
        certificate_pem=b"",
        not_after_s=0,
    )
    with pytest.raises(StorageError):
        journal.consume_token(bound, broken)
    assert journal.token("h") == TOKEN
    assert journal.silos() == []


def test_a_token_that_is_bound_cannot_be_bound_to_another_key(journal: Journal) -> None:
    journal.add_token(TOKEN)
    journal.consume_token(bound_to("k1"), NORTH)
    thief = SiloRow(
        name="north", state="active", key_fingerprint="k2", certificate_pem=b"t", not_after_s=2e9
    )
    with pytest.raises(FedreidError):
        journal.consume_token(bound_to("k2"), thief)
    assert journal.silos() == [NORTH]
    bound = journal.token("h")
    assert bound is not None
    assert bound.key_fingerprint == "k1"


def test_a_silo_that_enrols_again_takes_its_own_place(journal: Journal) -> None:
    journal.add_token(TOKEN)
    second = TokenRow(secret_hash="h2", silo="north", expires_at_s=1e9)
    journal.add_token(second)
    journal.consume_token(bound_to("k1"), NORTH)
    newer = SiloRow(
        name="north", state="active", key_fingerprint="k2", certificate_pem=b"n", not_after_s=2e9
    )
    journal.consume_token(bound_to("k2", second), newer)
    assert journal.silos() == [newer]


@pytest.mark.parametrize("dropped", [True, False])
def test_a_silo_is_stored_as_it_is_now_with_its_tokens_or_without(
    journal: Journal, dropped: bool
) -> None:
    journal.add_token(TOKEN)
    journal.consume_token(bound_to("k1"), NORTH)
    suspended = replace(NORTH, state="suspended", reason="maintenance", next_key_fingerprint="k2")
    journal.save_silo(suspended, drop_tokens=dropped)
    assert journal.silos() == [suspended]
    assert (journal.token(TOKEN.secret_hash) is None) is dropped


def test_a_run_and_its_start_weights_come_together(journal: Journal) -> None:
    journal.add_run(run("spring"), model(1))
    with pytest.raises(StorageError):
        journal.add_run(run("summer"), model(1))  # a version twice
    assert not journal.run_exists("summer")
    with pytest.raises(StorageError):
        journal.add_run(run("spring"), model(2))  # a name twice
    assert [m.version for m in journal.models()] == [1]


def test_the_newest_run_is_the_one_that_was_started_last(journal: Journal) -> None:
    journal.add_run(run("b"), model(1))
    journal.add_run(run("a"), model(2))
    newest = journal.newest_run()
    assert newest is not None
    assert newest.name == "a"
    journal.set_run_state("a", "stopped", "enough")
    newest = journal.newest_run()
    assert newest is not None
    assert (newest.state, newest.reason) == ("stopped", "enough")


def test_a_round_and_the_model_that_it_published_come_together(journal: Journal) -> None:
    journal.add_run(run(), model(1))
    before = opened()
    journal.save_round(before)
    ended = advance(before, TimePassed(), rules(), BEGAN_S + DEADLINE_S)
    with pytest.raises(StorageError):
        journal.save_round(ended, [model(1)])
    assert journal.newest_round("spring") == before
    journal.save_round(ended, [model(2)])
    assert journal.round("spring", before.number) == ended
    assert journal.round("spring", before.number + 1) is None
    stored = journal.newest_round("spring")
    assert stored is not None
    assert stored.phase is Phase.SKIPPED
    newest = journal.newest_model()
    assert newest is not None
    assert newest.version == 2


def test_a_model_that_was_published_twice_is_known_by_its_newest_release(journal: Journal) -> None:
    journal.add_run(run(), model(1, "same"))
    journal.save_round(opened(), [model(2, "same")])
    found = journal.model("same")
    assert found is not None
    assert found.version == 2


def test_a_measurement_that_is_sent_twice_is_stored_once(journal: Journal) -> None:
    row = EvaluationRow(run="spring", round=1, silo="a", result=RESULT)
    journal.save_evaluations([row, row])
    journal.save_evaluations([row])
    assert journal.evaluations("spring") == [row]
    assert journal.evaluations("summer") == []


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_a_round_number_beyond_the_databases_integers_is_an_error_of_our_tree(
    journal: Journal, number: int
) -> None:
    row = EvaluationRow(run="spring", round=number, silo="a", result=RESULT)
    with pytest.raises(FedreidError):
        journal.save_evaluations([row])


def test_many_threads_write_one_after_the_other_and_lose_nothing(journal: Journal) -> None:
    journal.add_run(run(), model(0))
    together = threading.Barrier(4)

    def write(thread: int) -> None:
        together.wait()
        for n in range(10):
            version = 1 + thread * 10 + n
            journal.save_round(opened(), [model(version)])
            assert journal.newest_model() is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(journal.models()) == 41


# Damage


def test_a_file_that_is_no_journal_is_a_storage_error(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="is damaged: file is not a database"):
        Journal(path)


def test_a_journal_with_damaged_pages_is_a_storage_error(path: Path) -> None:
    journal = Journal(path)
    journal.add_run(run(), model(1))
    for n in range(50):
        journal.save_evaluations(
            [EvaluationRow(run="spring", round=n, silo=f"s{n}", result=RESULT)]
        )
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(StorageError):
        everything(Journal(path))


@pytest.mark.parametrize(
    ("write_ahead", "bytes_changed"),
    [
        (False, 40),
        (True, 40),
        pytest.param(False, 4000, marks=pytest.mark.slow),
        pytest.param(True, 4000, marks=pytest.mark.slow),
    ],
)
def test_a_byte_that_has_changed_is_told_and_never_read_as_truth(
    tmp_path: Path, write_ahead: bool, bytes_changed: int
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    fill(journal)
    truth, commits = everything(journal), journal.commits
    if not write_ahead:
        journal.close()
    files = {each: each.read_bytes() for each in tmp_path.iterdir()}
    journal.close()
    changed = path.with_name(path.name + "-wal") if write_ahead else path
    size, told = len(files[changed]), 0
    where = random.Random(5)
    for at in [where.randrange(size) for _ in range(bytes_changed)]:
        for each in tmp_path.iterdir():
            each.unlink()
        for each, whole in files.items():
            damaged = bytearray(whole)
            if each == changed:
                damaged[at] ^= 1 << where.randrange(8)
            each.write_bytes(damaged)
        told += not read_as(truth, commits, path)
    print(f"{told} of {bytes_changed} changed bytes were told, the others changed nothing")
    assert told > 0


def read_as(truth: tuple[object, ...], commits: int, path: Path) -> bool:
    """Whether a journal tells the truth; anything else but an error fails."""
    try:
        journal = Journal(path)
    except StorageError:
        return False
    try:
        check_not_set_back(journal, commits)
        assert everything(journal) == truth
    except StorageError:
        return False
    finally:
        journal.close()
    return True


def test_a_journal_whose_newest_commits_are_cut_off_is_known_to_be_old(path: Path) -> None:
    journal = Journal(path)
    fill(journal)
    log = path.with_name(path.name + "-wal")
    before = log.read_bytes()
    journal.save_silo(replace(NORTH, state="revoked"))
    commits, main = journal.commits, path.read_bytes()
    journal.close()
    path.write_bytes(main)
    log.write_bytes(before)
    old = Journal(path)
    assert old.silos() == [NORTH]
    with pytest.raises(StorageError, match="older than the audit log"):
        check_not_set_back(old, commits)
    check_not_set_back(old, commits - 1)
    old.close()


def test_a_journal_from_before_there_were_seals_is_read_and_sealed_from_now_on(path: Path) -> None:
    journal = Journal(path)
    fill(journal)
    told = everything(journal)
    journal.close()
    with sqlite3.connect(path) as raw:
        for (table,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            if table not in ("marks", "sqlite_sequence"):
                raw.execute(f"ALTER TABLE {table} DROP COLUMN seal")
        raw.execute("DROP TABLE marks")
        raw.execute("PRAGMA user_version = 1")
    again = Journal(path)
    assert everything(again) == told
    again.save_silo(NORTH)
    again.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE silos SET state = 'revoked'")
    with pytest.raises(StorageError, match="table silos"):
        Journal(path).silos()


def test_a_copy_is_whole_while_others_write(journal: Journal, tmp_path: Path) -> None:
    fill(journal)
    journal.copy_to(tmp_path / "copy.sqlite")
    told = everything(journal)
    journal.save_silo(replace(NORTH, state="revoked"))
    copy = Journal(tmp_path / "copy.sqlite")
    assert everything(copy) == told
    assert copy.commits == journal.commits - 1
    copy.close()


def test_a_row_that_is_damaged_is_a_storage_error(journal: Journal, path: Path) -> None:
    fill(journal)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE rounds SET state = x'7b22'")
        raw.execute("UPDATE evaluations SET result = x'ff'")
    for read in (journal.newest_round, journal.rounds, journal.evaluations):
        with pytest.raises(StorageError):
            read("spring")


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Journal(tmp_path / "missing" / "journal.sqlite")


def test_a_write_that_fails_is_told_and_leaves_the_journal_usable(
    journal: Journal, path: Path
) -> None:
    fill(journal)
    told = everything(journal)
    with journal._database.engine.connect() as connection:
        connection.execute(sa.text("PRAGMA query_only=ON"))
    with pytest.raises(StorageError, match="nothing acknowledged"):
        journal.save_silo(replace(NORTH, state="revoked"))
    with journal._database.engine.connect() as connection:
        connection.execute(sa.text("PRAGMA query_only=OFF"))
    assert everything(journal) == told
    journal.save_silo(replace(NORTH, state="revoked"))
    assert journal.silos()[0].state == "revoked"
