"""How are the folders read that the paper's authors train from (``fedreid-preprocessed``)?

::

    NAME/pytorch/train_all/0002/0002_c1s1_000451_03.jpg    a folder per person, in train_all or in
    NAME/pytorch/{train,val,query,gallery}/…               train and val; query; gallery
    NAME/pytorch/query/17/cam_0_00017_00000.bmp            small sets: the camera comes first

Folders may carry a suffix (``0002-market``). The large sets keep -1 as junk and 0000 as
distractor; in the small ones and in MSMT17 persons count from 0, and MSMT17's test persons are
others than its training persons of the same number.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from fedreid.datasets.layouts.base import Layout, Options
from fedreid.datasets.layouts.market_style import msmt17_person
from fedreid.datasets.layouts.walking import Walk, folder_in
from fedreid.datasets.records import ImageRecord, Split

_SMALL_NAME = re.compile(r"cam_(\d{1,9})_.+", re.ASCII)
_LARGE_NAME = re.compile(r"(?:-1|\d{1,9})_c(\d{1,9})(?!\d).*", re.IGNORECASE | re.ASCII)
_PERSON = re.compile(r"(-1|\d{1,9})(?:-.*)?", re.ASCII)


def set_name(root: Path) -> str:
    """NAME in lower case, whether ``root`` is NAME or its ``pytorch`` folder."""
    home = root.absolute()
    return (home.parent if home.name == "pytorch" else home).name.lower()


def _home(root: Path) -> Path:
    return folder_in(root, "pytorch") or root


def _read(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    home = _home(root)
    training = ["train_all"] if (home / "train_all").is_dir() else ["train", "val"]
    parts: list[tuple[str, Split]] = [(name, "train") for name in training]
    parts += [("query", "query"), ("gallery", "gallery")]
    msmt17 = set_name(root).startswith("msmt17")
    return [
        record
        for folder, split in parts
        if (home / folder).is_dir()
        for record in _people(home / folder, split, walk, msmt17=msmt17)
    ]


def _people(folder: Path, split: Split, walk: Walk, *, msmt17: bool) -> Iterator[ImageRecord]:
    walk.ignore(*walk.images(folder))
    for person in walk.below(folder):
        named = _PERSON.fullmatch(person.name)
        for path in walk.images(person):
            record = _record(path, int(named[1]), split, msmt17=msmt17) if named else None
            if record is None:
                walk.ignore(path)
            else:
                yield record


def _record(path: Path, number: int, split: Split, *, msmt17: bool) -> ImageRecord | None:
    small = _SMALL_NAME.fullmatch(path.name)
    camera = small or _LARGE_NAME.fullmatch(path.name)
    pid = number
    if msmt17 and number >= 0:
        pid = msmt17_person(number, split)
    elif small:
        pid = number + 1
    if camera is None or (split != "gallery" and pid <= 0):
        return None
    return ImageRecord(path=path, pid=pid, camid=int(camera[1]), split=split)


PREPROCESSED = Layout(
    name="fedreid-preprocessed",
    expected="pytorch/train_all (or train and val), pytorch/query and pytorch/gallery with a "
    "folder per person and files such as 0002_c1s1_000451_03.jpg or cam_0_00017_00000.bmp",
    recognises=lambda root: (
        folder_in(root, "pytorch/train_all", "pytorch/train", "pytorch/query") is not None
        or folder_in(root, "train_all") is not None
        or (root.name == "pytorch" and folder_in(root, "train", "query") is not None)
    ),
    read=_read,
    withdrawn=lambda root: set_name(root).startswith("duke"),
)
