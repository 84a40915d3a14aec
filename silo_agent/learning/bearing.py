"""Which parts of a recipe can this silo's images and hardware bear? The rest is left out, and said.

Letters: N images.
"""

import msgspec
import numpy as np
import torch

from fedreid.plan import TrainingPlan
from silo_agent.learning.sampling import IndexArray

TWO_CAMERAS_SHARE = 0.5
"""Share of the identities that two cameras must have seen for the triplet loss: a positive from
the anchor's own camera is nearly the same picture, and teaches what ReID must not rely on."""


def bearable(
    plan: TrainingPlan, labels_N: IndexArray, camids_N: IndexArray, device: torch.device
) -> tuple[TrainingPlan, tuple[str, ...]]:
    """The plan as this silo can follow it, and a sentence for each thing left out."""
    notes = []
    if (plan.triplet_margin or plan.images_per_identity) and (
        why := why_no_triplets(labels_N, camids_N)
    ):
        plan = msgspec.structs.replace(plan, triplet_margin=0.0, images_per_identity=0)
        notes.append(f"trains with cross entropy alone, in plain batches: {why}")
    if plan.mixed_precision == "fp16" and device.type != "cuda":
        plan = msgspec.structs.replace(plan, mixed_precision="off")
        notes.append("trains in fp32: fp16 needs a GPU")
    return plan, tuple(notes)


def why_no_triplets(labels_N: IndexArray, camids_N: IndexArray) -> str:
    """Why batches of anchors, positives and negatives can't be had; empty if they can."""
    people, images = np.unique(labels_N, return_counts=True)
    if len(people) < 2:
        return "there is one identity, so no negative"
    if images.max() < 2:
        return "every identity has a single image, so no positive"
    pairs = np.unique(np.stack([labels_N, camids_N]), axis=1)
    _, cameras = np.unique(pairs[0], return_counts=True)
    seen_by_two = int((cameras >= 2).sum())
    if seen_by_two < TWO_CAMERAS_SHARE * len(people):
        return f"two cameras have seen {seen_by_two} of {len(people)} identities"
    return ""
