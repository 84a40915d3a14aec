"""Can this dataset be trained on and measured? Counts, unreadable files, refusals, warnings.

Refused is only what can't be trained on at all; what makes training or figures poor is warned of.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedreid.datasets.images import decode, too_many_unreadable
from fedreid.datasets.layouts import Dataset, LayoutName, incompleteness, load
from fedreid.datasets.records import SPLITS, ImageRecord, Split
from fedreid.errors import DatasetError

FEW_IMAGES = 64
"""Below two batches of training images the silo's weight in the mean says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCount:
    """Size of one split; junk and distractors count as images, not as identities."""

    images: int
    identities: int
    cameras: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An image file that can't be decoded."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCheck:
    """What was found; the dataset can be used if ``refusals`` is empty."""

    root: Path
    layout: LayoutName
    splits: dict[Split, SplitCount]
    width_px: tuple[int, int]
    """Smallest and largest; (0, 0) where no image is readable."""
    height_px: tuple[int, int]
    ignored: int
    unreadable: tuple[Unreadable, ...]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def check(
    path: Path,
    layout: str = "auto",
    *,
    split: int = 0,
    withdrawn_confirmed: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetCheck:
    """Load the dataset and decode each of its images once; ``tell`` hears done and total.

    Raises:
        UsageError, DatasetError: as :func:`fedreid.datasets.layouts.load`.
    """
    dataset = load(path, layout, split=split, withdrawn_confirmed=withdrawn_confirmed)
    sizes, unreadable = _decode_all(dataset, tell)
    widths, heights = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    refused, warned = list(refusals(dataset)), list(warnings(dataset))
    if unreadable:
        bad, total = len(unreadable), len(sizes) + len(unreadable)
        found = f"{bad} of {total} image files can't be read, the first is {unreadable[0].path}"
        if too_many_unreadable(bad, total):
            refused.append(f"{found}: so many are no accident.")
        else:
            warned.append(f"{found}; training leaves them out.")
    return DatasetCheck(
        root=path,
        layout=dataset.layout,
        splits={split: _count(_records(dataset, split)) for split in SPLITS},
        width_px=(min(widths), max(widths)),
        height_px=(min(heights), max(heights)),
        ignored=dataset.ignored,
        unreadable=unreadable,
        refusals=tuple(refused),
        warnings=tuple(warned),
    )


def refusals(dataset: Dataset) -> tuple[str, ...]:
    """Why the dataset can't be trained on, a sentence each; empty if it can.

    Only what training itself can't do: a silo of one camera, or without a test set, takes part
    and has no figures.
    """
    sentence = too_little([record.pid for record in dataset.train])
    return (sentence,) if sentence else ()


def too_little(pids: Sequence[int]) -> str:
    """Why training can't be done on images of these persons, as a sentence; empty if it can."""
    if not pids:
        return "There is no training image."
    if len(pids) < 2:
        return "There is one training image, and a batch takes at least two."
    if len(set(pids)) < 2:
        return "All training images show one identity: there is nobody to tell it from."
    return ""


def warnings(dataset: Dataset) -> tuple[str, ...]:
    """What a silo with this dataset should know before it trains, a sentence each."""
    return tuple(
        sentence
        for sentence in (
            incompleteness(dataset),
            *_left_out(dataset),
            *_weak_training(dataset),
            *_weak_measuring(dataset),
        )
        if sentence
    )


def _left_out(dataset: Dataset) -> Iterable[str]:
    if dataset.ignored:
        yield (
            f"{dataset.ignored} image files have a name or place of no meaning in this layout, "
            f"such as {dataset.first_ignored}."
        )


def _weak_training(dataset: Dataset) -> Iterable[str]:
    images_of = Counter(record.pid for record in dataset.train)
    if 0 < len(dataset.train) < FEW_IMAGES:
        yield f"There are only {len(dataset.train)} training images."
    if not images_of:
        return
    if max(images_of.values()) < 2:
        yield "No training identity has two images: what a person keeps can't be learned well."
    elif single := sum(count == 1 for count in images_of.values()):
        yield f"{single} of {len(images_of)} training identities have a single image."
    if len({record.camid for record in dataset.train}) == 1:
        yield "All training images are of one camera: what cameras change can't be learned here."
    elif max(images_of.values()) >= 2 and not _cross_camera(dataset.train):
        yield (
            "No training identity is seen by two cameras: matching across them can't be learned "
            "well."
        )


def _weak_measuring(dataset: Dataset) -> Iterable[str]:
    lost = len(dataset.query) - _answerable(dataset)
    if not dataset.query:
        yield "There is no query image: it can be trained on, but nothing can be measured here."
    elif not dataset.gallery:
        yield "There is no gallery image: it can be trained on, but nothing can be measured here."
    elif lost == len(dataset.query):
        yield (
            "No query has its person in another camera of the gallery: it can be trained on, but "
            "nothing can be measured here."
        )
    elif lost:
        yield f"{lost} of {len(dataset.query)} queries have no match in another camera."
    asked = {record.pid for record in dataset.query}
    if shared := len({record.pid for record in dataset.train} & asked):
        yield f"{shared} identities are both trained on and asked for: figures will flatter."


def _cross_camera(records: Sequence[ImageRecord]) -> bool:
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in records:
        cameras[record.pid].add(record.camid)
    return any(len(seen) > 1 for seen in cameras.values())


def _answerable(dataset: Dataset) -> int:
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in dataset.gallery:
        cameras[record.pid].add(record.camid)
    return sum(bool(cameras.get(query.pid, set()) - {query.camid}) for query in dataset.query)


def _records(dataset: Dataset, split: Split) -> tuple[ImageRecord, ...]:
    return {"train": dataset.train, "query": dataset.query, "gallery": dataset.gallery}[split]


def _count(records: Sequence[ImageRecord]) -> SplitCount:
    return SplitCount(
        images=len(records),
        identities=len({record.pid for record in records} - {-1, 0}),
        cameras=len({record.camid for record in records}),
    )


def _decode_all(
    dataset: Dataset, tell: Callable[[int, int], None]
) -> tuple[list[tuple[int, int]], tuple[Unreadable, ...]]:
    paths = sorted({r.path for split in SPLITS for r in _records(dataset, split)})
    sizes: list[tuple[int, int]] = []
    unreadable: list[Unreadable] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(_size_of, paths), start=1):
            if isinstance(result, Unreadable):
                unreadable.append(result)
            else:
                sizes.append(result)
            tell(done, len(paths))
    return sizes, tuple(unreadable)


def _size_of(path: Path) -> tuple[int, int] | Unreadable:
    try:
        return decode(path).size
    except DatasetError as error:
        return Unreadable(path=path, why=error.why)
