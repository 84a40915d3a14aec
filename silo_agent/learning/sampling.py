"""In which batches does an epoch pass over the images?

Letters: N images, B batch size; P identities of K images each make a batch of B = P·K.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


def epoch_batches(
    num_images: int, batch_size: int, random: np.random.Generator
) -> list[IndexArray]:
    """All image indices once, shuffled, in batches of B; the last one may be shorter.

    A last batch of one image is merged into its neighbour: BatchNorm can't train on it.
    """
    assert num_images >= 2
    order_N = random.permutation(num_images)
    starts = list(range(batch_size, num_images, batch_size))
    if starts and num_images - starts[-1] == 1:
        starts.pop()
    return np.split(order_N, starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Few:
    """K images of one identity."""

    label: int
    indices_K: IndexArray
    place: float
    """Where in the epoch it is wanted, 0..1."""


def identity_batches(
    labels_N: IndexArray,
    batch_size: int,
    images_per_identity: int,
    random: np.random.Generator,
) -> list[IndexArray]:
    """Batches of P = B // K identities with K images each; about N images in all.

    An identity of n images gets n / K turns, rounded, and at least one; its turns lie apart over
    the epoch. One of fewer than K images repeats them. The identities of a batch differ as long
    as enough are left. A last batch of a single turn is merged into its neighbour: it would hold
    one identity, so nothing to tell it from.
    """
    waiting = sorted(_turns(labels_N, images_per_identity, random), key=lambda few: few.place)
    size = batch_size // images_per_identity
    batches: list[list[_Few]] = []
    while waiting:
        batch, waiting = _next_batch(waiting, size)
        batches.append(batch)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return [np.concatenate([few.indices_K for few in batch]) for batch in batches]


def _turns(labels_N: IndexArray, count: int, random: np.random.Generator) -> list[_Few]:
    turns = []
    for label in np.unique(labels_N):
        own = random.permutation(np.flatnonzero(labels_N == label))
        number = max(1, round(len(own) / count))
        start = random.random()
        for turn, indices_K in enumerate(np.resize(own, (number, count))):
            place = (turn + start) / number
            turns.append(_Few(label=int(label), indices_K=indices_K, place=place))
    return turns


def _next_batch(waiting: list[_Few], size: int) -> tuple[list[_Few], list[_Few]]:
    """The first turns of different identities, then whichever come first; and the rest."""
    batch: list[_Few] = []
    skipped: list[_Few] = []
    labels: set[int] = set()
    seen = 0
    for few in waiting:
        if len(batch) == size:
            break
        seen += 1
        if few.label in labels:
            skipped.append(few)
        else:
            batch.append(few)
            labels.add(few.label)
    missing = size - len(batch)
    return batch + skipped[:missing], skipped[missing:] + waiting[seen:]
