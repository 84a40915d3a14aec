"""An agent's data folder as a finished run leaves it, without any federation.

The rounds are trained by the product's own code; a published model is the mean of the
silo's update and the model before.
"""

from pathlib import Path

import msgspec
import numpy as np
import torch

from fedreid.contract import TrainTask
from fedreid.files import digest_of, make_folder
from fedreid.jobs import Progress
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.plan import BackbonePlan, BatchNormPolicy, TrainingPlan
from fedreid.reid.backbone import build_backbone, initialise, shared_tensors
from fedreid.wire.tensors import load_tensors, save_tensors
from silo_agent.config import AgentConfig, Folders, Membership, save_config, save_membership
from silo_agent.held import Held
from silo_agent.learning.holding import Holding
from silo_agent.learning.jobs import EvaluateJob, Silo, TrainJob
from silo_agent.learning.local_round import LocalRound
from silo_agent.learning.worker import SiloWorker
from silo_agent.outbox import UPDATE_FILE, FinishedRound, Outbox

RUN = RunName("spring")
BACKBONE = BackbonePlan(name="squeezenet1_1", height_px=64, width_px=32)
TRAINING = TrainingPlan(
    batch_size=16, learning_rate=0.02, backbone_learning_rate=0.02, threads=1, probe_batches=1
)


def finished_agent(
    root: Path,
    dataset: Path,
    *,
    rounds: int = 2,
    bn: BatchNormPolicy = "pooled",
    standalone: bool = True,
    backbone: BackbonePlan = BACKBONE,
    training: TrainingPlan = TRAINING,
) -> Folders:
    """The folder of the silo ``north`` of the federation ``harbour`` after a run on ``dataset``."""
    folders = Folders(make_folder(root))
    save_config(folders, AgentConfig(coordinator="localhost:1", dataset=str(dataset)))
    membership = Membership(federation="harbour", silo="north", model_key=b"")
    save_membership(folders, membership)
    silo = Silo(federation="harbour", name="north", dataset=str(dataset), layout="auto")
    data, outbox = Holding().get(silo, backbone), Outbox(folders)
    first = build_backbone(backbone)
    initialise(first, 1)
    save_tensors(root / "start.safetensors", shared_tensors(first))
    held = publish(folders, root / "start.safetensors", round=0)
    finished = None
    for number in range(1, rounds + 1):
        out = outbox.begin(RUN, number)
        task = TrainTask(
            run=RUN,
            round=RoundNumber(number),
            base_digest=Digest(held.digest),
            seed=7,
            backbone=backbone,
            training=training,
            learning_rate_factor=1.0,
            bn=bn,
            upload_encoding="fp32",
            download_encoding="fp32",
            evaluate=True,
            standalone=standalone,
            remaining_s=60.0,
        )
        job = TrainJob.of(
            task,
            silo,
            base_model=held.path,
            previous="" if finished is None else str(outbox.folder(finished)),
            out=str(out),
        )
        report = LocalRound(job=job, data=data, device=torch.device("cpu"), tell=_quiet).run()
        finished = FinishedRound.of(task, report, base_round=held.round, previous=finished)
        outbox.put(out, finished)
        aggregate = root / "aggregate.safetensors"
        _aggregate(Path(held.path), outbox.folder(finished) / UPDATE_FILE, aggregate)
        held = publish(folders, aggregate, round=number)
        outbox.remove_before(finished)
    assert finished is not None
    _measure_published(outbox, finished, silo, held)
    return folders


def publish(folders: Folders, model: Path, *, round: int) -> Held:
    """Put a model in the agent's cache as if it had been fetched."""
    digest = digest_of(model)
    path = folders.models / f"{digest}.fp32.safetensors"
    path.write_bytes(model.read_bytes())
    held = Held(path=str(path), digest=digest, run=RUN, round=round, version=round + 1)
    (folders.models / f"{digest}.fp32.json").write_bytes(msgspec.json.encode(held))
    return held


def _aggregate(base: Path, update: Path, out: Path) -> None:
    """The mean of this silo's update and that of one which has not moved from the base model."""
    ours, theirs = load_tensors(update), load_tensors(base)
    save_tensors(out, {name: np.float32(0.5) * (ours[name] + theirs[name]) for name in ours})


def _measure_published(outbox: Outbox, finished: FinishedRound, silo: Silo, held: Held) -> None:
    job = EvaluateJob(
        silo=silo,
        backbone=finished.backbone,
        bn=finished.bn,
        model=held.path,
        previous=str(outbox.folder(finished)),
        threads=1,
    )
    (result,) = SiloWorker().evaluate(job, _quiet).evaluations
    outbox.note_published(finished, result)


def _quiet(progress: Progress) -> None:
    """Hears nothing."""
