"""Which silo has which images? The scenarios of MM'20 §3.2, all from one builder (reid-spec §10).

``by-dataset``
    Each dataset is a silo, as if several operators came together.
``by-camera``
    Each camera of one dataset is a silo: its training images are that camera's, its test set is
    the dataset's. A person whom several cameras see has an identity at each.
``by-identity``
    The identities of one dataset are dealt out evenly and disjointly; the test set is the
    dataset's.

A silo that is a part of a dataset is a manifest of its own that names the dataset's files; no
image is copied. ``union`` is the upper bound: all training images, identities of different
datasets kept apart, in one classifier.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.cells import ScenarioKind, SiloUse
from benchmark.local import SiloFolder
from fedreid.datasets.layouts import Dataset, load
from fedreid.datasets.manifest import MANIFEST_NAME
from fedreid.datasets.records import ImageRecord
from fedreid.errors import UsageError
from fedreid.files import make_folder, write_bytes
from fedreid.seeds import derive_seed

UNION = "union"
_COLUMNS = ("path", "identity", "camera", "split")
GENERATED_MARK = "synthetic.json"
"""File that lies beside generated silos once all are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset on disk."""

    name: str
    path: Path
    layout: str = "auto"
    split: int = 0
    withdrawn_confirmed: bool = False

    def load(self) -> Dataset:
        """Its records; see :func:`fedreid.datasets.layouts.load` for errors."""
        return load(
            self.path,
            self.layout,
            split=self.split,
            withdrawn_confirmed=self.withdrawn_confirmed,
        )

    @property
    def generated(self) -> bool:
        """Whether its people were rendered here."""
        return (self.path.parent / GENERATED_MARK).exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Who has what."""

    silos: dict[str, SiloFolder]
    uses: dict[str, SiloUse]


def build(
    kind: ScenarioKind, sources: Mapping[str, Source], out: Path, *, parts: int, seed: int
) -> Scenario:
    """The silos of a scenario; manifests of parts of a dataset are written below ``out``.

    Args:
        kind: how the images are divided.
        sources: the datasets by name; one where a single dataset is divided.
        out: a folder for the manifests.
        parts: silos of ``by-identity``.
        seed: of the division ``by-identity``.

    Raises:
        UsageError: a scenario that divides one dataset has several, or too few to divide.
        DatasetError: a dataset can't be read.
    """
    if kind == "by-dataset":
        return _by_dataset(sources)
    if len(sources) != 1:
        raise UsageError(
            f"The scenario {kind} divides one dataset, and has {len(sources)}",
            next_step="Name it in the scenario: datasets = ['market1501'].",
        )
    (source,) = sources.values()
    dataset = source.load()
    groups = _cameras(dataset) if kind == "by-camera" else _people(dataset, parts, seed)
    scenario = Scenario(silos={}, uses={})
    for name, train in groups.items():
        folder = write_silo(out / name, train, dataset.query, dataset.gallery)
        scenario.silos[name] = SiloFolder(path=folder, layout="folders", test=source.name)
        scenario.uses[name] = _use(source, train, dataset)
    return scenario


def union(sources: Mapping[str, Source], out: Path) -> SiloFolder:
    """One silo with the training images of all; it has no test set of its own."""
    rows: list[tuple[str, str, str, str]] = []
    for source in sources.values():
        for record in source.load().train:
            person, camera = f"{source.name}/{record.pid}", f"{source.name}/{record.camid}"
            rows.append((str(record.path.resolve()), person, camera, "train"))
    return SiloFolder(path=_write_manifest(out, rows), layout="folders")


def write_silo(
    out: Path,
    train: Iterable[ImageRecord],
    query: Iterable[ImageRecord],
    gallery: Iterable[ImageRecord],
) -> Path:
    """Write a silo that consists of these images, as a manifest."""
    rows = [
        (str(record.path.resolve()), str(record.pid), str(record.camid), split)
        for split, records in (("train", train), ("query", query), ("gallery", gallery))
        for record in records
    ]
    return _write_manifest(out, rows)


def _write_manifest(out: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    write_bytes(make_folder(out) / MANIFEST_NAME, text.getvalue().encode())
    return out


def _by_dataset(sources: Mapping[str, Source]) -> Scenario:
    scenario = Scenario(silos={}, uses={})
    for name, source in sources.items():
        dataset = source.load()
        scenario.silos[name] = SiloFolder(
            path=source.path,
            layout=source.layout,
            split=source.split,
            withdrawn_confirmed=source.withdrawn_confirmed,
            test=name,
        )
        scenario.uses[name] = _use(source, dataset.train, dataset)
    return scenario


def _cameras(dataset: Dataset) -> dict[str, list[ImageRecord]]:
    cameras = sorted({record.camid for record in dataset.train})
    width = len(str(len(cameras)))
    return {
        f"camera-{place:0{width}}": [r for r in dataset.train if r.camid == camera]
        for place, camera in enumerate(cameras, start=1)
    }


def _people(dataset: Dataset, parts: int, seed: int) -> dict[str, list[ImageRecord]]:
    people = np.array(sorted({record.pid for record in dataset.train}))
    if not 2 <= parts <= len(people) // 2:
        raise UsageError(
            f"{len(people)} identities can't be dealt out to {parts} silos",
            next_step="Choose at least two silos, and two identities for each.",
        )
    shuffled = np.random.default_rng(derive_seed(seed, "by-identity")).permutation(people)
    width = len(str(parts))
    groups = {}
    for place, share in enumerate(np.array_split(shuffled, parts), start=1):
        own = frozenset(share.tolist())
        groups[f"group-{place:0{width}}"] = [r for r in dataset.train if r.pid in own]
    return groups


def _use(source: Source, train: Iterable[ImageRecord], dataset: Dataset) -> SiloUse:
    records = list(train)
    return SiloUse(
        dataset=source.name,
        generated=source.generated,
        train_images=len(records),
        train_identities=len({record.pid for record in records}),
        queries=len(dataset.query),
        gallery=len(dataset.gallery),
    )
