"""What is found without learning? Colours alone, the baseline that a trained model must beat."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmark.results import Accuracy
from fedreid.datasets.images import decode
from fedreid.datasets.layouts import load
from fedreid.datasets.records import ImageRecord
from fedreid.datasets.synthetic import colour_histogram
from fedreid.reid.retrieval import evaluate

_WIDTH_PX, _HEIGHT_PX = 64, 128


def colour_accuracy(dataset: Path) -> Accuracy:
    """Retrieval by colour histograms of stripes on a silo's own query and gallery."""
    data = load(dataset)
    query, gallery = data.query, data.gallery
    metrics = evaluate(
        colour_histogram(_pixels(query)),
        colour_histogram(_pixels(gallery)),
        np.array([record.pid for record in query]),
        np.array([record.pid for record in gallery]),
        np.array([record.camid for record in query]),
        np.array([record.camid for record in gallery]),
    )
    return Accuracy(
        rank1=metrics.rank(1),
        rank5=metrics.rank(5),
        map=metrics.map,
        minp=metrics.minp,
        queries=metrics.num_valid,
    )


def _pixels(records: Sequence[ImageRecord]) -> npt.NDArray[np.uint8]:
    size = (_WIDTH_PX, _HEIGHT_PX)
    images = (decode(record.path).resize(size, Image.Resampling.BILINEAR) for record in records)
    return np.stack([np.asarray(image, dtype=np.uint8) for image in images])
