"""How is MSMT17 read: from its lists, or in the repackaged form?

::

    train/0000/0000_000_01_0303morning_0015_0.jpg      V2: mask_train_v2/
    test/0000/0000_000_01_0302morning_0157_0.jpg       V2: mask_test_v2/
    list_train.txt  list_val.txt                       lines "0000/FILE 0": training images
    list_query.txt  list_gallery.txt                   the same of the test folder

The camera (1 to 15) is the third field of a file name, the person the number in the list. As in
TOMM'23, validation images train. The repackaged form has Market-1501's folders and files such as
``0781_c11_0015.jpg`` (:mod:`fedreid.datasets.layouts.market_style`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedreid.datasets.layouts.base import Layout, Options
from fedreid.datasets.layouts.market_style import (
    msmt17_person,
    read_market_style,
    recognises,
)
from fedreid.datasets.layouts.walking import Walk, folder_in
from fedreid.datasets.records import ImageRecord, Split, place_of
from fedreid.errors import DatasetError

_FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("train", "mask_train_v2"),
    "test": ("test", "mask_test_v2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _List:
    name: str
    folder: str
    split: Split


_LISTS = (
    _List(name="list_train.txt", folder="train", split="train"),
    _List(name="list_val.txt", folder="train", split="train"),
    _List(name="list_query.txt", folder="test", split="query"),
    _List(name="list_gallery.txt", folder="test", split="gallery"),
)
_CAMERA = re.compile(r"[^_]+_[^_]+_(\d{1,9})_.+", re.ASCII)
_LINE = re.compile(r"(\S.*\S)\s+(\d{1,9})", re.ASCII)


def _has_lists(root: Path) -> bool:
    return any((root / entry.name).is_file() for entry in _LISTS)


def _read(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    if not _has_lists(root):
        return read_market_style(root, walk, options, name="msmt17")
    there = {kind: _images(folder_in(root, *names), walk) for kind, names in _FOLDERS.items()}
    records: list[ImageRecord] = []
    unnamed = {kind: dict(images) for kind, images in there.items()}
    for entry in _LISTS:
        if not (root / entry.name).is_file():
            continue
        for place, record in _listed(root / entry.name, there[entry.folder], entry.split, walk):
            records.append(record)
            unnamed[entry.folder].pop(place, None)
    walk.ignore(*(path for images in unnamed.values() for path in images.values()))
    return sorted(records, key=place_of)


def _images(home: Path | None, walk: Walk) -> dict[str, Path]:
    """Every image in a folder of persons, by its place in it as the lists write it."""
    if home is None:
        return {}
    return {
        f"{person.name}/{path.name}": path
        for person in walk.below(home)
        for path in walk.images(person)
    }


def _listed(
    file: Path, there: dict[str, Path], split: Split, walk: Walk
) -> Iterator[tuple[str, ImageRecord]]:
    walk.folders.append(file)
    for number, text in enumerate(_lines(file), start=1):
        line = _LINE.fullmatch(text)
        camera = _CAMERA.fullmatch(line[1].rpartition("/")[2]) if line else None
        if line is None or camera is None:
            raise _wrong(file, f"line {number} is no 'path person' of an MSMT17 image")
        path = there.get(line[1])
        if path is None:
            raise _wrong(file, f"line {number} names {line[1]}, which is not among the images")
        pid = msmt17_person(int(line[2]), split)
        yield line[1], ImageRecord(path=path, pid=pid, camid=int(camera[1]), split=split)


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(file, str(error)) from error


def _wrong(file: Path, why: str) -> DatasetError:
    return DatasetError(
        f"The list {file} can't be used",
        why=why,
        next_step="Unpack the images again beside their lists, or correct the list.",
    )


MSMT17 = Layout(
    name="msmt17",
    expected="train and test (V2: mask_train_v2 and mask_test_v2) with list_train.txt, "
    "list_val.txt, list_query.txt and list_gallery.txt; or Market-1501's folders with files such "
    "as 0781_c11_0015.jpg",
    recognises=lambda root: (
        (_has_lists(root) and any(folder_in(root, *names) for names in _FOLDERS.values()))
        or recognises(root, name="msmt17")
    ),
    read=_read,
)
