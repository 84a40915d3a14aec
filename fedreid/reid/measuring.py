"""How good is a backbone on a query and gallery set? (reid-spec §8)

Letters: Q queries, G gallery images, D feature width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedreid.contract import EvaluationResult, ModelKind
from fedreid.datasets.images import too_many_unreadable
from fedreid.datasets.layouts import Dataset
from fedreid.datasets.records import ImageRecord
from fedreid.reid.backbone import ReIDBackbone
from fedreid.reid.distances import IndexArray
from fedreid.reid.features import extract_features
from fedreid.reid.reranking import Reranking
from fedreid.reid.retrieval import RetrievalMetrics, evaluate
from fedreid.reid.transforms import ImageStore
from fedreid.wire.tensors import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Images with their persons and cameras, in one order."""

    images: ImageStore
    pids: IndexArray
    camids: IndexArray

    @classmethod
    def of(cls, records: Sequence[ImageRecord], *, height_px: int, width_px: int) -> "Labelled":
        """The records' images, not yet decoded."""
        paths = [record.path for record in records]
        return cls(
            images=ImageStore(paths, height_px=height_px, width_px=width_px),
            pids=np.array([record.pid for record in records], dtype=np.int64),
            camids=np.array([record.camid for record in records], dtype=np.int64),
        )

    @classmethod
    def readable(
        cls, records: Sequence[ImageRecord], *, height_px: int, width_px: int
    ) -> "Labelled":
        """As :meth:`of`, decoded now, without the few images that can't be.

        Raises:
            DatasetError: there are so many of them that a disk or a copy must have failed; it
                names the first.
        """
        labelled = cls.of(records, height_px=height_px, width_px=width_px)
        bad = frozenset(labelled.images.unreadable())
        if too_many_unreadable(len(bad), len(records)):
            labelled.images.batch(np.array([min(bad)]))
        if not bad:
            return labelled
        kept = [record for index, record in enumerate(records) if index not in bad]
        return cls.of(kept, height_px=height_px, width_px=width_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryGallery:
    """A test set."""

    query: Labelled
    gallery: Labelled

    @classmethod
    def of(cls, data: Dataset, *, height_px: int, width_px: int) -> "QueryGallery":
        """A dataset's query and gallery, not yet decoded."""
        size = {"height_px": height_px, "width_px": width_px}
        return cls(query=Labelled.of(data.query, **size), gallery=Labelled.of(data.gallery, **size))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryGalleryFeatures:
    """What a backbone gives for a test set: feats_QD and feats_GD."""

    query: FloatArray
    gallery: FloatArray

    def metrics(self, test: QueryGallery, *, rerank: Reranking | None = None) -> RetrievalMetrics:
        """How well the queries find their persons; see :func:`fedreid.reid.retrieval.evaluate`."""
        return evaluate(
            self.query,
            self.gallery,
            test.query.pids,
            test.gallery.pids,
            test.query.camids,
            test.gallery.camids,
            rerank=rerank,
        )


def extract(
    backbone: ReIDBackbone,
    test: QueryGallery,
    *,
    device: torch.device,
    tell: Callable[[int, int], None],
) -> QueryGalleryFeatures:
    """The test set's features; ``tell`` hears images done and in all.

    Leaves the backbone in eval mode.

    Raises:
        DatasetError, JobFailed: as :func:`fedreid.reid.features.extract_features`.
    """
    asked = len(test.query.images)
    total = asked + len(test.gallery.images)
    return QueryGalleryFeatures(
        query=extract_features(
            backbone, test.query.images, device=device, tell=lambda done: tell(done, total)
        ),
        gallery=extract_features(
            backbone,
            test.gallery.images,
            device=device,
            tell=lambda done: tell(asked + done, total),
        ),
    )


def measure(
    backbone: ReIDBackbone,
    test: QueryGallery,
    model: ModelKind,
    *,
    device: torch.device,
    tell: Callable[[int, int], None],
) -> EvaluationResult | None:
    """The model's figures, or None where no query has a match: then there is nothing to tell.

    ``tell`` hears images done and in all. Leaves the backbone in eval mode.
    """
    if not len(test.query.images) or not len(test.gallery.images):
        return None
    metrics = extract(backbone, test, device=device, tell=tell).metrics(test)
    if not metrics.num_valid:
        return None
    return EvaluationResult(
        model=model,
        rank1=metrics.rank(1),
        rank5=metrics.rank(5),
        rank10=metrics.rank(10),
        map=metrics.map,
        minp=metrics.minp,
        queries=metrics.num_valid,
    )
