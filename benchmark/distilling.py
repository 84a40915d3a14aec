"""How fast does the coordinator distil, and in how much memory, as the number of silos grows?

Beside it runs a loop like the paper's published code, which holds all teachers and asks each for
every batch. Both in processes of their own, taking turns; medians count. Ours also takes the loss
over all images before and after, which the other does not.
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import msgspec

from benchmark.distilling_loops import DistillationJob, DistillingLoop
from benchmark.spending import Spent, median_of, unheard
from fedreid.datasets.synthetic import SyntheticSpec, render
from fedreid.errors import UsageError
from fedreid.jobs import Worker
from fedreid.plan import BackbonePlan, DistillationPlan
from fedreid.reid.backbone import build_backbone, initialise, shared_tensors
from fedreid.wire.tensors import save_tensors

_SEED = 0
_LOOPS: tuple[DistillingLoop, ...] = get_args(DistillingLoop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Public images per second of a whole distillation, by number of teachers, and memory."""

    teachers: int
    ours: float
    ours_bf16: float
    plain_loop: float
    ratio: float
    """Ours over the plain loop, both in fp32."""
    cpu_ratio: float
    """The same of images per CPU second."""
    ours_peak_mb: float
    plain_peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillingTrial:
    """What is measured."""

    backbone: BackbonePlan
    distillation: DistillationPlan
    images: int
    teachers: tuple[int, ...]
    repeats: int


def distilling_trial(
    model: str,
    images: int,
    teachers: str,
    *,
    batch: int,
    epochs: int,
    threads: int,
    repeats: int,
) -> DistillingTrial:
    """The paper's loss at 256×128; ``teachers`` is their numbers, such as ``2,8``.

    Raises:
        UsageError: a value is out of range.
    """
    settings = {"loss": "paper", "batch_size": batch, "epochs": epochs, "threads": threads}
    try:
        plan = msgspec.convert(settings, DistillationPlan)
        numbers = tuple(int(number) for number in teachers.split(","))
    except ValueError as error:  # msgspec's own is one
        raise UsageError("These options can't be", why=str(error)) from error
    if images < 2 or repeats < 1 or min(numbers) < 1:
        raise UsageError("Distillation needs two images and a teacher, and a measurement one run")
    return DistillingTrial(
        backbone=BackbonePlan(name=model),
        distillation=plan,
        images=images,
        teachers=numbers,
        repeats=repeats,
    )


def measure_distilling(trial: DistillingTrial, tell: Callable[[str], None]) -> list[Distilled]:
    """Render public images, and measure both loops in turn for each number of teachers.

    Raises:
        UsageError: there is no such model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell(f"rendering {trial.images} images")
        _render(folder / "data", trial)
        backbone = build_backbone(trial.backbone, dropout=0.0)
        initialise(backbone, _SEED)
        save_tensors(folder / "model.safetensors", shared_tensors(backbone))
        return [_measured(trial, folder, number, tell) for number in trial.teachers]


def table_of(results: Sequence[Distilled]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of a table."""
    columns = (
        "teachers", "ours, images/s", "in bf16", "plain loop", "ratio", "by CPU time",
        "our peak, MB", "plain loop's",
    )  # fmt: skip
    rows = []
    for result in results:
        teachers, *rates = asdict(result).values()
        digits = (1, 1, 1, 2, 2, 0, 0)
        cells = (f"{rate:.{places}f}" for rate, places in zip(rates, digits, strict=True))
        rows.append((str(teachers), *cells))
    return columns, rows


def _measured(
    trial: DistillingTrial, folder: Path, teachers: int, tell: Callable[[str], None]
) -> Distilled:
    spent = asyncio.run(_timed(trial, folder, teachers, tell))
    rate = {loop: trial.images / median_of(times, "wall_s") for loop, times in spent.items()}
    ours, plain = spent["ours"], spent["plain_loop"]
    return Distilled(
        teachers=teachers,
        ratio=rate["ours"] / rate["plain_loop"],
        cpu_ratio=median_of(plain, "cpu_s") / median_of(ours, "cpu_s"),
        ours_peak_mb=ours[-1].peak_mb,
        plain_peak_mb=plain[-1].peak_mb,
        **rate,
    )


async def _timed(
    trial: DistillingTrial, folder: Path, teachers: int, tell: Callable[[str], None]
) -> dict[str, list[Spent]]:
    """What the distillations of each loop took, each loop in a process of its own."""
    workers = {loop: Worker("benchmark.distilling_loops") for loop in _LOOPS}
    spent: dict[str, list[Spent]] = {loop: [] for loop in _LOOPS}
    try:
        for repeat in range(trial.repeats):
            for loop, worker in workers.items():
                tell(f"{teachers} teachers, {loop}, {repeat + 1} of {trial.repeats}")
                job = DistillationJob(
                    loop=loop,
                    model=str(folder / "model.safetensors"),
                    teachers=teachers,
                    backbone=trial.backbone,
                    distillation=msgspec.structs.replace(
                        trial.distillation, images=str(folder / "data" / "public")
                    ),
                    out=str(folder / "out.safetensors"),
                )
                spent[loop].append(await worker.run(job, Spent, unheard))
    finally:
        for worker in workers.values():
            await worker.close()
    return spent


def _render(out: Path, trial: DistillingTrial) -> None:
    plan = trial.backbone
    spec = SyntheticSpec(
        silos=1,
        ratio=(1,),
        unit_identities=2,
        test_identities=1,
        distractors=0,
        junk=0,
        public_images=trial.images,
        height_px=plan.height_px,
        width_px=plan.width_px,
        seed=_SEED,
    )
    render(out, spec, workers=1)
