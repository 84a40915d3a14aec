"""Which images does the training process hold from job to job?

Decoding costs more than many an epoch, so the dataset of the last job is kept, and read anew
once a folder of it has changed or gone.

Letters: N images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedreid.datasets.layouts import Dataset, load
from fedreid.errors import DatasetError
from fedreid.plan import BackbonePlan
from fedreid.reid.measuring import QueryGallery
from fedreid.reid.transforms import ImageStore
from silo_agent.learning.jobs import Silo
from silo_agent.learning.training import TrainingImages

_Times = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiloData:
    """The images of one silo in one size."""

    identities: tuple[int, ...]
    """Sorted; the place of an identity is its row in the classifier."""
    train: TrainingImages
    test: QueryGallery


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    key: tuple[str, str, int, int]
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
        key = (silo.dataset, silo.layout, backbone.height_px, backbone.width_px)
        held = self._held
        if held is None or held.key != key or _times(held.folders) != held.times:
            self._held = None  # frees the old images before the new ones come
            dataset = load(Path(silo.dataset), silo.layout)
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
    size = {"height_px": backbone.height_px, "width_px": backbone.width_px}
    identities = tuple(sorted({record.pid for record in dataset.train}))
    row_of = {pid: row for row, pid in enumerate(identities)}
    if len(dataset.train) < 2:
        raise DatasetError(
            f"The dataset {dataset.root} can't be trained on",
            why=f"it has {len(dataset.train)} training images, and a batch takes at least two",
            next_step="Add labelled images; 'silo-agent data check' tells what is missing.",
        )
    return SiloData(
        identities=identities,
        train=TrainingImages(
            images=ImageStore([record.path for record in dataset.train], **size),
            labels=np.array([row_of[record.pid] for record in dataset.train], dtype=np.int64),
            camids=np.array([record.camid for record in dataset.train], dtype=np.int64),
        ),
        test=QueryGallery.of(dataset, **size),
    )
