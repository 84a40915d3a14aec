"""Where does a model come from? What is written beside everything that was made with it.

Embeddings can be compared only if the same weights made them from images of the same size.
"""

from pathlib import Path
from typing import Literal

import msgspec

from fedreid.contract import ModelKind
from fedreid.errors import StorageError, storage_errors
from fedreid.plan import BackbonePlan

SIDECAR = ".json"
"""Added to a file's name: the note beside it that says which model the file is of."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Which weights, of which network, from which round."""

    model: ModelKind | Literal["file"]
    federation: str = ""
    silo: str = ""
    run: str = ""
    round: int | None = None
    """The round that made it; None where a file does not tell."""
    digest: str
    """BLAKE3 of the canonical file of the weights as they are used."""
    published_digest: str = ""
    """Of the published model that a global one is; its own ``digest`` is another where the
    download was in bf16 or the silo's own BatchNorm was put in."""
    own_batch_norm: bool = False
    """Whether the silo's own BatchNorm stands in for the published one (``bn = local``)."""
    backbone: BackbonePlan

    def comparable(self, other: "Provenance") -> bool:
        """Whether embeddings of both models lie in one space."""
        return self.digest == other.digest and self.backbone == other.backbone

    def named(self) -> str:
        """How people call it."""
        if self.model == "file":
            return f"the model {self.digest[:12]}…"
        return f"the {self.model} model of round {self.round} of {self.run}"

    def to_builtins(self) -> dict[str, object]:
        """For JSON; without the plan's start, which says nothing of trained weights."""
        tree: dict[str, object] = msgspec.to_builtins(self)
        backbone = {k: v for k, v in msgspec.to_builtins(self.backbone).items() if k != "start"}
        return {**tree, "backbone": backbone}


class _Noted(msgspec.Struct, frozen=True, kw_only=True):
    model: Provenance


def sidecar_of(path: Path) -> Path:
    """Where the note of a file lies."""
    return path.with_name(path.name + SIDECAR)


def read_provenance(path: Path) -> Provenance | None:
    """What the note beside a file says; None where there is none.

    Raises:
        StorageError: the note is damaged.
    """
    note = sidecar_of(path)
    if not note.exists():
        return None
    with storage_errors("read", note):
        text = note.read_bytes()
    try:
        return msgspec.json.decode(text, type=_Noted).model
    except msgspec.MsgspecError as error:
        raise StorageError(
            f"The note {note} is damaged",
            why=str(error),
            next_step=f"Make {path.name} again.",
        ) from error
