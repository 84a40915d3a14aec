"""What does a dataset consist of? Records: an image file, its person, its camera, its use."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import blake3

from fedreid.seeds import derive_seed

Split = Literal["train", "query", "gallery"]
SPLITS: tuple[Split, ...] = get_args(Split)

JUNK_PID = -1
"""A badly cut or unusable image: removed from every gallery, never trained on."""

_SPLIT_SEED = 0
"""Of :func:`split_identities`; a constant, so that a site's test set is the same in every run."""

_NUMBER = re.compile(r"-1|\d{1,9}", re.ASCII)
_NAMED_FROM = 1 << 32  # names get numbers from here on, where no written number reaches
_NAME_BYTES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image of one person."""

    path: Path
    pid: int
    """-1 is junk and, in a gallery in Market-1501's naming, 0 a distractor."""
    camid: int
    split: Split


def number_of(name: str) -> int:
    """The number of an identity or camera that a site calls ``name``.

    A written number is itself (leading zeros don't count); any other name gets a number from its
    own letters alone, so that it stays the same whoever joins or leaves the dataset. A letter
    with its accent is the same however the computer that named the folder composed it.
    """
    if _NUMBER.fullmatch(name):
        return int(name)
    letters = unicodedata.normalize("NFC", name)
    # Names of old disks may not be UTF-8; Python keeps such bytes as lone surrogates.
    digest = blake3.blake3(letters.encode("utf-8", "surrogateescape")).digest(length=_NAME_BYTES)
    return _NAMED_FROM + int.from_bytes(digest, "big")


class Numbering:
    """The numbers of a site's names, each made once, and the names of those numbers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.names: dict[int, str] = {}
        """Of the names that are no numbers themselves."""

    def of(self, name: str) -> int:
        """As :func:`number_of`."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = number_of(name)
            if number >= _NAMED_FROM:
                self.names[number] = name
        return number


def place_of(record: ImageRecord) -> tuple[str, ...]:
    """Sorts records as their paths do, at a third of the cost."""
    return record.path.parts


def split_identities(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Give records without a split one: a fixed random half of the identities trains.

    The other half is the test set: all its images are gallery, and each identity's first image
    of every camera is a query too. (A query never finds itself: images of its own person and
    camera are removed before ranking.) Junk is gallery.
    """
    ordered = sorted(records, key=place_of)
    people = {record.pid for record in ordered} - {JUNK_PID}
    drawn = sorted(people, key=lambda pid: derive_seed(_SPLIT_SEED, "identity", pid))
    trained = frozenset(drawn[: (len(drawn) + 1) // 2])
    placed: list[ImageRecord] = []
    asked: set[tuple[int, int]] = set()
    for record in ordered:
        if record.pid in trained:
            placed.append(record if record.split == "train" else replace(record, split="train"))
            continue
        placed.append(replace(record, split="gallery"))
        if record.pid != JUNK_PID and (record.pid, record.camid) not in asked:
            asked.add((record.pid, record.camid))
            placed.append(replace(record, split="query"))
    return placed
