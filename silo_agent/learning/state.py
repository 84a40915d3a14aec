"""What does a silo keep from round to round, and never send?

A job's private folder::

    private/
    ├── federated/    classifier.safetensors, identities.json; batch_norm.safetensors if bn = local
    └── standalone/   classifier.safetensors, identities.json, backbone.safetensors

A classifier's rows belong to identities by number, so that a silo whose people change between
rounds keeps what it has learned of those who stay. There is no optimiser state: it ends with
its round (reid-spec §1).

Letters: C identities, D feature width.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import nn

from fedreid.errors import StorageError, storage_errors
from fedreid.files import write_bytes
from fedreid.wire.tensors import FloatArray, load_tensors, save_tensors

FEDERATED = "federated"
STANDALONE = "standalone"

INITIAL_DEVIATION = 0.001
"""Of a new classifier row (MM'20's reference)."""

_CLASSIFIER = "classifier.safetensors"
_IDENTITIES = "identities.json"
BACKBONE = "backbone.safetensors"
BATCH_NORM = "batch_norm.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierState:
    """A classifier with the identity of each row: ``weight`` is C×D, ``bias`` C long."""

    identities: tuple[int, ...]
    weight: FloatArray
    bias: FloatArray

    @classmethod
    def of(cls, classifier: nn.Linear, identities: tuple[int, ...]) -> "ClassifierState":
        """A copy of the module's values."""
        return cls(
            identities=identities,
            weight=classifier.weight.detach().cpu().numpy().copy(),
            bias=classifier.bias.detach().cpu().numpy().copy(),
        )


def build_classifier(
    previous: ClassifierState | None, identities: tuple[int, ...], *, width: int, seed: int
) -> nn.Linear:
    """Rows of known identities from ``previous``, the others N(0, 0.001) from the seed."""
    classifier = nn.Linear(width, len(identities))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        classifier.weight.normal_(0.0, INITIAL_DEVIATION, generator=generator)
        classifier.bias.zero_()
        if previous is not None:
            row_of = {pid: row for row, pid in enumerate(previous.identities)}
            known = [row for row, pid in enumerate(identities) if pid in row_of]
            theirs = [row_of[identities[row]] for row in known]
            classifier.weight[known] = torch.from_numpy(previous.weight[theirs])
            classifier.bias[known] = torch.from_numpy(previous.bias[theirs])
    return classifier


def write_classifier(folder: Path, state: ClassifierState) -> None:
    """Write the two files of a classifier."""
    save_tensors(folder / _CLASSIFIER, {"weight": state.weight, "bias": state.bias})
    write_bytes(folder / _IDENTITIES, msgspec.json.encode(state.identities))


def read_classifier(folder: Path) -> ClassifierState:
    """Read them back.

    Raises:
        StorageError: a file is missing or damaged, or the two do not fit together.
    """
    tensors = load_tensors(folder / _CLASSIFIER)
    with storage_errors("read", folder / _IDENTITIES):
        text = (folder / _IDENTITIES).read_bytes()
    try:
        identities = msgspec.json.decode(text, type=tuple[int, ...])
        weight, bias = tensors["weight"], tensors["bias"]
        if weight.ndim != 2 or not len(weight) == len(bias) == len(identities):
            raise ValueError("rows and identities differ in number")
    except (ValueError, KeyError) as error:
        raise StorageError(
            f"The classifier in {folder} is damaged",
            why=str(error),
            next_step="Remove the silo's state of this run; training begins with a new one.",
        ) from error
    return ClassifierState(identities=identities, weight=weight, bias=bias)
