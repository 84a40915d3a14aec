"""How fast does a silo train, beside the plain loop that the reference's users would write?

Both train the same network with the ``paper`` recipe on the same generated images, alternating in
one process, and the median of each kind counts. The plain loop decodes, resizes and augments every
image of every epoch with torchvision in a DataLoader of one worker; ours decodes once, keeps
bytes, and augments whole batches. The input side of each is measured alone as well: what it could
feed, were training free. Ours is measured in bf16 too, beside fp32.

Letters: N images of a batch, C channels, H height, W width.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec.structs import replace
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fedreid.datasets.layouts import load
from fedreid.datasets.records import ImageRecord
from fedreid.datasets.synthetic import SyntheticSpec, render
from fedreid.errors import UsageError
from fedreid.plan import BackbonePlan, MixedPrecision, TrainingPlan
from fedreid.reid.backbone import build_backbone, initialise
from fedreid.reid.transforms import MEAN_C, STD_C, ImageStore, augment
from silo_agent.learning.group import ALONE
from silo_agent.learning.sampling import epoch_batches
from silo_agent.learning.state import build_classifier
from silo_agent.learning.training import Learner, TrainingImages, train

_IMAGES_PER_IDENTITY = 6
_SEED = 0
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Images per second; ``inputs`` is reading, decoding and augmenting alone."""

    model: str
    images: int
    batch: int
    threads: int
    device: str
    ours: float
    ours_bf16: float
    ours_first_epoch: float
    plain_loop: float
    our_inputs_first_epoch: float
    our_inputs: float
    plain_inputs: float
    ratio: float
    """Ours over the plain loop, both in fp32 and with their inputs: must be 1 or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is measured."""

    backbone: BackbonePlan
    training: TrainingPlan
    images: int
    repeats: int
    device: torch.device


def trial_of(model: str, images: int, batch: int, threads: int, repeats: int) -> Trial:
    """The ``paper`` recipe at 256×128 on this machine's first GPU, or its CPU.

    Raises:
        UsageError: a value is out of range.
    """
    try:
        training = msgspec.convert({"batch_size": batch, "threads": threads}, TrainingPlan)
    except msgspec.ValidationError as error:
        raise UsageError("These options can't be", why=str(error)) from error
    if images < 2 or repeats < 1 or threads < 1:
        raise UsageError("An epoch needs two images, and a measurement one epoch and one thread")
    return Trial(
        backbone=BackbonePlan(name=model),
        training=training,
        images=images,
        repeats=repeats,
        device=ALONE.device(),
    )


def measure_training(trial: Trial, tell: Callable[[str], None]) -> Throughput:
    """Render images, warm up, and measure both loops in turn."""
    torch.set_num_threads(trial.training.threads)
    with tempfile.TemporaryDirectory() as folder:
        tell(f"rendering {trial.images} images")
        records = _rendered(Path(folder) / "silos", trial)
        ours, plain = _Ours(records, trial), _Plain(records, trial)
        first_inputs = _rate(ours.fresh().feed, len(records))
        ours.fresh()
        plain.epoch()  # warms up the libraries of both
        first = _rate(ours.epoch, len(records))
        kinds = {
            "ours": ours.epoch,
            "plain_loop": plain.epoch,
            "ours_bf16": lambda: ours.epoch("bf16"),
            "our_inputs": ours.feed,
            "plain_inputs": plain.feed,
        }
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for repeat in range(trial.repeats):
            tell(f"epoch {repeat + 1} of {trial.repeats} of each")
            for name, run in kinds.items():
                rates[name].append(_rate(run, len(records)))
    median = {name: statistics.median(values) for name, values in rates.items()}
    return Throughput(
        model=trial.backbone.name,
        images=len(records),
        batch=trial.training.batch_size,
        threads=trial.training.threads,
        device=str(trial.device),
        ours_first_epoch=first,
        our_inputs_first_epoch=first_inputs,
        ratio=median["ours"] / median["plain_loop"],
        **median,
    )


def rows(result: Throughput) -> list[tuple[str, str]]:
    """The figures for a table."""
    names = {
        "ours": "our training, images/s",
        "ours_bf16": "our training in bf16, images/s",
        "ours_first_epoch": "our training in its first epoch (decoding), images/s",
        "plain_loop": "plain loop, images/s",
        "our_inputs_first_epoch": "our inputs alone, first epoch (decoding), images/s",
        "our_inputs": "our inputs alone, later epochs, images/s",
        "plain_inputs": "plain loop's inputs alone, images/s",
    }
    values = asdict(result)
    lines = [(text, f"{values[name]:.1f}") for name, text in names.items()]
    return [*lines, ("ours / plain loop", f"{result.ratio:.2f}")]


def _rate(run: Callable[[], None], images: int) -> float:
    began = time.perf_counter()
    run()
    return images / (time.perf_counter() - began)


def _rendered(out: Path, trial: Trial) -> tuple[ImageRecord, ...]:
    plan = trial.backbone
    identities = -(-trial.images // _IMAGES_PER_IDENTITY)
    spec = SyntheticSpec(
        silos=1,
        ratio=(1,),
        unit_identities=max(2, identities),
        test_identities=1,
        distractors=0,
        junk=0,
        public_images=0,
        height_px=plan.height_px,
        width_px=plan.width_px,
        seed=_SEED,
    )
    (silo,) = render(out, spec, workers=1).silos
    return load(out / silo.name, "auto").train[: trial.images]


def _learner(trial: Trial, identities: int) -> Learner:
    backbone = build_backbone(trial.backbone, dropout=trial.training.dropout)
    initialise(backbone, _SEED)
    classifier = build_classifier(
        None, tuple(range(identities)), width=backbone.feature_width, seed=_SEED
    )
    return Learner(backbone=backbone.to(trial.device), classifier=classifier.to(trial.device))


def _labels(records: tuple[ImageRecord, ...]) -> list[int]:
    row_of = {pid: row for row, pid in enumerate(sorted({record.pid for record in records}))}
    return [row_of[record.pid] for record in records]


class _Ours:
    """Our own training, through the function that the agent's rounds call."""

    def __init__(self, records: tuple[ImageRecord, ...], trial: Trial) -> None:
        self._records = records
        self._trial = trial
        self._learner = _learner(trial, len({record.pid for record in records}))
        self.fresh()

    def fresh(self) -> "_Ours":
        """Forget the decoded images."""
        plan = self._trial.backbone
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
        """Train for one, deterministically as the agent does."""
        torch.use_deterministic_algorithms(True)
        train(
            self._learner,
            self._data,
            replace(self._trial.training, mixed_precision=precision),
            learning_rate_factor=1.0,
            seed=_SEED,
            device=self._trial.device,
            tell=lambda done, total, loss: None,
        )
        torch.use_deterministic_algorithms(False)

    def feed(self) -> None:
        """Make the batches of an epoch, on the CPU, and train on none."""
        random = np.random.default_rng(_SEED)
        for indices_N in epoch_batches(len(self._records), self._trial.training.batch_size, random):
            augment(self._data.images.batch(indices_N), random, device=_CPU)


class _Files(Dataset[tuple[Tensor, int]]):
    """Images from disk, one by one, through torchvision's transforms."""

    def __init__(self, records: tuple[ImageRecord, ...], height_px: int, width_px: int) -> None:
        self._paths = [record.path for record in records]
        self._labels = _labels(records)
        size = (height_px, width_px)
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

    def __init__(self, records: tuple[ImageRecord, ...], trial: Trial) -> None:
        self._trial = trial
        learner = _learner(trial, len({record.pid for record in records}))
        self._backbone = learner.backbone
        self._classifier = learner.classifier
        self._network = nn.Sequential(self._backbone, self._classifier)
        self._network.to(memory_format=torch.contiguous_format)
        self._loader = DataLoader(
            _Files(records, trial.backbone.height_px, trial.backbone.width_px),
            batch_size=trial.training.batch_size,
            shuffle=True,
            num_workers=1,
            drop_last=False,
            pin_memory=trial.device.type == "cuda",
        )

    def epoch(self) -> None:
        """Train for one; the reference builds its optimiser anew as well."""
        plan, device = self._trial.training, self._trial.device
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
