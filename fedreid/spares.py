"""Where does the room for a round's files come from? From the files of the round before.

A large file that is needed no more is overwritten with zeros, which undoes it more thoroughly than
a removal, and lies ready to be written over by the next one of its size. Its blocks and its pages
in memory are there already, which a new file's have to be found first: dear in a virtual machine,
whose host takes back what is freed.

Only a file that nobody has open is kept: a late upload still writes to one that its round has done
with, and that one is removed as ever.

Nothing depends on a spare: each program starts without any, and a missing one costs time alone.
"""

import errno
import fcntl
import os
import secrets
from pathlib import Path

from fedreid import faults
from fedreid.errors import storage_errors
from fedreid.files import free_bytes, make_folder, remove_file, remove_folder
from fedreid.limits import LEAST_SPARE_BYTES, MIB

ZEROS = bytes(MIB)
"""A block of what a spare holds."""


class Spares:
    """The files of a data folder that may be written over; methods block on the disk."""

    def __init__(self, folder: Path, *, kept: int) -> None:
        """At most ``kept`` lie in ``folder``, which is on the disk of what is retired."""
        self._folder = folder
        self._kept = kept

    def retire(self, path: Path) -> None:
        """Remove a file, and keep its room if another one may want it; a missing one is fine.

        Raises:
            StorageError: the disk fails.
        """
        with storage_errors("remove", path), faults.step("file.retire"):
            if not path.exists():
                return
            if not self._make_place(path):
                remove_file(path)
                return
            token = secrets.token_hex(8)
            under_way = make_folder(self._folder, mode=0o700) / f".{token}.tmp"
            try:
                os.rename(path, under_way)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                remove_file(path)  # the spool may have a disk of its own
                return
            if _overwrite_with_zeros(under_way):
                os.rename(under_way, self._folder / token)
            else:
                under_way.unlink()

    def find(self, size_bytes: int) -> Path | None:
        """A spare of this size, which is all zeros; whoever moves it away has it.

        Raises:
            StorageError: the disk fails.
        """
        with storage_errors("look at", self._folder):
            return next((each for each in self._all() if _size(each) == size_bytes), None)

    def take(self, size_bytes: int, to: Path) -> bool:
        """Put a spare of this size at ``to``; whether there was one.

        Raises:
            StorageError: the disk fails.
        """
        while spare := self.find(size_bytes):
            with storage_errors("write", to):
                try:
                    os.rename(spare, to)
                except FileNotFoundError:  # another thread was faster
                    continue
            return True
        return False

    def clear(self) -> None:
        """Give the room of all spares back."""
        remove_folder(self._folder)

    def _make_place(self, path: Path) -> bool:
        """Whether the file may be kept; for one of another model than is trained now, one goes.

        Few are kept, no small ones, none that the disk would miss or that has a second name.
        """
        status, spares = path.stat(), self._all()
        room = (len(spares) + 1) * status.st_size <= free_bytes(path.parent)
        if status.st_nlink > 1 or status.st_size < LEAST_SPARE_BYTES or not room:
            return False
        if len(spares) < self._kept:
            return True
        of_others = (each for each in spares if _size(each) not in (None, status.st_size))
        old = next(of_others, None)
        if old is not None:
            old.unlink(missing_ok=True)
        return old is not None

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("[!.]*"))


def _size(spare: Path) -> int | None:
    """None where another thread has taken it."""
    try:
        return spare.stat().st_size
    except FileNotFoundError:
        return None


def _overwrite_with_zeros(path: Path) -> bool:
    """Whether it was done: not to a file that somebody else has open."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if _is_open_elsewhere(descriptor):
            return False
        size = os.fstat(descriptor).st_size
        done = 0
        while done < size:
            done += os.pwrite(descriptor, ZEROS[: size - done], done)
        return True
    finally:
        os.close(descriptor)


def _is_open_elsewhere(descriptor: int) -> bool:
    """Whether any process may still read or write the file, whose new name nobody knows.

    The kernel gives a lease for writing on a file that is open nowhere else; file systems that
    know no leases refuse it as well.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False
