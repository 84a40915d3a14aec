"""How is a coordinator carried over to another disk? One file that holds all it needs to go on.

A tar file of mode 0600, written beside the running coordinator and moved into place by one
rename::

    coordinator.toml  authority/  model-key.pem .pub     who the federation is: KEYS
    audit/  journal.sqlite                               what has happened
    models/                                              what the next round starts from
    manifest.json                                        a digest of every file before it

The audit log is read before the journal, so that the journal is never the older of the two. The
port's and the administrator's identity are left out: a coordinator issues them to itself. So are
updates of the round under way: their silos still have them.

A restored journal is older than its silos. They have taken models that it does not know, and say
so: ``Attending.catch_up``. They have renewed their keys: ``Registry`` believes certificates that
were issued between backup and restore. Join tokens that were unused then may have been used since:
they are dropped.
"""

import io
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import blake3
import msgspec

import fedreid
from coordinator.config import load_config, load_model_key
from coordinator.folders import Folders
from coordinator.rounds.chronicle import audit_of, commits_seen
from coordinator.rounds.journal import Journal, check_not_set_back
from coordinator.rounds.orders import model_path
from coordinator.rounds.publishing import models_needed
from coordinator.trust.authorities import Authorities
from fedreid.audit import audit_files, verify
from fedreid.clock import Clock
from fedreid.errors import ConfigRefused, StorageError, UsageError, storage_errors
from fedreid.files import digest_of, flip_folder, make_folder, remove_folder, replacing
from fedreid.limits import MIB
from fedreid.names import Digest

_MANIFEST = "manifest.json"
_FORMAT = 1
_PRIVATE = 0o600
_BLOCK_BYTES = MIB
_MANIFEST_BYTES = 16 * MIB


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a backup."""

    name: str
    size_bytes: int
    digest: str


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds."""

    format: int = _FORMAT
    federation: str
    made_at_s: float
    """Whatever happened later is not in it."""
    software: str
    newest_version: int
    """Of the models that were published; 0 = none yet."""
    files: tuple[Kept, ...]


def back_up(folders: Folders, out: Path, clock: Clock) -> BackupManifest:
    """Write a backup of a data folder, whether or not its coordinator runs.

    Raises:
        UsageError: there is a file already.
        FedreidError: something in the folder is damaged, so a backup of it would be of no use.
    """
    if out.exists():
        raise UsageError(f"There is a file {out} already", next_step="Choose another name.")
    config, made_at_s = load_config(folders), clock.now_s()
    load_model_key(folders)
    Authorities(folders.authority)
    with (
        storage_errors("write", out),
        tempfile.TemporaryDirectory(prefix=".backup-", dir=out.absolute().parent) as scratch,
    ):
        copy = Path(scratch) / "journal.sqlite"
        with replacing(out, mode=_PRIVATE) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            verify(folders.audit)
            kept = [_add(tar, folders, path) for path in audit_files(folders.audit)]
            newest, needed = _copy_journal(folders, copy)
            kept.append(_add(tar, folders, copy, name=folders.journal.name))
            kept += [_add(tar, folders, path) for path in _identity_files(folders)]
            kept += [_add_model(tar, folders, digest) for digest in needed]
            manifest = BackupManifest(
                federation=config.federation,
                made_at_s=made_at_s,
                software=fedreid.__version__,
                newest_version=newest,
                files=tuple(kept),
            )
            _add_bytes(tar, _MANIFEST, msgspec.json.encode(manifest), made_at_s)
    return manifest


def restore(backup: Path, data: Path, clock: Clock) -> BackupManifest:
    """Make a data folder from a backup.

    Raises:
        ConfigRefused: the folder is not empty.
        StorageError: the backup is damaged, or the disk fails; there is no folder then.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise ConfigRefused(
            f"{data} is not empty",
            why="what lies there would be mixed with what the backup holds",
            next_step="Name a new folder with --data.",
        )
    with storage_errors("make", data.parent):
        data.parent.mkdir(parents=True, exist_ok=True)
        built = Path(tempfile.mkdtemp(prefix=f".{data.name}.restoring-", dir=data.parent))
    try:
        manifest = _unpack(backup, built)
        _settle(Folders(built), manifest, clock)
        remove_folder(data)  # it is empty
        flip_folder(built, data)
    except BaseException:
        remove_folder(built)
        raise
    return manifest


def _settle(folders: Folders, manifest: BackupManifest, clock: Clock) -> None:
    """Check what was unpacked as the coordinator itself would, and note where it comes from."""
    load_config(folders)
    load_model_key(folders)
    Authorities(folders.authority)
    verify(folders.audit)
    journal = Journal(folders.journal)
    try:
        journal.check_rows()
        check_not_set_back(journal, commits_seen(folders))
        journal.mark_restored(backed_up_s=manifest.made_at_s, restored_s=clock.now_s())
        audit_of(folders, journal, clock).append(
            "coordinator.restored", backed_up_s=manifest.made_at_s, software=manifest.software
        )
    finally:
        journal.close()


def _copy_journal(folders: Folders, copy: Path) -> tuple[int, list[str]]:
    """Copy the journal; the newest version in it, and the digests of the models that it needs."""
    seen = commits_seen(folders)
    source = Journal(folders.journal)
    try:
        source.copy_to(copy)
    finally:
        source.close()
    journal = Journal(copy)
    try:
        check_not_set_back(journal, seen)
        journal.check_rows()
        newest = journal.newest_model()
        return 0 if newest is None else newest.version, models_needed(journal)
    finally:
        journal.close()


def _identity_files(folders: Folders) -> Iterator[Path]:
    yield folders.config
    yield folders.model_key
    yield folders.model_public_key
    yield from (path for path in sorted(folders.authority.rglob("*")) if path.is_file())


def _add_model(tar: tarfile.TarFile, folders: Folders, digest: str) -> Kept:
    kept = _add(tar, folders, model_path(folders, Digest(digest)))
    if kept.digest != digest:
        raise StorageError(
            f"The model {digest[:12]}… is damaged",
            why="the next round could not start from a backup of it",
            next_step="See what else is: coordinator doctor.",
        )
    return kept


def _add(tar: tarfile.TarFile, folders: Folders, path: Path, *, name: str = "") -> Kept:
    """A file as long as it is now: logs may grow meanwhile."""
    name = name or path.relative_to(folders.root).as_posix()
    with storage_errors("read", path), path.open("rb") as stream:
        size = path.stat().st_size
        hashed = _Hashed(stream)
        tar.addfile(_entry(name, size, path.stat().st_mtime), hashed)
    return Kept(name=name, size_bytes=size, digest=hashed.digest)


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes, at_s: float) -> None:
    tar.addfile(_entry(name, len(data), at_s), io.BytesIO(data))


def _entry(name: str, size: int, at_s: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, _PRIVATE, int(at_s)
    return entry


class _Hashed:
    """A stream of which a digest is made while it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hasher = blake3.blake3()

    @property
    def digest(self) -> str:
        """Of what was read."""
        return self._hasher.hexdigest()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._stream.read(size)
        self._hasher.update(data)
        return data


def _unpack(backup: Path, built: Path) -> BackupManifest:
    manifest: BackupManifest | None = None
    found: dict[str, Kept] = {}
    with _reading(backup) as tar:
        for entry in tar:
            stream = tar.extractfile(entry) if entry.isreg() and _is_ours(entry.name) else None
            if stream is None or manifest is not None:
                raise _damaged(backup, f"it holds {entry.name!r}, which no backup has there")
            if entry.name == _MANIFEST:
                manifest = msgspec.json.decode(stream.read(_MANIFEST_BYTES), type=BackupManifest)
            else:
                found[entry.name] = _take_out(stream, built, entry)
    if manifest is None:
        raise _damaged(backup, "it ends before its manifest")
    if found != {kept.name: kept for kept in manifest.files}:
        raise _damaged(backup, "a file in it is not the one that was backed up")
    return manifest


def _take_out(stream: IO[bytes], built: Path, entry: tarfile.TarInfo) -> Kept:
    path = built / entry.name
    for folder in reversed(path.relative_to(built).parents[:-1]):
        make_folder(built / folder, mode=0o700)
    with replacing(path, mode=_PRIVATE) as out:
        while block := stream.read(_BLOCK_BYTES):
            out.write(block)
    return Kept(name=entry.name, size_bytes=entry.size, digest=digest_of(path))


@contextmanager
def _reading(backup: Path) -> Iterator[tarfile.TarFile]:
    try:
        with storage_errors("read", backup), tarfile.open(backup, mode="r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, msgspec.MsgspecError) as error:
        raise _damaged(backup, str(error)) from error


def _is_ours(name: str) -> bool:
    """Whether a name stays below the folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts


def _damaged(backup: Path, why: str) -> StorageError:
    return StorageError(
        f"The backup {backup} can't be used", why=why, next_step="Use another backup."
    )
