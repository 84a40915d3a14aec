"""Does a silo that can't follow a recipe leave out just that, and say so?"""

import numpy as np
import pytest
import torch

from fedreid.plan import TrainingPlan
from silo_agent.learning.bearing import bearable

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BOT = TrainingPlan(recipe="bot", images_per_identity=4, triplet_margin=0.3, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("labels", "camids", "words"),
    [
        ([0, 0, 0], [1, 2, 3], "one identity"),
        ([0, 1, 2], [1, 2, 1], "single image"),
        ([0, 0, 1, 1], [3, 3, 3, 3], "two cameras have seen 0 of 2"),
        ([0, 0, 1, 1, 2, 2], [1, 2, 1, 1, 2, 2], "two cameras have seen 1 of 3"),
    ],
)
def test_images_without_good_positives_or_negatives_leave_cross_entropy(
    labels: list[int], camids: list[int], words: str
) -> None:
    plan, (note,) = bearable(BOT, np.array(labels), np.array(camids), CPU)
    assert (plan.triplet_margin, plan.images_per_identity) == (0.0, 0)
    assert plan.label_smoothing == 0.1
    assert "cross entropy" in note and words in note


def test_a_plan_that_asks_for_none_of_it_gets_no_note() -> None:
    plan = TrainingPlan()
    assert bearable(plan, np.array([0, 1]), np.array([1, 1]), CPU) == (plan, ())


def test_half_of_the_identities_in_two_cameras_are_enough() -> None:
    labels, camids = np.array([0, 0, 1, 1]), np.array([1, 2, 1, 1])
    assert bearable(BOT, labels, camids, CPU) == (BOT, ())


def test_fp16_needs_a_gpu() -> None:
    plan = TrainingPlan(mixed_precision="fp16")
    held, (note,) = bearable(plan, np.array([0, 1]), np.array([1, 1]), CPU)
    assert held.mixed_precision == "off"
    assert "GPU" in note
    assert bearable(plan, np.array([0, 1]), np.array([1, 1]), CUDA) == (plan, ())
    bf16 = TrainingPlan(mixed_precision="bf16")
    assert bearable(bf16, np.array([0, 1]), np.array([1, 1]), CPU) == (bf16, ())
