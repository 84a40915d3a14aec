"""What network do all silos share, and which named tensors make it up?

A torchvision model without its classifier, a global average pool and an embedding neck
(reid-spec §1). Trunk and neck are the whole shared state; classifiers live at the silos.

Letters: N images, C channels, H height, W width, P pooled width, D feature width.
"""

import difflib
from collections.abc import Mapping

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from fedreid.errors import UsageError
from fedreid.plan import BackbonePlan
from fedreid.reid.start import COUNTERS, HEADS, fill_start
from fedreid.wire.tensors import FloatArray

NECK_WIDTH = 512
"""Feature width of the ``paper`` neck (MM'20)."""

_PROBED_PX = (256, 128)
"""Size at which a trunk's maps are told apart by theirs."""


class ReIDBackbone(nn.Module):
    """Images to features: trunk, global average pool, neck."""

    def __init__(self, plan: BackbonePlan, trunk: nn.Module, neck: nn.Module, width: int) -> None:
        super().__init__()
        self.plan = plan
        self.trunk = trunk
        self.neck = neck
        self.feature_width = width

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """features_ND."""
        return self.with_pooled(images_NCHW)[0]

    def with_pooled(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """features_ND, and pooled_NP before the neck."""
        pooled_NP: Tensor = self.trunk(images_NCHW).flatten(1)
        features_ND: Tensor = self.neck(pooled_NP)
        return features_ND, pooled_NP


class _Pool(nn.Module):
    """In the head's place: the global average pool, where the model left it to its head."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3)) if maps.dim() == 4 else maps


class _PaperNeck(nn.Module):
    """Linear → BatchNorm → Dropout, no ReLU (MM'20 §4)."""

    def __init__(self, pooled_width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(pooled_width, NECK_WIDTH)
        self.norm = nn.BatchNorm1d(NECK_WIDTH)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")
        nn.init.zeros_(self.linear.bias)
        nn.init.normal_(self.norm.weight, 1.0, 0.02)
        nn.init.zeros_(self.norm.bias)

    def forward(self, pooled_NP: Tensor) -> Tensor:
        features_ND: Tensor = self.dropout(self.norm(self.linear(pooled_NP)))
        return features_ND


class _BottleneckNeck(nn.Module):
    """BatchNorm with a frozen bias on the pooled feature (BNNeck)."""

    def __init__(self, pooled_width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(pooled_width)
        self.norm.bias.requires_grad_(False)

    def forward(self, pooled_NP: Tensor) -> Tensor:
        features_ND: Tensor = self.norm(pooled_NP)
        return features_ND


def build_backbone(plan: BackbonePlan, *, dropout: float = 0.5) -> ReIDBackbone:
    """The plan's network with whatever weights the global generator gives.

    ``dropout`` is the share of neck features dropped in training; ``bnneck`` drops none.
    Weights lie channels-last: on CPUs that halves the time of depthwise convolutions, on GPUs
    it is what tensor cores want; values and names do not change.

    Raises:
        UsageError: torchvision has no such model, it gives no flat feature, or its last stride
            can't be 1.
    """
    trunk = _headless(plan.name)
    if plan.last_stride == 1:
        _keep_last_size(trunk, plan.name)
    pooled_width = _width_of(trunk, plan)
    if plan.neck == "bnneck":
        backbone = ReIDBackbone(plan, trunk, _BottleneckNeck(pooled_width), pooled_width)
    else:
        backbone = ReIDBackbone(plan, trunk, _PaperNeck(pooled_width, dropout), NECK_WIDTH)
    return backbone.to(memory_format=torch.channels_last)


def _headless(name: str) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"torchvision has no model {name!r}",
            next_step=f"Did you mean {nearest!r}? See torchvision's list of classification models.",
        )
    trunk: nn.Module = torchvision.models.get_model(name, weights=None)
    heads = [head for head in HEADS if hasattr(trunk, head)]
    if len(heads) != 1 or hasattr(trunk, "aux_logits"):
        raise _unfit(name, "its classifier is built in another way than in convolutional models")
    setattr(trunk, heads[0], _Pool())
    if hasattr(trunk, "avgpool"):
        trunk.avgpool = nn.AdaptiveAvgPool2d(1)
    return trunk


def _keep_last_size(trunk: nn.Module, name: str) -> None:
    """Give the last downsampling stride 1; weights and names do not change.

    It is found by what it does: the convolutions of a stride that put out maps of the smallest
    size. (Those that see one pixel weigh channels; they are no part of the way of the image.)
    """
    rows: dict[nn.Conv2d, int] = {}

    def note(layer: nn.Module, _: object, maps: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        if maps.shape[2:].numel() > 1:
            rows[layer] = int(maps.shape[2])

    layers = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    trunk.eval()  # so that the pass leaves the running statistics as they are
    with torch.no_grad():
        trunk(torch.zeros(1, 3, *_PROBED_PX))
    trunk.train()
    for hook in hooks:
        hook.remove()
    smallest = min(rows.values())
    last = [layer for layer in rows if rows[layer] == smallest and max(layer.stride) > 1]
    if not last:
        raise UsageError(
            f"The backbone {name!r} can't have last_stride = 1",
            why="its last downsampling is no convolution",
            next_step="Set backbone.last_stride = 2 in the plan, or choose a ResNet.",
        )
    for layer in last:
        layer.stride = (1, 1)


def _width_of(trunk: nn.Module, plan: BackbonePlan) -> int:
    trunk.eval()  # so that the pass leaves the running statistics as they are
    try:
        with torch.no_grad():
            pooled = trunk(torch.zeros(1, 3, plan.height_px, plan.width_px)).flatten(1)
    except RuntimeError as error:
        raise _unfit(
            plan.name, f"it can't take images of {plan.height_px}×{plan.width_px} pixels"
        ) from error
    finally:
        trunk.train()
    return int(pooled.shape[1])


def _unfit(name: str, why: str) -> UsageError:
    return UsageError(
        f"The model {name!r} can't be a backbone",
        why=why,
        next_step="Choose a convolutional one such as 'resnet50' or 'mobilenet_v3_small'.",
    )


def initialise(backbone: ReIDBackbone, seed: int) -> None:
    """Set every tensor of the backbone to its plan's start weights; the same seed, the same bits.

    What the start weights do not cover (all, or the neck) gets its seeded random initialisation.

    Raises:
        UsageError: the plan's start weights can't be had, or do not fit.
    """
    plan = backbone.plan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_backbone(plan)
    fill_start(fresh, fresh.trunk, name=plan.name, start=plan.start)
    backbone.load_state_dict(fresh.state_dict())


def load_backbone(
    plan: BackbonePlan, tensors: Mapping[str, FloatArray], *, dropout: float = 0.0
) -> ReIDBackbone:
    """The plan's backbone with these tensors.

    Raises:
        UsageError: they do not fit.
    """
    backbone = build_backbone(plan, dropout=dropout)
    load_shared(backbone, tensors)
    return backbone


def shared_tensors(backbone: ReIDBackbone) -> dict[str, FloatArray]:
    """Every parameter and BatchNorm statistic by name, as float32 on the CPU (copies)."""
    return {
        name: tensor.detach().cpu().to(torch.float32).contiguous().numpy().copy()
        for name, tensor in backbone.state_dict().items()
        if not name.endswith(COUNTERS)
    }


def load_shared(backbone: ReIDBackbone, tensors: Mapping[str, FloatArray]) -> None:
    """Set the backbone to ``tensors``, which must have exactly its names and shapes.

    Raises:
        UsageError: a name is missing or unknown, or a shape differs.
    """
    own = {n: t for n, t in backbone.state_dict().items() if not n.endswith(COUNTERS)}
    missing = sorted(set(own) - set(tensors))
    unknown = sorted(set(tensors) - set(own))
    if missing or unknown:
        raise _misfit(backbone, _listed("it lacks", missing) or _listed("it also has", unknown))
    for name in own:
        if tuple(own[name].shape) != tuple(tensors[name].shape):
            raise _misfit(
                backbone,
                f"{name!r} has shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}",
            )
    with torch.no_grad():
        for name in own:
            own[name].copy_(torch.from_numpy(np.ascontiguousarray(tensors[name])))


def _listed(verb: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{verb} {names[0]!r}{more}"


def _misfit(backbone: ReIDBackbone, why: str) -> UsageError:
    plan = backbone.plan
    return UsageError(
        f"The tensors don't fit the backbone {plan.name!r} with the neck {plan.neck!r}",
        why=why,
        next_step="Use the plan that the model was trained with.",
    )
