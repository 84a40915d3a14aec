"""Is a file read again exactly when its digest may have become another?"""

import os
from pathlib import Path

import pytest

from fedreid import digests
from fedreid.digests import KnownDigests
from fedreid.errors import StorageError
from fedreid.files import digest_of
from fedreid.limits import DIGEST_KNOWN_S


class Reading:
    """Counts what is read, and keeps the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        self.now_s = 100.0

        def counted(path: Path, *, start: int = 0) -> str:
            self.read.append(path.name)
            return digest_of(path, start=start)

        monkeypatch.setattr(digests, "digest_of", counted)
        self.known = KnownDigests(lambda: self.now_s)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    """Digests whose reads are counted."""
    return Reading(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of some bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"header" + b"values")
    return path


def test_a_file_that_nobody_touched_is_read_once(reading: Reading, file: Path) -> None:
    assert reading.known.of(file) == reading.known.of(file) == digest_of(file)
    assert reading.read == ["file"]


def test_a_renamed_or_linked_file_is_the_same_file(reading: Reading, file: Path) -> None:
    first = reading.known.of(file)
    linked = file.with_name("linked")
    os.link(file, linked)
    file.rename(file.with_name("moved"))
    assert reading.known.of(linked) == reading.known.of(file.with_name("moved")) == first
    assert reading.read == ["file"]


def test_each_part_of_a_file_has_a_digest_of_its_own(reading: Reading, file: Path) -> None:
    assert reading.known.of(file, start=6) != reading.known.of(file)
    assert reading.known.of(file, start=6) == digest_of(file, start=6)


def test_a_changed_byte_is_seen(reading: Reading, file: Path) -> None:
    before = reading.known.of(file)
    with file.open("r+b") as stream:
        stream.write(b"H")
    assert reading.known.of(file) == digest_of(file) != before


def test_a_file_that_took_its_place_is_read(reading: Reading, file: Path) -> None:
    reading.known.of(file)
    other = file.with_name("other")
    other.write_bytes(b"HEADER" + b"values")
    other.replace(file)
    assert reading.known.of(file) == digest_of(file)


def test_what_was_hashed_while_it_was_written_is_not_read(reading: Reading, file: Path) -> None:
    reading.known.note(file, digest_of(file))
    assert reading.known.of(file) == digest_of(file)
    assert reading.read == []


def test_a_file_that_lies_long_is_read_again(reading: Reading, file: Path) -> None:
    reading.known.of(file)
    reading.now_s += DIGEST_KNOWN_S
    reading.known.of(file)
    assert reading.read == ["file", "file"]


def test_a_file_that_is_gone_is_missed(reading: Reading, file: Path) -> None:
    reading.known.of(file)
    file.unlink()
    with pytest.raises(StorageError):
        reading.known.of(file)
