"""What would an operator want to see of a dataset before joining? Some people, by camera.

Identities that several cameras saw come first, evenly spread over the set, some that train and
some that are asked for; then, where there are any, a row of distractors and one of junk.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedreid.datasets.layouts import Dataset
from fedreid.datasets.records import JUNK_PID, ImageRecord
from fedreid.errors import UsageError
from fedreid.pictures.contact_sheet import Heading, Row, Sheet, draw_sheet

TRAINING_ROWS = 7
TEST_ROWS = 3
CAMERAS = 8
"""More would make the images too small to tell people apart."""
COLUMNS = 12
"""Images side by side, shared out among the cameras."""
IMAGES_PER_CAMERA = 4

_LOOSE = {0: "distractors", JUNK_PID: "junk"}

_Thing = TypeVar("_Thing")
_Seen = dict[int, list[ImageRecord]]
"""Records by camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a written sheet shows."""

    path: Path
    identities: int
    cameras: int


def write_preview(dataset: Dataset, out: Path) -> Preview:
    """Write the contact sheet as a PNG.

    Raises:
        UsageError: ``out`` is no name of a PNG.
        StorageError: it can't be written.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out} is no name of a PNG file", next_step="Let it end in .png.")
    sheet = contact_sheet(dataset)
    people = sum(row.heading.title not in _LOOSE.values() for row in sheet.rows)
    return Preview(path=draw_sheet(sheet, out), identities=people, cameras=len(sheet.columns))


def contact_sheet(dataset: Dataset) -> Sheet:
    """Who stands where on the sheet."""
    tested = {r.path: r for r in (*dataset.query, *dataset.gallery)}.values()  # one may be both
    images_of = Counter(record.camid for record in (*dataset.train, *tested))
    cameras = sorted(camid for camid, _ in images_of.most_common(CAMERAS))
    room = max(1, min(IMAGES_PER_CAMERA, COLUMNS // len(cameras)))
    training = _people(dataset.train)
    testing = _people(tested)
    loose = {pid: testing.pop(pid) for pid in _LOOSE if pid in testing}
    shown = [(pid, training[pid], "in training") for pid in _spread(training, TRAINING_ROWS)]
    shown += [(pid, testing[pid], "in the test set") for pid in _spread(testing, TEST_ROWS)]
    rows = [
        _row(_identity(dataset, pid, number), seen, use, cameras, room)
        for number, (pid, seen, use) in enumerate(shown, start=1)
    ]
    rows += [
        _row((_LOOSE[pid], _LOOSE[pid]), seen, "only in the gallery", cameras, room)
        for pid, seen in loose.items()
    ]
    return Sheet(
        title=dataset.root.absolute().name,
        caption=_caption(dataset, len(training), len(images_of)),
        columns=tuple(_camera(dataset, camid, images_of[camid]) for camid in cameras),
        rows=tuple(rows),
        footer=_footer(len(shown), len(training.keys() | testing), room, len(images_of)),
    )


def _people(records: Iterable[ImageRecord]) -> dict[int, _Seen]:
    people: dict[int, _Seen] = defaultdict(lambda: defaultdict(list))
    for record in records:
        people[record.pid][record.camid].append(record)
    return people


def _spread(people: dict[int, _Seen], count: int) -> list[int]:
    """Some identities, evenly spread: of those that two cameras saw, where there are any."""
    several = sorted(pid for pid, seen in people.items() if len(seen) > 1)
    return _evenly(several or sorted(people), count)


def _evenly(things: Sequence[_Thing], count: int) -> list[_Thing]:
    if len(things) <= count:
        return list(things)
    return [things[index * len(things) // count] for index in range(count)]


def _row(titles: tuple[str, str], seen: _Seen, use: str, cameras: Sequence[int], room: int) -> Row:
    images = sum(len(records) for records in seen.values())
    heading = Heading(
        title=titles[0],
        note=f"{use}\n{_counted(images, 'image')}\n{_counted(len(seen), 'camera')}",
        other_title=titles[1],
    )
    chosen = (_evenly(seen.get(camid, []), room) for camid in cameras)
    return Row(heading=heading, cells=tuple(tuple(r.path for r in cell) for cell in chosen))


def _identity(dataset: Dataset, pid: int, number: int) -> tuple[str, str]:
    """Its title, and what stands in for letters that can't be drawn."""
    return dataset.identity_names.get(pid, f"identity {pid}"), f"row {number}"


def _camera(dataset: Dataset, camid: int, images: int) -> Heading:
    name = dataset.camera_names.get(camid, f"camera {camid}")
    return Heading(title=name, note=_counted(images, "image"), other_title="camera")


def _caption(dataset: Dataset, trained: int, cameras: int) -> tuple[str, str]:
    return (
        f"layout {dataset.layout}, {_counted(cameras, 'camera')}",
        f"{_counted(len(dataset.train), 'training image')} of {trained:,} identities,  "
        f"{_counted(len(dataset.query), 'query image')},  "
        f"{_counted(len(dataset.gallery), 'gallery image')}",
    )


def _footer(shown: int, people: int, room: int, cameras: int) -> str:
    sentence = f"{shown} of {people:,} identities are shown, up to {room} of their images a camera"
    if cameras > CAMERAS:
        sentence += f", and the {CAMERAS} cameras with most images of {cameras}"
    return sentence + "."


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
