"""Does a crash at any point leave the old file or the new one, and a lock hold one alone?"""

import os
import subprocess
import sys
from pathlib import Path

import blake3
import pytest

from fedreid.errors import ConfigRefused, StorageError
from fedreid.files import (
    digest_of,
    flip_folder,
    flip_link,
    free_bytes,
    has_digest,
    held_alone,
    is_whole,
    link_file,
    make_folder,
    move_file,
    others_may_read,
    remove_file,
    remove_folder,
    replacing,
    write_bytes,
    write_with,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class PowerCut(Exception):
    """Ends a block in its middle."""


def test_a_new_file_takes_the_old_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    write_with(path, lambda stream: (stream.write(b"n"), stream.write(b"ew"), None)[-1])
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["file"]


def test_a_failure_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(PowerCut), replacing(path) as stream:
        stream.write(b"half")
        raise PowerCut
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_a_file_is_moved_over_what_was_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "built", b"new")
    write_bytes(tmp_path / "file", b"old")
    move_file(tmp_path / "built", tmp_path / "file")
    assert names_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"
    with pytest.raises(StorageError, match="Can't move into place"):
        move_file(tmp_path / "built", tmp_path / "file")


def test_a_file_gets_a_second_name_as_often_as_it_is_asked_for(tmp_path: Path) -> None:
    write_bytes(tmp_path / "built", b"new")
    write_bytes(tmp_path / "file", b"old")
    for _ in range(2):  # a step that is done again after a crash
        link_file(tmp_path / "built", tmp_path / "file")
        assert names_in(tmp_path) == ["built", "file"]
        assert (tmp_path / "file").read_bytes() == b"new"
    write_bytes(tmp_path / "built", b"newer")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_that_is_gone_already_is_removed(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    remove_file(tmp_path / "file")
    remove_file(tmp_path / "file")
    assert names_in(tmp_path) == []
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="Can't remove"):
        remove_file(tmp_path / "file")


def test_until_the_block_ends_everybody_sees_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with replacing(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fails)
    with pytest.raises(StorageError, match="the disk is full"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_the_bytes_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = traced(monkeypatch)
    write_bytes(tmp_path / "file", b"data")
    assert [step for step, _ in steps] == ["fsync", "replace", "fsync"]
    assert steps[-1][1] == str(tmp_path)


def test_a_private_file_is_private_whatever_stood_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    # the neighbour's name can be guessed, and anybody may write to a folder such as /tmp
    planted = tmp_path / f".key.pem.{os.getpid()}.tmp"
    planted.write_bytes(b"")
    planted.chmod(0o666)
    write_bytes(path, b"secret", mode=0o600)
    assert not others_may_read(path)


def test_a_link_planted_in_the_way_does_not_lead_the_secret_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"theirs")
    folder = make_folder(tmp_path / "folder")
    (folder / f".key.pem.{os.getpid()}.tmp").symlink_to(elsewhere)
    write_bytes(folder / "key.pem", b"secret", mode=0o600)
    assert elsewhere.read_bytes() == b"theirs"
    assert not (folder / "key.pem").is_symlink()


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Can't write"):
        write_bytes(tmp_path / "missing" / "file", b"")


def test_a_link_is_flipped_from_one_version_to_the_next(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        make_folder(tmp_path / name)
        flip_link(tmp_path / "live", name)
        assert (tmp_path / "live").readlink() == Path(name)
    assert names_in(tmp_path) == ["live", "v1", "v2"]


def test_a_flip_that_fails_leaves_the_link_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_link(tmp_path / "live", "v1")

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(StorageError, match="I/O error"):
        flip_link(tmp_path / "live", "v2")
    monkeypatch.undo()
    assert (tmp_path / "live").readlink() == Path("v1")
    flip_link(tmp_path / "live", "v3")
    assert (tmp_path / "live").readlink() == Path("v3")


def built_folder(tmp_path: Path) -> Path:
    built = make_folder(tmp_path / ".built")
    (built / "update").write_bytes(b"u")
    make_folder(built / "private")
    (built / "private" / "classifier").write_bytes(b"c")
    return built


def test_a_finished_folder_appears_whole(tmp_path: Path) -> None:
    flip_folder(built_folder(tmp_path), tmp_path / "round")
    assert (tmp_path / "round" / "private" / "classifier").read_bytes() == b"c"
    assert names_in(tmp_path) == ["round"]


def test_everything_in_a_finished_folder_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = built_folder(tmp_path)
    steps = traced(monkeypatch)
    flip_folder(built, tmp_path / "round")
    before = {path for step, path in steps[: [s for s, _ in steps].index("rename")]}
    parts = ("", "/update", "/private", "/private/classifier")
    assert before == {f"{built}{part}" for part in parts}
    assert steps[-1] == ("fsync", str(tmp_path))


def test_a_finished_folder_does_not_take_an_existing_ones_place(tmp_path: Path) -> None:
    (make_folder(tmp_path / "round") / "old").write_bytes(b"")
    with pytest.raises(StorageError):
        flip_folder(built_folder(tmp_path), tmp_path / "round")
    assert names_in(tmp_path / "round") == ["old"]


def test_folders_are_made_with_their_parents_and_left_if_they_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert make_folder(path, mode=0o700) == path
    assert path.stat().st_mode & 0o777 == 0o700
    make_folder(path, mode=0o755)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_new_folder_survives_a_power_cut_with_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("fedreid.files.sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert set(synced) == {tmp_path, tmp_path / "a"}
    synced.clear()
    make_folder(tmp_path / "a" / "b")
    assert not synced


def test_a_file_where_a_folder_should_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(StorageError):
        make_folder(tmp_path / "a" / "b")


def test_removing_a_folder_that_is_not_there_is_fine(tmp_path: Path) -> None:
    remove_folder(tmp_path / "none")
    built = built_folder(tmp_path)
    remove_folder(built)
    assert not built.exists()


def test_a_digest_is_blake3_over_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"", b"x", os.urandom(3 * 1024 * 1024 + 1)):
        path.write_bytes(data)
        assert digest_of(path) == blake3.blake3(data).hexdigest()
    with pytest.raises(StorageError):
        digest_of(tmp_path / "missing")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o604, 0o640, 0o610, 0o602])
def test_any_right_of_others_is_noticed(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(mode)
    assert others_may_read(path) == (mode not in (0o600, 0o400))


def test_a_folder_is_held_by_one_alone(tmp_path: Path) -> None:
    with held_alone(tmp_path, by="coordinator"):
        with (
            pytest.raises(ConfigRefused, match="Another coordinator"),
            held_alone(tmp_path, by="coordinator"),
        ):
            pass
        # the second attempt must not have released the first one's lock
        with pytest.raises(ConfigRefused), held_alone(tmp_path, by="coordinator"):
            pass
    with held_alone(tmp_path, by="coordinator"):
        pass


HOLDER = """
import sys
from pathlib import Path
from fedreid.files import held_alone
with held_alone(Path(sys.argv[1]), by="agent"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigRefused), held_alone(tmp_path, by="agent"):
            pass
        holder.kill()
        holder.wait()
    with held_alone(tmp_path, by="agent"):
        pass


def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note each step that makes something durable, with its path."""
    steps: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def traced_fsync(descriptor: int) -> None:
        steps.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def traced_replace(source: Path, target: Path) -> None:
        steps.append(("replace", str(source)))
        replace(source, target)

    def traced_rename(source: Path, target: Path) -> None:
        steps.append(("rename", str(source)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    monkeypatch.setattr(os, "rename", traced_rename)
    return steps


def test_a_file_has_the_digest_of_its_bytes_and_one_that_can_not_be_read_has_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"bytes")
    assert has_digest(path, digest_of(path)) and is_whole(path, digest_of(path))
    for wrong in ("e" * 64, ""):
        assert not has_digest(path, wrong)
    assert not is_whole(path, "e" * 64)
    assert not has_digest(tmp_path / "gone", digest_of(path))


def test_a_file_whose_digest_is_not_known_need_only_be_readable(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"bytes")
    assert is_whole(tmp_path / "file", "")
    assert not is_whole(tmp_path / "gone", "")
    assert not is_whole(tmp_path, "")


def test_free_space_of_a_folder_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    with pytest.raises(StorageError, match="gone"):
        free_bytes(tmp_path / "gone")
