"""How quickly is a large folder of images indexed?

Empty files with the grammar of a layout are made in a temporary folder and loaded several times.
The operating system has just written the folders, so it holds them in memory: what is measured is
the program's own pace, not a disk's.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedreid.datasets.layouts import load

IMAGES_PER_PERSON = 20
CAMERAS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexingResult:
    """Times of one layout."""

    layout: str
    files: int
    median_s: float
    slowest_s: float
    files_per_s: float
    """At the median."""


def measure_indexing(files: int, *, repeats: int) -> list[IndexingResult]:
    """Index folders of so many images in the layouts ``market1501`` and ``folders``.

    Raises:
        StorageError: the temporary folder can't be written.
    """
    return [
        _measured(layout, names, files, repeats)
        for layout, names in (("market1501", _market_names), ("folders", _folder_names))
    ]


def _measured(
    layout: str, names: Callable[[int], Iterator[str]], files: int, repeats: int
) -> IndexingResult:
    with tempfile.TemporaryDirectory(prefix="fedreid-indexing-") as temporary:
        root = Path(temporary)
        _make(root, names(files))
        times_s = [_time_of_one(root, layout, files) for _ in range(repeats)]
    median_s = statistics.median(times_s)
    return IndexingResult(
        layout=layout,
        files=files,
        median_s=median_s,
        slowest_s=max(times_s),
        files_per_s=files / median_s,
    )


def _make(root: Path, names: Iterator[str]) -> None:
    made: set[Path] = set()
    for name in names:
        path = root / name
        if path.parent not in made:
            path.parent.mkdir(parents=True)
            made.add(path.parent)
        path.touch()


def _time_of_one(root: Path, layout: str, files: int) -> float:
    began_s = time.perf_counter()
    dataset = load(root, layout)
    took_s = time.perf_counter() - began_s
    found = {r.path for part in (dataset.train, dataset.query, dataset.gallery) for r in part}
    assert len(found) == files
    return took_s


def _market_names(files: int) -> Iterator[str]:
    """Half of the persons train, the others are searched."""
    for number in range(files):
        person, image = divmod(number, IMAGES_PER_PERSON)
        folder = ("bounding_box_train", "bounding_box_test")[person % 2]
        yield f"{folder}/{person + 1:04d}_c{image % CAMERAS + 1}s1_{number:06d}_01.jpg"


def _folder_names(files: int) -> Iterator[str]:
    """A site's own crops, a folder for each person and camera, without a split."""
    for number in range(files):
        person, image = divmod(number, IMAGES_PER_PERSON)
        yield f"person-{person:05d}/camera-{image % CAMERAS}/{number:06d}.jpg"
