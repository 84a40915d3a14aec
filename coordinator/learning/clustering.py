"""Which silos are alike? Those whose models give public images the same features.

Client clustering of TOMM'23 §5.1: a batch of public images, drawn anew each round, goes through
every silo's backbone; silos are linked to the one whose features are nearest by cosine, and what
is linked is a cluster: the first partition of FINCH (Sarfraz et al., CVPR 2019), which needs
neither a number of clusters nor a threshold. Nobody is ever alone in a cluster.

Letters: K silos, N images, D feature width.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit

from coordinator.learning.jobs import ClusterJob, ClusterReport
from coordinator.learning.public_images import public_images
from fedreid.jobs import Progress, ProgressSink
from fedreid.reid.backbone import load_backbone, load_shared
from fedreid.reid.transforms import normalise
from fedreid.wire.tensors import FloatArray, load_tensors


def cluster(job: ClusterJob, progress: ProgressSink) -> ClusterReport:
    """The first partition of the round's silos.

    Raises:
        DatasetError: too few public images, or one that can't be read.
        UsageError: a model that does not fit the plan's backbone.
    """
    ordered_K = sorted(job.contributions, key=lambda contribution: contribution.silo)
    images = public_images(job.distillation, job.backbone)
    drawn = np.random.default_rng(job.seed).permutation(len(images))[: job.distillation.batch_size]
    images_NCHW = normalise(images.batch(np.sort(drawn)))
    fallback = load_tensors(Path(job.student))  # for BatchNorm that a silo keeps to itself
    backbone = load_backbone(job.backbone, fallback).eval()
    rows = []
    for done, contribution in enumerate(ordered_K, start=1):
        load_shared(backbone, {**fallback, **load_tensors(Path(contribution.path))})
        with torch.inference_mode():
            features_ND = F.normalize(backbone(images_NCHW))
        rows.append(features_ND.flatten().numpy())
        progress(Progress(phase="clustering", done=done, total=len(ordered_K)))
    groups = first_partition(np.stack(rows))
    return ClusterReport(
        clusters=tuple(tuple(ordered_K[silo].silo for silo in group) for group in groups)
    )


def first_partition(features_KD: FloatArray) -> list[list[int]]:
    """FINCH's first partition: rows joined to their nearest neighbour by cosine.

    Two rows that share a nearest neighbour are joined through it. Ties go to the lower row, so
    the partition does not depend on rounding of equals. Groups and their members ascend; a
    single row is a group of its own.
    """
    count = len(features_KD)
    if count == 1:
        return [[0]]
    unit_KD = features_KD.astype(np.float64)
    unit_KD /= np.maximum(np.linalg.norm(unit_KD, axis=1, keepdims=True), np.finfo(float).tiny)
    cosine_KK = unit_KD @ unit_KD.T
    np.fill_diagonal(cosine_KK, -np.inf)
    nearest_K = np.argmax(cosine_KK, axis=1)
    group_of = list(range(count))

    def root(row: int) -> int:
        while group_of[row] != row:
            row = group_of[row]
        return row

    for row, neighbour in enumerate(nearest_K):
        low, high = sorted((root(row), root(int(neighbour))))
        group_of[high] = low
    groups: dict[int, list[int]] = {}
    for row in range(count):
        groups.setdefault(root(row), []).append(row)
    return [groups[first] for first in sorted(groups)]
