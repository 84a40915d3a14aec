import math

import numpy as np
import pytest

from silo_agent.learning.weighing import cosine_distance, draw_probe


def test_distance_by_hand() -> None:
    before = np.array([[1, 0], [1, 1], [3, 0]], dtype=np.float32)
    after = np.array([[0, 2], [5, 0], [-1, 0]], dtype=np.float32)
    expected = ((1 - 0) + (1 - 1 / math.sqrt(2)) + (1 + 1)) / 3
    assert cosine_distance(before, after) == pytest.approx(expected, abs=1e-12)


def test_scaling_the_logits_is_no_distance() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert cosine_distance(logits, 3 * logits) == pytest.approx(0.0, abs=1e-6)
    assert cosine_distance(logits, logits) >= 0.0


def test_logits_of_zero_give_a_finite_distance() -> None:
    assert cosine_distance(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)) == 1.0


def test_probe_is_the_same_for_a_seed_and_has_no_image_twice() -> None:
    probe = draw_probe(100, batches=3, batch_size=8, seed=5)
    assert len(set(probe.tolist())) == 24
    assert probe.tolist() == draw_probe(100, batches=3, batch_size=8, seed=5).tolist()
    assert probe.tolist() != draw_probe(100, batches=3, batch_size=8, seed=6).tolist()


def test_a_small_silo_is_its_own_probe() -> None:
    assert draw_probe(5, batches=4, batch_size=8, seed=5).tolist() == [0, 1, 2, 3, 4]
