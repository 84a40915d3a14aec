"""How is a folder with a hundred thousand images read quickly, and nothing left out silently?"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedreid.datasets.images import is_image
from fedreid.datasets.records import Numbering
from fedreid.errors import DatasetError

_PEEKED = 256
"""Entries looked at to recognise a layout: strays may stand before the first image."""


class Walk:
    """Where a scan has been, what it left out, and which numbers it gave to names."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.ignored = 0
        self.first_ignored: Path | None = None
        self.identities = Numbering()
        self.cameras = Numbering()

    def images(self, folder: Path) -> list[Path]:
        """The image files of one folder, by name."""
        self.folders.append(folder)
        with _scanning(folder) as entries:
            names = [e.name for e in entries if is_image(e.name) and e.is_file()]
        names.sort()
        return [folder / name for name in names]

    def below(self, folder: Path) -> list[Path]:
        """Its folders by name, without hidden ones and the thumbnail folders (@…) of storage."""
        self.folders.append(folder)
        with _scanning(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith((".", "@")) and e.is_dir()]
        names.sort()
        return [folder / name for name in names]

    def ignore(self, *paths: Path) -> None:
        """Count images whose name or place has no meaning."""
        self.ignored += len(paths)
        if paths and self.first_ignored is None:
            self.first_ignored = paths[0]


def folder_in(root: Path, *names: str) -> Path | None:
    """The first of these folders that is below ``root``; ``""`` stands for ``root`` itself."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def some_images(folder: Path | None) -> Sequence[str]:
    """Names of a few images of a folder, in no order; none of a missing folder."""
    if folder is None or not folder.is_dir():
        return ()
    with _scanning(folder) as entries:
        return [e.name for e in itertools.islice(entries, _PEEKED) if is_image(e.name)]


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a :class:`DatasetError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise _unreadable(folder, error) from error


@contextmanager
def _scanning(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:  # not by reading(): a second context for each of many folders costs a tenth of the time
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"The dataset folder {folder} can't be read",
        why="access is denied"
        if isinstance(error, PermissionError)
        else (error.strerror or str(error)),
        next_step="Let the agent's user read and enter it, and check that its disk is there.",
    )
