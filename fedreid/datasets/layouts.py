"""Which images does a folder hold, of whom, from which camera, for which use? (reid-spec §9)

``market1501``
    ``bounding_box_train``, ``query`` and ``bounding_box_test`` with files like
    ``0001_c1s1_000151_01.jpg``. Person -1 is junk and 0000 a distractor: gallery only.

``folders``
    A site's own crops: a table (:mod:`fedreid.datasets.manifest`), or files
    ``identity/camera/*.jpg``, themselves in ``train``, ``query`` and ``gallery`` or in none of
    them; without a split, :func:`fedreid.datasets.records.split_identities` makes one.

Files that are no images are passed over; images whose name or place the layout does not know
are counted as ignored.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fedreid.datasets.images import is_image
from fedreid.datasets.manifest import MANIFEST_NAME, read_manifest
from fedreid.datasets.records import (
    JUNK_PID,
    SPLITS,
    ImageRecord,
    Split,
    number_of,
    split_identities,
)
from fedreid.errors import DatasetError, UsageError

LayoutName = Literal["market1501", "folders"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)

_EXPECTED: dict[LayoutName, str] = {
    "market1501": "bounding_box_train, query and bounding_box_test with files such as "
    "0001_c1s1_000151_01.jpg",
    "folders": f"{MANIFEST_NAME}, or files identity/camera/*.jpg, optionally inside train, query "
    "and gallery",
}
_MARKET_FOLDERS: dict[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}
_MARKET_NAME = re.compile(r"(-1|\d+)_c(\d+)s\d+_\d+_\d+\.(?:jpg|jpeg|png|bmp)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All records of a folder, in the order of their paths."""

    root: Path
    layout: LayoutName
    train: tuple[ImageRecord, ...]
    query: tuple[ImageRecord, ...]
    gallery: tuple[ImageRecord, ...]
    ignored: int
    """Image files whose name or place the layout does not know."""
    folders: tuple[Path, ...]
    """Every folder with images, and the manifest; their times of change tell whether the dataset
    has changed."""


def load(path: Path, layout: str = "auto") -> Dataset:
    """The records below ``path``; no image is opened; ``auto`` recognises the layout.

    Raises:
        UsageError: no layout of that name.
        DatasetError: the folder is missing, unreadable, or holds no image in that layout.
    """
    if layout not in ("auto", *LAYOUTS):
        raise UsageError(
            f"There is no dataset layout {layout!r}",
            next_step=f"Use one of: auto, {', '.join(LAYOUTS)}.",
        )
    if not path.is_dir():
        raise DatasetError(
            f"The dataset folder {path} is not there",
            why="it was moved or mistyped, or its disk is not mounted",
            next_step="Mount it, or name the folder that holds the images.",
        )
    market = layout == "market1501" or (layout == "auto" and _looks_like_market(path))
    dataset = _market(path) if market else _site(path)
    if not (dataset.train or dataset.query or dataset.gallery):
        raise DatasetError(
            f"The dataset folder {path} holds no image in the layout {dataset.layout!r}",
            why=f"{dataset.ignored} image files have other names or places",
            next_step=f"Expected: {_EXPECTED[dataset.layout]}.",
        )
    return dataset


def _looks_like_market(path: Path) -> bool:
    return any((path / name).is_dir() for name in ("bounding_box_train", "bounding_box_test"))


def _market(root: Path) -> Dataset:
    walk = _Walk()
    records: list[ImageRecord] = []
    for split, folder in _MARKET_FOLDERS.items():
        if not (root / folder).is_dir():
            continue
        for path in walk.images(root / folder):
            named = _MARKET_NAME.fullmatch(path.name)
            if named is None or (split != "gallery" and int(named[1]) <= 0):
                walk.ignored += 1
                continue
            pid, camid = int(named[1]), int(named[2])
            records.append(ImageRecord(path=path, pid=pid, camid=camid, split=split))
    return _dataset(root, "market1501", records, walk)


def _site(root: Path) -> Dataset:
    walk = _Walk()
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if (root / MANIFEST_NAME).is_file():
        records = read_manifest(root / MANIFEST_NAME)
        walk.folders += [root / MANIFEST_NAME, *sorted({record.path.parent for record in records})]
    elif splits:
        records = [r for split in splits for r in _people(root / split, split, walk)]
    else:
        records = split_identities(_people(root, "train", walk))
    known = [r for r in records if r.split == "gallery" or r.pid != JUNK_PID]
    walk.ignored += len(records) - len(known)
    return _dataset(root, "folders", known, walk)


def _people(root: Path, split: Split, walk: "_Walk") -> Iterator[ImageRecord]:
    """Records of ``identity/camera/*``."""
    walk.ignored += len(walk.images(root))
    for person in walk.below(root):
        walk.ignored += len(walk.images(person))
        for camera in walk.below(person):
            pid, camid = number_of(person.name), number_of(camera.name)
            for path in walk.images(camera):
                yield ImageRecord(path=path, pid=pid, camid=camid, split=split)


def _dataset(root: Path, layout: LayoutName, records: list[ImageRecord], walk: "_Walk") -> Dataset:
    parts = {split: tuple(r for r in records if r.split == split) for split in SPLITS}
    return Dataset(
        root=root, layout=layout, **parts, ignored=walk.ignored, folders=tuple(walk.folders)
    )


class _Walk:
    """Where a scan has been, and what it left out."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.ignored = 0

    def images(self, folder: Path) -> list[Path]:
        """The image files of one folder, by name."""
        self.folders.append(folder)
        with _scanning(folder) as entries:
            names = [e.name for e in entries if is_image(e.name) and e.is_file()]
        return [folder / name for name in sorted(names)]

    def below(self, folder: Path) -> list[Path]:
        """Its folders by name, without hidden ones and the thumbnail folders (@…) of storage."""
        with _scanning(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith((".", "@")) and e.is_dir()]
        return [folder / name for name in sorted(names)]


@contextmanager
def _scanning(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise DatasetError(
            f"The dataset folder {folder} can't be read",
            why="access is denied"
            if isinstance(error, PermissionError)
            else (error.strerror or str(error)),
            next_step="Let the agent's user read and enter it, and check that its disk is there.",
        ) from error
