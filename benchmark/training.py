"""How fast does a silo train, beside the plain loop that the reference's users would write?

Both train the same network with the ``paper`` recipe on the same generated images, each in a
process of its own, taking turns, and the median of each kind counts. The plain loop decodes,
resizes and augments every image of every epoch with torchvision in a DataLoader of one worker;
ours decodes once, keeps bytes, and augments whole batches. The input side of each is measured
alone as well: what it could feed, were training free. Ours is measured in bf16 too, beside fp32.
"""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import msgspec

from benchmark.spending import Spent, median_of, unheard
from benchmark.training_loops import SEED, EpochJob, OurLoop, PlainLoop
from fedreid.datasets.synthetic import SyntheticSpec, render
from fedreid.errors import UsageError
from fedreid.jobs import Worker
from fedreid.plan import BackbonePlan, TrainingPlan
from silo_agent.learning.group import ALONE

_IMAGES_PER_IDENTITY = 6
_WARM_UP: tuple[OurLoop | PlainLoop, ...] = ("ours", "plain_loop")
_ONCE: tuple[OurLoop, ...] = ("ours_first_epoch", "our_inputs_first_epoch")


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
    """Ours over the plain loop, both in fp32 and with their inputs: must be 1.3 or more."""
    cpu_ratio: float
    """The same of images per CPU second: what to read where the machine does other work too."""
    ours_peak_mb: float
    """Of the process in which all of our loops ran."""
    plain_peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is measured."""

    backbone: BackbonePlan
    training: TrainingPlan
    images: int
    repeats: int
    compiled: bool


def trial_of(
    model: str, images: int, batch: int, threads: int, repeats: int, *, compiled: bool = False
) -> Trial:
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
        compiled=compiled,
    )


def measure_training(trial: Trial, tell: Callable[[str], None]) -> Throughput:
    """Render images, warm up, and measure both loops in turn.

    Raises:
        UsageError: there is no such model.
    """
    with tempfile.TemporaryDirectory() as folder:
        tell(f"rendering {trial.images} images")
        silo = _rendered(Path(folder) / "silos", trial)
        spent = asyncio.run(_timed(trial, silo, tell))
    wall = {loop: trial.images / median_of(times, "wall_s") for loop, times in spent.items()}
    ours, plain = spent["ours"], spent["plain_loop"]
    return Throughput(
        model=trial.backbone.name,
        images=trial.images,
        batch=trial.training.batch_size,
        threads=trial.training.threads,
        device=str(ALONE.device()),
        ratio=wall["ours"] / wall["plain_loop"],
        cpu_ratio=median_of(plain, "cpu_s") / median_of(ours, "cpu_s"),
        ours_peak_mb=ours[-1].peak_mb,
        plain_peak_mb=plain[-1].peak_mb,
        **wall,
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
        "ours_peak_mb": "our peak memory, MB",
        "plain_peak_mb": "plain loop's peak memory, MB",
    }
    values = asdict(result)
    lines = [(text, f"{values[name]:.1f}") for name, text in names.items()]
    return [
        *lines,
        ("ours / plain loop, by wall time", f"{result.ratio:.2f}"),
        ("ours / plain loop, by CPU time", f"{result.cpu_ratio:.2f}"),
    ]


async def _timed(trial: Trial, silo: Path, tell: Callable[[str], None]) -> dict[str, list[Spent]]:
    """What the epochs of each loop took."""
    workers = {kind: Worker("benchmark.training_loops") for kind in (OurLoop, PlainLoop)}
    worker_of = {loop: worker for kind, worker in workers.items() for loop in get_args(kind)}
    spent: dict[str, list[Spent]] = {loop: [] for loop in worker_of}

    async def epoch(loop: OurLoop | PlainLoop) -> Spent:
        job = EpochJob(
            loop=loop,
            silo=str(silo),
            images=trial.images,
            backbone=trial.backbone,
            training=trial.training,
            compiled=trial.compiled,
        )
        return await worker_of[loop].run(job, Spent, unheard)

    try:
        tell("warming up")
        for loop in _WARM_UP:
            await epoch(loop)
        for loop in _ONCE:
            spent[loop].append(await epoch(loop))
        for repeat in range(trial.repeats):
            tell(f"epoch {repeat + 1} of {trial.repeats} of each")
            for loop in worker_of:
                if loop not in _ONCE:
                    spent[loop].append(await epoch(loop))
    finally:
        for worker in workers.values():
            await worker.close()
    return spent


def _rendered(out: Path, trial: Trial) -> Path:
    """The folder of one silo with at least the trial's images."""
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
        seed=SEED,
    )
    (silo,) = render(out, spec, workers=1).silos
    return out / silo.name
