from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from fedreid.errors import JobFailed
from fedreid.plan import BackbonePlan, TrainingPlan
from fedreid.reid.backbone import build_backbone, initialise, shared_tensors
from fedreid.reid.transforms import ImageStore, normalise
from fedreid.wire.tensors import FloatArray
from silo_agent.learning.state import build_classifier
from silo_agent.learning.training import Learner, TrainingImages, _optimiser, train
from tests.silo_agent.learning.sites import TINY, TRAINING, draw_silo

CPU = torch.device("cpu")


def learner(plan: BackbonePlan = TINY, *, dropout: float = 0.5) -> Learner:
    backbone = build_backbone(plan, dropout=dropout)
    initialise(backbone, 1)
    classifier = build_classifier(None, (1, 2, 3), width=backbone.feature_width, seed=1)
    return Learner(backbone=backbone, classifier=classifier)


@pytest.fixture
def data(tmp_path: Path) -> TrainingImages:
    paths = sorted((draw_silo(tmp_path) / "bounding_box_train").iterdir())
    labels = np.array([int(path.name[:4]) - 1 for path in paths])
    return TrainingImages(
        images=ImageStore(paths, height_px=32, width_px=16),
        labels=labels,
        camids=np.array([int(path.name[6]) for path in paths]),
    )


def trained(
    data: TrainingImages, plan: TrainingPlan = TRAINING, *, seed: int = 1, factor: float = 1.0
) -> tuple[dict[str, FloatArray], float]:
    made = learner()
    outcome = train(
        made,
        data,
        plan,
        learning_rate_factor=factor,
        seed=seed,
        device=CPU,
        tell=lambda done, total, loss: None,
    )
    return shared_tensors(made.backbone), outcome.loss


def way(tensors: dict[str, FloatArray]) -> float:
    base = shared_tensors(learner().backbone)
    names = [name for name, _ in learner().backbone.named_parameters()]
    return float(np.sqrt(sum(np.square(tensors[n] - base[n]).sum() for n in names)))


def test_equal_seeds_give_equal_bits(data: TrainingImages) -> None:
    first, again, other = trained(data), trained(data), trained(data, seed=2)
    assert first[1] == again[1]
    assert all(np.array_equal(first[0][name], again[0][name]) for name in first[0])
    assert not np.array_equal(first[0]["neck.linear.weight"], other[0]["neck.linear.weight"])


def test_training_lowers_the_loss(data: TrainingImages) -> None:
    made = learner(dropout=0.0)
    losses = [
        train(
            made,
            data,
            replace(TRAINING, learning_rate=0.01, backbone_learning_rate=0.01, batch_size=12),
            learning_rate_factor=1.0,
            seed=seed,
            device=CPU,
            tell=lambda done, total, loss: None,
        ).loss
        for seed in range(30)
    ]
    assert max(losses[-5:]) < 0.7 * losses[0]


def test_progress_counts_steps_of_all_epochs_and_tells_the_mean_loss(
    data: TrainingImages,
) -> None:
    heard: list[tuple[int, int, float]] = []
    outcome = train(
        learner(),
        data,
        replace(TRAINING, epochs=2, batch_size=5),
        learning_rate_factor=1.0,
        seed=1,
        device=CPU,
        tell=lambda done, total, mean: heard.append((done, total, mean)),
    )
    assert [line[:2] for line in heard] == [(step, 6) for step in range(1, 7)]
    assert heard[-1][2] == outcome.loss
    assert outcome.num_steps == 6


def test_a_silo_smaller_than_a_batch_trains(data: TrainingImages) -> None:
    tensors, _ = trained(data, replace(TRAINING, batch_size=64))
    assert way(tensors) > 0.0


def test_a_last_batch_of_one_image_is_merged(data: TrainingImages) -> None:
    trained(data, replace(TRAINING, batch_size=11))  # 12 images: BatchNorm would raise on one


def test_the_factor_scales_both_learning_rates() -> None:
    plan = replace(TRAINING, learning_rate=0.05, backbone_learning_rate=0.005)
    trunk, new = _optimiser(learner(), plan, 0.1).param_groups
    assert (trunk["lr"], new["lr"]) == pytest.approx((0.0005, 0.005))
    assert trunk["nesterov"]
    assert trunk["weight_decay"] == 5e-4
    assert not _optimiser(learner(), replace(plan, momentum=0.0), 1.0).param_groups[0]["nesterov"]


def test_each_parameter_is_in_one_group_and_a_frozen_bias_in_none() -> None:
    made = learner(replace(TINY, neck="bnneck"))
    groups = _optimiser(made, TRAINING, 1.0).param_groups
    counted = [id(p) for group in groups for p in group["params"]]
    wanted = [*made.backbone.parameters(), *made.classifier.parameters()]
    assert sorted(counted) == sorted(id(p) for p in wanted if p.requires_grad)


def test_the_proximal_term_keeps_the_model_near_its_base(data: TrainingImages) -> None:
    plan = replace(TRAINING, epochs=3, dropout=0.0, weight_decay=0.0)
    free, _ = trained(data, plan)
    held, _ = trained(data, replace(plan, proximal=5.0))
    assert way(held) < 0.8 * way(free)


def test_divergence_stops_the_job(data: TrainingImages) -> None:
    plan = replace(TRAINING, learning_rate=1e30, backbone_learning_rate=1e30, epochs=3)
    with pytest.raises(JobFailed, match="diverged"):
        trained(data, plan)


BOT = replace(
    TRAINING,
    recipe="bot",
    optimiser="adam",
    batch_size=12,
    images_per_identity=4,
    triplet_margin=0.3,
    label_smoothing=0.1,
    padding_px=0,
    learning_rate=1e-3,
    backbone_learning_rate=1e-3,
    epochs=15,
)


def test_bag_of_tricks_lowers_the_loss_and_brings_the_images_of_a_person_together(
    data: TrainingImages,
) -> None:
    made = learner(replace(TINY, neck="bnneck", last_stride=1))
    before = spread(made, data)
    steps: list[float] = []
    outcome = train(
        made,
        data,
        replace(BOT, epochs=30, learning_rate=3e-3, backbone_learning_rate=3e-3),
        learning_rate_factor=1.0,
        seed=1,
        device=CPU,
        tell=lambda done, total, mean: steps.append(mean),
    )
    assert outcome.notes == ()
    assert steps[-1] < 0.8 * steps[0]
    assert spread(made, data) < 0.8 * before


def spread(made: Learner, data: TrainingImages) -> float:
    """Mean distance of pooled features of one person, over that of different people."""
    made.backbone.train()  # statistics of the images themselves: running ones have hardly moved
    with torch.no_grad():
        images = normalise(data.images.batch(np.arange(12)))
        _, pooled_NP = made.backbone.with_pooled(images)
        distances = torch.cdist(pooled_NP, pooled_NP)
    same = torch.from_numpy(data.labels[:, None] == data.labels[None, :])
    return float(distances[same].mean() / distances[~same].mean())


def test_the_triplet_loss_is_added_to_cross_entropy(data: TrainingImages) -> None:
    still = replace(BOT, epochs=1, learning_rate=1e-9, backbone_learning_rate=1e-9)
    without, narrow, wide = (
        trained(data, replace(still, triplet_margin=margin))[1] for margin in (0.0, 10.0, 11.0)
    )
    assert narrow > without
    assert wide - narrow == pytest.approx(1.0, abs=1e-4)


def test_a_single_camera_trains_like_the_recipe_without_triplets(data: TrainingImages) -> None:
    one = replace_camids(data)
    plain = replace(BOT, triplet_margin=0.0, images_per_identity=0, epochs=1, batch_size=4)
    asked, _ = trained(one, replace(BOT, epochs=1, batch_size=8))
    same, _ = trained(one, replace(plain, batch_size=8))
    assert all(np.array_equal(asked[name], same[name]) for name in same)


def replace_camids(data: TrainingImages) -> TrainingImages:
    return TrainingImages(images=data.images, labels=data.labels, camids=np.ones_like(data.camids))


def test_mixed_precision_starts_from_nearly_the_same_loss_and_lowers_it(
    data: TrainingImages,
) -> None:
    plan = replace(BOT, triplet_margin=0.0, images_per_identity=0)
    heard: list[float] = []
    for precision in ("off", "bf16"):
        made = learner(dropout=0.0)
        outcome = train(
            made,
            data,
            replace(plan, mixed_precision=precision),
            learning_rate_factor=1.0,
            seed=1,
            device=CPU,
            tell=lambda done, total, mean: heard.append(mean),
        )
        assert heard[-1] == outcome.loss < 0.9 * heard[-15]
    assert heard[0] == pytest.approx(heard[15], rel=0.01)
    assert heard[0] != heard[15]
    assert {p.dtype for p in made.parameters()} == {torch.float32}
