"""Which loops are timed against each other? Ours, and the one that a tutorial would give.

``python -m benchmark.training_loops`` is the process of one of them: what the C library does with
memory is settled once for a process, so two loops in one would share the habits of the first.

Letters: N images of a batch, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from msgspec.structs import replace
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmark.spending import Spent, spent_on
from fedreid.datasets.layouts import load
from fedreid.datasets.records import ImageRecord
from fedreid.jobs import Job, ProgressSink, serve
from fedreid.plan import BackbonePlan, MixedPrecision, TrainingPlan
from fedreid.reid.backbone import build_backbone, initialise
from fedreid.reid.settling import settle_torch
from fedreid.reid.transforms import MEAN_C, STD_C, ImageStore, augment
from silo_agent.learning.group import ALONE
from silo_agent.learning.sampling import epoch_batches
from silo_agent.learning.state import build_classifier
from silo_agent.learning.training import Learner, TrainingImages, train

SEED = 0
_CPU = torch.device("cpu")

OurLoop = Literal["ours", "ours_bf16", "ours_first_epoch", "our_inputs", "our_inputs_first_epoch"]
PlainLoop = Literal["plain_loop", "plain_inputs"]
Loops = Mapping[str, Callable[[], None]]


class EpochJob(Job, frozen=True, kw_only=True):
    """One epoch of a loop. A process is for ours or for the plain ones, and for one trial."""

    loop: OurLoop | PlainLoop
    silo: str
    """Folder of the silo whose images are learned."""
    images: int
    backbone: BackbonePlan
    training: TrainingPlan
    compiled: bool = False
    """Ours as an agent with ``compiled = true`` trains: anew in each epoch, as each round is."""


class Timekeeper:
    """Runs the loops of the first job's kind, epoch after epoch."""

    def __init__(self) -> None:
        self._loops: Loops | None = None

    def epoch(self, job: EpochJob, tell: ProgressSink) -> Spent:
        """Run one and say what it took; nothing else of the process is counted but its peak."""
        if self._loops is None:
            torch.set_num_threads(job.training.threads)
            self._loops = _plain_loops(job) if job.loop.startswith("plain") else _our_loops(job)
        return spent_on(self._loops[job.loop])


def _records(job: EpochJob) -> tuple[ImageRecord, ...]:
    records = load(Path(job.silo), "auto").train[: job.images]
    assert len(records) == job.images
    return records


def _labels(records: tuple[ImageRecord, ...]) -> list[int]:
    row_of = {pid: row for row, pid in enumerate(sorted({record.pid for record in records}))}
    return [row_of[record.pid] for record in records]


def _learner(job: EpochJob, identities: int) -> Learner:
    device = ALONE.device()
    backbone = build_backbone(job.backbone, dropout=job.training.dropout)
    initialise(backbone, SEED)
    classifier = build_classifier(
        None, tuple(range(identities)), width=backbone.feature_width, seed=SEED
    )
    return Learner(backbone=backbone.to(device), classifier=classifier.to(device))


def _our_loops(job: EpochJob) -> Loops:
    settle_torch()
    ours = _Ours(job)
    return {
        "ours": ours.epoch,
        "ours_bf16": lambda: ours.epoch("bf16"),
        "ours_first_epoch": lambda: ours.fresh().epoch(),
        "our_inputs": ours.feed,
        "our_inputs_first_epoch": lambda: ours.fresh().feed(),
    }


def _plain_loops(job: EpochJob) -> Loops:
    plain = _Plain(job)
    return {"plain_loop": plain.epoch, "plain_inputs": plain.feed}


class _Ours:
    """Our own training, through the function that the agent's rounds call."""

    def __init__(self, job: EpochJob) -> None:
        self._job = job
        self._records = _records(job)
        self._learner = _learner(job, len({record.pid for record in self._records}))
        self.fresh()

    def fresh(self) -> "_Ours":
        """Forget the decoded images."""
        plan = self._job.backbone
        self._data = TrainingImages(
            images=ImageStore(
                [record.path for record in self._records],
                height_px=plan.height_px,
                width_px=plan.width_px,
            ),
            labels=np.array(_labels(self._records)),
            camids=np.array([record.camid for record in self._records]),
        )
        return self

    def epoch(self, precision: MixedPrecision = "off") -> None:
        """Train for one."""
        train(
            self._learner,
            self._data,
            replace(self._job.training, mixed_precision=precision),
            learning_rate_factor=1.0,
            seed=SEED,
            device=ALONE.device(),
            tell=lambda done, total, loss: None,
            compiled=self._job.compiled,
        )

    def feed(self) -> None:
        """Make the batches of an epoch, on the CPU, and train on none."""
        random = np.random.default_rng(SEED)
        for indices_N in epoch_batches(len(self._records), self._job.training.batch_size, random):
            augment(self._data.images.batch(indices_N), random, device=_CPU)


class _Files(Dataset[tuple[Tensor, int]]):
    """Images from disk, one by one, through torchvision's transforms."""

    def __init__(self, records: tuple[ImageRecord, ...], plan: BackbonePlan) -> None:
        self._paths = [record.path for record in records]
        self._labels = _labels(records)
        size = (plan.height_px, plan.width_px)
        self._transform = v2.Compose(
            [
                v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
                v2.Pad(10),
                v2.RandomCrop(size),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(MEAN_C), list(STD_C)),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self._paths[index]) as image:
            pixels_CHW: Tensor = self._transform(image.convert("RGB"))
        return pixels_CHW, self._labels[index]


class _Plain:
    """What one writes from a tutorial: a DataLoader of one worker, and a step per batch."""

    def __init__(self, job: EpochJob) -> None:
        self._plan = job.training
        self._device = ALONE.device()
        records = _records(job)
        learner = _learner(job, len({record.pid for record in records}))
        self._backbone = learner.backbone
        self._classifier = learner.classifier
        self._network = nn.Sequential(self._backbone, self._classifier)
        self._network.to(memory_format=torch.contiguous_format)
        self._loader = DataLoader(
            _Files(records, job.backbone),
            batch_size=job.training.batch_size,
            shuffle=True,
            num_workers=1,
            drop_last=False,
            pin_memory=self._device.type == "cuda",
        )

    def epoch(self) -> None:
        """Train for one; the reference builds its optimiser anew as well."""
        plan, device = self._plan, self._device
        new = [*self._backbone.neck.parameters(), *self._classifier.parameters()]
        trunk = list(self._backbone.trunk.parameters())
        optimiser = torch.optim.SGD(
            [
                {"params": trunk, "lr": plan.backbone_learning_rate},
                {"params": new, "lr": plan.learning_rate},
            ],
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            nesterov=True,
        )
        criterion = nn.CrossEntropyLoss()
        self._network.train()
        for images_NCHW, labels_N in self._loader:
            optimiser.zero_grad()
            logits_NC = self._network(images_NCHW.to(device))
            loss = criterion(logits_NC, labels_N.to(device))
            loss.backward()
            optimiser.step()
            loss.item()

    def feed(self) -> None:
        """Read an epoch's batches and train on none."""
        for _ in self._loader:
            pass


if __name__ == "__main__":
    serve({EpochJob: Timekeeper().epoch})
