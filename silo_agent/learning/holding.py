"""Which images does the training process hold from job to job?

Decoding costs more than many an epoch, so the dataset of the last job is kept, and read anew
once a folder of it has changed or gone.

Letters: N images.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fedreid.datasets.checks import too_little
from fedreid.datasets.layouts import Dataset, load
from fedreid.errors import DatasetError
from fedreid.plan import BackbonePlan
from fedreid.reid.measuring import Labelled, QueryGallery
from silo_agent.learning.jobs import Silo
from silo_agent.learning.training import TrainingImages

_Times = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class SiloData:
    """The images of one silo in one size."""

    identities: tuple[int, ...]
    """Sorted; the place of an identity is its row in the classifier."""
    train: TrainingImages
    notes: tuple[str, ...]
    """What its operator should be told of it, as predicates: "trains without 2 images …"."""
    dataset: Dataset
    backbone: BackbonePlan

    @property
    def cameras(self) -> int:
        """How many cameras its training images are of."""
        return len({image.camid for image in self.dataset.train})

    @cached_property
    def test(self) -> QueryGallery:
        """The silo's query and gallery, without unreadable images; read when first asked for.

        Raises:
            DatasetError: too many of them can't be read.
        """
        size = _size(self.backbone)
        return QueryGallery(
            query=Labelled.readable(self.dataset.query, **size),
            gallery=Labelled.readable(self.dataset.gallery, **size),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    key: tuple[Silo, int, int]
    folders: tuple[Path, ...]
    times: _Times
    data: SiloData


class Holding:
    """The dataset of the last job."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    def get(self, silo: Silo, backbone: BackbonePlan) -> SiloData:
        """The silo's images at the backbone's size.

        Raises:
            DatasetError: the dataset is gone, unreadable, or has too few training images.
        """
        key = (silo, backbone.height_px, backbone.width_px)
        held = self._held
        if held is None or held.key != key or _times(held.folders) != held.times:
            self._held = None  # frees the old images before the new ones come
            dataset = load(
                Path(silo.dataset),
                silo.layout,
                split=silo.split,
                withdrawn_confirmed=silo.withdrawn_confirmed,
            )
            self._held = held = _Held(
                key=key,
                folders=dataset.folders,
                times=_times(dataset.folders),
                data=_silo_data(dataset, backbone),
            )
        return held.data


def _times(folders: tuple[Path, ...]) -> _Times:
    return tuple(_time(folder) for folder in folders)


def _time(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def _silo_data(dataset: Dataset, backbone: BackbonePlan) -> SiloData:
    """A damaged file is found here, before training: it costs the silo an image, not a round."""
    train = Labelled.readable(dataset.train, **_size(backbone))
    sentence = too_little(train.pids.tolist())
    if sentence:
        raise DatasetError(
            f"The dataset {dataset.root} can't be trained on",
            why=sentence,
            next_step="Add labelled images; 'silo-agent data check' tells what is missing.",
        )
    identities, rows_N = np.unique(train.pids, return_inverse=True)
    return SiloData(
        identities=tuple(identities.tolist()),
        train=TrainingImages(
            images=train.images, labels=rows_N.astype(np.int64), camids=train.camids
        ),
        notes=_notes(len(dataset.train) - len(train.images)),
        dataset=dataset,
        backbone=backbone,
    )


def _notes(left_out: int) -> tuple[str, ...]:
    if not left_out:
        return ()
    return (
        f"trains without {left_out} images that can't be read; 'silo-agent data check' names them",
    )


def _size(backbone: BackbonePlan) -> dict[str, int]:
    return {"height_px": backbone.height_px, "width_px": backbone.width_px}
