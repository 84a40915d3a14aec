"""Are generated silos worth learning, and do they differ? Trained, untrained and colours compared.

One row for each way of ranking, one column for each silo's test set: colours alone, an untrained
backbone, and backbones trained on one silo only. A trained one must beat the two first, and must
lose on the silos that it has not seen.
"""

import tempfile
from importlib.resources import files
from pathlib import Path

import msgspec

from benchmark.baselines import colour_accuracy
from coordinator.learning.jobs import InitialiseJob
from coordinator.learning.start import write_start
from fedreid.jobs import ProgressSink
from fedreid.plan import Plan, parse_plan
from fedreid.reid.settling import settle_torch
from silo_agent.learning.jobs import EvaluateJob, Silo, TrainJob
from silo_agent.learning.worker import SiloWorker
from silo_agent.outbox import UPDATE_FILE

Row = dict[str, float]
"""mAP by silo, 0..1."""


def measure_guards(
    data: Path, *, trainers: int, epochs: int, threads: int, tell: ProgressSink
) -> dict[str, Row]:
    """The rows for a folder of silos; the ``trainers`` largest silos train a backbone each."""
    settle_torch()
    silos = {path.name: path for path in sorted(data.iterdir()) if (path / "query").is_dir()}
    plan = _plan(epochs, threads)
    rows = {"colours": {name: colour_accuracy(path).map for name, path in silos.items()}}
    worker = SiloWorker()
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.safetensors"
        write_start(InitialiseJob(backbone=plan.backbone, seed=plan.seed, out=str(start)), tell)
        rows["untrained"] = _row(worker, plan, start, silos, tell)
        for name in sorted(silos, key=lambda name: -_images(silos[name]))[:trainers]:
            out = Path(folder) / name
            out.mkdir()
            worker.train(_job(plan, name, silos[name], start, out), tell)
            rows[f"trained on {name}"] = _row(worker, plan, out / UPDATE_FILE, silos, tell)
    return rows


def _plan(epochs: int, threads: int) -> Plan:
    plan = parse_plan((files("benchmark") / "plans" / "demo.toml").read_text("utf-8"))
    training = msgspec.structs.replace(plan.training, epochs=epochs, threads=threads)
    return msgspec.structs.replace(plan, training=training)


def _job(plan: Plan, name: str, dataset: Path, start: Path, out: Path) -> TrainJob:
    return TrainJob(
        silo=_silo(name, dataset),
        run="guards",
        round=1,
        seed=plan.seed,
        backbone=plan.backbone,
        training=plan.training,
        learning_rate_factor=1.0,
        bn="pooled",
        base_model=str(start),
        previous="",
        out=str(out),
        evaluate=(),
        standalone=False,
    )


def _row(
    worker: SiloWorker, plan: Plan, model: Path, silos: dict[str, Path], tell: ProgressSink
) -> Row:
    row: Row = {}
    for name, dataset in silos.items():
        job = EvaluateJob(
            silo=_silo(name, dataset),
            backbone=plan.backbone,
            bn="pooled",
            model=str(model),
            previous="",
            threads=plan.training.threads,
        )
        (result,) = worker.evaluate(job, tell).evaluations
        row[name] = result.map
    return row


def _silo(name: str, dataset: Path) -> Silo:
    return Silo(federation="guards", name=name, dataset=str(dataset), layout="market1501")


def _images(dataset: Path) -> int:
    return len(list((dataset / "bounding_box_train").iterdir()))
