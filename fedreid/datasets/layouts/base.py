"""What is a dataset layout, and what does reading a folder in it give?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedreid.datasets.layouts.walking import Walk
from fedreid.datasets.records import ImageRecord

LayoutName = Literal[
    "market1501",
    "dukemtmc-reid",
    "msmt17",
    "cuhk03-np",
    "cuhk01",
    "cuhk02",
    "viper",
    "prid2011",
    "3dpes",
    "ilids",
    "fedreid-preprocessed",
    "folders",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a layout beside its folder."""

    split: int = 0
    """Which of the ten seeded splits of a small set."""
    exclude_p1: bool = True
    """Leave out the part of CUHK02 that is CUHK01."""
    withdrawn_confirmed: bool = False
    """The operator answers for using a dataset that its owners have withdrawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All records of a folder, in the order of their paths."""

    root: Path
    layout: LayoutName
    train: tuple[ImageRecord, ...]
    query: tuple[ImageRecord, ...]
    gallery: tuple[ImageRecord, ...]
    ignored: int
    """Image files whose name or place the layout does not know."""
    first_ignored: Path | None
    """One of them, to look at."""
    folders: tuple[Path, ...]
    """Every folder with images, and every list or manifest; their times of change tell whether
    the dataset has changed."""
    identity_names: Mapping[int, str] = field(default_factory=dict)
    """What a site calls an identity, where that is no number; a name never leaves the silo."""
    camera_names: Mapping[int, str] = field(default_factory=dict)
    """The same of cameras."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One layout: how to tell it, read it, and describe it."""

    name: LayoutName
    expected: str
    """Folders and file names, for the error of a folder that has none."""
    recognises: Callable[[Path], bool]
    """Whether a folder looks like it; quick, and of a readable folder only."""
    read: Callable[[Path, Walk, Options], list[ImageRecord]]
    """All records below a folder; what is left out is told to the walk.

    Raises:
        DatasetError: a folder, list or manifest can't be read.
    """
    withdrawn: Callable[[Path], bool] = lambda root: False
    """Whether its owners have withdrawn the set that the folder holds."""
