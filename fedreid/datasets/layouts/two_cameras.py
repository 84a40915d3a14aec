"""How are VIPeR and PRID 2011 read, where one camera asks and the other is searched?

::

    viper       VIPeR/cam_a/000_45.bmp                    person, then the angle of view
    prid2011    single_shot/cam_a/person_0001.png         one image of a pass
                multi_shot/cam_a/person_0001/0001.png     all its frames; persons 1 to 200 are in
                                                          both cameras, the others in one

VIPeR: a drawn half of the persons trains (316 of 632). PRID 2011: of the persons whom both
cameras saw a drawn half (100) trains, and so do those whom only camera a saw (185); the other
half is asked for in camera a and searched in camera b among those whom only b saw (549). Where
``multi_shot`` is there, training takes up to ten frames a pass, evenly spread; where
``single_shot`` is there, query and gallery are its images, else the middle frame of a pass.
"""

import re
from collections import defaultdict
from pathlib import Path

from fedreid.datasets.layouts.base import Layout, Options
from fedreid.datasets.layouts.splitting import drawn
from fedreid.datasets.layouts.walking import Walk, folder_in, some_images
from fedreid.datasets.records import ImageRecord, Split, place_of

_CAMERAS = {1: "cam_a", 2: "cam_b"}
_VIPER_NAME = re.compile(r"(\d{1,6})_\d+\.(?:bmp|png|jpg)", re.IGNORECASE | re.ASCII)
_PRID_NAME = re.compile(r"person_(\d{1,6})(?:\.png)?", re.IGNORECASE | re.ASCII)
_PRID_SHARED = 200
"""Persons up to this number are the same in both cameras; from there on numbers mean nothing
across cameras."""
_PRID_ONLY_B = 100_000
"""Persons of camera b alone get numbers from here on: 201 of a is not 201 of b."""
_FRAMES = 10
"""Frames of a pass that train, as in TOMM'23's set of 3,744 images."""

_Passes = dict[tuple[int, int], list[Path]]
"""The images of a person in a camera, by (pid, camid)."""


def _viper_home(root: Path) -> Path:
    return folder_in(root, "VIPeR") or root


def _read_viper(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    found: list[tuple[Path, int, int]] = []
    for camid, camera in _CAMERAS.items():
        folder = folder_in(_viper_home(root), camera)
        for path in walk.images(folder) if folder else ():
            named = _VIPER_NAME.fullmatch(path.name)
            if named is None:
                walk.ignore(path)
            else:
                found.append((path, int(named[1]) + 1, camid))  # 000 is a person, no distractor
    trained = drawn((pid for _, pid, _ in found), split=options.split, of="viper")
    return [
        ImageRecord(
            path=path,
            pid=pid,
            camid=camid,
            split="train" if pid in trained else "query" if camid == 1 else "gallery",
        )
        for path, pid, camid in found
    ]


def _read_prid(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    single, multi = _passes(root / "single_shot", walk), _passes(root / "multi_shot", walk)
    training, testing = multi or single, single or multi
    pids = {pid for pid, _ in training} | {pid for pid, _ in testing}
    shared = {pid for pid in pids if pid <= _PRID_SHARED}
    trained = drawn(shared, split=options.split, of="prid2011") | {
        pid for pid in pids if _PRID_SHARED < pid < _PRID_ONLY_B
    }
    records = [
        ImageRecord(path=path, pid=pid, camid=camid, split="train")
        for (pid, camid), frames in training.items()
        if pid in trained
        for path in _spread(frames)
    ]
    for (pid, camid), frames in testing.items():
        if pid not in trained:
            split: Split = "query" if camid == 1 else "gallery"
            middle = frames[len(frames) // 2]
            records.append(ImageRecord(path=middle, pid=pid, camid=camid, split=split))
    return sorted(records, key=place_of)


def _passes(home: Path, walk: Walk) -> _Passes:
    """The images of each pass, by name: files of ``single_shot`` or folders of ``multi_shot``."""
    passes: _Passes = defaultdict(list)
    for camid, camera in _CAMERAS.items():
        folder = folder_in(home, camera)
        if folder is None:
            continue
        single = walk.images(folder)
        several = [path for person in walk.below(folder) for path in walk.images(person)]
        for path in [*single, *several]:
            named = _PRID_NAME.fullmatch(path.name if path.parent == folder else path.parent.name)
            if named is None:
                walk.ignore(path)
                continue
            number = int(named[1])
            only_b = camid == 2 and number > _PRID_SHARED
            passes[number + (_PRID_ONLY_B if only_b else 0), camid].append(path)
    return passes


def _spread(frames: list[Path]) -> list[Path]:
    """At most ten frames, evenly spread over the pass."""
    if len(frames) <= _FRAMES:
        return frames
    return [frames[index * len(frames) // _FRAMES] for index in range(_FRAMES)]


VIPER = Layout(
    name="viper",
    expected="VIPeR/cam_a and VIPeR/cam_b with files such as 000_45.bmp",
    recognises=lambda root: any(
        map(_VIPER_NAME.fullmatch, some_images(folder_in(_viper_home(root), "cam_a", "cam_b")))
    ),
    read=_read_viper,
)
PRID2011 = Layout(
    name="prid2011",
    expected="single_shot/cam_a with files such as person_0001.png, or multi_shot/cam_a with "
    "folders such as person_0001, and the same of cam_b",
    recognises=lambda root: any(
        folder_in(root, f"{shot}/{camera}") is not None
        for shot in ("single_shot", "multi_shot")
        for camera in _CAMERAS.values()
    ),
    read=_read_prid,
)
