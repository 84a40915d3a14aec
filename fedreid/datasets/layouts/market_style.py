"""How are Market-1501 and the sets that took over its folders read?

``bounding_box_train``, ``query`` and ``bounding_box_test``, person and camera in the file name::

    market1501       0001_c1s1_000151_01.jpg    -1 is junk, 0000 a distractor: gallery only
    dukemtmc-reid    0001_c2_f0046182.jpg       withdrawn by its owners
    cuhk03-np        0001_c1_1.png              inside detected/ or labeled/
    msmt17           0781_c11_0015.jpg          repackaged; the original is in ``msmt17``
"""

import re
from functools import partial
from pathlib import Path

from fedreid.datasets.layouts.base import Layout, LayoutName, Options
from fedreid.datasets.layouts.walking import Walk, folder_in, some_images
from fedreid.datasets.records import ImageRecord, Split

_FOLDERS: dict[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}
_MARKS = ("bounding_box_train", "bounding_box_test")
"""Folders that nothing else has: ``query`` alone may be a site's own."""

_END = r"\.(?:jpg|jpeg|png|bmp)"


def _grammar(rest: str) -> re.Pattern[str]:
    return re.compile(rf"(-1|\d{{1,9}})_c(\d{{1,9}}){rest}", re.IGNORECASE | re.ASCII)


_NAMES: dict[LayoutName, re.Pattern[str]] = {
    "market1501": _grammar(rf"s\d+_\d+_\d+{_END}"),
    "dukemtmc-reid": _grammar(rf"_f\d+{_END}"),
    "cuhk03-np": _grammar(r"_\d+\.png"),
    "msmt17": _grammar(r"_\d+\.jpe?g"),
}
"""Person and camera of a file name. The last two differ in their endings only."""

TEST_PERSONS_FROM = 100_000
"""MSMT17 numbers its test persons from 0 again; here they get numbers of their own."""

_VARIANTS = ("", "detected", "labeled")


def read_market_style(
    root: Path, walk: Walk, options: Options, *, name: LayoutName
) -> list[ImageRecord]:
    """All records of the three folders; one that is missing gives none."""
    home = _home(root)
    records = []
    for split, folder in _FOLDERS.items():
        if home is None or not (home / folder).is_dir():
            continue
        for path in walk.images(home / folder):
            record = _record(path, split, name)
            if record is None:
                walk.ignore(path)
            else:
                records.append(record)
    return records


def _record(path: Path, split: Split, name: LayoutName) -> ImageRecord | None:
    named = _NAMES[name].fullmatch(path.name)
    if named is None:
        return None
    pid, camid = int(named[1]), int(named[2])
    if name == "msmt17" and pid >= 0:
        pid = msmt17_person(pid, split)
    if split != "gallery" and pid <= 0:
        return None
    return ImageRecord(path=path, pid=pid, camid=camid, split=split)


def msmt17_person(number: int, split: Split) -> int:
    """The person of a number in MSMT17, where 0 is one too and each split counts from it."""
    return number + 1 if split == "train" else number + 1 + TEST_PERSONS_FROM


def recognises(root: Path, *, name: LayoutName) -> bool:
    """Whether the files of the folders are named like this set's; Market-1501's where in doubt."""
    home = _home(root)
    if home is None or (home == root and not any((root / mark).is_dir() for mark in _MARKS)):
        return False
    names = [n for folder in _FOLDERS.values() for n in some_images(folder_in(home, folder))]
    fits = {
        layout: sum(grammar.fullmatch(n) is not None for n in names)
        for layout, grammar in _NAMES.items()
    }
    return name == max(fits, key=lambda layout: fits[layout])


def _home(root: Path) -> Path | None:
    """The folder that holds the three: itself, else ``detected``, else ``labeled``."""
    for variant in _VARIANTS:
        if any((root / variant / mark).is_dir() for mark in _FOLDERS.values()):
            return root / variant
    return None


def _layout(name: LayoutName, example: str, place: str = "", *, withdrawn: bool = False) -> Layout:
    return Layout(
        name=name,
        expected=f"{place}bounding_box_train, query and bounding_box_test with files such as "
        f"{example}",
        recognises=partial(recognises, name=name),
        read=partial(read_market_style, name=name),
        withdrawn=lambda root: withdrawn,
    )


MARKET1501 = _layout("market1501", "0001_c1s1_000151_01.jpg")
DUKEMTMC_REID = _layout("dukemtmc-reid", "0001_c2_f0046182.jpg", withdrawn=True)
CUHK03_NP = _layout("cuhk03-np", "0001_c1_1.png", "detected or labeled with ")
