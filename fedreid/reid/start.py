"""With which weights does a run begin? Seeded random ones, ImageNet's, or a file's."""

import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fedreid.errors import UsageError

HEADS = ("fc", "classifier")
"""Where torchvision keeps the classifier; its weights would be dead and are not shipped."""

COUNTERS = "num_batches_tracked"
"""Suffix of BatchNorm's step counters: neither learned nor used."""


def fill_start(whole: nn.Module, trunk: nn.Module, *, name: str, start: str) -> None:
    """Overwrite the tensors that the start weights cover; ``random`` covers none.

    ``whole`` is the backbone, ``trunk`` its torchvision model called ``name`` without head.
    ``imagenet`` covers the trunk; a state file may be one of the whole backbone (its names begin
    with ``trunk.`` and ``neck.``) or of the plain torchvision model.

    Raises:
        UsageError: no such weights, a damaged file, or tensors that do not fit.
    """
    if start == "imagenet":
        _fill(trunk, _imagenet(name), "ImageNet")
    elif start != "random":
        state = _read(Path(start))
        ours = any(tensor.startswith(("trunk.", "neck.")) for tensor in state)
        _fill(whole if ours else trunk, state, start)


def _imagenet(name: str) -> Mapping[str, Tensor]:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UsageError(
            f"Can't download torchvision's ImageNet weights of {name!r}",
            why=f"the coordinator could not reach {weights.url} ({error})",
            next_step="Give the coordinator internet access, or download the file elsewhere and "
            'write its path as the plan\'s start = "/path/to/weights.pth".',
        ) from error
    return state


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix not in (".safetensors", ".pth"):
        raise UsageError(
            f"Can't start from {str(path)!r}",
            next_step="Use random, imagenet, or the path of a .safetensors or .pth file.",
        )
    try:
        state = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except UsageError:
        raise
    except Exception as error:  # torch, pickle and safetensors raise what they like
        raise UsageError(
            f"Can't read the start weights {path}",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step="Name an existing state file of this backbone.",
        ) from error
    return state


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file  # only sites that start from such a file need it

    return load_file(path)


def _pickled(path: Path) -> Mapping[str, Tensor]:
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(
            f"The start weights {path} are no state file",
            why="it does not hold tensors by name",
            next_step="Save it with torch.save(model.state_dict(), path).",
        )
    return state


def _fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    own = {n: t for n, t in module.state_dict().items() if not n.endswith(COUNTERS)}
    heads = tuple(f"{head}." for head in HEADS)
    given = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(heads) and not name.endswith(COUNTERS)
    }
    why = ""
    if missing := sorted(set(own) - set(given)):
        why = f"{missing[0]!r} is missing"
    elif unknown := sorted(set(given) - set(own)):
        why = f"{unknown[0]!r} is no tensor of this backbone"
    elif wrong := sorted(name for name in own if own[name].shape != given[name].shape):
        why = (
            f"{wrong[0]!r} has shape {tuple(given[wrong[0]].shape)}, "
            f"not {tuple(own[wrong[0]].shape)}"
        )
    if why:
        raise UsageError(
            f"The start weights {source} don't fit the plan's backbone",
            why=why,
            next_step="Choose the backbone that the file was made for.",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
