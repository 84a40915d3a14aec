"""What may leave this silo? The one door: every byte of an update is named here first.

The coordinator's base model names the tensors that the federation shares. Exactly those may
leave; a classifier is not among them and can't be serialised from here. The operator's policy is
the ceiling above that.
"""

from dataclasses import dataclass
from pathlib import Path

from fedreid.contract import TrainTask, UpdateReport
from fedreid.errors import PolicyRefused, StorageError
from fedreid.files import digest_of, replacing
from fedreid.plan import BatchNormPolicy, Encoding
from fedreid.wire.encoding import encode, payload_bytes
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorFile, batch_norm_names
from silo_agent.config import Policy

_PAYLOAD_FILE = "payload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What an upload sends: a manifest, and where its payload lies."""

    manifest: Manifest
    path: Path
    start: int
    """Where the payload begins in the file, in bytes."""


def check_task(task: TrainTask, policy: Policy) -> None:
    """Check a task against the policy before anything is trained.

    Raises:
        PolicyRefused: the plan averages BatchNorm statistics, and the policy keeps them here.
    """
    if not policy.batchnorm_statistics and task.bn != "local":
        raise _batchnorm_stays(task.bn)


def check_report(report: UpdateReport, policy: Policy) -> None:
    """Check the numbers that go with an update.

    Raises:
        PolicyRefused: the silo trained on fewer images than the policy demands, or the update has
            no noise and the policy demands it.
    """
    if policy.privacy.on and report.privacy is None:
        raise PolicyRefused(
            "This update was trained without noise",
            why="the policy lets updates leave with noise only",
            next_step="Remove the round's folder; it is trained again.",
        )
    if report.num_images < policy.minimum_images:
        raise PolicyRefused(
            f"The silo has {report.num_images} training images",
            why=f"its policy demands at least {policy.minimum_images}",
            next_step="Add images, or lower policy.minimum_images.",
        )


def pack(
    folder: Path,
    update: Path,
    base: Layout,
    *,
    bn: BatchNormPolicy,
    encoding: Encoding,
    policy: Policy,
) -> Parcel:
    """Name what leaves, and write its payload where the update file itself is not it.

    Raises:
        PolicyRefused: the policy keeps here what the plan averages.
        StorageError: the update lacks a tensor of the base model, or has another shape.
    """
    with TensorFile(update) as file:
        layout = shared_layout(file.layout, base, bn=bn, policy=policy)
        if encoding == "fp32" and layout == file.layout:
            path, start = update, file.data_offset
        else:
            path, start = folder / _PAYLOAD_FILE, 0
            with replacing(path, mode=0o600) as stream:
                encode(file, layout, encoding, stream)
    manifest = Manifest(
        layout=layout,
        encoding=encoding,
        byte_count=payload_bytes(layout, encoding),
        payload_digest=digest_of(path, start=start),
    )
    return Parcel(manifest=manifest, path=path, start=start)


def shared_layout(update: Layout, base: Layout, *, bn: BatchNormPolicy, policy: Policy) -> Layout:
    """The tensors that leave: the base model's, without BatchNorm where that stays here."""
    names = set(base.names)
    if not policy.batchnorm_statistics:
        if bn != "local":
            raise _batchnorm_stays(bn)
        names -= batch_norm_names(base.names)
    layout = update.only(names)
    if layout != base.only(names):
        raise StorageError(
            "The trained backbone has other tensors than the model it started from",
            next_step="Remove the round's folder; it is trained again.",
        )
    return layout


def _batchnorm_stays(bn: BatchNormPolicy) -> PolicyRefused:
    return PolicyRefused(
        f"The plan averages BatchNorm statistics (bn = {bn!r})",
        why="this silo's policy does not let them leave",
        next_step="Ask for a plan with bn = 'local', or set policy.batchnorm_statistics.",
    )
