"""How is what the silos' models know moved into the aggregate without their images?

Server-side knowledge distillation (MM'20 §5, TOMM'23 §5.2; reid-spec §5): the teachers are the
round's silo backbones, the student is the aggregate, the images are public and unlabelled::

    target(x) = Σ_k weight_k · f_k(x)/‖f_k(x)‖         weight_k = 1/K, or the silo's share p_k
    paper:       mean over N and D of (student(x) − target(x))²
    normalised:  mean over N of 1 − cos(student(x), target(x))
                 + similarity · mean over N×N of (S_student − S_target)²,  S = cosines in a batch

Teachers are loaded one at a time and their features are computed once per round, so the memory
is that of two models, student and teacher, however many silos there are. Everything is
in evaluation mode, so dropout is off and BatchNorm statistics stand still unless the plan lets
them move. Under ``bn = local`` a teacher that kept its BatchNorm speaks with the aggregate's.
Networks run in the plan's ``mixed_precision``; sums, losses and the optimiser stay as they are.

Letters: N images, K silos, D feature width, C channels, H height, W width.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from torch import Tensor, nn

from coordinator.learning.jobs import Contribution, DistilJob, DistilReport
from coordinator.learning.public_images import public_images
from fedreid import faults
from fedreid.ahead import made_ahead
from fedreid.errors import JobFailed
from fedreid.jobs import Progress, ProgressSink
from fedreid.plan import DistillationPlan
from fedreid.reid.backbone import ReIDBackbone, load_backbone, load_shared, shared_tensors
from fedreid.reid.transforms import ImageStore, normalise
from fedreid.seeds import derive_seed
from fedreid.wire.tensors import batch_norm_names, load_tensors, save_tensors

_BatchNorm = nn.modules.batchnorm._BatchNorm


def distil(job: DistilJob, progress: ProgressSink) -> DistilReport:
    """Write the student after recalibration, distillation or both, in this order.

    Recalibration belongs to the aggregate (``bn = recalibrated``), so it comes first and the
    losses tell the effect of distillation alone.

    Raises:
        DatasetError: too few public images, or one that can't be read.
        UsageError: a model that does not fit the plan's backbone.
        JobFailed: distillation diverged.
    """
    images = public_images(job.distillation, job.backbone)
    student = load_backbone(job.backbone, load_tensors(Path(job.student))).eval()
    if job.recalibrate:
        recalibrate(student, images, job.distillation.batch_size, job.seed, progress)
    before = after = None
    if job.distil:
        targets_ND = mean_teacher(job, images, progress)
        before = mean_loss(student, images, targets_ND, job.distillation)
        train_student(student, images, targets_ND, job.distillation, job.seed, progress)
        after = mean_loss(student, images, targets_ND, job.distillation)
        _check_finite(after)
    with faults.step("distil.checkpoint"):  # the whole job: done again, it gives the same file
        save_tensors(Path(job.out), shared_tensors(student))
    return DistilReport(images=len(images), loss_before=before, loss_after=after)


def mean_teacher(job: DistilJob, images: ImageStore, progress: ProgressSink) -> Tensor:
    """target_ND, the mean of the teachers' L2-normalised features; sorted silos, float64 sum."""
    ordered_K = sorted(job.contributions, key=lambda contribution: contribution.silo)
    student = load_tensors(Path(job.student))
    teacher = load_backbone(job.backbone, student).eval()
    # For BatchNorm that a silo keeps to itself; the rest of the student need not stay in memory.
    fallback = {name: student[name] for name in batch_norm_names(student)}
    del student
    sum_ND = torch.zeros(len(images), teacher.feature_width, dtype=torch.float64)
    batches = _in_order(len(images), job.distillation.batch_size)
    for done, contribution in enumerate(ordered_K):
        load_shared(teacher, {**fallback, **load_tensors(Path(contribution.path))})
        weight = _teacher_weight(job, contribution)
        for rows, images_NCHW in _each(images, batches):
            with torch.inference_mode():
                features_ND = F.normalize(_features(teacher, images_NCHW, job.distillation))
            sum_ND[rows] += weight * features_ND.double()
            progress(
                Progress(
                    phase="teachers",
                    done=done * len(images) + rows[-1] + 1,
                    total=len(ordered_K) * len(images),
                )
            )
    return sum_ND.float()


def _teacher_weight(job: DistilJob, contribution: Contribution) -> float:
    if job.distillation.weighted_teachers:
        return job.weights[contribution.silo]
    return 1.0 / len(job.contributions)


def distillation_loss(student_ND: Tensor, target_ND: Tensor, plan: DistillationPlan) -> Tensor:
    """The loss of one batch, a scalar; see the head of this module."""
    if plan.loss == "paper":
        return F.mse_loss(student_ND, target_ND)
    loss = (1.0 - F.cosine_similarity(student_ND, target_ND)).mean()
    if plan.similarity == 0.0:
        return loss
    return loss + plan.similarity * F.mse_loss(_cosines(student_ND), _cosines(target_ND))


def _cosines(features_ND: Tensor) -> Tensor:
    unit_ND = F.normalize(features_ND)
    return unit_ND @ unit_ND.T


def mean_loss(
    student: ReIDBackbone, images: ImageStore, targets_ND: Tensor, plan: DistillationPlan
) -> float:
    """The loss over all public images, in evaluation mode and file order."""
    student.eval()
    total = 0.0
    for rows, images_NCHW in _each(images, _in_order(len(images), plan.batch_size)):
        with torch.inference_mode():
            loss = distillation_loss(_features(student, images_NCHW, plan), targets_ND[rows], plan)
        total += len(rows) * loss.item()
    return total / len(images)


def train_student(
    student: ReIDBackbone,
    images: ImageStore,
    targets_ND: Tensor,
    plan: DistillationPlan,
    seed: int,
    progress: ProgressSink,
) -> None:
    """Move the student towards the targets by SGD with Nesterov momentum."""
    student.eval()
    if plan.bn_statistics == "update":
        _only_batch_norm_trains(student)
    optimiser = torch.optim.SGD(
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        lr=plan.learning_rate,
        momentum=plan.momentum,
        nesterov=plan.momentum > 0.0,
        weight_decay=plan.weight_decay,
    )
    batches = [
        rows
        for epoch in range(plan.epochs)
        for rows in _shuffled(len(images), plan.batch_size, derive_seed(seed, "distil", epoch))
    ]
    for done, (rows, images_NCHW) in enumerate(_each(images, batches), start=1):
        optimiser.zero_grad(set_to_none=True)
        loss = distillation_loss(_features(student, images_NCHW, plan), targets_ND[rows], plan)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        faults.point("distil.step")
        progress(Progress(phase="distilling", done=done, total=len(batches), loss=loss.item()))
    student.eval()


def recalibrate(
    student: ReIDBackbone,
    images: ImageStore,
    batch_size: int,
    seed: int,
    progress: ProgressSink,
) -> None:
    """Re-estimate the BatchNorm statistics in one forward pass: reset, then a plain mean.

    Images are shuffled: a folder sorted by person would hide the variance between persons.
    """
    layers = _only_batch_norm_trains(student)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean over the batches
    batches = _shuffled(len(images), batch_size, derive_seed(seed, "recalibrate"))
    for done, (_, images_NCHW) in enumerate(_each(images, batches), start=1):
        with torch.no_grad():
            student(images_NCHW)
        progress(Progress(phase="recalibrating", done=done, total=len(batches)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    student.eval()


def _only_batch_norm_trains(student: nn.Module) -> list[_BatchNorm]:
    student.eval()
    layers = [layer for layer in student.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        layer.train()
    return layers


def _features(backbone: ReIDBackbone, images_NCHW: Tensor, plan: DistillationPlan) -> Tensor:
    """features_ND in float32, whatever the network ran in."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=plan.mixed_precision == "bf16"):
        features_ND: Tensor = backbone(images_NCHW)
    return features_ND.float()


def _each(images: ImageStore, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
    """Rows and images_NCHW of each batch; the next is made while the last is worked with."""
    made = made_ahead(lambda rows: normalise(images.batch(np.array(rows))), batches)
    return zip(batches, made, strict=True)


def _in_order(count: int, batch_size: int) -> list[list[int]]:
    return [list(range(at, min(at + batch_size, count))) for at in range(0, count, batch_size)]


def _shuffled(count: int, batch_size: int, seed: int) -> list[list[int]]:
    """Batches of a permutation, as equal as can be; none has one image, which BatchNorm refuses."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = min(math.ceil(count / batch_size), count // 2)
    return [part.tolist() for part in torch.tensor_split(order, parts)]


def _check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise JobFailed(
            "Distillation diverged",
            why="its loss is no longer a finite number",
            next_step="Lower distillation.learning_rate in the plan.",
        )
