"""Which model is meant by ``global``, ``local``, ``standalone`` or a file, and what is it made of?

Everything is read from the agent's data folder or from beside the file; the coordinator is not
asked. With ``bn = local`` the silo's own BatchNorm is put into the global model, as in training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from fedreid.contract import ModelKind
from fedreid.errors import StorageError, UsageError
from fedreid.reid.backbone import ReIDBackbone, load_backbone
from fedreid.wire.tensors import FloatArray, digest_of_tensors, load_tensors
from silo_agent.config import Folders, load_membership
from silo_agent.held import newest_held
from silo_agent.learning.local_round import PRIVATE_FOLDER, own_batch_norm
from silo_agent.learning.state import BACKBONE, STANDALONE
from silo_agent.outbox import OWN_FILE, UPDATE_FILE, FinishedRound, Outbox
from silo_agent.using.provenance import Provenance, read_provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenModel:
    """A model's weights, and where they come from."""

    provenance: Provenance
    tensors: dict[str, FloatArray]

    def backbone(self) -> ReIDBackbone:
        """The network in eval mode, on the CPU.

        Raises:
            UsageError: the weights are not those of the network.
        """
        backbone = load_backbone(self.provenance.backbone, self.tensors)
        backbone.eval()
        return backbone


def best_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose(folders: Folders, model: str) -> ChosenModel:
    """The model of that name: one of the silo's last trained round, or a file.

    Raises:
        UsageError: no such model, or this silo has none of the kind yet.
        StorageError: a file is missing or damaged.
    """
    if model == "global":
        return _global(folders)
    if model == "local":
        return _trained(folders, "local", _local_path)
    if model == "standalone":
        return _trained(folders, "standalone", _standalone_path)
    path = Path(model)
    if not path.is_file():
        raise UsageError(
            f"There is no model {model!r}",
            next_step="Use global, local, standalone, or the path of a model file.",
        )
    return _file(folders, path)


def _last(folders: Folders) -> FinishedRound:
    load_membership(folders)  # where there is no agent, none is made by looking
    last = Outbox(folders).last()
    if last is None:
        raise UsageError(
            f"The silo in {folders.root} has not trained a round yet",
            next_step="Take part first: silo-agent run; or name another folder with --data.",
        )
    return last


def _global(folders: Folders) -> ChosenModel:
    last = _last(folders)
    held = newest_held(folders, last.run)
    if held is None:
        raise UsageError(
            f"No published model of {last.run} is on this machine",
            next_step="Take part once more, silo-agent run fetches it; or use --model local.",
        )
    tensors = load_tensors(Path(held.path))
    own = own_batch_norm(str(Outbox(folders).folder(last)), last.bn)
    tensors.update(own)
    chosen = _chosen(folders, last, "global", tensors)
    provenance = msgspec.structs.replace(
        chosen.provenance,
        round=held.round,
        published_digest=held.digest,
        own_batch_norm=bool(own),
    )
    return ChosenModel(provenance=provenance, tensors=tensors)


def _trained(folders: Folders, kind: ModelKind, path_of: Callable[[Path], Path]) -> ChosenModel:
    last = _last(folders)
    path = path_of(Outbox(folders).folder(last))
    if not path.exists():
        raise UsageError(
            f"This silo has no {kind} model of {last.run}",
            why="its plan trains none",
            next_step="Use --model global or --model local.",
        )
    return _chosen(folders, last, kind, load_tensors(path))


def _local_path(round_folder: Path) -> Path:
    own = round_folder / OWN_FILE
    return own if own.exists() else round_folder / UPDATE_FILE


def _standalone_path(round_folder: Path) -> Path:
    return round_folder / PRIVATE_FOLDER / STANDALONE / BACKBONE


def _chosen(
    folders: Folders, last: FinishedRound, kind: ModelKind, tensors: dict[str, FloatArray]
) -> ChosenModel:
    membership = load_membership(folders)
    provenance = Provenance(
        model=kind,
        federation=membership.federation,
        silo=membership.silo,
        run=last.run,
        round=last.round,
        digest=digest_of_tensors(tensors),
        backbone=last.backbone,
    )
    return ChosenModel(provenance=provenance, tensors=tensors)


def _file(folders: Folders, path: Path) -> ChosenModel:
    """A model file; what the note beside it says counts only if it is of these weights."""
    try:
        tensors = load_tensors(path)
    except StorageError as error:
        raise UsageError(
            f"The file {path} is no model of ours",
            why=error.why,
            next_step="Name one that 'silo-agent model export --format safetensors' or "
            "'coordinator model export' has written.",
        ) from error
    digest = digest_of_tensors(tensors)
    noted = read_provenance(path)
    if noted is None or noted.digest != digest:
        noted = Provenance(model="file", digest=digest, backbone=_last(folders).backbone)
    return ChosenModel(provenance=noted, tensors=tensors)
