"""Are silos joined to those that see alike, and to no others?"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from coordinator.learning.clustering import cluster, first_partition
from coordinator.learning.jobs import ClusterJob, Contribution
from fedreid.errors import DatasetError
from fedreid.plan import DistillationPlan
from tests.coordinator.learning.sites import TINY, contribution, public_folder


def slow_partition(features_KD: np.ndarray) -> list[tuple[int, ...]]:
    """FINCH's adjacency matrix, and its connected components by repeated multiplication."""
    count = len(features_KD)
    unit = features_KD / np.linalg.norm(features_KD, axis=1, keepdims=True)
    nearest = []
    for row in range(count):
        others = [
            (-float(unit[row] @ unit[other]), other) for other in range(count) if other != row
        ]
        nearest.append(min(others)[1])
    linked = np.eye(count, dtype=bool)
    for a in range(count):
        for b in range(count):
            linked[a, b] |= nearest[a] == b or nearest[b] == a or nearest[a] == nearest[b]
    for _ in range(count):
        linked = linked @ linked
    return sorted({tuple(np.flatnonzero(row).tolist()) for row in linked})


@settings(max_examples=60, deadline=None)
@given(seed=some.integers(0, 10**6), count=some.integers(2, 9), width=some.integers(1, 4))
def test_the_partition_is_that_of_the_adjacency_matrix(seed: int, count: int, width: int) -> None:
    # Whole numbers make ties, which go to the lower row in both.
    features = np.random.default_rng(seed).integers(-2, 3, (count, width)).astype(np.float32)
    features[~features.any(axis=1)] = 1.0
    groups = first_partition(features)
    assert sorted(row for group in groups for row in group) == list(range(count))
    assert all(len(group) >= 2 for group in groups)
    if width == 1 or seed % 2:
        features = np.random.default_rng(seed).normal(size=(count, width + 4)).astype(np.float32)
        assert [tuple(g) for g in first_partition(features)] == slow_partition(features)


def test_two_kinds_of_silos_are_two_clusters() -> None:
    east, west = np.array([1.0, 0.0, 0.1]), np.array([0.0, 1.0, 0.1])
    rows = [east, west, east * 3 + 0.01, west + 0.02, east + 0.02]
    assert first_partition(np.stack(rows).astype(np.float32)) == [[0, 2, 4], [1, 3]]


def test_a_single_silo_is_a_cluster() -> None:
    assert first_partition(np.ones((1, 3), np.float32)) == [[0]]


def job(folder: Path, contributions: tuple[Contribution, ...], images: str) -> ClusterJob:
    return ClusterJob(
        backbone=TINY, student=contributions[0].path, contributions=contributions,
        distillation=DistillationPlan(images=images, batch_size=6), seed=3,
    )  # fmt: skip


def test_models_of_the_same_weights_are_found_together(tmp_path: Path) -> None:
    seeds = {"a": 1, "b": 2, "c": 1, "d": 2}
    given_K = tuple(contribution(tmp_path, silo, seed) for silo, seed in seeds.items())
    images = str(public_folder(tmp_path, 8))
    report = cluster(job(tmp_path, given_K[::-1], images), lambda progress: None)
    assert report.clusters == (("a", "c"), ("b", "d"))


def test_clustering_without_public_images_is_refused(tmp_path: Path) -> None:
    given_K = tuple(contribution(tmp_path, silo, 1) for silo in "ab")
    with pytest.raises(DatasetError, match="no folder of public images"):
        cluster(job(tmp_path, given_K, str(tmp_path / "gone")), lambda progress: None)
