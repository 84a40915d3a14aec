"""What has happened here, so that nobody can change it later unseen? A hash-chained audit log.

::

    audit/000001.jsonl      a full file, then the next; numbers and hashes run through
    audit/000002.jsonl

Each line is a JSON object that ends in its own hash; the hash covers every byte of the line
before it, and these hold the hash of the line before. A changed, added or removed line breaks the
chain from there on. What a chain can't show is that its end was cut off: whoever wants to know
notes the head (``audit verify`` prints it) somewhere else from time to time.
"""

import contextlib
import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import blake3
import msgspec

from fedreid import faults
from fedreid.clock import Clock
from fedreid.errors import AuditBroken, storage_errors
from fedreid.files import make_folder, sync_folder
from fedreid.limits import AUDIT_FILE_BYTES

Field = str | int | float | bool | list[str] | dict[str, float]

GENESIS = "0" * 64
"""What the first line names as the hash of the line before it."""

_HASH_KEY = b',"hash":"'
_TAIL_BYTES = len(_HASH_KEY) + 64 + len(b'"}')
_READ_BACK_BYTES = 64 * 1024


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One event."""

    number: int
    """From 1, without gaps."""
    at_s: float
    """Seconds since the Unix epoch."""
    event: str
    """Such as ``update.accepted``."""
    fields: dict[str, Any] = {}
    previous: str
    """Hash of the line before."""
    hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSummary:
    """What a whole, unbroken log consists of."""

    lines: int
    head: str
    """Hash of the last line."""
    cut_off_bytes: int
    """Of a last line whose writing was cut off; it is dropped when the next one is written."""


class AuditLog:
    """Appends to the log in a folder; each line is on the disk when ``append`` returns.

    Several processes may append to one folder: each takes the file's lock and looks what stands
    at its end first.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        file_bytes: int = AUDIT_FILE_BYTES,
        witnessed: Callable[[], dict[str, Field]] = dict,
    ) -> None:
        """The log in a folder; ``witnessed`` is asked for fields that every line bears besides."""
        self._folder = make_folder(folder, mode=0o700)
        self._clock = clock
        self._file_bytes = file_bytes
        self._witnessed = witnessed
        self._one_at_a_time = threading.Lock()

    def append(self, event: str, **fields: Field) -> None:
        """Write one event; blocks on the disk.

        Raises:
            StorageError: the disk is full, read-only or fails.
            AuditBroken: what stands at the end of the file is no line of this log.
        """
        self.append_owed(deque([(event, fields)]))

    def append_owed(self, owed: "deque[tuple[str, dict[str, Field]]]") -> None:
        """Write events in their order, with one sync for all, and take off what is written.

        Raises:
            StorageError, AuditBroken: as for one; then all of them are still owed.
        """
        if not owed:
            return
        count = len(owed)  # more may be owed meanwhile
        with (
            self._one_at_a_time,
            storage_errors("write", self._folder),
            self._locked(),
            faults.step("audit.append"),
        ):
            path, last, cut_off = self._end()
            events = [owed[at] for at in range(count)]
            if cut_off:
                events.insert(0, ("audit.repaired", {"dropped_bytes": cut_off}))
            self._write(path, last, events)
            for _ in range(count):
                owed.popleft()

    def newest_first(self) -> Iterator[AuditLine]:
        """Every whole line, newest first; see :func:`newest_first`."""
        return newest_first(self._folder)

    def _end(self) -> tuple[Path, AuditLine | None, int]:
        """The file to append to, the last whole line, and the bytes of a torn one, now dropped."""
        files = audit_files(self._folder)
        if not files:
            return self._folder / _file_name(1), None, 0
        last, whole, size = _tail(files[-1])
        if whole < size:
            os.truncate(files[-1], whole)
        if last is None and len(files) > 1:  # a file that was begun and not written to
            last, _, _ = _tail(files[-2])
        path = files[-1] if whole < self._file_bytes else self._folder / _file_name(len(files) + 1)
        return path, last, size - whole

    def _write(
        self, path: Path, last: AuditLine | None, events: "list[tuple[str, dict[str, Field]]]"
    ) -> None:
        """Add lines to a file, all of them or, where the disk lets us, none."""
        number, previous = (0, GENESIS) if last is None else (last.number, last.hash)
        text = bytearray()
        for event, fields in events:
            number += 1
            line = AuditLine(
                number=number,
                at_s=round(self._clock.now_s(), 3),
                event=event,
                fields={**fields, **self._witnessed()},
                previous=previous,
            )
            body = msgspec.json.encode(line).removesuffix(b',"hash":""}')
            previous = _hash(body)
            text += body + _HASH_KEY + previous.encode() + b'"}\n'
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "ab") as stream:
                size = os.fstat(stream.fileno()).st_size
                try:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(stream.fileno(), size)  # whole lines would be written twice
                    raise
        finally:
            if new:
                sync_folder(self._folder)

    def _locked(self) -> IO[bytes]:
        stream = (self._folder / ".lock").open("ab")
        fcntl.flock(stream, fcntl.LOCK_EX)
        return stream


def audit_files(folder: Path) -> list[Path]:
    """The log's files, oldest first."""
    return sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].jsonl"))


def read_audit(folder: Path) -> Iterator[AuditLine]:
    """Every line, oldest first, checked on the way.

    Raises:
        AuditBroken: with file and line of the first that does not fit.
        StorageError: a file can't be read.
    """
    previous, number = GENESIS, 0
    for place, path in enumerate(audit_files(folder), start=1):
        if path.name != _file_name(place):
            raise _broken(path, 1, f"the file {_file_name(place)} before it is missing")
        with storage_errors("read", path), path.open("rb") as stream:
            for at, raw in enumerate(stream, start=1):
                if not raw.endswith(b"\n"):
                    break  # a write that was cut off: nothing was acknowledged with it
                line = _checked(path, at, raw[:-1])
                if (line.number, line.previous) != (number + 1, previous):
                    raise _broken(path, at, "it does not follow the line before it")
                previous, number = line.hash, line.number
                yield line


def newest_first(folder: Path) -> Iterator[AuditLine]:
    """Every whole line, newest first, as it stands: nothing of the chain is checked.

    Raises:
        AuditBroken: with the file whose line can't be read at all.
        StorageError: a file can't be read.
    """
    for path in reversed(audit_files(folder)):
        for at, raw in enumerate(_lines_from_the_end(path), start=1):
            if raw.endswith(b"\n"):
                yield _decoded(path, -at, raw)


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """A file's lines, last first, of which no more is read than is asked for."""
    with storage_errors("read", path), path.open("rb") as stream:
        end, begun = stream.seek(0, os.SEEK_END), b""
        while end > 0:
            start = max(0, end - _READ_BACK_BYTES)
            stream.seek(start)
            begun, *lines = (stream.read(end - start) + begun).splitlines(keepends=True)
            yield from reversed(lines)
            end = start
        if begun:
            yield begun


def verify(folder: Path) -> AuditSummary:
    """Walk the whole chain; see :func:`read_audit` for errors."""
    lines, head = 0, GENESIS
    for line in read_audit(folder):
        lines, head = line.number, line.hash
    files = audit_files(folder)
    cut_off = 0
    if files:
        _, whole, size = _tail(files[-1])
        cut_off = size - whole
    return AuditSummary(lines=lines, head=head, cut_off_bytes=cut_off)


def _checked(path: Path, at: int, raw: bytes) -> AuditLine:
    body, tail = raw[:-_TAIL_BYTES], raw[-_TAIL_BYTES:]
    if not tail.startswith(_HASH_KEY) or tail[len(_HASH_KEY) : -2].decode("latin1") != _hash(body):
        raise _broken(path, at, "its bytes are not those that its hash was made of")
    return _decoded(path, at, raw)


def _decoded(path: Path, at: int, raw: bytes) -> AuditLine:
    try:
        return msgspec.json.decode(raw, type=AuditLine)
    except msgspec.DecodeError as error:
        raise _broken(path, at, str(error)) from error


def _tail(path: Path) -> tuple[AuditLine | None, int, int]:
    """The file's last whole line, the bytes up to its end, and the file's size."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        back = min(size, _READ_BACK_BYTES)
        while True:
            stream.seek(size - back)
            end = stream.read(back)
            whole = end.rfind(b"\n") + 1
            if back == size or end.count(b"\n") > 1:  # the last whole line is in it from its start
                break
            back = min(size, 2 * back)  # a line that names a thousand silos is a long one
    lines = end[:whole].splitlines()
    last = _checked(path, -1, lines[-1]) if lines else None
    return last, size - back + whole, size


def _hash(body: bytes) -> str:
    return blake3.blake3(body).hexdigest()


def _file_name(place: int) -> str:
    return f"{place:06d}.jsonl"


def _broken(path: Path, at: int, why: str) -> AuditBroken:
    """``at`` counts from 1, or from −1 backwards from the end."""
    places = {-1: "its last line"}
    place = places.get(at, f"line {at}" if at > 0 else f"line {-at} from its end")
    return AuditBroken(
        f"The audit log is broken in {path}, {place}",
        why=why,
        next_step="Somebody or something changed the file: keep a copy, and compare with a backup.",
    )
