"""How are 3DPeS and QMUL i-LIDS read, whose queries have to be drawn too?

::

    3dpes    3DPeS/RGB/100_10_FRAME_32_RGB.bmp    person, then view
    ilids    Persons/0001001.jpg                  person in 4 digits, image in 3

Of 3DPeS's 193 persons 93 train; of the others half of their views, rounded down and drawn, are
asked for and the other views are searched. Of i-LIDS's 119 persons 59 train. Its files do not
tell their cameras: half of a person's images, rounded down and drawn, stand for camera 1 and the
rest for camera 2, as TOMM'23 has it; of the persons that do not train the first half is asked for.
"""

import re
from collections import defaultdict
from pathlib import Path

from fedreid.datasets.layouts.base import Layout, Options
from fedreid.datasets.layouts.splitting import drawn, shuffled
from fedreid.datasets.layouts.walking import Walk, folder_in, some_images
from fedreid.datasets.records import ImageRecord, Split

_3DPES_NAME = re.compile(r"(\d{1,6})_(\d{1,6})_.*\.(?:bmp|png|jpg)", re.IGNORECASE | re.ASCII)
_ILIDS_NAME = re.compile(r"(\d{4})\d{3}\.jpe?g", re.IGNORECASE | re.ASCII)
_3DPES_TRAINED = 93.5 / 193
"""Share of the persons that trains: 93 of 193, with a half so that rounding down gives 93."""


def _3dpes_home(root: Path) -> Path:
    return folder_in(root, "3DPeS/RGB", "RGB") or root


def _ilids_home(root: Path) -> Path:
    return folder_in(root, "i-LIDS_Pedestrian/Persons", "Persons") or root


def _read_3dpes(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    found: list[tuple[Path, int, int]] = []
    views: dict[int, set[int]] = defaultdict(set)
    for path in walk.images(_3dpes_home(root)):
        named = _3DPES_NAME.fullmatch(path.name)
        if named is None:
            walk.ignore(path)
            continue
        pid, view = int(named[1]) + 1, int(named[2]) + 1  # both may count from 0
        found.append((path, pid, view))
        views[pid].add(view)
    trained = drawn(views, split=options.split, of="3dpes", share=_3DPES_TRAINED)
    asked = {
        pid: set(shuffled(seen, split=options.split, of=f"3dpes {pid}")[: len(seen) // 2])
        for pid, seen in views.items()
    }
    return [
        ImageRecord(path=path, pid=pid, camid=view, split=_use(pid in trained, view in asked[pid]))
        for path, pid, view in found
    ]


def _read_ilids(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    images: dict[int, dict[str, Path]] = defaultdict(dict)
    for path in walk.images(_ilids_home(root)):
        named = _ILIDS_NAME.fullmatch(path.name)
        if named is None:
            walk.ignore(path)
        else:
            images[int(named[1])][path.name] = path
    trained = drawn(images, split=options.split, of="ilids")
    records = []
    for pid, by_name in images.items():
        order = shuffled(by_name, split=options.split, of="ilids")
        first = set(order[: len(order) // 2])
        for name, path in by_name.items():
            records.append(
                ImageRecord(
                    path=path,
                    pid=pid,
                    camid=1 if name in first else 2,
                    split=_use(pid in trained, name in first),
                )
            )
    return records


def _use(trained: bool, asked: bool) -> Split:
    if trained:
        return "train"
    return "query" if asked else "gallery"


THREEDPES = Layout(
    name="3dpes",
    expected="3DPeS/RGB with files such as 100_10_FRAME_32_RGB.bmp",
    recognises=lambda root: (
        folder_in(root, "3DPeS/RGB", "RGB") is not None
        and any(map(_3DPES_NAME.fullmatch, some_images(_3dpes_home(root))))
    ),
    read=_read_3dpes,
)
ILIDS = Layout(
    name="ilids",
    expected="Persons with files such as 0001001.jpg",
    recognises=lambda root: any(map(_ILIDS_NAME.fullmatch, some_images(_ilids_home(root)))),
    read=_read_ilids,
)
