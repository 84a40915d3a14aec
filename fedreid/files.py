"""How is a file written so that a crash leaves the old one or the new one, never half?"""

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import blake3

from fedreid import faults
from fedreid.errors import ConfigRefused, StorageError, storage_errors
from fedreid.limits import MIB
from fedreid.names import Digest

_READ_BYTES = 1 * MIB


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(
    path: Path, *, mode: int = 0o644, over: Path | str | None = None, synced: bool = True
) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour for writing; on success it durably takes ``path``'s place.

    The file ``over``, if one is named and there, is used up for it: its room is, not what it holds.
    What is not ``synced`` may be taken or torn by a power cut: only for what a digest is kept of,
    and that can be had again.

    Raises:
        StorageError: the disk is full, read-only or fails; ``path`` is as it was.
    """
    # A name that nobody can guess, and O_EXCL: a file or link planted in a shared folder must
    # not get the bytes.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with storage_errors("write", path):
        try:
            with os.fdopen(_opened(temporary, mode, over), "wb") as stream:
                yield stream
                if over:
                    stream.truncate()  # it may have been longer
                stream.flush()
                with faults.step("file.replace"):
                    if synced:
                        os.fsync(stream.fileno())
                    os.replace(temporary, path)
                    if synced:
                        sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _opened(path: Path, mode: int, over: Path | str | None) -> int:
    """A file for writing that is made of ``over``, if that is there, or else anew."""
    if over:
        with suppress(FileNotFoundError):
            os.rename(over, path)
            path.chmod(mode)
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Durably write a whole small file."""
    with replacing(path, mode=mode) as stream:
        stream.write(data)


def write_with(path: Path, write: Callable[[IO[bytes]], None], *, mode: int = 0o644) -> None:
    """Durably write a file whose bytes ``write`` produces."""
    with replacing(path, mode=mode) as stream:
        write(stream)


def overwrite(path: Path, record: bytes) -> None:
    """Write a record of always the same size over the last one; means nothing after a crash.

    Nothing waits for the disk, and the disk's errors are ``OSError``: what has to last is written
    with :func:`write_bytes`.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, record, 0)
    finally:
        os.close(descriptor)


def make_folder(path: Path, *, mode: int = 0o755) -> Path:
    """Durably create a folder with its parents; an existing one is left as it is."""
    with storage_errors("create", path):
        if not path.is_dir():
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            for folder in made:
                sync_folder(folder.parent)
    return path


def move_file(path: Path, to: Path) -> None:
    """Durably move a complete file to its final name, over what may be there."""
    with storage_errors("move into place", to), faults.step("file.move"):
        os.replace(path, to)
        sync_folder(to.parent)


def link_file(path: Path, to: Path) -> None:
    """Durably give a complete file a second name, over what may be there; the first one stays."""
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(8)}.tmp")
    with storage_errors("move into place", to), faults.step("file.link"):
        os.link(path, temporary)
        os.replace(temporary, to)
        temporary.unlink(missing_ok=True)  # rename leaves it where both are one file already
        sync_folder(to.parent)


def remove_file(path: Path) -> None:
    """Remove a file; a missing one is fine."""
    with storage_errors("remove", path), faults.step("file.remove"):
        path.unlink(missing_ok=True)


def flip_folder(built: Path, path: Path) -> None:
    """Durably move a finished folder to its final name, which must not exist yet."""
    with storage_errors("move into place", path), faults.step("folder.flip"):
        for entry in built.rglob("*"):
            if entry.is_dir():
                sync_folder(entry)
            else:
                with entry.open("rb") as stream:
                    os.fsync(stream.fileno())
        sync_folder(built)
        os.rename(built, path)
        sync_folder(path.parent)


def flip_link(link: Path, target: str) -> None:
    """Durably point a symbolic link at ``target`` (a sibling's name)."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    with storage_errors("flip", link), faults.step("link.flip"):
        temporary.unlink(missing_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, link)
        sync_folder(link.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder with all it holds; a missing one is fine."""
    with storage_errors("remove", path), faults.step("folder.remove"):
        shutil.rmtree(path, ignore_errors=not path.exists())


def digest_of(path: Path, *, start: int = 0) -> Digest:
    """BLAKE3 of a file's bytes from ``start`` on, read in blocks."""
    hasher = blake3.blake3()
    with storage_errors("read", path), path.open("rb", buffering=0) as stream:
        stream.seek(start)
        block = bytearray(_READ_BYTES)
        view = memoryview(block)
        while count := stream.readinto(view):
            hasher.update(view[:count])
    return Digest(hasher.hexdigest())


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file has this digest; one that is gone, or can't be read any more, has none."""
    return bool(digest) and is_whole(path, digest)


def is_whole(path: Path, digest: str) -> bool:
    """The same where the digest may be unknown (empty): then the file need only be readable."""
    try:
        return digest_of(path) == digest or not digest
    except StorageError:
        return False


def free_bytes(folder: Path) -> int:
    """Free space on a folder's disk.

    Raises:
        StorageError: there is no telling.
    """
    with storage_errors("look at", folder):
        return shutil.disk_usage(folder).free


def read_into(descriptor: int, path: Path, offset: int, view: memoryview) -> None:
    """Fill ``view`` from the open file ``path`` at ``offset`` bytes.

    Raises:
        StorageError: it fails, or ends before.
    """
    done = 0
    with storage_errors("read", path):
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise StorageError(f"The file {path} ends too early")
            done += count


def others_may_read(path: Path) -> bool:
    """Whether group or others have any access to ``path``."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


@contextmanager
def held_alone(folder: Path, *, by: str) -> Iterator[None]:
    """Hold a data folder's lock; the kernel releases it however the process ends.

    Raises:
        ConfigRefused: another process holds it.
    """
    with storage_errors("lock", folder):
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigRefused(
                f"Another {by} works on {folder} already",
                next_step="Stop it first; two of them would contradict each other.",
            ) from error
        yield
    finally:
        os.close(descriptor)
