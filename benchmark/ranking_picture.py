"""What does a model find for a few queries? Their best gallery images, for the report's picture."""

from pathlib import Path

import torch

from fedreid.datasets.layouts import load
from fedreid.pictures.ranked import RankedQuery
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import load_backbone
from fedreid.reid.measuring import QueryGallery, extract
from fedreid.reid.showing import answerable_queries, evenly_spread, ranked_rows
from fedreid.wire.tensors import load_tensors

_THREADS = 2


def ranked_queries(
    model: Path, plan: BackbonePlan, dataset: Path, *, count: int
) -> tuple[RankedQuery, ...]:
    """The top of the ranking for ``count`` queries spread evenly over a silo's query set."""
    torch.set_num_threads(_THREADS)
    data = load(dataset)
    backbone = load_backbone(plan, load_tensors(model))
    test = QueryGallery.of(data, height_px=plan.height_px, width_px=plan.width_px)
    features = extract(backbone, test, device=torch.device("cpu"), tell=lambda done, total: None)
    queries = evenly_spread(answerable_queries(test), count)
    return ranked_rows(features, test, data, queries=queries)
