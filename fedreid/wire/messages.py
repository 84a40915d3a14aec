"""How does each type of the contract look in protobuf?"""

import math
import re
from typing import TypeVar, get_args

import msgspec
from google.protobuf.unknown_fields import UnknownFieldSet

from fedreid.contract import (
    EvaluateTask,
    EvaluationResult,
    ModelKind,
    PrivacyReport,
    Release,
    ReleasePayload,
    RenewTask,
    Task,
    TrainTask,
    UpdateReport,
    WaitTask,
)
from fedreid.errors import FedreidError, Refusal, UpdateRefused
from fedreid.limits import POLICY_KEY_CHARACTERS
from fedreid.names import Digest, RoundNumber, RunName, check_label, is_digest
from fedreid.plan import BackbonePlan, BatchNormPolicy, Section, TrainingPlan
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.manifest import encoding_from_wire, encoding_to_wire, is_known_encoding

_KIND_TO_WIRE: dict[ModelKind, pb.ModelKind.ValueType] = {
    "global": pb.MODEL_KIND_GLOBAL,
    "local": pb.MODEL_KIND_LOCAL,
    "standalone": pb.MODEL_KIND_STANDALONE,
}
_POLICY_KEY = re.compile(r"[a-z_]+(\.[a-z_]+)?")
_KIND_FROM_WIRE: dict[int, ModelKind] = {value: name for name, value in _KIND_TO_WIRE.items()}
_UPGRADE = "Upgrade the older of the two programs."
SectionT = TypeVar("SectionT", bound=Section)


def task_to_wire(task: Task) -> pb.NextTaskResponse:
    """A task as the coordinator sends it."""
    if isinstance(task, WaitTask):
        wait = pb.WaitTask(reason=task.reason, run_finished=task.run_finished)
        return pb.NextTaskResponse(wait=wait)
    if isinstance(task, RenewTask):
        return pb.NextTaskResponse(renew=pb.RenewTask(reason=task.reason))
    if isinstance(task, EvaluateTask):
        return pb.NextTaskResponse(
            evaluate=pb.EvaluateTask(
                run=task.run,
                round=task.round,
                model_digest=task.model_digest,
                backbone=_backbone_to_wire(task.backbone),
                bn=task.bn,
                download_encoding=encoding_to_wire(task.download_encoding),
                threads=task.threads,
            )
        )
    return pb.NextTaskResponse(
        train=pb.TrainTask(
            run=task.run,
            round=task.round,
            base_digest=task.base_digest,
            seed=task.seed,
            backbone=_backbone_to_wire(task.backbone),
            training=_training_to_wire(task.training),
            learning_rate_factor=task.learning_rate_factor,
            bn=task.bn,
            upload_encoding=encoding_to_wire(task.upload_encoding),
            download_encoding=encoding_to_wire(task.download_encoding),
            evaluate=task.evaluate,
            standalone=task.standalone,
            remaining_s=task.remaining_s,
        )
    )


def task_from_wire(message: pb.NextTaskResponse) -> Task:
    """A task as the agent understands it.

    Raises:
        FedreidError: a value that this software does not know or allow.
    """
    kind = message.WhichOneof("task")
    if kind == "train":
        train = message.train
        return TrainTask(
            run=RunName(check_label(train.run, what="run name")),
            round=RoundNumber(train.round),
            base_digest=_digest(train.base_digest),
            seed=train.seed,
            backbone=_section_from_wire(train.backbone, BackbonePlan),
            training=_section_from_wire(train.training, TrainingPlan),
            learning_rate_factor=_factor(train.learning_rate_factor),
            bn=_bn_from_wire(train.bn),
            upload_encoding=encoding_from_wire(train.upload_encoding),
            download_encoding=encoding_from_wire(train.download_encoding),
            evaluate=train.evaluate,
            standalone=train.standalone,
            remaining_s=train.remaining_s,
        )
    if kind == "evaluate":
        evaluate = message.evaluate
        return EvaluateTask(
            run=RunName(check_label(evaluate.run, what="run name")),
            round=RoundNumber(evaluate.round),
            model_digest=_digest(evaluate.model_digest),
            backbone=_section_from_wire(evaluate.backbone, BackbonePlan),
            bn=_bn_from_wire(evaluate.bn),
            download_encoding=encoding_from_wire(evaluate.download_encoding),
            threads=evaluate.threads,
        )
    if kind == "renew":
        return RenewTask(reason=message.renew.reason)
    if kind is None and len(UnknownFieldSet(message)):
        raise FedreidError(
            "The coordinator gives a kind of task that this agent does not know",
            next_step=_UPGRADE,
        )
    return WaitTask(reason=message.wait.reason, run_finished=message.wait.run_finished)


def report_to_wire(report: UpdateReport) -> pb.UpdateReport:
    """An update's numbers."""
    return pb.UpdateReport(
        num_images=report.num_images,
        cosine_distance=report.cosine_distance,
        train_loss=report.train_loss,
        num_steps=report.num_steps,
        privacy=None if report.privacy is None else _privacy_to_wire(report.privacy),
    )


def report_from_wire(message: pb.UpdateReport) -> UpdateReport:
    """An update's numbers from outside, checked; UpdateRefused if they can't be true."""
    return UpdateReport(
        num_images=message.num_images,
        cosine_distance=message.cosine_distance,
        train_loss=message.train_loss,
        num_steps=message.num_steps,
        privacy=_privacy_from_wire(message.privacy) if message.HasField("privacy") else None,
    ).checked()


def evaluation_to_wire(result: EvaluationResult) -> pb.Evaluation:
    """A measurement."""
    return pb.Evaluation(
        model=_KIND_TO_WIRE[result.model],
        rank1=result.rank1,
        rank5=result.rank5,
        rank10=result.rank10,
        map=result.map,
        minp=result.minp,
        queries=result.queries,
    )


def evaluation_from_wire(message: pb.Evaluation) -> EvaluationResult:
    """A measurement from outside, checked; UpdateRefused if its values can't be true."""
    if message.model not in _KIND_FROM_WIRE:
        raise UpdateRefused(Refusal.REPORT, f"The model kind {message.model} is unknown")
    return EvaluationResult(
        model=_KIND_FROM_WIRE[message.model],
        rank1=message.rank1,
        rank5=message.rank5,
        rank10=message.rank10,
        map=message.map,
        minp=message.minp,
        queries=message.queries,
    ).checked()


def policy_key_from_wire(text: str) -> str:
    """With which key of its policy a silo declines; what can be none becomes ``policy``."""
    known = len(text) <= POLICY_KEY_CHARACTERS and _POLICY_KEY.fullmatch(text)
    return text if known else "policy"


def release_to_wire(release: Release) -> pb.Release:
    """A release, to be serialised and signed."""
    return pb.Release(
        federation=release.federation,
        run=release.run,
        round=release.round,
        version=release.version,
        model_digest=release.model_digest,
        base_digest=release.base_digest,
        layout_digest=release.layout_digest,
        payloads=[
            pb.ReleasePayload(
                encoding=encoding_to_wire(payload.encoding),
                payload_digest=payload.payload_digest,
                byte_count=payload.byte_count,
            )
            for payload in release.payloads
        ],
    )


def release_from_wire(message: pb.Release) -> Release:
    """A release whose signature has been checked."""
    return Release(
        federation=message.federation,
        run=RunName(message.run),
        round=RoundNumber(message.round),
        version=message.version,
        model_digest=Digest(message.model_digest),
        base_digest=Digest(message.base_digest),
        layout_digest=Digest(message.layout_digest),
        payloads=tuple(
            ReleasePayload(
                encoding=encoding_from_wire(payload.encoding),
                payload_digest=Digest(payload.payload_digest),
                byte_count=payload.byte_count,
            )
            for payload in message.payloads
            if is_known_encoding(payload.encoding)
        ),
    )


def _privacy_to_wire(privacy: PrivacyReport) -> pb.PrivacyReport:
    return pb.PrivacyReport(**msgspec.structs.asdict(privacy))


def _privacy_from_wire(message: pb.PrivacyReport) -> PrivacyReport:
    return PrivacyReport(
        clip_norm=message.clip_norm,
        noise_multiplier=message.noise_multiplier,
        epsilon=message.epsilon,
        delta=message.delta,
    )


def _backbone_to_wire(backbone: BackbonePlan) -> pb.BackboneSpec:
    return pb.BackboneSpec(
        name=backbone.name,
        neck=backbone.neck,
        height_px=backbone.height_px,
        width_px=backbone.width_px,
        last_stride=backbone.last_stride,
    )


def _training_to_wire(training: TrainingPlan) -> pb.TrainingSpec:
    sent = {field.name for field in pb.TrainingSpec.DESCRIPTOR.fields}
    values = msgspec.structs.asdict(training)
    return pb.TrainingSpec(**{name: value for name, value in values.items() if name in sent})


def _section_from_wire(
    message: pb.BackboneSpec | pb.TrainingSpec, kind: type[SectionT]
) -> SectionT:
    """A part of the plan, all of it or none.

    Elsewhere a newer coordinator's additions are passed over, but a recipe that is followed in
    part gives another model.
    """
    if len(UnknownFieldSet(message)):
        raise FedreidError(
            "The coordinator's plan has a key that this agent does not know",
            next_step=_UPGRADE,
        )
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    if not all(math.isfinite(value) for value in values.values() if isinstance(value, float)):
        raise FedreidError("The coordinator asks for training with a number that is none")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise FedreidError(
            "The coordinator asks for something that this agent does not know",
            why=str(error),
            next_step=_UPGRADE,
        ) from error


def _digest(text: str) -> Digest:
    """A digest from outside: it becomes a file's name here, so nothing else may pass."""
    if not is_digest(text):
        raise FedreidError("The coordinator names a model by something that is no digest")
    return Digest(text)


def _factor(value: float) -> float:
    if not (math.isfinite(value) and value >= 0.0):
        raise FedreidError(f"The coordinator asks for a learning rate factor of {value}")
    return value


def _bn_from_wire(name: str) -> BatchNormPolicy:
    policies: tuple[BatchNormPolicy, ...] = get_args(BatchNormPolicy)
    for known in policies:
        if name == known:
            return known
    raise FedreidError(
        f"The coordinator asks for the BatchNorm policy {name!r}, which this agent does not know",
        next_step=_UPGRADE,
    )
