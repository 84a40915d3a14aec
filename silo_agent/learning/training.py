"""How does a silo train for one round? Some epochs on its own images (reid-spec §2, §6).

Letters: N images of a batch, C identities of the silo, D feature width, P width before the neck.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedreid import faults
from fedreid.ahead import made_ahead
from fedreid.errors import JobFailed
from fedreid.plan import TrainingPlan
from fedreid.reid.backbone import ReIDBackbone
from fedreid.reid.transforms import ImageStore, augment
from silo_agent.learning.bearing import bearable
from silo_agent.learning.checkpoints import Checkpoints, Position, Trainee, numpy_state
from silo_agent.learning.compiling import Forward, compiled_forward
from silo_agent.learning.group import ALONE, Group
from silo_agent.learning.losses import (
    batch_hard_triplet_loss,
    classification_loss,
    proximal_loss,
)
from silo_agent.learning.sampling import IndexArray, epoch_batches, identity_batches

Told = Callable[[int, int, float], None]
"""Hears steps done, steps in all, and the mean loss so far."""

_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A backbone and the classifier that stands on it."""

    backbone: ReIDBackbone
    classifier: nn.Linear

    def logits(self, images_NCHW: Tensor) -> Tensor:
        """logits_NC."""
        logits_NC: Tensor = self.classifier(self.backbone(images_NCHW))
        return logits_NC

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        every = [*self.backbone.parameters(), *self.classifier.parameters()]
        return [parameter for parameter in every if parameter.requires_grad]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImages:
    """What is trained on: images, and the classifier's row and the camera of each."""

    images: ImageStore
    labels: IndexArray
    camids: IndexArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training gave beside the learner's new weights."""

    loss: float
    """Mean over all images seen."""
    num_steps: int
    notes: tuple[str, ...]
    """What of the recipe this silo could not follow, and why."""


def train(
    learner: Learner,
    data: TrainingImages,
    plan: TrainingPlan,
    *,
    learning_rate_factor: float,
    seed: int,
    device: torch.device,
    tell: Told,
    group: Group = ALONE,
    checkpoints: Checkpoints | None = None,
    compiled: bool = False,
) -> Trained:
    """Train in place for the plan's epochs.

    Optimiser state begins anew and is dropped at the end: it never outlives a round.
    The seed settles order, augmentation and dropout, and a training that goes on from a checkpoint
    ends with the same bits as one that was never interrupted.

    Raises:
        DatasetError: an image can't be read.
        UsageError: it is to be ``compiled``, and can't be here.
        JobFailed: the loss is not finite.
    """
    checkpoints = checkpoints or Checkpoints(None, "")
    plan, notes = bearable(plan, data.labels, data.camids, device)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    batches = [batch_N for _ in range(plan.epochs) for batch_N in _epoch(data, plan, random)]
    random = group.own_random(random, seed)
    forward = compiled_forward(learner.backbone) if compiled else learner.backbone.with_pooled
    steps = _Steps.of(learner, forward, plan, learning_rate_factor, device, group)
    learner.backbone.train()
    learner.classifier.train()
    at = checkpoints.resume(steps.trainee, Position(random=numpy_state(random)))
    random.bit_generator.state = at.random
    left = batches[at.step :]
    ready = _prepared([group.share(batch_N) for batch_N in left], data, plan, random, device)
    for batch_N, batch in zip(left, ready, strict=True):
        share = len(batch.labels_N) / len(batch_N)
        loss = steps.take(batch.images_NCHW, batch.labels_N, weight=share)
        faults.point("train.step")
        at = at.after(loss, len(batch_N), batch.random_after)
        tell(at.step, len(batches), at.loss)
        if at.step < len(batches):
            checkpoints.keep(steps.trainee, at)
    group.settle(learner.backbone)
    return Trained(loss=at.loss, num_steps=at.step, notes=(*notes, *checkpoints.notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What a step learns from."""

    images_NCHW: Tensor
    labels_N: Tensor
    random_after: Mapping[str, Any]
    """State of the generator once this batch was made: the next one begins there."""


def _epoch(
    data: TrainingImages, plan: TrainingPlan, random: np.random.Generator
) -> list[IndexArray]:
    if plan.images_per_identity:
        return identity_batches(data.labels, plan.batch_size, plan.images_per_identity, random)
    return epoch_batches(len(data.images), plan.batch_size, random)


def _prepared(
    batches: Sequence[IndexArray],
    data: TrainingImages,
    plan: TrainingPlan,
    random: np.random.Generator,
    device: torch.device,
) -> Iterator[_Batch]:
    """Each batch; the next is made while the last is learned."""

    def make(indices_N: IndexArray) -> _Batch:
        images_NCHW = augment(
            data.images.batch(indices_N),
            random,
            padding_px=plan.padding_px,
            erasing=plan.random_erasing,
            device=device,
        )
        return _Batch(
            images_NCHW=images_NCHW,
            labels_N=torch.from_numpy(data.labels[indices_N]).to(device),
            random_after=numpy_state(random),
        )

    return made_ahead(make, batches)


def _optimiser(learner: Learner, plan: TrainingPlan, factor: float) -> torch.optim.Optimizer:
    """A slower rate for the trunk than for neck and classifier (MM'20 §4), if the plan says so."""
    new = [*learner.backbone.neck.parameters(), *learner.classifier.parameters()]
    groups = [
        {
            "params": list(learner.backbone.trunk.parameters()),
            "lr": plan.backbone_learning_rate * factor,
        },
        {"params": [p for p in new if p.requires_grad], "lr": plan.learning_rate * factor},
    ]
    if plan.optimiser == "adam":
        return torch.optim.Adam(groups, weight_decay=plan.weight_decay)
    return torch.optim.SGD(
        groups,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        nesterov=plan.momentum > 0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """What every step of a round needs."""

    learner: Learner
    forward: Forward
    """The learner's backbone, compiled or not."""
    plan: TrainingPlan
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    base: tuple[Tensor, ...]
    """The backbone's parameters before the round; empty without a proximal term."""
    device: torch.device
    group: Group

    @classmethod
    def of(
        cls,
        learner: Learner,
        forward: Forward,
        plan: TrainingPlan,
        factor: float,
        device: torch.device,
        group: Group,
    ) -> "_Steps":
        scaled = plan.mixed_precision == "fp16"  # bf16 has the range of fp32
        base = learner.backbone.parameters() if plan.proximal else ()
        return cls(
            learner=learner,
            forward=forward,
            plan=plan,
            optimiser=_optimiser(learner, plan, factor),
            scaler=torch.amp.GradScaler(device.type, enabled=scaled),
            base=tuple(parameter.detach().clone() for parameter in base),
            device=device,
            group=group,
        )

    @property
    def trainee(self) -> Trainee:
        """What a step changes."""
        return Trainee(
            modules=(self.learner.backbone, self.learner.classifier),
            optimiser=self.optimiser,
            scaler=self.scaler,
            device=self.device,
        )

    def take(self, images_NCHW: Tensor, labels_N: Tensor, *, weight: float) -> float:
        """One step; ``weight`` is this process's share of the batch. The whole batch's loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        if len(labels_N):
            loss = self._loss(images_NCHW, labels_N)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        self._agree(loss, weight)
        value = float(loss)
        if not math.isfinite(value):
            raise diverged("the loss")
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return value

    def _loss(self, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        plan = self.plan
        with torch.autocast(
            self.device.type,
            dtype=_FORMATS.get(plan.mixed_precision),
            enabled=plan.mixed_precision != "off",
        ):
            features_ND, pooled_NP = self.forward(images_NCHW)
            logits_NC = self.learner.classifier(features_ND)
        loss = classification_loss(logits_NC.float(), labels_N, smoothing=plan.label_smoothing)
        if plan.triplet_margin:
            loss = loss + batch_hard_triplet_loss(
                pooled_NP.float(), labels_N, margin=plan.triplet_margin
            )
        if self.base:
            weights = list(self.learner.backbone.parameters())
            loss = loss + proximal_loss(weights, self.base, mu=plan.proximal)
        return loss

    def _agree(self, loss: Tensor, weight: float) -> None:
        """Give all processes the gradients and the loss of the whole batch."""
        if self.group.size == 1:
            return
        for parameter in self.learner.parameters():
            if parameter.grad is None:  # a process without a share
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        self.group.average([*gradients, loss], weight)


def diverged(what: str) -> JobFailed:
    """The error of a training whose ``what`` is not finite."""
    return JobFailed(
        f"Training has diverged: {what} is not finite",
        why="the learning rate is too high for this backbone, batch size and data",
        next_step="Lower learning_rate and backbone_learning_rate in the plan.",
    )
