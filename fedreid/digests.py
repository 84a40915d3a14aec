"""Whose digest is known without reading the file again? That of one hashed a moment ago.

A round's files are hashed when they come, and asked for again at each step that builds on them.
What was hashed within DIGEST_KNOWN_S, and has kept its size and time of change since, lies in the
page cache as it was: reading it again would only compare that cache with itself. A file that
anybody has touched, or that is older, is read.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedreid.errors import StorageError, storage_errors
from fedreid.files import digest_of
from fedreid.limits import DIGEST_KNOWN_S
from fedreid.names import Digest

_Place = tuple[int, int, int]
"""A file by device and inode, so that a rename or a second name changes nothing; and where its
digest begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    size: int
    changed_ns: int
    digest: Digest
    since_s: float


class KnownDigests:
    """Digests of files that were hashed lately; any thread may ask."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._known: dict[_Place, _Known] = {}

    def of(self, path: Path, *, start: int = 0) -> Digest:
        """BLAKE3 of a file's bytes from ``start`` on.

        Raises:
            StorageError: it is gone, or can't be read.
        """
        place, size, changed_ns = _look(path, start)
        known = self._known.get(place)
        if (
            known is not None
            and (known.size, known.changed_ns) == (size, changed_ns)
            and self._monotonic_s() - known.since_s < DIGEST_KNOWN_S
        ):
            return known.digest
        digest = digest_of(path, start=start)
        if _look(path, start) == (place, size, changed_ns):
            self._keep(place, size, changed_ns, digest)
        return digest

    def has(self, path: Path, digest: str) -> bool:
        """Whether a file has this digest; one that is gone, or can't be read any more, has none."""
        return bool(digest) and self.is_whole(path, digest)

    def is_whole(self, path: Path, digest: str) -> bool:
        """The same where the digest may be unknown (empty): then the file need only be readable."""
        try:
            return self.of(path) == digest or not digest
        except StorageError:
            return False

    def note(self, path: Path, digest: Digest, *, start: int = 0) -> None:
        """Keep the digest of a file that was hashed while it was written."""
        self._keep(*_look(path, start), digest)

    def _keep(self, place: _Place, size: int, changed_ns: int, digest: Digest) -> None:
        now_s = self._monotonic_s()
        for old in [k for k, v in self._known.copy().items() if now_s - v.since_s > DIGEST_KNOWN_S]:
            self._known.pop(old, None)
        self._known[place] = _Known(size=size, changed_ns=changed_ns, digest=digest, since_s=now_s)


def _look(path: Path, start: int) -> tuple[_Place, int, int]:
    with storage_errors("read", path):
        found = path.stat()
    return (found.st_dev, found.st_ino, start), found.st_size, found.st_mtime_ns
