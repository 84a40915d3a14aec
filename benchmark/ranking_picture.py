"""What does a model find for a few queries? Their best gallery images, for the report's picture."""

from pathlib import Path

import torch

from fedreid.datasets.layouts import load
from fedreid.pictures.ranked import RankedQuery
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import load_backbone
from fedreid.reid.features import extract_features
from fedreid.reid.measuring import Labelled
from fedreid.reid.retrieval import ranking
from fedreid.wire.tensors import load_tensors

_THREADS = 2


def ranked_queries(
    model: Path, plan: BackbonePlan, dataset: Path, *, count: int
) -> list[RankedQuery]:
    """The top of the ranking for ``count`` queries spread evenly over a silo's query set."""
    torch.set_num_threads(_THREADS)
    data = load(dataset)
    backbone = load_backbone(plan, load_tensors(model))
    query, gallery = (
        Labelled.of(records, height_px=plan.height_px, width_px=plan.width_px)
        for records in (data.query, data.gallery)
    )
    step = max(1, len(data.query) // count)
    ranked = ranking(
        extract_features(backbone, query.images),
        extract_features(backbone, gallery.images),
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        queries=range(0, step * count, step)[: len(data.query)],
    )
    return [
        RankedQuery(
            query=data.query[row.query].path,
            gallery=tuple(data.gallery[index].path for index in row.gallery),
            correct=tuple(bool(flag) for flag in row.correct),
        )
        for row in ranked
    ]
