"""How are CUHK01 and CUHK02 read?

::

    cuhk01    campus/0001001.png            person in 4 digits, image in 3: 001 and 002 are
                                            camera 1, 003 and 004 camera 2
    cuhk02    Dataset/P1/cam1/001_1.png     P1 to P5 are pairs of cameras with persons of their
                                            own, in cam1 and cam2

CUHK01: a drawn half of the persons trains (485 of 971); of the others camera 1 is asked for and
camera 2 is searched. CUHK02 is a public set for distillation: all its images train, and P1, which
*is* CUHK01, is left out unless asked for.
"""

import re
from pathlib import Path

from fedreid.datasets.layouts.base import Layout, Options
from fedreid.datasets.layouts.splitting import drawn
from fedreid.datasets.layouts.walking import Walk, folder_in, some_images
from fedreid.datasets.records import ImageRecord, Split

_CUHK01_NAME = re.compile(r"(\d{4})00([1-4])\.png", re.IGNORECASE | re.ASCII)
_CUHK02_NAME = re.compile(r"(\d{1,6})_.*\.(?:png|jpg|jpeg)", re.IGNORECASE | re.ASCII)
_PAIRS = range(1, 6)
_PAIR_PERSONS = 1_000_000
"""Persons of pair p get numbers from p million on: each pair counts its own from 1."""


def _read_cuhk01(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    found: list[tuple[Path, int, int]] = []
    for path in walk.images(_campus(root)):
        named = _CUHK01_NAME.fullmatch(path.name)
        if named is None:
            walk.ignore(path)
        else:
            found.append((path, int(named[1]), 1 if int(named[2]) <= 2 else 2))
    trained = drawn((pid for _, pid, _ in found), split=options.split, of="cuhk01")
    records = []
    for path, pid, camid in found:
        split: Split = "train" if pid in trained else "query" if camid == 1 else "gallery"
        records.append(ImageRecord(path=path, pid=pid, camid=camid, split=split))
    return records


def _campus(root: Path) -> Path:
    return folder_in(root, "campus") or root


def _read_cuhk02(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    home = folder_in(root, "Dataset") or root
    records = []
    for pair in _PAIRS:
        if not (home / f"P{pair}").is_dir() or (pair == 1 and options.exclude_p1):
            continue
        walk.ignore(*walk.images(home / f"P{pair}"))
        for side in (1, 2):
            folder = folder_in(home, f"P{pair}/cam{side}")
            for path in walk.images(folder) if folder else ():
                named = _CUHK02_NAME.fullmatch(path.name)
                if named is None:
                    walk.ignore(path)
                    continue
                pid, camid = pair * _PAIR_PERSONS + int(named[1]), 2 * pair - 2 + side
                records.append(ImageRecord(path=path, pid=pid, camid=camid, split="train"))
    return records


def is_cuhk02(root: Path) -> bool:
    """Whether a folder looks like CUHK02."""
    home = folder_in(root, "Dataset") or root
    return any(folder_in(home, f"P{pair}/cam1") is not None for pair in _PAIRS)


CUHK01 = Layout(
    name="cuhk01",
    expected="campus with files such as 0001001.png",
    recognises=lambda root: any(map(_CUHK01_NAME.fullmatch, some_images(_campus(root)))),
    read=_read_cuhk01,
)
CUHK02 = Layout(
    name="cuhk02",
    expected="Dataset/P1 to Dataset/P5, each with cam1 and cam2 and files such as 001_1.png",
    recognises=is_cuhk02,
    read=_read_cuhk02,
)
