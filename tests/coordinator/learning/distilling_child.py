"""How much memory does distillation take with more and more teachers? One line for each number.

``python -m tests.coordinator.learning.distilling_child FOLDER 2 8``: peak resident MiB after each.
"""

import resource
import sys
from pathlib import Path

import torch

from coordinator.learning.distillation import distil
from coordinator.learning.jobs import Contribution, DistilJob
from fedreid.memory import keep_freed
from fedreid.plan import BackbonePlan, DistillationPlan
from fedreid.reid.backbone import build_backbone, shared_tensors
from fedreid.wire.tensors import save_tensors

HEAVY = BackbonePlan(name="resnet18", height_px=64, width_px=32)
"""44 MiB of weights, and maps that are small beside them."""


def main(folder: Path, numbers: list[int]) -> None:
    """Distil with each number of teachers, all from one file."""
    torch.set_num_threads(1)
    keep_freed()
    model = folder / "model.safetensors"
    save_tensors(model, shared_tensors(build_backbone(HEAVY)))
    for number in numbers:
        distil(_job(folder, model, number), lambda progress: None)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def _job(folder: Path, model: Path, number: int) -> DistilJob:
    teachers = tuple(
        Contribution(
            silo=f"silo-{teacher}",
            path=str(model),
            num_images=1,
            num_steps=1,
            cosine_distance=0.1,
        )
        for teacher in range(number)
    )
    return DistilJob(
        backbone=HEAVY,
        student=str(model),
        contributions=teachers,
        weights={},
        distillation=DistillationPlan(images=str(folder / "public"), batch_size=4),
        distil=True,
        recalibrate=False,
        seed=1,
        out=str(folder / "out"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
