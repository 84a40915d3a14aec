"""How good is a model on the silo's own test set, or on another? (reid-spec §8)"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedreid.datasets.layouts import Dataset
from fedreid.errors import DatasetError, UsageError
from fedreid.limits import RERANK_IMAGES
from fedreid.pictures.ranked import RankedQuery, ranked_picture
from fedreid.reid.measuring import QueryGallery, extract
from fedreid.reid.reranking import Reranking
from fedreid.reid.retrieval import RetrievalMetrics
from fedreid.reid.showing import answerable_queries, evenly_spread, ranked_rows
from silo_agent.using.chosen import ChosenModel, best_device
from silo_agent.using.provenance import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A model's figures on one test set, and some of its rankings."""

    model: Provenance
    metrics: RetrievalMetrics
    reranked: bool
    """Whether the figures are those after re-ranking; not comparable with those before."""
    num_query: int
    num_gallery: int
    shown: tuple[RankedQuery, ...]
    """Queries spread evenly over those that have a match, with their best gallery images by
    plain cosine."""


def evaluate_model(
    chosen: ChosenModel,
    dataset: Dataset,
    *,
    queries_shown: int,
    rerank: bool,
    tell: Callable[[int, int], None],
) -> Measurement:
    """Measure the model on a dataset's query and gallery; ``tell`` hears images done and in all.

    Raises:
        UsageError: the layout or the model's weights don't fit, or the set is too large to be
            re-ranked.
        DatasetError: an image can't be read, or no query has a match in another camera.
        JobFailed: the model gives values that are not finite.
    """
    size = chosen.provenance.backbone
    test = QueryGallery.of(dataset, height_px=size.height_px, width_px=size.width_px)
    answerable = answerable_queries(test)
    if not answerable:
        raise DatasetError(
            f"No model can be measured on {dataset.root}",
            why="no query has its person in another camera of the gallery",
            next_step=f"See: silo-agent data check {dataset.root}.",
        )
    images = len(dataset.query) + len(dataset.gallery)
    if rerank and images > RERANK_IMAGES:
        raise UsageError(
            f"{dataset.root} is too large to be re-ranked",
            why=f"it has {images} query and gallery images, the limit is {RERANK_IMAGES}",
            next_step="Measure it without --rerank.",
        )
    device = best_device()
    features = extract(chosen.backbone().to(device), test, device=device, tell=tell)
    return Measurement(
        model=chosen.provenance,
        metrics=features.metrics(test, rerank=Reranking() if rerank else None),
        reranked=rerank,
        num_query=len(dataset.query),
        num_gallery=len(dataset.gallery),
        shown=ranked_rows(
            features, test, dataset, queries=evenly_spread(answerable, queries_shown)
        ),
    )


def draw(measured: Measurement, out: Path) -> Path:
    """Draw the queries that are shown with their ten best gallery images, right and wrong."""
    metrics = measured.metrics
    name = measured.model.named()
    title = (
        f"{name[0].upper()}{name[1:]} · rank-1 {metrics.rank(1):.1%} · mAP {metrics.map:.1%} "
        f"on {metrics.num_valid} queries"
        + (" re-ranked, shown as before it" if measured.reranked else "")
    )
    return ranked_picture(measured.shown, out, title=title)
