"""What do the tests of local training train on? A handful of coloured rectangles on disk."""

from pathlib import Path

import numpy as np
from PIL import Image

from fedreid.contract import ModelKind
from fedreid.jobs import Progress
from fedreid.plan import BackbonePlan, BatchNormPolicy, TrainingPlan
from fedreid.reid.backbone import build_backbone, initialise, shared_tensors
from fedreid.wire.tensors import FloatArray, TensorFile, save_tensors
from silo_agent.learning.jobs import Silo, TrainJob

TINY = BackbonePlan(name="shufflenet_v2_x0_5", height_px=32, width_px=16)
TRAINING = TrainingPlan(
    batch_size=4, learning_rate=0.005, backbone_learning_rate=0.005, threads=1, probe_batches=2
)
ALL: tuple[ModelKind, ...] = ("global", "local", "standalone")


def draw_person(path: Path, pid: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    colour = np.random.default_rng(1000 + pid).integers(0, 200, size=3)
    noise = random.integers(0, 40, size=(32, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + noise).astype(np.uint8)).save(path)


def draw_silo(root: Path, *, people: range = range(1, 4), per_camera: int = 2) -> Path:
    """Each person in two cameras, ``per_camera`` times; three others as query and gallery."""
    for pid in people:
        for camera in (1, 2):
            for index in range(per_camera):
                name = f"{pid:04d}_c{camera}s1_{pid:06d}_{index:02d}.png"
                draw_person(root / "bounding_box_train" / name, pid, 10 * pid + index + camera)
    for pid in range(50, 53):
        draw_person(root / "query" / f"{pid:04d}_c1s1_000001_01.png", pid, pid)
        draw_person(root / "bounding_box_test" / f"{pid:04d}_c2s1_000001_01.png", pid, 2 * pid)
    return root


def first_model(path: Path, plan: BackbonePlan = TINY, *, seed: int = 1) -> Path:
    backbone = build_backbone(plan)
    initialise(backbone, seed)
    save_tensors(path, shared_tensors(backbone))
    return path


def read(path: Path) -> dict[str, FloatArray]:
    with TensorFile(path) as file:
        return file.read_all()


def train_job(
    dataset: Path,
    base: Path,
    out: Path,
    *,
    previous: Path | None = None,
    training: TrainingPlan = TRAINING,
    bn: BatchNormPolicy = "pooled",
    round: int = 1,
    seed: int = 7,
    evaluate: tuple[ModelKind, ...] = (),
    standalone: bool = False,
) -> TrainJob:
    out.mkdir(parents=True)
    return TrainJob(
        silo=Silo(federation="f", name="north", dataset=str(dataset), layout="auto"),
        run="run",
        round=round,
        seed=seed,
        backbone=TINY,
        training=training,
        learning_rate_factor=1.0,
        bn=bn,
        base_model=str(base),
        previous=str(previous or ""),
        out=str(out),
        evaluate=evaluate,
        standalone=standalone,
    )


def quiet(progress: Progress) -> None:
    """Hears nothing."""
