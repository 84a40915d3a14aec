"""What does a disk in memory keep, and what does a power cut leave of it?

What a killed program has written stays. A power cut may take back everything that was not synced:
bytes of a file until ``fsync`` of that file, names in a folder until ``fsync`` of that folder. Of
the unsynced names the oldest changes survive first, of unsynced bytes any beginning may.
"""

import errno
import fcntl
import fnmatch
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath, PurePath
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

FREE_BYTES = 1 << 40


class Inode:
    """A file's bytes, or a folder."""

    def __init__(self, *, folder: bool = False) -> None:
        self.folder = folder
        self.data = bytearray()
        self.synced = b""
        self.changes = 0


class MemoryDisk:
    """Files and folders by their paths."""

    def __init__(self, step: Callable[[str], None]) -> None:
        """``step`` is told of each change before it is made, and after; it may raise."""
        self._step = step
        self._names: dict[str, Inode] = {"/": Inode(folder=True)}
        self._synced_names = dict(self._names)
        self._unsynced: list[tuple[str, str, Inode | None]] = []
        """Changes of names in order: folder, path, and what is there now."""
        self._open: list[Inode | None] = []
        self._changes = 0

    def settle(self) -> None:
        """Make everything that is there survive."""
        self._synced_names = dict(self._names)
        self._unsynced.clear()

    def lose_power(self, random: Random) -> None:
        """Forget what was not synced, or some of it."""
        for _, path, inode in self._unsynced[: random.randint(0, len(self._unsynced))]:
            _apply(self._synced_names, path, inode)
        names = self._synced_names
        self._names = {path: names[path] for path in sorted(names) if _reachable(names, path)}
        self._unsynced.clear()
        for inode in self._names.values():
            if bytes(inode.data) != inode.synced:
                torn = bytes(inode.data[: random.randint(0, len(inode.data))])
                inode.data[:] = random.choice((inode.synced, torn))
            inode.synced = bytes(inode.data)
        self._synced_names = dict(self._names)

    def find(self, path: str) -> Inode:
        """What is at a path."""
        inode = self._names.get(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    def exists(self, path: str) -> bool:
        """Whether anything is there."""
        return path in self._names

    def links(self, inode: Inode) -> int:
        """How many names it has."""
        return sum(each is inode for each in self._names.values())

    def is_open_elsewhere(self, descriptor: int) -> bool:
        """Whether another descriptor is open on the same file."""
        return sum(each is self.of(descriptor) for each in self._open) > 1

    def below(self, path: str) -> list[str]:
        """Every path below a folder, sorted."""
        return sorted(name for name in self._names if name.startswith(path.rstrip("/") + "/"))

    def make_folder(self, path: str) -> None:
        """Make a folder in one that exists."""
        with self._changing(f"mkdir {path}"):
            self._put(path, Inode(folder=True))

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        self.find(path)
        with self._changing(f"unlink {path}"):
            self._put(path, None)

    def rename(self, source: str, target: str) -> None:
        """Move a file over another."""
        inode = self.find(source)
        with self._changing(f"rename {target}"):
            self._put(target, inode)
            self._put(source, None)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""
        inode = self.find(source)
        with self._changing(f"create {target}"):
            self._put(target, inode)

    def remove_tree(self, path: str) -> None:
        """Remove a folder with what it holds, bottom up."""
        for name in reversed((path, *self.below(path))):
            with self._changing(f"unlink {name}"):
                self._put(name, None)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of a file."""
        if flags & os.O_CREAT and not self.exists(path):
            with self._changing(f"create {path}"):
                self._put(path, Inode())
        elif flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._open.append(self.find(path))
        return len(self._open) - 1

    def of(self, descriptor: int) -> Inode:
        """What a descriptor is open on."""
        inode = self._open[descriptor]
        if inode is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return inode

    def close(self, descriptor: int) -> None:
        """Release a descriptor."""
        self._open[descriptor] = None

    def write(self, descriptor: int, data: bytes, offset: int) -> int:
        """Write bytes into a file."""
        inode = self.of(descriptor)
        with self._changing("write"):
            inode.data[offset : offset + len(data)] = data
            inode.changes = self._next_change()
        return len(data)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file off."""
        with self._changing("truncate"):
            inode = self.of(descriptor)
            del inode.data[size:]
            inode.changes = self._next_change()

    def sync(self, descriptor: int) -> None:
        """Make a file's bytes, or a folder's names, survive a power cut."""
        inode = self.of(descriptor)
        with self._changing("fsync"):
            inode.synced = bytes(inode.data)
            if inode.folder:
                folder = next(path for path, at in self._names.items() if at is inode)
                for at, path, now in self._unsynced:
                    if at == folder:
                        _apply(self._synced_names, path, now)
                self._unsynced = [each for each in self._unsynced if each[0] != folder]

    def _put(self, path: str, inode: Inode | None) -> None:
        parent = path.rpartition("/")[0] or "/"
        if not self.find(parent).folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent)
        _apply(self._names, path, inode)
        self._unsynced.append((parent, path, inode))

    def _next_change(self) -> int:
        """Stands for the time of a change; no two are alike, for a new file may have an old id."""
        self._changes += 1
        return self._changes

    def _changing(self, what: str) -> "_Change":
        return _Change(self._step, what)


class _Change:
    """One change of the disk, that may be the last of its program: before it, or after."""

    def __init__(self, step: Callable[[str], None], what: str) -> None:
        self._step, self._what = step, what

    def __enter__(self) -> None:
        self._step(f"before {self._what}")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            self._step(f"after {self._what}")


def _apply(names: dict[str, Inode], path: str, inode: Inode | None) -> None:
    if inode is None:
        names.pop(path, None)
    else:
        names[path] = inode


def _reachable(names: dict[str, Inode], path: str) -> bool:
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if path not in names:
            return False
    return True


class MemoryPath(PosixPath):
    """A path on the disk in memory; stands where the product says ``Path``."""

    disk: ClassVar[MemoryDisk]

    def exists(self) -> bool:
        return self.disk.exists(str(self))

    def is_dir(self) -> bool:
        return self.exists() and self.disk.find(str(self)).folder

    def stat(self, **_how: Any) -> Any:
        inode = self.disk.find(str(self))
        return SimpleNamespace(
            st_size=len(inode.data),
            st_nlink=self.disk.links(inode),
            st_mode=stat.S_IFREG,
            st_dev=0,
            st_ino=id(inode),
            st_mtime_ns=inode.changes,
        )

    def chmod(self, mode: int, **_how: Any) -> None:
        """Nobody else is there."""

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if not self.exists():
            if parents:
                self.parent.mkdir(parents=True, exist_ok=True)
            self.disk.make_folder(str(self))
        elif not exist_ok:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        if self.exists() or not missing_ok:
            self.disk.unlink(str(self))

    def glob(self, pattern: str, **_how: Any) -> Iterator["MemoryPath"]:  # type: ignore[override]
        depth = pattern.count("/") + 1
        for name in self.disk.below(str(self)):
            relative = PurePath(name).relative_to(self)
            if len(relative.parts) == depth and fnmatch.fnmatchcase(str(relative), pattern):
                yield MemoryPath(name)

    def open(self, mode: Literal["rb"] = "rb", *_how: Any, **_more: Any) -> Any:  # type: ignore[override]
        return _ReadStream(self.disk, self.disk.open(str(self), os.O_RDONLY))


class _ReadStream(io.BytesIO):
    """What opening a file for reading gives."""

    def __init__(self, disk: MemoryDisk, descriptor: int) -> None:
        super().__init__(bytes(disk.of(descriptor).data))
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor


class _WriteStream(io.RawIOBase):
    """What ``os.fdopen`` gives of a descriptor."""

    def __init__(self, disk: MemoryDisk, descriptor: int) -> None:
        self._disk, self._descriptor, self._at = disk, descriptor, 0

    def write(self, data: Any) -> int:
        block = bytes(data)
        self._at += self._disk.write(self._descriptor, block, self._at)
        return len(block)

    def truncate(self, size: int | None = None) -> int:
        self._disk.truncate(self._descriptor, self._at if size is None else size)
        return self._at

    def fileno(self) -> int:
        return self._descriptor


def memory_os(disk: MemoryDisk) -> Any:
    """What the product asks of ``os``, on a disk in memory."""

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        return bytes(disk.of(descriptor).data[offset : offset + size])

    def preadv(descriptor: int, views: list[memoryview], offset: int) -> int:
        data = pread(descriptor, len(views[0]), offset)
        views[0][: len(data)] = data
        return len(data)

    def rename(source: Path, target: Path) -> None:
        disk.rename(str(source), str(target))

    return SimpleNamespace(
        O_RDONLY=os.O_RDONLY,
        O_RDWR=os.O_RDWR,
        O_WRONLY=os.O_WRONLY,
        O_CREAT=os.O_CREAT,
        O_EXCL=os.O_EXCL,
        O_DIRECTORY=os.O_DIRECTORY,
        O_CLOEXEC=os.O_CLOEXEC,
        open=lambda path, flags, mode=0: disk.open(str(path), flags),
        close=disk.close,
        fsync=disk.sync,
        fstat=lambda descriptor: SimpleNamespace(st_size=len(disk.of(descriptor).data)),
        pread=pread,
        preadv=preadv,
        pwrite=disk.write,
        ftruncate=disk.truncate,
        fdopen=lambda descriptor, mode: _WriteStream(disk, descriptor),
        link=lambda source, target: disk.link(str(source), str(target)),
        replace=rename,
        rename=rename,
    )


def memory_fcntl(disk: MemoryDisk) -> Any:
    """What the product asks of ``fcntl``, on a disk in memory: leases."""

    def take_lease(descriptor: int, command: int, kind: int) -> None:
        if kind == fcntl.F_WRLCK and disk.is_open_elsewhere(descriptor):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    return SimpleNamespace(
        F_SETLEASE=fcntl.F_SETLEASE,
        F_WRLCK=fcntl.F_WRLCK,
        F_UNLCK=fcntl.F_UNLCK,
        fcntl=take_lease,
    )


def memory_shutil(disk: MemoryDisk) -> Any:
    """What the product asks of ``shutil``, on a disk in memory."""

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if disk.exists(str(path)):
            disk.remove_tree(str(path))

    return SimpleNamespace(rmtree=rmtree, disk_usage=lambda path: SimpleNamespace(free=FREE_BYTES))
