"""How does a silo train for one round? Some epochs of SGD on its own images (reid-spec §2).

Letters: N images of a batch, C identities of the silo, D feature width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedreid.errors import JobFailed
from fedreid.plan import TrainingPlan
from fedreid.reid.backbone import ReIDBackbone
from fedreid.reid.transforms import ImageStore, augment
from silo_agent.learning.losses import classification_loss, proximal_loss
from silo_agent.learning.sampling import IndexArray, epoch_batches

Told = Callable[[int, int, float], None]
"""Hears steps done, steps in all, and the mean loss so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A backbone and the classifier that stands on it."""

    backbone: ReIDBackbone
    classifier: nn.Linear

    def logits(self, images_NCHW: Tensor) -> Tensor:
        """logits_NC."""
        logits_NC: Tensor = self.classifier(self.backbone(images_NCHW))
        return logits_NC


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImages:
    """What is trained on: images, and the classifier's row for each."""

    images: ImageStore
    labels: IndexArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training gave beside the learner's new weights."""

    loss: float
    """Mean over all images seen."""
    num_steps: int


def train(
    learner: Learner,
    data: TrainingImages,
    plan: TrainingPlan,
    *,
    learning_rate_factor: float,
    seed: int,
    device: torch.device,
    tell: Told,
) -> Trained:
    """Train in place for the plan's epochs.

    Optimiser state begins anew and is dropped at the end: it never outlives a round.
    The seed settles order, augmentation and dropout.

    Raises:
        DatasetError: an image can't be read.
        JobFailed: the loss is not finite.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    optimiser = _optimiser(learner, plan, learning_rate_factor)
    base = [p.detach().clone() for p in learner.backbone.parameters()] if plan.proximal else []
    epochs = [epoch_batches(len(data.images), plan.batch_size, random) for _ in range(plan.epochs)]
    batches = [indices_N for epoch in epochs for indices_N in epoch]
    learner.backbone.train()
    learner.classifier.train()
    loss_sum, seen = 0.0, 0
    for step, indices_N in enumerate(batches, start=1):
        images_NCHW = augment(
            data.images.batch(indices_N), random, erasing=plan.random_erasing, device=device
        )
        labels_N = torch.from_numpy(data.labels[indices_N]).to(device)
        loss = _step(learner, images_NCHW, labels_N, optimiser, plan, base)
        loss_sum += loss * len(indices_N)
        seen += len(indices_N)
        tell(step, len(batches), loss_sum / seen)
    return Trained(loss=loss_sum / seen, num_steps=len(batches))


def _optimiser(learner: Learner, plan: TrainingPlan, factor: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum and a slower rate for the trunk (MM'20 §4)."""
    new = [*learner.backbone.neck.parameters(), *learner.classifier.parameters()]
    groups = [
        {
            "params": list(learner.backbone.trunk.parameters()),
            "lr": plan.backbone_learning_rate * factor,
        },
        {"params": [p for p in new if p.requires_grad], "lr": plan.learning_rate * factor},
    ]
    return torch.optim.SGD(
        groups,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        nesterov=plan.momentum > 0.0,
    )


def _step(
    learner: Learner,
    images_NCHW: Tensor,
    labels_N: Tensor,
    optimiser: torch.optim.SGD,
    plan: TrainingPlan,
    base: list[Tensor],
) -> float:
    logits_NC = learner.logits(images_NCHW)
    loss = classification_loss(logits_NC, labels_N, smoothing=plan.label_smoothing)
    if base:
        loss = loss + proximal_loss(list(learner.backbone.parameters()), base, mu=plan.proximal)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise diverged("the loss")
    return value


def diverged(what: str) -> JobFailed:
    """The error of a training whose ``what`` is not finite."""
    return JobFailed(
        f"Training has diverged: {what} is not finite",
        why="the learning rate is too high for this backbone, batch size and data",
        next_step="Lower learning_rate and backbone_learning_rate in the plan.",
    )
