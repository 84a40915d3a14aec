"""Which distillations are timed against each other? Ours, and one like the paper's published code.

``python -m benchmark.distilling_loops`` is the process of one of them with one number of
teachers: its peak memory tells what that number costs.

Letters: N images of a batch, C channels, H height, W width, D feature width, K teachers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from msgspec.structs import replace
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmark.spending import Spent, spent_on
from coordinator.learning.jobs import Contribution, DistilJob
from coordinator.learning.worker import HANDLERS
from fedreid.datasets.images import is_image
from fedreid.jobs import Job, ProgressSink, serve
from fedreid.plan import BackbonePlan, DistillationPlan
from fedreid.reid.backbone import ReIDBackbone, load_backbone
from fedreid.reid.transforms import MEAN_C, STD_C
from fedreid.wire.tensors import load_tensors

DistillingLoop = Literal["ours", "ours_bf16", "plain_loop"]
_SEED = 0


class DistillationJob(Job, frozen=True, kw_only=True):
    """One distillation of the paper's loss."""

    loop: DistillingLoop
    model: str
    """File of the student, and of every teacher: what the weights are costs no time."""
    teachers: int
    backbone: BackbonePlan
    distillation: DistillationPlan
    out: str


class Distiller:
    """Runs distillations of one kind; what a process needs once is not timed."""

    def __init__(self) -> None:
        self._plain: _Plain | None = None

    def distil(self, job: DistillationJob, tell: ProgressSink) -> Spent:
        """Run one and say what it took."""
        return spent_on(self._loop(job))

    def _loop(self, job: DistillationJob) -> Callable[[], object]:
        if job.loop != "plain_loop":
            return lambda: HANDLERS[DistilJob](_our_job(job), lambda progress: None)
        torch.set_num_threads(job.distillation.threads)
        self._plain = self._plain or _Plain(job)
        return self._plain.distil


def _our_job(job: DistillationJob) -> DistilJob:
    plan = job.distillation
    if job.loop == "ours_bf16":
        plan = replace(plan, mixed_precision="bf16")
    teachers_K = tuple(
        Contribution(
            silo=f"silo-{number}", path=job.model, num_images=1, num_steps=1, cosine_distance=0.1
        )
        for number in range(job.teachers)
    )
    return DistilJob(
        backbone=job.backbone,
        student=job.model,
        contributions=teachers_K,
        weights={},
        distillation=plan,
        distil=True,
        recalibrate=False,
        seed=_SEED,
        out=job.out,
    )


class _Files(Dataset[Tensor]):
    """Public images from disk, one by one, through torchvision's transforms."""

    def __init__(self, job: DistillationJob) -> None:
        folder = Path(job.distillation.images)
        self._paths = sorted(path for path in folder.rglob("*") if is_image(path.name))
        size = (job.backbone.height_px, job.backbone.width_px)
        self._transform = v2.Compose(
            [
                v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(MEAN_C), list(STD_C)),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index]) as image:
            pixels_CHW: Tensor = self._transform(image.convert("RGB"))
        return pixels_CHW


class _Plain:
    """As the paper's code does it: all models in memory, and all teachers asked for each batch."""

    def __init__(self, job: DistillationJob) -> None:
        self._plan = job.distillation
        self._student = _contiguous(job)
        self._teachers_K = [_contiguous(job) for _ in range(job.teachers)]
        self._loader = DataLoader(
            _Files(job), batch_size=self._plan.batch_size, shuffle=True, num_workers=1
        )

    def distil(self) -> None:
        """Move the student towards the mean teacher for the plan's epochs."""
        plan = self._plan
        optimiser = torch.optim.SGD(
            self._student.parameters(),
            lr=plan.learning_rate,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            nesterov=True,
        )
        for _ in range(plan.epochs):
            for images_NCHW in self._loader:
                with torch.no_grad():
                    features_KND = [
                        F.normalize(teacher(images_NCHW)) for teacher in self._teachers_K
                    ]
                    target_ND = torch.stack(features_KND).mean(dim=0)
                optimiser.zero_grad()
                loss = F.mse_loss(self._student(images_NCHW), target_ND)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                loss.item()


def _contiguous(job: DistillationJob) -> ReIDBackbone:
    backbone = load_backbone(job.backbone, load_tensors(Path(job.model)))
    return backbone.to(memory_format=torch.contiguous_format).eval()


if __name__ == "__main__":
    serve({DistillationJob: Distiller().distil})
