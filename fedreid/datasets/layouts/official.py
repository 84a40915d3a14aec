"""Is this the complete set that its publishers give out? Table 1 of TOMM'23, and what is missing.

The figures are training identities and images, queries, and gallery images. Of 3DPeS and i-LIDS
the split decides how the images fall, so only their sum is compared; so it is of a set whose
split is drawn here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedreid.datasets.layouts.base import Dataset
from fedreid.datasets.layouts.preprocessed import set_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Sizes of a complete set."""

    title: str
    identities: int
    train: int
    query: int
    gallery: int
    sum_only: bool = False
    """Whether images are compared in all, for each draw distributes them otherwise."""


def _counts(
    title: str, identities: int, train: int, query: int, gallery: int, *, sum_only: bool = False
) -> Counts:
    return Counts(
        title=title,
        identities=identities,
        train=train,
        query=query,
        gallery=gallery,
        sum_only=sum_only,
    )


OFFICIAL: dict[str, Counts] = {
    "msmt17": _counts("MSMT17", 1041, 32_621, 11_659, 82_161),
    "dukemtmc-reid": _counts("DukeMTMC-reID", 702, 16_522, 2_228, 17_661),
    "market1501": _counts("Market-1501", 751, 12_936, 3_368, 19_732),
    "cuhk03-np": _counts("CUHK03-NP detected", 767, 7_365, 1_400, 5_332),
    "cuhk03-np-labeled": _counts("CUHK03-NP labeled", 767, 7_368, 1_400, 5_328),
    "prid2011": _counts("PRID 2011", 285, 3_744, 100, 649),
    "cuhk01": _counts("CUHK01", 485, 1_940, 972, 972),
    "viper": _counts("VIPeR", 316, 632, 316, 316),
    "3dpes": _counts("3DPeS", 93, 450, 246, 316, sum_only=True),
    "ilids": _counts("QMUL i-LIDS", 59, 248, 98, 130, sum_only=True),
}
"""By layout; of CUHK03-NP's labeled boxes the figures are its publishers' own."""

_PREPROCESSED = {
    "market": "market1501",
    "duke": "dukemtmc-reid",
    "msmt17": "msmt17",
    "cuhk03": "cuhk03-np",
    "prid": "prid2011",
    "cuhk01": "cuhk01",
    "viper": "viper",
    "3dpes": "3dpes",
    "ilids": "ilids",
}
"""How the names of the authors' folders begin."""

_BORROWED = frozenset({"market1501", "msmt17", "cuhk03-np"})
"""Sets in whose naming other images come as well, our generated silos among them."""


def incompleteness(dataset: Dataset) -> str:
    """A sentence with both figures of each count that differs; empty if none does."""
    name = _official_name(dataset)
    if name is None:
        return ""
    official = OFFICIAL[name]
    differing = [
        f"{what} {found:,} (official {expected:,})"
        for what, found, expected in _compared(dataset, official)
        if found != expected
    ]
    if not differing:
        return ""
    own = "; fine for images of your own that borrow its names" if name in _BORROWED else ""
    return f"This is not the complete {official.title}: {', '.join(differing)}{own}."


def _official_name(dataset: Dataset) -> str | None:
    if dataset.layout == "fedreid-preprocessed":
        called = set_name(dataset.root)
        return next((n for start, n in _PREPROCESSED.items() if called.startswith(start)), None)
    if dataset.layout == "cuhk03-np" and _of_labeled(dataset):
        return "cuhk03-np-labeled"
    return dataset.layout if dataset.layout in OFFICIAL else None


def _of_labeled(dataset: Dataset) -> bool:
    return any(folder.absolute().parent.name == "labeled" for folder in dataset.folders)


def _compared(dataset: Dataset, official: Counts) -> Iterator[tuple[str, int, int]]:
    yield "training identities", len({r.pid for r in dataset.train}), official.identities
    found = len(dataset.train), len(dataset.query), len(dataset.gallery)
    expected = official.train, official.query, official.gallery
    if official.sum_only:
        yield "images in all", sum(found), sum(expected)
        return
    yield from zip(("training images", "queries", "gallery images"), found, expected, strict=True)
