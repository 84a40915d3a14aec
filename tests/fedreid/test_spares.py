"""Does a file that is needed no more leave nothing but zeros, and only as many as are wanted?"""

import os
import signal
import subprocess
import sys
import tempfile
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pytest

from fedreid import faults
from fedreid import spares as module
from fedreid.files import replacing
from fedreid.spares import Spares

SECRET = b"an update of somebody" * 4000


def old(folder: Path, name: str = "old", content: bytes = SECRET) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture
def spares(tmp_path: Path) -> Spares:
    """Two at most, in a folder that is not there yet."""
    return Spares(tmp_path / "spare", kept=2)


def lying(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "spare").glob("*"))]


def test_a_retired_file_is_gone_and_leaves_zeros_of_its_size(
    spares: Spares, tmp_path: Path
) -> None:
    path = old(tmp_path)
    inode = path.stat().st_ino
    spares.retire(path)
    assert not path.exists()
    assert lying(tmp_path) == [bytes(len(SECRET))]
    assert spares.take(len(SECRET), path)
    assert path.stat().st_ino == inode
    assert lying(tmp_path) == []


def test_nothing_of_another_size_is_taken(spares: Spares, tmp_path: Path) -> None:
    spares.retire(old(tmp_path))
    assert not spares.take(len(SECRET) + 1, tmp_path / "new")
    assert spares.find(len(SECRET) - 1) is None


def test_a_missing_file_is_retired_already(spares: Spares, tmp_path: Path) -> None:
    spares.retire(tmp_path / "gone")
    assert lying(tmp_path) == []


def test_no_more_are_kept_than_are_wanted(spares: Spares, tmp_path: Path) -> None:
    for number in range(3):
        spares.retire(old(tmp_path, f"old-{number}"))
    assert len(lying(tmp_path)) == 2
    assert not list(tmp_path.glob("old-*"))


def test_spares_of_another_model_make_room_for_those_of_this_one(
    spares: Spares, tmp_path: Path
) -> None:
    for number, content in enumerate([SECRET, SECRET, 2 * SECRET, 2 * SECRET, 2 * SECRET]):
        spares.retire(old(tmp_path, f"old-{number}", content))
    assert lying(tmp_path) == 2 * [bytes(2 * len(SECRET))]


def test_a_small_file_is_not_kept(spares: Spares, tmp_path: Path) -> None:
    spares.retire(old(tmp_path, content=b"a note"))
    assert lying(tmp_path) == []


@pytest.mark.parametrize(("side", "left"), [("before", True), ("after", False)])
def test_a_file_that_is_not_kept_is_there_or_gone_after_a_kill(
    tmp_path: Path, side: str, left: bool
) -> None:
    path, queue = old(tmp_path, content=b"small"), tmp_path / "faults"
    queue.write_text(f"file.remove:{side} 1 kill\n", "utf-8")
    retire = f"Spares(Path({str(tmp_path / 'spare')!r}), kept=2).retire(Path({str(path)!r}))"
    program = f"from pathlib import Path; from fedreid.spares import Spares; {retire}"
    environment = {**os.environ, faults.VARIABLE: str(queue)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.exists() is left
    Spares(tmp_path / "spare", kept=2).retire(path)
    assert not path.exists()


def test_a_file_with_a_second_name_keeps_what_it_holds(spares: Spares, tmp_path: Path) -> None:
    path, second = old(tmp_path), tmp_path / "second"
    os.link(path, second)
    spares.retire(path)
    assert not path.exists()
    assert second.read_bytes() == SECRET
    assert lying(tmp_path) == []


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_file_that_somebody_has_open_is_only_removed(
    spares: Spares, tmp_path: Path, mode: str
) -> None:
    path = old(tmp_path)
    with path.open(mode) as still_used:
        spares.retire(path)
        assert still_used.read() == SECRET
    assert not path.exists()
    assert not list((tmp_path / "spare").iterdir())


def test_a_file_that_is_still_mapped_is_only_removed(spares: Spares, tmp_path: Path) -> None:
    path = old(tmp_path)
    with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as mapped:
        stream.close()
        spares.retire(path)
        assert bytes(mapped) == SECRET
    assert lying(tmp_path) == []


def test_a_file_on_another_disk_is_only_removed(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spare", kept=2)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        path = old(Path(elsewhere))
        spares.retire(path)
        assert not path.exists()
    assert lying(tmp_path) == []


def test_what_the_disk_would_miss_is_not_kept(
    spares: Spares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda folder: len(SECRET) - 1)
    path = old(tmp_path)
    spares.retire(path)
    assert not path.exists()
    assert lying(tmp_path) == []


def test_cleared_spares_are_gone(spares: Spares, tmp_path: Path) -> None:
    spares.clear()
    spares.retire(old(tmp_path))
    spares.clear()
    assert not (tmp_path / "spare").exists()


@pytest.mark.parametrize("content", [b"longer than SECRET" * 8000, b"shorter", b""])
def test_a_file_that_is_written_over_a_spare_holds_its_own_bytes_alone(
    spares: Spares, tmp_path: Path, content: bytes
) -> None:
    spares.retire(old(tmp_path))
    path = tmp_path / "new"
    with replacing(path, mode=0o600, over=spares.find(len(SECRET))) as stream:
        stream.write(content)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert lying(tmp_path) == []


def test_a_spare_that_somebody_else_took_is_done_without(spares: Spares, tmp_path: Path) -> None:
    path = tmp_path / "new"
    with replacing(path, over=tmp_path / "gone") as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_write_that_fails_uses_the_spare_up_and_leaves_nothing(
    spares: Spares, tmp_path: Path
) -> None:
    spares.retire(old(tmp_path))
    path = old(tmp_path, "new", b"before")
    with pytest.raises(RuntimeError), replacing(path, over=spares.find(len(SECRET))) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["new"]
