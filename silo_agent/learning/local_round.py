"""What does a silo do in one round? Measure, train, weigh, measure, and keep its own (§2, §3, §7).

Three models are told apart: ``global`` is w_t as published, ``local`` is w_t after this silo's
training, ``standalone`` is a baseline that starts from the w_t of the silo's first round, trains
on with the same recipe and never sees another's weights.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import blake3
import msgspec
import torch
from msgspec.structs import replace

import fedreid
from fedreid.contract import EvaluationResult, ModelKind
from fedreid.errors import storage_errors
from fedreid.files import digest_of, make_folder
from fedreid.jobs import Progress, ProgressSink
from fedreid.plan import BatchNormPolicy, keeps_batch_norm
from fedreid.reid.backbone import load_backbone, shared_tensors
from fedreid.reid.measuring import measure
from fedreid.seeds import derive_seed
from fedreid.wire.tensors import FloatArray, batch_norm_names, load_tensors, save_tensors
from silo_agent.learning.checkpoints import Checkpoints, Pace
from silo_agent.learning.group import ALONE, Group
from silo_agent.learning.holding import SiloData
from silo_agent.learning.jobs import TrainJob, TrainReport
from silo_agent.learning.sampling import IndexArray
from silo_agent.learning.state import (
    BACKBONE,
    BATCH_NORM,
    FEDERATED,
    STANDALONE,
    ClassifierState,
    build_classifier,
    read_classifier,
    write_classifier,
)
from silo_agent.learning.training import Learner, Trained, train
from silo_agent.learning.weighing import cosine_distance, draw_probe, probe_logits

UPDATE_FILE = "update.safetensors"
PRIVATE_FOLDER = "private"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRound:
    """One training job with what it works on."""

    job: TrainJob
    data: SiloData
    device: torch.device
    tell: ProgressSink
    group: Group = ALONE
    pace: Pace = field(default_factory=Pace)

    def run(self) -> TrainReport:
        """Do the job; its outputs are complete when this returns.

        Raises:
            DatasetError, StorageError, UsageError, JobFailed: see the functions used.
        """
        evaluations: list[EvaluationResult] = []
        learner = self._federated_learner()
        self._measure(learner, "global", evaluations)
        images = self.data.train.images
        probe_N = self._probe()
        before_NC = self._logits(learner, probe_N, "before")
        key = self._key()
        trained = self._train(learner, "training", key)
        after_NC = self._logits(learner, probe_N, "after")
        self._measure(learner, "local", evaluations)
        self._keep_federated(learner)
        self._standalone(evaluations, key)
        return TrainReport(
            num_images=len(images),
            num_identities=len(self.data.identities),
            cosine_distance=cosine_distance(before_NC, after_NC),
            train_loss=trained.loss,
            num_steps=trained.num_steps,
            evaluations=tuple(evaluations),
            notes=(*self.data.notes, *trained.notes),
        )

    def _probe(self) -> IndexArray:
        training = self.job.training
        fixed = training.probe == "fixed"
        return draw_probe(
            len(self.data.train.images),
            batches=training.probe_batches if fixed else 1,
            batch_size=training.batch_size,
            seed=self._seed("probe") if fixed else self._seed("probe", self.job.round),
        )

    def _logits(self, learner: Learner, probe_N: IndexArray, when: str) -> FloatArray:
        torch.manual_seed(self._seed("probe", self.job.round, when))
        return probe_logits(
            learner,
            self.data.train.images,
            probe_N,
            device=self.device,
            dropout=self.job.training.probe == "reference",
        )

    def _federated_learner(self) -> Learner:
        base = load_tensors(Path(self.job.base_model))
        base.update(own_batch_norm(self.job.previous, self.job.bn))
        folder = previous_private(self.job.previous, FEDERATED)
        return self._learner(base, read_classifier(folder) if folder else None)

    def _learner(self, tensors: dict[str, FloatArray], previous: ClassifierState | None) -> Learner:
        backbone = load_backbone(self.job.backbone, tensors, dropout=self.job.training.dropout)
        classifier = build_classifier(
            previous,
            self.data.identities,
            width=backbone.feature_width,
            seed=self._seed("classifier"),
        )
        return Learner(backbone=backbone.to(self.device), classifier=classifier.to(self.device))

    def _train(self, learner: Learner, phase: str, key: str) -> Trained:
        folder = self.job.checkpoints
        return train(
            learner,
            self.data.train,
            self.job.training,
            learning_rate_factor=self.job.learning_rate_factor,
            seed=self._seed("round", self.job.round, phase),
            device=self.device,
            group=self.group,
            tell=lambda done, total, loss: self.tell(
                Progress(phase=phase, done=done, total=total, loss=loss)
            ),
            checkpoints=Checkpoints(
                Path(folder) / phase if folder else None,
                key,
                pace=self.pace,
                group=self.group,
            ),
            compiled=self.job.compiled,
        )

    def _key(self) -> str:
        """A digest of all that a training is settled by: with another one it goes another way.

        Only checkpoints need it; empty without them, for it reads the whole model.
        """
        if not self.job.checkpoints:
            return ""
        told = replace(self.job, out="", checkpoints="")
        hasher = blake3.blake3(msgspec.json.encode(told))
        hasher.update(digest_of(Path(self.job.base_model)).encode())
        hasher.update(self.data.train.labels.tobytes() + self.data.train.camids.tobytes())
        hasher.update(f"{self.data.identities} {self.device} {self.group.size}".encode())
        hasher.update(f"{fedreid.__version__} {torch.__version__}".encode())
        return hasher.hexdigest()

    def _measure(
        self, learner: Learner, model: ModelKind, evaluations: list[EvaluationResult]
    ) -> None:
        if model not in self.job.evaluate:
            return
        result = measure(
            learner.backbone,
            self.data.test,
            model,
            device=self.device,
            tell=lambda done, total: self.tell(
                Progress(phase="evaluating", done=done, total=total)
            ),
        )
        if result is not None:
            evaluations.append(result)

    def _keep_federated(self, learner: Learner) -> None:
        shared = shared_tensors(learner.backbone)
        save_tensors(Path(self.job.out) / UPDATE_FILE, shared, over=self.job.spare)
        folder = self._private(FEDERATED)
        write_classifier(folder, ClassifierState.of(learner.classifier, self.data.identities))
        if self.job.bn == "local" or (self.job.bn == "adaptive" and self.data.cameras > 1):
            own = {name: shared[name] for name in batch_norm_names(shared)}
            save_tensors(folder / BATCH_NORM, own)

    def _standalone(self, evaluations: list[EvaluationResult], key: str) -> None:
        before = previous_private(self.job.previous, STANDALONE)
        if not self.job.standalone:
            if before is not None:  # a round without the baseline does not end it
                with storage_errors("copy", before):
                    shutil.copytree(before, self._private(STANDALONE), dirs_exist_ok=True)
            return
        start = before / BACKBONE if before else Path(self.job.base_model)
        learner = self._learner(load_tensors(start), read_classifier(before) if before else None)
        self._train(learner, "standalone", key)
        self._measure(learner, "standalone", evaluations)
        folder = self._private(STANDALONE)
        save_tensors(folder / BACKBONE, shared_tensors(learner.backbone))
        write_classifier(folder, ClassifierState.of(learner.classifier, self.data.identities))

    def _private(self, part: str) -> Path:
        return make_folder(Path(self.job.out) / PRIVATE_FOLDER / part, mode=0o700)

    def _seed(self, *place: str | int) -> int:
        return derive_seed(self.job.seed, self.job.silo.name, *place)


def previous_private(previous: str, part: str) -> Path | None:
    """The folder of what the last round kept under ``part``; None if it kept nothing."""
    folder = Path(previous) / PRIVATE_FOLDER / part
    return folder if previous and folder.is_dir() else None


def own_batch_norm(previous: str, bn: BatchNormPolicy) -> dict[str, FloatArray]:
    """The silo's own BatchNorm tensors from its second round on; none if it takes the model's."""
    return load_tensors(_own_path(previous)) if has_own_batch_norm(previous, bn) else {}


def has_own_batch_norm(previous: str, bn: BatchNormPolicy) -> bool:
    """Whether the silo keeps BatchNorm tensors of its own."""
    return bool(previous) and keeps_batch_norm(bn) and _own_path(previous).exists()


def _own_path(previous: str) -> Path:
    return Path(previous) / PRIVATE_FOLDER / FEDERATED / BATCH_NORM
