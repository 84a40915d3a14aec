"""What may leave this silo? The one door: every byte of an update is named here first.

The coordinator's base model names the tensors that the federation shares. Exactly those may
leave; a classifier is not among them and can't be serialised from here. The operator's policy is
the ceiling above that. What ``egress show`` prints, what the policy is held against, what is sent
and what the audit log keeps are one :class:`Parcel`.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

import msgspec

from fedreid.contract import EvaluateTask, TrainTask, UpdateReport
from fedreid.errors import PolicyRefused, StorageError
from fedreid.files import digest_of, make_folder, replacing
from fedreid.plan import BatchNormPolicy, Encoding, is_difference, keeps_batch_norm
from fedreid.spares import Spares
from fedreid.wire.differences import Difference, quantised
from fedreid.wire.encoding import encode, payload_bytes
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorFile, batch_norm_names
from silo_agent.config import Policy
from silo_agent.outbox import (
    PAYLOAD_FILE,
    RESIDUAL_AFTER_FILE,
    RESIDUAL_BEFORE_FILE,
    FinishedRound,
)


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit log keeps of an update that left."""

    destination: str
    """HOST:PORT."""
    run: str
    round: int
    base_digest: str
    tensor_count: int
    names_digest: str
    """BLAKE3 of the tensors' names and shapes, as a safetensors header lists them."""
    encoding: Encoding
    byte_count: int
    payload_digest: str
    report: UpdateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Which tensors of a base model leave, and how."""

    layout: Layout
    encoding: Encoding

    @property
    def byte_count(self) -> int:
        """Bytes of the payload, at most."""
        return payload_bytes(self.layout, self.encoding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What an upload sends: where to, numbers, a manifest, and where its payload lies."""

    destination: str
    run: str
    round: int
    base_digest: str
    report: UpdateReport
    manifest: Manifest
    path: Path
    start: int
    """Where the payload begins in the file, in bytes."""
    residual_digest: str = ""
    """Of what the payload leaves unsaid, which stays here; empty where it says all."""

    def departure(self) -> Departure:
        """What the audit log keeps of it."""
        return Departure(
            destination=self.destination,
            run=self.run,
            round=self.round,
            base_digest=self.base_digest,
            tensor_count=len(self.manifest.layout.specs),
            names_digest=self.manifest.layout.digest(),
            encoding=self.manifest.encoding,
            byte_count=self.manifest.byte_count,
            payload_digest=self.manifest.payload_digest,
            report=self.report,
        )


def check_destination(address: str, policy: Policy) -> None:
    """Check where the agent is told to dial.

    Raises:
        PolicyRefused: the policy names coordinators, and this is none of them.
    """
    if policy.coordinators and address not in policy.coordinators:
        raise PolicyRefused(
            f"The coordinator {address} is none that this silo's policy names",
            key="coordinators",
            why=f"policy.coordinators = {list(policy.coordinators)}",
            next_step="Correct --coordinator, or add the address to policy.coordinators.",
        )


def check_task(task: TrainTask | EvaluateTask, policy: Policy) -> None:
    """Check a task against the policy before anything is fetched or trained.

    Raises:
        PolicyRefused: the network is not among the policy's, or the plan averages BatchNorm
            statistics, and the policy keeps them here.
    """
    name = task.backbone.name
    if policy.backbones and name not in policy.backbones:
        raise PolicyRefused(
            f"The run {task.run} is of the backbone {name!r}",
            key="backbones",
            why=f"this silo's policy allows {', '.join(policy.backbones)}",
            next_step="Ask for a plan with one of those, or add it to policy.backbones.",
        )
    if isinstance(task, TrainTask) and not (
        policy.batchnorm_statistics or keeps_batch_norm(task.bn)
    ):
        raise _batchnorm_stays(task.bn)


def check_images(count: int, policy: Policy) -> None:
    """Check how many images an update is made of.

    Raises:
        PolicyRefused: fewer than the policy demands.
    """
    if count < policy.minimum_images:
        raise PolicyRefused(
            f"The silo has {count} training images",
            key="minimum_images",
            why=f"its policy demands at least {policy.minimum_images}",
            next_step="Add images, or lower policy.minimum_images.",
        )


def check_noise(report: UpdateReport, policy: Policy) -> None:
    """Check that an update has the noise that the policy demands.

    Raises:
        PolicyRefused: it has none.
    """
    if policy.privacy.on and report.privacy is None:
        raise PolicyRefused(
            "This update was trained without noise",
            key="privacy",
            why="the policy lets updates leave with noise only",
            next_step="Remove the round's folder; it is trained again.",
        )


def shared_layout(base: Layout, *, bn: BatchNormPolicy, policy: Policy) -> Layout:
    """The tensors that leave: the base model's, without BatchNorm where that stays here.

    Raises:
        PolicyRefused: the plan wants a tensor that the policy keeps here.
    """
    names = set(base.names)
    if not policy.batchnorm_statistics:
        if not keeps_batch_norm(bn):
            raise _batchnorm_stays(bn)
        names -= batch_norm_names(base.names)
    kept = [name for name in sorted(names) if not _named(name, policy)]
    if kept:
        raise PolicyRefused(
            f"The base model has {len(kept)} tensors that this silo's policy does not let leave, "
            f"the first is {kept[0]!r}",
            key="tensors",
            why="no pattern of policy.tensors fits them",
            next_step="Ask the coordinator's operators what they are, or extend policy.tensors.",
        )
    return base.only(names)


def outline(base: Layout, *, bn: BatchNormPolicy, encoding: Encoding, policy: Policy) -> Outline:
    """Which tensors leave under a plan, and in which encoding.

    Raises:
        PolicyRefused: the plan wants a tensor, or an encoding, that the policy keeps here.
    """
    return Outline(
        layout=shared_layout(base, bn=bn, policy=policy), encoding=_encoding(encoding, policy)
    )


def pack(
    finished: FinishedRound,
    *,
    folder: Path,
    update: Path,
    base: Path,
    policy: Policy,
    destination: str,
    spares: Spares | None = None,
) -> Parcel:
    """Name what leaves of a trained round, and write its payload where ``update`` itself is not it.

    ``base`` is the model that training began from, as it lies here. Packed again, a round gives the
    same bytes: with differences, the residual that lies beside ``update`` goes in every time.
    ``spares`` are written over, where there are any.

    Raises:
        PolicyRefused: the policy keeps here what the plan wants, there are too few images, no
            noise where the policy demands it, or the destination is none of the policy's.
        StorageError: the update lacks a tensor of the base model, or has another shape.
    """
    check_destination(destination, policy)
    check_images(finished.report.num_images, policy)
    check_noise(finished.report, policy)
    with TensorFile(update) as file, TensorFile(base) as before:
        leaving = outline(before.layout, bn=finished.bn, encoding=finished.encoding, policy=policy)
        if file.layout.only(leaving.layout.names) != leaving.layout:
            raise StorageError(
                "The trained backbone has other tensors than the model it started from",
                next_step="Remove the round's folder; it is trained again.",
            )
        if leaving.encoding == "fp32" and leaving.layout == file.layout:
            path, start, residual_digest = update, file.data_offset, ""
        else:
            path, start = folder / PAYLOAD_FILE, 0
            over = None if spares is None else spares.find(leaving.byte_count)
            with replacing(path, mode=0o600, over=over) as stream:
                residual_digest = _write(file, before, leaving, folder, stream, spares)
    manifest = Manifest(
        layout=leaving.layout,
        encoding=leaving.encoding,
        byte_count=path.stat().st_size - start,
        payload_digest=digest_of(path, start=start),
    )
    return Parcel(
        destination=destination,
        run=finished.run,
        round=finished.round,
        base_digest=finished.base_digest,
        report=finished.report,
        manifest=manifest,
        path=path,
        start=start,
        residual_digest=residual_digest,
    )


def _write(
    file: TensorFile,
    base: TensorFile,
    leaving: Outline,
    folder: Path,
    stream: IO[bytes],
    spares: Spares | None,
) -> str:
    """Write the payload and, of differences, the residual too; its digest."""
    if not is_difference(leaving.encoding):
        encode(file, leaving.layout, leaving.encoding, stream)
        return ""
    earlier = file.path.parent / RESIDUAL_BEFORE_FILE
    after = folder / RESIDUAL_AFTER_FILE
    make_folder(after.parent, mode=0o700)
    with ExitStack() as stack:
        over = None if spares is None else spares.find(quantised(leaving.layout).file_bytes)
        residual = stack.enter_context(replacing(after, mode=0o600, over=over))
        difference = Difference(
            base=base,
            before=stack.enter_context(TensorFile(earlier)) if earlier.exists() else None,
            after=residual,
        )
        encode(file, leaving.layout, leaving.encoding, stream, difference)
    return digest_of(after)


def _named(name: str, policy: Policy) -> bool:
    return not policy.tensors or any(fnmatchcase(name, pattern) for pattern in policy.tensors)


def _encoding(proposed: Encoding, policy: Policy) -> Encoding:
    """The plan proposes, the policy disposes; every coordinator takes fp32 as well."""
    allowed = policy.encodings or (proposed,)
    for encoding in (proposed, "fp32"):
        if encoding in allowed:
            return encoding
    raise PolicyRefused(
        f"The plan wants updates in {proposed}",
        key="encodings",
        why=f"this silo's policy allows {', '.join(allowed)}",
        next_step=f"Ask for a plan with wire.upload = {allowed[0]!r}, or extend policy.encodings.",
    )


def _batchnorm_stays(bn: BatchNormPolicy) -> PolicyRefused:
    return PolicyRefused(
        f"The plan averages BatchNorm statistics (bn = {bn!r})",
        key="batchnorm_statistics",
        why="this silo's policy does not let them leave",
        next_step="Ask for a plan with bn = 'adaptive', or set policy.batchnorm_statistics.",
    )
