"""Which queries of a test set are shown to people, and what was found for them?

Letters: Q queries, G gallery images.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fedreid.datasets.layouts import Dataset
from fedreid.pictures.ranked import RankedQuery
from fedreid.reid.measuring import QueryGallery, QueryGalleryFeatures
from fedreid.reid.retrieval import ranking


def answerable_queries(test: QueryGallery) -> list[int]:
    """The queries, by index, whose person another camera of the gallery has seen."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for pid, camid in zip(test.gallery.pids.tolist(), test.gallery.camids.tolist(), strict=True):
        cameras[pid].add(camid)
    asked = zip(test.query.pids.tolist(), test.query.camids.tolist(), strict=True)
    return [query for query, (pid, camid) in enumerate(asked) if cameras[pid] - {camid}]


def evenly_spread(indices: Sequence[int], count: int) -> list[int]:
    """``count`` of the indices from the first to the last; all where there are fewer."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[place] for place in places]


def ranked_rows(
    features: QueryGalleryFeatures, test: QueryGallery, data: Dataset, *, queries: Sequence[int]
) -> tuple[RankedQuery, ...]:
    """The queries with their ten best gallery images and the cosine of each, for a picture.

    ``test`` and ``features`` are of ``data``, in its order.
    """
    ranked = ranking(
        features.query,
        features.gallery,
        test.query.pids,
        test.gallery.pids,
        test.query.camids,
        test.gallery.camids,
        queries=queries,
    )
    return tuple(
        RankedQuery(
            query=data.query[row.query].path,
            gallery=tuple(data.gallery[index].path for index in row.gallery),
            correct=tuple(bool(flag) for flag in row.correct),
            captions=tuple(f"{1 - distance:.2f}" for distance in row.distances),
        )
        for row in ranked
    )
