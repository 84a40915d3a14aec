"""The audit log keeps its chain through rotation, crashes and several writers."""

import errno
import multiprocessing
import os
from collections import deque
from pathlib import Path

import pytest

from fedreid import audit
from fedreid.audit import AuditLog, Field, audit_files, newest_first, read_audit, verify
from fedreid.clock import SystemClock
from fedreid.errors import AuditBroken, StorageError

CLOCK = SystemClock()


def written(folder: Path, count: int, file_bytes: int = 1 << 20) -> AuditLog:
    log = AuditLog(folder, CLOCK, file_bytes=file_bytes)
    for number in range(1, count + 1):
        log.append("update.accepted", silo="mall", round=number, loss=0.5)
    return log


def test_lines_are_numbered_and_read_back_in_order(tmp_path: Path) -> None:
    written(tmp_path, 5)
    lines = list(read_audit(tmp_path))
    assert [line.number for line in lines] == [1, 2, 3, 4, 5]
    assert lines[2].fields == {"silo": "mall", "round": 3, "loss": 0.5}
    assert verify(tmp_path).head == lines[-1].hash


def test_an_empty_folder_is_an_unbroken_log(tmp_path: Path) -> None:
    assert verify(tmp_path / "none").lines == 0


def test_the_chain_goes_on_after_a_restart_and_through_rotation(tmp_path: Path) -> None:
    written(tmp_path, 10, file_bytes=500)
    written(tmp_path, 10, file_bytes=500)
    assert len(audit_files(tmp_path)) > 3
    assert verify(tmp_path).lines == 20


def test_lines_are_read_backwards_through_all_files_without_a_torn_end(tmp_path: Path) -> None:
    log = written(tmp_path, 10, file_bytes=500)
    with audit_files(tmp_path)[-1].open("ab") as stream:
        stream.write(b'{"number":11')
    assert len(audit_files(tmp_path)) > 2
    assert list(log.newest_first()) == list(read_audit(tmp_path))[::-1]
    assert list(AuditLog(tmp_path / "none", CLOCK).newest_first()) == []


@pytest.mark.parametrize("block", [1, 7, 150, 400])
def test_reading_backwards_reads_no_more_than_is_asked_for(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_READ_BACK_BYTES", 64 * 1024)
    written(tmp_path, 10)
    whole = list(read_audit(tmp_path))[::-1]
    monkeypatch.setattr(audit, "_READ_BACK_BYTES", block)
    assert list(newest_first(tmp_path)) == whole
    (path,) = audit_files(tmp_path)
    path.write_bytes(b"damage\n" + path.read_bytes())
    lines = newest_first(tmp_path)
    assert [next(lines) for _ in range(10)] == whole
    with pytest.raises(AuditBroken, match="line 11 from its end"):
        next(lines)


@pytest.mark.parametrize("line", [1, 3, 6])
def test_a_changed_line_is_named(tmp_path: Path, line: int) -> None:
    written(tmp_path, 6)
    (path,) = audit_files(tmp_path)
    rows = path.read_bytes().splitlines(keepends=True)
    rows[line - 1] = rows[line - 1].replace(b'"mall"', b'"hall"')
    path.write_bytes(b"".join(rows))
    with pytest.raises(AuditBroken, match=f"line {line}"):
        verify(tmp_path)


def test_every_single_flipped_byte_is_found(tmp_path: Path) -> None:
    written(tmp_path, 2)
    (path,) = audit_files(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole) - 1):  # the last newline alone makes a line that was cut off
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(AuditBroken):
            verify(tmp_path)


def test_a_removed_line_is_named(tmp_path: Path) -> None:
    written(tmp_path, 6)
    (path,) = audit_files(tmp_path)
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:2] + rows[3:]))
    with pytest.raises(AuditBroken, match="line 3"):
        verify(tmp_path)


def test_a_removed_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, 10, file_bytes=500)
    audit_files(tmp_path)[1].unlink()
    with pytest.raises(AuditBroken, match="is missing"):
        verify(tmp_path)


def test_a_line_that_a_crash_cut_off_is_dropped_and_told(tmp_path: Path) -> None:
    log = written(tmp_path, 3)
    (path,) = audit_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert verify(tmp_path).lines == 2
    assert verify(tmp_path).cut_off_bytes > 0
    log.append("coordinator.started")
    lines = list(read_audit(tmp_path))
    assert [line.event for line in lines[-2:]] == ["audit.repaired", "coordinator.started"]
    assert verify(tmp_path).cut_off_bytes == 0


def test_owed_lines_are_one_chain_and_are_taken_off(tmp_path: Path) -> None:
    log = written(tmp_path, 1)
    owed: deque[tuple[str, dict[str, Field]]] = deque(
        [("update.accepted", {"silo": f"s{n}"}) for n in range(5)]
    )
    log.append_owed(owed)
    assert not owed
    assert [line.fields["silo"] for line in read_audit(tmp_path)][1:] == [f"s{n}" for n in range(5)]
    assert verify(tmp_path).lines == 6


def test_of_owed_lines_that_the_disk_does_not_take_none_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path, 1)
    before = audit_files(tmp_path)[0].read_bytes()
    owed: deque[tuple[str, dict[str, Field]]] = deque(
        [("update.accepted", {"silo": f"s{n}"}) for n in range(5)]
    )

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            log.append_owed(owed)
    assert audit_files(tmp_path)[0].read_bytes() == before and len(owed) == 5
    log.append_owed(owed)
    assert verify(tmp_path).lines == 6


@pytest.mark.parametrize("silos", [10, 2000, 20_000])
def test_the_chain_goes_on_after_a_line_that_names_very_many_silos(
    tmp_path: Path, silos: int
) -> None:
    log = AuditLog(tmp_path, CLOCK)
    for number in range(3):
        log.append("round.opened", round=number, invited=[f"silo-{n:05d}" for n in range(silos)])
    log.append("round.skipped")
    assert verify(tmp_path).lines == 4


def test_nothing_is_appended_to_a_broken_end(tmp_path: Path) -> None:
    log = written(tmp_path, 2)
    (path,) = audit_files(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":7'))
    with pytest.raises(AuditBroken):
        log.append("coordinator.started")


def test_two_processes_keep_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=written, args=(tmp_path, 20)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert verify(tmp_path).lines == 40


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    written(tmp_path / "audit", 1)
    assert (tmp_path / "audit").stat().st_mode & 0o077 == 0
    assert audit_files(tmp_path / "audit")[0].stat().st_mode & 0o077 == 0
