"""How good is a model on the coordinator's own labelled images? (reid-spec §8)

Letters: Q queries, G gallery images, D feature width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.learning.jobs import EvaluateJob, EvaluateReport
from coordinator.learning.models import network, read_tensors
from fedreid.datasets.layouts import Dataset, load
from fedreid.datasets.records import ImageRecord
from fedreid.errors import DatasetError
from fedreid.jobs import Progress, ProgressSink
from fedreid.plan import BackbonePlan
from fedreid.reid.features import extract_features
from fedreid.reid.retrieval import evaluate as measure
from fedreid.reid.transforms import ImageStore

IndexArray = npt.NDArray[np.int64]


def evaluate(job: EvaluateJob, progress: ProgressSink) -> EvaluateReport:
    """Measure a model on a folder in the layout ``market1501``, single query, no re-ranking.

    Raises:
        DatasetError: no such folder, no query or gallery, or no query with a match in another
            camera.
        UsageError: the model does not fit the plan's backbone.
        JobFailed: the model's features are not finite.
    """
    dataset = _test_set(job.folder)
    backbone = network(job.backbone, read_tensors(job.model))
    total = len(dataset.query) + len(dataset.gallery)

    def tell(done: int) -> None:
        progress(Progress(phase="evaluating", done=done, total=total))

    feats_QD = extract_features(backbone, _images(dataset.query, job.backbone), tell=tell)
    feats_GD = extract_features(
        backbone,
        _images(dataset.gallery, job.backbone),
        tell=lambda done: tell(len(dataset.query) + done),
    )
    metrics = measure(
        feats_QD,
        feats_GD,
        q_pids=_pids(dataset.query),
        g_pids=_pids(dataset.gallery),
        q_camids=_camids(dataset.query),
        g_camids=_camids(dataset.gallery),
    )
    if metrics.num_valid == 0:
        raise _unusable(job.folder, "no query shows a person whom another camera saw as well")
    return EvaluateReport(
        rank1=metrics.rank(1),
        rank5=metrics.rank(5),
        rank10=metrics.rank(10),
        map=metrics.map,
        minp=metrics.minp,
        queries=metrics.num_valid,
    )


def _test_set(folder: str) -> Dataset:
    dataset = load(Path(folder), "market1501")
    if not dataset.query or not dataset.gallery:
        raise _unusable(folder, "query or bounding_box_test is missing or empty")
    return dataset


def _unusable(folder: str, why: str) -> DatasetError:
    return DatasetError(
        f"Nothing can be measured on the test set {folder}",
        why=why,
        next_step="Complete it, or leave evaluation.folder empty in the plan.",
    )


def _images(records: Sequence[ImageRecord], backbone: BackbonePlan) -> ImageStore:
    return ImageStore(
        [record.path for record in records],
        height_px=backbone.height_px,
        width_px=backbone.width_px,
        cache_bytes=0,  # each image is used once
    )


def _pids(records: Sequence[ImageRecord]) -> IndexArray:
    return np.array([record.pid for record in records], dtype=np.int64)


def _camids(records: Sequence[ImageRecord]) -> IndexArray:
    return np.array([record.camid for record in records], dtype=np.int64)
