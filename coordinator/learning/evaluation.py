"""How good is a model on the coordinator's own labelled images? (reid-spec §8)"""

from pathlib import Path

import torch

from coordinator.learning.jobs import EvaluateJob, EvaluateReport
from fedreid.datasets.layouts import load
from fedreid.errors import DatasetError
from fedreid.jobs import Progress, ProgressSink
from fedreid.reid.backbone import load_backbone
from fedreid.reid.measuring import Labelled, QueryGallery, measure
from fedreid.wire.tensors import load_tensors


def evaluate(job: EvaluateJob, progress: ProgressSink) -> EvaluateReport:
    """Measure a model on a folder in the layout ``market1501``, single query, no re-ranking.

    Raises:
        DatasetError: no such folder, no query or gallery, or no query with a match in another
            camera.
        UsageError: the model does not fit the plan's backbone.
        JobFailed: the model's features are not finite.
    """
    dataset = load(Path(job.folder), "market1501")
    if not dataset.query or not dataset.gallery:
        raise _unusable(job.folder, "query or bounding_box_test is missing or empty")
    size = {"height_px": job.backbone.height_px, "width_px": job.backbone.width_px}
    result = measure(
        load_backbone(job.backbone, load_tensors(Path(job.model))),
        QueryGallery(
            query=Labelled.of(dataset.query, **size), gallery=Labelled.of(dataset.gallery, **size)
        ),
        "global",
        device=torch.device("cpu"),
        tell=lambda done, total: progress(Progress(phase="evaluating", done=done, total=total)),
    )
    if result is None:
        raise _unusable(job.folder, "no query shows a person whom another camera saw as well")
    return EvaluateReport(result=result)


def _unusable(folder: str, why: str) -> DatasetError:
    return DatasetError(
        f"Nothing can be measured on the test set {folder}",
        why=why,
        next_step="Complete it, or leave evaluation.folder empty in the plan.",
    )
