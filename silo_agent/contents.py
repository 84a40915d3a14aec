"""What does the newest upload consist of, or what will the first one? Told without sending it.

A round that was trained is packed by the very code that sends it, into a folder of its own. Before
that, the base model and the policy say what a plan can make leave at most.
"""

import tempfile
from pathlib import Path

import msgspec

from fedreid.contract import UpdateReport
from fedreid.errors import StorageError, UsageError
from fedreid.plan import Encoding
from fedreid.wire.encoding import payload_bytes
from fedreid.wire.tensors import Layout, layout_of
from silo_agent.config import Folders, load_config
from silo_agent.egress import outline, pack
from silo_agent.held import find_held, newest_held
from silo_agent.outbox import UPDATE_FILE, FinishedRound, Outbox


class TensorShown(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that leaves."""

    shape: tuple[int, ...]
    bytes: int
    """As it is sent; where that is compressed, at most."""


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """All of one upload."""

    title: str
    destination: str
    numbers: dict[str, float | str | None]
    """None where a number is not known before training."""
    tensors: dict[str, TensorShown]
    encoding: Encoding
    byte_count: int
    payload_digest: str | None


def contents_of(folders: Folders, base: Path | None = None) -> Contents:
    """The newest upload; before the first one, or of a model file ``base``, the most of the next.

    Raises:
        UsageError: there is no model yet to tell it from.
        PolicyRefused: the policy does not let it leave.
    """
    last = Outbox(folders).last()
    return _foreseen(folders, base) if base or last is None else _packed(folders, last)


def _packed(folders: Folders, last: FinishedRound) -> Contents:
    config = load_config(folders)
    held = find_held(folders, last.base_digest)
    if held is None:
        raise UsageError(
            f"The model that round {last.round} of {last.run} started from is not here any more",
            next_step="silo-agent audit show tells what has left; the next round can be shown.",
        )
    with tempfile.TemporaryDirectory(dir=folders.rounds, prefix=".shown-") as scratch:
        parcel = pack(
            last,
            folder=Path(scratch),
            update=Outbox(folders).folder(last) / UPDATE_FILE,
            base=Path(held.path),
            policy=config.policy,
            destination=config.coordinator,
        )
    manifest = parcel.manifest
    numbers = msgspec.to_builtins(parcel.report)
    return Contents(
        title=f"Round {last.round} of {last.run} sends these tensors",
        destination=parcel.destination,
        numbers={**numbers, "run": parcel.run, "round": parcel.round},
        tensors=_tensors(manifest.layout, manifest.encoding),
        encoding=manifest.encoding,
        byte_count=manifest.byte_count,
        payload_digest=manifest.payload_digest,
    )


def _foreseen(folders: Folders, base: Path | None) -> Contents:
    config = load_config(folders)
    policy = config.policy
    allowed = policy.encodings or ("fp32",)
    leaving = outline(
        _named(base) if base else layout_of(_newest(folders)),
        bn="pooled" if policy.batchnorm_statistics else "local",
        encoding="fp32" if "fp32" in allowed else allowed[0],
        policy=policy,
    )
    return Contents(
        title="An upload sends at most these tensors",
        destination=config.coordinator,
        numbers=dict.fromkeys((*UpdateReport.__struct_fields__, "run", "round")),
        tensors=_tensors(leaving.layout, leaving.encoding),
        encoding=leaving.encoding,
        byte_count=leaving.byte_count,
        payload_digest=None,
    )


def _tensors(layout: Layout, encoding: Encoding) -> dict[str, TensorShown]:
    return {
        spec.name: TensorShown(shape=spec.shape, bytes=payload_bytes(Layout((spec,)), encoding))
        for spec in layout.specs
    }


def _named(base: Path) -> Layout:
    """The tensors of a file that somebody has named."""
    try:
        return layout_of(base)
    except StorageError as error:
        raise UsageError(
            f"The file {base} is no model of ours",
            why=error.why,
            next_step="Name one that 'coordinator model export' has written.",
        ) from error


def _newest(folders: Folders) -> Path:
    held = newest_held(folders)
    if held is None:
        raise UsageError(
            "This silo has no model yet, and so nothing that could leave",
            next_step="Name a model file of the coordinator's with --base, or take part: "
            "silo-agent run.",
        )
    return Path(held.path)
